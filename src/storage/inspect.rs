//! Says in words what the bytes of a store mean: its manifest, and of a segment file the header, frames and records.
//!
//! A dump for people and for tests that pin the format. Guarantees: no file is changed; what does not verify is named with
//! its place and skipped. Does not: judge what belongs to the log (`verify` does); a file that was used before shows also
//! what its earlier use left, marked so.

use std::fmt::Write as _;
use std::rc::Rc;

use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::footer;
use crate::storage::format::{
    BadHeader, FRAME_CLOSING, FRAME_FOOTER, FrameHeader, Record, RecordKind, SEGMENT_HEADER_BYTES,
    SegmentHeader, SegmentState, read_frame, retired_segment,
};
use crate::storage::manifest::{Generation, Manifest};
use crate::storage::scan::Scanner;
use crate::storage::segment::SegmentKey;
use crate::storage::table;

/// Bytes of a key or value that are shown; the rest is a number.
const SHOWN_BYTES_MAX: usize = 64;

/// How much is shown of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Its header.
    Header,
    /// Also each frame.
    Frames,
    /// Also each record.
    Records,
}

/// Shows a segment file of `bytes` bytes to `line`, line by line.
///
/// # Errors
/// `Io` when the file cannot be read.
pub async fn inspect<D: Disk>(
    disk: &D,
    name: &str,
    bytes: u64,
    detail: Detail,
    mut line: impl FnMut(&str),
) -> Result<(), StorageError> {
    let io = |action| move |source| StorageError::io(action, name, source);
    let file = Rc::new(disk.open(name).await.map_err(io("opening"))?);
    let block = file
        .read_at(0, SEGMENT_HEADER_BYTES)
        .await
        .map_err(io("reading"))?;
    let header = match SegmentHeader::decode(block.as_ref()) {
        Ok(header) => header,
        Err(bad) => {
            let what = match bad {
                BadHeader::Invalid(_) if block.as_ref().iter().all(|byte| *byte == 0) => {
                    "never used".to_owned()
                }
                BadHeader::Invalid(what) => format!("no header: {what}"),
                BadHeader::Format(format) => format!("of format version {format}"),
            };
            line(&format!("{name}: {bytes} bytes, {what}"));
            return Ok(());
        }
    };
    line(&format!("{name}: {bytes} bytes, {}", show_header(&header)));
    if detail == Detail::Header {
        return Ok(());
    }
    let limit = (bytes - bytes % BLOCK as u64).max(SEGMENT_HEADER_BYTES as u64);
    let first = SEGMENT_HEADER_BYTES as u64;
    let mut scanner = Scanner::new(file, name.to_owned(), first, limit);
    // A run of blocks without a frame: where it begins, and whether all of it is zero.
    let mut gap: Option<(u64, bool)> = None;
    loop {
        let offset = scanner.position();
        let block = scanner.peek(BLOCK).await?;
        let (frame, ends) = (FrameHeader::decode(block), block.is_empty());
        if let (Some((start, zero)), true) = (gap, ends || frame.is_some()) {
            let what = if zero { "zeros" } else { "no frame" };
            line(&format!("  @{start}..{offset}: {what}"));
            gap = None;
        }
        if ends {
            return Ok(());
        }
        let Some(frame) = frame else {
            let zero = block.iter().all(|byte| *byte == 0);
            let (start, zero_before) = gap.unwrap_or((offset, true));
            gap = Some((start, zero && zero_before));
            let len = block.len();
            scanner.consume(len);
            continue;
        };
        let taken = show_frame(&mut scanner, &header, &frame, detail, &mut line).await?;
        scanner.consume(taken);
    }
}

/// Says what a manifest holds.
pub fn show_manifest(manifest: &Manifest) -> String {
    let show = |generation: &Generation| {
        let logs: Vec<_> = generation.logs().map(|log| log.0).collect();
        match logs[..] {
            [only] => format!("1 shard, log {only}"),
            [first, .., last] => format!("{} shards, logs {first} to {last}", logs.len()),
            [] => "no shards".to_owned(),
        }
    };
    let mut text = format!(
        "manifest: store {}, {}, run {}, placement seed {:016x}, {}",
        hex(&manifest.store_uuid),
        show(&manifest.generation),
        manifest.run,
        manifest.placement_seed,
        match manifest.served {
            true => "has served",
            false => "has not served yet",
        }
    );
    if let Some(previous) = &manifest.previous {
        write!(text, ", everything is still in that of {}", show(previous))
            .expect("a String takes everything");
    }
    text
}

fn show_header(header: &SegmentHeader) -> String {
    let SegmentHeader {
        state,
        store_uuid,
        log,
        number,
        file: _,
        recycled,
        run,
        epoch,
        first_version,
        segment_bytes,
        previous_number,
        previous_file,
        previous_end,
        previous_last_version,
    } = header;
    let mut text = match state {
        SegmentState::Spare => format!(
            "spare of log {}, made when segment {previous_number} in file {previous_file} was the newest",
            log.0
        ),
        SegmentState::Log => format!(
            "segment {number} of log {}, versions from {first_version}, behind segment {previous_number} in file \
             {previous_file} that ends at {previous_end} with version {previous_last_version}",
            log.0
        ),
    };
    let store = hex(store_uuid);
    write!(
        text,
        ", made with {segment_bytes} bytes in run {run}, epoch {epoch:016x}, store {store}"
    )
    .expect("a String takes everything");
    if *recycled {
        text += ", used before";
    }
    text
}

/// Shows the frame at the scanner's position; returns how many bytes are done with.
async fn show_frame<F: DiskFile>(
    scanner: &mut Scanner<F>,
    header: &SegmentHeader,
    frame: &FrameHeader,
    detail: Detail,
    line: &mut impl FnMut(&str),
) -> Result<usize, StorageError> {
    let offset = scanner.position();
    let mut text = format!(
        "  @{offset}: frame of {} bytes, {} records, versions from {}, behind version {}",
        frame.frame_bytes(),
        frame.records,
        frame.first_version,
        frame.previous_last_version
    );
    if frame.flags & FRAME_CLOSING != 0 {
        text += ", closes the segment";
    }
    if frame.flags & FRAME_FOOTER != 0 {
        text += ", behind the end of the segment";
    }
    if frame.epoch != header.epoch {
        text += ", of an earlier use of the file";
    }
    if u64::from(frame.block) * BLOCK as u64 != offset {
        write!(
            text,
            ", written for @{}",
            u64::from(frame.block) * BLOCK as u64
        )
        .expect("a String takes everything");
    }
    let bytes = scanner.peek(frame.frame_bytes()).await?;
    let mut records = Vec::new();
    let verified = if bytes.len() < frame.frame_bytes() {
        Err((bytes.len(), "the file ends inside the frame".to_owned()))
    } else {
        read_frame(frame, bytes, |at, record| {
            let shown = show_record(&record);
            records.push(format!("    @{}: {shown}", offset + at as u64));
        })
    };
    let taken = match verified {
        Ok(()) => frame.frame_bytes(),
        Err((at, what)) => {
            write!(text, "; does not verify at @{}: {what}", offset + at as u64)
                .expect("a String takes everything");
            BLOCK
        }
    };
    line(&text);
    if detail == Detail::Records {
        for record in records {
            line(&record);
        }
    }
    Ok(taken)
}

fn show_record(record: &Record<'_>) -> String {
    let moved = if record.moved { ", moved" } else { "" };
    let version = record.version;
    match record.kind {
        RecordKind::Set => format!(
            "set {} = {}, version {version}{moved}",
            show_bytes(record.key),
            show_bytes(record.value)
        ),
        RecordKind::Delete => {
            format!(
                "delete {}, version {version}{moved}",
                show_bytes(record.key)
            )
        }
        RecordKind::Retire => {
            let SegmentKey { log, number } = retired_segment(record.key);
            format!("retires segment {number} of log {}", log.0)
        }
        RecordKind::Table => match table::decode(record.value) {
            Err(what) => what,
            Ok(entries) if entries.is_empty() => "table: no segment before this one".to_owned(),
            Ok(entries) => {
                let shown: Vec<String> = entries
                    .iter()
                    .map(|entry| {
                        let SegmentKey { log, number } = entry.segment;
                        format!(
                            "{number} of log {} in file {} to @{} with epoch {:016x}",
                            log.0, entry.file, entry.end, entry.epoch
                        )
                    })
                    .collect();
                format!("table: segments {}", shown.join(", "))
            }
        },
        RecordKind::Footer => {
            let mut text = "footer".to_owned();
            for entry in footer::entries(record.value) {
                let shown = entry.map(|entry| {
                    let kind = match entry.kind {
                        RecordKind::Delete => "delete",
                        _ => "set",
                    };
                    let (key, offset, version) =
                        (show_bytes(entry.key), entry.offset, entry.version);
                    format!(
                        "{kind} {key} @{offset}, {} bytes, version {version}",
                        entry.value_len
                    )
                });
                write!(text, "\n      {}", shown.unwrap_or_else(|what| what))
                    .expect("a String takes everything");
            }
            text
        }
    }
}

/// Bytes as text where they are printable ASCII, else in hexadecimal; long ones are cut.
fn show_bytes(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let mut text = if shown
        .iter()
        .all(|byte| (0x20..0x7f).contains(byte) && *byte != b'"')
    {
        format!("\"{}\"", String::from_utf8_lossy(shown))
    } else {
        format!("hex:{}", hex(shown))
    };
    if bytes.len() > shown.len() {
        write!(text, " and {} bytes more", bytes.len() - shown.len())
            .expect("a String takes everything");
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

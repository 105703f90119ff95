//! Opens a log: verifies every frame of its segments, decides where the log ends.
//!
//! The newest segment comes first, because it says which others there are (`lineage`).
//!
//! The decision is [`verdict`], a table over what stands at a position and what stands behind it. One frame of a shard
//! is in flight at a time, so a later frame proves that an earlier one was acknowledged: only what has nothing valid
//! behind it can be a torn tail, everything else that does not verify is corruption.
//!
//! Guarantees: what is recovered is durable (files and directory are synced before they are read), is a prefix of the
//! commit order and contains every acknowledged record; nothing is repaired; numbers from disk are bounded before use.
//! Does not: find the files (`survey` does), choose the next one (`writer` does) or cache values.

use std::rc::Rc;

use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{
    FRAME_HEADER_BYTES, FrameHeader, Record, RecordKind, SEGMENT_HEADER_BYTES, SegmentHeader,
    claims_epoch, read_frame,
};
use crate::storage::index::{Change, Index};
use crate::storage::lineage::{self, Told};
use crate::storage::scan::Scanner;
use crate::storage::segment::{self, Location, SegmentId, SpareFile};
use crate::storage::segments::{Segment, Segments};
use crate::storage::survey::{Opened, SegmentFile, Survey, survey};
use crate::storage::table;
use crate::storage::writer::{Durable, LogEnd, LogIdentity};

/// What stands at the position where the next frame is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A frame that verifies and follows the one before it.
    Whole,
    /// A frame that verifies, but does not follow the one before it: one is missing.
    Unchained,
    /// A frame header of this segment that says it belongs elsewhere. No crash leaves that: a write went astray.
    Misplaced,
    /// Nothing of this use of the file was ever written here: zeros, or what an earlier use left.
    Zero,
    /// Bytes that are no whole frame of this segment.
    Broken,
}

/// What stands behind a position that holds no whole frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// Zeros only to the end of the file, or what an earlier use left.
    Nothing,
    /// Bytes, but no frame header of this segment.
    Remains,
    /// A later frame of this segment, or one that went astray.
    Frame,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The frame is part of the log.
    Take,
    /// The log ends here, cleanly.
    End,
    /// The log ends here; what follows was never acknowledged.
    TornTail,
    /// Acknowledged data is damaged: the start is refused.
    Corrupt,
}

/// The recovery decision. `end_known`: a later segment says how far this one reaches, and that is further on.
pub(super) fn verdict(found: Found, behind: Behind, end_known: bool) -> Verdict {
    match (found, behind, end_known) {
        (Found::Whole, _, _) => Verdict::Take,
        (Found::Unchained | Found::Misplaced, _, _) => Verdict::Corrupt,
        (_, _, true) => Verdict::Corrupt,
        (_, Behind::Frame, false) => Verdict::Corrupt,
        (Found::Zero, Behind::Nothing, false) => Verdict::End,
        (Found::Zero, Behind::Remains, false) => Verdict::TornTail,
        (Found::Broken, Behind::Nothing | Behind::Remains, false) => Verdict::TornTail,
    }
}

/// A write that a crash cut; it was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub segment: u32,
    /// Name of its file.
    pub file: String,
    /// Where the log ends, in bytes.
    pub offset: u64,
    /// Bytes behind that which are not zero, from the end of the log to the last of them.
    pub bytes: u64,
}

/// What recovery found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Records read.
    pub records: u64,
    /// Bytes of log read.
    pub bytes: u64,
    /// Segments of the log.
    pub segments: u32,
    /// The last version given out.
    pub last_version: u64,
    /// What was cut, if anything.
    pub torn_tail: Option<TornTail>,
}

/// The files of a log after recovery.
pub(super) struct RecoveredLog<F> {
    pub(super) segments: Segments<F>,
    pub(super) end: LogEnd,
    /// Files that are ready for use.
    pub(super) spares: Vec<SpareFile<F>>,
    /// Above the number of every file.
    pub(super) next_file: u32,
    pub(super) recovered: Recovered,
}

/// Recovers the log of one shard into an empty `index`. `must_exist`: the shard has served before, so that a log
/// without segments is damage.
pub(super) async fn recover<D: Disk>(
    disk: &D,
    identity: &LogIdentity,
    must_exist: bool,
    index: &mut Index,
) -> Result<RecoveredLog<D::File>, StorageError> {
    // A crash may have left names and blocks that only memory knows; what is shown from here on must be durable.
    disk.sync_directory()
        .await
        .map_err(|source| StorageError::io("syncing", "the data directory", source))?;
    let found = survey(disk, identity).await?;
    let mut log = Recovery {
        index,
        segments: Segments::new(),
        end: LogEnd {
            segment: SegmentId(0),
            file: 0,
            offset: 0,
            last_version: 0,
        },
        recovered: Recovered::default(),
    };
    if let Some(newest) = lineage::newest(&found, identity, must_exist)? {
        log.take_log(&found, newest).await?;
    }
    let Recovery {
        index,
        mut segments,
        end,
        mut recovered,
    } = log;
    recovered.last_version = end.last_version;
    recovered.segments = segments.count() as u32;
    index.finish_recovery(|location, tombstone| segments.record_lives(location, tombstone));
    let Survey {
        segments: files,
        spares,
        unused,
        unreadable,
        next_file,
        witnessed: _,
    } = found;
    // Only now: a refused start changes nothing.
    let torn = unreadable.into_iter().map(|file| file.at);
    for file in unused.into_iter().chain(torn) {
        tracing::info!(
            file = file.name,
            "removing a segment file that was never used"
        );
        remove(disk, file).await?;
    }
    for retired in files {
        if segments.get(SegmentId(retired.header.number)).is_none() {
            tracing::info!(file = retired.at.name, "removing a retired segment");
            remove(disk, retired.at).await?;
        }
    }
    Ok(RecoveredLog {
        segments,
        end,
        spares,
        next_file,
        recovered,
    })
}

async fn remove<D: Disk>(disk: &D, file: SegmentFile<D::File>) -> Result<(), StorageError> {
    let SegmentFile { file, name, .. } = file;
    let file = Rc::into_inner(file).expect("nothing reads it any more");
    file.close()
        .await
        .map_err(|source| StorageError::io("closing", &name, source))?;
    segment::remove(disk, &name).await
}

/// A log on its way into memory.
struct Recovery<'a, F> {
    index: &'a mut Index,
    segments: Segments<F>,
    end: LogEnd,
    recovered: Recovered,
}

impl<F: DiskFile> Recovery<'_, F> {
    /// The newest segment, then back to the one that lists the others, then those.
    async fn take_log(
        &mut self,
        found: &Survey<F>,
        newest: &Opened<F>,
    ) -> Result<(), StorageError> {
        let mut told = self.take_segment(newest, None).await?;
        let mut last = newest;
        while told.table.is_none() {
            let Some(before) = lineage::before(found, last)? else {
                return Ok(());
            };
            told = self
                .take_segment(before, Some(last.header.previous_end))
                .await?;
            last = before;
        }
        for (segment, end) in lineage::listed(found, &told)? {
            self.take_segment(segment, Some(end)).await?;
        }
        Ok(())
    }

    /// Reads a segment into the index. `known_end`: where it ends, as a later one says.
    async fn take_segment(
        &mut self,
        segment: &Opened<F>,
        known_end: Option<u64>,
    ) -> Result<Told, StorageError> {
        let limit = check_length(segment, known_end)?;
        let first = SEGMENT_HEADER_BYTES as u64;
        let file = Rc::clone(&segment.at.file);
        let mut scanner = Scanner::new(file, segment.at.name.clone(), first, limit);
        let mut frame = FrameScan {
            header: &segment.header,
            last_version: segment.header.previous_last_version,
            end: first,
            records: Vec::new(),
            told: Told::default(),
        };
        while !(known_end.is_some() && scanner.position() == limit) {
            let (found, what) = frame.read(&mut scanner).await?;
            if found != Found::Whole {
                let tail = end_of_log(
                    segment,
                    known_end.is_some(),
                    &mut scanner,
                    &frame,
                    found,
                    what,
                );
                self.recovered.torn_tail = tail.await?;
                break;
            }
            frame
                .publish(&mut scanner, segment, self.index, &mut self.recovered)
                .await?;
        }
        let id = SegmentId(segment.header.number);
        if known_end.is_none() {
            self.end = LogEnd {
                segment: id,
                file: segment.header.file,
                offset: frame.end,
                last_version: frame.last_version,
            };
        }
        self.recovered.bytes += frame.end;
        self.segments.add(
            id,
            Segment {
                file: Rc::clone(&segment.at.file),
                file_number: segment.header.file,
                epoch: segment.header.epoch,
                first_version: segment.header.first_version,
                allocated_bytes: segment.at.bytes,
                used_bytes: frame.end,
                live_bytes: 0,
                tombstone_bytes: 0,
            },
        );
        Ok(frame.told)
    }
}

fn corrupt<F>(segment: &Opened<F>, offset: u64, what: String) -> StorageError {
    StorageError::Corrupt {
        file: segment.at.name.clone(),
        offset,
        what,
    }
}

/// Checks that the file reaches as far as its segment does. Returns where its frames end at the latest.
fn check_length<F>(segment: &Opened<F>, known_end: Option<u64>) -> Result<u64, StorageError> {
    let end = known_end.unwrap_or(segment.header.segment_bytes);
    if segment.at.bytes < end
        || !end.is_multiple_of(BLOCK as u64)
        || end < SEGMENT_HEADER_BYTES as u64
    {
        let what = format!("the file has {} bytes, expected {end}", segment.at.bytes);
        return Err(corrupt(segment, segment.at.bytes, what));
    }
    Ok(end)
}

/// Judges a place that holds no whole frame: the end of the log, with what was torn there if anything was, or damage.
async fn end_of_log<F: DiskFile>(
    segment: &Opened<F>,
    end_known: bool,
    scanner: &mut Scanner<F>,
    frame: &FrameScan<'_>,
    found: Found,
    what: String,
) -> Result<Option<TornTail>, StorageError> {
    let offset = scanner.position();
    let (behind, bytes) = match found {
        Found::Unchained | Found::Misplaced => (Behind::Nothing, 0),
        _ if end_known => (Behind::Nothing, 0),
        _ => look_behind(scanner, &segment.header, frame.last_version).await?,
    };
    match verdict(found, behind, end_known) {
        Verdict::Take => unreachable!("a whole frame is taken, not judged"),
        Verdict::End => Ok(None),
        Verdict::TornTail => Ok(Some(TornTail {
            segment: segment.header.number,
            file: segment.at.name.clone(),
            offset,
            bytes,
        })),
        Verdict::Corrupt => {
            let what = format!(
                "{what} (after version {}; nothing was changed)",
                frame.last_version
            );
            Err(corrupt(segment, offset, what))
        }
    }
}

#[derive(Clone, Copy)]
struct FrameRecord {
    offset: usize,
    bytes: usize,
}

/// Reads frames of one segment, one after the other.
struct FrameScan<'a> {
    header: &'a SegmentHeader,
    last_version: u64,
    /// End of the last frame that was taken, in bytes.
    end: u64,
    records: Vec<FrameRecord>,
    told: Told,
}

impl FrameScan<'_> {
    /// What stands at the scanner's position, and in words when it is no whole frame.
    async fn read<F: DiskFile>(
        &mut self,
        scanner: &mut Scanner<F>,
    ) -> Result<(Found, String), StorageError> {
        let offset = scanner.position();
        let block = scanner.peek(BLOCK).await?;
        if block.is_empty() || is_untouched(block, self.header) {
            return Ok((Found::Zero, "nothing where a frame is expected".into()));
        }
        let Some(header) = FrameHeader::decode(block) else {
            return Ok((Found::Broken, "no frame header that verifies".into()));
        };
        if header.epoch != self.header.epoch {
            return Ok((Found::Broken, "a frame of another segment".into()));
        }
        let place = u64::from(header.block) * BLOCK as u64;
        if place != offset {
            let what = format!("a frame that was written for offset {place}");
            return Ok((Found::Misplaced, what));
        }
        let frame = scanner.peek(header.frame_bytes()).await?;
        if frame.len() < header.frame_bytes() {
            let what = format!(
                "a frame of {} bytes, the segment ends after {}",
                header.frame_bytes(),
                frame.len()
            );
            return Ok((Found::Broken, what));
        }
        self.records.clear();
        let records = &mut self.records;
        let verified = read_frame(&header, frame, |offset, record| {
            records.push(FrameRecord {
                offset,
                bytes: record.bytes(),
            });
        });
        if let Err((at, what)) = verified {
            return Ok((
                Found::Broken,
                format!(
                    "the frame does not verify at offset {}: {what}",
                    offset + at as u64
                ),
            ));
        }
        // Also where they hold no table: the first frame of a segment and no other has one.
        if let Some(what) = self.misses_table(&header, frame) {
            return Ok((Found::Unchained, what));
        }
        if header.previous_last_version != self.last_version {
            let what = format!(
                "a frame that follows version {}: frames are missing",
                header.previous_last_version
            );
            return Ok((Found::Unchained, what));
        }
        Ok((Found::Whole, String::new()))
    }

    /// Takes the frame that `read` found whole into the index and moves behind it.
    async fn publish<F: DiskFile>(
        &mut self,
        scanner: &mut Scanner<F>,
        segment: &Opened<F>,
        index: &mut Index,
        recovered: &mut Recovered,
    ) -> Result<(), StorageError> {
        let start = scanner.position();
        let last = self
            .records
            .last()
            .map_or(FRAME_HEADER_BYTES, |record| record.offset + record.bytes);
        let frame_bytes = last.next_multiple_of(BLOCK);
        let frame = scanner.peek(frame_bytes).await?;
        for FrameRecord { offset, bytes } in &self.records {
            let record = Record::decode_verified(&frame[*offset..offset + bytes]);
            match record.kind {
                RecordKind::Set | RecordKind::Delete => {}
                RecordKind::Retire => {
                    let number = record.key.try_into().expect("four bytes, or it is damaged");
                    self.told.retired.push(u32::from_le_bytes(number));
                    continue;
                }
                RecordKind::Table => {
                    let table = table::decode(record.value);
                    let at = start + *offset as u64;
                    self.told.table = Some(table.map_err(|what| corrupt(segment, at, what))?);
                    continue;
                }
            }
            let location = Location {
                segment: SegmentId(self.header.number),
                offset: (start + *offset as u64) as u32,
                bytes: *bytes as u32,
            };
            let change = Change {
                kind: record.kind,
                version: record.version,
                location,
                value_len: record.value.len(),
            };
            index.recover(record.key, Durable::after_recovery(change));
            self.last_version = self.last_version.max(record.version);
            recovered.records += 1;
        }
        scanner.consume(frame_bytes);
        self.end = scanner.position();
        Ok(())
    }

    /// Why the frame cannot stand here, as far as tables go.
    fn misses_table(&self, header: &FrameHeader, frame: &[u8]) -> Option<String> {
        let is_first = u64::from(header.block) * BLOCK as u64 == SEGMENT_HEADER_BYTES as u64;
        let tables = self.records.iter().filter(|record| {
            let bytes = &frame[record.offset..record.offset + record.bytes];
            Record::decode_verified(bytes).kind == RecordKind::Table
        });
        match (is_first, tables.count()) {
            (true, 1) | (false, 0) => None,
            (true, _) => Some("the first frame of a segment without its table".into()),
            (false, _) => Some("a table behind the first frame".into()),
        }
    }
}

/// Whether nothing of this use of the file was written to a block. A file that was used before holds what that left, so
/// only a frame of this epoch counts there.
fn is_untouched(block: &[u8], header: &SegmentHeader) -> bool {
    if header.recycled {
        !claims_epoch(block, header.epoch)
    } else {
        block.iter().all(|byte| *byte == 0)
    }
}

/// What stands behind a position that holds no whole frame, and how far bytes other than zero reach from it.
async fn look_behind<F: DiskFile>(
    scanner: &mut Scanner<F>,
    header: &SegmentHeader,
    last_version: u64,
) -> Result<(Behind, u64), StorageError> {
    let start = scanner.position();
    let mut remains = 0;
    let mut first = true;
    loop {
        let offset = scanner.position();
        let block = scanner.peek(BLOCK).await?;
        if block.is_empty() {
            return Ok((
                if remains == 0 {
                    Behind::Nothing
                } else {
                    Behind::Remains
                },
                remains,
            ));
        }
        let later = FrameHeader::decode(block).is_some_and(|frame| {
            let in_place = u64::from(frame.block) * BLOCK as u64 == offset;
            frame.epoch == header.epoch && (frame.first_version > last_version || !in_place)
        });
        if later && !first {
            return Ok((Behind::Frame, 0));
        }
        if !is_untouched(block, header)
            && let Some(last) = block.iter().rposition(|byte| *byte != 0)
        {
            remains = offset + last as u64 + 1 - start;
        }
        first = false;
        let len = block.len();
        scanner.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of the table. The reasons: with a known end nothing before it may be missing; a later frame proves
    /// that this one was acknowledged; without either, what does not verify was never acknowledged.
    #[test]
    fn the_verdict_on_every_combination() {
        use {Behind as B, Found as F, Verdict as V};
        for behind in [B::Nothing, B::Remains, B::Frame] {
            for end_known in [false, true] {
                assert_eq!(verdict(F::Whole, behind, end_known), V::Take);
                assert_eq!(verdict(F::Unchained, behind, end_known), V::Corrupt);
                assert_eq!(verdict(F::Misplaced, behind, end_known), V::Corrupt);
            }
            assert_eq!(verdict(F::Zero, behind, true), V::Corrupt);
            assert_eq!(verdict(F::Broken, behind, true), V::Corrupt);
        }
        assert_eq!(verdict(F::Zero, B::Nothing, false), V::End);
        assert_eq!(verdict(F::Zero, B::Remains, false), V::TornTail);
        assert_eq!(verdict(F::Zero, B::Frame, false), V::Corrupt);
        assert_eq!(verdict(F::Broken, B::Nothing, false), V::TornTail);
        assert_eq!(verdict(F::Broken, B::Remains, false), V::TornTail);
        assert_eq!(verdict(F::Broken, B::Frame, false), V::Corrupt);
    }
}

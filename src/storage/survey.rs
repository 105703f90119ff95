//! Finds the segments of a log among the files of a directory: which are part of it, which one is a spare, which were
//! never used.
//!
//! Guarantees: every file that it answers with is synced, so that what is read from it is durable; it changes nothing,
//! so that a refused start leaves the files as they were (`recovery` removes what is unused once it has read the log).
//! Does not: read frames, except where a file says that it has none.

use std::rc::Rc;

use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{
    BadHeader, FORMAT_VERSION, FrameHeader, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentState,
};
use crate::storage::scan::Scanner;
use crate::storage::segment;
use crate::storage::writer::LogIdentity;

/// A segment file.
pub(super) struct SegmentFile<F> {
    pub(super) file: Rc<F>,
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// A segment of the log.
pub(super) struct Opened<F> {
    pub(super) header: SegmentHeader,
    pub(super) at: SegmentFile<F>,
}

/// The segment files of one shard.
pub(super) struct Survey<F> {
    /// Those of the log, from 1 without a gap.
    pub(super) log: Vec<Opened<F>>,
    /// A spare that fits behind them.
    pub(super) spare: Option<Rc<F>>,
    /// Files that hold nothing and are in the way.
    pub(super) unused: Vec<SegmentFile<F>>,
}

/// Opens every segment file of the shard. `must_exist`: the shard has served before, so that a log without segments is
/// damage.
///
/// # Errors
/// `Corrupt` when a file is missing, holds another segment than its name says, or has frames under a header that
/// denies them; `Incompatible` for files of another store or format.
pub(super) async fn survey<D: Disk>(
    disk: &D,
    identity: &LogIdentity,
    must_exist: bool,
) -> Result<Survey<D::File>, StorageError> {
    let mut files = own_files(disk, identity.shard).await?;
    files.sort_unstable();
    let (mut log, mut others) = (Vec::new(), Vec::new());
    for (number, bytes) in files {
        let name = segment::name(identity.shard, number);
        let io = |action| {
            move |source| StorageError::io(action, segment::name(identity.shard, number), source)
        };
        let file = disk.open(&name).await.map_err(io("opening"))?;
        file.sync().await.map_err(io("syncing"))?;
        let header = read_header(&file, &name, identity, number).await?;
        let at = SegmentFile {
            file: Rc::new(file),
            name,
            bytes,
        };
        match header {
            Some(header) if header.state == SegmentState::Log => log.push(Opened { header, at }),
            header => others.push((number, header, at)),
        }
    }
    check_sequence(&log, identity, must_exist, |number| {
        others.iter().any(|(other, _, _)| *other == number)
    })?;
    let next = log.len() as u32 + 1;
    let (mut spare, mut unused) = (None, Vec::new());
    for (number, header, at) in others {
        // A segment is made behind the active one: the one before it was in use.
        if number > next {
            return Err(missing(identity, next));
        }
        check_empty(&at, header.as_ref()).await?;
        let fits = header.is_some_and(|header| {
            at.bytes == header.segment_bytes && at.bytes == u64::from(identity.segment_bytes)
        });
        match fits {
            true => spare = Some(at.file),
            false => unused.push(at),
        }
    }
    Ok(Survey { log, spare, unused })
}

/// Numbers and lengths of the segment files of a shard.
async fn own_files<D: Disk>(disk: &D, shard: u16) -> Result<Vec<(u32, u64)>, StorageError> {
    let files = disk
        .list()
        .await
        .map_err(|source| StorageError::io("listing", "the data directory", source))?;
    let own = |(name, bytes): &(String, u64)| {
        let (owner, number) = segment::parse_name(name)?;
        (owner == shard).then_some((number, *bytes))
    };
    Ok(files.iter().filter_map(own).collect())
}

/// The header of a segment file, checked against its name and store; `None` when there is none.
async fn read_header<F: DiskFile>(
    file: &F,
    file_name: &str,
    identity: &LogIdentity,
    number: u32,
) -> Result<Option<SegmentHeader>, StorageError> {
    let block = file
        .read_at(0, SEGMENT_HEADER_BYTES)
        .await
        .map_err(|source| StorageError::io("reading", file_name, source))?;
    let header = match SegmentHeader::decode(block.as_ref()) {
        Ok(header) => header,
        Err(BadHeader::Invalid(_)) => return Ok(None),
        Err(BadHeader::Format(format)) => {
            return Err(StorageError::Incompatible(format!(
                "{file_name} has format version {format}; this program knows version {FORMAT_VERSION}: use the program that wrote it"
            )));
        }
    };
    if header.store_uuid != identity.store_uuid {
        return Err(StorageError::Incompatible(format!(
            "{file_name} belongs to another store: move it away, or use the directory that it came from"
        )));
    }
    if (header.shard, header.number) != (identity.shard, number) {
        let what = format!(
            "the file holds segment {} of shard {}: files were swapped or copied",
            header.number, header.shard
        );
        return Err(StorageError::Corrupt {
            file: file_name.to_owned(),
            offset: 0,
            what,
        });
    }
    Ok(Some(header))
}

/// The segments of a log are numbered from 1 without a gap.
fn check_sequence<F>(
    log: &[Opened<F>],
    identity: &LogIdentity,
    must_exist: bool,
    is_there: impl Fn(u32) -> bool,
) -> Result<(), StorageError> {
    let expected = (1..)
        .zip(log)
        .find(|(number, segment)| segment.header.number != *number)
        .map(|(number, _)| number);
    match expected {
        Some(number) if is_there(number) => Err(StorageError::Corrupt {
            file: segment::name(identity.shard, number),
            offset: 0,
            what: "the segment header does not verify, and a later segment follows".into(),
        }),
        Some(number) => Err(missing(identity, number)),
        None if log.is_empty() && must_exist => Err(missing(identity, 1)),
        None => Ok(()),
    }
}

fn missing(identity: &LogIdentity, number: u32) -> StorageError {
    StorageError::Corrupt {
        file: segment::name(identity.shard, number),
        offset: 0,
        what: "the segment file is missing".into(),
    }
}

/// A file without a valid header was never used, and neither was a spare: frames come only after a durable header that
/// says so. Where there are frames, the header was lost. Frames have no gaps, so that of a spare, which is large and
/// there at every start, only the first place is looked at.
async fn check_empty<F: DiskFile>(
    at: &SegmentFile<F>,
    header: Option<&SegmentHeader>,
) -> Result<(), StorageError> {
    let first = SEGMENT_HEADER_BYTES as u64;
    let whole = at.bytes - at.bytes % BLOCK as u64;
    let limit = if header.is_some() {
        whole.min(first + BLOCK as u64)
    } else {
        whole
    };
    let mut scanner = Scanner::new(
        Rc::clone(&at.file),
        at.name.clone(),
        first.min(limit),
        limit,
    );
    loop {
        let offset = scanner.position();
        let block = scanner.peek(BLOCK).await?;
        if block.is_empty() {
            return Ok(());
        }
        if FrameHeader::decode(block).is_some() {
            let header = if header.is_some() {
                "is that of a spare"
            } else {
                "does not verify"
            };
            let what =
                format!("the segment header {header}, and there is a frame at offset {offset}");
            return Err(StorageError::Corrupt {
                file: at.name.clone(),
                offset: 0,
                what,
            });
        }
        let len = block.len();
        scanner.consume(len);
    }
}

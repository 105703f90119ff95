//! Finds the segment files of a log in a directory: which hold a segment, which are spares, which were never used.
//!
//! Guarantees: every file that it answers with is synced, so that what is read from it is durable; it changes nothing,
//! so that a refused start leaves the files as they were (`recovery` removes what is unused once it has read the log).
//! Does not: decide which segments are still part of the log (`lineage` does), or read frames, except where a file says
//! that it has none.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures::stream::{StreamExt as _, iter};

use crate::storage::damage::Damage;
use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{
    BadHeader, FORMAT_VERSION, FrameHeader, RecordKind, SEGMENT_HEADER_BYTES, SegmentHeader,
    SegmentState, claims_epoch, read_frame,
};
use crate::storage::indexing::FileAt;
use crate::storage::lineage;
use crate::storage::scan::Scanner;
use crate::storage::segment::{self, LogId, SpareFile};
use crate::storage::table::{self, TableEntry};
use crate::storage::writer::LogIdentity;

/// Files that are opened at the same time.
const OPENS_AHEAD: usize = 16;

/// A segment file.
pub(super) struct SegmentFile<F> {
    pub(super) file: Rc<F>,
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// A file that holds a segment, which may be retired.
pub(super) struct Opened<F> {
    pub(super) header: SegmentHeader,
    pub(super) at: SegmentFile<F>,
}

impl<F> Opened<F> {
    pub(super) fn file(&self) -> FileAt<'_, F> {
        (&self.at.file, &self.at.name, self.at.bytes)
    }
}

/// A file whose header does not verify: a crash tore it before there was a frame, or it is damaged.
pub(super) struct Unreadable<F> {
    pub(super) at: SegmentFile<F>,
    /// What is wrong with the header.
    pub(super) what: String,
    /// The highest number in the table that its first frame holds.
    pub(super) lists: Option<u32>,
}

enum Header {
    Valid(SegmentHeader),
    /// None was ever written.
    None,
    Unreadable(String),
}

/// The segment files of one log.
pub(super) struct Survey<F> {
    log: LogId,
    /// Those that hold a segment, by its number.
    pub(super) segments: Vec<Opened<F>>,
    /// Spares that fit.
    pub(super) spares: Vec<SpareFile<F>>,
    pub(super) unreadable: Vec<Unreadable<F>>,
    /// Files that hold nothing and are in the way.
    pub(super) unused: Vec<SegmentFile<F>>,
    /// The newest segment that a spare tells of: its number and that of its file.
    pub(super) witnessed: (u32, u32),
    /// Above the number of every file.
    pub(super) next_file: u32,
    /// Lengths of all segment files in the directory, by log and number.
    pub(super) lengths: BTreeMap<(LogId, u32), u64>,
}

/// Opens every segment file of the log.
///
/// # Errors
/// `Corrupt` when a file holds another segment than its name says, or has frames under a header that denies them;
/// `Incompatible` for files of another store or format.
pub(super) async fn survey<D: Disk>(
    disk: &D,
    identity: &LogIdentity,
    damage: &mut Damage,
) -> Result<Survey<D::File>, StorageError> {
    let lengths = segment_files(disk).await?;
    let own = lengths.range((identity.log, 0)..=(identity.log, u32::MAX));
    let files: Vec<_> = own.map(|((_, number), bytes)| (*number, *bytes)).collect();
    let mut survey = Survey {
        log: identity.log,
        segments: Vec::new(),
        spares: Vec::new(),
        unreadable: Vec::new(),
        unused: Vec::new(),
        witnessed: (0, 0),
        next_file: files.last().map_or(0, |(number, _)| *number) + 1,
        lengths,
    };
    // Each costs the device a flush, and some reads of the file system's own.
    let opened = files
        .iter()
        .map(|(number, bytes)| open_file(disk, identity.log, *number, *bytes));
    let mut opened = iter(opened).buffered(OPENS_AHEAD);
    for (number, _) in &files {
        let at = opened.next().await.expect("one for each file")?;
        if let Err(error) = survey.take(at, identity, *number).await {
            damage.note(error)?;
        }
    }
    drop(opened);
    survey
        .segments
        .sort_unstable_by_key(|segment| segment.header.number);
    for [one, other] in survey.segments.array_windows() {
        if one.header.number == other.header.number {
            let what = format!(
                "it holds segment {} like {}",
                one.header.number, one.at.name
            );
            damage.note(corrupt(&other.at, what))?;
        }
    }
    survey
        .segments
        .dedup_by_key(|segment| segment.header.number);
    Ok(survey)
}

impl<F: DiskFile> SegmentFile<F> {
    /// Closes it; nobody else has it any more.
    pub(super) async fn close(self) -> Result<(), StorageError> {
        let file = Rc::into_inner(self.file).expect("nothing reads it any more");
        file.close()
            .await
            .map_err(|source| StorageError::io("closing", &self.name, source))
    }
}

impl<F: DiskFile> Survey<F> {
    /// Closes all files, of a log that was read for others: they may be removed before long.
    pub(super) async fn close(self) -> Result<(), StorageError> {
        let spares = self.spares.into_iter().map(|spare| SegmentFile {
            name: segment::name(self.log, spare.number),
            file: spare.file,
            bytes: spare.bytes,
        });
        let segments = self.segments.into_iter().map(|segment| segment.at);
        let unreadable = self.unreadable.into_iter().map(|file| file.at);
        for file in spares.chain(segments).chain(unreadable).chain(self.unused) {
            file.close().await?;
        }
        Ok(())
    }

    /// Puts a file where it belongs.
    async fn take(
        &mut self,
        at: SegmentFile<F>,
        identity: &LogIdentity,
        number: u32,
    ) -> Result<(), StorageError> {
        match read_header(&at, identity, number).await? {
            Header::Valid(header) if header.state == SegmentState::Log => {
                self.segments.push(Opened { header, at });
            }
            Header::Valid(header) => {
                check_spare(&at, &header).await?;
                let tells = (header.previous_number, header.previous_file);
                self.witnessed = self.witnessed.max(tells);
                let fits = at.bytes == header.segment_bytes
                    && at.bytes > u64::from(identity.segment_bytes);
                match fits {
                    true => self.spares.push(spare(at, &header)),
                    false => self.unused.push(at),
                }
            }
            Header::None => {
                check_never_used(&at).await?;
                self.unused.push(at);
            }
            Header::Unreadable(what) => {
                let lists = highest_listed(&at, identity.log).await?;
                self.unreadable.push(Unreadable { at, what, lists });
            }
        }
        Ok(())
    }
}

fn spare<F>(at: SegmentFile<F>, header: &SegmentHeader) -> SpareFile<F> {
    SpareFile {
        file: at.file,
        number: header.file,
        bytes: header.segment_bytes,
        epoch: header.epoch,
        recycled: header.recycled,
    }
}

/// Lengths of all segment files in the directory, by log and number.
pub(super) async fn segment_files<D: Disk>(
    disk: &D,
) -> Result<BTreeMap<(LogId, u32), u64>, StorageError> {
    let files = disk
        .list()
        .await
        .map_err(|source| StorageError::io("listing", "the data directory", source))?;
    let parse = |(name, bytes): (String, u64)| Some((segment::parse_name(&name)?, bytes));
    Ok(files.into_iter().filter_map(parse).collect())
}

async fn open_file<D: Disk>(
    disk: &D,
    log: LogId,
    number: u32,
    bytes: u64,
) -> Result<SegmentFile<D::File>, StorageError> {
    let name = segment::name(log, number);
    let io = |action| move |source| StorageError::io(action, segment::name(log, number), source);
    let file = disk.open(&name).await.map_err(io("opening"))?;
    file.sync().await.map_err(io("syncing"))?;
    Ok(SegmentFile {
        file: Rc::new(file),
        name,
        bytes,
    })
}

/// Opens a segment of another log that a table lists. `found` knows which files there are.
///
/// # Errors
/// `Corrupt` when it is not there, its header does not verify, or the file is in another use; `Incompatible` for one of
/// another store.
pub(super) async fn open_listed<D: Disk>(
    disk: &D,
    identity: &LogIdentity,
    found: &Survey<D::File>,
    entry: &TableEntry,
) -> Result<Opened<D::File>, StorageError> {
    let (log, file) = (entry.segment.log, entry.file);
    let Some(bytes) = found.lengths.get(&(log, file)) else {
        return Err(lineage::missing(segment::name(log, file)));
    };
    let at = open_file(disk, log, file, *bytes).await?;
    let its = LogIdentity { log, ..*identity };
    let header = match read_header(&at, &its, file).await? {
        Header::Valid(header) => header,
        Header::None => return Err(corrupt(&at, "the segment header is missing".into())),
        Header::Unreadable(what) => {
            let what = format!("the segment header does not verify: {what}");
            return Err(corrupt(&at, what));
        }
    };
    let segment = Opened { header, at };
    lineage::check_use(&segment, entry)?;
    Ok(segment)
}

fn corrupt<F>(at: &SegmentFile<F>, what: String) -> StorageError {
    StorageError::Corrupt {
        file: at.name.clone(),
        offset: 0,
        what,
    }
}

/// The header of a segment file, checked against its name and store.
async fn read_header<F: DiskFile>(
    at: &SegmentFile<F>,
    identity: &LogIdentity,
    file_number: u32,
) -> Result<Header, StorageError> {
    let block = at
        .file
        .read_at(0, SEGMENT_HEADER_BYTES)
        .await
        .map_err(|source| StorageError::io("reading", &at.name, source))?;
    let header = match SegmentHeader::decode(block.as_ref()) {
        Ok(header) => header,
        Err(BadHeader::Invalid(_)) if block.as_ref().iter().all(|byte| *byte == 0) => {
            return Ok(Header::None);
        }
        Err(BadHeader::Invalid(what)) => return Ok(Header::Unreadable(what)),
        Err(BadHeader::Format(format)) => {
            return Err(StorageError::Incompatible(format!(
                "{} has format version {format}; this program knows version {FORMAT_VERSION}: use the program that wrote it",
                at.name
            )));
        }
    };
    if header.store_uuid != identity.store_uuid {
        return Err(StorageError::Incompatible(format!(
            "{} belongs to another store: move it away, or use the directory that it came from",
            at.name
        )));
    }
    if (header.log, header.file) != (identity.log, file_number) {
        let belongs = segment::name(header.log, header.file);
        return Err(corrupt(
            at,
            format!("the file is {belongs} by its header: files were swapped or copied"),
        ));
    }
    Ok(Header::Valid(header))
}

/// The highest number in the table that the first frame of a file holds, if it has one that verifies.
async fn highest_listed<F: DiskFile>(
    at: &SegmentFile<F>,
    log: LogId,
) -> Result<Option<u32>, StorageError> {
    let first = SEGMENT_HEADER_BYTES as u64;
    let limit = (at.bytes - at.bytes % BLOCK as u64).max(first);
    let mut scanner = Scanner::new(Rc::clone(&at.file), at.name.clone(), first, limit);
    let Some(header) = FrameHeader::decode(scanner.peek(BLOCK).await?) else {
        return Ok(None);
    };
    let frame = scanner.peek(header.frame_bytes()).await?;
    let mut highest = None;
    if frame.len() == header.frame_bytes() {
        let verified = read_frame(&header, frame, |_, record| {
            if let (RecordKind::Table, Ok(table)) = (record.kind, table::decode(record.value)) {
                // An empty table is that of the first segment of all.
                let own = table.iter().filter(|entry| entry.segment.log == log);
                highest = own.map(|entry| entry.segment.number).max().or(Some(0));
            }
        });
        highest = highest.filter(|_| verified.is_ok());
    }
    Ok(highest)
}

/// A spare has no frames: they come only after a durable header that says so. Where there are some, that header was
/// lost. Frames have no gaps, so only the first place is looked at; a file that was used before has old ones there.
async fn check_spare<F: DiskFile>(
    at: &SegmentFile<F>,
    header: &SegmentHeader,
) -> Result<(), StorageError> {
    let offset = SEGMENT_HEADER_BYTES as u64;
    let block = at
        .file
        .read_at(offset, BLOCK)
        .await
        .map_err(|source| StorageError::io("reading", &at.name, source))?;
    let block = block.as_ref();
    let written = claims_epoch(block, header.epoch)
        || (!header.recycled && FrameHeader::decode(block).is_some());
    match written {
        true => Err(corrupt(
            at,
            format!(
                "the segment header is that of a spare, and there is a frame at offset {offset}"
            ),
        )),
        false => Ok(()),
    }
}

/// A file without a header holds no frame: otherwise the header was lost.
async fn check_never_used<F: DiskFile>(at: &SegmentFile<F>) -> Result<(), StorageError> {
    let first = SEGMENT_HEADER_BYTES as u64;
    let limit = at.bytes - at.bytes % BLOCK as u64;
    let file = Rc::clone(&at.file);
    let mut scanner = Scanner::new(file, at.name.clone(), first.min(limit), limit);
    loop {
        let offset = scanner.position();
        let block = scanner.peek(BLOCK).await?;
        if block.is_empty() {
            return Ok(());
        }
        if FrameHeader::decode(block).is_some() {
            return Err(corrupt(
                at,
                format!("there is no segment header, and there is a frame at offset {offset}"),
            ));
        }
        let len = block.len();
        scanner.consume(len);
    }
}

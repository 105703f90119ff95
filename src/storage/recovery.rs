//! Opens a log: verifies every frame of its segments, decides where the log ends.
//!
//! The newest segment comes first, because it says which others there are (`lineage`).
//!
//! Where the log ends, and whether what stands there is damage, is decided by `verdict`.
//!
//! Guarantees: what is recovered is durable (files and directory are synced before they are read), is a prefix of the
//! commit order and contains every acknowledged record; nothing is repaired; numbers from disk are bounded before use.
//! Does not: find the files (`survey` does), choose the next one (`writer` does) or cache values.

use std::rc::Rc;

use crate::storage::damage::Damage;
use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{FRAME_HEADER_BYTES, Record, RecordKind, SEGMENT_HEADER_BYTES};
use crate::storage::frames::{FrameRecord, FrameScan, look_behind, next_frame};
use crate::storage::index::{Change, Index};
use crate::storage::lineage::{self, Told};
use crate::storage::plant::{Plant, planted};
use crate::storage::scan::Scanner;
use crate::storage::segment::{self, Location, SegmentId, SpareFile};
use crate::storage::segments::{Segment, Segments};
use crate::storage::survey::{Opened, Purpose, SegmentFile, Survey, survey};
use crate::storage::table;
use crate::storage::verdict::{Behind, Found, Verdict, verdict};
use crate::storage::writer::{Durable, LogEnd, LogIdentity};

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
    let reading = Reading {
        purpose: Purpose::Start,
        must_exist,
        damage: &mut Damage::Refuses,
        each: None,
    };
    let (found, log) = read_log(disk, identity, index, reading).await?;
    let ReadLog {
        segments,
        end,
        recovered,
    } = log;
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

/// How a log is read.
pub(super) struct Reading<'a> {
    pub(super) purpose: Purpose,
    /// A log without segments is damage.
    pub(super) must_exist: bool,
    pub(super) damage: &'a mut Damage,
    /// Is shown every set and delete, in no particular order.
    pub(super) each: Option<&'a mut dyn FnMut(&Record<'_>)>,
}

/// A log as it was read; where damage was collected, what could be read of it.
pub(super) struct ReadLog<F> {
    pub(super) segments: Segments<F>,
    pub(super) end: LogEnd,
    pub(super) recovered: Recovered,
}

/// Reads the log of one shard into an empty `index`, and changes no file.
pub(super) async fn read_log<'a, D: Disk>(
    disk: &D,
    identity: &LogIdentity,
    index: &'a mut Index,
    reading: Reading<'a>,
) -> Result<(Survey<D::File>, ReadLog<D::File>), StorageError> {
    let Reading {
        purpose,
        must_exist,
        damage,
        each,
    } = reading;
    let found = survey(disk, identity, purpose, damage).await?;
    let mut log = Recovery {
        index,
        damage,
        each,
        log: ReadLog {
            segments: Segments::new(),
            end: LogEnd {
                segment: SegmentId(0),
                file: 0,
                offset: 0,
                last_version: 0,
            },
            recovered: Recovered::default(),
        },
    };
    match lineage::newest(&found, identity, must_exist) {
        Ok(None) => {}
        Ok(Some(newest)) => log.take_log(&found, newest).await?,
        Err(error) => {
            log.damage.note(error)?;
            log.take_each(&found).await?;
        }
    }
    let Recovery { index, mut log, .. } = log;
    log.recovered.last_version = log.end.last_version;
    log.recovered.segments = log.segments.count() as u32;
    let segments = &mut log.segments;
    index.finish_recovery(|location, tombstone| segments.record_lives(location, tombstone));
    Ok((found, log))
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
    damage: &'a mut Damage,
    each: Option<&'a mut dyn FnMut(&Record<'_>)>,
    log: ReadLog<F>,
}

impl<F: DiskFile> Recovery<'_, F> {
    /// The newest segment, then back to the one that lists the others, then those.
    async fn take_log(
        &mut self,
        found: &Survey<F>,
        newest: &Opened<F>,
    ) -> Result<(), StorageError> {
        let damage_before = self.damage.count();
        let mut told = self.take_segment(newest, None).await?;
        let mut last = newest;
        while told.table.is_none() && self.damage.count() == damage_before {
            match lineage::before(found, last) {
                Ok(Some(before)) => {
                    let end = Some(last.header.previous_end);
                    told = self.take_segment(before, end).await?;
                    last = before;
                }
                Ok(None) => return Ok(()),
                Err(error) => self.damage.note(error)?,
            }
        }
        if self.damage.count() > damage_before {
            // What says which segments there are is damaged itself.
            return self.take_each(found).await;
        }
        for listed in lineage::listed(found, &told) {
            match listed {
                Ok((segment, end)) => drop(self.take_segment(segment, Some(end)).await?),
                Err(error) => self.damage.note(error)?,
            }
        }
        Ok(())
    }

    /// Every segment that is there and not taken yet, without knowing which belong to the log: where damage is
    /// collected, so that none is missed.
    async fn take_each(&mut self, found: &Survey<F>) -> Result<(), StorageError> {
        for segment in &found.segments {
            let number = segment.header.number;
            if self.log.segments.get(SegmentId(number)).is_none() {
                let next = found
                    .segments
                    .iter()
                    .find(|next| next.header.previous_number == number);
                let end = next.map(|next| next.header.previous_end);
                self.take_segment(segment, end).await?;
            }
        }
        Ok(())
    }

    /// Reads a segment into the index. `known_end`: where it ends, as a later one says.
    async fn take_segment(
        &mut self,
        segment: &Opened<F>,
        known_end: Option<u64>,
    ) -> Result<Told, StorageError> {
        let first = SEGMENT_HEADER_BYTES as u64;
        let limit = match check_length(segment, known_end) {
            Ok(limit) => limit,
            Err(error) => {
                self.damage.note(error)?;
                (segment.at.bytes - segment.at.bytes % BLOCK as u64).max(first)
            }
        };
        let file = Rc::clone(&segment.at.file);
        let mut scanner = Scanner::new(file, segment.at.name.clone(), first, limit);
        let mut frame = FrameScan::new(&segment.header);
        while !(known_end.is_some() && scanner.position() == limit) {
            let (offset, end_known) = (scanner.position(), known_end.is_some());
            let (found, what) = frame.read(&mut scanner).await?;
            let damage = if found == Found::Whole {
                match self.take_frame(&mut frame, &mut scanner, segment).await {
                    Ok(()) => continue,
                    Err(error) => error,
                }
            } else {
                match end_of_log(segment, end_known, &mut scanner, &frame, found, what).await {
                    Ok(tail) => {
                        self.log.recovered.torn_tail = tail;
                        break;
                    }
                    Err(error) => error,
                }
            };
            if !planted(Plant::AcceptBadFrame) {
                self.damage.note(damage)?;
            }
            // Only a check comes here: it goes on with the next frame.
            match next_frame(segment, offset + BLOCK as u64, limit).await? {
                Some((at, after_version)) => {
                    (scanner, frame.last_version) = (at, after_version);
                }
                None => break,
            }
        }
        let id = SegmentId(segment.header.number);
        if known_end.is_none() {
            self.log.end = LogEnd {
                segment: id,
                file: segment.header.file,
                offset: frame.end,
                last_version: frame.last_version,
            };
        }
        self.log.recovered.bytes += frame.end;
        self.log.segments.add(
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

    /// Takes the frame that was found whole into the index and moves behind it.
    async fn take_frame(
        &mut self,
        taken: &mut FrameScan<'_>,
        scanner: &mut Scanner<F>,
        segment: &Opened<F>,
    ) -> Result<(), StorageError> {
        let start = scanner.position();
        let last = taken
            .records
            .last()
            .map_or(FRAME_HEADER_BYTES, |record| record.offset + record.bytes);
        let frame_bytes = last.next_multiple_of(BLOCK);
        let frame = scanner.peek(frame_bytes).await?;
        for FrameRecord { offset, bytes } in &taken.records {
            let record = Record::decode_verified(&frame[*offset..offset + bytes]);
            match record.kind {
                RecordKind::Set | RecordKind::Delete => {}
                RecordKind::Retire => {
                    let number = record.key.try_into().expect("four bytes, or it is damaged");
                    taken.told.retired.push(u32::from_le_bytes(number));
                    continue;
                }
                RecordKind::Table => {
                    let table = table::decode(record.value);
                    let at = start + *offset as u64;
                    taken.told.table = Some(table.map_err(|what| corrupt(segment, at, what))?);
                    continue;
                }
            }
            let location = Location {
                segment: SegmentId(taken.header.number),
                offset: (start + *offset as u64) as u32,
                bytes: *bytes as u32,
            };
            let change = Change {
                kind: record.kind,
                version: record.version,
                location,
                value_len: record.value.len(),
            };
            self.index
                .recover(record.key, Durable::after_recovery(change));
            taken.last_version = taken.last_version.max(record.version);
            self.log.recovered.records += 1;
            if let Some(each) = &mut self.each {
                each(&record);
            }
        }
        scanner.consume(frame_bytes);
        taken.end = scanner.position();
        Ok(())
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

//! Opens a log: verifies every frame of its segments, decides where the log ends.
//!
//! The decision is [`verdict`], a table over what stands at a position and what stands behind it. One frame of a shard
//! is in flight at a time, so a later frame proves that an earlier one was acknowledged: only what has nothing valid
//! behind it can be a torn tail, everything else that does not verify is corruption.
//!
//! Guarantees: what is recovered is durable (files and directory are synced before they are read), is a prefix of the
//! commit order and contains every acknowledged record; nothing is repaired; numbers from disk are bounded before use.
//! Does not: find the segments (`survey` does), choose the next one (`writer` does) or cache values.

use std::rc::Rc;

use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{
    FRAME_HEADER_BYTES, FrameHeader, Record, RecordKind, SEGMENT_HEADER_BYTES, SegmentHeader,
    read_frame,
};
use crate::storage::index::{Change, Index};
use crate::storage::scan::Scanner;
use crate::storage::segment::{self, Location, Segment, SegmentId, Segments};
use crate::storage::survey::{Opened, SegmentFile, Survey, survey};
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
    /// Nothing was ever written here: zeros.
    Zero,
    /// Bytes that are no whole frame of this segment.
    Broken,
}

/// What stands behind a position that holds no whole frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// Zeros only, to the end of the file.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub segment: u32,
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
    /// The highest version.
    pub last_version: u64,
    /// What was cut, if anything.
    pub torn_tail: Option<TornTail>,
}

/// The files of a log after recovery.
pub(super) struct RecoveredLog<F> {
    pub(super) segments: Segments<F>,
    pub(super) end: LogEnd,
    /// A spare that is ready for use.
    pub(super) spare: Option<Rc<F>>,
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
    let Survey {
        log: opened,
        spare,
        unused,
    } = survey(disk, identity, must_exist).await?;
    let mut log = RecoveredLog {
        segments: Segments::new(),
        end: LogEnd {
            segment: SegmentId(0),
            offset: 0,
            last_version: 0,
        },
        spare,
        recovered: Recovered::default(),
    };
    let ends: Vec<Option<&SegmentHeader>> = opened
        .iter()
        .skip(1)
        .map(|next| Some(&next.header))
        .chain(std::iter::once(None))
        .collect();
    for (segment, next) in opened.iter().zip(ends) {
        recover_segment(segment, next, index, &mut log).await?;
    }
    log.recovered.last_version = log.end.last_version;
    log.recovered.segments = opened.len() as u32;
    index.finish_recovery(|location| log.segments.record_lives(location));
    for file in unused {
        remove_unused(disk, file).await?;
    }
    Ok(log)
}

/// Removes a file that a crash left half-made, or a spare of another size. Only now: a refused start changes nothing.
async fn remove_unused<D: Disk>(
    disk: &D,
    unused: SegmentFile<D::File>,
) -> Result<(), StorageError> {
    let SegmentFile { file, name, .. } = unused;
    tracing::info!(file = name, "removing a segment file that was never used");
    let file = Rc::into_inner(file).expect("nothing reads it any more");
    file.close()
        .await
        .map_err(|source| StorageError::io("closing", &name, source))?;
    segment::remove(disk, &name).await
}

async fn recover_segment<F: DiskFile>(
    segment: &Opened<F>,
    next: Option<&SegmentHeader>,
    index: &mut Index,
    log: &mut RecoveredLog<F>,
) -> Result<(), StorageError> {
    let corrupt = |offset, what| StorageError::Corrupt {
        file: segment.at.name.clone(),
        offset,
        what,
    };
    let id = SegmentId(segment.header.number);
    let needed = next.map_or(segment.header.segment_bytes, |next| next.previous_end);
    if segment.at.bytes < needed
        || !needed.is_multiple_of(BLOCK as u64)
        || needed < SEGMENT_HEADER_BYTES as u64
    {
        return Err(corrupt(
            segment.at.bytes,
            format!("the file has {} bytes, expected {needed}", segment.at.bytes),
        ));
    }
    if segment.header.previous_last_version != log.end.last_version {
        let what = format!(
            "the segment follows version {}, the one before it ends with version {}",
            segment.header.previous_last_version, log.end.last_version
        );
        return Err(corrupt(0, what));
    }
    let mut scanner = Scanner::new(
        Rc::clone(&segment.at.file),
        segment.at.name.clone(),
        SEGMENT_HEADER_BYTES as u64,
        needed,
    );
    let mut frame = FrameScan {
        header: &segment.header,
        last_version: log.end.last_version,
        records: Vec::new(),
    };
    loop {
        let offset = scanner.position();
        if next.is_some() && offset == needed {
            break;
        }
        let (found, what) = frame.read(&mut scanner).await?;
        if found == Found::Whole {
            frame
                .publish(&mut scanner, id, index, &mut log.recovered)
                .await?;
            continue;
        }
        let (behind, bytes) = match (found, next) {
            (Found::Unchained | Found::Misplaced, _) | (_, Some(_)) => (Behind::Nothing, 0),
            _ => look_behind(&mut scanner, &segment.header, frame.last_version).await?,
        };
        match verdict(found, behind, next.is_some()) {
            Verdict::Take => unreachable!("a whole frame was taken above"),
            Verdict::End => {}
            Verdict::TornTail => {
                log.recovered.torn_tail = Some(TornTail {
                    segment: id.0,
                    offset,
                    bytes,
                });
            }
            Verdict::Corrupt => {
                let what = format!(
                    "{what} (after version {}; nothing was changed)",
                    frame.last_version
                );
                return Err(corrupt(offset, what));
            }
        }
        log.end = LogEnd {
            segment: id,
            offset,
            last_version: frame.last_version,
        };
        break;
    }
    if next.is_some() {
        log.end = LogEnd {
            segment: id,
            offset: needed,
            last_version: frame.last_version,
        };
    }
    log.recovered.bytes += log.end.offset;
    log.segments.add(
        id,
        Segment {
            file: Rc::clone(&segment.at.file),
            allocated_bytes: segment.at.bytes,
            used_bytes: log.end.offset,
            live_bytes: 0,
        },
    );
    Ok(())
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
    records: Vec<FrameRecord>,
}

impl FrameScan<'_> {
    /// What stands at the scanner's position, and in words when it is no whole frame.
    async fn read<F: DiskFile>(
        &mut self,
        scanner: &mut Scanner<F>,
    ) -> Result<(Found, String), StorageError> {
        let offset = scanner.position();
        let block = scanner.peek(BLOCK).await?;
        if block.is_empty() || block.iter().all(|byte| *byte == 0) {
            return Ok((Found::Zero, "zeros where a frame is expected".into()));
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
        segment: SegmentId,
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
            let location = Location {
                segment,
                offset: (start + *offset as u64) as u32,
                bytes: *bytes as u32,
            };
            let change = Change {
                kind: record.kind,
                version: record.version,
                location,
                value_len: record.value.len(),
            };
            debug_assert!(record.kind == RecordKind::Set || record.value.is_empty());
            index.recover(record.key, Durable::after_recovery(change));
            self.last_version = record.version;
        }
        recovered.records += self.records.len() as u64;
        scanner.consume(frame_bytes);
        Ok(())
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
        if let Some(last) = block.iter().rposition(|byte| *byte != 0) {
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

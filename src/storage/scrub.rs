//! Reads what is on disk again and again, so that damage is known before a restart or a reader meets it.
//!
//! A pass walks the segments that were sealed when it began, in their order; those sealed meanwhile are in the next one,
//! so that a pass ends and what was checked longest ago comes first. Frames are read by the code of recovery, so that a
//! start and the scrub cannot disagree about what damage is; behind a damaged place it goes on with the next frame.
//!
//! Guarantees: the active segment is never read; a damaged place is told once; between two steps no file is held, so that
//! a retired one can be used again; memory is one step's reads, or one frame.
//! Does not: read segments of other logs, which compaction reads through before long; repair, stop anything, sleep or loop by itself (`shard` drives it at a low rate).

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::limits;
use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{BadHeader, FrameHeader, Record, SegmentHeader, SegmentState};
use crate::storage::frames::{FrameRecord, FrameScan};
use crate::storage::scan::Scanner;
use crate::storage::segment::{LogId, SegmentId};
use crate::storage::store::Store;
use crate::storage::verdict::Found;

/// Bytes that one step reads, unless a frame is longer.
const STEP_BYTES: u64 = 1 << 20;

/// Where the scrub is.
#[derive(Debug)]
pub struct Scrub {
    segment: SegmentId,
    /// The pass ends before this one: it was not sealed when the pass began.
    pass_end: SegmentId,
    /// Of the segment, when it was read.
    header: Option<SegmentHeader>,
    /// What is before it was checked.
    position: u64,
    /// The last version before the position.
    last_version: u64,
    /// There is damage before the position; the next frame is not found yet.
    seeking: bool,
    /// A read failed before this place: until then one frame at a time, to find what cannot be read.
    careful_until: u64,
}

impl Scrub {
    fn of(segment: SegmentId, pass_end: SegmentId) -> Scrub {
        Scrub {
            segment,
            pass_end,
            header: None,
            position: 0,
            last_version: 0,
            seeking: false,
            careful_until: 0,
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrubStep {
    /// No segment is sealed.
    Idle,
    /// There is more to do.
    Worked {
        /// Bytes read.
        bytes: u64,
    },
}

/// What the scrub has done and found since the start.
#[derive(Default)]
pub(super) struct Scrubbed {
    pub(super) bytes: Cell<u64>,
    pub(super) passes: Cell<u64>,
    /// Segment and offset of each damaged place.
    pub(super) places: RefCell<BTreeSet<(SegmentId, u64)>>,
    /// Places that had no log line of their own.
    unsaid: Cell<u64>,
}

impl Scrubbed {
    /// Damaged places in segments that `is_listed` knows.
    pub(super) fn damaged_places(&self, is_listed: impl Fn(SegmentId) -> bool) -> u64 {
        let places = self.places.borrow();
        places.iter().filter(|(id, _)| is_listed(*id)).count() as u64
    }

    /// Takes note of a place. Returns whether to say a line of it.
    fn note(&self, segment: SegmentId, offset: u64) -> bool {
        let mut places = self.places.borrow_mut();
        if places.len() == limits::SCRUB_PLACES_MAX || !places.insert((segment, offset)) {
            return false;
        }
        let said = places.len() <= limits::SCRUB_LINES_MAX;
        self.unsaid.set(self.unsaid.get() + u64::from(!said));
        said
    }
}

/// A segment that takes no frames any more.
struct Sealed<F> {
    id: SegmentId,
    file: Rc<F>,
    file_name: String,
    file_number: u32,
    epoch: u64,
    first_version: u64,
    /// Bytes from its start that are part of the log.
    end: u64,
}

impl<F: DiskFile> Sealed<F> {
    fn scanner(&self, from: u64, limit: u64) -> Scanner<F> {
        Scanner::beside_writes(Rc::clone(&self.file), self.file_name.clone(), from, limit)
    }

    /// Whether a frame header belongs at this place.
    fn has_here(&self, header: &FrameHeader, offset: u64) -> bool {
        header.epoch == self.epoch && u64::from(header.block) * BLOCK as u64 == offset
    }

    /// The header of the segment as its first block has it, or what is wrong with that.
    fn read_header(&self, block: &[u8]) -> Result<SegmentHeader, String> {
        match SegmentHeader::decode(block) {
            Err(BadHeader::Invalid(what)) => Err(what),
            Err(BadHeader::Format(version)) => Err(format!("a header of format {version}")),
            Ok(header)
                if (header.epoch, header.number, header.file)
                    == (self.epoch, self.id.0, self.file_number) =>
            {
                Ok(header)
            }
            Ok(_) => Err("the header of another segment".into()),
        }
    }

    /// What a damaged header must have said, as far as its frames need it.
    fn header_in_place(&self) -> SegmentHeader {
        SegmentHeader {
            state: SegmentState::Log,
            store_uuid: [0; 16],
            log: LogId(0),
            number: self.id.0,
            file: self.file_number,
            recycled: true,
            run: 0,
            epoch: self.epoch,
            first_version: self.first_version,
            segment_bytes: self.end,
            previous_number: 0,
            previous_file: 0,
            previous_end: 0,
            previous_last_version: self.first_version.saturating_sub(1),
        }
    }
}

/// How far one look came.
enum Look {
    /// The scanner stands behind what was looked at.
    Moved,
    /// The file is shorter than its segment.
    Ended,
    /// A frame that reaches to this place, beyond what the scanner reads.
    Longer(u64),
}

fn behind_block<F: DiskFile>(scanner: &mut Scanner<F>, block_len: usize) -> Look {
    scanner.consume(block_len);
    match block_len {
        0 => Look::Ended,
        _ => Look::Moved,
    }
}

impl<D: Disk, W> Store<D, W> {
    /// One step of the scrub. `current` is what the steps have in common; it begins as `None`. One task calls this.
    ///
    /// # Errors
    /// `Poisoned`. Damage is no error, and neither is a read that fails: both are told in the log and in the counters.
    pub async fn scrub(&self, current: &mut Option<Scrub>) -> Result<ScrubStep, StorageError> {
        if self.poisoned.get() {
            return Err(StorageError::Poisoned);
        }
        let Some(mut scrub) = current.take().or_else(|| self.begin_pass()) else {
            return Ok(ScrubStep::Idle);
        };
        let mut bytes = 0;
        let sealed = self.sealed(scrub.segment);
        let goes_on = match &sealed {
            Some(sealed) => {
                bytes = self.scrub_some(&mut scrub, sealed).await?;
                scrub.position < sealed.end
            }
            // Retired meanwhile.
            None => false,
        };
        drop(sealed);
        // It may have been retired while this read it.
        self.spares.nudge();
        *current = match goes_on {
            true => Some(scrub),
            false => self.next_segment(&scrub),
        };
        Ok(ScrubStep::Worked { bytes })
    }

    fn begin_pass(&self) -> Option<Scrub> {
        let pass_end = self.log.end().segment;
        let segments = self.segments.borrow();
        let mut places = self.scrubbed.places.borrow_mut();
        places.retain(|(id, _)| segments.get(*id).is_some());
        let (first, _) = segments.own().find(|(id, _)| *id < pass_end)?;
        Some(Scrub::of(first, pass_end))
    }

    /// The start of the next segment of the pass, which ends when there is none.
    fn next_segment(&self, scrub: &Scrub) -> Option<Scrub> {
        let segments = self.segments.borrow();
        let next = segments
            .own()
            .find(|(id, _)| scrub.segment < *id && *id < scrub.pass_end);
        if let Some((next, _)) = next {
            return Some(Scrub::of(next, scrub.pass_end));
        }
        let (shard, scrubbed) = (self.shard(), &self.scrubbed);
        let passes = scrubbed.passes.get() + 1;
        scrubbed.passes.set(passes);
        let damaged = scrubbed.damaged_places(|id| segments.get(id).is_some());
        tracing::debug!(shard, passes, damaged, "all sealed segments were read");
        let unsaid = scrubbed.unsaid.take();
        if unsaid > 0 {
            tracing::error!(shard, unsaid, "further places are damaged");
        }
        None
    }

    fn sealed(&self, id: SegmentId) -> Option<Sealed<D::File>> {
        assert!(id < self.log.end().segment, "only sealed segments are read");
        let segments = self.segments.borrow();
        let segment = segments.get(id)?;
        Some(Sealed {
            id,
            file: Rc::clone(&segment.file),
            file_name: segment.file_name(),
            file_number: segment.file_number,
            epoch: segment.epoch,
            first_version: segment.first_version,
            end: segment.used_bytes,
        })
    }

    /// Checks some frames from the position on. Returns how many bytes were read for it.
    async fn scrub_some(
        &self,
        scrub: &mut Scrub,
        sealed: &Sealed<D::File>,
    ) -> Result<u64, StorageError> {
        let start = scrub.position;
        let careful = start < scrub.careful_until;
        let window = if careful { BLOCK as u64 } else { STEP_BYTES };
        let mut limit = (start + window).min(sealed.end);
        let mut scanner = sealed.scanner(start, limit);
        while scrub.position < limit {
            match self.look(scrub, sealed, (&mut scanner, limit)).await {
                Ok(Look::Moved) => scrub.position = scanner.position(),
                Ok(Look::Ended) => scrub.position = sealed.end,
                Ok(Look::Longer(end)) if scrub.position == start => {
                    limit = end;
                    scanner = sealed.scanner(start, limit);
                }
                // The next step begins with it.
                Ok(Look::Longer(_)) => break,
                Err(StorageError::Io { source, .. }) if careful => {
                    // While it seeks, the frame that this block belongs to is told already.
                    if !scrub.seeking {
                        let what = format!("it cannot be read: {source}");
                        self.note_damage(sealed, scrub.position, &what);
                    }
                    scrub.header.get_or_insert_with(|| sealed.header_in_place());
                    scrub.position += BLOCK as u64;
                    scrub.seeking = true;
                    break;
                }
                Err(StorageError::Io { .. }) => {
                    scrub.careful_until = limit;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let checked = scrub.position - start;
        self.scrubbed.bytes.set(self.scrubbed.bytes.get() + checked);
        Ok(limit - start)
    }

    /// Checks what stands at the position: the header of the segment, a frame, or a block behind damage.
    async fn look(
        &self,
        scrub: &mut Scrub,
        sealed: &Sealed<D::File>,
        (scanner, limit): (&mut Scanner<D::File>, u64),
    ) -> Result<Look, StorageError> {
        let offset = scanner.position();
        let block = scanner.peek(BLOCK).await?;
        let block_len = block.len();
        let Some(header) = &scrub.header else {
            let header = sealed.read_header(block).unwrap_or_else(|what| {
                self.note_damage(sealed, offset, &what);
                sealed.header_in_place()
            });
            scrub.last_version = header.previous_last_version;
            scrub.header = Some(header);
            return Ok(behind_block(scanner, block_len));
        };
        let frame_header =
            FrameHeader::decode(block).filter(|header| sealed.has_here(header, offset));
        if scrub.seeking {
            match frame_header {
                Some(header) => {
                    (scrub.seeking, scrub.last_version) = (false, header.previous_last_version);
                }
                None => return Ok(behind_block(scanner, block_len)),
            }
        }
        let frame_bytes = frame_header.map_or(BLOCK, |header| header.frame_bytes());
        let frame_end = (offset + frame_bytes as u64).min(sealed.end);
        if frame_end > limit {
            return Ok(Look::Longer(frame_end));
        }
        let mut frame = FrameScan::new(header);
        frame.last_version = scrub.last_version;
        let (found, what) = frame.read(scanner).await?;
        if found != Found::Whole {
            self.note_damage(sealed, offset, &what);
            scrub.seeking = true;
            return Ok(behind_block(scanner, block_len));
        }
        let bytes = scanner.peek(frame_bytes).await?;
        for FrameRecord { offset, bytes: len } in &frame.records {
            let record = Record::decode_verified(&bytes[*offset..offset + len]);
            scrub.last_version = scrub.last_version.max(record.version);
        }
        scanner.consume(frame_bytes);
        Ok(Look::Moved)
    }

    fn note_damage(&self, sealed: &Sealed<D::File>, offset: u64, what: &str) {
        let is_listed = self.segments.borrow().get(sealed.id).is_some();
        if !is_listed || !self.scrubbed.note(sealed.id, offset) {
            return;
        }
        let (shard, file) = (self.shard(), &sealed.file_name);
        tracing::error!(
            shard,
            file,
            offset,
            what,
            "the log is damaged: a restart would be refused"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_once_and_kept_and_said_up_to_a_limit() {
        let scrubbed = Scrubbed::default();
        let said = |offset: usize| scrubbed.note(SegmentId(1), offset as u64);
        let count = || scrubbed.damaged_places(|id| id == SegmentId(1)) as usize;
        for offset in 0..limits::SCRUB_LINES_MAX {
            assert!(said(offset) && !said(offset));
        }
        assert_eq!(
            (count(), scrubbed.unsaid.get()),
            (limits::SCRUB_LINES_MAX, 0)
        );
        for offset in limits::SCRUB_LINES_MAX..limits::SCRUB_PLACES_MAX {
            assert!(!said(offset));
        }
        let unsaid = (limits::SCRUB_PLACES_MAX - limits::SCRUB_LINES_MAX) as u64;
        assert_eq!(
            (count(), scrubbed.unsaid.get()),
            (limits::SCRUB_PLACES_MAX, unsaid)
        );
        assert!(!said(limits::SCRUB_PLACES_MAX));
        assert_eq!(
            (count(), scrubbed.unsaid.get()),
            (limits::SCRUB_PLACES_MAX, unsaid)
        );
        assert_eq!(
            scrubbed.damaged_places(|_| false),
            0,
            "its segment is retired"
        );
    }
}

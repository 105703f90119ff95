//! Wins back dead bytes: copies what a segment still holds of use to the end of the log, then retires the segment.
//!
//! Copies keep their versions and share frames with new writes. A segment is retired by a record of its own, once
//! nothing in it is needed any more; only when that record is durable the file is used again or removed.
//!
//! A tombstone goes when no other segment can hold an older record of its key: none that was begun before its version
//! was given out. Copies of older records do not change that: they are made only while the key is not deleted.
//!
//! Guarantees: the newest record of a key, and a tombstone that is needed, are on disk at every moment; each step
//! changes little, so that whoever drives this can pace it.
//! Does not: sleep or loop by itself (`shard` drives it, and so does the simulation), decide what is worth it (`victim`).

use std::rc::Rc;

use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::foreign::{News, Notice};
use crate::storage::format::{Record, RecordKind, SEGMENT_HEADER_BYTES, read_frame, retire_key};
use crate::storage::index::LOOKED_AHEAD;
use crate::storage::plant::{Plant, planted};
use crate::storage::reader::{read_beside_writes, record_in};
use crate::storage::scan::Scanner;
use crate::storage::segment::{Location, SegmentId, SegmentKey};
use crate::storage::segments::Segment;
use crate::storage::store::{Store, Upkeep};
use crate::storage::victim::{Choice, Room, choose, pace_now};
use crate::storage::worklist::{FooterAt, Worklist};

pub use crate::storage::victim::Pace;

/// Copies that are staged before their frame is awaited, in bytes: what a set may have to wait for.
const STEP_BYTES: usize = 128 << 10;

/// The same when nothing holds compaction back: a step waits for its frame and for the one before, so smaller ones do not
/// keep up with writers that fill every frame.
const STEP_BYTES_UNBOUNDED: usize = 512 << 10;

/// The same while sets are refused: large frames waste least of the little room that there is.
const STEP_BYTES_WHEN_FULL: usize = 1 << 20;

/// Bytes that one step reads at most, if little of them is copied.
const STEP_READ_BYTES: u64 = 1 << 20;

/// The same when nothing holds compaction back: where most is dead it is the reads that have to keep up.
const STEP_READ_BYTES_UNBOUNDED: u64 = 4 << 20;

/// A segment being compacted.
pub struct Compaction<F: DiskFile> {
    victim: SegmentId,
    pace: Pace,
    file: Rc<F>,
    file_name: String,
    /// Length of the file, in bytes.
    file_bytes: u64,
    /// End of the segment, in bytes.
    limit: u64,
    way: Way<F>,
}

/// How the records of a victim are found.
enum Way<F: DiskFile> {
    /// Not decided yet.
    Unknown(FooterAt),
    /// From front to back.
    Scan {
        scanner: Scanner<F>,
        /// Records of the frame at the scanner's position that are done with.
        done: usize,
    },
    /// From its footer.
    List(Worklist),
}

impl<F: DiskFile> Compaction<F> {
    /// Whether every record was looked at.
    fn is_through(&self) -> bool {
        match &self.way {
            Way::Unknown(_) => false,
            Way::Scan { scanner, .. } => scanner.position() == self.limit,
            Way::List(list) => list.next().is_none(),
        }
    }

    /// Decides how the records are found.
    ///
    /// # Errors
    /// `Io` when the footer cannot be read.
    async fn decide(&mut self) -> Result<(), StorageError> {
        let Way::Unknown(footer) = self.way else {
            return Ok(());
        };
        let file = (&*self.file, &*self.file_name, self.file_bytes);
        let list = Worklist::read(self.victim, file, self.limit, footer).await?;
        self.way = match list {
            Some(list) => Way::List(list),
            None => Way::Scan {
                scanner: Scanner::beside_writes(
                    Rc::clone(&self.file),
                    self.file_name.clone(),
                    SEGMENT_HEADER_BYTES as u64,
                    self.limit,
                ),
                done: 0,
            },
        };
        Ok(())
    }
}

#[cfg(test)]
impl<F: DiskFile> Compaction<F> {
    pub(super) fn victim(&self) -> SegmentId {
        self.victim
    }

    /// Whether its records are found from its footer.
    pub(super) fn is_listed(&self) -> bool {
        matches!(self.way, Way::List(_))
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is nothing worth compacting now.
    Idle,
    /// Bytes were read and copied; there is more to do.
    Worked {
        /// How many.
        bytes: u64,
        /// How fast this should go on.
        pace: Pace,
    },
}

impl<D: Disk, W> Store<D, W> {
    /// One step of compaction: a few frames of a segment, or a part of a large one. `current` is what the steps
    /// have in common; it begins as `None`. One task calls this.
    ///
    /// # Errors
    /// `Corrupt` when a segment does not verify any more: nothing of it is dropped then. `Poisoned`, `Io`.
    pub async fn compact(
        &self,
        current: &mut Option<Compaction<D::File>>,
    ) -> Result<Step, StorageError> {
        self.spares.nudge();
        if self.poisoned.get() {
            return Err(StorageError::Poisoned);
        }
        self.leave_emptied().await?;
        if self.retire_unneeded().await? {
            return Ok(Step::Worked {
                bytes: 0,
                pace: Pace::Unbounded,
            });
        }
        let mut compaction = match current.take().or_else(|| self.begin_compaction()) {
            Some(compaction) => compaction,
            None => return Ok(Step::Idle),
        };
        compaction.pace = compaction.pace.max(self.pressure());
        let pace = compaction.pace;
        let live_bytes = self.live_bytes(&compaction);
        if compaction.is_through() || live_bytes == 0 {
            let victim = compaction.victim;
            // Its file must not be kept from use by the one who waits for its retirement.
            drop(compaction);
            let done = match victim.is_foreign() {
                // The next step leaves it.
                true => live_bytes == 0,
                false => self.retire(victim).await?,
            };
            self.upkeep.need.set(0);
            return Ok(match done {
                true => Step::Worked { bytes: 0, pace },
                // Something of it was given up with its frame: there is no room now.
                false => Step::Idle,
            });
        }
        let step = self.copy_some(&mut compaction).await?;
        if step != Step::Idle {
            self.upkeep
                .need
                .set(room_needed(self.live_bytes(&compaction)));
            *current = Some(compaction);
        }
        Ok(step)
    }

    /// The least pace that the state of the store asks for: what was right when a segment was begun may be too slow before
    /// its end.
    fn pressure(&self) -> Pace {
        if self.spares.is_out_of_space() {
            return Pace::Unbounded;
        }
        let pace = pace_now(
            &self.segments.borrow(),
            self.log.end().segment,
            self.dead_bytes_min(),
        );
        pace.unwrap_or(Pace::Bounded(0))
    }

    /// Bytes of the victim that may still have to be copied.
    fn live_bytes(&self, compaction: &Compaction<D::File>) -> u64 {
        let segments = self.segments.borrow();
        let victim = segments.get(compaction.victim);
        victim.map_or(0, |segment| segment.live_bytes)
    }

    fn begin_compaction(&self) -> Option<Compaction<D::File>> {
        let segments = self.segments.borrow();
        let active = self.log.end().segment;
        let full = self.spares.is_out_of_space().then(|| Room {
            left: self.log.room(),
            for_copies: match self.spares.has_reserve() {
                true => self.log.frame_bytes_max() as u64,
                false => self.log.room(),
            },
        });
        let older = self.foreign.borrow().first_version(None);
        let (size, dead_min) = (self.segment_bytes(), self.dead_bytes_min());
        let Choice { victim, pace } = choose(&segments, active, size, dead_min, older, full)?;
        let segment = segments.get(victim).expect("a victim is in the table");
        let (file_name, limit) = (segment.file_name(), segment.used_bytes);
        tracing::debug!(shard = self.shard(), file = file_name, ?pace, "compacting");
        Some(Compaction {
            victim,
            pace,
            file: Rc::clone(&segment.file),
            file_name,
            file_bytes: segment.allocated_bytes,
            limit,
            way: Way::Unknown(FooterAt {
                epoch: segment.epoch,
                bytes: segment.footer_bytes,
            }),
        })
    }

    /// Copies what is needed of the next frames, up to a bound, and waits until it is durable.
    async fn copy_some(&self, compaction: &mut Compaction<D::File>) -> Result<Step, StorageError> {
        let mut batch = Batch {
            bytes_max: match (self.spares.is_out_of_space(), compaction.pace) {
                (true, _) => STEP_BYTES_WHEN_FULL,
                (false, Pace::Unbounded) => STEP_BYTES_UNBOUNDED,
                (false, Pace::Bounded(_)) => STEP_BYTES,
            },
            read_max: match compaction.pace {
                Pace::Unbounded => STEP_READ_BYTES_UNBOUNDED,
                Pace::Bounded(_) => STEP_READ_BYTES,
            },
            horizon: self.horizon(compaction.victim),
            ..Batch::default()
        };
        let copied = self.copy_batch(compaction, &mut batch).await;
        if batch.frame.is_some() {
            // Also after an error: nobody else tells the log writer of what is staged.
            self.work.notify();
        }
        copied?;
        if let Some(frame) = batch.frame {
            self.until_settled(frame).await?;
        }
        Ok(match batch.no_room {
            true => Step::Idle,
            false => Step::Worked {
                bytes: batch.read + batch.bytes as u64,
                pace: compaction.pace,
            },
        })
    }

    async fn copy_batch(
        &self,
        compaction: &mut Compaction<D::File>,
        batch: &mut Batch,
    ) -> Result<(), StorageError> {
        compaction.decide().await?;
        while !batch.is_full && !compaction.is_through() {
            let victim = compaction.victim;
            match &mut compaction.way {
                Way::List(list) => {
                    let file = (&*compaction.file, &*compaction.file_name);
                    self.copy_listed(file, list, batch).await?;
                }
                Way::Scan { scanner, done } => {
                    self.copy_frame(victim, (scanner, done), batch).await?;
                }
                Way::Unknown(_) => unreachable!("decided above"),
            }
        }
        Ok(())
    }

    /// Stages a copy of the next record of a list that is needed, as far as the batch goes.
    async fn copy_listed(
        &self,
        (file, file_name): (&D::File, &str),
        list: &mut Worklist,
        batch: &mut Batch,
    ) -> Result<(), StorageError> {
        let next = loop {
            match list.next() {
                Some(next) if self.needed(&next.key, next.location).is_some() => break next,
                Some(_) => list.advance(),
                None => return Ok(()),
            }
        };
        if batch.has_no_room_for(next.location.bytes as usize) {
            batch.is_full = true;
            return Ok(());
        }
        let location = next.location;
        let (bytes, skip) = read_beside_writes(file, file_name, location).await?;
        let around = (&*bytes, skip);
        let record = record_in(around, file_name, location, &next.key, next.version)?;
        if self.pending.borrow().is_large(record.bytes()) {
            self.copy_turn().await;
        }
        if self.poisoned.get() {
            return Err(StorageError::Poisoned);
        }
        self.copy_record(&record, location, batch);
        batch.read += u64::from(location.bytes);
        if !batch.no_room {
            list.advance();
            batch.is_full |= batch.read >= batch.read_max;
        }
        Ok(())
    }

    /// The hash of the key, if the record at this place is the newest of it and not about to be replaced.
    fn needed(&self, key: &[u8], location: Location) -> Option<u64> {
        let index = self.index.borrow();
        let hash = index.hash(key);
        // What is about to be replaced is not copied: if that write is given up, the segment is not retired either.
        let is_newest = index.points_at(hash, key, location)
            && (self.pending.borrow().newest(hash, key).is_none() || planted(Plant::CopyReplaced));
        is_newest.then_some(hash)
    }

    /// Stages copies of what is needed of the next frame, as far as the batch goes.
    async fn copy_frame(
        &self,
        victim: SegmentId,
        (scanner, done): (&mut Scanner<D::File>, &mut usize),
        batch: &mut Batch,
    ) -> Result<(), StorageError> {
        let start = scanner.position();
        let (header, frame) = scanner.frame().await?;
        let mut records = Vec::with_capacity(header.records as usize);
        let verified = read_frame(&header, frame, |offset, record| {
            records.push((offset, record));
        });
        if let Err((at, what)) = verified {
            return Err(scanner.corrupt(at, what));
        }
        if self.poisoned.get() {
            return Err(StorageError::Poisoned);
        }
        let first = *done;
        for (at, (offset, record)) in records[first..].iter().enumerate() {
            if at % LOOKED_AHEAD == 0 {
                let index = self.index.borrow();
                let next = records[first + at..].iter();
                index.look_ahead_for_entries(next.map(|(_, record)| index.hash(record.key)));
            }
            let location = Location {
                segment: victim,
                offset: (start + *offset as u64) as u32,
                bytes: record.bytes() as u32,
            };
            self.copy_record(record, location, batch);
            if batch.is_full {
                break;
            }
            *done += 1;
        }
        if *done == records.len() {
            *done = 0;
            scanner.consume(header.frame_bytes());
            batch.read += header.frame_bytes() as u64;
            batch.is_full |= batch.read >= batch.read_max;
        }
        Ok(())
    }

    /// Stages a copy of a record, unless it is not needed. A full batch leaves it for the next one.
    fn copy_record(&self, record: &Record<'_>, location: Location, batch: &mut Batch) {
        if !matches!(record.kind, RecordKind::Set | RecordKind::Delete) {
            return;
        }
        let Some(hash) = self.needed(record.key, location) else {
            return;
        };
        let mut index = self.index.borrow_mut();
        let mut pending = self.pending.borrow_mut();
        let needed = record.version >= batch.horizon && !planted(Plant::DropTombstone);
        if record.kind == RecordKind::Delete && !needed {
            let forgotten = index.forget_tombstone(hash, record.key, record.version);
            assert!(forgotten, "the index points at this tombstone");
            self.segments.borrow_mut().record_dies(location, true);
            return;
        }
        if batch.has_no_room_for(record.bytes()) {
            batch.is_full = true;
            return;
        }
        let frame = (pending.staged_frame_bytes() + u64::from(location.bytes) + 2 * BLOCK as u64)
            .next_multiple_of(BLOCK as u64);
        if frame > self.log.room() && !self.spares.has_reserve() && self.spares.is_out_of_space() {
            (batch.is_full, batch.no_room) = (true, true);
            return;
        }
        let copy = Record {
            moved: true,
            ..*record
        };
        batch.frame = Some(pending.push_upkeep(&*self.disk, hash, &copy));
        batch.bytes += record.bytes();
        let Upkeep {
            moved_records,
            moved_bytes,
            ..
        } = &self.upkeep;
        moved_records.set(moved_records.get() + 1);
        moved_bytes.set(moved_bytes.get() + u64::from(location.bytes));
    }

    /// Versions below this one were given out before every other segment was begun, of any log: no older record of a key
    /// with such a version can be in one.
    fn horizon(&self, victim: SegmentId) -> u64 {
        let segments = self.segments.borrow();
        let others = segments.own().filter(|(id, _)| *id != victim);
        let begun = others.map(|(_, segment)| segment.first_version);
        let key = segments.get(victim).map(|victim| victim.key);
        let foreign = self.foreign.borrow().first_version(key);
        let foreign = foreign.filter(|_| !planted(Plant::ForgetForeign));
        begun.chain(foreign).min().unwrap_or(u64::MAX)
    }

    /// Retires a segment if nothing in it is needed. False: something is, or there was no room for the record.
    async fn retire(&self, victim: SegmentId) -> Result<bool, StorageError> {
        let live = |id| self.segments.borrow().get(id).map(|one| one.live_bytes);
        if live(victim) != Some(0) {
            return Ok(false);
        }
        let key = SegmentKey {
            log: self.log.id(),
            number: victim.0,
        };
        let frame = self.stage_retirement(key);
        self.until_settled(frame).await?;
        Ok(live(victim).is_none())
    }

    /// Returns the frame of the record.
    fn stage_retirement(&self, segment: SegmentKey) -> u64 {
        let record = Record {
            kind: RecordKind::Retire,
            moved: false,
            version: 0,
            key: &retire_key(segment),
            value: b"",
        };
        let frame = self
            .pending
            .borrow_mut()
            .push_upkeep(&*self.disk, 0, &record);
        if planted(Plant::RetireEarly) {
            self.retired(&mut self.segments.borrow_mut(), segment);
        }
        self.work.notify();
        frame
    }

    /// Closes segments of other logs in which nothing is this shard's any more and nobody reads, and tells their keepers.
    async fn leave_emptied(&self) -> Result<(), StorageError> {
        loop {
            let emptied = {
                let mut segments = self.segments.borrow_mut();
                let unused = |segment: &Segment<D::File>| {
                    segment.live_bytes == 0 && Rc::strong_count(&segment.file) == 1
                };
                let found = segments.foreign().find(|(_, segment)| unused(segment));
                let Some(id) = found.map(|(id, _)| id) else {
                    return Ok(());
                };
                segments.remove(id)
            };
            let name = emptied.file_name();
            let file = Rc::into_inner(emptied.file).expect("nobody reads it any more");
            file.close()
                .await
                .map_err(|source| StorageError::io("closing", &name, source))?;
            self.foreign.borrow_mut().leave(emptied.key);
        }
    }

    /// Retires a segment of another log that this shard keeps, if no shard needs it. False: there is none, or no room for
    /// the record.
    async fn retire_unneeded(&self) -> Result<bool, StorageError> {
        let unneeded = self.foreign.borrow().unneeded();
        // A copy may have cut another shard when that still needed it.
        let Some(segment) = unneeded.filter(|_| !self.is_pinned()) else {
            return Ok(false);
        };
        let frame = self.stage_retirement(segment);
        self.upkeep.foreign_retirement.set(Some(frame));
        self.until_settled(frame).await?;
        Ok(self.foreign.borrow().unneeded() != Some(segment))
    }

    /// Something that another shard of the store has to be told; [`Store::put_back`] it where that fails.
    pub fn next_notice(&self) -> Option<Notice> {
        self.foreign.borrow_mut().next_notice()
    }

    /// A notice that could not be told now.
    pub fn put_back(&self, notice: Notice) {
        self.foreign.borrow_mut().put_back(notice);
    }

    /// Takes in what another shard has told.
    pub fn hear(&self, from: u16, news: News) {
        self.foreign.borrow_mut().hear(from, news);
    }

    /// Segments of other logs that exist in the whole store: what is left of another number of shards.
    pub fn foreign_segments(&self) -> usize {
        self.foreign.borrow().count()
    }

    pub(super) async fn until_settled(&self, frame: u64) -> Result<(), StorageError> {
        self.settled
            .until(|| self.poisoned.get() || self.pending.borrow().is_settled(frame))
            .await;
        match self.pending.borrow().is_settled(frame) {
            true => Ok(()),
            false => Err(StorageError::Poisoned),
        }
    }
}

/// What one step has done so far.
#[derive(Default)]
struct Batch {
    bytes_max: usize,
    read_max: u64,
    /// Tombstones of versions below this one can go.
    horizon: u64,
    /// Bytes of copies.
    bytes: usize,
    /// Bytes of frames that are done with.
    read: u64,
    /// The frame that the last copy is in.
    frame: Option<u64>,
    is_full: bool,
    no_room: bool,
}

impl Batch {
    /// Whether a record of so many bytes is for the next batch.
    fn has_no_room_for(&self, record_bytes: usize) -> bool {
        self.bytes > 0 && self.bytes + record_bytes > self.bytes_max
    }
}

/// Room that copies of so many bytes take while the disk is full, with what their frames waste and the retirement.
pub(super) fn room_needed(live_bytes: u64) -> u64 {
    let frames = live_bytes / (STEP_BYTES_WHEN_FULL as u64 / 2) + 2;
    live_bytes + frames * BLOCK as u64
}

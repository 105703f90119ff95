//! Files for segments to come: made ahead, used again after their segment is retired, and removed when there are enough.
//!
//! Two are kept ready, and more of the retired ones where one that was removed is soon missed: when large values are
//! overwritten, whole segments die at the same time, and to fill a new file with zeros takes as long as to write it. The
//! last one is the reserve: only copies of compaction may take it, so that a full disk can always be compacted: they fill
//! less of it than the segment that they empty. Sets are refused before it is touched.
//!
//! Owns: the stock of ready and of retired files, and the state of being out of space.
//! Guarantees: a file is used again or removed only when nobody reads it any more, no copy of the store is being made
//! and its retirement is durable.
//! Does not: spawn a task; `Store::prepare` is driven by one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::rc::Rc;

use crate::storage::disk::{Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{SegmentHeader, SegmentState};
use crate::storage::plant::{Plant, planted};
use crate::storage::segment::{self, SegmentId, SpareFile, make_spare, recycle};
use crate::storage::signal::Signal;
use crate::storage::table::{table_frame_bytes, table_room};
use crate::storage::writer::LogIdentity;

/// Files that are kept ready: one for the next segment, one in reserve.
const READY_FILES: usize = 2;

/// Files that are kept ready when retired ones come back: at least one more than that, at most so many.
const KEPT_FILES: RangeInclusive<usize> = READY_FILES + 1..=8;

/// A file is missed that was removed within so many rotations.
const MISSED_ROTATIONS: u64 = 16;

/// When none had to be made for so many rotations one fewer is kept.
const UNMISSED_ROTATIONS: u64 = 64;

/// A file whose segment is no part of the log any more.
pub(super) struct RetiredFile<F> {
    pub(super) file: Rc<F>,
    pub(super) number: u32,
    pub(super) bytes: u64,
}

impl<F> From<SpareFile<F>> for RetiredFile<F> {
    fn from(spare: SpareFile<F>) -> Self {
        RetiredFile {
            file: spare.file,
            number: spare.number,
            bytes: spare.bytes,
        }
    }
}

/// How long the log is.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogSize {
    pub(super) segments: usize,
    /// A spare states it: a start that finds the spare and no such segment knows that one is missing.
    pub(super) active: SegmentId,
    /// The number in the name of its file.
    pub(super) active_file: u32,
}

/// How many files are worth keeping.
#[derive(Default)]
struct Demand {
    rotations: Cell<u64>,
    /// Segments of the log.
    segments: Cell<usize>,
    /// How many of the present ones are kept more than the fewest.
    more: Cell<usize>,
    last_removed: Cell<Option<u64>>,
    last_made: Cell<u64>,
}

impl Demand {
    /// Files to be kept ready when retired ones come back; never more than the log has, or what is deleted stays on disk.
    fn kept(&self) -> usize {
        let (fewest, most) = (*KEPT_FILES.start(), *KEPT_FILES.end());
        let kept = (fewest + self.more.get()).min(self.segments.get());
        kept.clamp(fewest, most)
    }

    fn rotated(&self, segments: usize) {
        let rotations = self.rotations.get() + 1;
        self.rotations.set(rotations);
        self.segments.set(segments);
        if rotations > self.last_made.get() + UNMISSED_ROTATIONS {
            self.more.set(self.more.get().saturating_sub(1));
            self.last_made.set(rotations);
        }
    }

    fn removed(&self) {
        self.last_removed.set(Some(self.rotations.get()));
    }

    fn made(&self) {
        let rotations = self.rotations.get();
        let removed = self.last_removed.get();
        let is_missed = removed.is_some_and(|removed| rotations <= removed + MISSED_ROTATIONS);
        let most = KEPT_FILES.end() - KEPT_FILES.start();
        self.more
            .set((self.more.get() + usize::from(is_missed)).min(most));
        self.last_made.set(rotations);
    }
}

struct Stock<F> {
    ready: VecDeque<SpareFile<F>>,
    retired: Vec<RetiredFile<F>>,
    /// Names of files of other logs that nobody needs any more.
    doomed: Vec<String>,
    /// One was taken and is not the active segment yet: what is made now would not tell of it.
    taken: bool,
    /// There was no room for a new file.
    no_space: bool,
    next_file: u32,
}

/// The files of one shard that are not in use.
pub(super) struct Spares<D: Disk> {
    disk: Rc<D>,
    identity: LogIdentity,
    stock: RefCell<Stock<D::File>>,
    epochs: Cell<u32>,
    demand: Demand,
    /// While there are any, retired files stay as they are: see `snapshot`.
    pins: Cell<u32>,
    changed: Signal,
}

impl<D: Disk> Spares<D> {
    /// `next_file`: above the number of every file of the shard.
    pub(super) fn new(
        disk: Rc<D>,
        identity: LogIdentity,
        ready: VecDeque<SpareFile<D::File>>,
        next_file: u32,
    ) -> Self {
        let stock = Stock {
            ready,
            retired: Vec::new(),
            doomed: Vec::new(),
            taken: false,
            no_space: false,
            next_file,
        };
        Spares {
            disk,
            identity,
            stock: RefCell::new(stock),
            epochs: Cell::new(0),
            demand: Demand::default(),
            pins: Cell::new(0),
            changed: Signal::default(),
        }
    }

    fn bytes_for(&self, segments: usize) -> u64 {
        u64::from(self.identity.segment_bytes) + table_room(segments)
    }

    fn header(&self, file: u32, bytes: u64, recycled: bool, log: LogSize) -> SegmentHeader {
        self.epochs.set(self.epochs.get() + 1);
        SegmentHeader {
            state: SegmentState::Spare,
            store_uuid: self.identity.store_uuid,
            log: self.identity.log,
            number: 0,
            file,
            recycled,
            run: self.identity.run,
            epoch: self
                .identity
                .epoch(self.epochs.get() * u32::from(!planted(Plant::RepeatEpoch))),
            first_version: 0,
            segment_bytes: bytes,
            previous_number: log.active.0,
            previous_file: log.active_file,
            previous_end: 0,
            previous_last_version: 0,
        }
    }

    /// A file with room for the table of so many segments; waits for one that is being made. Without `with_reserve` the
    /// last one stays.
    ///
    /// # Errors
    /// `Full` when there is none and no room for one.
    pub(super) async fn take(
        &self,
        segments: usize,
        with_reserve: bool,
    ) -> Result<SpareFile<D::File>, StorageError> {
        let least = if with_reserve { 1 } else { READY_FILES };
        loop {
            self.changed
                .until(|| {
                    let stock = self.stock.borrow();
                    stock.ready.len() >= least || stock.no_space
                })
                .await;
            let mut stock = self.stock.borrow_mut();
            if stock.ready.len() < least {
                return Err(self.full(&stock, segments));
            }
            let spare = stock.ready.pop_front().expect("there are enough");
            let needed =
                u64::from(self.identity.segment_bytes) + table_frame_bytes(segments) as u64;
            if spare.bytes >= needed {
                stock.taken = true;
                return Ok(spare);
            }
            drop(stock);
            // Made when there were far fewer segments.
            self.retire(spare.into());
        }
    }

    fn full(&self, stock: &Stock<D::File>, segments: usize) -> StorageError {
        StorageError::Full {
            file: segment::name(self.identity.log, stock.next_file),
            bytes: self.bytes_for(segments),
        }
    }

    /// Makes one file, outside the stock: for a start, which has nobody to make it in the background.
    pub(super) async fn make(&self, log: LogSize) -> Result<SpareFile<D::File>, StorageError> {
        let number = self.stock.borrow().next_file;
        self.stock.borrow_mut().next_file += 1;
        make_spare(
            &*self.disk,
            &self.header(number, self.bytes_for(log.segments), false, log),
        )
        .await
    }

    /// Any ready file, at once.
    pub(super) fn take_ready(&self, segments: usize) -> Option<SpareFile<D::File>> {
        let needed = u64::from(self.identity.segment_bytes) + table_frame_bytes(segments) as u64;
        let mut stock = self.stock.borrow_mut();
        let fits = stock.ready.iter().position(|spare| spare.bytes >= needed)?;
        stock.ready.remove(fits)
    }

    /// The log has so many segments now, fewer than before.
    pub(super) fn shrunk(&self, segments: usize) {
        self.demand.segments.set(segments);
        self.changed.notify();
    }

    /// What was taken is the active segment now, the last of so many.
    pub(super) fn activated(&self, segments: usize) {
        self.demand.rotated(segments);
        self.stock.borrow_mut().taken = false;
        self.changed.notify();
    }

    /// Takes in a file whose retirement is durable.
    pub(super) fn retire(&self, file: RetiredFile<D::File>) {
        self.stock.borrow_mut().retired.push(file);
        self.changed.notify();
    }

    /// Takes in the name of a file of another log whose retirement is durable, and which no shard has open.
    pub(super) fn doom(&self, file_name: String) {
        self.stock.borrow_mut().doomed.push(file_name);
        self.changed.notify();
    }

    /// A reader may have let go of a retired file.
    pub(super) fn nudge(&self) {
        if !self.stock.borrow().retired.is_empty() {
            self.changed.notify();
        }
    }

    /// Waits until something is to be done for the stock, or for what `also` asks about.
    pub(super) async fn until_wanted(&self, also: impl Fn() -> bool) {
        self.changed.until(|| also() || self.is_wanted()).await;
    }

    fn is_wanted(&self) -> bool {
        let stock = self.stock.borrow();
        let wanted = stock.ready.len() < READY_FILES
            || self.has_too_many(&stock)
            || (!stock.doomed.is_empty() && !self.is_pinned())
            || stock.retired.iter().any(|file| self.is_free(file));
        wanted && !stock.taken
    }

    /// Does what is to be done for the stock, if anything is: uses a retired file again or removes it, or makes a new
    /// one. `log` is asked how long the log is.
    ///
    /// # Errors
    /// `Full` when there is no room for a file that is missing; a later call may succeed. Others are final.
    pub(super) async fn prepare(&self, log: impl Fn() -> LogSize) -> Result<(), StorageError> {
        let doomed = match self.is_pinned() {
            true => None,
            false => self.stock.borrow_mut().doomed.pop(),
        };
        if let Some(file_name) = doomed {
            segment::remove(&*self.disk, &file_name).await?;
            // What was refused for lack of room may be tried again.
            self.changed.notify();
            return Ok(());
        }
        if !self.is_wanted() {
            return Ok(());
        }
        let log = log();
        let bytes = self.bytes_for(log.segments);
        let free = {
            let mut stock = self.stock.borrow_mut();
            let free = stock.retired.iter().position(|file| self.is_free(file));
            match free {
                Some(at) => Some(stock.retired.swap_remove(at)),
                None if self.has_too_many(&stock) => stock.ready.pop_back().map(RetiredFile::from),
                None => None,
            }
        };
        let result = match free {
            Some(free) if free.bytes == bytes && self.has_place() => {
                let header = self.header(free.number, bytes, true, log);
                let spare = recycle(&*self.disk, free.file, &header).await?;
                self.put(spare);
                Ok(())
            }
            Some(free) => self.remove(free).await,
            None => match self.make(log).await {
                Ok(spare) => {
                    self.demand.made();
                    self.put(spare);
                    Ok(())
                }
                Err(error) => {
                    self.stock.borrow_mut().no_space |= error.is_full();
                    Err(error)
                }
            },
        };
        self.changed.notify();
        result
    }

    fn has_place(&self) -> bool {
        self.stock.borrow().ready.len() < self.demand.kept()
    }

    fn has_too_many(&self, stock: &Stock<D::File>) -> bool {
        stock.ready.len() > self.demand.kept() && !self.is_pinned()
    }

    fn put(&self, spare: SpareFile<D::File>) {
        let mut stock = self.stock.borrow_mut();
        stock.ready.push_back(spare);
        if stock.ready.len() >= READY_FILES {
            stock.no_space = false;
        }
    }

    async fn remove(&self, retired: RetiredFile<D::File>) -> Result<(), StorageError> {
        self.demand.removed();
        let file_name = segment::name(self.identity.log, retired.number);
        let file = Rc::into_inner(retired.file).expect("nobody reads it any more");
        file.close()
            .await
            .map_err(|source| StorageError::io("closing", &file_name, source))?;
        segment::remove(&*self.disk, &file_name).await
    }

    /// Whether there was no room for the next segment: sets have what is left of the active one.
    pub(super) fn is_out_of_space(&self) -> bool {
        let stock = self.stock.borrow();
        stock.no_space && stock.ready.len() < READY_FILES
    }

    /// Whether what makes room can have another segment.
    pub(super) fn has_reserve(&self) -> bool {
        !self.stock.borrow().ready.is_empty()
    }

    /// Keeps every file as it is until [`Self::unpin`]: none is used again or removed. May be called several times.
    pub(super) fn pin(&self) {
        self.pins.set(self.pins.get() + 1);
    }

    /// Takes one [`Self::pin`] back.
    pub(super) fn unpin(&self) {
        let pins = self.pins.get().checked_sub(1);
        self.pins.set(pins.expect("a pin is taken back once"));
        self.changed.notify();
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pins.get() > 0
    }

    fn is_free(&self, retired: &RetiredFile<D::File>) -> bool {
        let is_read = Rc::strong_count(&retired.file) > 1 && !planted(Plant::ReuseReadFile);
        !self.is_pinned() && !is_read
    }

    /// Bytes of all files that are not in use.
    pub(super) fn bytes(&self) -> u64 {
        let stock = self.stock.borrow();
        let ready: u64 = stock.ready.iter().map(|spare| spare.bytes).sum();
        ready + stock.retired.iter().map(|file| file.bytes).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_kept_more_when_one_that_was_removed_is_soon_missed() {
        let demand = Demand::default();
        let rotate = |times: u64| (0..times).for_each(|_| demand.rotated(100));
        rotate(1);
        demand.made();
        assert_eq!(demand.kept(), 3, "nothing was removed");
        demand.removed();
        rotate(MISSED_ROTATIONS + 1);
        demand.made();
        assert_eq!(demand.kept(), 3, "it was not missed for long");
        demand.removed();
        rotate(MISSED_ROTATIONS);
        demand.made();
        assert_eq!(demand.kept(), 4);
        (0..10).for_each(|_| demand.made());
        assert_eq!(demand.kept(), *KEPT_FILES.end());
        demand.segments.set(5);
        assert_eq!(demand.kept(), 5, "as many as the log has");
        demand.segments.set(0);
        assert_eq!(demand.kept(), *KEPT_FILES.start());
        rotate(UNMISSED_ROTATIONS + 1);
        assert_eq!(demand.kept(), *KEPT_FILES.end() - 1);
        rotate(10 * UNMISSED_ROTATIONS);
        assert_eq!(demand.kept(), *KEPT_FILES.start());
    }
}

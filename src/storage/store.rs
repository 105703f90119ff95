//! One shard's durable map: the order in which log, index and cache are touched.
//!
//! A write goes: `submit` (judged against the newest pending version, gets its version, joins a frame) -> `commit` (the
//! frame is written, then its records become visible, then its answers leave). A large one may wait in between, and is
//! judged and joins a frame in `let_in`. A read sees the index, which only ever holds durable records.
//!
//! Owns: the parts of a store and the rules between them.
//! Guarantees: nothing is answered or visible before it is durable; after a failed write nothing is answered at all.
//! Does not: spawn tasks or sleep: `shard` drives it (one task loops over `staged`, `let_in` and `commit`, and decides how
//! long large writes rest, one over `prepare`, one over `compact`), and so does the simulation of the tests. Index changes run to completion; no borrow is
//! held across an await.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::rc::Rc;

use crate::limits;
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::footer::FooterEntry;
use crate::storage::foreign::Foreign;
use crate::storage::format::{FRAME_HEADER_BYTES, RecordKind, record_bytes, retired_segment};
use crate::storage::index::{Change as IndexChange, Index, LOOKED_AHEAD};
use crate::storage::indexing::write_footer;
use crate::storage::lane::Lane;
use crate::storage::mutation::{Change, Completion, Mutation, SubmitError, Submitted};
use crate::storage::opening::OpenedLog;
use crate::storage::options::StoreOptions;
use crate::storage::pending::{Frame, Pending};
use crate::storage::plant::{Plant, planted};
use crate::storage::scrub::Scrubbed;
use crate::storage::segment::{self, Location, SegmentId, SegmentKey, write_whole};
use crate::storage::segments::Segments;
use crate::storage::signal::Signal;
use crate::storage::spares::{LogSize, RetiredFile, Spares};
use crate::storage::table::TableEntry;
use crate::storage::writer::{Committed, Log, LogEnd, LogIdentity, Unindexed};

/// When there is no room for another segment, sets leave this share of the active one to deletes.
const DELETE_RESERVE_DIVISOR: u64 = 16;

fn log_size(segments: usize, end: &LogEnd) -> LogSize {
    LogSize {
        segments,
        active: end.segment,
        active_file: end.file,
    }
}

pub(super) type Buffer<D> = <<D as Disk>::File as DiskFile>::Buffer;

/// One shard's durable map.
pub struct Store<D: Disk, W> {
    pub(super) disk: Rc<D>,
    options: StoreOptions,
    pub(super) index: RefCell<Index>,
    pub(super) segments: RefCell<Segments<D::File>>,
    pub(super) foreign: RefCell<Foreign>,
    /// The segment that was active before this start, and where its file will end, until it is trimmed.
    untrimmed: Cell<Option<(SegmentId, u64)>>,
    /// Sealed segments whose footer is to be written.
    unindexed: RefCell<VecDeque<Unindexed<D::File>>>,
    pub(super) pending: RefCell<Pending<Buffer<D>, W>>,
    pub(super) lane: RefCell<Lane<Buffer<D>, W>>,
    pub(super) log: Log<D>,
    pub(super) spares: Spares<D>,
    pub(super) work: Signal,
    /// A frame became durable or was given up, or nothing will any more.
    pub(super) settled: Signal,
    pub(super) poisoned: Cell<bool>,
    pub(super) commits: Cell<(u64, u64, u64)>,
    pub(super) warmed_bytes: Cell<u64>,
    pub(super) warm_total_bytes: Cell<u64>,
    pub(super) upkeep: Upkeep,
    pub(super) scrubbed: Scrubbed,
}

/// What compaction has done.
#[derive(Default)]
pub(super) struct Upkeep {
    pub(super) moved_records: Cell<u64>,
    pub(super) moved_bytes: Cell<u64>,
    pub(super) retired_segments: Cell<u64>,
    /// Room that the copies of the segment which is being compacted will take.
    pub(super) need: Cell<u64>,
    /// The frame of the last record that retires a segment of another log.
    pub(super) foreign_retirement: Cell<Option<u64>>,
}

impl<D: Disk, W> Store<D, W> {
    /// Opens a store on a log that was read, and begins a fresh segment behind it. What was there before stays as it is:
    /// another shard may fail to open, and take the name of the fresh segment with it.
    pub(super) async fn begin(
        disk: Rc<D>,
        options: StoreOptions,
        identity: LogIdentity,
        opened: OpenedLog<D::File>,
    ) -> Result<Store<D, W>, StorageError> {
        let OpenedLog {
            index,
            segments,
            foreign,
            unindexed,
            end,
            spares,
            next_file,
        } = opened;
        let spares = Spares::new(Rc::clone(&disk), identity, spares.into(), next_file);
        let before: Vec<_> = segments.entries().chain(foreign.entries()).collect();
        let spare = match spares.take_ready(before.len()) {
            Some(spare) => spare,
            None => spares.make(log_size(before.len(), &end)).await?,
        };
        let footer_end = || {
            let sealed = unindexed
                .iter()
                .find(|sealed| sealed.segment == end.segment);
            sealed.and_then(Unindexed::footer_end)
        };
        let untrimmed =
            (end.segment.0 > 0).then(|| (end.segment, footer_end().unwrap_or(end.offset)));
        let (log, (active, segment)) =
            Log::start(Rc::clone(&disk), identity, end, spare, &before).await?;
        let store = Store {
            disk,
            options,
            index: RefCell::new(index),
            segments: RefCell::new(segments),
            foreign: RefCell::new(foreign),
            untrimmed: Cell::new(untrimmed),
            unindexed: RefCell::new(unindexed.into()),
            pending: RefCell::new(Pending::new(end.last_version, log.frame_bytes_max())),
            lane: RefCell::new(Lane::new()),
            log,
            spares,
            work: Signal::default(),
            settled: Signal::default(),
            poisoned: Cell::new(false),
            commits: Cell::new((0, 0, 0)),
            warmed_bytes: Cell::new(0),
            warm_total_bytes: Cell::new(0),
            upkeep: Upkeep::default(),
            scrubbed: Scrubbed::default(),
        };
        store.segments.borrow_mut().add(active, segment);
        Ok(store)
    }

    /// Number of the shard.
    pub(super) fn shard(&self) -> u16 {
        self.options.shard
    }

    /// Size of new segments, in bytes.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.options.segment_bytes.into()
    }

    /// Dead bytes that compaction leaves alone.
    pub(super) fn dead_bytes_min(&self) -> u64 {
        self.options.dead_bytes_min
    }

    /// Accepts, answers or rejects a mutation, at once. What is accepted belongs to the store: it will be written
    /// whatever becomes of the caller. Mutations of one key take effect in the order of their submission; a large one may
    /// be passed by those of others.
    pub fn submit(&self, mutation: &Mutation<'_>, waiter: W) -> Submitted<W> {
        let Mutation { key, change, .. } = *mutation;
        assert!(
            (1..=limits::KEY_LEN_MAX).contains(&key.len()),
            "the service checks the length of a key"
        );
        if self.poisoned.get() {
            return Submitted::Rejected(SubmitError::Poisoned, waiter);
        }
        if let Change::Set(value) = change {
            assert!(
                value.len() <= self.options.value_len_max,
                "the service checks the length of a value"
            );
        }
        let hash = self.index.borrow().hash(key);
        if self.has_to_wait(hash, mutation) {
            return self.park(hash, mutation, waiter);
        }
        let (kind, value) = change.parts();
        let (waiter, existed) = match self.judge(hash, mutation, waiter, self.waiting_bytes()) {
            ControlFlow::Continue(to_write) => to_write,
            ControlFlow::Break(submitted) => return submitted,
        };
        let mut pending = self.pending.borrow_mut();
        pending.push(&*self.disk, hash, (kind, key, value), waiter, existed);
        drop(pending);
        self.work.notify();
        Submitted::Pending
    }

    /// Bytes of records that are accepted and not durable yet.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.pending.borrow().bytes() + self.lane.borrow().bytes()
    }

    /// Goes on with the waiter, and with whether the key is present, when the mutation is to be written; otherwise says
    /// what has become of it. `waiting`: bytes that count against the limit; none for what was counted already.
    pub(super) fn judge(
        &self,
        hash: u64,
        mutation: &Mutation<'_>,
        waiter: W,
        waiting: usize,
    ) -> ControlFlow<Submitted<W>, (W, bool)> {
        let Mutation { key, change, .. } = *mutation;
        let mut pending = self.pending.borrow_mut();
        let newest = pending.newest(hash, key);
        let current = match newest {
            Some(newest) => newest.version,
            None => self.index.borrow().version(hash, key),
        };
        if let Some(outcome) = mutation.without_writing(current) {
            return ControlFlow::Break(match newest {
                // What the answer rests on is not durable yet.
                Some(newest) if !planted(Plant::RefuseEarly) => {
                    pending.wait_for(newest, waiter, outcome);
                    Submitted::Pending
                }
                _ => Submitted::Answered(outcome, waiter),
            });
        }
        let (kind, value) = change.parts();
        let bytes = record_bytes(key.len(), value.len());
        match self.admit(&pending, (waiting, 0), kind, bytes) {
            Ok(()) => ControlFlow::Continue((waiter, current.is_some())),
            Err(error) => ControlFlow::Break(Submitted::Rejected(error, waiter)),
        }
    }

    /// Whether a record may be accepted beside `waiting` bytes of others, and written behind what is pending and `ahead`
    /// bytes of others.
    pub(super) fn admit(
        &self,
        pending: &Pending<Buffer<D>, W>,
        (waiting, ahead): (usize, usize),
        kind: RecordKind,
        bytes: usize,
    ) -> Result<(), SubmitError> {
        let limit = self.options.pending_bytes_max;
        if waiting > 0 && waiting + bytes > limit {
            return Err(SubmitError::Overloaded {
                pending: waiting,
                limit,
            });
        }
        if self.spares.is_out_of_space() {
            let reserve = match kind {
                RecordKind::Set => self.segment_bytes() / DELETE_RESERVE_DIVISOR,
                _ if self.spares.has_reserve() => 0,
                // The reserve is in use: what its copies need is theirs.
                _ => self.upkeep.need.get(),
            };
            let frame = (FRAME_HEADER_BYTES + bytes).next_multiple_of(super::disk::BLOCK) as u64;
            let staged = pending.staged_frame_bytes() + ahead as u64;
            if staged + frame + reserve > self.log.room() {
                return Err(SubmitError::OutOfSpace);
            }
        }
        Ok(())
    }

    /// Returns when there is something to commit.
    pub async fn staged(&self) {
        self.work.until(|| self.is_staged()).await;
    }

    /// Whether there is something to let in or to commit.
    pub fn is_staged(&self) -> bool {
        self.pending.borrow().is_staged() || self.may_let_in()
    }

    /// Writes the oldest frame, makes its records visible and returns its answers. One task calls this; it must not be
    /// dropped while it runs.
    ///
    /// # Errors
    /// Any error is final: nothing is accepted, written or answered any more, and the process has to stop.
    pub async fn commit(&self) -> Result<Vec<Completion<W>>, StorageError> {
        if self.poisoned.get() {
            return Err(StorageError::Poisoned);
        }
        let result = self.commit_oldest().await;
        self.poisoned
            .set(result.is_err() && !planted(Plant::GoOnAfterError));
        self.settled.notify();
        result
    }

    async fn commit_oldest(&self) -> Result<Vec<Completion<W>>, StorageError> {
        let Some((frame_bytes, index_bytes)) = self.pending.borrow_mut().begin() else {
            return Ok(Vec::new());
        };
        assert!(
            frame_bytes <= self.log.frame_bytes_max(),
            "a frame fits into an empty segment"
        );
        let place = loop {
            let at_any_cost = self.spares.is_out_of_space();
            if let Some(place) = self.log.place(frame_bytes, index_bytes, at_any_cost) {
                break place;
            }
            match self.rotate().await {
                Ok(()) => {}
                Err(StorageError::Full { .. }) => {
                    match self.log.place(frame_bytes, index_bytes, true) {
                        Some(place) => break place,
                        None => return Ok(self.give_up()),
                    }
                }
                Err(error) => return Err(error),
            }
        };
        let (segment, offset) = (place.segment, place.offset);
        let (buffer, last_version) = {
            let mut pending = self.pending.borrow_mut();
            let buffer = pending.seal(&place);
            let last_version = pending.in_flight_last_version();
            (buffer, last_version.unwrap_or(place.last_version))
        };
        let committed = self.log.commit(place, buffer, last_version).await?;
        let mut frame = self.pending.borrow_mut().finish();
        let answers = std::mem::take(&mut frame.answers);
        let records = frame.records.len() as u64;
        let (has_large, has_small) = (frame.is_large(), frame.has_small());
        self.lane.borrow_mut().committed(has_large, has_small);
        self.segments
            .borrow_mut()
            .set_used(segment, offset + frame_bytes as u64);
        self.publish(&committed, segment, offset, frame);
        let (commits, committed_records, bytes) = self.commits.get();
        self.commits.set((
            commits + 1,
            committed_records + records,
            bytes + frame_bytes as u64,
        ));
        let answer = |(waiter, outcome)| Completion {
            waiter,
            result: Ok(committed.durable(outcome)),
        };
        Ok(answers.into_iter().map(answer).collect())
    }

    /// Seals the active segment and goes on in the next one.
    async fn rotate(&self) -> Result<(), StorageError> {
        let with_reserve = self.pending.borrow().oldest_makes_room();
        let spare = self.spares.take(self.table().len(), with_reserve).await?;
        let before = self.table();
        let ((active, segment), sealed) = self.log.rotate(spare, &before).await?;
        self.segments.borrow_mut().add(active, segment);
        if sealed.footer_end().is_some() {
            self.unindexed.borrow_mut().push_back(sealed);
        }
        self.spares.activated(self.segments.borrow().count());
        Ok(())
    }

    /// What a new segment says of those before it.
    pub(super) fn table(&self) -> Vec<TableEntry> {
        let (segments, foreign) = (self.segments.borrow(), self.foreign.borrow());
        let kept = foreign.entries().filter(|_| !planted(Plant::UnlistForeign));
        segments.entries().chain(kept).collect()
    }

    fn publish(
        &self,
        committed: &Committed,
        segment: SegmentId,
        start: u64,
        frame: Frame<Buffer<D>, W>,
    ) {
        let mut index = self.index.borrow_mut();
        let mut segments = self.segments.borrow_mut();
        let is_whole = frame.is_whole();
        for (at, record) in frame.records.iter().enumerate() {
            if at % LOOKED_AHEAD == 0 {
                index.look_ahead(frame.records[at..].iter().map(|record| record.hash));
            }
            let (key, value) = record.parts(frame.bytes());
            if record.kind == RecordKind::Retire {
                if !planted(Plant::RetireEarly) {
                    self.retired(&mut segments, retired_segment(key));
                }
                continue;
            }
            let offset = u32::try_from(start + u64::from(record.offset))
                .expect("a segment is smaller than 4 GiB");
            let location = Location {
                segment,
                offset,
                bytes: record.bytes() as u32,
            };
            let change = committed.durable(IndexChange {
                kind: record.kind,
                version: record.version,
                location,
                value_len: value.len(),
            });
            self.log.index(&FooterEntry {
                kind: record.kind,
                version: record.version,
                offset,
                value_len: record.value_len,
                key,
            });
            let (replaced, lives) = if record.moved {
                let replaced = index.relocate(record.hash, key, change);
                (replaced, replaced.is_some())
            } else {
                let value = (!is_whole).then_some(value);
                (index.publish(record.hash, key, change, value), true)
            };
            if let Some(replaced) = replaced {
                segments.record_dies(replaced.location, replaced.tombstone);
            }
            if lives {
                segments.record_lives(location, record.kind == RecordKind::Delete);
            }
        }
        if is_whole {
            let record = frame.records[0];
            let entry = index.find(record.hash, record.parts(frame.bytes()).0);
            let entry = entry.expect("it was published");
            match frame.into_buffer() {
                Ok(buffer) => index.adopt(entry, buffer, record.value_place()),
                Err(shared) => index.keep(entry, record.parts((*shared).as_ref()).1),
            }
        }
    }

    /// A retirement is durable: the segment is no part of the log any more.
    pub(super) fn retired(&self, segments: &mut Segments<D::File>, key: SegmentKey) {
        if key.log == self.log.id() {
            let id = SegmentId(key.number);
            let segment = segments.remove(id);
            // Its footer is not needed any more. While the disk is full none is written, and the file would not come free.
            self.unindexed
                .borrow_mut()
                .retain(|sealed| sealed.segment != id);
            self.spares.retire(RetiredFile {
                file: segment.file,
                number: segment.file_number,
                bytes: segment.allocated_bytes,
            });
            self.spares.shrunk(segments.count());
        } else {
            let mut foreign = self.foreign.borrow_mut();
            let file = foreign.retired(key);
            let (shard, left) = (self.shard(), foreign.count());
            tracing::info!(
                shard,
                left,
                "a segment of another number of shards is empty"
            );
            self.spares.doom(segment::name(key.log, file));
        }
        let retired = &self.upkeep.retired_segments;
        retired.set(retired.get() + 1);
    }

    /// There is no room for what is pending: nothing of it was written, and everybody who waits is told so.
    fn give_up(&self) -> Vec<Completion<W>> {
        let waiters = self.pending.borrow_mut().fail_all();
        waiters
            .into_iter()
            .map(|waiter| Completion {
                waiter,
                result: Err(SubmitError::OutOfSpace),
            })
            .collect()
    }

    /// Gives back the room behind the end of the segment that was active before this start, and behind its footer to come:
    /// its successor's durable header says where it ends, so nobody will look there again. To be called once, when all
    /// shards are open and before this one compacts.
    ///
    /// # Errors
    /// `Io`, which is final.
    pub async fn trim(&self) -> Result<(), StorageError> {
        let Some((id, end)) = self.untrimmed.take() else {
            return Ok(());
        };
        let (file, file_name) = {
            let segments = self.segments.borrow();
            let segment = segments.get(id).expect("nothing is retired yet");
            (Rc::clone(&segment.file), segment.file_name())
        };
        file.truncate(end)
            .await
            .map_err(|source| StorageError::io("trimming", &file_name, source))?;
        file.sync()
            .await
            .map_err(|source| StorageError::io("syncing", &file_name, source))?;
        self.segments.borrow_mut().set_allocated(id, end);
        Ok(())
    }

    /// Waits until something is to be done for the files, and does it: one for a segment to come zeroed, synced, its name
    /// durable; one of a retired segment made ready again, or removed; a sealed one given its footer. To be called when all
    /// shards are open.
    ///
    /// # Errors
    /// `Full` when there is no room: sets are rejected until a later call succeeds. Others are final.
    pub async fn prepare(&self) -> Result<(), StorageError> {
        let unindexed = || !self.unindexed.borrow().is_empty();
        self.spares.until_wanted(unindexed).await;
        // First what others may wait for.
        self.spares
            .prepare(|| log_size(self.table().len(), &self.log.end()))
            .await?;
        let sealed = self.unindexed.borrow_mut().pop_front();
        if let Some(sealed) = sealed {
            self.write_footer(&sealed).await?;
        }
        Ok(())
    }

    /// Writes the footer of a sealed segment, unless it is retired already.
    async fn write_footer(&self, sealed: &Unindexed<D::File>) -> Result<(), StorageError> {
        let id = sealed.segment;
        if self.segments.borrow().get(id).is_none() {
            return Ok(());
        }
        let footer_bytes = write_footer(&*self.disk, sealed).await?;
        self.segments.borrow_mut().set_footer(id, footer_bytes);
        Ok(())
    }

    /// Lets in and commits what waits, then writes a closing frame. It proves to the next start that the frame before it
    /// was acknowledged, so that damage there cannot pass for a torn tail.
    ///
    /// # Errors
    /// As [`Store::commit`]; the answers of what was pending are in the result, and those of [`Store::let_in`].
    pub async fn close(&self) -> Result<(Vec<Completion<W>>, Vec<Submitted<W>>), StorageError> {
        let (mut completions, mut answers) = (Vec::new(), Vec::new());
        self.lane.borrow_mut().end_rest();
        while !self.poisoned.get() && (self.is_staged() || !self.lane.borrow().is_empty()) {
            // What is left in the lane may have to wait for a copy.
            self.staged().await;
            answers.extend(self.let_in());
            completions.extend(self.commit().await?);
        }
        if self.poisoned.get() {
            return Err(StorageError::Poisoned);
        }
        if planted(Plant::SkipClosingFrame) {
            return Ok((completions, answers));
        }
        let place = self.log.closing_place();
        let mut buffer = self.disk.buffer(super::disk::BLOCK);
        buffer.as_mut().fill(0);
        place.closing_frame().encode(buffer.as_mut());
        self.poisoned.set(true);
        self.settled.notify();
        write_whole(
            &*place.file,
            &segment::name(self.log.id(), place.file_number),
            place.offset,
            Rc::new(buffer),
        )
        .await?;
        Ok((completions, answers))
    }
}

//! One shard's durable map: the order in which log, index and cache are touched.
//!
//! A write goes: `submit` (judged against the newest pending version, gets its version, joins a frame) -> `commit` (the
//! frame is written, then its records become visible, then its answers leave). A read sees the index, which only
//! ever holds durable records.
//!
//! Owns: the parts of a store and the rules between them.
//! Guarantees: nothing is answered or visible before it is durable; after a failed write nothing is answered at all.
//! Does not: spawn tasks or sleep: `shard` drives it (one task loops over `staged` and `commit`, one over `prepare`),
//! and so does the simulation of the tests. Index changes run to completion; no borrow is held across an await.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::limits;
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{
    FRAME_CLOSING, FRAME_HEADER_BYTES, FrameHeader, RecordKind, record_bytes,
};
use crate::storage::index::{Change as IndexChange, Index};
use crate::storage::pending::{Frame, Outcome, Pending};
use crate::storage::reader::{Value, read_value};
use crate::storage::recovery::{Recovered, recover};
use crate::storage::segment::{self, Location, Segment, Segments, write_whole};
use crate::storage::signal::Signal;
use crate::storage::writer::{Committed, Durable, Log, LogIdentity, Rotated};

/// When there is no room for another segment, sets leave this share of the active one to deletes.
const DELETE_RESERVE_DIVISOR: u64 = 16;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Identity of the store, from the manifest.
    pub store_uuid: [u8; 16],
    /// The shard, from 0.
    pub shard: u16,
    /// Number of this start, from the manifest.
    pub run: u64,
    /// Random; the epochs of segments are drawn from it.
    pub salt_seed: u64,
    /// Size of new segments, in bytes: a multiple of 4096, at least `format::segment_bytes_min` of the next field.
    pub segment_bytes: u32,
    /// Longest value that will be written, in bytes.
    pub value_len_max: usize,
    /// Budget of the value cache, in bytes.
    pub cache_bytes: u64,
    /// Bytes of records that may wait for the disk; further ones are rejected.
    pub pending_bytes_max: usize,
    /// The shard has served before: an empty directory is damage, not a new store.
    pub must_exist: bool,
}

/// When a write takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    None,
    /// If the key is absent.
    IfAbsent,
    /// If the key is present.
    IfPresent,
    /// If the key is present with exactly this version.
    IfVersion(u64),
}

/// What a mutation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// Gives the key this value.
    Set(&'a [u8]),
    /// Removes the key.
    Delete,
}

/// One set or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mutation<'a> {
    /// 1 to 65,535 bytes.
    pub key: &'a [u8],
    /// Set or delete.
    pub change: Change<'a>,
    /// Judged against the newest version of the key, durable or not; the answer waits for that version.
    pub condition: Condition,
}

/// Why a write was not accepted. Nothing of it was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The disk is full.
    #[error("the disk is full: nothing was written; free space, reads and deletes go on")]
    OutOfSpace,
    /// Too much waits for the disk already.
    #[error("{pending} bytes wait for the disk, the limit is {limit}: try again later")]
    Overloaded {
        /// Bytes that wait.
        pending: usize,
        /// The limit.
        limit: usize,
    },
    /// An earlier write failed.
    #[error("the log is closed after a failed write")]
    Poisoned,
}

/// What became of a submitted mutation. `W` is what the caller waits with.
#[derive(Debug)]
pub enum Submitted<W> {
    /// Accepted; a [`Completion`] with the waiter will come from `commit`.
    Pending,
    /// Answered from what is durable already: nothing had to be written.
    Answered(Outcome, W),
    /// Not accepted.
    Rejected(SubmitError, W),
}

/// The end of an accepted mutation.
#[derive(Debug)]
pub struct Completion<W> {
    /// What the caller gave to `submit`.
    pub waiter: W,
    /// The outcome, durable; or why nothing of it was written.
    pub result: Result<Durable<Outcome>, SubmitError>,
}

/// A value and its version.
pub struct Found {
    /// The value.
    pub value: Value,
    /// Its version.
    pub version: u64,
}

/// What a store knows of a key without asking the disk.
pub enum Lookup {
    /// The key is absent.
    Absent,
    /// The value is in memory.
    Cached(Found),
    /// The value is on disk: pass this to [`Store::read`].
    OnDisk(DiskRef),
}

/// Where the value of a key is on disk.
pub struct DiskRef {
    pub(super) key: Box<[u8]>,
    pub(super) version: u64,
    pub(super) location: Location,
}

impl DiskRef {
    /// Length of the value, in bytes.
    pub fn value_len(&self) -> usize {
        self.location.bytes as usize - record_bytes(self.key.len(), 0)
    }
}

/// Counters and sizes of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreStat {
    /// Present keys.
    pub keys: u64,
    /// Bytes of present keys and values.
    pub logical_bytes: u64,
    /// Bytes of records that are the newest of a present key.
    pub disk_live_bytes: u64,
    /// The rest of what the log holds.
    pub disk_dead_bytes: u64,
    /// Size of all segment files of the log and the spare.
    pub disk_allocated_bytes: u64,
    /// Segments of the log.
    pub segments: u32,
    /// Writes accepted and not yet durable.
    pub queue_depth: u64,
    /// Their bytes.
    pub queue_bytes: u64,
    /// Frames written.
    pub commits: u64,
    /// Records in them.
    pub commit_records: u64,
    /// Their bytes on disk.
    pub commit_bytes: u64,
    /// The last durable version.
    pub last_version: u64,
    /// Memory of the value cache.
    pub cache_bytes: u64,
    /// What it may be.
    pub cache_budget_bytes: u64,
    /// Lookups of present keys that found the value in memory.
    pub cache_hits: u64,
    /// Lookups of present keys that had to read.
    pub cache_misses: u64,
    /// Memory of the hash and ordered indexes, keys included.
    pub index_bytes: u64,
    /// Values brought back into memory after the start.
    pub warmed_bytes: u64,
    /// No room for another segment.
    pub out_of_space: bool,
}

type Buffer<D> = <<D as Disk>::File as DiskFile>::Buffer;

/// One shard's durable map.
pub struct Store<D: Disk, W> {
    pub(super) disk: Rc<D>,
    options: StoreOptions,
    pub(super) index: RefCell<Index>,
    pub(super) segments: RefCell<Segments<D::File>>,
    pending: RefCell<Pending<Buffer<D>, W>>,
    log: Log<D>,
    work: Signal,
    poisoned: Cell<bool>,
    commits: Cell<(u64, u64, u64)>,
    pub(super) warmed_bytes: Cell<u64>,
}

impl<D: Disk, W> Store<D, W> {
    /// Recovers the log of a shard and starts a fresh segment behind it.
    ///
    /// # Errors
    /// `Corrupt` and `Incompatible` as recovery finds them, `Full` when there is no room for the segment, `Io`.
    pub async fn open(
        disk: D,
        options: StoreOptions,
    ) -> Result<(Store<D, W>, Recovered), StorageError> {
        let segment_bytes = u64::from(options.segment_bytes);
        assert!(
            segment_bytes >= super::format::segment_bytes_min(options.value_len_max),
            "the configuration checks that a segment holds the largest record"
        );
        let disk = Rc::new(disk);
        let identity = LogIdentity {
            store_uuid: options.store_uuid,
            shard: options.shard,
            run: options.run,
            salt_seed: options.salt_seed,
            segment_bytes: options.segment_bytes,
        };
        let mut index = Index::new(options.cache_bytes);
        let old = recover(&*disk, &identity, options.must_exist, &mut index).await?;
        let (log, fresh) = Log::start(Rc::clone(&disk), identity, old.end, old.spare).await?;
        let store = Store {
            disk,
            options,
            index: RefCell::new(index),
            segments: RefCell::new(old.segments),
            pending: RefCell::new(Pending::new(old.end.last_version, log.frame_bytes_max())),
            log,
            work: Signal::default(),
            poisoned: Cell::new(false),
            commits: Cell::new((0, 0, 0)),
            warmed_bytes: Cell::new(0),
        };
        store.add_segment(fresh);
        if old.end.segment.0 > 0 {
            store.trim(old.end.segment, old.end.offset).await?;
        }
        Ok((store, old.recovered))
    }

    fn add_segment(&self, rotated: Rotated<D::File>) {
        let segment = Segment {
            file: rotated.file,
            allocated_bytes: rotated.allocated_bytes,
            used_bytes: self.log.end().offset,
            live_bytes: 0,
        };
        self.segments.borrow_mut().add(rotated.segment, segment);
    }

    /// Gives back the room behind the end of the segment that was active before this start. Its successor's durable
    /// header says where it ends, so nobody will look there again.
    async fn trim(&self, id: segment::SegmentId, end: u64) -> Result<(), StorageError> {
        let file = self.segments.borrow().file(id);
        let file_name = self.file_name(id);
        file.truncate(end)
            .await
            .map_err(|source| StorageError::io("trimming", &file_name, source))?;
        file.sync()
            .await
            .map_err(|source| StorageError::io("syncing", &file_name, source))?;
        self.segments.borrow_mut().set_allocated(id, end);
        Ok(())
    }

    pub(super) fn file_name(&self, id: segment::SegmentId) -> String {
        segment::name(self.options.shard, id.0)
    }

    /// The newest durable value of a key, as far as memory knows.
    pub fn get(&self, key: &[u8]) -> Lookup {
        let mut index = self.index.borrow_mut();
        let hash = index.hash(key);
        match index.get(hash, key) {
            None => Lookup::Absent,
            Some((version, _, Some(value))) => Lookup::Cached(Found {
                value: Value::Cached(value),
                version,
            }),
            Some((version, location, None)) => Lookup::OnDisk(DiskRef {
                key: key.into(),
                version,
                location,
            }),
        }
    }

    /// Reads a value that [`Store::get`] found on disk, verifies it and keeps it in the cache.
    ///
    /// # Errors
    /// `Corrupt` when what the disk returns does not verify, `Io` when it returns nothing.
    pub async fn read(&self, on_disk: DiskRef) -> Result<Found, StorageError> {
        let DiskRef {
            key,
            version,
            location,
        } = on_disk;
        let file = self.segments.borrow().file(location.segment);
        let value = read_value(
            &*file,
            &self.file_name(location.segment),
            location,
            &key,
            version,
        )
        .await?;
        self.index.borrow_mut().cache_value(&key, version, &value);
        Ok(Found { value, version })
    }

    /// Accepts, answers or rejects a mutation, at once. What is accepted belongs to the store: it will be written
    /// whatever becomes of the caller.
    pub fn submit(&self, mutation: &Mutation<'_>, waiter: W) -> Submitted<W> {
        let Mutation {
            key,
            change,
            condition,
        } = *mutation;
        assert!(
            (1..=limits::KEY_LEN_MAX).contains(&key.len()),
            "the service checks the length of a key"
        );
        if self.poisoned.get() {
            return Submitted::Rejected(SubmitError::Poisoned, waiter);
        }
        let mut pending = self.pending.borrow_mut();
        let index = self.index.borrow();
        let hash = index.hash(key);
        let newest = pending.newest(hash, key);
        let current = match newest {
            Some(newest) => newest.version,
            None => index.version(hash, key),
        };
        let unwritten = match (condition, change, current) {
            (Condition::IfAbsent, _, Some(_)) | (Condition::IfPresent, _, None) => {
                Some(Outcome::Refused { current })
            }
            (Condition::IfVersion(version), _, _) if current != Some(version) => {
                Some(Outcome::Refused { current })
            }
            (_, Change::Delete, None) => Some(Outcome::Written {
                version: 0,
                existed: false,
            }),
            _ => None,
        };
        if let Some(outcome) = unwritten {
            return match newest {
                // What the answer rests on is not durable yet.
                Some(newest) => {
                    pending.wait_for(newest, waiter, outcome);
                    Submitted::Pending
                }
                None => Submitted::Answered(outcome, waiter),
            };
        }
        let (kind, value) = match change {
            Change::Set(value) => (RecordKind::Set, value),
            Change::Delete => (RecordKind::Delete, &[][..]),
        };
        assert!(
            value.len() <= self.options.value_len_max,
            "the service checks the length of a value"
        );
        if let Err(error) = self.admit(&pending, kind, record_bytes(key.len(), value.len())) {
            return Submitted::Rejected(error, waiter);
        }
        let existed = current.is_some();
        pending.push(&*self.disk, hash, (kind, key, value), waiter, |version| {
            Outcome::Written { version, existed }
        });
        drop((pending, index));
        self.work.notify();
        Submitted::Pending
    }

    fn admit(
        &self,
        pending: &Pending<Buffer<D>, W>,
        kind: RecordKind,
        bytes: usize,
    ) -> Result<(), SubmitError> {
        let (waiting, limit) = (pending.bytes(), self.options.pending_bytes_max);
        if waiting > 0 && waiting + bytes > limit {
            return Err(SubmitError::Overloaded {
                pending: waiting,
                limit,
            });
        }
        if self.log.is_out_of_space() {
            let reserve = match kind {
                RecordKind::Set => u64::from(self.options.segment_bytes) / DELETE_RESERVE_DIVISOR,
                RecordKind::Delete => 0,
            };
            let frame = (FRAME_HEADER_BYTES + bytes).next_multiple_of(super::disk::BLOCK) as u64;
            if pending.staged_frame_bytes() + frame + reserve > self.log.room() {
                return Err(SubmitError::OutOfSpace);
            }
        }
        Ok(())
    }

    /// Returns when there is something to commit.
    pub async fn staged(&self) {
        self.work.until(|| self.pending.borrow().is_staged()).await;
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
        self.poisoned.set(result.is_err());
        result
    }

    async fn commit_oldest(&self) -> Result<Vec<Completion<W>>, StorageError> {
        let Some(frame_bytes) = self.pending.borrow_mut().begin() else {
            return Ok(Vec::new());
        };
        assert!(
            frame_bytes <= self.log.frame_bytes_max(),
            "a frame fits into an empty segment"
        );
        let place = loop {
            if let Some(place) = self.log.place(frame_bytes) {
                break place;
            }
            match self.log.rotate().await {
                Ok(rotated) => self.add_segment(rotated),
                Err(StorageError::Full { .. }) => return Ok(self.give_up()),
                Err(error) => return Err(error),
            }
        };
        let (segment, offset) = (place.segment, place.offset);
        let (buffer, last_version) = {
            let mut pending = self.pending.borrow_mut();
            let buffer = pending.seal(&place);
            (buffer, pending.in_flight_last_version())
        };
        let committed = self.log.commit(place, buffer, last_version).await?;
        let frame = self.pending.borrow_mut().finish();
        self.segments
            .borrow_mut()
            .set_used(segment, offset + frame_bytes as u64);
        self.publish(&committed, segment, offset, &frame);
        let (commits, records, bytes) = self.commits.get();
        self.commits.set((
            commits + 1,
            records + frame.records.len() as u64,
            bytes + frame_bytes as u64,
        ));
        let answer = |(waiter, outcome)| Completion {
            waiter,
            result: Ok(committed.durable(outcome)),
        };
        Ok(frame.answers.into_iter().map(answer).collect())
    }

    fn publish(
        &self,
        committed: &Committed,
        segment: segment::SegmentId,
        start: u64,
        frame: &Frame<Buffer<D>, W>,
    ) {
        let mut index = self.index.borrow_mut();
        let mut segments = self.segments.borrow_mut();
        for record in &frame.records {
            let (key, value) = record.parts(frame.bytes());
            let offset = u32::try_from(start + u64::from(record.offset))
                .expect("a segment is smaller than 4 GiB");
            let location = Location {
                segment,
                offset,
                bytes: record.bytes() as u32,
            };
            let change = IndexChange {
                kind: record.kind,
                version: record.version,
                location,
                value_len: value.len(),
            };
            if let Some(replaced) =
                index.publish(record.hash, key, committed.durable(change), value)
            {
                segments.record_dies(replaced);
            }
            if record.kind == RecordKind::Set {
                segments.record_lives(location);
            }
        }
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

    /// Waits until a spare segment is wanted and makes it: zeroed, synced, its name durable.
    ///
    /// # Errors
    /// `Full` when there is no room: sets are rejected until a later call succeeds. Others are final.
    pub async fn prepare(&self) -> Result<(), StorageError> {
        self.log.prepare().await
    }

    /// Commits what is pending, then writes a closing frame. It proves to the next start that the frame before it was
    /// acknowledged, so that damage there cannot pass for a torn tail.
    ///
    /// # Errors
    /// As [`Store::commit`]; the answers of what was pending are in the result.
    pub async fn close(&self) -> Result<Vec<Completion<W>>, StorageError> {
        let mut completions = Vec::new();
        while self.pending.borrow().is_staged() {
            completions.extend(self.commit().await?);
        }
        if self.poisoned.get() {
            return Err(StorageError::Poisoned);
        }
        let place = self.log.closing_place();
        let mut buffer = self.disk.buffer(super::disk::BLOCK);
        buffer.as_mut().fill(0);
        let header = FrameHeader {
            epoch: place.epoch,
            block: place.block(),
            records: 0,
            first_version: place.last_version + 1,
            previous_last_version: place.last_version,
            payload_bytes: 0,
            flags: FRAME_CLOSING,
        };
        header.encode(buffer.as_mut());
        self.poisoned.set(true);
        write_whole(
            &*place.file,
            &self.file_name(place.segment),
            place.offset,
            Rc::new(buffer),
        )
        .await?;
        Ok(completions)
    }

    /// Counters and sizes.
    pub fn stat(&self) -> StoreStat {
        let index = self.index.borrow();
        let pending = self.pending.borrow();
        let segments = self.segments.borrow();
        let (live, used, allocated) = segments.totals();
        let (cache_bytes, cache_budget_bytes, cache_hits, cache_misses) = index.cache_stat();
        let (commits, commit_records, commit_bytes) = self.commits.get();
        StoreStat {
            keys: index.keys(),
            logical_bytes: index.logical_bytes(),
            disk_live_bytes: live,
            disk_dead_bytes: used - live,
            disk_allocated_bytes: allocated + self.log.spare_bytes(),
            segments: segments.count() as u32,
            queue_depth: pending.records() as u64,
            queue_bytes: pending.bytes() as u64,
            commits,
            commit_records,
            commit_bytes,
            last_version: self.log.end().last_version,
            cache_bytes,
            cache_budget_bytes,
            cache_hits,
            cache_misses,
            index_bytes: index.index_bytes(),
            warmed_bytes: self.warmed_bytes.get(),
            out_of_space: self.log.is_out_of_space(),
        }
    }
}

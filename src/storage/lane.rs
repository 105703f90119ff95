//! Large writes that wait for their turn, in front of [`Pending`](super::pending).
//!
//! The device takes milliseconds for a large record, so only one at a time is in a frame; the others wait here, and what
//! is small passes them. A write that waits is accepted, but it is not judged and has no version yet: it takes effect when
//! it is let in, as if it had arrived then. Nobody can tell, for it is not answered before.
//!
//! Small writes have the log to themselves for some time after each large record: the lane tells when such a rest is due,
//! and stays closed until whoever drives the store ends it.
//!
//! Owns: the writes that wait, the memory of their values; whose turn it is, a large write's or a large copy's.
//! Guarantees: writes of one key keep their order, for what comes after one that waits, waits behind it. A small write
//! waits for one large record at most, unless for its own key. Neither kind starves: frames are written in their order,
//! and the next large write joins the end of them when the one before it is durable, or the large copy that compaction
//! had to make in between.
//! Does not: bound itself (`Store::admit` counts it as pending), give out versions (`pending` does), keep time (`shard`
//! measures how long a rest is).

use std::collections::VecDeque;
use std::ops::ControlFlow;

use hashbrown::HashTable;

use crate::storage::body;
use crate::storage::disk::{BLOCK, Disk, DiskBuffer};
use crate::storage::format::{FRAME_HEADER_BYTES, RECORD_HEADER_BYTES, RecordKind, record_bytes};
use crate::storage::mutation::{Change, Condition, Mutation, Submitted};
use crate::storage::plant::{Plant, planted};
use crate::storage::store::{Buffer, Store};

/// A small write is remembered for so many frames with a large record: some milliseconds.
const SMALL_REMEMBERED: u32 = 4;

/// What is known of a write that waits, beside key and value.
#[derive(Clone, Copy)]
pub(super) struct Parked {
    pub(super) hash: u64,
    pub(super) kind: RecordKind,
    pub(super) key_len: usize,
    /// Of the record.
    pub(super) bytes: usize,
    condition: Condition,
}

/// Where key and value are.
enum Body<B> {
    /// A large write is in a frame already, at its place, so that it is copied once; and its checksum is there, so that
    /// nothing has to be computed between two frames.
    Frame(B, body::Body),
    /// A small one, which waits for its key, will join a frame with others.
    Parts(Box<[u8]>),
}

impl<B: DiskBuffer> Body<B> {
    /// Key and value of a record of this many bytes, one behind the other.
    fn parts(&self, record_bytes: usize) -> &[u8] {
        match self {
            Body::Frame(buffer, _) => {
                &buffer.as_ref()[FRAME_HEADER_BYTES..][..record_bytes][RECORD_HEADER_BYTES..]
            }
            Body::Parts(parts) => parts,
        }
    }
}

/// The writes that wait, oldest first. `W` is what the caller waits with.
pub(super) struct Lane<B, W> {
    waiting: VecDeque<(Parked, Body<B>, W)>,
    /// How many writes of the keys with a hash wait: keys that share one wait for each other, which is rare and harmless.
    hashes: HashTable<(u64, usize)>,
    bytes: usize,
    /// A large copy of compaction is next: else it would wait for as long as there are large writes.
    copy_waits: bool,
    /// No large write joins a frame: see [`Store::rest_large`].
    rests: bool,
    /// Frames with a large record for which small writes are still remembered.
    small: u32,
    /// The last frame has a large record, and there are small writes.
    is_rest_due: bool,
}

impl<B, W> Lane<B, W> {
    pub(super) fn new() -> Self {
        Lane {
            waiting: VecDeque::new(),
            hashes: HashTable::new(),
            bytes: 0,
            copy_waits: false,
            rests: false,
            small: 0,
            is_rest_due: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Writes that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of their records.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A frame became durable: whether it has a large record, and whether it has small writes.
    pub(super) fn committed(&mut self, has_large: bool, has_small: bool) {
        if has_small {
            self.small = SMALL_REMEMBERED;
        }
        self.is_rest_due = has_large && self.small > 0;
        self.small = self.small.saturating_sub(has_large.into());
    }

    /// Large writes wait no longer than they have to.
    pub(super) fn end_rest(&mut self) {
        self.rests = false;
    }

    /// Whether a write of a key with this hash waits.
    fn holds(&self, hash: u64) -> bool {
        self.hashes.find(hash, |entry| entry.0 == hash).is_some()
    }

    fn push(&mut self, parked: Parked, body: Body<B>, waiter: W) {
        let hash = parked.hash;
        self.hashes
            .entry(hash, |entry| entry.0 == hash, |entry| entry.0)
            .or_insert((hash, 0))
            .get_mut()
            .1 += 1;
        self.bytes += parked.bytes;
        self.waiting.push_back((parked, body, waiter));
    }

    fn pop(&mut self) -> Option<(Parked, Body<B>, W)> {
        let (parked, body, waiter) = self.waiting.pop_front()?;
        self.bytes -= parked.bytes;
        let hash = parked.hash;
        let mut entry = self
            .hashes
            .find_entry(hash, |entry| entry.0 == hash)
            .expect("`push` has counted it");
        entry.get_mut().1 -= 1;
        if entry.get().1 == 0 {
            entry.remove();
        }
        Some((parked, body, waiter))
    }
}

impl<D: Disk, W> Store<D, W> {
    /// Whether a mutation may not join a frame yet.
    pub(super) fn has_to_wait(&self, hash: u64, mutation: &Mutation<'_>) -> bool {
        let (pending, lane) = (self.pending.borrow(), self.lane.borrow());
        let (_, value) = mutation.change.parts();
        let is_large = pending.is_large(record_bytes(mutation.key.len(), value.len()));
        let is_behind_its_key = lane.holds(hash) && !planted(Plant::PassOwnKey);
        let has_turn = pending.is_empty() && lane.is_empty() && !lane.rests;
        is_behind_its_key || (is_large && !has_turn)
    }

    /// Accepts a mutation that has to wait, or rejects it.
    pub(super) fn park(&self, hash: u64, mutation: &Mutation<'_>, waiter: W) -> Submitted<W> {
        let Mutation { key, change, .. } = *mutation;
        let (kind, value) = change.parts();
        let bytes = record_bytes(key.len(), value.len());
        let pending = self.pending.borrow();
        let mut lane = self.lane.borrow_mut();
        let ahead = (pending.bytes() + lane.bytes(), lane.bytes());
        if let Err(error) = self.admit(&pending, ahead, kind, bytes) {
            return Submitted::Rejected(error, waiter);
        }
        let body = if pending.is_large(bytes) {
            let mut buffer = self
                .disk
                .buffer((FRAME_HEADER_BYTES + bytes).next_multiple_of(BLOCK));
            let record = FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + bytes;
            let body = body::Body::copy(key, value, &mut buffer.as_mut()[record]);
            Body::Frame(buffer, body)
        } else {
            Body::Parts([key, value].concat().into())
        };
        let parked = Parked {
            hash,
            kind,
            key_len: key.len(),
            bytes,
            condition: mutation.condition,
        };
        // Nobody has to be woken: it waits for a frame, which the log writer writes already, or for the end of a rest or for
        // a copy, which will wake it.
        lane.push(parked, body, waiter);
        Submitted::Pending
    }

    /// Lets in from the lane what may join the frames now: to be called before each `commit`, by the same task. Each is
    /// judged as if it was submitted now; those for which nothing has to be committed are returned, answered or rejected.
    pub fn let_in(&self) -> Vec<Submitted<W>> {
        let mut ended = Vec::new();
        while let Some((parked, body, waiter)) = self.next_in() {
            ended.extend(self.enter(parked, body, waiter));
        }
        ended
    }

    /// Whether the first one may go: a large one may not while there is another in a frame, or a large copy has its turn.
    pub(super) fn may_let_in(&self) -> bool {
        let lane = self.lane.borrow();
        let waits = match lane.waiting.front() {
            Some((_, Body::Frame(..), _)) => {
                self.pending.borrow().has_large() || lane.copy_waits || lane.rests
            }
            Some((_, Body::Parts(_), _)) => false,
            None => return false,
        };
        (!waits || planted(Plant::LetAllIn)) && !self.poisoned.get()
    }

    /// Whether large writes should rest now: the last frame had a large record, and there are small writes, which wait for
    /// each of them. True once for each frame.
    pub fn take_due_rest(&self) -> bool {
        std::mem::take(&mut self.lane.borrow_mut().is_rest_due)
    }

    /// Begins or ends a rest of the large writes, so that small ones have the log for some time. A log that is closed
    /// ends it.
    pub fn rest_large(&self, rests: bool) {
        self.lane.borrow_mut().rests = rests;
        self.work.notify();
    }

    /// Takes out the first one, if it may go.
    fn next_in(&self) -> Option<(Parked, Body<Buffer<D>>, W)> {
        let may = self.may_let_in();
        may.then(|| self.lane.borrow_mut().pop()).flatten()
    }

    /// Waits for the turn of a large copy, which it has as soon as no large record is in a frame.
    pub(super) async fn copy_turn(&self) {
        struct Waits<'a, D: Disk, W>(&'a Store<D, W>);

        impl<D: Disk, W> Drop for Waits<'_, D, W> {
            fn drop(&mut self) {
                self.0.lane.borrow_mut().copy_waits = false;
                self.0.work.notify();
            }
        }

        self.lane.borrow_mut().copy_waits = true;
        let _waits = Waits(self);
        // What it waits for may be a copy that was staged before it.
        self.work.notify();
        let has_turn = || self.poisoned.get() || !self.pending.borrow().has_large();
        self.settled.until(has_turn).await;
    }

    fn enter(&self, parked: Parked, body: Body<Buffer<D>>, waiter: W) -> Option<Submitted<W>> {
        let Parked { hash, kind, .. } = parked;
        let (key, value) = body.parts(parked.bytes).split_at(parked.key_len);
        let change = match kind {
            RecordKind::Set => Change::Set(value),
            _ => Change::Delete,
        };
        let mutation = Mutation {
            key,
            change,
            condition: parked.condition,
        };
        // Its bytes were counted when it was accepted: what is left to be asked is whether the disk has room.
        let (waiter, existed) = match self.judge(hash, &mutation, waiter, 0) {
            ControlFlow::Continue(to_write) => to_write,
            ControlFlow::Break(Submitted::Pending) => return None,
            ControlFlow::Break(ended) => return Some(ended),
        };
        let mut pending = self.pending.borrow_mut();
        match body {
            Body::Parts(_) => {
                pending.push(&*self.disk, hash, (kind, key, value), waiter, existed);
            }
            Body::Frame(buffer, body) => pending.adopt(parked, (buffer, body), waiter, existed),
        }
        None
    }
}

#[cfg(test)]
impl<D: Disk, W> Store<D, W> {
    /// Writes that wait in the lane.
    pub(super) fn parked(&self) -> usize {
        self.lane.borrow().len()
    }
}

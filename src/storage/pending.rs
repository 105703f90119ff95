//! Writes that are accepted and not yet durable: the frames being filled and in flight, and the newest pending version
//! of each of their keys.
//!
//! Owns: frame buffers, who waits for which frame, the versions given out.
//! Guarantees: records of a key get their versions in the order of `push`; an answer leaves with the frame that it
//! depends on, never before.
//! Does not: write anything (`writer` does), or make anything visible (`store` does, when a frame is durable).

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use hashbrown::HashTable;

use crate::storage::body::Body;
use crate::storage::disk::{BLOCK, Disk, DiskBuffer, DiskFile};
use crate::storage::footer::FOOTER_ENTRY_BYTES;
use crate::storage::format::{FRAME_HEADER_BYTES, FrameHeader, Record, RecordKind, record_bytes};
use crate::storage::lane::Parked;
use crate::storage::plant::{Plant, planted};
use crate::storage::writer::Place;

/// A frame with at least one record takes no further one that would make it larger than this, in bytes. It bounds how
/// long small writes wait behind others in the same frame; a single large record still makes a larger frame.
const FRAME_TARGET_BYTES: usize = 1 << 20;

/// A write whose record has so many bytes waits in the [`lane`](super::lane) while others are pending, and a frame that it
/// has for itself may stay in memory as its value. Smaller ones are faster together, in memory that is used again at once.
const LARGE_RECORD_BYTES_MIN: usize = FRAME_TARGET_BYTES;

/// Where segments are small it is this part of the largest frame, if that is less: simulated logs have large writes too.
const LARGE_RECORD_DIVISOR: usize = 16;

/// Capacity of a new frame's buffer, in bytes; it doubles as needed.
const FRAME_CAPACITY_MIN: usize = 4 * BLOCK;

/// A frame that stays in memory has no more of it that it does not need than this part of what it needs.
const UNUSED_DIVISOR: usize = 16;

/// The outcome of one mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect.
    Written {
        /// Greater than every earlier version of the key; 0 when a delete found nothing to delete.
        version: u64,
        /// Whether the key was present before.
        existed: bool,
    },
    /// The condition did not hold.
    Refused {
        /// The version that stood in the way; `None`: the key is absent.
        current: Option<u64>,
    },
}

/// A record in a frame that is not durable yet.
#[derive(Clone, Copy)]
pub(super) struct Staged {
    pub(super) hash: u64,
    pub(super) version: u64,
    pub(super) offset: u32,
    pub(super) value_len: u32,
    pub(super) key_len: u16,
    pub(super) kind: RecordKind,
    /// A copy that compaction made.
    pub(super) moved: bool,
}

impl Staged {
    /// Whether its version was given out for it.
    fn is_new(&self) -> bool {
        !self.moved && matches!(self.kind, RecordKind::Set | RecordKind::Delete)
    }

    /// Key and value in the bytes of the frame.
    pub(super) fn parts<'a>(&self, frame: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let start = self.offset as usize + crate::storage::format::RECORD_HEADER_BYTES;
        let value = self.value_place();
        (&frame[start..value.start], &frame[value])
    }

    /// Where its value is in the bytes of the frame.
    pub(super) fn value_place(&self) -> Range<usize> {
        let start = self.offset as usize
            + crate::storage::format::RECORD_HEADER_BYTES
            + self.key_len as usize;
        start..start + self.value_len as usize
    }

    pub(super) fn bytes(&self) -> usize {
        record_bytes(self.key_len.into(), self.value_len as usize)
    }
}

/// One group commit in the making.
pub(super) struct Frame<B, W> {
    buffer: Rc<B>,
    filled: usize,
    /// Memory that the frame does not need, in bytes, once it is sealed.
    unused_bytes: usize,
    /// What its records add to the footer of their segment, in bytes.
    index_bytes: usize,
    /// It holds a large record.
    is_large: bool,
    pub(super) records: Vec<Staged>,
    /// Who is to be told what when this frame is durable.
    pub(super) answers: Vec<(W, Outcome)>,
}

impl<B: DiskBuffer, W> Frame<B, W> {
    fn new(buffer: B) -> Self {
        Frame {
            buffer: Rc::new(buffer),
            filled: FRAME_HEADER_BYTES,
            unused_bytes: 0,
            index_bytes: 0,
            is_large: false,
            records: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// The bytes of the frame.
    pub(super) fn bytes(&self) -> &[u8] {
        (*self.buffer).as_ref()
    }

    /// Whether it is one large value and nothing else, which may stay in the memory of the frame. A copy is none: its
    /// value is in the cache already, or is not worth it. A delete, large by its key, has no value.
    pub(super) fn is_whole(&self) -> bool {
        let is_used = self.unused_bytes <= self.filled / UNUSED_DIVISOR;
        let is_value = |record: &Staged| record.is_new() && record.kind == RecordKind::Set;
        is_used && self.is_large && self.records.len() == 1 && is_value(&self.records[0])
    }

    /// Whether it holds a large record.
    pub(super) fn is_large(&self) -> bool {
        self.is_large
    }

    /// Whether it holds a write that is not large.
    pub(super) fn has_small(&self) -> bool {
        let large = usize::from(self.is_large);
        self.records
            .iter()
            .filter(|record| record.is_new())
            .nth(large)
            .is_some()
    }

    /// The memory, if nobody else has it any more.
    pub(super) fn into_buffer(self) -> Result<B, Rc<B>> {
        Rc::try_unwrap(self.buffer)
    }

    /// The last version that the frame gives out.
    fn last_version(&self) -> Option<u64> {
        let newest = self.records.iter().rev().find(|record| record.is_new());
        newest.map(|record| record.version)
    }

    fn frame_bytes(&self) -> usize {
        self.filled.next_multiple_of(BLOCK)
    }

    fn buffer_mut(&mut self) -> &mut B {
        Rc::get_mut(&mut self.buffer).expect("a frame that is being filled is not in flight")
    }
}

/// The newest pending version of a key.
#[derive(Clone, Copy)]
pub(super) struct Newest {
    /// The version; `None`: the key is being deleted.
    pub(super) version: Option<u64>,
    frame: u64,
}

struct Overlay {
    hash: u64,
    frame: u64,
    record: u32,
}

/// All writes of one shard that are not durable yet. `W` is what the caller waits with.
pub(super) struct Pending<B, W> {
    frames: VecDeque<Frame<B, W>>,
    /// Number of the first frame in `frames`.
    first_frame: u64,
    in_flight: bool,
    newest: HashTable<Overlay>,
    last_version: u64,
    bytes: usize,
    capacity_hint: usize,
    frame_target_bytes: usize,
    large_bytes_min: usize,
}

impl<B: DiskBuffer, W> Pending<B, W> {
    /// Nothing pending; the next version is the one after `last_version`. Records that would make a frame larger than
    /// `frame_bytes_max`, what a segment takes, go into the next one.
    pub(super) fn new(last_version: u64, frame_bytes_max: usize) -> Self {
        Pending {
            frames: VecDeque::new(),
            first_frame: 0,
            in_flight: false,
            newest: HashTable::new(),
            last_version: last_version.saturating_sub(planted(Plant::RepeatVersion).into()),
            bytes: 0,
            capacity_hint: FRAME_CAPACITY_MIN,
            frame_target_bytes: frame_bytes_max.min(FRAME_TARGET_BYTES),
            large_bytes_min: LARGE_RECORD_BYTES_MIN.min(frame_bytes_max / LARGE_RECORD_DIVISOR),
        }
    }

    fn frame(&self, number: u64) -> &Frame<B, W> {
        &self.frames[(number - self.first_frame) as usize]
    }

    /// What is pending for a key.
    pub(super) fn newest(&self, hash: u64, key: &[u8]) -> Option<Newest> {
        let found = self.newest.find(hash, |overlay| {
            overlay.hash == hash && self.key_of(overlay) == key
        })?;
        let staged = self.frame(found.frame).records[found.record as usize];
        Some(Newest {
            version: (staged.kind == RecordKind::Set).then_some(staged.version),
            frame: found.frame,
        })
    }

    /// Whether the key is being deleted.
    pub(super) fn is_going(&self, hash: u64, key: &[u8]) -> bool {
        self.newest(hash, key)
            .is_some_and(|newest| newest.version.is_none())
    }

    fn key_of(&self, overlay: &Overlay) -> &[u8] {
        let frame = self.frame(overlay.frame);
        frame.records[overlay.record as usize]
            .parts(frame.bytes())
            .0
    }

    /// Lets an answer wait for the frame of the version that it rests on.
    pub(super) fn wait_for(&mut self, newest: Newest, waiter: W, outcome: Outcome) {
        let at = (newest.frame - self.first_frame) as usize;
        self.frames[at].answers.push((waiter, outcome));
    }

    /// Adds a record and gives it the next version. `existed`: whether the key is present.
    pub(super) fn push<D>(
        &mut self,
        disk: &D,
        hash: u64,
        (kind, key, value): (RecordKind, &[u8], &[u8]),
        waiter: W,
        existed: bool,
    ) where
        D: Disk,
        D::File: DiskFile<Buffer = B>,
    {
        let version = self.last_version + 1;
        self.last_version = version;
        let record = Record {
            kind,
            moved: false,
            version,
            key,
            value,
        };
        let overlay = self.stage(disk, hash, &record);
        let is_large = self.is_large(record.bytes());
        let frame = self.frames.back_mut().expect("staged into the last frame");
        frame.is_large |= is_large;
        frame
            .answers
            .push((waiter, Outcome::Written { version, existed }));
        self.supersede(overlay);
    }

    /// Adds a large write that waited in the lane, in the buffer in which it did: the buffer becomes a frame, which takes
    /// others as any frame does. `existed`: whether the key is present.
    pub(super) fn adopt(
        &mut self,
        parked: Parked,
        (buffer, body): (B, Body),
        waiter: W,
        existed: bool,
    ) {
        let version = self.last_version + 1;
        self.last_version = version;
        let (key_len, bytes) = (parked.key_len, parked.bytes);
        let mut frame = Frame::new(buffer);
        frame.is_large = true;
        let record = FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + bytes;
        let out = &mut frame.buffer_mut().as_mut()[record];
        body.encode_around(parked.kind, false, version, out);
        frame
            .answers
            .push((waiter, Outcome::Written { version, existed }));
        self.frames.push_back(frame);
        let overlay = self.staged(Staged {
            hash: parked.hash,
            version,
            offset: FRAME_HEADER_BYTES as u32,
            value_len: (bytes - record_bytes(key_len, 0)) as u32,
            key_len: key_len as u16,
            kind: parked.kind,
            moved: false,
        });
        self.supersede(overlay);
    }

    /// Whether a record of this length is a large one.
    pub(super) fn is_large(&self, record_bytes: usize) -> bool {
        record_bytes >= self.large_bytes_min
    }

    /// Whether a large record is in a frame.
    pub(super) fn has_large(&self) -> bool {
        self.frames.iter().any(|frame| frame.is_large)
    }

    /// Whether nothing is pending.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    fn last_frame(&self) -> u64 {
        self.first_frame + self.frames.len() as u64 - 1
    }

    /// Adds a record of compaction, a copy or a retirement, to the frame that is filling. Returns the number of the
    /// frame, for [`Pending::is_settled`].
    pub(super) fn push_upkeep<D>(&mut self, disk: &D, hash: u64, record: &Record<'_>) -> u64
    where
        D: Disk,
        D::File: DiskFile<Buffer = B>,
    {
        assert!(!record.is_new(), "only clients write something new");
        let frame = self.stage(disk, hash, record).frame;
        let is_large = self.is_large(record.bytes());
        let last = self.frames.back_mut().expect("staged into the last frame");
        last.is_large |= is_large;
        frame
    }

    /// Whether the frame of this number is durable, or was given up.
    pub(super) fn is_settled(&self, frame: u64) -> bool {
        frame < self.first_frame
    }

    /// Whether the oldest frame has copies of compaction, which win back more room than they take, and no sets.
    pub(super) fn oldest_makes_room(&self) -> bool {
        self.frames.front().is_some_and(|frame| {
            let sets = |record: &Staged| record.is_new() && record.kind == RecordKind::Set;
            let upkeep = |record: &Staged| !record.is_new();
            frame.records.iter().any(upkeep) && !frame.records.iter().any(sets)
        })
    }

    fn stage<D>(&mut self, disk: &D, hash: u64, record: &Record<'_>) -> Overlay
    where
        D: Disk,
        D::File: DiskFile<Buffer = B>,
    {
        let len = record.bytes();
        self.make_room(disk, len);
        let frame = self.frames.back_mut().expect("make_room left a frame");
        let offset = frame.filled;
        record.encode(&mut frame.buffer_mut().as_mut()[offset..offset + len]);
        self.staged(Staged {
            hash,
            version: record.version,
            offset: offset as u32,
            value_len: record.value.len() as u32,
            key_len: record.key.len() as u16,
            kind: record.kind,
            moved: record.moved,
        })
    }

    /// Notes a record whose bytes are at the end of the last frame.
    fn staged(&mut self, record: Staged) -> Overlay {
        let number = self.last_frame();
        let frame = self.frames.back_mut().expect("it is in the last frame");
        frame.filled += record.bytes();
        frame.index_bytes += FOOTER_ENTRY_BYTES + usize::from(record.key_len);
        self.bytes += record.bytes();
        frame.records.push(record);
        Overlay {
            hash: record.hash,
            frame: number,
            record: frame.records.len() as u32 - 1,
        }
    }

    /// Makes a record that is staged the newest of its key.
    fn supersede(&mut self, overlay: Overlay) {
        let (frames, first) = (&self.frames, self.first_frame);
        let frame = &frames[(overlay.frame - first) as usize];
        let key = frame.records[overlay.record as usize]
            .parts(frame.bytes())
            .0;
        let same_key = |other: &Overlay| {
            let frame = &frames[(other.frame - first) as usize];
            other.hash == overlay.hash
                && frame.records[other.record as usize].parts(frame.bytes()).0 == key
        };
        match self.newest.find_mut(overlay.hash, same_key) {
            Some(older) => *older = overlay,
            None => {
                self.newest
                    .insert_unique(overlay.hash, overlay, |other| other.hash);
            }
        }
    }

    /// Makes the last frame one that is not in flight and has room for `len` more bytes.
    fn make_room<D>(&mut self, disk: &D, len: usize)
    where
        D: Disk,
        D::File: DiskFile<Buffer = B>,
    {
        let closed = self.frames.len() == usize::from(self.in_flight);
        let full = self.frames.back().is_some_and(|frame| {
            !closed && !frame.records.is_empty() && frame.filled + len > self.frame_target_bytes
        });
        if closed || full {
            let capacity = self
                .capacity_hint
                .max((FRAME_HEADER_BYTES + len).next_multiple_of(BLOCK));
            self.frames.push_back(Frame::new(disk.buffer(capacity)));
        }
        let frame = self
            .frames
            .back_mut()
            .expect("pushed above if there was none");
        let needed = frame.filled + len;
        if frame.bytes().len() < needed {
            let capacity = needed.max(2 * frame.bytes().len()).next_multiple_of(BLOCK);
            let mut larger = disk.buffer(capacity);
            larger.as_mut()[..frame.filled].copy_from_slice(&frame.bytes()[..frame.filled]);
            frame.buffer = Rc::new(larger);
        }
    }

    /// Whether there is a frame to write.
    pub(super) fn is_staged(&self) -> bool {
        !self.in_flight && !self.frames.is_empty()
    }

    /// Closes the oldest frame to further records. Returns its length on disk, and what it adds to a footer.
    pub(super) fn begin(&mut self) -> Option<(usize, usize)> {
        assert!(!self.in_flight, "one frame is in flight at a time");
        let frame = self.frames.front()?;
        self.in_flight = true;
        Some((frame.frame_bytes(), frame.index_bytes))
    }

    /// Completes the bytes of the frame in flight for its place in the log.
    pub(super) fn seal<F>(&mut self, place: &Place<F>) -> Rc<B> {
        assert!(self.in_flight, "begin comes first");
        let frame = self
            .frames
            .front_mut()
            .expect("the frame in flight is the first");
        let (filled, len) = (frame.filled, frame.frame_bytes());
        let header = FrameHeader {
            epoch: place.epoch,
            block: place.block(),
            records: frame.records.len() as u32,
            first_version: frame
                .records
                .iter()
                .find(|record| record.is_new())
                .map_or(place.last_version + 1, |record| record.version),
            previous_last_version: place.last_version,
            payload_bytes: (filled - FRAME_HEADER_BYTES) as u32,
            flags: 0,
        };
        frame.unused_bytes = frame.bytes().len() - len;
        let buffer = frame.buffer_mut();
        header.encode(buffer.as_mut());
        if !planted(Plant::DirtyPadding) {
            buffer.as_mut()[filled..len].fill(0);
        }
        crate::storage::segment::cut(buffer, len);
        Rc::clone(&frame.buffer)
    }

    /// The last version that the frame in flight gives out, if it gives out any.
    pub(super) fn in_flight_last_version(&self) -> Option<u64> {
        assert!(self.in_flight, "begin comes first");
        self.frames.front().and_then(Frame::last_version)
    }

    /// Takes out the frame in flight, which is durable now.
    pub(super) fn finish(&mut self) -> Frame<B, W> {
        assert!(self.in_flight, "begin comes first");
        let frame = self
            .frames
            .front()
            .expect("the frame in flight is the first");
        for (record, staged) in frame.records.iter().enumerate() {
            let number = self.first_frame;
            let own =
                |overlay: &Overlay| overlay.frame == number && overlay.record == record as u32;
            if let Ok(entry) = self.newest.find_entry(staged.hash, own) {
                entry.remove();
            }
        }
        self.in_flight = false;
        self.first_frame += 1;
        let frame = self.frames.pop_front().expect("looked at above");
        self.bytes -= frame.filled - FRAME_HEADER_BYTES;
        // The next frame of the same load needs about as much.
        self.capacity_hint = frame
            .frame_bytes()
            .next_power_of_two()
            .clamp(FRAME_CAPACITY_MIN, FRAME_TARGET_BYTES);
        frame
    }

    /// Gives up everything that is pending; none of it was written. Returns who waits for it.
    pub(super) fn fail_all(&mut self) -> Vec<W> {
        self.in_flight = false;
        self.first_frame += self.frames.len() as u64;
        self.newest.clear();
        self.bytes = 0;
        self.frames
            .drain(..)
            .flat_map(|frame| frame.answers)
            .map(|(waiter, _)| waiter)
            .collect()
    }

    /// Bytes of records that are not durable yet.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that the frames which are not in flight will take up on disk.
    pub(super) fn staged_frame_bytes(&self) -> u64 {
        self.frames
            .iter()
            .map(|frame| frame.frame_bytes() as u64)
            .sum()
    }

    /// Records that are not durable yet.
    pub(super) fn records(&self) -> usize {
        self.frames.iter().map(|frame| frame.records.len()).sum()
    }
}

//! Values in memory, up to a budget in bytes.
//!
//! Values lie behind each other in chunks, so that the budget is the memory used and no allocator slack is hidden.
//! When room is needed the oldest chunk is cleared; its values that were used since they came in move on (a second
//! chance), the others are forgotten: they are still on disk.
//!
//! Owns: the chunks, and for each value a reference back to its entry.
//! Guarantees: chunk memory stays within the budget, apart from chunks that answers in flight still hold; bytes that
//! were handed out never change.
//! Does not: know whether a value is the newest one; `Index` says so by calling `insert` and `forget`.

use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::rc::Rc;

use crate::storage::chunk::{Chunk, SLOT_HEADER_BYTES, slot_bytes};
use crate::storage::entry::EntryRef;

/// Largest shared chunk, in bytes: with the allocator's own header behind it still 16 of its 64 KiB slices, where one
/// byte more would take another slice, 6 % of the cache.
const CHUNK_BYTES_MAX: usize = (1 << 20) - (16 << 10);
/// Smallest shared chunk, in bytes.
const CHUNK_BYTES_MIN: usize = 64 << 10;

/// Where the value of an entry is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CachePlace {
    pub(super) chunk: u32,
    pub(super) offset: u32,
}

impl CachePlace {
    /// Not in the cache.
    pub(super) const NONE: CachePlace = CachePlace {
        chunk: u32::MAX,
        offset: 0,
    };
}

/// A value in the cache; it stays readable while this lives, whatever the cache does.
#[derive(Clone)]
pub struct CachedValue {
    chunk: Rc<Chunk>,
    offset: usize,
    len: usize,
}

impl CachedValue {
    /// Memory of the chunk that this keeps from being freed, in bytes.
    pub(super) fn kept_bytes(&self) -> usize {
        self.chunk.capacity()
    }
}

impl Deref for CachedValue {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.chunk.bytes(self.offset, self.len)
    }
}

/// What became of a value that was offered after a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Warmed {
    /// There is no room.
    Full,
    /// It is not the newest of its key, or there already.
    Skipped,
    /// It is in the cache now.
    Taken,
}

/// The cache of one shard.
pub(super) struct Cache {
    budget_bytes: u64,
    chunk_bytes: usize,
    chunks: Vec<Option<Held>>,
    free_ids: Vec<u32>,
    /// Chunk ids, oldest first. The last one takes new values.
    order: VecDeque<u32>,
    used_bytes: u64,
}

struct Held {
    chunk: Rc<Chunk>,
    /// Bytes of slots whose entries still refer to them.
    live_bytes: usize,
}

impl Cache {
    pub(super) fn new(budget_bytes: u64) -> Cache {
        let chunk_bytes = usize::try_from(budget_bytes / 64)
            .unwrap_or(usize::MAX)
            .clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
        Cache {
            budget_bytes,
            chunk_bytes,
            chunks: Vec::new(),
            free_ids: Vec::new(),
            order: VecDeque::new(),
            used_bytes: 0,
        }
    }

    /// Memory of all chunks, in bytes.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    pub(super) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Whether a value of this length fits without anything being forgotten for it.
    pub(super) fn has_room_for(&self, value_len: usize) -> bool {
        let bytes = slot_bytes(value_len);
        self.current_room() >= bytes
            || self.used_bytes + self.chunk_bytes_for(bytes) as u64 <= self.budget_bytes
    }

    /// The value of `entry`, if it is here; counts as a use.
    pub(super) fn get(&self, entry: EntryRef) -> Option<CachedValue> {
        let place = entry.cache_place();
        let held = self
            .chunks
            .get(place.chunk as usize)?
            .as_ref()
            .expect("an entry refers to a chunk that is held");
        entry.visit();
        Some(CachedValue {
            chunk: Rc::clone(&held.chunk),
            offset: place.offset as usize + SLOT_HEADER_BYTES,
            len: entry.value_len(),
        })
    }

    /// Asks for the memory of the value of `entry`, if it is here.
    pub(super) fn prefetch(&self, entry: EntryRef) {
        let place = entry.cache_place();
        if let Some(Some(held)) = self.chunks.get(place.chunk as usize) {
            held.chunk
                .prefetch(place.offset as usize, entry.value_len());
        }
    }

    /// Takes in the value of `entry`, whose `value_len` is set already, in place of an earlier one. A value that is
    /// too large for the budget is left out.
    pub(super) fn insert(&mut self, entry: EntryRef, value: &[u8]) {
        debug_assert_eq!(entry.value_len(), value.len());
        if self.overwrite(entry, value) {
            return;
        }
        self.forget(entry);
        let bytes = slot_bytes(value.len());
        if bytes as u64 > self.budget_bytes / 4 {
            return;
        }
        if self.current_room() < bytes {
            self.make_room(bytes);
        }
        self.append(entry, value);
    }

    /// As [`Self::insert`], for a value that lies in `place` of a frame: the memory of the frame is what is kept.
    pub(super) fn adopt(
        &mut self,
        entry: EntryRef,
        frame: impl AsMut<[u8]> + 'static,
        place: Range<usize>,
    ) {
        debug_assert_eq!(entry.value_len(), place.len());
        self.forget(entry);
        if slot_bytes(place.len()) as u64 > self.budget_bytes / 4 {
            return;
        }
        let chunk = Chunk::of_frame(entry, frame, place);
        let bytes = chunk.capacity() as u64;
        while self.used_bytes + bytes > self.budget_bytes
            && let Some(oldest) = self.order.pop_front()
        {
            self.retire(oldest);
        }
        let live_bytes = slot_bytes(entry.value_len());
        let id = self.add_chunk(chunk);
        self.held(id).live_bytes = live_bytes;
        entry.set_cache_place(CachePlace {
            chunk: id,
            offset: 0,
        });
        // The one before it takes new values still.
        let chunks = self.order.len();
        if chunks > 1 {
            self.order.swap(chunks - 2, chunks - 1);
        }
    }

    /// Removes the value of `entry`, if it is here.
    pub(super) fn forget(&mut self, entry: EntryRef) {
        let place = entry.cache_place();
        if place == CachePlace::NONE {
            return;
        }
        entry.set_cache_place(CachePlace::NONE);
        let held = self.held(place.chunk);
        held.live_bytes -= held.chunk.clear_slot(place.offset as usize);
        if held.live_bytes == 0 && self.order.back() != Some(&place.chunk) {
            self.order.retain(|id| *id != place.chunk);
            self.drop_chunk(place.chunk);
        }
    }

    fn held(&mut self, id: u32) -> &mut Held {
        self.chunks[id as usize]
            .as_mut()
            .expect("a chunk id in use has a chunk")
    }

    fn current_room(&self) -> usize {
        let current = self
            .order
            .back()
            .and_then(|id| self.chunks[*id as usize].as_ref());
        current.map_or(0, |held| held.chunk.room())
    }

    fn chunk_bytes_for(&self, slot_bytes: usize) -> usize {
        self.chunk_bytes
            .min(self.budget_bytes as usize)
            .max(slot_bytes)
    }

    /// A value of the same length takes the place of the old one, unless an answer in flight may be reading that.
    /// Without this, overwriting a few keys would fill the whole budget with dead values.
    fn overwrite(&mut self, entry: EntryRef, value: &[u8]) -> bool {
        let place = entry.cache_place();
        if place == CachePlace::NONE {
            return false;
        }
        let held = self.held(place.chunk);
        match Rc::get_mut(&mut held.chunk) {
            Some(chunk) => chunk.overwrite_slot(place.offset as usize, value),
            None => false,
        }
    }

    /// Puts a chunk with room for a slot of `bytes` at the end of the order.
    fn make_room(&mut self, bytes: usize) {
        let capacity = self.chunk_bytes_for(bytes);
        loop {
            let Some(id) = self.order.front().copied() else {
                self.add_chunk(Chunk::new(capacity));
                return;
            };
            let held = self.held(id);
            let reusable = held.chunk.capacity() == capacity && held.chunk.takes_others();
            let mostly_dead = held.live_bytes * 2 <= capacity && bytes * 2 <= capacity;
            if !(reusable && mostly_dead) && self.used_bytes + capacity as u64 <= self.budget_bytes
            {
                self.add_chunk(Chunk::new(capacity));
                return;
            }
            self.order.pop_front();
            if !reusable {
                self.retire(id);
                continue;
            }
            self.renew(id, mostly_dead);
            if self.current_room() >= bytes {
                return;
            }
        }
    }

    /// Drops a chunk whose memory is of no use for what comes in; one large value that was used gets another round.
    fn retire(&mut self, id: u32) {
        let chunk = Rc::clone(&self.held(id).chunk);
        let mut slots = chunk.slots();
        if let (Some((entry, _)), None) = (slots.next(), slots.next())
            && entry.take_visit()
        {
            return self.order.push_back(id);
        }
        chunk
            .slots()
            .for_each(|(entry, _)| entry.set_cache_place(CachePlace::NONE));
        self.drop_chunk(id);
    }

    /// Clears a chunk and makes it the newest. At most half of it stays: all that lives if `keep_all`, else what was
    /// used since it came in.
    fn renew(&mut self, id: u32, keep_all: bool) {
        let half = self.held(id).chunk.capacity() / 2;
        let chunk = Rc::clone(&self.held(id).chunk);
        let (mut kept, mut kept_bytes) = (Vec::new(), 0);
        for (entry, offset) in chunk.slots() {
            let bytes = slot_bytes(entry.value_len());
            if (entry.take_visit() || keep_all) && kept_bytes + bytes <= half {
                kept_bytes += bytes;
                kept.push(offset);
            } else {
                entry.set_cache_place(CachePlace::NONE);
            }
        }
        drop(chunk);
        let held = self.held(id);
        match Rc::get_mut(&mut held.chunk) {
            Some(chunk) => chunk.compact(&kept),
            None => held.chunk = Rc::new(held.chunk.compacted_copy(&kept)),
        }
        held.live_bytes = kept_bytes;
        for (entry, offset) in held.chunk.slots() {
            entry.set_cache_place(CachePlace {
                chunk: id,
                offset: offset as u32,
            });
        }
        self.order.push_back(id);
    }

    /// Puts a chunk at the end of the order, and returns its id.
    fn add_chunk(&mut self, chunk: Chunk) -> u32 {
        self.used_bytes += chunk.capacity() as u64;
        let held = Some(Held {
            chunk: Rc::new(chunk),
            live_bytes: 0,
        });
        let id = match self.free_ids.pop() {
            Some(id) => {
                self.chunks[id as usize] = held;
                id
            }
            None => {
                self.chunks.push(held);
                self.chunks.len() as u32 - 1
            }
        };
        self.order.push_back(id);
        id
    }

    fn drop_chunk(&mut self, id: u32) {
        let held = self.chunks[id as usize]
            .take()
            .expect("a chunk is dropped once");
        self.used_bytes -= held.chunk.capacity() as u64;
        self.free_ids.push(id);
    }

    fn append(&mut self, entry: EntryRef, value: &[u8]) {
        let id = *self.order.back().expect("make_room left a chunk with room");
        let held = self.held(id);
        let offset = held.chunk.append(entry, value);
        held.live_bytes += slot_bytes(value.len());
        entry.set_cache_place(CachePlace {
            chunk: id,
            offset: offset as u32,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::segment::{Location, SegmentId};

    fn entry(number: u64, value_len: usize) -> EntryRef {
        let entry = EntryRef::new(&number.to_le_bytes());
        let location = Location {
            segment: SegmentId(1),
            offset: 0,
            bytes: 0,
        };
        entry.set(1, location, value_len, false);
        entry
    }

    fn value(number: u64, len: usize) -> Vec<u8> {
        (0..len)
            .map(|at| (number as usize * 31 + at) as u8)
            .collect()
    }

    #[test]
    fn memory_stays_within_the_budget_and_values_stay_right() {
        let budget = 4 << 20;
        let mut cache = Cache::new(budget);
        let lens = [0, 1, 7, 100, 5000, 70_000, 300_000];
        let entries: Vec<_> = (0..4000)
            .map(|n| entry(n, lens[n as usize % lens.len()]))
            .collect();
        for round in 0..3 {
            for (number, entry) in entries.iter().enumerate() {
                cache.insert(*entry, &value(number as u64 + round, entry.value_len()));
                assert!(cache.used_bytes() <= budget, "{} bytes", cache.used_bytes());
                assert_eq!(
                    *cache.get(*entry).expect("just inserted"),
                    value(number as u64 + round, entry.value_len())
                );
            }
            for (number, entry) in entries.iter().enumerate() {
                if let Some(found) = cache.get(*entry) {
                    assert_eq!(
                        *found,
                        value(number as u64 + round, entry.value_len()),
                        "value {number}"
                    );
                }
            }
        }
        for entry in entries {
            cache.forget(entry);
            assert!(cache.get(entry).is_none());
            entry.free();
        }
    }

    #[test]
    fn a_value_in_use_survives_what_a_scan_brings_in() {
        let mut cache = Cache::new(2 << 20);
        let hot: Vec<_> = (0..100).map(|n| entry(n, 1000)).collect();
        for (number, entry) in hot.iter().enumerate() {
            cache.insert(*entry, &value(number as u64, 1000));
        }
        let mut missed = 0;
        let cold: Vec<_> = (1000..9000).map(|n| entry(n, 1000)).collect();
        for (number, entry) in cold.iter().enumerate() {
            cache.insert(*entry, &value(number as u64, 1000));
            for (number, entry) in hot.iter().enumerate() {
                if cache.get(*entry).is_none() {
                    missed += 1;
                    cache.insert(*entry, &value(number as u64, 1000));
                }
            }
        }
        // Of a chunk that is all in use half goes, and comes back with company; soon all stay.
        assert!(missed <= 200, "{missed} of 800,000 uses missed");
    }

    #[test]
    fn overwriting_the_same_keys_does_not_fill_the_budget() {
        let mut cache = Cache::new(64 << 20);
        let entries: Vec<_> = (0..10).map(|n| entry(n, 512)).collect();
        for round in 0..100_000 {
            cache.insert(entries[round % 10], &value(round as u64, 512));
        }
        assert!(
            cache.used_bytes() <= 1 << 20,
            "{} bytes",
            cache.used_bytes()
        );
    }

    #[test]
    fn what_an_answer_holds_never_changes() {
        let mut cache = Cache::new(1 << 20);
        let entries: Vec<_> = (0..2000).map(|n| entry(n, 2000)).collect();
        cache.insert(entries[0], &value(0, 2000));
        let held = cache.get(entries[0]).expect("just inserted");
        for round in 1..5 {
            for (number, entry) in entries.iter().enumerate() {
                cache.insert(*entry, &value(number as u64 + round, 2000));
            }
        }
        assert_eq!(*held, value(0, 2000));
    }

    /// A frame as the log has written it.
    fn frame(number: u64, len: usize) -> (Vec<u8>, Range<usize>) {
        let place = 100..100 + len;
        let mut frame = vec![0xee; place.end.next_multiple_of(4096)];
        frame[place.clone()].copy_from_slice(&value(number, len));
        (frame, place)
    }

    #[test]
    fn frames_that_are_kept_count_and_go_as_other_values_do() {
        let budget = 8 << 20;
        let mut cache = Cache::new(budget);
        // One of them makes a frame as long as a chunk that takes several values.
        let lens = [1_000_000, 50, 300_000, (128 << 10) - 4096, 5000];
        let entries: Vec<_> = (0..100)
            .map(|n| entry(n, lens[n as usize % lens.len()]))
            .collect();
        let mut held = Vec::new();
        for round in 0..4 {
            for (number, entry) in entries.iter().enumerate() {
                let (number, len) = (number as u64 + round, entry.value_len());
                if len > 100_000 && number % 7 > 0 {
                    let (frame, place) = frame(number, len);
                    cache.adopt(*entry, frame, place);
                } else {
                    cache.insert(*entry, &value(number, len));
                }
                assert!(cache.used_bytes() <= budget, "{} bytes", cache.used_bytes());
                let found = cache.get(*entry).expect("just inserted");
                assert_eq!(*found, value(number, len));
                if number % 10 == 0 {
                    held.push((found, number, len));
                }
            }
        }
        let kept = entries.iter().filter(|entry| cache.get(**entry).is_some());
        assert!(kept.count() > 10);
        for (found, number, len) in held {
            assert_eq!(
                *found,
                value(number, len),
                "what an answer holds never changes"
            );
        }
        for entry in entries {
            cache.forget(entry);
            assert!(cache.get(entry).is_none());
            entry.free();
        }
        assert!(
            cache.used_bytes() <= 1 << 20,
            "{} bytes",
            cache.used_bytes()
        );
    }

    #[test]
    fn a_large_value_does_not_end_the_chunk_that_small_ones_fill() {
        let mut cache = Cache::new(64 << 20);
        let entries: Vec<_> = (0..20)
            .map(|n| entry(n, 1000 + 999_000 * (n as usize % 2)))
            .collect();
        for (number, entry) in entries.iter().enumerate() {
            let (frame, place) = frame(number as u64, entry.value_len());
            match number % 2 {
                0 => cache.insert(*entry, &frame[place]),
                _ => cache.adopt(*entry, frame, place),
            }
        }
        assert!(
            cache.used_bytes() < 12 << 20,
            "{} bytes",
            cache.used_bytes()
        );
        assert!(entries.iter().all(|entry| cache.get(*entry).is_some()));
    }

    #[test]
    fn without_a_budget_nothing_is_kept() {
        let mut cache = Cache::new(0);
        let entry = entry(1, 10);
        cache.insert(entry, &value(1, 10));
        assert!(cache.get(entry).is_none() && cache.used_bytes() == 0);
    }
}

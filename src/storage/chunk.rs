//! One chunk of the cache: memory that fills from the front with slots, a slot being a reference to an entry, a length
//! and a value. Or memory that was a frame of one large value, which stays where it is.
//!
//! Owns: that memory; the only unsafe code of the cache.
//! Guarantees: bytes of a value that `bytes` has handed out do not change while the chunk is shared: changing them
//! needs `&mut Chunk`, appending writes only behind them, clearing a slot writes only its header.
//! Does not: decide what stays.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::ptr::NonNull;

use crate::storage::entry::EntryRef;
use crate::storage::prefetch::prefetch;

/// Bytes in front of each value: entry reference and length.
pub(super) const SLOT_HEADER_BYTES: usize = 16;

/// Bytes of a value that are asked for ahead.
const PREFETCH_BYTES_MAX: usize = 256;

/// Bytes that a value of this length takes up in a chunk.
pub(super) fn slot_bytes(value_len: usize) -> usize {
    SLOT_HEADER_BYTES + value_len.next_multiple_of(8)
}

/// Memory for values.
pub(super) struct Chunk {
    memory: NonNull<u8>,
    capacity: usize,
    filled: Cell<usize>,
    /// What the memory is a part of; `None`: it was allocated here.
    frame: Option<Box<dyn Any>>,
}

impl Chunk {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, 16).expect("a chunk is at most one value and a header")
    }

    /// An empty chunk.
    pub(super) fn new(capacity: usize) -> Chunk {
        let capacity = capacity.max(SLOT_HEADER_BYTES);
        let layout = Self::layout(capacity);
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc(layout) };
        let Some(memory) = NonNull::new(memory) else {
            handle_alloc_error(layout)
        };
        Chunk {
            memory,
            capacity,
            filled: Cell::new(0),
            frame: None,
        }
    }

    /// A chunk of the value that lies in `place` of a frame, and of nothing else. What is in front of it is overwritten.
    pub(super) fn of_frame(
        entry: EntryRef,
        mut frame: impl AsMut<[u8]> + 'static,
        place: Range<usize>,
    ) -> Chunk {
        let capacity = frame.as_mut().len();
        let slot = &mut frame.as_mut()[place.start - SLOT_HEADER_BYTES..place.end];
        let chunk = Chunk {
            filled: Cell::new(slot.len()),
            memory: NonNull::from(slot).cast(),
            capacity,
            frame: Some(Box::new(frame)),
        };
        chunk.set_word(0, 0, entry.to_bits());
        chunk.set_word(0, 1, place.len() as u64);
        chunk
    }

    /// Whether it can hold other values than the one that it was made with.
    pub(super) fn takes_others(&self) -> bool {
        self.frame.is_none()
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes left for slots.
    pub(super) fn room(&self) -> usize {
        match self.takes_others() {
            true => self.capacity - self.filled.get(),
            false => 0,
        }
    }

    /// A value by its offset and length; both come from a slot of this chunk.
    pub(super) fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(
            offset + len <= self.filled.get(),
            "a value lies in the filled part of its chunk"
        );
        // SAFETY: in bounds and written (checked above); see the module for why nobody writes there meanwhile.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(offset), len) }
    }

    /// Asks for the memory of the value behind a slot header, or of its beginning: the processor sees for itself what
    /// goes on.
    pub(super) fn prefetch(&self, offset: usize, len: usize) {
        let value = self
            .memory
            .as_ptr()
            .wrapping_add(offset + SLOT_HEADER_BYTES);
        prefetch(value, len.min(PREFETCH_BYTES_MAX));
    }

    fn header_word(&self, offset: usize, word: usize) -> u64 {
        assert!(
            offset + SLOT_HEADER_BYTES <= self.filled.get() && offset.is_multiple_of(8),
            "a slot of this chunk"
        );
        // SAFETY: in bounds and written (checked above); no reference to slot headers is ever handed out.
        unsafe {
            let slot = self.memory.as_ptr().add(offset).cast::<u64>();
            slot.add(word).read_unaligned()
        }
    }

    fn set_word(&self, offset: usize, word: usize, bits: u64) {
        assert!(
            offset + SLOT_HEADER_BYTES <= self.filled.get() && offset.is_multiple_of(8),
            "a slot of this chunk"
        );
        // SAFETY: as in `header_word`; the chunk is not shared between threads.
        unsafe {
            let slot = self.memory.as_ptr().add(offset).cast::<u64>();
            slot.add(word).write_unaligned(bits);
        }
    }

    /// Appends a value and returns the offset of its slot. The caller checked `room`.
    pub(super) fn append(&self, entry: EntryRef, value: &[u8]) -> usize {
        let offset = self.filled.get();
        let bytes = slot_bytes(value.len());
        assert!(bytes <= self.room(), "the caller made room");
        // SAFETY: in bounds (checked above), behind everything that `bytes` may hand out, aligned: the capacity of slots
        // is a multiple of 8 and the memory is aligned to 16.
        unsafe {
            let slot = self.memory.as_ptr().add(offset);
            slot.cast::<u64>().write(entry.to_bits());
            slot.cast::<u64>().add(1).write(value.len() as u64);
            std::ptr::copy_nonoverlapping(value.as_ptr(), slot.add(SLOT_HEADER_BYTES), value.len());
        }
        self.filled.set(offset + bytes);
        offset
    }

    /// Marks a slot as nobody's and returns its bytes.
    pub(super) fn clear_slot(&self, offset: usize) -> usize {
        self.set_word(offset, 0, 0);
        slot_bytes(self.header_word(offset, 1) as usize)
    }

    /// Replaces a value by one of the same length; false if the lengths differ.
    pub(super) fn overwrite_slot(&mut self, offset: usize, value: &[u8]) -> bool {
        if self.header_word(offset, 1) != value.len() as u64 {
            return false;
        }
        // SAFETY: the slot holds that many bytes; `&mut self` means that no slice of them is alive.
        unsafe {
            let start = self.memory.as_ptr().add(offset + SLOT_HEADER_BYTES);
            std::ptr::copy_nonoverlapping(value.as_ptr(), start, value.len());
        }
        true
    }

    /// The entries of the slots in use, with the offsets of the slots, in order.
    pub(super) fn slots(&self) -> impl Iterator<Item = (EntryRef, usize)> + '_ {
        let mut offset = 0;
        std::iter::from_fn(move || {
            while offset < self.filled.get() {
                let slot = offset;
                offset += slot_bytes(self.header_word(slot, 1) as usize);
                if let Some(entry) = EntryRef::from_bits(self.header_word(slot, 0)) {
                    return Some((entry, slot));
                }
            }
            None
        })
    }

    /// Moves the slots at these offsets, which are in order, to the front and forgets the others.
    pub(super) fn compact(&mut self, kept: &[usize]) {
        assert!(self.takes_others(), "it is allocated here");
        let mut to = 0;
        for from in kept {
            let bytes = slot_bytes(self.header_word(*from, 1) as usize);
            assert!(to <= *from, "slots move to the front");
            // SAFETY: both ranges are in the filled part; `&mut self` means that no slice of a value is alive.
            unsafe {
                std::ptr::copy(
                    self.memory.as_ptr().add(*from),
                    self.memory.as_ptr().add(to),
                    bytes,
                )
            };
            to += bytes;
        }
        self.filled.set(to);
    }

    /// A chunk of the same size with copies of the slots at these offsets.
    pub(super) fn compacted_copy(&self, kept: &[usize]) -> Chunk {
        let copy = Chunk::new(self.capacity);
        for from in kept {
            let len = self.header_word(*from, 1) as usize;
            let entry = EntryRef::from_bits(self.header_word(*from, 0))
                .expect("a slot that is kept has an entry");
            copy.append(entry, self.bytes(from + SLOT_HEADER_BYTES, len));
        }
        copy
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.frame.is_none() {
            // SAFETY: allocated by `new` with the same layout; values hold the chunk by reference count.
            unsafe { dealloc(self.memory.as_ptr(), Self::layout(self.capacity)) }
        }
    }
}

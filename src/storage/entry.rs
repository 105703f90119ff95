//! One key of the index, in one allocation: a fixed header and the key bytes behind it.
//!
//! Owns: that memory layout and all access to it; the only unsafe code of the index.
//! Guarantees: 32 bytes beside the key, and 6 in every table that refers to it.
//! Does not: know in which tables an entry is. `Index` frees an entry after it has left all of them.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::ptr::NonNull;

use crate::storage::cache::CachePlace;
use crate::storage::prefetch::prefetch;
use crate::storage::segment::{Location, SegmentId};

/// What is known of a key: where its newest durable record is.
#[repr(C)]
struct Header {
    version: Cell<u64>,
    segment: Cell<u32>,
    offset: Cell<u32>,
    value_len: Cell<u32>,
    cache_chunk: Cell<u32>,
    cache_offset: Cell<u32>,
    key_len: u16,
    flags: Cell<u8>,
}

/// Bits of an address that may be set.
const ADDRESS_BITS: u32 = 48;

const TOMBSTONE: u8 = 1;
const VISITED: u8 = 2;

/// Bytes of an entry beside its key.
pub(super) const ENTRY_HEADER_BYTES: usize = size_of::<Header>();

const _: () = assert!(ENTRY_HEADER_BYTES == 32);

/// A pointer to an entry. Copies are as good as the original until [`EntryRef::free`].
///
/// The index is the owner: it hands out copies only to tables that it empties before it frees the entry, so every
/// method but `free` may rely on the entry being alive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryRef(NonNull<Header>);

impl EntryRef {
    fn layout(key_len: usize) -> Layout {
        Layout::from_size_align(ENTRY_HEADER_BYTES + key_len, align_of::<Header>())
            .expect("a key is at most 64 KiB long")
    }

    /// A new entry for `key`, without a value.
    pub(super) fn new(key: &[u8]) -> EntryRef {
        let key_len = u16::try_from(key.len()).expect("callers check the length of a key");
        let layout = Self::layout(key.len());
        // SAFETY: the layout is not empty: the header has 32 bytes.
        let memory = unsafe { alloc(layout) };
        let Some(pointer) = NonNull::new(memory.cast::<Header>()) else {
            handle_alloc_error(layout)
        };
        // What the kernel gives a process that does not ask for more.
        assert!(memory.addr() >> ADDRESS_BITS == 0, "an address has 48 bits");
        let header = Header {
            version: Cell::new(0),
            segment: Cell::new(0),
            offset: Cell::new(0),
            value_len: Cell::new(0),
            cache_chunk: Cell::new(CachePlace::NONE.chunk),
            cache_offset: Cell::new(0),
            key_len,
            flags: Cell::new(0),
        };
        // SAFETY: the allocation is aligned for a header and has room for it and, behind it, for the key.
        unsafe {
            pointer.as_ptr().write(header);
            std::ptr::copy_nonoverlapping(key.as_ptr(), memory.add(ENTRY_HEADER_BYTES), key.len());
        }
        EntryRef(pointer)
    }

    /// Frees the entry. The caller has removed every other copy of this pointer.
    pub(super) fn free(self) {
        let layout = Self::layout(self.header().key_len.into());
        // SAFETY: allocated by `new` with the same layout; the caller holds the last copy.
        unsafe { dealloc(self.0.as_ptr().cast::<u8>(), layout) }
    }

    fn header(&self) -> &Header {
        // SAFETY: the entry is alive (see the type) and its header was written by `new`.
        unsafe { self.0.as_ref() }
    }

    /// The key.
    pub(super) fn key(&self) -> &[u8] {
        let key_len = usize::from(self.header().key_len);
        // SAFETY: `new` wrote that many bytes behind the header, in the same allocation; they never change.
        unsafe {
            std::slice::from_raw_parts(
                self.0.as_ptr().cast::<u8>().add(ENTRY_HEADER_BYTES),
                key_len,
            )
        }
    }

    /// Asks for the memory of the entry, as far as a short key.
    pub(super) fn prefetch(&self) {
        prefetch(self.0.as_ptr().cast(), ENTRY_HEADER_BYTES + 16);
    }

    /// The same pointer in fewer bytes.
    pub(super) fn pack(self) -> PackedEntryRef {
        let bytes = self.to_bits().to_le_bytes();
        PackedEntryRef(*bytes.first_chunk().expect("6 of 8"))
    }

    pub(super) fn version(&self) -> u64 {
        self.header().version.get()
    }

    pub(super) fn value_len(&self) -> usize {
        self.header().value_len.get() as usize
    }

    pub(super) fn location(&self) -> Location {
        let header = self.header();
        Location {
            segment: SegmentId(header.segment.get()),
            offset: header.offset.get(),
            bytes: super::format::record_bytes(
                header.key_len.into(),
                header.value_len.get() as usize,
            ) as u32,
        }
    }

    /// Points the entry at a record.
    pub(super) fn set(&self, version: u64, location: Location, value_len: usize, tombstone: bool) {
        let header = self.header();
        header.version.set(version);
        header.segment.set(location.segment.0);
        header.offset.set(location.offset);
        header
            .value_len
            .set(u32::try_from(value_len).expect("callers check the length of a value"));
        header.flags.set(if tombstone { TOMBSTONE } else { 0 });
    }

    /// Points the entry at a copy of its record.
    pub(super) fn relocate(&self, location: Location) {
        self.header().segment.set(location.segment.0);
        self.header().offset.set(location.offset);
    }

    /// Whether the newest record is a delete: the key is absent.
    pub(super) fn is_tombstone(&self) -> bool {
        self.header().flags.get() & TOMBSTONE != 0
    }

    pub(super) fn cache_place(&self) -> CachePlace {
        CachePlace {
            chunk: self.header().cache_chunk.get(),
            offset: self.header().cache_offset.get(),
        }
    }

    pub(super) fn set_cache_place(&self, place: CachePlace) {
        self.header().cache_chunk.set(place.chunk);
        self.header().cache_offset.set(place.offset);
    }

    /// Notes that the cached value was used.
    pub(super) fn visit(&self) {
        let flags = &self.header().flags;
        flags.set(flags.get() | VISITED);
    }

    /// Whether the cached value was used since the last call.
    pub(super) fn take_visit(&self) -> bool {
        let flags = &self.header().flags;
        let visited = flags.get() & VISITED != 0;
        flags.set(flags.get() & !VISITED);
        visited
    }

    /// The pointer as a number, for the back references of the cache; never 0.
    pub(super) fn to_bits(self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    /// The inverse of [`EntryRef::to_bits`]; `None` for 0. The number must come from an entry that is alive.
    pub(super) fn from_bits(bits: u64) -> Option<EntryRef> {
        NonNull::new(std::ptr::with_exposed_provenance_mut::<Header>(
            bits as usize,
        ))
        .map(EntryRef)
    }
}

/// An [`EntryRef`] in 6 bytes, for the tables that hold one per key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedEntryRef([u8; (ADDRESS_BITS / 8) as usize]);

impl PackedEntryRef {
    pub(super) fn get(&self) -> EntryRef {
        let mut bytes = [0; 8];
        bytes[..self.0.len()].copy_from_slice(&self.0);
        EntryRef::from_bits(u64::from_le_bytes(bytes)).expect("packed from a pointer")
    }

    /// The key.
    pub(super) fn key(&self) -> &[u8] {
        let entry = self.get();
        let key = entry.key();
        // SAFETY: the key lives as long as its entry, which outlives this copy of the pointer to it: `Index` takes all
        // copies out of its tables before it frees the entry.
        unsafe { std::slice::from_raw_parts(key.as_ptr(), key.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_keeps_key_and_record_apart() {
        for key in [
            &b"a"[..],
            &[0xff; 65_535],
            b"0123456789abcdef0123456789abcdef",
        ] {
            let entry = EntryRef::new(key);
            let location = Location {
                segment: SegmentId(7),
                offset: 4096,
                bytes: (32 + key.len() + 99) as u32,
            };
            entry.set(12, location, 99, false);
            entry.visit();
            assert_eq!(
                (entry.key(), entry.version(), entry.location()),
                (key, 12, location)
            );
            assert!(entry.take_visit() && !entry.take_visit() && !entry.is_tombstone());
            assert!(EntryRef::from_bits(entry.to_bits()) == Some(entry));
            let packed = entry.pack();
            assert!(packed.get() == entry && packed.key() == key);
            entry.free();
        }
    }
}

//! What is present: key -> location of its newest durable record, by hash and in key order, with the cached value.
//!
//! The hash table is split into sub-tables, because one large table stalls for as long as it takes to move all its
//! entries (200 ms at 8 million). The ordered index refers to the same entries, so key bytes are stored once.
//!
//! A deleted key keeps its entry, as a tombstone that only the hash table knows, as long as its delete must stay on
//! disk: so every record that is needed there has an entry which points at it.
//!
//! Owns: all entries, both tables, the cache.
//! Guarantees: only durable records are ever visible here: every change demands a `Durable`; the newest version wins.
//! Does not: read files, decide about conditions (`pending` does), count bytes per segment (`store` does).

use std::ops::{Bound, Range};

use ahash::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;

use crate::storage::cache::{Cache, CachedValue, Warmed};
use crate::storage::entry::{ENTRY_HEADER_BYTES, EntryRef, PackedEntryRef};
use crate::storage::format::RecordKind;
use crate::storage::ordered::{Ordered, leading_bytes, shared_bytes};
use crate::storage::plant::{Plant, planted};
use crate::storage::segment::Location;
use crate::storage::writer::Durable;

/// Sub-tables: with 40 million keys in a shard one of them holds 10,000, which move in well under a millisecond.
/// Tests open stores of a few keys by the hundred thousand.
const SUB_TABLES: usize = if cfg!(test) { 16 } else { 4096 };

/// Keys whose memory is asked for at once: about as many lines as a processor waits for at a time.
pub(super) const LOOKED_AHEAD: usize = 16;

/// Pointer plus control byte.
const TABLE_BYTES_PER_BUCKET: u64 = size_of::<PackedEntryRef>() as u64 + 1;

/// A present key, as the index sees it.
pub(super) struct Present<'a> {
    pub(super) key: &'a [u8],
    pub(super) version: u64,
    pub(super) location: Location,
    pub(super) value_len: usize,
}

/// A record that a commit or recovery made durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) kind: RecordKind,
    pub(super) version: u64,
    pub(super) location: Location,
    pub(super) value_len: usize,
}

/// A record that is not the newest of its key any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replaced {
    pub(super) location: Location,
    pub(super) tombstone: bool,
}

impl Replaced {
    fn of(entry: EntryRef) -> Replaced {
        Replaced {
            location: entry.location(),
            tombstone: entry.is_tombstone(),
        }
    }
}

/// The index of one shard.
pub(super) struct Index {
    hasher: RandomState,
    tables: Box<[HashTable<PackedEntryRef>]>,
    ordered: Ordered,
    /// Entries in the order in which a recovery made them, until it ends.
    recovered: Vec<PackedEntryRef>,
    cache: Cache,
    keys: u64,
    key_bytes: u64,
    value_bytes: u64,
    tombstones: u64,
    tombstone_key_bytes: u64,
    hits: u64,
    misses: u64,
}

impl Index {
    pub(super) fn new(cache_bytes: u64) -> Index {
        Index {
            hasher: RandomState::new(),
            tables: (0..SUB_TABLES).map(|_| HashTable::new()).collect(),
            ordered: Ordered::default(),
            recovered: Vec::new(),
            cache: Cache::new(cache_bytes),
            keys: 0,
            key_bytes: 0,
            value_bytes: 0,
            tombstones: 0,
            tombstone_key_bytes: 0,
            hits: 0,
            misses: 0,
        }
    }

    /// The hash of a key in this process; what every other call here wants.
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    // The table takes the low bits for the bucket and the top seven for the control byte; these are others.
    fn table_of(hash: u64) -> usize {
        (hash >> 32) as usize % SUB_TABLES
    }

    fn find_any(&self, hash: u64, key: &[u8]) -> Option<EntryRef> {
        self.tables[Self::table_of(hash)]
            .find(hash, |entry| entry.key() == key)
            .map(PackedEntryRef::get)
    }

    /// The entry of a present key.
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<EntryRef> {
        self.find_any(hash, key)
            .filter(|entry| !entry.is_tombstone())
    }

    /// Asks for the memory of the entries and values of the first [`LOOKED_AHEAD`] of these hashes: what is most likely
    /// that of the keys which are looked up, published or copied next.
    pub(super) fn look_ahead(&self, hashes: impl Iterator<Item = u64>) {
        let mut entries = [None; LOOKED_AHEAD];
        for (entry, hash) in entries.iter_mut().zip(hashes) {
            *entry = self.prefetch_entry(hash);
        }
        for entry in entries.into_iter().flatten() {
            self.cache.prefetch(entry);
        }
    }

    /// The same for entries alone.
    pub(super) fn look_ahead_for_entries(&self, hashes: impl Iterator<Item = u64>) {
        for hash in hashes.take(LOOKED_AHEAD) {
            self.prefetch_entry(hash);
        }
    }

    fn prefetch_entry(&self, hash: u64) -> Option<EntryRef> {
        let entry = self.tables[Self::table_of(hash)]
            .find(hash, |_| true)?
            .get();
        entry.prefetch();
        Some(entry)
    }

    /// Version of a present key.
    pub(super) fn version(&self, hash: u64, key: &[u8]) -> Option<u64> {
        self.find(hash, key).map(|entry| entry.version())
    }

    /// Version, location and, when it is in memory, the value of a present key.
    pub(super) fn get(
        &mut self,
        hash: u64,
        key: &[u8],
    ) -> Option<(u64, Location, Option<CachedValue>)> {
        let entry = self.find(hash, key)?;
        let value = self.cache.get(entry);
        match value {
            Some(_) => self.hits += 1,
            None => self.misses += 1,
        }
        Some((entry.version(), entry.location(), value))
    }

    /// Makes a committed record visible. Returns the record that it replaces. The value of a set goes into the cache, now
    /// or with [`Self::adopt`].
    pub(super) fn publish(
        &mut self,
        hash: u64,
        key: &[u8],
        change: Durable<Change>,
        value: Option<&[u8]>,
    ) -> Option<Replaced> {
        let change = change.into_inner();
        match change.kind {
            RecordKind::Set => self.publish_set(hash, key, change, value),
            RecordKind::Delete => Some(self.publish_delete(hash, key, change)),
            RecordKind::Retire | RecordKind::Table | RecordKind::Footer => {
                unreachable!("these have no key")
            }
        }
    }

    fn publish_set(
        &mut self,
        hash: u64,
        key: &[u8],
        change: Change,
        value: Option<&[u8]>,
    ) -> Option<Replaced> {
        let hasher = &self.hasher;
        let table = &mut self.tables[Self::table_of(hash)];
        let slot = table.entry(
            hash,
            |entry| entry.key() == key,
            |entry| hasher.hash_one(entry.key()),
        );
        let (entry, replaced) = match slot {
            Slot::Occupied(occupied) => {
                let entry = occupied.get().get();
                assert!(
                    entry.version() < change.version,
                    "commits reach the index in version order"
                );
                (entry, Some(Replaced::of(entry)))
            }
            Slot::Vacant(vacant) => {
                let entry = EntryRef::new(key);
                vacant.insert(entry.pack());
                (entry, None)
            }
        };
        match replaced {
            Some(Replaced {
                tombstone: false, ..
            }) => self.value_bytes -= entry.value_len() as u64,
            _ => self.appears(entry, replaced.is_some()),
        }
        if entry.value_len() != change.value_len {
            // The cache finds the slot of the old value by its length.
            self.cache.forget(entry);
        }
        entry.set(change.version, change.location, change.value_len, false);
        self.value_bytes += change.value_len as u64;
        match value {
            Some(value) => self.cache.insert(entry, value),
            None => self.cache.forget(entry),
        }
        replaced
    }

    /// The newest value of a key, for the cache.
    pub(super) fn keep(&mut self, entry: EntryRef, value: &[u8]) {
        self.cache.insert(entry, value);
    }

    /// The newest value of a key, in `place` of the frame that it was published with, for the cache.
    pub(super) fn adopt(
        &mut self,
        entry: EntryRef,
        frame: impl AsMut<[u8]> + 'static,
        place: Range<usize>,
    ) {
        self.cache.adopt(entry, frame, place);
    }

    /// A key that was absent is present now.
    fn appears(&mut self, entry: EntryRef, was_tombstone: bool) {
        let key_bytes = entry.key().len() as u64;
        if was_tombstone {
            self.tombstones -= 1;
            self.tombstone_key_bytes -= key_bytes;
        }
        self.ordered.insert(entry);
        self.keys += 1;
        self.key_bytes += key_bytes;
    }

    fn publish_delete(&mut self, hash: u64, key: &[u8], change: Change) -> Replaced {
        let entry = self
            .find(hash, key)
            .expect("a delete is written only of a present key");
        assert!(
            entry.version() < change.version,
            "commits reach the index in version order"
        );
        let replaced = Replaced::of(entry);
        self.cache.forget(entry);
        self.ordered.remove(key);
        self.keys -= 1;
        self.key_bytes -= key.len() as u64;
        self.value_bytes -= entry.value_len() as u64;
        self.tombstones += 1;
        self.tombstone_key_bytes += key.len() as u64;
        entry.set(change.version, change.location, 0, true);
        replaced
    }

    /// Whether a record on disk is needed there: nothing newer of its key is known, and no other copy of it is used.
    pub(super) fn points_at(&self, hash: u64, key: &[u8], location: Location) -> bool {
        self.find_any(hash, key)
            .is_some_and(|entry| entry.location() == location)
    }

    /// Makes a durable copy of a record the one that is used, if the record is still the newest of its key. Returns the
    /// record that was used before.
    pub(super) fn relocate(
        &mut self,
        hash: u64,
        key: &[u8],
        copy: Durable<Change>,
    ) -> Option<Replaced> {
        let copy = copy.into_inner();
        let entry = self
            .find_any(hash, key)
            .filter(|entry| entry.version() == copy.version)?;
        let replaced = Replaced::of(entry);
        assert_eq!(
            replaced.tombstone,
            copy.kind == RecordKind::Delete,
            "a copy is of the same kind"
        );
        entry.relocate(copy.location);
        Some(replaced)
    }

    /// Forgets a tombstone that nothing on disk needs any more. Returns false when the key has become present, or the
    /// tombstone is a newer one.
    pub(super) fn forget_tombstone(&mut self, hash: u64, key: &[u8], version: u64) -> bool {
        let table = &mut self.tables[Self::table_of(hash)];
        let found = table.find_entry(hash, |entry| {
            let entry = entry.get();
            entry.key() == key && entry.is_tombstone() && entry.version() == version
        });
        let Ok(found) = found else {
            return false;
        };
        let (entry, _) = found.remove();
        self.tombstones -= 1;
        self.tombstone_key_bytes -= key.len() as u64;
        entry.get().free();
        true
    }

    /// Takes in a record that recovery found, in any order: the highest version wins, of copies any.
    pub(super) fn recover(&mut self, key: &[u8], change: Durable<Change>) {
        let change = change.into_inner();
        let hash = self.hash(key);
        let hasher = &self.hasher;
        let table = &mut self.tables[Self::table_of(hash)];
        let slot = table.entry(
            hash,
            |entry| entry.key() == key,
            |entry| hasher.hash_one(entry.key()),
        );
        let entry = match slot {
            Slot::Occupied(occupied) => occupied.get().get(),
            Slot::Vacant(vacant) => {
                let entry = EntryRef::new(key);
                self.recovered.push(entry.pack());
                vacant.insert(entry.pack());
                entry
            }
        };
        // A new entry has version 0, which no record has.
        if entry.version() >= change.version {
            return;
        }
        entry.set(
            change.version,
            change.location,
            change.value_len,
            change.kind == RecordKind::Delete,
        );
    }

    /// Makes room for about so many keys of a recovery: growing step by step would move each of them several times.
    pub(super) fn expect_keys(&mut self, keys: u64) {
        let of_table = usize::try_from(keys).unwrap_or(usize::MAX) / SUB_TABLES;
        let hasher = &self.hasher;
        for table in &mut self.tables {
            table.reserve(of_table, |entry| hasher.hash_one(entry.key()));
        }
    }

    /// Ends recovery: builds the ordered index at once. Calls `live` for each record that is needed on disk, with
    /// whether it is a tombstone.
    pub(super) fn finish_recovery(&mut self, mut live: impl FnMut(Location, bool)) {
        // In the order in which they were made, so that memory is read from front to back.
        let mut recovered = std::mem::take(&mut self.recovered);
        let mut shared: Option<(EntryRef, usize)> = None;
        recovered.retain(|entry| {
            let entry = entry.get();
            let key = entry.key();
            live(entry.location(), entry.is_tombstone());
            if entry.is_tombstone() {
                self.tombstones += 1;
                self.tombstone_key_bytes += key.len() as u64;
                return false;
            }
            self.keys += 1;
            self.key_bytes += key.len() as u64;
            self.value_bytes += entry.value_len() as u64;
            shared = Some(match shared {
                None => (entry, key.len()),
                Some((first, bytes)) => (first, shared_bytes(&first.key()[..bytes], key)),
            });
            true
        });
        // What all keys begin with says nothing of their order. Most comparisons end at the bytes behind that, beside the
        // pointer, and touch no entry.
        let skipped = shared.map_or(0, |(_, bytes)| bytes);
        let entries = recovered.iter().map(|entry| {
            let entry = entry.get();
            (leading_bytes(entry.key(), skipped), entry)
        });
        let mut entries: Vec<(u64, EntryRef)> = entries.collect();
        drop(recovered);
        entries.sort_unstable_by(|left, right| {
            left.0
                .cmp(&right.0)
                .then_with(|| left.1.key().cmp(right.1.key()))
        });
        self.ordered = Ordered::from_sorted(&entries, skipped);
        // More was expected where much is dead.
        let hasher = &self.hasher;
        for table in &mut self.tables {
            if table.capacity() > 2 * table.len() {
                table.shrink_to_fit(|entry| hasher.hash_one(entry.key()));
            }
        }
    }

    /// Keeps a value that was read from disk, if it is still the newest and there is a cache.
    pub(super) fn cache_value(&mut self, key: &[u8], version: u64, value: &[u8]) {
        let hash = self.hash(key);
        if let Some(entry) = self
            .find(hash, key)
            .filter(|entry| entry.version() == version || planted(Plant::CacheStale))
        {
            self.cache.insert(entry, value);
        }
    }

    /// Takes a value into the cache if it is the newest, not there yet and nothing has to go for it.
    pub(super) fn warm_value(&mut self, key: &[u8], version: u64, value: &[u8]) -> Warmed {
        if !self.cache.has_room_for(value.len()) {
            return Warmed::Full;
        }
        let hash = self.hash(key);
        if let Some(entry) = self
            .find(hash, key)
            .filter(|entry| entry.version() == version && entry.value_len() == value.len())
            && self.cache.get(entry).is_none()
        {
            self.cache.insert(entry, value);
            return Warmed::Taken;
        }
        Warmed::Skipped
    }

    /// Present keys from the first one that starts with `prefix` and is greater than `after`, in order, with the
    /// cached values where there are some.
    pub(super) fn range<'a>(
        &'a self,
        prefix: &'a [u8],
        after: &'a [u8],
    ) -> impl Iterator<Item = (Present<'a>, Option<CachedValue>)> + 'a {
        let from = if after >= prefix && !after.is_empty() {
            Bound::Excluded(after)
        } else {
            Bound::Included(prefix)
        };
        self.ordered
            .range(from)
            .take_while(move |packed| packed.key().starts_with(prefix))
            .map(|packed| {
                let entry = packed.get();
                let present = Present {
                    key: packed.key(),
                    version: entry.version(),
                    location: entry.location(),
                    value_len: entry.value_len(),
                };
                (present, self.cache.get(entry))
            })
    }

    /// Present keys.
    pub(super) fn keys(&self) -> u64 {
        self.keys
    }

    /// Deleted keys whose delete must stay on disk.
    pub(super) fn tombstones(&self) -> u64 {
        self.tombstones
    }

    /// Bytes of present keys and values.
    pub(super) fn logical_bytes(&self) -> u64 {
        self.key_bytes + self.value_bytes
    }

    /// Bytes of present values.
    pub(super) fn value_bytes(&self) -> u64 {
        self.value_bytes
    }

    /// Memory of entries (keys included), hash table and ordered index, in bytes, without the allocator's slack.
    pub(super) fn index_bytes(&self) -> u64 {
        let buckets: usize = self
            .tables
            .iter()
            .map(|table| table.capacity() * 8 / 7)
            .sum();
        (self.keys + self.tombstones) * ENTRY_HEADER_BYTES as u64
            + self.key_bytes
            + self.tombstone_key_bytes
            + self.ordered.bytes()
            + buckets as u64 * TABLE_BYTES_PER_BUCKET
    }

    /// Memory used, budget, hits and misses of the cache.
    pub(super) fn cache_stat(&self) -> (u64, u64, u64, u64) {
        (
            self.cache.used_bytes(),
            self.cache.budget_bytes(),
            self.hits,
            self.misses,
        )
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.ordered = Ordered::default();
        for table in &mut self.tables {
            table.drain().for_each(|entry| entry.get().free());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::storage::segment::SegmentId;

    fn change(kind: RecordKind, version: u64, value_len: usize) -> Durable<Change> {
        let location = Location {
            segment: SegmentId(1),
            offset: version as u32,
            bytes: 0,
        };
        Durable::after_recovery(Change {
            kind,
            version,
            location,
            value_len,
        })
    }

    #[test]
    fn agrees_with_a_map_through_random_changes() {
        let mut index = Index::new(1 << 20);
        let mut model: BTreeMap<Vec<u8>, (u64, Vec<u8>)> = BTreeMap::new();
        let mut state = 0x9e37_79b9_u64;
        for version in 1..20_000_u64 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let key = format!("key{:03}", (state >> 33) % 500).into_bytes();
            let hash = index.hash(&key);
            if state >> 62 == 0 {
                if let Some((version_before, _)) = model.remove(&key) {
                    let delete = change(RecordKind::Delete, version, 0);
                    let replaced = index.publish(hash, &key, delete, None).unwrap();
                    assert_eq!(replaced.location.offset, version_before as u32);
                    // Some are forgotten at once, as if nothing on disk needed them.
                    let forgotten = version % 2 == 0;
                    assert_eq!(
                        forgotten,
                        forgotten && index.forget_tombstone(hash, &key, version)
                    );
                    assert!(!index.forget_tombstone(hash, &key, version - 1));
                }
            } else {
                let value = vec![state as u8; (state >> 20) as usize % 3000];
                index.publish(
                    hash,
                    &key,
                    change(RecordKind::Set, version, value.len()),
                    Some(&value),
                );
                model.insert(key, (version, value));
            }
        }
        assert_eq!(index.keys(), model.len() as u64);
        let bytes: usize = model
            .iter()
            .map(|(key, (_, value))| key.len() + value.len())
            .sum();
        assert_eq!(index.logical_bytes(), bytes as u64);
        for (key, (version, value)) in &model {
            let (found, _, cached) = index
                .get(index.hash(key), key)
                .expect("present in the model");
            assert_eq!(found, *version);
            assert!(cached.is_none_or(|cached| *cached == **value));
        }
        let all: Vec<_> = index
            .range(b"key1", b"key150")
            .map(|(present, _)| present.key.to_vec())
            .collect();
        let expected: Vec<_> = model
            .keys()
            .filter(|key| key.starts_with(b"key1") && key[..] > b"key150"[..])
            .cloned()
            .collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn recovery_takes_records_in_any_order() {
        let mut index = Index::new(0);
        index.recover(b"b", change(RecordKind::Delete, 9, 0));
        index.recover(b"b", change(RecordKind::Set, 3, 10));
        index.recover(b"a", change(RecordKind::Set, 8, 10));
        index.recover(b"a", change(RecordKind::Delete, 4, 0));
        index.recover(b"aa", change(RecordKind::Set, 5, 1));
        let mut live = 0;
        let mut tombstones = Vec::new();
        index.finish_recovery(|location, tombstone| match tombstone {
            true => tombstones.push(location.offset),
            false => live += 1,
        });
        let keys: Vec<_> = index
            .range(b"", b"")
            .map(|(present, _)| (present.key.to_vec(), present.version))
            .collect();
        assert_eq!(keys, [(b"a".to_vec(), 8), (b"aa".to_vec(), 5)]);
        assert_eq!((live, index.keys(), index.tombstones()), (2, 2, 1));
        assert_eq!(tombstones, [9]);
        assert_eq!(index.version(index.hash(b"b"), b"b"), None);
    }
}

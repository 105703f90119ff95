//! What a store tells of itself.

use crate::storage::disk::Disk;
use crate::storage::store::Store;

/// Counters and sizes of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreStat {
    /// Present keys.
    pub keys: u64,
    /// Bytes of present keys and values.
    pub logical_bytes: u64,
    /// Bytes of records that are the newest of a present key.
    pub disk_live_bytes: u64,
    /// Bytes of tombstones that must stay.
    pub disk_tombstone_bytes: u64,
    /// The rest of what the log holds: what compaction can win back.
    pub disk_dead_bytes: u64,
    /// Size of all segment files, those for segments to come included.
    pub disk_allocated_bytes: u64,
    /// Segments of the log, those that it lists of other logs included.
    pub segments: u32,
    /// Those of them that were written under another number of shards and are kept by this one.
    pub foreign_segments: u32,
    /// Bytes of this shard's live records in such segments, also in those that others keep: they are moved out.
    pub migrating_bytes: u64,
    /// Deleted keys whose tombstone must stay: an older record of the key may still be on disk.
    pub tombstones: u64,
    /// Records that compaction has copied since the start.
    pub compacted_records: u64,
    /// Their bytes.
    pub compacted_bytes: u64,
    /// Segments that compaction has retired since the start.
    pub retired_segments: u64,
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
    /// Values that were to be brought back, as far as the cache has room for them.
    pub warm_total_bytes: u64,
    /// Bytes of sealed segments that were read again and checked since the start.
    pub scrubbed_bytes: u64,
    /// How often since the start all sealed segments were.
    pub scrub_passes: u64,
    /// Damaged places that this found in segments of the log, up to a limit.
    pub damaged_places: u64,
    /// No room for another segment.
    pub out_of_space: bool,
}

impl<D: Disk, W> Store<D, W> {
    /// Counters and sizes.
    pub fn stat(&self) -> StoreStat {
        let index = self.index.borrow();
        let pending = self.pending.borrow();
        let segments = self.segments.borrow();
        let totals = segments.totals();
        let (cache_bytes, cache_budget_bytes, cache_hits, cache_misses) = index.cache_stat();
        let (commits, commit_records, commit_bytes) = self.commits.get();
        let (kept, kept_bytes) = self.foreign.borrow().kept();
        StoreStat {
            keys: index.keys(),
            logical_bytes: index.logical_bytes(),
            disk_live_bytes: totals.live - totals.tombstones,
            disk_tombstone_bytes: totals.tombstones,
            disk_dead_bytes: totals.used - (totals.live - totals.foreign_live),
            disk_allocated_bytes: totals.allocated + kept_bytes + self.spares.bytes(),
            tombstones: index.tombstones(),
            compacted_records: self.upkeep.moved_records.get(),
            compacted_bytes: self.upkeep.moved_bytes.get(),
            retired_segments: self.upkeep.retired_segments.get(),
            segments: (segments.count() + kept) as u32,
            foreign_segments: kept as u32,
            migrating_bytes: totals.foreign_live,
            queue_depth: (pending.records() + self.lane.borrow().len()) as u64,
            queue_bytes: self.waiting_bytes() as u64,
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
            warm_total_bytes: self.warm_total_bytes.get(),
            scrubbed_bytes: self.scrubbed.bytes.get(),
            scrub_passes: self.scrubbed.passes.get(),
            damaged_places: self
                .scrubbed
                .damaged_places(|id| segments.get(id).is_some()),
            out_of_space: self.spares.is_out_of_space(),
        }
    }
}

//! What a server tells about itself: the plain counterparts of the schema's `ServerInfo` and `Stat`, field by field, and
//! their conversion. The schema has the full meaning of each field.

use super::ClientError;
use super::error::malformed;
use crate::proto::orlop_capnp::{limits, placement, server_info, shard_stat, stat};

/// What a client may need to know of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// Version of the server.
    pub server_version: String,
    /// 16 bytes, made at random when the directory was created.
    pub store_uuid: Vec<u8>,
    /// The limits in force.
    pub limits: Limits,
    /// Where keys live.
    pub placement: Placement,
    /// The TCP port of each shard, in shard order, on the address that the client reached the server by. A connection
    /// to it is served by that shard's core. Any connection serves any key; the ports only save a hop.
    pub shard_ports: Vec<u16>,
}

/// The limits in force, in bytes unless they count something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Longest key.
    pub key_bytes_max: u32,
    /// Longest value.
    pub value_bytes_max: u32,
    /// Largest message that the server reads.
    pub message_bytes_max: u32,
    /// Keys in a `getMany`, mutations in a `write`.
    pub batch_max: u32,
    /// Entries in one page.
    pub page_entries_max: u32,
    /// Keys and values in one page.
    pub page_bytes_max: u32,
    /// Keys and values in one answer of `getMany`.
    pub answer_bytes_max: u32,
    /// Calls in flight on one connection; more are answered `overloaded`.
    pub connection_calls_max: u32,
}

/// Where keys live: the owner of a key is `(hash(key, seed) * shard_count) >> 64`, a 128-bit product.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// "xxh3-64": XXH3 with 64-bit result, seeded.
    pub hash: String,
    /// Seed of the hash.
    pub seed: u64,
    /// The owner of a key is (hash(key, seed) * shardCount) >> 64, a 128-bit product.
    pub shard_count: u32,
}

/// Counters and sizes of the whole server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Version of the server.
    pub server_version: String,
    /// When the server started, in milliseconds of Unix time.
    pub started_at_unix_ms: u64,
    /// Milliseconds since then.
    pub uptime_ms: u64,
    /// Since the start, by keys: a `write` of three sets counts three, a `getMany` of ten keys counts ten.
    pub sets: u64,
    /// Keys read since the start.
    pub gets: u64,
    /// Keys deleted since the start.
    pub deletes: u64,
    /// Calls of `getPrefix` and `streamPrefix`.
    pub get_prefixes: u64,
    /// Since the start, by keys: gets, sets and deletes that came by another shard's connection than their key's owner's.
    pub forwarded: u64,
    /// Keys that are present.
    pub keys: u64,
    /// Keys and values that are present.
    pub logical_bytes: u64,
    /// Records on disk that are the newest of a present key.
    pub disk_live_bytes: u64,
    /// Deletes that must stay on disk, because an older record of the key may still be there.
    pub disk_tombstone_bytes: u64,
    /// What compaction can win back: overwritten and deleted records, headers, padding.
    pub disk_dead_bytes: u64,
    /// Size of all segment files, those for segments to come included.
    pub disk_allocated_bytes: u64,
    /// Records that compaction has copied since the start.
    pub compacted_bytes: u64,
    /// Values held in memory.
    pub cache_bytes: u64,
    /// How much of them may be held.
    pub cache_budget_bytes: u64,
    /// Reads answered from memory.
    pub cache_hits: u64,
    /// Reads that went to the disk.
    pub cache_misses: u64,
    /// Memory of the hash and ordered indexes, keys included.
    pub index_bytes: u64,
    /// Of the process, as the kernel counts it.
    pub resident_bytes: u64,
    /// Open connections.
    pub connections: u32,
    /// From the start of the process to the ready line.
    pub recovery_ms: u64,
    /// Records found by the recovery.
    pub recovered_records: u64,
    /// Bytes of sealed segments that were read again and checked in the background since the start.
    pub scrubbed_bytes: u64,
    /// How often since the start all shards have read all their sealed segments.
    pub scrub_passes: u64,
    /// Damaged places of the log that this found. A restart is refused while there are any; the log names each.
    pub damaged_places: u64,
    /// Segments of the log that were written under another number of shards; 0: nothing is left of it.
    pub foreign_segments: u64,
    /// Bytes of present records that are still in such segments: they are moved out in the background.
    pub migrating_bytes: u64,
    /// 16 bytes, made at random when the store was created.
    pub store_uuid: Vec<u8>,
    /// Each shard, in shard order.
    pub shards: Vec<ShardStat>,
}

/// Counters and sizes of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStat {
    /// Number of the shard.
    pub shard: u32,
    /// Keys that are present.
    pub keys: u64,
    /// Keys written since the start.
    pub sets: u64,
    /// Keys read since the start.
    pub gets: u64,
    /// Keys deleted since the start.
    pub deletes: u64,
    /// Prefix reads since the start.
    pub get_prefixes: u64,
    /// Keys of gets, sets and deletes that arrived on this shard's connections and went on to their owner.
    pub forwarded: u64,
    /// Writes accepted and not yet durable.
    pub queue_depth: u64,
    /// Bytes of the writes accepted and not yet durable.
    pub queue_bytes: u64,
    /// Frames written: one device write each.
    pub commits: u64,
    /// Records in all frames.
    pub commit_records: u64,
    /// Of frames, headers and padding included.
    pub commit_bytes: u64,
    /// Median time of a commit, in microseconds.
    pub commit_p50_us: u64,
    /// 99th percentile of it.
    pub commit_p99_us: u64,
    /// The longest.
    pub commit_max_us: u64,
    /// The longest that this shard's executor was late for its heartbeat.
    pub stall_max_us: u64,
    /// The newest version that the shard gave out.
    pub last_version: u64,
    /// Log files.
    pub segments: u32,
    /// Keys and values that are present.
    pub logical_bytes: u64,
    /// Records on disk that are the newest of a present key.
    pub disk_live_bytes: u64,
    /// Deleted keys whose delete must stay on disk.
    pub tombstones: u64,
    /// Their records.
    pub disk_tombstone_bytes: u64,
    /// What compaction can win back.
    pub disk_dead_bytes: u64,
    /// Size of all segment files.
    pub disk_allocated_bytes: u64,
    /// Records that compaction has copied since the start.
    pub compacted_records: u64,
    /// Their bytes.
    pub compacted_bytes: u64,
    /// Segments that compaction has emptied since the start.
    pub retired_segments: u64,
    /// Values held in memory.
    pub cache_bytes: u64,
    /// How much of them may be held.
    pub cache_budget_bytes: u64,
    /// Reads answered from memory.
    pub cache_hits: u64,
    /// Reads that went to the disk.
    pub cache_misses: u64,
    /// Memory of the indexes, keys included.
    pub index_bytes: u64,
    /// How long the recovery took, in milliseconds.
    pub recovery_ms: u64,
    /// Records found by the recovery.
    pub recovered_records: u64,
    /// Values brought back into memory after the start.
    pub warmed_bytes: u64,
    /// Whether values are still being brought back.
    pub warming: bool,
    /// Whether writes are refused because the disk is full.
    pub out_of_space: bool,
    /// Open connections.
    pub connections: u32,
    /// Bytes of log read by the recovery.
    pub recovered_bytes: u64,
    /// Bytes of sealed segments that were read again and checked in the background since the start.
    pub scrubbed_bytes: u64,
    /// How often all sealed segments were.
    pub scrub_passes: u64,
    /// Damaged places of the log that this found; at most 1024 are counted.
    pub damaged_places: u64,
    /// What `warmed_bytes` is on its way to while `warming`: the values that were present at the start, as far as there
    /// is room for them.
    pub warm_total_bytes: u64,
    /// Segments written under another number of shards that this shard keeps until no shard needs them.
    pub foreign_segments: u32,
    /// Bytes of this shard's records in such segments, whoever keeps them.
    pub migrating_bytes: u64,
}

impl ServerInfo {
    pub(super) fn read(from: server_info::Reader<'_>) -> Result<Self, ClientError> {
        Ok(Self {
            server_version: from
                .get_server_version()
                .map_err(malformed)?
                .to_string()
                .map_err(|error| malformed(error.into()))?,
            store_uuid: from.get_store_uuid().map_err(malformed)?.to_vec(),
            limits: Limits::read(from.get_limits().map_err(malformed)?),
            placement: Placement::read(from.get_placement().map_err(malformed)?)?,
            shard_ports: from.get_shard_ports().map_err(malformed)?.iter().collect(),
        })
    }
}

impl Limits {
    pub(super) fn read(from: limits::Reader<'_>) -> Self {
        Self {
            key_bytes_max: from.get_key_bytes_max(),
            value_bytes_max: from.get_value_bytes_max(),
            message_bytes_max: from.get_message_bytes_max(),
            batch_max: from.get_batch_max(),
            page_entries_max: from.get_page_entries_max(),
            page_bytes_max: from.get_page_bytes_max(),
            answer_bytes_max: from.get_answer_bytes_max(),
            connection_calls_max: from.get_connection_calls_max(),
        }
    }
}

impl Placement {
    pub(super) fn read(from: placement::Reader<'_>) -> Result<Self, ClientError> {
        Ok(Self {
            hash: from
                .get_hash()
                .map_err(malformed)?
                .to_string()
                .map_err(|error| malformed(error.into()))?,
            seed: from.get_seed(),
            shard_count: from.get_shard_count(),
        })
    }
}

impl Stat {
    pub(super) fn read(from: stat::Reader<'_>) -> Result<Self, ClientError> {
        Ok(Self {
            server_version: from
                .get_server_version()
                .map_err(malformed)?
                .to_string()
                .map_err(|error| malformed(error.into()))?,
            started_at_unix_ms: from.get_started_at_unix_ms(),
            uptime_ms: from.get_uptime_ms(),
            sets: from.get_sets(),
            gets: from.get_gets(),
            deletes: from.get_deletes(),
            get_prefixes: from.get_get_prefixes(),
            forwarded: from.get_forwarded(),
            keys: from.get_keys(),
            logical_bytes: from.get_logical_bytes(),
            disk_live_bytes: from.get_disk_live_bytes(),
            disk_tombstone_bytes: from.get_disk_tombstone_bytes(),
            disk_dead_bytes: from.get_disk_dead_bytes(),
            disk_allocated_bytes: from.get_disk_allocated_bytes(),
            compacted_bytes: from.get_compacted_bytes(),
            cache_bytes: from.get_cache_bytes(),
            cache_budget_bytes: from.get_cache_budget_bytes(),
            cache_hits: from.get_cache_hits(),
            cache_misses: from.get_cache_misses(),
            index_bytes: from.get_index_bytes(),
            resident_bytes: from.get_resident_bytes(),
            connections: from.get_connections(),
            recovery_ms: from.get_recovery_ms(),
            recovered_records: from.get_recovered_records(),
            scrubbed_bytes: from.get_scrubbed_bytes(),
            scrub_passes: from.get_scrub_passes(),
            damaged_places: from.get_damaged_places(),
            foreign_segments: from.get_foreign_segments(),
            migrating_bytes: from.get_migrating_bytes(),
            store_uuid: from.get_store_uuid().map_err(malformed)?.to_vec(),
            shards: from
                .get_shards()
                .map_err(malformed)?
                .iter()
                .map(ShardStat::read)
                .collect(),
        })
    }
}

impl ShardStat {
    pub(super) fn read(from: shard_stat::Reader<'_>) -> Self {
        Self {
            shard: from.get_shard(),
            keys: from.get_keys(),
            sets: from.get_sets(),
            gets: from.get_gets(),
            deletes: from.get_deletes(),
            get_prefixes: from.get_get_prefixes(),
            forwarded: from.get_forwarded(),
            queue_depth: from.get_queue_depth(),
            queue_bytes: from.get_queue_bytes(),
            commits: from.get_commits(),
            commit_records: from.get_commit_records(),
            commit_bytes: from.get_commit_bytes(),
            commit_p50_us: from.get_commit_p50_us(),
            commit_p99_us: from.get_commit_p99_us(),
            commit_max_us: from.get_commit_max_us(),
            stall_max_us: from.get_stall_max_us(),
            last_version: from.get_last_version(),
            segments: from.get_segments(),
            logical_bytes: from.get_logical_bytes(),
            disk_live_bytes: from.get_disk_live_bytes(),
            tombstones: from.get_tombstones(),
            disk_tombstone_bytes: from.get_disk_tombstone_bytes(),
            disk_dead_bytes: from.get_disk_dead_bytes(),
            disk_allocated_bytes: from.get_disk_allocated_bytes(),
            compacted_records: from.get_compacted_records(),
            compacted_bytes: from.get_compacted_bytes(),
            retired_segments: from.get_retired_segments(),
            cache_bytes: from.get_cache_bytes(),
            cache_budget_bytes: from.get_cache_budget_bytes(),
            cache_hits: from.get_cache_hits(),
            cache_misses: from.get_cache_misses(),
            index_bytes: from.get_index_bytes(),
            recovery_ms: from.get_recovery_ms(),
            recovered_records: from.get_recovered_records(),
            warmed_bytes: from.get_warmed_bytes(),
            warming: from.get_warming(),
            out_of_space: from.get_out_of_space(),
            connections: from.get_connections(),
            recovered_bytes: from.get_recovered_bytes(),
            scrubbed_bytes: from.get_scrubbed_bytes(),
            scrub_passes: from.get_scrub_passes(),
            damaged_places: from.get_damaged_places(),
            warm_total_bytes: from.get_warm_total_bytes(),
            foreign_segments: from.get_foreign_segments(),
            migrating_bytes: from.get_migrating_bytes(),
        }
    }
}

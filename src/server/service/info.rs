//! What the server says of itself: `info` for clients that start, `stat` for people who watch.

use crate::limits;
use crate::placement::PLACEMENT_HASH;
use crate::proto::orlop_capnp::{placement, server_info, shard_stat, stat};
use crate::server::process::Process;
use crate::shard::ShardStat;

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

fn bound(limit: usize) -> u32 {
    u32::try_from(limit).expect("limits are below 4 GiB")
}

pub(super) fn server_info(process: &Process, mut info: server_info::Builder<'_>) {
    info.set_server_version(VERSION);
    info.set_store_uuid(&process.store_uuid);
    let mut at = info.reborrow().init_limits();
    at.set_key_bytes_max(bound(limits::KEY_LEN_MAX));
    at.set_value_bytes_max(bound(process.value_len_max));
    at.set_message_bytes_max(bound(limits::MESSAGE_BYTES_MAX));
    at.set_batch_max(bound(limits::BATCH_MAX));
    at.set_page_entries_max(bound(limits::PAGE_ENTRIES_MAX));
    at.set_page_bytes_max(bound(limits::PAGE_BYTES_MAX));
    at.set_answer_bytes_max(bound(limits::ANSWER_BYTES_MAX));
    at.set_connection_calls_max(bound(limits::CONNECTION_CALLS_MAX));
    placement(process, info.reborrow().init_placement());
    let mut ports = info.init_shard_ports(bound(process.ports.len()));
    for (at, port) in (0..).zip(&process.ports) {
        ports.set(at, *port);
    }
}

/// Which shard owns a key.
pub(super) fn placement(process: &Process, mut at: placement::Builder<'_>) {
    at.set_hash(PLACEMENT_HASH);
    at.set_seed(process.placement.seed());
    at.set_shard_count(u32::from(process.placement.shard_count()));
}

/// Adds up a field over all shards.
fn sum(shards: &[ShardStat], field: impl Fn(&ShardStat) -> u64) -> u64 {
    shards.iter().map(field).sum()
}

pub(super) fn stat(process: &Process, shards: &[ShardStat], mut stat: stat::Builder<'_>) {
    stat.set_server_version(VERSION);
    stat.set_store_uuid(&process.store_uuid);
    stat.set_started_at_unix_ms(process.started_at_unix_ms);
    stat.set_uptime_ms(process.uptime_ms());
    stat.set_recovery_ms(process.recovery_ms());
    stat.set_resident_bytes(process.resident_bytes());
    stat.set_connections(process.connections.total());
    stat.set_sets(sum(shards, |shard| shard.sets));
    stat.set_gets(sum(shards, |shard| shard.gets));
    stat.set_deletes(sum(shards, |shard| shard.deletes));
    stat.set_get_prefixes(sum(shards, |shard| shard.get_prefixes));
    stat.set_forwarded(sum(shards, |shard| shard.forwarded));
    stat.set_keys(sum(shards, |shard| shard.store.keys));
    stat.set_logical_bytes(sum(shards, |shard| shard.store.logical_bytes));
    stat.set_disk_live_bytes(sum(shards, |shard| shard.store.disk_live_bytes));
    stat.set_disk_dead_bytes(sum(shards, |shard| shard.store.disk_dead_bytes));
    stat.set_disk_tombstone_bytes(sum(shards, |shard| shard.store.disk_tombstone_bytes));
    stat.set_compacted_bytes(sum(shards, |shard| shard.store.compacted_bytes));
    stat.set_disk_allocated_bytes(sum(shards, |shard| shard.store.disk_allocated_bytes));
    stat.set_cache_bytes(sum(shards, |shard| shard.store.cache_bytes));
    stat.set_cache_budget_bytes(sum(shards, |shard| shard.store.cache_budget_bytes));
    stat.set_cache_hits(sum(shards, |shard| shard.store.cache_hits));
    stat.set_cache_misses(sum(shards, |shard| shard.store.cache_misses));
    stat.set_index_bytes(sum(shards, |shard| shard.store.index_bytes));
    stat.set_recovered_records(sum(shards, |shard| shard.recovered_records));
    stat.set_scrubbed_bytes(sum(shards, |shard| shard.store.scrubbed_bytes));
    stat.set_foreign_segments(sum(shards, |shard| shard.store.foreign_segments.into()));
    stat.set_migrating_bytes(sum(shards, |shard| shard.store.migrating_bytes));
    let passes = shards.iter().map(|shard| shard.store.scrub_passes);
    stat.set_scrub_passes(passes.min().unwrap_or(0));
    stat.set_damaged_places(sum(shards, |shard| shard.store.damaged_places));
    let mut at = stat.init_shards(bound(shards.len()));
    for (number, shard) in (0..).zip(shards) {
        shard_stat(process, shard, at.reborrow().get(number));
    }
}

fn shard_stat(process: &Process, shard: &ShardStat, mut at: shard_stat::Builder<'_>) {
    at.set_shard(u32::from(shard.shard));
    at.set_connections(process.connections.of_shard(shard.shard));
    at.set_keys(shard.store.keys);
    at.set_sets(shard.sets);
    at.set_gets(shard.gets);
    at.set_deletes(shard.deletes);
    at.set_get_prefixes(shard.get_prefixes);
    at.set_forwarded(shard.forwarded);
    at.set_queue_depth(shard.store.queue_depth);
    at.set_queue_bytes(shard.store.queue_bytes);
    at.set_commits(shard.store.commits);
    at.set_commit_records(shard.store.commit_records);
    at.set_commit_bytes(shard.store.commit_bytes);
    at.set_commit_p50_us(shard.commit_p50_us);
    at.set_commit_p99_us(shard.commit_p99_us);
    at.set_commit_max_us(shard.commit_max_us);
    at.set_stall_max_us(shard.stall_max_us);
    at.set_last_version(shard.store.last_version);
    at.set_segments(shard.store.segments);
    at.set_logical_bytes(shard.store.logical_bytes);
    at.set_disk_live_bytes(shard.store.disk_live_bytes);
    at.set_disk_dead_bytes(shard.store.disk_dead_bytes);
    at.set_tombstones(shard.store.tombstones);
    at.set_disk_tombstone_bytes(shard.store.disk_tombstone_bytes);
    at.set_compacted_records(shard.store.compacted_records);
    at.set_compacted_bytes(shard.store.compacted_bytes);
    at.set_retired_segments(shard.store.retired_segments);
    at.set_disk_allocated_bytes(shard.store.disk_allocated_bytes);
    at.set_cache_bytes(shard.store.cache_bytes);
    at.set_cache_budget_bytes(shard.store.cache_budget_bytes);
    at.set_cache_hits(shard.store.cache_hits);
    at.set_cache_misses(shard.store.cache_misses);
    at.set_index_bytes(shard.store.index_bytes);
    at.set_recovery_ms(shard.recovery_ms);
    at.set_recovered_records(shard.recovered_records);
    at.set_recovered_bytes(shard.recovered_bytes);
    at.set_warmed_bytes(shard.store.warmed_bytes);
    at.set_foreign_segments(shard.store.foreign_segments);
    at.set_migrating_bytes(shard.store.migrating_bytes);
    at.set_warm_total_bytes(shard.store.warm_total_bytes);
    at.set_warming(shard.warming);
    at.set_scrubbed_bytes(shard.store.scrubbed_bytes);
    at.set_scrub_passes(shard.store.scrub_passes);
    at.set_damaged_places(shard.store.damaged_places);
    at.set_out_of_space(shard.store.out_of_space);
}

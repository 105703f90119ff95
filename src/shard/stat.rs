//! What a shard tells of itself. Counters are plain cells of the shard's own thread; nothing here costs the hot path
//! an atomic.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::storage::{Recovered, StoreStat};

/// Figures of one shard; `schema/orlop.capnp` says what each means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardStat {
    /// The shard, from 0.
    pub shard: u16,
    /// Sets since the start, by keys.
    pub sets: u64,
    /// Gets since the start, by keys.
    pub gets: u64,
    /// Deletes since the start, by keys.
    pub deletes: u64,
    /// Calls of `getPrefix` and `streamPrefix` that arrived at this shard.
    pub get_prefixes: u64,
    /// Keys of gets, sets and deletes that arrived at this shard and went on to their owner.
    pub forwarded: u64,
    /// Median duration of a commit, in microseconds.
    pub commit_p50_us: u64,
    /// 99th percentile of the duration of a commit, in microseconds.
    pub commit_p99_us: u64,
    /// Longest commit, in microseconds.
    pub commit_max_us: u64,
    /// The longest that the executor was late for its heartbeat, in microseconds.
    pub stall_max_us: u64,
    /// Duration of recovery, in milliseconds.
    pub recovery_ms: u64,
    /// Records that recovery read.
    pub recovered_records: u64,
    /// Bytes of log that recovery read.
    pub recovered_bytes: u64,
    /// Whether values are still being brought back into memory.
    pub warming: bool,
    /// Counters and sizes of the store.
    pub store: StoreStat,
}

/// Commits longer than this count as this long.
const COMMIT_MAX: Duration = Duration::from_secs(60);

/// The counters of one shard.
pub(super) struct Counters {
    pub(super) sets: Cell<u64>,
    pub(super) gets: Cell<u64>,
    pub(super) deletes: Cell<u64>,
    pub(super) get_prefixes: Cell<u64>,
    pub(super) forwarded: Cell<u64>,
    pub(super) stall_max_us: Cell<u64>,
    pub(super) warming: Cell<bool>,
    commit_us: RefCell<Histogram<u64>>,
    recovery: Duration,
    recovered: Recovered,
}

/// Adds to a counter.
pub(super) fn count(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

impl Counters {
    pub(super) fn new(recovery: Duration, recovered: Recovered) -> Counters {
        let commit_us = Histogram::new_with_max(COMMIT_MAX.as_micros() as u64, 2)
            .expect("constant bounds are valid");
        Counters {
            sets: Cell::default(),
            gets: Cell::default(),
            deletes: Cell::default(),
            get_prefixes: Cell::default(),
            forwarded: Cell::default(),
            stall_max_us: Cell::default(),
            warming: Cell::new(true),
            commit_us: RefCell::new(commit_us),
            recovery,
            recovered,
        }
    }

    pub(super) fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    pub(super) fn commit_took(&self, duration: Duration) {
        self.commit_us
            .borrow_mut()
            .saturating_record(duration.as_micros() as u64);
    }

    pub(super) fn stat(&self, shard: u16, store: StoreStat) -> ShardStat {
        let commit_us = self.commit_us.borrow();
        ShardStat {
            shard,
            sets: self.sets.get(),
            gets: self.gets.get(),
            deletes: self.deletes.get(),
            get_prefixes: self.get_prefixes.get(),
            forwarded: self.forwarded.get(),
            commit_p50_us: commit_us.value_at_quantile(0.5),
            commit_p99_us: commit_us.value_at_quantile(0.99),
            commit_max_us: commit_us.max(),
            stall_max_us: self.stall_max_us.get(),
            recovery_ms: self.recovery.as_millis() as u64,
            recovered_records: self.recovered.records,
            recovered_bytes: self.recovered.bytes,
            warming: self.warming.get(),
            store,
        }
    }
}

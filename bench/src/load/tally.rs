//! What is counted while a load runs: calls, keys and latencies per kind of operation.
//!
//! Only what belongs to the measured window is recorded; the caller decides that. One thread, no atomics.
//! Filled by workers, read by the report.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::mix::Kind;

/// Latencies up to an hour in nanoseconds, three significant digits.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

pub(crate) struct KindTally {
    pub(crate) latencies_ns: Histogram<u64>,
    pub(crate) calls: u64,
    /// Keys read or written, entries of pages.
    pub(crate) keys: u64,
    /// Operations of an open loop that were due and never answered, as the connection was busy to the end. Their latency
    /// so far, which is less than they would have had, is among the latencies.
    pub(crate) overdue: u64,
}

pub(crate) struct Tally {
    kinds: [KindTally; Kind::COUNT],
    /// Keys that reads did not find.
    pub(crate) absent: u64,
    /// Calls (and single mutations of `write`) answered `overloaded`.
    pub(crate) overloaded: u64,
}

/// An empty histogram for latencies in nanoseconds.
pub(crate) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are in range")
}

impl Tally {
    pub(crate) fn new() -> Tally {
        let kind = |_| KindTally {
            latencies_ns: latencies(),
            calls: 0,
            keys: 0,
            overdue: 0,
        };
        Tally {
            kinds: Kind::ALL.map(kind),
            absent: 0,
            overloaded: 0,
        }
    }

    /// A call was answered, with so many keys of which so many were absent.
    pub(crate) fn answered(&mut self, kind: Kind, keys: u64, absent: u64) {
        let tally = &mut self.kinds[kind as usize];
        tally.calls += 1;
        tally.keys += keys;
        self.absent += absent;
    }

    /// A call took so long.
    pub(crate) fn took(&mut self, kind: Kind, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let latencies = &mut self.kinds[kind as usize].latencies_ns;
        latencies.saturating_record(nanoseconds.max(1));
    }

    /// An operation was due so long ago and was never answered.
    pub(crate) fn overdue(&mut self, kind: Kind, so_far: Duration) {
        self.kinds[kind as usize].overdue += 1;
        self.took(kind, so_far);
    }

    pub(crate) fn kind(&self, kind: Kind) -> &KindTally {
        &self.kinds[kind as usize]
    }

    pub(crate) fn calls(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.calls).sum()
    }

    pub(crate) fn keys(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.keys).sum()
    }

    pub(crate) fn all_overdue(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.overdue).sum()
    }

    /// Calls whose latency is known, the overdue ones among them.
    pub(crate) fn all_latencies(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.latencies_ns.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_kept_per_kind_and_never_refused() {
        let mut tally = Tally::new();
        for micros in 1..=1000 {
            tally.answered(Kind::Read, 1, 0);
            tally.took(Kind::Read, Duration::from_micros(micros));
        }
        tally.answered(Kind::Write, 64, 1);
        tally.took(Kind::Write, Duration::from_secs(10_000));
        tally.answered(Kind::Write, 64, 2);
        tally.took(Kind::Write, Duration::ZERO);
        let median = tally.kind(Kind::Read).latencies_ns.value_at_quantile(0.5);
        assert!(median.abs_diff(500_000) < 1_000, "{median}");
        assert_eq!(
            (tally.kind(Kind::Write).calls, tally.kind(Kind::Write).keys),
            (2, 128)
        );
        assert_eq!((tally.calls(), tally.keys()), (1002, 1128));
        assert_eq!((tally.all_latencies(), tally.absent), (1002, 3));
        assert_eq!(tally.kind(Kind::Prefix).calls, 0);
    }
}

//! What is counted while a load runs: calls, keys and latencies per kind of operation.
//!
//! Only what ends inside the measured window is recorded; the caller decides that. One thread, no atomics.
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
}

pub(crate) struct Tally {
    kinds: [KindTally; 3],
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
        let kind = || KindTally {
            latencies_ns: latencies(),
            calls: 0,
            keys: 0,
        };
        Tally {
            kinds: [kind(), kind(), kind()],
            absent: 0,
            overloaded: 0,
        }
    }

    pub(crate) fn record(&mut self, kind: Kind, latency: Duration, keys: u64) {
        let tally = &mut self.kinds[kind as usize];
        tally.calls += 1;
        tally.keys += keys;
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        tally.latencies_ns.saturating_record(nanoseconds.max(1));
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_kept_per_kind_and_never_refused() {
        let mut tally = Tally::new();
        for micros in 1..=1000 {
            tally.record(Kind::Read, Duration::from_micros(micros), 1);
        }
        tally.record(Kind::Write, Duration::from_secs(10_000), 64);
        tally.record(Kind::Write, Duration::ZERO, 64);
        let median = tally.kind(Kind::Read).latencies_ns.value_at_quantile(0.5);
        assert!(median.abs_diff(500_000) < 1_000, "{median}");
        assert_eq!(
            (tally.kind(Kind::Write).calls, tally.kind(Kind::Write).keys),
            (2, 128)
        );
        assert_eq!((tally.calls(), tally.keys()), (1002, 1128));
        assert_eq!(tally.kind(Kind::Prefix).calls, 0);
    }
}

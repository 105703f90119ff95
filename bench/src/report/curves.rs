//! What experiments 1 and 3 have in common: the same calls over something that grows, and their latencies as curves.

use super::chart::{Lines, Series, Unit};
use super::sample::{Rounds, Sample};

/// The loads, in the order in which they are shown.
pub(crate) const LOADS: [&str; 2] = ["read-only", "50/50"];

/// What is told apart: load, operation, colour.
pub(crate) const LINES: [(&str, &str, usize); 3] = [
    ("read-only", "GET", 0),
    ("50/50", "GET", 2),
    ("50/50", "SET", 1),
];

/// What grows from left to right.
#[derive(Clone, Copy)]
pub(crate) struct Growing {
    pub(crate) title: &'static str,
    pub(crate) of: fn(&Sample) -> u64,
    pub(crate) shown: fn(u64) -> String,
}

impl Growing {
    pub(crate) fn x(self, group: &Rounds) -> f64 {
        (self.of)(group.first()) as f64
    }

    /// The places at which something was measured; the groups are in their order.
    pub(crate) fn ticks(self, groups: &[Rounds]) -> Vec<(f64, String)> {
        let mut places: Vec<u64> = groups
            .iter()
            .map(|group| (self.of)(group.first()))
            .collect();
        places.dedup();
        let tick = |place: u64| (place as f64, (self.shown)(place));
        places.into_iter().map(tick).collect()
    }
}

/// The groups of one line, in their order.
pub(crate) fn of<'a>(groups: &'a [Rounds], load: &str, operation: &str) -> Vec<&'a Rounds> {
    let wanted = |group: &&Rounds| {
        let sample = group.first();
        sample.load == load && sample.operation == operation
    };
    groups.iter().filter(wanted).collect()
}

/// The plot of medians and 99th percentiles.
pub(crate) fn latencies(groups: &[Rounds], title: &str, growing: Growing) -> String {
    let mut series = Vec::new();
    for (load, operation, colour) in LINES {
        for (dashed, percentile) in [(false, "p50"), (true, "p99")] {
            let point = |group: &Rounds| {
                let us = group.median(|sample| if dashed { sample.p99_us } else { sample.p50_us });
                (growing.x(group), us)
            };
            series.push(Series {
                name: format!("{operation}, {load}, {percentile}"),
                colour,
                dashed,
                points: of(groups, load, operation).into_iter().map(point).collect(),
            });
        }
    }
    Lines {
        title: title.to_owned(),
        x_title: growing.title,
        x_ticks: growing.ticks(groups),
        y_title: "latency",
        unit: Unit::Latency,
        logarithmic: true,
        series,
    }
    .svg()
}

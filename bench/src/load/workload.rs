//! The named workloads: which operations, on which keys, of which sizes.
//!
//! YCSB's are those of its `workloada` to `workloadf`: records of ten fields of 100 bytes as one value of 1,000, keys
//! of 23 bytes, zipfian 0.99. What differs from YCSB is said in `bench/README.md`. ETC is Facebook's pool of that name
//! (see `sizes.rs`), 30 reads to a write. Does not make operations (`trace.rs`). Read by `options.rs`.

use std::fmt;
use std::str::FromStr;

use super::mix::Mix;
use super::random::Distribution;
use super::sizes::Sizes;

/// What a name stands for; an option given on the command line wins.
#[derive(Debug)]
pub(crate) struct Shape {
    name: &'static str,
    pub(crate) mix: Mix,
    pub(crate) distribution: Distribution,
    pub(crate) key_size: Sizes,
    pub(crate) value_size: Sizes,
}

const fn simple(name: &'static str, weights: [u32; 6]) -> Shape {
    Shape {
        name,
        mix: Mix::new(weights),
        distribution: Distribution::Uniform,
        key_size: Sizes::Fixed(16),
        value_size: Sizes::Fixed(512),
    }
}

const fn ycsb(name: &'static str, weights: [u32; 6], distribution: Distribution) -> Shape {
    Shape {
        name,
        mix: Mix::new(weights),
        distribution,
        key_size: Sizes::Fixed(23),
        value_size: Sizes::Fixed(1000),
    }
}

// Weights: read, write, prefix, insert, scan, read-modify-write.
static SHAPES: [Shape; 11] = [
    simple("read-only", [1, 0, 0, 0, 0, 0]),
    simple("half", [50, 50, 0, 0, 0, 0]),
    simple("write-only", [0, 1, 0, 0, 0, 0]),
    simple("prefix", [0, 0, 1, 0, 0, 0]),
    ycsb("ycsb-a", [50, 50, 0, 0, 0, 0], Distribution::Zipfian),
    ycsb("ycsb-b", [95, 5, 0, 0, 0, 0], Distribution::Zipfian),
    ycsb("ycsb-c", [1, 0, 0, 0, 0, 0], Distribution::Zipfian),
    ycsb("ycsb-d", [95, 0, 0, 5, 0, 0], Distribution::Latest),
    ycsb("ycsb-e", [0, 0, 0, 5, 95, 0], Distribution::Zipfian),
    ycsb("ycsb-f", [50, 0, 0, 0, 0, 50], Distribution::Zipfian),
    Shape {
        name: "etc",
        mix: Mix::new([30, 1, 0, 0, 0, 0]),
        distribution: Distribution::Zipfian,
        key_size: Sizes::EtcKeys,
        value_size: Sizes::EtcValues,
    },
];

/// What a load does without a workload; also the sizes and keys of the simple ones.
static UNNAMED: Shape = simple("", [50, 50, 0, 0, 0, 0]);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload(&'static Shape);

impl Workload {
    /// What `workload` sets, or the defaults.
    pub(crate) fn shape(workload: Option<Workload>) -> &'static Shape {
        workload.map_or(&UNNAMED, |workload| workload.0)
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Workload, String> {
        let found = SHAPES.iter().find(|shape| shape.name == text);
        found.map(Workload).ok_or_else(|| {
            let names = SHAPES.each_ref().map(|shape| shape.name).join(", ");
            format!("'{text}' is not a workload: say one of {names}")
        })
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::mix::Kind;

    #[test]
    fn every_name_is_read_and_shown_and_another_is_refused_with_the_list() {
        for shape in &SHAPES {
            let workload: Workload = shape.name.parse().expect(shape.name);
            assert_eq!(workload.to_string(), shape.name);
        }
        let message = "ycsb-g".parse::<Workload>().expect_err("no such workload");
        for part in ["ycsb-g", "read-only", "ycsb-f", "etc"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn ycsbs_shares_are_those_of_its_files() {
        let share = |name: &str, kind: Kind| {
            let mix = Workload::shape(name.parse().ok()).mix;
            let mut random = super::super::random::Random::for_worker(1, 0);
            let drawn = (0..100_000).filter(|_| mix.next(&mut random) == kind);
            drawn.count() as f64 / 1e5
        };
        let expected = [
            ("ycsb-a", Kind::Read, 0.5),
            ("ycsb-a", Kind::Write, 0.5),
            ("ycsb-b", Kind::Write, 0.05),
            ("ycsb-c", Kind::Read, 1.0),
            ("ycsb-d", Kind::Insert, 0.05),
            ("ycsb-e", Kind::Scan, 0.95),
            ("ycsb-e", Kind::Insert, 0.05),
            ("ycsb-f", Kind::ReadModifyWrite, 0.5),
        ];
        for (name, kind, expected) in expected {
            let found = share(name, kind);
            assert!((found - expected).abs() < 0.01, "{name} {kind:?}: {found}");
        }
    }
}

//! How many bytes the key and the value of each number have: always the same, or spread as in Facebook's ETC pool.
//!
//! Guarantees: a size is a function of the key's number alone, so a store that one run filled is read by the next,
//! whatever its seed and its system. The ETC distributions are those of Atikoglu et al., "Workload Analysis of a
//! Large-Scale Key-Value Store" (SIGMETRICS 2012), sections 5.1 and 5.2 and table 5, with the constants that mutilate,
//! the usual load generator for it, has. Does not choose keys. Used by everything that makes a key or a value.

use super::random::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sizes {
    Fixed(usize),
    /// Generalised extreme values, about 36 bytes in the mean.
    EtcKeys,
    /// Half of them below 15 bytes, then a generalised Pareto distribution.
    EtcValues,
}

/// Keys are cut to what every system takes (memcached: 250), and are long enough for their number.
const ETC_KEY_MIN: usize = super::keys::KEY_SIZE_MIN;
const ETC_KEY_MAX: usize = 250;

/// Longest value: ETC's own limit of 1 MB.
const ETC_VALUE_MAX: usize = 1_000_000;

/// Shares of the values of 0 to 14 bytes, table 5 of the paper.
const ETC_VALUE_HEAD: [f64; 15] = [
    0.00536, 0.00047, 0.17820, 0.09239, 0.00018, 0.02740, 0.00065, 0.00606, 0.00023, 0.00837,
    0.00837, 0.08989, 0.00092, 0.00326, 0.01980,
];

// Seeds of the two draws of a number, so that the length of a key says nothing of the length of its value.
const KEY_DRAW: u64 = 0x6b65_7973;
const VALUE_DRAW: u64 = 0x7661_6c75;

impl Sizes {
    /// Bytes for the key with this number.
    pub(crate) fn of(self, number: u64) -> usize {
        let unit = |draw| Random::for_worker(draw, number).unit();
        match self {
            Sizes::Fixed(bytes) => bytes,
            Sizes::EtcKeys => etc_key(unit(KEY_DRAW)),
            Sizes::EtcValues => etc_value(unit(VALUE_DRAW)),
        }
    }

    pub(crate) fn min(self) -> usize {
        match self {
            Sizes::Fixed(bytes) => bytes,
            Sizes::EtcKeys => ETC_KEY_MIN,
            Sizes::EtcValues => 0,
        }
    }

    pub(crate) fn max(self) -> usize {
        match self {
            Sizes::Fixed(bytes) => bytes,
            Sizes::EtcKeys => ETC_KEY_MAX,
            Sizes::EtcValues => ETC_VALUE_MAX,
        }
    }

    /// The one size, if there is only one.
    pub(crate) fn fixed(self) -> Option<usize> {
        match self {
            Sizes::Fixed(bytes) => Some(bytes),
            Sizes::EtcKeys | Sizes::EtcValues => None,
        }
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Sizes::Fixed(bytes) => write!(out, "{bytes} B"),
            Sizes::EtcKeys | Sizes::EtcValues => out.write_str("ETC-like sizes"),
        }
    }
}

fn etc_key(unit: f64) -> usize {
    const LOCATION: f64 = 30.7984;
    const SCALE: f64 = 8.20449;
    const SHAPE: f64 = 0.078_688;
    // A draw of 0 is the left end of the distribution: the logarithm is infinite, the power 0.
    let bytes = LOCATION + SCALE * ((-unit.ln()).powf(-SHAPE) - 1.0) / SHAPE;
    (bytes as usize).clamp(ETC_KEY_MIN, ETC_KEY_MAX)
}

fn etc_value(unit: f64) -> usize {
    const LOCATION: f64 = 15.0;
    const SCALE: f64 = 214.476;
    const SHAPE: f64 = 0.348_238;
    let mut rest = unit;
    for (bytes, share) in ETC_VALUE_HEAD.iter().enumerate() {
        if rest < *share {
            return bytes;
        }
        rest -= share;
    }
    // What is left of the draw is again one from 0 to 1.
    let tail = 1.0 - ETC_VALUE_HEAD.iter().sum::<f64>();
    let bytes = LOCATION + SCALE * ((1.0 - rest / tail).powf(-SHAPE) - 1.0) / SHAPE;
    (bytes as usize).min(ETC_VALUE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: u64 = 100_000;

    fn sorted(sizes: Sizes) -> Vec<usize> {
        let mut all: Vec<usize> = (0..NUMBERS).map(|number| sizes.of(number)).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn a_size_belongs_to_its_number() {
        for sizes in [Sizes::Fixed(7), Sizes::EtcKeys, Sizes::EtcValues] {
            for number in 0..1000 {
                let size = sizes.of(number);
                assert_eq!(size, sizes.of(number));
                assert!(size >= sizes.min() && size <= sizes.max(), "{size}");
            }
        }
    }

    #[test]
    fn etc_values_have_the_papers_head_and_tail() {
        let values = sorted(Sizes::EtcValues);
        let share = |bytes: usize| {
            values.iter().filter(|&&size| size == bytes).count() as f64 / NUMBERS as f64
        };
        for (bytes, expected) in [(2, 0.17820), (3, 0.09239), (11, 0.08989)] {
            assert!((share(bytes) - expected).abs() < 0.005, "{bytes} bytes");
        }
        let head: f64 = ETC_VALUE_HEAD.iter().sum();
        let tail = values.iter().filter(|&&size| size >= 15).count() as f64 / NUMBERS as f64;
        assert!((tail - (1.0 - head)).abs() < 0.005, "{tail}");
        // The median of the tail: 15 + 214.476 * (2^0.348238 - 1) / 0.348238.
        let median = values[((1.0 - tail / 2.0) * NUMBERS as f64) as usize];
        assert!(median.abs_diff(183) < 8, "{median}");
    }

    #[test]
    fn etc_keys_have_the_papers_median_and_reach_neither_limit_often() {
        let keys = sorted(Sizes::EtcKeys);
        // 30.7984 + 8.20449 * (ln(2)^-0.078688 - 1) / 0.078688.
        let median = keys[keys.len() / 2];
        assert!(median.abs_diff(33) <= 1, "{median}");
        let at_limits = |size: &&usize| **size == ETC_KEY_MIN || **size == ETC_KEY_MAX;
        assert!(keys.iter().filter(at_limits).count() < 500);
    }

    #[test]
    fn the_ends_of_a_draw_are_sizes() {
        assert_eq!(etc_key(0.0), ETC_KEY_MIN);
        assert_eq!(etc_value(0.0), 0);
        let last = 1.0 - f64::EPSILON / 2.0;
        assert!(etc_key(last) <= ETC_KEY_MAX);
        assert!(etc_value(last) <= ETC_VALUE_MAX);
    }
}

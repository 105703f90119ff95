//! Where the load's chance comes from: a seeded generator and the distributions of keys.
//!
//! Guarantees: the same seed gives the same sequence on every machine; the zipfian distribution is YCSB's scrambled
//! one, constants included, so that figures compare with other people's. Does not know what a key looks like
//! (`keys.rs`) or which operation is next (`mix.rs`). Every trace owns one generator.

use std::fmt;
use std::str::FromStr;

/// SplitMix64: eight bytes of state, one multiplication chain, good enough to choose keys and far from being a cost.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64: every bit of the input reaches every bit of the output.
pub(crate) fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Random {
    /// A generator for user `index` of `seed` whose sequence shares nothing with its neighbours'.
    pub(crate) fn for_worker(seed: u64, index: u64) -> Random {
        Random(mixed(seed ^ mixed(index.wrapping_add(GOLDEN))))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mixed(self.0)
    }

    /// A number from 0 to `bound - 1`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 to just below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How keys are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distribution {
    Uniform,
    /// Some keys are hot, anywhere in the key space.
    Zipfian,
    /// The newest key is the hottest.
    Latest,
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Distribution, String> {
        match text {
            "uniform" => Ok(Distribution::Uniform),
            "zipfian" => Ok(Distribution::Zipfian),
            "latest" => Ok(Distribution::Latest),
            _ => Err(format!(
                "'{text}' is not a distribution: say uniform, zipfian or latest"
            )),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Distribution::Uniform => "uniform",
            Distribution::Zipfian => "zipfian",
            Distribution::Latest => "latest",
        })
    }
}

const THETA: f64 = 0.99;

// YCSB's ScrambledZipfianGenerator draws a rank among this many items whatever the number of keys, with this zeta.
// The two belong together; recent revisions of YCSB changed the count and kept the constant, and so mean this pair.
const ITEMS: f64 = 1e10;
const ZETA_ITEMS: f64 = 26.469_028_201_783_02;

/// Terms of a zeta that are added one by one; the rest is an integral with its first correction, right to ten digits.
const ZETA_TERMS_MAX: u64 = 10_000;

/// Ranks of `items` items, the first the most popular, as YCSB's ZipfianGenerator computes them.
#[derive(Debug, Clone)]
struct Ranks {
    items: f64,
    zeta: f64,
    eta: f64,
}

impl Ranks {
    fn new(items: f64, zeta: f64) -> Ranks {
        let zeta_two = 1.0 + 0.5f64.powf(THETA);
        let eta = (1.0 - (2.0 / items).powf(1.0 - THETA)) / (1.0 - zeta_two / zeta);
        Ranks { items, zeta, eta }
    }

    /// Among `items` of them, at least 1.
    fn of(items: u64) -> Ranks {
        Ranks::new(items as f64, zeta(items))
    }

    /// The rank for `unit` in 0..1.
    fn rank(&self, unit: f64) -> u64 {
        let scaled = unit * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(THETA) {
            return 1;
        }
        let alpha = 1.0 / (1.0 - THETA);
        (self.items * (self.eta * unit - self.eta + 1.0).powf(alpha)) as u64
    }
}

/// The sum of `rank^-THETA` for ranks 1 to `items`.
fn zeta(items: u64) -> f64 {
    let terms = items.min(ZETA_TERMS_MAX);
    let head: f64 = (1..=terms).map(|rank| (rank as f64).powf(-THETA)).sum();
    let (first, last) = (terms as f64, items as f64);
    let integral = (last.powf(1.0 - THETA) - first.powf(1.0 - THETA)) / (1.0 - THETA);
    head + integral + (last.powf(-THETA) - first.powf(-THETA)) / 2.0
}

/// Draws keys in a distribution.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    distribution: Distribution,
    keys: u64,
    ranks: Ranks,
}

impl Draw {
    /// Of `keys` keys, at least 1.
    pub(crate) fn new(distribution: Distribution, keys: u64) -> Draw {
        let ranks = match distribution {
            Distribution::Latest => Ranks::of(keys),
            Distribution::Uniform | Distribution::Zipfian => Ranks::new(ITEMS, ZETA_ITEMS),
        };
        Draw {
            distribution,
            keys,
            ranks,
        }
    }

    /// The next key, 0 to `keys - 1`; for `Latest` how many keys are newer than it.
    pub(crate) fn next(&self, random: &mut Random) -> u64 {
        match self.distribution {
            Distribution::Uniform => random.below(self.keys),
            Distribution::Zipfian => scrambled(self.ranks.rank(random.unit()), self.keys),
            Distribution::Latest => self.ranks.rank(random.unit()).min(self.keys - 1),
        }
    }
}

/// Spreads neighbouring ranks over the whole key space: FNV-1 over the eight octets, as YCSB does it.
fn scrambled(rank: u64, keys: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for octet in rank.to_le_bytes() {
        hash ^= u64::from(octet);
        hash = hash.wrapping_mul(1_099_511_628_211);
    }
    hash.cast_signed().unsigned_abs() % keys
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u64 = 200_000;

    #[test]
    fn the_same_seed_gives_the_same_sequence_and_another_worker_another() {
        let draw = |mut random: Random| (0..100).map(|_| random.next()).collect::<Vec<_>>();
        assert_eq!(
            draw(Random::for_worker(7, 1)),
            draw(Random::for_worker(7, 1))
        );
        assert_ne!(
            draw(Random::for_worker(7, 1)),
            draw(Random::for_worker(7, 2))
        );
        assert_ne!(
            draw(Random::for_worker(7, 1)),
            draw(Random::for_worker(8, 1))
        );
    }

    #[test]
    fn uniform_keys_reach_every_key_about_equally() {
        let (mut random, draw) = (
            Random::for_worker(1, 0),
            Draw::new(Distribution::Uniform, 100),
        );
        let mut counts = [0u64; 100];
        for _ in 0..DRAWS {
            counts[draw.next(&mut random) as usize] += 1;
        }
        let mean = DRAWS / 100;
        assert!(
            counts
                .iter()
                .all(|&count| count > mean * 8 / 10 && count < mean * 12 / 10),
            "{counts:?}"
        );
    }

    #[test]
    fn zipfian_ranks_have_the_shares_that_theta_099_gives() {
        let mut random = Random::for_worker(2, 0);
        let ranks = Ranks::new(ITEMS, ZETA_ITEMS);
        let mut counts = [0u64; 3];
        let mut below_thousand = 0u64;
        for _ in 0..DRAWS {
            let rank = ranks.rank(random.unit());
            assert!(rank < ITEMS as u64, "rank {rank} is outside the items");
            if let Some(count) = counts.get_mut(rank as usize) {
                *count += 1;
            }
            below_thousand += u64::from(rank < 1000);
        }
        // The share of rank r is (r + 1)^-theta / zeta.
        let share = |count: u64| count as f64 / DRAWS as f64;
        let expected = |rank: f64| (rank + 1.0).powf(-THETA) / ZETA_ITEMS;
        assert!(
            (share(counts[0]) - expected(0.0)).abs() < 0.003,
            "rank 0: {}",
            share(counts[0])
        );
        assert!(
            (share(counts[1]) - expected(1.0)).abs() < 0.003,
            "rank 1: {}",
            share(counts[1])
        );
        // Sum of the first thousand ranks: 7.73 / 26.47.
        let head: f64 = (0..1000).map(|rank| expected(f64::from(rank))).sum();
        assert!(
            (share(below_thousand) - head).abs() < 0.02,
            "head {} expected {head}",
            share(below_thousand)
        );
    }

    #[test]
    fn zipfian_ranks_grow_with_the_draw_and_end_with_the_items() {
        let ranks = Ranks::new(ITEMS, ZETA_ITEMS);
        let mut last = 0;
        for step in 0..=1000 {
            let rank = ranks.rank(f64::from(step) / 1000.0 * (1.0 - f64::EPSILON));
            assert!(rank >= last, "rank {rank} after {last}");
            last = rank;
        }
        assert!(
            last > 9_000_000_000 && last <= ITEMS as u64,
            "the largest rank is {last}"
        );
    }

    #[test]
    fn zipfian_keys_stay_inside_the_key_space_and_are_scattered() {
        let (mut random, draw) = (
            Random::for_worker(3, 0),
            Draw::new(Distribution::Zipfian, 1000),
        );
        let mut counts = std::collections::HashMap::new();
        for _ in 0..DRAWS {
            let key = draw.next(&mut random);
            assert!(key < 1000);
            *counts.entry(key).or_insert(0u64) += 1;
        }
        let hottest = counts
            .iter()
            .max_by_key(|(_, count)| **count)
            .map(|(key, count)| (*key, *count));
        let (key, count) = hottest.expect("keys were drawn");
        // FNV of rank 0, the value that YCSB computes.
        assert_eq!(key, scrambled(0, 1000));
        assert!(
            count > DRAWS * 3 / 100,
            "the hottest key has {count} of {DRAWS}"
        );
    }

    #[test]
    fn a_zeta_is_the_sum_and_that_of_ycsbs_items_is_its_constant() {
        let sum = |items: u64| {
            (1..=items)
                .map(|rank| (rank as f64).powf(-THETA))
                .sum::<f64>()
        };
        for items in [1, 2, 9_999, 10_000, 10_001, 200_000] {
            assert!((zeta(items) - sum(items)).abs() < 1e-9, "{items} items");
        }
        assert!((zeta(ITEMS as u64) - ZETA_ITEMS).abs() < 1e-6);
    }

    #[test]
    fn the_latest_distribution_prefers_the_newest_and_reaches_no_further_than_the_keys() {
        for keys in [1, 2, 3, 1000] {
            let (mut random, draw) = (
                Random::for_worker(6, 0),
                Draw::new(Distribution::Latest, keys),
            );
            let newest = (0..DRAWS)
                .map(|_| draw.next(&mut random))
                .inspect(|behind| assert!(*behind < keys, "{behind} of {keys}"))
                .filter(|behind| *behind == 0)
                .count() as f64;
            let share = 1.0 / zeta(keys);
            let found = newest / DRAWS as f64;
            assert!(
                (found - share).abs() < 0.005,
                "{keys} keys: {found}, {share}"
            );
        }
    }

    #[test]
    fn the_scrambling_is_ycsbs_fnv() {
        // fnvhash64(0) and fnvhash64(1) of YCSB, as absolute values of the signed result.
        assert_eq!(
            scrambled(0, u64::MAX),
            0xa8c7_f832_281a_39c5u64.cast_signed().unsigned_abs()
        );
        assert_eq!(
            scrambled(1, u64::MAX),
            0x89cd_3129_1d2a_efa4u64.cast_signed().unsigned_abs()
        );
    }

    #[test]
    fn distributions_are_read_and_a_wrong_one_is_named() {
        assert_eq!("zipfian".parse(), Ok(Distribution::Zipfian));
        assert_eq!("uniform".parse(), Ok(Distribution::Uniform));
        let message = "pareto"
            .parse::<Distribution>()
            .expect_err("no such distribution");
        assert!(
            message.contains("pareto") && message.contains("zipfian"),
            "{message}"
        );
    }
}

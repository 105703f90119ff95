//! The mix of operations, as weights: `read:write` or `read:write:prefix` on the command line, all six in a workload.
//!
//! Guarantees: a mix that parsed has at least one operation. Does not choose keys. Used by every trace for its next
//! operation.

use std::fmt;
use std::str::FromStr;

use super::random::Random;

/// What happens next. The order is that of the weights; the first three are those of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Read,
    /// A key of those that the load started with gets a new value.
    Write,
    /// All keys of one group.
    Prefix,
    /// A new key.
    Insert,
    /// Some keys in order, from a chosen one on.
    Scan,
    /// A read, and when it is answered a write of the same key.
    ReadModifyWrite,
}

impl Kind {
    pub(crate) const COUNT: usize = 6;
    pub(crate) const ALL: [Kind; Kind::COUNT] = [
        Kind::Read,
        Kind::Write,
        Kind::Prefix,
        Kind::Insert,
        Kind::Scan,
        Kind::ReadModifyWrite,
    ];

    /// Whether it touches one key, or one range, whatever the size of a batch.
    pub(crate) fn is_never_batched(self) -> bool {
        match self {
            Kind::Read | Kind::Write | Kind::Prefix => false,
            Kind::Insert | Kind::Scan | Kind::ReadModifyWrite => true,
        }
    }
}

/// Weights of the operations; each at most `WEIGHT_MAX`, not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mix {
    weights: [u32; Kind::COUNT],
}

const WEIGHT_MAX: u32 = 1_000_000;

impl Mix {
    /// The mix of a named workload, in the order of `Kind::ALL`.
    pub(crate) const fn new(weights: [u32; Kind::COUNT]) -> Mix {
        Mix { weights }
    }

    pub(crate) fn next(self, random: &mut Random) -> Kind {
        let total: u32 = self.weights.iter().sum();
        let mut drawn = random.below(u64::from(total)) as u32;
        for kind in Kind::ALL {
            let weight = self.weights[kind as usize];
            if drawn < weight {
                return kind;
            }
            drawn -= weight;
        }
        unreachable!("the draw is below the sum of the weights")
    }

    pub(crate) fn has(self, kind: Kind) -> bool {
        self.weights[kind as usize] > 0
    }

    pub(crate) fn kinds(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.has(*kind))
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        const SHAPE: &str = "say read:write or read:write:prefix, for example 90:10 or 60:30:10";
        let parts: Vec<&str> = text.split(':').collect();
        if parts.len() < 2 || parts.len() > 3 {
            return Err(format!(
                "'{text}' is not a mix of two or three weights: {SHAPE}"
            ));
        }
        let mut weights = [0; Kind::COUNT];
        for (weight, part) in weights.iter_mut().zip(&parts) {
            *weight = part
                .parse()
                .map_err(|_| format!("'{part}' in '{text}' is not a weight: {SHAPE}"))?;
            if *weight > WEIGHT_MAX {
                return Err(format!(
                    "the weight {weight} in '{text}' is over {WEIGHT_MAX}: use smaller ones"
                ));
            }
        }
        if weights == [0; Kind::COUNT] {
            return Err(format!(
                "'{text}' has no operation: at least one weight must be above 0"
            ));
        }
        Ok(Mix { weights })
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [read, write, prefix, insert, scan, modify] = self.weights;
        write!(out, "{read}:{write}:{prefix}")?;
        if insert + scan + modify > 0 {
            write!(out, ":{insert}:{scan}:{modify}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_and_three_weights_are_read() {
        assert_eq!("90:10".parse(), Ok(Mix::new([90, 10, 0, 0, 0, 0])));
        assert_eq!("0:0:1".parse(), Ok(Mix::new([0, 0, 1, 0, 0, 0])));
        assert_eq!(Mix::new([0, 0, 0, 5, 95, 0]).to_string(), "0:0:0:5:95:0");
        assert_eq!(
            "60:30:10".parse::<Mix>().expect("a mix").to_string(),
            "60:30:10"
        );
    }

    #[test]
    fn a_mix_that_is_none_is_refused_and_named() {
        for wrong in [
            "",
            "90",
            "1:2:3:4",
            "0:0",
            "0:0:0",
            "a:b",
            "-1:2",
            "50:",
            "1.5:2",
            "99999999:1",
        ] {
            let message = wrong.parse::<Mix>().expect_err(wrong);
            assert!(
                message.contains(wrong),
                "'{wrong}' is not named in: {message}"
            );
        }
    }

    #[test]
    fn operations_come_in_the_shares_of_their_weights() {
        let mix: Mix = "60:30:10".parse().expect("a mix");
        let mut random = Random::for_worker(4, 0);
        let mut counts = [0u32; 3];
        for _ in 0..100_000 {
            counts[mix.next(&mut random) as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([60_000, 30_000, 10_000]) {
            assert!(count.abs_diff(expected) < 1_000, "{counts:?}");
        }
    }

    #[test]
    fn a_weight_of_zero_never_comes() {
        let mix: Mix = "0:1:0".parse().expect("a mix");
        let mut random = Random::for_worker(5, 0);
        assert!((0..10_000).all(|_| mix.next(&mut random) == Kind::Write));
        assert!(!mix.has(Kind::Read) && mix.has(Kind::Write) && !mix.has(Kind::Prefix));
    }
}

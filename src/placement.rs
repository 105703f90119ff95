//! Which shard owns a key.
//!
//! The rule is part of the format: XXH3 with 64-bit result, seeded per store, spread over the shards by the high half of a
//! 128-bit product. Its specification is frozen and there is a library in every language, so that clients can compute
//! the owner; the random seed keeps others from aiming keys at one shard.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Name of the rule on the wire.
pub const PLACEMENT_HASH: &str = "xxh3-64";

/// A shard of this server. Only [`Placement`] makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(u16);

impl ShardId {
    /// The number of the shard, from 0.
    pub fn number(self) -> u16 {
        self.0
    }

    /// The number, as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The rule, for one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    seed: u64,
    shards: u16,
}

impl Placement {
    /// The rule for a store with this seed and this many shards, at least 1.
    pub fn new(seed: u64, shards: u16) -> Placement {
        assert!(shards > 0, "a store has at least one shard");
        Placement { seed, shards }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Number of shards.
    pub fn shard_count(&self) -> u16 {
        self.shards
    }

    /// All shards, in order.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards).map(ShardId)
    }

    /// The owner of a key.
    pub fn owner(&self, key: &[u8]) -> ShardId {
        if self.shards == 1 {
            return ShardId(0);
        }
        let product = u128::from(xxh3_64_with_seed(key, self.seed)) * u128::from(self.shards);
        ShardId((product >> 64) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_never_changes() {
        // Made with the reference implementation; clients in other languages compute the same.
        assert_eq!(xxh3_64_with_seed(b"", 0), 0x2d06_8005_38d3_94c2);
        let placement = Placement::new(42, 1000);
        let owners: Vec<_> = [&b"a"[..], b"orlop", &[0xff; 300]]
            .iter()
            .map(|key| placement.owner(key).number())
            .collect();
        let expected: Vec<_> = [&b"a"[..], b"orlop", &[0xff; 300]]
            .iter()
            .map(|key| ((u128::from(xxh3_64_with_seed(key, 42)) * 1000) >> 64) as u16)
            .collect();
        assert_eq!(owners, expected);
    }

    #[test]
    fn keys_spread_evenly() {
        let placement = Placement::new(7, 8);
        let mut counts = [0_u32; 8];
        for number in 0..80_000 {
            counts[placement.owner(format!("user{number}").as_bytes()).index()] += 1;
        }
        assert!(
            counts.iter().all(|count| (9_500..10_500).contains(count)),
            "{counts:?}"
        );
    }
}

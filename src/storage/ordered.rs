//! The keys of one shard in order: pointers to entries in sorted leaves, and a vector of the leaves.
//!
//! A pointer takes 6 bytes here, a leaf as much memory as it needs and an eighth at most beyond it. So a key costs about
//! 7 bytes, where nodes of fixed size that are two thirds full cost 17 to 20. A leaf is found by the first eight bytes of
//! its first key, which stand beside each other in the vector: most comparisons on the way touch no entry.
//!
//! Guarantees: iteration order is that of the keys as byte strings; one change moves at most the pointers of one leaf and the vector of leaves, well under a millisecond with
//! 40 million keys.
//! Does not: own the entries. `Index` takes an entry out of here before it frees it.

use std::cmp::Ordering;
use std::ops::Bound;

use crate::storage::entry::{EntryRef, PackedEntryRef};

/// Pointers in a leaf. Larger ones make an insertion move more, smaller ones make the vector of leaves longer.
const LEAF_MAX: usize = 1024;

/// A leaf that becomes smaller than this part of `LEAF_MAX` joins a neighbour.
const SMALL_LEAF_DIVISOR: usize = 8;

/// How many more pointers a full allocation takes, as a part of what it holds.
const GROWTH_DIVISOR: usize = 8;

/// Pointers that an allocation grows by at least.
const GROWTH_MIN: usize = 8;

/// Never empty.
struct Leaf {
    /// `leading_bytes` of the first key.
    lead: u64,
    entries: Vec<PackedEntryRef>,
}

/// Pointers that a leaf has room for beyond the ones it holds.
fn spare(len: usize) -> usize {
    GROWTH_MIN.max(len / GROWTH_DIVISOR)
}

/// All present keys, in order. `MAX` is smaller in tests.
#[derive(Default)]
pub(super) struct Ordered<const MAX: usize = LEAF_MAX> {
    leaves: Vec<Leaf>,
}

impl Leaf {
    fn new(entries: Vec<PackedEntryRef>) -> Leaf {
        let lead = leading_bytes(entries[0].key());
        Leaf { lead, entries }
    }

    fn insert(&mut self, place: usize, entry: EntryRef) {
        let len = self.entries.len();
        if len == self.entries.capacity() {
            self.entries.reserve_exact(spare(len));
        }
        self.entries.insert(place, entry.pack());
        if place == 0 {
            self.lead = leading_bytes(entry.key());
        }
    }

    /// The place of a key, or where it would be.
    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| entry.key().cmp(key))
    }

    fn starts_at_or_before(&self, lead: u64, key: &[u8]) -> bool {
        match self.lead.cmp(&lead) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => self.entries[0].key() <= key,
        }
    }
}

impl<const MAX: usize> Ordered<MAX> {
    /// Entries in order of their keys, all different.
    pub(super) fn from_sorted(entries: impl ExactSizeIterator<Item = EntryRef>) -> Self {
        // Some room, or the first insertion into each leaf would split it.
        let per_leaf = MAX - MAX / 4;
        let mut leaves = Vec::with_capacity(entries.len().div_ceil(per_leaf));
        let mut entries = entries.map(EntryRef::pack);
        loop {
            let mut leaf = Vec::with_capacity(per_leaf.min(entries.len()));
            leaf.extend(entries.by_ref().take(per_leaf));
            if leaf.is_empty() {
                break;
            }
            leaves.push(Leaf::new(leaf));
        }
        debug_assert!(leaves.iter().all(|leaf| {
            let keys = leaf.entries.iter().map(PackedEntryRef::key);
            keys.is_sorted()
        }));
        Ordered { leaves }
    }

    /// The only leaf that can hold a key; 0 also when there is none.
    fn leaf_of(&self, key: &[u8]) -> usize {
        let lead = leading_bytes(key);
        self.leaves
            .partition_point(|leaf| leaf.starts_at_or_before(lead, key))
            .saturating_sub(1)
    }

    /// Adds an entry whose key is not here yet.
    pub(super) fn insert(&mut self, entry: EntryRef) {
        if self.leaves.is_empty() {
            self.leaves.push(Leaf::new(vec![entry.pack()]));
            return;
        }
        let at = self.leaf_of(entry.key());
        let leaf = &mut self.leaves[at];
        let place = leaf
            .search(entry.key())
            .expect_err("a key appears only once");
        if leaf.entries.len() < MAX {
            leaf.insert(place, entry);
        } else if place == MAX {
            // Keys that come in order leave full leaves behind.
            match self.leaves.get_mut(at + 1) {
                Some(next) if next.entries.len() < MAX => next.insert(0, entry),
                _ => self.leaves.insert(at + 1, Leaf::new(vec![entry.pack()])),
            }
        } else {
            let upper = leaf.entries.split_off(MAX / 2);
            leaf.entries.shrink_to(MAX / 2 + spare(MAX / 2));
            let mut upper = Leaf::new(upper);
            match place.checked_sub(MAX / 2) {
                Some(place) if place > 0 => upper.insert(place, entry),
                _ => leaf.insert(place, entry),
            }
            self.leaves.insert(at + 1, upper);
        }
    }

    /// Takes out the entry of a key; false if it is not here.
    pub(super) fn remove(&mut self, key: &[u8]) -> bool {
        let at = self.leaf_of(key);
        let Some(leaf) = self.leaves.get_mut(at) else {
            return false;
        };
        let Ok(place) = leaf.search(key) else {
            return false;
        };
        leaf.entries.remove(place);
        let len = leaf.entries.len();
        if len == 0 {
            self.leaves.remove(at);
            return true;
        }
        if place == 0 {
            leaf.lead = leading_bytes(leaf.entries[0].key());
        }
        if len < MAX / SMALL_LEAF_DIVISOR {
            self.join(at);
        } else if leaf.entries.capacity() > len + 2 * spare(len) {
            leaf.entries.shrink_to(len + spare(len));
        }
        true
    }

    /// Puts a small leaf and a neighbour into one, if they are half of a full one at most.
    fn join(&mut self, at: usize) {
        let lower = at.min(self.leaves.len().saturating_sub(2));
        if let Some([left, right]) = self.leaves.get_mut(lower..lower + 2)
            && left.entries.len() + right.entries.len() <= MAX / 2
        {
            left.entries.append(&mut right.entries);
            self.leaves.remove(lower + 1);
        }
    }

    /// Entries from a bound on, in order.
    pub(super) fn range<'a>(
        &'a self,
        from: Bound<&[u8]>,
    ) -> impl Iterator<Item = &'a PackedEntryRef> + 'a {
        let (at, place) = match from {
            Bound::Unbounded => (0, 0),
            Bound::Included(key) | Bound::Excluded(key) => {
                let at = self.leaf_of(key);
                let place = match self.leaves.get(at).map(|leaf| leaf.search(key)) {
                    Some(Ok(place)) if from == Bound::Excluded(key) => place + 1,
                    Some(Ok(place) | Err(place)) => place,
                    None => 0,
                };
                (at, place)
            }
        };
        let (first, rest) = match self.leaves.get(at..) {
            Some([first, rest @ ..]) => (&first.entries[place..], rest),
            _ => (&[][..], &[][..]),
        };
        first
            .iter()
            .chain(rest.iter().flat_map(|leaf| &leaf.entries))
    }

    /// Memory, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let pointers: usize = self.leaves.iter().map(|leaf| leaf.entries.capacity()).sum();
        (pointers * size_of::<PackedEntryRef>() + self.leaves.capacity() * size_of::<Leaf>()) as u64
    }
}

/// The first eight bytes of a key as a number that sorts like them.
pub(super) fn leading_bytes(key: &[u8]) -> u64 {
    let padded = key.first_chunk().copied().unwrap_or_else(|| {
        let mut padded = [0; 8];
        padded[..key.len()].copy_from_slice(key);
        padded
    });
    u64::from_le_bytes(padded).swap_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Small leaves, so that a few hundred keys split and join them.
    const SMALL: usize = 16;

    /// The index of a test with its model; frees its entries.
    struct Checked<const MAX: usize> {
        ordered: Ordered<MAX>,
        model: BTreeMap<Vec<u8>, EntryRef>,
    }

    impl<const MAX: usize> Checked<MAX> {
        fn new() -> Self {
            Checked {
                ordered: Ordered::default(),
                model: BTreeMap::new(),
            }
        }

        /// Inserts a key, or removes it if it is there and that is wanted.
        fn toggle(&mut self, key: Vec<u8>, remove: bool) {
            match self.model.get(&key) {
                None if remove => assert!(!self.ordered.remove(&key)),
                None => {
                    let entry = EntryRef::new(&key);
                    self.ordered.insert(entry);
                    self.model.insert(key, entry);
                }
                Some(_) if remove => {
                    assert!(self.ordered.remove(&key) && !self.ordered.remove(&key));
                    self.model.remove(&key).expect("it is there").free();
                }
                Some(_) => {}
            }
        }

        fn check(&self, from: Bound<&[u8]>) {
            let found = self.ordered.range(from).map(PackedEntryRef::key);
            let expected = self.model.range::<[u8], _>((from, Bound::Unbounded));
            assert!(
                found.eq(expected.map(|(key, _)| key.as_slice())),
                "{from:?}"
            );
        }

        fn check_all(&self) {
            self.check(Bound::Unbounded);
            for leaf in &self.ordered.leaves {
                assert!(leaf.entries.len() <= MAX);
                assert_eq!(leaf.lead, leading_bytes(leaf.entries[0].key()));
            }
        }
    }

    impl<const MAX: usize> Drop for Checked<MAX> {
        fn drop(&mut self) {
            self.model.values().for_each(|entry| entry.free());
        }
    }

    struct Chance(u64);

    impl Chance {
        fn new() -> Chance {
            let seed = std::env::var("ORLOP_SEED").ok().map_or_else(
                || {
                    let mut bytes = [0; 8];
                    getrandom::fill(&mut bytes).unwrap();
                    u64::from_le_bytes(bytes) >> 24
                },
                |text| text.parse().unwrap(),
            );
            println!("ORLOP_SEED={seed}");
            Chance(seed)
        }

        fn below(&mut self, bound: u64) -> u64 {
            let step = self.0.wrapping_mul(6_364_136_223_846_793_005);
            self.0 = step.wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    #[test]
    fn agrees_with_a_map_through_random_changes() {
        let mut chance = Chance::new();
        for universe in 0..60 {
            let mut checked = Checked::<SMALL>::new();
            // With long shared prefixes the leading bytes decide nothing, with short ones everything.
            let prefix = [&b""[..], b"k", b"prefix", b"a longer prefix"][universe % 4];
            let keys = 1 + chance.below(600);
            let mut removes = chance.below(10);
            for step in 0..3000 {
                if step % 500 == 0 {
                    removes = chance.below(10);
                }
                let mut key = prefix.to_vec();
                let number = chance.below(keys) as u16;
                key.extend(&number.to_le_bytes()[..1 + usize::from(number > 255)]);
                if step % 7 == 0 {
                    checked.check(Bound::Included(&key));
                    checked.check(Bound::Excluded(&key));
                }
                let remove = chance.below(10) < removes;
                checked.toggle(key, remove);
            }
            checked.check_all();
            checked.check(Bound::Excluded(b"prefix"));
        }
    }

    #[test]
    fn is_built_of_sorted_entries_and_goes_on_from_there() {
        let mut chance = Chance::new();
        for count in [0, 1, 11, 12, 13, 24, 25, 500_u16] {
            let mut checked = Checked::<SMALL>::new();
            for number in 0..count {
                let key = (number * 3).to_le_bytes().map(|byte| byte.rotate_left(4));
                checked
                    .model
                    .entry(key.to_vec())
                    .or_insert_with(|| EntryRef::new(&key));
            }
            let entries: Vec<EntryRef> = checked.model.values().copied().collect();
            checked.ordered = Ordered::from_sorted(entries.into_iter());
            checked.check_all();
            for _ in 0..2000 {
                let key = (chance.below(2000) as u16).to_le_bytes().to_vec();
                let remove = chance.below(2) == 0;
                checked.toggle(key, remove);
            }
            checked.check_all();
        }
    }

    /// Bytes per key after `count` insertions of the keys that `number` names.
    fn bytes_per_key(count: u64, number: impl Fn(u64) -> u64) -> f64 {
        let mut checked = Checked::<LEAF_MAX>::new();
        for step in 0..count {
            let key = format!("key-{:016x}", number(step));
            checked.toggle(key.into_bytes(), false);
        }
        checked.check_all();
        assert_eq!(checked.model.len() as u64, count);
        checked.ordered.bytes() as f64 / count as f64
    }

    #[test]
    fn a_key_costs_little_in_whatever_order_keys_come() {
        const COUNT: u64 = 100_000;
        let orders: [(&str, fn(u64) -> u64); 4] = [
            ("ascending", |step| step),
            ("descending", |step| COUNT - step),
            ("scattered", |step| step.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            ("two runs", |step| step + (step % 2) * COUNT),
        ];
        for (order, number) in orders {
            let bytes = bytes_per_key(COUNT, number);
            println!("{order}: {bytes:.2} bytes per key");
            assert!(bytes < 7.5, "{order}: {bytes:.2} bytes per key");
        }
    }

    #[test]
    fn leaves_that_empty_go() {
        let mut checked = Checked::<SMALL>::new();
        let key = |number: u16| number.to_le_bytes().map(u8::reverse_bits).to_vec();
        (0..1000).for_each(|number| checked.toggle(key(number), false));
        let most = checked.ordered.leaves.len();
        (0..1000)
            .filter(|number| number % 16 > 0)
            .for_each(|number| checked.toggle(key(number), true));
        checked.check_all();
        assert!(checked.ordered.leaves.len() * 4 < most);
        (0..1000).for_each(|number| checked.toggle(key(number), true));
        assert!(checked.ordered.leaves.is_empty());
        checked.check(Bound::Unbounded);
        checked.check(Bound::Included(b"a"));
    }

    #[test]
    fn leading_bytes_sort_like_keys() {
        let keys: [&[u8]; 6] = [b"a", b"a\0", b"a\0b", b"ab", b"abcdefgh", b"abcdefghi"];
        assert!(keys.is_sorted_by_key(|key| leading_bytes(key)));
        assert!(leading_bytes(b"a") < leading_bytes(b"ab"));
    }
}

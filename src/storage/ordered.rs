//! The keys of one shard in order: pointers to entries in sorted leaves, and a vector of the leaves.
//!
//! A slot of a leaf is a pointer of 6 bytes and the 2 bytes of the key behind the prefix that all keys of the leaf share;
//! a leaf is found by the first sixteen bytes of its first key, which stand beside each other in the vector. So a search
//! touches few entries. A leaf takes as much memory as it needs and an eighth at most beyond it: a key costs about 9
//! bytes, where tree nodes of eleven pointers, two thirds full, cost 17 to 20.
//!
//! Guarantees: iteration order is that of the keys as byte strings; one change touches at most one leaf, a neighbour and
//! the vector of leaves, well under a millisecond with 40 million keys.
//! Does not: own the entries. `Index` takes an entry out of here before it frees it.

use std::cmp::Ordering;
use std::ops::Bound;

use crate::storage::entry::{EntryRef, PackedEntryRef};

/// Slots in a leaf. Larger ones make an insertion move more, smaller ones make the vector of leaves longer.
const LEAF_MAX: usize = 256;

/// A leaf that becomes smaller than this part of `LEAF_MAX` joins a neighbour.
const SMALL_LEAF_DIVISOR: usize = 8;

/// How many more slots a full allocation takes, as a part of what it holds.
const GROWTH_DIVISOR: usize = 8;

/// Slots that an allocation grows by at least.
const GROWTH_MIN: usize = 8;

/// Bytes of its first key that a leaf holds.
const LEAD_BYTES: usize = 16;

/// Bytes of a key that its slot holds.
const TAG_BYTES: usize = 2;

#[derive(Clone, Copy)]
struct Slot {
    /// `tag` of the key; sorts like the keys of the leaf, with ties.
    tag: u16,
    entry: PackedEntryRef,
}

const _: () = assert!(size_of::<Slot>() == 8);

/// Never empty.
struct Leaf {
    /// `lead` of the first key.
    lead: u128,
    slots: Vec<Slot>,
    /// Bytes that all keys share at their beginning, or fewer of them: the tags begin behind them.
    shared: usize,
}

/// All present keys, in order. `MAX` is smaller in tests.
#[derive(Default)]
pub(super) struct Ordered<const MAX: usize = LEAF_MAX> {
    leaves: Vec<Leaf>,
}

impl Leaf {
    fn of_one(entry: EntryRef) -> Leaf {
        Leaf::of_sorted(&[(leading_bytes(entry.key(), 0), entry)], 0)
    }

    /// Of entries in order, with their `leading_bytes` behind the first `skipped`, which all share.
    fn of_sorted(entries: &[(u64, EntryRef)], skipped: usize) -> Leaf {
        let ((_, first), (_, last)) = (entries[0], entries[entries.len() - 1]);
        let shared = shared_bytes(first.key(), last.key());
        let slot = |&(leading, entry): &(u64, EntryRef)| Slot {
            // Without a look at the entry, if the leading bytes suffice.
            tag: match shared + TAG_BYTES <= skipped + size_of::<u64>() {
                true => ((leading << (8 * (shared - skipped))) >> 48) as u16,
                false => tag(entry.key(), shared),
            },
            entry: entry.pack(),
        };
        Leaf {
            lead: lead(first.key()),
            slots: entries.iter().map(slot).collect(),
            shared,
        }
    }

    fn first(&self) -> &[u8] {
        self.slots[0].entry.key()
    }

    fn len(&self) -> usize {
        self.slots.len()
    }

    /// Makes lead and tags right after the first or the last key changed.
    fn retag(&mut self) {
        let last = self.slots[self.len() - 1].entry.key();
        let shared = shared_bytes(self.first(), last);
        self.lead = lead(self.first());
        if shared != self.shared {
            self.shared = shared;
            for slot in &mut self.slots {
                slot.tag = tag(slot.entry.key(), shared);
            }
        }
    }

    fn insert(&mut self, place: usize, entry: EntryRef) {
        let len = self.len();
        if len == self.slots.capacity() {
            self.slots.reserve_exact(spare(len));
        }
        let slot = Slot {
            tag: tag(entry.key(), self.shared),
            entry: entry.pack(),
        };
        self.slots.insert(place, slot);
        if place == 0 || place == len {
            self.retag();
        }
    }

    fn remove(&mut self, place: usize) {
        self.slots.remove(place);
        let len = self.len();
        // What the others share may be more now; that they share less is what would be wrong.
        if place == 0 && len > 0 {
            self.lead = lead(self.first());
        }
        if self.slots.capacity() > len + 2 * spare(len) {
            self.slots.shrink_to(len + spare(len));
        }
    }

    /// Keeps the slots before `place`; the rest is a new leaf.
    fn split_off(&mut self, place: usize) -> Leaf {
        let mut upper = Leaf {
            lead: 0,
            slots: self.slots.split_off(place),
            shared: self.shared,
        };
        self.slots.shrink_to(place + spare(place));
        upper.retag();
        self.retag();
        upper
    }

    /// The beginning of a key compared with what the keys of the leaf share.
    fn compare_shared(&self, key: &[u8]) -> Ordering {
        match self.shared {
            0 => Ordering::Equal,
            // Without a look at an entry.
            1..=LEAD_BYTES => {
                let unshared_bits = 8 * (LEAD_BYTES - self.shared);
                (lead(key) >> unshared_bits).cmp(&(self.lead >> unshared_bits))
            }
            shared => key[..key.len().min(shared)].cmp(&self.first()[..shared]),
        }
    }

    /// The place of a key, or where it would be.
    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        match self.compare_shared(key) {
            Ordering::Less => return Err(0),
            Ordering::Greater => return Err(self.len()),
            Ordering::Equal => {}
        }
        let tag = tag(key, self.shared);
        let from = self.slots.partition_point(|slot| slot.tag < tag);
        let alike = self.slots[from..].iter().take_while(|slot| slot.tag == tag);
        let alike = &self.slots[from..][..alike.count()];
        alike
            .binary_search_by(|slot| slot.entry.key().cmp(key))
            .map(|place| from + place)
            .map_err(|place| from + place)
    }

    fn starts_at_or_before(&self, lead: u128, key: &[u8]) -> bool {
        match self.lead.cmp(&lead) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => self.first() <= key,
        }
    }
}

impl<const MAX: usize> Ordered<MAX> {
    /// Entries in order of their keys, all different, with the `leading_bytes` of each behind the first `skipped`, which
    /// all keys share.
    pub(super) fn from_sorted(entries: &[(u64, EntryRef)], skipped: usize) -> Self {
        // Some room, or the first insertion into each leaf would split it.
        let leaves = entries.chunks(MAX - MAX / 4);
        Ordered {
            leaves: leaves.map(|part| Leaf::of_sorted(part, skipped)).collect(),
        }
    }

    /// The only leaf that can hold a key; 0 also when there is none.
    fn leaf_of(&self, key: &[u8]) -> usize {
        let lead = lead(key);
        self.leaves
            .partition_point(|leaf| leaf.starts_at_or_before(lead, key))
            .saturating_sub(1)
    }

    /// Adds an entry whose key is not here yet.
    pub(super) fn insert(&mut self, entry: EntryRef) {
        if self.leaves.is_empty() {
            self.leaves.push(Leaf::of_one(entry));
            return;
        }
        let at = self.leaf_of(entry.key());
        let leaf = &mut self.leaves[at];
        let place = leaf
            .search(entry.key())
            .expect_err("a key appears only once");
        if leaf.len() < MAX {
            leaf.insert(place, entry);
        } else if place == MAX {
            // Keys that come in order leave full leaves behind.
            match self.leaves.get_mut(at + 1) {
                Some(next) if next.len() < MAX => next.insert(0, entry),
                _ => self.leaves.insert(at + 1, Leaf::of_one(entry)),
            }
        } else {
            let mut upper = leaf.split_off(MAX / 2);
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
        leaf.remove(place);
        match leaf.len() {
            0 => drop(self.leaves.remove(at)),
            len if len < MAX / SMALL_LEAF_DIVISOR => self.join(at),
            _ => {}
        }
        true
    }

    /// Puts a small leaf and a neighbour into one, if they are half of a full one at most.
    fn join(&mut self, at: usize) {
        let lower = at.min(self.leaves.len().saturating_sub(2));
        if let Some([left, right]) = self.leaves.get_mut(lower..lower + 2)
            && left.len() + right.len() <= MAX / 2
        {
            left.slots.append(&mut right.slots);
            // The tags of the two halves may begin at different places.
            left.shared = usize::MAX;
            left.retag();
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
            Some([first, rest @ ..]) => (&first.slots[place..], rest),
            _ => (&[][..], &[][..]),
        };
        first
            .iter()
            .chain(rest.iter().flat_map(|leaf| &leaf.slots))
            .map(|slot| &slot.entry)
    }

    /// Memory, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let slots: usize = self.leaves.iter().map(|leaf| leaf.slots.capacity()).sum();
        (slots * size_of::<Slot>() + self.leaves.capacity() * size_of::<Leaf>()) as u64
    }
}

/// Slots that a leaf has room for beyond the ones it holds.
fn spare(len: usize) -> usize {
    GROWTH_MIN.max(len / GROWTH_DIVISOR)
}

/// The first sixteen bytes of a key as a number that sorts like them.
fn lead(key: &[u8]) -> u128 {
    let padded = key.first_chunk().copied().unwrap_or_else(|| {
        let mut padded = [0; LEAD_BYTES];
        padded[..key.len()].copy_from_slice(key);
        padded
    });
    u128::from_le_bytes(padded).swap_bytes()
}

/// Eight bytes of a key behind the first `skipped` as a number that sorts like them.
pub(super) fn leading_bytes(key: &[u8], skipped: usize) -> u64 {
    (lead(key.get(skipped..).unwrap_or_default()) >> 64) as u64
}

/// The two bytes of a key behind the first `shared` ones, as a number that sorts like them.
fn tag(key: &[u8], shared: usize) -> u16 {
    let byte = |place| key.get(place).copied().map_or(0, u16::from);
    byte(shared) << 8 | byte(shared.saturating_add(1))
}

/// How many bytes two keys share at their beginning.
pub(super) fn shared_bytes(left: &[u8], right: &[u8]) -> usize {
    let pairs = left.iter().zip(right);
    pairs.take_while(|(left, right)| left == right).count()
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
                assert!(leaf.len() <= MAX);
                assert_eq!(leaf.lead, lead(leaf.first()));
                let shared = &leaf.first()[..leaf.shared];
                for slot in &leaf.slots {
                    let key = slot.entry.key();
                    assert!(key.starts_with(shared) && slot.tag == tag(key, leaf.shared));
                }
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
            let prefix = [
                &b""[..],
                b"k",
                b"a longer prefix",
                b"one that leads do not hold",
            ][universe % 4];
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
            checked.check(Bound::Excluded(b"a longer prefiy"));
        }
    }

    #[test]
    fn is_built_of_sorted_entries_and_goes_on_from_there() {
        let mut chance = Chance::new();
        let counts = [0, 1, 11, 12, 13, 24, 25, 500_u16];
        let shared = [&b""[..], b"five!", b"more than sixteen bytes"];
        for (count, prefix) in counts
            .into_iter()
            .flat_map(|count| shared.map(|one| (count, one)))
        {
            let (mut checked, skipped) = (Checked::<SMALL>::new(), prefix.len());
            for number in 0..count {
                let key = (number * 3).to_le_bytes().map(|byte| byte.rotate_left(4));
                let key = [prefix, &key].concat();
                checked
                    .model
                    .entry(key.to_vec())
                    .or_insert_with(|| EntryRef::new(&key));
            }
            let entry = |(key, entry): (&Vec<u8>, &EntryRef)| (leading_bytes(key, skipped), *entry);
            let entries: Vec<_> = checked.model.iter().map(entry).collect();
            checked.ordered = Ordered::from_sorted(&entries, skipped);
            checked.check_all();
            for _ in 0..2000 {
                let key = (chance.below(2000) as u16).to_le_bytes().to_vec();
                let remove = chance.below(2) == 0;
                checked.toggle(key, remove);
            }
            checked.check_all();
        }
    }

    type NumberOfStep = fn(u64) -> u64;

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
        let orders: [(&str, NumberOfStep); 4] = [
            ("ascending", |step| step),
            ("descending", |step| COUNT - step),
            ("scattered", |step| step.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            ("two runs", |step| step + (step % 2) * COUNT),
        ];
        for (order, number) in orders {
            let bytes = bytes_per_key(COUNT, number);
            println!("{order}: {bytes:.2} bytes per key");
            assert!(bytes < 9.5, "{order}: {bytes:.2} bytes per key");
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
        assert!(keys.is_sorted_by_key(|key| leading_bytes(key, 0)));
        assert!(leading_bytes(b"a", 0) < leading_bytes(b"ab", 0));
        assert!(leading_bytes(b"zzzz", 4) < leading_bytes(b"zzzza", 4));
    }
}

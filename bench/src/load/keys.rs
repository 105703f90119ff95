//! What the keys of a load look like, and back from a key to its number.
//!
//! A key is `k`, seven hexadecimal digits for its group, two for its place in the group, and dots up to its length:
//! `k00001f20c......`. So keys are ordered like their numbers, the first eight bytes are a prefix that
//! `GROUP` keys share (prefix reads ask for one group), and an error message can be read.
//! Guarantees: number -> key -> number is exact, and `number` accepts nothing else. Used by workers and by the ledger.

use super::sizes::Sizes;

/// Keys that share a prefix.
pub(crate) const GROUP: u64 = 64;

/// Bytes of the shared prefix.
pub(crate) const PREFIX_LEN: usize = 8;

/// Shortest key.
pub(crate) const KEY_SIZE_MIN: usize = PREFIX_LEN + 2;

/// How many keys the seven digits of the group allow.
pub(crate) const KEYS_MAX: u64 = (1 << 28) * GROUP;

const PADDING: u8 = b'.';
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// All keys of one load: `count` of them from the beginning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeySpace {
    pub(crate) count: u64,
    pub(crate) size: Sizes,
}

impl KeySpace {
    /// Keys of `size` bytes each.
    pub(crate) const fn fixed(count: u64, size: usize) -> KeySpace {
        KeySpace {
            count,
            size: Sizes::Fixed(size),
        }
    }

    /// Makes `buffer` the key of `number`. The buffer is reused: no allocation after the first call.
    pub(crate) fn write_key(self, number: u64, buffer: &mut Vec<u8>) {
        // A buffer used again has another key's digits, which are written over, and maybe too many or too few dots.
        buffer.resize(self.size.of(number), PADDING);
        Self::write_prefix(number / GROUP, buffer);
        let place = number % GROUP;
        buffer[PREFIX_LEN] = DIGITS[(place >> 4) as usize];
        buffer[PREFIX_LEN + 1] = DIGITS[(place & 15) as usize];
    }

    /// Makes the first `PREFIX_LEN` bytes of `buffer` the prefix of `group`.
    pub(crate) fn write_prefix(group: u64, buffer: &mut [u8]) {
        buffer[0] = b'k';
        let mut rest = group;
        for digit in buffer[1..PREFIX_LEN].iter_mut().rev() {
            *digit = DIGITS[(rest & 15) as usize];
            rest >>= 4;
        }
    }

    /// The number of `key`, or nothing when it is not one of these keys.
    pub(crate) fn number(self, key: &[u8]) -> Option<u64> {
        if key.len() < KEY_SIZE_MIN
            || key[0] != b'k'
            || key[KEY_SIZE_MIN..].iter().any(|&byte| byte != PADDING)
        {
            return None;
        }
        let digits = |text: &[u8]| {
            text.iter().try_fold(0u64, |number, byte| {
                let digit = DIGITS.iter().position(|digit| digit == byte)?;
                Some(number << 4 | digit as u64)
            })
        };
        let group = digits(&key[1..PREFIX_LEN])?;
        let place = digits(&key[PREFIX_LEN..KEY_SIZE_MIN])?;
        let number = group * GROUP + place;
        (place < GROUP && number < self.count && key.len() == self.size.of(number))
            .then_some(number)
    }

    /// The numbers of the keys of `group`.
    pub(crate) fn group(self, group: u64) -> std::ops::Range<u64> {
        let first = group * GROUP;
        first..(first + GROUP).min(self.count)
    }

    /// The key of `number` as text, for messages.
    pub(crate) fn name(self, number: u64) -> String {
        let mut key = Vec::new();
        self.write_key(number, &mut key);
        String::from_utf8(key).expect("a key is made of ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: KeySpace = KeySpace::fixed(KEYS_MAX, 16);

    #[test]
    fn a_key_reads_as_documented() {
        assert_eq!(SPACE.name(0x1f2 * GROUP + 0x0c), "k00001f20c......");
        assert_eq!(KeySpace::fixed(1, KEY_SIZE_MIN).name(0), "k000000000");
    }

    #[test]
    fn keys_of_many_sizes_come_back_from_a_buffer_that_is_used_again() {
        let space = KeySpace {
            count: 1000,
            size: Sizes::EtcKeys,
        };
        let mut key = Vec::new();
        for number in 0..1000 {
            space.write_key(number, &mut key);
            assert_eq!(key.len(), space.size.of(number));
            assert_eq!(space.number(&key), Some(number));
            key.push(PADDING);
            assert_eq!(space.number(&key), None, "a dot too many");
        }
    }

    #[test]
    fn every_number_comes_back_from_its_key() {
        for number in (0..200).chain([63, 64, 1_000_000, KEYS_MAX - 1]) {
            assert_eq!(SPACE.number(SPACE.name(number).as_bytes()), Some(number));
        }
    }

    #[test]
    fn keys_are_ordered_like_their_numbers_and_share_the_prefix_of_their_group() {
        for number in 0..500 {
            assert!(SPACE.name(number) < SPACE.name(number + 1));
            let mut prefix = [0; PREFIX_LEN];
            KeySpace::write_prefix(number / GROUP, &mut prefix);
            assert!(SPACE.name(number).as_bytes().starts_with(&prefix));
        }
    }

    #[test]
    fn what_is_not_a_key_of_the_space_has_no_number() {
        let small = KeySpace::fixed(100, 12);
        let wrong = [
            "",
            "k",
            "k000000000",
            "x00000000000",
            "k00000000g..",
            "k000000000.x",
            "k000000140..",
            "k000000124..",
            "k00000000A..",
        ];
        for key in wrong {
            assert_eq!(small.number(key.as_bytes()), None, "{key}");
        }
        assert_eq!(small.number(small.name(99).as_bytes()), Some(99));
    }

    #[test]
    fn the_last_group_ends_with_the_keys() {
        let space = KeySpace::fixed(100, 12);
        assert_eq!(space.group(0), 0..64);
        assert_eq!(space.group(1), 64..100);
    }
}

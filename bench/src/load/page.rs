//! The judgement of one page of a prefix read, against the ledger.
//!
//! A page must hold only keys under its prefix, in order and once each, every value must be right for its key (as a
//! read), and no key may be missing that was acknowledged before the call began and lies inside the page. `Entries`
//! of keys that this load does not write (another size, a number over `--keys`) are checked for order and prefix only.
//! Used by workers after every prefix read of a verifying load.

use super::keys::{GROUP, KeySpace};
use super::ledger::{Ledger, Wrong};

/// The floors of one group when the call began.
pub(crate) struct Asked {
    group: u64,
    floors: [u64; GROUP as usize],
}

impl Asked {
    pub(crate) fn new(ledger: &Ledger, keys: KeySpace, group: u64) -> Asked {
        let mut floors = [0; GROUP as usize];
        for (floor, key) in floors.iter_mut().zip(keys.group(group)) {
            *floor = ledger.floor(key);
        }
        Asked { group, floors }
    }

    /// Judges `entries` (key, value, version) of the page; `more`: the page ends before the prefix does.
    pub(crate) fn judge<'a>(
        &self,
        ledger: &mut Ledger,
        keys: KeySpace,
        prefix: &[u8],
        entries: impl Iterator<Item = (&'a [u8], &'a [u8], u64)> + Clone,
        more: bool,
    ) -> Result<(), Wrong> {
        judge_order(prefix, entries.clone().map(|(key, ..)| key))?;
        let mut expected = keys.group(self.group);
        for (key, value, version) in entries {
            if let Some(number) = keys.number(key) {
                self.none_missing(ledger, expected.start..number)?;
                expected.start = number + 1;
                ledger.read(number, self.floor(number), Some((value, version)))?;
            }
        }
        if more {
            return Ok(());
        }
        self.none_missing(ledger, expected)
    }

    fn floor(&self, key: u64) -> u64 {
        self.floors[(key % GROUP) as usize]
    }

    fn none_missing(&self, ledger: &Ledger, keys: std::ops::Range<u64>) -> Result<(), Wrong> {
        for key in keys {
            let floor = self.floor(key);
            if floor > 0 {
                let expected = format!("version {floor} or newer in the page of its prefix");
                return Err(ledger.wrong(key, expected, "a page without this key".to_owned()));
            }
        }
        Ok(())
    }
}

/// Before anything else: what is missing can only be told of an ordered page.
fn judge_order<'a>(prefix: &[u8], keys: impl Iterator<Item = &'a [u8]>) -> Result<(), Wrong> {
    let mut last: Option<&[u8]> = None;
    for key in keys {
        let wrong = |expected: String, found: &str| {
            Err(Wrong {
                key: text(key),
                expected,
                found: found.to_owned(),
            })
        };
        if !key.starts_with(prefix) {
            return wrong(
                format!("only keys under {}", text(prefix)),
                "this key in the page",
            );
        }
        if let Some(last) = last
            && key <= last
        {
            return wrong(
                format!("only keys after {}", text(last)),
                "this key behind it in the page",
            );
        }
        last = Some(key);
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::keys::PREFIX_LEN;
    use crate::load::value::{self, Stamp};

    /// Key, value, version.
    type Entries = Vec<(Vec<u8>, Vec<u8>, u64)>;

    const SPACE: KeySpace = KeySpace::fixed(100, 16);

    /// Keys 64, 65 and 67 of group 1 are written, as versions 164, 165, 167.
    fn written() -> (Ledger, Entries) {
        let mut ledger = Ledger::new(SPACE, 1, 1);
        let mut entries = Vec::new();
        for (sequence, key) in [64, 65, 67].into_iter().enumerate() {
            let stamp = Stamp {
                run: 1,
                writer: 0,
                key,
                sequence: sequence as u64,
            };
            let mut bytes = vec![0; 50];
            value::encode(stamp, &mut bytes);
            ledger.begin(stamp);
            ledger
                .acknowledge(stamp, 0, 100 + key, false)
                .expect("a right answer");
            entries.push((SPACE.name(key).into_bytes(), bytes, 100 + key));
        }
        (ledger, entries)
    }

    fn judged(change: impl FnOnce(&mut Entries), more: bool) -> Result<(), String> {
        let (mut ledger, mut entries) = written();
        let asked = Asked::new(&ledger, SPACE, 1);
        change(&mut entries);
        let mut prefix = [0; PREFIX_LEN];
        KeySpace::write_prefix(1, &mut prefix);
        let entries = entries
            .iter()
            .map(|(key, value, version)| (key.as_slice(), value.as_slice(), *version));
        asked
            .judge(&mut ledger, SPACE, &prefix, entries, more)
            .map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn the_whole_group_is_a_right_page_and_so_is_its_beginning() {
        assert_eq!(judged(|_| (), false), Ok(()));
        assert_eq!(judged(|entries| entries.truncate(2), true), Ok(()));
    }

    #[test]
    fn a_missing_key_is_caught_at_the_start_in_the_middle_and_at_the_end() {
        for (place, key) in [(0, "k000000100"), (1, "k000000101"), (2, "k000000103")] {
            let text =
                judged(|entries| drop(entries.remove(place)), false).expect_err("a key is missing");
            assert!(
                text.contains(key) && text.contains("without this key"),
                "{text}"
            );
        }
    }

    #[test]
    fn wrong_order_doubles_and_foreign_keys_are_caught() {
        assert!(
            judged(|entries| entries.swap(1, 2), false).is_err_and(|text| text.contains("after"))
        );
        assert!(
            judged(|entries| entries.insert(1, entries[0].clone()), false)
                .is_err_and(|text| text.contains("after"))
        );
        let foreign = (SPACE.name(3).into_bytes(), Vec::new(), 1);
        assert!(
            judged(|entries| entries.insert(0, foreign), false)
                .is_err_and(|text| text.contains("under"))
        );
    }

    #[test]
    fn a_wrong_value_in_a_page_is_caught() {
        assert!(
            judged(|entries| entries[1].1 = entries[0].1.clone(), false)
                .is_err_and(|text| text.contains("another key"))
        );
        assert!(judged(|entries| entries[1].2 = 1, false).is_err());
    }

    #[test]
    fn keys_of_other_loads_are_left_alone() {
        let other = |key: &str| (key.as_bytes().to_vec(), b"anything".to_vec(), 5);
        assert_eq!(
            judged(
                |entries| entries.insert(3, other("k00000013f......")),
                false
            ),
            Ok(())
        );
        assert_eq!(
            judged(
                |entries| entries.insert(1, other("k000000100......x")),
                false
            ),
            Ok(())
        );
    }
}

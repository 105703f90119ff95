//! What a verifying load knows about every key, and the judgement of every answer against it.
//!
//! The load generator is one thread, so the ledger sees acknowledgements and starts of operations in one true order.
//! For each key it keeps the newest version that any finished operation has shown (the *floor*) and whose write that
//! was. An operation that starts later must show at least that version: an older one is stale, whichever connection
//! asks. A version belongs to one write for ever, grows with every write, and only this run may write these keys
//! once it has written them. `Wrong` names key, expected and found.
//! Does not talk to the server. Used by workers, preload and the final read-back.

use std::collections::HashSet;
use std::fmt;

use super::keys::KeySpace;
use super::value::{self, Malformed, Stamp};

/// Newest known version of one key and whose it is. Version 0: nothing known.
#[derive(Debug, Clone, Copy)]
struct Floor {
    version: u64,
    sequence: u64,
    run: u32,
    writer: u32,
}

/// An answer that must not be.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) key: String,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "wrong answer for key {}: expected {}; found {}",
            self.key, self.expected, self.found
        )
    }
}

pub(crate) struct Ledger {
    keys: KeySpace,
    run: u32,
    floors: Vec<Floor>,
    /// Per writer, how many writes it has begun.
    begun: Vec<u64>,
    /// Writes that the server refused: they must never be seen.
    refused: HashSet<(u32, u64)>,
}

impl Ledger {
    pub(crate) fn new(keys: KeySpace, run: u32, writers: usize) -> Ledger {
        let unknown = Floor {
            version: 0,
            sequence: 0,
            run: 0,
            writer: 0,
        };
        Ledger {
            keys,
            run,
            floors: vec![unknown; keys.count as usize],
            begun: vec![0; writers],
            refused: HashSet::new(),
        }
    }

    /// The version that an operation on `key` which starts now must show at least; 0 when the key may be absent.
    pub(crate) fn floor(&self, key: u64) -> u64 {
        self.floors[key as usize].version
    }

    /// A write is about to be sent.
    pub(crate) fn begin(&mut self, stamp: Stamp) {
        self.begun[stamp.writer as usize] = stamp.sequence + 1;
    }

    /// The server said that it did not do this write.
    pub(crate) fn refuse(&mut self, stamp: Stamp) {
        self.refused.insert((stamp.writer, stamp.sequence));
    }

    /// The write of `stamp`, begun when the floor was `floor`, was acknowledged.
    pub(crate) fn acknowledge(
        &mut self,
        stamp: Stamp,
        floor: u64,
        version: u64,
        existed: bool,
    ) -> Result<(), Wrong> {
        if version <= floor {
            let expected = format!(
                "a version above {floor} for {stamp}, which began after that version was shown"
            );
            return Err(self.wrong(stamp.key, expected, format!("version {version}")));
        }
        if floor > 0 && !existed {
            let expected =
                format!("{stamp} to find the key present (version {floor} was acknowledged)");
            return Err(self.wrong(
                stamp.key,
                expected,
                "an answer that says the key was absent".to_owned(),
            ));
        }
        self.settle(stamp, version)
    }

    /// The answer to a read of `key` that began when the floor was `floor`.
    pub(crate) fn read(
        &mut self,
        key: u64,
        floor: u64,
        found: Option<(&[u8], u64)>,
    ) -> Result<(), Wrong> {
        let Some((bytes, version)) = found else {
            if floor == 0 {
                return Ok(());
            }
            return Err(self.wrong(key, self.expectation(key, floor), "no such key".to_owned()));
        };
        let stamp = self.stamp_of(key, bytes, floor, version)?;
        if version < floor {
            return Err(self.wrong(
                key,
                self.expectation(key, floor),
                format!("version {version}, {stamp}: a stale value"),
            ));
        }
        self.settle(stamp, version)
    }

    /// The answer to a read of `key` when nothing is being written any more: the newest write exactly.
    pub(crate) fn read_back(&mut self, key: u64, found: Option<(&[u8], u64)>) -> Result<(), Wrong> {
        let floor = self.floor(key);
        if let Some((bytes, version)) = found
            && version > floor
        {
            let stamp = self.stamp_of(key, bytes, floor, version)?;
            let found = format!("version {version}, {stamp}: newer than every acknowledged write");
            return Err(self.wrong(key, self.expectation(key, floor), found));
        }
        self.read(key, floor, found)
    }

    /// Keys that the final read-back must look at: everything of which anything is known.
    pub(crate) fn known(&self) -> impl Iterator<Item = u64> + '_ {
        self.floors
            .iter()
            .enumerate()
            .filter(|(_, floor)| floor.version > 0)
            .map(|(key, _)| key as u64)
    }

    /// A wrong answer about `key`.
    pub(crate) fn wrong(&self, key: u64, expected: String, found: String) -> Wrong {
        Wrong {
            key: self.keys.name(key),
            expected,
            found,
        }
    }

    /// The write that `bytes` claim, if they are whole, of this key, and of a write that was made and not refused.
    fn stamp_of(&self, key: u64, bytes: &[u8], floor: u64, version: u64) -> Result<Stamp, Wrong> {
        let described = |what: String| {
            self.wrong(
                key,
                self.expectation(key, floor),
                format!("version {version}: {what}"),
            )
        };
        let stamp = value::decode(bytes)
            .map_err(|malformed: Malformed| described(malformed.to_string()))?;
        if stamp.key != key {
            return Err(described(format!(
                "the value of another key, number {} ({stamp})",
                stamp.key
            )));
        }
        if stamp.run != self.run {
            return Ok(stamp);
        }
        if self
            .begun
            .get(stamp.writer as usize)
            .is_none_or(|&begun| stamp.sequence >= begun)
        {
            return Err(described(format!("{stamp}, which was never sent")));
        }
        if self.refused.contains(&(stamp.writer, stamp.sequence)) {
            return Err(described(format!("{stamp}, which the server had refused")));
        }
        Ok(stamp)
    }

    /// `version` of the key is the write of `stamp`: must agree with what is known, and may raise the floor.
    fn settle(&mut self, stamp: Stamp, version: u64) -> Result<(), Wrong> {
        let known = self.floors[stamp.key as usize];
        let same =
            (known.run, known.writer, known.sequence) == (stamp.run, stamp.writer, stamp.sequence);
        if version == known.version && !same {
            let expected = self.expectation(stamp.key, version);
            return Err(self.wrong(
                stamp.key,
                expected,
                format!("version {version}, {stamp}: two writes with one version"),
            ));
        }
        if version != known.version && same && known.version > 0 {
            let expected = self.expectation(stamp.key, known.version);
            return Err(self.wrong(
                stamp.key,
                expected,
                format!("version {version}, {stamp}: one write with two versions"),
            ));
        }
        if version > known.version {
            if known.run == self.run && stamp.run != self.run {
                let expected = format!(
                    "{}, or a later write of this run",
                    self.expectation(stamp.key, known.version)
                );
                let found = format!(
                    "version {version}, {stamp}: of another run (does another load write these keys?)"
                );
                return Err(self.wrong(stamp.key, expected, found));
            }
            self.floors[stamp.key as usize] = Floor {
                version,
                sequence: stamp.sequence,
                run: stamp.run,
                writer: stamp.writer,
            };
        }
        Ok(())
    }

    fn expectation(&self, key: u64, floor: u64) -> String {
        let known = self.floors[key as usize];
        if floor == 0 {
            "a whole value of this key, or no such key".to_owned()
        } else if known.version == floor {
            let Floor {
                sequence,
                run,
                writer,
                ..
            } = known;
            format!(
                "version {floor} ({}) or newer",
                Stamp {
                    run,
                    writer,
                    key,
                    sequence
                }
            )
        } else {
            format!("version {floor} or newer")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: KeySpace = KeySpace::fixed(100, 16);
    const RUN: u32 = 9;

    fn stamp(writer: u32, key: u64, sequence: u64) -> Stamp {
        Stamp {
            run: RUN,
            writer,
            key,
            sequence,
        }
    }

    fn bytes(stamp: Stamp) -> Vec<u8> {
        let mut value = vec![0; 100];
        value::encode(stamp, &mut value);
        value
    }

    /// A ledger in which writer 0 wrote key 5 twice: sequence 0 as version 10, sequence 1 as version 20.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(SPACE, RUN, 4);
        for (sequence, version) in [(0, 10), (1, 20)] {
            let floor = ledger.floor(5);
            ledger.begin(stamp(0, 5, sequence));
            ledger
                .acknowledge(stamp(0, 5, sequence), floor, version, floor > 0)
                .expect("a right answer");
        }
        ledger
    }

    fn message(result: Result<(), Wrong>) -> String {
        result.expect_err("a wrong answer").to_string()
    }

    #[test]
    fn the_newest_write_and_concurrent_ones_are_right_answers() {
        let mut ledger = ledger();
        ledger
            .read(5, 20, Some((&bytes(stamp(0, 5, 1)), 20)))
            .expect("the newest");
        // The read began before the second write was acknowledged: either value is right.
        ledger
            .read(5, 10, Some((&bytes(stamp(0, 5, 0)), 10)))
            .expect("the older one, concurrently");
        // A write which is not acknowledged yet may be seen already, and its acknowledgement agrees later.
        ledger.begin(stamp(1, 5, 0));
        ledger
            .read(5, 20, Some((&bytes(stamp(1, 5, 0)), 21)))
            .expect("a write in flight");
        ledger
            .acknowledge(stamp(1, 5, 0), 20, 21, true)
            .expect("its acknowledgement");
        ledger.read(7, 0, None).expect("a key that nobody wrote");
    }

    #[test]
    fn a_stale_value_is_caught() {
        let text = message(ledger().read(5, 20, Some((&bytes(stamp(0, 5, 0)), 10))));
        assert!(
            text.contains("k000000005......")
                && text.contains("version 20")
                && text.contains("stale"),
            "{text}"
        );
    }

    #[test]
    fn reads_never_go_back_even_for_a_write_that_is_not_acknowledged() {
        let mut ledger = ledger();
        ledger.begin(stamp(1, 5, 0));
        ledger
            .read(5, 20, Some((&bytes(stamp(1, 5, 0)), 21)))
            .expect("a write in flight");
        let floor = ledger.floor(5);
        assert_eq!(floor, 21);
        assert!(
            message(ledger.read(5, floor, Some((&bytes(stamp(0, 5, 1)), 20)))).contains("stale")
        );
    }

    #[test]
    fn a_lost_key_is_caught() {
        assert!(message(ledger().read(5, 20, None)).contains("no such key"));
        assert!(message(ledger().read_back(5, None)).contains("no such key"));
    }

    #[test]
    fn a_value_of_another_key_is_caught() {
        let mut ledger = ledger();
        let text = message(ledger.read(6, 0, Some((&bytes(stamp(0, 5, 1)), 20))));
        assert!(text.contains("another key"), "{text}");
    }

    #[test]
    fn a_torn_value_is_caught() {
        let torn = [&bytes(stamp(0, 5, 1))[..64], &bytes(stamp(0, 5, 0))[64..]].concat();
        assert!(message(ledger().read(5, 20, Some((&torn, 20)))).contains("torn"));
    }

    #[test]
    fn a_value_that_was_never_sent_or_was_refused_is_caught() {
        let mut ledger = ledger();
        assert!(
            message(ledger.read(5, 20, Some((&bytes(stamp(0, 5, 2)), 21)))).contains("never sent")
        );
        assert!(
            message(ledger.read(5, 20, Some((&bytes(stamp(99, 5, 0)), 21)))).contains("never sent")
        );
        ledger.begin(stamp(0, 5, 2));
        ledger.refuse(stamp(0, 5, 2));
        assert!(
            message(ledger.read(5, 20, Some((&bytes(stamp(0, 5, 2)), 21)))).contains("refused")
        );
    }

    #[test]
    fn a_version_belongs_to_one_write_and_a_write_to_one_version() {
        let mut ledger = ledger();
        ledger.begin(stamp(1, 5, 0));
        assert!(
            message(ledger.read(5, 20, Some((&bytes(stamp(1, 5, 0)), 20)))).contains("one version")
        );
        assert!(
            message(ledger.read(5, 20, Some((&bytes(stamp(0, 5, 1)), 25))))
                .contains("two versions")
        );
    }

    #[test]
    fn an_acknowledgement_must_raise_the_version_and_know_the_key() {
        let mut ledger = ledger();
        ledger.begin(stamp(1, 5, 0));
        assert!(message(ledger.acknowledge(stamp(1, 5, 0), 20, 20, true)).contains("above 20"));
        assert!(message(ledger.acknowledge(stamp(1, 5, 0), 20, 30, false)).contains("absent"));
    }

    #[test]
    fn values_of_an_earlier_run_count_until_this_run_has_written() {
        let mut ledger = ledger();
        let earlier = |key| Stamp {
            run: 1,
            ..stamp(3, key, 500)
        };
        ledger
            .read(8, 0, Some((&bytes(earlier(8)), 4)))
            .expect("left by an earlier run");
        assert!(message(ledger.read(8, ledger.floor(8), None)).contains("no such key"));
        assert!(
            message(ledger.read(5, 20, Some((&bytes(earlier(5)), 30)))).contains("another run")
        );
    }

    #[test]
    fn the_read_back_takes_only_the_newest_write() {
        let mut ledger = ledger();
        ledger
            .read_back(5, Some((&bytes(stamp(0, 5, 1)), 20)))
            .expect("the newest write");
        assert!(message(ledger.read_back(5, Some((&bytes(stamp(0, 5, 0)), 10)))).contains("stale"));
        ledger.begin(stamp(1, 5, 0));
        let phantom = bytes(stamp(1, 5, 0));
        assert!(
            message(ledger.read_back(5, Some((&phantom, 21))))
                .contains("newer than every acknowledged")
        );
        assert_eq!(ledger.known().collect::<Vec<_>>(), [5]);
    }
}

//! What was written, when each acknowledgement came, and whether a store that is left after a power cut may look so.
//!
//! Each key has one writer, which makes one write after the other. For every write the history keeps the position of the
//! write log before it was sent, and, if it was acknowledged, its version and the position of the log after the
//! acknowledgement had been read. A power cut at position `cut` must leave the key with its newest write acknowledged at
//! or before `cut`, or with a later one; and with none that was not sent yet.
//! The file is text, one line per fact, for people to read when something failed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::load::{KeySpace, Stamp, decode};

const HEADER: &str = "# orlop-bench power cut 1: write key sequence kind sent version acknowledged";

const KEY_SIZE: usize = 16;

/// Writes one after the other with nothing else going on: what a commit costs the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alone {
    pub(crate) commits: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) is_delete: bool,
    pub(crate) sent: u64,
    /// Version, and position of the log. A delete that found nothing has version 0.
    pub(crate) acknowledged: Option<(u64, u64)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    /// The number of the run in the values.
    pub(crate) run: u32,
    /// The position before the first server started.
    pub(crate) begun: u64,
    pub(crate) alone: Option<Alone>,
    /// The writes of each key, in order. Their places are the sequence numbers in the values.
    pub(crate) keys: Vec<Vec<Write>>,
}

/// What is wrong with a store.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    /// Acknowledged writes that the store had to respect.
    pub(crate) checked: u64,
    pub(crate) lost: Vec<String>,
    pub(crate) phantoms: Vec<String>,
}

/// Everything in a store: keys with values and versions.
pub(crate) type Stored = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

impl History {
    pub(crate) fn key_space(&self) -> KeySpace {
        KeySpace::fixed(self.keys.len() as u64, KEY_SIZE)
    }

    /// Whether a power cut when `cut` entries were complete may leave this.
    pub(crate) fn judge(&self, cut: u64, stored: &Stored) -> Judgement {
        let mut judgement = Judgement::default();
        let mut known = 0;
        for (number, writes) in (0..).zip(&self.keys) {
            let name = self.key_space().name(number);
            let found = stored.get(name.as_bytes());
            known += usize::from(found.is_some());
            judgement.key(self.run, number, &name, writes, cut, found);
        }
        if known < stored.len() {
            let strangers = stored.len() - known;
            let text = format!("{strangers} keys that nobody ever wrote");
            judgement.phantoms.push(text);
        }
        judgement
    }

    pub(crate) fn save(&self, path: &Path) -> Result<(), String> {
        let mut text = format!("{HEADER}\nrun {} {}\n", self.run, self.begun);
        let mut line = |arguments: std::fmt::Arguments| {
            text.write_fmt(arguments)
                .expect("a String takes everything");
        };
        if let Some(Alone { commits, from, to }) = self.alone {
            line(format_args!("alone {commits} {from} {to}\n"));
        }
        line(format_args!("keys {}\n", self.keys.len()));
        for (key, writes) in self.keys.iter().enumerate() {
            for (sequence, write) in writes.iter().enumerate() {
                let kind = if write.is_delete { "delete" } else { "set" };
                line(format_args!("write {key} {sequence} {kind} {}", write.sent));
                match write.acknowledged {
                    Some((version, at)) => line(format_args!(" {version} {at}\n")),
                    None => line(format_args!("\n")),
                }
            }
        }
        std::fs::write(path, text)
            .map_err(|error| format!("cannot write the history {}: {error}", path.display()))
    }

    pub(crate) fn load(path: &Path) -> Result<History, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read the history {shown}: {error}"))?;
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(format!(
                "{shown} is no history of a power cut: its first line is not '{HEADER}'"
            ));
        }
        let mut history = History::default();
        for line in lines {
            history
                .take(line)
                .ok_or_else(|| format!("{shown} has a line that makes no sense: '{line}'"))?;
        }
        Ok(history)
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |place: usize| words.get(place)?.parse::<u64>().ok();
        match *words.first()? {
            "run" => {
                self.run = u32::try_from(number(1)?).ok()?;
                self.begun = number(2)?;
            }
            "alone" => {
                self.alone = Some(Alone {
                    commits: number(1)?,
                    from: number(2)?,
                    to: number(3)?,
                });
            }
            "keys" => self
                .keys
                .resize_with(words.get(1)?.parse::<u16>().ok()?.into(), Vec::new),
            "write" => {
                let writes = self.keys.get_mut(usize::try_from(number(1)?).ok()?)?;
                if writes.len() as u64 != number(2)? {
                    return None;
                }
                let acknowledged = match words.len() {
                    5 => None,
                    7 => Some((number(5)?, number(6)?)),
                    _ => return None,
                };
                writes.push(Write {
                    is_delete: words[3] == "delete",
                    sent: number(4)?,
                    acknowledged,
                });
            }
            _ => return None,
        }
        Some(())
    }
}

impl Judgement {
    fn key(
        &mut self,
        run: u32,
        number: u64,
        name: &str,
        writes: &[Write],
        cut: u64,
        found: Option<&(Vec<u8>, u64)>,
    ) {
        let acknowledged_by = |write: &Write| write.acknowledged.is_some_and(|(_, at)| at <= cut);
        let sent = writes.iter().take_while(|write| write.sent < cut).count();
        let newest = writes[..sent].iter().rposition(acknowledged_by);
        self.checked += writes[..sent]
            .iter()
            .filter(|write| acknowledged_by(write))
            .count() as u64;
        let allowed = newest.unwrap_or(0)..sent;
        let expected = match newest {
            Some(place) => format!("write {place} {:?} or a later one", writes[place]),
            None => "nothing acknowledged".to_owned(),
        };
        let Some((value, version)) = found else {
            let deleted = newest.is_none() || writes[allowed].iter().any(|write| write.is_delete);
            if !deleted {
                self.lost
                    .push(format!("key {name} is absent; expected {expected}"));
            }
            return;
        };
        let stamp = match decode(value) {
            Ok(stamp) if (stamp.run, stamp.key) == (run, number) => stamp,
            Ok(stamp) => {
                let text = format!("key {name} holds another's value: {stamp}");
                return self.phantoms.push(text);
            }
            Err(malformed) => {
                let text = format!("key {name}, version {version}: {malformed}");
                return self.phantoms.push(text);
            }
        };
        let place = usize::try_from(stamp.sequence).expect("a 64-bit machine");
        let holds = format!("key {name} holds write {place} (version {version})");
        if place >= sent || writes[place].is_delete {
            let text = format!("{holds}, which was not sent; {sent} were");
            self.phantoms.push(text);
        } else if !allowed.contains(&place) {
            self.lost.push(format!("{holds}; expected {expected}"));
        } else if let Some((told, _)) = writes[place].acknowledged
            && told != *version
        {
            let text = format!("{holds}, acknowledged as version {told}");
            self.phantoms.push(text);
        } else if let Some(before) = highest_version(&writes[..place])
            && *version <= before
        {
            let text = format!("{holds}, not above version {before} of an earlier write");
            self.phantoms.push(text);
        }
    }
}

fn highest_version(writes: &[Write]) -> Option<u64> {
    let acknowledged = writes.iter().filter_map(|write| write.acknowledged);
    acknowledged.map(|(version, _)| version).max()
}

/// The identity of a write in its value.
pub(crate) fn stamp(run: u32, key: u64, sequence: usize) -> Stamp {
    Stamp {
        run,
        writer: 0,
        key,
        sequence: sequence as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::super::write_log::made::Scratch;
    use super::*;
    use crate::load::encode;

    const RUN: u32 = 77;

    fn set(sent: u64, acknowledged: Option<(u64, u64)>) -> Write {
        Write {
            is_delete: false,
            sent,
            acknowledged,
        }
    }

    fn delete(sent: u64, acknowledged: Option<(u64, u64)>) -> Write {
        Write {
            is_delete: true,
            ..set(sent, acknowledged)
        }
    }

    /// Two keys; the second has a set, a delete and an unanswered set.
    fn history() -> History {
        History {
            run: RUN,
            begun: 5,
            alone: Some(Alone {
                commits: 3,
                from: 10,
                to: 16,
            }),
            keys: vec![
                vec![set(10, Some((1, 12))), set(20, Some((3, 24)))],
                vec![
                    set(10, Some((2, 14))),
                    delete(30, Some((4, 36))),
                    set(40, None),
                ],
            ],
        }
    }

    fn stored(contents: &[(u64, usize, u64)]) -> Stored {
        let space = history().key_space();
        let entry = |&(key, sequence, version): &(u64, usize, u64)| {
            let mut value = vec![0; 100];
            encode(stamp(RUN, key, sequence), &mut value);
            (space.name(key).into_bytes(), (value, version))
        };
        contents.iter().map(entry).collect()
    }

    /// Demands so many lost and so many phantoms, and returns how many acknowledgements were checked.
    #[track_caller]
    fn judged(cut: u64, contents: &[(u64, usize, u64)], lost: usize, phantoms: usize) -> u64 {
        let judgement = history().judge(cut, &stored(contents));
        let found = (judgement.lost.len(), judgement.phantoms.len());
        assert_eq!(found, (lost, phantoms), "{judgement:?}");
        judgement.checked
    }

    #[test]
    fn the_newest_acknowledged_write_or_a_later_one_is_right() {
        assert_eq!(judged(5, &[], 0, 0), 0);
        assert_eq!(judged(14, &[(0, 0, 1), (1, 0, 2)], 0, 0), 2);
        // Sent and not acknowledged yet.
        assert_eq!(judged(22, &[(0, 0, 1), (1, 0, 2)], 0, 0), 2);
        assert_eq!(judged(22, &[(0, 1, 3), (1, 0, 2)], 0, 0), 2);
        assert_eq!(judged(11, &[(0, 0, 1)], 0, 0), 0);
        // The delete is on its way; then it is acknowledged; then a set without an answer may be there.
        judged(35, &[(0, 1, 3), (1, 0, 2)], 0, 0);
        judged(35, &[(0, 1, 3)], 0, 0);
        assert_eq!(judged(36, &[(0, 1, 3)], 0, 0), 4);
        judged(50, &[(0, 1, 3), (1, 2, 5)], 0, 0);
        judged(50, &[(0, 1, 3)], 0, 0);
    }

    #[test]
    fn a_lost_write_and_a_deleted_key_that_is_back_are_found() {
        judged(14, &[(1, 0, 2)], 1, 0);
        judged(24, &[(0, 0, 1), (1, 0, 2)], 1, 0);
        judged(36, &[(0, 1, 3), (1, 0, 2)], 1, 0);
        judged(50, &[(0, 1, 3), (1, 0, 2)], 1, 0);
    }

    #[test]
    fn what_was_not_sent_yet_or_by_nobody_is_a_phantom() {
        judged(14, &[(0, 1, 3), (1, 0, 2)], 0, 1);
        judged(36, &[(0, 1, 3), (1, 1, 4)], 0, 1);
        // Another version than the acknowledged one, and one that went back.
        judged(24, &[(0, 1, 9), (1, 0, 2)], 0, 1);
        judged(50, &[(0, 1, 3), (1, 2, 4)], 0, 1);
        let mut contents = stored(&[(0, 1, 3), (1, 0, 2)]);
        contents.insert(b"who is this".to_vec(), (vec![], 1));
        assert_eq!(history().judge(30, &contents).phantoms.len(), 1);
        let mut contents = stored(&[(0, 1, 3), (1, 0, 2)]);
        let key = history().key_space().name(0).into_bytes();
        contents.get_mut(&key).unwrap().0[60] ^= 1;
        assert_eq!(history().judge(30, &contents).phantoms.len(), 1);
    }

    #[test]
    fn a_history_comes_back_from_its_file() {
        let scratch = Scratch::new("history");
        history().save(&scratch.0).unwrap();
        assert_eq!(History::load(&scratch.0), Ok(history()));
        std::fs::write(&scratch.0, format!("{HEADER}\nwrite 0 0 set 1\n")).unwrap();
        assert!(History::load(&scratch.0).is_err_and(|text| text.contains("write 0 0")));
        std::fs::write(&scratch.0, "hello\n").unwrap();
        assert!(History::load(&scratch.0).is_err_and(|text| text.contains("no history")));
    }
}

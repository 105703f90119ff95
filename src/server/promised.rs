//! What clients were promised, by their acknowledgement log, against what the log of a store holds.
//!
//! The newest acknowledged write of a key stands for those before it: versions of a key only grow, and what is
//! overwritten may be gone from the log. So the log must hold that write, value and all, or a later one of the key.
//! Does not: read files of the store (`storage::verify` does, and shows its writes).

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::ack_log::{self, Acknowledged};
use crate::storage::{LoggedWrite, checksum};

/// The newest acknowledged write of each key, and the newest one in the log.
#[derive(Default)]
pub(crate) struct Promised {
    newest: HashMap<Vec<u8>, Acknowledged>,
    writes: u64,
    stored: Stored,
}

/// The newest write of each key that was promised something, of a part of the log.
#[derive(Default)]
pub(crate) struct Stored(HashMap<Vec<u8>, Newest>);

#[derive(Clone, Copy)]
struct Newest {
    version: u64,
    /// CRC-32 of the value; `None`: a delete.
    crc32: Option<u32>,
}

/// How the promises were kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Acknowledged writes.
    pub(crate) writes: u64,
    /// Keys that they wrote.
    pub(crate) keys: u64,
    /// Keys whose newest write is the acknowledged one.
    pub(crate) last: u64,
    /// Keys with a later write.
    pub(crate) superseded: u64,
    /// In order of the keys.
    pub(crate) broken: Vec<Broken>,
}

/// A promise that was not kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) key: String,
    pub(crate) what: String,
}

impl Promised {
    /// Reads an acknowledgement log. The error is a sentence.
    pub(crate) fn read(file: &Path) -> Result<Promised, String> {
        let mut promised = Promised::default();
        ack_log::read(file, |write| promised.expect(write))?;
        Ok(promised)
    }

    fn expect(&mut self, write: Acknowledged) {
        self.writes += 1;
        let known = self.newest.get(write.key.as_bytes());
        if known.is_none_or(|known| known.version < write.version) {
            self.newest.insert(write.key.clone().into_bytes(), write);
        }
    }

    /// Keys that were promised something.
    pub(crate) fn keys(&self) -> HashSet<Vec<u8>> {
        self.newest.keys().cloned().collect()
    }

    /// Takes what a part of the log holds.
    pub(crate) fn take(&mut self, stored: Stored) {
        for (key, newest) in stored.0 {
            self.stored.note(&key, newest);
        }
    }

    /// The verdict, once all of the log was taken.
    pub(crate) fn judge(self) -> Kept {
        let mut kept = Kept {
            writes: self.writes,
            keys: self.newest.len() as u64,
            last: 0,
            superseded: 0,
            broken: Vec::new(),
        };
        for (key, write) in self.newest {
            match verdict(&write, self.stored.0.get(&key)) {
                Ok(Standing::Last) => kept.last += 1,
                Ok(Standing::Superseded) => kept.superseded += 1,
                Err(what) => kept.broken.push(Broken {
                    what: format!("version {} was acknowledged, {what}", write.version),
                    key: write.key,
                }),
            }
        }
        kept.broken.sort_by(|one, other| one.key.cmp(&other.key));
        kept
    }
}

enum Standing {
    Last,
    Superseded,
}

/// How an acknowledged write stands against the newest write of its key in the log; the error says how it is broken.
fn verdict(write: &Acknowledged, stored: Option<&Newest>) -> Result<Standing, String> {
    let Some(stored) = stored else {
        return Err("the log holds nothing of the key".into());
    };
    if stored.version > write.version {
        return Ok(Standing::Superseded);
    }
    if stored.version < write.version {
        return Err(format!(
            "the newest write in the log has version {}",
            stored.version
        ));
    }
    match stored.crc32 {
        Some(crc32) if crc32 == write.crc32 => Ok(Standing::Last),
        Some(crc32) => Err(format!(
            "the value in the log has CRC-32 {crc32:08x}, not {:08x}",
            write.crc32
        )),
        None => Err("the log holds a delete".into()),
    }
}

impl Stored {
    /// Takes note of a write in the log, if its key was promised something.
    pub(crate) fn see(&mut self, keys: &HashSet<Vec<u8>>, write: &LoggedWrite<'_>) {
        if keys.contains(write.key) {
            let newest = Newest {
                version: write.version,
                crc32: write.value.map(checksum),
            };
            self.note(write.key, newest);
        }
    }

    fn note(&mut self, key: &[u8], newest: Newest) {
        match self.0.get_mut(key) {
            Some(known) if known.version >= newest.version => {}
            Some(known) => *known = newest,
            None => {
                self.0.insert(key.to_vec(), newest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promised(writes: &[(&str, u64, &[u8])]) -> Promised {
        let mut promised = Promised::default();
        for (key, version, value) in writes {
            promised.expect(Acknowledged {
                key: (*key).to_owned(),
                version: *version,
                crc32: checksum(value),
                monotonic_ns: 1,
            });
        }
        promised
    }

    fn judged(mut promised: Promised, log: &[LoggedWrite<'_>]) -> Kept {
        let keys = promised.keys();
        for write in log {
            let mut stored = Stored::default();
            stored.see(&keys, write);
            promised.take(stored);
        }
        promised.judge()
    }

    fn logged<'a>(key: &'a [u8], version: u64, value: Option<&'a [u8]>) -> LoggedWrite<'a> {
        LoggedWrite {
            key,
            version,
            value,
        }
    }

    #[test]
    fn the_newest_write_of_a_key_or_a_later_one_keeps_the_promise() {
        let kept = judged(
            promised(&[
                ("a", 3, b"new"),
                ("a", 1, b"old"),
                ("b", 2, b"x"),
                ("c", 4, b"y"),
            ]),
            &[
                logged(b"a", 3, Some(b"new")),
                logged(b"a", 1, Some(b"old")),
                logged(b"b", 5, None),
                logged(b"c", 6, Some(b"of another")),
                logged(b"d", 9, Some(b"not promised")),
            ],
        );
        assert_eq!((kept.writes, kept.keys), (4, 3));
        assert_eq!((kept.last, kept.superseded), (1, 2));
        assert_eq!(kept.broken, []);
    }

    #[test]
    fn an_absent_older_deleted_or_different_write_breaks_it() {
        let writes = ["a", "b", "c", "d"].map(|key| (key, 3, &b"x"[..]));
        let kept = judged(
            promised(&writes),
            &[
                logged(b"b", 2, Some(b"x")),
                logged(b"c", 3, None),
                logged(b"d", 3, Some(b"y")),
            ],
        );
        let said: Vec<&str> = kept.broken.iter().map(|broken| &*broken.what).collect();
        assert_eq!(said.len(), 4);
        for (what, expected) in said
            .iter()
            .zip(["nothing", "version 2", "delete", "CRC-32"])
        {
            assert!(
                what.contains("version 3 was acknowledged") && what.contains(expected),
                "{what}"
            );
        }
    }
}

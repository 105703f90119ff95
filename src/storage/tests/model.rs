//! What one shard must do, told as simply as possible: the list of records in commit order, and how much of it is
//! certainly durable.
//!
//! The model predicts every outcome, version included, when a write is submitted. The *floor* is the highest version
//! that somebody outside was told about: by an acknowledgement, a read, or a refusal that rests on it. Whatever
//! recovery finds must be the replay of a prefix of the list that reaches the floor.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::storage::{Change, Condition, Mutation, Outcome};

/// One record in commit order.
#[derive(Clone)]
struct Record {
    version: u64,
    /// `None`: a delete.
    value: Option<Rc<[u8]>>,
}

/// What the model says of a write before the engine is asked.
pub(super) struct Prediction {
    pub(super) outcome: Outcome,
    /// The version that must be durable before anybody may hear of the outcome; 0: none.
    pub(super) rests_on: u64,
}

/// A value that was seen, and its version.
pub(super) type Seen<'a> = Option<(&'a [u8], u64)>;

/// A query of keys in order.
#[derive(Clone, Debug)]
pub(super) struct Query {
    pub(super) prefix: Vec<u8>,
    pub(super) after: Vec<u8>,
    pub(super) max_entries: usize,
    pub(super) max_bytes: usize,
    pub(super) keys_only: bool,
}

/// Keys, values unless only keys were asked for, versions.
pub(super) type Entries = Vec<(Vec<u8>, Option<Vec<u8>>, u64)>;

#[derive(Clone, Default)]
pub(super) struct Model {
    records: Vec<Record>,
    /// Versions of each key, ascending.
    by_key: BTreeMap<Vec<u8>, Vec<u64>>,
    /// The last version that was given out, to a record that is in the list or was given up.
    given: u64,
    floor: u64,
    /// Operations that were acknowledged or seen, for the figures.
    pub(super) confirmed: u64,
}

impl Model {
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// The version of the last record.
    pub(super) fn last_version(&self) -> u64 {
        self.records.last().map_or(0, |record| record.version)
    }

    /// Records in the list.
    pub(super) fn records(&self) -> u64 {
        self.records.len() as u64
    }

    fn record(&self, version: u64) -> &Record {
        let at = self
            .records
            .binary_search_by_key(&version, |record| record.version);
        &self.records[at.expect("by_key names only records of the list")]
    }

    /// Version of the newest record of `key` up to version `upto`; 0: there is none.
    fn newest(&self, key: &[u8], upto: u64) -> u64 {
        let versions = self.by_key.get(key).map_or(&[][..], Vec::as_slice);
        versions[..versions.partition_point(|&version| version <= upto)]
            .last()
            .copied()
            .unwrap_or(0)
    }

    fn seen_at(&self, version: u64) -> Seen<'_> {
        if version == 0 {
            return None;
        }
        self.record(version)
            .value
            .as_ref()
            .map(|value| (&**value, version))
    }

    /// What `key` is once everything submitted has happened: its version, `None` if it is absent.
    pub(super) fn current(&self, key: &[u8]) -> Option<u64> {
        self.seen_at(self.newest(key, self.last_version()))
            .map(|(_, version)| version)
    }

    /// What `key` certainly is or was: its version at the floor.
    pub(super) fn certain(&self, key: &[u8]) -> Option<u64> {
        self.seen_at(self.newest(key, self.floor))
            .map(|(_, version)| version)
    }

    /// What the engine must answer, without submitting.
    pub(super) fn predict(&self, mutation: &Mutation<'_>) -> Prediction {
        let newest = self.newest(mutation.key, self.last_version());
        let current = self.seen_at(newest).map(|(_, version)| version);
        let holds = match mutation.condition {
            Condition::None => true,
            Condition::IfAbsent => current.is_none(),
            Condition::IfPresent => current.is_some(),
            Condition::IfVersion(version) => current == Some(version),
        };
        let existed = current.is_some();
        match (holds, mutation.change) {
            (false, _) => Prediction {
                outcome: Outcome::Refused { current },
                rests_on: newest,
            },
            (true, Change::Delete) if !existed => Prediction {
                outcome: Outcome::Written {
                    version: 0,
                    existed,
                },
                rests_on: newest,
            },
            (true, _) => {
                let version = self.given + 1;
                Prediction {
                    outcome: Outcome::Written { version, existed },
                    rests_on: version,
                }
            }
        }
    }

    /// Notes that the engine took the write.
    pub(super) fn submit(&mut self, mutation: &Mutation<'_>) {
        if self.predict(mutation).rests_on <= self.last_version() {
            return;
        }
        let value = match mutation.change {
            Change::Set(value) => Some(Rc::from(value)),
            Change::Delete => None,
        };
        self.given += 1;
        let version = self.given;
        self.records.push(Record { version, value });
        self.by_key
            .entry(mutation.key.to_vec())
            .or_default()
            .push(version);
    }

    /// Somebody was told of something that rests on `version`.
    pub(super) fn confirm(&mut self, version: u64) {
        self.floor = self.floor.max(version);
        self.confirmed += 1;
    }

    /// A read that began when the floor was at `since` returned `seen`. It must be what the key was at some moment
    /// from then on; from now on it is certain.
    pub(super) fn observe(&mut self, key: &[u8], seen: Seen<'_>, since: u64) -> Result<(), String> {
        let first = self.newest(key, since);
        let later = self.by_key.get(key).map_or(&[][..], Vec::as_slice);
        let later = &later[later.partition_point(|&version| version <= first)..];
        let found = std::iter::once(first)
            .chain(later.iter().copied())
            .find(|&version| self.seen_at(version) == seen);
        match found {
            Some(version) => {
                self.confirm(version);
                Ok(())
            }
            None => Err(format!(
                "key {} is {}, expected {} (certain up to version {since}) or a later write of it",
                show_key(key),
                show(seen),
                show(self.seen_at(first)),
            )),
        }
    }

    /// A page that was asked for when the floor was at `since`. It must be the page of one moment from then on.
    pub(super) fn observe_page(
        &mut self,
        query: &Query,
        seen: &Entries,
        more: bool,
        since: u64,
    ) -> Result<(), String> {
        let later = self
            .records
            .iter()
            .map(|record| record.version)
            .filter(|&version| version > since);
        let found = std::iter::once(since)
            .chain(later)
            .find(|&upto| self.page(query, upto) == (seen.clone(), more));
        match found {
            Some(version) => {
                self.confirm(version);
                Ok(())
            }
            None => {
                let brief = |(entries, more): (Entries, bool)| {
                    let keys: Vec<_> = entries
                        .iter()
                        .map(|(key, _, version)| (show_key(key), *version))
                        .collect();
                    format!("{keys:?} more: {more}")
                };
                let (seen, first) = (brief((seen.clone(), more)), brief(self.page(query, since)));
                Err(format!(
                    "page {query:?} is {seen}, expected {first} (certain up to {since}) or a later one"
                ))
            }
        }
    }

    fn page(&self, query: &Query, upto: u64) -> (Entries, bool) {
        let (mut entries, mut bytes) = (Entries::new(), 0);
        for key in self
            .by_key
            .keys()
            .filter(|key| key.starts_with(&query.prefix) && **key > query.after)
        {
            let Some((value, version)) = self.seen_at(self.newest(key, upto)) else {
                continue;
            };
            let value = (!query.keys_only).then(|| value.to_vec());
            bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            if entries.len() == query.max_entries
                || (bytes > query.max_bytes && !entries.is_empty())
            {
                return (entries, true);
            }
            entries.push((key.clone(), value, version));
        }
        (entries, false)
    }

    /// Recovery found the log up to `last_version`: what is beyond never happened and never will.
    pub(super) fn recovered(&mut self, last_version: u64) -> Result<(), String> {
        if last_version < self.floor {
            return Err(format!(
                "lost: recovered up to version {last_version}, {} is confirmed",
                self.floor
            ));
        }
        if last_version > self.last_version() {
            return Err(format!(
                "phantom: recovered version {last_version}, {} was the last",
                self.last_version()
            ));
        }
        let known = last_version == 0
            || self
                .records
                .binary_search_by_key(&last_version, |record| record.version)
                .is_ok();
        if !known {
            return Err(format!(
                "phantom: recovered version {last_version}, which was given up"
            ));
        }
        self.cut(last_version);
        self.given = last_version;
        self.floor = last_version;
        Ok(())
    }

    /// Everything after `version` may be missing as well: the test allows it here.
    pub(super) fn release(&mut self, version: u64) {
        self.floor = self.floor.min(version);
    }

    /// The engine gave up everything that is not durable: no room.
    pub(super) fn give_up(&mut self) {
        self.cut(self.floor);
    }

    fn cut(&mut self, last_version: u64) {
        self.records.truncate(
            self.records
                .partition_point(|record| record.version <= last_version),
        );
        for versions in self.by_key.values_mut() {
            versions.truncate(versions.partition_point(|&version| version <= last_version));
        }
    }

    /// Every key that was ever written.
    pub(super) fn keys(&self) -> Vec<Vec<u8>> {
        self.by_key.keys().cloned().collect()
    }

    /// What is there after everything submitted: key, value, version, in the order of the keys.
    pub(super) fn present(&self) -> Vec<(Vec<u8>, Rc<[u8]>, u64)> {
        let present = |(key, versions): (&Vec<u8>, &Vec<u64>)| {
            let version = *versions.last()?;
            self.record(version)
                .value
                .as_ref()
                .map(|value| (key.clone(), Rc::clone(value), version))
        };
        self.by_key.iter().filter_map(present).collect()
    }
}

/// A key, short enough for a message.
pub(super) fn show_key(key: &[u8]) -> String {
    format!(
        "{}({} bytes)",
        String::from_utf8_lossy(&key[..key.len().min(12)]),
        key.len()
    )
}

fn show(seen: Seen<'_>) -> String {
    match seen {
        Some((value, version)) => format!(
            "{} bytes (crc {:08x}) @{version}",
            value.len(),
            crc32fast::hash(value)
        ),
        None => "absent".to_owned(),
    }
}

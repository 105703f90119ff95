//! What comes of a state that a power cut left: recovered once for each state, again, and through cuts of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::CUTS_MAX;
use super::workload::{KEYS, changes_in_flight, options};
use crate::storage::disk::sim::{Cut, Image, Rng, SimDisk};
use crate::storage::tests::executor::run;
use crate::storage::tests::life::{Engine, Opening};
use crate::storage::{Lookup, PrefixQuery, Recovered, Store};

/// Runs of recoveries: beyond those of every workload.
const RUN: u64 = 1000;

/// The content of a store, short enough to be kept for every state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) last_version: u64,
    keys: Vec<(String, u64)>,
    /// Of keys, values and versions.
    digest: u64,
}

impl Found {
    pub(super) fn new(
        last_version: u64,
        entries: impl Iterator<Item = (Vec<u8>, Vec<u8>, u64)>,
    ) -> Self {
        let mut hasher = DefaultHasher::new();
        let mut keys = Vec::new();
        for (key, value, version) in entries {
            (&key, &value, version).hash(&mut hasher);
            keys.push((String::from_utf8_lossy(&key).into_owned(), version));
        }
        Self {
            last_version,
            keys,
            digest: hasher.finish(),
        }
    }
}

/// The states that were recovered so far.
pub(super) struct Recoveries {
    known: HashMap<(u64, bool), Found>,
    /// Those that a recovery left, or a cut of one.
    after: HashMap<u64, Found>,
    cut_one_in: u64,
    cut_recoveries: u64,
    torn_tails: u64,
}

impl Recoveries {
    pub(super) fn new(cut_one_in: u64) -> Self {
        Self {
            known: HashMap::new(),
            after: HashMap::new(),
            cut_one_in,
            cut_recoveries: 0,
            torn_tails: 0,
        }
    }

    /// Different states.
    pub(super) fn distinct(&self) -> usize {
        self.known.len()
    }

    /// What is recovered from a state.
    pub(super) fn of(&mut self, cut: &Cut<'_>, served: bool) -> Result<&Found, String> {
        let digest = cut.digest();
        if !self.known.contains_key(&(digest, served)) {
            let image = cut.image();
            let found = self.recover(&image, served)?;
            if digest.is_multiple_of(self.cut_one_in) {
                self.cut_recovery(&image, served, &found)?;
            }
            self.known.insert((digest, served), found);
        }
        Ok(&self.known[&(digest, served)])
    }

    /// Recovers a state, and then what that leaves.
    fn recover(&mut self, image: &Image, served: bool) -> Result<Found, String> {
        let disk = SimDisk::with_image(1, image);
        let (found, recovered) = open(&disk, RUN, served)?;
        self.torn_tails += u64::from(recovered.torn_tail.is_some());
        for cut in disk.cuts(CUTS_MAX).iter() {
            self.again(&cut, &found, "recovered again")?;
        }
        Ok(found)
    }

    /// Recovers a state while the power is cut at every operation.
    fn cut_recovery(&mut self, image: &Image, served: bool, found: &Found) -> Result<(), String> {
        let disk = SimDisk::with_image(1, image);
        let mut opening = Opening::start(&disk, &options(RUN, served), Rng::new(1));
        let mut shown = Vec::new();
        loop {
            opening.executor.settle();
            let now = changes_in_flight(&disk);
            if now == shown {
                if opening.is_done() || !disk.step() {
                    return Ok(());
                }
                continue;
            }
            shown = now;
            for cut in disk.cuts(CUTS_MAX).iter() {
                self.cut_recoveries += 1;
                self.again(&cut, found, "recovered after a cut of the recovery")?;
            }
        }
    }

    fn again(&mut self, cut: &Cut<'_>, found: &Found, when: &str) -> Result<(), String> {
        let again = match self.after.entry(cut.digest()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let disk = SimDisk::with_image(2, &cut.image());
                unknown.insert(open(&disk, RUN + 1, false)?.0)
            }
        };
        match again == found {
            true => Ok(()),
            false => Err(format!("{when}: {again:?}, at first it was {found:?}")),
        }
    }
}

impl fmt::Display for Recoveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} recovered ({} torn tails), {} cuts of recoveries, {} recovered again",
            self.known.len(),
            self.torn_tails,
            self.cut_recoveries,
            self.after.len()
        )
    }
}

/// Opens a store, and reads all of it in both ways.
fn open(disk: &SimDisk, number: u64, served: bool) -> Result<(Found, Recovered), String> {
    let (copy, options) = (disk.clone(), options(number, served));
    run(disk, async move {
        let (store, recovered): (Engine, Recovered) = Store::open(copy, options)
            .await
            .map_err(|error| format!("the store does not open: {error}"))?;
        let query = PrefixQuery {
            prefix: b"",
            after: b"",
            max_entries: 1000,
            max_bytes: 1 << 30,
            keys_only: false,
        };
        let failed = |error| format!("a read failed: {error}");
        let page = store.page(&query).await.map_err(failed)?;
        let mut entries = Vec::new();
        for entry in page.entries {
            let value = entry.value.expect("values were asked for").to_vec();
            entries.push((entry.key.to_vec(), value, entry.version));
        }
        for key in KEYS {
            let found = match store.get(key) {
                Lookup::Absent => None,
                Lookup::Cached(found) => Some(found),
                Lookup::OnDisk(on_disk) => Some(store.read(on_disk).await.map_err(failed)?),
            };
            let paged = entries.iter().find(|(paged, ..)| paged == key);
            let same = match (&found, paged) {
                (Some(found), Some((_, value, version))) => {
                    found.value.to_vec() == *value && found.version == *version
                }
                (found, paged) => found.is_none() && paged.is_none(),
            };
            if !same {
                return Err(format!("a read and a page of {key:?} differ"));
            }
        }
        let stat = store.stat();
        if (stat.keys, stat.last_version) != (entries.len() as u64, recovered.last_version) {
            return Err(format!(
                "{stat:?} for {} keys, {recovered:?}",
                entries.len()
            ));
        }
        Ok((
            Found::new(recovered.last_version, entries.into_iter()),
            recovered,
        ))
    })
}

//! Stores of all shards of a server on one simulated disk, started again and again with another number of shards.
//!
//! One seed is one universe of several lives. A start draws the number of shards; it may be cut while the shards read,
//! while they open, and before the manifest says that they have served. In a life clients write and read, compaction
//! moves what is in other shards' old logs, notices between shards arrive late or never, and it ends at any moment. What
//! every start finds is compared with what was acknowledged: of each key the state after one of its writes, not before
//! the last one that was acknowledged.
//!
//! `ORLOP_SIM_SECONDS` says how long new universes are begun (default 20), `ORLOP_SEED` runs one universe alone.

mod copy;
mod figures;
mod known;
mod start;
pub(super) mod stories;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use figures::Figures;
use known::{Known, State, Write};
use start::Starting;

use super::executor::{Executor, Handle};
use super::life::Engine;
use super::simulation::{number_from_environment, value_of};
use super::tasks::{Event, Reports, drive};
use crate::storage::disk::sim::{Fault, Rng, SimDisk};
use crate::storage::manifest::{Generation, Manifest};
use crate::storage::segment::{LogId, parse_name};
use crate::storage::{
    Change, Condition, Lookup, Mutation, Notice, Outcome, StorageError, StoreOptions, SubmitError,
    Submitted, format, read,
};

const SECONDS_DEFAULT: u64 = 20;
const SHARDS_MAX: u64 = 4;

struct Node {
    store: Rc<Engine>,
    reports: Rc<Reports>,
}

struct Read {
    key: usize,
    since: usize,
    found: Handle<Result<State, StorageError>>,
}

struct Universe {
    rng: Rng,
    disk: SimDisk,
    executor: Executor,
    manifest: Option<Manifest>,
    keys: Vec<Vec<u8>>,
    known: Vec<Known>,
    value_len_max: usize,
    segment_bytes: u32,
    nodes: Vec<Node>,
    reads: Vec<Read>,
    mail: Vec<(u16, Notice)>,
    waiting: BTreeMap<u64, usize>,
    next: u64,
    /// One of the next operations fails, whatever it is for.
    faulty: bool,
    figures: Figures,
}

/// Whose a key is among so many shards.
fn owner(key: &[u8], shards: u16) -> u16 {
    (crc32fast::hash(key) % u32::from(shards)) as u16
}

async fn look_up(
    store: Rc<Engine>,
    lookup: Lookup<<SimDisk as crate::storage::disk::Disk>::File>,
) -> Result<State, StorageError> {
    let found = match lookup {
        Lookup::Absent => return Ok(None),
        Lookup::Cached(found) => found,
        Lookup::OnDisk(on_disk) => store.read(on_disk).await?,
    };
    Ok(Some((found.value.to_vec(), found.version)))
}

/// The longest value and the size of new segments, in bytes.
fn sizes(rng: &mut Rng) -> (usize, u32) {
    // A record of the last one fits into no segment of the others.
    let value_len_max = [100, 4096, 9000, 90_000][rng.index(4)];
    let spare_blocks = [0, 2, 10][rng.index(3)] * 4096;
    let segment_bytes = format::segment_bytes_min(value_len_max) + spare_blocks;
    (value_len_max, segment_bytes as u32)
}

impl Universe {
    fn new(seed: u64) -> Universe {
        let mut rng = Rng::new(seed);
        let (value_len_max, segment_bytes) = sizes(&mut rng);
        let keys: Vec<_> = (0..1 + rng.index(24))
            .map(|number| format!("key{number}").into_bytes())
            .collect();
        Universe {
            disk: SimDisk::new(rng.next()),
            executor: Executor::new(rng.fork()),
            manifest: None,
            known: keys.iter().map(|_| Known::default()).collect(),
            keys,
            value_len_max,
            segment_bytes,
            nodes: Vec::new(),
            reads: Vec::new(),
            mail: Vec::new(),
            waiting: BTreeMap::new(),
            next: 0,
            faulty: false,
            figures: Figures {
                universes: 1,
                ..Figures::default()
            },
            rng,
        }
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..2 + self.rng.below(7) {
            while !self.start()? {
                self.cut();
                self.figures.cut_starts += 1;
            }
            self.audit()?;
            self.figures.lives += 1;
            if self.rng.chance(1, 4) {
                self.plan_error(400);
            }
            for _ in 0..[10, 100, 600][self.rng.index(3)] {
                self.step()?;
                self.collect()?;
                if self.has_failed() {
                    self.figures.io_errors += 1;
                    break;
                }
            }
            match self.rng.below(5) {
                _ if self.faulty => {}
                0 => self.migrate()?,
                1 => self.audit()?,
                2 => self.copy()?,
                _ => {}
            }
            for node in &self.nodes {
                let stat = node.store.stat();
                self.figures.moved_records += stat.compacted_records;
                self.figures.retired_segments += stat.retired_segments;
            }
            self.cut();
            self.figures.crashes += 1;
            if self.rng.chance(1, 4) {
                (self.value_len_max, self.segment_bytes) = sizes(&mut self.rng);
            }
        }
        Ok(())
    }

    /// An operation fails before long: a read, a write, a sync, of any of the shards.
    fn plan_error(&mut self, within: u64) {
        let number = self.disk.counters().operations + self.rng.below(within);
        let errno = [libc::EIO, libc::ENOSPC][self.rng.index(2)];
        self.disk.fail_when(move |operation| {
            (operation.number == number).then_some(Fault::Error(errno))
        });
        self.faulty = true;
    }

    /// Whether the server would have stopped itself.
    fn has_failed(&self) -> bool {
        let failed = |node: &Node| node.reports.error.borrow().is_some();
        self.nodes.iter().any(failed)
    }

    fn cut(&mut self) {
        self.disk.fail_no_more();
        self.faulty = false;
        self.executor = Executor::new(self.rng.fork());
        self.nodes.clear();
        self.reads.clear();
        self.mail.clear();
        self.waiting.clear();
        self.disk = if self.rng.chance(2, 3) {
            self.disk.crash()
        } else {
            self.disk.kill()
        };
    }

    fn options(&mut self, manifest: &Manifest, shard: u16) -> StoreOptions {
        StoreOptions {
            salt_seed: self.rng.next(),
            segment_bytes: self.segment_bytes,
            value_len_max: self.value_len_max,
            cache_bytes: [0, 10_000][self.rng.index(2)],
            pending_bytes_max: 1 << 20,
            dead_bytes_min: 0,
            ..StoreOptions::to_read(manifest, shard)
        }
    }

    /// The manifest of a start. From here on it counts: it is durable before anything else is done.
    fn next_manifest(&mut self, shards: u16) -> Manifest {
        let manifest = match &self.manifest {
            Some(manifest) => manifest.next_run(shards),
            None => Manifest {
                store_uuid: [3; 16],
                placement_seed: 0,
                generation: Generation {
                    first_log: LogId(0),
                    shards,
                },
                previous: None,
                next_log: LogId(shards.into()),
                run: 1,
                served: false,
            },
        };
        self.figures.changes += u64::from(manifest.previous.is_some());
        *self.manifest.insert(manifest)
    }

    /// Starts all shards; false when the start was cut.
    fn start(&mut self) -> Result<bool, String> {
        let shards = match &self.manifest {
            Some(manifest) if self.rng.chance(1, 2) => manifest.generation.shards,
            _ => 1 + self.rng.below(SHARDS_MAX) as u16,
        };
        let mut manifest = self.next_manifest(shards);
        if self.rng.chance(1, 5) {
            self.plan_error(60 * u64::from(shards));
        }
        let cut_after = match self.rng.chance(1, 3) {
            true => self.rng.below(60 * u64::from(shards)),
            false => u64::MAX,
        };
        let mut starting = self.begin_start(&manifest);
        for steps in 0.. {
            if steps == cut_after {
                return Ok(false);
            }
            let moved = match self.rng.chance(1, 2) {
                true => self.executor.turn(),
                false => self.disk.step(),
            };
            if !moved && !self.executor.turn() && !self.disk.step() && !starting.moves_on() {
                return Err("stuck: the start waits and nothing moves".to_owned());
            }
            if starting.reading.iter().all(Handle::is_ready)
                && !starting.reading.is_empty()
                && let Err(error) = starting.open(&mut self.executor)
            {
                return self.refused(error);
            }
            if starting.opening.iter().all(Handle::is_ready) && !starting.opening.is_empty() {
                break;
            }
        }
        let opened = match starting.opened() {
            Ok(opened) => opened,
            Err(error) => return self.refused(error),
        };
        self.disk.fail_no_more();
        self.faulty = false;
        self.drive(opened);
        if self.rng.chance(1, 10) {
            return Ok(false);
        }
        (manifest.served, manifest.previous) = (true, None);
        self.manifest = Some(manifest);
        Ok(true)
    }

    /// Lets the stores of all shards run.
    fn drive(&mut self, stores: Vec<Rc<Engine>>) {
        for store in stores {
            let reports = drive(&store, &mut self.executor);
            self.nodes.push(Node { store, reports });
        }
    }

    /// A start ends with an error: one that was planned.
    fn refused(&mut self, error: String) -> Result<bool, String> {
        match self.faulty && !error.contains("corruption") {
            true => Ok(false),
            false => Err(error),
        }
    }

    fn begin_start(&mut self, manifest: &Manifest) -> Starting {
        let (disk, mut starting) = (self.disk.clone(), Starting::default());
        let mut executor = std::mem::replace(&mut self.executor, Executor::new(Rng::new(0)));
        self.read_logs(&mut executor, &disk, manifest, &mut starting);
        self.executor = executor;
        starting
    }

    /// Lets every shard of a start read what it has to.
    fn read_logs(
        &mut self,
        executor: &mut Executor,
        disk: &SimDisk,
        manifest: &Manifest,
        starting: &mut Starting,
    ) {
        let shards = manifest.generation.shards;
        for shard in 0..shards {
            let (disk, options) = (disk.reopened(), self.options(manifest, shard));
            starting.reading.push(
                executor.spawn(async move {
                    read(disk, options, &|key: &[u8]| owner(key, shards)).await
                }),
            );
        }
    }

    fn shards(&self) -> u16 {
        self.nodes.len() as u16
    }

    fn node(&self, key: usize) -> &Node {
        &self.nodes[usize::from(owner(&self.keys[key], self.shards()))]
    }

    fn step(&mut self) -> Result<(), String> {
        match self.rng.below(20) {
            0..=4 => self.write(),
            5..=6 => {
                let key = self.rng.index(self.keys.len());
                self.read(key);
                Ok(())
            }
            7 => {
                let node = self.rng.index(self.nodes.len());
                if self.rng.chance(1, 3) {
                    self.nodes[node].reports.compact();
                }
                Ok(())
            }
            8 => {
                self.carry_mail();
                Ok(())
            }
            9..=13 => {
                self.executor.turn();
                Ok(())
            }
            _ => {
                self.disk.step();
                Ok(())
            }
        }
    }

    /// Takes up notices, and delivers some of those under way, in order from each shard to each other.
    fn carry_mail(&mut self) {
        for (from, node) in self.nodes.iter().enumerate() {
            while let Some(notice) = node.store.next_notice() {
                self.mail.push((from as u16, notice));
            }
        }
        if !self.mail.is_empty() && self.rng.chance(2, 3) {
            let (from, notice) = self.mail.remove(0);
            self.nodes[usize::from(notice.to)]
                .store
                .hear(from, notice.news);
        }
    }

    fn write(&mut self) -> Result<(), String> {
        let key = self.rng.index(self.keys.len());
        let delete = self.known[key].is_present() && self.rng.chance(1, 3);
        let len = match self.rng.below(4) {
            0 => self.value_len_max,
            1 => 0,
            _ => self.rng.index(self.value_len_max.min(300) + 1),
        };
        self.submit(key, (!delete).then_some(len))
    }

    /// Sets a key to a value of about so many bytes, or deletes it.
    fn submit(&mut self, key: usize, len: Option<usize>) -> Result<(), String> {
        self.next += 1;
        let id = self.next;
        // Unlike every other one, also when it is short.
        let value = len.map(|len| [&id.to_le_bytes()[..], &value_of(id, len)].concat());
        let value = value.map(|mut value| {
            value.truncate(self.value_len_max);
            value
        });
        let mutation = Mutation {
            key: &self.keys[key],
            change: value.as_deref().map_or(Change::Delete, Change::Set),
            condition: Condition::None,
        };
        match self.node(key).store.submit(&mutation, id) {
            Submitted::Pending => {
                self.known[key].writes.push(Write { id, value });
                self.waiting.insert(id, key);
                Ok(())
            }
            Submitted::Answered(outcome, _) => Err(format!("answered {outcome:?} at once")),
            // A copy under way does not wait for the disk.
            Submitted::Rejected(SubmitError::Overloaded { .. }, _) => Ok(()),
            Submitted::Rejected(_, _) if self.faulty => Ok(()),
            Submitted::Rejected(error, _) => Err(format!("rejected for no reason: {error}")),
        }
    }

    fn read(&mut self, key: usize) {
        let store = Rc::clone(&self.node(key).store);
        let lookup = store.get(&self.keys[key]);
        let found = self.executor.spawn(look_up(store, lookup));
        self.reads.push(Read {
            key,
            since: self.known[key].acknowledged,
            found,
        });
    }

    fn collect(&mut self) -> Result<(), String> {
        for node in &self.nodes {
            if let Some(error) = &*node.reports.error.borrow() {
                match error {
                    StorageError::Io { .. } | StorageError::Poisoned if self.faulty => continue,
                    error => return Err(format!("an engine failed: {error}")),
                }
            }
            let events = node.reports.events.take();
            for (id, result) in events.into_iter().flat_map(Event::ends) {
                let key = self.waiting.remove(&id).expect("completed once");
                let known = &mut self.known[key];
                let version = match result {
                    // No room for a segment: nothing of it was written. Or none for what would have been deleted.
                    Err(SubmitError::OutOfSpace) | Ok(Outcome::Written { version: 0, .. })
                        if self.faulty =>
                    {
                        known.writes.retain(|write| write.id != id);
                        continue;
                    }
                    Err(error) => return Err(error.to_string()),
                    Ok(Outcome::Written { version, .. }) => version,
                    Ok(_) => return Err("refused without a condition".to_owned()),
                };
                if version <= known.version {
                    return Err(format!("version {version} after {}", known.version));
                }
                known.version = version;
                let at = known.writes.iter().position(|write| write.id == id);
                known.acknowledged = at.expect("submitted") + 1;
                self.figures.acknowledged += 1;
            }
        }
        for at in (0..self.reads.len()).rev() {
            if let Some(found) = self.reads[at].found.take() {
                let Read { key, since, .. } = self.reads.swap_remove(at);
                let found = match found {
                    Err(StorageError::Io { .. }) if self.faulty => continue,
                    found => found.map_err(|error| format!("a read failed: {error}"))?,
                };
                if !self.known[key].allows(since, &found) {
                    return Err(format!(
                        "{:?} shows {found:?}",
                        String::from_utf8_lossy(&self.keys[key])
                    ));
                }
            }
        }
        Ok(())
    }

    /// Runs until nothing moves, then reads every key: what is seen is what there is from now on.
    fn audit(&mut self) -> Result<(), String> {
        self.executor.exhaust(&self.disk);
        self.collect()?;
        for key in 0..self.keys.len() {
            let store = Rc::clone(&self.node(key).store);
            let lookup = store.get(&self.keys[key]);
            let found = self.executor.spawn(look_up(store, lookup));
            self.executor.exhaust(&self.disk);
            let found = found.take().expect("nothing moves any more");
            let found = found.map_err(|error| format!("a read failed: {error}"))?;
            let known = &mut self.known[key];
            if !known.allows(known.acknowledged, &found) {
                return Err(format!(
                    "{:?} is {found:?}; {} of {} writes were acknowledged",
                    String::from_utf8_lossy(&self.keys[key]),
                    known.acknowledged,
                    known.writes.len()
                ));
            }
            let version = found.as_ref().map_or(0, |(_, version)| *version);
            known.version = known.version.max(version);
            known.base = found;
            known.writes.clear();
            known.acknowledged = 0;
        }
        let present = self
            .known
            .iter()
            .filter(|known| known.base.is_some())
            .count() as u64;
        let keys: u64 = self.nodes.iter().map(|node| node.store.stat().keys).sum();
        match keys == present {
            true => Ok(()),
            false => Err(format!("stat counts {keys} keys, there are {present}")),
        }
    }

    /// Lets everybody move everything: then no segment of another log is left.
    fn migrate(&mut self) -> Result<(), String> {
        self.audit()?;
        for _ in 0..200 {
            for node in &self.nodes {
                node.reports.compact();
            }
            self.executor.exhaust(&self.disk);
            for _ in 0..10 {
                self.carry_mail();
            }
            let left: usize = self
                .nodes
                .iter()
                .map(|node| node.store.foreign_segments())
                .sum();
            if left == 0 {
                self.executor.exhaust(&self.disk);
                self.collect()?;
                let generation = self.manifest.expect("it was started").generation;
                let image = self.disk.image();
                let stray = image
                    .names()
                    .find(|name| parse_name(name).is_none_or(|(log, _)| !generation.has(log)));
                if let Some(stray) = stray {
                    return Err(format!("{stray} is left behind"));
                }
                self.figures.migrations_ended += 1;
                return self.audit();
            }
        }
        Err("segments of other logs are never emptied".to_owned())
    }
}

pub(super) fn universe(seed: u64) -> Result<Figures, String> {
    let mut universe = Universe::new(seed);
    match catch_unwind(AssertUnwindSafe(|| universe.live())) {
        Ok(Ok(())) => Ok(universe.figures),
        Ok(Err(failure)) => Err(failure),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let other = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            Err(format!("panic: {}", text.or(other).unwrap_or_default()))
        }
    }
}

#[test]
fn nothing_is_lost_and_nothing_returns_however_often_the_number_of_shards_changes() {
    if let Some(seed) = number_from_environment("ORLOP_SEED") {
        match universe(seed) {
            Ok(figures) => println!("seed {seed} passed: {figures:?}"),
            Err(story) => panic!("seed {seed}: {story}"),
        }
        return;
    }
    let seconds = number_from_environment("ORLOP_SIM_SECONDS").unwrap_or(SECONDS_DEFAULT);
    let (begun, mut figures) = (Instant::now(), Figures::default());
    let mut first = [0; 8];
    getrandom::fill(&mut first).unwrap();
    let first = u64::from_le_bytes(first) >> 24;
    while begun.elapsed() < Duration::from_secs(seconds) {
        let seed = first + figures.universes;
        match universe(seed) {
            Ok(one) => figures.add(&one),
            Err(failure) => {
                println!("{figures:?}");
                panic!(
                    "seed {seed}: {failure}\nreplay: ORLOP_SEED={seed} cargo test --lib storage::tests::migration -- --nocapture"
                );
            }
        }
    }
    println!(
        "migration, seeds {first} to {}: {figures:?}; lost 0, returned 0",
        first + figures.universes - 1
    );
}

//! T1: the engine, unchanged, on a disk that loses, tears and reorders, against the model.
//!
//! One seed is one universe: a configuration drawn at random, and several lives of the engine in a row. In a life a
//! client writes and reads while operations complete in any order; it ends with a power cut, a kill, a clean stop or an
//! I/O error, and so may the recovery that follows. After each recovery everything is compared with the model.
//!
//! `ORLOP_SIM_SECONDS` says how long new universes are begun (default 30), `ORLOP_SEED` runs one universe alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::life::{Life, Opening};
use super::model::{Model, Query, show_key};
use crate::storage::disk::sim::{Fault, Kind, Rng, SimDisk};
use crate::storage::manifest::Generation;
use crate::storage::segment::LogId;
use crate::storage::{Change, Condition, Mutation, StorageError, StoreOptions, format};

const SECONDS_DEFAULT: u64 = 30;

/// What was done, over all universes.
#[derive(Default, Debug)]
pub(super) struct Figures {
    universes: u64,
    lives: u64,
    power_cuts: u64,
    kills: u64,
    cut_recoveries: u64,
    clean_stops: u64,
    io_errors: u64,
    full_disks: u64,
    torn_tails: u64,
    records_lost_unconfirmed: u64,
    operations: u64,
    confirmed: u64,
    records_recovered: u64,
    records_compacted: u64,
    segments_retired: u64,
    footers_used: u64,
    scrub_passes: u64,
    /// Writes that waited in the lane.
    parked: u64,
}

/// How a universe behaves; every number is drawn once.
struct Habits {
    keys: Vec<Vec<u8>>,
    value_len_max: usize,
    segment_bytes: u32,
    cache_bytes: u64,
    pending_bytes_max: usize,
    dead_segments_min: u64,
    /// Weights of: submit, read, page, turn of the executor, completion of an operation.
    weights: [u64; 5],
    life_steps: u64,
    errors: bool,
    full_disks: bool,
}

impl Habits {
    fn draw(rng: &mut Rng) -> Self {
        let count = 1 + rng.index(10);
        let key = |rng: &mut Rng, index: usize| {
            let prefix = ["a", "ab", "b", ""][rng.index(4)];
            let padding = if rng.chance(1, 20) {
                3000
            } else {
                rng.index(20)
            };
            format!("{prefix}{index}{}", "x".repeat(padding)).into_bytes()
        };
        let keys = (0..count).map(|index| key(rng, index)).collect();
        let value_len_max = [100, 4096, 9000, 20_000, 100_000][rng.index(5)];
        let spare_blocks = [0, 1, 3, 10, 40][rng.index(5)] * 4096;
        Self {
            keys,
            value_len_max,
            segment_bytes: (format::segment_bytes_min(value_len_max) + spare_blocks) as u32,
            cache_bytes: [0, 1, 5000, 50_000, 10 << 20][rng.index(5)],
            pending_bytes_max: [1, 10_000, 1 << 20, 1 << 20][rng.index(4)],
            dead_segments_min: [0, 0, 0, 2][rng.index(4)],
            weights: [
                1 + rng.below(30),
                rng.below(15),
                rng.below(4),
                5 + rng.below(60),
                1 + rng.below(40),
            ],
            life_steps: [20, 100, 400, 1500][rng.index(4)],
            errors: rng.chance(1, 4),
            full_disks: rng.chance(1, 6),
        }
    }
}

struct Universe {
    rng: Rng,
    habits: Habits,
    disk: SimDisk,
    model: Model,
    run: u64,
    served: bool,
    next_value: u64,
    verbose: bool,
    figures: Figures,
}

impl Universe {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut rng = Rng::new(seed);
        let habits = Habits::draw(&mut rng);
        let disk = SimDisk::new(rng.next());
        let (model, figures) = (
            Model::default(),
            Figures {
                universes: 1,
                ..Figures::default()
            },
        );
        Self {
            rng,
            habits,
            disk,
            model,
            run: 0,
            served: false,
            next_value: 0,
            verbose,
            figures,
        }
    }

    fn note(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            self.disk.note(line);
        }
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..2 + self.rng.below(6) {
            let mut life = self.open()?;
            let result = self.one_life(&mut life);
            if let (Err(_), true) = (&result, self.verbose) {
                self.note(|| {
                    format!(
                        "at the end: {} waiting, error {:?}",
                        life.waiting(),
                        life.error()
                    )
                });
            }
            result?;
        }
        Ok(())
    }

    fn options(&mut self) -> StoreOptions {
        self.run += 1;
        StoreOptions {
            store_uuid: *b"a simulated uuid",
            shard: 3,
            generation: Generation {
                first_log: LogId(70_000),
                shards: 4,
            },
            previous: None,
            run: self.run,
            salt_seed: self.rng.next(),
            segment_bytes: self.habits.segment_bytes,
            value_len_max: self.habits.value_len_max,
            cache_bytes: self.habits.cache_bytes,
            pending_bytes_max: self.habits.pending_bytes_max,
            dead_bytes_min: self.habits.dead_segments_min * u64::from(self.habits.segment_bytes),
            served: self.served,
        }
    }

    /// Opens the store, through as many crashes and errors as chance wants, and audits what it holds.
    fn open(&mut self) -> Result<Life, String> {
        loop {
            let options = self.options();
            let faulty = self.habits.errors && self.rng.chance(1, 4);
            if faulty {
                self.plan_error(60);
            }
            let cut_after = if self.rng.chance(1, 3) {
                self.rng.below(80)
            } else {
                u64::MAX
            };
            let mut opening = Opening::start(&self.disk, &options, self.rng.fork());
            let mut steps = 0;
            let result = loop {
                if let Some(result) = opening.result() {
                    break Some(result);
                }
                if steps == cut_after {
                    break None;
                }
                steps += 1;
                let moved = if self.rng.chance(1, 2) {
                    opening.executor.turn()
                } else {
                    self.disk.step()
                };
                if !moved && !opening.executor.turn() && !self.disk.step() && !opening.is_done() {
                    return Err("stuck: the recovery waits and nothing moves".to_owned());
                }
            };
            self.disk.fail_no_more();
            match result {
                Some(Ok((store, recovered))) => {
                    self.note(|| format!("recovered {recovered:?}"));
                    let lost = self
                        .model
                        .last_version()
                        .saturating_sub(recovered.last_version);
                    self.model.recovered(recovered.last_version)?;
                    self.served = true;
                    self.figures.lives += 1;
                    self.figures.records_lost_unconfirmed += lost;
                    self.figures.records_recovered += recovered.records;
                    self.figures.footers_used += u64::from(recovered.from_footers);
                    self.figures.torn_tails += u64::from(recovered.torn_tail.is_some());
                    let mut life = Life::start(&self.disk, store, opening.executor);
                    life.faulty = false;
                    if self.rng.chance(3, 4) {
                        life.audit(&mut self.model)?;
                    }
                    return Ok(life);
                }
                Some(Err(StorageError::Io { .. })) if faulty => self.figures.io_errors += 1,
                Some(Err(StorageError::Full { .. })) if faulty => self.figures.io_errors += 1,
                Some(Err(error)) => return Err(format!("the store does not open: {error}")),
                None => self.figures.cut_recoveries += 1,
            }
            drop(opening);
            self.cut();
        }
    }

    /// The machine or the process ends here.
    fn cut(&mut self) {
        if self.rng.chance(2, 3) {
            self.figures.power_cuts += 1;
            self.disk = self.disk.crash();
        } else {
            self.figures.kills += 1;
            self.disk = self.disk.kill();
        }
    }

    /// One of the next operations fails.
    fn plan_error(&mut self, within: u64) {
        let number = self.disk.counters().operations + self.rng.below(within);
        let errno = [libc::EIO, libc::ENOSPC][self.rng.index(2)];
        let short = self.rng.chance(1, 3);
        // The first sync from there on: they are few.
        let (only_syncs, mut met) = (self.rng.chance(1, 4), false);
        self.disk.fail_when(move |operation| {
            let fault = match operation.kind {
                Kind::Write if short => Fault::ShortWrite,
                _ => Fault::Error(errno),
            };
            let here = match operation.kind {
                Kind::Sync | Kind::SyncDirectory if only_syncs => {
                    operation.number >= number && !met
                }
                _ => operation.number == number && !only_syncs,
            };
            met |= here;
            here.then_some(fault)
        });
    }

    fn one_life(&mut self, life: &mut Life) -> Result<(), String> {
        life.faulty = self.habits.errors && self.rng.chance(1, 3);
        if life.faulty {
            self.plan_error(self.habits.life_steps);
        }
        if self.habits.full_disks {
            let used: usize = self
                .disk
                .image()
                .names()
                .map(|name| self.disk.image().file(name).len())
                .sum();
            let room = self.rng.below(5 * u64::from(self.habits.segment_bytes));
            self.disk.set_capacity(Some(used as u64 + room));
        }
        let steps = self.rng.below(self.habits.life_steps);
        for _ in 0..steps {
            self.step(life)?;
            life.collect(&mut self.model)?;
            if life.error().is_some() {
                self.figures.io_errors += 1;
                // Refused, if a commit failed.
                self.submit(life)?;
                break;
            }
        }
        self.end(life)
    }

    fn step(&mut self, life: &mut Life) -> Result<(), String> {
        let weights = self.habits.weights;
        let mut drawn = self.rng.below(weights.iter().sum());
        let choice = weights.iter().position(|&weight| {
            let here = drawn < weight;
            drawn = drawn.wrapping_sub(weight);
            here
        });
        match choice {
            Some(0) => self.submit(life),
            Some(1) => {
                let key = self.habits.keys[self.rng.index(self.habits.keys.len())].clone();
                life.read(&self.model, &key);
                Ok(())
            }
            Some(2) => {
                let query = self.query();
                life.page(&self.model, query);
                Ok(())
            }
            Some(3) => {
                if self.rng.chance(1, 30) {
                    life.retry_spare();
                }
                if self.rng.chance(1, 30) {
                    life.compact();
                }
                if self.rng.chance(1, 30) {
                    life.scrub(1 + self.rng.below(10));
                }
                if !life.executor.turn() {
                    self.disk.step();
                }
                Ok(())
            }
            _ => {
                self.disk.step();
                Ok(())
            }
        }
    }

    fn submit(&mut self, life: &mut Life) -> Result<(), String> {
        let key = self.habits.keys[self.rng.index(self.habits.keys.len())].clone();
        let condition = match self.rng.below(10) {
            0 => Condition::IfAbsent,
            1 => Condition::IfPresent,
            2 => Condition::IfVersion(self.model.current(&key).unwrap_or(1)),
            3 => Condition::IfVersion(self.model.certain(&key).unwrap_or(0)),
            4 => Condition::IfVersion(self.rng.below(self.model.last_version() + 3)),
            _ => Condition::None,
        };
        let value = self.value();
        let change = if self.rng.chance(1, 4) {
            Change::Delete
        } else {
            Change::Set(&value)
        };
        self.figures.operations += 1;
        let mutation = Mutation {
            key: &key,
            change,
            condition,
        };
        self.note(|| {
            let what = if change == Change::Delete {
                "delete".to_owned()
            } else {
                format!("set {}", value.len())
            };
            format!(
                "client: {what} {} {condition:?}, newest {}",
                show_key(&key),
                self.model.last_version()
            )
        });
        life.submit(&mut self.model, &mutation)
    }

    /// A value unlike every other one, of a length that is often at a border.
    fn value(&mut self) -> Vec<u8> {
        let max = self.habits.value_len_max;
        let len = match self.rng.below(8) {
            0 => 0,
            1 => max,
            2 => self.rng.index(max + 1),
            3 => (4096 + self.rng.index(200))
                .saturating_sub(150 + self.rng.index(50))
                .min(max),
            _ => self.rng.index(300).min(max),
        };
        self.next_value += 1;
        value_of(self.next_value, len)
    }

    fn query(&mut self) -> Query {
        let some_key = self.habits.keys[self.rng.index(self.habits.keys.len())].clone();
        let after = if self.rng.chance(1, 3) {
            some_key
        } else {
            Vec::new()
        };
        Query {
            prefix: ["", "a", "ab", "b", "zz"][self.rng.index(5)].into(),
            after,
            max_entries: 1 + self.rng.index(12),
            max_bytes: [1, 300, 20_000, 1 << 30][self.rng.index(4)],
            keys_only: self.rng.chance(1, 2),
        }
    }

    /// How the life ends, as seen from the outside.
    fn end(&mut self, life: &mut Life) -> Result<(), String> {
        if life.error().is_none() {
            match self.rng.below(8) {
                0 => {
                    life.quiesce(&mut self.model)?;
                    if !life.faulty && !self.habits.full_disks {
                        life.audit(&mut self.model)?;
                    }
                }
                1 => {
                    life.close();
                    life.quiesce(&mut self.model)?;
                    if life.error().is_none() && !life.is_closed() {
                        return Err("stuck: the store does not close".to_owned());
                    }
                    self.figures.clean_stops += 1;
                }
                _ => {}
            }
        }
        // Often with a frame in flight: that is where tails are torn.
        if self.rng.chance(1, 2) {
            life.executor.settle();
            life.collect(&mut self.model)?;
        }
        if self.disk.counters().abandoned_writes > 0 {
            return Err("a write was dropped before it was complete".to_owned());
        }
        self.figures.full_disks += u64::from(life.no_room() > 0);
        self.figures.parked += life.parked_ever;
        let stat = life.store.stat();
        if stat.damaged_places > 0 && !life.faulty {
            return Err(format!(
                "{} damaged places on a whole disk",
                stat.damaged_places
            ));
        }
        self.figures.scrub_passes += stat.scrub_passes;
        self.figures.records_compacted += stat.compacted_records;
        self.figures.segments_retired += stat.retired_segments;
        self.disk.fail_no_more();
        self.disk.set_capacity(None);
        self.cut();
        Ok(())
    }
}

impl Figures {
    fn add(&mut self, other: &Figures) {
        let Figures {
            universes,
            lives,
            power_cuts,
            kills,
            cut_recoveries,
            clean_stops,
            io_errors,
            ..
        } = other;
        self.universes += universes;
        self.lives += lives;
        self.power_cuts += power_cuts;
        self.kills += kills;
        self.cut_recoveries += cut_recoveries;
        self.clean_stops += clean_stops;
        self.io_errors += io_errors;
        self.full_disks += other.full_disks;
        self.torn_tails += other.torn_tails;
        self.records_lost_unconfirmed += other.records_lost_unconfirmed;
        self.operations += other.operations;
        self.confirmed += other.confirmed;
        self.records_recovered += other.records_recovered;
        self.records_compacted += other.records_compacted;
        self.segments_retired += other.segments_retired;
        self.footers_used += other.footers_used;
        self.scrub_passes += other.scrub_passes;
        self.parked += other.parked;
    }
}

/// The value of this number and length.
pub(super) fn value_of(number: u64, len: usize) -> Vec<u8> {
    let mut value = vec![0; len];
    Rng::new(number).fill(&mut value);
    value
}

/// Runs one universe; a failure comes with its story when `verbose`.
pub(super) fn universe(seed: u64, verbose: bool) -> Result<Figures, String> {
    let mut universe = Universe::new(seed, verbose);
    let result = catch_unwind(AssertUnwindSafe(|| universe.live()));
    universe.figures.confirmed = universe.model.confirmed;
    let failure = match result {
        Ok(Ok(())) => return Ok(universe.figures),
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            format!(
                "panic: {}",
                text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                    .unwrap_or_default()
            )
        }
    };
    Err(if verbose {
        format!("{}\n{failure}", universe.disk.trace())
    } else {
        failure
    })
}

pub(super) fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

#[test]
fn the_engine_keeps_its_promises_on_a_disk_that_does_not() {
    if let Some(seed) = number_from_environment("ORLOP_SEED") {
        match universe(seed, true) {
            Ok(figures) => println!("seed {seed} passed: {figures:?}"),
            Err(story) => panic!("seed {seed}: {story}"),
        }
        return;
    }
    let seconds = number_from_environment("ORLOP_SIM_SECONDS").unwrap_or(SECONDS_DEFAULT);
    let (begun, mut figures) = (Instant::now(), Figures::default());
    let mut first = [0; 8];
    getrandom::fill(&mut first).unwrap();
    // Short enough to be typed.
    let first = u64::from_le_bytes(first) >> 24;
    while begun.elapsed() < Duration::from_secs(seconds) {
        let seed = first + figures.universes;
        match universe(seed, false) {
            Ok(one) => figures.add(&one),
            Err(failure) => {
                println!("{figures:?}");
                panic!(
                    "seed {seed}: {failure}\nreplay: ORLOP_SEED={seed} cargo test --lib storage::tests::simulation -- --nocapture"
                );
            }
        }
    }
    println!(
        "simulation, seeds {first} to {}: {figures:?}; lost 0, phantom 0",
        first + figures.universes - 1
    );
}

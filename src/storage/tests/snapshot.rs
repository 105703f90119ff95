//! Copies of a log that is written and compacted meanwhile: each opens as a store that holds what the log held at the
//! moment of its cut.
//!
//! One seed is one universe. `ORLOP_SIM_SECONDS` says how long new ones are begun (default 5), `ORLOP_SEED` runs one.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;

use super::executor::{Handle, run};
use super::life::{Life, Opening, verify_alone};
use super::model::Model;
use super::simulation::{number_from_environment, value_of};
use crate::storage::disk::sim::{Image, Rng, SimDisk, SimFile};
use crate::storage::format::{FRAME_FOOTER, FrameHeader, SEGMENT_HEADER_BYTES};
use crate::storage::manifest::{Generation, Manifest};
use crate::storage::segment::LogId;
use crate::storage::snapshot::Cut;
use crate::storage::{Change, Condition, Mutation, StorageError, StoreOptions, format};

const SECONDS_DEFAULT: u64 = 5;

const VALUE_LEN_MAX: usize = 9000;

/// What was done, over all universes.
#[derive(Default, Debug)]
struct Figures {
    universes: u64,
    copies: u64,
    files: u64,
    records: u64,
    /// Segments that were retired while a copy was being read.
    retired_meanwhile: u64,
}

/// A copy that is being read.
struct Copying {
    cut: Rc<Cut<SimFile>>,
    /// What the log held at its moment.
    model: Model,
    files: BTreeMap<String, Vec<u8>>,
    file: usize,
    reading: Option<Handle<Result<Vec<u8>, StorageError>>>,
    retired_before: u64,
}

impl Copying {
    fn begin(life: &Life, model: &Model) -> Self {
        life.store.pin();
        let cut = life.store.cut().now_or_never();
        Self {
            cut: Rc::new(
                cut.expect("no segment of another log has to be opened")
                    .unwrap(),
            ),
            model: model.clone(),
            files: BTreeMap::new(),
            file: 0,
            reading: None,
            retired_before: life.store.stat().retired_segments,
        }
    }

    /// Goes on with the copy; true: everything is read.
    fn step(&mut self, life: &mut Life, rng: &mut Rng) -> Result<bool, String> {
        let Some(file) = self.cut.files.get(self.file) else {
            return Ok(true);
        };
        let copied = self.files.entry(file.name.clone()).or_default();
        match &self.reading {
            Some(reading) => {
                if let Some(read) = reading.take() {
                    copied.extend(read.map_err(|error| format!("reading a copy: {error}"))?);
                    self.reading = None;
                }
            }
            None if copied.len() as u64 == file.bytes => {
                copied.resize(file.full_bytes as usize, 0);
                self.file += 1;
            }
            None => {
                let (at, offset) = (self.file, copied.len() as u64);
                let blocks = 1 + rng.below(4);
                let len = (blocks * 4096).min(file.bytes - offset) as usize;
                let cut = Rc::clone(&self.cut);
                let read = async move { cut.read(at, offset, len).await };
                self.reading = Some(life.executor.spawn(read));
            }
        }
        Ok(false)
    }

    /// One flipped bit anywhere in the copy, but for the closing frame, is found by a check.
    fn open_damaged(&self, options: &StoreOptions, rng: &mut Rng) -> Result<(), String> {
        let at = rng.index(self.cut.files.len());
        let file = &self.cut.files[at];
        let closing = match at + 1 == self.cut.files.len() {
            true => 4096,
            false => 0,
        };
        let mut image = Image::new(self.files.clone());
        let byte = rng.below(file.bytes - closing) as usize;
        image.flip_bit(&file.name, byte, rng.below(8) as u32);
        let disk = SimDisk::with_image(rng.next(), &image);
        let checked = run(&disk, {
            let (disk, options) = (disk.clone(), options.clone());
            async move { verify_alone(&disk, &options).await }
        });
        match checked {
            Ok(checked) if !checked.damage.is_empty() => Ok(()),
            // There it costs nothing but time.
            Ok(_) if byte >= footer_of(&self.files[&file.name]) => Ok(()),
            Ok(_) => Err(format!("{} passes with damage at {byte}", file.name)),
            Err(error) => Err(format!("damage at {byte} of {}: {error}", file.name)),
        }
    }

    /// Opens the copy on a disk of its own and compares it with the model of its moment.
    fn open(mut self, options: &StoreOptions, rng: &mut Rng) -> Result<u64, String> {
        let disk = SimDisk::with_image(rng.next(), &Image::new(self.files));
        let mut opening = Opening::start(&disk, options, rng.fork());
        opening.executor.exhaust(&disk);
        let opened = opening.result().ok_or("stuck: the copy does not open")?;
        let (store, recovered) =
            opened.map_err(|error| format!("the copy does not open: {error}"))?;
        if recovered.last_version != self.cut.last_version {
            return Err(format!(
                "the copy ends with version {}, its cut with {}",
                recovered.last_version, self.cut.last_version
            ));
        }
        self.model.recovered(recovered.last_version)?;
        let mut life = Life::start(&disk, store, opening.executor);
        life.audit(&mut self.model)?;
        Ok(recovered.records)
    }
}

/// Where in a segment file its footer begins.
fn footer_of(bytes: &[u8]) -> usize {
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some(header) = bytes.get(at..).and_then(FrameHeader::decode)
        && header.flags & FRAME_FOOTER == 0
    {
        at += header.frame_bytes();
    }
    at
}

const MANIFEST: Manifest = Manifest {
    store_uuid: *b"a simulated uuid",
    placement_seed: 0,
    generation: Generation {
        first_log: LogId(0),
        shards: 4,
    },
    previous: None,
    next_log: LogId(4),
    run: 1,
    served: true,
};

fn options(rng: &mut Rng, run: u64, served: bool) -> StoreOptions {
    StoreOptions {
        run,
        salt_seed: rng.next(),
        segment_bytes: (format::segment_bytes_min(VALUE_LEN_MAX) + 3 * 4096) as u32,
        value_len_max: VALUE_LEN_MAX,
        cache_bytes: 50_000,
        pending_bytes_max: 1 << 20,
        dead_bytes_min: 0,
        served,
        ..StoreOptions::to_read(&MANIFEST, 3)
    }
}

fn universe(seed: u64) -> Result<Figures, String> {
    let mut rng = Rng::new(seed);
    let mut figures = Figures {
        universes: 1,
        ..Figures::default()
    };
    let disk = SimDisk::new(rng.next());
    let mut opening = Opening::start(&disk, &options(&mut rng, 1, false), rng.fork());
    opening.executor.exhaust(&disk);
    let opened = opening.result().ok_or("stuck: the store does not open")?;
    let (store, _) = opened.map_err(|error| format!("the store does not open: {error}"))?;
    let (mut life, mut model) = (
        Life::start(&disk, store, opening.executor),
        Model::default(),
    );
    let mut copies: Vec<Copying> = Vec::new();
    let keys = 1 + rng.below(12);
    let (weights, steps) = (
        [10 + rng.below(30), rng.below(4), 60],
        300 + rng.below(3000),
    );
    for step in 0..steps {
        match rng.below(weights.iter().sum()) {
            drawn if drawn < weights[0] => submit(&mut life, &mut model, &mut rng, keys, step)?,
            drawn if drawn < weights[0] + weights[1] => life.compact(),
            _ => drop(life.executor.turn() || disk.step()),
        }
        if rng.chance(1, 2) {
            disk.step();
        }
        life.collect(&mut model)?;
        // Two at the same time at most, so that one ends while the other is being read.
        if copies.len() < 2 && rng.chance(1, 150) {
            copies.push(Copying::begin(&life, &model));
        }
        if rng.chance(1, 3) {
            for at in (0..copies.len()).rev() {
                if copies[at].step(&mut life, &mut rng)? {
                    let copy = copies.swap_remove(at);
                    let retired = life.store.stat().retired_segments - copy.retired_before;
                    figures.retired_meanwhile += retired;
                    figures.copies += 1;
                    figures.files += copy.cut.files.len() as u64;
                    life.store.unpin();
                    copy.open_damaged(&options(&mut rng, 2, true), &mut rng)?;
                    figures.records += copy.open(&options(&mut rng, 2, true), &mut rng)?;
                }
            }
        }
    }
    for _ in copies.drain(..) {
        life.store.unpin();
    }
    life.quiesce(&mut model)?;
    life.audit(&mut model)?;
    match life.store.is_pinned() {
        true => Err("a pin was left".into()),
        false => Ok(figures),
    }
}

fn submit(
    life: &mut Life,
    model: &mut Model,
    rng: &mut Rng,
    keys: u64,
    number: u64,
) -> Result<(), String> {
    let key = format!("key {}", rng.below(keys));
    let len = [0, 100, 3000, VALUE_LEN_MAX][rng.index(4)];
    let value = value_of(number, len);
    let change = match rng.chance(1, 4) {
        true => Change::Delete,
        false => Change::Set(&value),
    };
    let mutation = Mutation {
        key: key.as_bytes(),
        change,
        condition: Condition::None,
    };
    life.submit(model, &mutation)
}

#[test]
fn every_copy_opens_as_what_the_log_held_at_its_moment() {
    if let Some(seed) = number_from_environment("ORLOP_SEED") {
        match universe(seed) {
            Ok(figures) => println!("seed {seed} passed: {figures:?}"),
            Err(story) => panic!("seed {seed}: {story}"),
        }
        return;
    }
    let seconds = number_from_environment("ORLOP_SIM_SECONDS").unwrap_or(SECONDS_DEFAULT);
    let (begun, mut sum) = (Instant::now(), Figures::default());
    let mut first = [0; 8];
    getrandom::fill(&mut first).unwrap();
    // Short enough to be typed.
    let first = u64::from_le_bytes(first) >> 24;
    while begun.elapsed() < Duration::from_secs(seconds) {
        let seed = first + sum.universes;
        let one = match universe(seed) {
            Ok(one) => one,
            Err(failure) => panic!(
                "seed {seed}: {failure}\nreplay: ORLOP_SEED={seed} cargo test --lib storage::tests::snapshot -- --nocapture"
            ),
        };
        sum.universes += one.universes;
        sum.copies += one.copies;
        sum.files += one.files;
        sum.records += one.records;
        sum.retired_meanwhile += one.retired_meanwhile;
    }
    println!("copies, from seed {first}: {sum:?}");
    assert!(sum.copies > 0 && sum.retired_meanwhile > 0, "{sum:?}");
}

/// Without the pin the file of the retired segment is used again at once.
#[test]
fn while_a_store_is_pinned_no_file_is_used_again_or_removed() {
    let mut rng = Rng::new(5);
    let disk = SimDisk::new(1);
    let mut opening = Opening::start(&disk, &options(&mut rng, 1, false), rng.fork());
    opening.executor.exhaust(&disk);
    let (store, _) = opening.result().unwrap().unwrap();
    let mut life = Life::start(&disk, store, opening.executor);
    let mut model = Model::default();
    life.store.pin();
    life.store.pin();
    let mut names = Vec::new();
    for number in 0..60 {
        let value = value_of(number, VALUE_LEN_MAX);
        let mutation = Mutation {
            key: b"the same one",
            change: Change::Set(&value),
            condition: Condition::None,
        };
        life.submit(&mut model, &mutation).unwrap();
        life.compact();
        life.quiesce(&mut model).unwrap();
        let image = disk.image();
        let is_there = |name: &String| image.names().any(|now| now == name);
        let gone: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
        assert!(gone.is_empty(), "{gone:?} were removed under a pin");
        names = image.names().map(str::to_owned).collect();
    }
    let (pinned, retired) = (names.len(), life.store.stat().retired_segments);
    assert!(retired > 3, "{retired}");
    life.store.unpin();
    life.quiesce(&mut model).unwrap();
    assert_eq!(disk.image().names().count(), pinned, "one pin is left");
    life.store.unpin();
    life.quiesce(&mut model).unwrap();
    let left = disk.image().names().count();
    assert!(left + 3 < pinned, "{left} of {pinned} files are left");
    life.audit(&mut model).unwrap();
}

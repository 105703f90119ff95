//! T7: the log, damage by damage. Small stores are written, one thing in their files is spoilt, and the store is opened.
//!
//! Three outcomes are allowed: the start is refused and names the place; everything acknowledged is there; or, only
//! where no clean stop sealed the log, the very last frame is missing: it is taken for a torn tail, and recovery says
//! so, or nothing is left of it. Anything else is silent, and a failure. A refused start leaves every file as it was.

use std::collections::BTreeMap;
use std::ops::Range;

use super::executor::run;
use super::life::{Life, Opening, verify_alone};
use super::model::Model;
use super::simulation::value_of;
use crate::storage::disk::BLOCK;
use crate::storage::disk::sim::{Image, Rng, SECTOR, SimDisk};
use crate::storage::format::{FrameHeader, SEGMENT_HEADER_BYTES, segment_bytes_min};
use crate::storage::manifest::Generation;
use crate::storage::segment::{LogId, name};
use crate::storage::{Change, Condition, Mutation, StorageError, StoreOptions};

const SHARD: u16 = 2;
const VALUE_LEN_MAX: usize = 9000;
/// A check goes on behind damage, so it takes longer than a start.
const CHECKED_ONE_IN: u64 = 20;

/// A store at rest, and how it came to be.
pub(super) struct Story {
    pub(super) image: Image,
    model: Model,
    /// The files after each write, oldest first.
    past: Vec<Image>,
    /// Segments of the log, without the two spares.
    segments: u32,
    /// Version before the very last frame.
    before_last: u64,
    /// A clean stop has proved that the last frame was acknowledged.
    sealed: bool,
}

pub(super) fn options(store: u8, shard: u16, run: u64) -> StoreOptions {
    StoreOptions {
        store_uuid: [store; 16],
        shard,
        generation: Generation {
            first_log: LogId(0),
            shards: 4,
        },
        previous: None,
        run,
        salt_seed: run * 1000 + u64::from(shard) + u64::from(store) * 77,
        segment_bytes: segment_bytes_min(VALUE_LEN_MAX) as u32,
        value_len_max: VALUE_LEN_MAX,
        cache_bytes: 0,
        pending_bytes_max: 1 << 20,
        served: false,
    }
}

/// Writes a store in `runs` runs of `commits` frames each.
fn tell(store: u8, shard: u16, runs: u64, commits: u64, sealed: bool) -> Story {
    let mut rng = Rng::new(runs * 100 + commits);
    let mut disk = SimDisk::new(1);
    let (mut model, mut past, mut before_last) = (Model::default(), Vec::new(), 0);
    for run in 1..=runs {
        let mut opening = Opening::start(&disk, &options(store, shard, run), rng.fork());
        opening.executor.exhaust(&disk);
        let (engine, recovered) = opening.result().unwrap().unwrap();
        model.recovered(recovered.last_version).unwrap();
        let mut life = Life::start(&disk, engine, opening.executor);
        life.quiesce(&mut model).unwrap();
        past.push(disk.image());
        for _ in 0..commits {
            before_last = model.last_version();
            for _ in 0..1 + rng.index(3) {
                let key = [b'k', b'0' + rng.index(6) as u8];
                let value = value_of(rng.next(), [0, 10, 300, 5000, VALUE_LEN_MAX][rng.index(5)]);
                let change = if rng.chance(1, 5) {
                    Change::Delete
                } else {
                    Change::Set(&value)
                };
                let mutation = Mutation {
                    key: &key,
                    change,
                    condition: Condition::None,
                };
                life.submit(&mut model, &mutation).unwrap();
            }
            life.quiesce(&mut model).unwrap();
            past.push(disk.image());
        }
        if sealed || run < runs {
            life.close();
            life.quiesce(&mut model).unwrap();
            past.push(disk.image());
        }
        disk = disk.kill();
    }
    let image = past.last().unwrap().clone();
    let segments = image.names().count() as u32 - 2;
    Story {
        image,
        model,
        past,
        segments,
        before_last,
        sealed,
    }
}

fn stories() -> Vec<(&'static str, Story)> {
    vec![
        ("one segment, sealed", tell(1, SHARD, 1, 5, true)),
        ("one segment, killed", tell(1, SHARD, 1, 5, false)),
        ("several segments, sealed", tell(1, SHARD, 2, 22, true)),
        ("several segments, killed", tell(1, SHARD, 3, 12, false)),
        (
            "nothing written after a restart, sealed",
            tell(1, SHARD, 2, 0, true),
        ),
        (
            "nothing written after a restart, killed",
            tell(1, SHARD, 2, 0, false),
        ),
    ]
}

/// Where damage was done: the start refused must name one of these files, and an offset in one of these places unless
/// there is none.
type Places = Vec<(String, Range<u64>)>;

#[derive(Default, Debug)]
struct Figures {
    mutations: u64,
    refused: u64,
    refused_when_read: u64,
    unharmed: u64,
    last_frame_taken_for_torn: u64,
    /// As if it had never been written: nothing on disk can tell.
    last_frame_erased: u64,
    /// Those on which a check of the whole log was compared with the start.
    checked: u64,
}

struct Sweep<'a> {
    story: &'a Story,
    frames: BTreeMap<String, Vec<Range<u64>>>,
    figures: &'a mut Figures,
}

impl Sweep<'_> {
    /// The frame that a byte is in, or its block.
    fn around(&self, file: &str, byte: usize) -> (String, Range<u64>) {
        let byte = byte as u64;
        let frame = self.frames[file].iter().find(|frame| frame.contains(&byte));
        let block = byte / BLOCK as u64 * BLOCK as u64;
        (
            file.to_owned(),
            frame.cloned().unwrap_or(block..block + BLOCK as u64),
        )
    }

    /// Opens the damaged store and judges.
    fn judge(&mut self, what: &str, damaged: &Image, places: &Places) {
        if *damaged == self.story.image {
            return;
        }
        self.figures.mutations += 1;
        let disk = SimDisk::with_image(self.figures.mutations, damaged);
        let mut opening = Opening::start(
            &disk,
            &options(1, SHARD, 9),
            Rng::new(self.figures.mutations),
        );
        opening.executor.exhaust(&disk);
        let opened = opening.result().expect("the recovery ends");
        if self.figures.mutations.is_multiple_of(CHECKED_ONE_IN) {
            let refusal = opened.as_ref().err();
            judge_check(what, damaged, refusal, self.story.sealed_bytes(places));
            self.figures.checked += 1;
        }
        match opened {
            Err(error) => {
                assert!(
                    disk.image() == *damaged,
                    "{what}: a refused start changed files: {error}"
                );
                self.judge_refusal(what, &error, places);
                self.figures.refused += 1;
            }
            Ok((engine, recovered)) => {
                let mut model = self.story.model.clone();
                if recovered.last_version < model.last_version() {
                    assert!(
                        !self.story.sealed,
                        "{what}: silent loss of acknowledged data: {recovered:?}"
                    );
                    model.release(self.story.before_last);
                    match recovered.torn_tail {
                        Some(_) => self.figures.last_frame_taken_for_torn += 1,
                        None => self.figures.last_frame_erased += 1,
                    }
                } else {
                    self.figures.unharmed += 1;
                }
                let mut life = Life::start(&disk, engine, opening.executor);
                let audit = model
                    .recovered(recovered.last_version)
                    .and_then(|()| life.audit(&mut model));
                if let Err(failure) = audit {
                    // A sealed segment is known from its footer: the reader of the record is told.
                    assert!(
                        self.story.sealed_bytes(places) && names_a_place(&failure, places),
                        "{what}: silent damage: {failure}, {recovered:?}"
                    );
                    judge_check(what, damaged, None, true);
                    self.figures.refused_when_read += 1;
                }
            }
        }
    }

    fn judge_refusal(&self, what: &str, error: &StorageError, places: &Places) {
        match error {
            StorageError::Corrupt { file, offset, .. } => {
                // Offset 0: the file as a whole contradicts its header.
                let right =
                    |range: &Range<u64>| range.contains(offset) || range.is_empty() || *offset == 0;
                let named = places
                    .iter()
                    .any(|(place, range)| place == file && right(range));
                assert!(
                    named,
                    "{what}: the refusal names another place: {error}, not {places:?}"
                );
            }
            StorageError::Incompatible(_) => {}
            _ => panic!("{what}: refused for another reason: {error}"),
        }
    }

    /// One byte range of a file is replaced.
    fn patch(&mut self, what: &str, file: &str, at: usize, bytes: &[u8]) {
        let mut damaged = self.story.image.clone();
        damaged.file_mut(file)[at..at + bytes.len()].copy_from_slice(bytes);
        let places = vec![
            self.around(file, at),
            self.around(file, at + bytes.len() - 1),
        ];
        self.judge(
            &format!("{what} {file} @{at} +{}", bytes.len()),
            &damaged,
            &places,
        );
    }
}

/// A check of the damaged store agrees with its start, and changes nothing.
fn judge_check(what: &str, damaged: &Image, refusal: Option<&StorageError>, may_start: bool) {
    let disk = SimDisk::with_image(1, damaged);
    let checked = run(&disk, {
        let disk = disk.clone();
        async move { verify_alone(&disk, &options(1, SHARD, 9)).await }
    });
    assert!(disk.image() == *damaged, "{what}: a check changed files");
    match (checked, refusal) {
        (Ok(verified), Some(StorageError::Corrupt { file, offset, .. })) => {
            let named = verified.damage.iter().any(|found| {
                matches!(found, StorageError::Corrupt { file: at, offset: byte, .. } if (at, byte) == (file, offset))
            });
            assert!(named, "{what}: {refusal:?} is not in {verified:?}");
        }
        (Ok(verified), None) => {
            assert!(
                may_start || verified.damage.is_empty(),
                "{what}: {verified:?}"
            );
        }
        (Err(StorageError::Incompatible(_)), Some(StorageError::Incompatible(_))) => {}
        (checked, refusal) => panic!("{what}: the start says {refusal:?}, the check {checked:?}"),
    }
}

/// Whether a failure tells of corruption at one of these places.
fn names_a_place(failure: &str, places: &Places) -> bool {
    places.iter().any(|(file, range)| {
        let told = failure.split_once(&format!("corruption in {file} at offset "));
        let offset = told.and_then(|(_, rest)| rest.split(':').next()?.parse::<u64>().ok());
        offset.is_some_and(|offset| range.is_empty() || range.contains(&offset))
    })
}

impl Story {
    /// Whether one of the places is in a sealed segment, behind its header.
    fn sealed_bytes(&self, places: &Places) -> bool {
        let newest = name(LogId(SHARD.into()), self.segments);
        places
            .iter()
            .any(|(file, range)| *file != newest && range.end > SEGMENT_HEADER_BYTES as u64)
    }
}

/// Frames of each file, in bytes, as a walk from the front finds them.
fn frames(image: &Image) -> BTreeMap<String, Vec<Range<u64>>> {
    let walk = |name: &str| {
        let (bytes, mut found, mut at) = (image.file(name), Vec::new(), SEGMENT_HEADER_BYTES);
        while let Some(header) = bytes.get(at..).and_then(FrameHeader::decode) {
            found.push(at as u64..(at + header.frame_bytes()) as u64);
            at += header.frame_bytes();
        }
        found
    };
    image
        .names()
        .map(|name| (name.to_owned(), walk(name)))
        .collect()
}

/// Runs `sweep` over every story and prints what came of it.
fn sweep(what: &str, sweep: impl Fn(&mut Sweep<'_>, &[(String, usize)])) {
    let mut figures = Figures::default();
    for (title, story) in stories() {
        println!("{what}: {title}");
        let frames = frames(&story.image);
        // Every block that holds a frame or a header, and one block behind the end of each file's frames.
        let mut blocks = Vec::new();
        for (file, frames) in &frames {
            let end = frames
                .last()
                .map_or(SEGMENT_HEADER_BYTES, |frame| frame.end as usize)
                / BLOCK;
            let last = story.image.file(file).len() / BLOCK;
            blocks.extend((0..(end + 1).min(last)).map(|block| (file.clone(), block)));
        }
        sweep(
            &mut Sweep {
                story: &story,
                frames,
                figures: &mut figures,
            },
            &blocks,
        );
    }
    println!("damage, {what}: {figures:?}; silent 0");
    assert!(figures.mutations > 0 && figures.refused > 0);
}

#[test]
fn a_flipped_bit_is_refused_or_harmless() {
    sweep("flip", |sweep, blocks| {
        let mut rng = Rng::new(7);
        for (file, block) in blocks {
            // The fields of headers and first records one by one, the rest by samples.
            let bytes = (0..160).chain((0..20).map(|_| rng.index(BLOCK)));
            for byte in bytes.map(|byte| block * BLOCK + byte).collect::<Vec<_>>() {
                let flipped = sweep.story.image.file(file)[byte] ^ (1 << rng.index(8));
                sweep.patch("flip", file, byte, &[flipped]);
            }
        }
    });
}

#[test]
fn an_erased_block_or_sector_is_refused_or_harmless() {
    sweep("erase", |sweep, blocks| {
        let mut noise = vec![0; BLOCK];
        Rng::new(3).fill(&mut noise);
        for (file, block) in blocks {
            sweep.patch("zero", file, block * BLOCK, &[0; BLOCK]);
            sweep.patch("noise", file, block * BLOCK, &noise);
            for sector in 0..BLOCK / SECTOR {
                sweep.patch("zero", file, block * BLOCK + sector * SECTOR, &[0; SECTOR]);
                sweep.patch(
                    "noise",
                    file,
                    block * BLOCK + sector * SECTOR,
                    &noise[..SECTOR],
                );
            }
        }
    });
}

#[test]
fn a_misplaced_block_is_refused_or_harmless() {
    sweep("misplace", |sweep, blocks| {
        for (from, source) in blocks {
            for (to, target) in blocks {
                if (from, source) == (to, target) {
                    continue;
                }
                let bytes = sweep.story.image.block(from, *source).to_vec();
                sweep.patch(
                    &format!("copy {from} block {source} to"),
                    to,
                    target * BLOCK,
                    &bytes,
                );
                if (from, source) < (to, target) {
                    let mut damaged = sweep.story.image.clone();
                    damaged.swap_blocks((from, *source), (to, *target));
                    let places = vec![
                        sweep.around(from, source * BLOCK),
                        sweep.around(to, target * BLOCK),
                    ];
                    sweep.judge(
                        &format!("swap {from} block {source} with {to} block {target}"),
                        &damaged,
                        &places,
                    );
                }
            }
        }
    });
}

#[test]
fn a_block_or_a_write_that_never_arrived_is_refused_or_harmless() {
    sweep("age", |sweep, blocks| {
        let past: Vec<Image> = sweep.story.past.clone();
        for (index, old) in past.iter().enumerate() {
            // One block as it was then.
            for (file, block) in blocks
                .iter()
                .filter(|(file, _)| old.names().any(|name| name == file))
            {
                if let Some(bytes) = old.file(file).get(block * BLOCK..(block + 1) * BLOCK) {
                    let bytes = bytes.to_vec();
                    sweep.patch(&format!("age to step {index}"), file, block * BLOCK, &bytes);
                }
            }
            // A whole file as it was then, with its length. Of the last segment nothing else knows how far it had come.
            let last = name(LogId(SHARD.into()), sweep.story.segments);
            for file in old.names().filter(|file| *file != last) {
                let mut damaged = sweep.story.image.clone();
                damaged.put(file, old.file(file).to_vec());
                let places = vec![(file.to_owned(), 0..0)];
                sweep.judge(
                    &format!("age the whole of {file} to step {index}"),
                    &damaged,
                    &places,
                );
            }
        }
        // All blocks that one step changed, back to what they were: a write that never arrived.
        for pair in past.windows(2) {
            for file in pair[0].names() {
                let mut damaged = sweep.story.image.clone();
                let mut places = Places::new();
                let changed =
                    |block: &usize| pair[0].block(file, *block) != pair[1].block(file, *block);
                let common = pair[0].file(file).len().min(pair[1].file(file).len()) / BLOCK;
                for block in (0..common).filter(changed) {
                    if (block + 1) * BLOCK <= damaged.file(file).len() {
                        damaged.set_block(file, block, pair[0].block(file, block));
                        places.push(sweep.around(file, block * BLOCK));
                    }
                }
                sweep.judge(&format!("undo a write to {file}"), &damaged, &places);
            }
        }
    });
}

#[test]
fn a_truncated_or_grown_file_is_refused_or_harmless() {
    sweep("truncate", |sweep, _| {
        let files: Vec<String> = sweep.story.image.names().map(str::to_owned).collect();
        for file in files {
            let len = sweep.story.image.file(&file).len();
            let places = vec![(file.clone(), 0..0)];
            for cut in (0..len).step_by(SECTOR).chain([1, len - 1]) {
                let mut damaged = sweep.story.image.clone();
                damaged.file_mut(&file).truncate(cut);
                sweep.judge(&format!("truncate {file} to {cut}"), &damaged, &places);
            }
            for grown in [1, SECTOR, BLOCK, 5 * BLOCK] {
                for byte in [0, 0xa5] {
                    let mut damaged = sweep.story.image.clone();
                    damaged.file_mut(&file).resize(len + grown, byte);
                    sweep.judge(&format!("grow {file} by {grown}"), &damaged, &places);
                }
            }
        }
    });
}

#[test]
fn a_missing_copied_or_foreign_segment_is_refused_or_harmless() {
    let foreign = tell(5, SHARD, 3, 12, true).image;
    let other_shard = tell(1, SHARD + 1, 3, 12, true).image;
    sweep("files", |sweep, _| {
        let files: Vec<String> = sweep.story.image.names().map(str::to_owned).collect();
        for (index, file) in files.iter().enumerate() {
            let mut damaged = sweep.story.image.clone();
            let bytes = damaged.remove(file);
            sweep.judge(
                &format!("remove {file}"),
                &damaged,
                &vec![(file.clone(), 0..0)],
            );
            let mut places = vec![(file.clone(), 0..0)];
            for number in 1..=files.len() as u32 + 3 {
                let copy = name(LogId(SHARD.into()), number);
                let mut damaged = sweep.story.image.clone();
                damaged.put(&copy, bytes.clone());
                places.push((copy.clone(), 0..0));
                sweep.judge(&format!("copy {file} to {copy}"), &damaged, &places);
                damaged.remove(file);
                sweep.judge(&format!("rename {file} to {copy}"), &damaged, &places);
            }
            let number = index as u32 + 1;
            for (what, image, shard) in [
                ("store", &foreign, SHARD),
                ("shard", &other_shard, SHARD + 1),
            ] {
                if !image
                    .names()
                    .any(|known| known == name(LogId(shard.into()), number))
                {
                    continue;
                }
                let bytes = image.file(&name(LogId(shard.into()), number)).to_vec();
                for target in [
                    file.clone(),
                    name(LogId(SHARD.into()), files.len() as u32 + 1),
                ] {
                    let mut damaged = sweep.story.image.clone();
                    damaged.put(&target, bytes.clone());
                    let places = vec![(target.clone(), 0..0)];
                    sweep.judge(
                        &format!("segment {number} of another {what} as {target}"),
                        &damaged,
                        &places,
                    );
                }
            }
        }
        // Files of other shards and of nobody are none of this shard's business.
        let mut damaged = sweep.story.image.clone();
        damaged.put(&name(LogId(u32::from(SHARD) + 1), 1), vec![0xa5; BLOCK]);
        damaged.put("lost+found", vec![]);
        damaged.put("segment-0002-0000000001.log~", vec![1; 100]);
        sweep.judge("files of others", &damaged, &vec![]);
    });
}

//! T7: the log, damage by damage. Small stores are written, one thing in their files is spoilt, and the store is opened.
//!
//! Three outcomes are allowed: the start is refused and names the place; everything acknowledged is there; or, only
//! where no clean stop sealed the log, the very last frame is missing: it is taken for a torn tail, and recovery says
//! so, or nothing is left of it. Anything else is silent, and a failure. A refused start leaves every file as it was.
//!
//! A fourth one is right inside a sealed segment, of which a start reads the footer and not the records
//! (`Sweep::may_be_found_late`): the start succeeds, the reads of exactly the damaged keys are refused, and a check finds
//! it too, all with the right place.
//!
//! `ORLOP_SWEEPS=long` misplaces every block, not only samples.

mod judge;
mod story;

use super::life::{Life, Opening};
use super::sweeps_are_long;
use crate::storage::StoreOptions;
use crate::storage::disk::BLOCK;
use crate::storage::disk::sim::{Image, Rng, SECTOR, SimDisk};
use crate::storage::format::{SegmentHeader, SegmentState, segment_bytes_min};
use crate::storage::manifest::Generation;
use crate::storage::segment::{self, LogId};

use judge::{Figures, Places, Records, sweep};
use story::{Plot, Story, stories, tell};

const SHARD: u16 = 2;
const VALUE_LEN_MAX: usize = 9000;
/// A check goes on behind damage, so it takes longer than a start.
const CHECKED_ONE_IN: u64 = 20;
/// Pairs of blocks of a store that are misplaced, about.
const MISPLACED_PAIRS_MAX: u64 = 5000;

/// Name of a segment file of a shard.
fn name(shard: u16, number: u32) -> String {
    segment::name(LogId(shard.into()), number)
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
        dead_bytes_min: 0,
        served: false,
    }
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
pub(super) fn an_erased_block_or_sector_is_refused_or_harmless() {
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
    let long = sweeps_are_long();
    sweep("misplace", |sweep, blocks| {
        let mut rng = Rng::new(blocks.len() as u64);
        let pairs = (blocks.len() * blocks.len()) as u64;
        for (from, source) in blocks {
            for (to, target) in blocks {
                if (from, source) == (to, target)
                    || !(long || rng.chance(MISPLACED_PAIRS_MAX, pairs.max(MISPLACED_PAIRS_MAX)))
                {
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
            // A whole file as it was then, with its length.
            for file in old
                .names()
                .filter(|file| !is_newest_before(sweep.story, old, file))
            {
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
            // Not of an earlier use of the file: that would be several writes of this one.
            let same_use = |file: &&str| {
                let has = |image: &Image| image.names().any(|name| name == *file);
                let now = &sweep.story.image;
                has(&pair[1])
                    && has(now)
                    && segment_epoch(&pair[1], file) == segment_epoch(now, file)
            };
            for file in pair[0].names().filter(same_use) {
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

/// Whether `file` holds the newest segment in the story and held it in `old`: nothing else knows how far it had come.
fn is_newest_before(story: &Story, old: &Image, file: &str) -> bool {
    file == story.newest && segment_epoch(old, file) == segment_epoch(&story.image, file)
}

/// The epoch of the segment that a file holds.
fn segment_epoch(image: &Image, file: &str) -> Option<u64> {
    let header = SegmentHeader::decode(image.file(file)).ok()?;
    (header.state == SegmentState::Log).then_some(header.epoch)
}

fn pairs(files: &[String]) -> impl Iterator<Item = (&String, &String)> {
    let from = move |at: usize| files[at + 1..].iter().map(move |other| (&files[at], other));
    (0..files.len()).flat_map(from)
}

#[test]
fn files_put_back_from_an_older_copy_are_refused_or_harmless() {
    sweep("put back", |sweep, _| {
        for (index, old) in sweep.story.past.iter().enumerate() {
            let files = old.names().map(str::to_owned);
            // Not the newest: with the file that tells of it nothing knows of it any more.
            let files: Vec<String> = files.filter(|file| *file != sweep.story.newest).collect();
            for (one, other) in pairs(&files) {
                let mut damaged = sweep.story.image.clone();
                let places = [one, other].map(|file| {
                    damaged.put(file, old.file(file).to_vec());
                    (file.clone(), 0..0)
                });
                sweep.judge(
                    &format!("age {one} and {other} to step {index}"),
                    &damaged,
                    &places.to_vec(),
                );
            }
        }
    });
}

/// What is spoilt while the store is open is found by whoever reads it, and by nobody else.
#[test]
fn damage_behind_an_open_store_is_found_by_the_reads_of_what_is_damaged() {
    let mut figures = Figures::default();
    for (title, story) in stories() {
        let disk = SimDisk::with_image(1, &story.image);
        let mut opening = Opening::start(&disk, &options(1, SHARD, 9), Rng::new(1));
        opening.executor.exhaust(&disk);
        let (engine, _) = opening.result().unwrap().unwrap();
        let life = Life::start(&disk, engine, opening.executor);
        let image = disk.image();
        let records = Records::of(&image);
        for file in image.names() {
            for sector in 0..image.file(file).len() / SECTOR {
                let at = sector * SECTOR..(sector + 1) * SECTOR;
                let mut damaged = image.clone();
                let byte = at.start + sector % SECTOR;
                damaged.flip_bit(file, byte, sector as u32 % 8);
                disk.damage(file, |bytes| bytes.clone_from(damaged.file_mut(file)));
                let places = vec![(file.to_owned(), 0..0)];
                let what = format!("{title}: flip {file} @{byte}");
                figures.mutations += 1;
                let refused = records.judge_reads(&what, &life, &story.model, &damaged, &places);
                figures.reads_refused += u64::from(refused > 0);
                disk.damage(file, |bytes| bytes.clone_from(&image.file(file).to_vec()));
            }
        }
    }
    figures.print("behind an open store");
    assert!(figures.reads_refused > 0);
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
    let other = |store, shard| {
        tell(&Plot {
            store,
            shard,
            runs: 3,
            commits: 12,
            sealed: true,
            compacts: false,
        })
        .image
    };
    let (foreign, other_shard) = (other(5, SHARD), other(1, SHARD + 1));
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
                let copy = name(SHARD, number);
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
                if !image.names().any(|known| known == name(shard, number)) {
                    continue;
                }
                let bytes = image.file(&name(shard, number)).to_vec();
                for target in [file.clone(), name(SHARD, files.len() as u32 + 1)] {
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
        for (one, other) in pairs(&files) {
            let mut damaged = sweep.story.image.clone();
            let (left, right) = (damaged.remove(one), damaged.remove(other));
            damaged.put(one, right);
            damaged.put(other, left);
            let places = vec![(one.clone(), 0..0), (other.clone(), 0..0)];
            sweep.judge(&format!("swap {one} with {other}"), &damaged, &places);
        }
        // Files of other shards and of nobody are none of this shard's business.
        let mut damaged = sweep.story.image.clone();
        damaged.put(&name(SHARD + 1, 1), vec![0xa5; BLOCK]);
        damaged.put("lost+found", vec![]);
        damaged.put("segment-0002-0000000001.log~", vec![1; 100]);
        sweep.judge("files of others", &damaged, &vec![]);
    });
}

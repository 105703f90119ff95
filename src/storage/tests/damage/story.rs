//! The stores that are damaged, and how each came to be.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{SHARD, options};
use crate::storage::disk::sim::{Image, Rng, SimDisk};
use crate::storage::format::{FrameHeader, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentState};
use crate::storage::stat::StoreStat;
use crate::storage::tests::life::{Life, Opening};
use crate::storage::tests::model::Model;
use crate::storage::tests::simulation::value_of;
use crate::storage::{Change, Condition, Mutation};

use super::VALUE_LEN_MAX;

/// How a store comes to be.
#[derive(Clone, Copy)]
pub(super) struct Plot {
    pub(super) store: u8,
    pub(super) shard: u16,
    pub(super) runs: u64,
    /// Frames of each run.
    pub(super) commits: u64,
    /// It ends with a clean stop.
    pub(super) sealed: bool,
    pub(super) compacts: bool,
}

/// A store at rest, and how it came to be.
pub(super) struct Story {
    pub(super) image: Image,
    pub(super) model: Model,
    /// The files after each write, oldest first.
    pub(super) past: Vec<Image>,
    /// The file of the newest segment.
    pub(super) newest: String,
    /// Version before the very last frame.
    pub(super) before_last: u64,
    /// A clean stop has proved that the last frame was acknowledged.
    pub(super) sealed: bool,
}

/// Writes a store.
pub(super) fn tell(plot: &Plot) -> Story {
    let mut rng = Rng::new(plot.runs * 100 + plot.commits);
    let mut disk = SimDisk::new(1);
    let (mut model, mut past, mut before_last) = (Model::default(), Vec::new(), 0);
    let mut stat = StoreStat::default();
    for run in 1..=plot.runs {
        let options = options(plot.store, plot.shard, run);
        let mut opening = Opening::start(&disk, &options, rng.fork());
        opening.executor.exhaust(&disk);
        let (engine, recovered) = opening.result().unwrap().unwrap();
        model.recovered(recovered.last_version).unwrap();
        let mut life = Life::start(&disk, engine, opening.executor);
        life.quiesce(&mut model).unwrap();
        past.push(disk.image());
        for commit in 1..=plot.commits {
            before_last = model.last_version();
            commit_some(&mut life, &mut model, &mut rng);
            past.push(disk.image());
            // Never behind the last commit: the last frame is one of new writes.
            if plot.compacts && (run, commit) != (plot.runs, plot.commits) && rng.chance(1, 4) {
                life.compact();
                life.quiesce(&mut model).unwrap();
                past.push(disk.image());
            }
        }
        stat = life.store.stat();
        if plot.sealed || run < plot.runs {
            life.close();
            life.quiesce(&mut model).unwrap();
            past.push(disk.image());
        }
        disk = disk.kill();
    }
    if plot.compacts {
        assert!(stat.compacted_records > 0 && stat.retired_segments > 1 && stat.tombstones > 0);
    }
    let image = past.last().unwrap().clone();
    Story {
        newest: newest(&image),
        image,
        model,
        past,
        before_last,
        sealed: plot.sealed,
    }
}

fn commit_some(life: &mut Life, model: &mut Model, rng: &mut Rng) {
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
        life.submit(model, &mutation).unwrap();
    }
    life.quiesce(model).unwrap();
}

impl Story {
    /// The same store after a crash that brought removed files back.
    fn with_removed_files(mut self) -> Self {
        for old in self.past.iter().rev() {
            for file in old.names() {
                if !self.image.names().any(|name| name == file) {
                    self.image.put(file, old.file(file).to_vec());
                }
            }
        }
        self
    }

    /// How many files of the image have a header that says so.
    fn count(&self, of: impl Fn(&SegmentHeader) -> bool) -> usize {
        let header = |name| SegmentHeader::decode(self.image.file(name)).ok();
        self.image.names().filter_map(header).filter(of).count()
    }
}

/// The file of the newest segment.
fn newest(image: &Image) -> String {
    let number = |name: &&str| {
        let header = SegmentHeader::decode(image.file(name));
        header.map_or(0, |header| header.number)
    };
    image.names().max_by_key(number).unwrap().to_owned()
}

pub(super) fn stories() -> Vec<(&'static str, Story)> {
    let plain = |runs, commits, sealed| {
        tell(&Plot {
            store: 1,
            shard: SHARD,
            runs,
            commits,
            sealed,
            compacts: false,
        })
    };
    let compacted = |runs, commits, sealed| {
        tell(&Plot {
            store: 1,
            shard: SHARD,
            runs,
            commits,
            sealed,
            compacts: true,
        })
    };
    let stories = vec![
        ("one segment, sealed", plain(1, 5, true)),
        ("one segment, killed", plain(1, 5, false)),
        ("several segments, sealed", plain(2, 22, true)),
        ("several segments, killed", plain(3, 12, false)),
        ("nothing written after a restart, sealed", plain(2, 0, true)),
        (
            "nothing written after a restart, killed",
            plain(2, 0, false),
        ),
        ("compacted, sealed", compacted(2, 30, true)),
        ("compacted, killed", compacted(1, 45, false)),
        (
            "compacted, removed files are back",
            compacted(3, 20, false).with_removed_files(),
        ),
    ];
    let compacted = stories.iter().map(|(_, story)| story);
    assert!(
        compacted
            .map(|story| story.count(|header| header.recycled && header.state == SegmentState::Log))
            .sum::<usize>()
            > 0,
        "no file was used again"
    );
    stories
}

/// Frames of each file that are of its present use, in bytes, as a walk from the front finds them.
pub(super) fn frames(image: &Image) -> BTreeMap<String, Vec<Range<u64>>> {
    let walk = |name: &str| {
        let (bytes, mut found, mut at) = (image.file(name), Vec::new(), SEGMENT_HEADER_BYTES);
        let epoch = SegmentHeader::decode(bytes).map_or(0, |header| header.epoch);
        while let Some(header) = bytes.get(at..).and_then(FrameHeader::decode) {
            let end = at + header.frame_bytes();
            if header.epoch != epoch || end > bytes.len() {
                break;
            }
            found.push(at as u64..end as u64);
            at = end;
        }
        found
    };
    image
        .names()
        .map(|name| (name.to_owned(), walk(name)))
        .collect()
}

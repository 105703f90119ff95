//! Rare moments of a changed number of shards, brought about one step after the other.

use super::known::Known;
use super::{Universe, owner};
use crate::storage::disk::sim::SimFile;
use crate::storage::format;
use crate::storage::snapshot::Cut;

impl Universe {
    /// With small segments, and keys of 1000 bytes that are the last shard's, of two.
    fn of_the_second_shard(keys: usize) -> Universe {
        let mut universe = Universe::new(1);
        let names = (0..).map(|number| format!("key{number:0997}").into_bytes());
        let names = names.filter(|name| owner(name, 2) == 1);
        universe.keys = names.take(keys).collect();
        universe.known = universe.keys.iter().map(|_| Known::default()).collect();
        universe.value_len_max = 100;
        universe.segment_bytes = format::segment_bytes_min(universe.value_len_max) as u32;
        universe
    }

    /// Starts with so many shards, and nothing goes wrong.
    fn start_whole(&mut self, shards: u16) {
        let mut manifest = self.next_manifest(shards);
        let mut starting = self.begin_start(&manifest);
        self.executor.exhaust(&self.disk);
        starting.open(&mut self.executor).unwrap();
        self.executor.exhaust(&self.disk);
        let stores = starting.opened().unwrap();
        self.drive(stores);
        (manifest.served, manifest.previous) = (true, None);
        self.manifest = Some(manifest);
    }

    fn cut_alone(&mut self, node: usize) -> Cut<SimFile> {
        let cut = self.cut_of(node);
        self.executor.exhaust(&self.disk);
        cut.take().expect("nothing moves any more").unwrap()
    }

    /// Lets one shard compact until it has nothing to do, and everybody hear of it.
    fn compact(&mut self, node: usize) {
        self.nodes[node].reports.compact();
        self.executor.exhaust(&self.disk);
        self.collect().unwrap();
        for _ in 0..20 {
            self.carry_mail();
        }
    }
}

/// A copy begins while a segment of another log is being retired. Until it reaches another shard that one has heard that
/// the segment is gone, and has dropped the tombstone of a key that has a record there.
#[test]
pub(in crate::storage::tests) fn what_is_deleted_stays_deleted_in_a_copy_of_a_store_that_moves() {
    let mut universe = Universe::of_the_second_shard(2);
    let (deleted, other) = (0, 1);
    universe.start_whole(1);
    universe.submit(deleted, Some(100)).unwrap();
    universe.audit().unwrap();
    universe.cut();
    universe.start_whole(2);
    universe.submit(deleted, None).unwrap();
    universe.audit().unwrap();
    // Nothing is anybody's in what the first life has left.
    universe.compact(1);
    universe.nodes[0].reports.compact();
    while universe.executor.turn() {}
    let first = &universe.nodes[0].store;
    assert_eq!(first.foreign_segments(), 1, "the disk has not moved");

    universe.pin();
    let first = universe.cut_alone(0);
    universe.compact(0);
    assert_eq!(universe.nodes[1].store.foreign_segments(), 0);
    let retired = |universe: &Universe| universe.nodes[1].store.stat().retired_segments;
    for writes in 0.. {
        assert!(writes < 1000, "the tombstone is never compacted away");
        universe.submit(other, Some(100)).unwrap();
        universe.audit().unwrap();
        universe.compact(1);
        if retired(&universe) > 0 {
            break;
        }
    }
    let second = universe.cut_alone(1);
    let since: Vec<_> = universe
        .known
        .iter()
        .map(|known| known.acknowledged)
        .collect();
    let files = universe.read_cuts(vec![first, second]).unwrap();
    universe.open_copy(files, &since).unwrap();
}

/// While a segment of another log exists tombstones cannot go: then they are no reason to compact.
#[test]
fn tombstones_that_cannot_go_are_not_copied_in_circles() {
    let mut universe = Universe::of_the_second_shard(200);
    universe.start_whole(1);
    for key in 0..200 {
        universe.submit(key, Some(100)).unwrap();
    }
    universe.audit().unwrap();
    universe.cut();
    universe.start_whole(2);
    for key in 1..200 {
        universe.submit(key, None).unwrap();
    }
    universe.audit().unwrap();
    assert!(
        universe.nodes[1].store.stat().segments > 2,
        "some are sealed"
    );
    universe.nodes[1].reports.compact();
    // They would be copied for ever.
    universe.executor.exhaust(&universe.disk);
    let tombstones = |universe: &Universe| universe.nodes[1].store.stat().tombstones;
    assert_eq!(tombstones(&universe), 199);
    universe.migrate().unwrap();
    universe.compact(1);
    assert!(tombstones(&universe) < 199, "now they can go");
}

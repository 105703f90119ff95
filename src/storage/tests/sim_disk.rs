//! The simulated disk is as bad as a disk may be: each semantic has a test that fails if the simulation were lenient.
//!
//! Most tests repeat one story over many seeds and look at the set of what a power cut left: every allowed outcome
//! must happen, no other may.

use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;

use super::executor::{Executor, run};
use crate::storage::disk::sim::{Image, Kind, Rng, SECTOR, SimDisk, SimFile};
use crate::storage::disk::{BLOCK, Disk, DiskFile};

pub(super) const SEEDS: u64 = 400;

/// Writes `blocks` blocks full of `byte` at block `at`.
pub(super) async fn write(
    disk: &SimDisk,
    file: &SimFile,
    at: usize,
    blocks: usize,
    byte: u8,
) -> io::Result<usize> {
    let mut buffer = disk.buffer(blocks * BLOCK);
    buffer.as_mut().fill(byte);
    file.write_at((at * BLOCK) as u64, Rc::new(buffer)).await
}

/// A directory with the file `log` of `blocks` zero blocks, durable.
pub(super) fn zeroed(seed: u64, blocks: usize) -> SimDisk {
    let mut image = Image::default();
    image.put("log", vec![0; blocks * BLOCK]);
    SimDisk::with_image(seed, &image)
}

pub(super) fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
    let image = disk.image();
    let known = image.names().any(|known| known == name);
    known.then(|| image.file(name).to_vec())
}

/// The first byte of every sector, after checking that each sector is made of one byte.
fn sectors(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(SECTOR).map(|sector| sector[0]).collect()
}

/// Runs `story` on a fresh disk per seed, and `look` at what one power cut left of it.
pub(super) fn outcomes<T: Ord>(
    fresh: impl Fn(u64) -> SimDisk,
    story: impl AsyncFn(SimDisk) + Clone + 'static,
    look: impl Fn(&SimDisk) -> T,
) -> BTreeSet<T> {
    (0..SEEDS)
        .map(|seed| {
            let disk = fresh(seed);
            let (story, copy) = (story.clone(), disk.clone());
            run(&disk, async move { story(copy).await });
            look(&disk.crash())
        })
        .collect()
}

#[test]
fn a_file_that_was_never_synced_vanishes_or_keeps_any_part() {
    let story = async |disk: SimDisk| {
        let file = disk.create("new").await.unwrap();
        write(&disk, &file, 0, 2, 7).await.unwrap();
    };
    let seen = outcomes(SimDisk::new, story, |disk| {
        content(disk, "new").map(|bytes| sectors(&bytes))
    });
    let whole = 2 * BLOCK / SECTOR;
    assert!(seen.contains(&None), "it never vanished");
    assert!(seen.contains(&Some(vec![])), "it was never empty");
    assert!(seen.contains(&Some(vec![7; whole])), "it never survived");
    assert!(
        seen.contains(&Some(vec![0; whole])),
        "it never had its length without its data"
    );
    assert!(seen.contains(&Some(vec![7; 5])), "it never was a prefix");
    let holed = |bytes: &Vec<u8>| bytes.contains(&0) && bytes.last() == Some(&7);
    assert!(seen.iter().flatten().any(holed), "its data was never torn");
    assert!(
        seen.iter().flatten().all(|bytes| bytes.len() <= whole),
        "it never grows beyond what was written"
    );
}

#[test]
fn a_synced_file_without_a_synced_directory_is_whole_or_absent() {
    let story = async |disk: SimDisk| {
        let file = disk.create("new").await.unwrap();
        write(&disk, &file, 0, 2, 7).await.unwrap();
        file.sync().await.unwrap();
    };
    let seen = outcomes(SimDisk::new, story, |disk| content(disk, "new"));
    assert_eq!(seen, BTreeSet::from([None, Some(vec![7; 2 * BLOCK])]));
}

#[test]
fn a_synced_name_without_a_synced_file_is_there_with_any_part() {
    let story = async |disk: SimDisk| {
        let file = disk.create("new").await.unwrap();
        write(&disk, &file, 0, 2, 7).await.unwrap();
        disk.sync_directory().await.unwrap();
    };
    let seen = outcomes(SimDisk::new, story, |disk| {
        content(disk, "new").map(|bytes| bytes.len())
    });
    assert!(!seen.contains(&None), "a synced name vanished");
    assert!(
        seen.contains(&Some(0)) && seen.contains(&Some(2 * BLOCK)) && seen.len() > 10,
        "{seen:?}"
    );
}

#[test]
fn a_synced_file_and_directory_always_survive() {
    let story = async |disk: SimDisk| {
        let file = disk.create("new").await.unwrap();
        write(&disk, &file, 0, 2, 7).await.unwrap();
        file.sync().await.unwrap();
        disk.sync_directory().await.unwrap();
    };
    let seen = outcomes(SimDisk::new, story, |disk| content(disk, "new"));
    assert_eq!(seen, BTreeSet::from([Some(vec![7; 2 * BLOCK])]));
}

#[test]
fn a_removed_file_comes_back_until_the_directory_is_synced() {
    let look = |disk: &SimDisk| content(disk, "log").is_some();
    let seen = outcomes(
        |seed| zeroed(seed, 1),
        async |disk| disk.remove("log").await.unwrap(),
        look,
    );
    assert_eq!(seen, BTreeSet::from([false, true]));
    let story = async |disk: SimDisk| {
        disk.remove("log").await.unwrap();
        disk.sync_directory().await.unwrap();
    };
    assert_eq!(
        outcomes(|seed| zeroed(seed, 1), story, look),
        BTreeSet::from([false])
    );
}

#[test]
fn a_truncation_is_undone_until_the_file_is_synced() {
    let look = |disk: &SimDisk| content(disk, "log").unwrap().len();
    let story = async |disk: SimDisk| {
        disk.open("log")
            .await
            .unwrap()
            .truncate(BLOCK as u64)
            .await
            .unwrap()
    };
    let seen = outcomes(|seed| zeroed(seed, 2), story, look);
    assert!(
        seen.contains(&BLOCK) && seen.contains(&(2 * BLOCK)),
        "{seen:?}"
    );
    let story = async |disk: SimDisk| {
        let file = disk.open("log").await.unwrap();
        file.truncate(BLOCK as u64).await.unwrap();
        file.sync().await.unwrap();
    };
    assert_eq!(
        outcomes(|seed| zeroed(seed, 2), story, look),
        BTreeSet::from([BLOCK])
    );
}

#[test]
fn a_write_to_an_opened_file_is_durable_when_it_returns() {
    let story = async |disk: SimDisk| {
        let file = disk.open("log").await.unwrap();
        assert_eq!(write(&disk, &file, 1, 1, 7).await.unwrap(), BLOCK);
    };
    let seen = outcomes(
        |seed| zeroed(seed, 3),
        story,
        |disk| content(disk, "log").unwrap(),
    );
    assert_eq!(
        seen,
        BTreeSet::from([[vec![0; BLOCK], vec![7; BLOCK], vec![0; BLOCK]].concat()])
    );
}

/// Leaves a write of two blocks in flight on each fresh disk; returns what `end` makes of it.
pub(super) fn cut_in_flight(end: impl Fn(&SimDisk) -> SimDisk) -> Vec<Vec<u8>> {
    let cut = |seed| {
        let disk = zeroed(seed, 2);
        let mut executor = Executor::new(Rng::new(seed));
        let copy = disk.clone();
        let handle = executor.spawn(async move {
            let file = copy.open("log").await.unwrap();
            write(&copy, &file, 0, 2, 7).await
        });
        executor.settle();
        assert!(disk.step_where(|operation| operation.kind == Kind::Open));
        executor.settle();
        assert_eq!(disk.in_flight().len(), 1, "the write waits");
        assert!(handle.take().is_none(), "nothing completes by itself");
        content(&end(&disk), "log").unwrap()
    };
    (0..SEEDS).map(cut).collect()
}

#[test]
fn a_write_in_flight_is_dropped_kept_or_torn_at_sectors() {
    let seen = cut_in_flight(SimDisk::crash);
    assert!(seen.contains(&vec![0; 2 * BLOCK]), "it was never dropped");
    assert!(seen.contains(&vec![7; 2 * BLOCK]), "it was never kept");
    let clean = |bytes: &&Vec<u8>| {
        bytes
            .chunks(SECTOR)
            .all(|sector| sector == [0; SECTOR] || sector == [7; SECTOR])
    };
    let torn: BTreeSet<Vec<u8>> = seen
        .iter()
        .filter(clean)
        .map(|bytes| sectors(bytes))
        .collect();
    assert!(
        torn.len() > 50,
        "only {} ways to tear 16 sectors",
        torn.len()
    );
    let later_only = |sectors: &Vec<u8>| sectors[0] == 0 && sectors[15] == 7;
    assert!(
        torn.iter().any(later_only),
        "a later sector never arrived without an earlier one"
    );
    let noisy = seen.iter().filter(|bytes| !clean(bytes)).count();
    assert!(
        noisy > 0 && noisy < seen.len() / 10,
        "{noisy} times a sector was neither old nor new"
    );
}

#[test]
fn crashes_of_one_moment_are_independent_and_leave_the_disk_alone() {
    let disk = SimDisk::new(1);
    let copy = disk.clone();
    run(&disk, async move {
        let file = copy.create("new").await.unwrap();
        write(&copy, &file, 0, 1, 7).await.unwrap();
    });
    let seen: BTreeSet<bool> = (0..50)
        .map(|_| content(&disk.crash(), "new").is_some())
        .collect();
    assert_eq!(seen, BTreeSet::from([false, true]));
    assert_eq!(content(&disk, "new").unwrap(), vec![7; BLOCK]);
}

#[test]
fn changes_survive_independently_of_their_order() {
    let story = async |disk: SimDisk| {
        let file = disk.create("new").await.unwrap();
        write(&disk, &file, 0, 2, 0).await.unwrap();
        file.sync().await.unwrap();
        disk.sync_directory().await.unwrap();
        write(&disk, &file, 0, 1, 1).await.unwrap();
        write(&disk, &file, 1, 1, 2).await.unwrap();
    };
    let look = |disk: &SimDisk| {
        let bytes = content(disk, "new").unwrap();
        (bytes[..BLOCK] == [1; BLOCK], bytes[BLOCK..] == [2; BLOCK])
    };
    let seen = outcomes(SimDisk::new, story, look);
    assert_eq!(
        seen,
        BTreeSet::from([(false, false), (false, true), (true, false), (true, true)])
    );
}

#[test]
fn a_durable_write_is_never_undone_by_an_older_one_that_was_not() {
    let story = async |disk: SimDisk| {
        let file = disk.create("new").await.unwrap();
        write(&disk, &file, 0, 2, 1).await.unwrap();
        file.close().await.unwrap();
        disk.sync_directory().await.unwrap();
        let file = disk.open("new").await.unwrap();
        write(&disk, &file, 0, 1, 2).await.unwrap();
    };
    let seen = outcomes(SimDisk::new, story, |disk| content(disk, "new").unwrap());
    assert!(
        seen.iter().all(|bytes| bytes[..BLOCK] == [2; BLOCK]),
        "the durable block was damaged"
    );
    assert!(
        seen.iter().any(|bytes| bytes.len() == BLOCK),
        "the other block was made durable too"
    );
}

#[test]
fn a_sync_covers_only_what_was_complete_when_it_began() {
    let disk = zeroed(3, 1);
    let mut executor = Executor::new(Rng::new(3));
    let copy = disk.clone();
    let file = Rc::new(run(&disk, async move { copy.create("new").await.unwrap() }));
    let (copy, writer) = (disk.clone(), Rc::clone(&file));
    let written = executor.spawn(async move { write(&copy, &writer, 0, 1, 7).await });
    executor.settle();
    let copy = disk.clone();
    let synced = executor.spawn(async move { (file.sync().await, copy.sync_directory().await) });
    executor.settle();
    assert!(disk.step_where(|operation| operation.kind == Kind::Write));
    executor.exhaust(&disk);
    assert!(written.take().is_some() && synced.take().is_some());
    let seen: BTreeSet<usize> = (0..SEEDS)
        .map(|_| content(&disk.crash(), "new").unwrap().len())
        .collect();
    assert!(
        seen.contains(&0) && seen.contains(&BLOCK),
        "the sync covered a write that was still in flight: {seen:?}"
    );
}

#[test]
fn operations_complete_in_any_order() {
    let order = |seed| {
        let disk = zeroed(seed, 3);
        let mut executor = Executor::new(Rng::new(seed));
        let copy = disk.clone();
        let file = Rc::new(run(&disk, async move { copy.open("log").await.unwrap() }));
        let writes = [0, 1, 2].map(|at| {
            let (disk, file) = (disk.clone(), Rc::clone(&file));
            executor.spawn(async move { write(&disk, &file, at, 1, 7).await })
        });
        executor.settle();
        let mut order = Vec::new();
        while disk.step() {
            executor.settle();
            order.extend((0..3).filter(|&index| writes[index].take().is_some()));
        }
        order
    };
    let seen: BTreeSet<Vec<usize>> = (0..SEEDS).map(order).collect();
    assert_eq!(seen.len(), 6, "{seen:?}");
}

#[test]
fn a_seed_replays() {
    let story = |seed| {
        let disk = SimDisk::new(seed);
        let copy = disk.clone();
        run(&disk, async move {
            let file = copy.create("new").await.unwrap();
            write(&copy, &file, 0, 2, 7).await.unwrap();
        });
        let left = disk.crash();
        (left.image(), left.trace())
    };
    assert_eq!(story(5), story(5));
    assert!((0..50).any(|seed| story(seed).0 != story(5).0));
}

//! The simulated disk, continued: everything that a power cut may leave, without chance.

use std::collections::BTreeSet;

use super::executor::{Executor, run};
use super::sim_disk::{write, zeroed};
use crate::storage::disk::sim::{Image, Kind, Rng, SECTOR, SimDisk};
use crate::storage::disk::{BLOCK, Disk, DiskFile};

const MOST: usize = 1 << 20;

fn images(disk: &SimDisk) -> Vec<Image> {
    let cuts = disk.cuts(MOST);
    let images: Vec<Image> = cuts.iter().map(|cut| cut.image()).collect();
    assert_eq!(images.len(), cuts.count());
    let digests: BTreeSet<u64> = cuts.iter().map(|cut| cut.digest()).collect();
    assert_eq!(digests.len(), images.len(), "two digests are alike");
    images
}

#[test]
fn what_is_durable_is_left_in_one_way() {
    let disk = zeroed(1, 3);
    assert_eq!(images(&disk), vec![disk.image()]);
}

#[test]
fn a_write_in_flight_is_torn_into_every_subset_of_its_sectors() {
    let (disk, mut executor) = (zeroed(1, 2), Executor::new(Rng::new(1)));
    let copy = disk.clone();
    executor.spawn(async move {
        let file = copy.open("log").await.unwrap();
        write(&copy, &file, 1, 1, 7).await.unwrap();
    });
    executor.settle();
    assert!(disk.step_where(|operation| operation.kind == Kind::Open));
    executor.settle();
    let sets: BTreeSet<Vec<u8>> = images(&disk)
        .iter()
        .map(|image| {
            let bytes = image.file("log");
            assert_eq!(bytes.len(), 2 * BLOCK);
            assert_eq!(bytes[..BLOCK], [0; BLOCK], "another block was changed");
            bytes[BLOCK..]
                .chunks(SECTOR)
                .map(|sector| sector[0])
                .collect()
        })
        .collect();
    let whole = sets
        .iter()
        .filter(|set| set.iter().all(|byte| [0, 7].contains(byte)));
    assert_eq!(whole.count(), 256);
    assert!(sets.len() > 256, "no sector was damaged by being written");
    executor.exhaust(&disk);
    assert_eq!(images(&disk).len(), 1, "the complete write is durable");
}

#[test]
fn names_are_durable_with_their_directory_and_contents_with_their_file() {
    let disk = zeroed(1, 1);
    let copy = disk.clone();
    let file = run(&disk, async move {
        copy.remove("log").await.unwrap();
        let file = copy.create("new").await.unwrap();
        write(&copy, &file, 0, 1, 7).await.unwrap();
        file
    });
    let names = |image: &Image| image.names().map(str::to_owned).collect::<Vec<_>>();
    let seen: BTreeSet<_> = images(&disk).iter().map(names).collect();
    assert_eq!(seen.len(), 4, "{seen:?}");
    let copy = disk.clone();
    run(&disk, async move { copy.sync_directory().await.unwrap() });
    let left = images(&disk);
    assert!(left.iter().all(|image| names(image) == ["new"]));
    let lengths: BTreeSet<_> = left.iter().map(|image| image.file("new").len()).collect();
    assert!(lengths.contains(&0) && lengths.contains(&SECTOR) && lengths.contains(&BLOCK));
    run(&disk, async move { file.sync().await.unwrap() });
    assert_eq!(images(&disk), vec![disk.image()]);
}

#[test]
fn what_chance_leaves_is_among_all_that_may_be_left() {
    let disk = zeroed(5, 1);
    let copy = disk.clone();
    run(&disk, async move {
        let file = copy.create("new").await.unwrap();
        write(&copy, &file, 0, 1, 7).await.unwrap();
        file.sync().await.unwrap();
        write(&copy, &file, 0, 1, 8).await.unwrap();
        copy.remove("log").await.unwrap();
    });
    let all = images(&disk);
    // Chance also damages a sector here and there, with noise of its own.
    let known = |byte: &u8| [7, 8].contains(byte);
    for _ in 0..300 {
        let left = disk.crash().image();
        let torn_only = left
            .names()
            .all(|name| name == "log" || left.file(name).iter().all(known));
        assert!(!torn_only || all.contains(&left));
    }
}

//! The same while compaction runs: errors at every copy, retirement, use of a file again, removal, rotation and making of
//! a spare, and disks with room for little.

use super::super::damage::options;
use super::super::life::Life;
use super::super::model::Model;
use super::super::simulation::value_of;
use super::super::sweeps_are_long;
use super::{nearly_full, opened, sweep, work};
use crate::storage::disk::sim::{Fault, Image, SimDisk};
use crate::storage::format::SegmentHeader;
use crate::storage::{Change, Condition, Mutation};

/// Rooms that are tried on a nearly full disk, in blocks.
const ROOM_BLOCKS_STEP: u64 = 3;

const SEEDS: u64 = 6;

fn is_recycled(image: &Image) -> bool {
    let header = |name| SegmentHeader::decode(image.file(name)).ok();
    let mut headers = image.names().filter_map(header);
    headers.any(|header| header.recycled)
}

#[test]
fn every_operation_of_compaction_may_fail_with_an_io_error() {
    sweep("EIO, compacting", Fault::Error(libc::EIO), SEEDS, true);
}

#[test]
fn every_operation_of_compaction_may_find_the_disk_full() {
    sweep(
        "ENOSPC, compacting",
        Fault::Error(libc::ENOSPC),
        SEEDS,
        true,
    );
}

#[test]
fn every_write_of_compaction_may_be_short() {
    sweep("short write, compacting", Fault::ShortWrite, SEEDS, true);
}

/// Without this the sweeps would be about less than they say.
#[test]
fn the_work_copies_retires_recycles_removes_and_rotates() {
    for seed in 0..SEEDS {
        let (disk, mut model) = (SimDisk::new(seed), Model::default());
        let (mut life, _) = opened(&disk, &options(1, 0, 1)).unwrap();
        work(&mut life, &mut model, seed, 30, true).unwrap();
        let disk = disk.kill();
        let (mut life, _) = opened(&disk, &options(1, 0, 2)).unwrap();
        work(&mut life, &mut model, seed + 1000, 70, true).unwrap();
        let (stat, counters) = (life.store.stat(), disk.counters());
        assert!(
            stat.compacted_records > 0 && stat.retired_segments > 1,
            "{stat:?}"
        );
        assert!(is_recycled(&disk.image()), "no file was used again");
        assert!(counters.removes > 0 && counters.creates > 0, "{counters:?}");
        // One for this start, and then rotations.
        assert!(
            u64::from(stat.segments) + stat.retired_segments > 3,
            "{stat:?}"
        );
    }
}

/// However little room is left, compaction loses nothing, and with room again sets are accepted.
#[test]
fn a_disk_that_gets_full_while_it_is_compacted_loses_nothing() {
    let rooms = 4 * u64::from(options(1, 0, 1).segment_bytes) / 4096;
    let step = if sweeps_are_long() {
        1
    } else {
        ROOM_BLOCKS_STEP
    };
    let (mut points, mut full) = (0, 0);
    for room in (0..rooms).step_by(step as usize) {
        let (disk, mut model) = (SimDisk::new(room), Model::default());
        let (mut life, _) = opened(&disk, &options(1, 0, 1)).unwrap();
        work(&mut life, &mut model, room, 20, true).unwrap();
        let image = disk.image();
        let used: usize = image.names().map(|name| image.file(name).len()).sum();
        disk.set_capacity(Some(used as u64 + room * 4096));
        work(&mut life, &mut model, room + 1000, 60, true).unwrap();
        assert_eq!(life.error(), None, "room for {room} blocks");
        life.audit(&mut model).unwrap();
        points += 1;
        full += u64::from(life.no_room() > 0);
        let mut after = model.clone();
        let (mut again, recovered) = {
            let cut = disk.crash();
            cut.set_capacity(None);
            opened(&cut, &options(1, 0, 2)).unwrap()
        };
        after.recovered(recovered.last_version).unwrap();
        again.audit(&mut after).unwrap();
        // It goes on by itself.
        disk.set_capacity(None);
        life.retry_spare();
        life.compact();
        life.quiesce(&mut model).unwrap();
        let (before, value) = (model.last_version(), value_of(room, 9000));
        let set = Mutation {
            key: b"new",
            change: Change::Set(&value),
            condition: Condition::None,
        };
        life.submit(&mut model, &set).unwrap();
        life.quiesce(&mut model).unwrap();
        assert_eq!(model.last_version(), before + 1, "a set was refused");
        life.audit(&mut model).unwrap();
    }
    println!("io errors: {points} disks nearly full, {full} of them full, lost 0 (compacting)");
    assert!(full > 0 && full < points);
}

/// The disk gets full before the footer of a sealed segment is written. When all of the segment is deleted its file is used
/// again, although the footer never was.
#[test]
fn a_file_that_waits_for_a_footer_comes_free_on_a_full_disk() {
    let (mut life, mut model, _disk) = nearly_full(1);
    let value = value_of(1, 9000);
    let mut write = |life: &mut Life, number: u64, change| {
        let key = format!("key {number}").into_bytes();
        let mutation = Mutation {
            key: &key,
            change,
            condition: Condition::None,
        };
        let before = model.last_version();
        life.submit(&mut model, &mutation).unwrap();
        life.compact();
        life.retry_spare();
        life.quiesce(&mut model).unwrap();
        model.last_version() > before
    };
    let mut sets = 0;
    while write(&mut life, sets, Change::Set(&value)) {
        sets += 1;
        assert!(sets < 1000, "the disk never got full");
    }
    let stat = life.store.stat();
    assert!(stat.out_of_space && stat.segments == 2, "{stat:?}");
    for number in 0..sets {
        assert!(
            write(&mut life, number, Change::Delete),
            "{number} of {sets}"
        );
    }
    let stat = life.store.stat();
    assert!(!stat.out_of_space && stat.retired_segments > 0, "{stat:?}");
    assert!(
        write(&mut life, 0, Change::Set(&value)),
        "a set was refused"
    );
}

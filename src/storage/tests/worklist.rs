//! Compaction of long records: which are read, and what damage does to it. (`simulation` compacts both ways at random
//! moments through crashes.)

use std::rc::Rc;

use super::compaction::{open, roomy, write};
use super::executor::Executor;
use super::life::Life;
use super::model::Model;
use super::simulation::value_of;
use crate::storage::disk::BLOCK;
use crate::storage::disk::sim::{Rng, SimDisk};
use crate::storage::{Change, Compaction, Step, StorageError, StoreStat};

const KEYS: u64 = 80;

/// Bytes of a value: 85 frames with one fill a segment.
const LEN: usize = 9000;

fn set(life: &mut Life, model: &mut Model, key: u64, round: u64) {
    let value = value_of(key + 1000 * round, LEN);
    write(
        life,
        model,
        format!("key{key}").as_bytes(),
        Change::Set(&value),
    );
    life.quiesce(model).unwrap();
}

/// A store of two segments, of which the first has few records that are needed: most were written again.
fn mostly_dead(disk: &SimDisk, model: &mut Model) -> Life {
    let mut life = open(disk, &roomy(1), model);
    for key in 0..KEYS {
        set(&mut life, model, key, 0);
    }
    for key in (0..KEYS).filter(|key| !key.is_multiple_of(10)) {
        set(&mut life, model, key, 1);
    }
    assert_eq!(life.store.stat().segments, 2);
    life
}

/// Compacts until there is nothing to do; whether a segment was read by its list, and the result of the last step.
fn compact(disk: &SimDisk, life: &mut Life, model: &mut Model) -> (bool, Result<(), StorageError>) {
    let (mut current, mut executor): (Option<Compaction<_>>, _) =
        (None, Executor::new(Rng::new(1)));
    let mut was_listed = false;
    loop {
        let store = Rc::clone(&life.store);
        let step = executor.spawn(async move { (store.compact(&mut current).await, current) });
        executor.exhaust(disk);
        life.quiesce(model).unwrap();
        executor.exhaust(disk);
        let (step, next) = step.take().expect("what it staged is durable");
        was_listed |= next.as_ref().is_some_and(Compaction::is_listed);
        current = next;
        match step {
            Ok(Step::Worked { .. }) => {}
            Ok(Step::Idle) => return (was_listed, Ok(())),
            Err(error) => return (was_listed, Err(error)),
        }
    }
}

fn oldest_file(disk: &SimDisk) -> String {
    let image = disk.image();
    let names = image.names().filter(|name| name.starts_with("segment"));
    names.min().expect("there is a segment").to_owned()
}

fn retired(stat: &StoreStat) -> u64 {
    stat.retired_segments
}

#[test]
fn of_long_records_only_those_that_are_needed_are_read() {
    let (disk, mut model) = (SimDisk::new(1), Model::default());
    let mut life = mostly_dead(&disk, &mut model);
    let before = disk.counters();
    let (was_listed, result) = compact(&disk, &mut life, &mut model);
    result.unwrap();
    let (read, stat) = (
        disk.counters().bytes_read - before.bytes_read,
        life.store.stat(),
    );
    assert!(was_listed && retired(&stat) == 1, "{stat:?}");
    let copied = stat.compacted_records;
    assert!((KEYS / 10..KEYS / 4).contains(&copied), "{copied} copies");
    let most = copied * (LEN + 2 * BLOCK) as u64 + 4 * BLOCK as u64;
    assert!(read <= most, "{read} bytes were read, not {most}");
    life.audit(&mut model).unwrap();
    let mut life = open(&disk.crash(), &roomy(2), &mut model);
    life.audit(&mut model).unwrap();
}

#[test]
fn a_segment_whose_footer_is_damaged_is_read_from_front_to_back() {
    let (disk, mut model) = (SimDisk::new(2), Model::default());
    let mut life = mostly_dead(&disk, &mut model);
    disk.damage(&oldest_file(&disk), |bytes| {
        // The entries of the footer repeat the keys, behind everything else.
        let last = bytes.windows(5).rposition(|window| window == b"key79");
        bytes[last.expect("the footer names it")] ^= 1;
    });
    let (was_listed, result) = compact(&disk, &mut life, &mut model);
    result.unwrap();
    let stat = life.store.stat();
    assert!(!was_listed && retired(&stat) == 1, "{stat:?}");
    life.audit(&mut model).unwrap();
}

#[test]
fn a_record_that_is_needed_and_damaged_stops_compaction() {
    let (disk, mut model) = (SimDisk::new(3), Model::default());
    let mut life = mostly_dead(&disk, &mut model);
    let files_before: Vec<_> = disk.image().names().map(str::to_owned).collect();
    let (damaged, dead) = (value_of(50, LEN), value_of(51, LEN));
    disk.damage(&oldest_file(&disk), |bytes| {
        for value in [&damaged, &dead] {
            let at = bytes.windows(LEN).position(|window| window == value);
            bytes[at.expect("it is there") + 4000] ^= 1;
        }
    });
    let (_, result) = compact(&disk, &mut life, &mut model);
    match result {
        Err(StorageError::Corrupt { file, .. }) => assert_eq!(file, oldest_file(&disk)),
        other => panic!("the damage was not noticed: {other:?}"),
    }
    let stat = life.store.stat();
    assert_eq!(retired(&stat), 0, "nothing of the segment is dropped");
    let files: Vec<_> = disk.image().names().map(str::to_owned).collect();
    assert!(files_before.iter().all(|name| files.contains(name)));
}

//! Compaction, story by story: what it wins back, what it must never lose or bring back, and what it leaves alone.
//! (`simulation` compacts at random moments through crashes.)

use super::damage::options;
use super::executor::Executor;
use super::life::{Life, Opening};
use super::model::Model;
use super::simulation::value_of;
use crate::storage::disk::sim::{Rng, SimDisk};
use crate::storage::format::segment_bytes_min;
use crate::storage::{Change, Compaction, Condition, Lookup, Mutation, Pace, Step, StoreOptions};

/// Room for about 60 values of the largest size in a segment.
pub(super) fn roomy(run: u64) -> StoreOptions {
    StoreOptions {
        segment_bytes: segment_bytes_min(9000) as u32 + (1 << 20),
        ..options(1, 0, run)
    }
}

pub(super) fn open(disk: &SimDisk, options: &StoreOptions, model: &mut Model) -> Life {
    let mut opening = Opening::start(disk, options, Rng::new(options.run));
    opening.executor.exhaust(disk);
    let (store, recovered) = opening.result().unwrap().unwrap();
    model.recovered(recovered.last_version).unwrap();
    Life::start(disk, store, opening.executor)
}

pub(super) fn write(life: &mut Life, model: &mut Model, key: &[u8], change: Change<'_>) {
    let mutation = Mutation {
        key,
        change,
        condition: Condition::None,
    };
    life.submit(model, &mutation).unwrap();
}

/// Overwrites keys at random until about so many bytes were written; compacts as it goes.
fn overwrite(life: &mut Life, model: &mut Model, rng: &mut Rng, keys: u64, bytes: usize) {
    let mut written = 0;
    while written < bytes {
        for _ in 0..20 {
            let value = value_of(rng.next(), 3000 + rng.index(6000));
            written += value.len();
            let key = format!("key{}", rng.below(keys)).into_bytes();
            write(life, model, &key, Change::Set(&value));
        }
        life.compact();
        life.quiesce(model).unwrap();
    }
}

#[test]
fn a_store_that_is_overwritten_for_ever_stays_within_a_bound() {
    let (disk, mut model, mut rng) = (SimDisk::new(1), Model::default(), Rng::new(2));
    let mut life = open(&disk, &roomy(1), &mut model);
    overwrite(&mut life, &mut model, &mut rng, 2000, 60 << 20);
    let stat = life.store.stat();
    let used = stat.disk_live_bytes + stat.disk_dead_bytes + stat.disk_tombstone_bytes;
    let amplification = used as f64 / stat.disk_live_bytes as f64;
    let files: u64 = disk
        .image()
        .names()
        .map(|name| disk.image().file(name).len() as u64)
        .sum();
    println!(
        "overwritten: {amplification:.2} x the live bytes in the log, {:.2} x in files; {} segments retired, {} records copied for {} written",
        files as f64 / stat.disk_live_bytes as f64,
        stat.retired_segments,
        stat.compacted_records,
        stat.last_version
    );
    assert!(stat.retired_segments > 20);
    assert!(amplification < 2.2, "{amplification}");
    life.audit(&mut model).unwrap();
    let mut life = open(&disk.crash(), &roomy(2), &mut model);
    life.audit(&mut model).unwrap();
}

#[test]
fn what_is_dead_of_a_small_log_is_left_alone_until_there_is_little_to_copy() {
    let copied_per_write = |segments: u64| {
        let (disk, mut model, mut rng) = (SimDisk::new(1), Model::default(), Rng::new(2));
        let options = StoreOptions {
            dead_bytes_min: segments * u64::from(roomy(1).segment_bytes),
            ..roomy(1)
        };
        let mut life = open(&disk, &options, &mut model);
        // All that lives is less than one segment.
        overwrite(&mut life, &mut model, &mut rng, 100, 20 << 20);
        let stat = life.store.stat();
        let bound = (segments + 2) * u64::from(options.segment_bytes);
        assert!(stat.disk_dead_bytes <= bound, "{stat:?}");
        assert!(stat.retired_segments > 5, "{stat:?}");
        life.audit(&mut model).unwrap();
        stat.compacted_records as f64 / stat.last_version as f64
    };
    let (without, with) = (copied_per_write(0), copied_per_write(2));
    println!("copies per write of a small log: {without:.2} at once, {with:.2} later");
    assert!(with < without / 4.0, "{with} and {without}");
}

#[test]
fn a_store_whose_keys_are_all_deleted_shrinks_by_itself() {
    let (disk, mut model) = (SimDisk::new(3), Model::default());
    let mut life = open(&disk, &roomy(1), &mut model);
    for round in 0..2_u64 {
        for number in 0..1500_u64 {
            let value = value_of(number + round, 5000);
            let key = format!("key{number}").into_bytes();
            write(&mut life, &mut model, &key, Change::Set(&value));
            if number % 20 == 0 {
                life.quiesce(&mut model).unwrap();
            }
        }
        life.quiesce(&mut model).unwrap();
    }
    assert!(life.store.stat().segments > 5);
    for number in 0..1500_u64 {
        let key = format!("key{number}").into_bytes();
        write(&mut life, &mut model, &key, Change::Delete);
        if number % 10 == 0 {
            life.quiesce(&mut model).unwrap();
        }
    }
    life.compact();
    life.quiesce(&mut model).unwrap();
    let stat = life.store.stat();
    assert!(
        stat.segments <= 2 && disk.image().names().count() <= 5,
        "{stat:?}"
    );
    life.audit(&mut model).unwrap();
    // After a restart not even the last segment needs its tombstones.
    life.close();
    life.quiesce(&mut model).unwrap();
    let disk = disk.kill();
    let mut life = open(&disk, &roomy(2), &mut model);
    life.compact();
    life.quiesce(&mut model).unwrap();
    let stat = life.store.stat();
    assert_eq!(
        (stat.segments, stat.tombstones, stat.disk_tombstone_bytes),
        (1, 0, 0)
    );
    life.audit(&mut model).unwrap();
}

#[test]
fn a_deleted_key_does_not_return_while_its_old_record_is_on_disk() {
    let (disk, mut model, mut rng) = (SimDisk::new(4), Model::default(), Rng::new(5));
    let mut life = open(&disk, &roomy(1), &mut model);
    // The first segment keeps most of what it has for good, and one key that goes.
    for number in 0..200_u64 {
        let key = format!("cold{number}").into_bytes();
        write(
            &mut life,
            &mut model,
            &key,
            Change::Set(&value_of(number, 5000)),
        );
    }
    write(&mut life, &mut model, b"gone", Change::Set(b"not again"));
    life.quiesce(&mut model).unwrap();
    overwrite(&mut life, &mut model, &mut rng, 300, 2 << 20);
    write(&mut life, &mut model, b"gone", Change::Delete);
    life.quiesce(&mut model).unwrap();
    // The tombstone's segment is compacted many times over, that of the old record is not.
    overwrite(&mut life, &mut model, &mut rng, 300, 20 << 20);
    assert!(life.store.stat().retired_segments > 10);
    assert_eq!(life.store.stat().tombstones, 1);
    for run in 2..6 {
        let mut again = open(&disk.crash(), &roomy(run), &mut model.clone());
        let mut model = model.clone();
        again.audit(&mut model).unwrap();
        assert!(matches!(again.store.get(b"gone"), Lookup::Absent));
    }
    life.audit(&mut model).unwrap();
}

#[test]
fn a_full_disk_is_compacted_until_sets_are_accepted_again() {
    for seed in 0..10 {
        let (disk, mut model, mut rng) = (SimDisk::new(seed), Model::default(), Rng::new(seed));
        let mut life = open(&disk, &roomy(1), &mut model);
        life.quiesce(&mut model).unwrap();
        disk.set_capacity(Some(12 * u64::from(roomy(1).segment_bytes)));
        let mut number = 0_u64;
        while !life.store.stat().out_of_space {
            let key = format!("key{number}").into_bytes();
            write(
                &mut life,
                &mut model,
                &key,
                Change::Set(&value_of(number, 5000)),
            );
            life.quiesce(&mut model).unwrap();
            number += 1;
            assert!(number < 10_000, "the disk never got full");
        }
        assert!(life.store.spares.has_reserve(), "sets took the reserve");
        life.audit(&mut model).unwrap();
        // Deletes go on; what they leave dead is enough for the alarm to end, with no more room on the disk.
        let mut deletes = 0_u64;
        while life.store.stat().out_of_space {
            let key = format!("key{}", rng.below(number)).into_bytes();
            if model.current(&key).is_some() {
                write(&mut life, &mut model, &key, Change::Delete);
                life.quiesce(&mut model).unwrap();
                assert_eq!(
                    model.current(&key),
                    None,
                    "a delete was refused after {deletes} of {number}: {:?}, room {}, files {}",
                    life.store.stat(),
                    life.store.log.room(),
                    life.disk.image().names().count()
                );
                deletes += 1;
            }
            life.compact();
            life.retry_spare();
            life.quiesce(&mut model).unwrap();
            assert!(
                deletes < number,
                "out of space, and everything is deleted: {:?}",
                life.store.stat()
            );
        }
        println!("{deletes} deletes of {number} keys ended the alarm");
        let before = model.last_version();
        write(&mut life, &mut model, b"new", Change::Set(b"accepted"));
        life.quiesce(&mut model).unwrap();
        assert_eq!(model.last_version(), before + 1);
        life.audit(&mut model).unwrap();
        let mut life = open(&disk.crash(), &roomy(2), &mut model);
        life.audit(&mut model).unwrap();
    }
}

#[test]
pub(super) fn what_a_reader_has_found_stays_until_it_is_read() {
    let (disk, mut model) = (SimDisk::new(6), Model::default());
    let mut life = open(&disk, &roomy(1), &mut model);
    write(
        &mut life,
        &mut model,
        b"key",
        Change::Set(b"as it was found"),
    );
    life.quiesce(&mut model).unwrap();
    let Lookup::OnDisk(found) = life.store.get(b"key") else {
        panic!("without a cache the value is on disk");
    };
    // Its segment is overwritten and retired, and its file would be used again: after the spares that were there before.
    for round in 0..12 {
        for number in 0..150_u64 {
            let key = format!("key{number}").into_bytes();
            write(
                &mut life,
                &mut model,
                &key,
                Change::Set(&value_of(round, 5000)),
            );
        }
        write(
            &mut life,
            &mut model,
            b"key",
            Change::Set(b"something newer"),
        );
        life.compact();
        life.quiesce(&mut model).unwrap();
    }
    assert!(life.store.stat().retired_segments > 6);
    let store = std::rc::Rc::clone(&life.store);
    let mut executor = Executor::new(Rng::new(7));
    let read =
        executor.spawn(async move { store.read(found).await.map(|found| found.value.to_vec()) });
    executor.exhaust(&disk);
    assert_eq!(read.take().unwrap().unwrap(), b"as it was found");
    life.audit(&mut model).unwrap();
}

/// A copy behind a delete would bring the key back once the delete is forgotten.
#[test]
pub(super) fn a_key_that_is_being_deleted_is_not_copied() {
    let (disk, mut model) = (SimDisk::new(9), Model::default());
    let mut life = open(&disk, &roomy(1), &mut model);
    for key in [&b"goes"[..], b"stays"] {
        write(
            &mut life,
            &mut model,
            key,
            Change::Set(b"in the first segment"),
        );
    }
    for round in 0.. {
        write(
            &mut life,
            &mut model,
            b"filler",
            Change::Set(&value_of(round, 9000)),
        );
        life.quiesce(&mut model).unwrap();
        if life.store.stat().segments == 2 {
            break;
        }
    }
    // Accepted, and not yet on its way to the disk: the tasks of the store do not run.
    write(&mut life, &mut model, b"goes", Change::Delete);
    let (store, mut executor) = (std::rc::Rc::clone(&life.store), Executor::new(Rng::new(1)));
    let step = executor.spawn(async move { store.compact(&mut None).await });
    executor.exhaust(&disk);
    assert!(!step.is_ready(), "the copies are not durable");
    assert_eq!(
        life.store.stat().compacted_records,
        1,
        "only what stays is copied"
    );
    life.quiesce(&mut model).unwrap();
    executor.exhaust(&disk);
    step.take().expect("the copies are durable").unwrap();
    life.audit(&mut model).unwrap();
}

/// A segment that was begun with little dead in the store must not hold up the rest once there is much.
#[test]
fn compaction_hastens_when_more_dies_while_a_segment_is_copied() {
    let (disk, mut model) = (SimDisk::new(10), Model::default());
    let mut life = open(&disk, &roomy(1), &mut model);
    let set = |life: &mut Life, model: &mut Model, number: u64, round: u64| {
        let key = format!("key{number}").into_bytes();
        write(
            life,
            model,
            &key,
            Change::Set(&value_of(number + round, 5000)),
        );
        life.quiesce(model).unwrap();
    };
    for number in 0..1000 {
        set(&mut life, &mut model, number, 0);
    }
    // By key number, every third of the first segments goes first: all of them stay worth a copy.
    let mut dying = (0..3_u64).flat_map(|third| (0..333).map(move |number| 3 * number + third));
    let (mut executor, mut current) = (Executor::new(Rng::new(1)), None);
    let mut paces = Vec::new();
    let mut begun = None;
    while paces.last() != Some(&Pace::Unbounded) {
        let number = dying.next().expect("more than enough dies");
        set(&mut life, &mut model, number, 1);
        let store = std::rc::Rc::clone(&life.store);
        let step = executor.spawn(async move {
            let step = store.compact(&mut current).await;
            (step, current)
        });
        executor.exhaust(&disk);
        life.quiesce(&mut model).unwrap();
        executor.exhaust(&disk);
        let (step, next) = step.take().expect("what it staged is durable");
        current = next;
        if let Step::Worked { pace, .. } = step.unwrap() {
            let victim = current.as_ref().map(Compaction::victim);
            assert_eq!(*begun.get_or_insert(victim), victim, "of the same segment");
            paces.push(pace);
        }
    }
    assert!(matches!(paces[0], Pace::Bounded(_)), "{paces:?}");
    assert!(paces.is_sorted(), "{paces:?}");
    life.audit(&mut model).unwrap();
}

#[test]
fn many_short_segments_are_merged() {
    let (mut disk, mut model) = (SimDisk::new(8), Model::default());
    let mut life = open(&disk, &roomy(1), &mut model);
    // So much that what the short ones waste is a small share.
    for number in 0..1500_u64 {
        let key = format!("cold{number}").into_bytes();
        write(
            &mut life,
            &mut model,
            &key,
            Change::Set(&value_of(number, 5000)),
        );
        if number % 20 == 0 {
            life.quiesce(&mut model).unwrap();
        }
    }
    life.quiesce(&mut model).unwrap();
    disk = disk.kill();
    for run in 2..60 {
        let mut life = open(&disk, &roomy(run), &mut model);
        let key = format!("key{run}").into_bytes();
        write(&mut life, &mut model, &key, Change::Set(b"one per start"));
        life.compact();
        life.quiesce(&mut model).unwrap();
        disk = disk.kill();
    }
    let mut life = open(&disk, &roomy(60), &mut model);
    assert!(life.store.stat().segments < 40, "{:?}", life.store.stat());
    life.audit(&mut model).unwrap();
}

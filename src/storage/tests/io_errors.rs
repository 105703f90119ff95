//! T8: one operation after the other fails, until a run completes without meeting the failure.
//!
//! After an error on the log nothing is acknowledged any more; the next start finds everything that was. A full disk is
//! no error: sets are refused, reads and deletes go on, and it ends by itself when there is room again.
//!
//! `ORLOP_SWEEPS=long` takes ten times as many seeds.

mod compacting;

use super::damage::options;
use super::executor::{Executor, run};
use super::life::{Life, Opening};
use super::model::Model;
use super::simulation::value_of;
use super::sweeps_are_long;
use crate::storage::disk::sim::{Fault, Kind, Operation, Rng, SimDisk};
use crate::storage::{
    Change, Condition, Mutation, StorageError, StoreOptions, SubmitError, Submitted,
};

/// How far a run came.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum End {
    OpenFailed,
    EngineFailed,
    Complete,
}

#[derive(Debug, Default)]
struct Figures {
    injections: u64,
    open_failed: u64,
    engine_failed: u64,
    went_on: u64,
    acknowledged: u64,
}

fn opened(
    disk: &SimDisk,
    options: &StoreOptions,
) -> Result<(Life, crate::storage::Recovered), StorageError> {
    let mut opening = Opening::start(disk, options, Rng::new(options.run));
    opening.executor.exhaust(disk);
    let (store, recovered) = opening.result().expect("the recovery ends")?;
    Ok((Life::start(disk, store, opening.executor), recovered))
}

/// Sets of many sizes over few keys, so that segments fill and rotate; deletes; reads from disk between them.
fn work(
    life: &mut Life,
    model: &mut Model,
    seed: u64,
    operations: u64,
    compacts: bool,
) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    for number in 0..operations {
        let mut key = vec![b'a' + rng.index(5) as u8];
        if compacts && number % 9 == 0 {
            // Written once: what compaction has to copy.
            key = format!("cold{}", seed + number).into_bytes();
        }
        let value = value_of(seed + number, [0, 100, 3000, 9000][rng.index(4)]);
        let change = if rng.chance(1, 6) {
            Change::Delete
        } else {
            Change::Set(&value)
        };
        life.submit(
            model,
            &Mutation {
                key: &key,
                change,
                condition: Condition::None,
            },
        )?;
        if rng.chance(1, 3) {
            life.read(model, &key);
        }
        if compacts && rng.chance(1, 4) {
            life.retry_spare();
            life.compact();
        }
        if rng.chance(1, 2) {
            life.quiesce(model)?;
        }
    }
    life.quiesce(model)
}

/// A whole run with a disk that fails as planned, and what is left of it after a power cut or a kill.
fn one_run(
    seed: u64,
    compacts: bool,
    plan: impl FnMut(&Operation) -> Option<Fault> + 'static,
    cut: bool,
) -> (End, Model) {
    let mut model = Model::default();
    let disk = SimDisk::new(seed);
    // A first life without trouble, so that the second one has something to recover and to trim.
    let (mut life, _) = opened(&disk, &options(1, 0, 1)).unwrap();
    let (before, operations) = if compacts { (30, 70) } else { (6, 25) };
    work(&mut life, &mut model, seed, before, compacts).unwrap();
    let disk = disk.kill();
    disk.fail_when(plan);
    let (end, life) = match opened(&disk, &options(1, 0, 2)) {
        Err(StorageError::Io { .. } | StorageError::Full { .. }) => (End::OpenFailed, None),
        Err(error) => panic!("an I/O error became {error}"),
        Ok((mut life, recovered)) => {
            model.recovered(recovered.last_version).unwrap();
            life.faulty = true;
            work(&mut life, &mut model, seed + 1000, operations, compacts).unwrap();
            if life.error().is_none() {
                life.close();
                life.quiesce(&mut model).unwrap();
            }
            let end = if life.error().is_some() {
                End::EngineFailed
            } else {
                End::Complete
            };
            (end, Some(life))
        }
    };
    if let (End::EngineFailed, Some(life)) = (end, &life) {
        nothing_is_accepted_after(life, &disk);
    }
    let next = if cut { disk.crash() } else { disk.kill() };
    let (mut life, recovered) = opened(&next, &options(1, 0, 3)).unwrap();
    model.recovered(recovered.last_version).unwrap();
    life.audit(&mut model).unwrap();
    (end, model)
}

/// Once a commit failed the store accepts, writes and answers nothing. (A spare that could not be made or a file
/// that could not be trimmed ends the process as well, but that is the shard's doing.)
fn nothing_is_accepted_after(life: &Life, disk: &SimDisk) {
    let store = std::rc::Rc::clone(&life.store);
    disk.fail_no_more();
    let writes = disk.counters().writes;
    let mutation = Mutation {
        key: b"late",
        change: Change::Set(b"x"),
        condition: Condition::None,
    };
    if let Submitted::Rejected(error, 77) = store.submit(&mutation, 77) {
        assert_eq!(error, SubmitError::Poisoned);
        let result = run(disk, async move { store.commit().await });
        assert!(matches!(result, Err(StorageError::Poisoned)));
        assert_eq!(
            disk.counters().writes,
            writes,
            "something was written after an error"
        );
    } else {
        assert!(!life.commit_failed(), "accepted after a failed commit");
        let error = life.error().unwrap();
        let files = [
            "creating", "syncing", "closing", "opening", "removing", "writing", "trimming",
        ];
        assert!(
            files.iter().any(|action| error.starts_with(action)),
            "{error}"
        );
    }
}

fn sweep(what: &str, fault: Fault, seeds: u64, compacts: bool) {
    let mut figures = Figures::default();
    let seeds = if sweeps_are_long() { 10 * seeds } else { seeds };
    for seed in 0..seeds {
        for number in 0.. {
            let met = std::rc::Rc::new(std::cell::Cell::new(false));
            let meets = std::rc::Rc::clone(&met);
            let plan = move |operation: &Operation| {
                let fits = fault != Fault::ShortWrite || operation.kind == Kind::Write;
                let here = operation.number == number && fits;
                meets.set(meets.get() || operation.number >= number);
                here.then_some(fault)
            };
            let (end, model) = one_run(seed, compacts, plan, number % 2 == 0);
            figures.injections += 1;
            figures.acknowledged += model.confirmed;
            match end {
                End::OpenFailed => figures.open_failed += 1,
                End::EngineFailed => figures.engine_failed += 1,
                End::Complete => figures.went_on += 1,
            }
            if !met.get() {
                assert_eq!(
                    end,
                    End::Complete,
                    "a run without a failure did not complete"
                );
                break;
            }
        }
    }
    println!(
        "io errors: {} injection points, acknowledgements after an error 0 ({what}: {figures:?}; lost 0)",
        figures.injections
    );
    assert!(figures.open_failed > 0 && figures.engine_failed > 0);
}

#[test]
pub(super) fn every_operation_may_fail_with_an_io_error() {
    sweep("EIO", Fault::Error(libc::EIO), 3, false);
}

#[test]
fn every_operation_may_find_the_disk_full() {
    sweep("ENOSPC", Fault::Error(libc::ENOSPC), 6, false);
}

#[test]
pub(super) fn every_write_may_be_short() {
    sweep("short write", Fault::ShortWrite, 3, false);
}

/// A store with room for no second spare.
fn nearly_full(seed: u64) -> (Life, Model, SimDisk) {
    let disk = SimDisk::new(seed);
    let (mut life, _) = opened(&disk, &options(1, 0, 1)).unwrap();
    let mut model = Model::default();
    life.quiesce(&mut model).unwrap();
    let used = disk
        .image()
        .names()
        .map(|name| disk.image().file(name).len() as u64)
        .sum::<u64>();
    disk.set_capacity(Some(used + 8192));
    (life, model, disk)
}

fn submit(life: &mut Life, key: &[u8], change: Change<'_>) -> &'static str {
    match life.store.submit(
        &Mutation {
            key,
            change,
            condition: Condition::None,
        },
        0,
    ) {
        Submitted::Pending => "pending",
        Submitted::Answered(..) => "answered",
        Submitted::Rejected(SubmitError::OutOfSpace, _) => "out of space",
        Submitted::Rejected(..) => "rejected",
    }
}

#[test]
fn a_full_disk_refuses_sets_and_nothing_else_until_there_is_room() {
    for seed in 0..20 {
        let (mut life, mut model, disk) = nearly_full(seed);
        let value = value_of(1, 9000);
        let mut accepted = 0;
        loop {
            let key = [b'a' + (accepted % 10) as u8];
            let mutation = Mutation {
                key: &key,
                change: Change::Set(&value),
                condition: Condition::None,
            };
            let before = model.last_version();
            life.submit(&mut model, &mutation).unwrap();
            life.quiesce(&mut model).unwrap();
            if model.last_version() == before {
                break;
            }
            accepted += 1;
            assert!(accepted < 1000, "the disk never got full");
        }
        assert!(accepted > 10, "only {accepted} sets were accepted");
        assert!(life.store.stat().out_of_space && life.no_room() > 0);
        // Reads and one delete after the other go on.
        life.audit(&mut model).unwrap();
        let delete = Mutation {
            key: b"a",
            change: Change::Delete,
            condition: Condition::None,
        };
        life.submit(&mut model, &delete).unwrap();
        life.quiesce(&mut model).unwrap();
        assert_eq!(model.current(b"a"), None, "the delete was refused");
        assert_eq!(submit(&mut life, b"b", Change::Set(&value)), "out of space");
        // Without room another attempt changes nothing.
        life.retry_spare();
        life.quiesce(&mut model).unwrap();
        assert_eq!(submit(&mut life, b"b", Change::Set(&value)), "out of space");
        // With room it clears itself.
        disk.set_capacity(None);
        life.retry_spare();
        life.quiesce(&mut model).unwrap();
        assert!(!life.store.stat().out_of_space);
        let set = Mutation {
            key: b"a",
            change: Change::Set(&value),
            condition: Condition::IfAbsent,
        };
        life.submit(&mut model, &set).unwrap();
        life.quiesce(&mut model).unwrap();
        assert!(
            model.current(b"a").is_some(),
            "the set was refused although there is room"
        );
        life.audit(&mut model).unwrap();
        // And nothing that was acknowledged in between is lost.
        let (mut life, recovered) = opened(&disk.crash(), &options(1, 0, 2)).unwrap();
        model.recovered(recovered.last_version).unwrap();
        life.audit(&mut model).unwrap();
    }
}

#[test]
fn writes_that_were_accepted_before_the_disk_was_known_to_be_full_are_told() {
    let (mut life, mut model, disk) = nearly_full(1);
    let value = value_of(1, 9000);
    // All at once: what does not fit is given up, what fits is durable.
    for number in 0..100u8 {
        let mutation = Mutation {
            key: &[number],
            change: Change::Set(&value),
            condition: Condition::None,
        };
        life.submit(&mut model, &mutation).unwrap();
    }
    life.quiesce(&mut model).unwrap();
    let written = model.records();
    assert!(
        written > 0 && written < 100,
        "{written} of 100 were written"
    );
    disk.set_capacity(None);
    let (mut life, recovered) = opened(&disk.crash(), &options(1, 0, 2)).unwrap();
    assert_eq!(recovered.records, written);
    model.recovered(recovered.last_version).unwrap();
    life.audit(&mut model).unwrap();
}

#[test]
fn a_start_on_a_full_disk_says_so_and_loses_nothing() {
    let (mut life, mut model, disk) = nearly_full(2);
    let set = Mutation {
        key: b"k",
        change: Change::Set(b"v"),
        condition: Condition::None,
    };
    life.submit(&mut model, &set).unwrap();
    life.quiesce(&mut model).unwrap();
    let disk = disk.kill();
    let used = disk
        .image()
        .names()
        .map(|name| disk.image().file(name).len() as u64)
        .sum::<u64>();
    disk.set_capacity(Some(used));
    // The spares of the first life serve the next two; the fourth one finds no room.
    let (life, _) = opened(&disk, &options(1, 0, 2)).unwrap();
    drop(life);
    let disk = disk.kill();
    disk.set_capacity(Some(used));
    let (life, _) = opened(&disk, &options(1, 0, 3)).unwrap();
    drop(life);
    // Not even for what the starts have trimmed.
    let disk = disk.kill();
    disk.set_capacity(Some(0));
    match opened(&disk, &options(1, 0, 4)) {
        Err(StorageError::Full { file, .. }) => {
            assert!(file.starts_with("segment-0000-"), "{file}")
        }
        Err(error) => panic!("a full disk became {error}"),
        Ok(_) => panic!("there was room for another segment"),
    }
    disk.set_capacity(None);
    let (mut life, recovered) = opened(&disk.kill(), &options(1, 0, 5)).unwrap();
    model.recovered(recovered.last_version).unwrap();
    life.audit(&mut model).unwrap();
}

#[test]
fn a_failed_read_is_told_to_its_reader_and_to_nobody_else() {
    let disk = SimDisk::new(4);
    let (mut life, _) = opened(&disk, &options(1, 0, 1)).unwrap();
    let mut model = Model::default();
    let set = Mutation {
        key: b"k",
        change: Change::Set(b"v"),
        condition: Condition::None,
    };
    life.submit(&mut model, &set).unwrap();
    life.quiesce(&mut model).unwrap();
    disk.fail_when(|operation| (operation.kind == Kind::Read).then_some(Fault::Error(libc::EIO)));
    let (store, mut executor) = (std::rc::Rc::clone(&life.store), Executor::new(Rng::new(1)));
    let read = executor.spawn(async move {
        match store.get(b"k") {
            crate::storage::Lookup::OnDisk(on_disk) => store.read(on_disk).await.map(|_| ()),
            _ => panic!("without a cache the value is on disk"),
        }
    });
    executor.exhaust(&disk);
    let error = read.take().unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            StorageError::Io {
                action: "reading",
                ..
            }
        ),
        "{error}"
    );
    disk.fail_no_more();
    life.submit(&mut model, &set).unwrap();
    life.audit(&mut model).unwrap();
}

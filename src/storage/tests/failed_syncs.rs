//! T8, the syncs: one after the other fails while a new file is made, and the store works until that file is in use.
//!
//! What a failed sync should have made durable may be gone, whatever a second sync says. So the store has to stop; if it
//! went on, a power cut would take acknowledged writes with it, but only once they are in the file concerned, which a
//! short run does not reach. A failed sync of the directory may be about a name that another shard relies on, so the store
//! has to stop for it even when the system speaks of a full disk.

use std::cell::Cell;
use std::rc::Rc;

use super::damage::options;
use super::life::{Life, Opening};
use super::model::Model;
use super::simulation::value_of;
use crate::storage::disk::sim::{Fault, Kind, Rng, SimDisk};
use crate::storage::{Change, Condition, Mutation};

/// Segments of a run: both spares that the first one had are behind it.
const SEGMENTS: u32 = 6;

/// Sets that fill so many segments, and more.
const ROUNDS_MAX: u64 = 100;

/// Power cuts that are tried of one moment.
const CUTS: u64 = 4;

fn opened(disk: &SimDisk, run: u64, model: &mut Model) -> Life {
    let mut opening = Opening::start(disk, &options(1, 0, run), Rng::new(run));
    opening.executor.exhaust(disk);
    let (store, recovered) = opening.result().unwrap().unwrap();
    model.recovered(recovered.last_version).unwrap();
    Life::start(disk, store, opening.executor)
}

/// Runs with the `number`-th sync of these kinds failing. Returns whether there was one, and whether the store stopped for
/// it.
fn one_run(kinds: &'static [Kind], errno: i32, number: u64) -> (bool, bool) {
    let (disk, mut model) = (SimDisk::new(number), Model::default());
    let mut life = opened(&disk, 1, &mut model);
    let (syncs, met) = (Cell::new(0), Rc::new(Cell::new(false)));
    let meets = Rc::clone(&met);
    disk.fail_when(move |operation| {
        if !kinds.contains(&operation.kind) {
            return None;
        }
        syncs.set(syncs.get() + 1);
        meets.set(meets.get() || syncs.get() > number);
        (syncs.get() == number + 1).then_some(Fault::Error(errno))
    });
    life.faulty = true;
    for round in 0..ROUNDS_MAX {
        // The spares are made meanwhile, so that the failure is met before the file is used.
        life.quiesce(&mut model).unwrap();
        if life.error().is_some() || life.store.stat().segments >= SEGMENTS {
            break;
        }
        let key = [b'a' + (round % 7) as u8];
        let value = value_of(round, 9000);
        let mutation = Mutation {
            key: &key,
            change: Change::Set(&value),
            condition: Condition::None,
        };
        life.submit(&mut model, &mutation).unwrap();
    }
    let stopped = life.error().is_some();
    for cut in 0..CUTS {
        let (mut model, disk) = (model.clone(), disk.crash());
        let mut life = opened(&disk, 2 + cut, &mut model);
        life.audit(&mut model).unwrap();
    }
    (met.get(), stopped)
}

#[test]
pub(super) fn a_failed_sync_is_never_followed_by_the_use_of_its_file() {
    let mut stops = 0_u64;
    for (kinds, errno) in [
        (&[Kind::Sync, Kind::SyncDirectory][..], libc::EIO),
        (&[Kind::SyncDirectory][..], libc::ENOSPC),
    ] {
        for number in 0.. {
            let (met, stopped) = one_run(kinds, errno, number);
            assert_eq!(met, stopped, "{kinds:?} {number}: failed, and stopped");
            if !met {
                break;
            }
            stops += 1;
        }
    }
    println!("failed syncs: {stops} injected, each stopped the store; lost 0");
    assert!(stops > 10);
}

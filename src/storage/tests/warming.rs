//! What a start brings back into memory: the newest values, as many as there is room for, and how far it says it is.

use std::rc::Rc;

use super::damage::options;
use super::executor::run;
use super::life::{Engine, Life, Opening};
use super::model::Model;
use super::simulation::value_of;
use crate::storage::disk::sim::{Rng, SimDisk};
use crate::storage::{Change, Condition, Lookup, Mutation, StoreOptions};

const KEYS: u8 = 30;

fn opened(disk: &SimDisk, run: u64, cache_bytes: u64) -> Life {
    let options = StoreOptions {
        cache_bytes,
        ..options(1, 0, run)
    };
    let mut opening = Opening::start(disk, &options, Rng::new(run));
    opening.executor.exhaust(disk);
    let (store, _) = opening.result().unwrap().unwrap();
    Life::start(disk, store, opening.executor)
}

/// A log of several segments in which each key is written a few times, and some are deleted in the end.
fn written() -> (SimDisk, Model) {
    let (disk, mut model, mut rng) = (SimDisk::new(1), Model::default(), Rng::new(2));
    let mut life = opened(&disk, 1, 0);
    for round in 0..5 {
        for key in 0..KEYS {
            let value = value_of(rng.next(), rng.index(9000));
            let change = match round == 4 && key % 5 == 0 {
                true => Change::Delete,
                false => Change::Set(&value),
            };
            let mutation = Mutation {
                key: &[key],
                change,
                condition: Condition::None,
            };
            life.submit(&mut model, &mutation).unwrap();
            life.quiesce(&mut model).unwrap();
        }
    }
    (disk.kill(), model)
}

/// Warms a store as a shard does; returns whether there was room for everything.
fn warm(disk: &SimDisk, store: &Rc<Engine>) -> bool {
    let store = Rc::clone(store);
    run(disk, async move {
        for segment in store.warm_order() {
            if !store.warm(segment).await.unwrap() {
                return false;
            }
            let stat = store.stat();
            assert!(stat.warmed_bytes <= stat.warm_total_bytes, "{stat:?}");
        }
        true
    })
}

#[test]
fn all_values_come_back_when_there_is_room_and_are_counted_once() {
    let (disk, model) = written();
    let life = opened(&disk, 2, 10 << 20);
    assert!(warm(&disk, &life.store));
    let present = model.present();
    let bytes: usize = present.iter().map(|(_, value, _)| value.len()).sum();
    let stat = life.store.stat();
    assert_eq!(
        (stat.warmed_bytes, stat.warm_total_bytes),
        (bytes as u64, bytes as u64)
    );
    for (key, value, version) in present {
        let Lookup::Cached(found) = life.store.get(&key) else {
            panic!("{key:?} is not in memory");
        };
        assert_eq!((&*found.value, found.version), (&*value, version));
    }
}

#[test]
fn values_come_back_up_to_the_budget() {
    for budget in [0, 1000, 64 << 10, 80 << 10] {
        let (disk, _) = written();
        let life = opened(&disk, 2, budget);
        assert!(!warm(&disk, &life.store), "{budget} bytes are not enough");
        let stat = life.store.stat();
        assert_eq!(stat.warm_total_bytes, budget);
        assert!(
            stat.warmed_bytes <= budget && stat.cache_bytes <= budget,
            "{stat:?}"
        );
        assert!(
            budget < 64 << 10 || stat.warmed_bytes > budget / 4,
            "{stat:?}"
        );
    }
}

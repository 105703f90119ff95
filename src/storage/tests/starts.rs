//! What a start changes before it serves: it adds a segment, and nothing else.
//!
//! The shards open side by side, and the start is given up when one of them fails. The error that ended it may have taken
//! the names of the others' new files with it, so what was there before must be whole without them.

use super::damage::options;
use super::life::{Life, Opening};
use super::model::Model;
use super::simulation::value_of;
use crate::storage::disk::sim::{Image, Rng, SimDisk};
use crate::storage::{Change, Condition, Mutation, Recovered};

fn opened(disk: &SimDisk, run: u64) -> (Opening, super::life::Engine, Recovered) {
    let mut opening = Opening::start(disk, &options(1, 0, run), Rng::new(run));
    opening.executor.exhaust(disk);
    let (store, recovered) = opening.result().expect("the recovery ends").unwrap();
    (opening, store, recovered)
}

/// Files of a store that was killed, without those that stood ready, and what must be in it.
fn killed_store(model: &mut Model) -> Image {
    let disk = SimDisk::new(1);
    let (opening, store, recovered) = opened(&disk, 1);
    model.recovered(recovered.last_version).unwrap();
    let mut life = Life::start(&disk, store, opening.executor);
    for round in 0..4 {
        let value = value_of(round, 3000);
        let mutation = Mutation {
            key: &[b'a' + round as u8],
            change: Change::Set(&value),
            condition: Condition::None,
        };
        life.submit(model, &mutation).unwrap();
        life.quiesce(model).unwrap();
    }
    let mut image = disk.kill().image();
    let first = image.names().next().expect("there is one").to_owned();
    let spares: Vec<_> = image.names().skip(1).map(str::to_owned).collect();
    assert_eq!(spares.len(), 2, "beside {first}");
    for spare in spares {
        image.remove(&spare);
    }
    image
}

#[test]
fn a_start_leaves_what_was_there_as_it_was_until_all_shards_are_open() {
    let mut model = Model::default();
    let before = killed_store(&mut model);
    let disk = SimDisk::with_image(2, &before);
    let (opening, store, _) = opened(&disk, 2);
    let mut after = disk.image();
    for name in before.names() {
        assert!(after.file(name) == before.file(name), "{name} was changed");
    }
    let new: Vec<_> = after.names().map(str::to_owned).collect();
    assert_eq!(new.len(), 2, "{new:?}");

    // The name of the new file is lost with a start that another shard ended.
    for name in new {
        if before.names().all(|known| known != name) {
            after.remove(&name);
        }
    }
    let again = SimDisk::with_image(3, &after);
    let (recovering, recovered_store, recovered) = opened(&again, 3);
    let mut copy = model.clone();
    copy.recovered(recovered.last_version).unwrap();
    let mut life = Life::start(&again, recovered_store, recovering.executor);
    life.audit(&mut copy).unwrap();

    // When all are open, the room behind the old segment's end is given back.
    let mut life = Life::start(&disk, store, opening.executor);
    life.quiesce(&mut model).unwrap();
    let (image, name) = (disk.image(), before.names().next().expect("the segment"));
    assert!(image.file(name).len() < before.file(name).len());
}

//! Who may take the files that are kept ready.

use std::collections::VecDeque;
use std::rc::Rc;

use super::executor::Executor;
use crate::storage::disk::sim::{Rng, SimDisk};
use crate::storage::segment::{LogId, SegmentId};
use crate::storage::spares::{LogSize, Spares};
use crate::storage::writer::LogIdentity;

#[test]
fn the_last_file_is_for_copies_alone_before_it_is_known_that_the_disk_is_full() {
    let identity = LogIdentity {
        store_uuid: [7; 16],
        log: LogId(0),
        run: 1,
        salt_seed: 1,
        segment_bytes: 64 << 10,
    };
    let log = LogSize {
        segments: 1,
        active: SegmentId(1),
        active_file: 1,
    };
    let disk = SimDisk::new(1);
    let (spares, mut executor) = (
        Rc::new(Spares::new(
            Rc::new(disk.clone()),
            identity,
            VecDeque::new(),
            2,
        )),
        Executor::new(Rng::new(1)),
    );
    let prepare = |executor: &mut Executor| {
        let spares = Rc::clone(&spares);
        executor.spawn(async move { spares.prepare(|| log).await })
    };
    let take = |executor: &mut Executor, with_reserve| {
        let spares = Rc::clone(&spares);
        executor.spawn(async move { spares.take(1, with_reserve).await.map(drop) })
    };
    let first = prepare(&mut executor);
    executor.exhaust(&disk);
    first.take().expect("one is made").unwrap();
    let for_sets = take(&mut executor, false);
    executor.exhaust(&disk);
    assert!(!for_sets.is_ready(), "sets wait for the next one");
    assert!(spares.has_reserve());
    let for_copies = take(&mut executor, true);
    executor.exhaust(&disk);
    for_copies.take().expect("copies do not wait").unwrap();
    assert!(!spares.has_reserve());
}

//! Large writes in their lane, story by story: who waits for whom, in which order they take effect, and what becomes of
//! them when the log ends, fails or is full. (`simulation` parks writes at random moments, through crashes.)

use std::rc::Rc;

use super::damage;
use super::executor::{Executor, Handle, run};
use super::life::{Engine, Life, Opening};
use super::model::Model;
use super::simulation::value_of;
use crate::storage::disk::sim::{Fault, Kind, Rng, SimDisk};
use crate::storage::format::segment_bytes_min;
use crate::storage::{
    Change, Condition, Lookup, Mutation, Outcome, Store, StoreOptions, SubmitError, Submitted,
};

/// Large, by the bounds of production.
const LARGE: usize = 1_200_000;

const SMALL: usize = 100;

/// A segment takes frames of the target, so that bounds are those of production.
fn options(run: u64) -> StoreOptions {
    StoreOptions {
        segment_bytes: segment_bytes_min(LARGE) as u32 + (32 << 20),
        value_len_max: LARGE,
        pending_bytes_max: 64 << 20,
        ..damage::options(1, 0, run)
    }
}

/// What a round says: waiters and what they are told.
type Told = Vec<(u64, Result<Outcome, SubmitError>)>;

/// A store whose log writer is the test.
struct Shard {
    disk: SimDisk,
    store: Rc<Engine>,
    executor: Executor,
}

impl Shard {
    fn open(disk: &SimDisk, options: &StoreOptions) -> Self {
        let store = run(disk, {
            let (disk, options) = (disk.clone(), options.clone());
            async move { Store::open(disk, options).await }
        });
        Self {
            disk: disk.clone(),
            store: Rc::new(store.unwrap().0),
            executor: Executor::new(Rng::new(1)),
        }
    }

    fn submit(&self, id: u64, key: &[u8], change: Change<'_>, condition: Condition) {
        let mutation = Mutation {
            key,
            change,
            condition,
        };
        let submitted = self.store.submit(&mutation, id);
        assert!(matches!(submitted, Submitted::Pending), "{submitted:?}");
    }

    fn set(&self, id: u64, key: &[u8], len: usize) {
        self.submit(id, key, Change::Set(&value_of(id, len)), Condition::None);
    }

    /// Lets in what may go, and begins to write a frame.
    fn begin(&mut self) -> Handle<Told> {
        let store = Rc::clone(&self.store);
        let round = self.executor.spawn(async move {
            let mut told = answers(store.let_in());
            for completion in store.commit().await.unwrap() {
                let result = completion.result.map(|outcome| outcome.into_inner());
                told.push((completion.waiter, result));
            }
            told
        });
        self.executor.settle();
        round
    }

    fn end(&mut self, round: &Handle<Told>) -> Told {
        self.executor.exhaust(&self.disk);
        round.take().expect("nothing else is waited for")
    }

    /// Writes one frame. Returns who was told.
    fn round(&mut self) -> Vec<u64> {
        let round = self.begin();
        waiters(self.end(&round))
    }
}

fn answers(submitted: Vec<Submitted<u64>>) -> Told {
    let answer = |submitted| match submitted {
        Submitted::Pending => panic!("pending is no answer"),
        Submitted::Answered(outcome, id) => (id, Ok(outcome)),
        Submitted::Rejected(error, id) => (id, Err(error)),
    };
    submitted.into_iter().map(answer).collect()
}

fn waiters(told: Told) -> Vec<u64> {
    told.into_iter().map(|(id, _)| id).collect()
}

fn written(version: u64, existed: bool) -> Result<Outcome, SubmitError> {
    Ok(Outcome::Written { version, existed })
}

#[test]
pub(super) fn a_small_write_waits_for_one_large_one_at_most() {
    let mut shard = Shard::open(&SimDisk::new(1), &options(1));
    shard.set(1, b"a", LARGE);
    let round = shard.begin();
    for (id, key) in [(2, b"b"), (3, b"c"), (4, b"d")] {
        shard.set(id, key, LARGE);
    }
    assert_eq!(shard.store.parked(), 3, "they wait while one is written");
    shard.set(5, b"e", SMALL);
    assert_eq!(waiters(shard.end(&round)), [1]);
    let round = shard.begin();
    // A large one has joined the end, and is all that this one waits for.
    shard.set(6, b"f", SMALL);
    assert_eq!(waiters(shard.end(&round)), [5]);
    let round = shard.begin();
    shard.set(7, b"g", SMALL);
    assert_eq!(waiters(shard.end(&round)), [2]);
    assert_eq!(shard.round(), [6, 7]);
    assert_eq!(shard.round(), [3]);
    assert_eq!(shard.round(), [4]);
    assert!(!shard.store.is_staged());
}

#[test]
fn what_is_large_alone_does_not_wait() {
    let mut shard = Shard::open(&SimDisk::new(2), &options(1));
    for id in 1..5 {
        shard.set(id, b"a", LARGE);
        assert_eq!((shard.store.parked(), shard.round()), (0, vec![id]));
    }
}

#[test]
fn writes_of_one_key_keep_their_order_and_are_judged_in_it() {
    let mut shard = Shard::open(&SimDisk::new(3), &options(1));
    let (large, small) = (value_of(1, LARGE), value_of(2, SMALL));
    shard.set(1, b"other", LARGE);
    let round = shard.begin();
    let (large, small) = (Change::Set(&large), Change::Set(&small));
    shard.submit(2, b"k", large, Condition::IfAbsent);
    shard.submit(3, b"k", small, Condition::IfAbsent);
    shard.submit(4, b"k", small, Condition::IfVersion(3));
    shard.submit(5, b"k", Change::Delete, Condition::IfPresent);
    shard.submit(6, b"k", large, Condition::IfPresent);
    assert_eq!(shard.store.parked(), 5, "small ones wait for their key");
    shard.set(7, b"small", SMALL);
    assert_eq!(shard.store.stat().queue_depth, 7);
    assert_eq!(shard.end(&round), [(1, written(1, false))]);
    let mut told = Vec::new();
    while shard.store.is_staged() {
        let round = shard.begin();
        told.extend(shard.end(&round));
    }
    told.sort_by_key(|(id, _)| *id);
    let refused = |current| Ok(Outcome::Refused { current });
    let expected = [
        (2, written(3, false)),
        (3, refused(Some(3))),
        (4, written(4, true)),
        (5, written(5, true)),
        (6, refused(None)),
        (7, written(2, false)),
    ];
    assert_eq!(told, expected);
    assert!(matches!(shard.store.get(b"k"), Lookup::Absent));
}

#[test]
fn neither_small_writes_nor_large_ones_starve() {
    const ROUNDS: u64 = 30;
    let mut shard = Shard::open(&SimDisk::new(4), &options(1));
    let mut told = Vec::new();
    // Rounds as ids of small writes, 1000 and more of large ones: there are always more of both than a frame takes.
    for round in 0..ROUNDS {
        let writing = shard.begin();
        for large in [1000 + 2 * round, 1001 + 2 * round] {
            shard.set(large, format!("large{large}").as_bytes(), LARGE);
        }
        shard.set(round, format!("small{round}").as_bytes(), SMALL);
        told.push(waiters(shard.end(&writing)));
    }
    let round_of = |id: u64| told.iter().position(|ids| ids.contains(&id));
    for id in 0..ROUNDS - 2 {
        let waited = round_of(id).expect("told") as u64 - id;
        assert!(waited <= 2, "small write {id} waited for {waited} frames");
    }
    let large: Vec<_> = told.concat().into_iter().filter(|id| *id >= 1000).collect();
    assert!(large.is_sorted(), "large writes keep their order");
    let at_least = ROUNDS as usize / 2 - 1;
    assert!(
        large.len() >= at_least,
        "{} large writes in {ROUNDS} frames",
        large.len()
    );
}

/// A copy that compaction makes of a large record is as long for the device as a large write.
#[test]
fn a_large_copy_has_its_turn_between_two_large_writes() {
    let short = StoreOptions {
        segment_bytes: (segment_bytes_min(LARGE) + 4 * LARGE as u64).next_multiple_of(1 << 20)
            as u32,
        ..options(1)
    };
    let mut shard = Shard::open(&SimDisk::new(9), &short);
    let store = Rc::clone(&shard.store);
    shard.executor.spawn(async move {
        loop {
            store.prepare().await.unwrap();
        }
    });
    shard.set(1, b"stays", LARGE);
    assert_eq!(shard.round(), [1]);
    for id in 2..8 {
        shard.set(id, b"goes", LARGE);
        assert_eq!(shard.round(), [id]);
    }
    assert_eq!(shard.store.stat().segments, 2);
    shard.set(10, b"a", LARGE);
    let store = Rc::clone(&shard.store);
    let writing = shard.executor.spawn(async move {
        let told = store.commit().await.unwrap().len();
        // As the log writer does, before anybody else has heard of the commit.
        (told, store.let_in().len(), store.parked())
    });
    shard.executor.settle();
    shard.set(11, b"b", LARGE);
    shard.set(12, b"c", LARGE);
    let store = Rc::clone(&shard.store);
    let step = shard
        .executor
        .spawn(async move { store.compact(&mut None).await });
    shard.executor.settle();
    while shard.disk.step_where(|next| next.kind == Kind::Read) {
        shard.executor.settle();
    }
    let copied = |shard: &Shard| shard.store.stat().compacted_records;
    assert_eq!(copied(&shard), 0, "it waits for the write in flight");
    shard.executor.exhaust(&shard.disk);
    assert_eq!(writing.take(), Some((1, 0, 2)), "both writes wait for it");
    assert_eq!(copied(&shard), 1);
    assert_eq!(shard.round(), [] as [u64; 0], "the copy alone");
    assert!(step.take().expect("the copy is durable").is_ok());
    assert_eq!(shard.round(), [11]);
    assert_eq!(shard.round(), [12]);
}

#[test]
fn large_writes_rest_only_while_there_are_small_ones() {
    let mut shard = Shard::open(&SimDisk::new(10), &options(1));
    let large = |shard: &mut Shard, id: u64| {
        shard.set(id, format!("large{id}").as_bytes(), LARGE);
    };
    large(&mut shard, 1);
    assert_eq!(shard.round(), [1]);
    assert!(!shard.store.take_due_rest(), "there are no small ones");
    shard.set(2, b"small", SMALL);
    assert_eq!(shard.round(), [2]);
    assert!(!shard.store.take_due_rest(), "nothing large was written");
    large(&mut shard, 3);
    large(&mut shard, 4);
    assert_eq!(shard.round(), [3]);
    assert!(shard.store.take_due_rest());
    assert!(!shard.store.take_due_rest(), "once for each");
    shard.store.rest_large(true);
    assert!(!shard.store.is_staged(), "nothing may be written");
    shard.set(5, b"small", SMALL);
    assert_eq!(shard.round(), [5], "it waits for nothing large");
    shard.store.rest_large(false);
    assert_eq!(shard.round(), [4]);
    shard.store.rest_large(true);
    large(&mut shard, 6);
    assert_eq!(shard.store.parked(), 1, "one alone rests as well");
    shard.store.rest_large(false);
    assert_eq!(shard.round(), [6]);
    // Without small ones they are forgotten.
    let mut rests = 0;
    for id in 7..20 {
        large(&mut shard, id);
        assert_eq!(shard.round(), [id]);
        rests += u32::from(shard.store.take_due_rest());
    }
    assert_eq!(rests, 2, "two more, after four in all");
    shard.set(20, b"small", SMALL);
    assert_eq!(shard.round(), [20]);
    shard.store.rest_large(true);
    large(&mut shard, 21);
    let store = Rc::clone(&shard.store);
    let (completions, _) = run(&shard.disk, async move { store.close().await.unwrap() });
    let completed: Vec<_> = completions.iter().map(|done| done.waiter).collect();
    assert_eq!(completed, [21], "a log that ends has no rests");
}

#[test]
fn what_waits_in_the_lane_counts_as_pending() {
    let few = StoreOptions {
        pending_bytes_max: 3 * LARGE + 1000,
        ..options(1)
    };
    let mut shard = Shard::open(&SimDisk::new(5), &few);
    for (id, key) in [(1, b"a"), (2, b"b"), (3, b"c")] {
        shard.set(id, key, LARGE);
    }
    let stat = shard.store.stat();
    assert_eq!((shard.store.parked(), stat.queue_depth), (2, 3));
    for len in [LARGE, 1000] {
        let mutation = Mutation {
            key: b"d",
            change: Change::Set(&value_of(4, len)),
            condition: Condition::None,
        };
        match shard.store.submit(&mutation, 4) {
            Submitted::Rejected(SubmitError::Overloaded { pending, .. }, 4) => {
                assert_eq!(pending as u64, stat.queue_bytes);
            }
            submitted => panic!("accepted beyond the limit: {submitted:?}"),
        }
    }
    let told: Vec<_> = (0..3).map(|_| shard.round()).collect();
    assert_eq!(told, [[1], [2], [3]]);
    let stat = shard.store.stat();
    assert_eq!((stat.queue_depth, stat.queue_bytes), (0, 0));
}

#[test]
fn a_log_that_ends_has_the_lane_in_it() {
    let disk = SimDisk::new(6);
    let mut shard = Shard::open(&disk, &options(1));
    for (id, key) in [(1, b"a"), (2, b"b"), (3, b"c")] {
        shard.set(id, key, LARGE);
    }
    // Nothing has to be written for it.
    let large = value_of(4, LARGE);
    shard.submit(4, b"z", Change::Set(&large), Condition::IfPresent);
    let store = Rc::clone(&shard.store);
    let (completions, ended) = run(&disk, async move { store.close().await.unwrap() });
    let completed: Vec<_> = completions.iter().map(|done| done.waiter).collect();
    let refused = Ok(Outcome::Refused { current: None });
    assert_eq!(
        (completed, answers(ended)),
        (vec![1, 2, 3], vec![(4, refused)])
    );
    shard = Shard::open(&disk.kill(), &options(2));
    for (id, key) in [(1, b"a"), (2, b"b"), (3, b"c")] {
        let Lookup::OnDisk(on_disk) = shard.store.get(key) else {
            panic!("the value of {id} is not on disk");
        };
        let store = Rc::clone(&shard.store);
        let found = run(
            &shard.disk,
            async move { store.read(on_disk).await.unwrap() },
        );
        assert_eq!(found.value.to_vec(), value_of(id, LARGE));
    }
}

#[test]
fn after_a_failed_commit_nothing_of_the_lane_is_answered() {
    let disk = SimDisk::new(7);
    let shard = Shard::open(&disk, &options(1));
    for (id, key) in [(1, b"a"), (2, b"b")] {
        shard.set(id, key, LARGE);
    }
    let large = value_of(3, LARGE);
    shard.submit(3, b"c", Change::Set(&large), Condition::IfPresent);
    disk.fail_when(|operation| (operation.kind == Kind::Write).then_some(Fault::Error(libc::EIO)));
    let store = Rc::clone(&shard.store);
    let failed = run(&disk, async move { store.commit().await.is_err() });
    assert!(failed && shard.store.let_in().is_empty());
    assert_eq!(shard.store.parked(), 2);
    let store = Rc::clone(&shard.store);
    assert!(run(&disk, async move { store.close().await.is_err() }));
}

fn live(disk: &SimDisk, options: &StoreOptions, model: &mut Model) -> Life {
    let mut opening = Opening::start(disk, options, Rng::new(options.run));
    opening.executor.exhaust(disk);
    let (store, recovered) = opening.result().unwrap().unwrap();
    model.recovered(recovered.last_version).unwrap();
    Life::start(disk, store, opening.executor)
}

fn submit_many(life: &mut Life, model: &mut Model, count: u8, len: usize) {
    for number in 0..count {
        let mutation = Mutation {
            key: &[number],
            change: Change::Set(&value_of(number.into(), len)),
            condition: Condition::None,
        };
        life.submit(model, &mutation).unwrap();
    }
}

#[test]
fn a_crash_with_a_full_lane_loses_nothing_that_was_acknowledged() {
    for seed in 0..20 {
        let (disk, mut model) = (SimDisk::new(seed), Model::default());
        let mut life = live(&disk, &options(1), &mut model);
        life.quiesce(&mut model).unwrap();
        submit_many(&mut life, &mut model, 20, LARGE);
        for _ in 0..seed {
            life.executor.settle();
            life.collect(&mut model).unwrap();
            disk.step();
        }
        assert!(life.store.parked() > 0, "seed {seed}: the lane is not full");
        let disk = disk.crash();
        life = live(&disk, &options(2), &mut model);
        life.audit(&mut model).unwrap();
        submit_many(&mut life, &mut model, 20, LARGE);
        life.quiesce(&mut model).unwrap();
        life.audit(&mut model).unwrap();
    }
}

#[test]
fn what_waits_in_the_lane_is_told_that_the_disk_is_full() {
    // Segments are small here, and so is what counts as large.
    let (options, disk, mut model) = (damage::options(1, 0, 1), SimDisk::new(8), Model::default());
    let mut life = live(&disk, &options, &mut model);
    life.quiesce(&mut model).unwrap();
    let files = disk.image();
    let used: usize = files.names().map(|name| files.file(name).len()).sum();
    disk.set_capacity(Some(used as u64 + 8192));
    submit_many(&mut life, &mut model, 100, options.value_len_max);
    assert!(life.store.parked() > 50);
    life.quiesce(&mut model).unwrap();
    assert_eq!(
        (life.waiting(), life.store.parked()),
        (0, 0),
        "all are told"
    );
    let written = model.records();
    assert!(written > 0 && written < 100, "{written} were written");
    life.audit(&mut model).unwrap();
}

#[test]
fn a_delete_that_is_large_by_its_key_takes_effect() {
    let options = StoreOptions {
        segment_bytes: 1 << 20,
        value_len_max: 64 << 10,
        pending_bytes_max: 64 << 20,
        ..damage::options(1, 0, 1)
    };
    let mut shard = Shard::open(&SimDisk::new(9), &options);
    let key = vec![b'k'; usize::from(u16::MAX)];
    shard.submit(1, &key, Change::Set(b"value"), Condition::None);
    shard.submit(2, &key, Change::Delete, Condition::None);
    assert_eq!(shard.store.parked(), 1, "the delete is large");
    assert_eq!([shard.round(), shard.round()], [[1], [2]]);
    assert!(matches!(shard.store.get(&key), Lookup::Absent));
}

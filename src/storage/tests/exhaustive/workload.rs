//! Small workloads: what they are made of, where they begin, and how their operations of the disk overlap.

use crate::storage::disk::sim::{Image, Kind, Operation, Rng, SimDisk};
use crate::storage::format::segment_bytes_min;
use crate::storage::manifest::Generation;
use crate::storage::segment::LogId;
use crate::storage::tests::life::{Life, Opening};
use crate::storage::tests::model::Model;
use crate::storage::tests::simulation::value_of;
use crate::storage::{Change, Condition, Mutation, StoreOptions};

/// A value of two blocks; segments are the smallest that are legal with it.
const VALUE_LEN_MAX: usize = 8000;

/// Every key that a workload writes.
pub(super) const KEYS: [&[u8]; 3] = [b"a", b"b", b"old"];

/// One step of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The first start.
    Open,
    /// Set a, in one sector.
    ShortA,
    /// Set b, in all sectors of one block.
    BlockB,
    /// Set a, in two blocks.
    LongA,
    DeleteA,
    /// Set b unless it is there.
    BIfAbsent,
    /// Compaction, until there is nothing worth it.
    Compact,
    /// A clean stop, and a start.
    Reopen,
    /// `kill -9`, and a start.
    KillAndOpen,
}

impl Step {
    pub(super) const ALL: [Step; 8] = [
        Step::ShortA,
        Step::BlockB,
        Step::LongA,
        Step::DeleteA,
        Step::BIfAbsent,
        Step::Compact,
        Step::Reopen,
        Step::KillAndOpen,
    ];
}

/// How operations of the disk follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    /// Each step is acknowledged, and everything in the background done, before the next one begins.
    OneByOne,
    /// Steps begin at once; operations complete in the order of issue.
    OldestFirst,
    /// The same, in the reverse order: a commit is overtaken by everything in the background.
    NewestFirst,
}

/// Where a workload begins.
pub(super) struct Base {
    pub(super) title: &'static str,
    image: Image,
    model: Model,
}

pub(super) fn options(run: u64, served: bool) -> StoreOptions {
    StoreOptions {
        store_uuid: [7; 16],
        shard: 0,
        generation: Generation {
            first_log: LogId(0),
            shards: 1,
        },
        previous: None,
        run,
        salt_seed: run * 1_000_003,
        segment_bytes: segment_bytes_min(VALUE_LEN_MAX) as u32,
        value_len_max: VALUE_LEN_MAX,
        cache_bytes: 0,
        pending_bytes_max: 1 << 20,
        dead_bytes_min: 0,
        served,
    }
}

impl Base {
    /// An empty directory.
    pub(super) fn empty() -> Self {
        Self {
            title: "an empty directory",
            image: Image::default(),
            model: Model::default(),
        }
    }

    /// Two segments, the first one full of dead records but for one, the second one with room for one block: the next
    /// writes need another segment, and compaction copies, retires and uses a file again.
    pub(super) fn used() -> Self {
        let disk = SimDisk::new(1);
        let (mut model, mut number) = (Model::default(), 0);
        let mut life = open(&disk, 1, &mut model);
        let mut set = |life: &mut Life, model: &mut Model, key: &[u8], len| {
            number += 1;
            submit(life, model, key, Change::Set(&value_of(number, len)));
            life.quiesce(model).unwrap();
        };
        set(&mut life, &mut model, b"old", 300);
        while life.store.stat().segments < 2 {
            set(&mut life, &mut model, b"a", 5000);
        }
        while life.store.log.room() > 4 * 4096 {
            set(&mut life, &mut model, b"b", 5000);
        }
        while life.store.log.room() > 4096 {
            set(&mut life, &mut model, b"b", 10);
        }
        Self {
            title: "a used store",
            image: disk.image(),
            model,
        }
    }
}

fn submit(life: &mut Life, model: &mut Model, key: &[u8], change: Change<'_>) {
    let mutation = Mutation {
        key,
        change,
        condition: Condition::None,
    };
    life.submit(model, &mutation).unwrap();
}

fn open(disk: &SimDisk, run: u64, model: &mut Model) -> Life {
    let mut opening = Opening::start(disk, &options(run, false), Rng::new(run));
    opening.executor.exhaust(disk);
    let (store, recovered) = opening.result().unwrap().unwrap();
    model.recovered(recovered.last_version).unwrap();
    let mut life = Life::start(disk, store, opening.executor);
    life.quiesce(model).unwrap();
    life
}

/// Is shown every moment: the disk, the model, whether the store was ever open, and whether anything is different since
/// the moment before.
pub(super) type Look<'a> = dyn FnMut(&SimDisk, &Model, bool, bool) -> Result<(), String> + 'a;

/// A workload under way.
pub(super) struct Workload {
    schedule: Schedule,
    disk: SimDisk,
    model: Model,
    life: Option<Life>,
    run: u64,
    served: bool,
    next_value: u64,
    shown: Shown,
}

/// What the last moment that was shown is known by: while it is the same, a cut leaves the same.
type Shown = Option<(Vec<u64>, u64, u64)>;

impl Workload {
    pub(super) fn start(base: &Base, schedule: Schedule) -> Self {
        Self {
            schedule,
            disk: SimDisk::with_image(1, &base.image),
            model: base.model.clone(),
            life: None,
            // Above that of the base.
            run: 1,
            served: base.model.records() > 0,
            next_value: 1000,
            shown: None,
        }
    }

    pub(super) fn trace(&self) -> String {
        self.disk.trace()
    }

    /// Takes one step, and shows `look` the moments that follow. After the last one everything is run to its end.
    pub(super) fn take(
        &mut self,
        step: Step,
        is_last: bool,
        look: &mut Look<'_>,
    ) -> Result<(), String> {
        self.disk.note(|| format!("{step:?}"));
        let value = |workload: &mut Self, len| {
            workload.next_value += 1;
            value_of(workload.next_value, len)
        };
        match step {
            Step::ShortA => {
                let value = value(self, 20);
                self.write(b"a", Change::Set(&value), Condition::None)?;
            }
            Step::BlockB => {
                let value = value(self, 3990);
                self.write(b"b", Change::Set(&value), Condition::None)?;
            }
            Step::LongA => {
                let value = value(self, VALUE_LEN_MAX);
                self.write(b"a", Change::Set(&value), Condition::None)?;
            }
            Step::DeleteA => self.write(b"a", Change::Delete, Condition::None)?,
            Step::BIfAbsent => {
                let value = value(self, 20);
                self.write(b"b", Change::Set(&value), Condition::IfAbsent)?;
            }
            Step::Compact => self.life().compact(),
            Step::Open => self.open(look)?,
            Step::Reopen => {
                self.drive(look)?;
                self.life().close();
                self.drive(look)?;
                self.kill_and_open(look)?;
            }
            Step::KillAndOpen => self.kill_and_open(look)?,
        }
        match is_last || self.schedule == Schedule::OneByOne {
            true => self.drive(look),
            false => self.begin(),
        }
    }

    fn life(&mut self) -> &mut Life {
        self.life.as_mut().expect("the first step opens the store")
    }

    fn write(
        &mut self,
        key: &[u8],
        change: Change<'_>,
        condition: Condition,
    ) -> Result<(), String> {
        let mutation = Mutation {
            key,
            change,
            condition,
        };
        let life = self.life.as_mut().expect("the first step opens the store");
        life.submit(&mut self.model, &mutation)
    }

    /// Everything that can begin does.
    fn begin(&mut self) -> Result<(), String> {
        let life = self.life.as_mut().expect("the first step opens the store");
        life.executor.settle();
        life.collect(&mut self.model)
    }

    /// Runs until nothing moves any more.
    fn drive(&mut self, look: &mut Look<'_>) -> Result<(), String> {
        loop {
            self.begin()?;
            self.show(look)?;
            if !complete_one(&self.disk, self.schedule) {
                break;
            }
        }
        match self.life().waiting() {
            0 => Ok(()),
            waiting => Err(format!("stuck: {waiting} writes wait and nothing moves")),
        }
    }

    fn show(&mut self, look: &mut Look<'_>) -> Result<(), String> {
        let (floor, last) = (self.model.floor(), self.model.last_version());
        let now = Some((changes_in_flight(&self.disk), floor, last));
        let is_new = now != self.shown;
        self.shown = now;
        look(&self.disk, &self.model, self.served, is_new)
    }

    fn kill_and_open(&mut self, look: &mut Look<'_>) -> Result<(), String> {
        self.life = None;
        self.disk = self.disk.kill();
        self.shown = None;
        self.open(look)
    }

    fn open(&mut self, look: &mut Look<'_>) -> Result<(), String> {
        self.run += 1;
        let options = options(self.run, self.served);
        let mut opening = Opening::start(&self.disk, &options, Rng::new(self.run));
        let result = loop {
            opening.executor.settle();
            if let Some(result) = opening.result() {
                break result;
            }
            self.show(look)?;
            if !complete_one(&self.disk, self.schedule) {
                return Err("stuck: the recovery waits and nothing moves".to_owned());
            }
        };
        let (store, recovered) =
            result.map_err(|error| format!("the store does not open: {error}"))?;
        self.model.recovered(recovered.last_version)?;
        self.served = true;
        self.life = Some(Life::start(&self.disk, store, opening.executor));
        Ok(())
    }
}

fn complete_one(disk: &SimDisk, schedule: Schedule) -> bool {
    let in_flight = disk.in_flight();
    let next = match schedule {
        Schedule::OneByOne | Schedule::OldestFirst => in_flight.first(),
        Schedule::NewestFirst => in_flight.last(),
    };
    next.is_some_and(|next| disk.step_where(|operation| operation.number == next.number))
}

/// The operations in flight that change anything, by their numbers: as long as they are the same, so is what a power cut
/// may leave.
pub(super) fn changes_in_flight(disk: &SimDisk) -> Vec<u64> {
    let changes = |operation: &Operation| match operation.kind {
        Kind::Open | Kind::List | Kind::Read | Kind::Close => None,
        Kind::Create | Kind::Remove | Kind::SyncDirectory => Some(operation.number),
        Kind::Write | Kind::Sync | Kind::Truncate => Some(operation.number),
    };
    disk.in_flight().iter().filter_map(changes).collect()
}

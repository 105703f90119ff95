//! One life of an engine on the simulated disk, from the end of its recovery to its end: a client that submits and reads,
//! and the comparison of everything that comes back with the model. (`tasks` drives the engine.)
//!
//! Nothing here decides what happens next; `simulation` and the tests of single stories do.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::executor::{Executor, Handle};
use super::model::{Entries, Model, Prediction, Query};
use super::tasks::{Event, Reports, drive};
use crate::storage::disk::sim::{Rng, SimDisk};
use crate::storage::{
    Change, Completion, Condition, Lookup, Mutation, PrefixQuery, Recovered, StorageError, Store,
    StoreOptions, SubmitError, Submitted, Verified, verify,
};

pub(super) type Engine = Store<SimDisk, u64>;

/// A write that waits in the lane.
struct Parked {
    id: u64,
    key: Vec<u8>,
    /// `None`: a delete.
    value: Option<Vec<u8>>,
    condition: Condition,
}

impl Parked {
    fn mutation(&self) -> Mutation<'_> {
        Mutation {
            key: &self.key,
            change: self.value.as_deref().map_or(Change::Delete, Change::Set),
            condition: self.condition,
        }
    }
}

/// A value and its version, if the key is present.
type FoundValue = Option<(Vec<u8>, u64)>;

/// A read under way: what was asked, and where the floor was.
struct Read {
    key: Vec<u8>,
    since: u64,
    found: Handle<Result<FoundValue, StorageError>>,
}

struct Paging {
    query: Query,
    since: u64,
    found: Handle<Result<(Entries, bool), StorageError>>,
}

pub(super) struct Life {
    pub(super) disk: SimDisk,
    pub(super) store: Rc<Engine>,
    pub(super) executor: Executor,
    reports: Rc<Reports>,
    waiting: BTreeMap<u64, Prediction>,
    /// Those for which there is no prediction yet: they take effect when they are let in.
    parked: VecDeque<Parked>,
    /// Writes that had to wait in the lane, for the figures.
    pub(super) parked_ever: u64,
    reads: Vec<Read>,
    pages: Vec<Paging>,
    next_id: u64,
    /// Whether an error of an operation is expected; without it one is a failure of the test.
    pub(super) faulty: bool,
}

/// Checks the log of a shard that has nothing to do with others.
pub(super) async fn verify_alone(
    disk: &SimDisk,
    options: &StoreOptions,
) -> Result<Verified, StorageError> {
    let shard = options.shard;
    let (checking, handovers) = verify(disk, options, &|_| shard, |_| {}).await?;
    let own = usize::from(shard);
    Ok(checking.finish(&handovers[own..=own]))
}

/// A store being opened, which a crash may cut.
pub(super) struct Opening {
    pub(super) executor: Executor,
    result: Handle<Result<(Engine, Recovered), StorageError>>,
}

impl Opening {
    pub(super) fn start(disk: &SimDisk, options: &StoreOptions, rng: Rng) -> Self {
        let mut executor = Executor::new(rng);
        let (disk, options) = (disk.clone(), options.clone());
        let result = executor.spawn(async move { Store::open(disk, options).await });
        Self { executor, result }
    }

    pub(super) fn is_done(&self) -> bool {
        self.result.is_ready()
    }

    /// The end of it, once.
    pub(super) fn result(&self) -> Option<Result<(Engine, Recovered), StorageError>> {
        self.result.take()
    }
}

impl Life {
    /// Starts the tasks that drive an open store.
    pub(super) fn start(disk: &SimDisk, store: Engine, mut executor: Executor) -> Self {
        let store = Rc::new(store);
        let reports = drive(&store, &mut executor);
        Self {
            disk: disk.clone(),
            store,
            executor,
            reports,
            waiting: BTreeMap::new(),
            parked: VecDeque::new(),
            parked_ever: 0,
            reads: Vec::new(),
            pages: Vec::new(),
            next_id: 0,
            faulty: false,
        }
    }

    /// Submits a write and checks what the engine says at once.
    pub(super) fn submit(
        &mut self,
        model: &mut Model,
        mutation: &Mutation<'_>,
    ) -> Result<(), String> {
        self.next_id += 1;
        let id = self.next_id;
        let prediction = model.predict(mutation);
        let behind_its_key = self.parked.iter().any(|parked| parked.key == mutation.key);
        let submitted = self.store.submit(mutation, id);
        let is_parked = self.store.parked() > self.parked.len();
        if behind_its_key && !is_parked && !matches!(submitted, Submitted::Rejected(..)) {
            return Err("a write passed an earlier one of its key".to_owned());
        }
        if self.commit_failed() && !matches!(submitted, Submitted::Rejected(..)) {
            return Err("a write was accepted after a commit that failed".to_owned());
        }
        if is_parked {
            self.parked_ever += 1;
            self.parked.push_back(Parked {
                id,
                key: mutation.key.to_vec(),
                value: match mutation.change {
                    Change::Set(value) => Some(value.to_vec()),
                    Change::Delete => None,
                },
                condition: mutation.condition,
            });
            return Ok(());
        }
        self.entered(model, mutation, (id, prediction), submitted)
    }

    /// A write took effect, or the engine says at once why not.
    fn entered(
        &mut self,
        model: &mut Model,
        mutation: &Mutation<'_>,
        (id, prediction): (u64, Prediction),
        submitted: Submitted<u64>,
    ) -> Result<(), String> {
        match submitted {
            Submitted::Pending => {
                model.submit(mutation);
                self.waiting.insert(id, prediction);
                Ok(())
            }
            Submitted::Answered(outcome, waiter) => {
                if (outcome, waiter) != (prediction.outcome, id) {
                    return Err(format!(
                        "answered {outcome:?} to {waiter}, expected {:?} to {id}",
                        prediction.outcome
                    ));
                }
                model.confirm(prediction.rests_on);
                Ok(())
            }
            Submitted::Rejected(error, waiter) => self.rejected(&error, waiter == id),
        }
    }

    /// What left the lane took effect in the order in which it came.
    fn let_in(
        &mut self,
        model: &mut Model,
        left: usize,
        mut answers: VecDeque<Submitted<u64>>,
    ) -> Result<(), String> {
        while self.parked.len() > left {
            let parked = self
                .parked
                .pop_front()
                .expect("there are more than are left");
            let of = |submitted: &Submitted<u64>| match submitted {
                Submitted::Pending => None,
                Submitted::Answered(_, id) | Submitted::Rejected(_, id) => Some(*id),
            };
            let answer = answers.pop_front_if(|answer| of(answer) == Some(parked.id));
            let mutation = parked.mutation();
            let predicted = (parked.id, model.predict(&mutation));
            let submitted = answer.unwrap_or(Submitted::Pending);
            self.entered(model, &mutation, predicted, submitted)?;
        }
        match answers.front() {
            None => Ok(()),
            Some(answer) => Err(format!("out of turn: {answer:?}")),
        }
    }

    fn rejected(&self, error: &SubmitError, own_waiter: bool) -> Result<(), String> {
        let expected = match error {
            SubmitError::Overloaded { pending, .. } => *pending > 0,
            SubmitError::OutOfSpace => self.reports.no_room.get() > 0,
            SubmitError::Poisoned => self.error().is_some() || self.reports.closed.get(),
        };
        if expected && own_waiter {
            Ok(())
        } else {
            Err(format!("rejected for no reason: {error}"))
        }
    }

    /// Starts a read.
    pub(super) fn read(&mut self, model: &Model, key: &[u8]) {
        let (store, lookup) = (Rc::clone(&self.store), self.store.get(key));
        let found = self.executor.spawn(async move {
            let found = match lookup {
                Lookup::Absent => return Ok(None),
                Lookup::Cached(found) => found,
                Lookup::OnDisk(on_disk) => store.read(on_disk).await?,
            };
            Ok(Some((found.value.to_vec(), found.version)))
        });
        self.reads.push(Read {
            key: key.to_vec(),
            since: model.floor(),
            found,
        });
    }

    /// Starts a page.
    pub(super) fn page(&mut self, model: &Model, query: Query) {
        let (store, asked) = (Rc::clone(&self.store), query.clone());
        let found = self.executor.spawn(async move {
            let query = PrefixQuery {
                prefix: &asked.prefix,
                after: &asked.after,
                max_entries: asked.max_entries,
                max_bytes: asked.max_bytes,
                keys_only: asked.keys_only,
            };
            let page = store.page(&query).await?;
            let entries = page.entries.into_iter().map(|entry| {
                (
                    entry.key.to_vec(),
                    entry.value.map(|value| value.to_vec()),
                    entry.version,
                )
            });
            Ok((entries.collect(), page.more))
        });
        self.pages.push(Paging {
            query,
            since: model.floor(),
            found,
        });
    }

    /// Takes in what the engine's tasks and the reads have to say. Called after every step, so that nothing overtakes
    /// a report.
    pub(super) fn collect(&mut self, model: &mut Model) -> Result<(), String> {
        let events = std::mem::take(&mut *self.reports.events.borrow_mut());
        for event in events {
            match event {
                Event::LetIn { left, answers } => self.let_in(model, left, answers)?,
                Event::Completed(completion) => self.complete(model, completion)?,
            }
        }
        for index in (0..self.reads.len()).rev() {
            let Some(found) = self.reads[index].found.take() else {
                continue;
            };
            let read = self.reads.swap_remove(index);
            match found {
                Ok(found) => {
                    let seen = found
                        .as_ref()
                        .map(|(value, version)| (value.as_slice(), *version));
                    model.observe(&read.key, seen, read.since)?;
                }
                Err(error) => self.expect_error("a read", &error)?,
            }
        }
        for index in (0..self.pages.len()).rev() {
            let Some(found) = self.pages[index].found.take() else {
                continue;
            };
            let paging = self.pages.swap_remove(index);
            match found {
                Ok((entries, more)) => {
                    model.observe_page(&paging.query, &entries, more, paging.since)?
                }
                Err(error) => self.expect_error("a page", &error)?,
            }
        }
        match &*self.reports.error.borrow() {
            Some(error) => self.expect_error("the engine", error),
            None => Ok(()),
        }
    }

    fn complete(&mut self, model: &mut Model, completion: Completion<u64>) -> Result<(), String> {
        let Completion { waiter, result } = completion;
        let prediction = self
            .waiting
            .remove(&waiter)
            .ok_or_else(|| format!("operation {waiter} completed twice"))?;
        match result {
            Ok(outcome) if *outcome.get() == prediction.outcome => {
                model.confirm(prediction.rests_on);
                Ok(())
            }
            Ok(outcome) => Err(format!(
                "operation {waiter} ended with {:?}, expected {:?}",
                outcome.get(),
                prediction.outcome
            )),
            Err(SubmitError::OutOfSpace) if self.reports.no_room.get() > 0 => {
                if prediction.rests_on != 0 && prediction.rests_on <= model.floor() {
                    return Err(format!(
                        "operation {waiter} was given up, but it is durable"
                    ));
                }
                model.give_up();
                Ok(())
            }
            Err(error) => Err(format!("operation {waiter} failed for no reason: {error}")),
        }
    }

    fn expect_error(&self, of: &str, error: &StorageError) -> Result<(), String> {
        let injected = matches!(error, StorageError::Io { .. } | StorageError::Poisoned);
        if self.faulty && injected {
            Ok(())
        } else {
            Err(format!("{of} failed: {error}"))
        }
    }

    /// The error that ended the engine's tasks, in words.
    pub(super) fn error(&self) -> Option<String> {
        self.reports
            .error
            .borrow()
            .as_ref()
            .map(ToString::to_string)
    }

    /// Whether a commit failed.
    pub(super) fn commit_failed(&self) -> bool {
        self.reports.commit_failed.get()
    }

    /// Operations accepted and not completed.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len() + self.parked.len()
    }

    /// Attempts to make a spare that found no room.
    pub(super) fn no_room(&self) -> u64 {
        self.reports.no_room.get()
    }

    /// Lets the engine try again to make a spare for which there was no room.
    pub(super) fn retry_spare(&self) {
        self.reports.retry.set(true);
        self.reports.changed.notify();
    }

    /// Lets compaction run until it has nothing to do.
    pub(super) fn compact(&self) {
        self.reports.compact();
    }

    /// Lets the scrub take so many steps.
    pub(super) fn scrub(&self, steps: u64) {
        self.reports.scrubs.set(steps);
        self.reports.changed.notify();
    }

    /// Tells the engine to close as soon as the running commit is done.
    pub(super) fn close(&self) {
        self.reports.closing.set(true);
        self.reports.changed.notify();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.reports.closed.get()
    }

    /// Runs until nothing moves any more, and checks that then nothing waits.
    pub(super) fn quiesce(&mut self, model: &mut Model) -> Result<(), String> {
        self.executor.exhaust(&self.disk);
        self.collect(model)?;
        if self.error().is_none()
            && !(self.waiting() == 0 && self.reads.is_empty() && self.pages.is_empty())
        {
            let (writes, reads, pages) = (self.waiting(), self.reads.len(), self.pages.len());
            return Err(format!(
                "stuck: {writes} writes, {reads} reads and {pages} pages wait and nothing moves"
            ));
        }
        Ok(())
    }

    /// Compares everything that the store holds with the model. Nothing may be pending.
    pub(super) fn audit(&mut self, model: &mut Model) -> Result<(), String> {
        for key in model.keys() {
            self.read(model, &key);
        }
        let all = Query {
            prefix: vec![],
            after: vec![],
            max_entries: 1000,
            max_bytes: 1 << 30,
            keys_only: false,
        };
        self.page(model, all);
        self.quiesce(model)?;
        self.audit_many(model)?;
        let stat = self.store.stat();
        let present = model.present();
        let logical: usize = present
            .iter()
            .map(|(key, value, _)| key.len() + value.len())
            .sum();
        let live = logical + present.len() * crate::storage::format::RECORD_HEADER_BYTES;
        let expected = (
            present.len() as u64,
            logical as u64,
            live as u64,
            model.last_version(),
        );
        let found = (
            stat.keys,
            stat.logical_bytes,
            stat.disk_live_bytes,
            stat.last_version,
        );
        if found != expected {
            return Err(format!(
                "stat says {found:?} (keys, logical, live, last version), expected {expected:?}"
            ));
        }
        Ok(())
    }
}

impl Life {
    /// One call for many keys, some of them absent, says what the model says.
    fn audit_many(&self, model: &Model) -> Result<(), String> {
        let mut keys = model.keys();
        keys.push(b"never written".to_vec());
        let asked: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let present = model.present();
        let mut present = present.iter().peekable();
        for (lookup, key) in self.store.get_many(&asked).into_iter().zip(asked) {
            let expected = present.next_if(|(present, ..)| present[..] == *key);
            let right = match (&lookup, expected) {
                (Lookup::Absent, None) => true,
                (Lookup::Cached(found), Some((_, value, version))) => {
                    found.version == *version && found.value[..] == value[..]
                }
                (Lookup::OnDisk(on_disk), Some((_, value, version))) => {
                    on_disk.version == *version && on_disk.value_len() == value.len()
                }
                _ => false,
            };
            if !right {
                return Err(format!("one of many keys, {key:?}, is not as expected"));
            }
        }
        Ok(())
    }
}

//! orlop through its Rust client: one task per request in flight, `--in-flight` of them on each connection.
//!
//! A worker takes an operation from its client's source, waits until it is to start, sends it, waits for the answer,
//! judges and counts it, again. It owns its buffers, so the loop allocates nothing beyond what the client does. After
//! `overloaded` a closed loop goes on with the next operation; an open loop, which may omit none, repeats this one.
//! Started by `Connections`; ends at the end of the window or with a failure.

use std::rc::Rc;
use std::time::{Duration, Instant};

use ::orlop::client::{ClientError, Found, PrefixQuery};
use tokio::task::JoinSet;

use super::{Caller, SharedSource, shared_sources, tell_overdue};
use crate::load::alarm::Alarm;
use crate::load::failure::Failure;
use crate::load::keys::{GROUP, KeySpace, PREFIX_LEN};
use crate::load::mix::Kind;
use crate::load::page::Asked;
use crate::load::run::Run;
use crate::load::source::Source;
use crate::load::sweep;
use crate::load::trace::Operation;
use crate::load::writer::Writer;

/// Pause after `overloaded`: long enough that a refusing server is not spun on.
pub(crate) const OVERLOADED_PAUSE: Duration = Duration::from_millis(1);

/// Most bytes of a scan's page: what the server gives at most.
const SCAN_BYTES_MAX: u32 = ::orlop::limits::PAGE_BYTES_MAX as u32;

/// Lets the workers of all clients work until the window closes.
pub(crate) async fn work(
    run: &Rc<Run>,
    clients: &[Caller],
    source: impl Fn(usize) -> Source,
    alarm: &Rc<Alarm>,
) -> Result<(), Failure> {
    let sources = shared_sources(run, source);
    let mut workers = JoinSet::new();
    for id in 0..run.plan.workers() {
        let client = id / run.plan.in_flight;
        let (source, client) = (sources[client].clone(), clients[client].clone());
        let worker = Worker::new(run.clone(), client, source, id as u32);
        workers.spawn_local(worker.work(alarm.clone()));
    }
    sweep::finish(workers).await?;
    tell_overdue(run, &sources);
    Ok(())
}

struct Worker {
    run: Rc<Run>,
    client: Caller,
    source: SharedSource,
    operation: Operation,
    /// When the operation was due; nothing in a closed loop, where it begins when it is sent.
    due: Option<Instant>,
    writer: Writer,
    /// Keys of the reads, and what the ledger knew when the read began.
    keys: Vec<Vec<u8>>,
    floors: Vec<u64>,
}

impl Worker {
    fn new(run: Rc<Run>, client: Caller, source: SharedSource, id: u32) -> Worker {
        let batch = run.plan.batch;
        Worker {
            run,
            client,
            source,
            operation: Operation::empty(),
            due: None,
            writer: Writer::new(id),
            keys: vec![Vec::new(); batch],
            floors: vec![0; batch],
        }
    }

    async fn work(mut self, alarm: Rc<Alarm>) -> Result<(), Failure> {
        loop {
            let next = self
                .source
                .borrow_mut()
                .next(Instant::now(), &mut self.operation);
            let Some(intended) = next else {
                return Ok(());
            };
            if self.run.plan.rate.is_some() {
                self.due = Some(intended);
                alarm.until(intended).await;
            }
            while !self.perform().await? {
                tokio::time::sleep(OVERLOADED_PAUSE).await;
                if self.due.is_none() {
                    break;
                }
                if !self.run.may_start(Instant::now()) {
                    self.run.overdue(self.operation.kind, intended);
                    return Ok(());
                }
            }
        }
    }

    /// Does the operation once. False: the server was overloaded, and it was not done.
    async fn perform(&mut self) -> Result<bool, Failure> {
        let kind = self.operation.kind;
        let single = self.run.plan.batch == 1;
        match kind {
            Kind::Read if single => self.get().await,
            Kind::Read => self.get_many().await,
            Kind::Write if single => self.set(kind).await,
            Kind::Write => self.write().await,
            Kind::Insert => self.set(kind).await,
            Kind::Prefix => self.get_prefix().await,
            Kind::Scan => self.scan().await,
            Kind::ReadModifyWrite => self.read_modify_write().await,
        }
    }

    /// When the operation counts as begun, if it is sent now.
    fn begun(&self) -> Instant {
        self.due.unwrap_or_else(Instant::now)
    }

    fn prepare_reads(&mut self) {
        for (index, number) in self.operation.numbers.iter().enumerate() {
            self.run.plan.keys.write_key(*number, &mut self.keys[index]);
            self.floors[index] = self.run.ask(|ledger| ledger.floor(*number)).unwrap_or(0);
        }
    }

    async fn get(&mut self) -> Result<bool, Failure> {
        self.prepare_reads();
        let begun = self.begun();
        let answer = self.client.get(&self.keys[0]).await;
        let ended = Instant::now();
        let Some(found) = unless_overloaded(&self.run, answer)? else {
            return Ok(false);
        };
        self.judge_read(0, found.as_ref())?;
        self.run
            .finished(Kind::Read, begun, ended, 1, u64::from(found.is_none()));
        Ok(true)
    }

    async fn get_many(&mut self) -> Result<bool, Failure> {
        self.prepare_reads();
        let begun = self.begun();
        let answer = self.client.get_many(&self.keys).await;
        let ended = Instant::now();
        let Some(lookups) = unless_overloaded(&self.run, answer)? else {
            return Ok(false);
        };
        if lookups.len() != self.keys.len() {
            let text = format!(
                "{} keys were asked for and {} lookups came back",
                self.keys.len(),
                lookups.len()
            );
            return Err(Failure::Server(ClientError::Protocol(text)));
        }
        let mut absent = 0;
        for (index, found) in lookups.iter().enumerate() {
            self.judge_read(index, found.as_ref())?;
            absent += u64::from(found.is_none());
        }
        self.run
            .finished(Kind::Read, begun, ended, lookups.len() as u64, absent);
        Ok(true)
    }

    fn judge_read(&self, index: usize, found: Option<&Found>) -> Result<(), Failure> {
        let found = found.map(|found| (found.value.as_slice(), found.version));
        self.run.judge(1, |ledger| {
            ledger.read(self.operation.numbers[index], self.floors[index], found)
        })
    }

    async fn set(&mut self, kind: Kind) -> Result<bool, Failure> {
        let written = self.set_first().await?;
        if let Some((begun, ended)) = written {
            self.run.finished(kind, begun, ended, 1, 0);
        }
        Ok(written.is_some())
    }

    /// Writes the first key of the operation. Returns from when to when; nothing: the server was overloaded.
    async fn set_first(&mut self) -> Result<Option<(Instant, Instant)>, Failure> {
        let number = self.operation.numbers[0];
        self.writer.prepare(&self.run, std::iter::once(number));
        let begun = self.begun();
        let answer = self
            .client
            .set(self.writer.key(0), self.writer.value(0))
            .await;
        let ended = Instant::now();
        let written = self.writer.answered(&self.run, 0, answer)?;
        Ok(written.then_some((begun, ended)))
    }

    async fn read_modify_write(&mut self) -> Result<bool, Failure> {
        self.prepare_reads();
        let begun = self.begun();
        let answer = self.client.get(&self.keys[0]).await;
        let Some(found) = unless_overloaded(&self.run, answer)? else {
            return Ok(false);
        };
        self.judge_read(0, found.as_ref())?;
        let Some((_, ended)) = self.set_first().await? else {
            return Ok(false);
        };
        let absent = u64::from(found.is_none());
        self.run
            .finished(Kind::ReadModifyWrite, begun, ended, 2, absent);
        Ok(true)
    }

    async fn write(&mut self) -> Result<bool, Failure> {
        self.writer
            .prepare(&self.run, self.operation.numbers.iter().copied());
        let mutations = self.writer.mutations();
        let begun = self.begun();
        let answer = self.client.write(&mutations).await;
        let ended = Instant::now();
        let outcomes = match answer {
            Err(ClientError::Overloaded(_)) => {
                self.writer.refused_whole(&self.run);
                return Ok(false);
            }
            answer => answer?,
        };
        self.writer.count_outcomes(outcomes.len())?;
        let mut written = 0;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            written += u64::from(self.writer.answered(&self.run, index, outcome)?);
        }
        if written > 0 {
            self.run.finished(Kind::Write, begun, ended, written, 0);
        }
        Ok(written > 0)
    }

    async fn get_prefix(&mut self) -> Result<bool, Failure> {
        let group = self.operation.numbers[0] / GROUP;
        let mut prefix = [0; PREFIX_LEN];
        KeySpace::write_prefix(group, &mut prefix);
        let asked = self
            .run
            .ask(|ledger| Asked::new(ledger, self.run.plan.keys, group));
        let begun = self.begun();
        let answer = self.client.get_prefix(&PrefixQuery::new(&prefix)).await;
        let ended = Instant::now();
        let Some(page) = unless_overloaded(&self.run, answer)? else {
            return Ok(false);
        };
        if let Some(asked) = asked {
            let entries = page
                .entries
                .iter()
                .map(|entry| (entry.key.as_slice(), entry.value.as_slice(), entry.version));
            self.run.judge(page.entries.len() as u64, |ledger| {
                asked.judge(ledger, self.run.plan.keys, &prefix, entries, page.more)
            })?;
        }
        self.run
            .finished(Kind::Prefix, begun, ended, page.entries.len() as u64, 0);
        Ok(true)
    }

    async fn scan(&mut self) -> Result<bool, Failure> {
        let first = self.operation.numbers[0];
        // The page begins after a key: the one before the first that is wanted.
        self.keys[0].clear();
        if let Some(before) = first.checked_sub(1) {
            self.run.plan.keys.write_key(before, &mut self.keys[0]);
        }
        let query = PrefixQuery {
            after: &self.keys[0],
            max_entries: self.operation.entries,
            max_bytes: SCAN_BYTES_MAX,
            ..PrefixQuery::new(b"k")
        };
        let begun = self.begun();
        let answer = self.client.get_prefix(&query).await;
        let ended = Instant::now();
        let Some(page) = unless_overloaded(&self.run, answer)? else {
            return Ok(false);
        };
        let entries = page.entries.len() as u64;
        self.run.finished(Kind::Scan, begun, ended, entries, 0);
        Ok(true)
    }
}

/// The answer to a read; nothing when the server was overloaded.
fn unless_overloaded<T>(run: &Run, answer: Result<T, ClientError>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(ClientError::Overloaded(_)) => {
            run.overloaded();
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

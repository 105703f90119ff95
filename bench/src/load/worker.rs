//! One request in flight: chooses an operation, sends it, waits for the answer, judges and counts it, again.
//!
//! Closed loop: the next operation starts when the last one is answered. A worker owns its generator and its buffers,
//! so the loop allocates nothing beyond what the client does. `--in-flight` workers share one connection.
//! Started by `load::run`; ends at the end of the window or with a failure.

use std::time::{Duration, Instant};

use orlop::client::{Client, ClientError, Found, PrefixQuery};

use super::failure::Failure;
use super::keys::{GROUP, KeySpace, PREFIX_LEN};
use super::mix::Kind;
use super::page::Asked;
use super::random::Random;
use super::run::Run;
use super::writer::Writer;

/// Pause after `overloaded`: long enough that a refusing server is not spun on.
pub(crate) const OVERLOADED_PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct Worker {
    run: std::rc::Rc<Run>,
    client: Client,
    random: Random,
    writer: Writer,
    /// Keys of the reads, with their numbers and what the ledger knew when the read began.
    numbers: Vec<u64>,
    keys: Vec<Vec<u8>>,
    floors: Vec<u64>,
}

impl Worker {
    pub(crate) fn new(run: std::rc::Rc<Run>, client: Client, id: u32) -> Worker {
        let random = Random::for_worker(run.plan.seed, u64::from(id));
        let batch = run.plan.batch;
        Worker {
            run,
            client,
            random,
            writer: Writer::new(id),
            numbers: vec![0; batch],
            keys: vec![Vec::new(); batch],
            floors: vec![0; batch],
        }
    }

    /// Works until the window closes.
    pub(crate) async fn work(mut self) -> Result<(), Failure> {
        let single = self.run.plan.batch == 1;
        while self.run.may_start(Instant::now()) {
            let answered = match self.run.plan.mix.next(&mut self.random) {
                Kind::Read if single => self.get().await?,
                Kind::Read => self.get_many().await?,
                Kind::Write if single => self.set().await?,
                Kind::Write => self.write().await?,
                Kind::Prefix => self.get_prefix().await?,
            };
            if !answered {
                tokio::time::sleep(OVERLOADED_PAUSE).await;
            }
        }
        Ok(())
    }

    fn choose_key(&mut self) -> u64 {
        self.run
            .plan
            .distribution
            .next(&mut self.random, self.run.plan.keys.count)
    }

    fn choose_reads(&mut self) {
        for index in 0..self.numbers.len() {
            let number = self.choose_key();
            self.numbers[index] = number;
            self.run.plan.keys.write_key(number, &mut self.keys[index]);
            self.floors[index] = self.run.ask(|ledger| ledger.floor(number)).unwrap_or(0);
        }
    }

    async fn get(&mut self) -> Result<bool, Failure> {
        self.choose_reads();
        let begun = Instant::now();
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
        self.choose_reads();
        let begun = Instant::now();
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
            ledger.read(self.numbers[index], self.floors[index], found)
        })
    }

    async fn set(&mut self) -> Result<bool, Failure> {
        let number = self.choose_key();
        self.writer.prepare(&self.run, std::iter::once(number));
        let begun = Instant::now();
        let answer = self
            .client
            .set(self.writer.key(0), self.writer.value(0))
            .await;
        let ended = Instant::now();
        let written = self.writer.answered(&self.run, 0, answer)?;
        if written {
            self.run.finished(Kind::Write, begun, ended, 1, 0);
        }
        Ok(written)
    }

    async fn write(&mut self) -> Result<bool, Failure> {
        for index in 0..self.numbers.len() {
            self.numbers[index] = self.choose_key();
        }
        self.writer.prepare(&self.run, self.numbers.iter().copied());
        let mutations = self.writer.mutations();
        let begun = Instant::now();
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
        let group = self.choose_key() / GROUP;
        let mut prefix = [0; PREFIX_LEN];
        KeySpace::write_prefix(group, &mut prefix);
        let asked = self
            .run
            .ask(|ledger| Asked::new(ledger, self.run.plan.keys, group));
        let begun = Instant::now();
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

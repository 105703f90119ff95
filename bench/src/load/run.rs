//! The state that everything in one load shares: plan, ledger, logs, counters, and when to stop.
//!
//! One thread, so `Rc`, `Cell` and `RefCell` suffice and an acknowledgement is noted at the moment at which it is read.
//! Owned by `load::run`; held by every driver. Does no I/O except through the ack log.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::ack_log::AckLog;
use super::failure::Failure;
use super::ledger::{Ledger, Wrong};
use super::mix::Kind;
use super::options::Plan;
use super::tally::Tally;

pub(crate) struct Run {
    pub(crate) plan: Plan,
    /// A number which tells this process' values from those of earlier ones.
    pub(crate) id: u32,
    ledger: Option<RefCell<Ledger>>,
    ack_log: Option<RefCell<AckLog>>,
    pub(crate) tally: RefCell<Tally>,
    window: Cell<Window>,
    /// Keys done since the start, preload and warm-up included: grows while the server answers.
    done: Cell<u64>,
    /// Values and pages' entries that were judged.
    pub(crate) checked: Cell<u64>,
    failure: RefCell<Option<Failure>>,
    failed: Notify,
}

/// Operations start until `until`; those that end from `from` to `until` are counted. In a closed loop their latencies
/// are recorded; in an open loop those of the operations that were due then, whenever they end.
#[derive(Debug, Clone, Copy)]
struct Window {
    from: Instant,
    until: Instant,
}

impl Run {
    /// Creates the ack log if the plan wants one.
    pub(crate) fn new(plan: Plan, id: u32) -> Result<Rc<Run>, Failure> {
        let ack_log = plan
            .ack_log
            .as_deref()
            .map(AckLog::create)
            .transpose()
            .map_err(Failure::AckLog)?;
        // Workers, and one preloader per connection.
        let writers = plan.workers() + plan.clients;
        let ledger = plan
            .verify
            .then(|| RefCell::new(Ledger::new(plan.keys, id, writers)));
        let now = Instant::now();
        Ok(Rc::new(Run {
            plan,
            id,
            ledger,
            ack_log: ack_log.map(RefCell::new),
            tally: RefCell::new(Tally::new()),
            window: Cell::new(Window {
                from: now,
                until: now,
            }),
            done: Cell::new(0),
            checked: Cell::new(0),
            failure: RefCell::new(None),
            failed: Notify::new(),
        }))
    }

    /// Opens the measured window after the warm-up, counted from `now`. Returns when it closes.
    pub(crate) fn start_clock(&self, now: Instant) -> Instant {
        let from = now + self.plan.warm_up;
        let until = from + self.plan.duration;
        self.window.set(Window { from, until });
        until
    }

    pub(crate) fn may_start(&self, now: Instant) -> bool {
        now < self.window.get().until
    }

    /// How much of the window has passed.
    pub(crate) fn measured(&self) -> Duration {
        let Window { from, until } = self.window.get();
        Instant::now().min(until).saturating_duration_since(from)
    }

    /// An operation succeeded; in an open loop it began when it was due.
    pub(crate) fn finished(
        &self,
        kind: Kind,
        begun: Instant,
        ended: Instant,
        keys: u64,
        absent: u64,
    ) {
        self.advance(keys);
        let Window { from, until } = self.window.get();
        let within = ended >= from && ended <= until;
        let mut tally = self.tally.borrow_mut();
        if within {
            tally.answered(kind, keys, absent);
        }
        let counts = match self.plan.rate {
            None => within,
            Some(_) => begun >= from && begun < until,
        };
        if counts {
            tally.took(kind, ended - begun);
        }
    }

    /// An operation was due at `due` and was never answered; in a closed loop that is no news.
    pub(crate) fn overdue(&self, kind: Kind, due: Instant) {
        let Window { from, until } = self.window.get();
        if self.plan.rate.is_some() && due >= from && due < until {
            let so_far = until.saturating_duration_since(due);
            self.tally.borrow_mut().overdue(kind, so_far);
        }
    }

    /// Something was answered: the run is alive.
    pub(crate) fn advance(&self, keys: u64) {
        self.done.set(self.done.get() + keys.max(1));
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.get()
    }

    pub(crate) fn overloaded(&self) {
        self.tally.borrow_mut().overloaded += 1;
    }

    /// Runs `judge` on the ledger, if this is a verifying load; `answers` of them were judged when it returns.
    pub(crate) fn judge(
        &self,
        answers: u64,
        judge: impl FnOnce(&mut Ledger) -> Result<(), Wrong>,
    ) -> Result<(), Failure> {
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        judge(&mut ledger.borrow_mut())?;
        self.checked.set(self.checked.get() + answers);
        Ok(())
    }

    /// Asks the ledger, if there is one.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&mut Ledger) -> T) -> Option<T> {
        self.ledger
            .as_ref()
            .map(|ledger| question(&mut ledger.borrow_mut()))
    }

    /// Notes an acknowledged write in the ack log, if there is one.
    pub(crate) fn log(&self, key: &[u8], version: u64, value: &[u8]) -> Result<(), Failure> {
        let Some(log) = &self.ack_log else {
            return Ok(());
        };
        log.borrow_mut()
            .append(key, version, value)
            .map_err(Failure::AckLog)
    }

    pub(crate) fn has_ack_log(&self) -> bool {
        self.ack_log.is_some()
    }

    pub(crate) fn flush_ack_log(&self) -> Result<(), Failure> {
        let Some(log) = &self.ack_log else {
            return Ok(());
        };
        log.borrow_mut().flush().map_err(Failure::AckLog)
    }

    /// Ends the run; the first failure is the one that is told.
    pub(crate) fn fail(&self, failure: Failure) {
        self.failure.borrow_mut().get_or_insert(failure);
        self.failed.notify_one();
    }

    /// Resolves when somebody called `fail`.
    pub(crate) async fn failure(&self) -> Failure {
        loop {
            if let Some(failure) = self.failure.borrow_mut().take() {
                return failure;
            }
            self.failed.notified().await;
        }
    }
}

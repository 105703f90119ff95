//! The tasks of an engine on the simulated disk, as the shard would run them: log writer, compaction, scrub, maker of
//! spares. They tell the test what they see, in its order.
//!
//! Nothing here is checked; `life` compares with the model.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use futures::future::{Either, select};

use super::executor::Executor;
use super::life::Engine;
use crate::storage::signal::Signal;
use crate::storage::{Completion, Outcome, Step, StorageError, SubmitError, Submitted};

/// What becomes of writes, in the order in which the engine says it.
pub(super) enum Event {
    /// The lane was looked at: so many are left in it, and these of those that are not were answered at once.
    LetIn {
        left: usize,
        answers: VecDeque<Submitted<u64>>,
    },
    Completed(Completion<u64>),
}

impl Event {
    /// The writes that ended with it, and how.
    pub(super) fn ends(self) -> Vec<(u64, Result<Outcome, SubmitError>)> {
        let answer = |submitted| match submitted {
            Submitted::Pending => panic!("pending is no answer"),
            Submitted::Answered(outcome, id) => (id, Ok(outcome)),
            Submitted::Rejected(error, id) => (id, Err(error)),
        };
        match self {
            Event::LetIn { answers, .. } => answers.into_iter().map(answer).collect(),
            Event::Completed(Completion { waiter, result }) => {
                vec![(waiter, result.map(|outcome| outcome.into_inner()))]
            }
        }
    }
}

/// Turns of the executor until a rest ends.
const REST_TURNS: usize = 5;

/// What the engine's tasks tell the test.
#[derive(Default)]
pub(super) struct Reports {
    pub(super) events: RefCell<VecDeque<Event>>,
    pub(super) error: RefCell<Option<StorageError>>,
    /// The error is that of a commit: the store may take nothing more.
    pub(super) commit_failed: Cell<bool>,
    pub(super) closing: Cell<bool>,
    pub(super) closed: Cell<bool>,
    /// Attempts to make a spare that ended without room, and whether the next one may begin.
    pub(super) no_room: Cell<u64>,
    pub(super) retry: Cell<bool>,
    /// Whether compaction looks again for something to do.
    compacts: Cell<bool>,
    /// Large writes rest.
    rests: Cell<bool>,
    /// Steps that the scrub takes.
    pub(super) scrubs: Cell<u64>,
    pub(super) changed: Signal,
}

impl Reports {
    /// Lets compaction run until it has nothing to do.
    pub(super) fn compact(&self) {
        self.compacts.set(true);
        self.changed.notify();
    }
}

/// Starts the tasks that drive an open store.
pub(super) fn drive(store: &Rc<Engine>, executor: &mut Executor) -> Rc<Reports> {
    let reports = Rc::new(Reports::default());
    executor.spawn(commit_loop(Rc::clone(store), Rc::clone(&reports)));
    executor.spawn(prepare_loop(Rc::clone(store), Rc::clone(&reports)));
    executor.spawn(compact_loop(Rc::clone(store), Rc::clone(&reports)));
    executor.spawn(scrub_loop(Rc::clone(store), Rc::clone(&reports)));
    executor.spawn(rest_loop(Rc::clone(store), Rc::clone(&reports)));
    reports
}

async fn commit_loop(store: Rc<Engine>, reports: Rc<Reports>) {
    loop {
        let staged = pin!(store.staged());
        let closing = pin!(reports.changed.until(|| reports.closing.get()));
        let (result, closes) = match select(staged, closing).await {
            Either::Left(_) => (commit(&store, &reports).await, false),
            Either::Right(_) => (close(&store, &reports).await, true),
        };
        if let Err(error) = result {
            reports.commit_failed.set(true);
            reports.error.borrow_mut().get_or_insert(error);
            return;
        }
        if closes {
            reports.closed.set(true);
            return;
        }
    }
}

async fn commit(store: &Engine, reports: &Reports) -> Result<(), StorageError> {
    let answers = store.let_in().into();
    let left = store.parked();
    let let_in = Event::LetIn { left, answers };
    reports.events.borrow_mut().push_back(let_in);
    let completions = store.commit().await?;
    if store.take_due_rest() {
        store.rest_large(true);
        reports.rests.set(true);
        reports.changed.notify();
    }
    let completed = completions.into_iter().map(Event::Completed);
    reports.events.borrow_mut().extend(completed);
    Ok(())
}

/// Writes out what waits by itself, so that it is known what took effect when: `close` would as well.
async fn close(store: &Engine, reports: &Reports) -> Result<(), StorageError> {
    while store.is_staged() || store.parked() > 0 {
        store.staged().await;
        commit(store, reports).await?;
    }
    let (completions, answers) = store.close().await?;
    assert!(completions.is_empty() && answers.is_empty());
    Ok(())
}

async fn compact_loop(store: Rc<Engine>, reports: Rc<Reports>) {
    if let Err(error) = store.trim().await {
        reports.error.borrow_mut().get_or_insert(error);
        return;
    }
    let mut current = None;
    loop {
        reports.changed.until(|| reports.compacts.take()).await;
        loop {
            match store.compact(&mut current).await {
                Ok(Step::Worked { .. }) => {}
                Ok(Step::Idle) => break,
                // Who reads is told the same; the commit loop tells of a failed write.
                Err(StorageError::Io { .. } | StorageError::Poisoned) => return,
                Err(error) => {
                    reports.error.borrow_mut().get_or_insert(error);
                    return;
                }
            }
        }
    }
}

/// Ends each rest of large writes after a few turns.
async fn rest_loop(store: Rc<Engine>, reports: Rc<Reports>) {
    loop {
        reports.changed.until(|| reports.rests.take()).await;
        for _ in 0..REST_TURNS {
            yield_once().await;
        }
        store.rest_large(false);
    }
}

async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn scrub_loop(store: Rc<Engine>, reports: Rc<Reports>) {
    let mut current = None;
    loop {
        let due = || reports.scrubs.get().checked_sub(1);
        reports.changed.until(|| due().is_some()).await;
        reports.scrubs.set(due().expect("waited for"));
        // The commit loop tells of a failed write.
        if store.scrub(&mut current).await.is_err() {
            return;
        }
    }
}

async fn prepare_loop(store: Rc<Engine>, reports: Rc<Reports>) {
    loop {
        match store.prepare().await {
            Ok(()) => {}
            Err(error) if error.is_full() => {
                reports.no_room.set(reports.no_room.get() + 1);
                reports.changed.until(|| reports.retry.take()).await;
            }
            Err(error) => {
                reports.error.borrow_mut().get_or_insert(error);
                return;
            }
        }
    }
}

//! How the outcome of a write gets from the commit to whoever waits for it.
//!
//! A ticket is the waiting end; dropping it changes nothing: the write belongs to the shard. The other end, [`Waiter`],
//! travels with the record through the log.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::shard::error::ShardError;
use crate::storage::Outcome;

/// What a write comes to.
pub(super) type WriteResult = Result<Outcome, ShardError>;

type Continuation = Box<dyn FnOnce(Vec<WriteResult>)>;

/// Results of one call, until all of them are there.
pub(super) struct Gathering {
    results: RefCell<Vec<Option<WriteResult>>>,
    missing: Cell<usize>,
    waker: RefCell<Option<Waker>>,
    then: RefCell<Option<Continuation>>,
}

impl Gathering {
    fn fill(&self, at: usize, result: WriteResult) {
        let before = self.results.borrow_mut()[at].replace(result);
        assert!(before.is_none(), "a write is answered once");
        self.missing.set(self.missing.get() - 1);
        if self.missing.get() == 0 {
            self.complete();
        }
    }

    fn complete(&self) {
        if let Some(then) = self.then.borrow_mut().take() {
            then(self.take());
        }
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn take(&self) -> Vec<WriteResult> {
        let results = std::mem::take(&mut *self.results.borrow_mut());
        results
            .into_iter()
            .map(|result| result.expect("nothing is missing"))
            .collect()
    }
}

/// The answering end of one write; it must be answered exactly once.
pub(super) enum Waiter {
    /// One of the writes of a ticket.
    Gathered { gathering: Rc<Gathering>, at: usize },
    /// A write of its own, with what is to be done then.
    Alone(Box<dyn FnOnce(WriteResult)>),
}

impl Waiter {
    pub(super) fn answer(self, result: WriteResult) {
        match self {
            Waiter::Gathered { gathering, at } => gathering.fill(at, result),
            Waiter::Alone(then) => then(result),
        }
    }
}

/// The outcomes of a batch of writes, in order, once all of them are known.
#[must_use = "the writes go on without it, but nobody learns what became of them"]
pub struct BatchTicket(Rc<Gathering>);

impl BatchTicket {
    /// A ticket for `len` writes; `waiter` makes the other ends.
    pub(super) fn new(len: usize) -> BatchTicket {
        let results = std::iter::repeat_with(|| None).take(len).collect();
        BatchTicket(Rc::new(Gathering {
            results: RefCell::new(results),
            missing: Cell::new(len),
            waker: RefCell::new(None),
            then: RefCell::new(None),
        }))
    }

    pub(super) fn waiter(&self, at: usize) -> Waiter {
        Waiter::Gathered {
            gathering: Rc::clone(&self.0),
            at,
        }
    }

    /// Calls `then` with the outcomes when they are known, in place of anybody waiting.
    pub fn then(self, then: impl FnOnce(Vec<Result<Outcome, ShardError>>) + 'static) {
        if self.0.missing.get() == 0 {
            return then(self.0.take());
        }
        *self.0.then.borrow_mut() = Some(Box::new(then));
    }
}

impl Future for BatchTicket {
    type Output = Vec<Result<Outcome, ShardError>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.0.missing.get() == 0 {
            return Poll::Ready(self.0.take());
        }
        *self.0.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The outcome of one write, once it is known.
#[must_use = "the write goes on without it, but nobody learns what became of it"]
pub struct WriteTicket(pub(super) BatchTicket);

impl Future for WriteTicket {
    type Output = Result<Outcome, ShardError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|mut results| results.pop().expect("a ticket for one write"))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn written(version: u64) -> WriteResult {
        Ok(Outcome::Written {
            version,
            existed: false,
        })
    }

    #[test]
    fn outcomes_come_in_the_order_of_the_writes_whatever_order_they_end_in() {
        let ticket = BatchTicket::new(3);
        let mut waiters: Vec<_> = (0..3).map(|at| ticket.waiter(at)).collect();
        let mut ticket = Box::pin(ticket);
        for version in [2, 0, 1] {
            assert!(ticket.as_mut().now_or_never().is_none());
            let at = waiters
                .iter()
                .position(|waiter| matches!(waiter, Waiter::Gathered { at, .. } if *at == version))
                .unwrap();
            waiters.swap_remove(at).answer(written(version as u64));
        }
        assert_eq!(
            ticket.now_or_never().unwrap(),
            [written(0), written(1), written(2)]
        );
    }

    #[test]
    fn a_dropped_ticket_does_not_disturb_the_write() {
        let ticket = BatchTicket::new(1);
        let waiter = ticket.waiter(0);
        drop(ticket);
        waiter.answer(written(1));
    }
}

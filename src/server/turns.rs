//! Turns of the connections of one shard, so that small calls do not wait behind large values.
//!
//! The runtime looks what has arrived and what the disk has completed when nothing is left to run, and a connection that
//! moves large values always has something to run. So while there are small calls, a connection that has sent much rests
//! until the runtime has looked. Reading needs no rest: it ends with what has arrived.
//!
//! Owns: whether there are small calls. Guarantees: without them nobody rests; a rest lasts one look of the runtime.
//! Does not: read or write (`stream` does).

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use glommio::timer::Timer;

/// What one call moves from so many bytes on takes long.
const LONG_BYTES_MIN: usize = 64 << 10;

/// A small call is remembered for so many long moves: some milliseconds.
const REMEMBERED_MOVES: u32 = 64;

/// A rest ends when the runtime looks and so much time is over.
const REST: Duration = Duration::from_micros(1);

/// What the connections of one shard know of each other.
#[derive(Default)]
pub(crate) struct Turns {
    /// Long moves until there are no small calls any more.
    small: Cell<u32>,
}

/// One connection's part.
pub(crate) struct Turn {
    turns: Rc<Turns>,
    /// It has moved much since it was last read from.
    is_large: Cell<bool>,
    /// It rests before it is written to again.
    is_due: Cell<bool>,
    rest: RefCell<Option<Timer>>,
}

impl Turn {
    /// For a connection of a shard.
    pub(crate) fn new(turns: &Rc<Turns>) -> Turn {
        Turn {
            turns: Rc::clone(turns),
            is_large: Cell::new(false),
            is_due: Cell::new(false),
            rest: RefCell::new(None),
        }
    }

    /// Waits until this connection may be written to.
    pub(crate) fn poll_write(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut rest = self.rest.borrow_mut();
        if let Some(timer) = &mut *rest {
            ready!(Pin::new(timer).poll(context));
            *rest = None;
        }
        // A timer that is over when it is first asked was no rest: the thread had to wait for its CPU.
        while self.is_due.get() {
            let mut timer = Timer::new(REST);
            if Pin::new(&mut timer).poll(context).is_pending() {
                self.is_due.set(false);
                *rest = Some(timer);
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// So many bytes were read.
    pub(crate) fn read(&self, bytes: usize) {
        if bytes >= LONG_BYTES_MIN {
            self.is_large.set(true);
        } else if !self.is_large.take() {
            self.turns.small.set(REMEMBERED_MOVES);
        }
    }

    /// So many bytes were written.
    pub(crate) fn written(&self, bytes: usize) {
        if bytes < LONG_BYTES_MIN {
            return;
        }
        self.is_large.set(true);
        if let Some(small) = self.turns.small.get().checked_sub(1) {
            self.turns.small.set(small);
            self.is_due.set(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt as _;
    use glommio::LocalExecutor;

    use super::*;

    fn run(story: impl AsyncFnOnce(Rc<Turns>)) {
        LocalExecutor::default().run(story(Rc::default()));
    }

    async fn rests(turn: &Turn) -> bool {
        let mut poll = poll_fn(|context| turn.poll_write(context));
        if (&mut poll).now_or_never().is_some() {
            return false;
        }
        poll.await;
        true
    }

    #[test]
    fn who_sends_much_rests_while_there_are_small_calls_and_no_longer() {
        run(async |turns| {
            let (large, small) = (Turn::new(&turns), Turn::new(&turns));
            large.written(LONG_BYTES_MIN);
            assert!(!rests(&large).await);
            small.read(100);
            for _ in 0..REMEMBERED_MOVES {
                large.read(LONG_BYTES_MIN);
                assert!(!rests(&large).await, "what has read much does not");
                large.written(LONG_BYTES_MIN);
                assert!(rests(&large).await);
                assert!(!rests(&large).await, "it rests once");
            }
            large.written(LONG_BYTES_MIN);
            assert!(!rests(&large).await, "the small call is long ago");
        });
    }

    #[test]
    fn what_asks_for_a_large_value_is_no_small_call() {
        run(async |turns| {
            let large = Turn::new(&turns);
            large.written(LONG_BYTES_MIN);
            large.read(100);
            large.written(LONG_BYTES_MIN);
            assert!(!rests(&large).await);
            // The second one in a row is.
            large.read(100);
            large.read(100);
            large.written(LONG_BYTES_MIN);
            assert!(rests(&large).await);
        });
    }
}

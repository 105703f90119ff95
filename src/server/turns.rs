//! Turns of the connections of one shard, so that small calls do not wait behind large values.
//!
//! The runtime looks what has arrived, what the disk has completed and what it is to do when nothing is left to run, and a
//! connection that moves large values always has something to run. So while there are small calls, a connection that has
//! sent or received much rests until the runtime has looked.
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
    reading: Rest,
    writing: Rest,
}

/// One direction's rest.
#[derive(Default)]
struct Rest {
    /// It rests before it goes on.
    is_due: Cell<bool>,
    timer: RefCell<Option<Timer>>,
}

impl Rest {
    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut rest = self.timer.borrow_mut();
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
}

impl Turn {
    /// For a connection of a shard.
    pub(crate) fn new(turns: &Rc<Turns>) -> Turn {
        Turn {
            turns: Rc::clone(turns),
            is_large: Cell::new(false),
            reading: Rest::default(),
            writing: Rest::default(),
        }
    }

    /// Waits until this connection may be read from.
    pub(crate) fn poll_read(&self, context: &mut Context<'_>) -> Poll<()> {
        self.reading.poll(context)
    }

    /// Waits until this connection may be written to.
    pub(crate) fn poll_write(&self, context: &mut Context<'_>) -> Poll<()> {
        self.writing.poll(context)
    }

    /// So many bytes were read.
    pub(crate) fn read(&self, bytes: usize) {
        if bytes >= LONG_BYTES_MIN {
            self.moved_much(&self.reading);
        } else if !self.is_large.take() {
            self.turns.small.set(REMEMBERED_MOVES);
        }
    }

    /// So many bytes were written.
    pub(crate) fn written(&self, bytes: usize) {
        if bytes >= LONG_BYTES_MIN {
            self.moved_much(&self.writing);
        }
    }

    fn moved_much(&self, rest: &Rest) {
        self.is_large.set(true);
        if let Some(small) = self.turns.small.get().checked_sub(1) {
            self.turns.small.set(small);
            rest.is_due.set(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use futures::FutureExt as _;
    use glommio::LocalExecutor;

    use super::*;

    fn run(story: impl AsyncFnOnce(Rc<Turns>)) {
        LocalExecutor::default().run(story(Rc::default()));
    }

    async fn rests(poll: impl FnMut(&mut Context<'_>) -> Poll<()>) -> bool {
        let mut poll = pin!(poll_fn(poll));
        if poll.as_mut().now_or_never().is_some() {
            return false;
        }
        poll.await;
        true
    }

    async fn rests_to_write(turn: &Turn) -> bool {
        rests(|context| turn.poll_write(context)).await
    }

    async fn rests_to_read(turn: &Turn) -> bool {
        rests(|context| turn.poll_read(context)).await
    }

    #[test]
    fn who_moves_much_rests_while_there_are_small_calls_and_no_longer() {
        run(async |turns| {
            let (large, small) = (Turn::new(&turns), Turn::new(&turns));
            large.written(LONG_BYTES_MIN);
            large.read(LONG_BYTES_MIN);
            assert!(!rests_to_write(&large).await && !rests_to_read(&large).await);
            small.read(100);
            for _ in 0..REMEMBERED_MOVES / 2 {
                large.read(LONG_BYTES_MIN);
                assert!(!rests_to_write(&large).await, "it has only read");
                assert!(rests_to_read(&large).await);
                large.written(LONG_BYTES_MIN);
                assert!(!rests_to_read(&large).await, "it has only written");
                assert!(rests_to_write(&large).await);
                assert!(!rests_to_write(&large).await, "it rests once");
            }
            large.written(LONG_BYTES_MIN);
            large.read(LONG_BYTES_MIN);
            assert!(!rests_to_write(&large).await, "the small call is long ago");
            assert!(!rests_to_read(&large).await, "the small call is long ago");
        });
    }

    #[test]
    fn what_asks_for_a_large_value_is_no_small_call() {
        run(async |turns| {
            let large = Turn::new(&turns);
            large.written(LONG_BYTES_MIN);
            large.read(100);
            large.written(LONG_BYTES_MIN);
            assert!(!rests_to_write(&large).await);
            // The second one in a row is.
            large.read(100);
            large.read(100);
            large.written(LONG_BYTES_MIN);
            assert!(rests_to_write(&large).await);
        });
    }
}

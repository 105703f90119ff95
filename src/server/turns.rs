//! Turns of the connections of one shard, so that small calls do not wait behind large values.
//!
//! The runtime looks what has arrived and what the disk has completed when nothing is left to run, and a connection that
//! moves large values always has something to run. So while there are small calls, a direction that has moved much rests
//! until the runtime has looked.
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

/// The shortest rest: it ends when the runtime looks.
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

/// The pause of one direction.
#[derive(Default)]
struct Rest(RefCell<Option<Timer>>);

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

    fn moved_much(&self, direction: &Rest) {
        self.is_large.set(true);
        if let Some(small) = self.turns.small.get().checked_sub(1) {
            self.turns.small.set(small);
            *direction.0.borrow_mut() = Some(Timer::new(REST));
        }
    }
}

impl Rest {
    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut rest = self.0.borrow_mut();
        if let Some(timer) = &mut *rest {
            ready!(Pin::new(timer).poll(context));
            *rest = None;
        }
        Poll::Ready(())
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

    async fn rests(turn: &Turn, writing: bool) -> bool {
        let mut poll = poll_fn(|context| match writing {
            true => turn.poll_write(context),
            false => turn.poll_read(context),
        });
        if (&mut poll).now_or_never().is_some() {
            return false;
        }
        poll.await;
        true
    }

    #[test]
    fn who_moves_much_rests_while_there_are_small_calls_and_no_longer() {
        run(async |turns| {
            let (large, small) = (Turn::new(&turns), Turn::new(&turns));
            large.written(LONG_BYTES_MIN);
            large.read(LONG_BYTES_MIN);
            assert!(!rests(&large, true).await && !rests(&large, false).await);
            small.read(100);
            for _ in 0..REMEMBERED_MOVES / 2 {
                large.written(LONG_BYTES_MIN);
                assert!(!rests(&large, false).await, "only what moved much rests");
                assert!(rests(&large, true).await);
                assert!(!rests(&large, true).await, "it rests once");
                large.read(LONG_BYTES_MIN);
                assert!(rests(&large, false).await);
            }
            large.written(LONG_BYTES_MIN);
            assert!(!rests(&large, true).await, "the small call is long ago");
        });
    }

    #[test]
    fn what_asks_for_a_large_value_is_no_small_call() {
        run(async |turns| {
            let large = Turn::new(&turns);
            large.written(LONG_BYTES_MIN);
            large.read(100);
            large.written(LONG_BYTES_MIN);
            assert!(!rests(&large, true).await);
            // The second one in a row is.
            large.read(100);
            large.read(100);
            large.written(LONG_BYTES_MIN);
            assert!(rests(&large, true).await);
        });
    }
}

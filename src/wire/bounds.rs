//! How much one connection does in one turn of its executor, before the others have theirs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Bounds of one turn. One step may go over them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) read_bytes: usize,
    /// Of one read into the buffer that connections share: what the turn does not come to is copied out of it.
    pub(super) shared_read_bytes: usize,
    /// What the stream takes at once would keep small answers of other connections waiting.
    pub(super) written_bytes: usize,
    pub(super) direct_answers: usize,
}

/// A large value moves in few steps.
const ALONE: Bounds = Bounds {
    read_bytes: 1 << 20,
    shared_read_bytes: 64 << 10,
    written_bytes: 1 << 20,
    direct_answers: 256,
};

/// Some tens of microseconds of each.
const BESIDE_OTHERS: Bounds = Bounds {
    read_bytes: 64 << 10,
    shared_read_bytes: 16 << 10,
    written_bytes: 64 << 10,
    direct_answers: 64,
};

/// The bounds that hold at the moment, for one connection.
#[derive(Default)]
pub(super) struct Pace {
    others_wait: RefCell<Rc<Cell<bool>>>,
    /// Beside others a turn ends with the step in which so much time is over: what steps take depends on who asks for them.
    turn: Cell<Duration>,
    /// When the turn began, beside others.
    begun: Cell<Option<Instant>>,
}

impl Pace {
    /// From now on `others_wait` says whether there are others whose calls are short, beside whom a turn takes about `turn`.
    pub(super) fn follow(&self, others_wait: Rc<Cell<bool>>, turn: Duration) {
        self.others_wait.replace(others_wait);
        self.turn.set(turn);
    }

    fn others_wait(&self) -> bool {
        self.others_wait.borrow().get()
    }

    pub(super) fn bounds(&self) -> &'static Bounds {
        if self.others_wait() {
            &BESIDE_OTHERS
        } else {
            &ALONE
        }
    }

    /// A turn begins.
    pub(super) fn begin_turn(&self) {
        self.begun.set(self.others_wait().then(Instant::now));
    }

    /// Whether the time of the turn is over.
    pub(super) fn is_turn_over(&self) -> bool {
        let begun = self.begun.get();
        begun.is_some_and(|begun| begun.elapsed() >= self.turn.get())
    }
}

//! How much one connection does in one turn of its executor, before the others have theirs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Bounds of one turn. One step may go over them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) read_bytes: usize,
    /// What the stream takes at once would keep small answers of other connections waiting.
    pub(super) written_bytes: usize,
    pub(super) direct_answers: usize,
}

/// A large value moves in few steps.
const ALONE: Bounds = Bounds {
    read_bytes: 1 << 20,
    written_bytes: 1 << 20,
    direct_answers: 256,
};

/// Some tens of microseconds of each.
const BESIDE_OTHERS: Bounds = Bounds {
    read_bytes: 128 << 10,
    written_bytes: 128 << 10,
    direct_answers: 64,
};

/// The bounds that hold at the moment, for one connection.
#[derive(Default)]
pub(super) struct Pace {
    others_wait: RefCell<Rc<Cell<bool>>>,
}

impl Pace {
    /// From now on `others_wait` says whether there are others whose calls are short.
    pub(super) fn follow(&self, others_wait: Rc<Cell<bool>>) {
        self.others_wait.replace(others_wait);
    }

    pub(super) fn bounds(&self) -> &'static Bounds {
        if self.others_wait.borrow().get() {
            &BESIDE_OTHERS
        } else {
            &ALONE
        }
    }
}

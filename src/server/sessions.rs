//! The open connections of one shard, for what is done to all of them: deadlines of silent peers, and a stop.
//!
//! One sweep a second over all connections is cheaper than a timer for every operation. Guarantees: a connection is
//! listed exactly while its task runs. Used by `session` and `shard_server`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::channel::oneshot;

use crate::limits;
use crate::wire::Meter;

/// Why a connection is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its peer stopped in the middle of a message, or does not read its answers.
    Stalled,
    /// It was not done in time when the server stopped.
    Late,
}

/// How a peer may stand still, and since when.
struct Progress {
    sent: Direction,
    taken: Direction,
}

/// One direction of a connection: the last time that the peer did its part.
#[derive(Clone, Copy)]
struct Direction {
    bytes: u64,
    messages: u64,
    at: Instant,
}

impl Direction {
    /// Notes how far the peer is; `owes` says whether it is its turn. Returns whether it stands still for too long.
    fn stalls(&mut self, owes: bool, bytes: u64, messages: u64, now: Instant) -> bool {
        let moved = messages != self.messages || bytes - self.bytes >= limits::PEER_STALL_BYTES_MIN;
        if !owes || moved {
            *self = Direction {
                bytes,
                messages,
                at: now,
            };
            return false;
        }
        now.saturating_duration_since(self.at) > Duration::from_secs(limits::PEER_STALL_SECONDS_MAX)
    }
}

impl Progress {
    fn new(now: Instant) -> Progress {
        let start = Direction {
            bytes: 0,
            messages: 0,
            at: now,
        };
        Progress {
            sent: start,
            taken: start,
        }
    }

    fn stalls(&mut self, meter: &Meter, now: Instant) -> bool {
        let sends_not = self.sent.stalls(
            meter.partial_message(),
            meter.bytes_read(),
            meter.messages_in(),
            now,
        );
        // Nobody counts the answers that a peer has taken; their bytes have to do.
        let takes_not = self
            .taken
            .stalls(!meter.is_flushed(), meter.bytes_written(), 0, now);
        sends_not || takes_not
    }
}

struct Entry {
    meter: Rc<Meter>,
    progress: Progress,
    end: oneshot::Sender<Ending>,
}

/// The connections of one shard.
#[derive(Default)]
pub(crate) struct Sessions {
    entries: Rc<RefCell<HashMap<u64, Entry>>>,
    next: Cell<u64>,
}

/// Keeps a connection listed.
pub(crate) struct Listed {
    entries: Rc<RefCell<HashMap<u64, Entry>>>,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.entries.borrow_mut().remove(&self.number);
    }
}

impl Sessions {
    /// Lists a connection, and returns what tells it to end.
    pub(crate) fn enter(&self, meter: Rc<Meter>) -> (Listed, oneshot::Receiver<Ending>) {
        let number = self.next.get();
        self.next.set(number + 1);
        let (end, ended) = oneshot::channel();
        let entry = Entry {
            meter,
            progress: Progress::new(Instant::now()),
            end,
        };
        self.entries.borrow_mut().insert(number, entry);
        (
            Listed {
                entries: Rc::clone(&self.entries),
                number,
            },
            ended,
        )
    }

    /// Number of open connections.
    pub(crate) fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Ends the connections whose peers stand still.
    pub(crate) fn sweep(&self, now: Instant) {
        self.end(Ending::Stalled, |entry| {
            entry.progress.stalls(&entry.meter, now)
        });
    }

    /// Ends all connections, answered or not.
    pub(crate) fn end_all(&self) {
        self.end(Ending::Late, |_| true);
    }

    fn end(&self, ending: Ending, mut which: impl FnMut(&mut Entry) -> bool) {
        let mut entries = self.entries.borrow_mut();
        let ended: Vec<u64> = entries
            .iter_mut()
            .filter_map(|(number, entry)| which(entry).then_some(*number))
            .collect();
        for entry in ended.iter().filter_map(|number| entries.remove(number)) {
            // A connection that is gone already needs no telling.
            entry.end.send(ending).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(limits::PEER_STALL_SECONDS_MAX);

    fn direction(at: Instant) -> Direction {
        Direction {
            bytes: 0,
            messages: 0,
            at,
        }
    }

    #[test]
    fn a_peer_that_owes_nothing_may_be_silent_for_ever() {
        let start = Instant::now();
        let mut peer = direction(start);
        assert!(!peer.stalls(false, 10, 1, start + STALL * 10));
        // Its time starts when it begins a message.
        assert!(!peer.stalls(true, 11, 1, start + STALL * 11));
        assert!(!peer.stalls(true, 11, 1, start + STALL * 11));
        assert!(peer.stalls(true, 11, 1, start + STALL * 12));
    }

    #[test]
    fn a_peer_that_trickles_stalls_like_one_that_is_silent() {
        let start = Instant::now();
        let mut peer = direction(start);
        let seconds = limits::PEER_STALL_SECONDS_MAX;
        for second in 1..=seconds {
            assert!(!peer.stalls(true, second, 0, start + Duration::from_secs(second)));
        }
        assert!(peer.stalls(
            true,
            seconds + 1,
            0,
            start + Duration::from_secs(seconds + 1)
        ));
    }

    #[test]
    fn a_peer_that_gets_on_may_take_its_time() {
        let start = Instant::now();
        let mut large = direction(start);
        let mut many = direction(start);
        for step in 1..10 {
            let now = start + STALL * u32::try_from(step).unwrap();
            assert!(!large.stalls(true, step * limits::PEER_STALL_BYTES_MIN, 0, now));
            assert!(!many.stalls(true, step, step, now));
        }
    }
}

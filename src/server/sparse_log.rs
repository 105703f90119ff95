//! Log lines that clients can cause: at most one in a while, with the number of those left out.
//!
//! Without it a client that connects in a loop writes the log full.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time between two lines of the same kind.
const INTERVAL: Duration = Duration::from_secs(5);

/// Decides whether the next line of one kind is said.
#[derive(Debug, Default)]
pub(crate) struct SparseLog {
    said: Cell<Option<Instant>>,
    left_out: Cell<u64>,
}

impl SparseLog {
    /// Whether to say a line now; if so, how many were left out since the last one.
    pub(crate) fn turn(&self, now: Instant) -> Option<u64> {
        if self
            .said
            .get()
            .is_some_and(|said| now.saturating_duration_since(said) < INTERVAL)
        {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.said.set(Some(now));
        Some(self.left_out.replace(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_said_and_the_next_tells_how_many_were_not() {
        let log = SparseLog::default();
        let start = Instant::now();
        assert_eq!(log.turn(start), Some(0));
        assert_eq!(log.turn(start + INTERVAL / 2), None);
        assert_eq!(log.turn(start + INTERVAL / 2), None);
        assert_eq!(log.turn(start + INTERVAL), Some(2));
        assert_eq!(log.turn(start + INTERVAL * 2), Some(0));
    }
}

//! When a connection starts its operations: at once (closed loop), or when they are due (open loop).
//!
//! In an open loop operations arrive as a Poisson process: the gaps of each connection are exponential and come from the
//! seed, and all connections together arrive at `--rate`. An operation that is due while its connection is busy waits,
//! and its latency counts from the moment it was due: nothing is omitted because a server stalls. Does not wait itself
//! (`alarm.rs`). One source per connection, shared by the requests in flight on it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::mix::Kind;
use super::random::Random;
use super::run::Run;
use super::trace::{Operation, Trace};

/// Tells the draws of arrivals from those of operations.
const ARRIVALS_DRAW: u64 = 0x6172_7269_7665_7331;

pub(crate) struct Source {
    order: Order,
    pace: Pace,
    /// Nothing starts from then on.
    until: Instant,
}

enum Order {
    Trace(Trace),
    /// Every key is written once, whoever takes it.
    Sweep {
        next: Rc<Cell<u64>>,
        count: u64,
    },
}

enum Pace {
    Closed,
    Open(Arrivals),
}

/// The moments at which operations are due.
struct Arrivals {
    random: Random,
    per_second: f64,
    start: Instant,
    due_after: Duration,
}

impl Source {
    /// The load of connection `connection`, from `start` until `until`.
    pub(crate) fn load(run: &Run, connection: usize, start: Instant, until: Instant) -> Source {
        let plan = &run.plan;
        let pace = plan.rate.map_or(Pace::Closed, |rate| {
            let mut arrivals = Arrivals {
                random: Random::for_worker(plan.seed ^ ARRIVALS_DRAW, connection as u64),
                per_second: rate / plan.clients as f64,
                start,
                due_after: Duration::ZERO,
            };
            arrivals.advance();
            Pace::Open(arrivals)
        });
        Source {
            order: Order::Trace(Trace::new(plan, connection)),
            pace,
            until,
        }
    }

    /// Writes of the keys that nobody has taken yet.
    pub(crate) fn sweep(next: Rc<Cell<u64>>, count: u64) -> Source {
        Source {
            order: Order::Sweep { next, count },
            pace: Pace::Closed,
            until: Instant::now() + Duration::from_secs(100 * 365 * 86_400),
        }
    }

    /// Takes the next operation and tells when it is to start: `now`, or the moment at which it is due, which may lie
    /// on either side of now. Nothing: there is no more to do.
    pub(crate) fn next(&mut self, now: Instant, operation: &mut Operation) -> Option<Instant> {
        let intended = match &mut self.pace {
            Pace::Closed => now,
            Pace::Open(arrivals) => arrivals.due(),
        };
        if intended >= self.until || now >= self.until {
            return None;
        }
        match &mut self.order {
            Order::Trace(trace) => trace.next(operation),
            Order::Sweep { next, count } => {
                let number = next.get();
                if number >= *count {
                    return None;
                }
                next.set(number + 1);
                operation.kind = Kind::Write;
                operation.numbers.clear();
                operation.numbers.push(number);
            }
        }
        if let Pace::Open(arrivals) = &mut self.pace {
            arrivals.advance();
        }
        Some(intended)
    }

    /// What was due and never started because the connection was busy to the end: each with the moment it was due.
    pub(crate) fn overdue(&mut self, mut each: impl FnMut(Kind, Instant)) {
        let (Order::Trace(trace), Pace::Open(arrivals)) = (&mut self.order, &mut self.pace) else {
            return;
        };
        let mut operation = Operation::empty();
        while arrivals.due() < self.until {
            trace.next(&mut operation);
            each(operation.kind, arrivals.due());
            arrivals.advance();
        }
    }
}

impl Arrivals {
    fn due(&self) -> Instant {
        self.start + self.due_after
    }

    fn advance(&mut self) {
        let gap = -(1.0 - self.random.unit()).ln() / self.per_second;
        self.due_after += Duration::from_secs_f64(gap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::options::tests::plan;

    fn source(arguments: &[&str], connection: usize, start: Instant, seconds: u64) -> Source {
        let run = Run::new(plan(arguments).expect("a plan"), 1).expect("no ack log to make");
        Source::load(
            &run,
            connection,
            start,
            start + Duration::from_secs(seconds),
        )
    }

    #[test]
    fn arrivals_have_their_rate_and_the_gaps_of_a_poisson_process() {
        let start = Instant::now();
        let arguments = ["--rate", "4000", "--clients", "4", "--seed", "3"];
        let mut source = source(&arguments, 2, start, 100);
        let mut operation = Operation::empty();
        let mut last = start;
        let mut gaps = Vec::new();
        while let Some(due) = source.next(start, &mut operation) {
            gaps.push((due - last).as_secs_f64());
            last = due;
        }
        // A fourth of 4000 per second, for 100 s; the standard deviation is the root of it, 316.
        assert!(
            gaps.len().abs_diff(100_000) < 1_500,
            "{} arrivals",
            gaps.len()
        );
        let longer = |than: f64| gaps.iter().filter(|gap| **gap > than).count() as f64;
        for times in [1.0f64, 2.0, 4.0] {
            let share = longer(times * 1e-3) / gaps.len() as f64;
            assert!((share - (-times).exp()).abs() < 0.01, "{times}: {share}");
        }
    }

    #[test]
    fn the_seed_repeats_the_arrivals() {
        let start = Instant::now();
        let arrivals = |seed: &str, connection| {
            let mut source = source(&["--rate", "100", "--seed", seed], connection, start, 50);
            let mut operation = Operation::empty();
            let due = std::iter::from_fn(|| source.next(start, &mut operation));
            due.take(20).collect::<Vec<_>>()
        };
        assert_eq!(arrivals("1", 0), arrivals("1", 0));
        assert_ne!(arrivals("1", 0), arrivals("1", 1));
        assert_ne!(arrivals("1", 0), arrivals("2", 0));
    }

    #[test]
    fn what_is_due_and_not_taken_is_overdue() {
        let start = Instant::now();
        let arguments = ["--rate", "1000", "--clients", "1", "--seed", "3"];
        let mut all = source(&arguments, 0, start, 10);
        let mut expected = Vec::new();
        let mut operation = Operation::empty();
        while let Some(due) = all.next(start, &mut operation) {
            expected.push((operation.kind, due));
        }
        let mut half = source(&arguments, 0, start, 10);
        for _ in 0..expected.len() / 2 {
            half.next(start, &mut operation);
        }
        let mut found = Vec::new();
        half.overdue(|kind, due| found.push((kind, due)));
        assert_eq!(found, expected[expected.len() / 2..]);
    }

    #[test]
    fn a_closed_loop_starts_at_once_and_ends_with_the_window() {
        let start = Instant::now();
        let mut source = source(&[], 0, start, 10);
        let mut operation = Operation::empty();
        let late = start + Duration::from_secs(7);
        assert_eq!(source.next(late, &mut operation), Some(late));
        let end = start + Duration::from_secs(10);
        assert_eq!(source.next(end, &mut operation), None);
        source.overdue(|kind, _| panic!("{kind:?} is overdue"));
    }

    #[test]
    fn a_sweep_takes_every_key_once() {
        let next = Rc::new(Cell::new(0));
        let mut sources = [
            Source::sweep(next.clone(), 5),
            Source::sweep(next.clone(), 5),
        ];
        let mut operation = Operation::empty();
        let mut taken: Vec<u64> = Vec::new();
        let mut turn = 0;
        while sources[turn % 2]
            .next(Instant::now(), &mut operation)
            .is_some()
        {
            taken.extend(&operation.numbers);
            turn += 1;
        }
        assert_eq!(taken, [0, 1, 2, 3, 4]);
    }
}

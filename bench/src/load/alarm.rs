//! Wakes connections at the moments at which their operations are due, to within microseconds.
//!
//! The timer of the runtime counts whole milliseconds, which an open loop would measure as latency: so one `timerfd`, set
//! to the earliest moment that anybody waits for. Guarantees: nobody is woken before the moment, and everybody who waits
//! is woken after it, as long as `ring` runs. Used by the drivers; the moments come from `source.rs`.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use super::failure::Failure;

pub(crate) struct Alarm {
    timer: AsyncFd<OwnedFd>,
    waiting: RefCell<BinaryHeap<Reverse<Waiting>>>,
    /// Who asked first is woken first, where moments are equal.
    asked: Cell<u64>,
}

struct Waiting {
    due: Instant,
    place: u64,
    waker: Waker,
}

impl Alarm {
    /// Needs a running runtime.
    pub(crate) fn new() -> Result<Alarm, Failure> {
        let refused = |error: io::Error| Failure::Machine(format!("cannot make a timer: {error}"));
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: no pointers; the result is checked before it is used.
        let number = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        if number < 0 {
            return Err(refused(io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        let timer = unsafe { OwnedFd::from_raw_fd(number) };
        // SAFETY: the descriptor is open, and stays with what is registered until that is dropped.
        let timer = unsafe { AsyncFd::register(timer) };
        Ok(Alarm {
            timer: timer.map_err(|error| refused(error.into()))?,
            waiting: RefCell::new(BinaryHeap::new()),
            asked: Cell::new(0),
        })
    }

    /// Returns at `due`, or at once if that is past.
    pub(crate) async fn until(&self, due: Instant) {
        let mut asked = false;
        poll_fn(|context| {
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            if !asked {
                asked = true;
                self.wake_at(due, context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Wakes once, at `due` or soon after.
    pub(crate) fn wake_at(&self, due: Instant, waker: Waker) {
        let place = self.asked.get();
        self.asked.set(place + 1);
        let mut waiting = self.waiting.borrow_mut();
        let earliest = waiting.peek().is_none_or(|Reverse(first)| due < first.due);
        waiting.push(Reverse(Waiting { due, place, waker }));
        if earliest {
            self.set(due);
        }
    }

    /// Wakes everybody when it is time. Ends only with a failure.
    pub(crate) async fn ring(&self) -> Failure {
        loop {
            let mut ready = match self.timer.readable().await {
                Ok(ready) => ready,
                Err(error) => return Failure::Machine(format!("cannot wait for a timer: {error}")),
            };
            // Setting the timer again, below, takes back that it has expired.
            ready.clear_ready();
            self.wake_due(Instant::now());
        }
    }

    fn wake_due(&self, now: Instant) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(Reverse(first)) = waiting.peek() {
            if first.due > now {
                self.set(first.due);
                return;
            }
            if let Some(Reverse(first)) = waiting.pop() {
                first.waker.wake();
            }
        }
    }

    fn set(&self, due: Instant) {
        let after = due
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spec = libc::itimerspec {
            it_interval: zero,
            it_value: libc::timespec {
                tv_sec: after.as_secs().cast_signed(),
                tv_nsec: i64::from(after.subsec_nanos()),
            },
        };
        let timer = self.timer.get_ref().as_raw_fd();
        // SAFETY: the descriptor is open, `spec` is a valid time, and the old one is not asked for.
        let result = unsafe { libc::timerfd_settime(timer, 0, &spec, std::ptr::null_mut()) };
        assert_eq!(result, 0, "a timer takes every time below a year");
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Waiting) -> std::cmp::Ordering {
        (self.due, self.place).cmp(&(other.due, other.place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    fn run(test: impl AsyncFnOnce(Rc<Alarm>)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), async {
            let alarm = Rc::new(Alarm::new().expect("a timer"));
            let ringing = alarm.clone();
            tokio::task::spawn_local(async move { ringing.ring().await });
            test(alarm).await;
        });
    }

    #[test]
    fn moments_come_in_their_order_whoever_asked_first_and_none_too_early() {
        run(async |alarm| {
            let start = Instant::now();
            let woken = Rc::new(RefCell::new(Vec::new()));
            let mut tasks = tokio::task::JoinSet::new();
            for after_us in [900, 300, 600, 0, 300] {
                let (alarm, woken) = (alarm.clone(), woken.clone());
                tasks.spawn_local(async move {
                    let due = start + Duration::from_micros(after_us);
                    alarm.until(due).await;
                    assert!(Instant::now() >= due);
                    woken.borrow_mut().push(after_us);
                });
            }
            while let Some(ended) = tasks.join_next().await {
                ended.expect("no task panics");
            }
            assert_eq!(*woken.borrow(), [0, 300, 300, 600, 900]);
        });
    }

    #[test]
    fn a_moment_that_is_past_is_not_waited_for() {
        run(async |alarm| {
            alarm.until(Instant::now()).await;
            assert!(alarm.waiting.borrow().is_empty());
        });
    }
}

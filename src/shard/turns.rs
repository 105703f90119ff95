//! Turns of those that take long on one executor, so that small calls do not wait behind them.
//!
//! The runtime looks what has arrived, what the disk has completed and whose time is over when nothing is left to run, and
//! who takes long always has something to run. So while there are small calls, who has taken long rests until the
//! runtime has looked, and of those that rest one goes on after each look: a small call waits for one of them, not for all.
//! The tasks of one connection have one [`Share`] together: else it would only have to make many calls that wait.
//!
//! Owns: who rests, and whether there are small calls. Guarantees: without small calls nobody rests; the shares of those that
//! rest go on in turn, and the tasks of one share in their order. Does not: interrupt anybody; who takes part bounds each
//! of its steps. Each task has one [`InTurn`] around it and rests as a whole: a rest within a task that rests itself could keep
//! those behind it for ever.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use glommio::timer::Timer;

/// Who was at work for so long since the runtime looked takes long.
pub const TURN: Duration = Duration::from_micros(50);

/// A small call is remembered for so many turns of those that take long: some milliseconds.
const SMALL_REMEMBERED: u32 = 128;

/// Who took long is no small one before it was at work so often without taking long: what asks for a large value, or
/// answers that one was written, is small itself.
const SMALL_AGAIN: u32 = 4;

/// A rest ends when the runtime looks and so much time is over.
const REST: Duration = Duration::from_micros(1);

/// Who goes on lets those run first whom the look has woken: who tells of arrivals, and then whom that one has woken.
const LETS_RUN: u32 = 2;

/// Among those that rest: the round, then the number of the rest. In a round each share has one place.
type Place = (u64, u64);

/// What those that share an executor know of each other.
#[derive(Default)]
pub struct Turns {
    /// Counts the looks of the runtime at which something had arrived.
    looks: Cell<u64>,
    /// Long turns until there are no small calls any more.
    small: Cell<u32>,
    has_small: Rc<Cell<bool>>,
    /// Who rests, and whom to wake. The first one's rest ends next.
    resting: RefCell<BTreeMap<Place, Waker>>,
    /// The number of the next rest.
    next: Cell<u64>,
    /// The round of the rest that ended last.
    round: Cell<u64>,
    /// Of the first one's rest, once it was seen to wait.
    timer: RefCell<Option<Timer>>,
}

impl Turns {
    /// The runtime has looked, and something has arrived.
    pub fn looked(&self) {
        self.looks.set(self.looks.get() + 1);
    }

    /// Whether there are small calls at the moment.
    pub fn others_wait(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.has_small)
    }

    /// Whether there are small calls, asked for a turn that took long.
    fn take_small(&self) -> bool {
        let left = self.small.get().checked_sub(1);
        self.set_small(left.unwrap_or(0));
        left.is_some()
    }

    fn set_small(&self, turns: u32) {
        self.small.set(turns);
        self.has_small.set(turns > 0);
    }

    /// A rest of a share that had its last place in `last_round`.
    fn rest(self: &Rc<Self>, last_round: u64) -> Rest {
        let number = self.next.replace(self.next.get() + 1);
        let mut resting = self.resting.borrow_mut();
        // Not before the one whose rest ends next.
        let round = resting
            .first_key_value()
            .map_or(self.round.get(), |(place, _)| place.0)
            .max(last_round + 1);
        let place = (round, number);
        resting.insert(place, Waker::noop().clone());
        Rest {
            turns: Rc::clone(self),
            place,
            lets_run: Cell::new(LETS_RUN),
            has_looked: Cell::default(),
        }
    }
}

/// A rest. To be polled until it is over, or dropped.
struct Rest {
    turns: Rc<Turns>,
    place: Place,
    /// The runtime has looked since this one is the first.
    has_looked: Cell<bool>,
    /// How often it still lets others run that are ready.
    lets_run: Cell<u32>,
}

impl Rest {
    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let turns = &*self.turns;
        let mut resting = turns.resting.borrow_mut();
        let is_first = match resting.first_key_value() {
            Some((first, _)) => *first == self.place,
            None => return Poll::Ready(()),
        };
        if !is_first {
            return match resting.get_mut(&self.place) {
                Some(waker) => {
                    waker.clone_from(context.waker());
                    Poll::Pending
                }
                None => Poll::Ready(()),
            };
        }
        drop(resting);
        if !self.has_looked.get() {
            ready!(turns.poll_timer(context));
            self.has_looked.set(true);
        }
        if let Some(left) = self.lets_run.get().checked_sub(1) {
            self.lets_run.set(left);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.end();
        Poll::Ready(())
    }

    fn end(&self) {
        let turns = &*self.turns;
        let mut resting = turns.resting.borrow_mut();
        let is_first = resting.first_key_value().map(|(first, _)| *first) == Some(self.place);
        if resting.remove(&self.place).is_some() && is_first {
            turns.round.set(self.place.0);
            drop(turns.timer.take());
            if let Some((_, waker)) = resting.first_key_value() {
                waker.wake_by_ref();
            }
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.end();
    }
}

impl Turns {
    /// Waits until the runtime has looked.
    fn poll_timer(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut seen = self.timer.borrow_mut();
        if let Some(timer) = &mut *seen {
            return Pin::new(timer).poll(context).map(drop);
        }
        // A timer that is over when it is first asked was no rest: the thread had to wait for its CPU.
        loop {
            let mut timer = Timer::new(REST);
            if Pin::new(&mut timer).poll(context).is_pending() {
                *seen = Some(timer);
                return Poll::Pending;
            }
        }
    }
}

/// What was done for one connection, by all of its tasks together.
pub struct Share {
    turns: Rc<Turns>,
    /// The look since which it was at work for so long.
    look: Cell<u64>,
    used: Cell<Duration>,
    /// Looks until it is small again.
    large: Cell<u32>,
    /// Who goes on rests before.
    is_due: Cell<bool>,
    /// Of its last rest.
    round: Cell<u64>,
}

impl Share {
    /// Nothing was done yet.
    pub fn new(turns: &Rc<Turns>) -> Rc<Share> {
        Rc::new(Share {
            look: Cell::new(turns.looks.get()),
            turns: Rc::clone(turns),
            used: Cell::default(),
            large: Cell::default(),
            is_due: Cell::default(),
            round: Cell::default(),
        })
    }

    fn rest(&self) -> Rest {
        let rest = self.turns.rest(self.round.get());
        self.round.set(rest.place.0);
        rest
    }

    /// Somebody has rested.
    fn rested(&self) {
        self.used.set(Duration::ZERO);
        self.is_due.set(false);
    }

    /// It was at work for so long.
    fn took(&self, time: Duration) {
        let looks = self.turns.looks.get();
        if self.look.replace(looks) != looks {
            let used = self.used.take();
            match self.large.get().checked_sub(1) {
                Some(left) if used < TURN => self.large.set(left),
                None if !used.is_zero() => self.turns.set_small(SMALL_REMEMBERED),
                _ => {}
            }
        }
        self.used.set(self.used.get() + time);
        if self.used.get() >= TURN {
            self.large.set(SMALL_AGAIN);
            self.is_due.set(true);
        }
    }
}

/// One task's part.
struct Turn {
    share: Rc<Share>,
    rest: RefCell<Option<Rest>>,
}

impl Turn {
    fn new(share: &Rc<Share>) -> Turn {
        Turn {
            share: Rc::clone(share),
            rest: RefCell::default(),
        }
    }

    /// Waits until it may go on.
    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut rest = self.rest.borrow_mut();
        if rest.is_none() && self.share.is_due.get() {
            if self.share.turns.take_small() {
                *rest = Some(self.share.rest());
            } else {
                self.share.is_due.set(false);
            }
        }
        if let Some(resting) = &*rest {
            ready!(resting.poll(context));
            *rest = None;
            self.share.rested();
        }
        Poll::Ready(())
    }
}

/// A task that takes its turns: it is polled when it may go on.
pub struct InTurn<F> {
    future: F,
    turn: Turn,
}

impl<F> InTurn<F> {
    /// What `future` does counts for `share`.
    pub fn new(future: F, share: &Rc<Share>) -> InTurn<F> {
        InTurn {
            future,
            turn: Turn::new(share),
        }
    }
}

impl<F: Future + Unpin> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        ready!(this.turn.poll(context));
        let begun = Instant::now();
        let polled = Pin::new(&mut this.future).poll(context);
        this.turn.share.took(begun.elapsed());
        polled
    }
}

/// Ends a turn of the task that calls this, which goes on in its next one.
pub async fn end_turn() {
    let mut over = false;
    poll_fn(|context| {
        if std::mem::replace(&mut over, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use glommio::LocalExecutor;

    use super::*;

    fn run(story: impl AsyncFnOnce(Rc<Turns>)) {
        LocalExecutor::default().run(story(Rc::default()));
    }

    /// A task with a share of its own.
    fn alone(turns: &Rc<Turns>) -> Turn {
        Turn::new(&Share::new(turns))
    }

    /// A small call has come and is over.
    fn small_call(turns: &Rc<Turns>) {
        let small = alone(turns);
        small.share.took(TURN / 2);
        turns.looked();
        small.share.took(TURN / 2);
    }

    async fn go_on(turn: &Turn) {
        poll_fn(|context| turn.poll(context)).await;
    }

    /// Whether it has to wait; if so, until it may go on.
    async fn rests(turn: &Turn) -> bool {
        if go_on(turn).now_or_never().is_some() {
            return false;
        }
        go_on(turn).await;
        true
    }

    /// Waits until the runtime has looked.
    async fn look() {
        let rest = Rc::<Turns>::default().rest(0);
        poll_fn(|context| rest.poll(context)).await;
    }

    #[test]
    fn who_takes_long_rests_while_there_are_small_calls_and_no_longer() {
        run(async |turns| {
            let large = alone(&turns);
            large.share.took(TURN);
            assert!(!rests(&large).await, "nobody waits for it");
            small_call(&turns);
            for _ in 0..SMALL_REMEMBERED {
                large.share.took(TURN);
                assert!(rests(&large).await);
                assert!(!rests(&large).await, "it rests once");
            }
            large.share.took(TURN);
            assert!(!rests(&large).await, "the small call is long ago");
        });
    }

    #[test]
    fn what_counts_is_the_time_since_the_runtime_looked_or_it_rested() {
        run(async |turns| {
            let turn = alone(&turns);
            small_call(&turns);
            turn.share.took(TURN / 2);
            turns.looked();
            turn.share.took(TURN / 2);
            assert!(!rests(&turn).await);
            turn.share.took(TURN / 2);
            assert!(rests(&turn).await, "without a look it took long");
            turn.share.took(TURN / 2);
            assert!(!rests(&turn).await);
        });
    }

    #[test]
    fn who_took_long_is_small_only_after_some_looks() {
        run(async |turns| {
            let (turn, large) = (alone(&turns), alone(&turns));
            turn.share.took(TURN);
            // The look that ends the long turn, and those that make up for it.
            for _ in 0..1 + SMALL_AGAIN {
                turns.looked();
                turn.share.took(TURN / 4);
                large.share.took(TURN);
                assert!(!rests(&large).await);
            }
            turns.looked();
            turn.share.took(TURN / 4);
            large.share.took(TURN);
            assert!(rests(&large).await);
        });
    }

    #[test]
    fn after_each_look_one_of_those_that_rest_goes_on_in_their_order() {
        run(async |turns| {
            small_call(&turns);
            let all: Vec<_> = (0..5).map(|_| alone(&turns)).collect();
            let mut resting: Vec<_> = all.iter().map(|turn| Box::pin(go_on(turn))).collect();
            all.iter().for_each(|turn| turn.share.took(TURN));
            for rest in &mut resting {
                assert!(rest.now_or_never().is_none());
            }
            for first in 0..resting.len() {
                look().await;
                let behind = resting[first + 1..].iter_mut();
                let behind_goes_on = behind
                    .map(FutureExt::now_or_never)
                    .any(|over| over.is_some());
                assert!(!behind_goes_on, "{first} is the first");
                (&mut resting[first]).await;
            }
        });
    }

    #[test]
    fn who_goes_on_runs_behind_those_whom_the_look_has_woken() {
        run(async |turns| {
            small_call(&turns);
            let turn = alone(&turns);
            turn.share.took(TURN);
            let mut rest = Box::pin(go_on(&turn));
            assert!((&mut rest).now_or_never().is_none());
            look().await;
            // The one that tells of arrivals is polled behind this one, and what it wakes behind that.
            for _ in 0..LETS_RUN {
                assert!((&mut rest).now_or_never().is_none());
            }
            assert!((&mut rest).now_or_never().is_some());
        });
    }

    #[test]
    fn who_goes_while_it_rests_keeps_nobody() {
        run(async |turns| {
            small_call(&turns);
            let mut all: Vec<_> = (0..4).map(|_| alone(&turns)).collect();
            for turn in &all {
                turn.share.took(TURN);
                assert!(go_on(turn).now_or_never().is_none());
            }
            let last = all.pop().unwrap();
            let (mut others, mut kept) = (all.into_iter(), None);
            let waits = glommio::spawn_local(async move { go_on(&last).await });
            // The first, whose timer runs, goes at once, another one later, one never.
            drop(others.next());
            look().await;
            drop(others.next());
            kept.replace(others.next().unwrap());
            go_on(kept.as_ref().unwrap()).await;
            waits.await;
            assert!(turns.resting.borrow().is_empty() && turns.timer.borrow().is_none());
        });
    }

    #[test]
    fn a_task_in_turn_is_polled_when_it_may_go_on() {
        run(async |turns| {
            let polls = Rc::new(Cell::new(0));
            let counted = Rc::clone(&polls);
            let mut task = InTurn::new(
                poll_fn(move |_| {
                    counted.set(counted.get() + 1);
                    let begun = Instant::now();
                    while begun.elapsed() < TURN {}
                    Poll::<()>::Pending
                }),
                &Share::new(&turns),
            );
            for polled in 1..=2 {
                assert!((&mut task).now_or_never().is_none());
                assert_eq!(polls.get(), polled, "there are no small calls");
            }
            small_call(&turns);
            assert!((&mut task).now_or_never().is_none());
            assert_eq!(polls.get(), 2, "it rests");
            look().await;
            for _ in 0..=LETS_RUN {
                assert_eq!(polls.get(), 2, "it rests");
                assert!((&mut task).now_or_never().is_none());
            }
            assert_eq!(polls.get(), 3);
        });
    }

    /// Lets the first of those that rest go on, and says which one it was.
    async fn next_of<'a>(
        resting: &mut Vec<(&'a str, std::pin::Pin<Box<impl Future<Output = ()>>>)>,
    ) -> &'a str {
        loop {
            look().await;
            for at in 0..resting.len() {
                if (&mut resting[at].1).now_or_never().is_some() {
                    return resting.remove(at).0;
                }
            }
        }
    }

    #[test]
    fn the_tasks_of_one_connection_rest_for_what_all_of_them_did_and_others_go_between_them() {
        run(async |turns| {
            let (busy, other) = (Share::new(&turns), Share::new(&turns));
            let tasks: Vec<_> = (0..3).map(|_| Turn::new(&busy)).collect();
            let one = Turn::new(&other);
            small_call(&turns);
            tasks[0].share.took(TURN / 2);
            assert!(go_on(&tasks[2]).now_or_never().is_some());
            tasks[1].share.took(TURN / 2);
            one.share.took(TURN);
            let mut resting: Vec<_> = tasks
                .iter()
                .map(|task| ("busy", Box::pin(go_on(task))))
                .chain([("other", Box::pin(go_on(&one)))])
                .collect();
            for (_, rest) in &mut resting {
                assert!(rest.now_or_never().is_none());
            }
            let mut order = Vec::new();
            while !resting.is_empty() {
                order.push(next_of(&mut resting).await);
            }
            assert_eq!(order, ["busy", "other", "busy", "busy"]);
            assert!(!rests(&tasks[0]).await, "all have rested");
        });
    }
}

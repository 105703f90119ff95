//! A deterministic executor: one thread, no clock, the next task to poll chosen by chance among those that were woken.
//!
//! With the completions of the simulated disk in random order as well, a seed decides the whole interleaving of the
//! engine's tasks. Used by every test of storage.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::storage::disk::sim::{Rng, SimDisk};

/// Far more turns than any test needs to come to rest.
const TURNS_MAX: u32 = 1_000_000;

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Flag>,
}

/// Where the result of a task arrives.
pub(super) struct Handle<T>(Rc<RefCell<Option<T>>>);

impl<T> Handle<T> {
    /// The result, once.
    pub(super) fn take(&self) -> Option<T> {
        self.0.borrow_mut().take()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.0.borrow().is_some()
    }
}

/// A set of tasks.
pub(super) struct Executor {
    tasks: Vec<Task>,
    rng: Rng,
}

impl Executor {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            tasks: Vec::new(),
            rng,
        }
    }

    pub(super) fn spawn<T: 'static>(
        &mut self,
        future: impl Future<Output = T> + 'static,
    ) -> Handle<T> {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        let future = Box::pin(async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        });
        self.tasks.push(Task {
            future,
            woken: Arc::new(Flag(AtomicBool::new(true))),
        });
        Handle(result)
    }

    /// Polls one woken task. False when all tasks wait.
    pub(super) fn turn(&mut self) -> bool {
        let woken = |task: &Task| task.woken.0.load(Ordering::Relaxed);
        let ready: Vec<usize> = (0..self.tasks.len())
            .filter(|&index| woken(&self.tasks[index]))
            .collect();
        if ready.is_empty() {
            return false;
        }
        let index = ready[self.rng.index(ready.len())];
        let task = &mut self.tasks[index];
        task.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&task.woken));
        if let Poll::Ready(()) = task.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            drop(self.tasks.swap_remove(index));
        }
        true
    }

    /// Polls until all tasks wait. Panics when they keep waking each other.
    pub(super) fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            if !self.turn() {
                return;
            }
        }
        panic!("the tasks never come to rest");
    }

    /// Polls and completes operations until nothing moves any more.
    pub(super) fn exhaust(&mut self, disk: &SimDisk) {
        for _ in 0..TURNS_MAX {
            self.settle();
            if !disk.step() {
                return;
            }
        }
        panic!("the tasks never run out of operations");
    }
}

/// Runs one future to its end on `disk`, alone. Panics when it waits for something that cannot come.
pub(super) fn run<T: 'static>(disk: &SimDisk, future: impl Future<Output = T> + 'static) -> T {
    let mut executor = Executor::new(Rng::new(0));
    let handle = executor.spawn(future);
    loop {
        executor.settle();
        if let Some(value) = handle.take() {
            return value;
        }
        assert!(disk.step(), "the future waits and nothing is in flight");
    }
}

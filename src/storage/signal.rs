//! A wake-up between tasks of one thread that needs no runtime: somebody waits until a condition holds, somebody else
//! says that it may have changed.

use std::cell::RefCell;
use std::task::{Poll, Waker};

/// Wakes the tasks that wait for a condition. A handful of them at most.
#[derive(Default)]
pub(super) struct Signal {
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// The condition of some waiter may hold now.
    pub(super) fn notify(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Returns once `ready` does; asks again after each [`Signal::notify`].
    pub(super) async fn until(&self, mut ready: impl FnMut() -> bool) {
        std::future::poll_fn(|context| {
            if ready() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

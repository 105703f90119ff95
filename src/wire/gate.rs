//! A future that is polled only when it was woken.
//!
//! What waits for one of several futures polls them all, whichever of them has something to do. A gate spares those that
//! have nothing: it gives its future a waker of its own, and remembers whether that was used, on whichever thread.
//! Used where a future that is woken often waits together with such as are hardly ever woken: by a connection for
//! `capnp_rpc`, by its callers for the end that they may have to make.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// A future that is polled when it was woken, and once to begin with. Whoever owns it may poll it as often as they like.
pub struct Gate<F> {
    future: F,
    bell: Bell,
    /// Who hears the bell.
    parent: Waker,
}

impl<F: Future + Unpin> Gate<F> {
    /// Puts `future` behind a gate.
    pub fn new(future: F) -> Self {
        let bell = Bell::new();
        bell.waker().wake_by_ref();
        Self {
            future,
            bell,
            parent: Waker::noop().clone(),
        }
    }

    /// Whether the next poll reaches the future.
    pub(super) fn is_woken(&self) -> bool {
        self.bell.is_rung()
    }

    pub(super) fn get_ref(&self) -> &F {
        &self.future
    }

    pub(super) fn get_mut(&mut self) -> &mut F {
        &mut self.future
    }
}

impl<F: Future + Unpin> Future for Gate<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        // First this, or a bell that rings now would wake nobody.
        if !this.parent.will_wake(context.waker()) {
            this.parent.clone_from(context.waker());
            this.bell.set_parent(context.waker());
        }
        if !this.bell.take() {
            return Poll::Pending;
        }
        Pin::new(&mut this.future).poll(&mut Context::from_waker(this.bell.waker()))
    }
}

/// A waker that remembers that it was used, and wakes another one.
pub(super) struct Bell {
    ring: Arc<Ring>,
    waker: Waker,
}

struct Ring {
    rung: AtomicBool,
    parent: Mutex<Waker>,
}

impl Bell {
    pub(super) fn new() -> Self {
        let ring = Arc::new(Ring {
            rung: AtomicBool::new(false),
            parent: Mutex::new(Waker::noop().clone()),
        });
        Self {
            waker: Waker::from(Arc::clone(&ring)),
            ring,
        }
    }

    /// What rings it.
    pub(super) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// From now on it wakes `parent`.
    pub(super) fn set_parent(&self, parent: &Waker) {
        self.ring.parent().clone_from(parent);
    }

    pub(super) fn is_rung(&self) -> bool {
        self.ring.rung.load(Ordering::Acquire)
    }

    /// Whether it was rung since the last time.
    pub(super) fn take(&self) -> bool {
        // Mostly it was not, and a look is cheaper than a change.
        self.is_rung() && self.ring.rung.swap(false, Ordering::AcqRel)
    }
}

impl Ring {
    fn parent(&self) -> MutexGuard<'_, Waker> {
        self.parent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Ring {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Not under the lock: what a waker does is not known here.
            let parent = self.parent().clone();
            parent.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::sync::atomic::AtomicUsize;

    use futures::FutureExt as _;
    use futures::channel::oneshot;

    use super::*;

    /// Counts how often it is used.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Count {
        fn so_far(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn count() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), Waker::from(count))
    }

    /// A gated oneshot, and how often it was polled.
    fn gated() -> (
        oneshot::Sender<u32>,
        Rc<Cell<usize>>,
        Gate<impl Future<Output = u32> + Unpin>,
    ) {
        let (sender, mut receiver) = oneshot::channel();
        let polls = Rc::new(Cell::new(0));
        let counted = Rc::clone(&polls);
        let future = poll_fn(move |context| {
            counted.set(counted.get() + 1);
            receiver.poll_unpin(context).map(|sent| sent.unwrap_or(0))
        });
        (sender, polls, Gate::new(future))
    }

    #[test]
    fn a_gate_polls_at_first_and_then_only_when_it_was_woken() {
        let (sender, polls, mut gate) = gated();
        let (woken, waker) = count();
        let mut context = Context::from_waker(&waker);
        assert!(gate.is_woken());
        for _ in 0..5 {
            assert_eq!(gate.poll_unpin(&mut context), Poll::Pending);
            assert!(!gate.is_woken());
        }
        assert_eq!((polls.get(), woken.so_far()), (1, 0));
        sender.send(7).unwrap();
        assert!(gate.is_woken());
        assert_eq!(woken.so_far(), 1);
        assert_eq!(gate.poll_unpin(&mut context), Poll::Ready(7));
        assert_eq!(polls.get(), 2);
    }

    #[test]
    fn a_future_that_wakes_itself_is_polled_again_in_the_next_turn() {
        let mut left = 3;
        let mut gate = Gate::new(poll_fn(|context| {
            context.waker().wake_by_ref();
            left -= 1;
            if left == 0 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }));
        let (woken, waker) = count();
        let mut context = Context::from_waker(&waker);
        assert!(gate.poll_unpin(&mut context).is_pending());
        assert!(gate.poll_unpin(&mut context).is_pending());
        assert_eq!(woken.so_far(), 2);
        assert!(gate.poll_unpin(&mut context).is_ready());
    }

    #[test]
    fn a_gate_that_changes_its_task_wakes_the_new_one() {
        let (sender, _, mut gate) = gated();
        let ((old, old_waker), (new, new_waker)) = (count(), count());
        for waker in [&old_waker, &new_waker] {
            let polled = gate.poll_unpin(&mut Context::from_waker(waker));
            assert!(polled.is_pending());
        }
        sender.send(1).unwrap();
        assert_eq!((old.so_far(), new.so_far()), (0, 1));
    }

    #[test]
    fn a_wake_from_another_thread_arrives() {
        for round in 0..2_000 {
            let (sender, polls, mut gate) = gated();
            let other = std::thread::spawn(move || sender.send(round).unwrap());
            assert_eq!(futures::executor::block_on(&mut gate), round);
            assert!(polls.get() <= 2);
            other.join().unwrap();
        }
    }

    #[test]
    fn a_bell_that_was_rung_for_nothing_rings_again() {
        let bell = Bell::new();
        let (woken, waker) = count();
        bell.set_parent(&waker);
        bell.waker().wake_by_ref();
        bell.waker().wake_by_ref();
        assert_eq!(woken.so_far(), 1, "nobody has looked");
        assert!(bell.take() && !bell.take());
        bell.waker().wake_by_ref();
        assert_eq!(woken.so_far(), 2);
    }
}

//! Room in memory that is taken before there is something to fill it with, and waited for in order.
//!
//! Guarantees: what is taken at one time is at most the whole room; whoever asked first gets its part first; a part that
//! is given back, or is not wanted any more, goes to the next. Used for values and pages between the store and the
//! answer: by each connection for what it has read, by a shard for what it sends to another one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::channel::oneshot;

/// Room for a number of bytes.
pub struct Room {
    whole: usize,
    free: Cell<usize>,
    /// What other threads have given back and nobody here has seen yet.
    returned: Arc<AtomicUsize>,
    waiting: RefCell<VecDeque<Waiting>>,
}

struct Waiting {
    bytes: usize,
    granted: oneshot::Sender<Part>,
}

/// A part of the room, given back when it is dropped.
pub struct Part {
    room: Rc<Room>,
    bytes: usize,
}

/// A part that goes to another thread with what is in it. Given back when the last of its clones is dropped; the room's
/// owner sees that with `Room::collect`.
#[derive(Clone)]
pub struct Lent(#[expect(dead_code, reason = "dropped")] Arc<LentPart>);

struct LentPart {
    bytes: usize,
    returned: Arc<AtomicUsize>,
}

impl Drop for LentPart {
    fn drop(&mut self) {
        self.returned.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

impl Part {
    /// Keeps only `bytes`, if those are fewer.
    pub(super) fn shrink(&mut self, bytes: usize) {
        if bytes < self.bytes {
            let more = self.bytes - bytes;
            self.bytes = bytes;
            self.room.give(more);
        }
    }

    /// Makes it fit for another thread.
    pub(super) fn lend(mut self) -> Lent {
        Lent(Arc::new(LentPart {
            bytes: std::mem::take(&mut self.bytes),
            returned: Arc::clone(&self.room.returned),
        }))
    }
}

impl Room {
    /// Room for `whole` bytes.
    pub fn new(whole: usize) -> Rc<Room> {
        Rc::new(Room {
            whole,
            free: Cell::new(whole),
            returned: Arc::default(),
            waiting: RefCell::default(),
        })
    }

    /// Takes room for `bytes`, when it is free; more than there is, is all of it.
    pub async fn take(self: &Rc<Self>, bytes: usize) -> Part {
        let bytes = bytes.min(self.whole);
        if self.waiting.borrow().is_empty() && self.free.get() >= bytes {
            return self.part(bytes);
        }
        let (granted, part) = oneshot::channel();
        let waiting = Waiting { bytes, granted };
        self.waiting.borrow_mut().push_back(waiting);
        part.await.expect("the room outlives whoever waits for it")
    }

    fn part(self: &Rc<Self>, bytes: usize) -> Part {
        self.free.set(self.free.get() - bytes);
        Part {
            room: Rc::clone(self),
            bytes,
        }
    }

    /// Takes back what came from other threads.
    pub(super) fn collect(self: &Rc<Self>) {
        let bytes = self.returned.swap(0, Ordering::Relaxed);
        if bytes > 0 {
            self.give(bytes);
        }
    }

    fn give(self: &Rc<Self>, bytes: usize) {
        self.free.set(self.free.get() + bytes);
        self.grant();
    }

    /// Gives what is free to whoever waits.
    fn grant(self: &Rc<Self>) {
        loop {
            let mut waiting = self.waiting.borrow_mut();
            match waiting.front() {
                Some(first) if first.granted.is_canceled() => drop(waiting.pop_front()),
                Some(first) if first.bytes <= self.free.get() => {
                    let first = waiting.pop_front().expect("the first is there");
                    drop(waiting);
                    let part = self.part(first.bytes);
                    // Dropped right now it would come back here.
                    assert!(
                        first.granted.send(part).is_ok(),
                        "nothing ran since it was not canceled"
                    );
                }
                _ => return,
            }
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.room.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn whoever_asked_first_is_first() {
        let room = Room::new(10);
        let first = room.take(6).now_or_never().expect("there is room");
        let mut second = Box::pin(room.take(5));
        let mut third = Box::pin(room.take(1));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(
            third.as_mut().now_or_never().is_none(),
            "what fits does not overtake"
        );
        drop(first);
        let second = second.now_or_never().expect("there is room again");
        let third = third.now_or_never().expect("and for this too");
        assert_eq!(room.free.get(), 4);
        drop((second, third));
        assert_eq!(room.free.get(), 10);
    }

    #[test]
    fn who_does_not_wait_any_more_keeps_nothing() {
        let room = Room::new(10);
        let first = room.take(10).now_or_never().expect("there is room");
        let mut given_up = Box::pin(room.take(10));
        let mut granted_and_given_up = Box::pin(room.take(10));
        let mut last = Box::pin(room.take(10));
        for waiting in [&mut given_up, &mut granted_and_given_up, &mut last] {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        drop(given_up);
        drop(first);
        assert!(last.as_mut().now_or_never().is_none());
        drop(granted_and_given_up);
        assert!(last.now_or_never().is_some());
    }

    #[test]
    fn what_another_thread_drops_comes_back() {
        let room = Room::new(10);
        let mut part = room.take(10).now_or_never().expect("it is free");
        part.shrink(8);
        let lent = part.lend();
        assert_eq!(room.free.get(), 2);
        let also = lent.clone();
        std::thread::spawn(move || drop(lent)).join().unwrap();
        room.collect();
        assert_eq!(room.free.get(), 2, "a clone is left");
        let mut waiting = Box::pin(room.take(10));
        assert!(waiting.as_mut().now_or_never().is_none());
        std::thread::spawn(move || drop(also)).join().unwrap();
        room.collect();
        assert!(waiting.now_or_never().is_some());
        assert_eq!(room.free.get(), 10);
    }

    #[test]
    fn more_than_there_is_is_all_of_it() {
        let room = Room::new(10);
        let all = room.take(usize::MAX).now_or_never().expect("it is free");
        assert!(room.take(1).now_or_never().is_none());
        drop(all);
        assert!(room.take(1).now_or_never().is_some());
    }
}

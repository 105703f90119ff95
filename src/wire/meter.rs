//! What one connection holds and has done: the counters behind its budgets, for the caller's watchdogs and for an
//! orderly stop.
//!
//! Everything is a `Cell`: a connection lives on one thread. The waker that the connection leaves here lets a budget that
//! frees, a failure or something to be sent reach it: whatever woke it, it looks after both directions.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::WireLimits;
use super::bounds::Pace;

/// Counters and the stop switch of one connection. Made by [`Setup::new`](super::Setup::new).
pub struct Meter {
    limits: WireLimits,
    messages_in: Cell<u64>,
    bytes_in_flight: Cell<usize>,
    messages_in_flight: Cell<usize>,
    bytes_out_pending: Cell<usize>,
    /// Announced by `reserve_answer` and not queued yet.
    bytes_announced: Cell<usize>,
    bytes_read: Cell<u64>,
    bytes_written: Cell<u64>,
    partial: Cell<bool>,
    held: Cell<bool>,
    stopped: Cell<bool>,
    closed: Cell<bool>,
    failure: RefCell<Option<capnp::Error>>,
    pace: Pace,
    /// Wakes the connection's task.
    connection: RefCell<Waker>,
    idle_waiters: RefCell<Vec<Waker>>,
    /// Who waits until less than so many bytes are to be written.
    room_waiters: RefCell<BTreeMap<u64, (usize, Waker)>>,
    next_room_waiter: Cell<u64>,
}

impl Meter {
    pub(super) fn new(limits: WireLimits) -> Self {
        Self {
            limits,
            messages_in: Cell::new(0),
            bytes_in_flight: Cell::new(0),
            messages_in_flight: Cell::new(0),
            bytes_out_pending: Cell::new(0),
            bytes_announced: Cell::new(0),
            bytes_read: Cell::new(0),
            bytes_written: Cell::new(0),
            partial: Cell::new(false),
            held: Cell::new(false),
            stopped: Cell::new(false),
            closed: Cell::new(false),
            failure: RefCell::new(None),
            pace: Pace::default(),
            connection: RefCell::new(Waker::noop().clone()),
            idle_waiters: RefCell::new(Vec::new()),
            room_waiters: RefCell::default(),
            next_room_waiter: Cell::default(),
        }
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Messages received and given to the RPC system since the start.
    pub fn messages_in(&self) -> u64 {
        self.messages_in.get()
    }

    /// Bytes of received messages that are still alive: calls that are being worked on, answers that are being read.
    pub fn bytes_in_flight(&self) -> usize {
        self.bytes_in_flight.get()
    }

    /// Bytes of sent messages that the stream has not taken yet.
    pub fn bytes_out_pending(&self) -> usize {
        self.bytes_out_pending.get()
    }

    /// Announces an answer of `bytes`, before any memory is taken for it. False when the peer leaves so much unread that
    /// this answer must not be made: what was received before the bound was reached would otherwise be answered into
    /// memory without end.
    pub fn reserve_answer(&self, bytes: usize) -> bool {
        let announced = self.bytes_announced.get();
        if self.bytes_out_pending.get() + announced > self.limits.bytes_out_max {
            return false;
        }
        self.bytes_announced.set(announced + bytes);
        true
    }

    /// Bytes read from the peer since the start.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.get()
    }

    /// Bytes that the stream has taken since the start. While [`Self::bytes_out_pending`] is not zero and this stands
    /// still, the peer does not read.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.get()
    }

    /// Grows whenever bytes were read or written.
    pub fn progress(&self) -> u64 {
        self.bytes_read.get() + self.bytes_written.get()
    }

    /// Whether the peer owes the rest of a message that it has begun. Not while our own budgets hold the reading up:
    /// then the rest may be there, unread.
    pub fn partial_message(&self) -> bool {
        self.partial.get() && !self.held.get() && !self.stopped.get()
    }

    /// Stops receiving, for good: no further message is taken, not even one that is already read. What was received
    /// is still answered.
    pub fn stop_reading(&self) {
        self.stopped.set(true);
    }

    /// Whether the stream has taken everything that was sent.
    pub fn is_flushed(&self) -> bool {
        self.bytes_out_pending.get() == 0
    }

    /// Whether the connection has ended or is ending: nothing more is received, and what is sent from now on is lost.
    pub fn is_closed(&self) -> bool {
        self.closed.get() || self.has_failed()
    }

    /// Resolves when no received message is alive and everything sent is written; also when the connection has failed,
    /// because then nothing will be. Meant for after [`Self::stop_reading`].
    pub fn on_idle(&self) -> impl Future<Output = ()> {
        poll_fn(|context| {
            if self.is_idle() {
                return Poll::Ready(());
            }
            let mut waiters = self.idle_waiters.borrow_mut();
            if !waiters
                .iter()
                .any(|waiter| waiter.will_wake(context.waker()))
            {
                waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
    }

    /// Resolves when less than `bytes` wait for the stream to take them; also when it takes nothing any more.
    pub fn on_room(&self, bytes: usize) -> impl Future<Output = ()> {
        let number = self.next_room_waiter.get();
        self.next_room_waiter.set(number + 1);
        RoomWait {
            meter: self,
            bytes,
            number,
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes_out_pending.get() < bytes || self.is_closed()
    }

    fn wake_if_room(&self) {
        // Who is woken takes itself out.
        for (bytes, waiter) in self.room_waiters.borrow().values() {
            if self.has_room(*bytes) {
                waiter.wake_by_ref();
            }
        }
    }

    fn is_idle(&self) -> bool {
        (self.messages_in_flight.get() == 0 && self.is_flushed()) || self.failure.borrow().is_some()
    }

    fn wake_if_idle(&self) {
        if self.is_idle() {
            for waiter in self.idle_waiters.take() {
                waiter.wake();
            }
        }
    }

    /// Whether a message may be received now. If not, the connection is woken when it may.
    pub(super) fn poll_may_receive(&self) -> Poll<Result<(), capnp::Error>> {
        if let Some(failure) = &*self.failure.borrow() {
            return Poll::Ready(Err(failure.clone()));
        }
        let may = self.may_receive();
        self.held.set(!may);
        if may {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    pub(super) fn may_receive(&self) -> bool {
        !self.stopped.get()
            && self.bytes_in_flight.get() < self.limits.bytes_in_max
            && self.bytes_out_pending.get() < self.limits.bytes_out_max
            && self.failure.borrow().is_none()
    }

    /// The connection is polled, and this wakes it from now on. Returns whether something else did before.
    pub(super) fn set_connection(&self, waker: &Waker) -> bool {
        if self.connection.borrow().will_wake(waker) {
            return false;
        }
        self.connection.replace(waker.clone());
        true
    }

    /// The connection is not polled any more.
    pub(super) fn forget_connection(&self) {
        self.connection.replace(Waker::noop().clone());
    }

    /// What wakes the connection.
    pub(super) fn connection(&self) -> Waker {
        self.connection.borrow().clone()
    }

    pub(super) fn wake_connection(&self) {
        self.connection.borrow().wake_by_ref();
    }

    fn wake_if_held(&self) {
        if self.held.get() && self.may_receive() {
            self.held.set(false);
            self.wake_connection();
        }
    }

    pub(super) fn note_read(&self, bytes: usize, partial: bool) {
        self.bytes_read.set(self.bytes_read.get() + bytes as u64);
        self.partial.set(partial);
    }

    pub(super) fn note_received(&self, bytes: usize) {
        self.messages_in.set(self.messages_in.get() + 1);
        self.messages_in_flight
            .set(self.messages_in_flight.get() + 1);
        self.bytes_in_flight.set(self.bytes_in_flight.get() + bytes);
    }

    /// A message was received and is done with at once.
    pub(super) fn note_taken(&self) {
        self.messages_in.set(self.messages_in.get() + 1);
    }

    /// A received message is done with.
    pub(super) fn note_released(&self, bytes: usize) {
        self.messages_in_flight
            .set(self.messages_in_flight.get() - 1);
        self.bytes_in_flight.set(self.bytes_in_flight.get() - bytes);
        self.wake_if_held();
        self.wake_if_idle();
    }

    pub(super) fn note_queued(&self, bytes: usize) {
        // Which message was announced as what is not known; a message is at least as long as what it answers, and
        // everything announced is queued within a turn of the executor.
        self.bytes_announced
            .set(self.bytes_announced.get().saturating_sub(bytes));
        self.bytes_out_pending
            .set(self.bytes_out_pending.get() + bytes);
    }

    pub(super) fn note_written(&self, bytes: usize) {
        self.bytes_written
            .set(self.bytes_written.get() + bytes as u64);
        self.bytes_out_pending
            .set(self.bytes_out_pending.get() - bytes);
        self.wake_if_held();
        self.wake_if_idle();
        self.wake_if_room();
    }

    /// The writing direction is broken: nothing that is pending will be written, and receiving fails with `error`.
    pub(super) fn fail(&self, error: capnp::Error) {
        self.failure.borrow_mut().get_or_insert(error);
        self.bytes_out_pending.set(0);
        self.wake_connection();
        self.wake_if_idle();
        self.wake_if_room();
    }

    /// The RPC system gives the connection up.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.stop_reading();
        self.wake_if_room();
    }

    /// How many wait for room.
    #[cfg(test)]
    pub(super) fn room_waiters(&self) -> usize {
        self.room_waiters.borrow().len()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }
}

/// One that waits for room. Gone, it leaves nothing: a peer that does not read can begin and end as many as it likes.
struct RoomWait<'a> {
    meter: &'a Meter,
    bytes: usize,
    number: u64,
}

impl Future for RoomWait<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.meter.has_room(self.bytes) {
            return Poll::Ready(());
        }
        let waiter = (self.bytes, context.waker().clone());
        let mut waiters = self.meter.room_waiters.borrow_mut();
        waiters.insert(self.number, waiter);
        Poll::Pending
    }
}

impl Drop for RoomWait<'_> {
    fn drop(&mut self) {
        self.meter.room_waiters.borrow_mut().remove(&self.number);
    }
}

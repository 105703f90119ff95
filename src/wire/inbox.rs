//! What `capnp_rpc` receives: the receiver, and the place where the next message waits for it.
//!
//! The message loop of `capnp_rpc` asks for a message when it has dispatched the last. Its question is a task among
//! others, and being woken costs it a way through two sets of tasks; so what arrives is not for it to look at. The
//! connection does, as long as the loop waits, and wakes the loop only for a message that is its own.
//!
//! Guarantees: nothing is received before the loop has asked for it, so that what it was handed before has begun; when
//! it asks, what is there is looked at at once, unless the turn of the connection is over; what was received for a question
//! that was given up is the answer to the next one. One question at a time.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::capability::Promise;
use capnp_rpc::IncomingMessage;
use futures::io::AsyncRead;

use super::Meter;
use super::receive::Receiver;

/// A message, `None` at the end of the connection.
pub(super) type Received = Result<Option<Box<dyn IncomingMessage>>, capnp::Error>;

/// The receiving end of one connection.
pub(super) struct Inbox<R> {
    receiver: RefCell<Receiver<R>>,
    next: RefCell<Next>,
    meter: Rc<Meter>,
}

/// The next message for `capnp_rpc`.
enum Next {
    NotAsked,
    /// Who is woken when it is there.
    Awaited(Waker),
    Here(Received),
}

impl<R: AsyncRead + Unpin + 'static> Inbox<R> {
    pub(super) fn new(receiver: Receiver<R>, meter: Rc<Meter>) -> Rc<Self> {
        Rc::new(Self {
            receiver: RefCell::new(receiver),
            next: RefCell::new(Next::NotAsked),
            meter,
        })
    }

    /// To set it up.
    pub(super) fn receiver(&self) -> std::cell::RefMut<'_, Receiver<R>> {
        self.receiver.borrow_mut()
    }

    /// The next message, `None` when the peer has closed its side between two messages.
    pub(super) fn ask(self: &Rc<Self>) -> Promise<Option<Box<dyn IncomingMessage>>, capnp::Error> {
        let is_here = matches!(&*self.next.borrow(), Next::Here(_));
        let mut receiver = self.receiver.borrow_mut();
        if !is_here
            && !receiver.is_turn_over()
            && let Some(message) = receiver.take_ready()
        {
            return Promise::ok(Some(message));
        }
        drop(receiver);
        Promise::from_future(Question(Rc::clone(self)))
    }

    /// Receives, if `capnp_rpc` waits for a message. To be called whenever the connection is polled.
    pub(super) fn poll(&self, context: &mut Context<'_>) {
        self.receiver.borrow_mut().begin_turn();
        if !self.is_awaited() {
            return;
        }
        if let Poll::Ready(received) = self.receiver.borrow_mut().poll_receive(context)
            && let Next::Awaited(waker) = self.next.replace(Next::Here(received))
        {
            waker.wake();
        }
    }

    fn is_awaited(&self) -> bool {
        matches!(&*self.next.borrow(), Next::Awaited(_))
    }
}

/// Waits for the next message.
struct Question<R: AsyncRead + Unpin + 'static>(Rc<Inbox<R>>);

impl<R: AsyncRead + Unpin + 'static> Future for Question<R> {
    type Output = Received;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Received> {
        let inbox = &*self.0;
        match inbox.next.replace(Next::NotAsked) {
            Next::Here(received) => return Poll::Ready(received),
            // The connection receives.
            Next::Awaited(_) => {}
            Next::NotAsked => {
                // Whatever is waited for from here on is the connection's to wait for.
                let waker = inbox.meter.connection();
                let mut receiver = inbox.receiver.borrow_mut();
                if receiver.is_turn_over() {
                    waker.wake_by_ref();
                } else {
                    let received = receiver.poll_receive(&mut Context::from_waker(&waker));
                    if received.is_ready() {
                        return received;
                    }
                }
            }
        }
        inbox.next.replace(Next::Awaited(context.waker().clone()));
        Poll::Pending
    }
}

impl<R: AsyncRead + Unpin + 'static> Drop for Question<R> {
    fn drop(&mut self) {
        if self.0.is_awaited() {
            self.0.next.replace(Next::NotAsked);
        }
    }
}

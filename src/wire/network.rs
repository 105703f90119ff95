//! The network of two: what `capnp_rpc::RpcSystem` is given, made of an inbox and an outbox. Reading and writing are
//! not its affair: the connection does both (`connection.rs`).
//!
//! It decides when a connection is over: when its last handle is gone and what was sent is written, or the stream fails.

use std::rc::{Rc, Weak};

use capnp::capability::Promise;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{IncomingMessage, OutgoingMessage, VatNetwork};
use futures::channel::oneshot;
use futures::io::{AsyncRead, AsyncWrite};

use super::admission::Admission;
use super::asker::{Asker, Opening};
use super::connection::Traffic;
use super::direct::{Direct, DirectCalls};
use super::inbox::Inbox;
use super::receive::{FirstLook, Receiver};
use super::send::Outbox;
use super::write::{Sink, WriteNow, Writer};
use super::{Meter, WireLimits};

/// One connection between a client and a server, as `capnp_rpc` wants it.
pub(super) struct Network<R> {
    side: Side,
    outbox: Rc<Outbox>,
    /// Given out by the first `accept`, which `RpcSystem::new` calls.
    accepted: Option<Handle<R>>,
    alive: Weak<Alive<R>>,
    driver: Option<Promise<(), capnp::Error>>,
    writer: Rc<dyn WriteNow>,
    meter: Rc<Meter>,
}

impl<R: AsyncRead + Unpin + 'static> Network<R> {
    /// A network over `reader` and `writer`, and what reads and writes them; `side` is ours.
    pub(super) fn new<W>(
        reader: R,
        writer: W,
        side: Side,
        limits: WireLimits,
    ) -> (Self, Traffic<R, W>)
    where
        W: AsyncWrite + Unpin + 'static,
    {
        let meter = Rc::new(Meter::new(limits));
        let outbox = Rc::new(Outbox::new(Rc::clone(&meter)));
        let mut receiver = Receiver::new(reader, limits.message_bytes_max, Rc::clone(&meter));
        if side == Side::Server {
            receiver.guard(Admission::new(Rc::clone(&outbox)));
        }
        let inbox = Inbox::new(receiver, Rc::clone(&meter));
        let (gone, is_gone) = oneshot::channel();
        let alive = Rc::new(Alive {
            inbox: Rc::clone(&inbox),
            outbox: Rc::clone(&outbox),
            gone: Some(gone),
        });
        let sink = Sink::new(writer, Rc::clone(&outbox));
        let (end, is_written) = oneshot::channel();
        let writer = Writer::new(Rc::clone(&sink), end);
        let driver = Promise::from_future(async move {
            let result = is_written.await.unwrap_or_else(|oneshot::Canceled| {
                Err(capnp::Error::disconnected(
                    "the connection's writer is gone".to_string(),
                ))
            });
            // The RPC system ends with this promise; before, it must have given up the connection. The channel can only
            // close, which says the same.
            is_gone.await.unwrap_or_default();
            result
        });
        let network = Self {
            side,
            alive: Rc::downgrade(&alive),
            accepted: Some(Handle {
                alive: Some(alive),
                outbox: Rc::clone(&outbox),
                side,
            }),
            outbox,
            driver: Some(driver),
            writer: sink,
            meter: Rc::clone(&meter),
        };
        (network, Traffic::new(&inbox, writer, meter))
    }

    /// Answers the calls that `calls` takes without `capnp_rpc`. To be called before the first message is received.
    pub(super) fn answer_directly(&mut self, calls: Rc<dyn DirectCalls>) {
        if let Some(alive) = self.alive.upgrade() {
            let direct = Direct::new(
                calls,
                Rc::clone(&self.outbox),
                Rc::clone(&self.writer),
                Rc::clone(&self.meter),
            );
            let first_look = FirstLook::Answers(direct);
            alive.inbox.receiver().look_first(first_look);
        }
    }

    /// What makes calls without `capnp_rpc` on the capability that `opening` gives. To be called before that is.
    pub(super) fn ask_directly(&mut self, opening: Opening) -> Rc<Asker> {
        let alive = self
            .alive
            .upgrade()
            .expect("the first handle of the connection is not given out yet");
        let asker = Asker::new(opening, Rc::clone(&self.outbox), Rc::clone(&self.meter));
        let first_look = FirstLook::Asks(Rc::clone(&asker));
        alive.inbox.receiver().look_first(first_look);
        asker
    }
}

impl<R: AsyncRead + Unpin + 'static> VatNetwork<Side> for Network<R> {
    fn connect(&mut self, host: Side) -> Option<Box<dyn capnp_rpc::Connection<Side>>> {
        if host == self.side {
            return None;
        }
        let alive = self.alive.upgrade();
        Some(Box::new(Handle {
            alive,
            outbox: Rc::clone(&self.outbox),
            side: self.side,
        }))
    }

    fn accept(&mut self) -> Promise<Box<dyn capnp_rpc::Connection<Side>>, capnp::Error> {
        match self.accepted.take() {
            Some(connection) => Promise::ok(Box::new(connection)),
            None => Promise::from_future(futures::future::pending()),
        }
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), capnp::Error> {
        self.driver.take().unwrap_or_else(|| {
            Promise::err(capnp::Error::failed(
                "the connection is driven by an RPC system already".to_string(),
            ))
        })
    }
}

/// What the handles of a connection share; dropped with the last of them.
struct Alive<R> {
    inbox: Rc<Inbox<R>>,
    outbox: Rc<Outbox>,
    gone: Option<oneshot::Sender<()>>,
}

impl<R> Drop for Alive<R> {
    fn drop(&mut self) {
        self.outbox.abandon();
        if let Some(gone) = self.gone.take() {
            // Without a driver there is nobody to tell.
            gone.send(()).unwrap_or_default();
        }
    }
}

/// A handle of the connection; `alive` is `None` when it was taken after the connection's end.
struct Handle<R> {
    alive: Option<Rc<Alive<R>>>,
    outbox: Rc<Outbox>,
    side: Side,
}

impl<R: AsyncRead + Unpin + 'static> capnp_rpc::Connection<Side> for Handle<R> {
    fn get_peer_vat_id(&self) -> Side {
        match self.side {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    fn new_outgoing_message(&mut self, first_segment_words: u32) -> Box<dyn OutgoingMessage> {
        self.outbox.new_message(first_segment_words)
    }

    fn receive_incoming_message(
        &mut self,
    ) -> Promise<Option<Box<dyn IncomingMessage>>, capnp::Error> {
        match &self.alive {
            Some(alive) => alive.inbox.ask(),
            None => Promise::err(capnp::Error::disconnected(
                "the connection is closed".to_string(),
            )),
        }
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), capnp::Error> {
        self.outbox.shut_down(result)
    }
}

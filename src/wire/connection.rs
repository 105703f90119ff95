//! One connection as a future: it reads and writes the streams, and polls the `RpcSystem` above them when that was woken.
//!
//! Every wake of a connection comes here: something has arrived, an answer was made, a budget is free. Most of them do
//! not concern `capnp_rpc`, whose tasks cost more to look through than such a wake costs otherwise. So the streams are
//! the connection's, and wake it without a detour; what `capnp_rpc` waits for wakes it through a [`Gate`].
//!
//! A turn is: receive, as long as `capnp_rpc` waits for a message; let `capnp_rpc` work if it was woken, be it just now by
//! its message; write what all of that has queued. So what is received is dispatched, and what is sent is written, in the
//! turn in which it was received or sent. `capnp_rpc` gets one message in a turn: some take it milliseconds, and the other
//! connections wait meanwhile. A turn that has taken long beside others is interrupted between these steps.
//!
//! Made by the server's sessions and by the client.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use capnp::capability::{Client, FromClientHook};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{Disconnector, RpcSystem};
use futures::FutureExt as _;
use futures::io::{AsyncRead, AsyncWrite};

use super::asker::{Asker, Opening};
use super::direct::DirectCalls;
use super::gate::Gate;
use super::inbox::Inbox;
use super::network::Network;
use super::write::Writer;
use super::{Meter, WireLimits};

/// A connection that is being set up: nothing is read or written yet.
#[must_use = "a connection does nothing before it is started"]
pub struct Setup<R, W> {
    network: Network<R>,
    traffic: Traffic<R, W>,
    side: Side,
}

impl<R: AsyncRead + Unpin + 'static, W: AsyncWrite + Unpin + 'static> Setup<R, W> {
    /// A connection that reads from `reader` and writes to `writer`; `side` is ours. The streams need no buffers of
    /// their own.
    pub fn new(reader: R, writer: W, side: Side, limits: WireLimits) -> (Self, Rc<Meter>) {
        let (network, traffic) = Network::new(reader, writer, side, limits);
        let meter = Rc::clone(traffic.meter());
        let setup = Self {
            network,
            traffic,
            side,
        };
        (setup, meter)
    }

    /// The connection does less in one turn while `others_wait` is set, about as much as takes `turn`: there are others
    /// whose calls are short.
    pub fn share_turns(&mut self, others_wait: Rc<Cell<bool>>, turn: Duration) {
        self.traffic.meter().pace().follow(others_wait, turn);
    }

    /// Answers the calls that `calls` takes without `capnp_rpc`.
    pub fn answer_directly(&mut self, calls: Rc<dyn DirectCalls>) {
        self.network.answer_directly(calls);
    }

    /// What makes calls without `capnp_rpc` on the capability that `opening` gives.
    pub fn ask_directly(&mut self, opening: Opening) -> Rc<Asker> {
        self.network.ask_directly(opening)
    }

    /// The connection, which offers `bootstrap` to its peer.
    pub fn start(self, bootstrap: Option<Client>) -> Connection<R, W> {
        Connection {
            traffic: self.traffic,
            system: Gate::new(RpcSystem::new(Box::new(self.network), bootstrap)),
            next: Step::Receive,
            peer: match self.side {
                Side::Client => Side::Server,
                Side::Server => Side::Client,
            },
        }
    }
}

/// A connection, which lives as long as it is polled: to its end, which both sides and the streams may bring about.
#[must_use = "a connection does nothing unless it is polled"]
pub struct Connection<R, W> {
    traffic: Traffic<R, W>,
    system: Gate<RpcSystem<Side>>,
    /// What the turn goes on with.
    next: Step,
    peer: Side,
}

/// The steps of a turn, in their order.
#[derive(Clone, Copy)]
enum Step {
    Receive,
    Rpc,
    Send,
}

impl<R, W> Connection<R, W> {
    /// What the peer offers.
    pub fn bootstrap<T: FromClientHook>(&mut self) -> T {
        self.system.get_mut().bootstrap(self.peer)
    }

    /// Whether the steps that are left of the turn are more than a look.
    fn has_more_to_do(&self) -> bool {
        self.system.is_woken() || self.traffic.meter.bytes_out_pending() > 0
    }

    /// What ends the connection in order when it is polled.
    pub fn disconnector(&self) -> Disconnector<Side> {
        self.system.get_ref().get_disconnector()
    }
}

impl<R, W> Drop for Connection<R, W> {
    /// Ends what `capnp_rpc` still has to answer: a call that waits holds the connection's state, which holds the call.
    fn drop(&mut self) {
        // Done by the first poll; after an end in order there is nothing to do.
        self.disconnector().now_or_never();
    }
}

impl<R: AsyncRead + Unpin + 'static, W: AsyncWrite + Unpin> Future for Connection<R, W> {
    type Output = Result<(), capnp::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.traffic.begin_turn(context);
        let is_rest = !matches!(this.next, Step::Receive);
        loop {
            match this.next {
                Step::Receive => {
                    this.traffic.receive(context);
                    this.next = Step::Rpc;
                }
                Step::Rpc => {
                    let ended = Pin::new(&mut this.system).poll(context);
                    if ended.is_ready() {
                        return ended;
                    }
                    this.next = Step::Send;
                }
                Step::Send => {
                    this.traffic.send(this.system.is_woken());
                    this.next = Step::Receive;
                    break;
                }
            }
            if this.has_more_to_do() && this.traffic.meter.pace().is_turn_over() {
                break;
            }
        }
        // What has woken the connection may concern a step that it has not come to.
        if is_rest || !matches!(this.next, Step::Receive) {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// Reading and writing of one connection.
pub(super) struct Traffic<R, W> {
    /// Gone with the last handle of the connection.
    inbox: Weak<Inbox<R>>,
    writer: Writer<W>,
    meter: Rc<Meter>,
}

impl<R, W> Traffic<R, W> {
    pub(super) fn new(inbox: &Rc<Inbox<R>>, writer: Writer<W>, meter: Rc<Meter>) -> Self {
        Self {
            inbox: Rc::downgrade(inbox),
            writer,
            meter,
        }
    }

    pub(super) fn meter(&self) -> &Rc<Meter> {
        &self.meter
    }
}

impl<R: AsyncRead + Unpin + 'static, W: AsyncWrite + Unpin> Traffic<R, W> {
    /// Begins a turn of the connection, or the rest of one.
    pub(super) fn begin_turn(&self, context: &mut Context<'_>) {
        self.meter.pace().begin_turn();
        if self.meter.set_connection(context.waker()) {
            self.writer.set_connection(context.waker());
        }
        self.writer.begin_turn();
    }

    /// Receives as much as may be. Where nothing has arrived that is a look at the stream's flag, so that nobody tells
    /// apart what the connection was woken for.
    pub(super) fn receive(&self, context: &mut Context<'_>) {
        if let Some(inbox) = self.inbox.upgrade() {
            inbox.poll(context);
        }
    }

    /// Writes what is queued. `rpc_goes_on` says that `capnp_rpc` has more to do at once.
    pub(super) fn send(&mut self, rpc_goes_on: bool) {
        self.writer.poll(rpc_goes_on);
    }
}

impl<R, W> Drop for Traffic<R, W> {
    fn drop(&mut self) {
        // Whoever still has an answer to make has no task to wake with it.
        self.meter.forget_connection();
    }
}

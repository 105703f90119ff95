//! One connection: what the wire runs for it, its budgets, and how it ends.
//!
//! Owns: the count of calls in flight, and the order of an ending. Guarantees: whatever ends the connection, writes that
//! were submitted stay with the shard; a stop of the server answers everything that was received before the
//! connection closes. Does not: decode calls (`service`), accept (`listener`), or watch the clock (`sessions`).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use capnp_rpc::rpc_twoparty_capnp::Side;
use futures::future::{Either, select};
use glommio::timer::sleep;

use crate::limits;
use crate::proto::{ErrorWord, orlop_capnp::bootstrap};
use crate::server::connections::ConnectionSlot;
use crate::server::process::Process;
use crate::server::service::{Bootstrap, DirectStore};
use crate::server::sessions::Ending;
use crate::server::shard_server::ShardServer;
use crate::server::stream::Stream;
use crate::shard::room::{Part, Room};
use crate::shard::turns::{InTurn, Share, TURN};
use crate::shard::{Found, GetBegun, Shard, ShardError};
use crate::wire::{Gate, Meter, Setup, WireLimits};

/// The bounds of every connection.
const WIRE_LIMITS: WireLimits = WireLimits {
    message_bytes_max: limits::MESSAGE_BYTES_MAX,
    bytes_in_max: limits::CONNECTION_BYTES_IN_MAX,
    bytes_out_max: limits::CONNECTION_BYTES_OUT_MAX,
};

/// How often an ending connection looks whether the peer has everything.
const DELIVERY_POLL: Duration = Duration::from_millis(1);

/// What the methods of one connection share.
pub(crate) struct Session {
    server: Rc<ShardServer>,
    meter: Rc<Meter>,
    calls: Cell<usize>,
    streams: Cell<usize>,
    /// For what is read and not an answer yet: it is memory before the meter sees it.
    reads: Rc<Room>,
    /// Of the executor, for all of its tasks together.
    share: Rc<Share>,
}

/// A call in flight.
pub(crate) struct Call(Rc<Session>);

/// A stream of pushes under way.
pub(crate) struct StreamCall<'a>(&'a Session);

impl Session {
    /// Counts one more call, unless the connection has as many as it may, or the server stops.
    pub(crate) fn begin_call(self: &Rc<Self>) -> Result<Call, capnp::Error> {
        self.check_running()?;
        let calls = self.calls.get();
        if calls >= limits::CONNECTION_CALLS_MAX {
            return Err(ErrorWord::Overloaded.error(format_args!(
                "this connection has {calls} calls in flight, which is the limit: wait for answers"
            )));
        }
        self.calls.set(calls + 1);
        Ok(Call(Rc::clone(self)))
    }

    /// Counts one more stream, unless the connection has as many as it may.
    pub(crate) fn begin_stream(&self) -> Result<StreamCall<'_>, capnp::Error> {
        let streams = self.streams.get();
        if streams >= limits::CONNECTION_STREAMS_MAX {
            return Err(ErrorWord::Overloaded.error(format_args!(
                "this connection has {streams} calls of streamPrefix under way, which is the limit: wait for one to end"
            )));
        }
        self.streams.set(streams + 1);
        Ok(StreamCall(self))
    }

    /// Waits for room for a page of up to `bytes`, of which each shard may send as much.
    pub(crate) async fn page_room(&self, bytes: usize) -> Part {
        let shards = usize::from(self.shard().placement().shard_count());
        self.reads.take(bytes.saturating_mul(shards)).await
    }

    /// Looks a key up. The value has its room as long as the part is kept.
    ///
    /// # Errors
    /// As [`Shard::end_get`].
    pub(crate) async fn get(
        &self,
        begun: GetBegun,
    ) -> Result<(Option<Found>, Option<Part>), ShardError> {
        match begun {
            GetBegun::Answered(found) => Ok((found, None)),
            GetBegun::Waits(waiting) => {
                let part = match waiting.bytes_to_read() {
                    Some(bytes) if bytes >= limits::READ_COUNTED_BYTES_MIN => {
                        Some(self.reads.take(bytes).await)
                    }
                    _ => None,
                };
                Ok((self.shard().end_get(waiting).await?, part))
            }
        }
    }

    /// Makes sure that the peer reads its answers before another one of `bytes` is made.
    pub(crate) fn reserve_answer(&self, bytes: usize) -> Result<(), capnp::Error> {
        if self.meter.reserve_answer(bytes) {
            return Ok(());
        }
        Err(ErrorWord::Overloaded.error(format_args!(
            "over {} bytes of answers wait to be read on this connection, which is the limit: read them first",
            limits::CONNECTION_BYTES_OUT_MAX
        )))
    }

    /// An error once the server stops.
    pub(crate) fn check_running(&self) -> Result<(), capnp::Error> {
        if self.server.stop().is_requested() {
            return Err(stopping());
        }
        Ok(())
    }

    /// Resolves when the server stops.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + Unpin + use<> {
        self.server.stop().requested()
    }

    /// Waits for something of the peer's; an error once the server stops.
    pub(crate) async fn unless_stopped<T>(
        &self,
        waited: impl Future<Output = T>,
    ) -> Result<T, capnp::Error> {
        match select(std::pin::pin!(waited), self.stopping()).await {
            Either::Left((result, _)) => Ok(result),
            Either::Right(((), _)) => Err(stopping()),
        }
    }

    /// Waits until the peer has nearly everything that was sent. Whoever sends much waits for it before it makes more:
    /// the answers of other calls are sent behind it.
    pub(crate) async fn peer_reads(&self) -> Result<(), capnp::Error> {
        self.unless_stopped(self.meter.on_room(limits::CONNECTION_BYTES_AHEAD_MAX))
            .await
    }

    /// Does work of many steps on a task of its own, which takes its turns: what `capnp_rpc` is to do has none, and all of it
    /// that goes on is done in one turn of the connection. Dropped, it stops.
    pub(crate) async fn in_turns<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        glommio::spawn_local(InTurn::new(Box::pin(work), &self.share)).await
    }

    /// Its part of the executor's time.
    pub(crate) fn share(&self) -> &Rc<Share> {
        &self.share
    }

    pub(crate) fn shard(&self) -> &Rc<Shard> {
        self.server.shard()
    }

    pub(crate) fn process(&self) -> &Process {
        self.server.process()
    }
}

fn stopping() -> capnp::Error {
    ErrorWord::ShuttingDown.error("the server is stopping: reconnect")
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.calls.set(self.0.calls.get() - 1);
    }
}

impl Drop for StreamCall<'_> {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve(server: Rc<ShardServer>, stream: Stream, _slot: ConnectionSlot) {
    let (mut setup, meter) = Setup::new(stream.clone(), stream.clone(), Side::Server, WIRE_LIMITS);
    let share = Share::new(server.shard().turns());
    let session = Rc::new(Session {
        server: Rc::clone(&server),
        meter: Rc::clone(&meter),
        calls: Cell::new(0),
        streams: Cell::new(0),
        reads: Room::new(limits::CONNECTION_READS_BYTES_MAX),
        share: Rc::clone(&share),
    });
    setup.share_turns(server.shard().turns().others_wait(), TURN);
    let (_entry, mut ended) = server.sessions().enter(Rc::clone(&meter));
    let stop = session.stopping();
    if session.process().fast_path {
        setup.answer_directly(Rc::new(DirectStore::new(Rc::clone(&session))));
    }
    let bootstrap: bootstrap::Client = capnp_rpc::new_client(Bootstrap::new(session));
    let connection = InTurn::new(setup.start(Some(bootstrap.client)), &share);
    // Either comes once, and the connection is woken for every call.
    let over = Gate::new(select(&mut ended, stop));
    let connection = match select(connection, over).await {
        Either::Left((result, _)) => return server.note_session_end(result),
        Either::Right((Either::Left((ending, _)), _)) => return note_ending(ending.ok()),
        Either::Right((Either::Right(((), _)), connection)) => connection,
    };
    // The server stops: nothing more is received, what was received is answered.
    meter.stop_reading();
    let idle = std::pin::pin!(meter.on_idle());
    match select(connection, select(idle, ended)).await {
        Either::Left((result, _)) => server.note_session_end(result),
        Either::Right((Either::Left(((), _)), _connection)) => deliver(&stream).await,
        Either::Right((Either::Right((ending, _)), _)) => note_ending(ending.ok()),
    }
}

fn note_ending(ending: Option<Ending>) {
    match ending {
        Some(Ending::Stalled) => tracing::info!(
            seconds = limits::PEER_STALL_SECONDS_MAX,
            "closed a connection: its peer neither went on with a begun message nor read its answers"
        ),
        Some(Ending::Late) => tracing::warn!(
            "closed a connection while stopping: its calls were not answered in time"
        ),
        None => {}
    }
}

/// Waits until the peer has what was written: closing a socket with unread input discards what is still on its way.
async fn deliver(stream: &Stream) {
    if stream.shutdown_write().is_err() {
        return;
    }
    for _ in 0..limits::LINGER_MS_MAX {
        if stream.is_delivered() {
            return;
        }
        sleep(DELIVERY_POLL).await;
    }
}

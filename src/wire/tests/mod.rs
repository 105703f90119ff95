//! The promises of a connection, each over pipes in memory: nothing is lost or torn, nothing is allocated on a header's
//! word, budgets hold, and one turn's messages leave in one write.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator, ReaderSegments};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{IncomingMessage, VatNetwork as _};
use futures::FutureExt;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;

use crate::wire::frame::Assembler;
use crate::wire::network::Network;
use crate::wire::pipe::{PipeReader, PipeWriter, duplex, pipe};
use crate::wire::{Connection, Meter, Setup, WireLimits};
use framing::encoded;

use crate::proto::orlop_capnp::bootstrap;

mod asker;
mod closing;
mod framing;
mod hostile;
mod turns;
mod values;

const LIMITS: WireLimits = WireLimits {
    message_bytes_max: 4 << 20,
    bytes_in_max: 8 << 20,
    bytes_out_max: 8 << 20,
};

struct Info;

impl bootstrap::Server for Info {
    async fn info(
        self: Rc<Self>,
        _: bootstrap::InfoParams,
        mut results: bootstrap::InfoResults,
    ) -> Result<(), capnp::Error> {
        results.get().init_info().set_server_version("7.8.9");
        Ok(())
    }
}

fn connect(
    (reader, writer): (PipeReader, PipeWriter),
    side: Side,
    limits: WireLimits,
    bootstrap: Option<capnp::capability::Client>,
) -> (Connection<PipeReader, PipeWriter>, Rc<Meter>) {
    let (setup, meter) = Setup::new(reader, writer, side, limits);
    (setup.start(bootstrap), meter)
}

fn info_server() -> Option<capnp::capability::Client> {
    Some(capnp_rpc::new_client::<bootstrap::Client, _>(Info).client)
}

async fn version(client: &bootstrap::Client) -> Result<String, capnp::Error> {
    let response = client.info_request().send().promise.await?;
    Ok(response
        .get()?
        .get_info()?
        .get_server_version()?
        .to_string()?)
}

#[test]
fn two_rpc_systems_talk() {
    let (client_end, server_end) = duplex(1 << 16);
    let (mut client_side, client_meter) = connect(client_end, Side::Client, LIMITS, None);
    let (server_side, server_meter) = connect(server_end, Side::Server, LIMITS, info_server());
    let client: bootstrap::Client = client_side.bootstrap();
    let mut pool = LocalPool::new();
    pool.spawner().spawn_local(client_side.map(drop)).unwrap();
    pool.spawner().spawn_local(server_side.map(drop)).unwrap();
    assert_eq!(pool.run_until(version(&client)).unwrap(), "7.8.9");
    pool.run_until_stalled();
    assert!(
        client_meter.messages_in() >= 2,
        "an answer to the bootstrap and one to the call"
    );
    assert_eq!(client_meter.bytes_read(), server_meter.bytes_written());
    assert_eq!(server_meter.bytes_read(), client_meter.bytes_written());
    assert_eq!(
        (
            server_meter.bytes_out_pending(),
            server_meter.bytes_in_flight()
        ),
        (0, 0)
    );
}

#[test]
fn calls_of_one_turn_share_reads_and_writes() {
    const CALLS: usize = 64;
    let (client_end, server_end) = duplex(1 << 20);
    let (client_writer, server_reader, server_writer) = (
        client_end.1.clone(),
        server_end.0.clone(),
        server_end.1.clone(),
    );
    let (mut client_side, _) = connect(client_end, Side::Client, LIMITS, None);
    let (server_side, server_meter) = connect(server_end, Side::Server, LIMITS, info_server());
    let client: bootstrap::Client = client_side.bootstrap();
    let mut pool = LocalPool::new();
    pool.spawner().spawn_local(client_side.map(drop)).unwrap();
    pool.spawner().spawn_local(server_side.map(drop)).unwrap();
    pool.run_until(version(&client)).unwrap();
    pool.run_until_stalled();
    let before = (
        client_writer.writes(),
        server_reader.reads(),
        server_writer.writes(),
    );
    let messages_before = server_meter.messages_in();
    let calls = (0..CALLS).map(|_| version(&client));
    for answer in pool.run_until(futures::future::join_all(calls)) {
        assert_eq!(answer.unwrap(), "7.8.9");
    }
    pool.run_until_stalled();
    assert_eq!(server_meter.messages_in() - messages_before, CALLS as u64);
    assert_eq!(
        client_writer.writes() - before.0,
        1,
        "64 calls leave in one write"
    );
    assert_eq!(
        server_reader.reads() - before.1,
        1,
        "64 calls arrive in one read"
    );
    assert_eq!(
        server_writer.writes() - before.2,
        1,
        "64 answers leave in one write"
    );
}

/// A connection without an RPC system above it.
struct Bare {
    connection: Box<dyn capnp_rpc::Connection<Side>>,
    meter: Rc<Meter>,
    pool: LocalPool,
    outcome: Rc<RefCell<Option<Result<(), capnp::Error>>>>,
}

impl Bare {
    fn new(reader: PipeReader, writer: PipeWriter, limits: WireLimits) -> Self {
        // The server's side takes messages of the protocol only; these are of another kind.
        Self::on(Side::Client, reader, writer, limits)
    }

    fn on(side: Side, reader: PipeReader, writer: PipeWriter, limits: WireLimits) -> Self {
        let (mut network, mut traffic) = Network::new(reader, writer, side, limits);
        let meter = Rc::clone(traffic.meter());
        let connection = network.accept().now_or_never().unwrap().unwrap();
        let pool = LocalPool::new();
        let outcome = Rc::new(RefCell::new(None));
        let driver = network.drive_until_shutdown();
        let slot = Rc::clone(&outcome);
        pool.spawner()
            .spawn_local(driver.map(move |result| *slot.borrow_mut() = Some(result)))
            .unwrap();
        let turns = poll_fn(move |context| {
            traffic.begin_turn(context);
            traffic.receive(context);
            traffic.send(false);
            Poll::Pending::<()>
        });
        pool.spawner().spawn_local(turns).unwrap();
        Self {
            connection,
            meter,
            pool,
            outcome,
        }
    }

    fn receive(&mut self) -> Result<Option<Box<dyn IncomingMessage>>, capnp::Error> {
        let promise = self.connection.receive_incoming_message();
        self.pool.run_until(promise)
    }

    /// Starts to receive; the result appears in the slot.
    fn receive_later(&mut self) -> ReceiveSlot {
        let slot: ReceiveSlot = Rc::default();
        let promise = self.connection.receive_incoming_message();
        let fill = Rc::clone(&slot);
        let task = promise.map(move |result| *fill.borrow_mut() = Some(result));
        self.pool.spawner().spawn_local(task).unwrap();
        self.pool.run_until_stalled();
        slot
    }

    fn send(&mut self, value: &[u8]) -> Rc<Builder<HeapAllocator>> {
        let mut message = self.connection.new_outgoing_message(0);
        message
            .get_body()
            .unwrap()
            .set_as::<capnp::data::Owned>(value)
            .unwrap();
        message.send().1
    }
}

type ReceiveSlot = Rc<RefCell<Option<Result<Option<Box<dyn IncomingMessage>>, capnp::Error>>>>;

fn value_of(message: &dyn IncomingMessage) -> Vec<u8> {
    message
        .get_body()
        .unwrap()
        .get_as::<capnp::data::Reader<'_>>()
        .unwrap()
        .to_vec()
}

fn expect_value(received: Result<Option<Box<dyn IncomingMessage>>, capnp::Error>) -> Vec<u8> {
    value_of(received.unwrap().unwrap().as_ref())
}

#[test]
fn a_message_over_the_limit_ends_the_connection_with_a_reason() {
    let (client_end, server_end) = duplex(1 << 20);
    let client_writer = client_end.1.clone();
    let client_reader = client_end.0.clone();
    let (server_side, _) = connect(server_end, Side::Server, LIMITS, info_server());
    let mut pool = LocalPool::new();
    client_writer.put(&[0_u32.to_le_bytes(), (1_u32 << 20).to_le_bytes()].concat());
    let error = pool.run_until(server_side).unwrap_err();
    assert!(
        error
            .extra
            .contains("8388616 bytes or more is over the limit of 4194304 bytes"),
        "{}",
        error.extra
    );
    // The peer is told before the connection closes.
    let told = String::from_utf8_lossy(&client_reader.drain()).into_owned();
    assert!(told.contains("over the limit of 4194304 bytes"), "{told}");
}

#[test]
fn the_budget_of_received_bytes_holds_and_frees() {
    let (reader, peer) = pipe(1 << 20);
    let (_peer_reader, writer) = pipe(1 << 20);
    let limits = WireLimits {
        bytes_in_max: 2_000,
        ..LIMITS
    };
    let mut bare = Bare::new(reader.clone(), writer, limits);
    for number in 0..4 {
        peer.put(&encoded(&[number; 1_000], 256));
    }
    let first = bare.receive().unwrap().unwrap();
    let second = bare.receive().unwrap().unwrap();
    assert!(bare.meter.bytes_in_flight() >= 2_000);
    let third = bare.receive_later();
    assert!(
        third.borrow().is_none(),
        "over the budget nothing is received"
    );
    let reads = reader.reads();
    peer.put(&encoded(b"more", 16));
    bare.pool.run_until_stalled();
    assert_eq!(reader.reads(), reads, "over the budget nothing is read");
    drop(first);
    bare.pool.run_until_stalled();
    let third = expect_value(third.take().expect("the budget is free again"));
    assert_eq!(third, [2; 1_000]);
    drop(second);
    assert_eq!(expect_value(bare.receive()), [3; 1_000]);
    assert_eq!(expect_value(bare.receive()), b"more");
    assert_eq!(bare.meter.messages_in(), 5);
    assert_eq!(bare.meter.bytes_in_flight(), 0);
}

#[test]
fn a_peer_that_does_not_read_is_not_read() {
    let (reader, peer) = pipe(1 << 20);
    let (peer_reader, writer) = pipe(100);
    let limits = WireLimits {
        bytes_out_max: 1_000,
        ..LIMITS
    };
    let mut bare = Bare::new(reader, writer, limits);
    bare.send(&[1; 5_000]);
    bare.pool.run_until_stalled();
    assert!(bare.meter.bytes_out_pending() > 4_000);
    assert_eq!(bare.meter.bytes_written(), 100);
    let progress = bare.meter.progress();
    peer.put(&encoded(b"call", 16));
    let call = bare.receive_later();
    assert!(call.borrow().is_none());
    assert_eq!(
        bare.meter.progress(),
        progress,
        "the watchdog sees that nothing moves"
    );
    let mut taken = 0;
    while bare.meter.bytes_out_pending() >= 1_000 {
        taken += peer_reader.drain().len();
        bare.pool.run_until_stalled();
    }
    assert_eq!(
        expect_value(call.take().expect("under the bound again")),
        b"call"
    );
    while !bare.meter.is_flushed() {
        taken += peer_reader.drain().len();
        bare.pool.run_until_stalled();
    }
    taken += peer_reader.drain().len();
    assert_eq!(taken as u64, bare.meter.bytes_written());
}

#[test]
fn messages_of_one_turn_leave_in_one_write() {
    let (reader, _peer) = pipe(1 << 20);
    let (peer_reader, writer) = pipe(1 << 20);
    let counter = writer.clone();
    let mut bare = Bare::new(reader, writer, LIMITS);
    bare.pool.run_until_stalled();
    for number in 0..100_u8 {
        bare.send(&[number; 50]);
    }
    bare.pool.run_until_stalled();
    assert_eq!(counter.writes(), 1);
    let mut got = VecDeque::new();
    Assembler::new(1 << 20)
        .feed(&peer_reader.drain(), &mut got)
        .unwrap();
    assert_eq!(got.len(), 100);
    for number in 0..3_u8 {
        bare.send(&[number; 50]);
        bare.pool.run_until_stalled();
    }
    assert_eq!(counter.writes(), 4, "what is alone does not wait");
}

#[test]
fn large_segments_are_written_from_where_they_are() {
    let (reader, peer) = pipe(1 << 20);
    let (peer_reader, writer) = pipe(8 << 20);
    let recorder = writer.clone();
    let mut bare = Bare::new(reader, writer, LIMITS);
    let value: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 251) as u8).collect();
    bare.send(b"before");
    let sent = bare.send(&value);
    bare.send(b"after");
    bare.pool.run_until_stalled();
    let large = sent
        .get_segment(1)
        .expect("the value has a segment of its own");
    assert!(large.len() >= value.len());
    assert!(
        recorder.addresses().contains(&(large.as_ptr() as usize)),
        "written without a copy"
    );
    assert_eq!(recorder.writes(), 7, "one for each half MiB that has begun");
    assert_eq!(Rc::strong_count(&sent), 1, "let go when written");
    // And it comes back the same through a receiver that reads in small pieces.
    let bytes = peer_reader.drain();
    peer.put(&bytes);
    bare.receive().unwrap().unwrap();
    assert_eq!(expect_value(bare.receive()), value);
    assert_eq!(expect_value(bare.receive()), b"after");
}

#[test]
fn large_and_small_survive_a_narrow_pipe() {
    let (reader, writer) = pipe(777);
    reader.limit_reads(333);
    let mut bare = Bare::new(reader, writer, LIMITS);
    let values: Vec<Vec<u8>> = [10, 200_000, 0, 70_000, 65_536, 1]
        .into_iter()
        .map(|len| vec![len as u8; len])
        .collect();
    for value in &values {
        bare.send(value);
    }
    for value in &values {
        assert_eq!(&expect_value(bare.receive()), value);
    }
    assert!(bare.meter.is_flushed());
}

#[test]
fn a_partial_message_shows() {
    let (reader, peer) = pipe(1 << 20);
    let (_peer_reader, writer) = pipe(1 << 20);
    let mut bare = Bare::new(reader, writer, LIMITS);
    let bytes = encoded(&[5; 500], 100);
    let slot = bare.receive_later();
    assert!(!bare.meter.partial_message());
    peer.put(&bytes[..3]);
    bare.pool.run_until_stalled();
    assert!(bare.meter.partial_message());
    peer.put(&bytes[3..300]);
    bare.pool.run_until_stalled();
    assert!(bare.meter.partial_message());
    assert_eq!(bare.meter.progress(), 300);
    peer.put(&bytes[300..]);
    bare.pool.run_until_stalled();
    assert!(!bare.meter.partial_message());
    assert_eq!(expect_value(slot.take().unwrap()), [5; 500]);
}

#[test]
fn the_end_of_the_stream_is_told_from_a_torn_message() {
    for torn in [false, true] {
        let (reader, peer) = pipe(1 << 20);
        let (_peer_reader, writer) = pipe(1 << 20);
        let mut bare = Bare::new(reader, writer, LIMITS);
        peer.put(&encoded(b"last", 16));
        if torn {
            peer.put(&[0]);
        }
        peer.close();
        assert_eq!(expect_value(bare.receive()), b"last");
        match bare.receive() {
            Ok(None) => assert!(!torn),
            Ok(Some(_)) => panic!("there is no second message"),
            Err(error) => {
                assert!(torn);
                assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
                assert!(error.extra.contains("in the middle of a message"));
            }
        }
    }
}

#[test]
fn a_broken_write_reaches_the_receiver() {
    let (reader, _peer) = pipe(1 << 20);
    let (peer_reader, writer) = pipe(1 << 20);
    let mut bare = Bare::new(reader, writer, LIMITS);
    let slot = bare.receive_later();
    peer_reader.break_off();
    bare.send(b"lost");
    bare.pool.run_until_stalled();
    let Some(Err(error)) = slot.take() else {
        panic!("the receiver waits for ever")
    };
    assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
    assert!(
        error.extra.starts_with("writing to the peer:"),
        "{}",
        error.extra
    );
    assert_eq!(bare.meter.bytes_out_pending(), 0);
    bare.pool.run_until(bare.meter.on_idle());
    bare.pool
        .run_until(bare.connection.shutdown(Ok(())))
        .unwrap();
}

#[test]
fn who_waits_for_room_goes_on_when_little_is_left_to_write_or_nothing_can_be() {
    for breaks in [false, true] {
        let (reader, _peer) = pipe(1 << 20);
        let (peer_reader, writer) = pipe(64);
        let mut bare = Bare::new(reader, writer, LIMITS);
        bare.send(&[1; 400]);
        let goes_on = [50, 300, 1_000].map(|bytes| {
            let goes_on = Rc::new(Cell::new(false));
            let (meter, set) = (Rc::clone(&bare.meter), Rc::clone(&goes_on));
            let wait = async move {
                meter.on_room(bytes).await;
                set.set(true);
            };
            bare.pool.spawner().spawn_local(wait).unwrap();
            goes_on
        });
        let all = || goes_on.each_ref().map(|goes_on| goes_on.get());
        bare.pool.run_until_stalled();
        assert_eq!(all(), [false, false, true]);
        assert!(bare.meter.on_room(1).now_or_never().is_none());
        assert_eq!(
            bare.meter.room_waiters(),
            2,
            "who has given up leaves nothing"
        );
        if breaks {
            peer_reader.break_off();
            bare.send(b"lost");
            bare.pool.run_until_stalled();
            assert_eq!(all(), [true; 3], "the stream takes nothing any more");
            continue;
        }
        while bare.meter.bytes_out_pending() >= 300 {
            assert_eq!(all(), [false, false, true]);
            peer_reader.drain();
            bare.pool.run_until_stalled();
        }
        assert_eq!(all(), [false, true, true]);
        while !bare.meter.is_flushed() {
            peer_reader.drain();
            bare.pool.run_until_stalled();
        }
        assert_eq!(all(), [true; 3]);
    }
}

#[test]
fn a_drain_receives_nothing_more_and_knows_when_all_is_written() {
    let (reader, peer) = pipe(1 << 20);
    let (peer_reader, writer) = pipe(64);
    let mut bare = Bare::new(reader, writer, LIMITS);
    peer.put(&encoded(b"one", 16));
    peer.put(&encoded(b"two", 16));
    let call = bare.receive().unwrap().unwrap();
    bare.meter.stop_reading();
    let next = bare.receive_later();
    let idle = Rc::new(Cell::new(false));
    let (meter, set_idle) = (Rc::clone(&bare.meter), Rc::clone(&idle));
    let wait = async move {
        meter.on_idle().await;
        set_idle.set(true);
    };
    bare.pool.spawner().spawn_local(wait).unwrap();
    bare.pool.run_until_stalled();
    assert!(!idle.get(), "a call is being worked on");
    bare.send(&[1; 200]);
    drop(call);
    bare.pool.run_until_stalled();
    assert!(!idle.get(), "the answer is not written");
    while !bare.meter.is_flushed() {
        peer_reader.drain();
        bare.pool.run_until_stalled();
    }
    assert!(idle.get());
    assert!(next.borrow().is_none(), "the second call is not received");
}

#[test]
fn shutdown_writes_what_is_queued_and_closes() {
    let (reader, _peer) = pipe(1 << 20);
    let (peer_reader, writer) = pipe(1 << 20);
    let watched = writer.clone();
    let mut bare = Bare::new(reader, writer, LIMITS);
    bare.send(&[9; 100]);
    let closed: Promise<(), capnp::Error> = bare
        .connection
        .shutdown(Err(capnp::Error::failed("why".to_string())));
    bare.pool.run_until(closed).unwrap();
    assert!(watched.is_closed());
    assert!(peer_reader.drain().len() > 100);
    assert!(
        bare.outcome.borrow().is_none(),
        "a handle of the connection is left"
    );
    let Bare {
        connection,
        mut pool,
        outcome,
        ..
    } = bare;
    drop(connection);
    pool.run_until_stalled();
    assert_eq!(outcome.take().unwrap().unwrap_err().extra, "why");
}

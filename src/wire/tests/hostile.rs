//! A peer that sends well-framed nonsense: recorded sessions, mutated at random. Neither the connection nor the RPC system
//! above it may panic, and the connection must end when the peer closes it.
//!
//! `ORLOP_SEED=n ORLOP_ROUNDS=n` replay a failure or run for longer.

use std::cell::Cell;

use super::*;
use crate::proto::orlop_capnp::{entry_sink, store};

/// Rounds of an ordinary test run.
const ROUNDS: usize = 3_000;

struct Door;
struct Room;
struct Sink;

impl bootstrap::Server for Door {
    async fn open(
        self: Rc<Self>,
        _: bootstrap::OpenParams,
        mut results: bootstrap::OpenResults,
    ) -> Result<(), capnp::Error> {
        results.get().set_store(capnp_rpc::new_client(Room));
        Ok(())
    }
}

impl store::Server for Room {
    async fn get(
        self: Rc<Self>,
        params: store::GetParams,
        mut results: store::GetResults,
    ) -> Result<(), capnp::Error> {
        let key = params.get()?.get_key()?;
        results.get().init_lookup().init_found().set_value(key);
        Ok(())
    }

    async fn stream_prefix(
        self: Rc<Self>,
        params: store::StreamPrefixParams,
        mut results: store::StreamPrefixResults,
    ) -> Result<(), capnp::Error> {
        let sink = params.get()?.get_sink()?;
        let mut push = sink.push_request();
        push.get().init_entries(2);
        push.send().promise.await?;
        results.get().set_count(2);
        Ok(())
    }
}

impl entry_sink::Server for Sink {
    async fn push(
        self: Rc<Self>,
        _: entry_sink::PushParams,
        _: entry_sink::PushResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }
}

fn door() -> Option<capnp::capability::Client> {
    Some(capnp_rpc::new_client::<bootstrap::Client, _>(Door).client)
}

/// What an honest client sends in a session with pipelining, an abandoned call, a capability of its own and a released
/// one; message by message.
fn record() -> Vec<Vec<u8>> {
    let (client_end, server_end) = duplex(1 << 20);
    let sent = client_end.1.clone();
    let (mut client_side, _) = connect(client_end, Side::Client, LIMITS, None);
    let (server_side, _) = connect(server_end, Side::Server, LIMITS, door());
    let client: bootstrap::Client = client_side.bootstrap();
    let mut pool = LocalPool::new();
    pool.spawner().spawn_local(client_side.map(drop)).unwrap();
    pool.spawner().spawn_local(server_side.map(drop)).unwrap();
    pool.run_until(async {
        let store = client.open_request().send().pipeline.get_store();
        let get = |key: &[u8]| {
            let mut request = store.get_request();
            request.get().set_key(key);
            request.send().promise
        };
        let (first, second) = (get(b"first"), get(b"second key"));
        first.await.unwrap();
        second.await.unwrap();
        drop(get(b"abandoned"));
        let mut stream = store.stream_prefix_request();
        stream.get().set_sink(capnp_rpc::new_client(Sink));
        stream.send().promise.await.unwrap();
        let opened = client.open_request().send().promise.await.unwrap();
        drop(opened.get().unwrap().get_store().unwrap());
    });
    pool.run_until_stalled();
    let stream = sent.everything();
    let mut messages = Vec::new();
    let mut rest = &stream[..];
    while !rest.is_empty() {
        let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
        let segments = number(0) + 1;
        let body: usize = (0..segments)
            .map(|segment| number(4 + 4 * segment) * 8)
            .sum();
        let (message, later) = rest.split_at((4 + 4 * segments).next_multiple_of(8) + body);
        messages.push(message.to_vec());
        rest = later;
    }
    messages
}

/// Random numbers below a bound.
struct Dice(Cell<u64>);

impl Dice {
    fn below(&self, bound: usize) -> usize {
        let mut state = self.0.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0.set(state);
        (state % bound as u64) as usize
    }
}

/// Some messages of the session, in its order or not, with bytes changed behind the first header.
fn nonsense(session: &[Vec<u8>], dice: &Dice) -> Vec<u8> {
    let mut stream = Vec::new();
    for position in 0..1 + dice.below(12) {
        let in_order = dice.below(3) > 0;
        let picked = if in_order {
            position % session.len()
        } else {
            dice.below(session.len())
        };
        let mut message = session[picked].clone();
        for _ in 0..dice.below(4) {
            let at = 8 + dice.below(message.len() - 8);
            match dice.below(4) {
                0 => message[at] = dice.below(256) as u8,
                1 => message[at] = dice.below(16) as u8,
                2 => message[at] ^= 1 << dice.below(8),
                _ => message[at & !7..][..8].fill(0),
            }
        }
        stream.extend(message);
    }
    stream
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

#[test]
fn nonsense_neither_panics_nor_hangs() {
    let random = || {
        std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_nanos() as u64
    };
    let seed = from_environment("ORLOP_SEED").unwrap_or_else(random) | 1;
    let rounds = from_environment("ORLOP_ROUNDS").map_or(ROUNDS, |rounds| rounds as usize);
    println!("ORLOP_SEED={seed}");
    let session = record();
    assert!(session.len() >= 10, "{} messages", session.len());
    let dice = Dice(Cell::new(seed));
    for round in 0..rounds {
        let stream = nonsense(&session, &dice);
        let (_answers, writer) = pipe(1 << 20);
        let (reader, peer) = pipe(1 << 20);
        let (server_side, meter) = connect((reader, writer), Side::Server, LIMITS, door());
        let ended = Rc::new(Cell::new(false));
        let end = Rc::clone(&ended);
        let mut pool = LocalPool::new();
        pool.spawner()
            .spawn_local(server_side.map(move |_| end.set(true)))
            .unwrap();
        peer.put(&stream);
        pool.run_until_stalled();
        peer.close();
        pool.run_until_stalled();
        assert!(ended.get(), "round {round}: the connection does not end");
        assert_eq!(
            meter.bytes_in_flight(),
            0,
            "round {round}: a message is kept"
        );
    }
}

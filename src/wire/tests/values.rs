//! Large values leave from where they are: as the same bytes as any other answer, within the budget, and let go when they
//! are written or never will be.

use std::cell::Cell;
use std::ops::Deref;
use std::time::Duration;

use capnp::message::ReaderOptions;
use capnp_rpc::rpc_capnp::{message, return_};
use futures::channel::oneshot;

use super::*;
use crate::proto::orlop_capnp::{lookup, store};
use crate::wire::envelope;
use crate::wire::send::Outbox;
use crate::wire::words::{Shape, append, append_bytes, bytes_pointer, struct_pointer, words_of};
use crate::wire::write::{Sink, Writer};

/// A value that tells by its count who holds it.
struct Held(Rc<Vec<u8>>);

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The sending half of a connection, and its peer.
struct Lane {
    outbox: Rc<Outbox>,
    meter: Rc<Meter>,
    pool: LocalPool,
    peer: PipeReader,
    recorder: PipeWriter,
    /// Turns so far.
    polls: Rc<Cell<usize>>,
}

const QUESTION: u32 = 5;
const VERSION: u64 = 77;

/// The first words of the results of `get`.
fn head(value_len: usize) -> [u64; 4] {
    [
        struct_pointer(0, 2, 1),
        1,
        VERSION,
        bytes_pointer(0, value_len),
    ]
}

fn shape(value_len: usize) -> Shape {
    Shape {
        data_words: 0,
        pointers: 1,
        words: 4 + words_of(value_len),
    }
}

impl Lane {
    fn new(capacity: usize) -> Lane {
        let (peer, writer) = pipe(capacity);
        let recorder = writer.clone();
        let meter = Rc::new(Meter::new(LIMITS));
        let outbox = Rc::new(Outbox::new(Rc::clone(&meter)));
        let (end, _) = oneshot::channel();
        let mut writer = Writer::new(Sink::new(writer, Rc::clone(&outbox)), end);
        let turns = Rc::clone(&meter);
        let polls = Rc::new(Cell::new(0));
        let counted = Rc::clone(&polls);
        let write = poll_fn(move |context| {
            if turns.set_connection(context.waker()) {
                writer.set_connection(context.waker());
            }
            writer.begin_turn();
            writer.poll(false);
            counted.set(counted.get() + 1);
            Poll::Pending::<()>
        });
        let pool = LocalPool::new();
        pool.spawner().spawn_local(write).unwrap();
        Lane {
            outbox,
            meter,
            pool,
            peer,
            recorder,
            polls,
        }
    }

    fn answer_in_parts(&self, value: &Rc<Vec<u8>>) {
        let shape = shape(value.len());
        let fill = |parts: &mut crate::wire::direct::Parts<'_>| {
            parts.append(0, |to| envelope::results(QUESTION, shape, to));
            parts.words(&head(value.len()));
            parts.value(Held(Rc::clone(value)));
        };
        self.outbox
            .push_parts(envelope::return_bytes(shape), fill, true);
    }

    fn answer_in_one_piece(&self, value: &[u8]) {
        let shape = shape(value.len());
        let fill = |to: &mut Vec<u8>| {
            envelope::results(QUESTION, shape, to);
            append(to, &head(value.len()));
            append_bytes(to, value);
        };
        self.outbox
            .push_bytes(envelope::return_bytes(shape), fill, true);
    }

    fn arrived(&mut self) -> Vec<u8> {
        self.pool.run_until_stalled();
        self.peer.drain()
    }
}

fn value(len: usize) -> Rc<Vec<u8>> {
    Rc::new((0..len).map(|at| (at * 7 + len) as u8).collect())
}

/// The value in the answer that is the next message of `bytes`.
fn read(bytes: &mut &[u8]) -> Vec<u8> {
    let message = capnp::serialize::read_message(bytes, ReaderOptions::new()).unwrap();
    let root: message::Reader<'_> = message.get_root().unwrap();
    let Ok(message::Return(Ok(answer))) = root.which() else {
        panic!("no return")
    };
    assert_eq!(answer.get_answer_id(), QUESTION);
    let Ok(return_::Results(Ok(payload))) = answer.which() else {
        panic!("no results")
    };
    let results: store::get_results::Reader<'_> = payload.get_content().get_as().unwrap();
    let Ok(lookup::Found(found)) = results.get_lookup().unwrap().which() else {
        panic!("not found")
    };
    assert_eq!(found.get_version(), VERSION);
    found.get_value().unwrap().to_vec()
}

#[test]
fn an_answer_in_parts_is_this() {
    let mut lane = Lane::new(1 << 10);
    lane.answer_in_parts(&Rc::new(b"hello".to_vec()));
    let words: Vec<u64> = lane
        .arrived()
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    let expected = [
        0x0000_000d_0000_0000, // One segment of 13 words.
        0x0001_0001_0000_0000, // `Message`
        3,                     // `return`
        0x0001_0002_0000_0000, // `Return`
        0x0000_0003_0000_0005, // Question 5, capabilities of the parameters kept, no `Finish` needed, `results`.
        0,
        0x0002_0000_0000_0000, // `Payload`
        0x0001_0000_0000_0004, // The results of `get`, behind the table of capabilities,
        0,                     // which is empty.
        0x0001_0002_0000_0000, // `Lookup`
        1,                     // `found`
        77,                    // The version.
        0x0000_002a_0000_0001, // Five bytes.
        0x0000_006f_6c6c_6568, // "hello"
    ];
    assert_eq!(words, expected);
}

#[test]
fn an_answer_is_the_same_bytes_wherever_its_value_is() {
    let around = |len: usize| len.saturating_sub(9)..len + 9;
    let lens = around(9).chain(around(64 << 10)).chain(around(300_000));
    let mut expected = Lane::new(8 << 20);
    let mut lane = Lane::new(8 << 20);
    for len in lens {
        let value = value(len);
        lane.answer_in_parts(&value);
        expected.answer_in_one_piece(&value);
        let bytes = lane.arrived();
        assert!(bytes == expected.arrived(), "a value of {len} bytes");
        assert!(read(&mut &bytes[..]) == *value, "a value of {len} bytes");
        assert_eq!(Rc::strong_count(&value), 1);
    }
}

/// An answer for several keys may end with an empty value: nothing of it is left to write when the large one is.
#[test]
fn nothing_behind_a_large_value_is_written_as_nothing() {
    let mut lane = Lane::new(100_000);
    let large = value(64 << 10);
    for _ in 0..2 {
        let shape = shape(large.len());
        let fill = |parts: &mut crate::wire::direct::Parts<'_>| {
            parts.append(0, |to| envelope::results(QUESTION, shape, to));
            parts.words(&head(large.len()));
            parts.value(Held(Rc::clone(&large)));
            parts.copy(&[]);
        };
        let bytes = envelope::return_bytes(shape);
        lane.outbox.push_parts(bytes, fill, true);
        let arrived = lane.arrived();
        assert_eq!(read(&mut &arrived[..]), **large);
        lane.pool.run_until_stalled();
        assert!(!lane.meter.has_failed());
    }
}

#[test]
fn a_large_value_is_written_from_where_it_is_and_then_let_go() {
    let mut lane = Lane::new(8 << 20);
    let (small, large) = (value((64 << 10) - 1), value((64 << 10) + 1));
    for value in [&small, &large, &small] {
        lane.answer_in_parts(value);
    }
    assert_eq!(Rc::strong_count(&small), 1, "copied");
    assert_eq!(Rc::strong_count(&large), 2, "kept");
    let bytes = lane.arrived();
    assert_eq!(Rc::strong_count(&large), 1, "written and let go");
    assert_eq!(lane.recorder.writes(), 1);
    let addresses = lane.recorder.addresses();
    assert!(addresses.contains(&(large.as_ptr() as usize)));
    let mut rest = &bytes[..];
    for value in [&small, &large, &small] {
        assert!(read(&mut rest) == **value);
    }
    assert!(rest.is_empty());
}

#[test]
fn one_write_takes_a_bounded_share_of_a_large_value() {
    let lane = Lane::new(64 << 20);
    lane.answer_in_parts(&value(5 << 20));
    let Lane {
        mut pool, recorder, ..
    } = lane;
    pool.run_until_stalled();
    let sent = recorder.everything().len();
    assert!(sent > 5 << 20);
    assert_eq!(recorder.writes(), sent.div_ceil(512 << 10));
}

#[test]
fn what_the_peer_leaves_unread_counts_and_is_kept_once() {
    let mut lane = Lane::new(100_000);
    let large = value(200_001);
    for _ in 0..5 {
        lane.answer_in_parts(&large);
    }
    let bytes = 8 + envelope::return_bytes(shape(large.len()));
    lane.pool.run_until_stalled();
    assert_eq!(lane.meter.bytes_out_pending(), 5 * bytes - 100_000);
    assert_eq!(Rc::strong_count(&large), 6, "five answers, no copy");
    let mut arrived = Vec::new();
    while !lane.meter.is_flushed() {
        arrived.extend(lane.arrived());
        let whole = arrived.len() / bytes;
        assert!(Rc::strong_count(&large) <= 6 - whole, "{whole} are written");
    }
    arrived.extend(lane.arrived());
    assert_eq!((arrived.len(), Rc::strong_count(&large)), (5 * bytes, 1));
    let mut rest = &arrived[..];
    for _ in 0..5 {
        assert!(read(&mut rest) == *large);
    }
}

#[test]
fn a_connection_that_breaks_in_the_middle_of_a_value_lets_go_of_all() {
    let mut lane = Lane::new(100_000);
    let large = value(200_003);
    for _ in 0..3 {
        lane.answer_in_parts(&large);
    }
    assert_eq!(lane.arrived().len(), 100_000);
    lane.peer.break_off();
    lane.pool.run_until_stalled();
    assert_eq!(Rc::strong_count(&large), 1);
    assert_eq!(lane.meter.bytes_out_pending(), 0);
    lane.answer_in_parts(&large);
    assert_eq!(Rc::strong_count(&large), 1, "nobody will read it");
}

#[test]
fn beside_others_a_large_value_takes_more_turns() {
    const BYTES: usize = 1 << 20;
    for (others_wait, turns) in [(false, 1), (true, BYTES / (64 << 10))] {
        let mut lane = Lane::new(2 * BYTES);
        let others_wait = Rc::new(Cell::new(others_wait));
        lane.meter.pace().follow(others_wait, Duration::MAX);
        lane.arrived();
        let before = lane.polls.get();
        lane.answer_in_parts(&value(BYTES));
        assert!(lane.arrived().len() > BYTES);
        // What is around the value, and the look at a queue that is empty.
        let turns_taken = lane.polls.get() - before;
        assert!((turns..=turns + 2).contains(&turns_taken), "{turns_taken}");
    }
}

#[test]
fn prepared_parts_are_those_that_are_made_at_once() {
    for len in [0, 1, 5, 100, 5_000, 70_000, 300_000] {
        let [mut at_once, mut prepared] = [0, 1].map(|_| Lane::new(1 << 20));
        let value = value(len);
        at_once.answer_in_parts(&value);
        let shape = shape(len);
        let mut parts = crate::wire::direct::Prepared::default();
        parts.parts().words(&head(len));
        parts.parts().value(Held(Rc::clone(&value)));
        assert_eq!(parts.bytes(), 8 * shape.words);
        let fill = |to: &mut crate::wire::direct::Parts<'_>| {
            to.append(0, |to| envelope::results(QUESTION, shape, to));
            to.prepared(parts);
        };
        let bytes = envelope::return_bytes(shape);
        prepared.outbox.push_parts(bytes, fill, true);
        // What comes next goes behind it.
        at_once.answer_in_one_piece(b"next");
        prepared.answer_in_one_piece(b"next");
        assert_eq!(prepared.arrived(), at_once.arrived(), "{len}");
    }
}

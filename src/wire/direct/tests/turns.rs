//! What one turn of a connection does: how often it is woken, and when it writes.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use capnp::traits::ImbueMut as _;
use capnp_rpc::{IncomingMessage, VatNetwork as _};

use super::*;
use crate::wire::Connection;
use crate::wire::network::Network;
use crate::wire::receive::ANSWERS_TIMED;

/// Counts how often it is used.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A server's end that is polled by hand, and the bytes of its peer.
struct Hand {
    connection: Connection<PipeReader, PipeWriter>,
    peer: PipeWriter,
    answers: PipeReader,
    written: PipeWriter,
    calls: Rc<Calls>,
    others_wait: Rc<Cell<bool>>,
    woken: Arc<Count>,
    waker: Waker,
}

impl Hand {
    fn new() -> Hand {
        Hand::with_turns_of(Duration::MAX)
    }

    /// Its turns beside others take about as long.
    fn with_turns_of(turn: Duration) -> Hand {
        let (reader, peer) = pipe(1 << 20);
        let (answers, writer) = pipe(1 << 20);
        let written = writer.clone();
        let (mut setup, _) = Setup::new(reader, writer, Side::Server, LIMITS);
        let others_wait = Rc::new(Cell::new(false));
        setup.share_turns(Rc::clone(&others_wait), turn);
        let log = Log::default();
        let calls = Rc::new(Calls {
            log: Rc::clone(&log),
            kept: RefCell::default(),
        });
        setup.answer_directly(Rc::clone(&calls) as Rc<dyn DirectCalls>);
        let door: bootstrap::Client = capnp_rpc::new_client(Door { log, slow_turns: 0 });
        let woken = Arc::new(Count::default());
        let mut hand = Hand {
            connection: setup.start(Some(door.client)),
            peer,
            answers,
            written,
            calls,
            others_wait,
            waker: Waker::from(Arc::clone(&woken)),
            woken,
        };
        hand.peer.put(&[bootstrap(), open()].concat());
        hand.turn();
        while hand.is_woken() {
            hand.turn();
        }
        assert!(!hand.answers.drain().is_empty());
        hand
    }

    /// Whether there is a reason for another turn. There is none any more when this has told of it.
    fn is_woken(&self) -> bool {
        self.woken.0.swap(0, Ordering::SeqCst) > 0
    }

    fn turn(&mut self) {
        let mut context = Context::from_waker(&self.waker);
        assert!(self.connection.poll_unpin(&mut context).is_pending());
    }

    fn log(&self) -> Vec<String> {
        self.calls.log.take()
    }
}

#[test]
fn what_arrives_for_the_rpc_system_reaches_it_in_the_same_turn() {
    let mut hand = Hand::new();
    hand.peer.put(&call(5, STAT, None));
    assert!(hand.is_woken());
    hand.turn();
    assert_eq!(hand.log(), ["rpc stat"]);
    // It has more to do, and might send more.
    assert!(hand.is_woken());
    hand.turn();
    assert!(!hand.answers.drain().is_empty());
}

#[test]
fn beside_others_a_turn_answers_fewer_direct_calls() {
    let mut hand = Hand::new();
    for (others_wait, expected) in [(false, vec![100]), (true, vec![64, 36])] {
        hand.others_wait.set(others_wait);
        let calls: Vec<_> = (5..105).map(|id| call(id, GET, None)).collect();
        hand.peer.put(&calls.concat());
        for answered in expected {
            assert!(hand.is_woken());
            hand.turn();
            assert_eq!(hand.log().len(), answered);
        }
        while hand.is_woken() {
            hand.turn();
        }
        assert_eq!(hand.log(), [] as [String; 0]);
    }
}

#[test]
fn beside_others_a_turn_ends_when_its_time_is_over() {
    let mut hand = Hand::with_turns_of(Duration::ZERO);
    hand.others_wait.set(true);
    let calls: Vec<_> = (5..45).map(|id| call(id, GET, None)).collect();
    hand.peer
        .put(&[calls.concat(), call(45, STAT, None)].concat());
    assert!(hand.is_woken());
    hand.turn();
    assert_eq!(
        hand.log().len(),
        ANSWERS_TIMED,
        "so often it is asked what time it is"
    );
    let mut log = Vec::new();
    while hand.is_woken() {
        hand.turn();
        let done = hand.log();
        assert!(done.len() <= 1, "{done:?}");
        log.extend(done);
    }
    assert_eq!(log.len(), 41 - ANSWERS_TIMED, "every turn does something");
    assert_eq!(log.last().unwrap(), "rpc stat");
    assert!(!hand.answers.drain().is_empty());
}

/// What is received is handed on, and what is answered is sent, though each takes the time of a turn.
#[test]
fn a_turn_that_is_interrupted_goes_on_where_it_was() {
    let mut hand = Hand::with_turns_of(Duration::ZERO);
    hand.others_wait.set(true);
    hand.peer.put(&call(5, STAT, None));
    let mut turns_to = Vec::new();
    for turn in 1.. {
        if !hand.is_woken() {
            break;
        }
        hand.turn();
        if !hand.log().is_empty() || !hand.answers.drain().is_empty() {
            turns_to.push(turn);
        }
    }
    let [dispatched, sent] = turns_to[..] else {
        panic!("{turns_to:?}")
    };
    assert!(1 < dispatched && dispatched < sent, "{turns_to:?}");
}

/// It may take long over each of them, and others wait for their turn.
#[test]
fn the_rpc_system_gets_one_message_in_a_turn() {
    let mut hand = Hand::new();
    let calls: Vec<_> = (5..8).map(|id| call(id, STAT, None)).collect();
    hand.peer.put(&calls.concat());
    for _ in 0..3 {
        assert!(hand.is_woken());
        hand.turn();
        assert_eq!(hand.log(), ["rpc stat"]);
    }
    while hand.is_woken() {
        hand.turn();
    }
    assert_eq!(hand.log(), [] as [String; 0]);
}

#[test]
fn a_direct_call_needs_one_turn_and_one_write() {
    let mut hand = Hand::new();
    let written = hand.written.writes();
    hand.peer.put(&call(5, GET, None));
    assert!(hand.is_woken());
    hand.turn();
    assert_eq!(hand.log(), ["direct get"]);
    assert_eq!(hand.written.writes(), written + 1);
    assert!(!hand.is_woken(), "there is nothing left to do");
}

/// The others have their turn before the next message, however much was read.
#[test]
fn a_direct_call_that_took_long_ends_the_turn() {
    let mut hand = Hand::new();
    let methods = [GET_PREFIX, GET, GET, GET_PREFIX, GET_PREFIX, STAT, GET];
    let calls = (5..)
        .zip(methods)
        .map(|(id, method)| call(id, method, None));
    hand.peer.put(&calls.collect::<Vec<_>>().concat());
    for done in [
        &["direct getPrefix"][..],
        &["direct get", "direct get", "direct getPrefix"],
        &["direct getPrefix"],
        &["rpc stat"],
        &["direct get"],
    ] {
        assert!(hand.is_woken());
        hand.turn();
        assert_eq!(hand.log(), done);
    }
    while hand.is_woken() {
        hand.turn();
    }
    assert_eq!(hand.log(), [] as [String; 0]);
}

#[test]
fn answers_that_come_later_need_one_turn_and_one_write() {
    let mut hand = Hand::new();
    let written = hand.written.writes();
    let calls: Vec<_> = (5..15).map(|id| call(id, SET, None)).collect();
    hand.peer.put(&calls.concat());
    assert!(hand.is_woken());
    hand.turn();
    assert!(!hand.is_woken());
    for later in hand.calls.kept.take() {
        later
            .reply()
            .results(ONE_WORD, |to| to.extend_from_slice(&[9; 8]));
    }
    assert!(hand.is_woken());
    hand.turn();
    assert_eq!(hand.written.writes(), written + 1);
    assert!(!hand.is_woken(), "there is nothing left to do");
}

/// The first message is `capnp_rpc`'s, and has not begun before it was taken.
#[test]
fn a_direct_call_does_not_overtake_a_message_that_is_not_taken() {
    let (reader, peer) = pipe(1 << 20);
    let (_answers, writer) = pipe(1 << 20);
    let (mut network, mut traffic) = Network::new(reader, writer, Side::Server, LIMITS);
    let calls = Rc::new(Calls {
        log: Log::default(),
        kept: RefCell::default(),
    });
    network.answer_directly(Rc::clone(&calls) as Rc<dyn DirectCalls>);
    let mut handle = network.accept().now_or_never().unwrap().unwrap();
    let mut context = Context::from_waker(Waker::noop());
    let mut turn = || {
        let mut context = Context::from_waker(Waker::noop());
        traffic.begin_turn(&mut context);
        traffic.receive(&mut context);
        traffic.send(false);
    };
    let take = |polled: Poll<capnp::Result<Option<Box<dyn IncomingMessage>>>>| match polled {
        Poll::Ready(Ok(Some(message))) => message,
        _ => panic!("there is no message"),
    };
    peer.put(&[bootstrap(), open()].concat());
    for _ in 0..2 {
        turn();
        let mut question = handle.receive_incoming_message();
        drop(take(question.poll_unpin(&mut context)));
    }
    let mut answer = handle.new_outgoing_message(0);
    open_returns(answer.get_body().unwrap());
    drop(answer.send());

    let mut question = handle.receive_incoming_message();
    assert!(question.poll_unpin(&mut context).is_pending());
    peer.put(&[call(5, STAT, Some(3)), call(6, GET, Some(3))].concat());
    for _ in 0..3 {
        turn();
    }
    drop(take(question.poll_unpin(&mut context)));
    for _ in 0..3 {
        turn();
    }
    assert_eq!(calls.log.take(), [""; 0], "nobody has asked for it");
    let mut question = handle.receive_incoming_message();
    assert_eq!(calls.log.take(), [""; 0], "what was taken has not begun");
    assert!(question.poll_unpin(&mut context).is_pending());
    assert_eq!(calls.log.take(), ["direct get"]);
}

/// The answer to [`open`]: export 3.
fn open_returns(body: any_pointer::Builder<'_>) {
    let mut answer = body.init_as::<message::Builder<'_>>().init_return();
    answer.set_answer_id(OPEN);
    let mut payload = answer.init_results();
    let mut capabilities = Vec::new();
    let mut content = payload.reborrow().init_content();
    content.imbue_mut(&mut capabilities);
    content
        .init_as::<bootstrap::open_results::Builder<'_>>()
        .set_store(capnp_rpc::new_client(Room(Log::default())));
    payload.init_cap_table(1).get(0).set_sender_hosted(3);
}

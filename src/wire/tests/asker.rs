//! Calls made without `capnp_rpc`, against a peer made by hand: where they are sent, which numbers they have, how they end.

use std::collections::VecDeque;

use capnp::any_pointer;
use capnp::capability::RemotePromise;
use capnp::message::{Builder, Reader, ReaderOptions};
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::{message, message_target, return_};

use super::*;
use crate::proto::orlop_capnp::{bootstrap, store};
use crate::wire::asker::{Answer, Asker, Failure, Opening};
use crate::wire::words::{Shape, append};

/// The number of the first question.
const FIRST: u32 = 1 << 30;

const OPENING: Opening = Opening {
    interface: bootstrap::Client::TYPE_ID,
    method: 0,
    field: 0,
    opened: store::Client::TYPE_ID,
};

#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Bootstrap,
    Open(u32),
    /// Question and method, on the answer of a question or on an import.
    Promised(u32, u16, u32),
    Import(u32, u16, u32),
    Finish(u32),
    Abort(String),
}

type Outcome = Result<Option<u64>, String>;

/// The client's end, and the bytes of its peer.
struct Peer {
    answers: PipeWriter,
    calls: PipeReader,
    pool: LocalPool,
    asker: Rc<Asker>,
    /// Keeps the capability from being given back.
    _opened: (
        bootstrap::Client,
        store::Client,
        RemotePromise<bootstrap::open_results::Owned>,
    ),
}

impl Peer {
    fn new() -> Peer {
        let (reader, answers) = pipe(1 << 20);
        let (calls, writer) = pipe(1 << 20);
        let (mut setup, _) = Setup::new(reader, writer, Side::Client, LIMITS);
        let asker = setup.ask_directly(OPENING);
        let mut connection = setup.start(None);
        let server: bootstrap::Client = connection.bootstrap();
        let opened = server.open_request().send();
        let opened = (server, opened.pipeline.get_store(), opened);
        let pool = LocalPool::new();
        pool.spawner().spawn_local(connection.map(drop)).unwrap();
        Peer {
            answers,
            calls,
            pool,
            asker,
            _opened: opened,
        }
    }

    /// What was sent since the last time.
    fn sent(&mut self) -> Vec<Sent> {
        self.pool.run_until_stalled();
        let mut messages = VecDeque::new();
        Assembler::new(1 << 20)
            .feed(&self.calls.drain(), &mut messages)
            .unwrap();
        let sent = messages
            .into_iter()
            .map(|segments| sent(&Reader::new(segments, ReaderOptions::new())));
        sent.collect()
    }

    fn answer(&mut self, id: u32, fill: impl FnOnce(return_::Builder<'_>)) {
        let mut message = Builder::new_default();
        let mut answer = message.init_root::<message::Builder<'_>>().init_return();
        answer.set_answer_id(id);
        fill(answer);
        let bytes = capnp::serialize::write_message_to_words(&message);
        self.answers.put(&bytes);
        self.pool.run_until_stalled();
    }

    /// Answers with a number.
    fn answer_number(&mut self, id: u32, number: u64, no_finish: bool) {
        self.answer(id, |mut answer| {
            answer.set_no_finish_needed(no_finish);
            let content = answer.init_results().get_content();
            let mut results: store::stream_prefix_results::Builder<'_> = content.init_as();
            results.set_count(number);
        });
    }

    /// Answers the bootstrap and the opening call, which gives export 3.
    fn open(&mut self) {
        self.sent();
        self.answer(1, |answer| {
            let mut payload = answer.init_results();
            let mut table = payload.reborrow().init_cap_table(1);
            table.reborrow().get(0).set_sender_hosted(3);
        });
    }

    fn ask(&self, method: u16) -> Answer<Outcome> {
        let shape = Shape {
            data_words: 1,
            pointers: 0,
            words: 1,
        };
        let words = |to: &mut Vec<u8>| append(to, &[77]);
        let build = |params: any_pointer::Builder<'_>| {
            let mut params: store::stream_prefix_params::Builder<'_> = params.init_as();
            params.set_keys_only(true);
        };
        self.asker.ask_words(method, shape, words, build, read)
    }
}

fn read(results: Result<any_pointer::Reader<'_>, Failure>) -> Outcome {
    match results {
        Ok(results) => {
            let results: store::stream_prefix_results::Reader<'_> = results.get_as().unwrap();
            Ok(Some(results.get_count()))
        }
        Err(failure) => Err(format!("{} {}", failure.closed, failure.error.extra)),
    }
}

fn sent<S: ReaderSegments>(message: &Reader<S>) -> Sent {
    let root: message::Reader<'_> = message.get_root().unwrap();
    match root.which().unwrap() {
        message::Bootstrap(_) => Sent::Bootstrap,
        message::Finish(finish) => Sent::Finish(finish.unwrap().get_question_id()),
        message::Abort(abort) => {
            Sent::Abort(abort.unwrap().get_reason().unwrap().to_string().unwrap())
        }
        message::Call(call) => {
            let call = call.unwrap();
            let (id, method) = (call.get_question_id(), call.get_method_id());
            if call.get_interface_id() == OPENING.interface {
                return Sent::Open(id);
            }
            assert_eq!(call.get_interface_id(), OPENING.opened);
            match call.get_target().unwrap().which().unwrap() {
                message_target::ImportedCap(import) => Sent::Import(id, method, import),
                message_target::PromisedAnswer(answer) => {
                    Sent::Promised(id, method, answer.unwrap().get_question_id())
                }
            }
        }
        _ => panic!("a message that nobody should have sent"),
    }
}

#[test]
fn calls_do_not_wait_for_the_opening_call() {
    let mut peer = Peer::new();
    let _first = peer.ask(5);
    let expected = [Sent::Bootstrap, Sent::Open(1), Sent::Promised(FIRST, 5, 1)];
    assert_eq!(peer.sent(), expected);
    peer.open();
    let _second = peer.ask(6);
    assert_eq!(peer.sent(), [Sent::Import(FIRST + 1, 6, 3)]);
}

#[test]
fn a_number_is_free_when_its_question_is_done_with() {
    let mut peer = Peer::new();
    peer.open();
    let (first, second) = (peer.ask(5), peer.ask(6));
    peer.sent();
    peer.answer_number(FIRST + 1, 42, true);
    assert_eq!(peer.pool.run_until(second), Ok(Some(42)));
    assert_eq!(peer.sent(), [], "no finish is needed");
    let third = peer.ask(7);
    assert_eq!(peer.sent(), [Sent::Import(FIRST + 1, 7, 3)]);
    peer.answer_number(FIRST, 43, false);
    assert_eq!(peer.pool.run_until(first), Ok(Some(43)));
    assert_eq!(peer.sent(), [Sent::Finish(FIRST)]);
    // Given up: the number is not free before the answer is here.
    drop(third);
    assert_eq!(peer.sent(), [Sent::Finish(FIRST + 1)]);
    let (_fourth, _fifth) = (peer.ask(8), peer.ask(9));
    let expected = [Sent::Import(FIRST, 8, 3), Sent::Import(FIRST + 2, 9, 3)];
    assert_eq!(peer.sent(), expected);
    peer.answer(FIRST + 1, |mut answer| answer.set_canceled(()));
    let _sixth = peer.ask(10);
    assert_eq!(peer.sent(), [Sent::Import(FIRST + 1, 10, 3)]);
}

#[test]
fn exceptions_are_told_as_the_rpc_system_tells_them() {
    let mut peer = Peer::new();
    peer.open();
    let first = peer.ask(5);
    peer.answer(FIRST, |answer| {
        answer.init_exception().set_reason("overloaded: later");
    });
    let told = peer.pool.run_until(first);
    assert_eq!(
        told,
        Err("false remote exception: overloaded: later".to_string())
    );
}

#[test]
fn every_call_ends_with_the_connection() {
    let mut peer = Peer::new();
    peer.open();
    let first = peer.ask(5);
    peer.pool.run_until_stalled();
    peer.answers.close();
    peer.pool.run_until_stalled();
    let told = peer.pool.run_until(first);
    assert_eq!(told, Err("true Peer disconnected.".to_string()));
    let late = peer.ask(5);
    let told = peer.pool.run_until(late);
    assert_eq!(told, Err("true Peer disconnected.".to_string()));
}

#[test]
fn an_answer_that_nobody_asked_for_ends_the_connection() {
    let mut peer = Peer::new();
    peer.open();
    let _first = peer.ask(5);
    peer.sent();
    peer.answer_number(FIRST + 9, 1, true);
    let sent = peer.sent();
    let reason = format!("Invalid question ID in Return message: {}", FIRST + 9);
    assert!(sent.contains(&Sent::Abort(reason)), "{sent:?}");
}

/// What the asker cannot follow is left to the RPC system.
#[test]
fn a_store_that_is_no_plain_export_is_not_asked() {
    let mut refused = Peer::new();
    assert!(refused.asker.can_ask());
    refused.sent();
    refused.answer(1, |answer| answer.init_exception().set_reason("no"));
    assert!(!refused.asker.can_ask());
    let mut promised = Peer::new();
    promised.sent();
    promised.answer(1, |answer| {
        let mut payload = answer.init_results();
        payload
            .reborrow()
            .init_cap_table(1)
            .get(0)
            .set_sender_promise(3);
    });
    assert!(!promised.asker.can_ask());
}

/// Whoever is woken together asks before the connection has its turn; it needs no other one.
#[test]
fn calls_leave_in_the_turn_after_they_were_made_and_in_one_write() {
    let (reader, _answers) = pipe(1 << 20);
    let (_calls, writer) = pipe(1 << 20);
    let written = writer.clone();
    let (mut setup, _) = Setup::new(reader, writer, Side::Client, LIMITS);
    let asker = setup.ask_directly(OPENING);
    let mut connection = setup.start(None);
    let server: bootstrap::Client = connection.bootstrap();
    let _opened = server.open_request().send();
    let mut context = std::task::Context::from_waker(futures::task::noop_waker_ref());
    let mut turn = || assert!(connection.poll_unpin(&mut context).is_pending());
    turn();
    let mut asked = Vec::new();
    for round in 1..4 {
        let writes = written.writes();
        asked.extend((0..round).map(|_| asker.ask_built(3, 0, |_| {}, read)));
        turn();
        assert_eq!(written.writes(), writes + 1);
    }
}

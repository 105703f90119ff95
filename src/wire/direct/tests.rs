//! Direct answers, message by message, over pipes in memory: who answers what, in which order, and how a question ends.

use std::cell::RefCell;

use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::{cap_descriptor, return_};
use capnp_rpc::rpc_twoparty_capnp::Side;
use futures::FutureExt as _;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt as _;

use super::*;
use crate::proto::orlop_capnp::{bootstrap, store};
use crate::wire::frame::Assembler;
use crate::wire::pipe::{PipeReader, PipeWriter, pipe};
use crate::wire::words::Shape;
use crate::wire::{Setup, WireLimits};

mod turns;

const LIMITS: WireLimits = WireLimits {
    message_bytes_max: 1 << 20,
    bytes_in_max: 1 << 20,
    bytes_out_max: 1 << 20,
};

const GET: u16 = 0;
const SET: u16 = 1;
const DELETE: u16 = 2;
const GET_PREFIX: u16 = 5;
const STAT: u16 = 7;

const BOOTSTRAP: u32 = 0;
const OPEN: u32 = 1;

/// The calls that began, in order.
type Log = Rc<RefCell<Vec<String>>>;

/// A server whose `open` waits for a turn of the executor now and then.
struct Door {
    log: Log,
    slow_turns: usize,
}

struct Room(Log);

impl bootstrap::Server for Door {
    async fn open(
        self: Rc<Self>,
        _: bootstrap::OpenParams,
        mut results: bootstrap::OpenResults,
    ) -> Result<(), capnp::Error> {
        for _ in 0..self.slow_turns {
            let mut pending = true;
            futures::future::poll_fn(|context| {
                context.waker().wake_by_ref();
                if std::mem::take(&mut pending) {
                    std::task::Poll::Pending
                } else {
                    std::task::Poll::Ready(())
                }
            })
            .await;
        }
        results
            .get()
            .set_store(capnp_rpc::new_client(Room(Rc::clone(&self.log))));
        Ok(())
    }
}

impl store::Server for Room {
    async fn get(
        self: Rc<Self>,
        _: store::GetParams,
        _: store::GetResults,
    ) -> Result<(), capnp::Error> {
        self.0.borrow_mut().push("rpc get".to_string());
        Ok(())
    }

    async fn stat(
        self: Rc<Self>,
        _: store::StatParams,
        _: store::StatResults,
    ) -> Result<(), capnp::Error> {
        self.0.borrow_mut().push("rpc stat".to_string());
        Ok(())
    }
}

/// Answers `get` at once, and `getPrefix` as if that took long, keeps `set`, declines the rest.
struct Calls {
    log: Log,
    kept: RefCell<Vec<Later>>,
}

const ONE_WORD: Shape = Shape {
    data_words: 1,
    pointers: 0,
    words: 1,
};

impl DirectCalls for Calls {
    fn interface(&self) -> u64 {
        store::Client::TYPE_ID
    }

    fn opens(&self, interface: u64, method: u16) -> Option<u16> {
        (interface == bootstrap::Client::TYPE_ID && method == 0).then_some(0)
    }

    fn call(&self, call: DirectCall<'_>) -> Verdict {
        match call.method {
            GET => {
                self.log.borrow_mut().push("direct get".to_string());
                let reply = call.question.reply();
                reply.results(ONE_WORD, |to| to.extend_from_slice(&7_u64.to_le_bytes()));
            }
            GET_PREFIX => {
                self.log.borrow_mut().push("direct getPrefix".to_string());
                let reply = call.question.reply();
                reply.results(ONE_WORD, |to| to.extend_from_slice(&7_u64.to_le_bytes()));
                return Verdict::TakenLong;
            }
            SET => self.kept.borrow_mut().push(call.question.later()),
            DELETE => call
                .question
                .reply()
                .exception(&capnp::Error::overloaded("full".to_string())),
            _ => return Verdict::Declined,
        }
        Verdict::Taken
    }
}

/// A server's end and the bytes of its peer.
struct Wire {
    peer: PipeWriter,
    answers: PipeReader,
    pool: LocalPool,
    meter: Rc<Meter>,
    calls: Rc<Calls>,
    log: Log,
}

impl Wire {
    fn new(slow_turns: usize) -> Wire {
        let (reader, peer) = pipe(1 << 20);
        let (answers, writer) = pipe(1 << 20);
        let log = Log::default();
        let (mut setup, meter) = Setup::new(reader, writer, Side::Server, LIMITS);
        let calls = Rc::new(Calls {
            log: Rc::clone(&log),
            kept: RefCell::default(),
        });
        setup.answer_directly(Rc::clone(&calls) as Rc<dyn DirectCalls>);
        let door: bootstrap::Client = capnp_rpc::new_client(Door {
            log: Rc::clone(&log),
            slow_turns,
        });
        let connection = setup.start(Some(door.client));
        let pool = LocalPool::new();
        pool.spawner().spawn_local(connection.map(drop)).unwrap();
        Wire {
            peer,
            answers,
            pool,
            meter,
            calls,
            log,
        }
    }

    /// Sends messages in one piece and returns what comes back.
    fn exchange(&mut self, messages: &[Vec<u8>]) -> Vec<Said> {
        self.peer.put(&messages.concat());
        self.pool.run_until_stalled();
        self.said()
    }

    fn said(&mut self) -> Vec<Said> {
        let mut messages = std::collections::VecDeque::new();
        Assembler::new(1 << 20)
            .feed(&self.answers.drain(), &mut messages)
            .unwrap();
        messages.into_iter().map(said).collect()
    }

    /// Opens the store and returns its export.
    fn open(&mut self) -> u32 {
        match &self.exchange(&[bootstrap(), open()])[..] {
            [Said::Opened(BOOTSTRAP, _), Said::Opened(OPEN, export)] => *export,
            other => panic!("{other:?}"),
        }
    }

    fn log(&self) -> Vec<String> {
        self.log.take()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Opened(u32, u32),
    /// The question, and the first word of the results.
    Results(u32, u64),
    Exception(u32, String),
    Canceled(u32),
    Abort(String),
    Other,
}

fn said(segments: Segments) -> Said {
    let message = Reader::new(segments, ReaderOptions::new());
    let root: message::Reader<'_> = message.get_root().unwrap();
    let answer = match root.which().unwrap() {
        message::Return(answer) => answer.unwrap(),
        message::Abort(abort) => {
            return Said::Abort(abort.unwrap().get_reason().unwrap().to_string().unwrap());
        }
        _ => return Said::Other,
    };
    let id = answer.get_answer_id();
    match answer.which().unwrap() {
        return_::Results(payload) => {
            let payload = payload.unwrap();
            let table = payload.get_cap_table().unwrap();
            if table.is_empty() {
                assert!(answer.get_no_finish_needed() && !answer.get_release_param_caps());
                let content = payload.get_content();
                let words = content.target_size().unwrap().word_count;
                let mut copy = Builder::new_default();
                copy.set_root_canonical::<any_pointer::Owned>(content)
                    .unwrap();
                let first = &copy.get_segments_for_output()[0][8 * words.min(1) as usize..];
                let first = first.first_chunk::<8>().copied().unwrap_or_default();
                return Said::Results(id, u64::from_le_bytes(first));
            }
            match table.get(0).which().unwrap() {
                cap_descriptor::SenderHosted(export) => Said::Opened(id, export),
                _ => Said::Other,
            }
        }
        return_::Exception(exception) => {
            let reason = exception.unwrap().get_reason().unwrap();
            Said::Exception(id, reason.to_string().unwrap())
        }
        return_::Canceled(()) => Said::Canceled(id),
        _ => Said::Other,
    }
}

fn bytes(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut message: Builder<HeapAllocator> = Builder::new_default();
    fill(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

fn bootstrap() -> Vec<u8> {
    bytes(|root| root.init_bootstrap().set_question_id(BOOTSTRAP))
}

fn open() -> Vec<u8> {
    bytes(|root| {
        let mut call = root.init_call();
        call.set_question_id(OPEN);
        call.set_interface_id(bootstrap::Client::TYPE_ID);
        let mut target = call.init_target().init_promised_answer();
        target.set_question_id(BOOTSTRAP);
    })
}

/// A call on an export, or on the answer of `open`.
fn call(id: u32, method: u16, export: Option<u32>) -> Vec<u8> {
    call_with(id, method, export, |_| {})
}

fn call_with(
    id: u32,
    method: u16,
    export: Option<u32>,
    change: impl FnOnce(call::Builder<'_>),
) -> Vec<u8> {
    bytes(|root| {
        let mut call = root.init_call();
        call.set_question_id(id);
        call.set_interface_id(store::Client::TYPE_ID);
        call.set_method_id(method);
        let mut target = call.reborrow().init_target();
        match export {
            Some(export) => target.set_imported_cap(export),
            None => {
                let mut answer = target.init_promised_answer();
                answer.set_question_id(OPEN);
                answer.init_transform(1).get(0).set_get_pointer_field(0);
            }
        }
        change(call);
    })
}

fn finish(id: u32) -> Vec<u8> {
    bytes(|root| root.init_finish().set_question_id(id))
}

fn release(export: u32, references: u32) -> Vec<u8> {
    bytes(|root| {
        let mut release = root.init_release();
        release.set_id(export);
        release.set_reference_count(references);
    })
}

#[test]
fn a_call_on_an_opened_capability_is_answered_directly() {
    let mut wire = Wire::new(0);
    let store = wire.open();
    let said = wire.exchange(&[call(5, GET, Some(store)), call(6, GET, None)]);
    assert_eq!(said, [Said::Results(5, 7), Said::Results(6, 7)]);
    assert_eq!(wire.log(), ["direct get", "direct get"]);
    let said = wire.exchange(&[call(5, DELETE, Some(store))]);
    assert_eq!(said, [Said::Exception(5, "full".to_string())]);
}

#[test]
fn a_call_on_the_answer_of_an_opening_call_waits_for_it() {
    for slow_turns in [0, 1, 5] {
        let mut wire = Wire::new(slow_turns);
        let said = wire.exchange(&[
            bootstrap(),
            open(),
            call(5, GET, None),
            call(6, STAT, None),
            call(7, GET, None),
        ]);
        assert_eq!(said.len(), 5, "{said:?}");
        assert_eq!(wire.log(), ["direct get", "rpc stat", "direct get"]);
    }
}

/// An opening call that does not return may itself wait for a message that comes behind the waiting call.
#[test]
fn a_call_does_not_wait_for_an_opening_call_for_ever() {
    // Where tasks are within tasks each level may poll twice in a turn.
    let mut wire = Wire::new(4 * HELD_TURNS_MAX + 10);
    let said = wire.exchange(&[bootstrap(), open(), call(5, GET, None), call(6, GET, None)]);
    assert_eq!(said.len(), 4, "{said:?}");
    assert_eq!(
        wire.log(),
        ["rpc get", "rpc get"],
        "their order can only be told by the RPC system"
    );
    let said = wire.exchange(&[call(7, GET, None)]);
    assert_eq!(said.len(), 1);
    assert_eq!(wire.log(), ["rpc get"]);
}

#[test]
fn calls_begin_in_the_order_in_which_they_came_whoever_answers_them() {
    let mut wire = Wire::new(0);
    let store = wire.open();
    let mut messages = Vec::new();
    let mut expected = Vec::new();
    for id in 0..60_u32 {
        let target = (id % 7 < 3).then_some(store);
        let (method, begun) = if id % 3 == 1 {
            (STAT, "rpc stat")
        } else {
            (GET, "direct get")
        };
        messages.push(call(10 + id, method, target));
        expected.push(begun);
    }
    assert_eq!(wire.exchange(&messages).len(), 60);
    assert_eq!(wire.log(), expected);
}

#[test]
fn what_is_unusual_goes_to_the_rpc_system() {
    let mut wire = Wire::new(0);
    let store = wire.open();
    let said = wire.exchange(&[
        call_with(5, GET, Some(store), |call| {
            call.init_params().init_cap_table(1).get(0).set_none(());
        }),
        call_with(6, GET, Some(store), |call| {
            call.get_send_results_to().set_yourself(());
        }),
        call_with(7, GET, Some(store), |mut call| {
            call.set_only_promise_pipeline(true);
        }),
    ]);
    assert_eq!(said.len(), 2, "{said:?}");
    // What is kept for the callee's own use does not begin before somebody asks for it.
    assert_eq!(wire.log(), ["rpc get", "rpc get"]);
}

#[test]
fn a_call_that_waits_counts_and_is_answered_once_whatever_the_peer_says() {
    let mut wire = Wire::new(0);
    let store = wire.open();
    assert_eq!(
        wire.exchange(&[call(5, SET, Some(store)), call(6, SET, Some(store))]),
        []
    );
    assert!(wire.meter.bytes_in_flight() > 0);
    assert_eq!(wire.exchange(&[finish(5), finish(5), finish(99)]), []);
    for later in wire.calls.kept.take() {
        later
            .reply()
            .results(ONE_WORD, |to| to.extend_from_slice(&[9; 8]));
    }
    wire.pool.run_until_stalled();
    let said = wire.said();
    assert_eq!(
        said,
        [
            Said::Canceled(5),
            Said::Results(6, u64::from_le_bytes([9; 8]))
        ]
    );
    assert_eq!(wire.meter.bytes_in_flight(), 0);
    // Both numbers are free again, and a late `Finish` changes nothing.
    let said = wire.exchange(&[
        finish(6),
        call(5, GET, Some(store)),
        call(6, STAT, Some(store)),
        finish(5),
    ]);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.contains(&Said::Results(5, 7)));
}

#[test]
fn a_call_that_is_dropped_is_answered() {
    let mut wire = Wire::new(0);
    let store = wire.open();
    wire.exchange(&[call(5, SET, Some(store))]);
    drop(wire.calls.kept.take());
    wire.pool.run_until_stalled();
    let said = wire.said();
    assert_eq!(
        said,
        [Said::Exception(5, "the call was abandoned".to_string())]
    );
    assert_eq!(wire.meter.bytes_in_flight(), 0);
}

#[test]
fn a_number_in_use_ends_the_connection_whoever_uses_it() {
    for (first, second, reason) in [
        (SET, GET, "Received a new call on in-use question id 5"),
        (SET, STAT, "Received a new call on in-use question id 5"),
    ] {
        let mut wire = Wire::new(0);
        let store = wire.open();
        let said = wire.exchange(&[call(5, first, Some(store)), call(5, second, Some(store))]);
        assert_eq!(said, [Said::Abort(reason.to_string())]);
    }
    // A question of the RPC system.
    let mut wire = Wire::new(0);
    let store = wire.open();
    let said = wire.exchange(&[call(OPEN, GET, Some(store))]);
    assert_eq!(
        said,
        [Said::Abort(
            "Received a new call on in-use question id 1".to_string()
        )]
    );
    let mut wire = Wire::new(0);
    let store = wire.open();
    let said = wire.exchange(&[
        call(5, SET, Some(store)),
        bytes(|root| root.init_bootstrap().set_question_id(5)),
    ]);
    assert_eq!(
        said,
        [Said::Abort("questionId is already in use".to_string())]
    );
}

#[test]
fn a_released_export_is_no_target_any_more() {
    let mut wire = Wire::new(0);
    let store = wire.open();
    // `open` once more gives another capability, as this server makes one for each call.
    let said = wire.exchange(&[release(store, 1), call(5, GET, Some(store))]);
    assert_eq!(
        said,
        [Said::Abort(
            "Message target is not a current export ID.".to_string()
        )]
    );
    assert_eq!(wire.log(), [""; 0]);
}

#[test]
fn a_finish_that_releases_the_results_releases_the_export() {
    let mut wire = Wire::new(0);
    let store = wire.open();
    let finish = bytes(|root| {
        let mut finish = root.init_finish();
        finish.set_question_id(OPEN);
        finish.set_release_result_caps(true);
    });
    let said = wire.exchange(&[finish, call(5, GET, Some(store))]);
    assert_eq!(
        said,
        [Said::Abort(
            "Message target is not a current export ID.".to_string()
        )]
    );
}

#[test]
fn many_answers_leave_before_all_calls_are_worked_on() {
    let mut wire = Wire::new(0);
    let store = wire.open();
    let calls: Vec<_> = (0..10 * ANSWERS_UNWRITTEN_MAX as u32)
        .map(|id| call(10 + id, GET, Some(store)))
        .collect();
    let written_before = wire.meter.bytes_written();
    let said = wire.exchange(&calls);
    assert_eq!(said.len(), calls.len());
    assert!(wire.meter.bytes_written() > written_before);
    assert!(wire.meter.is_flushed());
}

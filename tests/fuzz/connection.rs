//! Bytes of a peer, through framing, admission, direct calls and `capnp_rpc`, to a store of stubs.
//!
//! An input is a byte that says how it is read, and a stream. Whatever it is, nothing panics, the connection ends when
//! the stream does, and nothing of it is kept.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use capnp::message::Builder;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{call, cap_descriptor, message};
use capnp_rpc::rpc_twoparty_capnp::Side;
use futures::FutureExt as _;
use futures::executor::LocalPool;
use futures::io::{AsyncRead, AsyncWrite};
use futures::task::LocalSpawnExt as _;
use orlop::proto::orlop_capnp::{bootstrap, entry_sink, store};
use orlop::wire::direct::{DirectCall, DirectCalls, Later, Verdict};
use orlop::wire::{Setup, WireLimits};

const LIMITS: WireLimits = WireLimits {
    message_bytes_max: 1 << 20,
    bytes_in_max: 1 << 20,
    bytes_out_max: 1 << 20,
};

const GET: u16 = 0;
const SET: u16 = 1;
const GET_PREFIX: u16 = 5;

/// Bit of the first byte: calls are answered directly.
const DIRECTLY: u8 = 1;

/// Feeds one input to a connection.
pub(super) fn run(input: &[u8]) {
    let Some((how, stream)) = input.split_first() else {
        return;
    };
    let reader = Source {
        bytes: stream.to_vec(),
        at: 0,
        // All at once, or in pieces of 1 to 63 bytes.
        piece: match how >> 1 & 63 {
            0 => usize::MAX,
            piece => piece.into(),
        },
        waits: false,
    };
    let (mut setup, meter) = Setup::new(reader, Drain, Side::Server, LIMITS);
    let direct = Rc::new(Direct::default());
    if how & DIRECTLY != 0 {
        setup.answer_directly(Rc::clone(&direct) as Rc<dyn DirectCalls>);
    }
    let door = capnp_rpc::new_client::<bootstrap::Client, _>(Door).client;
    let connection = setup.start(Some(door));
    let ended = Rc::new(Cell::new(false));
    let end = Rc::clone(&ended);
    let mut pool = LocalPool::new();
    pool.spawner()
        .spawn_local(connection.map(move |_| end.set(true)))
        .expect("the pool lives");
    pool.run_until_stalled();
    direct.waiting.take();
    pool.run_until_stalled();
    assert!(ended.get(), "the connection does not end with its stream");
    assert_eq!(meter.bytes_in_flight(), 0, "a message is kept");
}

/// A stream that comes in pieces, and ends.
struct Source {
    bytes: Vec<u8>,
    at: usize,
    piece: usize,
    waits: bool,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.waits = !self.waits;
        if self.waits {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let left = &self.bytes[self.at..];
        let bytes = left.len().min(self.piece).min(into.len());
        into[..bytes].copy_from_slice(&left[..bytes]);
        self.at += bytes;
        Poll::Ready(Ok(bytes))
    }
}

/// Takes everything.
struct Drain;

impl AsyncWrite for Drain {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Door;

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

struct Room;

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

    async fn get_many(
        self: Rc<Self>,
        params: store::GetManyParams,
        mut results: store::GetManyResults,
    ) -> Result<(), capnp::Error> {
        let keys = params.get()?.get_keys()?;
        let count = keys.len().min(100);
        let mut lookups = results.get().init_lookups(count);
        for (at, key) in (0..count).zip(keys.iter()) {
            let mut found = lookups.reborrow().get(at).init_found();
            found.set_version(key?.len() as u64);
        }
        Ok(())
    }

    async fn get_prefix(
        self: Rc<Self>,
        params: store::GetPrefixParams,
        mut results: store::GetPrefixResults,
    ) -> Result<(), capnp::Error> {
        fill_page(params.get()?, results.get())
    }

    async fn stream_prefix(
        self: Rc<Self>,
        params: store::StreamPrefixParams,
        mut results: store::StreamPrefixResults,
    ) -> Result<(), capnp::Error> {
        let sink = params.get()?.get_sink()?;
        for count in 1..4 {
            let mut push = sink.push_request();
            push.get().init_entries(count);
            push.send().promise.await?;
            results.get().set_count(count.into());
        }
        Ok(())
    }
}

/// One entry: what was asked for.
fn fill_page(
    params: store::get_prefix_params::Reader<'_>,
    mut results: store::get_prefix_results::Builder<'_>,
) -> Result<(), capnp::Error> {
    let mut entry = results.reborrow().init_entries(1).get(0);
    entry.set_key(params.get_prefix()?);
    entry.set_value(params.get_after()?);
    results.set_more(params.get_keys_only());
    Ok(())
}

/// Answers `get` at once, `getPrefix` from what it keeps of the call, and `set` when something else is asked.
#[derive(Default)]
struct Direct {
    waiting: RefCell<Vec<Later>>,
}

impl DirectCalls for Direct {
    fn interface(&self) -> u64 {
        store::Client::TYPE_ID
    }

    fn opens(&self, interface: u64, method: u16) -> Option<u16> {
        (interface == bootstrap::Client::TYPE_ID && method == 0).then_some(0)
    }

    fn call(&self, call: DirectCall<'_>) -> Verdict {
        let done = self.waiting.take();
        let failure = capnp::Error::failed("it is done with".to_string());
        done.into_iter()
            .for_each(|later| later.reply().exception(&failure));
        match call.method {
            GET => {
                let params: capnp::Result<store::get_params::Reader<'_>> = call.params.get_as();
                let Ok(Ok(key)) = params.map(|params| params.get_key()) else {
                    return Verdict::Declined;
                };
                call.question.reply().build(key.len() / 8, |results| {
                    let results: store::get_results::Builder<'_> = results.init_as();
                    results.init_lookup().init_found().set_value(key);
                    Ok(())
                });
                Verdict::Taken
            }
            SET => {
                self.waiting.borrow_mut().push(call.question.later());
                Verdict::Taken
            }
            GET_PREFIX => {
                let (kept, later) = (call.keep(), call.question.later());
                later.reply().build(0, |results| {
                    let params = kept.get()?.get_as()?;
                    fill_page(params, results.init_as())
                });
                Verdict::Taken
            }
            _ => Verdict::Declined,
        }
    }
}

/// Sessions to start from, each one way of reading and the messages of a client.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let calls = [
        open(1, 0),
        call_store(2, 1, GET, |call| {
            let content = call.init_params().init_content();
            content
                .init_as::<store::get_params::Builder<'_>>()
                .set_key(b"key");
        }),
        call_store(3, 1, SET, |call| {
            let content = call.init_params().init_content();
            content
                .init_as::<store::set_params::Builder<'_>>()
                .set_value(b"value");
        }),
        call_store(4, 1, 3, |call| {
            let content = call.init_params().init_content();
            let params = content.init_as::<store::get_many_params::Builder<'_>>();
            params.init_keys(3).set(1, b"second");
        }),
        call_store(5, 1, GET_PREFIX, |call| {
            let content = call.init_params().init_content();
            let mut params = content.init_as::<store::get_prefix_params::Builder<'_>>();
            params.set_prefix(b"prefix");
            params.set_keys_only(true);
        }),
        finish(2),
        finish(1),
    ];
    let streams = [
        open(1, 0),
        stream_to(2, |mut sink| sink.set_sender_hosted(7)),
        answer(0),
        answer(1),
        release(0),
        finish(2),
    ];
    let promises = [
        open(1, 0),
        stream_to(2, |mut sink| sink.set_sender_promise(5)),
        stream_to(3, |sink| sink.init_receiver_answer().set_question_id(2)),
        stream_to(4, |mut sink| sink.set_receiver_hosted(0)),
        resolve(5, 8),
        answer(0),
        disembargo(2),
        finish(3),
        finish(2),
    ];
    let strange = [
        message(|root| root.init_provide().set_question_id(1)),
        message(|root| root.init_accept().set_question_id(2)),
        message(|root| root.init_join().set_question_id(3)),
        message(|root| {
            let unimplemented = root.init_unimplemented();
            unimplemented.init_resolve().init_cap().set_sender_hosted(0);
        }),
        message(|root| root.init_abort().set_reason("enough")),
    ];
    let sessions = [&calls[..], &streams, &promises, &strange];
    sessions
        .iter()
        .flat_map(|session| {
            let bytes = [bootstrap(0), session.concat()].concat();
            [0, DIRECTLY, DIRECTLY | 7 << 1].map(|how| [&[how], &bytes[..]].concat())
        })
        .collect()
}

fn message(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut message = Builder::new_default();
    fill(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

fn bootstrap(question: u32) -> Vec<u8> {
    message(|root| root.init_bootstrap().set_question_id(question))
}

fn open(question: u32, on: u32) -> Vec<u8> {
    message(|root| {
        let mut call = root.init_call();
        call.set_question_id(question);
        call.set_interface_id(bootstrap::Client::TYPE_ID);
        call.reborrow()
            .init_target()
            .init_promised_answer()
            .set_question_id(on);
        let content = call.init_params().init_content();
        content.init_as::<bootstrap::open_params::Builder<'_>>();
    })
}

fn call_store(
    question: u32,
    on: u32,
    method: u16,
    fill: impl FnOnce(call::Builder<'_>),
) -> Vec<u8> {
    message(|root| {
        let mut call = root.init_call();
        call.set_question_id(question);
        call.set_interface_id(store::Client::TYPE_ID);
        call.set_method_id(method);
        let mut target = call.reborrow().init_target().init_promised_answer();
        target.set_question_id(on);
        target.init_transform(1).get(0).set_get_pointer_field(0);
        fill(call);
    })
}

fn stream_to(question: u32, sink: impl FnOnce(cap_descriptor::Builder<'_>)) -> Vec<u8> {
    struct NoSink;
    impl entry_sink::Server for NoSink {}
    call_store(question, 1, 6, |call| {
        let mut payload = call.init_params();
        let mut capabilities = Vec::new();
        let mut content = payload.reborrow().init_content();
        content.imbue_mut(&mut capabilities);
        content
            .init_as::<store::stream_prefix_params::Builder<'_>>()
            .set_sink(capnp_rpc::new_client(NoSink));
        sink(payload.init_cap_table(1).get(0));
    })
}

fn answer(question: u32) -> Vec<u8> {
    message(|root| {
        let mut answer = root.init_return();
        answer.set_answer_id(question);
        let content = answer.init_results().init_content();
        content.init_as::<entry_sink::push_results::Builder<'_>>();
    })
}

fn finish(question: u32) -> Vec<u8> {
    message(|root| root.init_finish().set_question_id(question))
}

fn release(id: u32) -> Vec<u8> {
    message(|root| {
        let mut release = root.init_release();
        release.set_id(id);
        release.set_reference_count(1);
    })
}

fn resolve(promise: u32, to: u32) -> Vec<u8> {
    message(|root| {
        let mut resolve = root.init_resolve();
        resolve.set_promise_id(promise);
        resolve.init_cap().set_sender_hosted(to);
    })
}

fn disembargo(question: u32) -> Vec<u8> {
    message(|root| {
        let mut disembargo = root.init_disembargo();
        disembargo.reborrow().init_context().set_sender_loopback(1);
        disembargo
            .init_target()
            .init_promised_answer()
            .set_question_id(question);
    })
}

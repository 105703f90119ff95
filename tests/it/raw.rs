//! A client made by hand: Cap'n Proto RPC messages as bytes on a socket, so that a test can send what no library sends.
//!
//! Owns: the messages of the protocol that a call needs (Bootstrap, Call, Finish, Return) and their framing, and a way to
//! make any other.
//! Does not: keep a table of questions, follow capabilities, or check anything; the tests do.

use std::net::SocketAddr;

use capnp::any_pointer;
use capnp::message::{Builder, Reader, ReaderOptions};
use capnp::serialize::OwnedSegments;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{call, cap_descriptor, message, return_};
use orlop::proto::orlop_capnp::{bootstrap, entry_sink, store};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Question of the Bootstrap message that [`RawClient::connect`] sends.
pub(crate) const BOOTSTRAP: u32 = 0;

/// Question of the `open` call that [`RawClient::connect`] sends; calls on the store are pipelined on it.
pub(crate) const OPEN: u32 = 1;

/// First question that is free for a test.
pub(crate) const FIRST_QUESTION: u32 = 2;

/// Ordinals of the methods of `Store` that are called by hand.
pub(crate) mod method {
    pub(crate) const GET: u16 = 0;
    pub(crate) const SET: u16 = 1;
    pub(crate) const GET_MANY: u16 = 3;
    pub(crate) const GET_PREFIX: u16 = 5;
    pub(crate) const STREAM_PREFIX: u16 = 6;
}

/// One connection.
pub(crate) struct RawClient {
    pub(crate) stream: TcpStream,
}

/// What came back for a question.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Results, whatever they are.
    Results,
    /// An exception's reason.
    Exception(String),
    /// Nothing: it was not wanted any more.
    Canceled,
}

impl RawClient {
    /// Connects and asks for the store, without waiting for an answer.
    pub(crate) async fn connect(address: SocketAddr) -> RawClient {
        let mut client = RawClient {
            stream: TcpStream::connect(address).await.unwrap(),
        };
        client.send(&bootstrap()).await;
        client.send(&open()).await;
        client
    }

    /// Sends bytes; the server may have closed the connection already.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // A closed connection shows in what is read next.
        self.stream.write_all(bytes).await.ok();
    }

    /// The next message, or `None` where the connection ends.
    pub(crate) async fn receive(&mut self) -> Option<Reader<OwnedSegments>> {
        receive(&mut self.stream).await
    }

    /// Reads messages until the answer to `question` is among them; `None` where the connection ends first.
    pub(crate) async fn answer(&mut self, question: u32) -> Option<Answer> {
        loop {
            let message = self.receive().await?;
            match answer_of(&message) {
                Some((answered, answer)) if answered == question => return Some(answer),
                _ => {}
            }
        }
    }

    /// Whether the server closes the connection: true when it ends, false when it still answers a call.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let question = u32::MAX / 4;
        self.send(&get(question, b"is it closed?")).await;
        self.answer(question).await.is_none()
    }
}

/// The next message of a stream, or `None` where it ends.
pub(crate) async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
) -> Option<Reader<OwnedSegments>> {
    let bytes = read_message_bytes(stream).await?;
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(None);
    Some(capnp::serialize::read_message(&bytes[..], options).unwrap())
}

/// The question that a message answers, and the answer; `None` where it is another message.
pub(crate) fn answer_of(message: &Reader<OwnedSegments>) -> Option<(u32, Answer)> {
    let root: message::Reader<'_> = message.get_root().unwrap();
    let message::Return(answer) = root.which().unwrap() else {
        return None;
    };
    let answer = answer.unwrap();
    let question = answer.get_answer_id();
    match answer.which().unwrap() {
        return_::Results(_) => Some((question, Answer::Results)),
        return_::Exception(exception) => {
            let reason = exception
                .unwrap()
                .get_reason()
                .unwrap()
                .to_string()
                .unwrap();
            Some((question, Answer::Exception(reason)))
        }
        return_::Canceled(()) => Some((question, Answer::Canceled)),
        _ => panic!("neither results nor an exception"),
    }
}

/// Whether a message is one of the client's that came back because the server does not know it.
pub(crate) fn is_unimplemented(message: &Reader<OwnedSegments>) -> bool {
    let root: message::Reader<'_> = message.get_root().unwrap();
    matches!(root.which(), Ok(message::Unimplemented(_)))
}

/// The bytes of one message, segment table included; `None` where the stream ends.
async fn read_message_bytes(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 4];
    stream.read_exact(&mut bytes).await.ok()?;
    let segments = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize + 1;
    let table_len = (4 + 4 * segments).next_multiple_of(8);
    bytes.resize(table_len, 0);
    stream.read_exact(&mut bytes[4..]).await.ok()?;
    let words: usize = (0..segments)
        .map(|s| u32::from_le_bytes(bytes[4 + 4 * s..8 + 4 * s].try_into().unwrap()) as usize)
        .sum();
    bytes.resize(table_len + 8 * words, 0);
    stream.read_exact(&mut bytes[table_len..]).await.ok()?;
    Some(bytes)
}

/// Any message.
pub(crate) fn message(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut message = Builder::new_default();
    fill(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

/// The Bootstrap message.
pub(crate) fn bootstrap() -> Vec<u8> {
    bootstrap_as(BOOTSTRAP)
}

/// A Bootstrap message with any question.
pub(crate) fn bootstrap_as(question: u32) -> Vec<u8> {
    message(|root| root.init_bootstrap().set_question_id(question))
}

/// `Bootstrap.open`, pipelined on the bootstrap capability.
pub(crate) fn open() -> Vec<u8> {
    open_as(OPEN)
}

/// The same with any question.
pub(crate) fn open_as(question: u32) -> Vec<u8> {
    let mut message = Builder::new_default();
    let mut call = message.init_root::<message::Builder<'_>>().init_call();
    call.set_question_id(question);
    call.set_interface_id(bootstrap::Client::TYPE_ID);
    call.set_method_id(0);
    call.reborrow()
        .init_target()
        .init_promised_answer()
        .set_question_id(BOOTSTRAP);
    call.init_params()
        .init_content()
        .init_as::<bootstrap::open_params::Builder<'_>>();
    capnp::serialize::write_message_to_words(&message)
}

/// A call of a method of the store, pipelined on `open`.
pub(crate) fn store_call(
    question: u32,
    method: u16,
    parameters: impl FnOnce(any_pointer::Builder<'_>),
) -> Vec<u8> {
    store_call_with(question, method, |call| {
        parameters(call.init_params().init_content());
    })
}

/// The same, with everything but target and method left to `fill`.
pub(crate) fn store_call_with(
    question: u32,
    method: u16,
    fill: impl FnOnce(call::Builder<'_>),
) -> Vec<u8> {
    message(|root| {
        let mut call: call::Builder<'_> = root.init_call();
        call.set_question_id(question);
        call.set_interface_id(store::Client::TYPE_ID);
        call.set_method_id(method);
        let mut target = call.reborrow().init_target().init_promised_answer();
        target.set_question_id(OPEN);
        target.init_transform(1).get(0).set_get_pointer_field(0);
        fill(call);
    })
}

/// `Store.get`.
pub(crate) fn get(question: u32, key: &[u8]) -> Vec<u8> {
    store_call(question, method::GET, |content| {
        content
            .init_as::<store::get_params::Builder<'_>>()
            .set_key(key);
    })
}

/// `Store.getPrefix` of all keys, as many as fit in `max_bytes`.
pub(crate) fn get_prefix(question: u32, max_bytes: u32) -> Vec<u8> {
    store_call(question, method::GET_PREFIX, |content| {
        content
            .init_as::<store::get_prefix_params::Builder<'_>>()
            .set_max_bytes(max_bytes);
    })
}

/// `Store.streamPrefix` to a sink that the client exports as `sink`.
pub(crate) fn stream_prefix(question: u32, prefix: &[u8], sink: u32) -> Vec<u8> {
    stream_prefix_with(question, prefix, |mut descriptor| {
        descriptor.set_sender_hosted(sink)
    })
}

/// The same, with any capability as the sink: its descriptor is the only one of the table.
pub(crate) fn stream_prefix_with(
    question: u32,
    prefix: &[u8],
    descriptor: impl FnOnce(cap_descriptor::Builder<'_>),
) -> Vec<u8> {
    store_call_with(question, method::STREAM_PREFIX, |call| {
        let mut payload = call.init_params();
        let mut capabilities = Vec::new();
        let mut content = payload.reborrow().init_content();
        content.imbue_mut(&mut capabilities);
        let mut parameters = content.init_as::<store::stream_prefix_params::Builder<'_>>();
        parameters.set_prefix(prefix);
        parameters.set_sink(capnp_rpc::new_client(NoSink));
        descriptor(payload.init_cap_table(1).get(0));
    })
}

/// Stands for a sink where only a pointer to one is needed.
struct NoSink;

impl entry_sink::Server for NoSink {}

/// `Store.set` without a condition.
pub(crate) fn set(question: u32, key: &[u8], value: &[u8]) -> Vec<u8> {
    store_call(question, method::SET, |content| {
        let mut parameters = content.init_as::<store::set_params::Builder<'_>>();
        parameters.set_key(key);
        parameters.set_value(value);
    })
}

/// The Finish message, which tells the server that the answer is not wanted any more.
pub(crate) fn finish(question: u32) -> Vec<u8> {
    message(|root| {
        let mut finish = root.init_finish();
        finish.set_question_id(question);
        finish.set_release_result_caps(true);
    })
}

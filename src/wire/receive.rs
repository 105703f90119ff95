//! The receiving direction: reads the stream, cuts messages and hands them out one by one within the budgets.
//!
//! Called by `network.rs` for `capnp_rpc`'s message loop, which asks for the next message when it has dispatched the
//! last.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use capnp::message::{Reader, ReaderOptions};
use capnp_rpc::IncomingMessage;
use futures::io::AsyncRead;

use super::Meter;
use super::frame::{Assembler, Segments};
use super::recycle;

/// How deep a message may be nested, the RPC envelope included. The same as in every stock Cap'n Proto library.
const NESTING_MAX: i32 = 64;

/// A message may be traversed so many times its largest size: reading a field twice counts twice.
const TRAVERSALS_MAX: usize = 4;

/// Bytes read in one poll before the others have their turn.
const READ_BYTES_PER_POLL_MAX: usize = 1 << 20;

/// What has arrived on one connection and is not handed out yet.
pub(super) struct Receiver<R> {
    reader: R,
    assembler: Assembler,
    complete: VecDeque<Segments>,
    options: ReaderOptions,
    meter: Rc<Meter>,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    pub(super) fn new(reader: R, message_bytes_max: usize, meter: Rc<Meter>) -> Self {
        let traversed_words_max =
            message_bytes_max.saturating_mul(TRAVERSALS_MAX) / size_of::<capnp::Word>();
        let options = ReaderOptions {
            traversal_limit_in_words: Some(traversed_words_max),
            nesting_limit: NESTING_MAX,
        };
        Self {
            reader,
            assembler: Assembler::new(message_bytes_max),
            complete: VecDeque::new(),
            options,
            meter,
        }
    }

    /// The next message, if it is read already and may be handed out.
    pub(super) fn take_ready(&mut self) -> Option<Box<dyn IncomingMessage>> {
        if self.complete.is_empty() || !self.meter.may_receive() {
            return None;
        }
        self.complete
            .pop_front()
            .map(|segments| self.hand_out(segments))
    }

    /// The next message; `None` when the peer has closed its side between two messages.
    pub(super) fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Box<dyn IncomingMessage>>, capnp::Error>> {
        let mut bytes_read = 0;
        loop {
            ready!(self.meter.poll_may_receive(context))?;
            if let Some(segments) = self.complete.pop_front() {
                return Poll::Ready(Ok(Some(self.hand_out(segments))));
            }
            if bytes_read >= READ_BYTES_PER_POLL_MAX {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.poll_read(context) {
                Poll::Ready(Ok(0)) if self.assembler.has_partial() => {
                    return Poll::Ready(Err(capnp::Error::disconnected(
                        "the peer closed the connection in the middle of a message".to_string(),
                    )));
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(None)),
                Poll::Ready(Ok(bytes)) => bytes_read += bytes,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.meter.park_receiver(context);
                    return Poll::Pending;
                }
            }
        }
    }

    /// One read, cut into messages.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, capnp::Error>> {
        let Self {
            reader,
            assembler,
            complete,
            meter,
            ..
        } = self;
        let bytes = if let Some(room) = assembler.body_room() {
            let bytes = ready!(Pin::new(reader).poll_read(context, room)).map_err(disconnected)?;
            assembler.body_arrived(bytes, complete);
            bytes
        } else {
            ready!(recycle::with_read_buffer(|buffer| {
                let bytes =
                    ready!(Pin::new(reader).poll_read(context, buffer)).map_err(disconnected)?;
                assembler.feed(&buffer[..bytes], complete)?;
                Poll::Ready(Ok::<_, capnp::Error>(bytes))
            }))?
        };
        meter.note_read(bytes, assembler.has_partial());
        Poll::Ready(Ok(bytes))
    }

    fn hand_out(&self, segments: Segments) -> Box<dyn IncomingMessage> {
        let bytes = segments.bytes();
        self.meter.note_received(bytes);
        Box::new(Received {
            message: Reader::new(segments, self.options),
            bytes,
            meter: Rc::clone(&self.meter),
        })
    }
}

fn disconnected(error: std::io::Error) -> capnp::Error {
    capnp::Error::disconnected(format!("reading from the peer: {error}"))
}

/// A message that counts towards the budget until it is dropped.
struct Received {
    message: Reader<Segments>,
    bytes: usize,
    meter: Rc<Meter>,
}

impl IncomingMessage for Received {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.message.get_root()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.meter.note_released(self.bytes);
    }
}

//! The writing end of a connection: hands the outbox to the stream.
//!
//! The connection writes at the end of its turn. By then everything that was woken together has queued what it has, be it
//! the answers of one commit or the calls of many tasks, and it leaves in one write. Only `capnp_rpc` needs more turns than
//! one, because it works on few messages in each: while it has more to do at once and has sent something again, the writer
//! waits for the rest; beyond a size it does not wait.
//!
//! Called by `connection.rs`, and by `direct` where a peer should read while there is still work to do.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use futures::channel::oneshot;
use futures::io::AsyncWrite;

use super::gate::Bell;
use super::send::{COALESCED_BYTES_MAX, Outbox};

/// The stream that the outbox is written to, for more than one writer.
pub(super) struct Sink<W> {
    stream: RefCell<W>,
    outbox: Rc<Outbox>,
    /// Bytes were written since the stream was last flushed.
    unflushed: Cell<bool>,
    /// In this turn of the connection.
    bytes_in_turn: Cell<usize>,
    /// Rung by a stream that has taken nothing before. A connection that is woken by something else does not try it again.
    room: Bell,
}

/// Writes without waiting for its turn.
pub(super) trait WriteNow {
    /// Hands what is queued to the stream, once. What the stream does not take, and its error, is left to the writer,
    /// which has its turn in the same poll of the connection.
    fn write_now(&self);
}

impl<W: AsyncWrite + Unpin> Sink<W> {
    pub(super) fn new(stream: W, outbox: Rc<Outbox>) -> Rc<Self> {
        Rc::new(Self {
            stream: RefCell::new(stream),
            outbox,
            unflushed: Cell::new(false),
            bytes_in_turn: Cell::new(0),
            room: Bell::new(),
        })
    }

    /// Whether the stream takes nothing.
    fn is_blocked(&self) -> bool {
        if self.outbox.blocked.get() && self.room.take() {
            self.outbox.blocked.set(false);
        }
        self.outbox.blocked.get()
    }

    /// Whether others have their turn before more is written.
    fn is_turn_over(&self) -> bool {
        self.bytes_in_turn.get() >= self.outbox.meter.pace().bounds().written_bytes
    }

    /// Does something with the stream, which rings when it is to be tried again.
    fn poll_stream<T>(
        &self,
        poll: impl FnOnce(&mut W, &mut Context<'_>) -> Poll<std::io::Result<T>>,
    ) -> Poll<std::io::Result<T>> {
        // Whatever it was rung for, this is the try.
        self.room.take();
        let stream = &mut *self.stream.borrow_mut();
        let polled = poll(stream, &mut Context::from_waker(self.room.waker()));
        self.outbox.blocked.set(polled.is_pending());
        polled
    }

    /// Writes once. Something must be queued.
    fn poll_write(&self) -> Poll<std::io::Result<usize>> {
        let mut queue = self.outbox.queue.borrow_mut();
        let bytes_max = self.outbox.meter.pace().bounds().written_bytes;
        let bytes = ready!(
            self.poll_stream(|stream, context| { queue.poll_write(stream, bytes_max, context) })
        )?;
        if bytes == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
        }
        queue.advance(bytes);
        drop(queue);
        self.unflushed.set(true);
        self.bytes_in_turn.set(self.bytes_in_turn.get() + bytes);
        self.outbox.meter.note_written(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn poll_flush(&self) -> Poll<std::io::Result<()>> {
        if self.unflushed.get() {
            ready!(self.poll_stream(|stream, context| Pin::new(stream).poll_flush(context)))?;
            self.unflushed.set(false);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(&self) -> Poll<std::io::Result<()>> {
        self.poll_stream(|stream, context| Pin::new(stream).poll_close(context))
    }
}

impl<W: AsyncWrite + Unpin> WriteNow for Sink<W> {
    fn write_now(&self) {
        if self.is_blocked() || self.is_turn_over() || self.outbox.is_written() {
            return;
        }
        if let Poll::Ready(Ok(_)) = self.poll_write()
            && self.outbox.is_written()
        {
            // The writer flushes what is not flushed here.
            drop(self.poll_flush());
        }
    }
}

/// Writes the outbox of one connection until it is shut down or the stream fails.
pub(super) struct Writer<W> {
    sink: Rc<Sink<W>>,
    outbox: Rc<Outbox>,
    /// Told how it ended.
    end: Option<oneshot::Sender<capnp::Result<()>>>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub(super) fn new(sink: Rc<Sink<W>>, end: oneshot::Sender<capnp::Result<()>>) -> Self {
        let outbox = Rc::clone(&sink.outbox);
        Self {
            sink,
            outbox,
            end: Some(end),
        }
    }

    /// The stream is to wake this from now on.
    pub(super) fn set_connection(&self, waker: &Waker) {
        self.sink.room.set_parent(waker);
    }

    /// A turn of the connection begins.
    pub(super) fn begin_turn(&self) {
        self.sink.bytes_in_turn.set(0);
    }

    /// Writes what there is. `rpc_goes_on` says that `capnp_rpc` has more to do at once.
    pub(super) fn poll(&mut self, rpc_goes_on: bool) {
        if self.end.is_none() || self.sink.is_blocked() {
            return;
        }
        if let Poll::Ready(written) = self.poll_drive(rpc_goes_on) {
            self.end(written);
        }
    }

    fn poll_drive(&self, rpc_goes_on: bool) -> Poll<std::io::Result<()>> {
        let outbox = &self.outbox;
        let more_comes = outbox.rpc_sent.take() && rpc_goes_on;
        if more_comes && outbox.meter.bytes_out_pending() < COALESCED_BYTES_MAX {
            outbox.meter.wake_connection();
            return Poll::Pending;
        }
        while !outbox.is_written() {
            if self.sink.is_turn_over() {
                outbox.meter.wake_connection();
                return Poll::Pending;
            }
            ready!(self.sink.poll_write())?;
        }
        ready!(self.sink.poll_flush())?;
        if outbox.shutdown.borrow().is_some() {
            return self.sink.poll_close();
        }
        Poll::Pending
    }

    /// Nothing is written any more.
    fn end(&mut self, written: std::io::Result<()>) {
        let outbox = &self.outbox;
        let written = written.map_err(|error| {
            let error = capnp::Error::disconnected(format!("writing to the peer: {error}"));
            outbox.meter.fail(error.clone());
            error
        });
        outbox.closed.set(true);
        outbox.meter.close();
        outbox.queue.take();
        let result = match outbox.shutdown.take() {
            Some(shutdown) => {
                // The waiter may be gone; the news is in our own result as well.
                shutdown.done.send(written.clone()).unwrap_or_default();
                written.and(shutdown.result)
            }
            None => written,
        };
        if let Some(end) = self.end.take() {
            // `capnp_rpc` may have ended before.
            end.send(result).unwrap_or_default();
        }
    }
}

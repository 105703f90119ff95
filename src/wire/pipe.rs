//! A pair of connected byte streams in memory, for tests: it counts reads and writes, limits how much fits, and can
//! break. Single-threaded.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures::io::{AsyncRead, AsyncWrite};

/// One direction, from a [`PipeWriter`] to a [`PipeReader`].
#[derive(Default)]
pub(crate) struct Direction {
    bytes: VecDeque<u8>,
    capacity: usize,
    read_bytes_max: usize,
    pub(crate) reads: usize,
    pub(crate) writes: usize,
    /// Writes that had to wait for room.
    refusals: usize,
    everything: Vec<u8>,
    /// Addresses of the memory that the writer was given, write by write.
    pub(crate) addresses: Vec<usize>,
    closed: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone)]
pub(crate) struct PipeReader(Rc<RefCell<Direction>>);
#[derive(Clone)]
pub(crate) struct PipeWriter(Rc<RefCell<Direction>>);

/// A pipe that holds at most `capacity` bytes.
pub(crate) fn pipe(capacity: usize) -> (PipeReader, PipeWriter) {
    let direction = Rc::new(RefCell::new(Direction {
        capacity,
        read_bytes_max: usize::MAX,
        ..Direction::default()
    }));
    (PipeReader(Rc::clone(&direction)), PipeWriter(direction))
}

/// Two pipes: what the client and the server read and write.
pub(crate) fn duplex(capacity: usize) -> ((PipeReader, PipeWriter), (PipeReader, PipeWriter)) {
    let (server_reader, client_writer) = pipe(capacity);
    let (client_reader, server_writer) = pipe(capacity);
    (
        (client_reader, client_writer),
        (server_reader, server_writer),
    )
}

impl PipeReader {
    /// A read returns at most so many bytes from now on.
    pub(crate) fn limit_reads(&self, bytes: usize) {
        self.0.borrow_mut().read_bytes_max = bytes;
    }

    /// What is written fails from now on.
    pub(crate) fn break_off(&self) {
        let mut direction = self.0.borrow_mut();
        direction.reader_gone = true;
        if let Some(waker) = direction.writer.take() {
            waker.wake();
        }
    }

    /// Takes what is there.
    pub(crate) fn drain(&self) -> Vec<u8> {
        let mut direction = self.0.borrow_mut();
        let bytes = direction.bytes.drain(..).collect();
        if let Some(waker) = direction.writer.take() {
            waker.wake();
        }
        bytes
    }

    pub(crate) fn reads(&self) -> usize {
        self.0.borrow().reads
    }
}

impl PipeWriter {
    /// Puts bytes in the pipe, whatever its capacity.
    pub(crate) fn put(&self, bytes: &[u8]) {
        let mut direction = self.0.borrow_mut();
        direction.bytes.extend(bytes);
        if let Some(waker) = direction.reader.take() {
            waker.wake();
        }
    }

    pub(crate) fn close(&self) {
        let mut direction = self.0.borrow_mut();
        direction.closed = true;
        if let Some(waker) = direction.reader.take() {
            waker.wake();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.borrow().closed
    }

    /// All bytes that were ever written.
    pub(crate) fn everything(&self) -> Vec<u8> {
        self.0.borrow().everything.clone()
    }

    pub(crate) fn writes(&self) -> usize {
        self.0.borrow().writes
    }

    pub(crate) fn refusals(&self) -> usize {
        self.0.borrow().refusals
    }

    pub(crate) fn addresses(&self) -> Vec<usize> {
        self.0.borrow().addresses.clone()
    }
}

impl AsyncRead for PipeReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut direction = self.0.borrow_mut();
        if direction.bytes.is_empty() && !direction.closed {
            direction.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        direction.reads += 1;
        let count = buffer
            .len()
            .min(direction.bytes.len())
            .min(direction.read_bytes_max);
        for (to, from) in buffer.iter_mut().zip(direction.bytes.drain(..count)) {
            *to = from;
        }
        if let Some(waker) = direction.writer.take() {
            waker.wake();
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut direction = self.0.borrow_mut();
        if direction.reader_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = direction.capacity.saturating_sub(direction.bytes.len());
        if room == 0 {
            direction.refusals += 1;
            direction.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        direction.writes += 1;
        let mut count = 0;
        for slice in slices {
            direction.addresses.push(slice.as_ptr() as usize);
            let taken = slice.len().min(room - count);
            direction.bytes.extend(&slice[..taken]);
            direction.everything.extend(&slice[..taken]);
            count += taken;
        }
        if let Some(waker) = direction.reader.take() {
            waker.wake();
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

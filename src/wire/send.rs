//! The sending direction: a queue of bytes, large segments and large values.
//!
//! `send` only queues, and sees to it that the connection has a turn, at whose end `write.rs` writes. Called by
//! `network.rs` for `capnp_rpc`, by `direct` and by `asker.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator, ReaderSegments};
use capnp_rpc::OutgoingMessage;
use futures::channel::oneshot;
use futures::io::AsyncWrite;

use super::Meter;
use super::recycle;
use super::words::{WORD_BYTES, append, append_bytes, words_of};

/// Segments and values from this size on are written from where they are; smaller ones are copied together.
const IN_PLACE_BYTES_MIN: usize = 64 << 10;

/// So many bytes are copied together; with as many queued the writer does not wait for more.
pub(super) const COALESCED_BYTES_MAX: usize = 256 << 10;

/// Pieces handed to the stream in one vectored write.
const PIECES_PER_WRITE_MAX: usize = 16;

/// Bytes handed to the stream in one write.
const WRITE_BYTES_MAX: usize = 512 << 10;

/// Largest first segment of a message to be sent, in words. `capnp_rpc` asks for 8 KiB, zeroed, for every call; most
/// calls and answers fit in this, and what does not gets a second segment of the right size.
const FIRST_SEGMENT_WORDS_MAX: u32 = 128;

/// Largest first segment of a message of known size, in words.
const BUILT_WORDS_MAX: u32 = (IN_PLACE_BYTES_MIN / size_of::<capnp::Word>()) as u32;

type Message = Builder<HeapAllocator>;

/// What one connection has to send, shared by its messages, its writer and its handles.
pub(super) struct Outbox {
    pub(super) meter: Rc<Meter>,
    pub(super) queue: RefCell<Queue>,
    /// `capnp_rpc` has sent something since the writer last looked.
    pub(super) rpc_sent: Cell<bool>,
    pub(super) shutdown: RefCell<Option<Shutdown>>,
    pub(super) closed: Cell<bool>,
    /// The stream takes nothing at the moment, and wakes the writer when it does.
    pub(super) blocked: Cell<bool>,
    /// Learn what `capnp_rpc` sends.
    watches: RefCell<Vec<Weak<dyn Watch>>>,
}

/// Learns what becomes of a connection.
pub(super) trait Watch {
    /// `capnp_rpc` sends a message.
    fn sent(&self, message: &Message);

    /// Nothing more is received.
    fn ended(&self, error: &capnp::Error);
}

/// The connection is to be closed when the queue is written.
pub(super) struct Shutdown {
    pub(super) result: capnp::Result<()>,
    pub(super) done: oneshot::Sender<capnp::Result<()>>,
}

/// Messages that are not written, in pieces.
#[derive(Default)]
pub(super) struct Queue {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written already.
    written: usize,
}

enum Piece {
    Bytes(Vec<u8>),
    Segment { message: Rc<Message>, index: u32 },
    Value(Box<dyn Deref<Target = [u8]>>),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Segment { message, index } => message
                .get_segment(*index)
                .expect("the segment was there when the message was queued"),
            Self::Value(value) => value,
        }
    }

    /// Nobody needs it any more.
    fn recycle(self) {
        if let Self::Bytes(buffer) = self {
            recycle::give_write_buffer(buffer);
        }
    }
}

impl Outbox {
    pub(super) fn new(meter: Rc<Meter>) -> Self {
        Self {
            meter,
            queue: RefCell::default(),
            rpc_sent: Cell::new(false),
            shutdown: RefCell::new(None),
            closed: Cell::new(false),
            blocked: Cell::new(false),
            watches: RefCell::default(),
        }
    }

    /// From now on `watch` learns what is sent, as long as somebody keeps it.
    pub(super) fn watch(&self, watch: &Rc<dyn Watch>) {
        self.watches.borrow_mut().push(Rc::downgrade(watch));
    }

    fn tell(&self, what: impl Fn(&dyn Watch)) {
        for watch in self.watches.borrow().iter().filter_map(Weak::upgrade) {
            what(&*watch);
        }
    }

    /// A message to be filled and sent.
    pub(super) fn new_message(
        self: &Rc<Self>,
        first_segment_words: u32,
    ) -> Box<dyn OutgoingMessage> {
        let words = if first_segment_words == 0 {
            FIRST_SEGMENT_WORDS_MAX
        } else {
            first_segment_words.min(FIRST_SEGMENT_WORDS_MAX)
        };
        let message = Builder::new(HeapAllocator::new().first_segment_words(words));
        Box::new(Unsent {
            message,
            outbox: Rc::clone(self),
        })
    }

    /// Queues a message of `capnp_rpc`.
    fn push(&self, message: &Rc<Message>) {
        self.tell(|watch| watch.sent(message));
        self.push_message(message);
        self.rpc_sent.set(true);
        self.wake_writer();
    }

    /// The connection is to write in its next turn.
    fn wake_writer(&self) {
        if !self.blocked.get() {
            self.meter.wake_connection();
        }
    }

    fn push_message(&self, message: &Rc<Message>) {
        if self.is_open() {
            let bytes = self.queue.borrow_mut().push(message);
            self.meter.note_queued(bytes);
        }
    }

    /// Whether the stream has taken everything.
    pub(super) fn is_written(&self) -> bool {
        self.queue.borrow().pieces.is_empty()
    }

    fn is_open(&self) -> bool {
        !self.closed.get() && !self.meter.has_failed()
    }

    /// Queues a message of one segment with `bytes`, which `fill` appends. Unless the writer is woken, the caller sees to
    /// it that it is written.
    pub(super) fn push_bytes(&self, bytes: usize, fill: impl FnOnce(&mut Vec<u8>), wake: bool) {
        if !self.is_open() {
            return;
        }
        let mut queue = self.queue.borrow_mut();
        let tail = queue.tail(8 + bytes);
        let end = tail.len() + 8 + bytes;
        tail.extend_from_slice(&word32(0));
        tail.extend_from_slice(&word32(bytes / size_of::<capnp::Word>()));
        fill(tail);
        assert_eq!(tail.len(), end, "a message is as long as it was announced");
        drop(queue);
        self.meter.note_queued(8 + bytes);
        if wake {
            self.wake_writer();
        }
    }

    /// As [`Self::push_bytes`], for a message of which some parts may stay where they are.
    pub(super) fn push_parts(&self, bytes: usize, fill: impl FnOnce(&mut Parts<'_>), wake: bool) {
        if !self.is_open() {
            return;
        }
        let mut appended = 0;
        let mut parts = Parts {
            queue: &mut self.queue.borrow_mut(),
            bytes: &mut appended,
        };
        parts.append(8, |to| {
            to.extend_from_slice(&word32(0));
            to.extend_from_slice(&word32(bytes / WORD_BYTES));
        });
        fill(&mut parts);
        assert_eq!(
            appended,
            8 + bytes,
            "a message is as long as it was announced"
        );
        self.meter.note_queued(8 + bytes);
        if wake {
            self.wake_writer();
        }
    }

    /// Queues a message that `fill` builds, of about `words`. Nothing is queued when it fails.
    pub(super) fn push_built(
        &self,
        words: usize,
        wake: bool,
        fill: impl FnOnce(capnp::any_pointer::Builder<'_>) -> capnp::Result<()>,
    ) -> capnp::Result<()> {
        let words = u32::try_from(words)
            .unwrap_or(u32::MAX)
            .min(BUILT_WORDS_MAX);
        let mut message = Builder::new(HeapAllocator::new().first_segment_words(words));
        fill(message.get_root()?)?;
        self.push_message(&Rc::new(message));
        if wake {
            self.wake_writer();
        }
        Ok(())
    }

    /// Closes the stream when everything queued is written. The promise resolves after that.
    pub(super) fn shut_down(&self, result: capnp::Result<()>) -> Promise<(), capnp::Error> {
        if let Err(error) = &result {
            self.tell(|watch| watch.ended(error));
        }
        if self.closed.get() {
            return Promise::ok(());
        }
        self.meter.close();
        let (done, is_done) = oneshot::channel();
        *self.shutdown.borrow_mut() = Some(Shutdown { result, done });
        self.wake_writer();
        Promise::from_future(async move {
            is_done.await.unwrap_or_else(|oneshot::Canceled| {
                Err(capnp::Error::disconnected(
                    "the connection's writer is gone".to_string(),
                ))
            })
        })
    }

    /// No one can send any more: the last handle of the connection is gone.
    pub(super) fn abandon(&self) {
        let closed = capnp::Error::disconnected("the connection is closed".to_string());
        self.tell(|watch| watch.ended(&closed));
        if self.shutdown.borrow().is_none() && !self.closed.get() {
            let (done, _) = oneshot::channel();
            *self.shutdown.borrow_mut() = Some(Shutdown {
                result: Ok(()),
                done,
            });
        }
        self.wake_writer();
    }
}

impl Queue {
    /// Queues one message behind the others. Returns its length on the wire.
    fn push(&mut self, message: &Rc<Message>) -> usize {
        let segments = message.get_segments_for_output();
        let small_bytes: usize = segments
            .iter()
            .map(|segment| segment.len())
            .filter(is_small)
            .sum();
        let bytes = self.tail(small_bytes + 8 + 4 * segments.len());
        let table_start = bytes.len();
        bytes.extend_from_slice(&word32(segments.len() - 1));
        for segment in segments.iter() {
            bytes.extend_from_slice(&word32(segment.len() / size_of::<capnp::Word>()));
        }
        if segments.len().is_multiple_of(2) {
            bytes.extend_from_slice(&[0; 4]);
        }
        let mut message_bytes = bytes.len() - table_start;
        for (index, segment) in segments.iter().enumerate() {
            message_bytes += segment.len();
            if is_small(&segment.len()) {
                self.tail(segment.len()).extend_from_slice(segment);
            } else {
                let index =
                    u32::try_from(index).expect("a message has far fewer than 2^32 segments");
                self.pieces.push_back(Piece::Segment {
                    message: Rc::clone(message),
                    index,
                });
            }
        }
        message_bytes
    }

    /// The buffer at the end of the queue, a new one if the last piece is no buffer or has no room for `more` bytes and
    /// is large already: then growing it would move what is queued.
    fn tail(&mut self, more: usize) -> &mut Vec<u8> {
        let fits = match self.pieces.back() {
            Some(Piece::Bytes(bytes)) => {
                bytes.len() + more <= COALESCED_BYTES_MAX || bytes.capacity() - bytes.len() >= more
            }
            _ => false,
        };
        if !fits {
            self.pieces
                .push_back(Piece::Bytes(recycle::take_write_buffer()));
        }
        match self.pieces.back_mut() {
            Some(Piece::Bytes(bytes)) => {
                // All at once, and no more than that: it may be much.
                if bytes.capacity() - bytes.len() < more && more >= IN_PLACE_BYTES_MIN {
                    bytes.reserve_exact(more);
                }
                bytes
            }
            _ => unreachable!("a buffer is the last piece"),
        }
    }

    /// Writes once, as many pieces and bytes as one call may take, `bytes_max` at most.
    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut W,
        bytes_max: usize,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        let bytes_max = bytes_max.min(WRITE_BYTES_MAX);
        let first = at_most(&self.pieces[0].bytes()[self.written..], bytes_max);
        let mut room = bytes_max - first.len();
        if self.pieces.len() == 1 || room == 0 {
            return Pin::new(writer).poll_write(context, first);
        }
        let mut slices = [IoSlice::new(first); PIECES_PER_WRITE_MAX];
        let mut count = 1;
        for (slice, piece) in slices[1..].iter_mut().zip(self.pieces.iter().skip(1)) {
            let bytes = at_most(piece.bytes(), room);
            *slice = IoSlice::new(bytes);
            count += 1;
            room -= bytes.len();
            if room == 0 {
                break;
            }
        }
        Pin::new(writer).poll_write_vectored(context, &slices[..count])
    }

    /// So many bytes are written. No piece of which nothing is left stays in front: to write nothing is an error.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        while let Some(front) = self.pieces.front() {
            let left = front.bytes().len() - self.written;
            if bytes < left {
                self.written += bytes;
                return;
            }
            bytes -= left;
            self.written = 0;
            if let Some(piece) = self.pieces.pop_front() {
                piece.recycle();
            }
        }
        assert_eq!(bytes, 0, "the stream took no more than it was given");
    }
}

fn at_most(bytes: &[u8], len_max: usize) -> &[u8] {
    &bytes[..bytes.len().min(len_max)]
}

fn is_small(segment_bytes: &usize) -> bool {
    *segment_bytes < IN_PLACE_BYTES_MIN
}

fn word32(number: usize) -> [u8; 4] {
    u32::try_from(number)
        .expect("a segment has fewer than 2^32 words")
        .to_le_bytes()
}

/// The only segment of a message, part by part, behind what is queued.
pub struct Parts<'a> {
    queue: &'a mut Queue,
    bytes: &'a mut usize,
}

/// Parts that are made before the message is: much of them need not be made in one turn.
#[derive(Default)]
pub struct Prepared {
    queue: Queue,
    bytes: usize,
}

impl Prepared {
    /// To append to it.
    pub fn parts(&mut self) -> Parts<'_> {
        Parts {
            queue: &mut self.queue,
            bytes: &mut self.bytes,
        }
    }

    /// Bytes of all parts so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Parts<'_> {
    /// Appends words.
    pub fn words(&mut self, words: &[u64]) {
        self.append(words.len() * WORD_BYTES, |to| append(to, words));
    }

    /// Appends a copy of some bytes, and zeros up to the next word.
    pub fn copy(&mut self, bytes: &[u8]) {
        let words = words_of(bytes.len());
        self.append(words * WORD_BYTES, |to| append_bytes(to, bytes));
    }

    /// Appends what was prepared.
    pub fn prepared(&mut self, mut prepared: Prepared) {
        let pieces = &mut prepared.queue.pieces;
        // What is short leaves with its neighbours.
        if prepared.bytes < IN_PLACE_BYTES_MIN {
            for piece in pieces.drain(..) {
                self.append(piece.bytes().len(), |to| {
                    to.extend_from_slice(piece.bytes())
                });
                piece.recycle();
            }
        } else {
            self.queue.pieces.append(pieces);
            *self.bytes += prepared.bytes;
        }
    }

    /// Appends a value, and zeros up to the next word. A large one is written from where it is: its bytes must not change
    /// as long as `value` lives, which is dropped when they are written or never will be.
    pub fn value(&mut self, value: impl Deref<Target = [u8]> + 'static) {
        let len = value.len();
        if len < IN_PLACE_BYTES_MIN {
            return self.copy(&value);
        }
        self.queue.pieces.push_back(Piece::Value(Box::new(value)));
        *self.bytes += len;
        let padding = words_of(len) * WORD_BYTES - len;
        if padding > 0 {
            self.append(padding, |to| {
                to.extend_from_slice(&[0; WORD_BYTES][..padding])
            });
        }
    }

    /// Appends the words that `fill` appends, about so many bytes.
    pub fn append(&mut self, bytes: usize, fill: impl FnOnce(&mut Vec<u8>)) {
        let tail = self.queue.tail(bytes);
        let start = tail.len();
        fill(tail);
        *self.bytes += tail.len() - start;
    }
}

/// A message that is being filled.
struct Unsent {
    message: Message,
    outbox: Rc<Outbox>,
}

impl OutgoingMessage for Unsent {
    fn get_body(&mut self) -> capnp::Result<capnp::any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    /// Queues the message. The promise resolves at once: every caller in `capnp_rpc` drops it, and the meter tells what
    /// is written.
    fn send(self: Box<Self>) -> (Promise<(), capnp::Error>, Rc<Message>) {
        let Self { message, outbox } = *self;
        let message = Rc::new(message);
        outbox.push(&message);
        (Promise::ok(()), message)
    }

    fn take(self: Box<Self>) -> Message {
        self.message
    }

    fn size_in_words(&self) -> usize {
        self.message.size_in_words()
    }
}

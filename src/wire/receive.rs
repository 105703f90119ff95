//! The receiving direction: reads the stream, cuts messages and hands them out one by one within the budgets.
//!
//! Called by `inbox.rs` while `capnp_rpc`'s message loop waits, which asks for the next message when it has dispatched
//! the last. What may go on at once wakes the connection.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use capnp::message::{Reader, ReaderOptions, ReaderSegments};
use capnp_rpc::IncomingMessage;
use futures::io::AsyncRead;

use super::Meter;
use super::admission::{Admission, Admitted};
use super::asker::Asker;
use super::bounds::Bounds;
use super::closing::Closing;
use super::direct::{Direct, HELD_TURNS_MAX, Offer};
use super::frame::{Assembler, Segments, Whole};
use super::inbox::Received;
use super::recycle;

/// How deep a message may be nested, the RPC envelope included. The same as in every stock Cap'n Proto library.
const NESTING_MAX: i32 = 64;

/// A message may be traversed so many times its length: reading a field twice counts twice. More is read only where many
/// pointers lead to the same place, to make much of little.
const TRAVERSALS_MAX: usize = 4;

/// Direct answers after which it is asked what time it is: one takes a microsecond or two, to ask a part of that.
pub(super) const ANSWERS_TIMED: usize = 8;

/// Bytes beyond that: reading a short message takes more than it is long.
const TRAVERSED_BYTES_MORE: usize = 64 << 10;

/// The bounds with which a message of this length is read.
pub(super) fn options_for(message_bytes: usize) -> ReaderOptions {
    let bytes = message_bytes
        .saturating_mul(TRAVERSALS_MAX)
        .saturating_add(TRAVERSED_BYTES_MORE);
    ReaderOptions {
        traversal_limit_in_words: Some(bytes / size_of::<capnp::Word>()),
        nesting_limit: NESTING_MAX,
    }
}

/// Who looks at a message before `capnp_rpc` gets it.
pub(super) enum FirstLook {
    Nobody,
    Answers(Rc<Direct>),
    Asks(Rc<Asker>),
}

/// What has arrived on one connection and is not handed out yet.
pub(super) struct Receiver<R> {
    reader: R,
    assembler: Assembler,
    complete: VecDeque<Segments>,
    message_bytes_max: usize,
    meter: Rc<Meter>,
    first_look: FirstLook,
    /// What `capnp_rpc` may be handed, on the server's side.
    admission: Option<Admission>,
    /// Turns that the first complete message is held already.
    turns_held: usize,
    /// The first complete message was offered to be answered directly, and is for `capnp_rpc`.
    first_passed: bool,
    /// Direct answers of this poll.
    answered: usize,
    /// `capnp_rpc` was handed a message in this turn, or a direct call took long. Some take milliseconds, so the next one is
    /// for a later turn, when the others had theirs.
    is_turn_over: bool,
    /// Nothing is received any more.
    closing: Option<Closing>,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    pub(super) fn new(reader: R, message_bytes_max: usize, meter: Rc<Meter>) -> Self {
        Self {
            reader,
            assembler: Assembler::new(message_bytes_max),
            complete: VecDeque::new(),
            message_bytes_max,
            meter,
            first_look: FirstLook::Nobody,
            admission: None,
            turns_held: 0,
            first_passed: false,
            answered: 0,
            is_turn_over: false,
            closing: None,
        }
    }

    /// From now on `capnp_rpc` is handed only what `admission` lets pass.
    pub(super) fn guard(&mut self, admission: Admission) {
        self.admission = Some(admission);
    }

    pub(super) fn look_first(&mut self, first_look: FirstLook) {
        self.first_look = first_look;
    }

    /// A turn of the connection begins.
    pub(super) fn begin_turn(&mut self) {
        self.is_turn_over = false;
        if let Some(closing) = &mut self.closing {
            closing.begin_turn();
        }
    }

    /// Whether the next message is for a later turn.
    pub(super) fn is_turn_over(&self) -> bool {
        self.is_turn_over
    }

    /// The next message, if it is read already and may be handed out.
    pub(super) fn take_ready(&mut self) -> Option<Box<dyn IncomingMessage>> {
        // Direct answers must not overtake what was handed out before; that begins with the next poll.
        if self.is_looked_at() || self.complete.is_empty() || !self.meter.may_receive() {
            return None;
        }
        self.complete
            .pop_front()
            .map(|segments| self.hand_out(segments))
    }

    /// The next message; `None` when the peer has closed its side between two messages.
    pub(super) fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        if let Some(closing) = &mut self.closing {
            return closing.poll(context);
        }
        let received = self.poll_next(context);
        if let FirstLook::Answers(direct) = &self.first_look {
            direct.write();
        }
        let end = match received {
            Poll::Ready(Ok(None)) => Ok(()),
            Poll::Ready(Err(error)) => Err(error),
            goes_on => return goes_on,
        };
        let admission = self.admission.as_ref();
        let questions = admission.map(Admission::open_questions).unwrap_or_default();
        let closing = self.closing.insert(Closing::new(questions, end));
        closing.poll(context)
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        let bounds = self.meter.pace().bounds();
        let (mut has_begun, mut bytes_read) = (false, 0);
        self.answered = 0;
        loop {
            ready!(self.meter.poll_may_receive())?;
            let has_done_much =
                bytes_read >= bounds.read_bytes || self.answered >= bounds.direct_answers;
            let took_long =
                std::mem::replace(&mut has_begun, true) && self.meter.pace().is_turn_over();
            if has_done_much || self.is_turn_over || took_long {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(segments) = self.complete.pop_front() {
                match self.offer(&segments, segments.bytes())? {
                    Offer::Passed => {
                        if self.is_admitted(&segments)? {
                            return Poll::Ready(Ok(Some(self.hand_out(segments))));
                        }
                    }
                    Offer::Taken | Offer::TakenLong => self.write_if_many(),
                    Offer::Held => {
                        self.complete.push_front(segments);
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                continue;
            }
            match self.poll_read(bounds, context) {
                Poll::Ready(Ok(0)) if self.assembler.has_partial() => {
                    return Poll::Ready(Err(capnp::Error::disconnected(
                        "the peer closed the connection in the middle of a message".to_string(),
                    )));
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(None)),
                Poll::Ready(Ok(bytes)) => bytes_read += bytes,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Offers a message to be answered directly; one that is held for too long is not held any more.
    fn offer(&mut self, segments: &dyn ReaderSegments, bytes: usize) -> capnp::Result<Offer> {
        if std::mem::take(&mut self.first_passed) {
            return Ok(Offer::Passed);
        }
        let direct = match &self.first_look {
            FirstLook::Nobody => return Ok(Offer::Passed),
            FirstLook::Asks(asker) if asker.offer(segments, bytes) => return Ok(Offer::Taken),
            FirstLook::Asks(_) => return Ok(Offer::Passed),
            FirstLook::Answers(direct) => direct,
        };
        let mut offer = direct.offer(segments, bytes)?;
        if offer == Offer::Held {
            self.turns_held += 1;
            if self.turns_held <= HELD_TURNS_MAX {
                return Ok(Offer::Held);
            }
            direct.give_up();
            offer = direct.offer(segments, bytes)?;
        }
        self.turns_held = 0;
        self.is_turn_over |= offer == Offer::TakenLong;
        self.answered += usize::from(matches!(offer, Offer::Taken | Offer::TakenLong));
        Ok(offer)
    }

    /// Whether `capnp_rpc` may have the message; if not it is answered.
    fn is_admitted(&mut self, segments: &Segments) -> capnp::Result<bool> {
        let Some(admission) = &self.admission else {
            return Ok(true);
        };
        let admitted = admission.admit(segments, options_for(segments.bytes()))?;
        if admitted == Admitted::Answered {
            self.meter.note_taken();
            self.answered += 1;
        }
        Ok(admitted == Admitted::Yes)
    }

    /// Whether the time of the turn is over, asked after some direct answers.
    fn has_taken_long(&self) -> bool {
        let asks = self.answered > 0 && self.answered.is_multiple_of(ANSWERS_TIMED);
        asks && self.meter.pace().is_turn_over()
    }

    fn write_if_many(&self) {
        if let FirstLook::Answers(direct) = &self.first_look {
            direct.write_if_many();
        }
    }

    fn is_looked_at(&self) -> bool {
        self.admission.is_some() || !matches!(self.first_look, FirstLook::Nobody)
    }

    /// One read, cut into messages. Those that are answered directly are read where they arrived.
    fn poll_read(
        &mut self,
        bounds: &Bounds,
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, capnp::Error>> {
        if let Some(room) = self.assembler.body_room() {
            let len = room.len().min(bounds.read_bytes);
            let room = &mut room[..len];
            let bytes = ready!(Pin::new(&mut self.reader).poll_read(context, room))
                .map_err(disconnected)?;
            self.assembler.body_arrived(bytes, &mut self.complete);
            self.meter.note_read(bytes, self.assembler.has_partial());
            return Poll::Ready(Ok(bytes));
        }
        recycle::with_read_buffer(|buffer| {
            let buffer = &mut buffer[..bounds.shared_read_bytes];
            let bytes = ready!(Pin::new(&mut self.reader).poll_read(context, buffer))
                .map_err(disconnected)?;
            // Told before an error, which ends the connection.
            self.meter.note_read(bytes, false);
            let rest = self
                .assembler
                .feed_begun(&buffer[..bytes], &mut self.complete)?;
            let rest = self.answer_in_place(rest, bounds)?;
            self.assembler.feed(rest, &mut self.complete)?;
            self.meter.note_read(0, self.assembler.has_partial());
            Poll::Ready(Ok(bytes))
        })
    }

    /// Answers the messages at the start of `bytes` as far as they can be answered directly; returns the rest.
    fn answer_in_place<'a>(
        &mut self,
        mut bytes: &'a [u8],
        bounds: &Bounds,
    ) -> capnp::Result<&'a [u8]> {
        if !self.is_looked_at() || !self.complete.is_empty() {
            return Ok(bytes);
        }
        while !self.is_turn_over
            && self.answered < bounds.direct_answers
            && !self.has_taken_long()
            && self.meter.may_receive()
            && let Some((message, rest)) = Whole::at_start_of(bytes, self.message_bytes_max)
        {
            // What is not taken becomes the first complete message.
            match self.offer(&message, message.bytes())? {
                Offer::Taken | Offer::TakenLong => bytes = rest,
                Offer::Held => break,
                Offer::Passed => {
                    self.first_passed = true;
                    break;
                }
            }
            if !rest.is_empty() {
                self.write_if_many();
            }
        }
        Ok(bytes)
    }

    fn hand_out(&mut self, segments: Segments) -> Box<dyn IncomingMessage> {
        let bytes = segments.bytes();
        self.is_turn_over = true;
        self.meter.note_received(bytes);
        Box::new(Counted {
            message: Reader::new(segments, options_for(bytes)),
            bytes,
            meter: Rc::clone(&self.meter),
        })
    }
}

fn disconnected(error: std::io::Error) -> capnp::Error {
    capnp::Error::disconnected(format!("reading from the peer: {error}"))
}

/// A message that counts towards the budget until it is dropped.
struct Counted {
    message: Reader<Segments>,
    bytes: usize,
    meter: Rc<Meter>,
}

impl IncomingMessage for Counted {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.message.get_root()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.meter.note_released(self.bytes);
    }
}

//! Calls that the connection answers itself, without a promise of `capnp_rpc` for each: the hot methods of one interface,
//! on capabilities of this side that the peer was given in the answer to an opening method.
//!
//! Which interface, and what its methods do, is the server's affair: it implements [`DirectCalls`]. This module owns the
//! protocol: it looks at every complete message before `capnp_rpc` gets it, and takes what it can answer exactly as
//! `capnp_rpc` would. Anything unusual goes on to `capnp_rpc`, and so does every call that the server declines.
//!
//! Guarantees:
//! - Calls on one capability begin in the order in which they arrived, whoever answers them. `capnp_rpc` begins a call that
//!   it was handed before the next message is looked at: its tasks run first in, first out, and nothing is received before
//!   one of them has asked for the next message. A call on the answer of an opening call that has not returned waits for that
//!   return. Where neither holds, direct answering ends for the connection.
//! - One id, one question: the table of questions knows what `capnp_rpc` was handed as well.
//! - Every call that is taken gets one `Return`, also after a `Finish`.
//!
//! Does not: decode parameters, count calls in flight or judge budgets (the server does), write (`send.rs`).

mod questions;
mod reply;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::message::{Reader, ReaderSegments};
use capnp_rpc::rpc_capnp::{bootstrap, call, finish, message};

use super::Meter;
use super::borrowed::Borrowed;
use super::frame::Segments;
use super::receive::options_for;
use super::send::{Outbox, Watch};
pub use super::send::{Parts, Prepared};
use super::write::WriteNow;
use questions::{Owner, Questions, Target};
pub(super) use reply::fill_exception;
pub use reply::{Later, Question, Reply};

/// Turns of the executor that a call waits for the return of the opening call on whose answer it was made. That return
/// needs two; a call that waits in vain is left to `capnp_rpc`.
pub(super) const HELD_TURNS_MAX: usize = 64;

/// So many answers are handed to the stream while there are still calls to work on: the peer begins to read while this
/// side still answers.
const ANSWERS_UNWRITTEN_MAX: usize = 16;

/// The same, in bytes.
const ANSWER_BYTES_UNWRITTEN_MAX: usize = 16 << 10;

/// What a server does with the calls that it answers without `capnp_rpc`.
pub trait DirectCalls {
    /// The interface whose calls are answered.
    fn interface(&self) -> u64;

    /// If the results of this method hold exactly one capability, one of this side that implements
    /// [`Self::interface`]: the pointer field in which it is.
    fn opens(&self, interface: u64, method: u16) -> Option<u16>;

    /// Answers a call, now or later. A call that is declined has had no effect: `capnp_rpc` gets it.
    fn call(&self, call: DirectCall<'_>) -> Verdict;
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It is answered, or will be.
    Taken,
    /// The same, and what was done for it by now took long, or may have: the other connections have their turn before
    /// the next message is looked at.
    TakenLong,
    /// Nothing happened.
    Declined,
}

/// One call of [`DirectCalls::interface`] without capabilities in its parameters.
pub struct DirectCall<'a> {
    /// The method's ordinal.
    pub method: u16,
    /// The parameters, where they were received.
    pub params: any_pointer::Reader<'a>,
    /// The right to answer.
    pub question: Question<'a>,
    segments: &'a dyn ReaderSegments,
    bytes: usize,
}

impl DirectCall<'_> {
    /// The parameters in memory of their own, for a call that needs them when it is not looked at any more.
    pub fn keep(&self) -> KeptParams {
        let options = options_for(self.bytes);
        KeptParams(Reader::new(Segments::copy_of(self.segments), options))
    }
}

/// The parameters of a call, in memory of their own.
pub struct KeptParams(Reader<Segments>);

impl KeptParams {
    /// The parameters.
    ///
    /// # Errors
    /// When the message cannot be read any more because too much of it was read already.
    pub fn get(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        match self.0.get_root::<message::Reader<'_>>()?.which()? {
            message::Call(call) => Ok(call?.get_params()?.get_content()),
            _ => unreachable!("only calls are kept"),
        }
    }
}

/// What becomes of a message that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// It is dealt with.
    Taken,
    /// It is dealt with, and the turn is over.
    TakenLong,
    /// It is to be offered again in a later turn of the executor.
    Held,
    /// It is for `capnp_rpc`.
    Passed,
}

/// Direct answering on one connection.
pub(super) struct Direct {
    calls: Rc<dyn DirectCalls>,
    questions: Rc<Questions>,
    outbox: Rc<Outbox>,
    writer: Rc<dyn WriteNow>,
    meter: Rc<Meter>,
    /// Set when the order of calls cannot be told any more.
    off: Cell<bool>,
    /// Answers that are queued and were not handed to the stream.
    unwritten: Cell<usize>,
}

impl Direct {
    pub(super) fn new(
        calls: Rc<dyn DirectCalls>,
        outbox: Rc<Outbox>,
        writer: Rc<dyn WriteNow>,
        meter: Rc<Meter>,
    ) -> Rc<Direct> {
        let questions = Rc::new(Questions::default());
        outbox.watch(&(Rc::clone(&questions) as Rc<dyn Watch>));
        Rc::new(Direct {
            calls,
            questions,
            outbox,
            writer,
            meter,
            off: Cell::new(false),
            unwritten: Cell::new(0),
        })
    }

    /// Looks at a message. An error ends the connection, as it would from `capnp_rpc`.
    pub(super) fn offer(
        self: &Rc<Self>,
        segments: &dyn ReaderSegments,
        bytes: usize,
    ) -> capnp::Result<Offer> {
        let reader = Reader::new(Borrowed(segments), options_for(bytes));
        let Ok(root) = reader.get_root::<message::Reader<'_>>() else {
            return Ok(Offer::Passed);
        };
        match root.which() {
            Ok(message::Call(Ok(call))) => self.offer_call(call, segments, bytes),
            Ok(message::Finish(Ok(finish))) => Ok(self.offer_finish(finish)),
            Ok(message::Bootstrap(Ok(bootstrap))) => self.offer_bootstrap(bootstrap),
            Ok(message::Release(Ok(release))) => {
                self.questions
                    .released(release.get_id(), release.get_reference_count());
                Ok(Offer::Passed)
            }
            Ok(message::Unimplemented(_)) => {
                // It may release what this side believes to be exported.
                self.off.set(true);
                Ok(Offer::Passed)
            }
            _ => Ok(Offer::Passed),
        }
    }

    /// No more calls are answered directly: those that were held are left to `capnp_rpc`.
    pub(super) fn give_up(&self) {
        self.off.set(true);
    }

    fn offer_call(
        self: &Rc<Self>,
        call: call::Reader<'_>,
        segments: &dyn ReaderSegments,
        bytes: usize,
    ) -> capnp::Result<Offer> {
        let id = call.get_question_id();
        let owner = self.questions.owner(id);
        if owner == Some(Owner::Direct) {
            return Err(capnp::Error::failed(format!(
                "Received a new call on in-use question id {id}"
            )));
        }
        let interface = call.get_interface_id();
        if interface == self.calls.interface() && !self.off.get() {
            let target = match call.get_target() {
                Ok(target) => self.questions.target(target),
                Err(_) => Target::Other,
            };
            match target {
                Target::Ours if owner.is_none() => match self.answer(call, segments, bytes) {
                    Verdict::Taken => return Ok(Offer::Taken),
                    Verdict::TakenLong => return Ok(Offer::TakenLong),
                    Verdict::Declined => {}
                },
                Target::Ours | Target::Other => {}
                Target::Opening => return Ok(Offer::Held),
                Target::Promised => self.off.set(true),
            }
        }
        let opens = match call.get_send_results_to().which() {
            Ok(call::send_results_to::Caller(())) => {
                self.calls.opens(interface, call.get_method_id())
            }
            _ => None,
        };
        self.questions.handed_over(id, opens);
        Ok(Offer::Passed)
    }

    /// Has a call answered if there is nothing unusual about it.
    fn answer(
        self: &Rc<Self>,
        call: call::Reader<'_>,
        segments: &dyn ReaderSegments,
        bytes: usize,
    ) -> Verdict {
        let for_caller = matches!(
            call.get_send_results_to().which(),
            Ok(call::send_results_to::Caller(()))
        );
        if !for_caller || call.get_only_promise_pipeline() {
            return Verdict::Declined;
        }
        let Ok(payload) = call.get_params() else {
            return Verdict::Declined;
        };
        if !payload.get_cap_table().is_ok_and(|table| table.is_empty()) {
            return Verdict::Declined;
        }
        self.calls.call(DirectCall {
            method: call.get_method_id(),
            params: payload.get_content(),
            question: Question::new(self, call.get_question_id(), bytes),
            segments,
            bytes,
        })
    }

    fn offer_finish(&self, finish: finish::Reader<'_>) -> Offer {
        let known = self
            .questions
            .finished(finish.get_question_id(), finish.get_release_result_caps());
        if known == Some(Owner::Rpc) {
            return Offer::Passed;
        }
        // `capnp_rpc` does not know the question: it is one of ours, or was.
        self.meter.note_taken();
        Offer::Taken
    }

    fn offer_bootstrap(&self, bootstrap: bootstrap::Reader<'_>) -> capnp::Result<Offer> {
        let id = bootstrap.get_question_id();
        if self.questions.owner(id) == Some(Owner::Direct) {
            return Err(capnp::Error::failed(
                "questionId is already in use".to_string(),
            ));
        }
        self.questions.handed_over(id, None);
        Ok(Offer::Passed)
    }

    /// Hands the answers to the stream if they are many.
    pub(super) fn write_if_many(&self) {
        if self.unwritten.get() >= ANSWERS_UNWRITTEN_MAX
            || (self.unwritten.get() > 0
                && self.meter.bytes_out_pending() >= ANSWER_BYTES_UNWRITTEN_MAX)
        {
            self.write();
        }
    }

    /// Hands the answers to the stream: there is nothing more to work on.
    pub(super) fn write(&self) {
        if self.unwritten.replace(0) > 0 {
            self.writer.write_now();
        }
    }
}

//! The answering end of a direct call: at once, or later through a record of four words.
//!
//! Results that are a struct and a few words more are written as bytes into what the connection sends next; the envelope
//! around them is always the same. A large value among them stays where it is: the pieces of a write need not be the
//! segments of a message, so that such an answer has the same bytes as any other. Everything else is built with `capnp`.

use std::rc::Rc;

use capnp::any_pointer;
use capnp_rpc::rpc_capnp::{exception, message, return_};

use super::Direct;
use crate::wire::envelope;
use crate::wire::send::Parts;
use crate::wire::words::{Shape, WORD_BYTES, words_of};

/// The right to answer a call that has just arrived.
pub struct Question<'a> {
    direct: &'a Rc<Direct>,
    id: u32,
    bytes: usize,
}

impl<'a> Question<'a> {
    pub(super) fn new(direct: &'a Rc<Direct>, id: u32, bytes: usize) -> Self {
        Question { direct, id, bytes }
    }

    /// Answers now.
    pub fn reply(self) -> Reply {
        self.direct.meter.note_taken();
        Reply {
            direct: Rc::clone(self.direct),
            id: self.id,
            wanted: true,
            at_once: true,
            bytes: None,
        }
    }

    /// The answer comes later. Until then the call counts towards the connection's budget.
    pub fn later(self) -> Later {
        self.direct.meter.note_received(self.bytes);
        self.direct.questions.waits(self.id);
        Later(Some(Reply {
            direct: Rc::clone(self.direct),
            id: self.id,
            wanted: true,
            at_once: false,
            bytes: Some(self.bytes),
        }))
    }
}

/// The right to answer a call that waits. Dropped, it answers that the call was abandoned.
pub struct Later(Option<Reply>);

impl Later {
    /// Answers now.
    pub fn reply(mut self) -> Reply {
        self.take().expect("taken once, here or when dropped")
    }

    fn take(&mut self) -> Option<Reply> {
        let mut reply = self.0.take()?;
        reply.wanted = reply.direct.questions.waited(reply.id);
        Some(reply)
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        if let Some(reply) = self.take() {
            reply.exception(&capnp::Error::failed("the call was abandoned".to_string()));
        }
    }
}

/// An answer that is to be made now.
#[must_use = "the peer waits for it"]
pub struct Reply {
    direct: Rc<Direct>,
    id: u32,
    /// False when the peer has sent `Finish`: then it only needs to know that the id is free again.
    wanted: bool,
    /// The receiver is at work and writes when it is done.
    at_once: bool,
    /// What the call counts towards the budget.
    bytes: Option<usize>,
}

impl Reply {
    /// Whether the peer still waits for the answer. If not, it is told no more than that the call is over, however large
    /// the answer is.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Answers with results of a known shape; `fill` appends exactly their words.
    pub fn results(self, shape: Shape, fill: impl FnOnce(&mut Vec<u8>)) {
        if !self.wanted {
            return self.canceled();
        }
        self.push(envelope::return_bytes(shape), |to| {
            envelope::results(self.id, shape, to);
            fill(to);
        });
    }

    /// As [`Self::results`], where some parts may be large: they are written from where they are.
    pub fn results_in_parts(self, shape: Shape, fill: impl FnOnce(&mut Parts<'_>)) {
        if !self.wanted {
            return self.canceled();
        }
        let bytes = envelope::return_bytes(shape);
        let fill = |parts: &mut Parts<'_>| {
            let before_results = envelope::RETURN_WORDS * WORD_BYTES;
            parts.append(before_results, |to| envelope::results(self.id, shape, to));
            fill(parts);
        };
        self.direct.outbox.push_parts(bytes, fill, !self.at_once);
        self.note_unwritten();
    }

    /// Answers with results that `fill` builds; `words` is about how many they are.
    pub fn build(
        self,
        words: usize,
        fill: impl FnOnce(any_pointer::Builder<'_>) -> capnp::Result<()>,
    ) {
        if !self.wanted {
            return self.canceled();
        }
        let filled = self.send(words, |mut answer| {
            answer.set_no_finish_needed(true);
            fill(answer.init_results().get_content())
        });
        if let Err(error) = filled {
            self.exception(&error);
        }
    }

    /// Answers with an exception.
    pub fn exception(self, error: &capnp::Error) {
        if !self.wanted {
            return self.canceled();
        }
        self.send(words_of(error.extra.len()) + 2, |mut answer| {
            answer.set_no_finish_needed(true);
            fill_exception(error, answer.init_exception());
            Ok(())
        })
        .expect("filling an exception does not fail");
    }

    fn canceled(self) {
        self.send(0, |mut answer| {
            answer.set_canceled(());
            Ok(())
        })
        .expect("nothing is filled");
    }

    fn push(&self, bytes: usize, fill: impl FnOnce(&mut Vec<u8>)) {
        self.direct.outbox.push_bytes(bytes, fill, !self.at_once);
        self.note_unwritten();
    }

    fn send(
        &self,
        words: usize,
        fill: impl FnOnce(return_::Builder<'_>) -> capnp::Result<()>,
    ) -> capnp::Result<()> {
        self.direct
            .outbox
            .push_built(envelope::RETURN_WORDS + words, !self.at_once, |root| {
                let mut answer = root.init_as::<message::Builder<'_>>().init_return();
                answer.set_answer_id(self.id);
                answer.set_release_param_caps(false);
                fill(answer)
            })?;
        self.note_unwritten();
        Ok(())
    }

    fn note_unwritten(&self) {
        if self.at_once {
            let unwritten = &self.direct.unwritten;
            unwritten.set(unwritten.get() + 1);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes {
            self.direct.meter.note_released(bytes);
        }
    }
}

/// An exception as `capnp_rpc` words it.
pub(in crate::wire) fn fill_exception(error: &capnp::Error, mut to: exception::Builder<'_>) {
    use capnp::ErrorKind;
    let kind = match error.kind {
        ErrorKind::Overloaded => exception::Type::Overloaded,
        ErrorKind::Disconnected => exception::Type::Disconnected,
        ErrorKind::Unimplemented => exception::Type::Unimplemented,
        _ => exception::Type::Failed,
    };
    to.set_type(kind);
    match error.kind {
        ErrorKind::Failed
        | ErrorKind::Overloaded
        | ErrorKind::Disconnected
        | ErrorKind::Unimplemented => to.set_reason(&error.extra),
        // The kind says what the reason leaves out.
        _ => to.set_reason(error.to_string()),
    }
}

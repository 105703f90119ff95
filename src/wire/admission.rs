//! What `capnp_rpc` is handed of what a peer sends: it has no bounds of its own, and takes some messages apart without
//! asking what that costs.
//!
//! Guarantees, for the connection as a whole: questions that are not done with, promised capabilities, calls that wait
//! for each other's answers. For one message: capabilities in it, operations on an answer, what is copied to be sent
//! back. A question over a bound is answered here, with an exception that needs no `Finish`; what is no question ends
//! the connection. Does not: count bytes (`meter.rs`), or see calls that are answered directly (`direct`). The receiver
//! asks before it hands a message out; the server's side of a connection only.

use std::cell::RefCell;
use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap, VacantEntry};
use std::rc::Rc;

use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions, ReaderSegments};
use capnp::struct_list;
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, disembargo, message, message_target, promised_answer, resolve, return_,
};

use super::borrowed::Borrowed;
use super::send::{Outbox, Watch};
use crate::limits;
use crate::proto::ErrorWord;

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// It is for `capnp_rpc`.
    Yes,
    /// It is answered.
    Answered,
}

/// A question of the peer that `capnp_rpc` was handed.
#[derive(Clone, Copy, Default)]
struct Question {
    /// How many calls wait for each other up to this one.
    depth: usize,
    returned: bool,
    finished: bool,
}

/// The questions that are not done with, and the promises among the peer's capabilities.
#[derive(Default)]
struct Tables {
    questions: RefCell<HashMap<u32, Question>>,
    promised: RefCell<HashSet<u32>>,
}

/// Why a question is answered here.
type Refusal = capnp::Error;

/// The watch over one connection.
pub(super) struct Admission {
    outbox: Rc<Outbox>,
    tables: Rc<Tables>,
}

impl Admission {
    pub(super) fn new(outbox: Rc<Outbox>) -> Admission {
        let tables = Rc::new(Tables::default());
        outbox.watch(&(Rc::clone(&tables) as Rc<dyn Watch>));
        Admission { outbox, tables }
    }

    /// Looks at a message. An error ends the connection.
    pub(super) fn admit(
        &self,
        segments: &dyn ReaderSegments,
        options: ReaderOptions,
    ) -> capnp::Result<Admitted> {
        let reader = Reader::new(Borrowed(segments), options);
        let root = reader.get_root::<message::Reader<'_>>()?;
        match root.which() {
            Ok(message::Bootstrap(bootstrap)) => self.question(bootstrap?.get_question_id(), Ok(0)),
            Ok(message::Call(call)) => {
                let call = call?;
                let depth = self.depth_of(call)?;
                self.question(call.get_question_id(), depth)
            }
            Ok(message::Return(answer)) => {
                let answer = answer?;
                match answer.which()? {
                    return_::Results(results) => {
                        self.depth_of_capabilities(results?.get_cap_table()?)??;
                    }
                    return_::Exception(_) => {}
                    _ => check_echo(root)?,
                }
                Ok(Admitted::Yes)
            }
            Ok(message::Finish(finish)) => {
                self.tables.finished(finish?.get_question_id());
                Ok(Admitted::Yes)
            }
            Ok(message::Resolve(resolve)) => self.resolve(resolve?),
            Ok(message::Disembargo(disembargo)) => self.disembargo(disembargo?),
            Ok(message::Unimplemented(_) | message::Abort(_) | message::Release(_)) => {
                Ok(Admitted::Yes)
            }
            // `capnp_rpc` sends these back.
            Ok(
                message::Provide(_)
                | message::Accept(_)
                | message::Join(_)
                | message::ObsoleteSave(_)
                | message::ObsoleteDelete(_),
            )
            | Err(capnp::NotInSchema(_)) => check_echo(root).map(|()| Admitted::Yes),
        }
    }

    /// The questions of which the peer has not said that it is done with them.
    pub(super) fn open_questions(&self) -> Vec<u32> {
        let questions = self.tables.questions.borrow();
        let open = questions.iter().filter(|(_, question)| !question.finished);
        open.map(|(id, _)| *id).collect()
    }

    /// A question, and how many calls wait for each other up to it.
    fn question(&self, id: u32, depth: Result<usize, Refusal>) -> capnp::Result<Admitted> {
        let mut questions = self.tables.questions.borrow_mut();
        let count = questions.len();
        let Some(free) = vacant(&mut questions, id) else {
            // An id that is in use: `capnp_rpc` ends the connection.
            return Ok(Admitted::Yes);
        };
        let depth = depth.and_then(|depth| {
            if count < limits::CONNECTION_QUESTIONS_MAX {
                return Ok(depth);
            }
            Err(ErrorWord::Overloaded.error(format_args!(
                "{count} questions of this connection have no answer or no Finish yet, the limit is {}: wait for \
                 answers and send Finish",
                limits::CONNECTION_QUESTIONS_MAX
            )))
        });
        match depth {
            Ok(depth) => {
                free.insert(Question {
                    depth,
                    ..Question::default()
                });
                Ok(Admitted::Yes)
            }
            Err(refusal) => {
                drop(questions);
                self.refuse(id, &refusal)?;
                Ok(Admitted::Answered)
            }
        }
    }

    fn refuse(&self, id: u32, refusal: &Refusal) -> capnp::Result<()> {
        let mut message = self.outbox.new_message(0);
        let mut answer = message
            .get_body()?
            .init_as::<message::Builder<'_>>()
            .init_return();
        answer.set_answer_id(id);
        answer.set_release_param_caps(true);
        answer.set_no_finish_needed(true);
        super::direct::fill_exception(refusal, answer.init_exception());
        // Whoever sends may wait for the promise; nobody does.
        drop(message.send());
        Ok(())
    }

    fn depth_of(&self, call: call::Reader<'_>) -> capnp::Result<Result<usize, Refusal>> {
        let on = self.depth_of_target(call.get_target()?)?;
        let with = self.depth_of_capabilities(call.get_params()?.get_cap_table()?)?;
        Ok(on.and_then(|on| {
            let depth = 1 + on.max(with?);
            if depth <= limits::PIPELINE_DEPTH_MAX {
                return Ok(depth);
            }
            Err(ErrorWord::InvalidArgument.error(format_args!(
                "{depth} calls wait for the answers of each other, the limit is {}",
                limits::PIPELINE_DEPTH_MAX
            )))
        }))
    }

    fn depth_of_target(
        &self,
        target: message_target::Reader<'_>,
    ) -> capnp::Result<Result<usize, Refusal>> {
        match target.which()? {
            message_target::ImportedCap(_) => Ok(Ok(0)),
            message_target::PromisedAnswer(answer) => self.depth_of_answer(answer?),
        }
    }

    fn depth_of_answer(
        &self,
        answer: promised_answer::Reader<'_>,
    ) -> capnp::Result<Result<usize, Refusal>> {
        let operations = answer.get_transform()?.len() as usize;
        if operations > limits::PIPELINE_OPERATIONS_MAX {
            return Ok(Err(ErrorWord::InvalidArgument.error(format_args!(
                "{operations} operations on an answer, the limit is {}",
                limits::PIPELINE_OPERATIONS_MAX
            ))));
        }
        Ok(Ok(self.tables.waits(answer.get_question_id())))
    }

    fn depth_of_capabilities(
        &self,
        table: struct_list::Reader<'_, cap_descriptor::Owned>,
    ) -> capnp::Result<Result<usize, Refusal>> {
        let count = table.len() as usize;
        if count > limits::MESSAGE_CAPABILITIES_MAX {
            return Ok(Err(ErrorWord::InvalidArgument.error(format_args!(
                "{count} capabilities in a message, the limit is {}",
                limits::MESSAGE_CAPABILITIES_MAX
            ))));
        }
        let mut depth = 0;
        for descriptor in table {
            match descriptor.which()? {
                cap_descriptor::SenderPromise(id) => {
                    let mut promised = self.tables.promised.borrow_mut();
                    promised.insert(id);
                    if promised.len() > limits::CONNECTION_PROMISES_MAX {
                        return Err(ErrorWord::Overloaded.error(format_args!(
                            "over {} promised capabilities on one connection, which is the limit",
                            limits::CONNECTION_PROMISES_MAX
                        )));
                    }
                }
                cap_descriptor::ReceiverAnswer(answer) => match self.depth_of_answer(answer?)? {
                    Ok(on) => depth = depth.max(on),
                    refused @ Err(_) => return Ok(refused),
                },
                _ => {}
            }
        }
        Ok(Ok(depth))
    }

    /// A promise may become a capability of the peer, or broken. What leads back here, or to another promise, could make
    /// a circle, in which `capnp_rpc` would look for the end.
    fn resolve(&self, resolve: resolve::Reader<'_>) -> capnp::Result<Admitted> {
        let straight = match resolve.which()? {
            resolve::Exception(_) => true,
            resolve::Cap(descriptor) => match descriptor?.which()? {
                cap_descriptor::SenderHosted(id) => !self.tables.promised.borrow().contains(&id),
                _ => false,
            },
        };
        if straight {
            return Ok(Admitted::Yes);
        }
        Err(capnp::Error::unimplemented(
            "a promised capability must become one of the peer's own, not a promise and not one of this side"
                .to_string(),
        ))
    }

    fn disembargo(&self, disembargo: disembargo::Reader<'_>) -> capnp::Result<Admitted> {
        if let disembargo::context::SenderLoopback(_) = disembargo.get_context().which()? {
            self.depth_of_target(disembargo.get_target()?)??;
        }
        Ok(Admitted::Yes)
    }
}

fn vacant(
    questions: &mut HashMap<u32, Question>,
    id: u32,
) -> Option<VacantEntry<'_, u32, Question>> {
    match questions.entry(id) {
        Entry::Vacant(free) => Some(free),
        Entry::Occupied(_) => None,
    }
}

/// Whether a message is small enough to be copied and sent back, however often a part of it is pointed at.
fn check_echo(message: message::Reader<'_>) -> capnp::Result<()> {
    let words = message.total_size()?.word_count;
    let bytes = words.saturating_mul(size_of::<capnp::Word>() as u64);
    if bytes <= limits::ECHO_BYTES_MAX {
        return Ok(());
    }
    Err(capnp::Error::unimplemented(format!(
        "a message of a kind that this side does not know has {bytes} bytes, at most {} are sent back",
        limits::ECHO_BYTES_MAX
    )))
}

impl Tables {
    /// How many calls wait for each other up to this question, if it has not returned.
    fn waits(&self, id: u32) -> usize {
        self.questions
            .borrow()
            .get(&id)
            .map_or(0, |question| match question.returned {
                false => question.depth,
                true => 0,
            })
    }

    fn finished(&self, id: u32) {
        let mut questions = self.questions.borrow_mut();
        if let Some(question) = questions.get_mut(&id) {
            question.finished = true;
            if question.returned {
                questions.remove(&id);
            }
        }
    }

    fn returned(&self, id: u32, finished: bool) {
        let mut questions = self.questions.borrow_mut();
        if let Some(question) = questions.get_mut(&id) {
            question.returned = true;
            if finished || question.finished {
                questions.remove(&id);
            }
        }
    }
}

impl Watch for Tables {
    fn sent(&self, message: &Builder<HeapAllocator>) {
        let Ok(root) = message.get_root_as_reader::<message::Reader<'_>>() else {
            return;
        };
        match root.which() {
            Ok(message::Return(Ok(answer))) => {
                self.returned(answer.get_answer_id(), answer.get_no_finish_needed());
            }
            // Sent when the last reference is gone: the id may stand for something else from now on.
            Ok(message::Release(Ok(release))) => {
                self.promised.borrow_mut().remove(&release.get_id());
            }
            _ => {}
        }
    }

    /// Nobody waits here.
    fn ended(&self, _: &capnp::Error) {}
}

//! Calls that this side makes without a promise of `capnp_rpc` for each: the methods of one interface on one capability,
//! which the peer gives in the answer to an opening call that `capnp_rpc` makes.
//!
//! Guarantees: calls made here and through `capnp_rpc` leave in the order in which they were made; every call is answered
//! once, at the latest when the connection ends; a call that is dropped is given up with `Finish`, and its number is not
//! used again before its `Return`. Before the opening call has returned, calls are made on its promised answer, so that
//! nothing waits for a round trip.
//!
//! Numbers of questions: `capnp_rpc` counts from zero and reuses the lowest that is free; the calls made here have numbers
//! from `FIRST_QUESTION` on, which it never reaches.
//!
//! The opened capability is used as long as the asker is: whoever makes the opening call keeps its answer for so long, or
//! `capnp_rpc` gives the capability back.
//!
//! Does not: pass capabilities, follow an opened capability that is itself a promise (then `capnp_rpc` has to be asked),
//! know what is in parameters and results. Used by `client`.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::any_pointer;
use capnp::message::{Builder, HeapAllocator, Reader, ReaderSegments};
use capnp_rpc::rpc_capnp::{call, cap_descriptor, exception, message, return_};

use super::Meter;
use super::envelope;
use super::receive::options_for;
use super::send::{Outbox, Watch};
use super::words::Shape;

/// Number of the first question.
const FIRST_QUESTION: u32 = 1 << 30;

/// The call whose answer holds the capability that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Interface of the opening method.
    pub interface: u64,
    /// Its ordinal.
    pub method: u16,
    /// The pointer field of its results in which the capability is.
    pub field: u16,
    /// The interface that the capability implements.
    pub opened: u64,
}

/// Why a call has no results.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The exception, as `capnp_rpc` would give it.
    pub error: capnp::Error,
    /// The connection has ended: the exception may be the connection's and not the call's.
    pub closed: bool,
}

/// Reads what came back for a call.
pub type Read<T> = fn(Result<any_pointer::Reader<'_>, Failure>) -> T;

/// Where calls are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// The opening call was not made.
    Unopened,
    /// The answer to this question.
    Promised(u32),
    /// This export of the peer.
    Import(u32),
    /// Only `capnp_rpc` knows.
    Elsewhere,
}

/// One question.
enum Slot {
    /// The next free slot, if there is one.
    Free(Option<u32>),
    Waiting(Rc<dyn Deliver>),
    /// Nobody waits; `Finish` is sent and `Return` is not here.
    GivenUp,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Option<u32>,
}

impl Slots {
    fn insert(&mut self, waiting: Rc<dyn Deliver>) -> u32 {
        match self.free {
            Some(index) => {
                let slot = &mut self.slots[index as usize];
                if let Slot::Free(next) = slot {
                    self.free = *next;
                }
                *slot = Slot::Waiting(waiting);
                index
            }
            None => {
                self.slots.push(Slot::Waiting(waiting));
                u32::try_from(self.slots.len() - 1).expect("memory ends before the numbers do")
            }
        }
    }

    /// Takes what is in a slot in use, and frees it.
    fn remove(&mut self, index: u32) -> Option<Slot> {
        let slot = self.slots.get_mut(index as usize)?;
        if let Slot::Free(_) = slot {
            return None;
        }
        let taken = std::mem::replace(slot, Slot::Free(self.free));
        self.free = Some(index);
        Some(taken)
    }
}

/// The asking end of one connection.
pub struct Asker {
    opening: Opening,
    outbox: Rc<Outbox>,
    meter: Rc<Meter>,
    target: Cell<Target>,
    slots: RefCell<Slots>,
    ended: RefCell<Option<capnp::Error>>,
}

impl Asker {
    pub(super) fn new(opening: Opening, outbox: Rc<Outbox>, meter: Rc<Meter>) -> Rc<Asker> {
        let asker = Rc::new(Asker {
            opening,
            outbox,
            meter,
            target: Cell::new(Target::Unopened),
            slots: RefCell::default(),
            ended: RefCell::new(None),
        });
        asker.outbox.watch(&(Rc::clone(&asker) as Rc<dyn Watch>));
        asker
    }

    /// Whether calls can be made here. If not, `capnp_rpc` has to be asked.
    pub fn can_ask(&self) -> bool {
        matches!(self.target.get(), Target::Promised(_) | Target::Import(_))
    }

    /// Calls a method with parameters of a known shape; `fill` appends exactly their words. `build` makes the same
    /// parameters where the call cannot be written as bytes yet.
    pub fn ask_words<T: 'static>(
        self: &Rc<Self>,
        method: u16,
        shape: Shape,
        fill: impl FnOnce(&mut Vec<u8>),
        build: impl FnOnce(any_pointer::Builder<'_>),
        read: Read<T>,
    ) -> Answer<T> {
        let Target::Import(import) = self.target.get() else {
            return self.ask_built(method, shape.words, build, read);
        };
        let answer = self.wait(read);
        let call = envelope::Call {
            question: FIRST_QUESTION + answer.index,
            interface: self.opening.opened,
            method,
            import,
        };
        let bytes = envelope::call_bytes(shape);
        self.outbox.push_bytes(
            bytes,
            |to| {
                envelope::call(&call, shape, to);
                fill(to);
            },
            true,
        );
        answer
    }

    /// Calls a method with parameters that `fill` builds; `words` is about how many they are.
    pub fn ask_built<T: 'static>(
        self: &Rc<Self>,
        method: u16,
        words: usize,
        fill: impl FnOnce(any_pointer::Builder<'_>),
        read: Read<T>,
    ) -> Answer<T> {
        let answer = self.wait(read);
        let target = self.target.get();
        let built = self
            .outbox
            .push_built(envelope::CALL_WORDS_MAX + words, true, |root| {
                let mut call = root.init_as::<message::Builder<'_>>().init_call();
                call.set_question_id(FIRST_QUESTION + answer.index);
                call.set_interface_id(self.opening.opened);
                call.set_method_id(method);
                self.fill_target(target, call.reborrow());
                fill(call.init_params().get_content());
                Ok(())
            });
        built.expect("filling parameters does not fail");
        answer
    }

    fn fill_target(&self, target: Target, call: call::Builder<'_>) {
        let mut to = call.init_target();
        match target {
            Target::Import(import) => to.set_imported_cap(import),
            Target::Promised(question) => {
                let mut answer = to.init_promised_answer();
                answer.set_question_id(question);
                answer
                    .init_transform(1)
                    .get(0)
                    .set_get_pointer_field(self.opening.field);
            }
            Target::Unopened | Target::Elsewhere => {
                unreachable!("the caller has asked whether it can ask")
            }
        }
    }

    fn wait<T: 'static>(self: &Rc<Self>, read: Read<T>) -> Answer<T> {
        let waiting = Rc::new(Waiting {
            read,
            state: RefCell::new(State::Asked(None)),
        });
        let index = self
            .slots
            .borrow_mut()
            .insert(Rc::clone(&waiting) as Rc<dyn Deliver>);
        if let Some(error) = &*self.ended.borrow() {
            self.slots.borrow_mut().remove(index);
            waiting.deliver(Err(Failure {
                error: error.clone(),
                closed: true,
            }));
        }
        Answer {
            asker: Rc::clone(self),
            waiting,
            index,
        }
    }

    /// Looks at a message before `capnp_rpc` gets it. Returns whether it was the answer to a question asked here.
    pub(super) fn offer(&self, segments: &dyn ReaderSegments, bytes: usize) -> bool {
        let reader = Reader::new(segments, options_for(bytes));
        let Ok(root) = reader.get_root::<message::Reader<'_>>() else {
            return false;
        };
        let Ok(message::Return(Ok(answer))) = root.which() else {
            return false;
        };
        let id = answer.get_answer_id();
        if self.target.get() == Target::Promised(id) {
            self.target.set(opened(answer));
        }
        let Some(index) = id.checked_sub(FIRST_QUESTION) else {
            return false;
        };
        let Some(slot) = self.slots.borrow_mut().remove(index) else {
            return false;
        };
        self.meter.note_taken();
        if let Slot::Waiting(waiting) = slot {
            waiting.deliver(results(answer));
            if !answer.get_no_finish_needed() {
                self.send_finish(id);
            }
        }
        true
    }

    fn give_up(&self, index: u32) {
        if self.ended.borrow().is_none() {
            self.slots.borrow_mut().slots[index as usize] = Slot::GivenUp;
            self.send_finish(FIRST_QUESTION + index);
        }
    }

    fn send_finish(&self, id: u32) {
        let sent = self
            .outbox
            .push_built(envelope::FINISH_WORDS, true, |root| {
                let mut finish = root.init_as::<message::Builder<'_>>().init_finish();
                finish.set_question_id(id);
                // Nothing in the results is kept.
                finish.set_release_result_caps(true);
                Ok(())
            });
        sent.expect("filling `Finish` does not fail");
    }
}

impl Watch for Asker {
    fn sent(&self, message: &Builder<HeapAllocator>) {
        if self.target.get() != Target::Unopened {
            return;
        }
        let Ok(root) = message.get_root_as_reader::<message::Reader<'_>>() else {
            return;
        };
        if let Ok(message::Call(Ok(call))) = root.which()
            && (call.get_interface_id(), call.get_method_id())
                == (self.opening.interface, self.opening.method)
        {
            self.target.set(Target::Promised(call.get_question_id()));
        }
    }

    fn ended(&self, error: &capnp::Error) {
        self.ended.borrow_mut().get_or_insert_with(|| error.clone());
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        for slot in slots.slots {
            if let Slot::Waiting(waiting) = slot {
                waiting.deliver(Err(Failure {
                    error: error.clone(),
                    closed: true,
                }));
            }
        }
    }
}

/// Where calls go after the opening call has returned.
fn opened(answer: return_::Reader<'_>) -> Target {
    let Ok(return_::Results(Ok(payload))) = answer.which() else {
        return Target::Elsewhere;
    };
    let Ok(table) = payload.get_cap_table() else {
        return Target::Elsewhere;
    };
    match table.try_get(0).map(cap_descriptor::Reader::which) {
        Some(Ok(cap_descriptor::SenderHosted(import))) if table.len() == 1 => {
            Target::Import(import)
        }
        _ => Target::Elsewhere,
    }
}

fn results(answer: return_::Reader<'_>) -> Result<any_pointer::Reader<'_>, Failure> {
    let failed = |error| Failure {
        error,
        closed: false,
    };
    match answer.which() {
        Ok(return_::Results(payload)) => Ok(payload.map_err(failed)?.get_content()),
        Ok(return_::Exception(exception)) => Err(failed(remote(exception.map_err(failed)?))),
        Ok(_) => Err(failed(capnp::Error::failed(
            "the peer returned neither results nor an exception".to_string(),
        ))),
        Err(unknown) => Err(failed(unknown.into())),
    }
}

/// An exception of the peer as `capnp_rpc` words it.
fn remote(exception: exception::Reader<'_>) -> capnp::Error {
    use capnp::ErrorKind;
    let kind = match exception.get_type() {
        Ok(exception::Type::Overloaded) => ErrorKind::Overloaded,
        Ok(exception::Type::Disconnected) => ErrorKind::Disconnected,
        Ok(exception::Type::Unimplemented) => ErrorKind::Unimplemented,
        Ok(exception::Type::Failed) | Err(_) => ErrorKind::Failed,
    };
    let reason = exception
        .get_reason()
        .ok()
        .and_then(|reason| reason.to_str().ok())
        .unwrap_or("(malformed error)");
    capnp::Error {
        kind,
        extra: format!("remote exception: {reason}"),
    }
}

/// Takes what came back for a question, whatever it is read as.
trait Deliver {
    fn deliver(&self, results: Result<any_pointer::Reader<'_>, Failure>);
}

enum State<T> {
    Asked(Option<Waker>),
    Answered(T),
    Taken,
}

struct Waiting<T> {
    read: Read<T>,
    state: RefCell<State<T>>,
}

impl<T> Deliver for Waiting<T> {
    fn deliver(&self, results: Result<any_pointer::Reader<'_>, Failure>) {
        let answer = (self.read)(results);
        let before = self.state.replace(State::Answered(answer));
        if let State::Asked(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// What a call comes to. Dropped before, it gives the call up.
pub struct Answer<T> {
    asker: Rc<Asker>,
    waiting: Rc<Waiting<T>>,
    index: u32,
}

impl<T> Future for Answer<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.waiting.state.borrow_mut();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Answered(answer) => Poll::Ready(answer),
            State::Asked(waker) => {
                let waker = match waker {
                    Some(waker) if waker.will_wake(context.waker()) => waker,
                    _ => context.waker().clone(),
                };
                *state = State::Asked(Some(waker));
                Poll::Pending
            }
            State::Taken => panic!("an answer is taken once"),
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let State::Asked(_) = &*self.waiting.state.borrow() {
            self.asker.give_up(self.index);
        }
    }
}

//! The end of what the peer sends, as `capnp_rpc` learns of it.
//!
//! `capnp_rpc` drops at once whatever a connection has when that ends: with a thousand open questions it takes some
//! milliseconds, in which nobody else is served. So it is told first, a few in a turn, that the peer is done with its
//! questions, and then of the end. For calls that are being worked on both mean the same: nobody waits for them any more.
//!
//! Made by `receive.rs` when the stream ends or must not be read on. Does not: send anything.

use std::task::{Context, Poll};

use capnp::message::{Builder, HeapAllocator};
use capnp_rpc::IncomingMessage;
use capnp_rpc::rpc_capnp::message;

use super::inbox::Received;

/// Questions that are ended in one turn: some tens of microseconds.
const ENDED_IN_A_TURN: usize = 16;

/// Words of a `Finish` with what is around it.
const FINISH_WORDS: u32 = 8;

/// What is left to be told.
pub(super) struct Closing {
    questions: Vec<u32>,
    ended_in_turn: usize,
    /// A clean end, or why there is one.
    end: Result<(), capnp::Error>,
}

impl Closing {
    /// `questions` are open, and this is the `end`.
    pub(super) fn new(questions: Vec<u32>, end: Result<(), capnp::Error>) -> Closing {
        Closing {
            questions,
            ended_in_turn: 0,
            end,
        }
    }

    /// A turn of the connection begins.
    pub(super) fn begin_turn(&mut self) {
        self.ended_in_turn = 0;
    }

    /// The next message for `capnp_rpc`, and the end behind the last one, however often it asks.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        if self.questions.is_empty() {
            return Poll::Ready(self.end.clone().map(|()| None));
        }
        if self.ended_in_turn == ENDED_IN_A_TURN {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.ended_in_turn += 1;
        let question = self.questions.pop().expect("there are some, see above");
        Poll::Ready(Ok(Some(Box::new(Finish::of(question)))))
    }
}

/// A message that the peer did not send.
struct Finish(Builder<HeapAllocator>);

impl Finish {
    fn of(question: u32) -> Finish {
        let mut message = Builder::new(HeapAllocator::new().first_segment_words(FINISH_WORDS));
        let mut finish = message.init_root::<message::Builder<'_>>().init_finish();
        finish.set_question_id(question);
        // What came with the answer goes at the end: the peer may have released it already, and twice is an error.
        finish.set_release_result_caps(false);
        Finish(message)
    }
}

impl IncomingMessage for Finish {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.0.get_root_as_reader()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The questions that are ended in this turn, and whether the end was told behind them.
    fn turn(closing: &mut Closing) -> (Vec<u32>, Option<capnp::Result<()>>) {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut ended = Vec::new();
        closing.begin_turn();
        loop {
            match closing.poll(&mut context) {
                Poll::Pending => return (ended, None),
                Poll::Ready(Ok(None)) => return (ended, Some(Ok(()))),
                Poll::Ready(Err(error)) => return (ended, Some(Err(error))),
                Poll::Ready(Ok(Some(told))) => {
                    let root = told.get_body().unwrap();
                    let root = root.get_as::<message::Reader<'_>>().unwrap();
                    let Ok(message::Finish(Ok(finish))) = root.which() else {
                        panic!("no Finish")
                    };
                    assert!(!finish.get_release_result_caps());
                    ended.push(finish.get_question_id());
                }
            }
        }
    }

    #[test]
    fn every_question_is_ended_a_few_in_a_turn_and_then_comes_the_end() {
        let all = 7..7 + 2 * ENDED_IN_A_TURN as u32 + 1;
        let failure = capnp::Error::disconnected("gone".to_string());
        for end in [Ok(()), Err(failure)] {
            let mut closing = Closing::new(all.clone().collect(), end.clone());
            let mut ended = BTreeSet::new();
            for _ in 0..2 {
                let (questions, told) = turn(&mut closing);
                assert_eq!((questions.len(), told.is_none()), (ENDED_IN_A_TURN, true));
                ended.extend(questions);
            }
            let (last, told) = turn(&mut closing);
            ended.extend(last);
            assert_eq!(ended, all.clone().collect());
            for told in [told, turn(&mut closing).1] {
                let told = told.expect("the end").map_err(|error| error.extra);
                assert_eq!(told, end.clone().map_err(|error| error.extra));
            }
        }
    }
}

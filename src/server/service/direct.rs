//! The hot methods of the store, answered by the connection itself: the same decoding, limits, budgets and answers as in
//! `service`, without a promise for each call.
//!
//! Whatever cannot be answered as it should (an invalid argument, a used-up budget, a server that stops) is declined
//! before anything is done: then the methods of `service` say why. Called by `wire::direct`, one [`DirectStore`] per
//! connection, made by `session`.

use std::future::Future;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::traits::{HasStructSize, HasTypeId};
use futures::FutureExt as _;

use super::{decode, encode, fault};
use crate::proto::method;
use crate::proto::orlop_capnp::{lookup, outcome, server, store};
use crate::server::session::Session;
use crate::shard::{Change, Found, FoundMany, GetBegun, Mutation, Outcome, ShardError};
use crate::wire::direct::{DirectCall, DirectCalls, KeptParams, Reply, Verdict};
use crate::wire::words::{
    Shape, append, append_bytes, bytes_pointer, struct_list, struct_pointer, words_of,
};

/// The pointer field of the store in the results of `open`.
const OPENED_FIELD: u16 = 0;

/// Values from this length on are built into a segment of their own, which is written from where it is.
const VALUE_IN_PLACE_BYTES_MIN: usize = 64 << 10;

/// Words of a lookup or an outcome: two of data and a pointer.
const STRUCT_WORDS: usize = 3;

/// The same with the pointer to it: the results of a call for one key, beside a value.
const ITEM_WORDS: usize = 1 + STRUCT_WORDS;

/// The longest list of lookups that is written word by word into what is sent next.
const LIST_WORDS_MAX: usize = words_of(512 << 10);

/// Numbers in the union of `Lookup`.
const ABSENT: u64 = 0;
const FOUND: u64 = 1;

const fn has_size<T: HasStructSize>(data_words: u16, pointers: u16) -> bool {
    T::STRUCT_SIZE.data == data_words && T::STRUCT_SIZE.pointers == pointers
}

// What is written word by word below.
const _: () = assert!(has_size::<store::get_results::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<store::set_results::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<store::delete_results::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<store::get_many_results::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<store::write_results::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<lookup::Builder<'static>>(2, 1));
const _: () = assert!(has_size::<outcome::Builder<'static>>(2, 1));

/// The store as one connection sees it, for direct calls.
pub(crate) struct DirectStore {
    session: Rc<Session>,
}

impl DirectStore {
    pub(crate) fn new(session: Rc<Session>) -> DirectStore {
        DirectStore { session }
    }
}

impl DirectCalls for DirectStore {
    fn interface(&self) -> u64 {
        store::Client::TYPE_ID
    }

    fn opens(&self, interface: u64, method: u16) -> Option<u16> {
        (interface == server::Client::TYPE_ID && method == method::OPEN).then_some(OPENED_FIELD)
    }

    fn call(&self, call: DirectCall<'_>) -> Verdict {
        let taken = match call.method {
            method::GET => self.get(call),
            method::SET => self.set(call),
            method::DELETE => self.delete(call),
            method::GET_MANY => self.get_many(call),
            method::WRITE => self.write(call),
            _ => return Verdict::Declined,
        };
        match taken {
            Ok(()) => Verdict::Taken,
            Err(_) => Verdict::Declined,
        }
    }
}

/// An error declines the call; nothing was done.
impl DirectStore {
    fn get(&self, call: DirectCall<'_>) -> capnp::Result<()> {
        let in_flight = self.session.begin_call()?;
        let params: store::get_params::Reader<'_> = call.params.get_as()?;
        let key = decode::key(params.get_key()?)?;
        match self.session.shard().begin_get(key) {
            GetBegun::Answered(found) => {
                reply_lookup(&self.session, call.question.reply(), found.as_ref());
            }
            begun @ GetBegun::Waits(_) => {
                let session = Rc::clone(&self.session);
                let later = call.question.later();
                spawn(async move {
                    match session.get(begun).await {
                        Ok((found, _room)) => {
                            reply_lookup(&session, later.reply(), found.as_ref());
                        }
                        Err(error) => later.reply().exception(&fault::refused(error)),
                    }
                    drop(in_flight);
                });
            }
        }
        Ok(())
    }

    fn set(&self, call: DirectCall<'_>) -> capnp::Result<()> {
        let params: store::set_params::Reader<'_> = call.params.get_as()?;
        let key = decode::key(params.get_key()?)?;
        let value = decode::value(params.get_value()?, self.session.process().value_len_max)?;
        let condition = decode::condition(params.get_condition()?)?;
        let mutation = Mutation {
            key,
            change: Change::Set(value),
            condition,
        };
        self.submit(&mutation, call)
    }

    fn delete(&self, call: DirectCall<'_>) -> capnp::Result<()> {
        let params: store::delete_params::Reader<'_> = call.params.get_as()?;
        let key = decode::key(params.get_key()?)?;
        let condition = decode::condition(params.get_condition()?)?;
        let mutation = Mutation {
            key,
            change: Change::Delete,
            condition,
        };
        self.submit(&mutation, call)
    }

    fn submit(&self, mutation: &Mutation<'_>, call: DirectCall<'_>) -> capnp::Result<()> {
        let in_flight = self.session.begin_call()?;
        let later = call.question.later();
        self.session.shard().submit_then(mutation, move |result| {
            match result {
                Ok(outcome) => reply_outcome(later.reply(), outcome),
                Err(error) => later.reply().exception(&fault::refused(error)),
            }
            drop(in_flight);
        });
        Ok(())
    }

    fn get_many(&self, call: DirectCall<'_>) -> capnp::Result<()> {
        let in_flight = self.session.begin_call()?;
        keys_of(call.params)?;
        let kept = call.keep();
        let session = Rc::clone(&self.session);
        let later = call.question.later();
        start(async move {
            match look_up(&session, &kept).await {
                Ok(many) => reply_lookups(&session, later.reply(), &many.found),
                Err(error) => later.reply().exception(&error),
            }
            drop(in_flight);
        });
        Ok(())
    }

    fn write(&self, call: DirectCall<'_>) -> capnp::Result<()> {
        let in_flight = self.session.begin_call()?;
        let params: store::write_params::Reader<'_> = call.params.get_as()?;
        let mutations = decode::mutations(
            params.get_mutations()?,
            self.session.process().value_len_max,
        )?;
        let later = call.question.later();
        self.session
            .shard()
            .submit_batch(&mutations)
            .then(move |results| {
                reply_outcomes(later.reply(), results);
                drop(in_flight);
            });
        Ok(())
    }
}

fn keys_of(params: any_pointer::Reader<'_>) -> capnp::Result<Vec<&[u8]>> {
    let params: store::get_many_params::Reader<'_> = params.get_as()?;
    decode::keys(params.get_keys()?)
}

async fn look_up(session: &Session, params: &KeptParams) -> capnp::Result<FoundMany> {
    let keys = keys_of(params.get()?)?;
    session
        .shard()
        .get_many(&keys)
        .await
        .map_err(fault::refused)
}

/// Runs what is to be waited for.
fn spawn(work: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(work).detach();
}

/// The same, for what may be done at once.
fn start(work: impl Future<Output = ()> + 'static) {
    let mut work = Box::pin(work);
    if work.as_mut().now_or_never().is_none() {
        spawn(work);
    }
}

fn reply_lookup(session: &Session, reply: Reply, found: Option<&Found>) {
    let value_len = encode::lookup_bytes(found);
    if let Err(error) = session.reserve_answer(value_len) {
        return reply.exception(&error);
    }
    if value_len >= VALUE_IN_PLACE_BYTES_MIN {
        return reply.build(ITEM_WORDS, |results| {
            let results: store::get_results::Builder<'_> = results.init_as();
            encode::lookup(found, results.init_lookup());
            Ok(())
        });
    }
    let shape = Shape {
        data_words: 0,
        pointers: 1,
        words: ITEM_WORDS + words_of(value_len),
    };
    reply.results(shape, |to| lookup_words(found, to));
}

/// `get`'s results: a pointer to the lookup, the lookup, its value.
fn lookup_words(found: Option<&Found>, to: &mut Vec<u8>) {
    let lookup = struct_pointer(0, 2, 1);
    let Some(found) = found else {
        return append(to, &[lookup, ABSENT, 0, 0]);
    };
    let value: &[u8] = &found.value;
    let bytes = bytes_pointer(0, value.len());
    append(to, &[lookup, FOUND, found.version, bytes]);
    append_bytes(to, value);
}

fn reply_outcome(reply: Reply, outcome: Outcome) {
    let shape = Shape {
        data_words: 0,
        pointers: 1,
        words: ITEM_WORDS,
    };
    reply.results(shape, |to| {
        append(to, &[struct_pointer(0, 2, 1)]);
        append(to, &outcome_words(outcome));
    });
}

/// An outcome.
fn outcome_words(outcome: Outcome) -> [u64; STRUCT_WORDS] {
    /// Numbers in the union of `Outcome`, and its `existed`.
    const WRITTEN: u64 = 0;
    const REFUSED: u64 = 1;
    const EXISTED: u64 = 1 << 16;
    let (version, kind, existed) = match outcome {
        Outcome::Written { version, existed } => (version, WRITTEN, existed),
        Outcome::Refused { current } => (current.unwrap_or(0), REFUSED, current.is_some()),
    };
    let existed = if existed { EXISTED } else { 0 };
    [version, kind | existed, 0]
}

fn reply_lookups(session: &Session, reply: Reply, found: &[Option<Found>]) {
    let bytes = found
        .iter()
        .map(|found| encode::lookup_bytes(found.as_ref()))
        .sum();
    if let Err(error) = session.reserve_answer(bytes) {
        return reply.exception(&error);
    }
    let value_words = |found: &Option<Found>| words_of(encode::lookup_bytes(found.as_ref()));
    let words = list_words(found.len()) + found.iter().map(value_words).sum::<usize>();
    if words > LIST_WORDS_MAX {
        return reply.build(words + found.len(), |results| {
            let results: store::get_many_results::Builder<'_> = results.init_as();
            let mut lookups = results.init_lookups(decode::count(found.len()));
            for (at, found) in (0..).zip(found) {
                encode::lookup(found.as_ref(), lookups.reborrow().get(at));
            }
            Ok(())
        });
    }
    let shape = Shape {
        data_words: 0,
        pointers: 1,
        words,
    };
    reply.results(shape, |to| lookups_words(found, to));
}

/// Words of a list of lookups or outcomes in results, beside the values: the pointer to it, its tag, its structs.
const fn list_words(count: usize) -> usize {
    2 + count * STRUCT_WORDS
}

/// `getMany`'s results: a pointer to the lookups, the lookups, their values.
fn lookups_words(found: &[Option<Found>], to: &mut Vec<u8>) {
    append(to, &struct_list(0, found.len(), 2, 1));
    let (structs, mut value_words) = (found.len() * STRUCT_WORDS, 0);
    for (found, end) in found.iter().zip((STRUCT_WORDS..).step_by(STRUCT_WORDS)) {
        let words = match found {
            None => [ABSENT, 0, 0],
            Some(found) => {
                // Behind the structs that follow, and the values of those before.
                let pointer = bytes_pointer(structs - end + value_words, found.value.len());
                value_words += words_of(found.value.len());
                [FOUND, found.version, pointer]
            }
        };
        append(to, &words);
    }
    for found in found.iter().flatten() {
        append_bytes(to, &found.value);
    }
}

fn reply_outcomes(reply: Reply, answers: Vec<Result<Outcome, ShardError>>) {
    let outcomes: Result<Vec<_>, _> = answers.iter().map(Result::as_ref).collect();
    let words = list_words(answers.len());
    if let (Ok(outcomes), true) = (outcomes, words <= LIST_WORDS_MAX) {
        let shape = Shape {
            data_words: 0,
            pointers: 1,
            words,
        };
        return reply.results(shape, |to| {
            append(to, &struct_list(0, outcomes.len(), 2, 1));
            for outcome in outcomes {
                append(to, &outcome_words(*outcome));
            }
        });
    }
    reply.build(words, |results| {
        let results: store::write_results::Builder<'_> = results.init_as();
        let mut outcomes = results.init_outcomes(decode::count(answers.len()));
        for (at, answer) in (0..).zip(answers) {
            let outcome = outcomes.reborrow().get(at);
            match answer {
                Ok(answer) => encode::outcome(answer, outcome),
                Err(error) => encode::failed(error, outcome),
            }
        }
        Ok(())
    });
}

//! The hot methods of the store, answered by the connection itself: the same decoding, limits, budgets and answers as in
//! `service`, without a promise for each call.
//!
//! Whatever cannot be answered as it should (an invalid argument, a used-up budget, a server that stops) is declined
//! before anything is done: then the methods of `service` say why. Called by `wire::direct`, one [`DirectStore`] per
//! connection, made by `session`.

use std::future::Future;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::traits::HasTypeId;
use futures::FutureExt as _;

use super::reply::PageResults;
use super::{decode, fault, prefix, reply};
use crate::proto::method;
use crate::proto::orlop_capnp::{bootstrap, store};
use crate::server::session::Session;
use crate::shard::room::Part;
use crate::shard::turns::InTurn;
use crate::shard::{Change, FoundMany, GetBegun, Mutation, PrefixQuery};
use crate::wire::direct::{DirectCall, DirectCalls, KeptParams, Verdict};

/// The pointer field of the store in the results of `open`.
const OPENED_FIELD: u16 = 0;

/// A page from this length on ends the turn of its connection: it took some ten microseconds at least.
const LONG_PAGE_BYTES_MIN: usize = 64 << 10;

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
        (interface == bootstrap::Client::TYPE_ID && method == method::OPEN).then_some(OPENED_FIELD)
    }

    fn call(&self, call: DirectCall<'_>) -> Verdict {
        let taken = match call.method {
            method::GET => self.get(call),
            method::SET => self.set(call),
            method::DELETE => self.delete(call),
            method::GET_MANY => self.get_many(call),
            method::WRITE => self.write(call),
            method::GET_PREFIX => return self.get_prefix(call).unwrap_or(Verdict::Declined),
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
                reply::lookup(&self.session, call.question.reply(), found);
            }
            begun @ GetBegun::Waits(_) => {
                let session = Rc::clone(&self.session);
                let later = call.question.later();
                spawn(async move {
                    match session.get(begun).await {
                        // What is queued counts towards the budget of unwritten answers.
                        Ok((found, _room)) => reply::lookup(&session, later.reply(), found),
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
                Ok(outcome) => reply::outcome(later.reply(), outcome),
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
        start(&self.session, async move {
            match look_up(&session, &kept).await {
                Ok(many) => reply::lookups(&session, later.reply(), many.found),
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
                reply::outcomes(later.reply(), results);
                drop(in_flight);
            });
        Ok(())
    }

    fn get_prefix(&self, call: DirectCall<'_>) -> capnp::Result<Verdict> {
        let in_flight = self.session.begin_call()?;
        query_of(call.params)?;
        let kept = call.keep();
        let session = Rc::clone(&self.session);
        let later = call.question.later();
        let answered = start(&self.session, async move {
            let bytes = match make_page(&session, &kept).await {
                // What is queued counts towards the budget of unwritten answers.
                Ok((results, _room)) => results.reply(&session, later.reply()),
                Err(error) => {
                    later.reply().exception(&error);
                    0
                }
            };
            drop(in_flight);
            bytes
        });
        Ok(match answered {
            Some(bytes) if bytes < LONG_PAGE_BYTES_MIN => Verdict::Taken,
            // If it waits it has looked for keys, who knows for how many.
            _ => Verdict::TakenLong,
        })
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

fn query_of(params: any_pointer::Reader<'_>) -> capnp::Result<PrefixQuery<'_>> {
    decode::prefix_query(params.get_as()?)
}

async fn make_page(session: &Session, params: &KeptParams) -> capnp::Result<(PageResults, Part)> {
    let (page, room) = prefix::page(session, &query_of(params.get()?)?).await?;
    Ok((PageResults::prepare(page).await, room))
}

/// Runs what is to be waited for.
fn spawn(work: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(work).detach();
}

/// The same, for what may be done at once, and may be much; then it returns what came of it.
fn start<T: 'static>(session: &Session, work: impl Future<Output = T> + 'static) -> Option<T> {
    let mut work = Box::pin(work);
    let done = work.as_mut().now_or_never();
    if done.is_none() {
        spawn(InTurn::new(work.map(drop), session.share()));
    }
    done
}

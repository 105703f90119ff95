//! The hot methods, answered by the connection itself as `orlopd` does it, so that both sides of a comparison have the
//! same transport: what differs is the engine. Whatever is unusual is declined; then `session` answers it.

use std::rc::Rc;

use capnp::traits::HasTypeId;
use orlop::proto::method;
use orlop::proto::orlop_capnp::{bootstrap, store};
use orlop::wire::direct::{DirectCall, DirectCalls, Reply, Verdict};
use orlop::wire::words::{Shape, append, append_bytes, bytes_pointer, struct_pointer, words_of};

use super::committer::{Mutation, Outcome};
use super::decode;
use super::engine::{Stored, split};
use super::session::{Session, fill_lookup, fill_lookups, fill_outcomes, found_bytes, look_up_all};
use super::store::refused;

/// The pointer field of the store in the results of `open`.
const OPENED_FIELD: u16 = 0;

/// Values from this length on are built into a segment of their own, which is written from where it is.
const VALUE_IN_PLACE_BYTES_MIN: usize = 64 << 10;

/// Words of one lookup or outcome, its pointer included, beside its value.
const ITEM_WORDS: usize = 4;

/// The store as one connection sees it.
pub(super) struct DirectStore {
    session: Rc<Session>,
}

impl DirectStore {
    pub(super) fn new(session: Rc<Session>) -> DirectStore {
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
        let params: store::get_params::Reader<'_> = call.params.get_as()?;
        let key = decode::key(params.get_key()?)?;
        let snapshot = self.session.store.snapshot()?;
        let found = snapshot.get(key).map_err(refused)?;
        let bytes = found.as_deref().map_or(0, <[u8]>::len);
        self.session.reserve_answer(bytes)?;
        self.session.store.count_gets(1);
        reply_lookup(call.question.reply(), found.as_ref());
        Ok(())
    }

    fn set(&self, call: DirectCall<'_>) -> capnp::Result<()> {
        let params: store::set_params::Reader<'_> = call.params.get_as()?;
        let (key, value) = (params.get_key()?, params.get_value()?);
        let write = decode::set(key, value, params.get_condition()?)?;
        self.submit(write, call)
    }

    fn delete(&self, call: DirectCall<'_>) -> capnp::Result<()> {
        let params: store::delete_params::Reader<'_> = call.params.get_as()?;
        let write = decode::delete(params.get_key()?, params.get_condition()?)?;
        self.submit(write, call)
    }

    fn submit(&self, write: Mutation, call: DirectCall<'_>) -> capnp::Result<()> {
        let later = call.question.later();
        // Refused, it drops the answer, which says that the call was abandoned: the server ends.
        drop(self.session.store.submit(vec![write], |outcomes| {
            reply_outcome(later.reply(), outcomes[0]);
        }));
        Ok(())
    }

    fn get_many(&self, call: DirectCall<'_>) -> capnp::Result<()> {
        let params: store::get_many_params::Reader<'_> = call.params.get_as()?;
        let keys = decode::keys(params.get_keys()?)?;
        let snapshot = self.session.store.snapshot()?;
        let found = look_up_all(&self.session.store, &*snapshot, &keys)?;
        let bytes = found_bytes(&found);
        self.session.reserve_answer(bytes)?;
        let words = (found.len() + 1) * ITEM_WORDS + words_of(bytes + found.len() * 8);
        call.question.reply().build(words, |results| {
            fill_lookups(&found, results.init_as());
            Ok(())
        });
        Ok(())
    }

    fn write(&self, call: DirectCall<'_>) -> capnp::Result<()> {
        let params: store::write_params::Reader<'_> = call.params.get_as()?;
        let writes = decode::writes(params.get_mutations()?)?;
        let later = call.question.later();
        drop(self.session.store.submit(writes, |outcomes| {
            let words = (outcomes.len() + 1) * ITEM_WORDS;
            later.reply().build(words, |results| {
                fill_outcomes(outcomes, results.init_as());
                Ok(())
            });
        }));
        Ok(())
    }
}

fn reply_lookup(reply: Reply, found: Option<&Stored<'_>>) {
    /// Numbers in the union of `Lookup`.
    const ABSENT: u64 = 0;
    const FOUND: u64 = 1;
    let found_parts = found.map(|stored| split(stored));
    let len = found_parts.map_or(0, |(_, value)| value.len());
    if len >= VALUE_IN_PLACE_BYTES_MIN {
        return reply.build(ITEM_WORDS, |results| {
            let results: store::get_results::Builder<'_> = results.init_as();
            fill_lookup(found, results.init_lookup());
            Ok(())
        });
    }
    reply.results(one_pointer(ITEM_WORDS + words_of(len)), |to| {
        let lookup = struct_pointer(0, 2, 1);
        match found_parts {
            None => append(to, &[lookup, ABSENT, 0, 0]),
            Some((version, value)) => {
                append(to, &[lookup, FOUND, version, bytes_pointer(0, len)]);
                append_bytes(to, value);
            }
        }
    });
}

fn reply_outcome(reply: Reply, outcome: Outcome) {
    /// Numbers in the union of `Outcome`, and its `existed`.
    const WRITTEN: u64 = 0;
    const REFUSED: u64 = 1;
    const EXISTED: u64 = 1 << 16;
    let (version, kind, existed) = match outcome {
        Outcome::Written { version, existed } => (version, WRITTEN, existed),
        Outcome::Refused { current } => (current.unwrap_or(0), REFUSED, current.is_some()),
    };
    let existed = if existed { EXISTED } else { 0 };
    reply.results(one_pointer(ITEM_WORDS), |to| {
        append(to, &[struct_pointer(0, 2, 1), version, kind | existed, 0]);
    });
}

/// Results that are one pointer, and what it points to.
fn one_pointer(words: usize) -> Shape {
    Shape {
        data_words: 0,
        pointers: 1,
        words,
    }
}

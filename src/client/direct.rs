//! The data calls of the client: made on the connection itself, without a promise of `capnp_rpc` for each.
//!
//! `get` and a plain `set` are written word by word, the others are built. Where the peer's store is nothing that the
//! connection can ask (a server that refuses to open, or one behind a proxy), the same calls go through `capnp_rpc`.

use std::rc::Rc;

use capnp::any_pointer;
use capnp::traits::{HasStructSize, HasTypeId};

use super::convert::{fill_condition, fill_mutation, read_lookup, read_outcome};
use super::error::malformed;
use super::{ClientError, Condition, Found, Mutation, Outcome, list_len, mutation_bytes};
use crate::proto::method;
use crate::proto::orlop_capnp::{bootstrap, store};
use crate::wire::Meter;
use crate::wire::asker::{Asker, Failure, Opening, Read};
use crate::wire::words::{Shape, append, append_bytes, bytes_pointer, words_of};

/// How the store is opened.
pub(super) const OPENING: Opening = Opening {
    interface: bootstrap::Client::TYPE_ID,
    method: method::OPEN,
    field: 0,
    opened: store::Client::TYPE_ID,
};

/// Words of parameters beside keys and values, for a call that is built.
const PARAMS_WORDS: usize = 8;

/// Words that a key adds to a list of them, beside its bytes, and a mutation.
const KEY_WORDS: usize = 2;
const MUTATION_WORDS: usize = 8;

const fn has_size<T: HasStructSize>(data_words: u16, pointers: u16) -> bool {
    T::STRUCT_SIZE.data == data_words && T::STRUCT_SIZE.pointers == pointers
}

// What is written word by word below.
const _: () = assert!(has_size::<store::get_params::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<store::set_params::Builder<'static>>(0, 3));

/// The ways to the store on one connection.
pub(super) struct DataCalls<'a> {
    pub(super) asker: &'a Rc<Asker>,
    pub(super) store: &'a store::Client,
    pub(super) meter: &'a Meter,
}

type Answered<T> = Result<T, ClientError>;

impl DataCalls<'_> {
    pub(super) async fn get(&self, key: &[u8]) -> Answered<Option<Found>> {
        let build = |params: any_pointer::Builder<'_>| {
            params
                .init_as::<store::get_params::Builder<'_>>()
                .set_key(key);
        };
        if !self.asker.can_ask() {
            return self.ask_rpc(method::GET, build, read_get).await;
        }
        let shape = Shape {
            data_words: 0,
            pointers: 1,
            words: 1 + words_of(key.len()),
        };
        let words = |to: &mut Vec<u8>| {
            append(to, &[bytes_pointer(0, key.len())]);
            append_bytes(to, key);
        };
        self.asker
            .ask_words(method::GET, shape, words, build, read_get)
            .await
    }

    pub(super) async fn set(
        &self,
        key: &[u8],
        value: &[u8],
        condition: Condition,
    ) -> Answered<Outcome> {
        let build = |params: any_pointer::Builder<'_>| {
            let mut params: store::set_params::Builder<'_> = params.init_as();
            params.set_key(key);
            params.set_value(value);
            if condition != Condition::None {
                fill_condition(condition, params.init_condition());
            }
        };
        let value_words = words_of(value.len());
        let words = PARAMS_WORDS + words_of(key.len()) + value_words;
        if condition != Condition::None {
            return self.call(method::SET, words, build, read_set).await;
        }
        if !self.asker.can_ask() {
            return self.ask_rpc(method::SET, build, read_set).await;
        }
        let shape = Shape {
            data_words: 0,
            pointers: 3,
            words: 3 + words_of(key.len()) + value_words,
        };
        let words = |to: &mut Vec<u8>| {
            // Key and value behind the three pointers; no condition.
            let key_at = bytes_pointer(2, key.len());
            let value_at = bytes_pointer(1 + words_of(key.len()), value.len());
            append(to, &[key_at, value_at, 0]);
            append_bytes(to, key);
            append_bytes(to, value);
        };
        self.asker
            .ask_words(method::SET, shape, words, build, read_set)
            .await
    }

    pub(super) async fn delete(&self, key: &[u8], condition: Condition) -> Answered<Outcome> {
        let build = |params: any_pointer::Builder<'_>| {
            let mut params: store::delete_params::Builder<'_> = params.init_as();
            params.set_key(key);
            if condition != Condition::None {
                fill_condition(condition, params.init_condition());
            }
        };
        let words = PARAMS_WORDS + words_of(key.len());
        self.call(method::DELETE, words, build, read_delete).await
    }

    pub(super) async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
    ) -> Answered<Vec<Option<Found>>> {
        let build = |params: any_pointer::Builder<'_>| {
            let params: store::get_many_params::Builder<'_> = params.init_as();
            let mut list = params.init_keys(list_len(keys.len()));
            for (index, key) in (0..).zip(keys) {
                list.set(index, key.as_ref());
            }
        };
        let words = |key: &K| KEY_WORDS + words_of(key.as_ref().len());
        let words = PARAMS_WORDS + keys.iter().map(words).sum::<usize>();
        self.call(method::GET_MANY, words, build, read_get_many)
            .await
    }

    pub(super) async fn write(
        &self,
        mutations: &[Mutation<'_>],
    ) -> Answered<Vec<Answered<Outcome>>> {
        let build = |params: any_pointer::Builder<'_>| {
            let params: store::write_params::Builder<'_> = params.init_as();
            let mut list = params.init_mutations(list_len(mutations.len()));
            for (index, mutation) in (0..).zip(mutations) {
                fill_mutation(mutation, list.reborrow().get(index));
            }
        };
        let words = |mutation: &Mutation<'_>| MUTATION_WORDS + words_of(mutation_bytes(mutation));
        let words = PARAMS_WORDS + mutations.iter().map(words).sum::<usize>();
        self.call(method::WRITE, words, build, read_write).await
    }

    async fn call<T: 'static>(
        &self,
        method: u16,
        words: usize,
        build: impl FnOnce(any_pointer::Builder<'_>),
        read: Read<Answered<T>>,
    ) -> Answered<T> {
        if self.asker.can_ask() {
            return self.asker.ask_built(method, words, build, read).await;
        }
        self.ask_rpc(method, build, read).await
    }

    async fn ask_rpc<T>(
        &self,
        method: u16,
        build: impl FnOnce(any_pointer::Builder<'_>),
        read: Read<Answered<T>>,
    ) -> Answered<T> {
        let mut request = self
            .store
            .client
            .new_call::<any_pointer::Owned, any_pointer::Owned>(
                store::Client::TYPE_ID,
                method,
                None,
            );
        build(request.get());
        let answer = request.send().promise.await;
        let failed = |error| Failure {
            error,
            closed: self.meter.is_closed(),
        };
        match &answer {
            Ok(response) => read(response.get().map_err(failed)),
            Err(error) => read(Err(failed(error.clone()))),
        }
    }
}

type Results<'a> = Result<any_pointer::Reader<'a>, Failure>;

fn succeeded(results: Results<'_>) -> Answered<any_pointer::Reader<'_>> {
    results.map_err(|failure| ClientError::of_exception(&failure.error, failure.closed))
}

fn read_get(results: Results<'_>) -> Answered<Option<Found>> {
    let results: store::get_results::Reader<'_> =
        succeeded(results)?.get_as().map_err(malformed)?;
    read_lookup(results.get_lookup().map_err(malformed)?)
}

fn read_set(results: Results<'_>) -> Answered<Outcome> {
    let results: store::set_results::Reader<'_> =
        succeeded(results)?.get_as().map_err(malformed)?;
    read_outcome(results.get_outcome().map_err(malformed)?)?
}

fn read_delete(results: Results<'_>) -> Answered<Outcome> {
    let results: store::delete_results::Reader<'_> =
        succeeded(results)?.get_as().map_err(malformed)?;
    read_outcome(results.get_outcome().map_err(malformed)?)?
}

fn read_get_many(results: Results<'_>) -> Answered<Vec<Option<Found>>> {
    let results: store::get_many_results::Reader<'_> =
        succeeded(results)?.get_as().map_err(malformed)?;
    let lookups = results.get_lookups().map_err(malformed)?;
    lookups.iter().map(read_lookup).collect()
}

fn read_write(results: Results<'_>) -> Answered<Vec<Answered<Outcome>>> {
    let results: store::write_results::Reader<'_> =
        succeeded(results)?.get_as().map_err(malformed)?;
    let outcomes = results.get_outcomes().map_err(malformed)?;
    outcomes.iter().map(read_outcome).collect()
}

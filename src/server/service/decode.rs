//! What the wire says, checked against the limits and turned into the shard's words.
//!
//! Guarantees: nothing that a shard asserts gets past this; a refusal names the value given and the limit.

use capnp::{Error, NotInSchema, data_list, struct_list};

use crate::limits;
use crate::proto::ErrorWord;
use crate::proto::orlop_capnp::{condition, mutation, store};
use crate::shard::{Change, Condition, Mutation, PrefixQuery};

/// The exception for a call that can never succeed as it is.
pub(super) fn invalid(sentence: impl std::fmt::Display) -> Error {
    ErrorWord::InvalidArgument.error(sentence)
}

/// The exception for a stream without a sink.
pub(super) fn no_sink(error: Error) -> Error {
    invalid(format!("there is no sink: {error}"))
}

/// A length as the wire has it.
pub(super) fn count(len: usize) -> u32 {
    u32::try_from(len).expect("batches and pages are bounded far below 2^32")
}

pub(super) fn key(key: &[u8]) -> Result<&[u8], Error> {
    if key.is_empty() {
        return Err(invalid(format_args!(
            "the key is empty, keys are 1 to {} bytes",
            limits::KEY_LEN_MAX
        )));
    }
    if key.len() > limits::KEY_LEN_MAX {
        let len = key.len();
        return Err(invalid(format_args!(
            "the key is {len} bytes, keys are 1 to {} bytes",
            limits::KEY_LEN_MAX
        )));
    }
    Ok(key)
}

pub(super) fn value(value: &[u8], len_max: usize) -> Result<&[u8], Error> {
    if value.len() > len_max {
        let len = value.len();
        return Err(invalid(format_args!(
            "the value is {len} bytes, this server takes at most {len_max} bytes (--max-value-size)"
        )));
    }
    Ok(value)
}

pub(super) fn condition(condition: condition::Reader<'_>) -> Result<Condition, Error> {
    match condition.which() {
        Ok(condition::None(())) => Ok(Condition::None),
        Ok(condition::IfAbsent(())) => Ok(Condition::IfAbsent),
        Ok(condition::IfPresent(())) => Ok(Condition::IfPresent),
        Ok(condition::IfVersion(version)) => Ok(Condition::IfVersion(version)),
        Err(NotInSchema(number)) => Err(invalid(format_args!(
            "the condition has number {number}, this server knows 0 (none), 1 (ifAbsent), 2 (ifPresent) and 3 (ifVersion)"
        ))),
    }
}

fn batch(len: u32, what: &str) -> Result<(), Error> {
    if len as usize > limits::BATCH_MAX {
        return Err(invalid(format_args!(
            "{len} {what} in one call, the limit is {}",
            limits::BATCH_MAX
        )));
    }
    Ok(())
}

pub(super) fn keys(keys: data_list::Reader<'_>) -> Result<Vec<&[u8]>, Error> {
    batch(keys.len(), "keys")?;
    let checked = |(at, bytes): (u32, Result<_, Error>)| {
        self::key(bytes?).map_err(|error| within(error, "key", at))
    };
    (0..).zip(keys.iter()).map(checked).collect()
}

pub(super) fn mutations(
    mutations: struct_list::Reader<'_, mutation::Owned>,
    len_max: usize,
) -> Result<Vec<Mutation<'_>>, Error> {
    batch(mutations.len(), "mutations")?;
    let checked = |(at, one)| mutation(one, len_max).map_err(|error| within(error, "mutation", at));
    (0..).zip(mutations.iter()).map(checked).collect()
}

/// Says which part of a batch an error is about.
fn within(error: Error, what: &str, at: u32) -> Error {
    match ErrorWord::parse(&error.extra) {
        Some((word, sentence)) => word.error(format_args!("{what} {at}: {sentence}")),
        None => error,
    }
}

fn mutation(one: mutation::Reader<'_>, len_max: usize) -> Result<Mutation<'_>, Error> {
    let change = match one.which() {
        Ok(mutation::Set(bytes)) => Change::Set(value(bytes?, len_max)?),
        Ok(mutation::Delete(())) => Change::Delete,
        Err(NotInSchema(number)) => {
            return Err(invalid(format_args!(
                "the change has number {number}, this server knows 0 (set) and 1 (delete)"
            )));
        }
    };
    Ok(Mutation {
        key: key(one.get_key()?)?,
        change,
        condition: condition(one.get_condition()?)?,
    })
}

pub(super) fn prefix(prefix: &[u8]) -> Result<&[u8], Error> {
    at_most_a_key(prefix, "prefix")
}

fn at_most_a_key<'a>(bytes: &'a [u8], what: &str) -> Result<&'a [u8], Error> {
    if bytes.len() > limits::KEY_LEN_MAX {
        let len = bytes.len();
        return Err(invalid(format_args!(
            "{what} is {len} bytes, keys are at most {} bytes",
            limits::KEY_LEN_MAX
        )));
    }
    Ok(bytes)
}

fn page_bound(given: u32, max: usize, what: &str) -> Result<usize, Error> {
    let bound = given as usize;
    if !(1..=max).contains(&bound) {
        return Err(invalid(format_args!(
            "{what} is {given}, it must be between 1 and {max}"
        )));
    }
    Ok(bound)
}

pub(super) fn prefix_query(
    request: store::get_prefix_params::Reader<'_>,
) -> Result<PrefixQuery<'_>, Error> {
    Ok(PrefixQuery {
        prefix: prefix(request.get_prefix()?)?,
        after: at_most_a_key(request.get_after()?, "after")?,
        max_entries: page_bound(
            request.get_max_entries(),
            limits::PAGE_ENTRIES_MAX,
            "maxEntries",
        )?,
        max_bytes: page_bound(request.get_max_bytes(), limits::PAGE_BYTES_MAX, "maxBytes")?,
        keys_only: request.get_keys_only(),
    })
}

#[cfg(test)]
mod tests;

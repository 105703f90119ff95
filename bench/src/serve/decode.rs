//! What the wire says, checked against the limits, as writes for the committer.

use capnp::{Error, NotInSchema, data_list, struct_list};
use orlop::limits;
use orlop::proto::ErrorWord;
use orlop::proto::orlop_capnp::{condition, mutation, store};

use super::committer::{Change, Condition, Mutation, Writes};
use super::engine::stored;
use super::store::PageQuery;

fn invalid(sentence: impl std::fmt::Display) -> Error {
    ErrorWord::InvalidArgument.error(sentence)
}

pub(super) fn key(key: &[u8]) -> Result<&[u8], Error> {
    within("the key has", key.len(), 1, limits::KEY_LEN_MAX, "bytes")?;
    Ok(key)
}

pub(super) fn keys(keys: data_list::Reader<'_>) -> Result<Vec<&[u8]>, Error> {
    within(
        "there are",
        keys.len() as usize,
        0,
        limits::BATCH_MAX,
        "keys",
    )?;
    keys.iter().map(|bytes| key(bytes?)).collect()
}

pub(super) fn set(
    key: &[u8],
    value: &[u8],
    condition: condition::Reader<'_>,
) -> Result<Mutation, Error> {
    let len = value.len();
    within("the value has", len, 0, limits::VALUE_LEN_MAX, "bytes")?;
    changing(key, Change::Set(stored(value)), condition)
}

pub(super) fn delete(key: &[u8], condition: condition::Reader<'_>) -> Result<Mutation, Error> {
    changing(key, Change::Delete, condition)
}

pub(super) fn writes(mutations: struct_list::Reader<'_, mutation::Owned>) -> Result<Writes, Error> {
    let count = mutations.len() as usize;
    within("there are", count, 0, limits::BATCH_MAX, "mutations")?;
    mutations.iter().map(one_write).collect()
}

fn one_write(one: mutation::Reader<'_>) -> Result<Mutation, Error> {
    match one.which() {
        Ok(mutation::Set(value)) => set(one.get_key()?, value?, one.get_condition()?),
        Ok(mutation::Delete(())) => delete(one.get_key()?, one.get_condition()?),
        Err(NotInSchema(number)) => Err(invalid(format_args!(
            "the change has number {number}, known are 0 (set) and 1 (delete)"
        ))),
    }
}

fn changing(
    bytes: &[u8],
    change: Change,
    condition: condition::Reader<'_>,
) -> Result<Mutation, Error> {
    let condition = match condition.which() {
        Ok(condition::None(())) => Condition::None,
        Ok(condition::IfAbsent(())) => Condition::IfAbsent,
        Ok(condition::IfPresent(())) => Condition::IfPresent,
        Ok(condition::IfVersion(version)) => Condition::IfVersion(version),
        Err(NotInSchema(number)) => {
            return Err(invalid(format_args!(
                "the condition has number {number}, known are 0 to 3"
            )));
        }
    };
    Ok(Mutation {
        key: key(bytes)?.to_vec(),
        change,
        condition,
    })
}

pub(super) fn page(request: store::get_prefix_params::Reader<'_>) -> Result<PageQuery<'_>, Error> {
    let (entries, bytes) = (request.get_max_entries(), request.get_max_bytes());
    let (entries_max, bytes_max) = (entries as usize, bytes as usize);
    within(
        "maxEntries is",
        entries_max,
        1,
        limits::PAGE_ENTRIES_MAX,
        "",
    )?;
    within("maxBytes is", bytes_max, 1, limits::PAGE_BYTES_MAX, "")?;
    Ok(PageQuery {
        prefix: request.get_prefix()?,
        after: request.get_after()?,
        entries_max,
        bytes_max,
        keys_only: request.get_keys_only(),
    })
}

fn within(what: &str, given: usize, least: usize, most: usize, unit: &str) -> Result<(), Error> {
    if (least..=most).contains(&given) {
        return Ok(());
    }
    let space = if unit.is_empty() { "" } else { " " };
    Err(invalid(format_args!(
        "{what} {given}{space}{unit}, allowed are {least} to {most}"
    )))
}

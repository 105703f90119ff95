//! Between the schema's types and the client's: fills requests and reads answers.

use capnp::struct_list;

use super::error::malformed;
use super::{Change, ClientError, Condition, Entry, Found, Mutation, Outcome};
use crate::proto::orlop_capnp::{condition, entry, lookup, mutation, outcome};

pub(super) fn fill_condition(condition: Condition, mut into: condition::Builder<'_>) {
    match condition {
        Condition::None => into.set_none(()),
        Condition::IfAbsent => into.set_if_absent(()),
        Condition::IfPresent => into.set_if_present(()),
        Condition::IfVersion(version) => into.set_if_version(version),
    }
}

pub(super) fn fill_mutation(mutation: &Mutation<'_>, mut into: mutation::Builder<'_>) {
    into.set_key(mutation.key);
    match mutation.change {
        Change::Set(value) => into.set_set(value),
        Change::Delete => into.set_delete(()),
    }
    // The schema's default is `none`.
    if mutation.condition != Condition::None {
        fill_condition(mutation.condition, into.init_condition());
    }
}

pub(super) fn read_lookup(lookup: lookup::Reader<'_>) -> Result<Option<Found>, ClientError> {
    match lookup.which()? {
        lookup::Absent(()) => Ok(None),
        lookup::Found(found) => {
            let value = found.get_value().map_err(malformed)?.to_vec();
            Ok(Some(Found {
                value,
                version: found.get_version(),
            }))
        }
    }
}

/// The outcome of one mutation; the outer error is the answer's, the inner one the mutation's.
pub(super) fn read_outcome(
    outcome: outcome::Reader<'_>,
) -> Result<Result<Outcome, ClientError>, ClientError> {
    Ok(match outcome.which()? {
        outcome::Written(written) => Ok(Outcome::Written {
            version: written.get_version(),
            existed: outcome.get_existed(),
        }),
        outcome::Refused(refused) => {
            let current = Some(refused.get_current()).filter(|version| *version != 0);
            Ok(Outcome::Refused { current })
        }
        outcome::Failed(reason) => {
            let reason = reason
                .map_err(malformed)?
                .to_string()
                .map_err(|error| malformed(error.into()))?;
            Err(ClientError::of_reason(&reason).unwrap_or(ClientError::Protocol(reason)))
        }
    })
}

pub(super) fn read_entries(
    entries: struct_list::Reader<'_, entry::Owned>,
) -> Result<Vec<Entry>, capnp::Error> {
    let read = |entry: entry::Reader<'_>| {
        Ok(Entry {
            key: entry.get_key()?.to_vec(),
            value: entry.get_value()?.to_vec(),
            version: entry.get_version(),
        })
    };
    entries.iter().map(read).collect()
}

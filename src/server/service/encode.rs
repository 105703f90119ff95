//! The shard's answers in the words of the wire.

use capnp::struct_list;

use super::{decode, fault};
use crate::proto::orlop_capnp::{entry, lookup, outcome};
use crate::shard::{Entry, Found, Outcome, ShardError};

pub(super) fn lookup(found: Option<&Found>, mut lookup: lookup::Builder<'_>) {
    match found {
        Some(found) => {
            let mut at = lookup.init_found();
            at.set_value(&found.value);
            at.set_version(found.version);
        }
        None => lookup.set_absent(()),
    }
}

/// Bytes of a value in an answer; what is around it is small beside any budget.
pub(super) fn lookup_bytes(found: Option<&Found>) -> usize {
    found.map_or(0, |found| found.value.len())
}

/// Bytes of keys and values in an answer.
pub(super) fn entries_bytes(entries: &[Entry]) -> usize {
    entries
        .iter()
        .map(|entry| entry.key.len() + entry.value.len())
        .sum()
}

pub(super) fn outcome(answer: Outcome, mut outcome: outcome::Builder<'_>) {
    match answer {
        Outcome::Written { version, existed } => {
            outcome.set_existed(existed);
            outcome.init_written().set_version(version);
        }
        Outcome::Refused { current } => {
            outcome.set_existed(current.is_some());
            outcome.init_refused().set_current(current.unwrap_or(0));
        }
    }
}

/// One mutation of a batch that was not written.
pub(super) fn failed(error: ShardError, mut outcome: outcome::Builder<'_>) {
    outcome.set_failed(fault::word(&error).reason(error));
}

pub(super) fn entries(from: &[Entry], mut to: struct_list::Builder<'_, entry::Owned>) {
    for (at, entry) in (0..).zip(from) {
        all_but_value(entry, to.reborrow().get(at)).copy_from_slice(&entry.value);
    }
}

/// Returns the place of the value, which is as long.
pub(super) fn all_but_value<'a>(entry: &Entry, mut to: entry::Builder<'a>) -> &'a mut [u8] {
    to.set_key(&entry.key);
    to.set_version(entry.version);
    to.init_value(decode::count(entry.value.len()))
}

#[cfg(test)]
mod tests {
    use capnp::message::Builder;

    use super::*;

    fn encoded(answer: Outcome) -> (Option<u64>, Option<u64>, bool) {
        let mut message = Builder::new_default();
        outcome(answer, message.init_root());
        let read: outcome::Reader<'_> = message.get_root_as_reader().unwrap();
        let existed = read.get_existed();
        match read.which().unwrap() {
            outcome::Written(written) => (Some(written.get_version()), None, existed),
            outcome::Refused(refused) => (None, Some(refused.get_current()), existed),
            outcome::Failed(reason) => panic!("{reason:?}"),
        }
    }

    #[test]
    fn outcomes_say_what_was_there_before() {
        assert_eq!(
            encoded(Outcome::Written {
                version: 7,
                existed: true
            }),
            (Some(7), None, true)
        );
        assert_eq!(
            encoded(Outcome::Written {
                version: 0,
                existed: false
            }),
            (Some(0), None, false)
        );
        assert_eq!(
            encoded(Outcome::Refused { current: Some(5) }),
            (None, Some(5), true)
        );
        assert_eq!(
            encoded(Outcome::Refused { current: None }),
            (None, Some(0), false)
        );
    }

    #[test]
    fn a_failed_mutation_carries_the_reason_of_an_exception() {
        let mut message = Builder::new_default();
        failed(
            ShardError::OutOfSpace("no room".into()),
            message.init_root(),
        );
        let read: outcome::Reader<'_> = message.get_root_as_reader().unwrap();
        let Ok(outcome::Failed(Ok(reason))) = read.which() else {
            panic!("not failed")
        };
        assert_eq!(reason, "outOfSpace: no room");
    }
}

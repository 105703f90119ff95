//! The answers of the direct calls, word by word: the same structs as `encode` builds, without building them.
//!
//! Guarantees: an answer that finds no place among those that the peer has not read is an exception; a large value is
//! written from where it is, so that nothing of its size is copied or zeroed. Called by `direct`.

use capnp::traits::HasStructSize;

use super::{decode, encode};
use crate::proto::orlop_capnp::{entry, lookup, outcome, store};
use crate::server::session::Session;
use crate::shard::turns::end_turn;
use crate::shard::{Entry, Found, Outcome, Page, ShardError, Value};
use crate::wire::direct::{Parts, Prepared, Reply};
use crate::wire::words::{
    Shape, WORD_BYTES, append, append_bytes, bytes_pointer, struct_pointer, structs_pointer,
    words_of,
};

/// Values from this length on may be written from where they are.
const VALUE_IN_PARTS_BYTES_MIN: usize = 64 << 10;

/// A value is written from where it is if that keeps no more than so many times its length from being freed: what a peer
/// leaves unread is bounded by the bytes of answers, not by what they keep.
const KEPT_BYTES_FACTOR_MAX: usize = 2;

/// Words of a lookup, outcome or entry, beside its key and value.
const ITEM_WORDS: usize = 3;

/// Entries of a page that are written in one turn.
const ENTRIES_PER_TURN: usize = 256;

/// Keys and values of a page that are copied in one turn, in bytes.
const PREPARED_BYTES_PER_TURN: usize = 64 << 10;

/// The first word of results that are one pointer, and what it points to.
const ONE_ITEM_WORDS: usize = 1 + ITEM_WORDS;

const fn has_size<T: HasStructSize>(data_words: u16, pointers: u16) -> bool {
    T::STRUCT_SIZE.data == data_words && T::STRUCT_SIZE.pointers == pointers
}

// What is written word by word below.
const _: () = assert!(has_size::<store::get_results::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<store::set_results::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<store::delete_results::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<store::get_many_results::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<store::write_results::Builder<'static>>(0, 1));
const _: () = assert!(has_size::<store::get_prefix_results::Builder<'static>>(
    1, 1
));
const _: () = assert!(has_size::<lookup::Builder<'static>>(2, 1));
const _: () = assert!(has_size::<outcome::Builder<'static>>(2, 1));
const _: () = assert!(has_size::<entry::Builder<'static>>(1, 2));

/// Announces an answer, unless the peer has given it up: then its bytes are never queued, and would count for ever.
fn reserve(session: &Session, reply: &Reply, bytes: usize) -> Result<(), capnp::Error> {
    match reply.is_wanted() {
        true => session.reserve_answer(bytes),
        false => Ok(()),
    }
}

pub(super) fn lookup(session: &Session, reply: Reply, found: Option<Found>) {
    let value_len = encode::lookup_bytes(found.as_ref());
    if let Err(error) = reserve(session, &reply, value_len) {
        return reply.exception(&error);
    }
    let shape = Shape {
        data_words: 0,
        pointers: 1,
        words: ONE_ITEM_WORDS + words_of(value_len),
    };
    // `get`'s results: a pointer to the lookup, the lookup, its value.
    let pointer = struct_pointer(0, 2, 1);
    let lookup = lookup_words(found.as_ref(), 0);
    match found {
        Some(found) if value_len >= VALUE_IN_PARTS_BYTES_MIN => {
            reply.results_in_parts(shape, |parts| {
                parts.words(&[pointer]);
                parts.words(&lookup);
                append_value(found.value, parts);
            });
        }
        found => reply.results(shape, |to| {
            append(to, &[pointer]);
            append(to, &lookup);
            if let Some(found) = &found {
                append_bytes(to, &found.value);
            }
        }),
    }
}

/// A lookup whose value begins `value_offset` words behind it.
fn lookup_words(found: Option<&Found>, value_offset: usize) -> [u64; ITEM_WORDS] {
    /// Numbers in the union of `Lookup`.
    const ABSENT: u64 = 0;
    const FOUND: u64 = 1;
    let Some(found) = found else {
        return [ABSENT, 0, 0];
    };
    let value_at = bytes_pointer(value_offset, found.value.len());
    [FOUND, found.version, value_at]
}

/// Whether a value may be kept until it is written.
fn may_stay(value: &Value) -> bool {
    value.kept_bytes() <= KEPT_BYTES_FACTOR_MAX * value.len()
}

fn append_value(value: Value, parts: &mut Parts<'_>) {
    // From here on it counts towards what the peer leaves unread.
    let value = value.without_room();
    if may_stay(&value) {
        parts.value(value);
    } else {
        parts.copy(&value);
    }
}

pub(super) fn outcome(reply: Reply, outcome: Outcome) {
    let shape = Shape {
        data_words: 0,
        pointers: 1,
        words: ONE_ITEM_WORDS,
    };
    // A pointer to the outcome, the outcome.
    reply.results(shape, |to| {
        append(to, &[struct_pointer(0, 2, 1)]);
        append(to, &outcome_words(outcome));
    });
}

fn outcome_words(outcome: Outcome) -> [u64; ITEM_WORDS] {
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

pub(super) fn lookups(session: &Session, reply: Reply, found: Vec<Option<Found>>) {
    let bytes = found
        .iter()
        .map(|found| encode::lookup_bytes(found.as_ref()))
        .sum();
    if let Err(error) = reserve(session, &reply, bytes) {
        return reply.exception(&error);
    }
    let value_words = |found: &Option<Found>| words_of(encode::lookup_bytes(found.as_ref()));
    let lookups_words = found.len() * ITEM_WORDS;
    // `getMany`'s results: a pointer to the list, its tag, the lookups, their values.
    let shape = Shape {
        data_words: 0,
        pointers: 1,
        words: 2 + lookups_words + found.iter().map(value_words).sum::<usize>(),
    };
    reply.results_in_parts(shape, |parts| {
        let list = structs_pointer(0, lookups_words);
        parts.append((2 + lookups_words) * WORD_BYTES, |to| {
            append(to, &[list, struct_pointer(found.len(), 2, 1)]);
            // From the end of a lookup to its value.
            let mut offset = lookups_words;
            for found in &found {
                offset -= ITEM_WORDS;
                append(to, &lookup_words(found.as_ref(), offset));
                offset += value_words(found);
            }
        });
        for found in found.into_iter().flatten() {
            append_value(found.value, parts);
        }
    });
}

/// The results of `getPrefix`, whose parts are made before it is known whether there is place for them.
pub(super) struct PageResults {
    value_bytes: usize,
    parts: Prepared,
}

impl PageResults {
    /// Takes as many turns as it needs.
    pub(super) async fn prepare(page: Page) -> PageResults {
        let mut prepared = Prepared::default();
        let entries_words = page.entries.len() * ITEM_WORDS;
        // Whether there is more, a pointer to the list; its tag, the entries, their keys and values.
        let list = structs_pointer(0, entries_words);
        let tag = struct_pointer(page.entries.len(), 1, 2);
        let head = [u64::from(page.more), list, tag];
        prepared.parts().words(&head);
        // From the end of an entry to its key.
        let mut offset = entries_words;
        for (at, entries) in page.entries.chunks(ENTRIES_PER_TURN).enumerate() {
            if at > 0 {
                end_turn().await;
            }
            let mut parts = prepared.parts();
            parts.append(entries.len() * ITEM_WORDS * WORD_BYTES, |to| {
                for entry in entries {
                    offset -= ITEM_WORDS;
                    append(to, &entry_words(entry, offset));
                    offset += content_words(entry);
                }
            });
        }
        let (mut value_bytes, mut turn_ends) = (0, PREPARED_BYTES_PER_TURN);
        for entry in page.entries {
            value_bytes += entry.key.len() + entry.value.len();
            let mut parts = prepared.parts();
            parts.copy(&entry.key);
            append_value(entry.value, &mut parts);
            if prepared.bytes() >= turn_ends {
                turn_ends = prepared.bytes() + PREPARED_BYTES_PER_TURN;
                end_turn().await;
            }
        }
        PageResults {
            value_bytes,
            parts: prepared,
        }
    }

    /// Answers with them. Returns how many bytes they are.
    pub(super) fn reply(self, session: &Session, reply: Reply) -> usize {
        if let Err(error) = reserve(session, &reply, self.value_bytes) {
            reply.exception(&error);
            return 0;
        }
        let bytes = self.parts.bytes();
        let shape = Shape {
            data_words: 1,
            pointers: 1,
            words: bytes / WORD_BYTES,
        };
        reply.results_in_parts(shape, |parts| parts.prepared(self.parts));
        bytes
    }
}

/// Words of an entry's key and value.
fn content_words(entry: &Entry) -> usize {
    words_of(entry.key.len()) + words_of(entry.value.len())
}

/// An entry whose key begins `key_offset` words behind it, and its value behind that.
fn entry_words(entry: &Entry, key_offset: usize) -> [u64; ITEM_WORDS] {
    let value_offset = key_offset + words_of(entry.key.len());
    [
        entry.version,
        // Between this pointer and the end of the entry is the other one.
        bytes_pointer(key_offset + 1, entry.key.len()),
        bytes_pointer(value_offset, entry.value.len()),
    ]
}

pub(super) fn outcomes(reply: Reply, answers: Vec<Result<Outcome, ShardError>>) {
    let outcomes_words = answers.len() * ITEM_WORDS;
    let words = 2 + outcomes_words;
    let outcomes: Result<Vec<_>, _> = answers.iter().map(Result::as_ref).collect();
    // Why one was not written is text, which is left to `capnp`.
    if let Ok(outcomes) = outcomes {
        let shape = Shape {
            data_words: 0,
            pointers: 1,
            words,
        };
        let list = structs_pointer(0, outcomes_words);
        return reply.results(shape, |to| {
            append(to, &[list, struct_pointer(outcomes.len(), 2, 1)]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stays_where_it_is_unless_it_keeps_much_more_in_memory() {
        let received = |len: usize, capacity: usize| {
            let mut value = Vec::with_capacity(capacity);
            value.resize(len, 0);
            Value::Received {
                bytes: value,
                room: None,
            }
        };
        assert!(may_stay(&received(100_000, 100_000)));
        assert!(may_stay(&received(100_000, 200_000)));
        assert!(!may_stay(&received(100_000, 200_001)));
    }
}

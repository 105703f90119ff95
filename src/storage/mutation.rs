//! A write as its caller sees it: what it asks for, when it takes effect, what becomes of it.
//!
//! Does not: know how it is written (`pending`, `writer`) or who waits (the waiter is the caller's own).

use crate::storage::format::RecordKind;
use crate::storage::pending::Outcome;
use crate::storage::writer::Durable;

/// When a write takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    None,
    /// If the key is absent.
    IfAbsent,
    /// If the key is present.
    IfPresent,
    /// If the key is present with exactly this version.
    IfVersion(u64),
}

/// What a mutation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// Gives the key this value.
    Set(&'a [u8]),
    /// Removes the key.
    Delete,
}

/// One set or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mutation<'a> {
    /// 1 to 65,535 bytes.
    pub key: &'a [u8],
    /// Set or delete.
    pub change: Change<'a>,
    /// Judged against the newest version of the key, durable or not; the answer waits for that version.
    pub condition: Condition,
}

/// Why a write was not accepted. Nothing of it was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The disk is full.
    #[error("the disk is full: nothing was written; free space, reads and deletes go on")]
    OutOfSpace,
    /// Too much waits for the disk already.
    #[error("{pending} bytes wait for the disk, the limit is {limit}: try again later")]
    Overloaded {
        /// Bytes that wait.
        pending: usize,
        /// The limit.
        limit: usize,
    },
    /// An earlier write failed.
    #[error("the log is closed after a failed write")]
    Poisoned,
}

/// What became of a submitted mutation. `W` is what the caller waits with.
#[derive(Debug)]
pub enum Submitted<W> {
    /// Accepted; a [`Completion`] with the waiter will come from `commit`, or an answer from `let_in`.
    Pending,
    /// Answered from what is durable already: nothing had to be written.
    Answered(Outcome, W),
    /// Not accepted.
    Rejected(SubmitError, W),
}

/// The end of an accepted mutation.
#[derive(Debug)]
pub struct Completion<W> {
    /// What the caller gave to `submit`.
    pub waiter: W,
    /// The outcome, durable; or why nothing of it was written.
    pub result: Result<Durable<Outcome>, SubmitError>,
}

impl Mutation<'_> {
    /// The outcome, if nothing has to be written for it. `current`: the newest version of the key, durable or not.
    pub(super) fn without_writing(&self, current: Option<u64>) -> Option<Outcome> {
        match (self.condition, self.change, current) {
            (Condition::IfAbsent, _, Some(_)) | (Condition::IfPresent, _, None) => {
                Some(Outcome::Refused { current })
            }
            (Condition::IfVersion(version), _, _) if current != Some(version) => {
                Some(Outcome::Refused { current })
            }
            (_, Change::Delete, None) => Some(Outcome::Written {
                version: 0,
                existed: false,
            }),
            _ => None,
        }
    }
}

impl<'a> Change<'a> {
    /// The kind of its record, and the value in it.
    pub(super) fn parts(self) -> (RecordKind, &'a [u8]) {
        match self {
            Change::Set(value) => (RecordKind::Set, value),
            Change::Delete => (RecordKind::Delete, &[]),
        }
    }
}

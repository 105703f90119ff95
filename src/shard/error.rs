//! Why a shard did not do what it was asked, by what the client can do about it.

use crate::storage::{StorageError, SubmitError};

/// An error of the shard layer. Nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// A budget is used up; try again later.
    #[error("{0}")]
    Overloaded(String),
    /// The disk is full; reads and deletes go on.
    #[error("{0}")]
    OutOfSpace(String),
    /// What the disk returned does not verify, or it returned nothing.
    #[error("{0}")]
    Corrupt(String),
    /// The server is stopping.
    #[error("{0}")]
    ShuttingDown(String),
    /// The answer would be larger than any answer may be.
    #[error(
        "the answer has {bytes} bytes of keys and values, the limit is {limit}: ask for fewer keys"
    )]
    AnswerTooLarge {
        /// Bytes of the answer, or of the part of it that went over the limit.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

impl ShardError {
    pub(crate) fn shutting_down() -> ShardError {
        ShardError::ShuttingDown("the server is stopping: reconnect later".into())
    }
}

impl From<SubmitError> for ShardError {
    fn from(error: SubmitError) -> ShardError {
        match error {
            SubmitError::OutOfSpace => ShardError::OutOfSpace(error.to_string()),
            SubmitError::Overloaded { .. } => ShardError::Overloaded(error.to_string()),
            SubmitError::Poisoned => ShardError::shutting_down(),
        }
    }
}

/// An error while reading; errors while writing end the process.
impl From<StorageError> for ShardError {
    fn from(error: StorageError) -> ShardError {
        ShardError::Corrupt(error.to_string())
    }
}

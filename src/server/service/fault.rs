//! What a shard refuses, as the exceptions that the schema promises.

use capnp::Error;

use crate::proto::ErrorWord;
use crate::shard::ShardError;

/// The word of the error contract that a refusal has.
pub(super) fn word(error: &ShardError) -> ErrorWord {
    match error {
        ShardError::Overloaded(_) => ErrorWord::Overloaded,
        ShardError::OutOfSpace(_) => ErrorWord::OutOfSpace,
        ShardError::Corrupt(_) => ErrorWord::Corrupt,
        ShardError::ShuttingDown(_) => ErrorWord::ShuttingDown,
        ShardError::AnswerTooLarge { .. } => ErrorWord::InvalidArgument,
    }
}

/// The exception of a refusal.
pub(super) fn refused(error: ShardError) -> Error {
    word(&error).error(error)
}

#[cfg(test)]
mod tests {
    use capnp::ErrorKind;

    use super::*;

    #[test]
    fn every_refusal_has_its_word_and_type() {
        for (error, reason, kind) in [
            (
                ShardError::Overloaded("full".into()),
                "overloaded: full",
                ErrorKind::Overloaded,
            ),
            (
                ShardError::OutOfSpace("no room".into()),
                "outOfSpace: no room",
                ErrorKind::Failed,
            ),
            (
                ShardError::Corrupt("bad".into()),
                "corrupt: bad",
                ErrorKind::Failed,
            ),
            (
                ShardError::ShuttingDown("bye".into()),
                "shuttingDown: bye",
                ErrorKind::Disconnected,
            ),
        ] {
            let error = refused(error);
            assert_eq!((error.extra.as_str(), error.kind), (reason, kind));
        }
    }
}

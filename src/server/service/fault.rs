//! What a shard refuses, as the exceptions that the schema promises.

use capnp::Error;

use crate::limits;
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

/// The exception of a call whose sink raised one: as it is, unless its reason is as long as a client that means harm can
/// make it. The reason is kept until the client has sent `Finish`.
pub(super) fn of_sink(mut error: Error) -> Error {
    if let Some((end, _)) = error
        .extra
        .char_indices()
        .nth(limits::SINK_REASON_CHARS_MAX)
    {
        error.extra.truncate(end);
        error.extra.shrink_to_fit();
    }
    error
}

#[cfg(test)]
mod tests {
    use capnp::ErrorKind;

    use super::*;

    #[test]
    fn what_a_sink_says_is_cut_where_it_is_long() {
        let said = |reason: String| of_sink(Error::failed(reason)).extra;
        assert_eq!(said("the sink is full".into()), "the sink is full");
        let longest = "ö".repeat(limits::SINK_REASON_CHARS_MAX);
        assert_eq!(said(longest.clone()), longest);
        assert_eq!(said(longest.clone() + "x"), longest);
    }

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

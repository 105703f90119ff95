//! The one error of the client, told apart by what the caller can do about it.

use std::io;

use crate::proto::ErrorWord;

/// Why an operation has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The call can never succeed as it is; nothing was done.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// A budget of the server is used up; nothing was done. Try later.
    #[error("the server is overloaded: {0}")]
    Overloaded(String),
    /// The server's disk is full; nothing was written. Reads go on.
    #[error("the server is out of space: {0}")]
    OutOfSpace(String),
    /// The server is stopping. Connect again.
    #[error("the server is shutting down: {0}")]
    ShuttingDown(String),
    /// What the server's disk returned does not verify.
    #[error("the server found corruption: {0}")]
    Corrupt(String),
    /// The connection broke before the answer came. A write may be there, whole, or not: read before you repeat it, or
    /// repeat it with [`Condition::IfVersion`](super::Condition::IfVersion).
    #[error("disconnected: {0}")]
    Disconnected(String),
    /// No connection could be made.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The consumer of a stream refused a batch, with this reason; the stream is stopped.
    #[error("stopped by the consumer: {0}")]
    Stopped(String),
    /// The peer does not speak as this client does: another version, or no orlop at all.
    #[error("unexpected answer: {0}")]
    Protocol(String),
}

impl ClientError {
    /// An exception that came as the answer of a call. `closed`: the connection has ended, so that the exception may be
    /// the connection's and not the call's.
    pub(super) fn of_exception(error: &capnp::Error, closed: bool) -> Self {
        if closed {
            return Self::Disconnected(plain_reason(error));
        }
        match error.kind {
            capnp::ErrorKind::Disconnected if ErrorWord::parse(&error.extra).is_none() => {
                Self::Disconnected(plain_reason(error))
            }
            capnp::ErrorKind::Overloaded if ErrorWord::parse(&error.extra).is_none() => {
                Self::Overloaded(plain_reason(error))
            }
            _ => {
                Self::of_reason(&error.extra).unwrap_or_else(|| Self::Protocol(plain_reason(error)))
            }
        }
    }

    /// The same error for another part of the call that it ended. Of what the system said, kind and words are kept.
    #[cfg(feature = "tokio")]
    pub(super) fn again(&self) -> Self {
        match self {
            Self::InvalidArgument(reason) => Self::InvalidArgument(reason.clone()),
            Self::Overloaded(reason) => Self::Overloaded(reason.clone()),
            Self::OutOfSpace(reason) => Self::OutOfSpace(reason.clone()),
            Self::ShuttingDown(reason) => Self::ShuttingDown(reason.clone()),
            Self::Corrupt(reason) => Self::Corrupt(reason.clone()),
            Self::Disconnected(reason) => Self::Disconnected(reason.clone()),
            Self::Connect { address, source } => Self::Connect {
                address: address.clone(),
                source: io::Error::new(source.kind(), source.to_string()),
            },
            Self::Stopped(reason) => Self::Stopped(reason.clone()),
            Self::Protocol(reason) => Self::Protocol(reason.clone()),
        }
    }

    /// A reason that begins with a code word.
    pub(super) fn of_reason(reason: &str) -> Option<Self> {
        let (word, sentence) = ErrorWord::parse(reason)?;
        let sentence = sentence.to_string();
        Some(match word {
            ErrorWord::InvalidArgument => Self::InvalidArgument(sentence),
            ErrorWord::Overloaded => Self::Overloaded(sentence),
            ErrorWord::OutOfSpace => Self::OutOfSpace(sentence),
            ErrorWord::ShuttingDown => Self::ShuttingDown(sentence),
            ErrorWord::Corrupt => Self::Corrupt(sentence),
        })
    }
}

/// An answer that cannot be read as the schema says.
pub(super) fn malformed(error: capnp::Error) -> ClientError {
    ClientError::Protocol(plain_reason(&error))
}

fn plain_reason(error: &capnp::Error) -> String {
    if error.extra.is_empty() {
        error.kind.to_string()
    } else {
        error.extra.clone()
    }
}

impl From<capnp::NotInSchema> for ClientError {
    fn from(unknown: capnp::NotInSchema) -> Self {
        Self::Protocol(format!("{unknown} Is the server newer than this client?"))
    }
}

//! The stable code words that begin the reason of every exception which the server raises.
//!
//! The server makes exceptions with [`ErrorWord::error`]; the client takes them apart with [`ErrorWord::parse`]. Adding a
//! word is compatible, changing one is not: clients in any language compare the text. The manual is at the head of
//! `schema/orlop.capnp`.

use std::fmt;

use capnp::ErrorKind;

/// What `capnp_rpc` puts before the reason of an exception that came over the wire.
const REMOTE_PREFIX: &str = "remote exception: ";

/// Why the server refused a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorWord {
    /// The call can never succeed as it is.
    InvalidArgument,
    /// A budget is used up; nothing was done; try later.
    Overloaded,
    /// The disk is full; nothing was written; reads go on.
    OutOfSpace,
    /// The server is stopping; reconnect.
    ShuttingDown,
    /// What the disk returned does not verify.
    Corrupt,
}

impl ErrorWord {
    /// Every word.
    pub const ALL: [Self; 5] = [
        Self::InvalidArgument,
        Self::Overloaded,
        Self::OutOfSpace,
        Self::ShuttingDown,
        Self::Corrupt,
    ];

    /// The word as it is on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalidArgument",
            Self::Overloaded => "overloaded",
            Self::OutOfSpace => "outOfSpace",
            Self::ShuttingDown => "shuttingDown",
            Self::Corrupt => "corrupt",
        }
    }

    /// The type of exception that carries the word.
    pub const fn kind(self) -> ErrorKind {
        match self {
            Self::InvalidArgument | Self::OutOfSpace | Self::Corrupt => ErrorKind::Failed,
            Self::Overloaded => ErrorKind::Overloaded,
            Self::ShuttingDown => ErrorKind::Disconnected,
        }
    }

    /// The reason as the wire has it: the word, a colon and the sentence.
    pub fn reason(self, sentence: impl fmt::Display) -> String {
        format!("{self}: {sentence}")
    }

    /// An exception with this word.
    pub fn error(self, sentence: impl fmt::Display) -> capnp::Error {
        capnp::Error {
            kind: self.kind(),
            extra: self.reason(sentence),
        }
    }

    /// Takes a reason apart, as it was raised here or as it came over the wire.
    pub fn parse(reason: &str) -> Option<(Self, &str)> {
        let reason = reason.strip_prefix(REMOTE_PREFIX).unwrap_or(reason);
        let (word, sentence) = reason.split_once(':')?;
        let word = Self::ALL.into_iter().find(|known| known.as_str() == word)?;
        Some((word, sentence.trim_start()))
    }
}

impl fmt::Display for ErrorWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_survives_the_wire() {
        for word in ErrorWord::ALL {
            let error = word.error("12 bytes: the limit is 11");
            assert_eq!(error.kind, word.kind());
            assert_eq!(
                ErrorWord::parse(&error.extra),
                Some((word, "12 bytes: the limit is 11"))
            );
            let remote = format!("{REMOTE_PREFIX}{}", error.extra);
            assert_eq!(
                ErrorWord::parse(&remote),
                Some((word, "12 bytes: the limit is 11"))
            );
        }
    }

    #[test]
    fn other_reasons_have_no_word() {
        for reason in [
            "",
            "overloaded",
            "overloadedly: no",
            "Peer disconnected.",
            "remote exception: : x",
        ] {
            assert_eq!(ErrorWord::parse(reason), None, "{reason}");
        }
    }

    #[test]
    fn the_schema_lists_every_word_with_its_type() {
        let manual = include_str!("../../schema/orlop.capnp");
        for word in ErrorWord::ALL {
            let line = manual
                .lines()
                .find(|line| line.starts_with(&format!("#   {word} ")))
                .unwrap_or_else(|| panic!("the manual has no line for {word}"));
            let kind = format!("(type {})", format!("{:?}", word.kind()).to_lowercase());
            assert!(line.ends_with(&kind), "{line}");
        }
    }
}

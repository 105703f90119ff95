//! What can go wrong in storage, by what the caller can do about it.

use std::io;

/// An error of the storage layer.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A file operation failed. While serving this is final: nothing is acknowledged after it.
    #[error("{action} {file}: {source}")]
    Io {
        /// What was being done, as the start of a sentence ("writing").
        action: &'static str,
        /// The file or directory.
        file: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no room for another segment.
    #[error(
        "no space for {file} ({bytes} bytes): free space on this file system or use a smaller --segment-size"
    )]
    Full {
        /// The file that could not be made.
        file: String,
        /// Its size.
        bytes: u64,
    },
    /// Bytes that were acknowledged do not verify. Nothing is repaired; the files are as they were found.
    #[error("corruption in {file} at offset {offset}: {what}")]
    Corrupt {
        /// The file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// What was expected and what was found.
        what: String,
    },
    /// The directory belongs to something else: another store, another format, another configuration.
    #[error("{0}")]
    Incompatible(String),
    /// Another process holds the directory.
    #[error(
        "{directory} is in use by another orlopd: stop it first, or use another --data directory"
    )]
    Locked {
        /// The data directory.
        directory: String,
    },
    /// An earlier write failed; the store refuses everything until it is opened anew.
    #[error("the log is closed after a failed write; restart the server, recovery needs nobody")]
    Poisoned,
}

impl StorageError {
    /// An error of the operating system; running out of space is told apart by the callers that can go on.
    pub(crate) fn io(
        action: &'static str,
        file: impl Into<String>,
        source: io::Error,
    ) -> StorageError {
        StorageError::Io {
            action,
            file: file.into(),
            source,
        }
    }

    /// Whether the cause is a full disk or quota.
    pub fn is_full(&self) -> bool {
        match self {
            StorageError::Full { .. } => true,
            StorageError::Io { source, .. } => {
                [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&source.kind())
            }
            _ => false,
        }
    }
}

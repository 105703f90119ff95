//! What an embedded engine has to do to stand behind the schema, and the two that do.
//!
//! A row is a key and the *stored* bytes: the version as eight bytes, little endian, then the value. What a snapshot shows
//! is committed; with `--sync always` that means durable, so no read ever shows a value that can still be lost. Beside
//! the rows an engine keeps one small *head*, which the server writes rarely.

mod fjall;
mod redb;

use std::fmt;
use std::ops::{Bound, Deref};
use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;

/// Bytes of the version before a value.
pub(super) const VERSION_BYTES: usize = 8;

/// An embedded engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineName {
    /// A copy-on-write B-tree in one file
    Redb,
    /// A log-structured merge tree with a journal
    Fjall,
}

/// When a commit is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sync {
    /// When fdatasync has returned: it survives a power cut
    Always,
    /// When the kernel has it: it survives the end of the process, not of the machine
    None,
}

/// An engine did not do what it was asked. Nothing is tried again: the state behind a failed sync is unknown.
#[derive(Debug)]
pub(super) struct EngineError {
    action: &'static str,
    source: Box<dyn std::error::Error + Send + std::marker::Sync>,
}

/// What is stored under one key.
pub(super) enum Stored<'a> {
    Redb(::redb::AccessGuard<'a, &'static [u8]>),
    Fjall(::fjall::UserValue),
}

/// The rows as one transaction sees and changes them, its own changes included.
pub(super) trait Rows {
    /// The version of a key, if it is present.
    fn version(&mut self, key: &[u8]) -> Result<Option<u64>, EngineError>;

    /// Replaces what is stored under a key, and says whether it was present.
    fn put(&mut self, key: &[u8], stored: Vec<u8>) -> Result<bool, EngineError>;

    /// Removes a key, and says whether it was present.
    fn remove(&mut self, key: &[u8]) -> Result<bool, EngineError>;
}

/// The changes of one transaction; true when there were any.
pub(super) type Changes<'a> = Box<dyn FnOnce(&mut dyn Rows) -> Result<bool, EngineError> + 'a>;

/// Committed rows.
pub(super) trait Snapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Stored<'_>>, EngineError>;

    /// Shows rows in the order of their keys until `each` returns false: key and stored bytes.
    fn scan(
        &self,
        from: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), EngineError>;
}

/// An open database. Committed by one thread, read by another.
pub(super) trait Engine: Send + std::marker::Sync {
    /// The head, if one was ever set.
    fn head(&self) -> Result<Option<Vec<u8>>, EngineError>;

    /// Replaces the head; committed like rows.
    fn set_head(&self, head: &[u8]) -> Result<(), EngineError>;

    /// What is committed now. An older snapshot may show less, never more.
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, EngineError>;

    /// Makes changes and returns when they are committed, all or none.
    fn commit(&self, changes: Changes<'_>) -> Result<(), EngineError>;
}

/// Opens or creates the database of this engine in an existing directory.
pub(super) fn open(
    name: EngineName,
    dir: &Path,
    cache_bytes: usize,
    sync: Sync,
) -> Result<Arc<dyn Engine>, EngineError> {
    Ok(match name {
        EngineName::Redb => Arc::new(redb::RedbEngine::open(dir, cache_bytes, sync)?),
        EngineName::Fjall => Arc::new(fjall::FjallEngine::open(dir, cache_bytes, sync)?),
    })
}

/// Takes stored bytes apart: version and value.
///
/// # Panics
/// When there is no version before the value: this server did not write it.
pub(super) fn split(stored: &[u8]) -> (u64, &[u8]) {
    let (version, value) = stored
        .split_first_chunk::<VERSION_BYTES>()
        .expect("every value was stored behind its version");
    (u64::from_le_bytes(*version), value)
}

/// Makes the bytes to store of a value, with room for the version.
pub(super) fn stored(value: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(VERSION_BYTES + value.len());
    stored.extend_from_slice(&[0; VERSION_BYTES]);
    stored.extend_from_slice(value);
    stored
}

impl EngineError {
    pub(super) fn new<E>(action: &'static str) -> impl FnOnce(E) -> EngineError
    where
        E: std::error::Error + Send + std::marker::Sync + 'static,
    {
        move |source| EngineError {
            action,
            source: Box::new(source),
        }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.action, self.source)
    }
}

impl Deref for Stored<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Stored::Redb(guard) => guard.value(),
            Stored::Fjall(value) => value,
        }
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineName::Redb => "redb",
            EngineName::Fjall => "fjall",
        })
    }
}

impl fmt::Display for Sync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sync::Always => "always",
            Sync::None => "none",
        })
    }
}

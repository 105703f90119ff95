//! Reads one record at its location, and verifies it.
//!
//! Guarantees: what it returns is the record of that key and version, whole; anything else is `Corrupt`.
//! Does not: cache, or know which record is the newest.

use std::ops::{Deref, Range};

use crate::storage::cache::CachedValue;
use crate::storage::disk::{BLOCK, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::Record;
use crate::storage::segment::Location;

/// Bytes of one read beside writes.
const PIECE_BYTES: u64 = 256 << 10;

/// A value, wherever its bytes are.
pub enum Value {
    /// In the cache.
    Cached(CachedValue),
    /// In a buffer of its own, as read from disk.
    Read(ReadValue),
}

/// A verified value inside the bytes that were read around it.
pub struct ReadValue {
    bytes: Box<dyn AsRef<[u8]>>,
    start: usize,
    len: usize,
}

impl Value {
    /// Memory that stays in use as long as this lives, in bytes: at least its length.
    pub fn kept_bytes(&self) -> usize {
        match self {
            Value::Cached(value) => value.kept_bytes(),
            Value::Read(value) => (*value.bytes).as_ref().len(),
        }
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Value::Cached(value) => value,
            Value::Read(value) => &(*value.bytes).as_ref()[value.start..value.start + value.len],
        }
    }
}

/// Reads the value of `key` with `version` at `location`.
///
/// # Errors
/// `Corrupt` when the bytes there are anything else, `Io` when they cannot be read.
pub(super) async fn read_value<F: DiskFile>(
    file: &F,
    file_name: &str,
    location: Location,
    key: &[u8],
    version: u64,
) -> Result<Value, StorageError> {
    let (bytes, skip) = read_around(file, file_name, location).await?;
    let record = record_in((bytes.as_ref(), skip), file_name, location, key, version)?;
    let (start, len) = (
        skip + record.bytes() - record.value.len(),
        record.value.len(),
    );
    Ok(Value::Read(ReadValue {
        bytes: Box::new(bytes),
        start,
        len,
    }))
}

/// Reads the blocks in which a record is, and says where in them it begins.
///
/// # Errors
/// `Io` when they cannot be read.
async fn read_around<F: DiskFile>(
    file: &F,
    file_name: &str,
    location: Location,
) -> Result<(F::Bytes, usize), StorageError> {
    let (blocks, skip) = blocks_of(location);
    let bytes = file
        .read_at(blocks.start, (blocks.end - blocks.start) as usize)
        .await
        .map_err(|source| StorageError::io("reading", file_name, source))?;
    Ok((bytes, skip))
}

/// The same in pieces, so that a write which is issued meanwhile is not behind much.
///
/// # Errors
/// `Io` when they cannot be read.
pub(super) async fn read_beside_writes<F: DiskFile>(
    file: &F,
    file_name: &str,
    location: Location,
) -> Result<(Vec<u8>, usize), StorageError> {
    let (blocks, skip) = blocks_of(location);
    let mut bytes = Vec::with_capacity((blocks.end - blocks.start) as usize);
    let mut offset = blocks.start;
    while offset < blocks.end {
        let piece = (blocks.end - offset).min(PIECE_BYTES) as usize;
        let read = file
            .read_at(offset, piece)
            .await
            .map_err(|source| StorageError::io("reading", file_name, source))?;
        bytes.extend_from_slice(read.as_ref());
        if read.as_ref().len() < piece {
            break;
        }
        offset += piece as u64;
    }
    Ok((bytes, skip))
}

/// The blocks in which a record is, in bytes of the file, and where in them it begins.
fn blocks_of(location: Location) -> (Range<u64>, usize) {
    let offset = u64::from(location.offset);
    let first = offset - offset % BLOCK as u64;
    let end = (offset + u64::from(location.bytes)).next_multiple_of(BLOCK as u64);
    (first..end, (offset - first) as usize)
}

/// The record of `key` with `version` in the blocks in which it is.
///
/// # Errors
/// `Corrupt` when something else is there.
pub(super) fn record_in<'a>(
    (around, skip): (&'a [u8], usize),
    file_name: &str,
    location: Location,
    key: &[u8],
    version: u64,
) -> Result<Record<'a>, StorageError> {
    let corrupt = |what| StorageError::Corrupt {
        file: file_name.to_owned(),
        offset: location.offset.into(),
        what,
    };
    let record = around
        .get(skip..)
        .ok_or_else(|| corrupt("the file ends before the record".into()))?;
    let record = Record::decode(record).map_err(corrupt)?;
    if record.key != key || record.version != version {
        return Err(corrupt(format!(
            "version {} of another key or version, expected {version}",
            record.version
        )));
    }
    // What a footer says is a promise of the file as well.
    if record.bytes() != location.bytes as usize {
        return Err(corrupt(format!(
            "a record of {} bytes, expected {}",
            record.bytes(),
            location.bytes
        )));
    }
    Ok(record)
}

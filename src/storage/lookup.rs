//! What a store knows of a key without asking the disk, and where to ask it for the rest.

use std::rc::Rc;

use crate::storage::format::record_bytes;
use crate::storage::reader::Value;
use crate::storage::segment::{Location, LogId};
use crate::storage::segments::Segments;

/// A value and its version.
pub struct Found {
    /// The value.
    pub value: Value,
    /// Its version.
    pub version: u64,
}

/// What a store knows of a key without asking the disk. `F` is the file of its `Disk`.
pub enum Lookup<F> {
    /// The key is absent.
    Absent,
    /// The value is in memory.
    Cached(Found),
    /// The value is on disk: pass this to [`Store::read`](crate::storage::Store::read).
    OnDisk(DiskRef<F>),
}

/// Where the value of a key is on disk. It stays there while this lives, whatever compaction does.
pub struct DiskRef<F> {
    pub(super) key: Box<[u8]>,
    pub(super) version: u64,
    pub(super) location: Location,
    pub(super) file: Rc<F>,
    /// The log and the number in the name of the file.
    pub(super) file_at: (LogId, u32),
}

impl<F> DiskRef<F> {
    pub(super) fn new(
        segments: &Segments<F>,
        key: &[u8],
        version: u64,
        location: Location,
    ) -> DiskRef<F> {
        let segment = segments.of(location);
        DiskRef {
            key: key.into(),
            version,
            location,
            file: Rc::clone(&segment.file),
            file_at: (segment.key.log, segment.file_number),
        }
    }

    /// Length of the value, in bytes.
    pub fn value_len(&self) -> usize {
        self.location.bytes as usize - record_bytes(self.key.len(), 0)
    }
}

//! What a store knows of a key without asking the disk, and where to ask it for the rest.

use std::rc::Rc;

use crate::storage::disk::Disk;
use crate::storage::error::StorageError;
use crate::storage::format::record_bytes;
use crate::storage::index::{Index, LOOKED_AHEAD};
use crate::storage::plant::{Plant, planted};
use crate::storage::reader::{Value, read_value};
use crate::storage::segment::{self, Location, LogId};
use crate::storage::segments::Segments;
use crate::storage::store::Store;

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

impl<D: Disk, W> Store<D, W> {
    /// The newest durable value of a key, as far as memory knows.
    pub fn get(&self, key: &[u8]) -> Lookup<D::File> {
        let mut index = self.index.borrow_mut();
        let hash = index.hash(key);
        self.look_up(&mut index, hash, key)
    }

    /// The same for each of several keys.
    pub fn get_many(&self, keys: &[&[u8]]) -> Vec<Lookup<D::File>> {
        let mut index = self.index.borrow_mut();
        let mut lookups = Vec::with_capacity(keys.len());
        for keys in keys.chunks(LOOKED_AHEAD) {
            let mut hashes = [0; LOOKED_AHEAD];
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = index.hash(key);
            }
            index.look_ahead(hashes.into_iter().take(keys.len()));
            let found = keys.iter().zip(hashes);
            lookups.extend(found.map(|(key, hash)| self.look_up(&mut index, hash, key)));
        }
        lookups
    }

    fn look_up(&self, index: &mut Index, hash: u64, key: &[u8]) -> Lookup<D::File> {
        if planted(Plant::ExposeEarly) && self.pending.borrow().is_going(hash, key) {
            return Lookup::Absent;
        }
        match index.get(hash, key) {
            None => Lookup::Absent,
            Some((version, _, Some(value))) => Lookup::Cached(Found {
                value: Value::Cached(value),
                version,
            }),
            Some((version, location, None)) => {
                let segments = self.segments.borrow();
                Lookup::OnDisk(DiskRef::new(&segments, key, version, location))
            }
        }
    }

    /// Reads a value that [`Store::get`] found on disk, verifies it and keeps it in the cache.
    ///
    /// # Errors
    /// `Corrupt` when what the disk returns does not verify, `Io` when it returns nothing.
    pub async fn read(&self, on_disk: DiskRef<D::File>) -> Result<Found, StorageError> {
        let DiskRef {
            key,
            version,
            location,
            file,
            file_at: (log, file_number),
        } = on_disk;
        let file_name = segment::name(log, file_number);
        let value = read_value(&*file, &file_name, location, &key, version).await?;
        self.index.borrow_mut().cache_value(&key, version, &value);
        Ok(Found { value, version })
    }
}

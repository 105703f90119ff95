//! The few file operations that storage needs, as a seam with three real implementations: [`dma`] (glommio, O_DIRECT,
//! production), [`read_only`] (for looking at a store that is not served) and [`sim`] (memory, seeded, faulty, for tests).
//!
//! Guarantees that every implementation gives, and nothing more:
//! - offsets, lengths and buffers are multiples of [`BLOCK`]; an implementation asserts it;
//! - a write to a file from [`Disk::open`] is durable when it returns, one from [`Disk::create`] only after
//!   [`DiskFile::sync`];
//! - a name that was created or removed is durable only after [`Disk::sync_directory`]; before it a crash may undo it
//!   (a removed file may come back);
//! - an error of [`Disk::sync_directory`] is told to every `Disk` of the directory that was open then, with its next
//!   sync: what one of them could not make durable none takes for durable;
//! - after an error nothing is known about what reached the disk; the caller stops, it does not retry.
//!
//! Does not: rename (a name never changes its meaning), append, know what the bytes mean.

pub mod dma;
pub mod read_only;
pub mod sim;

use std::io;
use std::path::Path;
use std::rc::Rc;

/// Unit of every offset, length and buffer, in bytes, whatever the device says of itself.
pub const BLOCK: usize = 4096;

/// One directory of files.
#[allow(
    async_fn_in_trait,
    reason = "storage is single-threaded: its futures need not be Send"
)]
pub trait Disk: 'static {
    /// An open file.
    type File: DiskFile;

    /// Creates an empty file that does not exist yet, to be filled and synced. Writes to it are not durable by
    /// themselves.
    async fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens an existing file so that each write is durable when it returns.
    async fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Names and lengths in bytes of all files, in no particular order.
    async fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// Removes a file that nobody has open.
    async fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes every earlier create and remove durable.
    async fn sync_directory(&self) -> io::Result<()>;

    /// A buffer of `len` bytes for [`DiskFile::write_at`]; its content is unspecified, like memory of an allocator.
    fn buffer(&self, len: usize) -> <Self::File as DiskFile>::Buffer;
}

/// Memory that a [`Disk`] can write from: aligned to [`BLOCK`].
pub trait DiskBuffer: AsRef<[u8]> + AsMut<[u8]> + 'static {
    /// Cuts the buffer to its first `len` bytes, for good.
    fn truncate(&mut self, len: usize);
}

/// An open file of a [`Disk`].
#[allow(
    async_fn_in_trait,
    reason = "storage is single-threaded: its futures need not be Send"
)]
pub trait DiskFile: 'static {
    /// Aligned memory to write from.
    type Buffer: DiskBuffer;
    /// The bytes that a read returned.
    type Bytes: AsRef<[u8]> + 'static;

    /// Writes all of `buffer` at `offset`, as one write, and returns how many bytes were written; fewer than the buffer
    /// holds is a failed write. Once polled it must be awaited to the end: dropping it leaves the outcome unknown.
    async fn write_at(&self, offset: u64, buffer: Rc<Self::Buffer>) -> io::Result<usize>;

    /// Reads `len` bytes at `offset`; fewer only where the file ends.
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Self::Bytes>;

    /// Makes every earlier write to this file durable, and its length.
    async fn sync(&self) -> io::Result<()>;

    /// Cuts the file to `len` bytes; durable after [`DiskFile::sync`].
    async fn truncate(&self, len: u64) -> io::Result<()>;

    /// Closes the file. Dropping it closes it too, at some later time.
    async fn close(self) -> io::Result<()>;
}

/// Names and lengths in bytes of the files of a directory. A name that is no text is none of ours.
pub(super) fn list_files(directory: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        match entry.metadata() {
            Ok(metadata) => files.push((name, metadata.len())),
            // Another shard has removed it meanwhile: it is none of the caller's.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

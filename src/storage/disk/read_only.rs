//! A [`Disk`] for looking at a directory without a runtime and without changing it: ordinary reads that are complete when
//! they return.
//!
//! Guarantees: nothing can be changed through it; what the kernel had in memory of a file is dropped before it is read,
//! so that reads come from the device. Does not: fit a server (a read blocks its thread).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BLOCK, Disk, DiskBuffer, DiskFile};

/// One directory, to read.
#[derive(Debug, Clone)]
pub struct ReadOnlyDisk {
    directory: PathBuf,
    read: Arc<AtomicU64>,
}

impl ReadOnlyDisk {
    /// The files of `directory`; `read` counts the bytes that were read of them.
    pub fn new(directory: &Path, read: Arc<AtomicU64>) -> ReadOnlyDisk {
        ReadOnlyDisk {
            directory: directory.to_owned(),
            read,
        }
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

/// An open file; see [`ReadOnlyDisk`].
pub struct ReadOnlyFile {
    file: File,
    read: Arc<AtomicU64>,
}

/// Memory for writes that are refused.
pub struct RefusedBuffer(Vec<u8>);

impl AsRef<[u8]> for RefusedBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for RefusedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl DiskBuffer for RefusedBuffer {
    fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }
}

impl Disk for ReadOnlyDisk {
    type File = ReadOnlyFile;

    async fn create(&self, _: &str) -> io::Result<ReadOnlyFile> {
        refused()
    }

    async fn open(&self, name: &str) -> io::Result<ReadOnlyFile> {
        let file = File::open(self.directory.join(name))?;
        // SAFETY: the call takes numbers only, and the descriptor is open. It is advice: what it returns is of no use.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        Ok(ReadOnlyFile {
            file,
            read: Arc::clone(&self.read),
        })
    }

    async fn list(&self) -> io::Result<Vec<(String, u64)>> {
        super::list_files(&self.directory)
    }

    async fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }

    async fn sync_directory(&self) -> io::Result<()> {
        refused()
    }

    fn buffer(&self, len: usize) -> RefusedBuffer {
        RefusedBuffer(vec![0; len])
    }
}

impl DiskFile for ReadOnlyFile {
    type Buffer = RefusedBuffer;
    type Bytes = Vec<u8>;

    async fn write_at(&self, _: u64, _: Rc<RefusedBuffer>) -> io::Result<usize> {
        refused()
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        assert!(
            offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK),
            "reads are whole blocks"
        );
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match self
                .file
                .read_at(&mut bytes[filled..], offset + filled as u64)
            {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        self.read.fetch_add(filled as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    async fn sync(&self) -> io::Result<()> {
        // Nothing was written through this.
        Ok(())
    }

    async fn truncate(&self, _: u64) -> io::Result<()> {
        refused()
    }

    async fn close(self) -> io::Result<()> {
        Ok(())
    }
}

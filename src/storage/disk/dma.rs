//! The production [`Disk`]: files of one directory, through glommio, O_DIRECT, on the executor that uses them.
//!
//! Guarantees: see [`super`]. Writes of a file from `open` carry O_DSYNC, so each is durable with its completion; names
//! are made durable by a true fsync of the directory, through one descriptor for the whole life: Linux tells each open
//! descriptor of an error of writing back, and one that is opened later of none that somebody has heard of.
//! Does not: use glommio's `read_at`, alignment or stream writers (they trust what the device says of itself, or
//! rewrite blocks).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use futures::future::try_join_all;
use glommio::io::{DmaBuffer, DmaFile, OpenOptions, ReadResult};

use super::{BLOCK, Disk, DiskBuffer, DiskFile};

/// Bytes of one read request; a larger one hung in the kernel with some drivers.
const READ_REQUEST_BYTES: usize = 512 << 10;

/// A huge page; a buffer for a write of so many bytes asks for them.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// One directory on a real file system.
#[derive(Debug, Clone)]
pub struct DmaDisk {
    directory: PathBuf,
    descriptor: Arc<File>,
}

impl DmaDisk {
    /// The disk for the files of `directory`. To be opened before anybody changes a name in it.
    ///
    /// # Errors
    /// Of the system, when the directory cannot be opened.
    pub fn open(directory: &Path) -> io::Result<DmaDisk> {
        Ok(DmaDisk {
            directory: directory.to_owned(),
            descriptor: Arc::new(File::open(directory)?),
        })
    }

    async fn blocking<T, F>(&self, work: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Path) -> io::Result<T> + Send + 'static,
    {
        let directory = self.directory.clone();
        glommio::executor()
            .spawn_blocking(move || work(&directory))
            .await
    }
}

/// An open file; see [`DmaDisk`].
pub struct DmaDiskFile {
    file: DmaFile,
}

/// Memory that the kernel can write from without a copy.
#[repr(transparent)]
pub struct Buffer(DmaBuffer);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.as_bytes_mut()
    }
}

impl DiskBuffer for Buffer {
    fn truncate(&mut self, len: usize) {
        self.0.trim_to_size(len);
    }
}

/// What a read returned.
pub enum Bytes {
    /// One request.
    One(ReadResult),
    /// Several requests, joined.
    Joined(Vec<u8>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Bytes::One(bytes) => bytes,
            Bytes::Joined(bytes) => bytes,
        }
    }
}

impl Disk for DmaDisk {
    type File = DmaDiskFile;

    async fn create(&self, name: &str) -> io::Result<DmaDiskFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Ok(DmaDiskFile {
            file: options.dma_open(self.directory.join(name)).await?,
        })
    }

    async fn open(&self, name: &str) -> io::Result<DmaDiskFile> {
        let mut options = OpenOptions::new();
        // Read and write together: the runtime probes a file that it opens by reading it.
        options.read(true).write(true).custom_flags(libc::O_DSYNC);
        Ok(DmaDiskFile {
            file: options.dma_open(self.directory.join(name)).await?,
        })
    }

    async fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.blocking(super::list_files).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let name = name.to_owned();
        self.blocking(move |directory| std::fs::remove_file(directory.join(name)))
            .await
    }

    async fn sync_directory(&self) -> io::Result<()> {
        let descriptor = Arc::clone(&self.descriptor);
        self.blocking(move |_| descriptor.sync_all()).await
    }

    fn buffer(&self, len: usize) -> Buffer {
        assert!(
            len > 0 && len.is_multiple_of(BLOCK),
            "buffers are whole blocks"
        );
        let buffer = glommio::allocate_dma_buffer_global(len);
        if len >= HUGE_PAGE_BYTES {
            ask_for_huge_pages(buffer.as_bytes());
        }
        Buffer(buffer)
    }
}

/// Asks the kernel to back memory with huge pages where it does not yet: a device is told of each page of a write by
/// itself, and writes 4 MiB of small pages in 1.7 of the time.
fn ask_for_huge_pages(bytes: &[u8]) {
    // Whole ones: what is around is memory of the same allocator, for which the advice is as good.
    let range = bytes.as_ptr_range();
    let start = range
        .start
        .map_addr(|address| address & !(HUGE_PAGE_BYTES - 1));
    let end = range.end.addr().next_multiple_of(HUGE_PAGE_BYTES);
    // SAFETY: the advice changes neither contents nor access, whatever is in the range.
    let advised = unsafe {
        libc::madvise(
            start.cast_mut().cast(),
            end - start.addr(),
            libc::MADV_HUGEPAGE,
        )
    };
    // Without huge pages it is slower.
    let _ignored = advised;
}

/// The same shared buffer, as glommio wants it.
fn share(buffer: Rc<Buffer>) -> Rc<DmaBuffer> {
    // SAFETY: `Buffer` is a transparent wrapper of `DmaBuffer`.
    unsafe { Rc::from_raw(Rc::into_raw(buffer).cast::<DmaBuffer>()) }
}

impl DiskFile for DmaDiskFile {
    type Buffer = Buffer;
    type Bytes = Bytes;

    async fn write_at(&self, offset: u64, buffer: Rc<Buffer>) -> io::Result<usize> {
        let len = (*buffer).as_ref().len();
        assert!(
            offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK),
            "writes are whole blocks"
        );
        Ok(self.file.write_rc_at(share(buffer), offset).await?)
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        assert!(
            offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK),
            "reads are whole blocks"
        );
        if len <= READ_REQUEST_BYTES {
            return Ok(Bytes::One(self.file.read_at_aligned(offset, len).await?));
        }
        let requests = (0..len).step_by(READ_REQUEST_BYTES).map(|start| {
            let bytes = READ_REQUEST_BYTES.min(len - start);
            self.file.read_at_aligned(offset + start as u64, bytes)
        });
        let parts = try_join_all(requests).await?;
        let mut joined = Vec::with_capacity(len);
        for part in parts {
            // A short part is the end of the file: what is behind it is empty.
            joined.extend_from_slice(&part);
        }
        Ok(Bytes::Joined(joined))
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(self.file.fdatasync().await?)
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        Ok(self.file.truncate(len).await?)
    }

    async fn close(self) -> io::Result<()> {
        Ok(self.file.close().await?)
    }
}

//! The files of one shard's log: their names, how one is made, used again and removed.
//!
//! Guarantees: a new spare is zero, synced and its name durable before anyone writes a record to it; a segment is never
//! extended in use (an overwrite of zeroed blocks costs one device write, an append three).
//! Does not: know which segments there are (`segments`), when one is wanted (`spares`) or what a damaged file means
//! (`recovery`).

use std::rc::Rc;

use crate::storage::disk::{BLOCK, Disk, DiskBuffer, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentState};
#[cfg(test)]
use crate::storage::plant;
use crate::storage::plant::{Plant, planted};

/// Bytes that one write of zeros covers while a spare is made: the flush of a commit waits for the one that is under way.
const ZERO_WRITE_BYTES: usize = 256 << 10;

/// Number of a log. A shard writes one; when the number of shards changes all of them begin new ones, whose numbers were
/// never used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub u32);

/// A segment of any log of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentKey {
    /// The log that it was written in.
    pub log: LogId,
    /// Its place in that log, from 1.
    pub number: u32,
}

/// A segment as one store calls it: its number, where it is of the store's own log; above [`SegmentId::FOREIGN`] where
/// it is of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// The first one that is of another log. A log of as many segments would have taken longer than disks last.
    pub const FOREIGN: SegmentId = SegmentId(1 << 31);

    /// Whether it is of another log.
    pub fn is_foreign(self) -> bool {
        self >= SegmentId::FOREIGN
    }
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The segment.
    pub segment: SegmentId,
    /// Offset of the record in it, in bytes.
    pub offset: u32,
    /// Length of the record, in bytes.
    pub bytes: u32,
}

/// Name of a segment file by its log and the number of the file, which is another than the number of the segment: a
/// file keeps its name when it is used again.
pub fn name(log: LogId, file: u32) -> String {
    format!("segment-{:04}-{file:010}.log", log.0)
}

/// Log and file number that a file name states; `None` for any other file.
pub fn parse_name(file: &str) -> Option<(LogId, u32)> {
    let (log, number) = file
        .strip_prefix("segment-")?
        .strip_suffix(".log")?
        .split_once('-')?;
    let parsed = (LogId(log.parse().ok()?), number.parse().ok()?);
    (name(parsed.0, parsed.1) == file).then_some(parsed)
}

/// A file that is ready to become a segment.
pub(super) struct SpareFile<F> {
    pub(super) file: Rc<F>,
    /// The number in its name.
    pub(super) number: u32,
    pub(super) bytes: u64,
    pub(super) epoch: u64,
    pub(super) recycled: bool,
}

/// Writes the header block of an open segment; durable when it returns.
pub(super) async fn write_header<D: Disk>(
    disk: &D,
    file: &D::File,
    file_name: &str,
    header: &SegmentHeader,
) -> Result<(), StorageError> {
    let mut block = disk.buffer(SEGMENT_HEADER_BYTES);
    header.encode(block.as_mut());
    write_whole(file, file_name, 0, Rc::new(block)).await
}

/// One write, of which every byte must have arrived.
pub(super) async fn write_whole<F: DiskFile>(
    file: &F,
    file_name: &str,
    offset: u64,
    buffer: Rc<F::Buffer>,
) -> Result<(), StorageError> {
    let expected = (*buffer).as_ref().len();
    assert!(
        offset.is_multiple_of(BLOCK as u64) && expected.is_multiple_of(BLOCK),
        "writes are whole blocks"
    );
    let written = file
        .write_at(offset, buffer)
        .await
        .map_err(|source| StorageError::io("writing", file_name, source))?;
    if written == expected || planted(Plant::IgnoreShortWrite) {
        return Ok(());
    }
    let what = format!("{written} of {expected} bytes were written at offset {offset}");
    Err(StorageError::io(
        "writing",
        file_name,
        std::io::Error::new(std::io::ErrorKind::WriteZero, what),
    ))
}

/// Makes a segment that is ready for use: zeros in real blocks, then the header of a spare, then its name durable. A
/// file that a crash left half-made has zeros where its header will be, and is removed by recovery.
///
/// # Errors
/// `Full` when there is no room; what was made of it is gone again. `Io` otherwise.
pub(super) async fn make_spare<D: Disk>(
    disk: &D,
    header: &SegmentHeader,
) -> Result<SpareFile<D::File>, StorageError> {
    assert_eq!(
        header.state,
        SegmentState::Spare,
        "a new segment starts as a spare"
    );
    let file_name = name(header.log, header.file);
    match fill_spare(disk, &file_name, header).await {
        Ok(file) => Ok(spare(Rc::new(file), header)),
        // The system writes what fits and complains only about the next byte: a short write means the same here.
        Err(error) if error.is_full() || is_short(&error) => {
            remove(disk, &file_name).await?;
            Err(StorageError::Full {
                file: file_name,
                bytes: header.segment_bytes,
            })
        }
        Err(error) => Err(error),
    }
}

/// Makes a spare of a file whose segment is retired. All that a header says is in its first sector, so that a crash
/// leaves the old one or the new one.
pub(super) async fn recycle<D: Disk>(
    disk: &D,
    file: Rc<D::File>,
    header: &SegmentHeader,
) -> Result<SpareFile<D::File>, StorageError> {
    write_header(disk, &file, &name(header.log, header.file), header).await?;
    Ok(spare(file, header))
}

fn spare<F>(file: Rc<F>, header: &SegmentHeader) -> SpareFile<F> {
    SpareFile {
        file,
        number: header.file,
        bytes: header.segment_bytes,
        epoch: header.epoch,
        recycled: header.recycled,
    }
}

fn is_short(error: &StorageError) -> bool {
    matches!(error, StorageError::Io { source, .. } if source.kind() == std::io::ErrorKind::WriteZero)
}

/// Leaves the file closed when it fails, so that it can be removed and its room comes back.
async fn fill_spare<D: Disk>(
    disk: &D,
    file_name: &str,
    header: &SegmentHeader,
) -> Result<D::File, StorageError> {
    let io = |action| move |source| StorageError::io(action, file_name, source);
    let file = disk.create(file_name).await.map_err(io("creating"))?;
    let zeroed = zero(disk, &file, file_name, header.segment_bytes).await;
    file.close().await.map_err(io("closing"))?;
    zeroed?;
    #[cfg(test)]
    plant::first_try(disk.sync_directory()).await;
    if !planted(Plant::SkipDirectorySync) {
        sync_names(disk, file_name).await?;
    }
    let file = disk.open(file_name).await.map_err(io("opening"))?;
    match write_header(disk, &file, file_name, header).await {
        Ok(()) => Ok(file),
        Err(error) => {
            file.close().await.map_err(io("closing"))?;
            Err(error)
        }
    }
}

/// Fills a new file with zeros and makes them durable.
async fn zero<D: Disk>(
    disk: &D,
    file: &D::File,
    file_name: &str,
    bytes: u64,
) -> Result<(), StorageError> {
    let mut offset = 0;
    let mut zeros: Option<Rc<<D::File as DiskFile>::Buffer>> = None;
    while offset < bytes {
        let len = (bytes - offset).min(ZERO_WRITE_BYTES as u64);
        let buffer = match zeros.take() {
            Some(buffer) if (*buffer).as_ref().len() as u64 == len => buffer,
            _ => {
                let mut buffer = disk.buffer(len as usize);
                buffer.as_mut().fill(0);
                Rc::new(buffer)
            }
        };
        write_whole(file, file_name, offset, Rc::clone(&buffer)).await?;
        zeros = Some(buffer);
        offset += len;
    }
    #[cfg(test)]
    plant::first_try(file.sync()).await;
    if planted(Plant::SkipFileSync) {
        return Ok(());
    }
    file.sync()
        .await
        .map_err(|source| StorageError::io("syncing", file_name, source))
}

/// Removes a file that nobody has open, durably. That there is none is as good.
pub(super) async fn remove<D: Disk>(disk: &D, file_name: &str) -> Result<(), StorageError> {
    match disk.remove(file_name).await {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(StorageError::io("removing", file_name, source));
        }
        _ => {}
    }
    sync_names(disk, file_name).await
}

/// Makes the name of a file, or that it is gone, durable. An error is final even if the system calls it a full disk: it
/// may be about any name of the directory, also about one that another shard relies on.
async fn sync_names<D: Disk>(disk: &D, file_name: &str) -> Result<(), StorageError> {
    let final_error = |source: std::io::Error| {
        let source = std::io::Error::other(source);
        StorageError::io("syncing the directory of", file_name, source)
    };
    disk.sync_directory().await.map_err(final_error)
}

/// Cuts a block-aligned buffer to the bytes that a frame fills.
pub(super) fn cut<B: DiskBuffer>(buffer: &mut B, bytes: usize) {
    assert!(bytes.is_multiple_of(BLOCK), "frames are whole blocks");
    buffer.truncate(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_nothing_else_passes_for_one() {
        assert_eq!(name(LogId(3), 12), "segment-0003-0000000012.log");
        assert_eq!(name(LogId(70_000), 1), "segment-70000-0000000001.log");
        assert_eq!(
            parse_name("segment-0003-0000000012.log"),
            Some((LogId(3), 12))
        );
        for other in [
            "manifest",
            "segment-3-12.log",
            "segment-0003-0000000012.log~",
            "segment-0003-00000000123.log",
        ] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}

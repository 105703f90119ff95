//! The files of one shard's log: their names, how a spare is made, and which bytes of each are live.
//!
//! Owns: the table of segments with their open files and byte counts.
//! Guarantees: a spare is zero, synced and its name durable before anyone writes a record to it; a segment is never
//! extended in use (an overwrite of zeroed blocks costs one device write, an append three).
//! Does not: decide when to rotate (`writer`) or what a damaged file means (`recovery`).

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::storage::disk::{BLOCK, Disk, DiskBuffer, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentState};

/// Bytes that one write of zeros covers while a spare is made.
const ZERO_WRITE_BYTES: usize = 1 << 20;

/// Place of a segment in its shard's log, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

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

/// File name of a segment.
pub fn name(shard: u16, number: u32) -> String {
    format!("segment-{shard:04}-{number:010}.log")
}

/// Shard and number that a file name states; `None` for any other file.
pub fn parse_name(file: &str) -> Option<(u16, u32)> {
    let (shard, number) = file
        .strip_prefix("segment-")?
        .strip_suffix(".log")?
        .split_once('-')?;
    let parsed = (shard.parse().ok()?, number.parse().ok()?);
    (name(parsed.0, parsed.1) == file).then_some(parsed)
}

/// One segment that is part of the log.
pub(super) struct Segment<F> {
    pub(super) file: Rc<F>,
    /// Length of the file, in bytes.
    pub(super) allocated_bytes: u64,
    /// Bytes from its start that are part of the log.
    pub(super) used_bytes: u64,
    /// Bytes of records that are the newest of a present key.
    pub(super) live_bytes: u64,
}

/// All segments of the log of one shard.
pub(super) struct Segments<F> {
    table: BTreeMap<SegmentId, Segment<F>>,
}

impl<F> Segments<F> {
    pub(super) fn new() -> Self {
        Segments {
            table: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, id: SegmentId, segment: Segment<F>) {
        let before = self.table.insert(id, segment);
        assert!(before.is_none(), "segment {} is added once", id.0);
    }

    fn at(&mut self, id: SegmentId) -> &mut Segment<F> {
        self.table
            .get_mut(&id)
            .expect("a segment that the log refers to is in the table")
    }

    pub(super) fn file(&self, id: SegmentId) -> Rc<F> {
        Rc::clone(
            &self
                .table
                .get(&id)
                .expect("a segment that the log refers to is in the table")
                .file,
        )
    }

    pub(super) fn set_used(&mut self, id: SegmentId, used_bytes: u64) {
        let segment = self.at(id);
        assert!(
            used_bytes >= segment.used_bytes && used_bytes <= segment.allocated_bytes,
            "a segment only fills"
        );
        segment.used_bytes = used_bytes;
    }

    pub(super) fn set_allocated(&mut self, id: SegmentId, allocated_bytes: u64) {
        self.at(id).allocated_bytes = allocated_bytes;
    }

    pub(super) fn record_lives(&mut self, location: Location) {
        self.at(location.segment).live_bytes += u64::from(location.bytes);
    }

    pub(super) fn record_dies(&mut self, location: Location) {
        let segment = self.at(location.segment);
        segment.live_bytes = segment
            .live_bytes
            .checked_sub(u64::from(location.bytes))
            .expect("a record dies once, after it lived");
    }

    pub(super) fn newest_first(&self) -> Vec<SegmentId> {
        self.table.keys().rev().copied().collect()
    }

    pub(super) fn used_bytes(&self, id: SegmentId) -> u64 {
        self.table.get(&id).map_or(0, |segment| segment.used_bytes)
    }

    pub(super) fn count(&self) -> usize {
        self.table.len()
    }

    /// Live, used and allocated bytes of all segments.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        self.table
            .values()
            .fold((0, 0, 0), |(live, used, allocated), segment| {
                (
                    live + segment.live_bytes,
                    used + segment.used_bytes,
                    allocated + segment.allocated_bytes,
                )
            })
    }
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
    if written == expected {
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
/// file that a crash left half-made has no valid header and is removed by recovery.
///
/// # Errors
/// `Full` when there is no room; what was made of it is gone again. `Io` otherwise.
pub(super) async fn make_spare<D: Disk>(
    disk: &D,
    header: &SegmentHeader,
) -> Result<Rc<D::File>, StorageError> {
    assert_eq!(
        header.state,
        SegmentState::Spare,
        "a new segment starts as a spare"
    );
    let file_name = name(header.shard, header.number);
    match fill_spare(disk, &file_name, header).await {
        Ok(file) => Ok(Rc::new(file)),
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
    disk.sync_directory()
        .await
        .map_err(io("syncing the directory of"))?;
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
    disk.sync_directory()
        .await
        .map_err(|source| StorageError::io("syncing the directory of", file_name, source))
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
        assert_eq!(name(3, 12), "segment-0003-0000000012.log");
        assert_eq!(parse_name("segment-0003-0000000012.log"), Some((3, 12)));
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

//! Footers on disk: written behind a segment after it was sealed, read by a start instead of its frames.
//!
//! Guarantees: a footer is written only when the segment behind is durable, so that one never stands where a log ends;
//! one that cannot be read whole is as good as none.
//! Does not: know what is in one (`footer`).

use std::rc::Rc;

use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::footer::announced_bytes;
use crate::storage::segment::write_whole;
use crate::storage::writer::Unindexed;

/// Bytes of one write of a footer: commits share the device with it.
const WRITE_BYTES: usize = 256 << 10;

impl<F> Unindexed<F> {
    /// Where the footer ends, if there is to be one and the file reaches so far.
    pub(super) fn footer_end(&self) -> Option<u64> {
        let end = self.end + self.footer.frame_bytes()? as u64;
        (end <= self.bytes).then_some(end)
    }
}

/// Writes the footer of a sealed segment; returns its bytes.
pub(super) async fn write_footer<D: Disk>(
    disk: &D,
    sealed: &Unindexed<D::File>,
) -> Result<u64, StorageError> {
    let footer_end = sealed.footer_end().expect("the caller asked for that");
    let mut bytes = vec![0; (footer_end - sealed.end) as usize];
    sealed
        .footer
        .encode(&mut bytes, sealed.epoch, sealed.end, sealed.last_version);
    let mut offset = sealed.end;
    for part in bytes.chunks(WRITE_BYTES) {
        let mut buffer = disk.buffer(part.len());
        buffer.as_mut().copy_from_slice(part);
        write_whole(&*sealed.file, &sealed.file_name, offset, Rc::new(buffer)).await?;
        offset += part.len() as u64;
    }
    Ok(footer_end - sealed.end)
}

/// A file, its name and its length in bytes.
pub(super) type FileAt<'a, F> = (&'a F, &'a str, u64);

/// The bytes that stand where the footer of a segment of this epoch that ends at `end` does, if they pass for one.
///
/// # Errors
/// `Io` when the disk does not give them.
pub(super) async fn find_footer<F: DiskFile>(
    (file, file_name, file_bytes): FileAt<'_, F>,
    epoch: u64,
    end: u64,
) -> Result<Option<Vec<u8>>, StorageError> {
    let io = |source| StorageError::io("reading", file_name, source);
    if !end.is_multiple_of(BLOCK as u64) || end + BLOCK as u64 > file_bytes {
        return Ok(None);
    }
    let block = file.read_at(end, BLOCK).await.map_err(io)?;
    let mut frame = block.as_ref().to_vec();
    let Some(bytes) = announced_bytes(&frame, epoch, end) else {
        return Ok(None);
    };
    if end + bytes as u64 > file_bytes {
        return Ok(None);
    }
    if bytes > BLOCK {
        let rest = file.read_at(end + BLOCK as u64, bytes - BLOCK).await;
        frame.extend_from_slice(rest.map_err(io)?.as_ref());
    }
    Ok((frame.len() == bytes).then_some(frame))
}

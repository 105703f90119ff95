//! Reads a segment from front to back, in large reads with several ahead.
//!
//! Owns: the window of bytes that are read and not consumed.
//! Guarantees: memory is the window plus the reads ahead; a short file ends the window early, without an error.
//! Does not: interpret bytes, but for where a frame ends.

use std::rc::Rc;

use futures::future::LocalBoxFuture;
use futures::stream::{FuturesOrdered, StreamExt as _};

use crate::storage::disk::{BLOCK, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::FrameHeader;

/// How a file is read.
#[derive(Clone, Copy)]
struct Reads {
    /// Bytes of one.
    bytes: usize,
    /// So many are in flight.
    ahead: usize,
}

/// At the speed of the device.
const FAST: Reads = Reads {
    bytes: 512 << 10,
    ahead: 8,
};

/// So that a write which is issued meanwhile is not behind much: a commit waits for what is in the device's queue.
const BESIDE_WRITES: Reads = Reads {
    bytes: 256 << 10,
    ahead: 2,
};

type Read<B> = LocalBoxFuture<'static, std::io::Result<B>>;

/// A front-to-back reader of one file.
pub(super) struct Scanner<F: DiskFile> {
    file: Rc<F>,
    file_name: String,
    reads: Reads,
    /// Reading stops here, in bytes; a multiple of the block size.
    limit: u64,
    next_read: u64,
    ahead: FuturesOrdered<Read<F::Bytes>>,
    window: Vec<u8>,
    /// Bytes at the front of the window that are consumed already.
    consumed: usize,
    position: u64,
    ended: bool,
}

impl<F: DiskFile> Scanner<F> {
    /// Reads `file` from `from` up to `limit`, both multiples of the block size, as fast as it can.
    pub(super) fn new(file: Rc<F>, file_name: String, from: u64, limit: u64) -> Self {
        Self::with(FAST, file, file_name, from, limit)
    }

    /// The same, with less in flight: while others commit.
    pub(super) fn beside_writes(file: Rc<F>, file_name: String, from: u64, limit: u64) -> Self {
        Self::with(BESIDE_WRITES, file, file_name, from, limit)
    }

    fn with(reads: Reads, file: Rc<F>, file_name: String, from: u64, limit: u64) -> Self {
        assert!(
            from.is_multiple_of(BLOCK as u64) && limit.is_multiple_of(BLOCK as u64),
            "scans are whole blocks"
        );
        Scanner {
            file,
            file_name,
            reads,
            limit,
            next_read: from,
            ahead: FuturesOrdered::new(),
            window: Vec::new(),
            consumed: 0,
            position: from,
            ended: false,
        }
    }

    /// Offset of the first byte that is not consumed.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next `len` bytes, or fewer where the file or the limit ends.
    pub(super) async fn peek(&mut self, len: usize) -> Result<&[u8], StorageError> {
        while self.window.len() - self.consumed < len && !self.ended {
            while self.ahead.len() < self.reads.ahead && self.next_read < self.limit {
                let (file, offset) = (Rc::clone(&self.file), self.next_read);
                let bytes = (self.limit - offset).min(self.reads.bytes as u64) as usize;
                self.ahead
                    .push_back(Box::pin(async move { file.read_at(offset, bytes).await }));
                self.next_read += bytes as u64;
            }
            let Some(read) = self.ahead.next().await else {
                self.ended = true;
                break;
            };
            let bytes =
                read.map_err(|source| StorageError::io("reading", &self.file_name, source))?;
            self.window.drain(..std::mem::take(&mut self.consumed));
            self.window.extend_from_slice(bytes.as_ref());
            // Where a read is short the file has ended; what is ahead of it would be empty.
            self.ended = bytes.as_ref().len() < self.reads.bytes && self.window_end() < self.limit;
        }
        let rest = &self.window[self.consumed..];
        Ok(&rest[..len.min(rest.len())])
    }

    /// The frame at the position, in a part of the log that recovery accepted or this process wrote; its records are not
    /// looked at.
    ///
    /// # Errors
    /// `Corrupt` when there is none any more.
    pub(super) async fn frame(&mut self) -> Result<(FrameHeader, &[u8]), StorageError> {
        let Some(header) = FrameHeader::decode(self.peek(BLOCK).await?) else {
            return Err(self.corrupt(0, "no frame header that verifies".into()));
        };
        if self.peek(header.frame_bytes()).await?.len() < header.frame_bytes() {
            return Err(self.corrupt(0, "the file ends inside a frame".into()));
        }
        let frame = &self.window[self.consumed..][..header.frame_bytes()];
        Ok((header, frame))
    }

    /// Damage at so many bytes behind the position.
    pub(super) fn corrupt(&self, behind: usize, what: String) -> StorageError {
        StorageError::Corrupt {
            file: self.file_name.clone(),
            offset: self.position + behind as u64,
            what,
        }
    }

    fn window_end(&self) -> u64 {
        self.position + (self.window.len() - self.consumed) as u64
    }

    /// Moves on by `len` bytes that `peek` has returned.
    pub(super) fn consume(&mut self, len: usize) {
        self.consumed += len;
        assert!(
            self.consumed <= self.window.len(),
            "only what was peeked is consumed"
        );
        self.position += len as u64;
    }
}

//! A copy of a log while it is served: which bytes of which files are one, what they hold, and what a copied file is.
//!
//! No block of a segment is written twice, and a segment is part of the log up to an end that only moves on. So the list
//! of the segments of one moment, each with its end, is a copy of the log at that moment, whenever its bytes are read
//! afterwards; only the files must not be used again or removed meanwhile. A pin keeps all of them, a [`Cut`] its own.
//!
//! A copy of several shards pins all of them before it cuts the first one: then nothing that one shard has taken from
//! the files of another is missing in both.
//!
//! The copy ends with the frame of a clean stop, which the log itself does not have yet: so damage in the last frame of a
//! copy is told from a torn tail.
//!
//! Guarantees: a cut holds everything that was acknowledged before, and a prefix of the commit order; it changes no file.
//! Does not: verify frames (`verify` does that, with the copy), or stop compaction: what that retires meanwhile takes
//! room until the last pin is gone.

use std::rc::Rc;

use crate::storage::directory::MANIFEST_NAME;
use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{BadHeader, FORMAT_VERSION, SegmentHeader, SegmentState};
use crate::storage::manifest::{MANIFEST_BYTES, Manifest};
use crate::storage::plant::{Plant, planted};
use crate::storage::segment::{self, LogId};
use crate::storage::store::Store;

/// One file of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutFile {
    /// Its name, here and in the copy.
    pub name: String,
    /// Bytes from its start that belong to the copy: whole blocks.
    pub bytes: u64,
    /// Length that the file has in a copy which is opened, filled up with zeros: more than `bytes` for the newest one.
    pub full_bytes: u64,
}

/// The log of one shard at one moment. Its files stay as they are while this lives.
pub struct Cut<F> {
    /// The files, oldest segment first.
    pub files: Vec<CutFile>,
    /// The last version that was given out.
    pub last_version: u64,
    handles: Vec<Rc<F>>,
    /// What is behind the log in the last file.
    closing: Vec<u8>,
}

impl<D: Disk, W> Store<D, W> {
    /// From now on no file of the log is used again or removed, until as many calls of [`Store::unpin`].
    pub fn pin(&self) {
        self.spares.pin();
    }

    /// Takes one [`Store::pin`] back.
    pub fn unpin(&self) {
        self.spares.unpin();
    }

    /// Whether somebody copies the log.
    pub fn is_pinned(&self) -> bool {
        self.spares.is_pinned()
    }

    /// The log as it is durable now, with the segments of other logs that it lists. The store is pinned.
    ///
    /// A segment of another log whose retirement is on its way is waited for: when that is durable the others forget the
    /// segment and drop the tombstones that hide its records, and a copy that has it would lack them.
    ///
    /// # Errors
    /// `Io` when one of those cannot be opened, `Poisoned`.
    pub async fn cut(&self) -> Result<Cut<D::File>, StorageError> {
        assert!(self.is_pinned(), "a copy begins with a pin");
        if let Some(frame) = self.upkeep.foreign_retirement.get()
            && !planted(Plant::CutBeforeRetirement)
        {
            self.until_settled(frame).await?;
        }
        let foreign: Vec<_> = self.foreign.borrow().entries().collect();
        let own = self.cut_own();
        // While the store is pinned none of them is retired or removed.
        let (mut files, mut handles) = (Vec::new(), Vec::new());
        for at in foreign {
            let name = segment::name(at.segment.log, at.file);
            let file = self.disk.open(&name).await;
            let file = file.map_err(|source| StorageError::io("opening", &name, source))?;
            files.push(CutFile {
                name,
                bytes: at.end,
                full_bytes: at.end,
            });
            handles.push(Rc::new(file));
        }
        files.extend(own.files);
        handles.extend(own.handles);
        Ok(Cut {
            files,
            handles,
            ..own
        })
    }

    fn cut_own(&self) -> Cut<D::File> {
        let segments = self.segments.borrow();
        let (mut files, mut handles) = (Vec::new(), Vec::new());
        for (_, segment) in segments.own() {
            let bytes = segment.used_bytes + segment.footer_bytes;
            files.push(CutFile {
                name: segment.file_name(),
                bytes,
                full_bytes: bytes,
            });
            handles.push(Rc::clone(&segment.file));
        }
        let end = self.log.closing_place();
        let mut closing = vec![0; BLOCK];
        end.closing_frame().encode(&mut closing);
        let active = files.last_mut().expect("a log has an active segment");
        assert_eq!(active.bytes, end.offset, "the log ends in its last segment");
        active.bytes += BLOCK as u64;
        // Recovery looks for its end, and wants all of it for that.
        let (_, newest) = segments.own().next_back().expect("the active one");
        active.full_bytes = newest.allocated_bytes;
        Cut {
            files,
            last_version: end.last_version,
            handles,
            closing,
        }
    }

    /// The manifest for a copy: that of the data directory, without what else the file holds.
    ///
    /// # Errors
    /// `Corrupt` when it does not verify any more, `Io`.
    pub async fn manifest_copy(&self) -> Result<Vec<u8>, StorageError> {
        let io = |action| move |source| StorageError::io(action, MANIFEST_NAME, source);
        let file = self.disk.open(MANIFEST_NAME).await.map_err(io("opening"))?;
        let read = file.read_at(0, MANIFEST_BYTES).await;
        file.close().await.map_err(io("closing"))?;
        let read = read.map_err(io("reading"))?;
        let manifest = Manifest::decode(read.as_ref()).map_err(|bad| StorageError::Corrupt {
            file: MANIFEST_NAME.into(),
            offset: 0,
            what: format!("it does not verify any more: {bad:?}"),
        })?;
        // The copy holds every segment that its tables name: without one of them it is damaged, not new.
        let manifest = Manifest {
            served: true,
            ..manifest
        };
        let mut copy = vec![0; MANIFEST_BYTES];
        let slot = manifest.slot_offset() as usize;
        copy[slot..slot + BLOCK].copy_from_slice(&manifest.encode());
        Ok(copy)
    }
}

impl<F: DiskFile> Cut<F> {
    /// Reads `len` bytes of one of the files, of which it has as many from `offset` on.
    ///
    /// # Errors
    /// `Corrupt` when the file ends too early or its header does not verify, `Io`.
    pub async fn read(
        &self,
        file: usize,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, StorageError> {
        let CutFile { name, bytes, .. } = &self.files[file];
        assert!(
            offset + len as u64 <= *bytes,
            "only what is durable is copied"
        );
        let closes = file + 1 == self.files.len() && offset + len as u64 == *bytes;
        let on_disk = len - if closes { self.closing.len() } else { 0 };
        let mut read = Vec::with_capacity(len);
        if on_disk > 0 {
            let part = self.handles[file].read_at(offset, on_disk).await;
            let part = part.map_err(|source| StorageError::io("reading", name, source))?;
            read.extend_from_slice(part.as_ref());
        }
        let corrupt = |offset, what| StorageError::Corrupt {
            file: name.clone(),
            offset,
            what,
        };
        if read.len() != on_disk {
            let what = "the file ends there, and more was written".into();
            return Err(corrupt(offset + read.len() as u64, what));
        }
        if offset == 0
            && let Err(bad) = SegmentHeader::decode(&read)
        {
            let what = format!("the segment header does not verify any more: {bad:?}");
            return Err(corrupt(0, what));
        }
        if closes {
            read.extend_from_slice(&self.closing);
        }
        Ok(read)
    }
}

/// What the first block of a copied file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiedSegment {
    /// The number of the segment; the highest one of a log is the newest, which must have its full length.
    pub number: u32,
    /// That length, in bytes.
    pub full_bytes: u64,
}

/// Reads the first block of a copied segment file; `None`: it does not verify, or says nothing of a log. Whether that is
/// damage is for `verify` to say.
///
/// # Errors
/// `Incompatible` for another format.
pub fn read_copied(name: &str, block: &[u8]) -> Result<Option<CopiedSegment>, StorageError> {
    match SegmentHeader::decode(block) {
        Ok(header) if header.state == SegmentState::Log => Ok(Some(CopiedSegment {
            number: header.number,
            full_bytes: header.segment_bytes,
        })),
        Ok(_) | Err(BadHeader::Invalid(_)) => Ok(None),
        Err(BadHeader::Format(format)) => Err(StorageError::Incompatible(format!(
            "{name} has format version {format}; this program knows version {FORMAT_VERSION}: use the program that wrote it"
        ))),
    }
}

/// The log that a segment file belongs to, by its name; `None` for any other name.
pub fn log_of(name: &str) -> Option<LogId> {
    segment::parse_name(name).map(|(log, _)| log)
}

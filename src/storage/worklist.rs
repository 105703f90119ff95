//! What a victim of compaction holds, from its footer: where records are long, only those that are needed are read.
//!
//! A footer is a cache here as well: a segment that has none which verifies, or many short records, is read from front
//! to back (`scan`), which is faster for those.
//!
//! Guarantees: every set and delete of the segment is listed, in the order in which they stand.
//! Does not: know which are needed (`compact` asks the index).

use crate::storage::disk::{BLOCK, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::footer::read_footer;
use crate::storage::indexing::{FileAt, find_footer};
use crate::storage::segment::{Location, SegmentId};

/// A segment that is this many times as long as its footer has records of 64 KiB and more, by and large: to read one takes
/// the device longer than to find it.
const FOOTER_SHARE_DIVISOR: u64 = 2048;

/// Where segments are small it is this part of their blocks, if that is less: simulated logs have long records too.
const BLOCKS_DIVISOR: u64 = 4;

/// What is known of the footer of a victim.
#[derive(Debug, Clone, Copy)]
pub(super) struct FooterAt {
    pub(super) epoch: u64,
    /// 0: there is none.
    pub(super) bytes: u64,
}

/// A record of the victim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: Box<[u8]>,
    pub(super) version: u64,
    pub(super) location: Location,
}

/// The records of a victim, and how far compaction is with them.
pub(super) struct Worklist {
    records: Vec<Listed>,
    done: usize,
}

impl Worklist {
    /// Reads the footer of a victim that ends at `end`, if the list is worth it.
    ///
    /// # Errors
    /// `Io` when the disk does not give it.
    pub(super) async fn read<F: DiskFile>(
        victim: SegmentId,
        file: FileAt<'_, F>,
        end: u64,
        footer: FooterAt,
    ) -> Result<Option<Worklist>, StorageError> {
        let share = FOOTER_SHARE_DIVISOR.min(end / (BLOCK as u64 * BLOCKS_DIVISOR));
        if footer.bytes == 0 || end < footer.bytes * share {
            return Ok(None);
        }
        let Some(footer) = find_footer(file, footer.epoch, end).await? else {
            return Ok(None);
        };
        let mut records = Vec::new();
        let read = read_footer(&footer, end, |entry| {
            records.push(Listed {
                key: entry.key.into(),
                version: entry.version,
                location: Location {
                    segment: victim,
                    offset: entry.offset,
                    bytes: entry.record_bytes() as u32,
                },
            });
        });
        Ok(read.is_ok().then_some(Worklist { records, done: 0 }))
    }

    /// The next one.
    pub(super) fn next(&self) -> Option<&Listed> {
        self.records.get(self.done)
    }

    /// The next one is done with.
    pub(super) fn advance(&mut self) {
        self.done += 1;
    }
}

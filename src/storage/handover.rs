//! What one shard's reading of logs hands over to the shards that own the keys: after the number of shards has changed,
//! segments written under another number hold records of all of them.
//!
//! Guarantees: every set and delete of such a segment is in the handover of the owner of its key and in no other; every
//! such segment is in every handover, also with nothing in it, because tombstones depend on all that exist.
//! Does not: carry handovers to other threads (the server does), or take them in (`opening` does).

use crate::storage::footer::{Entries, FooterEntry};
use crate::storage::table::TableEntry;

/// Which shard owns a key.
pub type Owner<'a> = &'a dyn Fn(&[u8]) -> u16;

/// What one shard hands over to one shard, itself included.
#[derive(Debug, Clone, Default)]
pub struct Handover {
    /// The highest version that it found.
    pub(super) last_version: u64,
    /// Segments of other logs that it keeps.
    pub(super) segments: Vec<HandedSegment>,
}

/// A segment of another log, and what in it is the receiver's.
#[derive(Debug, Clone)]
pub(super) struct HandedSegment {
    pub(super) at: TableEntry,
    /// The shard whose log lists it, and which removes it in the end.
    pub(super) keeper: u16,
    pub(super) first_version: u64,
    /// Length of its file, in bytes.
    pub(super) allocated_bytes: u64,
    pub(super) entries: Entries,
}

/// A segment of another log as it was read: what of it belongs to each shard.
pub(super) struct KeptSegment {
    pub(super) at: TableEntry,
    pub(super) first_version: u64,
    /// Length of its file, in bytes.
    pub(super) allocated_bytes: u64,
    /// By shard.
    entries: Vec<Entries>,
}

impl KeptSegment {
    /// With nothing in it, for so many shards.
    pub(super) fn new(
        at: TableEntry,
        first_version: u64,
        allocated_bytes: u64,
        shards: u16,
    ) -> KeptSegment {
        KeptSegment {
            at,
            first_version,
            allocated_bytes,
            entries: vec![Entries::default(); shards.into()],
        }
    }

    /// Puts a record to those of its owner.
    pub(super) fn push(&mut self, owner: Owner<'_>, entry: &FooterEntry<'_>) {
        self.entries[usize::from(owner(entry.key))].push(entry);
    }
}

/// Sorts what `keeper` has read by who gets it; one for each shard.
pub(super) fn hand_over(
    keeper: u16,
    shards: u16,
    last_version: u64,
    kept: Vec<KeptSegment>,
) -> Vec<Handover> {
    let handover = |_| Handover {
        last_version,
        segments: Vec::with_capacity(kept.len()),
    };
    let mut handovers: Vec<Handover> = (0..shards).map(handover).collect();
    for segment in kept {
        let KeptSegment {
            at,
            first_version,
            allocated_bytes,
            entries,
        } = segment;
        for (handover, entries) in handovers.iter_mut().zip(entries) {
            handover.segments.push(HandedSegment {
                at,
                keeper,
                first_version,
                allocated_bytes,
                entries,
            });
        }
    }
    handovers
}

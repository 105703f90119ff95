//! The segments of one shard's log: their open files, and which bytes of each are live.
//!
//! Owns: the table of segments and its totals. A record is live while the index points at it: the newest of a present
//! key, or a tombstone that is still needed.
//! Guarantees: a record dies once, after it lived; a segment leaves the table only when nothing in it lives.
//! Does not: choose what is compacted (`victim`), read or write files.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::storage::segment::{self, Location, SegmentId, SegmentKey};
use crate::storage::table::TableEntry;

/// One segment that is part of the log, or of another one and holds what is this shard's.
pub(super) struct Segment<F> {
    pub(super) key: SegmentKey,
    pub(super) file: Rc<F>,
    /// The number in the name of its file.
    pub(super) file_number: u32,
    pub(super) epoch: u64,
    /// Versions from this one on were given out after it was begun: no record of an older segment has one.
    pub(super) first_version: u64,
    /// Length of the file, in bytes.
    pub(super) allocated_bytes: u64,
    /// Bytes from its start that are part of the log.
    pub(super) used_bytes: u64,
    /// Bytes of its footer, behind those; 0: it has none.
    pub(super) footer_bytes: u64,
    /// Bytes of live records.
    pub(super) live_bytes: u64,
    /// Those of them that are tombstones.
    pub(super) tombstone_bytes: u64,
}

impl<F> Segment<F> {
    /// Name of its file.
    pub(super) fn file_name(&self) -> String {
        segment::name(self.key.log, self.file_number)
    }
}

/// Bytes of several segments together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) live: u64,
    pub(super) tombstones: u64,
    /// Of the shard's own log.
    pub(super) used: u64,
    /// Of the shard's own log.
    pub(super) allocated: u64,
    /// What of `live` is in segments of other logs.
    pub(super) foreign_live: u64,
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

    /// Takes a retired segment out.
    pub(super) fn remove(&mut self, id: SegmentId) -> Segment<F> {
        let segment = self
            .table
            .remove(&id)
            .expect("a segment is retired once, after it was added");
        assert_eq!(segment.live_bytes, 0, "nothing lives in a retired segment");
        segment
    }

    fn at(&mut self, id: SegmentId) -> &mut Segment<F> {
        self.table
            .get_mut(&id)
            .expect("a segment that the log refers to is in the table")
    }

    pub(super) fn get(&self, id: SegmentId) -> Option<&Segment<F>> {
        self.table.get(&id)
    }

    /// The segment of a live record.
    pub(super) fn of(&self, location: Location) -> &Segment<F> {
        self.table
            .get(&location.segment)
            .expect("a segment with a live record is in the table")
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (SegmentId, &Segment<F>)> {
        self.table.iter().map(|(id, segment)| (*id, segment))
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

    pub(super) fn set_footer(&mut self, id: SegmentId, footer_bytes: u64) {
        if let Some(segment) = self.table.get_mut(&id) {
            segment.footer_bytes = footer_bytes;
        }
    }

    pub(super) fn record_lives(&mut self, location: Location, tombstone: bool) {
        let bytes = u64::from(location.bytes);
        let segment = self.at(location.segment);
        segment.live_bytes += bytes;
        segment.tombstone_bytes += if tombstone { bytes } else { 0 };
    }

    pub(super) fn record_dies(&mut self, location: Location, tombstone: bool) {
        let less = |from: u64, bytes: u64| {
            from.checked_sub(bytes)
                .expect("a record dies once, after it lived")
        };
        let bytes = u64::from(location.bytes);
        let segment = self.at(location.segment);
        segment.live_bytes = less(segment.live_bytes, bytes);
        let tombstones = if tombstone { bytes } else { 0 };
        segment.tombstone_bytes = less(segment.tombstone_bytes, tombstones);
    }

    /// Those of the shard's own log, oldest first.
    pub(super) fn own(&self) -> impl DoubleEndedIterator<Item = (SegmentId, &Segment<F>)> {
        self.iter().filter(|(id, _)| !id.is_foreign())
    }

    /// Those of other logs.
    pub(super) fn foreign(&self) -> impl Iterator<Item = (SegmentId, &Segment<F>)> {
        let foreign = self.table.range(SegmentId::FOREIGN..);
        foreign.map(|(id, segment)| (*id, segment))
    }

    /// How many of the shard's own log.
    pub(super) fn count(&self) -> usize {
        self.own().count()
    }

    /// What a new segment says of those of its log before it.
    pub(super) fn entries(&self) -> impl Iterator<Item = TableEntry> {
        self.own().map(|(_, segment)| TableEntry {
            segment: segment.key,
            file: segment.file_number,
            epoch: segment.epoch,
            end: segment.used_bytes,
        })
    }

    /// Of all segments.
    pub(super) fn totals(&self) -> Totals {
        self.table
            .iter()
            .fold(Totals::default(), |mut sum, (id, segment)| {
                sum.live += segment.live_bytes;
                sum.tombstones += segment.tombstone_bytes;
                if id.is_foreign() {
                    sum.foreign_live += segment.live_bytes;
                } else {
                    sum.used += segment.used_bytes;
                    sum.allocated += segment.allocated_bytes;
                }
                sum
            })
    }
}

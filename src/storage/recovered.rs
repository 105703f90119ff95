//! What a start found, for the log and for `stat`.

/// A write that a crash cut; it was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub segment: u32,
    /// Name of its file.
    pub file: String,
    /// Where the log ends, in bytes.
    pub offset: u64,
    /// Bytes behind that which are not zero, from the end of the log to the last of them.
    pub bytes: u64,
}

/// What recovery found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sets and deletes.
    pub records: u64,
    /// Bytes of the log.
    pub bytes: u64,
    /// Segments of the log.
    pub segments: u32,
    /// Those of them that were known from their footers, without reading their frames.
    pub from_footers: u32,
    /// Footers that do not verify: they cost time, nothing else.
    pub bad_footers: u32,
    /// Segments that were written under another number of shards, of those that this shard keeps.
    pub foreign_segments: u32,
    /// The last version given out.
    pub last_version: u64,
    /// What was cut, if anything.
    pub torn_tail: Option<TornTail>,
}

impl Recovered {
    /// Another log was read as well.
    pub(super) fn add(&mut self, other: Recovered) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.segments += other.segments;
        self.from_footers += other.from_footers;
        self.bad_footers += other.bad_footers;
        self.foreign_segments += other.foreign_segments;
        self.last_version = self.last_version.max(other.last_version);
        self.torn_tail = self.torn_tail.take().or(other.torn_tail);
    }
}

//! What was done, over all universes.

#[derive(Default, Debug)]
pub(in crate::storage::tests) struct Figures {
    pub(super) universes: u64,
    pub(super) lives: u64,
    pub(super) changes: u64,
    pub(super) crashes: u64,
    pub(super) cut_starts: u64,
    pub(super) io_errors: u64,
    pub(super) acknowledged: u64,
    pub(super) moved_records: u64,
    pub(super) retired_segments: u64,
    pub(super) migrations_ended: u64,
    pub(super) copies: u64,
}

impl Figures {
    pub(super) fn add(&mut self, other: &Figures) {
        self.universes += other.universes;
        self.lives += other.lives;
        self.changes += other.changes;
        self.crashes += other.crashes;
        self.cut_starts += other.cut_starts;
        self.io_errors += other.io_errors;
        self.acknowledged += other.acknowledged;
        self.moved_records += other.moved_records;
        self.retired_segments += other.retired_segments;
        self.migrations_ended += other.migrations_ended;
        self.copies += other.copies;
    }
}

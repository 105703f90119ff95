//! Segments of other logs, written when the store had another number of shards: which exist, who still needs them.
//!
//! Each is *kept* by one shard: its log lists it, so that a start knows that it must be there. Every shard moves its own
//! live records out of it by compaction and tells the keeper when nothing of its own is left there. When all have, the
//! keeper retires it in its log, removes the file and tells everybody that it is gone.
//!
//! Guarantees: what a shard tells rests on what is durable; a segment counts for the tombstones of every shard until its
//! retirement is durable. Who dies in between finds everything again at its next start.
//! Does not: carry notices to other shards (`shard` does), copy records (`compact` does).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::storage::segment::SegmentKey;
use crate::storage::table::TableEntry;

/// What one shard has to tell another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// To its keeper: nothing in this segment is the sender's any more.
    Emptied(SegmentKey),
    /// To everybody: this segment is retired.
    Gone(SegmentKey),
}

/// Something to be told to another shard of the same store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    /// To whom.
    pub to: u16,
    /// What.
    pub news: News,
}

/// A segment that this shard keeps.
struct Kept {
    at: TableEntry,
    allocated_bytes: u64,
    /// Shards that have nothing in it any more.
    emptied: BTreeSet<u16>,
}

struct Known {
    keeper: u16,
    first_version: u64,
    kept: Option<Kept>,
}

/// All segments of other logs that exist.
pub(super) struct Foreign {
    shard: u16,
    shards: u16,
    known: BTreeMap<SegmentKey, Known>,
    notices: VecDeque<Notice>,
}

impl Foreign {
    /// None, in a store of so many shards.
    pub(super) fn new(shard: u16, shards: u16) -> Foreign {
        Foreign {
            shard,
            shards,
            known: BTreeMap::new(),
            notices: VecDeque::new(),
        }
    }

    /// There is a segment that `keeper` keeps.
    pub(super) fn add(
        &mut self,
        at: TableEntry,
        keeper: u16,
        first_version: u64,
        allocated_bytes: u64,
    ) {
        let kept = (keeper == self.shard).then(|| Kept {
            at,
            allocated_bytes,
            emptied: BTreeSet::new(),
        });
        let known = Known {
            keeper,
            first_version,
            kept,
        };
        let before = self.known.insert(at.segment, known);
        assert!(before.is_none(), "a segment is kept by one shard");
    }

    /// Nothing in a segment is this shard's any more, and that is durable.
    pub(super) fn leave(&mut self, segment: SegmentKey) {
        let keeper = self.known[&segment].keeper;
        if keeper == self.shard {
            self.emptied(self.shard, segment);
        } else {
            self.notices.push_back(Notice {
                to: keeper,
                news: News::Emptied(segment),
            });
        }
    }

    /// Another shard has told something.
    pub(super) fn hear(&mut self, from: u16, news: News) {
        match news {
            News::Emptied(segment) => self.emptied(from, segment),
            News::Gone(segment) => {
                let known = self.known.remove(&segment);
                assert!(known.is_some(), "a segment goes once");
            }
        }
    }

    fn emptied(&mut self, shard: u16, segment: SegmentKey) {
        let known = self.known.get_mut(&segment);
        let kept = known.and_then(|known| known.kept.as_mut());
        let kept = kept.expect("a shard tells the keeper, once");
        kept.emptied.insert(shard);
    }

    /// A segment that this shard keeps and nobody needs any more.
    pub(super) fn unneeded(&self) -> Option<SegmentKey> {
        let unneeded = |kept: &Kept| kept.emptied.len() == usize::from(self.shards);
        let mut known = self.known.iter();
        known
            .find(|(_, known)| known.kept.as_ref().is_some_and(unneeded))
            .map(|(segment, _)| *segment)
    }

    /// The retirement of a segment that this shard keeps is durable. Returns the number of its file.
    pub(super) fn retired(&mut self, segment: SegmentKey) -> u32 {
        let known = self.known.remove(&segment);
        let kept = known.and_then(|known| known.kept);
        let kept = kept.expect("a segment is retired by its keeper, once");
        for to in (0..self.shards).filter(|to| *to != self.shard) {
            self.notices.push_back(Notice {
                to,
                news: News::Gone(segment),
            });
        }
        kept.at.file
    }

    /// What is to be told next.
    pub(super) fn next_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// A notice that could not be told comes first again.
    pub(super) fn put_back(&mut self, notice: Notice) {
        self.notices.push_front(notice);
    }

    /// The lowest first version of those that exist, other than `victim`.
    pub(super) fn first_version(&self, victim: Option<SegmentKey>) -> Option<u64> {
        let others = self.known.iter().filter(|(key, _)| Some(**key) != victim);
        others.map(|(_, known)| known.first_version).min()
    }

    /// What a new segment says of those that this shard keeps.
    pub(super) fn entries(&self) -> impl Iterator<Item = TableEntry> {
        self.known
            .values()
            .filter_map(|known| known.kept.as_ref())
            .map(|kept| kept.at)
    }

    /// How many exist in the whole store.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// How many this shard keeps, and the bytes of their files.
    pub(super) fn kept(&self) -> (usize, u64) {
        let kept = self.known.values().filter_map(|known| known.kept.as_ref());
        kept.fold((0, 0), |(count, bytes), kept| {
            (count + 1, bytes + kept.allocated_bytes)
        })
    }
}

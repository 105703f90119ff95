//! Bugs that the tests plant, one at a time, to see that they are found.
//!
//! A hook is a condition where the bug would be. Outside of tests [`planted`] is `false` for the compiler, so that nothing
//! of a hook is left; what takes more than a condition is compiled for tests only.
//!
//! Guarantees: a plant is one thread's own, so that tests beside it run on whole code.
//! Does not: say who finds which bug and how soon (`tests/planted.rs` does).

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "the hooks of some are compiled for tests only")
)]
pub(super) enum Plant {
    /// A commit is acknowledged when its write was issued, not when it is complete.
    AcknowledgeEarly,
    /// A read sees a delete that is not durable.
    ExposeEarly,
    /// A condition is refused before the version that it rests on is durable.
    RefuseEarly,
    /// The checksum of a record is not looked at.
    SkipCrc,
    /// A frame that does not verify is left out, and the start goes on behind it.
    AcceptBadFrame,
    /// Compaction drops a tombstone that an older record of the key still needs.
    DropTombstone,
    /// Compaction copies a record that a pending write replaces.
    CopyReplaced,
    /// A frame is written together with the block before it.
    RewriteTail,
    /// Padding is what was in the buffer before.
    DirtyPadding,
    /// A write that stops early counts as done.
    IgnoreShortWrite,
    /// The store goes on after a commit that failed.
    GoOnAfterError,
    /// A segment takes frames before its header is durable.
    RotateEarly,
    /// What a read found enters the cache although the key was written meanwhile.
    CacheStale,
    /// A sync that failed is tried again, and what the second try says counts.
    RetrySync,
    /// The name of a new file is not made durable.
    SkipDirectorySync,
    /// The content of a new file is not made durable.
    SkipFileSync,
    /// A clean stop leaves the closing frame away.
    SkipClosingFrame,
    /// The file of a segment is given up before its retirement is durable.
    RetireEarly,
    /// A retired file is used again while somebody still reads it.
    ReuseReadFile,
    /// The epoch of a segment is that of the one before it.
    RepeatEpoch,
    /// The first version after a start is the last one that was found.
    RepeatVersion,
    /// The versions of a shard go on above what it found itself, after the number of shards has changed.
    RepeatShardVersion,
    /// Tombstones are dropped as if there were no segments of other logs.
    ForgetForeign,
    /// A new segment does not list the segments of other logs that the shard keeps.
    UnlistForeign,
    /// A segment of another log is retired when one shard has emptied it.
    RetireForOne,
    /// A copy is cut while the retirement of a segment of another log is on its way.
    CutBeforeRetirement,
    /// New segments have the size that was asked for, also when a record of an earlier life does not fit.
    TrustSegmentSize,
    /// A write passes an earlier one of its key that waits in the lane.
    PassOwnKey,
    /// All large writes that wait are let in at once.
    LetAllIn,
}

/// Whether this bug is planted here.
#[cfg(not(test))]
pub(super) const fn planted(_: Plant) -> bool {
    false
}

#[cfg(test)]
pub(super) use in_tests::{PlantedHere, first_try, left_behind, plant, planted, with_tail};

#[cfg(test)]
mod in_tests {
    use std::cell::Cell;
    use std::future::Future;
    use std::io;
    use std::rc::Rc;
    use std::task::{Context, Waker};

    use super::Plant;
    use crate::storage::disk::{BLOCK, Disk, DiskFile};
    use crate::storage::error::StorageError;
    use crate::storage::writer::Place;

    thread_local! {
        static PLANTED: Cell<Option<Plant>> = const { Cell::new(None) };
    }

    /// Keeps a bug planted in this thread until it is dropped.
    pub(in crate::storage) struct PlantedHere(());

    impl PlantedHere {
        /// Whether any bug is planted in this thread.
        pub(in crate::storage) fn any() -> bool {
            PLANTED.get().is_some()
        }
    }

    impl Drop for PlantedHere {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }

    pub(in crate::storage) fn plant(bug: Plant) -> PlantedHere {
        let before = PLANTED.replace(Some(bug));
        assert_eq!(before, None, "one bug at a time");
        PlantedHere(())
    }

    pub(in crate::storage) fn planted(bug: Plant) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Begins a write; if `bug` is planted nobody waits for its end.
    pub(in crate::storage) async fn left_behind(
        bug: Plant,
        write: impl Future<Output = Result<(), StorageError>>,
    ) -> Result<(), StorageError> {
        if !planted(bug) {
            return write.await;
        }
        let mut write = Box::pin(write);
        let begun = write.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(begun.is_pending(), "a write takes time");
        // Dropping it would abandon the write.
        std::mem::forget(write);
        Ok(())
    }

    /// Under the plant, a sync whose failure nobody hears of.
    pub(in crate::storage) async fn first_try(sync: impl Future<Output = io::Result<()>>) {
        if planted(Plant::RetrySync) {
            drop(sync.await);
        }
    }

    type Buffer<D> = Rc<<<D as Disk>::File as DiskFile>::Buffer>;

    /// Where a frame is written, and what is: under the plant, the block before it as well.
    pub(in crate::storage) async fn with_tail<D: Disk>(
        disk: &D,
        place: &Place<D::File>,
        (offset, frame): (u64, Buffer<D>),
    ) -> (u64, Buffer<D>) {
        if !planted(Plant::RewriteTail) {
            return (offset, frame);
        }
        let before = offset - BLOCK as u64;
        let Ok(tail) = place.file.read_at(before, BLOCK).await else {
            return (offset, frame);
        };
        let mut both = disk.buffer(BLOCK + (*frame).as_ref().len());
        both.as_mut()[..BLOCK].copy_from_slice(tail.as_ref());
        both.as_mut()[BLOCK..].copy_from_slice((*frame).as_ref());
        (before, Rc::new(both))
    }
}

//! How many connections are open, on which shard, and whether one more may be.
//!
//! Guarantees: never more than the bound over all shards; a count goes down when its connection goes, however it ends.
//! The counters are atomics, touched when a connection opens and closes and by `stat`, never by a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The counters of all shards.
#[derive(Debug)]
pub(crate) struct Connections {
    total: AtomicU32,
    shards: Box<[AtomicU32]>,
    max: u32,
}

/// The right to one connection; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    connections: Arc<Connections>,
    shard: usize,
}

impl Connections {
    pub(crate) fn new(shards: u16, max: usize) -> Arc<Connections> {
        Arc::new(Connections {
            total: AtomicU32::new(0),
            shards: (0..shards).map(|_| AtomicU32::new(0)).collect(),
            max: u32::try_from(max).expect("the bound of connections is far below 2^32"),
        })
    }

    /// Counts one more connection on a shard, unless there are as many as there may be.
    pub(crate) fn enter(self: &Arc<Self>, shard: u16) -> Option<ConnectionSlot> {
        let more = |open: u32| (open < self.max).then_some(open + 1);
        self.total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        let shard = usize::from(shard);
        self.shards[shard].fetch_add(1, Ordering::Relaxed);
        Some(ConnectionSlot {
            connections: Arc::clone(self),
            shard,
        })
    }

    /// Open connections of all shards.
    pub(crate) fn total(&self) -> u32 {
        self.total.load(Ordering::Relaxed)
    }

    /// Open connections of one shard.
    pub(crate) fn of_shard(&self, shard: u16) -> u32 {
        self.shards[usize::from(shard)].load(Ordering::Relaxed)
    }

    /// The bound.
    pub(crate) fn max(&self) -> u32 {
        self.max
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.connections.shards[self.shard].fetch_sub(1, Ordering::Relaxed);
        self.connections.total.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_over_all_shards_and_a_closed_connection_makes_room() {
        let connections = Connections::new(2, 3);
        let first = connections.enter(0).unwrap();
        let _second = connections.enter(1).unwrap();
        let _third = connections.enter(1).unwrap();
        assert!(connections.enter(0).is_none());
        assert_eq!(
            (
                connections.total(),
                connections.of_shard(0),
                connections.of_shard(1)
            ),
            (3, 1, 2)
        );
        drop(first);
        assert_eq!((connections.total(), connections.of_shard(0)), (2, 0));
        assert!(connections.enter(1).is_some());
        assert_eq!(connections.total(), 2);
    }
}

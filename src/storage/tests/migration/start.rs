//! The start of all shards of a store, step by step, so that it can be cut anywhere.

use std::rc::Rc;

use crate::storage::disk::sim::SimDisk;
use crate::storage::tests::executor::{Executor, Handle};
use crate::storage::tests::life::Engine;
use crate::storage::{Handover, Opening, Recovered, StorageError};

/// What a shard has read, and what it hands over.
type ReadShard = Result<(Opening<SimDisk>, Vec<Handover>), StorageError>;

/// A start under way.
#[derive(Default)]
pub(super) struct Starting {
    pub(super) reading: Vec<Handle<ReadShard>>,
    pub(super) opening: Vec<Handle<Result<(Engine, Recovered), StorageError>>>,
}

impl Starting {
    /// All shards have read: each gets what is its own.
    pub(super) fn open(&mut self, executor: &mut Executor) -> Result<(), String> {
        let mut inboxes: Vec<Vec<Handover>> = vec![Vec::new(); self.reading.len()];
        let mut read = Vec::new();
        for handle in self.reading.drain(..) {
            let (opening, handovers) = handle
                .take()
                .expect("asked by the caller")
                .map_err(|error| format!("a shard does not read its log: {error}"))?;
            read.push(opening);
            for (inbox, handover) in inboxes.iter_mut().zip(handovers) {
                inbox.push(handover);
            }
        }
        for (opening, inbox) in read.into_iter().zip(inboxes) {
            let opening = executor.spawn(async move { opening.finish(inbox).await });
            self.opening.push(opening);
        }
        Ok(())
    }

    /// The stores, when all are open.
    pub(super) fn opened(self) -> Result<Vec<Rc<Engine>>, String> {
        let opened = self.opening.into_iter().map(|opened| {
            let opened = opened.take().ok_or("stuck: a shard does not open")?;
            let (store, _) = opened.map_err(|error| format!("a shard does not open: {error}"))?;
            Ok(Rc::new(store))
        });
        opened.collect()
    }

    /// Whether the next look at it will find something to do.
    pub(super) fn moves_on(&self) -> bool {
        let done = |ready: bool, empty: bool| ready && !empty;
        done(
            self.reading.iter().all(Handle::is_ready),
            self.reading.is_empty(),
        ) || done(
            self.opening.iter().all(Handle::is_ready),
            self.opening.is_empty(),
        )
    }
}

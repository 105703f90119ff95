//! Copies of a store that serves and moves: what all shards cut together opens as a store, with any number of shards.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::start::Starting;
use super::{SHARDS_MAX, Universe, look_up, owner};
use crate::storage::StorageError;
use crate::storage::disk::sim::{Image, SimDisk, SimFile};
use crate::storage::snapshot::Cut;
use crate::storage::tests::executor::{Executor, Handle};

/// The bytes of files by their names.
type Files = BTreeMap<String, Vec<u8>>;

impl Universe {
    /// Runs on, with everything that goes on, until a task is done.
    fn wait<T>(&mut self, handle: &Handle<T>) -> Result<T, String> {
        for _ in 0..100_000 {
            if let Some(value) = handle.take() {
                return Ok(value);
            }
            self.step()?;
            self.collect()?;
        }
        Err("stuck: a copy never ends".to_owned())
    }

    /// Copies the store while it serves and moves: the copy opens, with any number of shards, and holds what was
    /// acknowledged before it began.
    pub(super) fn copy(&mut self) -> Result<(), String> {
        self.pin();
        let since: Vec<_> = self.known.iter().map(|known| known.acknowledged).collect();
        let mut cuts = Vec::new();
        for node in 0..self.nodes.len() {
            let cut = self.cut_of(node);
            cuts.push(self.wait(&cut)?.map_err(|error| error.to_string())?);
        }
        let files = self.read_cuts(cuts)?;
        self.open_copy(files, &since)
    }

    pub(super) fn pin(&self) {
        for node in &self.nodes {
            node.store.pin();
        }
    }

    /// Cuts the log of one shard.
    pub(super) fn cut_of(&mut self, node: usize) -> Handle<Result<Cut<SimFile>, StorageError>> {
        let store = Rc::clone(&self.nodes[node].store);
        self.executor.spawn(async move { store.cut().await })
    }

    /// The files of a copy; the shards are pinned no more.
    pub(super) fn read_cuts(&mut self, cuts: Vec<Cut<SimFile>>) -> Result<Files, String> {
        let mut files = Files::new();
        for cut in cuts {
            let cut = Rc::new(cut);
            for (at, file) in cut.files.clone().into_iter().enumerate() {
                let its = Rc::clone(&cut);
                let read = async move { its.read(at, 0, file.bytes as usize).await };
                let read = self.executor.spawn(read);
                let mut bytes = self.wait(&read)?.map_err(|error| error.to_string())?;
                bytes.resize(file.full_bytes as usize, 0);
                files.insert(file.name, bytes);
            }
        }
        for node in &self.nodes {
            node.store.unpin();
        }
        Ok(files)
    }

    /// A copy opens with any number of shards and holds what was acknowledged `since`.
    pub(super) fn open_copy(&mut self, files: Files, since: &[usize]) -> Result<(), String> {
        let shards = 1 + self.rng.below(SHARDS_MAX) as u16;
        let manifest = self.manifest.expect("it was started").next_run(shards);
        let disk = SimDisk::with_image(self.rng.next(), &Image::new(files));
        let mut copy = Executor::new(self.rng.fork());
        let mut starting = Starting::default();
        self.read_logs(&mut copy, &disk, &manifest, &mut starting);
        copy.exhaust(&disk);
        starting.open(&mut copy)?;
        copy.exhaust(&disk);
        let stores = starting.opened()?;
        for (at, known) in self.known.iter().enumerate() {
            let key = &self.keys[at];
            let store = &stores[usize::from(owner(key, shards))];
            let found = copy.spawn(look_up(Rc::clone(store), store.get(key)));
            copy.exhaust(&disk);
            let found = found.take().expect("nothing moves any more");
            let found = found.map_err(|error| format!("a read of a copy failed: {error}"))?;
            if !known.allows(since[at], &found) {
                let key = String::from_utf8_lossy(key);
                return Err(format!("{key:?} is {found:?} in a copy"));
            }
        }
        self.figures.copies += 1;
        Ok(())
    }
}

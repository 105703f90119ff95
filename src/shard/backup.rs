//! A copy of all shards while they serve, as a stream of parts.
//!
//! The shard that is asked drives it: it pins all shards, then cuts each of them, then reads their files, its own and over
//! the mesh, and lets all of them go again. Pinned first, cut later: see `storage::snapshot`.
//!
//! Owns: the cuts that others and this shard's own backups read from.
//! Guarantees: a shard is let go whatever becomes of who asked, because the task of a backup is the shard's own and ends
//! when nobody takes its parts any more; memory of a backup is bounded by `limits::BACKUP_READS_AHEAD` chunks.
//! Does not: know what a part is for (`server` sends it), verify what the files hold.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use futures::SinkExt as _;
use futures::channel::mpsc;
use futures::future::LocalBoxFuture;
use futures::stream::{StreamExt as _, iter};

use crate::limits;
use crate::placement::ShardId;
use crate::shard::error::ShardError;
use crate::shard::request::{Reply, Request};
use crate::shard::{Shard, gone};
use crate::storage::disk::Disk;
use crate::storage::disk::dma::DmaDisk;
use crate::storage::snapshot::{Cut, CutFile};

/// How long a backup waits when the mesh has no room for its request.
const OVERLOADED_RETRY: Duration = Duration::from_millis(10);

/// What a backup asks of a shard.
#[derive(Debug, Clone, Copy)]
pub(super) enum BackupAsk {
    Pin,
    Cut,
    Read(Place),
    Unpin,
}

/// A piece of a file of a cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    file: usize,
    offset: u64,
    len: usize,
}

/// What it answers.
pub(super) enum BackupAnswer {
    Done,
    Cut(CutShard),
    Read(Vec<u8>),
}

/// What the copy of one shard holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutShard {
    /// The last version that was given out.
    pub last_version: u64,
    /// The files, oldest segment first.
    pub files: Vec<CutFile>,
}

/// What a copy will hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupOutline {
    /// The shards, in order.
    pub shards: Vec<CutShard>,
    /// The bytes of the manifest file, which comes last: a directory without one is no store.
    pub manifest: Vec<u8>,
}

/// A part of a copy, in order: the outline, then each file with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupPart {
    /// What will come. The manifest is in it and does not come again.
    Outline(BackupOutline),
    /// The next file.
    File(CutFile),
    /// The next bytes of the file.
    Bytes(Vec<u8>),
}

/// A part or why there are no more. The stream ends behind the last byte of the last file.
type Parts = mpsc::Sender<Result<BackupPart, ShardError>>;

/// How far a step came at once.
enum Step {
    Done,
    Waits(LocalBoxFuture<'static, Result<BackupAnswer, ShardError>>),
}

type OwnCut = Cut<<DmaDisk as Disk>::File>;

/// The backups that a shard takes part in.
#[derive(Default)]
pub(super) struct Backups {
    /// By the shard that asks and its number.
    cuts: RefCell<HashMap<(usize, u32), Rc<OwnCut>>>,
    /// Those that this shard drives.
    running: Cell<usize>,
    next: Cell<u32>,
}

/// Why a backup ends early.
enum Broken {
    /// Nobody takes the parts any more.
    Unwanted,
    Failed(ShardError),
}

impl From<ShardError> for Broken {
    fn from(error: ShardError) -> Broken {
        Broken::Failed(error)
    }
}

impl From<mpsc::SendError> for Broken {
    fn from(_: mpsc::SendError) -> Broken {
        Broken::Unwanted
    }
}

impl Shard {
    /// Begins a copy of all shards; its parts come through the receiver. Dropping that ends the backup.
    ///
    /// # Errors
    /// `Overloaded` when this shard runs as many as it may.
    pub fn begin_backup(
        self: &Rc<Self>,
    ) -> Result<mpsc::Receiver<Result<BackupPart, ShardError>>, ShardError> {
        let running = self.backups.running.get();
        if running >= limits::BACKUPS_MAX {
            return Err(ShardError::Overloaded(format!(
                "{running} backups run on this shard, which is the limit: try again later"
            )));
        }
        self.backups.running.set(running + 1);
        let backup = self.backups.next.get();
        self.backups.next.set(backup.wrapping_add(1));
        let (parts, receiver) = mpsc::channel(1);
        let shard = Rc::clone(self);
        let task = async move { shard.run_backup(backup, parts).await };
        let task = glommio::spawn_local_into(task, self.queues.background)
            .expect("the queue was made for this executor");
        drop(task.detach());
        Ok(receiver)
    }

    async fn run_backup(self: Rc<Self>, backup: u32, mut parts: Parts) {
        tracing::info!(shard = self.id.number(), backup, "a backup begins");
        let mut pinned = Vec::new();
        let ended = self.copy_all(backup, &mut pinned, &mut parts).await;
        for shard in pinned {
            // A shard that is gone has taken the process with it.
            let unpinned = self.ask(shard, backup, BackupAsk::Unpin).await;
            unpinned.map_or_else(drop, drop);
        }
        self.backups.running.set(self.backups.running.get() - 1);
        match ended {
            Ok(()) => tracing::info!(shard = self.id.number(), backup, "a backup is complete"),
            Err(Broken::Unwanted) => tracing::warn!(
                shard = self.id.number(),
                backup,
                "a backup ended early: its client takes no more of it"
            ),
            Err(Broken::Failed(error)) => {
                tracing::error!(shard = self.id.number(), backup, %error, "a backup failed");
                // Or nobody wants to know.
                parts.send(Err(error)).await.unwrap_or_default();
            }
        }
    }

    async fn copy_all(
        self: &Rc<Self>,
        backup: u32,
        pinned: &mut Vec<ShardId>,
        parts: &mut Parts,
    ) -> Result<(), Broken> {
        for shard in self.placement.shards() {
            self.ask(shard, backup, BackupAsk::Pin).await?;
            pinned.push(shard);
        }
        let mut shards = Vec::with_capacity(pinned.len());
        for shard in pinned.iter() {
            match self.ask(*shard, backup, BackupAsk::Cut).await? {
                BackupAnswer::Cut(cut) => shards.push(cut),
                _ => unreachable!("a shard answers what it was asked"),
            }
        }
        let manifest = self.store.manifest_copy().await;
        let places: Vec<_> = pinned.iter().zip(&shards).flat_map(places_of).collect();
        let files: Vec<_> = shards.iter().flat_map(|cut| cut.files.clone()).collect();
        let outline = BackupOutline {
            shards,
            manifest: manifest.map_err(ShardError::from)?,
        };
        parts.send(Ok(BackupPart::Outline(outline))).await?;
        let read = |(shard, place): (ShardId, Place)| async move {
            let answer = self.ask(shard, backup, BackupAsk::Read(place)).await;
            (place, answer)
        };
        let mut files = files.into_iter();
        let mut reads = iter(places).map(read).buffered(limits::BACKUP_READS_AHEAD);
        while let Some((place, answer)) = reads.next().await {
            if place.offset == 0 {
                let file = files.next().expect("each file begins once, in order");
                parts.send(Ok(BackupPart::File(file))).await?;
            }
            match answer? {
                BackupAnswer::Read(bytes) => parts.send(Ok(BackupPart::Bytes(bytes))).await?,
                _ => unreachable!("a shard answers what it was asked"),
            }
            // Files in memory and a fast client would keep this executor for themselves.
            glommio::yield_if_needed().await;
        }
        Ok(())
    }

    /// One step of a backup on any shard. Waits while the mesh has no room: a backup is in no hurry.
    async fn ask(
        self: &Rc<Self>,
        shard: ShardId,
        backup: u32,
        ask: BackupAsk,
    ) -> Result<BackupAnswer, ShardError> {
        if shard == self.id {
            return match self.begin_step(self.id.index(), backup, ask) {
                Step::Done => Ok(BackupAnswer::Done),
                Step::Waits(step) => step.await,
            };
        }
        loop {
            match self.call(shard, Request::Backup { backup, ask }) {
                Ok(reply) => {
                    return match reply.await {
                        Ok(Reply::Backup(answer)) => answer,
                        Ok(_) => unreachable!("a shard replies to what it was asked"),
                        Err(_) => Err(gone()),
                    };
                }
                Err(ShardError::Overloaded(_)) => glommio::timer::sleep(OVERLOADED_RETRY).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Does what the backup of shard `from` asks.
    pub(super) fn serve_backup(self: &Rc<Self>, from: usize, id: u32, backup: u32, ask: BackupAsk) {
        match self.begin_step(from, backup, ask) {
            Step::Done => self.reply(from, id, Reply::Backup(Ok(BackupAnswer::Done))),
            Step::Waits(step) => {
                let shard = Rc::clone(self);
                let task = async move { shard.reply(from, id, Reply::Backup(step.await)) };
                let task = glommio::spawn_local_into(task, self.queues.background)
                    .expect("the queue was made for this executor");
                drop(task.detach());
            }
        }
    }

    /// Begins a step in the order in which it was asked for. A read has its cut when this returns: who asked may have
    /// given up, and let go of the cut, before the disk is asked.
    fn begin_step(self: &Rc<Self>, from: usize, backup: u32, ask: BackupAsk) -> Step {
        let Backups { cuts, .. } = &self.backups;
        match ask {
            BackupAsk::Pin => self.store.pin(),
            BackupAsk::Cut => {
                let shard = Rc::clone(self);
                let step = async move { shard.cut_for(from, backup).await };
                return Step::Waits(Box::pin(step));
            }
            BackupAsk::Read(Place { file, offset, len }) => {
                let cut = cuts.borrow().get(&(from, backup)).map(Rc::clone);
                let cut = cut.expect("a backup asks for reads between its cut and its unpin");
                let step = async move {
                    let bytes = cut.read(file, offset, len).await?;
                    Ok(BackupAnswer::Read(bytes))
                };
                return Step::Waits(Box::pin(step));
            }
            BackupAsk::Unpin => {
                cuts.borrow_mut().remove(&(from, backup));
                self.store.unpin();
            }
        }
        Step::Done
    }

    async fn cut_for(&self, from: usize, backup: u32) -> Result<BackupAnswer, ShardError> {
        let cut = self.store.cut().await?;
        let answer = CutShard {
            last_version: cut.last_version,
            files: cut.files.clone(),
        };
        let mut cuts = self.backups.cuts.borrow_mut();
        cuts.insert((from, backup), Rc::new(cut));
        Ok(BackupAnswer::Cut(answer))
    }
}

/// The chunks of the files of a shard, in order.
fn places_of((shard, cut): (&ShardId, &CutShard)) -> Vec<(ShardId, Place)> {
    let chunk = limits::BACKUP_CHUNK_BYTES_MAX;
    let of_file = |(file, CutFile { bytes, .. }): (usize, &CutFile)| {
        let (shard, bytes) = (*shard, *bytes);
        (0..bytes).step_by(chunk).map(move |offset| {
            let len = (bytes - offset).min(chunk as u64) as usize;
            (shard, Place { file, offset, len })
        })
    };
    let files = cut.files.iter().enumerate();
    files.flat_map(of_file).collect()
}

#[cfg(test)]
mod tests;

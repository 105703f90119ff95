//! One core's share of the key space: owns one store, talks to the other shards by messages.
//!
//! Any shard takes any call: what concerns its own keys it does itself, the rest goes to the owner over the mesh. Nobody
//! but the owner's thread ever touches a store.
//!
//! Guarantees: a write belongs to its shard when `submit` returns, whatever becomes of the caller; an owner asserts that
//! a key is its own; after a failed write the process ends.
//! Does not: know Cap'n Proto, sockets or sessions; check what clients send (`server` does).
//!
//! | file | what it owns |
//! |---|---|
//! | `mesh`, `request` | links between shards, what travels on them |
//! | `room` | memory for what is read and not yet answered |
//! | `gather`, `serve` | the two ends of a call that concerns other shards |
//! | `start` | from the data directory to a shard that runs |
//! | `backup` | a copy of all shards while they serve |
//! | `tasks` | the coroutines of a shard |
//! | `ticket` | how an outcome gets back to who waits |
//! | `stat` | counters |

mod backup;
mod error;
mod gather;
pub mod mesh;
mod request;
pub mod room;
mod serve;
mod start;
mod stat;
mod tasks;
mod ticket;
pub mod turns;

use std::cell::Cell;
use std::ops::Deref;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use futures::channel::oneshot;
use futures::stream::{StreamExt as _, TryStreamExt as _, iter};
use glommio::TaskQueueHandle;

use crate::limits;
use crate::placement::{Placement, ShardId};
use crate::storage::disk::Disk;
use crate::storage::disk::dma::DmaDisk;
use crate::storage::{self, Lookup, Store, Submitted};
use backup::Backups;
use mesh::Mesh;
use request::{OwnedMutation, Reply, Request};
use room::{Lent, Room};
use stat::{Counters, count};
use ticket::Waiter;
use turns::Turns;

pub use crate::storage::snapshot::CutFile;
pub use crate::storage::{
    Change, Condition, Handover, Mutation, Outcome, PrefixQuery, Recovered, StorageError,
    StoreOptions, StoreStat,
};
pub use backup::{BackupOutline, BackupPart, CutShard};
pub use error::ShardError;
pub use gather::{Entry, FoundMany, Page};
pub use start::StartingShard;
pub use stat::ShardStat;
pub use ticket::{BatchTicket, WriteTicket};

/// Values read from disk at the same time for one call.
const READS_AHEAD: usize = 64;

/// How a shard is started.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// The shard.
    pub id: ShardId,
    /// Which shard owns which key.
    pub placement: Placement,
    /// The data directory.
    pub directory: PathBuf,
    /// What its store is opened with.
    pub store: StoreOptions,
    /// What its background reads of sealed segments may take, in bytes per second; 0: there are none.
    pub scrub_rate: u64,
}

/// The task queues of an executor.
#[derive(Debug, Clone, Copy)]
pub struct Queues {
    /// Sessions and reads.
    pub serve: TaskQueueHandle,
    /// The log writer.
    pub commit: TaskQueueHandle,
    /// Compaction: what is written makes dead bytes, so it has to keep up with writers that take all that they get.
    pub compaction: TaskQueueHandle,
    /// Spare segments, the scrub, warming of the cache.
    pub background: TaskQueueHandle,
}

/// A value, wherever it came from.
pub enum Value {
    /// From this shard's store.
    Stored(storage::Value),
    /// From another shard, with the room that it has there.
    Received {
        /// The value.
        bytes: Vec<u8>,
        /// What it occupies there.
        room: Option<Lent>,
    },
}

impl Default for Value {
    /// No bytes.
    fn default() -> Value {
        Value::Received {
            bytes: Vec::new(),
            room: None,
        }
    }
}

impl Value {
    /// The same without the room that it has on its way: a slow reader shall not keep that from others.
    pub fn without_room(self) -> Value {
        match self {
            Value::Received { bytes, .. } => Value::Received { bytes, room: None },
            stored => stored,
        }
    }

    /// Memory that stays in use as long as this lives, in bytes: at least its length.
    pub fn kept_bytes(&self) -> usize {
        match self {
            Value::Stored(value) => value.kept_bytes(),
            Value::Received { bytes, .. } => bytes.capacity(),
        }
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Value::Stored(value) => value,
            Value::Received { bytes, .. } => bytes,
        }
    }
}

/// A value and its version.
pub struct Found {
    /// The value.
    pub value: Value,
    /// Its version.
    pub version: u64,
}

impl From<storage::Found> for Found {
    fn from(found: storage::Found) -> Found {
        Found {
            value: Value::Stored(found.value),
            version: found.version,
        }
    }
}

/// How far a lookup came at once.
pub enum GetBegun {
    /// The answer.
    Answered(Option<Found>),
    /// [`Shard::end_get`] waits for it.
    Waits(WaitingGet),
}

/// A lookup that waits for the disk or for another shard.
pub struct WaitingGet(GetSource);

enum GetSource {
    Disk(storage::DiskRef<<DmaDisk as Disk>::File>),
    Shard(Result<oneshot::Receiver<Reply>, ShardError>),
}

impl WaitingGet {
    /// What is to be read from the disk here, in bytes.
    pub fn bytes_to_read(&self) -> Option<usize> {
        match &self.0 {
            GetSource::Disk(on_disk) => Some(on_disk.value_len()),
            GetSource::Shard(_) => None,
        }
    }
}

/// One executor's shard.
pub struct Shard {
    id: ShardId,
    placement: Placement,
    store: Store<DmaDisk, Waiter>,
    mesh: Rc<Mesh>,
    /// For what is read for each shard, this one included, in shard order.
    rooms: Vec<Rc<Room>>,
    queues: Queues,
    turns: Rc<Turns>,
    scrub_rate: u64,
    counters: Counters,
    committing: Cell<bool>,
    /// A step of compaction is under way: it stages what it copies.
    compacting: Cell<bool>,
    closing: Cell<bool>,
    /// Asks the log writer to end the log.
    end_log: Cell<Option<oneshot::Sender<LogEnded>>>,
    /// The server stops: no more compaction, no more scrub.
    draining: Cell<bool>,
    backups: Backups,
    started: Instant,
    heartbeat: Arc<AtomicU64>,
}

/// Where the log writer tells how the end of the log went.
type LogEnded = oneshot::Sender<Result<(), StorageError>>;

fn gone() -> ShardError {
    ShardError::shutting_down()
}

impl Shard {
    /// The shard.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Which shard owns which key.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// What recovery found.
    pub fn recovered(&self) -> &Recovered {
        self.counters.recovered()
    }

    /// The task queues of this executor.
    pub fn queues(&self) -> Queues {
        self.queues
    }

    /// The turns of those that share this executor.
    pub fn turns(&self) -> &Rc<Turns> {
        &self.turns
    }

    /// Milliseconds since the shard started, renewed by every heartbeat: for a watchdog in another thread.
    pub fn heartbeat(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.heartbeat)
    }

    /// Begins to look up the newest durable value of a key: the answer, if this shard has it in memory.
    pub fn begin_get(&self, key: &[u8]) -> GetBegun {
        let owner = self.placement.owner(key);
        if owner != self.id {
            let request = Request::Get(vec![key.into()]);
            return GetBegun::Waits(WaitingGet(GetSource::Shard(self.call(owner, request))));
        }
        count(&self.counters.gets, 1);
        match self.lookup(key) {
            Lookup::Absent => GetBegun::Answered(None),
            Lookup::Cached(found) => GetBegun::Answered(Some(found.into())),
            Lookup::OnDisk(on_disk) => GetBegun::Waits(WaitingGet(GetSource::Disk(on_disk))),
        }
    }

    /// Goes on with what [`Self::begin_get`] began.
    ///
    /// # Errors
    /// `Corrupt` when the disk does not return what was written, `Overloaded`.
    pub async fn end_get(&self, waiting: WaitingGet) -> Result<Option<Found>, ShardError> {
        match waiting.0 {
            GetSource::Disk(on_disk) => Ok(Some(self.store.read(on_disk).await?.into())),
            GetSource::Shard(reply) => Ok(gather::found_in(reply?.await)?.pop().flatten()),
        }
    }

    fn lookup(&self, key: &[u8]) -> Lookup<<DmaDisk as Disk>::File> {
        debug_assert_eq!(
            self.placement.owner(key),
            self.id,
            "a shard is asked for its own keys"
        );
        self.store.get(key)
    }

    /// The values of keys that are all this shard's, in order, with the room that they have. They are for shard `asks`;
    /// for another one everything is copied, for this one what is in memory is not.
    async fn get_own(&self, keys: &[&[u8]], asks: usize) -> Result<FoundMany, ShardError> {
        count(&self.counters.gets, keys.len() as u64);
        debug_assert!(
            keys.iter().all(|key| self.placement.owner(key) == self.id),
            "a shard is asked for its own keys"
        );
        let (mut room, mut room_bytes) = (None, 0);
        let lookups = loop {
            let lookups = self.store.get_many(keys);
            let (mut bytes, mut copied) = (0, 0);
            for (lookup, key) in lookups.iter().zip(keys) {
                let (value_len, is_copied) = match lookup {
                    Lookup::Absent => continue,
                    Lookup::Cached(found) => (found.value.len(), asks != self.id.index()),
                    Lookup::OnDisk(on_disk) => (on_disk.value_len(), true),
                };
                bytes += key.len() + value_len;
                copied += if is_copied { value_len } else { 0 };
            }
            gather::check_answer(bytes, keys.len())?;
            if copied < limits::READ_COUNTED_BYTES_MIN || copied <= room_bytes {
                break lookups;
            }
            // What is found is not kept while this waits, nor is room that does not suffice: others may have written longer
            // values meanwhile.
            drop((lookups, room.take()));
            room = Some(self.rooms[asks].take(copied).await);
            room_bytes = copied;
        };
        let (mut found, mut on_disk) = (Vec::with_capacity(lookups.len()), Vec::new());
        for (at, lookup) in lookups.into_iter().enumerate() {
            found.push(match lookup {
                Lookup::Absent => None,
                Lookup::Cached(cached) => Some(cached.into()),
                Lookup::OnDisk(place) => {
                    on_disk.push((at, place));
                    None
                }
            });
        }
        let read =
            |(at, place)| async move { Ok::<_, ShardError>((at, self.store.read(place).await?)) };
        let mut reads = iter(on_disk).map(read).buffer_unordered(READS_AHEAD);
        while let Some((at, value)) = reads.try_next().await? {
            found[at] = Some(value.into());
        }
        Ok(FoundMany { found, room })
    }

    /// Takes back the room that other shards do not need any more.
    fn collect_rooms(&self) {
        self.rooms.iter().for_each(Room::collect);
    }

    /// Submits one mutation to its owner. It belongs to the shards when this returns; the ticket tells its outcome.
    pub fn submit(&self, mutation: &Mutation<'_>) -> WriteTicket {
        WriteTicket(self.submit_batch(std::slice::from_ref(mutation)))
    }

    /// As [`Self::submit`], with what is to be done when the outcome is known, in place of a ticket.
    pub fn submit_then(
        &self,
        mutation: &Mutation<'_>,
        then: impl FnOnce(Result<Outcome, ShardError>) + 'static,
    ) {
        let waiter = Waiter::Alone(Box::new(then));
        let owner = self.placement.owner(mutation.key);
        if owner == self.id {
            self.submit_one(mutation, waiter);
        } else {
            self.submit_to(owner, vec![OwnedMutation::new(mutation)], vec![waiter]);
        }
    }

    /// Submits mutations of keys that are all this shard's.
    fn submit_own(&self, mutations: &[Mutation<'_>]) -> BatchTicket {
        let ticket = BatchTicket::new(mutations.len());
        for (at, mutation) in mutations.iter().enumerate() {
            self.submit_one(mutation, ticket.waiter(at));
        }
        ticket
    }

    fn submit_one(&self, mutation: &Mutation<'_>, waiter: Waiter) {
        assert_eq!(
            self.placement.owner(mutation.key),
            self.id,
            "a shard writes its own keys"
        );
        if self.closing.get() {
            return waiter.answer(Err(ShardError::shutting_down()));
        }
        match mutation.change {
            Change::Set(_) => count(&self.counters.sets, 1),
            Change::Delete => count(&self.counters.deletes, 1),
        }
        answer_at_once(self.store.submit(mutation, waiter));
    }

    /// Counts a call of `getPrefix` or `streamPrefix`.
    pub fn count_get_prefix(&self) {
        count(&self.counters.get_prefixes, 1);
    }

    fn call(
        &self,
        owner: ShardId,
        request: Request,
    ) -> Result<oneshot::Receiver<Reply>, ShardError> {
        let keys = request.keys();
        let reply = self.mesh.call(owner, request)?;
        count(&self.counters.forwarded, keys);
        self.flush_soon();
        Ok(reply)
    }

    /// Sends what is for other shards after everything that is ready now has run.
    fn flush_soon(&self) {
        if self.mesh.wants_flush() {
            let mesh = Rc::clone(&self.mesh);
            drop(glommio::spawn_local(async move { mesh.flush() }).detach());
        }
    }

    fn own_stat(&self) -> ShardStat {
        self.counters.stat(self.id.number(), self.store.stat())
    }

    /// Returns when everything that was submitted through this shard is answered, and everything that it owns is
    /// durable. The caller has stopped submitting; other shards may still be at it.
    pub async fn drain(&self) {
        self.draining.set(true);
        while self.mesh.outstanding() > 0
            || self.store.stat().queue_depth > 0
            || self.committing.get()
            || self.compacting.get()
        {
            glommio::timer::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends the log cleanly. To be called when all shards have drained; later writes are refused.
    ///
    /// # Errors
    /// When the closing frame cannot be written; nothing acknowledged is at risk.
    pub async fn close(&self) -> Result<(), StorageError> {
        self.closing.set(true);
        self.drain().await;
        let (ended, end) = oneshot::channel();
        let writer = self.end_log.take().expect("a shard is closed once");
        let _sent = writer.send(ended);
        end.await.expect("the log writer answers before it returns")
    }
}

/// Answers what was not accepted, or needs nothing to be written.
fn answer_at_once(submitted: Submitted<Waiter>) {
    match submitted {
        Submitted::Pending => {}
        Submitted::Answered(outcome, waiter) => waiter.answer(Ok(outcome)),
        Submitted::Rejected(error, waiter) => waiter.answer(Err(error.into())),
    }
}

#[cfg(test)]
mod tests;

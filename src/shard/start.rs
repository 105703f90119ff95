//! From the data directory to a shard that runs, in three steps that all shards take together: it reads what it has to
//! read; it takes in what all of them found and joins the mesh; it begins to tidy up.
//!
//! Guarantees: no file is changed before every shard has read everything; nothing is moved or removed before the server
//! says that it serves.
//! Does not: carry what shards hand over between their threads (the server does).

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use futures::channel::oneshot;
use glommio::{Latency, Shares, Task};

use crate::limits;
use crate::shard::backup::Backups;
use crate::shard::mesh::{Mesh, Seat};
use crate::shard::room::Room;
use crate::shard::stat::Counters;
use crate::shard::{Queues, Shard, ShardConfig, tasks};
use crate::storage::disk::dma::DmaDisk;
use crate::storage::{Handover, Opening, StorageError, read};

/// A shard that has read its logs.
pub struct StartingShard {
    opening: Opening<DmaDisk>,
    config: ShardConfig,
    queues: Queues,
    started: Instant,
    awake: Task<()>,
}

impl StartingShard {
    /// Reads, on this executor, what the shard has to read, and changes nothing. Returns what it hands over to each
    /// shard, in shard order.
    ///
    /// # Errors
    /// As [`read`]; the server cannot start then.
    pub async fn read(config: ShardConfig) -> Result<(StartingShard, Vec<Handover>), StorageError> {
        let started = Instant::now();
        let queue = |shares, name| {
            glommio::executor().create_task_queue(
                Shares::Static(shares),
                Latency::NotImportant,
                name,
            )
        };
        let queues = Queues {
            serve: queue(1000, "serve"),
            commit: queue(1000, "commit"),
            compaction: queue(300, "compaction"),
            background: queue(50, "background"),
        };
        let awake = tasks::keep_awake(queues.serve);
        let placement = config.placement;
        let owner = |key: &[u8]| placement.owner(key).number();
        let disk = DmaDisk::open(&config.directory).map_err(|source| {
            StorageError::io("opening", config.directory.display().to_string(), source)
        })?;
        let (opening, handovers) = read(disk, config.store.clone(), &owner).await?;
        let starting = StartingShard {
            opening,
            config,
            queues,
            started,
            awake,
        };
        Ok((starting, handovers))
    }

    /// Opens the store with what all shards have handed over to this one, joins the mesh and starts the shard's
    /// coroutines. All shards do this at the same time: each returns when the last one has joined.
    ///
    /// # Errors
    /// As [`Opening::finish`]; the server cannot start then.
    pub async fn open(
        self,
        handovers: Vec<Handover>,
        seat: Seat,
    ) -> Result<Rc<Shard>, StorageError> {
        let (store, recovered) = self.opening.finish(handovers).await?;
        let counters = Counters::new(self.started.elapsed(), recovered);
        let (mesh, incoming) = Mesh::join(seat).await;
        let (end_log, log_ends) = oneshot::channel();
        let shard = Rc::new(Shard {
            id: self.config.id,
            placement: self.config.placement,
            store,
            mesh,
            rooms: self
                .config
                .placement
                .shards()
                .map(|_| Room::new(limits::MESH_READS_BYTES_MAX))
                .collect(),
            queues: self.queues,
            turns: Rc::default(),
            scrub_rate: self.config.scrub_rate,
            counters,
            committing: Cell::new(false),
            compacting: Cell::new(false),
            closing: Cell::new(false),
            end_log: Cell::new(Some(end_log)),
            draining: Cell::new(false),
            backups: Backups::default(),
            started: self.started,
            heartbeat: Arc::new(AtomicU64::new(0)),
        });
        tasks::start(&shard, incoming, log_ends);
        // From here on the heartbeat does it.
        drop(self.awake);
        Ok(shard)
    }
}

impl Shard {
    /// Begins compaction. To be called when it is durable that the server has served: what was read at the start is not
    /// read again then.
    pub fn begin_compaction(self: &Rc<Self>) {
        tasks::start_compaction(self);
    }
}

//! fjall: one keyspace of rows, one write batch per commit, with the engine's defaults but for compression, which is off
//! because nothing that this is compared with compresses. With `--sync always` the journal is synced (fdatasync) before a
//! batch becomes visible.

use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::{Changes, Engine, EngineError, Rows, Snapshot, Stored, Sync, split};

/// The only key of the head's keyspace.
const HEAD_KEY: &str = "head";

pub(super) struct FjallEngine {
    database: Database,
    rows: Keyspace,
    head: Keyspace,
    persist: PersistMode,
}

impl FjallEngine {
    pub(super) fn open(
        dir: &Path,
        cache_bytes: usize,
        sync: Sync,
    ) -> Result<FjallEngine, EngineError> {
        let failed = "open the database";
        let database = Database::builder(dir.join("fjall"))
            .cache_size(cache_bytes as u64)
            .open()
            .map_err(EngineError::new(failed))?;
        let keyspace = |name| {
            database
                .keyspace(name, KeyspaceCreateOptions::default)
                .map_err(EngineError::new("open a keyspace"))
        };
        Ok(FjallEngine {
            rows: keyspace("rows")?,
            head: keyspace("head")?,
            persist: match sync {
                Sync::Always => PersistMode::SyncData,
                Sync::None => PersistMode::Buffer,
            },
            database,
        })
    }

    fn batch(&self) -> OwnedWriteBatch {
        self.database.batch().durability(Some(self.persist))
    }
}

impl Engine for FjallEngine {
    fn head(&self) -> Result<Option<Vec<u8>>, EngineError> {
        let head = self
            .head
            .get(HEAD_KEY)
            .map_err(EngineError::new("read the head"))?;
        Ok(head.map(|head| head.to_vec()))
    }

    fn set_head(&self, head: &[u8]) -> Result<(), EngineError> {
        let mut batch = self.batch();
        batch.insert(&self.head, HEAD_KEY, head);
        batch.commit().map_err(EngineError::new("write the head"))
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, EngineError> {
        Ok(Box::new(FjallSnapshot(self.rows.clone())))
    }

    fn commit(&self, changes: Changes<'_>) -> Result<(), EngineError> {
        let mut rows = FjallRows {
            committed: &self.rows,
            pending: HashMap::new(),
        };
        if !changes(&mut rows)? {
            return Ok(());
        }
        let mut batch = self.batch();
        for (key, stored) in rows.pending {
            match stored {
                Some(stored) => batch.insert(&self.rows, key, stored),
                None => batch.remove(&self.rows, key),
            }
        }
        batch.commit().map_err(EngineError::new("commit"))
    }
}

/// What is committed when it is asked.
struct FjallSnapshot(Keyspace);

impl Snapshot for FjallSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Stored<'_>>, EngineError> {
        let found = self.0.get(key).map_err(EngineError::new("read a key"))?;
        Ok(found.map(Stored::Fjall))
    }

    fn scan(
        &self,
        from: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), EngineError> {
        for row in self.0.range::<&[u8], _>((from, Bound::Unbounded)) {
            let (key, stored) = row
                .into_inner()
                .map_err(EngineError::new("read keys in order"))?;
            if !each(&key, &stored) {
                break;
            }
        }
        Ok(())
    }
}

/// What becomes a batch. A batch of fjall neither reads its own writes nor orders two writes of one key, so the changes are
/// kept here until it is made.
struct FjallRows<'a> {
    committed: &'a Keyspace,
    /// What is to be stored; none: removed.
    pending: HashMap<Vec<u8>, Option<Vec<u8>>>,
}

impl FjallRows<'_> {
    fn contains(&self, key: &[u8]) -> Result<bool, EngineError> {
        if let Some(stored) = self.pending.get(key) {
            return Ok(stored.is_some());
        }
        self.committed
            .contains_key(key)
            .map_err(EngineError::new("read a key"))
    }
}

impl Rows for FjallRows<'_> {
    fn version(&mut self, key: &[u8]) -> Result<Option<u64>, EngineError> {
        if let Some(stored) = self.pending.get(key) {
            return Ok(stored.as_deref().map(|stored| split(stored).0));
        }
        let found = self
            .committed
            .get(key)
            .map_err(EngineError::new("read a key"))?;
        Ok(found.map(|stored| split(&stored).0))
    }

    fn put(&mut self, key: &[u8], stored: Vec<u8>) -> Result<bool, EngineError> {
        let existed = self.contains(key)?;
        self.pending.insert(key.to_vec(), Some(stored));
        Ok(existed)
    }

    fn remove(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        let existed = self.contains(key)?;
        if existed {
            self.pending.insert(key.to_vec(), None);
        }
        Ok(existed)
    }
}

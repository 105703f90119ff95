//! redb: one file, one table of rows, one transaction per commit, with the engine's defaults (one fdatasync for each).
//!
//! `--sync none` keeps the transactions and leaves out the sync. redb's own `Durability::None` would keep the pages that
//! it frees until the next durable commit, so the file would grow without end.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::Path;

use ::redb::backends::FileBackend;
use ::redb::{
    BackendError, Builder, Database, ReadOnlyTable, ReadableDatabase, ReadableTable,
    StorageBackend, Table, TableDefinition,
};

use super::{Changes, Engine, EngineError, Rows, Snapshot, Stored, Sync, split};

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
const HEAD: TableDefinition<'_, (), &[u8]> = TableDefinition::new("head");

const FILE: &str = "orlop-bench.redb";

pub(super) struct RedbEngine {
    database: Database,
}

impl RedbEngine {
    pub(super) fn open(
        dir: &Path,
        cache_bytes: usize,
        sync: Sync,
    ) -> Result<RedbEngine, EngineError> {
        let failed = "open the database";
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(FILE))
            .map_err(EngineError::new(failed))?;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(EngineError::new("sync the directory"))?;
        let backend = FileBackend::new(file).map_err(EngineError::new(failed))?;
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        let database = match sync {
            Sync::Always => builder.create_with_backend(backend),
            Sync::None => builder.create_with_backend(Unsynced(backend)),
        };
        let engine = RedbEngine {
            database: database.map_err(EngineError::new(failed))?,
        };
        // Readers cannot create a table.
        engine.commit(Box::new(|_| Ok(true)))?;
        Ok(engine)
    }
}

impl Engine for RedbEngine {
    fn head(&self) -> Result<Option<Vec<u8>>, EngineError> {
        let failed = "read the head";
        let transaction = self
            .database
            .begin_read()
            .map_err(EngineError::new(failed))?;
        let table = match transaction.open_table(HEAD) {
            Err(::redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table.map_err(EngineError::new(failed))?,
        };
        let head = table.get(()).map_err(EngineError::new(failed))?;
        Ok(head.map(|head| head.value().to_vec()))
    }

    fn set_head(&self, head: &[u8]) -> Result<(), EngineError> {
        let failed = "write the head";
        let transaction = self
            .database
            .begin_write()
            .map_err(EngineError::new(failed))?;
        {
            let mut table = transaction
                .open_table(HEAD)
                .map_err(EngineError::new(failed))?;
            table.insert((), head).map_err(EngineError::new(failed))?;
        }
        transaction.commit().map_err(EngineError::new(failed))
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, EngineError> {
        let failed = "begin to read";
        let transaction = self
            .database
            .begin_read()
            .map_err(EngineError::new(failed))?;
        let table = transaction
            .open_table(ROWS)
            .map_err(EngineError::new(failed))?;
        Ok(Box::new(RedbSnapshot(table)))
    }

    fn commit(&self, changes: Changes<'_>) -> Result<(), EngineError> {
        let transaction = self
            .database
            .begin_write()
            .map_err(EngineError::new("begin a transaction"))?;
        let changed = {
            let table = transaction
                .open_table(ROWS)
                .map_err(EngineError::new("open the table"))?;
            changes(&mut RedbRows(table))?
        };
        if changed {
            transaction.commit().map_err(EngineError::new("commit"))
        } else {
            transaction
                .abort()
                .map_err(EngineError::new("end a transaction"))
        }
    }
}

struct RedbSnapshot(ReadOnlyTable<&'static [u8], &'static [u8]>);

impl Snapshot for RedbSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Stored<'_>>, EngineError> {
        let found = ReadableTable::get(&self.0, key).map_err(EngineError::new("read a key"))?;
        Ok(found.map(Stored::Redb))
    }

    fn scan(
        &self,
        from: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), EngineError> {
        let failed = "read keys in order";
        let rows = ReadableTable::range::<&[u8]>(&self.0, (from, Bound::Unbounded))
            .map_err(EngineError::new(failed))?;
        for row in rows {
            let (key, stored) = row.map_err(EngineError::new(failed))?;
            if !each(key.value(), stored.value()) {
                break;
            }
        }
        Ok(())
    }
}

struct RedbRows<'txn>(Table<'txn, &'static [u8], &'static [u8]>);

impl Rows for RedbRows<'_> {
    fn version(&mut self, key: &[u8]) -> Result<Option<u64>, EngineError> {
        let found = self.0.get(key).map_err(EngineError::new("read a key"))?;
        Ok(found.map(|stored| split(stored.value()).0))
    }

    fn put(&mut self, key: &[u8], stored: Vec<u8>) -> Result<bool, EngineError> {
        let before = self
            .0
            .insert(key, stored.as_slice())
            .map_err(EngineError::new("write a key"))?;
        Ok(before.is_some())
    }

    fn remove(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        let before = self
            .0
            .remove(key)
            .map_err(EngineError::new("remove a key"))?;
        Ok(before.is_some())
    }
}

/// The file without its syncs.
#[derive(Debug)]
struct Unsynced(FileBackend);

impl StorageBackend for Unsynced {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

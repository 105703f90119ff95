//! A server for the client's tests: the whole schema over a `BTreeMap`, with an error to order. The tests
//! of the command line tool use it too; that is why it finds the library through its parent.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use capnp_rpc::rpc_twoparty_capnp::Side;
use futures::io::{AsyncRead, AsyncWrite};

use super::library::limits;
use super::library::proto::orlop_capnp::{
    bootstrap, condition, entry, lookup, mutation, outcome, store,
};
use super::library::wire::{Connection, Setup, WireLimits};

/// Values and their versions.
type Rows = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

/// What the server says of its shards.
pub(super) struct Shards {
    pub(super) store_uuid: [u8; 16],
    pub(super) hash: &'static str,
    pub(super) ports: Vec<u16>,
}

impl Default for Shards {
    fn default() -> Self {
        Self {
            store_uuid: [9; 16],
            hash: "xxh3-64",
            ports: vec![6001, 6002],
        }
    }
}

/// The seed of its placement.
pub(super) const SEED: u64 = 77;

#[derive(Default)]
pub(super) struct Fake {
    pub(super) map: Rc<RefCell<Rows>>,
    pub(super) last_version: Rc<Cell<u64>>,
    pub(super) shards: Rc<RefCell<Shards>>,
    /// The next calls are answered with this.
    pub(super) error: RefCell<Option<capnp::Error>>,
    /// Calls are received and never answered.
    pub(super) silent: Cell<bool>,
    /// Sets are done and never answered.
    pub(super) forgetful: Cell<bool>,
    /// What `backup` sends.
    pub(super) copy: RefCell<Vec<Part>>,
    pub(super) calls: Cell<usize>,
    pub(super) opens: Cell<usize>,
}

/// A call of the sink of `backup`.
#[derive(Clone)]
pub(super) enum Part {
    /// Numbers of files and bytes.
    Begin(u32, u64),
    /// Name, bytes and full length.
    File(&'static str, u64, u64),
    Chunk(&'static [u8]),
}

const LIMITS: WireLimits = WireLimits {
    message_bytes_max: limits::MESSAGE_BYTES_MAX,
    bytes_in_max: limits::CONNECTION_BYTES_IN_MAX,
    bytes_out_max: limits::CONNECTION_BYTES_OUT_MAX,
};

/// Serves one connection.
pub(super) fn serve<R, W>(fake: &Rc<Fake>, reader: R, writer: W) -> Connection<R, W>
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    let (setup, _) = Setup::new(reader, writer, Side::Server, LIMITS);
    let bootstrap: bootstrap::Client = capnp_rpc::new_client(Door(Rc::clone(fake)));
    setup.start(Some(bootstrap.client))
}

struct Door(Rc<Fake>);
struct Room(Rc<Fake>);

impl bootstrap::Server for Door {
    async fn open(
        self: Rc<Self>,
        _: bootstrap::OpenParams,
        mut results: bootstrap::OpenResults,
    ) -> Result<(), capnp::Error> {
        self.0.opens.set(self.0.opens.get() + 1);
        results
            .get()
            .set_store(capnp_rpc::new_client(Room(Rc::clone(&self.0))));
        Ok(())
    }

    async fn info(
        self: Rc<Self>,
        _: bootstrap::InfoParams,
        mut results: bootstrap::InfoResults,
    ) -> Result<(), capnp::Error> {
        let shards = self.0.shards.borrow();
        let mut info = results.get().init_info();
        info.set_server_version("1.2.3");
        info.set_store_uuid(&shards.store_uuid);
        let mut limits = info.reborrow().init_limits();
        limits.set_key_bytes_max(65_535);
        limits.set_value_bytes_max(16 << 20);
        limits.set_batch_max(10_000);
        let mut placement = info.reborrow().init_placement();
        placement.set_hash(shards.hash);
        placement.set_seed(SEED);
        placement.set_shard_count(shards.ports.len() as u32);
        info.set_shard_ports(&shards.ports[..])
    }
}

impl Fake {
    async fn enter(&self) -> Result<(), capnp::Error> {
        self.calls.set(self.calls.get() + 1);
        if self.silent.get() {
            futures::future::pending::<()>().await;
        }
        match &*self.error.borrow() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn look_up(&self, key: &[u8], mut into: lookup::Builder<'_>) {
        match self.map.borrow().get(key) {
            None => into.set_absent(()),
            Some((value, version)) => {
                let mut found = into.init_found();
                found.set_value(value);
                found.set_version(*version);
            }
        }
    }

    fn apply(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        condition: condition::Reader<'_>,
        mut into: outcome::Builder<'_>,
    ) -> Result<(), capnp::Error> {
        let mut map = self.map.borrow_mut();
        let current = map.get(key).map(|(_, version)| *version);
        let holds = match condition.which()? {
            condition::None(()) => true,
            condition::IfAbsent(()) => current.is_none(),
            condition::IfPresent(()) => current.is_some(),
            condition::IfVersion(version) => current == Some(version),
        };
        into.set_existed(current.is_some());
        if !holds {
            into.init_refused().set_current(current.unwrap_or(0));
            return Ok(());
        }
        let mut version = 0;
        if value.is_some() || current.is_some() {
            self.last_version.set(self.last_version.get() + 1);
            version = self.last_version.get();
        }
        match value {
            Some(value) => drop(map.insert(key.to_vec(), (value.to_vec(), version))),
            None => drop(map.remove(key)),
        }
        into.init_written().set_version(version);
        Ok(())
    }
}

type Row = (Vec<u8>, Vec<u8>, u64);

fn fill(rows: &[Row], mut into: capnp::struct_list::Builder<'_, entry::Owned>) {
    for (index, (key, value, version)) in (0..).zip(rows) {
        let mut entry = into.reborrow().get(index);
        entry.set_key(key);
        entry.set_value(value);
        entry.set_version(*version);
    }
}

impl Fake {
    fn rows(&self, prefix: &[u8], keys_only: bool) -> Vec<Row> {
        let map = self.map.borrow();
        map.iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, (value, version))| {
                (
                    key.clone(),
                    if keys_only { Vec::new() } else { value.clone() },
                    *version,
                )
            })
            .collect()
    }
}

impl store::Server for Room {
    async fn get(
        self: Rc<Self>,
        params: store::GetParams,
        mut results: store::GetResults,
    ) -> Result<(), capnp::Error> {
        self.0.enter().await?;
        self.0
            .look_up(params.get()?.get_key()?, results.get().init_lookup());
        Ok(())
    }

    async fn set(
        self: Rc<Self>,
        params: store::SetParams,
        mut results: store::SetResults,
    ) -> Result<(), capnp::Error> {
        self.0.enter().await?;
        let params = params.get()?;
        let outcome = results.get().init_outcome();
        self.0.apply(
            params.get_key()?,
            Some(params.get_value()?),
            params.get_condition()?,
            outcome,
        )?;
        if self.0.forgetful.get() {
            futures::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn delete(
        self: Rc<Self>,
        params: store::DeleteParams,
        mut results: store::DeleteResults,
    ) -> Result<(), capnp::Error> {
        self.0.enter().await?;
        let params = params.get()?;
        let outcome = results.get().init_outcome();
        self.0
            .apply(params.get_key()?, None, params.get_condition()?, outcome)
    }

    async fn get_many(
        self: Rc<Self>,
        params: store::GetManyParams,
        mut results: store::GetManyResults,
    ) -> Result<(), capnp::Error> {
        self.0.enter().await?;
        let keys = params.get()?.get_keys()?;
        let mut lookups = results.get().init_lookups(keys.len());
        for (index, key) in (0..).zip(keys.iter()) {
            self.0.look_up(key?, lookups.reborrow().get(index));
        }
        Ok(())
    }

    async fn write(
        self: Rc<Self>,
        params: store::WriteParams,
        mut results: store::WriteResults,
    ) -> Result<(), capnp::Error> {
        self.0.enter().await?;
        let mutations = params.get()?.get_mutations()?;
        let mut outcomes = results.get().init_outcomes(mutations.len());
        for (index, mutation) in (0..).zip(mutations.iter()) {
            let mut outcome = outcomes.reborrow().get(index);
            let value = match mutation.which()? {
                mutation::Set(value) => Some(value?),
                mutation::Delete(()) => None,
            };
            if value == Some(b"too much") {
                outcome.set_failed("outOfSpace: the disk is full");
                continue;
            }
            self.0.apply(
                mutation.get_key()?,
                value,
                mutation.get_condition()?,
                outcome,
            )?;
        }
        Ok(())
    }

    async fn get_prefix(
        self: Rc<Self>,
        params: store::GetPrefixParams,
        mut results: store::GetPrefixResults,
    ) -> Result<(), capnp::Error> {
        self.0.enter().await?;
        let params = params.get()?;
        let mut rows = self.0.rows(params.get_prefix()?, params.get_keys_only());
        let after = params.get_after()?;
        rows.retain(|(key, _, _)| &key[..] > after);
        let more = rows.len() > params.get_max_entries() as usize;
        rows.truncate(params.get_max_entries() as usize);
        let mut results = results.get();
        results.set_more(more);
        fill(&rows, results.init_entries(rows.len() as u32));
        Ok(())
    }

    async fn stream_prefix(
        self: Rc<Self>,
        params: store::StreamPrefixParams,
        mut results: store::StreamPrefixResults,
    ) -> Result<(), capnp::Error> {
        self.0.enter().await?;
        let params = params.get()?;
        let rows = self.0.rows(params.get_prefix()?, params.get_keys_only());
        let sink = params.get_sink()?;
        for batch in rows.chunks(3) {
            let mut push = sink.push_request();
            fill(batch, push.get().init_entries(batch.len() as u32));
            push.send().promise.await?;
        }
        results.get().set_count(rows.len() as u64);
        Ok(())
    }

    async fn backup(
        self: Rc<Self>,
        params: store::BackupParams,
        mut results: store::BackupResults,
    ) -> Result<(), capnp::Error> {
        self.0.enter().await?;
        let sink = params.get()?.get_sink()?;
        let parts = self.0.copy.borrow().clone();
        for part in parts {
            match part {
                Part::Begin(files, bytes) => {
                    let mut call = sink.begin_request();
                    let mut outline = call.get().init_outline();
                    outline.set_store_uuid(&[9; 16]);
                    outline.set_files(files);
                    outline.set_bytes(bytes);
                    results.get().set_files(files);
                    results.get().set_bytes(bytes);
                    drop(call.send().promise.await?);
                }
                Part::File(name, bytes, full_bytes) => {
                    let mut call = sink.file_request();
                    call.get().set_name(name);
                    call.get().set_bytes(bytes);
                    call.get().set_full_bytes(full_bytes);
                    drop(call.send().promise.await?);
                }
                Part::Chunk(data) => {
                    let mut call = sink.chunk_request();
                    call.get().set_data(data);
                    drop(call.send().promise.await?);
                }
            }
        }
        Ok(())
    }

    async fn stat(
        self: Rc<Self>,
        _: store::StatParams,
        mut results: store::StatResults,
    ) -> Result<(), capnp::Error> {
        self.0.enter().await?;
        let mut stat = results.get().init_stat();
        stat.set_server_version("1.2.3");
        stat.set_keys(self.0.map.borrow().len() as u64);
        stat.set_connections(3);
        let mut shards = stat.init_shards(2);
        shards.reborrow().get(1).set_shard(1);
        shards.reborrow().get(1).set_commit_p99_us(170);
        shards.get(1).set_warming(true);
        Ok(())
    }
}

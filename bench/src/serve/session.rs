//! One connection: the schema's methods over the store. The hot ones are answered by `direct` unless something is unusual.
//!
//! Not there: `streamPrefix` and `backup`, which are answered `unimplemented`.

use std::rc::Rc;

use capnp::Error;
use capnp_rpc::rpc_twoparty_capnp::Side;
use orlop::client::tokio::Compat;
use orlop::limits;
use orlop::proto::ErrorWord;
use orlop::proto::orlop_capnp::{bootstrap, lookup, outcome, store};
use orlop::wire::{Meter, Setup, WireLimits};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::committer::{Outcome, Writes};
use super::decode;
use super::direct::DirectStore;
use super::engine::{Stored, split};
use super::store::{Store, refused};

const WIRE_LIMITS: WireLimits = WireLimits {
    message_bytes_max: limits::MESSAGE_BYTES_MAX,
    bytes_in_max: limits::CONNECTION_BYTES_IN_MAX,
    bytes_out_max: limits::CONNECTION_BYTES_OUT_MAX,
};

/// What the methods of one connection share.
pub(super) struct Session {
    pub(super) store: Rc<Store>,
    meter: Rc<Meter>,
}

/// Serves one connection to its end, which only its peer hears of.
pub(super) async fn serve(store: Rc<Store>, stream: TcpStream) {
    let (reader, writer) = stream.into_split();
    let (mut setup, meter) = Setup::new(
        Compat::new(reader),
        Compat::new(writer),
        Side::Server,
        WIRE_LIMITS,
    );
    let connections = &store.counters.connections;
    connections.set(connections.get() + 1);
    let session = Rc::new(Session {
        store: Rc::clone(&store),
        meter,
    });
    setup.answer_directly(Rc::new(DirectStore::new(Rc::clone(&session))));
    let bootstrap: bootstrap::Client = capnp_rpc::new_client(Bootstrap(session));
    drop(setup.start(Some(bootstrap.client)).await);
    connections.set(connections.get() - 1);
}

impl Session {
    /// Makes sure that the peer reads its answers before another one of `bytes` is made.
    pub(super) fn reserve_answer(&self, bytes: usize) -> Result<(), Error> {
        if self.meter.reserve_answer(bytes) {
            return Ok(());
        }
        Err(ErrorWord::Overloaded.error("too many answers wait to be read: read them first"))
    }

    /// Waits until the writes are committed.
    async fn write(&self, writes: Writes) -> Result<Vec<Outcome>, Error> {
        let (sender, receiver) = oneshot::channel();
        self.store.submit(writes, |outcomes| {
            // The call may have gone; its writes have not.
            drop(sender.send(outcomes.to_vec()));
        })?;
        receiver
            .await
            .map_err(|_| ErrorWord::ShuttingDown.error("the server ends"))
    }
}

struct Bootstrap(Rc<Session>);
struct StoreService(Rc<Session>);

impl bootstrap::Server for Bootstrap {
    async fn open(
        self: Rc<Self>,
        _: bootstrap::OpenParams,
        mut results: bootstrap::OpenResults,
    ) -> Result<(), Error> {
        let store = StoreService(Rc::clone(&self.0));
        results.get().set_store(capnp_rpc::new_client(store));
        Ok(())
    }

    async fn info(
        self: Rc<Self>,
        _: bootstrap::InfoParams,
        mut results: bootstrap::InfoResults,
    ) -> Result<(), Error> {
        let store = &self.0.store;
        let mut info = results.get().init_info();
        info.set_server_version(version(store));
        info.set_store_uuid(&store.uuid);
        let mut bounds = info.reborrow().init_limits();
        bounds.set_key_bytes_max(limits::KEY_LEN_MAX as u32);
        bounds.set_value_bytes_max(limits::VALUE_LEN_MAX as u32);
        bounds.set_message_bytes_max(limits::MESSAGE_BYTES_MAX as u32);
        bounds.set_batch_max(limits::BATCH_MAX as u32);
        bounds.set_page_entries_max(limits::PAGE_ENTRIES_MAX as u32);
        bounds.set_page_bytes_max(limits::PAGE_BYTES_MAX as u32);
        bounds.set_answer_bytes_max(limits::ANSWER_BYTES_MAX as u32);
        // Bytes in flight are bounded, calls are not counted.
        bounds.set_connection_calls_max(u32::MAX);
        let mut placement = info.reborrow().init_placement();
        placement.set_hash("xxh3-64");
        placement.set_shard_count(1);
        info.set_shard_ports(&[store.port][..])
    }
}

fn version(store: &Store) -> String {
    format!("orlop-bench {} {}", env!("CARGO_PKG_VERSION"), store.name)
}

impl store::Server for StoreService {
    async fn get(
        self: Rc<Self>,
        params: store::GetParams,
        mut results: store::GetResults,
    ) -> Result<(), Error> {
        let session = &self.0;
        let key = decode::key(params.get()?.get_key()?)?;
        session.store.count_gets(1);
        let snapshot = session.store.snapshot()?;
        let found = snapshot.get(key).map_err(refused)?;
        session.reserve_answer(found.as_deref().map_or(0, <[u8]>::len))?;
        fill_lookup(found.as_ref(), results.get().init_lookup());
        Ok(())
    }

    async fn set(
        self: Rc<Self>,
        params: store::SetParams,
        mut results: store::SetResults,
    ) -> Result<(), Error> {
        let request = params.get()?;
        let (key, value) = (request.get_key()?, request.get_value()?);
        let write = decode::set(key, value, request.get_condition()?)?;
        let outcomes = self.0.write(vec![write]).await?;
        fill_outcome(outcomes[0], results.get().init_outcome());
        Ok(())
    }

    async fn delete(
        self: Rc<Self>,
        params: store::DeleteParams,
        mut results: store::DeleteResults,
    ) -> Result<(), Error> {
        let request = params.get()?;
        let write = decode::delete(request.get_key()?, request.get_condition()?)?;
        let outcomes = self.0.write(vec![write]).await?;
        fill_outcome(outcomes[0], results.get().init_outcome());
        Ok(())
    }

    async fn get_many(
        self: Rc<Self>,
        params: store::GetManyParams,
        mut results: store::GetManyResults,
    ) -> Result<(), Error> {
        let keys = decode::keys(params.get()?.get_keys()?)?;
        let store = &self.0.store;
        let snapshot = store.snapshot()?;
        let found = look_up_all(store, &*snapshot, &keys)?;
        self.0.reserve_answer(found_bytes(&found))?;
        fill_lookups(&found, results.get());
        Ok(())
    }

    async fn write(
        self: Rc<Self>,
        params: store::WriteParams,
        mut results: store::WriteResults,
    ) -> Result<(), Error> {
        let writes = decode::writes(params.get()?.get_mutations()?)?;
        let outcomes = self.0.write(writes).await?;
        fill_outcomes(&outcomes, results.get());
        Ok(())
    }

    async fn get_prefix(
        self: Rc<Self>,
        params: store::GetPrefixParams,
        mut results: store::GetPrefixResults,
    ) -> Result<(), Error> {
        let page = self.0.store.page(&decode::page(params.get()?)?)?;
        let bytes = |row: &super::store::Row| row.key.len() + row.value.len();
        self.0.reserve_answer(page.rows.iter().map(bytes).sum())?;
        let mut answer = results.get();
        answer.set_more(page.more);
        let mut entries = answer.init_entries(page.rows.len() as u32);
        for (at, row) in (0..).zip(&page.rows) {
            let mut entry = entries.reborrow().get(at);
            entry.set_key(&row.key);
            entry.set_value(&row.value);
            entry.set_version(row.version);
        }
        Ok(())
    }

    async fn stat(
        self: Rc<Self>,
        _: store::StatParams,
        mut results: store::StatResults,
    ) -> Result<(), Error> {
        let store = &self.0.store;
        let (uptime_ms, started_at_unix_ms) = store.times_ms();
        let mut stat = results.get().init_stat();
        stat.set_server_version(version(store));
        stat.set_store_uuid(&store.uuid);
        stat.set_uptime_ms(uptime_ms);
        stat.set_started_at_unix_ms(started_at_unix_ms);
        stat.set_sets(store.counters.sets.get());
        stat.set_gets(store.counters.gets.get());
        stat.set_deletes(store.counters.deletes.get());
        stat.set_get_prefixes(store.counters.get_prefixes.get());
        stat.set_connections(store.counters.connections.get());
        stat.set_resident_bytes(crate::process::resident_bytes());
        Ok(())
    }
}

/// What is stored under each key.
pub(super) fn look_up_all<'a>(
    store: &Store,
    snapshot: &'a dyn super::engine::Snapshot,
    keys: &[&[u8]],
) -> Result<Vec<Option<Stored<'a>>>, Error> {
    store.count_gets(keys.len());
    let mut found = Vec::with_capacity(keys.len());
    let mut bytes = 0;
    for key in keys {
        let stored = snapshot.get(key).map_err(refused)?;
        bytes += stored.as_deref().map_or(0, <[u8]>::len);
        if bytes > limits::ANSWER_BYTES_MAX && keys.len() > 1 {
            return Err(ErrorWord::InvalidArgument.error(format_args!(
                "the answer is over {} bytes: ask for fewer than {} keys",
                limits::ANSWER_BYTES_MAX,
                keys.len()
            )));
        }
        found.push(stored);
    }
    Ok(found)
}

/// Bytes of an answer's values.
pub(super) fn found_bytes(found: &[Option<Stored<'_>>]) -> usize {
    let bytes = |stored: &Option<Stored<'_>>| stored.as_deref().map_or(0, <[u8]>::len);
    found.iter().map(bytes).sum()
}

pub(super) fn fill_lookup(found: Option<&Stored<'_>>, mut to: lookup::Builder<'_>) {
    match found {
        Some(found) => {
            let (version, value) = split(found);
            let mut to = to.init_found();
            to.set_value(value);
            to.set_version(version);
        }
        None => to.set_absent(()),
    }
}

pub(super) fn fill_lookups(found: &[Option<Stored<'_>>], to: store::get_many_results::Builder<'_>) {
    let mut lookups = to.init_lookups(found.len() as u32);
    for (at, found) in (0..).zip(found) {
        fill_lookup(found.as_ref(), lookups.reborrow().get(at));
    }
}

fn fill_outcome(from: Outcome, mut to: outcome::Builder<'_>) {
    match from {
        Outcome::Written { version, existed } => {
            to.set_existed(existed);
            to.init_written().set_version(version);
        }
        Outcome::Refused { current } => {
            to.set_existed(current.is_some());
            to.init_refused().set_current(current.unwrap_or(0));
        }
    }
}

pub(super) fn fill_outcomes(outcomes: &[Outcome], to: store::write_results::Builder<'_>) {
    let mut to = to.init_outcomes(outcomes.len() as u32);
    for (at, outcome) in (0..).zip(outcomes) {
        fill_outcome(*outcome, to.reborrow().get(at));
    }
}

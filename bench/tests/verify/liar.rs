//! A small server with one fault: everything that the load generator asks for, over a map, on a thread of its own.
//!
//! The first `HONEST_CALLS` calls are answered rightly, so that the load generator has something to hold against the lie.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use capnp_rpc::rpc_twoparty_capnp::Side;
use orlop::limits;
use orlop::proto::orlop_capnp::{bootstrap, entry, lookup, mutation, outcome, store};
use orlop::wire::{Setup, WireLimits};
use tokio::sync::Notify;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

const HONEST_CALLS: u64 = 300;

/// How the server errs after its honest calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    None,
    /// Reads show the version before the newest.
    Stale,
    /// Reads find nothing.
    Absent,
    /// Reads of many keys find nothing; from the first call on.
    AbsentInBatches,
    /// Sets are acknowledged and forgotten.
    NotStored,
    /// Reads show the value of another key.
    OtherKey,
    /// Reads show half of the newest and half of the previous value.
    Torn,
    /// Sets are answered with the version before.
    SameVersion,
    /// Reads show the newest value with the next version.
    WrongVersion,
    /// Pages lack their first entry.
    ShortPage,
    /// Pages have their first entry twice, at both ends.
    UnorderedPage,
    /// Every third call is answered `overloaded`; no lie.
    Overloaded,
    /// Sets are answered `overloaded` and done.
    RefusedAndDone,
    OutOfSpace,
    /// Connections are closed.
    HangUp,
}

/// The last two values of a key with their versions, the newest last.
type History = Vec<(Vec<u8>, u64)>;

/// A key and its newest value and version.
type Row<'a> = (&'a Vec<u8>, &'a (Vec<u8>, u64));

struct State {
    lie: Lie,
    rows: Mutex<BTreeMap<Vec<u8>, History>>,
    last_version: AtomicU64,
    calls: AtomicU64,
    sets: AtomicU64,
    /// Told when the honest calls are over.
    reached: mpsc::Sender<()>,
    hang_up: Notify,
    stop: Notify,
}

pub(crate) struct Server {
    pub(crate) address: String,
    state: Arc<State>,
    reached: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(lie: Lie) -> Server {
        let (reached, was_reached) = mpsc::channel();
        let state = Arc::new(State {
            lie,
            rows: Mutex::default(),
            last_version: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            sets: AtomicU64::new(0),
            reached,
            hang_up: Notify::new(),
            stop: Notify::new(),
        });
        let (address, bound) = mpsc::channel();
        let served = state.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.expect("a runtime");
            tokio::task::LocalSet::new().block_on(&runtime, serve(served, address));
        });
        let address = bound.recv().expect("the server binds");
        Server {
            address,
            state,
            reached: was_reached,
            thread: Some(thread),
        }
    }

    /// Blocks until the honest calls are over.
    pub(crate) fn wait_for_calls(&self) {
        self.reached.recv().expect("the server runs");
    }

    /// Sets that were done.
    pub(crate) fn sets(&self) -> u64 {
        self.state.sets.load(Ordering::SeqCst)
    }

    pub(crate) fn lose_a_key(&self) {
        self.state
            .rows()
            .pop_first()
            .expect("something was written");
    }

    /// Stops and gives the address at which nobody listens any more.
    pub(crate) fn stop(self) -> String {
        self.address.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }
}

async fn serve(state: Arc<State>, address: mpsc::Sender<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let bound = listener.local_addr().expect("an address").to_string();
    address.send(bound).expect("the test waits for the address");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = state.stop.notified() => return,
        };
        let (stream, _) = accepted.expect("a connection");
        stream.set_nodelay(true).expect("an option of every socket");
        let (reader, writer) = stream.into_split();
        let limits = WireLimits {
            message_bytes_max: limits::MESSAGE_BYTES_MAX,
            bytes_in_max: limits::CONNECTION_BYTES_IN_MAX,
            bytes_out_max: limits::CONNECTION_BYTES_OUT_MAX,
        };
        let (setup, _) = Setup::new(reader.compat(), writer.compat_write(), Side::Server, limits);
        let bootstrap: bootstrap::Client = capnp_rpc::new_client(Door(state.clone()));
        let connection = setup.start(Some(bootstrap.client));
        let state = state.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                _ = connection => (),
                () = state.hang_up.notified() => (),
            }
        });
    }
}

impl State {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, History>> {
        self.rows.lock().expect("nobody panics with the lock")
    }

    /// Counts a call. The fault to answer it with, if it is late enough for one.
    fn enter(&self) -> Result<Lie, capnp::Error> {
        let calls = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if calls == HONEST_CALLS {
            // Nobody may be waiting.
            self.reached.send(()).ok();
        }
        if self.lie == Lie::Overloaded && calls.is_multiple_of(3) {
            return Err(capnp::Error::overloaded(
                "overloaded: one call in three".to_owned(),
            ));
        }
        if self.lie == Lie::AbsentInBatches {
            return Ok(self.lie);
        }
        if calls < HONEST_CALLS {
            return Ok(Lie::None);
        }
        match self.lie {
            Lie::OutOfSpace => Err(capnp::Error::failed(
                "outOfSpace: the disk is full".to_owned(),
            )),
            Lie::HangUp => {
                self.hang_up.notify_waiters();
                Ok(Lie::None)
            }
            lie => Ok(lie),
        }
    }

    fn look_up(&self, key: &[u8], lie: Lie, mut into: lookup::Builder<'_>) {
        let rows = self.rows();
        let Some(history) = rows.get(key).filter(|_| lie != Lie::Absent) else {
            return into.set_absent(());
        };
        let (newest, oldest) = (history.last(), history.first());
        let (newest, oldest) = (
            newest.expect("a row has a value"),
            oldest.expect("a row has a value"),
        );
        let other = rows.iter().find(|(other, _)| other.as_slice() != key);
        let (value, version) = match (lie, other) {
            (Lie::Stale, _) => (oldest.0.clone(), oldest.1),
            (Lie::OtherKey, Some((_, other))) => (other[0].0.clone(), newest.1),
            (Lie::Torn, _) => ([&newest.0[..50], &oldest.0[50..]].concat(), newest.1),
            (Lie::WrongVersion, _) => (newest.0.clone(), newest.1 + 1_000_000),
            _ => (newest.0.clone(), newest.1),
        };
        let mut found = into.init_found();
        found.set_value(&value);
        found.set_version(version);
    }

    fn set(&self, key: &[u8], value: &[u8], lie: Lie, mut into: outcome::Builder<'_>) {
        let mut rows = self.rows();
        into.set_existed(rows.contains_key(key));
        let version = self.last_version.fetch_add(1, Ordering::SeqCst) + 1;
        let shown = if lie == Lie::SameVersion { 1 } else { version };
        into.init_written().set_version(shown);
        if lie == Lie::NotStored {
            return;
        }
        self.sets.fetch_add(1, Ordering::SeqCst);
        let history = rows.entry(key.to_vec()).or_default();
        history.push((value.to_vec(), version));
        if history.len() > 2 {
            history.remove(0);
        }
    }
}

struct Door(Arc<State>);
struct Room(Arc<State>);

impl bootstrap::Server for Door {
    async fn open(
        self: Rc<Self>,
        _: bootstrap::OpenParams,
        mut results: bootstrap::OpenResults,
    ) -> Result<(), capnp::Error> {
        results
            .get()
            .set_store(capnp_rpc::new_client(Room(self.0.clone())));
        Ok(())
    }
}

impl store::Server for Room {
    async fn get(
        self: Rc<Self>,
        params: store::GetParams,
        mut results: store::GetResults,
    ) -> Result<(), capnp::Error> {
        let lie = self.0.enter()?;
        self.0
            .look_up(params.get()?.get_key()?, lie, results.get().init_lookup());
        Ok(())
    }

    async fn set(
        self: Rc<Self>,
        params: store::SetParams,
        mut results: store::SetResults,
    ) -> Result<(), capnp::Error> {
        let lie = self.0.enter()?;
        let params = params.get()?;
        self.0.set(
            params.get_key()?,
            params.get_value()?,
            lie,
            results.get().init_outcome(),
        );
        if lie == Lie::RefusedAndDone {
            return Err(capnp::Error::overloaded(
                "overloaded: or so we say".to_owned(),
            ));
        }
        Ok(())
    }

    async fn get_many(
        self: Rc<Self>,
        params: store::GetManyParams,
        mut results: store::GetManyResults,
    ) -> Result<(), capnp::Error> {
        let lie = self.0.enter()?;
        let lie = if lie == Lie::AbsentInBatches {
            Lie::Absent
        } else {
            lie
        };
        let keys = params.get()?.get_keys()?;
        let mut lookups = results.get().init_lookups(keys.len());
        for (index, key) in (0..).zip(keys.iter()) {
            self.0.look_up(key?, lie, lookups.reborrow().get(index));
        }
        Ok(())
    }

    async fn write(
        self: Rc<Self>,
        params: store::WriteParams,
        mut results: store::WriteResults,
    ) -> Result<(), capnp::Error> {
        let lie = self.0.enter()?;
        let mutations = params.get()?.get_mutations()?;
        let mut outcomes = results.get().init_outcomes(mutations.len());
        for (index, mutation) in (0..).zip(mutations.iter()) {
            let mut outcome = outcomes.reborrow().get(index);
            // One mutation in five is refused by itself, as a shard with a full queue would do it.
            if self.0.lie == Lie::Overloaded && index % 5 == 4 {
                outcome.set_failed("overloaded: one mutation in five");
                continue;
            }
            let mutation::Set(value) = mutation.which()? else {
                return Err(capnp::Error::unimplemented(
                    "a load deletes nothing".to_owned(),
                ));
            };
            self.0.set(mutation.get_key()?, value?, lie, outcome);
        }
        Ok(())
    }

    async fn get_prefix(
        self: Rc<Self>,
        params: store::GetPrefixParams,
        mut results: store::GetPrefixResults,
    ) -> Result<(), capnp::Error> {
        let lie = self.0.enter()?;
        let params = params.get()?;
        let (prefix, after) = (params.get_prefix()?, params.get_after()?);
        let rows = self.0.rows();
        let found = rows
            .iter()
            .filter(|(key, _)| key.starts_with(prefix) && key.as_slice() > after)
            .take(params.get_max_entries() as usize);
        let mut found: Vec<_> = found
            .map(|(key, history)| (key, history.last().expect("a value")))
            .collect();
        match lie {
            Lie::ShortPage if !found.is_empty() => drop(found.remove(0)),
            Lie::UnorderedPage if !found.is_empty() => found.push(found[0]),
            _ => (),
        }
        let entries = results.get().init_entries(found.len() as u32);
        fill(entries, &found);
        Ok(())
    }
}

fn fill(mut entries: capnp::struct_list::Builder<'_, entry::Owned>, found: &[Row<'_>]) {
    for (index, (key, (value, version))) in (0..).zip(found) {
        let mut entry = entries.reborrow().get(index);
        entry.set_key(key);
        entry.set_value(value);
        entry.set_version(*version);
    }
}

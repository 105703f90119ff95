//! The Rust client: every operation of the schema as an async method with plain arguments and a typed error.
//!
//! A [`Client`] works over any pair of `futures` byte streams and on any single-threaded executor; it is neither `Send`
//! nor in need of locks. Clones share one connection. Operations may overlap freely: what starts within one turn of the
//! executor leaves in one write, so many futures in flight on one client cost little more than one.
//!
//! An answer to a write comes when the write is durable. If the connection breaks first, the error is
//! [`ClientError::Disconnected`] and the write may be there, whole, or not. The client never repeats a write by itself.
//! Nothing here measures time: wrap an operation in your runtime's timeout if you need one.
//!
//! With the feature `tokio`, [`tokio::connect`] makes connections, [`tokio::ReconnectingClient`] keeps one, and
//! [`tokio::ShardedClient`] keeps one to each shard of the server, which spares every call a hop between its cores:
//!
//! ```no_run
//! # #[cfg(feature = "tokio")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use orlop::client::{Condition, Outcome, tokio::connect};
//!
//! let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! tokio::task::LocalSet::new().block_on(&runtime, async {
//!     let client = connect(&"127.0.0.1:6000".parse()?).await?;
//!     client.set(b"greeting", b"hello").await?;
//!     let found = client.get(b"greeting").await?.expect("it was just written");
//!     assert_eq!(found.value, b"hello");
//!
//!     // Only if nobody has changed it since:
//!     match client.set_if(b"greeting", b"goodbye", Condition::IfVersion(found.version)).await? {
//!         Outcome::Written { version, .. } => println!("now version {version}"),
//!         Outcome::Refused { current } => println!("somebody was faster: {current:?}"),
//!     }
//!
//!     // Many at once, on one connection:
//!     let (a, b) = futures::join!(client.get(b"a"), client.get(b"b"));
//!     println!("{:?} {:?}", a?, b?);
//!     Ok(())
//! })
//! # }
//! # #[cfg(not(feature = "tokio"))]
//! # fn main() {}
//! ```

mod backup;
mod convert;
mod direct;
mod error;
mod sink;
mod stat;
#[cfg(test)]
mod tests;
#[cfg(feature = "tokio")]
pub mod tokio;
mod types;

use std::rc::Rc;

use capnp::capability::RemotePromise;
use capnp_rpc::rpc_twoparty_capnp::Side;
use futures::channel::oneshot;
use futures::future::{Either, select};
use futures::io::{AsyncRead, AsyncWrite};

pub use backup::{BackupOutline, BackupPart, BackupShard};
pub use error::ClientError;
pub use stat::{Limits, Placement, ServerInfo, ShardStat, Stat};
pub use types::{Change, Condition, Entry, Found, Mutation, Outcome, Page, PrefixQuery};

use crate::limits;
use crate::proto::orlop_capnp::{bootstrap, store};
use crate::wire::asker::Asker;
use crate::wire::{self, Gate, Meter, Setup, WireLimits};
use convert::read_entries;
use direct::DataCalls;
use error::malformed;

/// Bytes of a call beside its keys and values: kept free below the server's bound of a message.
const CALL_OVERHEAD_BYTES: usize = 64 << 10;

/// What one key or mutation adds to a call beside its bytes: pointers, versions and padding.
const ITEM_OVERHEAD_BYTES: usize = 64;

/// A connection to an orlop server. See the [module](self).
#[derive(Clone)]
pub struct Client(Rc<Connection>);

/// What the clones of a client share. When the last of them is dropped, the connection is closed.
struct Connection {
    server: bootstrap::Client,
    store: store::Client,
    meter: Rc<Meter>,
    asker: Rc<Asker>,
    /// `capnp_rpc` would give the store back if nobody kept the answer that it came with.
    _opened: RemotePromise<bootstrap::open_results::Owned>,
    _open: oneshot::Sender<()>,
}

impl Client {
    /// A client over a connected stream, and the future that drives it: spawn it beside the client's users. It ends
    /// when the connection does, or when the last clone of the client is dropped.
    pub fn new<R, W>(
        reader: R,
        writer: W,
    ) -> (
        Self,
        impl Future<Output = Result<(), ClientError>> + 'static,
    )
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        // What may be in flight is the caller's own decision. Not reading while much is to be written could block both
        // ends for ever.
        let limits = WireLimits {
            message_bytes_max: limits::CLIENT_MESSAGE_BYTES_MAX,
            bytes_in_max: usize::MAX,
            bytes_out_max: usize::MAX,
        };
        let (mut setup, meter) = Setup::new(reader, writer, Side::Client, limits);
        let asker = setup.ask_directly(direct::OPENING);
        let mut connection = setup.start(None);
        let server: bootstrap::Client = connection.bootstrap();
        // Nobody waits for the store: calls are sent to it before the server has answered.
        let opened = server.open_request().send();
        let store = opened.pipeline.get_store();
        let (open, closed) = oneshot::channel();
        let client = Self(Rc::new(Connection {
            server,
            store,
            meter,
            asker,
            _opened: opened,
            _open: open,
        }));
        (client, drive(connection, closed))
    }

    /// Whether the connection has ended: no operation will succeed any more.
    pub fn is_closed(&self) -> bool {
        self.0.meter.is_closed()
    }

    /// The newest durable value of `key`; `None` if it is absent.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Found>, ClientError> {
        check_call_size(key.len(), 1)?;
        self.calls().get(key).await
    }

    /// Gives `key` this value.
    pub async fn set(&self, key: &[u8], value: &[u8]) -> Result<Outcome, ClientError> {
        self.set_if(key, value, Condition::None).await
    }

    /// Gives `key` this value if `condition` holds.
    pub async fn set_if(
        &self,
        key: &[u8],
        value: &[u8],
        condition: Condition,
    ) -> Result<Outcome, ClientError> {
        check_call_size(key.len() + value.len(), 1)?;
        self.calls().set(key, value, condition).await
    }

    /// Removes `key`.
    pub async fn delete(&self, key: &[u8]) -> Result<Outcome, ClientError> {
        self.delete_if(key, Condition::None).await
    }

    /// Removes `key` if `condition` holds.
    pub async fn delete_if(
        &self,
        key: &[u8],
        condition: Condition,
    ) -> Result<Outcome, ClientError> {
        check_call_size(key.len(), 1)?;
        self.calls().delete(key, condition).await
    }

    /// The values of many keys in one call, in the order of `keys`; each is as if by [`Self::get`].
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
    ) -> Result<Vec<Option<Found>>, ClientError> {
        check_call_size(keys.iter().map(|key| key.as_ref().len()).sum(), keys.len())?;
        let lookups = self.calls().get_many(keys).await?;
        check_answers("lookups", lookups.len(), keys.len())?;
        Ok(lookups)
    }

    /// Many sets and deletes in one call, with one outcome each, in order. Each is durable on its own; there is no
    /// transaction. An error of the call as a whole means that none was written, unless it is
    /// [`ClientError::Disconnected`].
    pub async fn write(
        &self,
        mutations: &[Mutation<'_>],
    ) -> Result<Vec<Result<Outcome, ClientError>>, ClientError> {
        check_call_size(mutations.iter().map(mutation_bytes).sum(), mutations.len())?;
        let outcomes = self.calls().write(mutations).await?;
        check_answers("outcomes", outcomes.len(), mutations.len())?;
        Ok(outcomes)
    }

    /// One page of the keys with a prefix, in order.
    pub async fn get_prefix(&self, query: &PrefixQuery<'_>) -> Result<Page, ClientError> {
        check_call_size(query.prefix.len() + query.after.len(), 1)?;
        let mut request = self.0.store.get_prefix_request();
        let mut params = request.get();
        params.set_prefix(query.prefix);
        params.set_after(query.after);
        params.set_max_entries(query.max_entries);
        params.set_max_bytes(query.max_bytes);
        params.set_keys_only(query.keys_only);
        let response = request
            .send()
            .promise
            .await
            .map_err(|error| self.exception(&error))?;
        let results = response.get().map_err(malformed)?;
        let entries = read_entries(results.get_entries().map_err(malformed)?).map_err(malformed)?;
        Ok(Page {
            entries,
            more: results.get_more(),
        })
    }

    /// All entries with a prefix, in order, batch by batch to `on_batch`; returns their number. The server sends no more
    /// than a few batches ahead. Dropping the future stops the stream; an error from `on_batch` does too and comes back
    /// as [`ClientError::Stopped`].
    pub async fn stream_prefix(
        &self,
        prefix: &[u8],
        keys_only: bool,
        on_batch: impl FnMut(Vec<Entry>) -> Result<(), String> + 'static,
    ) -> Result<u64, ClientError> {
        check_call_size(prefix.len(), 1)?;
        let (sink, refusal) = sink::sink(on_batch);
        let mut request = self.0.store.stream_prefix_request();
        let mut params = request.get();
        params.set_prefix(prefix);
        params.set_sink(sink);
        params.set_keys_only(keys_only);
        let answer = request.send().promise.await;
        if let Some(reason) = refusal.take() {
            return Err(ClientError::Stopped(reason));
        }
        let response = answer.map_err(|error| self.exception(&error))?;
        Ok(response.get().map_err(malformed)?.get_count())
    }

    /// Counters and sizes of the server and of each shard.
    pub async fn stat(&self) -> Result<Stat, ClientError> {
        let answer = self.0.store.stat_request().send().promise.await;
        let response = answer.map_err(|error| self.exception(&error))?;
        Stat::read(
            response
                .get()
                .and_then(|results| results.get_stat())
                .map_err(malformed)?,
        )
    }

    /// Version, limits and placement of the server.
    pub async fn info(&self) -> Result<ServerInfo, ClientError> {
        let answer = self.0.server.info_request().send().promise.await;
        let response = answer.map_err(|error| self.exception(&error))?;
        ServerInfo::read(
            response
                .get()
                .and_then(|results| results.get_info())
                .map_err(malformed)?,
        )
    }

    #[cfg(feature = "tokio")]
    fn shares_connection_with(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    fn calls(&self) -> DataCalls<'_> {
        DataCalls {
            asker: &self.0.asker,
            store: &self.0.store,
            meter: &self.0.meter,
        }
    }

    fn exception(&self, error: &capnp::Error) -> ClientError {
        ClientError::of_exception(error, self.is_closed())
    }
}

/// Runs the connection until it ends or nobody holds the client any more.
async fn drive<R, W>(
    connection: wire::Connection<R, W>,
    unused: oneshot::Receiver<()>,
) -> Result<(), ClientError>
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    let disconnector = connection.disconnector();
    let close = Box::pin(async move {
        // The other end is never used to send, only dropped.
        unused.await.unwrap_or_default();
        disconnector.await
    });
    let ended = match select(connection, Gate::new(close)).await {
        Either::Left((ended, _)) => ended,
        // The goodbye is written; what remains is to take the connection down.
        Either::Right((_, connection)) => connection.await,
    };
    ended.map_err(|error| ClientError::of_exception(&error, true))
}

/// A call over the server's bound of a message would cost the whole connection; so it is not sent.
fn check_call_size(payload_bytes: usize, items: usize) -> Result<(), ClientError> {
    let bytes = payload_bytes + items * ITEM_OVERHEAD_BYTES;
    let bytes_max = limits::MESSAGE_BYTES_MAX - CALL_OVERHEAD_BYTES;
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(ClientError::InvalidArgument(format!(
        "a call of {bytes} bytes is over the limit of {bytes_max} bytes; send less in one call"
    )))
}

fn mutation_bytes(mutation: &Mutation<'_>) -> usize {
    mutation.key.len() + value_bytes(mutation)
}

fn value_bytes(mutation: &Mutation<'_>) -> usize {
    match mutation.change {
        Change::Set(value) => value.len(),
        Change::Delete => 0,
    }
}

/// The length of a list in a call whose size is checked.
fn list_len(items: usize) -> u32 {
    u32::try_from(items).expect("a call within its bound has fewer than 2^32 items")
}

fn check_answers(what: &str, got: usize, asked: usize) -> Result<(), ClientError> {
    if got == asked {
        return Ok(());
    }
    Err(ClientError::Protocol(format!(
        "{got} {what} for {asked} that were asked for"
    )))
}

//! A client that asks the owner of each key: one connection to each shard, so that no call goes from one core of the
//! server to another.
//!
//! It never has to be right: any connection serves any key. Where a shard's port cannot be reached (behind a proxy or a
//! firewall), where the server places keys by a rule that this client does not know, over a unix socket, and until the
//! shards are known, calls go by the connection to the given address, as with a [`ReconnectingClient`].
//!
//! [`ReconnectingClient`]: super::ReconnectingClient

use std::rc::Rc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};

use super::links::{Lane, Links};
use super::parts::{Cut, join};
use super::reconnecting::PATIENCE_DEFAULT;
use super::{Address, broke};
use crate::client::{
    Client, ClientError, Condition, Entry, Found, Mutation, Outcome, Page, PrefixQuery, ServerInfo,
    Stat, value_bytes,
};

/// Like [`Client`], with the same operations, for a server of several shards that may go away and come back. Clones share
/// the connections: one to the given address and one to each shard.
///
/// When the server comes back with another number of shards or with other ports, they are read again. A server of another
/// store at the same address is served like the first: the address says which store is meant, and [`Self::info`] tells
/// what is there. Reads whose connection breaks are repeated, on another connection; writes never are. Calls that are
/// under way at the same time may overtake each other, also two writes of one key: they may go by different connections.
#[derive(Clone)]
pub struct ShardedClient(Rc<Links>);

impl ShardedClient {
    /// A client of the server at `address`. Nothing happens until the first operation, which waits up to ten seconds for
    /// a connection, with growing pauses between attempts. The shards are then found in the background.
    pub fn new(address: Address) -> Self {
        Self::with_patience(address, PATIENCE_DEFAULT)
    }

    /// The same, with another time to wait for a connection to the given address. Zero: one attempt.
    pub fn with_patience(address: Address, patience: Duration) -> Self {
        Self(Rc::new(Links::new(address, patience)))
    }

    /// Connects now, in place of at the first operation, and waits until each shard is connected or known to be out of
    /// reach, a few seconds at most. Returns the number of shards whose keys have a connection of their own: 0 where there
    /// is one shard, over a unix socket, and where none can be reached. It may be called again at any time.
    ///
    /// # Errors
    /// When there is no connection to the given address, or nobody who answers there.
    pub async fn connect(&self) -> Result<usize, ClientError> {
        self.0.open_all().await
    }

    /// An operation that may be done more than once.
    async fn read<T>(
        &self,
        mut lane: Lane,
        operation: impl AsyncFn(Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        while let Some(link) = lane {
            let answer = operation(link.clone()).await;
            if !broke(&answer) {
                return answer;
            }
            // Each turn ends one of the links.
            self.0.lost(&link);
            lane = self.0.substitute();
        }
        self.0
            .entry()
            .read(async |client| {
                self.0.met(&client);
                operation(client).await
            })
            .await
    }

    /// An operation that must not be done twice.
    async fn write_once<T>(
        &self,
        lane: Lane,
        operation: impl AsyncFnOnce(Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        if let Some(link) = lane {
            let answer = operation(link.clone()).await;
            if broke(&answer) {
                self.0.lost(&link);
            }
            return answer;
        }
        self.0
            .entry()
            .write_once(async |client| {
                self.0.met(&client);
                operation(client).await
            })
            .await
    }

    /// As [`Client::get`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Found>, ClientError> {
        self.read(self.0.lane_of(key), async |client| client.get(key).await)
            .await
    }

    /// As [`Client::set`].
    pub async fn set(&self, key: &[u8], value: &[u8]) -> Result<Outcome, ClientError> {
        self.set_if(key, value, Condition::None).await
    }

    /// As [`Client::set_if`].
    pub async fn set_if(
        &self,
        key: &[u8],
        value: &[u8],
        condition: Condition,
    ) -> Result<Outcome, ClientError> {
        self.write_once(self.0.lane_of(key), async |client| {
            client.set_if(key, value, condition).await
        })
        .await
    }

    /// As [`Client::delete`].
    pub async fn delete(&self, key: &[u8]) -> Result<Outcome, ClientError> {
        self.delete_if(key, Condition::None).await
    }

    /// As [`Client::delete_if`].
    pub async fn delete_if(
        &self,
        key: &[u8],
        condition: Condition,
    ) -> Result<Outcome, ClientError> {
        self.write_once(self.0.lane_of(key), async |client| {
            client.delete_if(key, condition).await
        })
        .await
    }

    /// As [`Client::get_many`], with one call to each owner, all at the same time; the limits of a call hold for each of
    /// them. An error of one is the error of all.
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
    ) -> Result<Vec<Option<Found>>, ClientError> {
        let parts = match self.0.cut(keys.iter().map(|key| (key.as_ref(), 0))) {
            Cut::Parts(parts) => parts,
            Cut::Whole(lane) => {
                return self
                    .read(lane, async |client| client.get_many(keys).await)
                    .await;
            }
        };
        let answers = parts.iter().map(async |part| {
            let keys: Vec<&[u8]> = part.items.iter().map(|at| keys[*at].as_ref()).collect();
            self.read(part.lane.clone(), async |client| {
                client.get_many(&keys).await
            })
            .await
        });
        Ok(join(&parts, try_join_all(answers).await?))
    }

    /// As [`Client::write`], with one call to each owner, all at the same time; the limits of a call hold for each of
    /// them. Mutations of one key keep their order. What is invalid is refused as a whole and none is written; when else
    /// one of several calls fails, each of its mutations has that call's error as its own, and the others are written.
    pub async fn write(
        &self,
        mutations: &[Mutation<'_>],
    ) -> Result<Vec<Result<Outcome, ClientError>>, ClientError> {
        let items = mutations
            .iter()
            .map(|mutation| (mutation.key, value_bytes(mutation)));
        let parts = match self.0.cut(items) {
            Cut::Parts(parts) => parts,
            Cut::Whole(lane) => {
                return self
                    .write_once(lane, async |client| client.write(mutations).await)
                    .await;
            }
        };
        let answers = parts.iter().map(async |part| {
            let mutations: Vec<_> = part.items.iter().map(|at| mutations[*at]).collect();
            let answer = self
                .write_once(part.lane.clone(), async |client| {
                    client.write(&mutations).await
                })
                .await;
            answer.unwrap_or_else(|error| mutations.iter().map(|_| Err(error.again())).collect())
        });
        Ok(join(&parts, join_all(answers).await))
    }

    /// As [`Client::get_prefix`]: the server joins what its shards have, whichever connection asks.
    pub async fn get_prefix(&self, query: &PrefixQuery<'_>) -> Result<Page, ClientError> {
        self.read(None, async |client| client.get_prefix(query).await)
            .await
    }

    /// As [`Client::stream_prefix`]. Not repeated: batches may have been delivered.
    pub async fn stream_prefix(
        &self,
        prefix: &[u8],
        keys_only: bool,
        on_batch: impl FnMut(Vec<Entry>) -> Result<(), String> + 'static,
    ) -> Result<u64, ClientError> {
        self.write_once(None, async |client| {
            client.stream_prefix(prefix, keys_only, on_batch).await
        })
        .await
    }

    /// As [`Client::stat`].
    pub async fn stat(&self) -> Result<Stat, ClientError> {
        self.read(None, async |client| client.stat().await).await
    }

    /// As [`Client::info`].
    pub async fn info(&self) -> Result<ServerInfo, ClientError> {
        self.read(None, async |client| client.info().await).await
    }
}

//! A client of orlop as the load sees it: over one connection, or over one to each shard (`--shard-aware`).

use std::time::Duration;

use ::orlop::client::tokio::{Address, ShardedClient, connect};
use ::orlop::client::{Client, ClientError, Found, Mutation, Outcome, Page, PrefixQuery};

use crate::load::failure::Failure;

/// A client of orlop. Clones share its connections.
#[derive(Clone)]
pub(crate) enum Caller {
    /// Over one connection, which serves every key.
    Plain(Client),
    /// Over a connection to each shard, which is asked for its own keys.
    Sharded(ShardedClient),
}

impl Caller {
    /// Connects. A shard that has to be asked through another one is a failure: it is not what was to be measured.
    pub(crate) async fn open(server: &Address, shard_aware: bool) -> Result<Caller, Failure> {
        if !shard_aware {
            return Ok(Caller::Plain(connect(server).await?));
        }
        // A server that goes away ends the run, and is not waited for.
        let client = ShardedClient::with_patience(server.clone(), Duration::ZERO);
        let reached = client.connect().await?;
        let shards = client.info().await?.placement.shard_count as usize;
        if shards > 1 && reached < shards {
            return Err(Failure::Machine(format!(
                "--shard-aware: {reached} of the {shards} shards of {server} can be reached at ports of their own"
            )));
        }
        Ok(Caller::Sharded(client))
    }

    pub(crate) async fn get(&self, key: &[u8]) -> Result<Option<Found>, ClientError> {
        match self {
            Caller::Plain(client) => client.get(key).await,
            Caller::Sharded(client) => client.get(key).await,
        }
    }

    pub(crate) async fn get_many(
        &self,
        keys: &[Vec<u8>],
    ) -> Result<Vec<Option<Found>>, ClientError> {
        match self {
            Caller::Plain(client) => client.get_many(keys).await,
            Caller::Sharded(client) => client.get_many(keys).await,
        }
    }

    pub(crate) async fn write(
        &self,
        mutations: &[Mutation<'_>],
    ) -> Result<Vec<Result<Outcome, ClientError>>, ClientError> {
        match self {
            Caller::Plain(client) => client.write(mutations).await,
            Caller::Sharded(client) => client.write(mutations).await,
        }
    }

    pub(crate) async fn set(&self, key: &[u8], value: &[u8]) -> Result<Outcome, ClientError> {
        match self {
            Caller::Plain(client) => client.set(key, value).await,
            Caller::Sharded(client) => client.set(key, value).await,
        }
    }

    pub(crate) async fn get_prefix(&self, query: &PrefixQuery<'_>) -> Result<Page, ClientError> {
        match self {
            Caller::Plain(client) => client.get_prefix(query).await,
            Caller::Sharded(client) => client.get_prefix(query).await,
        }
    }
}

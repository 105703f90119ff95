//! Random operations and restarts against a `BTreeMap`: every answer of the server is the one of the model.

use std::collections::BTreeMap;

use orlop::client::tokio::ShardedClient;
use orlop::client::{
    Change, Client, ClientError, Condition, Entry, Found, Mutation, Outcome, Page, PrefixQuery,
};

use crate::batches::mutation;
use crate::harness::{Flags, Server, client_of, run, short_directory};
use crate::random::Random;

/// What every client does.
pub(crate) trait Operations {
    async fn get(&self, key: &[u8]) -> Result<Option<Found>, ClientError>;
    async fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Found>>, ClientError>;
    async fn get_prefix(&self, query: &PrefixQuery<'_>) -> Result<Page, ClientError>;
    async fn delete_if(&self, key: &[u8], condition: Condition) -> Result<Outcome, ClientError>;
    async fn set_if(
        &self,
        key: &[u8],
        value: &[u8],
        condition: Condition,
    ) -> Result<Outcome, ClientError>;
    async fn write(
        &self,
        mutations: &[Mutation<'_>],
    ) -> Result<Vec<Result<Outcome, ClientError>>, ClientError>;
}

macro_rules! operations_of {
    ($client:ty) => {
        impl Operations for $client {
            async fn get(&self, key: &[u8]) -> Result<Option<Found>, ClientError> {
                <$client>::get(self, key).await
            }

            async fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Found>>, ClientError> {
                <$client>::get_many(self, keys).await
            }

            async fn get_prefix(&self, query: &PrefixQuery<'_>) -> Result<Page, ClientError> {
                <$client>::get_prefix(self, query).await
            }

            async fn delete_if(
                &self,
                key: &[u8],
                condition: Condition,
            ) -> Result<Outcome, ClientError> {
                <$client>::delete_if(self, key, condition).await
            }

            async fn set_if(
                &self,
                key: &[u8],
                value: &[u8],
                condition: Condition,
            ) -> Result<Outcome, ClientError> {
                <$client>::set_if(self, key, value, condition).await
            }

            async fn write(
                &self,
                mutations: &[Mutation<'_>],
            ) -> Result<Vec<Result<Outcome, ClientError>>, ClientError> {
                <$client>::write(self, mutations).await
            }
        }
    };
}

operations_of!(Client);
operations_of!(ShardedClient);

/// What a store is supposed to hold. Versions are the server's choice; the model demands that they grow.
#[derive(Default)]
pub(crate) struct Model {
    present: BTreeMap<Vec<u8>, Found>,
    /// The newest version of each key that was ever written, deleted ones included.
    newest: BTreeMap<Vec<u8>, u64>,
}

impl Model {
    /// Takes a write that the server has answered, after checking that it may answer so.
    #[track_caller]
    fn wrote(&mut self, key: &[u8], value: Option<&[u8]>, condition: Condition, outcome: Outcome) {
        let current = self.present.get(key).map(|found| found.version);
        let holds = match condition {
            Condition::None => true,
            Condition::IfAbsent => current.is_none(),
            Condition::IfPresent => current.is_some(),
            Condition::IfVersion(version) => current == Some(version),
        };
        if !holds {
            assert_eq!(
                outcome,
                Outcome::Refused { current },
                "{key:?} {condition:?}"
            );
            return;
        }
        let Outcome::Written { version, existed } = outcome else {
            panic!("{key:?} {condition:?}: {outcome:?}, the newest version is {current:?}")
        };
        assert_eq!(existed, current.is_some(), "{key:?}");
        let newest = self.newest.entry(key.to_vec()).or_default();
        match value {
            None if !existed => {
                assert_eq!(version, 0, "nothing was deleted");
                return;
            }
            None => self.present.remove(key),
            Some(value) => self.present.insert(
                key.to_vec(),
                Found {
                    value: value.to_vec(),
                    version,
                },
            ),
        };
        assert!(
            version > *newest,
            "{key:?}: version {version} after {newest}"
        );
        *newest = version;
    }

    fn listing(&self, prefix: &[u8]) -> Vec<Entry> {
        let under = self
            .present
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix));
        under
            .map(|(key, found)| Entry {
                key: key.clone(),
                value: found.value.clone(),
                version: found.version,
            })
            .collect()
    }
}

fn random_key(random: &mut Random) -> Vec<u8> {
    let len = random.within(1..5) as usize;
    (0..len)
        .map(|_| b"ab\xff\0"[random.within(0..4) as usize])
        .collect()
}

fn random_value(random: &mut Random) -> Vec<u8> {
    let len = match random.within(0..10) {
        0 => 0,
        1..8 => random.within(1..300),
        8 => random.within(300..9_000),
        _ => 64 << 10,
    };
    random.bytes(len as usize)
}

fn random_condition(random: &mut Random, model: &Model, key: &[u8]) -> Condition {
    let newest = model.newest.get(key).copied().unwrap_or(0);
    match random.within(0..8) {
        0 => Condition::IfAbsent,
        1 => Condition::IfPresent,
        2 => Condition::IfVersion(newest),
        3 => Condition::IfVersion(newest.wrapping_sub(random.within(1..3))),
        _ => Condition::None,
    }
}

/// One random operation.
pub(crate) async fn step(client: &impl Operations, random: &mut Random, model: &mut Model) {
    let key = random_key(random);
    match random.within(0..12) {
        0..4 => {
            let (value, condition) = (random_value(random), random_condition(random, model, &key));
            let outcome = client.set_if(&key, &value, condition).await.unwrap();
            model.wrote(&key, Some(&value), condition, outcome);
        }
        4 => {
            let condition = random_condition(random, model, &key);
            let outcome = client.delete_if(&key, condition).await.unwrap();
            model.wrote(&key, None, condition, outcome);
        }
        5 => {
            let writes: Vec<_> = (0..random.within(1..12))
                .map(|_| {
                    let key = random_key(random);
                    let value = (!random.one_in(3)).then(|| random_value(random));
                    let condition = random_condition(random, model, &key);
                    (key, value, condition)
                })
                .collect();
            let mutations: Vec<_> = writes
                .iter()
                .map(|(key, value, condition)| {
                    mutation(
                        key,
                        value.as_deref().map_or(Change::Delete, Change::Set),
                        *condition,
                    )
                })
                .collect();
            let outcomes = client.write(&mutations).await.unwrap();
            assert_eq!(outcomes.len(), writes.len());
            for ((key, value, condition), outcome) in writes.iter().zip(outcomes) {
                model.wrote(key, value.as_deref(), *condition, outcome.unwrap());
            }
        }
        6 => {
            let keys: Vec<_> = (0..random.within(1..20))
                .map(|_| random_key(random))
                .collect();
            let expected: Vec<_> = keys
                .iter()
                .map(|key| model.present.get(key).cloned())
                .collect();
            assert_eq!(client.get_many(&keys).await.unwrap(), expected);
        }
        7 => {
            let prefix = &key[..random.within(0..key.len() as u64) as usize];
            let max_entries = random.within(1..2_000) as u32;
            let query = PrefixQuery {
                max_entries,
                max_bytes: 16 << 20,
                ..PrefixQuery::new(prefix)
            };
            let page = client.get_prefix(&query).await.unwrap();
            let mut expected = model.listing(prefix);
            assert_eq!(
                page.more,
                expected.len() > max_entries as usize,
                "{query:?}"
            );
            expected.truncate(max_entries as usize);
            assert_eq!(page.entries, expected, "{query:?}");
        }
        _ => {
            assert_eq!(
                client.get(&key).await.unwrap(),
                model.present.get(&key).cloned(),
                "{key:?}"
            );
        }
    }
}

#[test]
fn random_operations_and_restarts_agree_with_a_map() {
    run(async |scratch| {
        let seed = Random::seed();
        println!("seed {seed}; repeat with ORLOP_SEED={seed}");
        let mut random = Random::new(seed);
        let mut model = Model::default();
        let sockets = short_directory();
        for life in 0..6 {
            // Sometimes nothing stays in memory, sometimes everything.
            let cache = ["64KiB", "32MiB"][random.within(0..2) as usize];
            let path = sockets.path().join(format!("socket-{life}"));
            let flags = Flags::small()
                .with("--cache", cache)
                .with("--unix", path.display());
            let server = Server::start(&scratch.data(), &flags).await;
            let clients = [
                server.client().await,
                client_of(server.shard_addresses()[0]).await,
                client_of(server.shard_addresses()[1]).await,
                orlop::client::tokio::connect(&orlop::client::tokio::Address::Unix(path))
                    .await
                    .unwrap(),
            ];
            for _ in 0..500 {
                let client = &clients[random.within(0..clients.len() as u64) as usize];
                step(client, &mut random, &mut model).await;
            }
            if random.one_in(2) {
                server.kill().await;
            } else {
                server.stop().await;
            }
        }
    });
}

//! The sharded client over real sockets, with servers that count what each of their ports is asked.

use std::rc::Rc;
use std::time::{Duration, Instant};

use ::tokio::net::{TcpListener, UnixListener};
use ::tokio::task::{spawn_local, yield_now};
use futures::future::join_all;

use super::fake::{self, Fake, SEED};
use super::reconnecting::{Server, run};
use crate::client::tokio::{Address, Compat, ShardedClient};
use crate::client::{Change, ClientError, Condition, Mutation, Outcome, PrefixQuery};
use crate::placement::Placement;

/// Another port of the same store.
fn beside(fake: &Fake) -> Rc<Fake> {
    Rc::new(Fake {
        map: Rc::clone(&fake.map),
        last_version: Rc::clone(&fake.last_version),
        shards: Rc::clone(&fake.shards),
        ..Fake::default()
    })
}

/// A server with a port for all and one for each shard.
struct Store {
    entry: Server,
    shards: Vec<Server>,
}

impl Store {
    async fn start(shards: usize) -> Store {
        Store::start_at(&Rc::default(), 0, shards).await
    }

    async fn start_at(fake: &Rc<Fake>, port: u16, shards: usize) -> Store {
        let entry = Server::start(fake, port).await;
        let starting = (0..shards).map(async |_| Server::start(&beside(fake), 0).await);
        let shards = join_all(starting).await;
        fake.shards.borrow_mut().ports = shards.iter().map(Server::port).collect();
        Store { entry, shards }
    }

    fn client(&self) -> ShardedClient {
        ShardedClient::with_patience(self.entry.address.clone(), Duration::ZERO)
    }

    async fn connected_client(&self) -> ShardedClient {
        let client = self.client();
        assert_eq!(client.connect().await.unwrap(), self.shards.len());
        client
    }

    fn owner(&self, key: &[u8]) -> usize {
        let shards = u16::try_from(self.shards.len()).unwrap();
        Placement::new(SEED, shards).owner(key).index()
    }

    /// Keys of one shard.
    fn keys_of(&self, shard: usize, count: usize) -> Vec<Vec<u8>> {
        let keys = (0..).map(|number: u32| format!("key {number}").into_bytes());
        let own = keys.filter(|key| self.owner(key) == shard);
        own.take(count).collect()
    }

    fn key_of(&self, shard: usize) -> Vec<u8> {
        self.keys_of(shard, 1).remove(0)
    }

    /// Calls by the common port, and by each shard's, since the last time.
    fn take_calls(&self) -> (usize, Vec<usize>) {
        let take = |server: &Server| server.fake.calls.take();
        (take(&self.entry), self.shards.iter().map(take).collect())
    }
}

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Mutation<'a> {
    Mutation {
        key,
        change: Change::Set(value),
        condition: Condition::None,
    }
}

#[test]
fn each_key_is_asked_for_at_its_owner() {
    run(async {
        let store = Store::start(3).await;
        let client = store.connected_client().await;
        for shard in 0..3 {
            for key in store.keys_of(shard, 5) {
                client.set(&key, b"value").await.unwrap();
                let found = client.get(&key).await.unwrap().unwrap();
                assert_eq!(found.value, b"value");
                let condition = Condition::IfVersion(found.version);
                let outcome = client.delete_if(&key, condition).await.unwrap();
                assert!(matches!(outcome, Outcome::Written { existed: true, .. }));
                client.delete(&key).await.unwrap();
            }
            let mut expected = vec![0; 3];
            expected[shard] = 5 * 4;
            assert_eq!(store.take_calls(), (0, expected));
        }
        // What concerns all shards goes by the common port.
        client.set(&store.key_of(1), b"value").await.unwrap();
        store.take_calls();
        let page = client.get_prefix(&PrefixQuery::new(b"key")).await.unwrap();
        assert_eq!(page.entries.len(), 1);
        let count = client.stream_prefix(b"key", true, |_| Ok(())).await;
        assert_eq!(count.unwrap(), 1);
        assert_eq!(client.stat().await.unwrap().keys, 1);
        assert_eq!(client.info().await.unwrap().placement.shard_count, 3);
        assert_eq!(store.take_calls(), (3, vec![0, 0, 0]));
    });
}

#[test]
fn shards_are_found_without_being_waited_for() {
    run(async {
        let store = Store::start(2).await;
        let client = store.client();
        let key = store.key_of(1);
        client.set(&key, b"value").await.unwrap();
        assert_eq!(store.take_calls(), (1, vec![0, 0]), "not known yet");
        while store.take_calls().1 != [0, 1] {
            assert!(client.get(&key).await.unwrap().is_some());
        }
        let (one, other) = (client.clone(), client.clone());
        drop(client);
        futures::try_join!(one.get(&key), other.get(&key)).unwrap();
        assert_eq!(store.take_calls(), (0, vec![0, 2]));
        let opens = store.shards.iter().map(|shard| shard.fake.opens.get());
        assert_eq!(opens.collect::<Vec<_>>(), [1, 1]);
    });
}

#[test]
fn calls_on_many_keys_are_cut_by_owner_and_joined_in_order() {
    run(async {
        let store = Store::start(3).await;
        let client = store.connected_client().await;
        let keys: Vec<Vec<u8>> = (0..50_u8).map(|number| vec![b'k', number]).collect();
        let mutations: Vec<_> = keys.iter().map(|key| set(key, key)).collect();
        let outcomes = client.write(&mutations).await.unwrap();
        assert_eq!(store.take_calls(), (0, vec![1, 1, 1]));
        let found = client.get_many(&keys).await.unwrap();
        assert_eq!(store.take_calls(), (0, vec![1, 1, 1]));
        for ((key, outcome), found) in keys.iter().zip(outcomes).zip(found) {
            let found = found.unwrap();
            let expected = Outcome::Written {
                version: found.version,
                existed: false,
            };
            assert_eq!((&found.value, outcome.unwrap()), (key, expected));
        }
        // One owner: one call, as it is.
        let own = store.keys_of(2, 4);
        let found = client.get_many(&own).await.unwrap();
        assert_eq!(found, vec![None; 4]);
        let mutations: Vec<_> = own.iter().map(|key| set(key, b"")).collect();
        assert_eq!(client.write(&mutations).await.unwrap().len(), 4);
        assert_eq!(store.take_calls(), (0, vec![0, 0, 2]));
        // And nothing is a call as well, as with `Client`.
        assert!(client.get_many::<&[u8]>(&[]).await.unwrap().is_empty());
        assert!(client.write(&[]).await.unwrap().is_empty());
    });
}

#[test]
fn mutations_of_one_key_keep_their_order() {
    run(async {
        let store = Store::start(2).await;
        let client = store.connected_client().await;
        let (a, b) = (store.key_of(0), store.key_of(1));
        let if_absent = |mutation| Mutation {
            condition: Condition::IfAbsent,
            ..mutation
        };
        let delete = |key| Mutation {
            key,
            change: Change::Delete,
            condition: Condition::IfPresent,
        };
        let outcomes = client
            .write(&[
                if_absent(set(&a, b"a1")),
                set(&b, b"b1"),
                if_absent(set(&a, b"a2")),
                delete(&b),
                set(&a, b"a3"),
                delete(&b),
            ])
            .await
            .unwrap();
        let written: Vec<bool> = outcomes
            .iter()
            .map(|outcome| matches!(outcome, Ok(Outcome::Written { .. })))
            .collect();
        assert_eq!(written, [true, true, false, true, true, false]);
        assert_eq!(client.get(&a).await.unwrap().unwrap().value, b"a3");
        assert_eq!(client.get(&b).await.unwrap(), None);
    });
}

#[test]
fn a_part_that_fails_gives_its_error_to_its_mutations_only() {
    run(async {
        let store = Store::start(2).await;
        let client = store.connected_client().await;
        let (own, failing) = (store.keys_of(0, 2), store.keys_of(1, 2));
        let error = capnp::Error::overloaded("overloaded: not now".to_string());
        *store.shards[1].fake.error.borrow_mut() = Some(error);
        let mutations = [
            set(&failing[0], b""),
            set(&own[0], b""),
            set(&own[1], b""),
            set(&failing[1], b""),
        ];
        let outcomes = client.write(&mutations).await.unwrap();
        for at in [0, 3] {
            let Err(ClientError::Overloaded(reason)) = &outcomes[at] else {
                panic!("{outcomes:?}")
            };
            assert_eq!(reason, "not now");
        }
        assert!(outcomes[1].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
        let all = [&own[0], &failing[0], &own[1]];
        let answer = client.get_many(&all).await;
        assert!(
            matches!(answer, Err(ClientError::Overloaded(_))),
            "{answer:?}"
        );
        // Where all keys have one owner the call fails as that of a `Client` does.
        let answer = client.write(&[set(&failing[0], b"")]).await;
        assert!(
            matches!(answer, Err(ClientError::Overloaded(_))),
            "{answer:?}"
        );
    });
}

#[test]
fn what_would_be_refused_is_not_cut() {
    run(async {
        let store = Store::start(2).await;
        let client = store.connected_client().await;
        let (a, b) = (store.key_of(0), store.key_of(1));
        let long_key = vec![1; 65_536];
        let long_value = vec![1; (16 << 20) + 1];
        for invalid in [set(b"", b""), set(&long_key, b""), set(b"key", &long_value)] {
            let mutations = [set(&a, b""), set(&b, b""), invalid];
            // This server takes everything.
            client.write(&mutations).await.unwrap();
            assert_eq!(store.take_calls(), (1, vec![0, 0]), "one call, undivided");
        }
        client.get_many(&[&a[..], &b, b""]).await.unwrap();
        assert_eq!(store.take_calls(), (1, vec![0, 0]));
        // The bounds of a call are those of each part.
        let mut mutations = vec![set(&a, b""); 10_000];
        mutations.extend(vec![set(&b, b""); 10_000]);
        client.write(&mutations).await.unwrap();
        assert_eq!(store.take_calls(), (0, vec![1, 1]));
        mutations.push(set(&b, b""));
        client.write(&mutations).await.unwrap();
        assert_eq!(store.take_calls(), (1, vec![0, 0]));
        // A part that is too long to be sent keeps the others back.
        let value = vec![1; 15 << 20];
        let mutations = [
            set(&a, &value),
            set(&a, &value),
            set(&a, &value),
            set(&b, b""),
        ];
        let answer = client.write(&mutations).await;
        assert!(
            matches!(answer, Err(ClientError::InvalidArgument(_))),
            "{answer:?}"
        );
        let mutations = [set(&a, &value), set(&a, &value), set(&b, &value)];
        client.write(&mutations).await.unwrap();
        assert_eq!(store.take_calls(), (0, vec![1, 1]));
    });
}

#[test]
fn a_port_that_is_out_of_reach_is_no_error() {
    run(async {
        let mut store = Store::start(3).await;
        let (fake, port) = store.shards.remove(1).stop().await;
        let client = store.client();
        assert_eq!(client.connect().await.unwrap(), 2);
        let keys: Vec<Vec<u8>> = (0..40_u8).map(|number| vec![number]).collect();
        let mutations: Vec<_> = keys.iter().map(|key| set(key, key)).collect();
        let outcomes = client.write(&mutations).await.unwrap();
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        let found = client.get_many(&keys).await.unwrap();
        assert!(found.iter().zip(&keys).all(|(found, key)| {
            let found = found.as_ref().unwrap();
            found.value == *key
        }));
        assert_eq!(store.take_calls(), (2, vec![2, 2]));
        for key in &keys {
            assert_eq!(client.get(key).await.unwrap().unwrap().value, *key);
            client.set(key, b"again").await.unwrap();
        }
        let (by_entry, by_link) = store.take_calls();
        assert!(by_entry > 0, "shard 1 has none of the keys");
        assert_eq!(by_entry + by_link.iter().sum::<usize>(), 80);
        // The port is there again: its keys go there.
        store.shards.insert(1, Server::start(&fake, port).await);
        assert_eq!(client.connect().await.unwrap(), 3);
        client.get(&store.key_of(1)).await.unwrap();
        assert_eq!(store.take_calls(), (0, vec![0, 1, 0]));
    });
}

#[test]
fn a_port_that_is_out_of_reach_is_not_tried_for_each_call() {
    run(async {
        let store = Store::start(2).await;
        // Takes connections and ends them.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        store.entry.fake.shards.borrow_mut().ports[1] = listener.local_addr().unwrap().port();
        let attempts = Rc::new(std::cell::Cell::new(0));
        let counter = Rc::clone(&attempts);
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.set(counter.get() + 1);
                drop(stream);
            }
        });
        let client = store.client();
        let begun = Instant::now();
        let key = store.key_of(1);
        client.set(&key, b"value").await.unwrap();
        while attempts.get() < 2 {
            assert!(client.get(&key).await.unwrap().is_some());
        }
        for _ in 0..300 {
            assert!(client.get(&key).await.unwrap().is_some());
        }
        // The first at once, the others with pauses of a tenth of a second and more between them.
        let attempts_max = 2 + begun.elapsed().as_millis() / 100;
        assert!(
            attempts.get() <= attempts_max,
            "{} attempts, at most {attempts_max} are due",
            attempts.get()
        );
    });
}

/// The kernel picks the ports of shards: after a restart an old one may belong to somebody else.
#[test]
fn another_server_at_a_shards_port_is_not_asked() {
    run(async {
        let mut store = Store::start(2).await;
        let client = store.connected_client().await;
        let key = store.key_of(1);
        client.set(&key, b"value").await.unwrap();
        let (_, port) = store.shards.remove(1).stop().await;
        // The same but for the store.
        let other = Rc::new(Fake::default());
        other.shards.borrow_mut().store_uuid = [8; 16];
        other.shards.borrow_mut().ports = store.entry.fake.shards.borrow().ports.clone();
        store.shards.push(Server::start(&other, port).await);
        while client.connect().await.unwrap() == 2 {
            // It is not noticed yet that the connection broke.
            yield_now().await;
        }
        assert_eq!(client.connect().await.unwrap(), 1);
        assert!(other.opens.get() > 0, "it was met");
        assert_eq!(client.get(&key).await.unwrap().unwrap().value, b"value");
        client.set(&key, b"more").await.unwrap();
        assert_eq!(other.calls.get(), 0);
        assert!(other.map.borrow().is_empty());
    });
}

#[test]
fn where_owners_are_not_known_one_connection_serves_all() {
    run(async {
        for (hash, shards) in [("md5", 2), ("xxh3-64", 1)] {
            let store = Store::start(shards).await;
            store.entry.fake.shards.borrow_mut().hash = hash;
            let client = store.client();
            assert_eq!(client.connect().await.unwrap(), 0);
            let keys: Vec<Vec<u8>> = (0..20_u8).map(|number| vec![number]).collect();
            let mutations: Vec<_> = keys.iter().map(|key| set(key, key)).collect();
            client.write(&mutations).await.unwrap();
            client.get_many(&keys).await.unwrap();
            client.get(&keys[0]).await.unwrap();
            assert_eq!(store.take_calls(), (3, vec![0; shards]));
            assert_eq!(store.shards[0].fake.opens.get(), 0);
        }
        // Over a unix socket.
        let store = Store::start(2).await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let fake = Rc::clone(&store.entry.fake);
        spawn_local(async move {
            let (reader, writer) = listener.accept().await.unwrap().0.into_split();
            fake::serve(&fake, Compat::new(reader), Compat::new(writer)).await
        });
        let client = ShardedClient::new(Address::Unix(path));
        assert_eq!(client.connect().await.unwrap(), 0);
        client.set(&store.key_of(1), b"value").await.unwrap();
        assert_eq!(store.take_calls(), (1, vec![0, 0]));
    });
}

#[test]
fn a_read_is_repeated_and_a_write_is_not() {
    run(async {
        let store = Store::start(2).await;
        let client = store.connected_client().await;
        let (key, other) = (store.key_of(1), store.key_of(0));
        client.set(&key, b"v").await.unwrap();
        store.take_calls();
        let fake = &store.shards[1].fake;
        fake.silent.set(true);
        let task = |client: ShardedClient, key: Vec<u8>| {
            spawn_local(async move {
                let read = client.get(&key);
                let write = client.set(&key, b"w");
                futures::join!(read, write)
            })
        };
        let single = task(client.clone(), key.clone());
        let many = {
            let (client, keys) = (client.clone(), [key.clone(), other.clone()]);
            spawn_local(async move {
                let mutations = [set(&keys[0], b"w"), set(&keys[1], b"w")];
                futures::join!(client.get_many(&keys), client.write(&mutations))
            })
        };
        while fake.calls.get() < 4 {
            yield_now().await;
        }
        fake.silent.set(false);
        store.shards[1].break_connections();
        let (read, write) = single.await.unwrap();
        assert_eq!(read.unwrap().unwrap().value, b"v");
        assert!(
            matches!(write, Err(ClientError::Disconnected(_))),
            "{write:?}"
        );
        let (read, write) = many.await.unwrap();
        assert_eq!(read.unwrap()[0].as_ref().unwrap().value, b"v");
        let write = write.unwrap();
        assert!(
            matches!(write[0], Err(ClientError::Disconnected(_))),
            "{write:?}"
        );
        assert!(write[1].is_ok(), "{write:?}");
        let (by_entry, by_link) = store.take_calls();
        assert_eq!(by_entry + by_link[1], 4 + 2, "only the reads came again");
        assert_eq!(store.entry.fake.map.borrow()[&key].0, b"v");
        // Connected again, at the same port.
        assert_eq!(client.connect().await.unwrap(), 2);
        client.get(&key).await.unwrap();
        assert_eq!(store.take_calls(), (0, vec![0, 1]));
    });
}

#[test]
fn links_serve_while_the_given_address_does_not() {
    run(async {
        let mut store = Store::start(2).await;
        let client = store.connected_client().await;
        let (a, b) = (store.key_of(0), store.key_of(1));
        client.set(&a, b"a").await.unwrap();
        client.set(&b, b"b").await.unwrap();
        drop(store.entry.stop().await);
        drop(store.shards.remove(1).stop().await);
        assert_eq!(client.get(&a).await.unwrap().unwrap().value, b"a");
        assert_eq!(client.get(&b).await.unwrap().unwrap().value, b"b");
        let found = client.get_many(&[&a, &b]).await.unwrap();
        assert!(found.iter().all(Option::is_some), "{found:?}");
        client.set(&b, b"more").await.unwrap();
        let answer = client.stat().await;
        assert!(
            matches!(answer, Err(ClientError::Connect { .. })),
            "{answer:?}"
        );
        assert!(matches!(
            client.connect().await,
            Err(ClientError::Connect { .. })
        ));
    });
}

#[test]
fn the_shards_are_read_again_after_a_restart() {
    run(async {
        let mut store = Store::start(2).await;
        let client = store.connected_client().await;
        let keys: Vec<Vec<u8>> = (0..40_u8).map(|number| vec![number]).collect();
        for shards in [3, 1, 2, 2, 5] {
            for key in &keys {
                client.set(key, &[shards]).await.unwrap();
            }
            let mut fakes = Vec::new();
            let (fake, port) = store.entry.stop().await;
            for shard in store.shards {
                fakes.push(shard.stop().await.0);
            }
            store = Store::start_at(&fake, port, shards.into()).await;
            let links = if shards == 1 { 0 } else { shards.into() };
            assert_eq!(client.connect().await.unwrap(), links);
            store.take_calls();
            fakes.iter().for_each(|fake| fake.calls.set(0));
            for key in &keys {
                assert_eq!(client.get(key).await.unwrap().unwrap().value, [shards]);
            }
            let (by_entry, by_link) = store.take_calls();
            assert_eq!(by_entry, if links == 0 { 40 } else { 0 });
            let mut expected = vec![0; shards.into()];
            keys.iter().for_each(|key| expected[store.owner(key)] += 1);
            if links > 0 {
                assert_eq!(by_link, expected);
            }
            assert!(fakes.iter().all(|fake| fake.calls.get() == 0));
        }
    });
}

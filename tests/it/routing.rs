//! A key has one owner, whichever connection asks; and everybody can compute which shard that is.

use std::collections::BTreeSet;

use orlop::client::tokio::{Address, connect};
use orlop::client::{Change, Client, Condition, Placement, PrefixQuery};

use crate::batches::mutation;
use crate::harness::{Flags, Server, client_of, run, short_directory, with_server, with_server_of};
use crate::operations::version_of;

/// The owner of a key as the schema defines it, computed without the server's code.
pub(crate) fn owner(placement: &Placement, key: &[u8]) -> usize {
    assert_eq!(placement.hash, "xxh3-64");
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(key, placement.seed);
    ((u128::from(hash) * u128::from(placement.shard_count)) >> 64) as usize
}

async fn clients_on_every_address(server: &Server) -> Vec<Client> {
    let mut clients = vec![server.client().await];
    for address in server.shard_addresses() {
        clients.push(client_of(*address).await);
    }
    clients
}

#[test]
fn every_connection_sees_the_same_value_and_one_order_of_versions() {
    run(async |scratch| {
        let sockets = short_directory();
        let path = sockets.path().join("socket");
        let flags = Flags::small()
            .with("--shards", 3)
            .with("--unix", path.display());
        let server = Server::start(&scratch.data(), &flags).await;
        let mut clients = clients_on_every_address(&server).await;
        clients.push(connect(&Address::Unix(path)).await.unwrap());
        assert_eq!(clients.len(), 5);
        for i in 0..60_u8 {
            let key = [b'k', i];
            let mut last = 0;
            for (w, writer) in clients.iter().enumerate() {
                let value = [i, w as u8];
                let version = version_of(writer.set(&key, &value).await.unwrap());
                assert!(
                    version > last,
                    "key {i}, connection {w}: {version} after {last}"
                );
                last = version;
                for (r, reader) in clients.iter().enumerate() {
                    let found = reader.get(&key).await.unwrap().unwrap();
                    let expected = (value.to_vec(), version);
                    assert_eq!(
                        (found.value, found.version),
                        expected,
                        "written by {w}, read by {r}"
                    );
                }
            }
        }
        let listings = futures::future::join_all(clients.iter().map(async |client| {
            client
                .get_prefix(&PrefixQuery::new(b"k"))
                .await
                .unwrap()
                .entries
        }))
        .await;
        assert_eq!(listings[0].len(), 60);
        assert!(listings.iter().all(|listing| *listing == listings[0]));
        server.stop().await;
    });
}

#[test]
fn the_owner_is_the_one_that_placement_names() {
    for shards in [1, 2, 3, 5] {
        with_server_of(Flags::small().with("--shards", shards), async |server| {
            let client = server.client().await;
            let info = client.info().await.unwrap();
            assert_eq!(info.placement.shard_count, shards);
            assert_eq!(server.shard_addresses().len(), shards as usize);
            let keys: Vec<Vec<u8>> = (0..1_000_u32)
                .map(|i| i.to_le_bytes().repeat(1 + i as usize % 40))
                .collect();
            let mut expected = vec![0; shards as usize];
            for key in &keys {
                expected[owner(&info.placement, key)] += 1;
            }
            futures::future::try_join_all(keys.iter().map(|key| client.set(key, key)))
                .await
                .unwrap();
            let stat = client.stat().await.unwrap();
            let keys: Vec<u64> = stat.shards.iter().map(|shard| shard.keys).collect();
            let sets: Vec<u64> = stat.shards.iter().map(|shard| shard.sets).collect();
            assert_eq!(keys, expected);
            assert_eq!(sets, expected);
            assert!(
                expected
                    .iter()
                    .all(|&count| count > 500 / u64::from(shards)),
                "lopsided: {expected:?}"
            );
        });
    }
}

#[test]
fn keys_that_go_to_another_shard_are_counted_where_they_arrived() {
    with_server_of(Flags::small().with("--shards", 3), async |server| {
        let placement = server.client().await.info().await.unwrap().placement;
        let keys: Vec<[u8; 1]> = (0..60).map(|number| [number]).collect();
        let foreign = |shard: usize, keys: &[[u8; 1]]| {
            let of_others = keys.iter().filter(|key| owner(&placement, *key) != shard);
            of_others.count() as u64
        };
        let mut expected = vec![0; 3];
        for (shard, address) in server.shard_addresses().iter().enumerate() {
            let client = client_of(*address).await;
            for key in &keys {
                client.set(key, b"value").await.unwrap();
                client.get(key).await.unwrap();
            }
            client.get_many(&keys[..20]).await.unwrap();
            let deletes: Vec<_> = keys[..10]
                .iter()
                .map(|key| mutation(key, Change::Delete, Condition::None))
                .collect();
            client.write(&deletes).await.unwrap();
            // These concern all shards.
            client.get_prefix(&PrefixQuery::new(b"")).await.unwrap();
            expected[shard] = 2 * foreign(shard, &keys)
                + foreign(shard, &keys[..20])
                + foreign(shard, &keys[..10]);
            let stat = client.stat().await.unwrap();
            let forwarded: Vec<u64> = stat.shards.iter().map(|shard| shard.forwarded).collect();
            assert_eq!(forwarded, expected);
            assert_eq!(stat.forwarded, expected.iter().sum::<u64>());
        }
        assert!(expected.iter().all(|&count| count > 0), "{expected:?}");
    });
}

#[test]
fn a_shards_own_port_is_served_by_that_shard() {
    with_server(async |server| {
        // Nobody hangs up before the end: a connection counts until the server has noticed that it ended.
        let mut clients = vec![server.client().await];
        let info = clients[0].info().await.unwrap();
        for (shard, address) in server.shard_addresses().iter().enumerate() {
            assert_eq!(info.shard_ports[shard], address.port());
            let mut expected = connections(&clients[0]).await;
            for _ in 0..5 {
                let client = client_of(*address).await;
                // A connection counts once the server has taken it.
                client.info().await.unwrap();
                clients.push(client);
            }
            expected[shard] += 5;
            assert_eq!(connections(&clients[0]).await, expected, "shard {shard}");
        }
    });
}

/// How many connections each shard has.
async fn connections(client: &Client) -> Vec<u32> {
    let shards = client.stat().await.unwrap().shards;
    shards.iter().map(|shard| shard.connections).collect()
}

#[test]
fn placement_belongs_to_the_store_and_survives_restarts() {
    run(async |scratch| {
        let mut first = None;
        for _ in 0..3 {
            let server = Server::start(&scratch.data(), &Flags::small()).await;
            let info = server.client().await.info().await.unwrap();
            let now = (info.store_uuid, info.placement.seed);
            assert_eq!(first.get_or_insert_with(|| now.clone()), &now);
            server.stop().await;
        }
        // Another store has another placement: nobody can aim keys at a shard of a store that he does not know.
        let mut seeds = BTreeSet::from([first.unwrap().1]);
        for i in 0..3 {
            let server = Server::start(&scratch.path(&format!("other-{i}")), &Flags::small()).await;
            let info = server.client().await.info().await.unwrap();
            assert!(
                seeds.insert(info.placement.seed),
                "two stores with the same seed"
            );
            server.stop().await;
        }
    });
}

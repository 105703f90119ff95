//! `stat` counts exactly what was done, and its sums are the sums of its shards.

use futures::future::join_all;
use orlop::client::{Change, Client, Condition, PrefixQuery, ShardStat, Stat};

use crate::batches::mutation;
use crate::harness::{Flags, Server, client_of, run, with_server};

/// The sum of one number over all shards.
fn sum(stat: &Stat, number: impl Fn(&ShardStat) -> u64) -> u64 {
    stat.shards.iter().map(number).sum()
}

async fn stat_of(client: &Client) -> Stat {
    let stat = client.stat().await.unwrap();
    assert_eq!(stat.sets, sum(&stat, |shard| shard.sets));
    assert_eq!(stat.gets, sum(&stat, |shard| shard.gets));
    assert_eq!(stat.deletes, sum(&stat, |shard| shard.deletes));
    assert_eq!(stat.keys, sum(&stat, |shard| shard.keys));
    assert_eq!(stat.logical_bytes, sum(&stat, |shard| shard.logical_bytes));
    assert!(
        stat.shards
            .iter()
            .enumerate()
            .all(|(i, shard)| shard.shard as usize == i),
        "{stat:?}"
    );
    stat
}

#[test]
fn operations_are_counted_by_key_whichever_connection_they_came_by() {
    with_server(async |server| {
        let clients = [
            server.client().await,
            client_of(server.shard_addresses()[0]).await,
            client_of(server.shard_addresses()[1]).await,
        ];
        let start = stat_of(&clients[0]).await;
        assert_eq!(
            (
                start.sets,
                start.gets,
                start.deletes,
                start.get_prefixes,
                start.keys
            ),
            (0, 0, 0, 0, 0)
        );
        for (c, client) in clients.iter().enumerate() {
            let keys: Vec<[u8; 2]> = (0..50).map(|i| [c as u8, i]).collect();
            join_all(
                keys.iter()
                    .map(async |key| client.set(key, b"12345678").await.unwrap()),
            )
            .await;
            join_all(
                keys[..20]
                    .iter()
                    .map(async |key| client.get(key).await.unwrap()),
            )
            .await;
            client.get(b"absent").await.unwrap();
            client.get_many(&keys[..30]).await.unwrap();
            client.delete(&keys[0]).await.unwrap();
            client.delete(&keys[0]).await.unwrap();
            let mutations = [
                mutation(&keys[0], Change::Set(b"x"), Condition::None),
                mutation(&keys[1], Change::Set(b"x"), Condition::None),
                mutation(&keys[2], Change::Delete, Condition::None),
            ];
            client.write(&mutations).await.unwrap();
            client.get_prefix(&PrefixQuery::new(b"")).await.unwrap();
            let refused = PrefixQuery {
                max_entries: 0,
                ..PrefixQuery::new(b"")
            };
            client.get_prefix(&refused).await.unwrap_err();
            client.stream_prefix(b"", true, |_| Ok(())).await.unwrap();
        }
        let stat = stat_of(&clients[0]).await;
        assert_eq!(stat.sets, 3 * (50 + 2));
        assert_eq!(stat.gets, 3 * (20 + 1 + 30));
        assert_eq!(stat.deletes, 3 * (2 + 1));
        assert_eq!(stat.get_prefixes, 3 * 2);
        assert_eq!(stat.keys, 3 * 49);
        assert_eq!(stat.logical_bytes, 3 * (49 * 2 + 47 * 8 + 2));
        assert_eq!(stat.connections as usize, clients.len());
        assert_eq!(
            stat.connections,
            stat.shards
                .iter()
                .map(|shard| shard.connections)
                .sum::<u32>()
        );
    });
}

#[test]
fn refused_and_invalid_writes_change_no_key() {
    with_server(async |server| {
        let client = server.client().await;
        client.set(b"key", b"value").await.unwrap();
        let before = stat_of(&client).await;
        client
            .set_if(b"key", b"other", Condition::IfAbsent)
            .await
            .unwrap();
        client
            .delete_if(b"key", Condition::IfVersion(u64::MAX))
            .await
            .unwrap();
        client.set(b"", b"value").await.unwrap_err();
        let after = stat_of(&client).await;
        assert_eq!(
            (after.keys, after.logical_bytes),
            (before.keys, before.logical_bytes)
        );
    });
}

#[test]
fn what_is_on_disk_is_counted_live_and_dead() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        let value = [7; 1000];
        for i in 0..100_u8 {
            client.set(&[i], &value).await.unwrap();
        }
        let once = stat_of(&client).await;
        assert_eq!(once.logical_bytes, 100 * 1001);
        assert!(
            (100 * 1001..100 * 1100).contains(&once.disk_live_bytes),
            "{} live",
            once.disk_live_bytes
        );
        for i in 0..100_u8 {
            client.set(&[i], &value).await.unwrap();
        }
        let twice = stat_of(&client).await;
        assert_eq!(twice.logical_bytes, once.logical_bytes);
        assert_eq!(twice.disk_live_bytes, once.disk_live_bytes);
        assert!(
            twice.disk_dead_bytes >= once.disk_dead_bytes + once.disk_live_bytes,
            "{} dead after {}",
            twice.disk_dead_bytes,
            once.disk_dead_bytes
        );
        assert!(twice.disk_allocated_bytes >= twice.disk_live_bytes + twice.disk_dead_bytes);
        let files: u64 = std::fs::read_dir(scratch.data())
            .unwrap()
            .map(|file| file.unwrap())
            .filter(|file| file.file_name().to_string_lossy().ends_with(".log"))
            .map(|file| file.metadata().unwrap().len())
            .sum();
        assert_eq!(client.stat().await.unwrap().disk_allocated_bytes, files);
        server.stop().await;
    });
}

#[test]
fn every_write_is_in_a_commit_and_commits_gather_writes() {
    with_server(async |server| {
        let client = server.client().await;
        let keys: Vec<[u8; 2]> = (0..1_000_u16).map(u16::to_le_bytes).collect();
        join_all(
            keys.iter()
                .map(async |key| client.set(key, b"value").await.unwrap()),
        )
        .await;
        let stat = stat_of(&client).await;
        assert_eq!(sum(&stat, |shard| shard.commit_records), 1_000);
        let commits = sum(&stat, |shard| shard.commits);
        assert!(
            (2..=500).contains(&commits),
            "{commits} commits for 1000 writes in flight together"
        );
        assert_eq!(sum(&stat, |shard| shard.queue_depth), 0);
    });
}

#[test]
fn a_restart_starts_the_counters_anew_and_finds_the_keys() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        for i in 0..200_u8 {
            client.set(&[i], b"value").await.unwrap();
        }
        let first = stat_of(&client).await;
        server.kill().await;

        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        let second = stat_of(&client).await;
        assert_eq!((second.sets, second.gets), (0, 0));
        assert_eq!(
            (second.keys, second.logical_bytes),
            (first.keys, first.logical_bytes)
        );
        assert_eq!(second.recovered_records, 200);
        assert_eq!(second.store_uuid, first.store_uuid);
        assert_eq!(second.server_version, env!("CARGO_PKG_VERSION"));
        assert!(second.started_at_unix_ms > first.started_at_unix_ms);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let age_ms = (now.as_millis() as u64).saturating_sub(second.started_at_unix_ms);
        assert!(
            second.uptime_ms <= age_ms && age_ms < 60_000,
            "up {} ms, started {age_ms} ms ago",
            second.uptime_ms
        );
        for (old, new) in first.shards.iter().zip(&second.shards) {
            assert!(
                new.last_version >= old.last_version,
                "{} after {}",
                new.last_version,
                old.last_version
            );
        }
        server.stop().await;
    });
}

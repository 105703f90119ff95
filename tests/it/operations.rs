//! What each call on a single key promises, odd values included.
//!
//! Many keys in one call are in `batches.rs`, listing is in `listing.rs`, counting in `counters.rs`, refused arguments in `limits.rs`.

use futures::future::{join_all, try_join_all};
use orlop::client::{Client, Condition, Found, Outcome};

use crate::harness::{Flags, Server, client_of, run, with_server, with_server_of};
use crate::random::Random;

/// The version of what was written.
#[track_caller]
pub(crate) fn version_of(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Written { version, .. } => version,
        Outcome::Refused { .. } => panic!("not written: {outcome:?}"),
    }
}

/// What a read is expected to find.
pub(crate) fn found(value: &[u8], version: u64) -> Option<Found> {
    Some(Found {
        value: value.to_vec(),
        version,
    })
}

#[test]
fn an_absent_key_is_an_answer_not_an_error() {
    with_server(async |server| {
        let client = server.client().await;
        assert_eq!(client.get(b"nothing here").await.unwrap(), None);
    });
}

#[test]
fn a_value_is_returned_as_it_was_set_with_its_version() {
    with_server(async |server| {
        let client = server.client().await;
        let first = client.set(b"key", b"one").await.unwrap();
        let Outcome::Written {
            version: v1,
            existed: false,
        } = first
        else {
            panic!("{first:?}")
        };
        assert!(v1 > 0, "0 means absent");
        assert_eq!(client.get(b"key").await.unwrap(), found(b"one", v1));

        let second = client.set(b"key", b"two").await.unwrap();
        let Outcome::Written {
            version: v2,
            existed: true,
        } = second
        else {
            panic!("{second:?}")
        };
        assert!(v2 > v1, "{v2} after {v1}");
        assert_eq!(client.get(b"key").await.unwrap(), found(b"two", v2));
    });
}

#[test]
fn an_empty_value_is_a_value() {
    with_server(async |server| {
        let client = server.client().await;
        let version = version_of(client.set(b"empty", b"").await.unwrap());
        assert_eq!(client.get(b"empty").await.unwrap(), found(b"", version));
        let again = client
            .set_if(b"empty", b"x", Condition::IfAbsent)
            .await
            .unwrap();
        assert_eq!(
            again,
            Outcome::Refused {
                current: Some(version)
            }
        );
    });
}

#[test]
fn any_bytes_are_a_key() {
    with_server(async |server| {
        let client = server.client().await;
        let mut keys: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        keys.extend(
            [
                &b"\0\0"[..],
                b"a\0",
                b"a\0b",
                b"\xff\xff",
                b"\xc3\x28",
                b"\r\n",
            ]
            .map(<[u8]>::to_vec),
        );
        let outcomes = try_join_all(keys.iter().map(|key| client.set(key, key)))
            .await
            .unwrap();
        for (key, outcome) in keys.iter().zip(outcomes) {
            let expected = found(key, version_of(outcome));
            assert_eq!(client.get(key).await.unwrap(), expected, "key {key:?}");
        }
    });
}

#[test]
fn keys_that_begin_alike_are_different_keys() {
    with_server(async |server| {
        let client = server.client().await;
        let long = vec![b'a'; 300];
        let keys: Vec<&[u8]> = (1..=long.len()).map(|len| &long[..len]).collect();
        for key in &keys {
            client.set(key, &key.len().to_le_bytes()).await.unwrap();
        }
        client.delete(keys[99]).await.unwrap();
        for (i, key) in keys.iter().enumerate() {
            let value = client.get(key).await.unwrap().map(|found| found.value);
            let expected = (i != 99).then(|| key.len().to_le_bytes().to_vec());
            assert_eq!(value, expected, "key of {} bytes", key.len());
        }
    });
}

#[test]
fn the_longest_key_works_in_every_call() {
    with_server(async |server| {
        let client = server.client().await;
        let mut key = vec![b'k'; orlop::limits::KEY_LEN_MAX];
        let version = version_of(client.set(&key, b"value").await.unwrap());
        assert_eq!(client.get(&key).await.unwrap(), found(b"value", version));
        assert_eq!(
            client.get_many(&[&key]).await.unwrap(),
            [found(b"value", version)]
        );
        // Differs in the last byte only.
        *key.last_mut().unwrap() = b'l';
        assert_eq!(client.get(&key).await.unwrap(), None);
        *key.last_mut().unwrap() = b'k';
        let gone = client.delete(&key).await.unwrap();
        assert!(version_of(gone) > version);
        assert_eq!(client.get(&key).await.unwrap(), None);
    });
}

#[test]
fn values_of_every_size_up_to_16_mib_come_back_whole() {
    with_server_of(Flags::large(), async |server| {
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let client = server.client().await;
        let sizes = [
            1,
            4_000,
            4_096,
            65_535,
            65_536,
            524_288,
            524_289,
            1 << 20,
            (16 << 20) - 1,
            16 << 20,
        ];
        for (i, size) in sizes.into_iter().enumerate() {
            let value = random.bytes(size);
            let key = format!("size {i}");
            let version = version_of(client.set(key.as_bytes(), &value).await.unwrap());
            let read = client.get(key.as_bytes()).await.unwrap().unwrap();
            assert_eq!(read.version, version);
            assert!(
                read.value == value,
                "a value of {size} bytes came back changed"
            );
        }
    });
}

#[test]
fn a_value_that_does_not_fit_the_cache_is_read_from_disk() {
    run(async |scratch| {
        let flags = Flags::small().with("--cache", "64KiB");
        let server = Server::start(&scratch.data(), &flags).await;
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let client = server.client().await;
        let values: Vec<Vec<u8>> = (0..60).map(|_| random.bytes(60_000)).collect();
        for (i, value) in values.iter().enumerate() {
            client.set(&[b'v', i as u8], value).await.unwrap();
        }
        let before = client.stat().await.unwrap();
        for (i, value) in values.iter().enumerate() {
            let read = client.get(&[b'v', i as u8]).await.unwrap().unwrap();
            assert!(&read.value == value, "value {i} came back changed");
        }
        let after = client.stat().await.unwrap();
        assert!(
            after.cache_bytes <= 64 << 10,
            "{} bytes in a cache of 64 KiB",
            after.cache_bytes
        );
        assert!(
            after.cache_misses - before.cache_misses >= 58,
            "{} misses",
            after.cache_misses - before.cache_misses
        );
        server.stop().await;
    });
}

#[test]
fn deleting_reports_what_was_there() {
    with_server(async |server| {
        let client = server.client().await;
        let nothing = client.delete(b"key").await.unwrap();
        assert_eq!(
            nothing,
            Outcome::Written {
                version: 0,
                existed: false
            }
        );

        let set = version_of(client.set(b"key", b"value").await.unwrap());
        let gone = client.delete(b"key").await.unwrap();
        let Outcome::Written {
            version,
            existed: true,
        } = gone
        else {
            panic!("{gone:?}")
        };
        assert!(version > set, "{version} after {set}");
        assert_eq!(client.get(b"key").await.unwrap(), None);

        let nothing = client.delete(b"key").await.unwrap();
        assert_eq!(
            nothing,
            Outcome::Written {
                version: 0,
                existed: false
            }
        );
    });
}

#[test]
fn a_condition_decides_whether_a_write_takes_effect() {
    with_server(async |server| {
        let client = server.client().await;
        // An absent key: one never written, and one deleted.
        client.set(b"deleted", b"x").await.unwrap();
        client.delete(b"deleted").await.unwrap();
        for key in [&b"never"[..], b"deleted"] {
            for condition in [
                Condition::IfPresent,
                Condition::IfVersion(1),
                Condition::IfVersion(0),
            ] {
                let refused = Outcome::Refused { current: None };
                assert_eq!(
                    client.set_if(key, b"y", condition).await.unwrap(),
                    refused,
                    "{condition:?}"
                );
                assert_eq!(
                    client.delete_if(key, condition).await.unwrap(),
                    refused,
                    "{condition:?}"
                );
                assert_eq!(client.get(key).await.unwrap(), None);
            }
            let nothing = Outcome::Written {
                version: 0,
                existed: false,
            };
            assert_eq!(
                client.delete_if(key, Condition::IfAbsent).await.unwrap(),
                nothing
            );
            let made = client.set_if(key, b"y", Condition::IfAbsent).await.unwrap();
            assert!(
                matches!(made, Outcome::Written { existed: false, .. }),
                "{made:?}"
            );
        }
        // A present key.
        let mut version = version_of(client.set(b"here", b"0").await.unwrap());
        for wrong in [
            Condition::IfAbsent,
            Condition::IfVersion(version + 1),
            Condition::IfVersion(0),
        ] {
            let refused = Outcome::Refused {
                current: Some(version),
            };
            assert_eq!(
                client.set_if(b"here", b"y", wrong).await.unwrap(),
                refused,
                "{wrong:?}"
            );
            assert_eq!(
                client.delete_if(b"here", wrong).await.unwrap(),
                refused,
                "{wrong:?}"
            );
            assert_eq!(client.get(b"here").await.unwrap(), found(b"0", version));
        }
        for right in [Condition::None, Condition::IfPresent] {
            version = version_of(client.set_if(b"here", b"1", right).await.unwrap());
        }
        version = version_of(
            client
                .set_if(b"here", b"2", Condition::IfVersion(version))
                .await
                .unwrap(),
        );
        assert_eq!(client.get(b"here").await.unwrap(), found(b"2", version));
        let gone = client
            .delete_if(b"here", Condition::IfVersion(version))
            .await
            .unwrap();
        assert!(version_of(gone) > version);
        assert_eq!(client.get(b"here").await.unwrap(), None);
    });
}

/// Conditions are judged against the newest version of the key, also one that is not durable yet: were they judged
/// against the durable one, two of these could win.
#[test]
fn of_many_writers_with_if_absent_exactly_one_wins() {
    with_server(async |server| {
        let clients = clients_everywhere(server, 9).await;
        for round in 0..20_u32 {
            let key = round.to_le_bytes();
            let attempts = clients.iter().enumerate().map(async |(i, client)| {
                client
                    .set_if(&key, &[i as u8], Condition::IfAbsent)
                    .await
                    .unwrap()
            });
            let outcomes = join_all(attempts).await;
            let winners: Vec<usize> = (0..outcomes.len())
                .filter(|&i| matches!(outcomes[i], Outcome::Written { .. }))
                .collect();
            assert_eq!(winners.len(), 1, "round {round}: {outcomes:?}");
            let version = version_of(outcomes[winners[0]]);
            for outcome in &outcomes {
                if let Outcome::Refused { current } = outcome {
                    assert_eq!(*current, Some(version), "round {round}: {outcomes:?}");
                }
            }
            assert_eq!(
                clients[0].get(&key).await.unwrap(),
                found(&[winners[0] as u8], version)
            );
        }
    });
}

#[test]
fn counting_with_if_version_loses_no_step() {
    with_server(async |server| {
        const STEPS: u32 = 40;
        let clients = clients_everywhere(server, 6).await;
        clients[0]
            .set(b"counter", &0_u32.to_le_bytes())
            .await
            .unwrap();
        join_all(clients.iter().map(async |client| {
            let mut done = 0;
            while done < STEPS {
                let now = client.get(b"counter").await.unwrap().unwrap();
                let count = u32::from_le_bytes(now.value.try_into().unwrap()) + 1;
                let condition = Condition::IfVersion(now.version);
                let outcome = client
                    .set_if(b"counter", &count.to_le_bytes(), condition)
                    .await
                    .unwrap();
                done += u32::from(matches!(outcome, Outcome::Written { .. }));
            }
        }))
        .await;
        let count = clients[0].get(b"counter").await.unwrap().unwrap().value;
        assert_eq!(count, (STEPS * clients.len() as u32).to_le_bytes());
    });
}

/// Clients on the shared address and on each shard's own, in turn.
async fn clients_everywhere(server: &Server, count: usize) -> Vec<Client> {
    let addresses =
        std::iter::once(server.address()).chain(server.shard_addresses().iter().copied());
    let addresses: Vec<_> = addresses.collect();
    join_all((0..count).map(|i| client_of(addresses[i % addresses.len()]))).await
}

#[test]
fn versions_of_a_key_only_grow_across_deletes_and_restarts() {
    run(async |scratch| {
        let mut last = 0;
        for life in 0..6 {
            let server = Server::start(&scratch.data(), &Flags::small()).await;
            let client = server.client().await;
            for _ in 0..3 {
                for deletes in [false, true] {
                    let outcome = if deletes {
                        client.delete(b"key").await.unwrap()
                    } else {
                        client.set(b"key", b"value").await.unwrap()
                    };
                    let version = version_of(outcome);
                    assert!(version > last, "life {life}: {version} after {last}");
                    last = version;
                }
            }
            // The newest record is a tombstone in every other life, and the server is killed in every other pair.
            if life % 2 == 0 {
                last = version_of(client.set(b"key", b"value").await.unwrap());
            }
            if life % 4 < 2 {
                server.kill().await;
            } else {
                server.stop().await;
            }
        }
    });
}

#[test]
fn info_says_what_the_server_was_told() {
    with_server(async |server| {
        let info = server.client().await.info().await.unwrap();
        assert_eq!(info.server_version, env!("CARGO_PKG_VERSION"));
        assert_eq!(info.store_uuid.len(), 16);
        assert_eq!(
            info.limits.key_bytes_max as usize,
            orlop::limits::KEY_LEN_MAX
        );
        assert_eq!(info.limits.value_bytes_max, 64 << 10);
        assert_eq!(
            info.limits.message_bytes_max as usize,
            orlop::limits::MESSAGE_BYTES_MAX
        );
        assert_eq!(info.limits.batch_max as usize, orlop::limits::BATCH_MAX);
        assert_eq!(
            info.limits.page_entries_max as usize,
            orlop::limits::PAGE_ENTRIES_MAX
        );
        assert_eq!(
            info.limits.page_bytes_max as usize,
            orlop::limits::PAGE_BYTES_MAX
        );
        assert_eq!(
            info.limits.answer_bytes_max as usize,
            orlop::limits::ANSWER_BYTES_MAX
        );
        assert_eq!(
            info.limits.connection_calls_max as usize,
            orlop::limits::CONNECTION_CALLS_MAX
        );
        let ports: Vec<u16> = server
            .shard_addresses()
            .iter()
            .map(|address| address.port())
            .collect();
        assert_eq!(info.shard_ports, ports);
    });
}

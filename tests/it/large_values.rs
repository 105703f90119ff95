//! Large values arrive whole, from memory, from disk and from another shard, whatever happens while they are on their way.

use std::collections::BTreeMap;

use capnp::message::Reader;
use capnp::serialize::OwnedSegments;
use capnp_rpc::rpc_capnp::{message, return_};
use orlop::client::PrefixQuery;
use orlop::proto::orlop_capnp::{lookup, store};
use tokio::io::AsyncReadExt;

use crate::harness::{Flags, with_server_of};
use crate::operations::version_of;
use crate::random::Random;
use crate::raw::{self, RawClient};

/// The version and the value in the answer to a `get`; `None` where it is another message.
fn found_in(message: &Reader<OwnedSegments>) -> Option<(u64, &[u8])> {
    let root: message::Reader<'_> = message.get_root().unwrap();
    let message::Return(Ok(answer)) = root.which().unwrap() else {
        return None;
    };
    if answer.get_answer_id() < raw::FIRST_QUESTION {
        return None;
    }
    let return_::Results(Ok(payload)) = answer.which().unwrap() else {
        panic!("no results");
    };
    let results: store::get_results::Reader<'_> = payload.get_content().get_as().unwrap();
    let lookup::Found(found) = results.get_lookup().unwrap().which().unwrap() else {
        panic!("not found");
    };
    Some((found.get_version(), found.get_value().unwrap()))
}

/// The lengths at which something changes in how a value travels, of every remainder of a word, and some between.
#[test]
fn values_of_every_kind_of_length_come_back_whole_from_wherever_they_are() {
    // Less memory than the values take: most are on disk when they are read first.
    with_server_of(Flags::large().with("--cache", "16MiB"), async |server| {
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let client = server.client().await;
        let mut lens: Vec<usize> = [0, 64 << 10, 128 << 10, 512 << 10, 1 << 20]
            .into_iter()
            .flat_map(|border: usize| border.saturating_sub(5)..border + 5)
            .collect();
        lens.extend((0..10).map(|_| random.within(0..3 << 20) as usize));
        let values: BTreeMap<Vec<u8>, Vec<u8>> = lens
            .iter()
            .enumerate()
            .map(|(at, len)| (format!("value {at}").into_bytes(), random.bytes(*len)))
            .collect();
        for (key, value) in &values {
            client.set(key, value).await.unwrap();
        }
        for round in ["first", "second"] {
            for (key, value) in &values {
                let found = client.get(key).await.unwrap().unwrap();
                assert!(found.value == *value, "{} bytes, {round} time", value.len());
            }
        }
        let keys: Vec<&Vec<u8>> = values.keys().collect();
        for _ in 0..20 {
            // At most 24 MiB together; some are absent, some twice.
            let asked: Vec<&[u8]> = (0..8)
                .map(|_| match random.within(0..9) {
                    0 => &b"absent"[..],
                    _ => keys[random.within(0..keys.len() as u64) as usize],
                })
                .collect();
            let found = client.get_many(&asked).await.unwrap();
            assert_eq!(found.len(), asked.len());
            for (key, found) in asked.iter().zip(found) {
                let found = found.map(|found| found.value);
                assert!(found.as_ref() == values.get(*key), "{key:?}");
            }
        }
    });
}

/// Small and large ones side by side, from both shards, in pages that are cut anywhere: every byte where it belongs.
#[test]
fn pages_of_large_values_are_whole_in_whichever_way_they_are_answered() {
    for fast_path in [true, false] {
        let flags = Flags::large().with("--cache", "4MiB").fast_path(fast_path);
        with_server_of(flags, async |server| {
            let seed = Random::seed();
            println!("seed {seed}, fast path: {fast_path}");
            let mut random = Random::new(seed);
            let client = server.client().await;
            let mut model = BTreeMap::new();
            for border in [0, 8, 1_000, 64 << 10, 300 << 10] {
                for len in border..border + 9 {
                    let mut key = format!("page/{}", random.within(0..1 << 60)).into_bytes();
                    key.truncate(6 + random.within(0..15) as usize);
                    let value = random.bytes(len);
                    let version = version_of(client.set(&key, &value).await.unwrap());
                    model.insert(key, (value, version));
                }
            }
            let stat = client.stat().await.unwrap();
            assert!(stat.shards.len() == 2 && stat.shards.iter().all(|shard| shard.keys > 0));
            for keys_only in [true, false, false, false] {
                let (mut after, mut rest) = (Vec::new(), model.iter());
                loop {
                    let query = PrefixQuery {
                        after: &after,
                        max_entries: 1 + random.within(0..20) as u32,
                        max_bytes: 1 + random.within(0..2 << 20) as u32,
                        keys_only,
                        ..PrefixQuery::new(b"page/")
                    };
                    let page = client.get_prefix(&query).await.unwrap();
                    for entry in &page.entries {
                        let (key, (value, version)) = rest.next().expect("a key that is there");
                        assert_eq!((&entry.key, entry.version), (key, *version));
                        let value = if keys_only { &[][..] } else { value };
                        assert!(entry.value == value, "{} bytes", value.len());
                    }
                    assert_eq!(page.more, rest.len() > 0);
                    match page.entries.last() {
                        Some(last) => after.clone_from(&last.key),
                        None => break,
                    }
                }
            }
        });
    }
}

/// Answers that wait in the server refer to the values where they are: what is written meanwhile must not show in them.
#[test]
fn an_answer_that_waits_to_be_read_does_not_change() {
    const LEN: usize = 1 << 20;
    const ANSWERS: u32 = 24;
    with_server_of(Flags::large().with("--shards", "1"), async |server| {
        let client = server.client().await;
        let set = async |byte: u8| {
            let outcome = client.set(b"key", &vec![byte; LEN]).await.unwrap();
            (version_of(outcome), byte)
        };
        let mut written = BTreeMap::from([set(b'a').await]);
        let mut slow = RawClient::connect(server.address()).await;
        let calls: Vec<u8> = (0..ANSWERS)
            .flat_map(|i| raw::get(raw::FIRST_QUESTION + i, b"key"))
            .collect();
        slow.send(&calls).await;
        let mut answers = 0;
        while answers < ANSWERS {
            let message = slow.receive().await.expect("the connection stays open");
            let Some((version, value)) = found_in(&message) else {
                continue;
            };
            answers += 1;
            let byte = written.get(&version).copied();
            assert!(
                value.len() == LEN && value.iter().all(|at| Some(*at) == byte),
                "answer {answers} has version {version} and not its value"
            );
            if answers == 1 {
                // The others are on their way, most of them still in the server.
                for byte in b'b'..=b'f' {
                    written.extend([set(byte).await]);
                }
            }
        }
    });
}

#[test]
fn a_peer_that_goes_in_the_middle_of_an_answer_takes_nothing_with_it() {
    with_server_of(Flags::large(), async |server| {
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let client = server.client().await;
        let value = random.bytes((4 << 20) + 3);
        client.set(b"key", &value).await.unwrap();
        for _ in 0..20 {
            let mut peer = RawClient::connect(server.address()).await;
            let calls: Vec<u8> = (0..4)
                .flat_map(|i| raw::get(raw::FIRST_QUESTION + i, b"key"))
                .collect();
            peer.send(&calls).await;
            let taken = random.within(0..9 << 20);
            let mut taken = peer.stream.take(taken);
            tokio::io::copy(&mut taken, &mut tokio::io::sink())
                .await
                .unwrap();
            drop(taken);
            // The memory of what others left is used again, with all that is new in it.
            let found = client.get(b"key").await.unwrap().unwrap();
            assert!(found.value == value);
        }
    });
}

//! Every operation and every error of the client, against a small server over the real wire in memory.

mod backup;
mod fake;
#[cfg(feature = "tokio")]
mod reconnecting;
#[cfg(feature = "tokio")]
mod sharded;

/// What the fake server is made of.
mod library {
    pub(super) use crate::{limits, proto, wire};
}

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures::FutureExt;
use futures::executor::LocalPool;
use futures::future::join_all;
use futures::task::LocalSpawnExt;

use super::*;
use crate::proto::ErrorWord;
use crate::wire::pipe::{PipeWriter, duplex};
use fake::Fake;

type DriverEnd = Rc<RefCell<Option<Result<(), ClientError>>>>;

struct Setup {
    client: Client,
    fake: Rc<Fake>,
    pool: LocalPool,
    /// What the server writes to; closing it ends the connection.
    server_writer: PipeWriter,
    client_writer: PipeWriter,
    driver_end: DriverEnd,
}

fn setup() -> Setup {
    let ((client_reader, client_writer), (server_reader, server_writer)) = duplex(64 << 20);
    let fake = Rc::new(Fake::default());
    let pool = LocalPool::new();
    let server = fake::serve(&fake, server_reader, server_writer.clone());
    pool.spawner().spawn_local(server.map(drop)).unwrap();
    let (client, driver) = Client::new(client_reader, client_writer.clone());
    let driver_end = DriverEnd::default();
    let slot = Rc::clone(&driver_end);
    let driver = driver.map(move |end| *slot.borrow_mut() = Some(end));
    pool.spawner().spawn_local(driver).unwrap();
    Setup {
        client,
        fake,
        pool,
        server_writer,
        client_writer,
        driver_end,
    }
}

fn written(version: u64, existed: bool) -> Outcome {
    Outcome::Written { version, existed }
}

#[test]
fn single_keys() {
    let Setup {
        client, mut pool, ..
    } = setup();
    pool.run_until(async {
        assert_eq!(client.get(b"k").await.unwrap(), None);
        assert_eq!(client.set(b"k", b"v1").await.unwrap(), written(1, false));
        assert_eq!(client.set(b"k", b"").await.unwrap(), written(2, true));
        let found = Found {
            value: Vec::new(),
            version: 2,
        };
        assert_eq!(client.get(b"k").await.unwrap(), Some(found));
        assert_eq!(client.delete(b"k").await.unwrap(), written(3, true));
        assert_eq!(client.delete(b"k").await.unwrap(), written(0, false));
        assert_eq!(client.get(b"k").await.unwrap(), None);
        let binary: Vec<u8> = (0..=255).collect();
        client.set(&binary, &binary).await.unwrap();
        assert_eq!(client.get(&binary).await.unwrap().unwrap().value, binary);
    });
}

#[test]
fn conditions() {
    let Setup {
        client, mut pool, ..
    } = setup();
    let refused = |current| Outcome::Refused { current };
    pool.run_until(async {
        let set = |condition| client.set_if(b"k", b"v", condition);
        assert_eq!(set(Condition::IfPresent).await.unwrap(), refused(None));
        assert_eq!(set(Condition::IfVersion(1)).await.unwrap(), refused(None));
        assert_eq!(set(Condition::IfAbsent).await.unwrap(), written(1, false));
        assert_eq!(set(Condition::IfAbsent).await.unwrap(), refused(Some(1)));
        assert_eq!(
            set(Condition::IfVersion(1)).await.unwrap(),
            written(2, true)
        );
        assert_eq!(
            set(Condition::IfVersion(1)).await.unwrap(),
            refused(Some(2))
        );
        assert_eq!(set(Condition::IfPresent).await.unwrap(), written(3, true));
        let delete = |condition| client.delete_if(b"k", condition);
        assert_eq!(
            delete(Condition::IfVersion(2)).await.unwrap(),
            refused(Some(3))
        );
        assert_eq!(
            delete(Condition::IfVersion(3)).await.unwrap(),
            written(4, true)
        );
        assert_eq!(delete(Condition::IfPresent).await.unwrap(), refused(None));
    });
}

#[test]
fn many_keys_in_one_call() {
    let Setup {
        client,
        fake,
        mut pool,
        ..
    } = setup();
    pool.run_until(async {
        let set = |key, value| Mutation {
            key,
            change: Change::Set(value),
            condition: Condition::None,
        };
        let outcomes = client
            .write(&[
                set(b"a", b"1"),
                set(b"b", b"2"),
                Mutation {
                    condition: Condition::IfAbsent,
                    ..set(b"a", b"3")
                },
                set(b"c", b"too much"),
                Mutation {
                    key: b"b",
                    change: Change::Delete,
                    condition: Condition::IfVersion(2),
                },
            ])
            .await
            .unwrap();
        let calls = fake.calls.get();
        assert_eq!(calls, 1);
        assert_eq!(*outcomes[0].as_ref().unwrap(), written(1, false));
        assert_eq!(*outcomes[1].as_ref().unwrap(), written(2, false));
        assert_eq!(
            *outcomes[2].as_ref().unwrap(),
            Outcome::Refused { current: Some(1) }
        );
        let Err(ClientError::OutOfSpace(reason)) = &outcomes[3] else {
            panic!("{:?}", outcomes[3])
        };
        assert_eq!(reason, "the disk is full");
        assert_eq!(*outcomes[4].as_ref().unwrap(), written(3, true));
        let found = client.get_many(&["a", "b", "a"]).await.unwrap();
        let a = Some(Found {
            value: b"1".to_vec(),
            version: 1,
        });
        assert_eq!(found, [a.clone(), None, a]);
        assert!(client.get_many::<&[u8]>(&[]).await.unwrap().is_empty());
        assert!(client.write(&[]).await.unwrap().is_empty());
    });
}

#[test]
fn prefixes_by_page_and_by_stream() {
    let Setup {
        client, mut pool, ..
    } = setup();
    pool.run_until(async {
        for number in 0..10 {
            client
                .set(format!("p/{number}").as_bytes(), b"value")
                .await
                .unwrap();
        }
        client.set(b"q", b"other").await.unwrap();
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let mut pages = 0;
        loop {
            let after = keys.last().cloned().unwrap_or_default();
            let query = PrefixQuery {
                after: &after,
                max_entries: 4,
                ..PrefixQuery::new(b"p/")
            };
            let page = client.get_prefix(&query).await.unwrap();
            assert!(
                page.entries
                    .iter()
                    .all(|entry| entry.value == b"value" && entry.version > 0)
            );
            keys.extend(page.entries.into_iter().map(|entry| entry.key));
            pages += 1;
            if !page.more {
                break;
            }
        }
        assert_eq!(pages, 3);
        let expected: Vec<_> = (0..10)
            .map(|number| format!("p/{number}").into_bytes())
            .collect();
        assert_eq!(keys, expected);
        let only_keys = PrefixQuery {
            keys_only: true,
            ..PrefixQuery::new(b"p/")
        };
        let page = client.get_prefix(&only_keys).await.unwrap();
        assert!(page.entries.iter().all(|entry| entry.value.is_empty()) && !page.more);

        let batches = Rc::new(RefCell::new(Vec::new()));
        let into = Rc::clone(&batches);
        let collect = move |batch: Vec<Entry>| {
            into.borrow_mut().push(batch);
            Ok(())
        };
        assert_eq!(
            client.stream_prefix(b"p/", false, collect).await.unwrap(),
            10
        );
        let streamed: Vec<_> = batches
            .take()
            .into_iter()
            .flatten()
            .map(|entry| entry.key)
            .collect();
        assert_eq!(streamed, expected);
    });
}

#[test]
fn the_consumer_stops_a_stream() {
    let Setup {
        client, mut pool, ..
    } = setup();
    pool.run_until(async {
        for number in 0..10_u8 {
            client.set(&[number], b"").await.unwrap();
        }
        let seen = Rc::new(Cell::new(0));
        let count = Rc::clone(&seen);
        let stop_at_second = move |_| {
            count.set(count.get() + 1);
            if count.get() == 2 {
                Err("enough".to_string())
            } else {
                Ok(())
            }
        };
        let error = client
            .stream_prefix(b"", true, stop_at_second)
            .await
            .unwrap_err();
        let ClientError::Stopped(reason) = error else {
            panic!("{error:?}")
        };
        assert_eq!((reason.as_str(), seen.get()), ("enough", 2));
        assert_eq!(
            client.get(&[3]).await.unwrap().unwrap().version,
            4,
            "the connection goes on"
        );
    });
}

#[test]
fn stat_and_info() {
    let Setup {
        client, mut pool, ..
    } = setup();
    pool.run_until(async {
        client.set(b"k", b"v").await.unwrap();
        let stat = client.stat().await.unwrap();
        assert_eq!(
            (stat.server_version.as_str(), stat.keys, stat.connections),
            ("1.2.3", 1, 3)
        );
        let shard = &stat.shards[1];
        assert_eq!(
            (
                stat.shards.len(),
                shard.shard,
                shard.commit_p99_us,
                shard.warming
            ),
            (2, 1, 170, true)
        );
        let info = client.info().await.unwrap();
        assert_eq!(
            (info.server_version.as_str(), info.store_uuid.as_slice()),
            ("1.2.3", &[9; 16][..])
        );
        assert_eq!(
            (info.limits.key_bytes_max, info.limits.batch_max),
            (65_535, 10_000)
        );
        assert_eq!(
            (info.placement.hash.as_str(), info.placement.seed),
            ("xxh3-64", 77)
        );
        assert_eq!(
            (info.placement.shard_count, info.shard_ports),
            (2, vec![6001, 6002])
        );
    });
}

#[test]
fn operations_overlap_and_share_writes() {
    let Setup {
        client,
        mut pool,
        client_writer,
        ..
    } = setup();
    pool.run_until(client.get(b"warm up")).unwrap();
    pool.run_until_stalled();
    let writes = client_writer.writes();
    let calls = (0..100_u8).map(|number| {
        let client = client.clone();
        async move { client.set(&[number], &[number]).await }
    });
    for (number, outcome) in (1..).zip(pool.run_until(join_all(calls))) {
        assert_eq!(
            outcome.unwrap(),
            written(number, false),
            "in the order of the calls"
        );
    }
    assert_eq!(client_writer.writes() - writes, 1);
}

#[test]
fn a_large_value_makes_the_round_trip() {
    let Setup {
        client, mut pool, ..
    } = setup();
    let value: Vec<u8> = (0..16_u32 << 20).map(|n| (n * 7 % 255) as u8).collect();
    pool.run_until(async {
        client.set(b"large", &value).await.unwrap();
        assert!(client.get(b"large").await.unwrap().unwrap().value == value);
    });
}

#[test]
fn every_error_word_has_its_type() {
    let Setup {
        client,
        fake,
        mut pool,
        ..
    } = setup();
    let mut fail = |error: capnp::Error| {
        *fake.error.borrow_mut() = Some(error);
        pool.run_until(client.set(b"k", b"v")).unwrap_err()
    };
    for word in ErrorWord::ALL {
        let error = fail(word.error("7 is over the limit of 6"));
        let sentence = match (word, error) {
            (ErrorWord::InvalidArgument, ClientError::InvalidArgument(sentence))
            | (ErrorWord::Overloaded, ClientError::Overloaded(sentence))
            | (ErrorWord::OutOfSpace, ClientError::OutOfSpace(sentence))
            | (ErrorWord::ShuttingDown, ClientError::ShuttingDown(sentence))
            | (ErrorWord::Corrupt, ClientError::Corrupt(sentence)) => sentence,
            (word, error) => panic!("{word}: {error:?}"),
        };
        assert_eq!(sentence, "7 is over the limit of 6");
    }
    let unknown = fail(capnp::Error::failed("something new: x".to_string()));
    assert_eq!(
        unknown.to_string(),
        "unexpected answer: remote exception: something new: x"
    );
    let bare = fail(capnp::Error::overloaded("busy".to_string()));
    assert_eq!(
        bare.to_string(),
        "the server is overloaded: remote exception: busy"
    );
    let unimplemented = fail(capnp::Error::unimplemented("old server".to_string()));
    assert!(
        matches!(unimplemented, ClientError::Protocol(_)),
        "{unimplemented:?}"
    );
}

#[test]
fn a_call_over_the_message_limit_is_not_sent() {
    let Setup {
        client,
        fake,
        mut pool,
        ..
    } = setup();
    let value = vec![0; 40 << 20];
    pool.run_until(async {
        let error = client.set(b"k", &value).await.unwrap_err();
        let ClientError::InvalidArgument(sentence) = &error else {
            panic!("{error:?}")
        };
        assert!(
            sentence.contains("a call of 41943105 bytes is over the limit of 41877504 bytes"),
            "{sentence}"
        );
        let half = Mutation {
            key: b"k",
            change: Change::Set(&value[..20 << 20]),
            condition: Condition::None,
        };
        assert!(matches!(
            client.write(&[half, half]).await,
            Err(ClientError::InvalidArgument(_))
        ));
        let key = vec![1; 60_000];
        assert!(matches!(
            client.get_many(&[&key; 700]).await,
            Err(ClientError::InvalidArgument(_))
        ));
        assert_eq!(fake.calls.get(), 0);
        let fits = vec![0; (40 << 20) - (64 << 10) - 65];
        client.set(b"k", &fits).await.unwrap();
    });
}

#[test]
fn calls_in_flight_fail_as_disconnected() {
    let Setup {
        client,
        fake,
        mut pool,
        server_writer,
        driver_end,
        ..
    } = setup();
    fake.silent.set(true);
    let answers = Rc::new(RefCell::new(Vec::new()));
    for number in 0..3_u8 {
        let (client, answers) = (client.clone(), Rc::clone(&answers));
        let call = async move {
            let answer = client.set(&[number], b"").await;
            answers.borrow_mut().push(answer);
        };
        pool.spawner().spawn_local(call).unwrap();
    }
    pool.run_until_stalled();
    assert_eq!(
        (fake.calls.get(), answers.borrow().len(), client.is_closed()),
        (3, 0, false)
    );
    server_writer.close();
    pool.run_until_stalled();
    assert_eq!(answers.borrow().len(), 3);
    for answer in answers.take() {
        assert!(
            matches!(answer, Err(ClientError::Disconnected(_))),
            "{answer:?}"
        );
    }
    assert!(client.is_closed());
    assert!(
        driver_end
            .take()
            .expect("the driver ends with the connection")
            .is_ok()
    );
    let late = pool.run_until(client.get(b"k"));
    assert!(
        matches!(late, Err(ClientError::Disconnected(_))),
        "{late:?}"
    );
}

/// An abort carries a reason that may begin with a code word. It is the reason of the connection's end, not the answer
/// to a call: a write in flight has an unknown outcome and must not look refused.
#[test]
fn an_abort_is_no_answer() {
    let Setup {
        client,
        fake,
        mut pool,
        server_writer,
        driver_end,
        ..
    } = setup();
    fake.forgetful.set(true);
    let answer = Rc::new(RefCell::new(None));
    let (writer, slot) = (client.clone(), Rc::clone(&answer));
    let call = async move {
        let answer = writer.set(b"k", b"v").await;
        *slot.borrow_mut() = Some(answer);
    };
    pool.spawner().spawn_local(call).unwrap();
    pool.run_until_stalled();
    assert!(
        fake.map.borrow().contains_key(&b"k"[..]),
        "the write was done and not answered"
    );
    let mut abort = capnp::message::Builder::new_default();
    let root = abort.init_root::<capnp_rpc::rpc_capnp::message::Builder<'_>>();
    root.init_abort()
        .set_reason("invalidArgument: a message was too large");
    let mut bytes = Vec::new();
    capnp::serialize::write_message(&mut bytes, &abort).unwrap();
    server_writer.put(&bytes);
    pool.run_until_stalled();
    let answer = answer.take().expect("answered");
    let Err(ClientError::Disconnected(reason)) = &answer else {
        panic!("{answer:?}")
    };
    assert!(
        reason.contains("invalidArgument: a message was too large"),
        "{reason}"
    );
    let end = driver_end.take().expect("the driver ends");
    assert!(
        matches!(&end, Err(ClientError::Disconnected(reason)) if reason.contains("too large")),
        "{end:?}"
    );
}

#[test]
fn the_connection_closes_with_its_last_client() {
    let Setup {
        client,
        mut pool,
        client_writer,
        driver_end,
        ..
    } = setup();
    let second = client.clone();
    pool.run_until(client.set(b"k", b"v")).unwrap();
    drop(client);
    pool.run_until_stalled();
    assert!(driver_end.borrow().is_none());
    pool.run_until(second.get(b"k")).unwrap();
    drop(second);
    pool.run_until_stalled();
    assert!(driver_end.take().expect("nobody is left").is_ok());
    assert!(client_writer.is_closed());
}

#[test]
fn an_abandoned_operation_leaves_the_others_alone() {
    let Setup {
        client,
        fake,
        mut pool,
        ..
    } = setup();
    fake.silent.set(true);
    let mut abandoned = Box::pin(client.get(b"k"));
    assert!((&mut abandoned).now_or_never().is_none());
    pool.run_until_stalled();
    assert_eq!(fake.calls.get(), 1);
    drop(abandoned);
    fake.silent.set(false);
    pool.run_until(client.set(b"k", b"v")).unwrap();
    assert_eq!(
        pool.run_until(client.get(b"k")).unwrap().unwrap().value,
        b"v"
    );
}

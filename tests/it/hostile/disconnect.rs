//! Connections that end in every phase, in order, half or by a reset; and connections beyond number.

use std::time::Duration;

use futures::future::join_all;
use orlop::client::ClientError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::attack::withstand;
use super::garbage::any_address;
use crate::harness::{Flags, Server, run, until, with_server};
use crate::random::Random;
use crate::raw::{self, RawClient};

/// The client closes its sending side right behind a call. The connection ends; whether the call was taken before that
/// is open, but what was taken is whole.
#[test]
fn a_half_closed_connection_ends_and_its_write_is_whole_or_absent() {
    with_server(async |server| {
        let witness = server.client().await;
        for round in 0..20_u32 {
            let key = round.to_le_bytes();
            let mut client = RawClient::connect(server.address()).await;
            client
                .send(&raw::set(raw::FIRST_QUESTION, &key, b"value"))
                .await;
            client.stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let end = client.stream.read_to_end(&mut rest);
            let end = tokio::time::timeout(Duration::from_secs(10), end).await;
            assert!(end.is_ok(), "round {round}: the connection stays open");
            let found = witness.get(&key).await.unwrap();
            assert!(found.is_none_or(|found| found.value == b"value"));
        }
    });
}

/// The connection breaks between call and answer, at a random moment: each write is there whole or not at all, now and
/// after a restart.
#[test]
fn a_disconnect_between_call_and_answer_leaves_the_write_whole_or_absent() {
    run(async |scratch| {
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let value_of = |i: u32| Random::new(u64::from(i)).bytes(20_000);
        const ROUNDS: u32 = 120;
        for i in 0..ROUNDS {
            let mut client = RawClient::connect(any_address(&server, i as usize)).await;
            let bytes = raw::set(raw::FIRST_QUESTION, &i.to_le_bytes(), &value_of(i));
            // Cut within the message in one of four rounds, else behind it.
            let cut = if random.one_in(4) {
                random.within(0..bytes.len() as u64) as usize
            } else {
                bytes.len()
            };
            client.send(&bytes[..cut]).await;
            if random.one_in(3) {
                client.send(&raw::finish(raw::FIRST_QUESTION)).await;
            }
            if random.one_in(2) {
                // A reset instead of an orderly end.
                client.stream.set_zero_linger().unwrap();
            }
            drop(client);
        }
        let witness = server.client().await;
        let mut whole = 0;
        let check = async |client: &orlop::client::Client| {
            let mut present = Vec::new();
            for i in 0..ROUNDS {
                if let Some(found) = client.get(&i.to_le_bytes()).await.unwrap() {
                    assert!(found.value == value_of(i), "write {i} is torn");
                    present.push((i, found.version));
                }
            }
            present
        };
        // Writes that the server has read are still arriving; a later write on each shard comes after them.
        until("writes settle", Duration::from_secs(20), async || {
            let now = check(&witness).await.len();
            let idle = witness
                .stat()
                .await
                .unwrap()
                .shards
                .iter()
                .all(|shard| shard.queue_depth == 0);
            let settled = idle && now == whole && witness.stat().await.unwrap().connections == 1;
            whole = now;
            settled
        })
        .await;
        let before = check(&witness).await;
        println!("{} of {ROUNDS} writes are there", before.len());
        server.kill().await;
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let after = check(&server.client().await).await;
        assert_eq!(after, before);
        server.stop().await;
    });
}

/// Connections beyond number: all are served, and closing them leaves nothing behind.
#[test]
fn many_connections_are_served_and_leave_nothing_behind() {
    with_server(async |server| {
        let witness = server.client().await;
        let clients = join_all((0..400).map(|_| server.client())).await;
        join_all(clients.iter().enumerate().map(async |(i, client)| {
            let key = (i as u32).to_le_bytes();
            client.set(&key, &key).await.unwrap();
            assert_eq!(client.get(&key).await.unwrap().unwrap().value, key);
        }))
        .await;
        assert_eq!(
            witness.stat().await.unwrap().connections as usize,
            clients.len() + 1
        );
        drop(clients);
        until(
            "closed connections are forgotten",
            Duration::from_secs(20),
            async || witness.stat().await.unwrap().connections == 1,
        )
        .await;
    });
}

#[test]
fn a_server_that_dies_is_a_disconnect_with_unknown_outcome() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        client.set(b"key", b"value").await.unwrap();
        server.kill().await;
        let error = client.set(b"key", b"other").await.unwrap_err();
        assert!(matches!(error, ClientError::Disconnected(_)), "{error:?}");
        let error = client.get(b"key").await.unwrap_err();
        assert!(matches!(error, ClientError::Disconnected(_)), "{error:?}");
    });
}

/// A session is cut at the boundary of every word, in each of the ways in which a connection can end.
#[test]
fn a_session_may_end_anywhere() {
    with_server(async |server| {
        let mut session = Vec::new();
        session.extend(raw::set(raw::FIRST_QUESTION, b"key", b"value"));
        session.extend(raw::get(raw::FIRST_QUESTION + 1, b"key"));
        session.extend(raw::stream_prefix(raw::FIRST_QUESTION + 2, b"", 7));
        session.extend(raw::finish(raw::FIRST_QUESTION + 2));
        session.extend(raw::finish(raw::OPEN));
        let words = session.len() / 8;
        withstand(server, 1, async || {
            for cut in 0..3 * words {
                let mut client = RawClient::connect(any_address(server, cut)).await;
                client.send(&session[..cut / 3 * 8]).await;
                match cut % 3 {
                    0 => client.stream.shutdown().await.unwrap_or_default(),
                    1 => client.stream.set_zero_linger().unwrap(),
                    _ => {}
                }
                if cut % 3 == 0 {
                    let mut rest = Vec::new();
                    let end = client.stream.read_to_end(&mut rest);
                    let end = tokio::time::timeout(Duration::from_secs(10), end).await;
                    assert!(end.is_ok(), "cut at {cut}: the connection stays open");
                }
            }
        })
        .await;
    });
}

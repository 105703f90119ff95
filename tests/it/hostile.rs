//! What arrives on the port and is no call: garbage, messages over the limit, connections that break in every phase.
//! The connection ends, or it is answered; the server and its other clients are unharmed.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use orlop::client::ClientError;
use orlop::limits::MESSAGE_BYTES_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Flags, Server, run, until, with_server, with_server_of};
use crate::random::Random;
use crate::raw::{self, Answer, RawClient};

/// Sends bytes to every address of the server, then reads until the server closes the connection. A client that was
/// connected before must be served as before, and the memory of the server must not follow what was announced.
async fn send_and_be_closed(server: &Server, bytes: &[u8]) {
    let witness = server.client().await;
    witness.set(b"witness", b"value").await.unwrap();
    let resident = witness.stat().await.unwrap().resident_bytes;
    let addresses =
        std::iter::once(server.address()).chain(server.shard_addresses().iter().copied());
    for address in addresses {
        let shown = &bytes[..bytes.len().min(32)];
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The server may close before it has read everything.
        stream.write_all(bytes).await.ok();
        let mut answer = Vec::new();
        let end =
            tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "the connection stays open after {shown:x?}");
        assert_eq!(
            witness.get(b"witness").await.unwrap().unwrap().value,
            b"value",
            "after {shown:x?}"
        );
    }
    let grown = witness
        .stat()
        .await
        .unwrap()
        .resident_bytes
        .saturating_sub(resident);
    assert!(
        grown < 32 << 20,
        "{grown} bytes more in memory after {} bytes",
        bytes.len()
    );
}

#[test]
fn an_http_request_ends_the_connection() {
    with_server(async |server| {
        let request =
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a browser\r\nAccept: */*\r\n\r\n";
        send_and_be_closed(server, request).await;
    });
}

#[test]
fn a_tls_or_redis_greeting_ends_the_connection() {
    with_server(async |server| {
        send_and_be_closed(server, b"*1\r\n$4\r\nPING\r\n").await;
        let mut hello = vec![
            0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
        ];
        hello.extend([0x42; 500]);
        send_and_be_closed(server, &hello).await;
    });
}

#[test]
fn a_header_with_too_many_segments_ends_the_connection() {
    with_server(async |server| {
        for segments in [512_u32, 513, 0x7fff_ffff, 0xffff_fffe, 0xffff_ffff] {
            let mut bytes = segments.to_le_bytes().to_vec();
            bytes.extend([1, 0, 0, 0]);
            send_and_be_closed(server, &bytes).await;
        }
    });
}

#[test]
fn a_header_that_announces_too_much_ends_the_connection_before_the_message_is_there() {
    with_server(async |server| {
        let words = (MESSAGE_BYTES_MAX / 8) as u32;
        for segments in [
            vec![words + 1],
            vec![u32::MAX],
            vec![words / 2, words / 2 + 2],
            vec![u32::MAX; 4],
        ] {
            let mut bytes = (segments.len() as u32 - 1).to_le_bytes().to_vec();
            bytes.extend(segments.iter().flat_map(|words| words.to_le_bytes()));
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            send_and_be_closed(server, &bytes).await;
        }
    });
}

/// A message of the largest size is taken; one word more is not.
#[test]
fn a_message_over_the_limit_closes_its_connection_and_no_other() {
    with_server_of(Flags::large(), async |server| {
        let other = server.client().await;
        let mut client = RawClient::connect(server.address()).await;
        let largest = raw::set(raw::FIRST_QUESTION, b"key", &vec![0; 39 << 20]);
        assert!(largest.len() < MESSAGE_BYTES_MAX);
        client.send(&largest).await;
        let answer = client.answer(raw::FIRST_QUESTION).await;
        assert!(
            matches!(&answer, Some(Answer::Exception(reason)) if reason.contains("invalidArgument")),
            "{answer:?}"
        );
        assert!(!client.is_closed().await);

        let larger = raw::set(raw::FIRST_QUESTION + 1, b"key", &vec![0; MESSAGE_BYTES_MAX]);
        client.send(&larger).await;
        assert!(client.is_closed().await);
        other.set(b"other", b"value").await.unwrap();
        assert_eq!(other.get(b"key").await.unwrap(), None);
    });
}

/// Messages that frame well and mean nothing: random words as the content of well-formed headers.
#[test]
fn random_messages_do_not_harm_the_server() {
    with_server(async |server| {
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let witness = server.client().await;
        for round in 0..300 {
            let mut stream = TcpStream::connect(any_address(server, round))
                .await
                .unwrap();
            let mut bytes = Vec::new();
            for _ in 0..random.within(1..5) {
                let words = random.within(1..40) as u32;
                bytes.extend(0_u32.to_le_bytes());
                bytes.extend(words.to_le_bytes());
                bytes.extend(random.bytes(8 * words as usize));
            }
            stream.write_all(&bytes).await.ok();
            stream.shutdown().await.ok();
            let mut answer = Vec::new();
            let end =
                tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer))
                    .await;
            assert!(
                end.is_ok(),
                "round {round}: the connection stays open after it was half-closed"
            );
        }
        witness.set(b"key", b"value").await.unwrap();
    });
}

/// Real calls with single bits flipped: whatever they mean then, the server answers or closes, and stays.
#[test]
fn calls_with_flipped_bits_do_not_harm_the_server() {
    with_server(async |server| {
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let witness = server.client().await;
        witness.set(b"witness", b"value").await.unwrap();
        let mut whole = raw::bootstrap();
        whole.extend(raw::open());
        whole.extend(raw::set(raw::FIRST_QUESTION, b"flipped", b"value"));
        whole.extend(raw::get(raw::FIRST_QUESTION + 1, b"flipped"));
        for round in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..random.within(1..4) {
                let bit = random.within(0..8 * bytes.len() as u64) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            let mut stream = TcpStream::connect(any_address(server, round))
                .await
                .unwrap();
            stream.write_all(&bytes).await.ok();
            stream.shutdown().await.ok();
            let mut answer = Vec::new();
            let end =
                tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer))
                    .await;
            assert!(
                end.is_ok(),
                "round {round}: the connection stays open after it was half-closed"
            );
        }
        assert_eq!(
            witness.get(b"witness").await.unwrap().unwrap().value,
            b"value"
        );
    });
}

fn any_address(server: &Server, round: usize) -> SocketAddr {
    let shards = server.shard_addresses();
    if round.is_multiple_of(3) {
        server.address()
    } else {
        shards[round % shards.len()]
    }
}

/// The client closes its sending side right behind a call. The connection ends; whether the call was taken before that
/// is open, but what was taken is whole.
#[test]
fn a_half_closed_connection_ends_and_its_write_is_whole_or_absent() {
    with_server(async |server| {
        let witness = server.client().await;
        for round in 0..20_u32 {
            let key = round.to_be_bytes();
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
            let bytes = raw::set(raw::FIRST_QUESTION, &i.to_be_bytes(), &value_of(i));
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
                if let Some(found) = client.get(&i.to_be_bytes()).await.unwrap() {
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
            let key = (i as u32).to_be_bytes();
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

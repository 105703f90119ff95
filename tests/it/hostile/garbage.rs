//! Bytes that are no calls: other protocols, headers that lie, random words, real calls with flipped bits.

use std::net::SocketAddr;
use std::time::Duration;

use orlop::limits::MESSAGE_BYTES_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Flags, Server, with_server, with_server_of};
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

pub(super) fn any_address(server: &Server, round: usize) -> SocketAddr {
    let shards = server.shard_addresses();
    if round.is_multiple_of(3) {
        server.address()
    } else {
        shards[round % shards.len()]
    }
}

//! What every attack is measured by: the server lives, a client that behaves is served meanwhile, and memory stays under
//! what the limits allow and comes back.

use std::time::Duration;

use futures::future::{Either, select};
use orlop::limits;

use crate::harness::{Server, until};

/// What a server has beside its connections: caches, indexes and logs of these tests, and what its allocator keeps.
const RESIDENT_BYTES_MORE: u64 = 96 << 20;

/// What may be left when an attack is over and its connections are gone.
const LEFT_BYTES_MAX: u64 = 96 << 20;

/// What the limits let `connections` connections make a server of `shards` shards take.
pub(crate) fn resident_bytes_max(shards: u64, connections: u64) -> u64 {
    connections * limits::CONNECTION_RESIDENT_BYTES_MAX as u64
        + shards * shards * limits::MESH_READS_BYTES_MAX as u64
        + RESIDENT_BYTES_MORE
}

/// Runs an attack of `connections` connections. Meanwhile a client reads and writes without a pause.
pub(crate) async fn withstand(server: &Server, connections: u64, attack: impl AsyncFnOnce()) {
    let witness = server.client().await;
    let before = witness.stat().await.unwrap().resident_bytes;
    server.forget_peak();
    let served = async {
        for round in 0_u64.. {
            witness.set(b"witness", &round.to_le_bytes()).await.unwrap();
            let found = witness.get(b"witness").await.unwrap().unwrap();
            assert_eq!(found.value, round.to_le_bytes());
        }
        unreachable!("the numbers do not end");
    };
    match select(std::pin::pin!(attack()), std::pin::pin!(served)).await {
        Either::Left(((), _)) => {}
        Either::Right(((), _)) => unreachable!("the witness does not end"),
    }
    witness.set(b"witness", b"afterwards").await.unwrap();
    let grown = server.peak_resident_bytes().saturating_sub(before);
    let bound = resident_bytes_max(server.shard_addresses().len() as u64, connections);
    println!(
        "{} MiB more in memory, the bound is {}",
        grown >> 20,
        bound >> 20
    );
    assert!(
        grown < bound,
        "{grown} bytes more in memory, the bound is {bound}"
    );
    until("the connections end", Duration::from_secs(30), async || {
        witness.stat().await.unwrap().connections == 1
    })
    .await;
    until("memory comes back", Duration::from_secs(30), async || {
        witness.stat().await.unwrap().resident_bytes < before + LEFT_BYTES_MAX
    })
    .await;
    let log = server.stderr();
    assert!(!log.contains("panicked"), "{log}");
}

/// The sum of the limits is in the README, so that whoever runs a server need not add them up.
#[test]
fn the_readme_says_what_memory_a_connection_can_take() {
    let readme = include_str!("../../../README.md");
    for (name, bytes) in [
        (
            "CONNECTION_RESIDENT_BYTES_MAX",
            limits::CONNECTION_RESIDENT_BYTES_MAX,
        ),
        ("MESH_READS_BYTES_MAX", limits::MESH_READS_BYTES_MAX),
    ] {
        let said = format!("`{name}` ({} MiB)", bytes >> 20);
        assert!(readme.contains(&said), "{said} is not in README.md");
    }
}

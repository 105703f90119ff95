//! No stall: small bursts between two shards, with idle gaps, never wait for something that only a timer ends.
//!
//! A runtime that parks with runnable work, or loses the wake-up of a message between cores, shows as round trips that
//! last until the next heartbeat or for ever; under steady load it stays hidden. A burst during which the host of a
//! virtual machine withheld a CPU says nothing and is not judged.

use std::time::{Duration, Instant};

use futures::future::join_all;
use orlop::client::Client;

use crate::harness::{Flags, Scratch, Server, client_of, report, run_alone};
use crate::random::Random;
use crate::routing::owner;

const ROUND: Duration = Duration::from_secs(8);
const STALL_MAX: Duration = Duration::from_millis(50);
const ROUNDS_MAX: usize = 3;

/// The longest round trips of one round.
#[derive(Debug)]
struct Longest {
    get: Duration,
    set: Duration,
    bursts: usize,
    withheld: usize,
    stall_max_us: u64,
}

/// Ticks of the clock in which the host withheld a CPU from this machine; 0 on a machine of metal.
fn withheld_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let all = stat.lines().next().expect("the line of all CPUs");
    all.split_whitespace()
        .nth(8)
        .and_then(|ticks| ticks.parse().ok())
        .expect("a number of stolen ticks")
}

#[test]
fn bursts_between_two_shards_with_idle_gaps_never_stall() {
    run_alone(180, async |scratch| {
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        for idle_poll in [0, 100] {
            never_stalls(scratch, idle_poll, &mut random).await;
        }
    });
}

async fn never_stalls(scratch: &Scratch, idle_poll: u32, random: &mut Random) {
    for round in 1..=ROUNDS_MAX {
        let data = scratch.path(&format!("idle-poll-{idle_poll}-round-{round}"));
        let flags = Flags::small().with("--idle-poll", idle_poll);
        let server = Server::start(&data, &flags).await;
        let longest = exchange_bursts(server, random).await;
        report(&format!(
            "liveness: --idle-poll {idle_poll}, round {round}: {longest:?}"
        ));
        if longest.get < STALL_MAX && longest.set < STALL_MAX {
            return;
        }
    }
    panic!("round trips of {STALL_MAX:?} or more in each of {ROUNDS_MAX} rounds");
}

async fn exchange_bursts(server: Server, random: &mut Random) -> Longest {
    // The connections are on shard 0 and 1, each asks for keys of the other.
    let placement = server.client().await.info().await.unwrap().placement;
    let keys_of = |shard| {
        let keys = (0..200_u32).map(|i| i.to_le_bytes().to_vec());
        keys.filter(|key| owner(&placement, key) == shard)
            .collect::<Vec<_>>()
    };
    let clients = [
        client_of(server.shard_addresses()[0]).await,
        client_of(server.shard_addresses()[1]).await,
    ];
    let keys = [keys_of(1), keys_of(0)];
    let mut longest = Longest {
        get: Duration::ZERO,
        set: Duration::ZERO,
        bursts: 0,
        withheld: 0,
        stall_max_us: 0,
    };
    let start = Instant::now();
    while start.elapsed() < ROUND {
        let size = random.within(1..9) as usize;
        let sets = random.one_in(3);
        let sides: &[usize] = [&[0, 1][..], &[0], &[1]][random.within(0..3) as usize];
        let withheld = withheld_ticks();
        let bursts = sides
            .iter()
            .map(|&side| burst(&clients[side], &keys[side][..size], sets));
        let took = join_all(bursts)
            .await
            .into_iter()
            .max()
            .expect("at least one side");
        let slowest = if sets {
            &mut longest.set
        } else {
            &mut longest.get
        };
        if withheld_ticks() == withheld {
            *slowest = took.max(*slowest);
            longest.bursts += 1;
        } else {
            longest.withheld += 1;
        }
        // The gap is what the test is about: the executors must be idle, and park.
        let gap = Duration::from_micros(random.within(100..20_000));
        tokio::time::interval_at(tokio::time::Instant::now() + gap, gap)
            .tick()
            .await;
    }
    let stat = clients[0].stat().await.unwrap();
    longest.stall_max_us = stat
        .shards
        .iter()
        .map(|shard| shard.stall_max_us)
        .max()
        .expect("two shards");
    server.stop().await;
    longest
}

/// Sends calls together; the time until the last is answered.
async fn burst(client: &Client, keys: &[Vec<u8>], sets: bool) -> Duration {
    let start = Instant::now();
    join_all(keys.iter().map(async |key| {
        if sets {
            client.set(key, b"value").await.unwrap();
        } else {
            client.get(key).await.unwrap();
        }
    }))
    .await;
    start.elapsed()
}

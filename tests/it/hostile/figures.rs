//! The figures of hostile clients: how many attacks, what memory, and how a client that behaves fares meanwhile.
//!
//! `scripts/figures-hostile.sh` runs it; `ORLOP_SECONDS` is the length of each of the two measurements.
//!
//! All clients and the interrupts of the disk share one CPU. What attackers do there is not the server's work, and must not delay
//! what is measured. That takes two things: attackers have the policy `SCHED_IDLE`, and tasks are not grouped by session
//! (`kernel.sched_autogroup_enabled` is 0), for policies are only compared inside a group and the kernel's workers are in none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orlop::client::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::attack::resident_bytes_max;
use crate::harness::{Flags, Server, report, run_alone};
use crate::random::Random;
use crate::raw::{self, FIRST_QUESTION, RawClient};

/// Attacks at the same time.
const ATTACKERS: u64 = 8;

/// Length of a measurement without `ORLOP_SECONDS`.
const SECONDS: u64 = 10;

/// The bytes of one attack, behind Bootstrap and `open`.
fn attack(random: &mut Random) -> Vec<u8> {
    let questions = FIRST_QUESTION..FIRST_QUESTION + random.within(1..3_000) as u32;
    let of = |question: fn(u32) -> Vec<u8>| questions.clone().flat_map(question).collect();
    match random.within(0..9) {
        0 => of(raw::bootstrap_as),
        1 => of(raw::open_as),
        2 => of(|question| raw::get(question, b"")),
        3 => of(|question| raw::get(question, b"large")),
        4 => of(|question| raw::get_prefix(question, 16 << 20)),
        5 => of(|question| raw::stream_prefix(question, b"", question)),
        6 => of(|question| raw::set(question, &question.to_le_bytes(), &[b'v'; 1_000])),
        7 => random.bytes(20_000),
        _ => {
            let mut calls: Vec<u8> = of(|question| raw::get(question, b"small"));
            for _ in 0..1 + calls.len() / 1_000 {
                let bit = random.within(0..8 * calls.len() as u64) as usize;
                calls[bit / 8] ^= 1 << (bit % 8);
            }
            calls
        }
    }
}

/// Attacks until it is told to stop: what is sent is read in part, or not at all, and the connection goes in any way.
async fn attack_on_and_on(address: SocketAddr, seed: u64, stop: &AtomicBool, cases: &AtomicU64) {
    let mut random = Random::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let mut client = RawClient::connect(address).await;
        let bytes = attack(&mut random);
        let (reader, mut writer) = client.stream.split();
        let wanted = if random.one_in(3) {
            0
        } else {
            random.within(0..4 << 20)
        };
        let read = async {
            let mut some = reader.take(wanted);
            tokio::io::copy(&mut some, &mut tokio::io::sink())
                .await
                .unwrap_or_default();
        };
        let patience = Duration::from_millis(random.within(50..500));
        let both = async {
            futures::join!(read, async {
                writer.write_all(&bytes).await.unwrap_or_default()
            })
        };
        tokio::time::timeout(patience, both)
            .await
            .unwrap_or_default();
        match random.within(0..3) {
            0 => client.stream.set_zero_linger().unwrap_or_default(),
            1 => client.stream.shutdown().await.unwrap_or_default(),
            _ => {}
        }
        cases.fetch_add(1, Ordering::Relaxed);
    }
}

/// The 99th percentiles of `get` and `set` of one client with one call in flight, in microseconds, and the calls.
async fn percentiles(client: &Client, length: Duration) -> (u128, u128, usize) {
    let (mut gets, mut sets) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while begun.elapsed() < length {
        let at = Instant::now();
        client.set(b"small", b"value").await.unwrap();
        sets.push(at.elapsed().as_micros());
        for _ in 0..4 {
            let at = Instant::now();
            client.get(b"small").await.unwrap();
            gets.push(at.elapsed().as_micros());
        }
    }
    let calls = gets.len() + sets.len();
    let p99 = |mut times: Vec<u128>| {
        times.sort_unstable();
        times[times.len() * 99 / 100]
    };
    (p99(gets), p99(sets), calls)
}

/// The number of this thread, as the tools of the system know it.
fn this_thread() -> String {
    let thread = std::fs::read_link("/proc/thread-self").unwrap();
    let name = thread.file_name().and_then(|name| name.to_str());
    name.unwrap().to_owned()
}

/// Runs a tool of the system that has to succeed.
fn system(tool: &str, arguments: &[&str]) {
    let output = std::process::Command::new(tool).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{tool}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {errors}");
}

/// Whether the kernel groups tasks by session, so that the attackers' policy says nothing to its workers.
fn tasks_are_grouped() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled")
        .is_ok_and(|value| value.trim() != "0")
}

#[test]
#[ignore = "a measurement; scripts/figures-hostile.sh runs it"]
fn what_hostile_clients_do_to_a_client_that_behaves() {
    let seconds = std::env::var("ORLOP_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let length = Duration::from_secs(seconds);
    run_alone(60 + 4 * seconds, async |scratch| {
        let seed = Random::seed();
        // The server has a CPU, the clients share another one.
        let flags = Flags::large().with("--shards", "1").with("--cpus", "0");
        let server = Server::start(&scratch.data(), &flags).await;
        system("taskset", &["--cpu-list", "--pid", "1", &this_thread()]);
        let client = server.client().await;
        client.set(b"large", &[b'v'; 4 << 20]).await.unwrap();
        let (get, set, calls) = percentiles(&client, length).await;
        let before = client.stat().await.unwrap().resident_bytes;
        server.forget_peak();
        let (stop, cases) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let attackers = {
            let (stop, cases, address) = (Arc::clone(&stop), Arc::clone(&cases), server.address());
            // On a thread of their own, with the CPU of this one: the client that is measured must not wait for them.
            std::thread::spawn(move || {
                // As if they had machines of their own: where the client is ready, or the kernel's worker that completes a write of
                // the server, it goes first, at once. A low priority is not enough: who is woken may still wait for the next tick.
                system("chrt", &["--idle", "--pid", "0", &this_thread()]);
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                let all = (0..ATTACKERS)
                    .map(|n| attack_on_and_on(address, seed.wrapping_add(n), &stop, &cases));
                runtime.block_on(futures::future::join_all(all));
            })
        };
        let (get_meanwhile, set_meanwhile, calls_meanwhile) = percentiles(&client, length).await;
        stop.store(true, Ordering::Relaxed);
        tokio::task::spawn_blocking(|| attackers.join().unwrap())
            .await
            .unwrap();
        let grown = server.peak_resident_bytes().saturating_sub(before);
        let bound = resident_bytes_max(server.shard_addresses().len() as u64, ATTACKERS);
        let panics = server.stderr().matches("panicked").count();
        if tasks_are_grouped() {
            report(
                "tasks are grouped by session (kernel.sched_autogroup_enabled): commits wait for attackers to leave the CPU",
            );
        }
        report(&format!(
            "seed {seed}; attacks: {}; panics: {panics}; peak memory beyond the server at rest: {} MiB, bound {} MiB\n\
             p99 of get: alone {get} us, meanwhile {get_meanwhile} us; of set: alone {set} us, meanwhile {set_meanwhile} us \
             ({calls} and {calls_meanwhile} calls)",
            cases.load(Ordering::Relaxed),
            grown >> 20,
            bound >> 20,
        ));
        assert_eq!(panics, 0);
        assert!(
            grown < bound,
            "{grown} bytes more in memory, the bound is {bound}"
        );
        server.stop().await;
    });
}

//! The load generator on the other systems: little servers that speak like them (`fake.rs`), and a real Redis.
//!
//! What is printed and the exit codes are the contract of `bench/README.md`.

mod fake;
mod real;

use std::process::{Command, Output};

use fake::{Asked, Fake, Fault, HONEST_REQUESTS, Tongue};
use real::Redis;

const TONGUES: [(&str, Tongue); 3] = [
    ("redis", Tongue::Redis),
    ("memcached", Tongue::Memcached),
    ("etcd", Tongue::Etcd),
];

const SHORT: &[&str] = &["--duration", "0.3", "--warm-up", "0"];
/// A run that would last for a minute if nothing ended it.
const LONG: &[&str] = &["--duration", "60"];

fn load(system: &str, address: &str, arguments: &[&[&str]]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop-bench"));
    command
        .args(["load", "--json", "--seed", "1", "--keys", "150"])
        .args(["--system", system, "--server", address])
        .args(arguments.concat());
    command.output().expect("the load generator starts")
}

fn text(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(text).expect("the output is text")
}

/// The result of a run that went well.
fn result(system: &str, address: &str, arguments: &[&[&str]]) -> serde_json::Value {
    let output = load(system, address, arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn calls(json: &serde_json::Value, kind: &str) -> u64 {
    json[kind]["calls"].as_u64().unwrap_or_default()
}

#[test]
fn every_system_does_its_workloads_and_finds_what_was_written() {
    let all: [(&[&str], &[&str]); 5] = [
        (
            &["--workload", "half", "--in-flight", "7"],
            &["read", "write"],
        ),
        (&["--workload", "ycsb-d"], &["read", "insert"]),
        (
            &["--workload", "ycsb-f", "--in-flight", "3"],
            &["read", "readModifyWrite"],
        ),
        (&["--workload", "etc"], &["read"]),
        (
            &["--mix", "1:1", "--rate", "2000", "--in-flight", "2"],
            &["read", "write"],
        ),
    ];
    let batched: (&[&str], &[&str]) = (&["--mix", "1:1", "--batch", "9"], &["read", "write"]);
    let ranges: [(&[&str], &[&str]); 2] = [
        (&["--mix", "1:1:1"], &["read", "write", "prefix"]),
        (&["--workload", "ycsb-e"], &["scan", "insert"]),
    ];
    for (system, tongue) in TONGUES {
        let more = match tongue {
            Tongue::Redis | Tongue::Memcached => vec![batched],
            Tongue::Etcd => ranges.to_vec(),
        };
        for (arguments, kinds) in all.into_iter().chain(more) {
            let fake = Fake::start(tongue, Fault::None);
            let common = ["--preload", "--clients", "2"];
            let json = result(system, &fake.address, &[&common, arguments, SHORT]);
            assert_eq!(json["system"], system);
            for kind in kinds {
                assert!(
                    calls(&json, kind) > 0,
                    "{system} {arguments:?} {kind}: {json}"
                );
            }
            assert_eq!(json["absent"], 0, "{system} {arguments:?}: {json}");
            assert!(
                fake.keys() >= 150,
                "{system} {arguments:?}: {} keys",
                fake.keys()
            );
        }
    }
}

/// What a system was asked by one connection, one request at a time, in the words that all systems have, until it hung
/// up.
fn trace(system: &str, tongue: Tongue, workload: &str, seed: &str) -> Vec<Asked> {
    let fake = Fake::start(tongue, Fault::HangUp);
    let arguments = ["--clients", "1", "--seed", seed, "--workload", workload];
    let output = Command::new(env!("CARGO_BIN_EXE_orlop-bench"))
        .args(["load", "--json", "--keys", "150", "--system", system])
        .args(["--server", &fake.address])
        .args(arguments)
        .args(LONG)
        .output()
        .expect("the load generator starts");
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    fake.asked()
}

#[test]
fn the_same_seed_asks_every_system_for_the_same() {
    for workload in ["half", "ycsb-d", "ycsb-f", "etc"] {
        let of = |(system, tongue), seed| {
            let asked = trace(system, tongue, workload, seed);
            assert_eq!(asked.len(), HONEST_REQUESTS + 1, "{system} {workload}");
            asked
        };
        let expected = of(TONGUES[0], "7");
        for system in &TONGUES[1..] {
            assert_eq!(of(*system, "7"), expected, "{} {workload}", system.0);
        }
        assert_ne!(of(TONGUES[0], "8"), expected, "{workload}: another seed");
    }
}

#[test]
fn a_full_disk_and_a_dying_server_end_the_run_without_figures() {
    for (system, tongue) in TONGUES {
        let words = match tongue {
            Tongue::Redis => "MISCONF Errors writing to the AOF file: No space left on device",
            Tongue::Memcached => "SERVER_ERROR out of memory storing object",
            Tongue::Etcd => "etcdserver: mvcc: database space exceeded (HTTP 429)",
        };
        for (fault, code, words) in [(Fault::Error, 3, words), (Fault::HangUp, 4, "lost")] {
            let fake = Fake::start(tongue, fault);
            let output = load(system, &fake.address, &[&["--mix", "0:1"], LONG]);
            assert_eq!(output.status.code(), Some(code), "{}", text(&output));
            assert!(text(&output).contains(words), "{}", text(&output));
            assert!(text(&output).contains(system), "{}", text(&output));
            assert!(output.stdout.is_empty(), "figures: {}", text(&output));
        }
    }
}

#[test]
fn another_protocol_and_an_unreachable_server_are_told_in_a_sentence() {
    let fake = Fake::start(Tongue::Memcached, Fault::None);
    let output = load("redis", &fake.address, &[LONG]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(
        text(&output).contains("does not speak the protocol of redis"),
        "{}",
        text(&output)
    );
    // The discard port of a machine that runs no such service.
    for (system, _) in TONGUES {
        let output = load(system, "127.0.0.1:9", &[LONG]);
        assert_eq!(output.status.code(), Some(4), "{}", text(&output));
        assert!(
            text(&output).contains("127.0.0.1:9") && text(&output).contains(system),
            "{}",
            text(&output)
        );
        assert!(output.stdout.is_empty(), "figures: {}", text(&output));
    }
}

#[test]
fn what_a_system_cannot_do_is_exit_code_2() {
    for arguments in [
        &["--verify"][..],
        &["--workload", "prefix"],
        &["--workload", "nothing"],
    ] {
        let output = load("redis", "127.0.0.1:9", &[arguments]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(output.stdout.is_empty(), "figures: {}", text(&output));
    }
}

#[test]
fn a_real_redis_holds_what_was_written_and_its_refusals_are_told() {
    let Some(redis) = Redis::start("holds") else {
        return;
    };
    let address = redis.address();
    let preload = ["--preload", "--clients", "3", "--value-size", "77"];
    let in_flight = ["--in-flight", "16"];
    let json = result("redis", &address, &[&preload, &in_flight, SHORT]);
    assert!(
        calls(&json, "read") > 0 && calls(&json, "write") > 0,
        "{json}"
    );
    assert_eq!(json["absent"], 0, "{json}");
    assert_eq!(redis.ask(&["DBSIZE"]), ":150");
    for key in ["k000000000......", "k000000215......"] {
        assert_eq!(redis.ask(&["STRLEN", key]), ":77", "{key}");
    }
    for (system, arguments) in [
        ("redis", &["--batch", "20"][..]),
        ("valkey", &["--workload", "ycsb-f"]),
        ("redis", &["--workload", "etc", "--distribution", "uniform"]),
        (
            "redis",
            &[
                "--rate",
                "1000",
                "--value-size",
                "40000",
                "--in-flight",
                "64",
            ],
        ),
    ] {
        let json = result(system, &address, &[&["--preload"], arguments, SHORT]);
        assert_eq!(json["absent"], 0, "{arguments:?}: {json}");
    }
    assert_eq!(redis.ask(&["CONFIG", "SET", "maxmemory", "1mb"]), "+OK");
    let output = load("redis", &address, &[&["--mix", "0:1"], LONG]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("OOM"), "{}", text(&output));
    assert!(output.stdout.is_empty(), "figures: {}", text(&output));
}

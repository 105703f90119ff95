//! `orlop-bench report` as it is called: from raw results to files that a person opens, and what it says of results that
//! are not whole.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

fn report(directory: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop-bench"));
    command.arg("report").arg(directory);
    command.output().expect("the binary was built")
}

fn lines(directory: &Path, name: &str, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(directory.join(format!("raw/{name}.jsonl")), text).unwrap();
}

fn latencies(calls_per_second: f64, p50_us: f64) -> Value {
    json!({"callsPerSecond": calls_per_second, "p50Us": p50_us, "p99Us": p50_us * 4.0, "p999Us": p50_us * 10.0})
}

struct Run {
    system: &'static str,
    load: &'static str,
    clients: u64,
    in_flight: u64,
    value_size: u64,
    calls_per_second: f64,
    p50_us: f64,
}

impl Run {
    fn line(&self, round: u64) -> Value {
        let mut run = json!({
            "orlopBench": "load", "interrupted": null, "clients": self.clients, "inFlight": self.in_flight,
            "valueSize": self.value_size, "callsPerSecond": self.calls_per_second,
        });
        let share = if self.load == "50/50" { 0.5 } else { 1.0 };
        if self.load != "write-only" {
            run["read"] = latencies(self.calls_per_second * share, self.p50_us);
        }
        if self.load != "read-only" {
            run["write"] = latencies(self.calls_per_second * share, self.p50_us * 2.0);
        }
        json!({
            "round": round, "system": self.system, "load": self.load, "stolenPercent": 0.1,
            "command": format!("orlop-bench load --clients {}", self.clients), "run": run,
        })
    }
}

/// Three rounds of two sizes; the first is the median.
fn exp1() -> Vec<Value> {
    let mut runs = Vec::new();
    for (round, noise) in [(1, 1.0), (2, 0.5), (3, 1.1)] {
        for (value_size, p50_us) in [(512, 50.0), (4_194_304, 2000.0)] {
            for load in ["read-only", "50/50"] {
                let run = Run {
                    system: "orlop",
                    load,
                    clients: 1,
                    in_flight: 1,
                    value_size,
                    calls_per_second: 1e6 / p50_us / noise,
                    p50_us: p50_us * noise,
                };
                runs.push(run.line(round));
            }
        }
    }
    runs
}

fn restart(system: &str, ready: f64, first: f64, all: f64) -> Value {
    json!({"round": 1, "system": system, "stolenPercent": 0, "command": "start", "restart": {
        "keys": 1_048_576, "valueSize": 4096, "stopMs": 80, "readyMs": ready, "firstReadMs": first, "allInMemoryMs": all,
    }})
}

/// One round that stops growing at 4 clients.
fn exp3() -> Vec<Value> {
    let throughput = [
        (1, 10_000.0),
        (2, 19_000.0),
        (4, 30_000.0),
        (8, 30_500.0),
        (16, 29_000.0),
    ];
    let mut runs = Vec::new();
    for (clients, calls_per_second) in throughput {
        for load in ["read-only", "50/50"] {
            let run = Run {
                system: "orlop",
                load,
                clients,
                in_flight: 1,
                value_size: 512,
                calls_per_second,
                p50_us: 1e6 * clients as f64 / calls_per_second,
            };
            runs.push(run.line(1));
        }
    }
    runs
}

fn peers() -> Vec<Value> {
    let mut lines = vec![
        json!({"system": "redis-always", "settings": "redis-server 7.0.15; --appendfsync always"}),
        json!({"system": "valkey", "skipped": "valkey-server is not installed; run scripts/peers.sh install valkey"}),
    ];
    for (system, calls_per_second) in [
        ("orlop", 30_000.0),
        ("redis", 60_000.0),
        ("redis-always", 20_000.0),
    ] {
        for load in ["read-only", "write-only"] {
            let run = Run {
                system,
                load,
                clients: 50,
                in_flight: 1,
                value_size: 512,
                calls_per_second,
                p50_us: 900.0,
            };
            lines.push(run.line(1));
        }
    }
    lines
}

/// A directory of results with all four experiments.
fn results() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::create_dir(path.join("raw")).unwrap();
    let about = json!({
        "date": "2026-03-01", "experiments": ["exp1", "exp2", "exp3", "peers"], "quick": false, "cpu": "Processor <1>",
        "cpus": 2, "memoryBytes": 25_769_803_776u64, "kernel": "Linux 6.18", "fileSystem": "ext4", "commit": "abc1234",
        "command": "scripts/experiments.sh all", "server": "orlopd --shards 1", "serverCpu": 0, "loadCpu": 1, "rounds": 3,
        "seconds": 10, "warmUpSeconds": 2, "keySize": 16, "stolenMaxPercent": 2, "tries": 4, "stolenLeastPercent": 0,
        "stolenMostPercent": 1.5,
    });
    fs::write(path.join("about.json"), about.to_string()).unwrap();
    lines(path, "exp1", &exp1());
    let orlop = restart("orlop", 300.0, 400.0, 4000.0);
    let redis = restart("redis-always", 20_000.0, 20_100.0, 20_000.0);
    lines(path, "exp2", &[orlop, redis]);
    lines(path, "exp3", &exp3());
    lines(path, "peers", &peers());
    let requests = json!({"perSecond": 6000, "mibPerSecond": 1000, "p50Us": 150.0, "p99Us": 400.0, "maxUs": 900.0});
    let device = json!({"syncWrite4k": requests, "syncWrite1m": requests, "read1m": requests});
    lines(path, "device", &[json!({"when": "before", "run": device})]);
    let loopback = json!({"roundTripUs": {"p50Us": 20.0, "p99Us": 40.0}, "mibPerSecond": 4000});
    lines(
        path,
        "loopback",
        &[json!({"when": "before", "run": loopback})],
    );
    directory
}

#[track_caller]
fn contains(directory: &Path, name: &str, wanted: &[&str]) {
    let text = fs::read_to_string(directory.join(name)).unwrap();
    for wanted in wanted {
        assert!(text.contains(wanted), "no {wanted:?} in {name}:\n{text}");
    }
}

#[test]
fn tables_say_what_the_raw_results_say() {
    let results = results();
    let output = report(results.path());
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .ends_with("report.html"),
        "{output:?}"
    );
    contains(
        results.path(),
        "exp1.md",
        &[
            "| value | load | call | p50 | p99 | p99.9 | calls/s | MiB/s | p50 of the rounds |",
            "| 512 B | read-only | GET | 50.0 µs | 200 µs | 500 µs | 20.0 k | 9.77 | 25.0 µs to 55.0 µs |",
            "| 4 MiB | 50/50 | SET | 4.00 ms | 16.0 ms | 40.0 ms | 250 | 1000 | 2.00 ms to 4.40 ms |",
            "- GET, read-only: 50.0 µs with values of 512 B, 2.00 ms with values of 4 MiB (p50).",
            "Reads of the largest values move 2000 MiB/s, 50 % of what the loopback carries alone.",
            "1000 MiB/s become durable (size by p50), 100 % of what the device takes",
        ],
    );
    contains(
        results.path(),
        "exp2.md",
        &[
            "1.05 M keys with values of 4 KiB (4 GiB)",
            "| orlop | 80.0 ms | 300 ms | 400 ms | 4.00 s | 300 ms to 300 ms |",
            "- Up to first value read, redis-always takes 50.2 times as long as orlop.",
        ],
    );
    contains(
        results.path(),
        "exp3.md",
        &[
            "| 4 | 50/50 | SET | 267 µs | 1.07 ms | 2.67 ms | 15.0 k | 30.0 k | 30.0 k to 30.0 k |",
            "- read-only: throughput grows up to 4 clients (30.0 k/s, within 5 % of the best, 30.5 k/s); a GET there takes 133 µs \
             (p50), 533 µs (p99). With 16 clients it is 29.0 k/s and p99 is 2.21 ms.",
        ],
    );
    contains(
        results.path(),
        "peers.md",
        &[
            "| redis | before | 60.0 k | 60.0 k to 60.0 k | 900 µs | 3.60 ms | 0.50 |",
            "| redis-always | redis-server 7.0.15; --appendfsync always |",
            "- GET, 50 clients: 30.0 k/s, 0.50 x redis, 1.50 x redis-always.",
            "- durable SET, 50 clients: 30.0 k/s, 1.50 x redis-always.",
            "- valkey was not measured: valkey-server is not installed; run scripts/peers.sh install valkey.",
        ],
    );
}

#[test]
fn the_page_holds_every_plot_and_needs_nothing_from_elsewhere() {
    let results = results();
    assert!(report(results.path()).status.success());
    let page = fs::read_to_string(results.path().join("report.html")).unwrap();
    let plots = [
        "exp1-latency",
        "exp1-throughput",
        "exp2-restart",
        "exp3-throughput",
        "exp3-latency",
        "peers",
    ];
    assert_eq!(page.matches("<svg ").count(), plots.len());
    for plot in plots {
        let svg = fs::read_to_string(results.path().join(format!("{plot}.svg"))).unwrap();
        assert!(page.contains(&svg), "{plot} is another one in the page");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let png = fs::read(results.path().join(format!("{plot}.png"))).unwrap();
        // The signature, then the header with a width of 1800 and a height of 920.
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n", "{plot}");
        assert_eq!(&png[12..24], b"IHDR\0\0\x07\x08\0\0\x03\x98", "{plot}");
        assert_eq!(&png[png.len() - 8..png.len() - 4], b"IEND", "{plot}");
    }
    for outside in ["src=", "<link", "<script", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    for wanted in [
        "Processor &lt;1&gt;",
        "ext4",
        "abc1234",
        "device: 4 KiB O_DSYNC write",
        "orlop-bench load --clients 4",
    ] {
        assert!(page.contains(wanted), "no {wanted} in the page");
    }
    assert!(
        !page.contains("--quick"),
        "these results are of a whole run"
    );
}

/// What is not whole makes no report: a sentence that names the file and the place, and nothing is written.
#[track_caller]
fn refused(change: impl FnOnce(&Path), sentence: &str) {
    let results = results();
    change(results.path());
    let before = fs::read_dir(results.path()).unwrap().count();
    let output = report(results.path());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains(sentence), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert_eq!(fs::read_dir(results.path()).unwrap().count(), before);
}

#[test]
fn results_that_are_not_whole_are_refused_with_the_place() {
    let edit = |name: &'static str, edit: fn(String) -> String| {
        move |directory: &Path| {
            let path = directory.join(name);
            let text = edit(fs::read_to_string(&path).unwrap());
            fs::write(&path, text).unwrap();
        }
    };
    let remove =
        |name: &'static str| move |directory: &Path| fs::remove_file(directory.join(name)).unwrap();
    refused(remove("about.json"), "about.json: No such file");
    refused(remove("raw/exp3.jsonl"), "raw/exp3.jsonl: No such file");
    refused(
        edit("raw/exp1.jsonl", |_| String::new()),
        "exp1.jsonl: has no runs",
    );
    refused(
        edit("raw/exp1.jsonl", |text| text[..text.len() - 30].to_owned()),
        "exp1.jsonl: ends in the middle of a line",
    );
    refused(
        edit("raw/exp3.jsonl", |text| {
            text.replacen("\"load\":\"50/50\"", "\"load\":", 1)
        }),
        "exp3.jsonl, line 2: is no JSON",
    );
    refused(
        edit("raw/exp1.jsonl", |text| text.replacen("p99Us", "p98Us", 1)),
        "exp1.jsonl, line 1: run.read.p99Us is missing",
    );
    refused(
        edit("raw/peers.jsonl", |text| {
            text.replacen("\"interrupted\":null", "\"interrupted\":\"SIGINT\"", 1)
        }),
        "the run was interrupted",
    );
    refused(
        edit("about.json", |text| text.replacen("exp3", "exp4", 1)),
        "'exp4' is not an experiment",
    );
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_leaves_nothing_half_done() {
    let results = results();
    fs::create_dir(results.path().join("exp3.md")).unwrap();
    let output = report(results.path());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(
        told.contains("cannot write") && told.contains("exp3.md"),
        "{told}"
    );
    let names = fs::read_dir(results.path()).unwrap();
    let names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        !names.iter().any(|name| name.ends_with(".partial")),
        "{names:?}"
    );
    assert!(!names.contains(&"report.html".to_owned()), "{names:?}");
}

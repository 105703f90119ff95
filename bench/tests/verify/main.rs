//! The load generator against servers that lie: a verification that cannot fail proves nothing.
//!
//! Every test starts a small server in this process (`liar.rs`), which answers rightly at first and then in one wrong
//! way, and runs the real `orlop-bench` on it. What it prints and its exit code are the contract of `bench/README.md`.

mod liar;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use liar::{Lie, Server};

/// A run that would last for a minute if nothing ended it.
const LONG: &[&str] = &["--duration", "60"];
const SHORT: &[&str] = &["--duration", "0.3"];

fn command(server: &Server, arguments: &[&[&str]]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop-bench"));
    command.args([
        "load",
        "--server",
        &server.address,
        "--warm-up",
        "0",
        "--clients",
        "3",
    ]);
    command.args([
        "--in-flight",
        "4",
        "--keys",
        "200",
        "--value-size",
        "100",
        "--seed",
        "1",
    ]);
    command.args(arguments.concat());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn load(server: &Server, arguments: &[&[&str]]) -> Output {
    command(server, arguments)
        .output()
        .expect("the load generator starts")
}

fn text(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(text).expect("the output is text")
}

/// A verifying run on a server with this lie must find it, name what it found, and print no figures.
fn caught(lie: Lie, mix: &str, found: &str) {
    let server = Server::start(lie);
    let output = load(&server, &[&["--verify", "--mix", mix], LONG]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{lie:?}: {text}");
    assert!(
        text.contains("wrong answer for key k00000"),
        "{lie:?}: {text}"
    );
    assert!(
        text.contains("expected") && text.contains(found),
        "{lie:?}: {text}"
    );
    assert!(output.stdout.is_empty(), "{lie:?} printed figures: {text}");
}

#[test]
fn an_honest_server_passes_in_every_mode() {
    for arguments in [
        &["--mix", "45:45:10"][..],
        &["--mix", "50:50:1", "--batch", "16", "--preload"],
        &["--mix", "45:45:10", "--rate", "3000"],
    ] {
        let server = Server::start(Lie::None);
        let output = load(&server, &[&["--verify", "--json"], arguments, SHORT]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        for kind in ["read", "write", "prefix"] {
            assert!(
                json[kind]["calls"].as_u64().is_some_and(|calls| calls > 0),
                "{json}"
            );
        }
        assert!(
            json["readBack"]["keys"]
                .as_u64()
                .is_some_and(|keys| keys > 0),
            "{json}"
        );
        let checked = json["answersChecked"].as_u64().expect("a number");
        assert!(
            checked >= json["readBack"]["keys"].as_u64().expect("a number"),
            "{json}"
        );
    }
}

#[test]
fn the_workloads_do_what_their_names_say() {
    let run = |workload: &str, more: &[&str]| {
        let server = Server::start(Lie::None);
        let arguments = ["--workload", workload, "--preload", "--json"];
        let output = load(&server, &[&arguments, more, SHORT]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(json["absent"], 0, "{json}");
        json
    };
    let figure = |json: &serde_json::Value, kind: &str, name: &str| {
        json[kind][name].as_u64().expect("a number")
    };
    let json = run("ycsb-e", &[]);
    let (scans, entries) = (
        figure(&json, "scan", "calls"),
        figure(&json, "scan", "keys"),
    );
    assert!(figure(&json, "insert", "calls") > 0, "{json}");
    // Up to 100 entries of 200 keys, from anywhere: in the mean 38 or more.
    assert!(entries > 20 * scans && entries < 100 * scans, "{json}");

    let json = run("ycsb-f", &["--verify"]);
    let both = figure(&json, "readModifyWrite", "calls");
    assert!(both > 0, "{json}");
    assert_eq!(figure(&json, "readModifyWrite", "keys"), 2 * both);
    let checked = json["answersChecked"].as_u64().expect("a number");
    assert!(
        checked > 2 * both + figure(&json, "read", "calls"),
        "{json}"
    );
}

#[test]
fn a_stale_read_is_caught() {
    caught(Lie::Stale, "50:50", "stale");
}

#[test]
fn a_lost_key_is_caught() {
    caught(Lie::Absent, "50:50", "no such key");
}

#[test]
fn a_write_that_was_acknowledged_and_not_done_is_caught() {
    caught(Lie::NotStored, "50:50", "found");
}

#[test]
fn a_write_that_is_lost_after_the_load_is_caught_by_the_read_back() {
    let server = Server::start(Lie::AbsentInBatches);
    let output = load(&server, &[&["--verify", "--mix", "50:50"], SHORT]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("no such key"), "{}", text(&output));
}

#[test]
fn the_value_of_another_key_is_caught() {
    caught(Lie::OtherKey, "50:50", "another key");
}

#[test]
fn a_torn_value_is_caught() {
    caught(Lie::Torn, "50:50", "torn");
}

#[test]
fn a_version_that_does_not_grow_or_does_not_belong_is_caught() {
    caught(Lie::SameVersion, "0:1", "version");
    caught(Lie::WrongVersion, "50:50", "two versions");
}

#[test]
fn a_write_that_was_refused_and_done_is_caught() {
    caught(Lie::RefusedAndDone, "50:50", "refused");
}

#[test]
fn a_page_without_a_key_or_out_of_order_is_caught() {
    caught(Lie::ShortPage, "0:50:50", "without this key");
    caught(Lie::UnorderedPage, "0:50:50", "behind it");
}

#[test]
fn without_verify_nobody_looks() {
    let server = Server::start(Lie::Stale);
    let output = load(&server, &[&["--mix", "50:50"], SHORT]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[test]
fn overloaded_answers_are_counted_and_change_nothing() {
    let server = Server::start(Lie::Overloaded);
    let output = load(
        &server,
        &[
            &["--verify", "--mix", "45:45:10", "--json", "--preload"],
            SHORT,
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(
        json["overloaded"].as_u64().is_some_and(|count| count > 0),
        "{json}"
    );
}

#[test]
fn an_open_loop_repeats_what_was_overloaded() {
    let server = Server::start(Lie::Overloaded);
    let arguments = [
        "--mix",
        "0:1",
        "--json",
        "--rate",
        "1000",
        "--duration",
        "1",
    ];
    let output = load(&server, &[&arguments]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(json["overloaded"].as_u64().is_some_and(|count| count > 100));
    // One in three was refused: without them 667 would be left. A machine that is too slow for the rate says so.
    let rate = json["callsPerSecond"].as_f64().expect("a number");
    assert!(json["rateKept"] == false || rate > 850.0, "{json}");
}

#[test]
fn a_full_disk_and_a_dying_server_end_the_run_without_figures() {
    for (lie, code, words) in [
        (Lie::OutOfSpace, 3, "out of space"),
        (Lie::HangUp, 4, "connection"),
    ] {
        let server = Server::start(lie);
        let output = load(&server, &[&["--verify", "--mix", "50:50"], LONG]);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{lie:?}: {}",
            text(&output)
        );
        assert!(text(&output).contains(words), "{lie:?}: {}", text(&output));
        assert!(
            output.stdout.is_empty(),
            "{lie:?} printed figures: {}",
            text(&output)
        );
    }
}

#[test]
fn a_server_that_is_not_there_is_a_sentence_and_code_4() {
    let address = Server::start(Lie::None).stop();
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop-bench"));
    let output = command
        .args(["load", "--server", &address])
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains(&address), "{}", text(&output));
}

/// Sends `signal` when the server has answered enough for figures.
fn interrupted(server: &Server, mut child: Child, signal: i32) -> Output {
    server.wait_for_calls();
    let pid = i32::try_from(child.id()).expect("a process id");
    assert!(
        child.try_wait().expect("a child").is_none(),
        "the load ended too early"
    );
    // SAFETY: the child is alive or a zombie of this process, so the id is its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    child.wait_with_output().expect("the load ends")
}

#[test]
fn an_interrupted_run_prints_what_it_measured_and_says_so() {
    let server = Server::start(Lie::None);
    let child = command(&server, &[&["--verify", "--mix", "50:50"], LONG])
        .spawn()
        .expect("it starts");
    let output = interrupted(&server, child, libc::SIGINT);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(
        text(&output).contains("INTERRUPTED by SIGINT"),
        "{}",
        text(&output)
    );
}

/// A path for an ack log of one test; the file goes when the test ends.
struct Log(PathBuf);

impl Log {
    fn new(name: &str) -> Log {
        Log(PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{name}-{}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("the target directory is text")
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // The test may have failed before the file was made.
        std::fs::remove_file(&self.0).ok();
    }
}

fn check(server: &Server, log: &Log) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop-bench"));
    command.args([
        "check",
        "--server",
        &server.address,
        "--ack-log",
        log.path(),
    ]);
    command.output().expect("the check starts")
}

#[test]
fn the_ack_log_of_a_killed_run_holds_every_acknowledgement_and_is_checked() {
    let (server, log) = (Server::start(Lie::None), Log::new("killed"));
    let child = command(
        &server,
        &[&["--mix", "50:50", "--ack-log", log.path()], LONG],
    )
    .spawn();
    let output = interrupted(&server, child.expect("it starts"), libc::SIGTERM);
    assert_eq!(
        output.status.code(),
        Some(128 + libc::SIGTERM),
        "{}",
        text(&output)
    );
    let lines = std::fs::read_to_string(&log.0)
        .expect("the log")
        .lines()
        .count() as u64
        - 1;
    // At most the twelve requests in flight were done and not yet acknowledged here.
    let sets = server.sets();
    assert!(
        lines <= sets && lines + 12 >= sets,
        "{lines} lines of {sets} sets"
    );

    let output = check(&server, &log);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        text(&output).contains(&format!("{lines} acknowledged writes")),
        "{}",
        text(&output)
    );
    server.lose_a_key();
    let output = check(&server, &log);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("no such key"), "{}", text(&output));
}

#[test]
fn the_ack_log_of_a_whole_run_has_a_line_per_write() {
    let (server, log) = (Server::start(Lie::Overloaded), Log::new("whole"));
    let arguments = &[
        "--mix",
        "1:1",
        "--batch",
        "8",
        "--preload",
        "--ack-log",
        log.path(),
    ];
    let output = load(&server, &[arguments, SHORT]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let lines = std::fs::read_to_string(&log.0)
        .expect("the log")
        .lines()
        .count() as u64
        - 1;
    assert_eq!(lines, server.sets());
    assert_eq!(check(&server, &log).status.code(), Some(0));
}

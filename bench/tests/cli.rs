//! The binary as it is called: what it says of itself, and how it ends when it is called wrongly.

use std::process::{Command, Output};

fn orlop_bench(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop-bench"));
    command.args(words).env_remove("ORLOP_SERVER");
    command.output().expect("the binary was built")
}

#[test]
fn help_names_the_exit_codes() {
    let output = orlop_bench(&["load", "--help"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Exit codes:"), "{text}");
}

#[test]
fn wrong_usage_is_exit_code_2_and_an_unreachable_server_4() {
    let output = orlop_bench(&["load", "--mix", "much"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");

    // The discard port of a machine that runs no such service.
    let output = orlop_bench(&["load", "--server", "127.0.0.1:9", "--json"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(output.stdout.is_empty(), "no figures: {output:?}");
}

#[test]
fn durable_round_trips_are_measured_where_a_directory_is_named() {
    let measured = |more: &[&str]| {
        let words = ["loopback", "--json", "--seconds", "0.1"];
        let output = orlop_bench(&[&words, more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let durable = ["durableRoundTripUs", "runtimeDurableRoundTripUs"];
    let in_dir = ["--durable-in", env!("CARGO_TARGET_TMPDIR")];
    for more in [&[][..], &["--idle-poll", "50"]] {
        let object = measured(&[&in_dir, more].concat());
        for field in ["roundTripUs"].iter().chain(&durable) {
            assert!(object[field]["count"].as_u64() > Some(0), "{object}");
        }
    }
    let object = measured(&[]);
    assert!(
        durable.iter().all(|field| object[field].is_null()),
        "{object}"
    );
}

#[test]
fn idle_poll_is_for_durable_round_trips_and_as_long_as_in_the_server() {
    let output = orlop_bench(&["loopback", "--idle-poll", "50"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--durable-in"), "{text}");

    let dir = env!("CARGO_TARGET_TMPDIR");
    let output = orlop_bench(&["loopback", "--durable-in", dir, "--idle-poll", "1000001"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("0..=1000000"), "{text}");
}

#[test]
fn a_machine_that_cannot_start_the_runtime_says_what_is_missing() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -l 64 && exec \"$@\"", "sh"]);
    command.args([env!("CARGO_BIN_EXE_orlop-bench"), "loopback"]);
    command.args([
        "--seconds",
        "0.1",
        "--durable-in",
        env!("CARGO_TARGET_TMPDIR"),
    ]);
    let output = command.output().expect("there is a shell");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(output.stdout.is_empty(), "no figures: {output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("the runtime of orlopd"), "{text}");
    assert!(text.contains("locked memory (ulimit -l)"), "{text}");
}

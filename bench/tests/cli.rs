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
    let dir = env!("CARGO_TARGET_TMPDIR");
    let words = ["loopback", "--json", "--seconds", "0.1"];
    let output = orlop_bench(&[&words[..], &["--durable-in", dir]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for field in ["roundTripUs", "durableRoundTripUs"] {
        assert!(object[field]["count"].as_u64() > Some(0), "{object}");
    }
    let output = orlop_bench(&words);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(object["durableRoundTripUs"].is_null(), "{object}");
}

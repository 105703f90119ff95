//! `scripts/experiments.sh` as it is called: a small experiment to its end, wrong usage, and runs that do not come to an end.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use tempfile::TempDir;

fn script() -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    Command::new(root.join("scripts/experiments.sh"))
}

/// The binaries of this build; none if only this package was built.
fn binaries() -> Option<PathBuf> {
    let binaries = Path::new(env!("CARGO_BIN_EXE_orlop-bench"))
        .parent()
        .unwrap();
    if ["orlopd", "orlop"]
        .iter()
        .all(|name| binaries.join(name).exists())
    {
        return Some(binaries.to_owned());
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "CI builds the whole workspace, but orlopd and orlop are not there"
    );
    eprintln!("*** SKIPPED: orlopd and orlop are not built; cargo test --workspace builds them");
    None
}

/// A directory on a file system that takes direct writes, and the script with small settings in it.
fn small(words: &[&str]) -> Option<(TempDir, Command)> {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let binaries = binaries()?;
    let mut command = script();
    command
        .args(words)
        .args([
            "--quick",
            "--warm-up",
            "0",
            "--keys",
            "200",
            "--data-mib",
            "1",
            "--sizes",
            "512",
        ])
        .args(["--out", "results", "--scratch", "."])
        .arg("--binaries")
        .arg(binaries)
        .current_dir(home.path())
        .env_remove("ORLOP_SERVER");
    Some((home, command))
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Processes that have a path in their command line.
fn processes_of(path: &Path) -> Vec<i32> {
    let path = path.to_str().unwrap().as_bytes();
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.windows(path.len()).any(|part| part == path))
    })
    .collect()
}

#[test]
fn an_experiment_leaves_raw_results_and_a_report() {
    let Some((home, mut command)) = small(&["exp3", "--seconds", "1", "--clients-max", "2"]) else {
        return;
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    let results = home.path().join("results");
    assert_eq!(names(home.path()), ["results"], "nothing else is left");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim_end(),
        results.join("report.html").to_str().unwrap()
    );
    let raw = fs::read_to_string(results.join("raw/exp3.jsonl")).unwrap();
    assert_eq!(
        raw.lines().count(),
        4,
        "1 and 2 clients, read-only and 50/50: {raw}"
    );
    assert!(
        fs::read_to_string(results.join("exp3.md"))
            .unwrap()
            .contains("| 2 | 50/50 | SET |")
    );
    let page = fs::read_to_string(results.join("report.html")).unwrap();
    assert!(page.contains("Made with --quick"));
    assert!(
        !page.contains(home.path().to_str().unwrap()),
        "paths of this machine are nobody's business"
    );
    assert!(
        told(&output).contains("] 4/4  exp3, round 1 of 1: 2 clients, 50/50"),
        "{}",
        told(&output)
    );
}

/// A directory that has every program of this machine but some.
fn programs_without(home: &Path, missing: &[&str]) -> PathBuf {
    let programs = home.join("programs");
    fs::create_dir(&programs).unwrap();
    for directory in std::env::split_paths(&std::env::var_os("PATH").unwrap()) {
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        for entry in entries.map(|entry| entry.unwrap()) {
            let link = programs.join(entry.file_name());
            if !missing.iter().any(|name| entry.file_name() == *name) && !link.is_symlink() {
                std::os::unix::fs::symlink(entry.path(), link).unwrap();
            }
        }
    }
    programs
}

#[test]
fn peers_that_are_not_installed_are_left_out_and_the_results_say_so() {
    let words = [
        "exp2",
        "peers",
        "--seconds",
        "0.5",
        "--store-mib",
        "16",
        "--systems",
        "orlop,memcached",
    ];
    let Some((home, mut command)) = small(&words) else {
        return;
    };
    let elsewhere = tempfile::tempdir().unwrap();
    command.env(
        "PATH",
        programs_without(elsewhere.path(), &["redis-server", "memcached"]),
    );
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(processes_of(home.path()), [0; 0]);
    let results = home.path().join("results");
    for (file, wanted) in [
        (
            "exp2.md",
            "redis-always: not measured (redis-server is not installed; run scripts/peers.sh install redis)",
        ),
        ("exp2.md", "| orlop | "),
        (
            "peers.md",
            "| memcached | not measured: memcached is not installed; run scripts/peers.sh install memcached |",
        ),
        ("peers.md", "- durable SET, 50 x 16: "),
        (
            "report.html",
            "memcached was not measured: memcached is not installed",
        ),
    ] {
        let text = fs::read_to_string(results.join(file)).unwrap();
        assert!(text.contains(wanted), "no {wanted:?} in {file}:\n{text}");
    }
    let restart = fs::read_to_string(results.join("raw/exp2.jsonl")).unwrap();
    assert!(
        restart.contains("\"keys\":4096,"),
        "16 MiB in values of 4 KiB: {restart}"
    );
}

#[test]
fn wrong_usage_is_a_sentence_and_exit_code_2() {
    let wrong: &[(&[&str], &str)] = &[
        (&["exp9"], "'exp9' is not an experiment"),
        (&["--fast"], "'--fast' is not an option"),
        (&["--rounds"], "--rounds needs a value"),
        (
            &["--rounds", "0"],
            "--rounds is '0': give a whole number from 1 to 1000",
        ),
        (
            &["--seconds", "0.05"],
            "--seconds is 0.05: give at least 0.1",
        ),
        (&["--seconds", "ten"], "--seconds is 'ten'"),
        (&["--sizes", "512,16777217"], "--sizes is '16777217'"),
        (&["--systems", "orlop,mongodb"], "'mongodb' is not a system"),
        (
            &["--out", "/nonexistent/results"],
            "there is no directory /nonexistent",
        ),
        (&["--out", "/"], "is not empty"),
        (&["--scratch", "/nonexistent"], "which is no directory"),
        (
            &["--binaries", "/nonexistent"],
            "there is no orlopd in /nonexistent",
        ),
    ];
    for (words, sentence) in wrong {
        let output = script()
            .args(["--binaries", "/nonexistent"])
            .args(*words)
            .output()
            .unwrap();
        let told = told(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {told}");
        assert!(
            told.contains(sentence) && told.lines().count() == 1,
            "{words:?}: {told}"
        );
    }
}

#[test]
fn help_names_every_option() {
    let output = script().arg("--help").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in [
        "exp1",
        "exp2",
        "exp3",
        "peers",
        "all",
        "--quick",
        "--out",
        "--systems",
        "--sizes",
        "Exit codes:",
    ] {
        assert!(text.contains(word), "no {word} in:\n{text}");
    }
    assert!(!text.contains("set -euo"), "{text}");
}

/// Starts a run that would take an hour, and waits until its server is loaded.
fn started(command: &mut Command) -> (Child, BufReader<ChildStderr>) {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("exp1, round 1") {
        line.clear();
        assert!(
            lines.read_line(&mut line).unwrap() > 0,
            "the script ended before it measured"
        );
    }
    (child, lines)
}

fn server_in(home: &Path) -> i32 {
    let found = processes_of(home).into_iter().find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim_end() == "orlopd")
    });
    found.expect("the server runs")
}

fn signal(pid: i32, signal: &str) {
    let status = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "kill {signal} {pid}");
}

/// How it ended, what it said; nothing is left of it.
#[track_caller]
fn ended(mut child: Child, lines: BufReader<ChildStderr>, home: &Path) -> (Option<i32>, String) {
    let told: Vec<String> = lines.lines().map(|line| line.unwrap()).collect();
    let code = child.wait().unwrap().code();
    assert_eq!(names(home), [""; 0], "{told:?}");
    assert_eq!(processes_of(home), [0; 0], "{told:?}");
    (code, told.join("\n"))
}

#[test]
fn an_interrupted_run_ends_its_server_and_leaves_nothing() {
    let Some((home, mut command)) = small(&["exp1", "--seconds", "3600"]) else {
        return;
    };
    let (child, lines) = started(&mut command);
    signal(child.id() as i32, "-TERM");
    let (code, told) = ended(child, lines, home.path());
    assert_eq!(code, Some(143), "{told}");
    assert!(told.contains("nothing was written"), "{told}");
}

#[test]
fn a_server_that_dies_makes_the_results_void() {
    let Some((home, mut command)) = small(&["exp1", "--seconds", "3600"]) else {
        return;
    };
    let (child, lines) = started(&mut command);
    signal(server_in(home.path()), "-KILL");
    let (code, told) = ended(child, lines, home.path());
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains("the results are void") && told.contains("nothing was written"),
        "{told}"
    );
}

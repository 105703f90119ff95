//! The promises to clients once more, without the fast path: this test binary runs itself for the groups of tests that
//! the way of answering can change.

use std::process::Command;

use crate::harness::{NO_FAST_PATH, report, run_alone};

/// Groups that run both ways: everything a client is promised, and what it cannot break.
const GROUPS: &[&str] = &[
    "batches::",
    "counters::",
    "durability::",
    "hostile::",
    "limits::",
    "listing::",
    "operations::",
    "routing::",
    "shutdown::",
];

/// Longer than the groups take on a slow machine.
const SECONDS_MAX: u64 = 400;

#[test]
fn the_promises_hold_without_the_fast_path() {
    if std::env::var_os(NO_FAST_PATH).is_some() {
        // The whole run is without it.
        return;
    }
    run_alone(SECONDS_MAX, async |_| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(GROUPS)
            .env(NO_FAST_PATH, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let cried = String::from_utf8_lossy(&output.stderr);
        // Not what passed: the reason of a failure is found at the end.
        let failures = said
            .split_once("failures:")
            .map_or(&said[..], |(_, rest)| rest);
        assert!(
            output.status.success(),
            "without the fast path:\n{cried}\n{failures}"
        );
        let line = said
            .lines()
            .rev()
            .find(|line| line.starts_with("test result"));
        report(&format!("without the fast path: {}", line.unwrap_or("?")));
    });
}

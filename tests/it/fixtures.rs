//! A data directory of each released format stays what it is: its dump is the one of its day, and it is served, with any
//! number of shards, as it was left.
//!
//! `scripts/make-fixture.sh` makes one; with ORLOP_WRITE_CONTENTS set, the test of the contents writes them down.

use std::path::{Path, PathBuf};
use std::process::Command;

use orlop::client::PrefixQuery;

use crate::harness::{Flags, Server, run};

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/v1")
        .join(file)
}

fn copy_to(data: &Path) {
    std::fs::create_dir(data).unwrap();
    for entry in std::fs::read_dir(fixture("data")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), data.join(entry.file_name())).unwrap();
    }
}

/// Runs `orlopd` on the fixture itself: what it is asked changes nothing.
fn orlopd(words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlopd"));
    let command = command.args(words).arg("--data").arg(fixture("data"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_dump_of_format_1_is_what_it_was() {
    let mut names: Vec<_> = std::fs::read_dir(fixture("data"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".log"))
        .collect();
    names.sort_unstable();
    let mut dump = orlopd(&["inspect"]);
    for name in &names {
        dump += &orlopd(&["inspect", name, "--records"]);
    }
    let expected = std::fs::read_to_string(fixture("inspect.txt")).unwrap();
    let differs = dump
        .lines()
        .zip(expected.lines())
        .find(|(is, was)| is != was);
    assert_eq!(differs, None, "the first line that differs");
    assert_eq!(dump.lines().count(), expected.lines().count());
    for word in ["footer", "moved", "retires", "delete", "of log 3 in file"] {
        assert!(expected.contains(word), "the fixture has no {word}");
    }
    assert!(orlopd(&["verify", "--json"]).contains("\"whole\":true"));
}

#[test]
fn a_directory_of_format_1_is_served_as_it_was_left() {
    run(async |scratch| {
        for shards in [2, 1, 5] {
            let data = scratch.path(&format!("data-{shards}"));
            copy_to(&data);
            let flags = Flags::small().with("--shards", shards);
            let server = Server::start(&data, &flags).await;
            let client = server.client().await;
            let page = client.get_prefix(&PrefixQuery::new(b"")).await.unwrap();
            assert!(!page.more);
            let lines = page.entries.iter().map(|entry| {
                let (key, crc) = (&entry.key, crc32fast::hash(&entry.value));
                let key = String::from_utf8_lossy(key);
                format!(
                    "{key:?} {} {} {crc:08x}\n",
                    entry.version,
                    entry.value.len()
                )
            });
            let lines: String = lines.collect();
            let file = fixture("contents.txt");
            if std::env::var_os("ORLOP_WRITE_CONTENTS").is_some() {
                std::fs::write(&file, &lines).unwrap();
            }
            assert_eq!(
                lines,
                std::fs::read_to_string(&file).unwrap(),
                "{shards} shards"
            );
            assert!(lines.lines().count() > 50);
            server.stop().await;
        }
    });
}

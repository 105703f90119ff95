//! `orlopd verify` and `orlopd inspect` on directories of the real server: they agree with a start, name every damaged
//! place, and change nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use orlop::client::Outcome;
use serde_json::Value;

use crate::damage::{contents, find, flip, marked, one_shard, store_of_ten_commits};
use crate::harness::{Flags, Server, run};

const BLOCK: u64 = 4096;

fn orlopd(what: &str, data: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlopd"));
    command.arg(what).arg("--data").arg(data).args(more);
    command.env_remove("ORLOP_DATA");
    command.output().unwrap()
}

fn verify(data: &Path, more: &[&str]) -> Output {
    orlopd("verify", data, more)
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_whole_store_is_verified_and_left_as_it_is() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        for number in 0..300_u32 {
            let key = (number % 200).to_le_bytes();
            client.set(&key, &marked(number.into())).await.unwrap();
        }
        client.delete(&7_u32.to_le_bytes()).await.unwrap();
        drop(client);
        server.kill().await;
        let before = contents(&scratch.data());

        let output = verify(&scratch.data(), &["--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let result = json_of(&output);
        assert_eq!(result["whole"], true);
        let shards = result["shards"].as_array().unwrap();
        let sum = |field: &str| -> u64 {
            let numbers = shards.iter().map(|shard| shard[field].as_u64().unwrap());
            numbers.sum()
        };
        assert_eq!(shards.len(), 2);
        assert_eq!(sum("keys"), 199);
        assert!(sum("records") >= 199, "{result}");
        assert!(sum("lastVersion") >= 301, "{result}");

        let output = verify(&scratch.data(), &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.lines().all(|line| line.ends_with(": whole")), "{text}");
        assert!(output.stderr.is_empty(), "no terminal, no progress: {text}");
        assert!(contents(&scratch.data()) == before, "verify changed files");
    });
}

#[test]
fn every_damaged_place_is_named() {
    run(async |scratch| {
        store_of_ten_commits(&scratch.data(), true).await;
        let places: Vec<_> = [2, 7]
            .map(|number| find(&scratch.data(), &marked(number)))
            .into();
        for (path, offset) in &places {
            flip(path, offset + 100, 3);
        }
        let before = contents(&scratch.data());

        let output = verify(&scratch.data(), &["--json"]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let result = json_of(&output);
        assert_eq!(result["whole"], false);
        let damage = result["shards"][0]["damage"].as_array().unwrap();
        let named: Vec<_> = damage
            .iter()
            .map(|place| {
                let file = place["file"].as_str().unwrap();
                (
                    scratch.data().join(file),
                    place["offset"].as_u64().unwrap() / BLOCK,
                )
            })
            .collect();
        let expected: Vec<_> = places
            .iter()
            .map(|(path, offset)| (path.clone(), offset / BLOCK))
            .collect();
        assert_eq!(named, expected, "{result}");

        let output = verify(&scratch.data(), &[]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("2 damaged places"), "{text}");
        assert_eq!(text.matches("corruption in segment-").count(), 2, "{text}");
        assert!(contents(&scratch.data()) == before, "verify changed files");

        let exit = Server::refused(&scratch.data(), &one_shard()).await;
        exit.expect(4, &["corruption"]);
    });
}

#[test]
fn a_directory_that_is_served_or_holds_no_store_is_exit_code_3() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &one_shard()).await;
        let said = |output: Output| {
            assert_eq!(output.status.code(), Some(3), "{output:?}");
            assert!(output.stdout.is_empty(), "{output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        let text = said(verify(&scratch.data(), &[]));
        assert!(text.contains("in use by another orlopd"), "{text}");
        server.stop().await;

        let text = said(verify(&scratch.path("nothing"), &[]));
        assert!(text.contains("holds no orlop store"), "{text}");
        assert!(!scratch.path("nothing").exists(), "verify made a directory");

        let foreign = scratch.path("foreign");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("manifest"), "<xml/>").unwrap();
        let text = said(verify(&foreign, &[]));
        assert!(
            text.contains("not the manifest of an orlop store"),
            "{text}"
        );
    });
}

#[test]
fn what_a_client_was_promised_is_in_the_log_or_named() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        let mut acks = format!("{}\n", orlop::ack_log::HEADER);
        for number in 0..40_u64 {
            let key = format!("key-{:02}", number % 30);
            let outcome = client.set(key.as_bytes(), &marked(number)).await.unwrap();
            let Outcome::Written { version, .. } = outcome else {
                panic!("{outcome:?}")
            };
            let crc = orlop::storage::checksum(&marked(number));
            writeln!(acks, "{key} {version} {crc:08x} {number}").unwrap();
        }
        // Not in the acknowledgement log, as of another client.
        client.set(b"key-05", b"later").await.unwrap();
        client.delete(b"key-06").await.unwrap();
        drop(client);
        server.kill().await;

        let file = scratch.path("acks");
        let with_acks = ["--acks", file.to_str().unwrap(), "--json"];
        std::fs::write(&file, &acks).unwrap();
        let output = verify(&scratch.data(), &with_acks);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let result = json_of(&output);
        let expected = serde_json::json!(
            { "writes": 40, "keys": 30, "last": 28, "superseded": 2, "broken": [] }
        );
        assert_eq!(result["acknowledged"], expected, "{result}");

        // A promise that nobody made.
        acks += "key-07 999999999 00000000 1\nkey-99 1 00000000 1\n";
        std::fs::write(&file, &acks).unwrap();
        let output = verify(&scratch.data(), &with_acks[..2]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        for key in ["key-07", "key-99"] {
            assert!(text.contains(&format!("BROKEN: key {key}: ")), "{text}");
        }
        assert_eq!(text.matches("BROKEN").count(), 2, "{text}");

        std::fs::write(&file, "hello\n").unwrap();
        let output = verify(&scratch.data(), &with_acks);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("is no ack log"), "{text}");
    });
}

#[test]
fn inspect_shows_what_was_written_and_what_does_not_verify() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &one_shard()).await;
        let client = server.client().await;
        client.set(b"greeting", b"hello").await.unwrap();
        client.set(b"\x00\xff", &marked(1)).await.unwrap();
        client.delete(b"greeting").await.unwrap();
        drop(client);
        server.stop().await;
        let before = contents(&scratch.data());
        let shown = |more: &[&str]| {
            let output = orlopd("inspect", &scratch.data(), more);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };

        let text = shown(&[]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("manifest: store "), "{text}");
        assert!(lines[0].contains(", 1 shard, log 0, run 1, "), "{text}");
        let first = lines.iter().find(|line| line.contains("0000000001.log"));
        assert!(
            first.is_some_and(|line| line.contains("segment 1 of log 0, versions from 1")),
            "{text}"
        );
        assert!(text.contains("spare of log 0"), "{text}");

        let segment = "segment-0000-0000000001.log";
        let text = shown(&[segment, "--records"]);
        for expected in [
            "table: no segment before this one",
            "set \"greeting\" = \"hello\", version 1",
            "set hex:00ff = hex:",
            "delete \"greeting\", version 3",
            "closes the segment",
            ": zeros",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        let frames = shown(&[segment, "--frames"]);
        assert!(!frames.contains("greeting"), "{frames}");
        assert_eq!(frames.matches(": frame of ").count(), 5, "{frames}");

        let (path, offset) = find(&scratch.data(), &marked(1));
        flip(&path, offset, 0);
        let text = shown(&[segment, "--frames"]);
        assert_eq!(text.matches("does not verify at @").count(), 1, "{text}");
        flip(&path, offset, 0);
        assert!(contents(&scratch.data()) == before, "inspect changed files");

        let output = orlopd("inspect", &scratch.data(), &["segment-9.log"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains("has no segment file \"segment-9.log\""),
            "{text}"
        );
    });
}

//! `orlopd restore` of what is no backup, is cut short, damaged or of another format, and where there is no room: a
//! sentence, the right exit code, and nothing left.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use orlop::storage::format::SEGMENT_HEADER_BYTES;
use tar::{Builder, EntryType, Header};

use crate::backup::{
    ended, expect, limited, orlopd, partials, refused, signal, text, verify, write_round,
};
use crate::damage::{find, flip, marked, one_shard};
use crate::harness::{Scratch, Server, run, skip, until};
use crate::random::Random;

const SEGMENT: &str = "segment-0000-0000000001.log";

/// A copy of a small store, as a tar stream and as a directory.
async fn copies(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let server = Server::start(&scratch.data(), &one_shard()).await;
    write_round(&server.client().await, 60, 0).await;
    let (tar, directory) = (scratch.path("copy.tar"), scratch.path("copy"));
    for target in [&tar, &directory] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
        command.arg("--server").arg(server.address().to_string());
        command.args(["backup", text(target)]);
        expect(command, 0, vec![]).await;
    }
    server.stop().await;
    (tar, directory)
}

fn restore(source: &str, data: &Path, more: &[&str]) -> Command {
    let mut command = orlopd(&["restore", source, "--data", text(data)]);
    command.args(more);
    command
}

/// A tar stream of entries by hand: name, type, content.
fn tar_of(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = Header::new_ustar();
        // Also names that the library refuses to write.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_entry_type(*kind);
        if *kind == EntryType::Symlink {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn what_is_no_backup_is_refused() {
    run(async |scratch| {
        let (_, copy) = copies(scratch).await;
        let (data, home) = (scratch.path("restored"), scratch.path(""));
        let manifest = std::fs::read(copy.join("manifest")).unwrap();
        let segment = std::fs::read(copy.join(SEGMENT)).unwrap();
        let (file, link) = (EntryType::Regular, EntryType::Symlink);
        let mut random = Random::new(11);
        for (source, said) in [
            (vec![], "is cut short or no backup"),
            (
                b"<xml>no tar</xml>".repeat(1000),
                "is cut short or no backup",
            ),
            (random.bytes(100_000), "is cut short or no backup"),
            (vec![0; 10_000], "there is no manifest"),
            (tar_of(&[(SEGMENT, file, &segment)]), "there is no manifest"),
            (
                tar_of(&[(SEGMENT, file, &segment), (SEGMENT, file, &segment)]),
                "twice",
            ),
            (
                tar_of(&[("manifest", file, b"colour: blue")]),
                "not the manifest of an orlop store",
            ),
            (
                tar_of(&[("../manifest", file, &manifest)]),
                "no file of a store",
            ),
            (
                tar_of(&[("/tmp/manifest", file, &manifest)]),
                "no file of a store",
            ),
            (
                tar_of(&[("x/manifest", file, &manifest)]),
                "no file of a store",
            ),
            (tar_of(&[("passwd", file, b"x")]), "no file of a store"),
            (tar_of(&[("manifest", link, b"")]), "no file of a store"),
            (
                tar_of(&[("segment-0-1.log", file, &segment)]),
                "no file of a store",
            ),
        ] {
            refused(restore("-", &data, &[]), 3, source, &[said], &home).await;
            assert!(!data.exists(), "{said}");
        }
        // A directory that is none.
        refused(
            restore(text(&scratch.path("")), &data, &[]),
            3,
            vec![],
            &["holds no orlop store"],
            &home,
        )
        .await;
        std::fs::write(copy.join("notes.txt"), "mine").unwrap();
        let words = ["\"notes.txt\"", "no file of a store"];
        refused(restore(text(&copy), &data, &[]), 3, vec![], &words, &home).await;
        let missing = scratch.path("missing.tar");
        let words = ["cannot open", "missing.tar"];
        refused(
            restore(text(&missing), &data, &[]),
            2,
            vec![],
            &words,
            &home,
        )
        .await;
        assert!(!data.exists());
    });
}

#[test]
fn a_stream_that_is_cut_short_is_refused_wherever_it_is_cut() {
    run(async |scratch| {
        let (tar, _) = copies(scratch).await;
        let (data, home) = (scratch.path("restored"), scratch.path(""));
        let whole = std::fs::read(&tar).unwrap();
        let seed = Random::seed();
        println!("ORLOP_SEED={seed}");
        let mut random = Random::new(seed);
        let len = whole.len();
        // Behind the manifest, in it, before it, and anywhere.
        let ends = [
            len - 1024,
            len - 1025,
            len - 1024 - 8192,
            len - 1024 - 8192 - 512,
            512,
            100,
        ];
        let anywhere = (0..8).map(|_| random.within(0..len as u64 - 1024) as usize);
        for end in ends.into_iter().chain(anywhere) {
            let cut = whole[..end].to_vec();
            let words = ["is cut short"];
            refused(restore("-", &data, &["--no-verify"]), 3, cut, &words, &home).await;
            assert!(!data.exists(), "cut at {end}");
        }
        expect(restore("-", &data, &[]), 0, whole).await;
        verify(&data, None).await;
    });
}

#[test]
fn a_directory_that_is_not_empty_is_left_alone() {
    run(async |scratch| {
        let (tar, copy) = copies(scratch).await;
        let home = scratch.path("");
        for source in [&tar, &copy] {
            // Also the store itself, and the copy onto itself.
            for data in [&scratch.data(), &copy] {
                let before = crate::damage::contents(data);
                let command = restore(text(source), data, &[]);
                refused(command, 3, vec![], &["is not empty"], &home).await;
                assert!(crate::damage::contents(data) == before);
            }
        }
        let empty = scratch.path("empty");
        std::fs::create_dir(&empty).unwrap();
        expect(restore(text(&tar), &empty, &[]), 0, vec![]).await;
        verify(&empty, None).await;
    });
}

#[test]
fn a_damaged_copy_is_refused_and_a_newer_format_is_named() {
    run(async |scratch| {
        let (tar, copy) = copies(scratch).await;
        let (data, home) = (scratch.path("restored"), scratch.path(""));
        let (path, offset) = find(&copy, &marked(17));
        flip(&path, offset + 50, 1);
        let output = expect(restore(text(&copy), &data, &[]), 4, vec![]).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("corruption in segment-"), "{stderr}");
        assert!(stderr.contains("nothing was restored"), "{stderr}");
        assert!(!data.exists() && partials(&home).is_empty());
        // Who does not want to know finds out at the start.
        expect(restore(text(&copy), &data, &["--no-verify"]), 0, vec![]).await;
        let exit = Server::refused(&data, &one_shard()).await;
        exit.expect(4, &["corruption"]);
        std::fs::remove_dir_all(&data).unwrap();
        flip(&path, offset + 50, 1);

        // A segment and a manifest of a version to come, whole but for that.
        let mut newer = std::fs::read(&tar).unwrap();
        let with_version = |block: &mut [u8], crc: usize, version: usize| {
            block[version..version + 4].copy_from_slice(&99_u32.to_le_bytes());
            let sum = crc32(&block[crc + 4..]);
            block[crc..crc + 4].copy_from_slice(&sum.to_le_bytes());
        };
        with_version(&mut newer[512..512 + SEGMENT_HEADER_BYTES], 8, 12);
        let words = ["has format version 99", "use the program that wrote it"];
        refused(restore("-", &data, &[]), 3, newer, &words, &home).await;

        let mut newer = std::fs::read(&tar).unwrap();
        let manifest = newer.len() - 1024 - 8192;
        for slot in [manifest, manifest + 4096] {
            if newer[slot] != 0 {
                with_version(&mut newer[slot..slot + 4096], 8, 12);
            }
        }
        refused(restore("-", &data, &[]), 3, newer, &words, &home).await;
        assert!(!data.exists());
    });
}

fn crc32(bytes: &[u8]) -> u32 {
    orlop::storage::checksum(bytes)
}

#[test]
fn an_interrupted_restore_leaves_nothing() {
    run(async |scratch| {
        let (tar, _) = copies(scratch).await;
        let (data, partial) = (scratch.path("restored"), scratch.path("restored.partial"));
        let half = std::fs::read(&tar).unwrap();
        let half = &half[..half.len() / 2];
        for asked in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
            let mut command = restore("-", &data, &[]);
            command.stdin(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut input = child.stdin.take().unwrap();
            // It waits for more.
            input.write_all(half).unwrap();
            let begun = async || partial.join(SEGMENT).exists();
            until("the restore begins", Duration::from_secs(20), begun).await;
            signal(&child, asked);
            let output = ended(child).await;
            drop(input);
            if asked == libc::SIGKILL {
                continue;
            }
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(130), "{stderr}");
            assert!(stderr.contains("nothing is left"), "{stderr}");
            assert!(!partial.exists() && !data.exists());
        }
        // What a SIGKILL leaves is replaced.
        assert!(partial.exists());
        expect(restore(text(&tar), &data, &[]), 0, vec![]).await;
        verify(&data, None).await;
        assert!(!partial.exists());
    });
}

#[test]
fn a_full_disk_leaves_nothing() {
    run(async |scratch| {
        let (tar, copy) = copies(scratch).await;
        let (data, home) = (scratch.path("restored"), scratch.path(""));
        for source in [&tar, &copy] {
            let command = limited(restore(text(source), &data, &[]));
            let words = ["File too large", "nothing was restored"];
            refused(command, 5, vec![], &words, &home).await;
            assert!(!data.exists());
        }
        // A file system that is really full, in a mount namespace of its own.
        // SAFETY: geteuid takes nothing and cannot fail.
        let namespaces = match unsafe { libc::geteuid() } {
            0 => "-m",
            _ => "-Urm",
        };
        let small = scratch.path("small");
        std::fs::create_dir(&small).unwrap();
        let script = r#"mount -t tmpfs -o size=128k none "$1"; cd "$1"; shift
            [ $# -gt 0 ] || exit 0
            code=0; "$@" || code=$?
            [ -z "$(ls -A .)" ] || { ls -A .; exit 99; }
            exit $code"#;
        let inside = |command: &[&str]| {
            let mut shell = Command::new("unshare");
            shell.args([namespaces, "sh", "-ec", script, "sh", text(&small)]);
            shell.args(command);
            shell
        };
        match inside(&[]).output() {
            Ok(output) if output.status.success() => {}
            other => return skip(&format!("no mount in a namespace of its own: {other:?}")),
        }
        let orlopd = env!("CARGO_BIN_EXE_orlopd");
        let command = inside(&[orlopd, "restore", text(&tar), "--data", "restored"]);
        refused(command, 5, vec![], &["No space left on device"], &home).await;
        let server = Server::start(&scratch.data(), &one_shard()).await;
        let address = server.address().to_string();
        for target in ["copy", "copy.tar"] {
            let orlop = env!("CARGO_BIN_EXE_orlop");
            let command = inside(&[orlop, "--server", &address, "backup", target]);
            refused(command, 2, vec![], &["No space left on device"], &home).await;
        }
        server.stop().await;
    });
}

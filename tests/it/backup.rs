//! `orlop backup` on a real server and `orlopd restore`: the copy holds what was acknowledged before and opens as a store,
//! whatever is written and compacted meanwhile; what breaks off leaves nothing; what is no backup is refused.

mod given_up;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::iter;
use orlop::client::{Client, Outcome};
use serde_json::Value;

use crate::damage::{contents, marked};
use crate::harness::{Flags, Server, client_of, everything, run, run_for, until};

const WAIT: Duration = Duration::from_secs(20);

pub(crate) fn orlop(server: &Server, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    command.arg("--server").arg(server.address().to_string());
    command.args(words);
    command
}

pub(crate) fn orlopd(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlopd"));
    command.args(words).env_remove("ORLOP_DATA");
    command
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a command to its end while the test goes on, and demands an exit code.
#[track_caller]
pub(crate) fn expect(
    mut command: Command,
    code: i32,
    input: Vec<u8>,
) -> impl Future<Output = Output> + 'static {
    let at = std::panic::Location::caller();
    async move {
        let run = move || {
            command.stdin(Stdio::piped());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let writer = std::thread::spawn(move || stdin.write_all(&input).ok());
            let output = child.wait_with_output().unwrap();
            writer.join().unwrap();
            output
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{at}: {stderr}");
        assert!(!stderr.contains("panicked"), "{at}: {stderr}");
        output
    }
}

/// Demands that a command is refused with one sentence that has all of `words`, and leaves nothing in `home`.
pub(crate) async fn refused(
    command: Command,
    code: i32,
    input: Vec<u8>,
    words: &[&str],
    home: &Path,
) {
    let shown = format!("{command:?}");
    let output = expect(command, code, input).await;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty(), "{shown}: {:?}", output.stdout);
    let said = words.iter().all(|word| stderr.contains(word));
    assert!(said, "{shown}: not all of {words:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{shown}: {stderr}");
    assert_eq!(partials(home), Vec::<PathBuf>::new(), "{shown}");
}

/// What is not finished in a directory.
pub(crate) fn partials(home: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(home).unwrap();
    let paths = paths.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "partial"))
        .collect()
}

fn segments(data: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(data).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".log")).collect()
}

/// Writes every key once, several at the same time; the acknowledgement log of it.
pub(crate) async fn write_round(client: &Client, keys: u64, round: u64) -> String {
    let write = |number: u64| async move {
        let value = marked(round << 32 | number);
        let key = format!("key-{number:05}");
        let outcome = client.set(key.as_bytes(), &value).await.unwrap();
        let Outcome::Written { version, .. } = outcome else {
            panic!("{outcome:?}")
        };
        let crc = orlop::storage::checksum(&value);
        format!("{key} {version} {crc:08x} {number}\n")
    };
    let lines = iter(0..keys).map(write).buffer_unordered(64);
    lines.collect().await
}

pub(crate) async fn verify(data: &Path, acks: Option<&Path>) -> Value {
    let mut words = vec!["verify", "--data", text(data), "--json"];
    words.extend(acks.iter().flat_map(|acks| ["--acks", text(acks)]));
    let output = expect(orlopd(&words), 0, vec![]).await;
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_copy_holds_what_was_acknowledged_before_whatever_is_written_meanwhile() {
    run_for(120, async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        let mut acks = format!("{}\n", orlop::ack_log::HEADER);
        for round in 0..4 {
            acks += &write_round(&client, 800, round).await;
        }
        client.delete(b"key-00007").await.unwrap();
        let file = scratch.path("acks");
        std::fs::write(&file, &acks).unwrap();
        let retired_before = client.stat().await.unwrap();

        // Overwrites everything again and again, so that segments are retired while they are copied.
        let stop = Rc::new(std::cell::Cell::new(false));
        let writer = {
            let (stop, client) = (Rc::clone(&stop), server.client().await);
            tokio::task::spawn_local(async move {
                let mut round = 10;
                while !stop.get() {
                    write_round(&client, 800, round).await;
                    round += 1;
                }
                round - 10
            })
        };
        let (directory, tar) = (scratch.path("copy"), scratch.path("copy.tar"));
        let mut retired = 0;
        for time in 0..3 {
            let (directory, tar) = match time {
                0 => (directory.clone(), tar.clone()),
                _ => (
                    scratch.path(&format!("copy-{time}")),
                    scratch.path(&format!("copy-{time}.tar")),
                ),
            };
            // Two at the same time.
            let into_directory = orlop(&server, &["backup", text(&directory), "--json"]);
            let into_tar = orlop(&server, &["backup", text(&tar)]);
            let (one, other) = futures::join!(
                expect(into_directory, 0, vec![]),
                expect(into_tar, 0, vec![])
            );
            let result: Value = serde_json::from_slice(&one.stdout).unwrap();
            let files = result["files"].as_u64().unwrap();
            assert_eq!(files, contents(&directory).len() as u64, "{result}");
            assert_eq!(result["shards"].as_array().unwrap().len(), 2, "{result}");
            let line = String::from_utf8(other.stdout).unwrap();
            assert!(line.contains("\tlast_versions\t"), "{line}");
            let checked = verify(&directory, Some(&file)).await;
            assert_eq!(checked["acknowledged"]["broken"], Value::Array(vec![]));
            for (shard, made) in checked["shards"]
                .as_array()
                .unwrap()
                .iter()
                .zip(result["shards"].as_array().unwrap())
            {
                assert_eq!(
                    shard["lastVersion"], made["lastVersion"],
                    "{checked} {result}"
                );
            }
            let restored = scratch.path(&format!("restored-{time}"));
            let words = ["restore", text(&tar), "--data", text(&restored)];
            let output = expect(orlopd(&words), 0, vec![]).await;
            let line = String::from_utf8(output.stdout).unwrap();
            assert!(line.contains(" keys, verified"), "{line}");
            verify(&restored, Some(&file)).await;
            let stat = client.stat().await.unwrap();
            let of = |stat: &orlop::client::Stat| -> u64 {
                stat.shards.iter().map(|shard| shard.retired_segments).sum()
            };
            retired = of(&stat) - of(&retired_before);
        }
        stop.set(true);
        let rounds = writer.await.unwrap();
        assert!(
            rounds > 0 && retired > 0,
            "{rounds} rounds, {retired} retired"
        );
        server.stop().await;

        // A start does not see a difference, and what it serves is what verify says.
        for data in [directory, scratch.path("restored-0")] {
            let server = Server::start(&data, &Flags::small()).await;
            let client = server.client().await;
            let held = everything(&client).await;
            assert!(held.len() >= 799, "{} keys", held.len());
            client.set(b"key-00003", b"goes on").await.unwrap();
            server.stop().await;
        }
    });
}

#[test]
fn a_copy_of_a_quiet_server_is_the_same_in_every_form() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        write_round(&client, 300, 0).await;
        client.delete(b"key-00001").await.unwrap();
        let expected = everything(&client).await;
        let (copy, tar) = (scratch.path("copy"), scratch.path("copy.tar"));
        // An empty directory is as good as none.
        std::fs::create_dir(&copy).unwrap();
        expect(orlop(&server, &["backup", text(&copy)]), 0, vec![]).await;
        expect(orlop(&server, &["backup", text(&tar)]), 0, vec![]).await;
        let streamed = expect(orlop(&server, &["backup", "-"]), 0, vec![]).await;
        let said = String::from_utf8(streamed.stderr).unwrap();
        assert!(said.contains("\tlast_versions\t"), "{said}");
        server.stop().await;

        for (number, (source, input)) in [
            (text(&copy), vec![]),
            (text(&tar), vec![]),
            ("-", streamed.stdout),
        ]
        .into_iter()
        .enumerate()
        {
            let data = scratch.path(&format!("restored-{number}"));
            let words = ["restore", source, "--data", text(&data)];
            expect(orlopd(&words), 0, input).await;
            let server = Server::start(&data, &Flags::small()).await;
            assert!(
                everything(&server.client().await).await == expected,
                "{source}"
            );
            server.stop().await;
        }
        // A directory is a store as it is, without a restore.
        let server = Server::start(&copy, &Flags::small()).await;
        assert!(everything(&server.client().await).await == expected);
        // While it is served nobody restores from it.
        let no = scratch.path("no");
        let words = ["restore", text(&copy), "--data", text(&no)];
        refused(orlopd(&words), 3, vec![], &["in use"], &scratch.path("")).await;
        server.stop().await;
    });
}

/// A backup that stands still in its middle: nobody reads its output.
fn stuck_backup(server: &Server, shard: usize) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    command.arg("--server");
    command.arg(server.shard_addresses()[shard].to_string());
    command.args(["backup", "-"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn files_stay_while_they_are_copied_and_go_when_the_client_is_gone() {
    run_for(120, async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = client_of(server.shard_addresses()[0]).await;
        for round in 0..3 {
            write_round(&client, 4000, round).await;
        }
        let mut first = stuck_backup(&server, 0);
        until("the backup begins", WAIT, async || {
            server.stderr().contains("a backup begins")
        })
        .await;
        // After its answer the shards are cut: the same connection's order does not say so, the second backup does.
        let mut second = stuck_backup(&server, 0);
        until("the second one begins", WAIT, async || {
            server.stderr().matches("a backup begins").count() == 2
        })
        .await;
        let pinned = segments(&scratch.data());
        let retired = async || -> u64 {
            let stat = client.stat().await.unwrap();
            stat.shards.iter().map(|shard| shard.retired_segments).sum()
        };
        let before = retired().await;
        until("segments are retired", WAIT, async || {
            write_round(&client, 4000, 7).await;
            retired().await > before + 8
        })
        .await;
        let missing: Vec<_> = pinned
            .difference(&segments(&scratch.data()))
            .cloned()
            .collect();
        assert!(missing.is_empty(), "gone under a pin: {missing:?}");

        // As many as there may be.
        let mut third = Command::new(env!("CARGO_BIN_EXE_orlop"));
        third
            .arg("--server")
            .arg(server.shard_addresses()[0].to_string());
        third.args(["backup", text(&scratch.path("copy"))]);
        let words = ["overloaded", "2 backups"];
        refused(third, 3, vec![], &words, &scratch.path("")).await;
        assert!(!scratch.path("copy").exists());

        for child in [&mut first, &mut second] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        until("retired segments go", WAIT, async || {
            !pinned.is_subset(&segments(&scratch.data()))
        })
        .await;
        // And the next one may.
        complete(&server, &scratch.path("copy")).await;
        verify(&scratch.path("copy"), None).await;
        server.stop().await;
    });
}

/// Makes a copy, as soon as the server has noticed that earlier clients are gone: until then it may have as many backups
/// as it may.
async fn complete(server: &Server, target: &Path) {
    until("a backup is accepted", WAIT, async || {
        let mut command = orlop(server, &["backup", text(target)]);
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = run.await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let overloaded = stderr.contains("overloaded");
        assert!(output.status.success() || overloaded, "{stderr}");
        output.status.success()
    })
    .await;
}

/// Stands in for the middle of a copy: the server does not go on, and what was written so far is there.
async fn in_the_middle(server: &Server, target: &Path, partial: &Path) -> Child {
    for _ in 0..20 {
        let mut command = orlop(server, &["backup", text(target)]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        until("the copy begins", WAIT, async || {
            partial.exists() || target.exists() || child.try_wait().unwrap().is_some()
        })
        .await;
        server.signal(libc::SIGSTOP);
        if child.try_wait().unwrap().is_none() && partial.exists() {
            return child;
        }
        server.signal(libc::SIGCONT);
        child.wait().unwrap();
        match target.is_dir() {
            true => std::fs::remove_dir_all(target).unwrap(),
            // Or it was refused: see `complete`.
            false => std::fs::remove_file(target).unwrap_or_default(),
        }
    }
    panic!("every copy was complete before it could be stopped")
}

pub(crate) fn signal(child: &Child, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: `kill` takes no pointers; the child is not reaped yet, so the id is its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

pub(crate) async fn ended(child: Child) -> Output {
    tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
        .await
        .unwrap()
}

#[test]
fn an_interrupted_copy_leaves_nothing() {
    run_for(120, async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        write_round(&client, 6000, 0).await;
        for (name, partial) in [("copy", "copy.partial"), ("copy.tar", "copy.tar.partial")] {
            let (target, partial) = (scratch.path(name), scratch.path(partial));
            for asked in [libc::SIGINT, libc::SIGTERM] {
                let child = in_the_middle(&server, &target, &partial).await;
                signal(&child, asked);
                let output = ended(child).await;
                server.signal(libc::SIGCONT);
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(130), "{stderr}");
                assert!(stderr.contains("nothing is left"), "{stderr}");
                assert!(!partial.exists() && !target.exists());
            }
            // What a SIGKILL leaves is replaced by the next copy.
            let mut child = in_the_middle(&server, &target, &partial).await;
            child.kill().unwrap();
            ended(child).await;
            server.signal(libc::SIGCONT);
            assert!(partial.exists() && !target.exists());
            complete(&server, &target).await;
            assert!(!partial.exists() && target.exists());
        }
        // The server is gone in the middle.
        let (target, partial) = (scratch.path("last"), scratch.path("last.partial"));
        let child = in_the_middle(&server, &target, &partial).await;
        server.kill().await;
        let output = ended(child).await;
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(!partial.exists() && !target.exists());
    });
}

#[test]
fn a_target_that_is_taken_or_cannot_be_written_is_refused() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        write_round(&server.client().await, 200, 0).await;
        let home = scratch.path("");
        let (full, tar) = (scratch.path("full"), scratch.path("taken.tar"));
        std::fs::create_dir(&full).unwrap();
        std::fs::write(full.join("a file"), "of somebody").unwrap();
        std::fs::write(&tar, "of somebody").unwrap();
        let missing = scratch.path("missing").join("copy");
        for (target, said) in [
            (&full, "is not empty"),
            (&tar, "exists already"),
            (&full.join("a file"), "is no directory"),
            (&missing, "No such file"),
        ] {
            let command = orlop(&server, &["backup", text(target)]);
            refused(command, 2, vec![], &[said], &home).await;
        }
        assert_eq!(contents(&full).len(), 1);
        assert_eq!(std::fs::read(&tar).unwrap(), b"of somebody");

        // A disk that takes no more, where there is one for everybody.
        let mut command = orlop(&server, &["backup", "-"]);
        command.stderr(Stdio::piped());
        let device = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        command.stdout(device);
        let output = ended(command.spawn().unwrap()).await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("No space left on device"), "{stderr}");
        for name in ["copy", "copy.tar"] {
            let command = limited(orlop(&server, &["backup", text(&scratch.path(name))]));
            refused(command, 2, vec![], &["File too large"], &home).await;
            assert!(!scratch.path(name).exists());
        }
        server.stop().await;
    });
}

/// The command, with files of 100 KiB at most.
pub(crate) fn limited(mut command: Command) -> Command {
    // SAFETY: between fork and exec only two system calls are made, which are safe there; `limit` outlives them.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: 100 << 10,
                rlim_max: 100 << 10,
            };
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    command
}

//! `scripts/peers.sh`: a peer that is started answers, one that is stopped is gone and nothing else, and one that is not
//! installed is a sentence.

#![allow(clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/peers.sh")
}

fn peers(words: &[&str], dir: &Path) -> Output {
    Command::new("bash")
        .arg(script())
        .args(words)
        .arg("--dir")
        .arg(dir)
        .env("ORLOP_BENCH", env!("CARGO_BIN_EXE_orlop-bench"))
        .output()
        .expect("bash is there")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// A started peer; stopped when dropped.
struct Peer<'a> {
    name: &'a str,
    dir: &'a Path,
    port: u16,
}

impl<'a> Peer<'a> {
    fn start(name: &'a str, dir: &'a Path) -> Peer<'a> {
        let port = free_port();
        let output = peers(&["start", name, "--port", &port.to_string()], dir);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, format!("ready: 127.0.0.1:{port}\n"), "{output:?}");
        Peer { name, dir, port }
    }

    fn serves(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn stop(&self) -> Output {
        peers(&["stop", self.name], self.dir)
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join(format!("{}.pid", self.name))
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        // Most tests have stopped it.
        drop(self.stop());
    }
}

#[test]
fn a_peer_that_is_not_installed_is_a_sentence() {
    let empty = tempfile::tempdir().unwrap();
    for (name, sentence) in [
        (
            "redis",
            "redis-server is not installed; run scripts/peers.sh install redis",
        ),
        (
            "redis-always",
            "redis-server is not installed; run scripts/peers.sh install redis",
        ),
        (
            "valkey",
            "valkey-server is not installed; run scripts/peers.sh install valkey",
        ),
        (
            "memcached",
            "memcached is not installed; run scripts/peers.sh install memcached",
        ),
        (
            "etcd",
            "etcd is not installed; run scripts/peers.sh install etcd",
        ),
        (
            "fjall",
            "orlop-bench is not installed; run scripts/peers.sh install fjall",
        ),
    ] {
        let output = Command::new("/bin/bash")
            .arg(script())
            .args(["start", name])
            .env_clear()
            .env("PATH", empty.path())
            .env("CARGO_TARGET_DIR", empty.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, format!("peers: {sentence}\n"));
    }
}

/// Starts `name` beside another peer, stops it, and sees that only it has gone.
fn stop_ends_exactly_one(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let other = Peer::start("fjall", dir.path());
    let peer = Peer::start(name, dir.path());
    let twice = peers(
        &["start", name, "--port", &free_port().to_string()],
        dir.path(),
    );
    assert_eq!(twice.status.code(), Some(3), "{twice:?}");
    let output = peer.stop();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!peer.serves() && !peer.pid_file().exists(), "{name}");
    assert!(other.serves() && other.pid_file().exists(), "{name}");
    let again = peer.stop();
    assert_eq!(again.status.code(), Some(3), "{again:?}");
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(said.contains("was not started here"), "{said}");
}

#[test]
fn stop_ends_the_engine_that_it_names_and_nothing_else() {
    stop_ends_exactly_one("redb");
}

#[test]
fn stop_ends_the_redis_that_it_names_and_nothing_else() {
    if Command::new("redis-server")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("*** SKIPPED: redis-server is not installed; run scripts/peers.sh install redis");
        return;
    }
    stop_ends_exactly_one("redis-always");
}

/// A process that lives until its standard input closes.
fn stranger() -> Child {
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    command.spawn().expect("cat is there")
}

/// The id of a peer that has ended may belong to another process by now.
#[test]
fn stop_leaves_a_process_alone_that_it_did_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let peer = Peer::start("redb", dir.path());
    let pid = std::fs::read_to_string(peer.pid_file()).unwrap();
    let killed = Command::new("kill").args(["-KILL", pid.trim()]).status();
    assert!(killed.unwrap().success());
    let mut stranger = stranger();
    std::fs::write(peer.pid_file(), format!("{}\n", stranger.id())).unwrap();
    let output = peer.stop();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("redb does not run any more"), "{said}");
    assert_eq!(stranger.try_wait().unwrap(), None, "it still runs");
    drop(stranger.stdin.take());
    assert!(stranger.wait().unwrap().success());
}

#[test]
fn wrong_usage_names_the_value_and_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    for (words, sentence) in [
        (
            &["start", "mongo"][..],
            "'mongo' is no peer: redis redis-always",
        ),
        (
            &["start", "redis", "--port", "65536"],
            "--port is 65536: give a number from 1 to 65535",
        ),
        (
            &["start", "redis", "--cpu", "one"],
            "--cpu is 'one': give a number from 0 to 1023",
        ),
        (
            &["stop", "redis", "--cpu", "1"],
            "'--cpu' is no option of stop",
        ),
        (
            &["restart", "redis"],
            "'restart' is none of install, start, stop, list",
        ),
    ] {
        let output = peers(words, dir.path());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(sentence), "{said}");
    }
}

#[test]
fn a_port_in_use_is_refused_before_anything_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = peers(&["start", "redb", "--port", &port.to_string()], dir.path());
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains(&format!("port {port} of 127.0.0.1 is in use")),
        "{said}"
    );
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
}

//! `orlop-bench serve`: both engines behind the schema, asked by orlop's client as `orlopd` would be, and what is left of
//! their acknowledged writes after the process ended, cleanly or not.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use futures::future::join_all;
use orlop::client::tokio::connect;
use orlop::client::{Change, Client, ClientError, Condition, Mutation, Outcome, PrefixQuery};

const ENGINES: [&str; 2] = ["redb", "fjall"];

/// A running `orlop-bench serve`; killed when dropped.
struct Server {
    process: Child,
    address: String,
    _output: BufReader<ChildStdout>,
}

impl Server {
    fn start(engine: &str, dir: &Path, more: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop-bench"));
        Server::spawn(&mut command, engine, dir, more)
    }

    /// Starts it through a command to which its arguments are added.
    fn spawn(command: &mut Command, engine: &str, dir: &Path, more: &[&str]) -> Server {
        let mut process = command
            .args(["serve", "--listen", "127.0.0.1:0", "--cache-mib", "16"])
            .args(["--engine", engine, "--data"])
            .arg(dir)
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary was built");
        let mut output = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line or the end");
        let address = line
            .strip_prefix("ready: ")
            .map(|rest| rest.trim().to_owned());
        Server {
            address: address.unwrap_or_else(|| panic!("{engine} said {line:?}")),
            process,
            _output: output,
        }
    }

    async fn client(&self) -> Client {
        let address = self.address.parse().expect("the ready line has one");
        connect(&address).await.expect("it serves")
    }

    /// Sends SIGTERM and returns the exit code.
    fn stop(mut self) -> Option<i32> {
        let sent = Command::new("kill")
            .arg(self.process.id().to_string())
            .status();
        assert!(sent.expect("kill runs").success());
        self.process.wait().expect("it is a child").code()
    }

    fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it is a child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Most tests have ended it.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn within_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), work);
}

fn version(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Written { version, .. } => version,
        other => panic!("{other:?}"),
    }
}

async fn single_operations(client: &Client) {
    assert_eq!(client.get(b"a").await.unwrap(), None);
    let first = client.set(b"a", b"1").await.unwrap();
    assert!(matches!(first, Outcome::Written { existed: false, .. }));
    let second = client.set(b"a", b"").await.unwrap();
    assert!(matches!(second, Outcome::Written { existed: true, .. }));
    assert!(version(second) > version(first));
    let found = client.get(b"a").await.unwrap().expect("it was set");
    assert_eq!(
        (found.value.as_slice(), found.version),
        (&b""[..], version(second))
    );

    let current = Some(version(second));
    for (condition, expected) in [
        (Condition::IfAbsent, None),
        (Condition::IfVersion(version(first)), None),
        (Condition::IfPresent, Some(())),
    ] {
        let outcome = client.set_if(b"a", b"3", condition).await.unwrap();
        match expected {
            None => assert_eq!(outcome, Outcome::Refused { current }),
            Some(()) => assert!(version(outcome) > version(second)),
        }
    }
    let gone = client.delete(b"a").await.unwrap();
    assert!(matches!(gone, Outcome::Written { existed: true, .. }));
    let nothing = Outcome::Written {
        version: 0,
        existed: false,
    };
    assert_eq!(client.delete(b"a").await.unwrap(), nothing);
    assert_eq!(client.get(b"a").await.unwrap(), None);

    let large: Vec<u8> = (0..3 << 20).map(|at: u32| at as u8).collect();
    client.set(b"large", &large).await.unwrap();
    let found = client.get(b"large").await.unwrap().expect("it was set");
    assert!(
        found.value == large,
        "{} bytes came back",
        found.value.len()
    );
    client.delete(b"large").await.unwrap();
}

async fn many_keys(client: &Client) {
    let mutations: [(&[u8], Change<'_>); 6] = [
        (b"p/1", Change::Set(b"one")),
        (b"p/2", Change::Set(b"two")),
        (b"p/2", Change::Set(b"three")),
        (b"p/1", Change::Delete),
        (b"p/3", Change::Set(b"four")),
        (b"q", Change::Set(b"other")),
    ];
    let mutations = mutations.map(|(key, change)| Mutation {
        key,
        change,
        condition: Condition::None,
    });
    let outcomes = client.write(&mutations).await.unwrap();
    let versions: Vec<u64> = outcomes
        .into_iter()
        .map(|outcome| version(outcome.expect("it was written")))
        .collect();
    assert!(versions.is_sorted() && versions[0] > 0, "{versions:?}");
    let found = client.get_many(&[b"p/2", b"p/1"]).await.unwrap();
    let newest = found[0].as_ref().expect("it was set twice");
    assert_eq!(
        (newest.value.as_slice(), newest.version),
        (&b"three"[..], versions[2])
    );
    assert_eq!(found[1], None);

    let query = PrefixQuery {
        max_entries: 1,
        ..PrefixQuery::new(b"p/")
    };
    let page = client.get_prefix(&query).await.unwrap();
    assert!(page.more);
    assert_eq!(page.entries[0].key, b"p/2");
    let rest = PrefixQuery {
        after: b"p/2",
        ..PrefixQuery::new(b"p/")
    };
    let page = client.get_prefix(&rest).await.unwrap();
    assert!(!page.more);
    assert_eq!(
        (page.entries.len(), page.entries[0].value.as_slice()),
        (1, &b"four"[..])
    );
    let all = client.get_prefix(&PrefixQuery::new(b"")).await.unwrap();
    let keys: Vec<_> = all
        .entries
        .iter()
        .map(|entry| entry.key.as_slice())
        .collect();
    assert_eq!(keys, [&b"p/2"[..], b"p/3", b"q"]);
}

/// Keys and values are checked before an engine sees them.
async fn refusals(client: &Client) {
    let long = vec![b'k'; 65_536];
    let error = client.set(&long, b"").await.unwrap_err();
    assert!(matches!(&error, ClientError::InvalidArgument(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains("65536 bytes, allowed are 1 to 65535"),
        "{error}"
    );
    client.set(&long[1..], b"longest").await.unwrap();
    assert!(client.get(&long[1..]).await.unwrap().is_some());
    client.delete(&long[1..]).await.unwrap();
    assert!(client.get(b"").await.is_err());
}

#[test]
fn both_engines_do_what_the_schema_says() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(engine, dir.path(), &["--sync", "none"]);
        within_runtime(async {
            let client = server.client().await;
            single_operations(&client).await;
            many_keys(&client).await;
            refusals(&client).await;
            let info = client.info().await.unwrap();
            assert!(info.server_version.ends_with(engine), "{info:?}");
            let stat = client.stat().await.unwrap();
            assert_eq!(
                (stat.sets, stat.deletes, stat.get_prefixes),
                (12, 5, 3),
                "{engine}"
            );
        });
        assert_eq!(server.stop(), Some(0), "{engine}");
    }
}

#[test]
fn acknowledged_writes_and_versions_outlive_the_process() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut newest = 0;
        let mut uuid = None;
        for round in 0..3u8 {
            let server = Server::start(engine, dir.path(), &[]);
            within_runtime(async {
                let client = server.client().await;
                for earlier in 0..round {
                    let found = client.get(&[b'k', earlier]).await.unwrap();
                    assert_eq!(
                        found.expect("it was acknowledged").value,
                        [earlier],
                        "{engine}"
                    );
                }
                let written = version(client.set(&[b'k', round], &[round]).await.unwrap());
                assert!(written > newest, "{engine}: {written} after {newest}");
                newest = written;
                let now = client.info().await.unwrap().store_uuid;
                assert_eq!(*uuid.get_or_insert(now.clone()), now, "{engine}");
            });
            match round {
                0 => server.kill(),
                _ => assert_eq!(server.stop(), Some(0), "{engine}"),
            }
        }
    }
}

/// Calls of one commit are answered in their order, each with its own outcome.
#[test]
fn writes_that_wait_together_keep_their_outcomes() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(engine, dir.path(), &["--sync", "none"]);
        within_runtime(async {
            let client = server.client().await;
            let keys: Vec<String> = (0..500).map(|number| format!("k{}", number % 7)).collect();
            let calls = keys.iter().map(|key| client.set(key.as_bytes(), b"v"));
            let mut last = 0;
            for (at, call) in join_all(calls).await.into_iter().enumerate() {
                let Outcome::Written { version, existed } = call.unwrap() else {
                    panic!("{engine}: no condition was set")
                };
                assert!(version > last, "{engine}: {version} after {last}");
                assert_eq!(existed, at >= 7, "{engine}: call {at}");
                last = version;
            }
        });
    }
}

fn refused(engine: &str, dir: &Path, listen: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orlop-bench"))
        .args(["serve", "--engine", engine, "--listen", listen, "--data"])
        .arg(dir)
        .output()
        .expect("the binary was built")
}

/// What the kernel refuses to write is not acknowledged: the file may not grow beyond 32 MiB, and values of 3 MiB come.
#[test]
fn a_commit_that_fails_ends_the_server_without_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    // An ignored SIGXFSZ makes the limit an error of the write; without it the signal ends the process.
    let limited = "trap '' XFSZ; ulimit -f 32768; exec \"$0\" \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_orlop-bench")]);
    let mut server = Server::spawn(command.stderr(Stdio::piped()), "redb", dir.path(), &[]);
    let mut acknowledged = 0u8;
    within_runtime(async {
        let client = server.client().await;
        let value = vec![7; 3 << 20];
        while client.set(&[acknowledged], &value).await.is_ok() {
            acknowledged += 1;
        }
    });
    assert_eq!(server.process.wait().unwrap().code(), Some(3));
    let mut said = String::new();
    let mut stderr = server.process.stderr.take().expect("it is piped");
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("orlop-bench: redb: cannot"), "{said}");

    assert!((1..11).contains(&acknowledged), "{acknowledged} of 3 MiB");
    let server = Server::start("redb", dir.path(), &[]);
    within_runtime(async {
        let client = server.client().await;
        for key in 0..acknowledged {
            assert!(client.get(&[key]).await.unwrap().is_some(), "key {key}");
        }
    });
}

#[test]
fn a_database_that_is_served_is_not_served_twice() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let _server = Server::start(engine, dir.path(), &[]);
        let output = refused(engine, dir.path(), "127.0.0.1:0");
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(output.stdout.is_empty(), "no ready line: {output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("cannot open the database"), "{text}");
    }
}

#[test]
fn an_address_in_use_and_an_engine_that_is_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = other.local_addr().unwrap().to_string();
    let output = refused("redb", dir.path(), &listen);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains(&format!("cannot listen on {listen}")),
        "{text}"
    );
    assert_eq!(
        refused("leveldb", dir.path(), &listen).status.code(),
        Some(2)
    );
}

//! How a server starts and ends: the ready line, the drain on SIGTERM, a second signal, exit codes, wrong usage.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use orlop::client::{ClientError, Outcome};

use crate::harness::{Flags, Process, Server, client_of, run, short_directory, until, with_server};
use crate::operations::version_of;
use crate::random::Random;

/// Many clients write without a pause; the signal comes in the middle. Every write that was answered is there after a
/// restart, and what was not answered is there whole or not at all.
#[test]
fn writes_that_were_answered_while_draining_are_durable() {
    run(async |scratch| {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let data = scratch.path(&format!("signal-{signal}"));
            let server = Server::start(&data, &Flags::small()).await;
            let answered = Rc::new(Cell::new(0_usize));
            let mut writers = Vec::new();
            for w in 0..8_u32 {
                let shards = server.shard_addresses();
                let client = client_of(shards[w as usize % shards.len()]).await;
                let answered = answered.clone();
                writers.push(tokio::task::spawn_local(async move {
                    let mut acknowledged = BTreeMap::new();
                    let mut next = 0_u32;
                    let mut in_flight = FuturesUnordered::new();
                    loop {
                        while in_flight.len() < 64 {
                            let (client, i) = (client.clone(), next);
                            next += 1;
                            in_flight.push(async move {
                                (i, client.set(&key(w, i), &value(w, i)).await)
                            });
                        }
                        match in_flight.next().await.expect("kept full") {
                            (i, Ok(outcome)) => {
                                acknowledged.insert(i, version_of(outcome));
                                answered.set(answered.get() + 1);
                            }
                            (
                                _,
                                Err(ClientError::ShuttingDown(_) | ClientError::Disconnected(_)),
                            ) => break,
                            (i, Err(error)) => panic!("write {i}: {error:?}"),
                        }
                    }
                    // What was answered behind the first refusal counts as well.
                    while let Some((i, result)) = in_flight.next().await {
                        match result {
                            Ok(outcome) => drop(acknowledged.insert(i, version_of(outcome))),
                            Err(ClientError::ShuttingDown(_) | ClientError::Disconnected(_)) => {}
                            Err(error) => panic!("write {i}: {error:?}"),
                        }
                    }
                    acknowledged
                }));
            }
            until("the load runs", Duration::from_secs(20), async || {
                answered.get() > 2_000
            })
            .await;
            let exit = {
                server.signal(signal);
                server.exit().await
            };
            assert_eq!((exit.code, exit.signal), (Some(0), None), "{exit:#?}");

            let server = Server::start(&data, &Flags::small()).await;
            let client = server.client().await;
            let mut checked = 0;
            for (w, writer) in (0_u32..).zip(writers) {
                let acknowledged = writer.await.unwrap();
                let keys: Vec<_> = acknowledged.keys().map(|&i| key(w, i)).collect();
                for (chunk, expected) in keys
                    .chunks(1_000)
                    .zip(acknowledged.iter().collect::<Vec<_>>().chunks(1_000))
                {
                    for (found, &(&i, &version)) in client
                        .get_many(chunk)
                        .await
                        .unwrap()
                        .into_iter()
                        .zip(expected)
                    {
                        let found = found.unwrap_or_else(|| {
                            panic!("LOST: write {i} of writer {w} was answered")
                        });
                        assert!(
                            found.version == version && found.value == value(w, i),
                            "write {i} of writer {w}"
                        );
                        checked += 1;
                    }
                }
            }
            assert!(checked > 2_000, "{checked} writes checked");
            server.stop().await;
        }
    });
}

fn key(writer: u32, i: u32) -> Vec<u8> {
    format!("{writer}/{i}").into_bytes()
}

fn value(writer: u32, i: u32) -> Vec<u8> {
    let mut random = Random::new(u64::from(writer) << 32 | u64::from(i));
    let len = random.within(0..500) as usize;
    random.bytes(len)
}

/// Calls that were submitted before the signal are answered, although the client sends nothing more.
#[test]
fn calls_in_flight_at_the_signal_are_answered() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        client.set(b"warm", b"up").await.unwrap();
        let keys: Vec<[u8; 4]> = (0..500_u32).map(u32::to_be_bytes).collect();
        let mut calls: FuturesUnordered<_> = keys.iter().map(|key| client.set(key, key)).collect();
        // The first answer shows that the server has begun to read them.
        let mut written = vec![calls.next().await.unwrap().unwrap()];
        server.signal(libc::SIGTERM);
        while let Some(result) = calls.next().await {
            match result {
                Ok(outcome) => written.push(outcome),
                Err(ClientError::ShuttingDown(_) | ClientError::Disconnected(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        let exit = server.exit().await;
        assert_eq!(exit.code, Some(0), "{exit:#?}");
        assert!(
            written
                .iter()
                .all(|outcome| matches!(outcome, Outcome::Written { .. })),
            "{written:?}"
        );

        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let stat = server.client().await.stat().await.unwrap();
        assert!(
            stat.keys > written.len() as u64,
            "{} answered, {} keys with the first",
            written.len(),
            stat.keys
        );
        server.stop().await;
    });
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        client.set(b"key", b"value").await.unwrap();
        let silent = tokio::net::TcpStream::connect(server.address())
            .await
            .unwrap();
        let start = std::time::Instant::now();
        server.stop().await;
        assert!(
            start.elapsed() < Duration::from_secs(8),
            "ended after {:?}",
            start.elapsed()
        );
        let error = client.get(b"key").await.unwrap_err();
        assert!(
            matches!(
                error,
                ClientError::Disconnected(_) | ClientError::ShuttingDown(_)
            ),
            "{error:?}"
        );
        drop(silent);
    });
}

/// A peer that has half a message under way, and one that does not read its answers, would hold the drain for as long as
/// they like; the drain has a limit, and a second signal ends it at once.
#[test]
fn a_second_signal_ends_the_server_at_once_and_loses_nothing_acknowledged() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        for i in 0..100_u8 {
            client.set(&[i], b"value").await.unwrap();
        }
        // Writes without end keep it busy while it drains.
        server.signal(libc::SIGTERM);
        server.signal(libc::SIGINT);
        let exit = server.exit().await;
        assert!(matches!(exit.code, Some(0 | 130)), "{exit:#?}");
        assert!(!exit.stderr.contains("panicked"), "{exit:#?}");
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        assert_eq!(server.client().await.stat().await.unwrap().keys, 100);
        server.stop().await;
    });
}

#[test]
fn the_ready_line_is_all_that_is_printed_and_names_every_address() {
    run(async |scratch| {
        let flags = Flags::small().with("--shards", 3);
        let server = Server::start(&scratch.data(), &flags).await;
        assert_eq!(server.shard_addresses().len(), 3);
        for address in server
            .shard_addresses()
            .iter()
            .copied()
            .chain([server.address()])
        {
            assert!(
                address.ip().is_loopback() && address.port() != 0,
                "{address}"
            );
            client_of(address)
                .await
                .set(b"key", b"value")
                .await
                .unwrap();
        }
        let exit = server.stop().await;
        assert!(exit.stdout.starts_with("ready: 127.0.0.1:"), "{exit:#?}");
    });
}

#[test]
fn a_restart_serves_again_on_the_address_that_it_is_given() {
    run(async |scratch| {
        let first = Server::start(&scratch.data(), &Flags::small()).await;
        let address = first.address();
        let client = first.client().await;
        client.set(b"key", b"value").await.unwrap();
        first.kill().await;
        let server =
            Server::start(&scratch.data(), &Flags::small().with("--listen", address)).await;
        assert_eq!(server.address(), address);
        assert_eq!(
            server
                .client()
                .await
                .get(b"key")
                .await
                .unwrap()
                .unwrap()
                .value,
            b"value"
        );
        server.stop().await;
    });
}

#[test]
fn a_port_in_use_is_exit_code_2_and_a_sentence() {
    with_server(async |server| {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let address = server.address().to_string();
        let flags = Flags::small().with("--listen", &address);
        Server::refused(directory.path(), &flags)
            .await
            .expect(2, &["in use", &address]);
    });
    // A listener that is not ours shares its port with nobody either.
    run(async |scratch| {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap().to_string();
        let flags = Flags::small().with("--listen", &address);
        Server::refused(&scratch.data(), &flags)
            .await
            .expect(2, &["in use", &address]);
    });
}

#[test]
fn a_unix_socket_is_replaced_when_its_server_is_gone_and_kept_when_not() {
    run(async |scratch| {
        let sockets = short_directory();
        let path = sockets.path().join("socket");
        let flags = Flags::small().with("--unix", path.display());
        let first = Server::start(&scratch.data(), &flags).await;
        let other = scratch.path("other");
        Server::refused(&other, &flags)
            .await
            .expect(2, &["socket", path.to_str().unwrap()]);
        first.kill().await;
        assert!(path.exists(), "SIGKILL leaves the socket behind");
        Server::start(&scratch.data(), &flags).await.stop().await;
        assert!(!path.exists(), "an orderly end removes the socket");
        std::fs::write(&path, "a file of somebody").unwrap();
        Server::refused(&scratch.data(), &flags)
            .await
            .expect(2, &["socket", path.to_str().unwrap()]);
        assert_eq!(std::fs::read(&path).unwrap(), b"a file of somebody");
    });
}

#[test]
fn wrong_usage_is_exit_code_2_and_names_the_value() {
    run(async |scratch| {
        let cases = [
            ("--listen", "somewhere", "somewhere"),
            ("--shards", "0", "0"),
            ("--shards", "many", "many"),
            ("--shards", "100000", "100000"),
            ("--cpus", "0-x", "0-x"),
            ("--cpus", "4095", "4095"),
            ("--cache", "plenty", "plenty"),
            ("--max-value-size", "33MiB", "32"),
            ("--max-value-size", "-1", "-1"),
            ("--segment-size", "17", "17"),
            ("--no-such-flag", "x", "--no-such-flag"),
        ];
        for (flag, value, named) in cases {
            let exit = Server::refused(&scratch.data(), &Flags::small().with(flag, value)).await;
            exit.expect(2, &[named]);
            assert_eq!(exit.stdout, "", "{flag} {value}");
        }
        // A segment must hold the largest value.
        let flags = Flags::small()
            .with("--segment-size", "1MiB")
            .with("--max-value-size", "16MiB");
        Server::refused(&scratch.data(), &flags)
            .await
            .expect(2, &["--segment-size", "--max-value-size"]);
    });
}

#[test]
fn help_lists_flags_variables_and_exit_codes() {
    let output = Command::new(env!("CARGO_BIN_EXE_orlopd"))
        .arg("--help")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for flag in [
        "data",
        "listen",
        "unix",
        "shards",
        "cpus",
        "cache",
        "max-value-size",
        "segment-size",
    ] {
        let variable = format!("ORLOP_{}", flag.to_uppercase().replace('-', "_"));
        assert!(
            help.contains(&format!("--{flag} ")) && help.contains(&variable),
            "{flag}, {variable}: {help}"
        );
    }
    for code in ["0", "2", "3", "4", "5"] {
        let line = help
            .lines()
            .find(|line| line.split_whitespace().next() == Some(code));
        assert!(
            line.is_some_and(|line| line.len() > 10),
            "exit code {code} is not explained: {help}"
        );
    }
    let version = Command::new(env!("CARGO_BIN_EXE_orlopd"))
        .arg("--version")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn flags_are_read_from_the_environment_and_the_command_line_wins() {
    run(async |scratch| {
        let mut command = Command::new("env");
        command
            .arg("ORLOP_SHARDS=3")
            .arg("ORLOP_SEGMENT_SIZE=1MiB")
            .arg("ORLOP_MAX_VALUE_SIZE=2KiB");
        command.arg(format!("ORLOP_DATA={}", scratch.data().display()));
        command.args([
            "ORLOP_LISTEN=127.0.0.1:0",
            "ORLOP_CACHE=3MiB",
            env!("CARGO_BIN_EXE_orlopd"),
        ]);
        command.args(["--max-value-size", "4KiB"]);
        let server = Process::spawn_command(command).ready().await.unwrap();
        let client = server.client().await;
        assert_eq!(server.shard_addresses().len(), 3);
        assert_eq!(client.info().await.unwrap().limits.value_bytes_max, 4 << 10);
        assert_eq!(client.stat().await.unwrap().cache_budget_bytes, 3 << 20);
        assert!(scratch.data().join("manifest").exists());
        server.stop().await;
    });
}

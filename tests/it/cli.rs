//! The tool `orlop`: every subcommand, its exit codes, and output that programs can read.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::harness::{Flags, Server, run, short_directory, with_server, with_server_of};
use crate::random::Random;

/// Runs the tool against `server` and gives it `input`.
fn orlop_with_input(server: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    command.arg("--server").arg(server).args(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // The tool may end without reading.
        stdin.write_all(&input).ok();
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn orlop(server: &str, arguments: &[&str]) -> Output {
    orlop_with_input(server, arguments, b"")
}

/// Runs the tool, demands an exit code, and returns standard output.
#[track_caller]
fn expect(server: &str, code: i32, arguments: &[&str]) -> Vec<u8> {
    let output = orlop(server, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(code),
        "orlop {arguments:?}: {stderr}"
    );
    assert!(!stderr.contains("panicked"), "{stderr}");
    if code > 1 {
        assert_eq!(output.stdout, b"", "an error belongs on standard error");
        assert!(
            !stderr.trim().is_empty(),
            "orlop {arguments:?} fails without a word"
        );
    }
    output.stdout
}

#[test]
fn what_is_set_is_got_byte_for_byte() {
    with_server(async |server| {
        let at = &server.address().to_string();
        expect(at, 0, &["ping"]);
        expect(at, 0, &["set", "greeting", "hello"]);
        assert_eq!(
            expect(at, 0, &["get", "greeting"]),
            b"hello",
            "no newline is added"
        );
        expect(at, 0, &["set", "empty", ""]);
        assert_eq!(expect(at, 0, &["get", "empty"]), b"");
        expect(at, 0, &["delete", "greeting"]);
        assert_eq!(expect(at, 1, &["get", "greeting"]), b"");
        // The other programs see the same.
        let client = server.client().await;
        assert_eq!(client.get(b"empty").await.unwrap().unwrap().value, b"");
    });
}

#[test]
fn keys_can_be_written_in_hex() {
    with_server(async |server| {
        let at = &server.address().to_string();
        expect(at, 0, &["set", "hex:00ff0a", "binary"]);
        let client = server.client().await;
        assert_eq!(
            client.get(b"\x00\xff\x0a").await.unwrap().unwrap().value,
            b"binary"
        );
        assert_eq!(expect(at, 0, &["get", "hex:00FF0A"]), b"binary");
        let listed =
            String::from_utf8(expect(at, 0, &["prefix", "hex:00", "--keys-only"])).unwrap();
        assert_eq!(listed, "hex:00ff0a\n");
        expect(at, 2, &["get", "hex:0"]);
        expect(at, 2, &["get", "hex:zz"]);
        // A key that looks like hex is still within reach.
        expect(at, 0, &["set", "hex:6865783a30", "tricky"]);
        assert_eq!(
            client.get(b"hex:0").await.unwrap().unwrap().value,
            b"tricky"
        );
    });
}

#[test]
fn values_come_from_files_and_standard_input() {
    with_server_of(Flags::large(), async |server| {
        let at = &server.address().to_string();
        let directory = short_directory();
        let file = directory.path().join("value");
        let value = Random::new(7).bytes(16 << 20);
        std::fs::write(&file, &value).unwrap();
        expect(at, 0, &["set", "large", "--file", file.to_str().unwrap()]);
        assert!(
            expect(at, 0, &["get", "large"]) == value,
            "16 MiB came back changed"
        );
        let output = orlop_with_input(at, &["set", "piped", "--file", "-"], b"from a pipe\n");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(expect(at, 0, &["get", "piped"]), b"from a pipe\n");
        expect(
            at,
            2,
            &[
                "set",
                "key",
                "--file",
                directory.path().join("missing").to_str().unwrap(),
            ],
        );
        expect(
            at,
            2,
            &["set", "key", "value", "--file", file.to_str().unwrap()],
        );
        expect(at, 2, &["set", "key"]);
    });
}

#[test]
fn conditions_and_absent_keys_are_exit_code_1() {
    with_server(async |server| {
        let at = &server.address().to_string();
        let client = server.client().await;
        expect(at, 0, &["set", "key", "1", "--if-absent"]);
        expect(at, 1, &["set", "key", "2", "--if-absent"]);
        let version = client.get(b"key").await.unwrap().unwrap().version;
        expect(
            at,
            1,
            &[
                "set",
                "key",
                "2",
                "--if-version",
                &(version + 1).to_string(),
            ],
        );
        assert_eq!(client.get(b"key").await.unwrap().unwrap().value, b"1");
        expect(
            at,
            0,
            &["set", "key", "2", "--if-version", &version.to_string()],
        );
        expect(
            at,
            1,
            &["delete", "key", "--if-version", &version.to_string()],
        );
        let version = client.get(b"key").await.unwrap().unwrap().version;
        expect(
            at,
            0,
            &["delete", "key", "--if-version", &version.to_string()],
        );
        expect(at, 1, &["delete", "key"]);
        expect(at, 1, &["get", "key"]);
    });
}

#[test]
fn a_prefix_is_listed_in_plain_lines() {
    with_server(async |server| {
        let at = &server.address().to_string();
        for i in 0..40 {
            expect(
                at,
                0,
                &["set", &format!("list/{i:02}"), &format!("value {i}")],
            );
        }
        let keys: Vec<String> = (0..40).map(|i| format!("list/{i:02}")).collect();
        let listed = String::from_utf8(expect(at, 0, &["prefix", "list/", "--keys-only"])).unwrap();
        assert_eq!(listed.lines().collect::<Vec<_>>(), keys);
        let listed = String::from_utf8(expect(
            at,
            0,
            &["prefix", "list/", "--keys-only", "--limit", "7"],
        ))
        .unwrap();
        assert_eq!(listed.lines().collect::<Vec<_>>(), keys[..7]);
        let listed = String::from_utf8(expect(at, 0, &["prefix", "list/3"])).unwrap();
        assert_eq!(listed.lines().count(), 10);
        assert!(listed.lines().zip(30..).all(|(line, i)| {
            line.contains(&format!("list/{i}")) && line.contains(&format!("value {i}"))
        }));
        assert!(
            !listed.contains('\u{1b}'),
            "no colours where nobody looks: {listed:?}"
        );
        assert_eq!(expect(at, 0, &["prefix", "nothing"]), b"");
    });
}

#[test]
fn stat_is_for_people_and_for_programs() {
    with_server(async |server| {
        let at = &server.address().to_string();
        expect(at, 0, &["set", "key", "value"]);
        expect(at, 0, &["get", "key"]);
        let stat: serde_json::Value =
            serde_json::from_slice(&expect(at, 0, &["stat", "--json"])).unwrap();
        let number = |name: &str| {
            stat[name]
                .as_u64()
                .unwrap_or_else(|| panic!("no {name} in {stat}"))
        };
        assert_eq!((number("sets"), number("gets"), number("keys")), (1, 1, 1));
        assert_eq!(stat["shards"].as_array().map(Vec::len), Some(2), "{stat}");
        assert!(number("started_at_unix_ms") > 1_600_000_000_000);
        let plain = String::from_utf8(expect(at, 0, &["stat"])).unwrap();
        assert!(
            plain.contains(env!("CARGO_PKG_VERSION")) && !plain.contains('\u{1b}'),
            "{plain}"
        );
    });
}

#[test]
fn a_unix_socket_serves_the_tool_and_the_environment_names_the_server() {
    run(async |scratch| {
        let sockets = short_directory();
        let path = sockets.path().join("socket");
        let server = Server::start(
            &scratch.data(),
            &Flags::small().with("--unix", path.display()),
        )
        .await;
        let at = format!("unix:{}", path.display());
        expect(&at, 0, &["set", "key", "value"]);
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
        let output = command
            .args(["get", "key"])
            .env("ORLOP_SERVER", &at)
            .output()
            .unwrap();
        assert_eq!(
            (output.status.code(), &output.stdout[..]),
            (Some(0), &b"value"[..]),
            "{output:?}"
        );
        server.stop().await;
        expect(&at, 4, &["get", "key"]);
    });
}

#[test]
fn errors_have_the_documented_exit_codes() {
    with_server(async |server| {
        let at = &server.address().to_string();
        // 3: the server answered an error.
        expect(at, 3, &["set", "key", &"v".repeat((64 << 10) + 1)]);
        // 2: wrong usage.
        expect(at, 2, &[]);
        expect(at, 2, &["frobnicate"]);
        expect(at, 2, &["get"]);
        expect(at, 2, &["get", ""]);
        expect(at, 2, &["set", "key", "value", "--if-version", "x"]);
        expect("no port here", 2, &["ping"]);
    });
    // 4: nobody there, and somebody there who is not orlopd.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    expect(&free.to_string(), 4, &["ping"]);
    expect("unix:/nonexistent/socket", 4, &["ping"]);
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let web_server = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        // The peer may be gone before it is told.
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
    });
    let output = orlop(&address.to_string(), &["ping"]);
    assert!(matches!(output.status.code(), Some(3 | 4)), "{output:?}");
    web_server.join().unwrap();
}

#[test]
fn completions_and_manual_pages_can_be_made() {
    for binary in [env!("CARGO_BIN_EXE_orlop"), env!("CARGO_BIN_EXE_orlopd")] {
        let name = Path::new(binary).file_name().unwrap().to_str().unwrap();
        for shell in ["bash", "zsh", "fish"] {
            let output = Command::new(binary)
                .args(["completions", shell])
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{name} completions {shell}: {output:?}"
            );
            assert!(String::from_utf8_lossy(&output.stdout).contains(name));
        }
        let output = Command::new(binary).arg("man").output().unwrap();
        assert!(output.status.success(), "{name} man: {output:?}");
        assert!(
            output.stdout.starts_with(b".ie") || output.stdout.windows(3).any(|w| w == b".TH"),
            "{name} man"
        );
    }
}

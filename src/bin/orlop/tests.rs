//! The command line, from the arguments to the lines and exit codes, against a small server over a unix socket.

#[path = "../../client/tests/fake.rs"]
mod fake;

/// What the fake server is made of.
mod library {
    pub(super) use orlop::{limits, proto, wire};
}

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use orlop::client::tokio::Compat;
use orlop::proto::ErrorWord;
use tokio::net::UnixListener;
use tokio::task::{LocalSet, spawn_local};

use crate::arguments::{Arguments, Command, Key};
use crate::commands::{self, Answer, Failure};
use crate::show::Style;
use fake::{Fake, Part};

fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(["orlop"].iter().chain(words))
}

/// A server on a socket in a directory of its own.
struct Setup {
    fake: Rc<Fake>,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

impl Setup {
    fn run(test: impl AsyncFnOnce(Self)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("socket");
            let listener = UnixListener::bind(&socket).unwrap();
            let fake = Rc::new(Fake::default());
            let served = Rc::clone(&fake);
            spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (reader, writer) = stream.into_split();
                    spawn_local(fake::serve(
                        &served,
                        Compat::new(reader),
                        Compat::new(writer),
                    ));
                }
            });
            test(Self {
                fake,
                socket,
                directory,
            })
            .await;
        });
    }

    /// Runs a command; what it wrote and how it ended.
    async fn orlop_styled(
        &self,
        human: bool,
        words: &[&str],
    ) -> (Vec<u8>, Result<Answer, Failure>) {
        let server = format!("unix:{}", self.socket.display());
        let arguments = parse(&[&["--server", &server], words].concat()).unwrap();
        let Command::Server(command) = arguments.command else {
            panic!("no command of the server: {words:?}")
        };
        let mut output = Vec::new();
        let end = commands::run(&arguments.connection, command, Style { human }, &mut output).await;
        (output, end)
    }

    async fn orlop(&self, words: &[&str]) -> (String, Result<Answer, Failure>) {
        let (output, end) = self.orlop_styled(false, words).await;
        (String::from_utf8(output).unwrap(), end)
    }

    /// A command that must succeed: its output.
    async fn done(&self, words: &[&str]) -> String {
        let (output, end) = self.orlop(words).await;
        assert_eq!(end.unwrap(), Answer::Done, "{words:?}");
        output
    }

    /// A command that must be answered with no.
    async fn refused(&self, words: &[&str]) {
        let (output, end) = self.orlop(words).await;
        assert_eq!(
            (output.as_str(), end.unwrap()),
            ("", Answer::No),
            "{words:?}"
        );
    }

    /// A command that must fail: its exit code and message.
    async fn failure(&self, words: &[&str]) -> (u8, String) {
        let failure = self.orlop(words).await.1.unwrap_err();
        (failure.code(), failure.to_string())
    }

    fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.fake
            .map
            .borrow()
            .get(key)
            .map(|(value, _)| value.clone())
    }
}

#[test]
fn the_command_line_is_sound() {
    Arguments::command().debug_assert();
    let help = Arguments::command().render_long_help().to_string();
    for promise in [
        "Exit codes:",
        "  4  no connection",
        "[env: ORLOP_SERVER=",
        "unix:PATH",
        "hex:00ff",
    ] {
        assert!(help.contains(promise), "{promise} in:\n{help}");
    }
}

#[test]
fn wrong_usage_is_refused() {
    let cases: [&[&str]; 15] = [
        &[],
        &["get"],
        &["get", ""],
        &["get", "hex:0"],
        &["get", "hex:0g"],
        &["set", "k"],
        &["set", "k", "v", "--file", "f"],
        &["set", "k", "v", "--if-absent", "--if-version", "1"],
        &["set", "k", "v", "--if-version", "x"],
        &["prefix", "p", "--limit", "-1"],
        &["ping", "--server", "nowhere"],
        &["ping", "--timeout", "0"],
        &["ping", "--timeout", "soon"],
        &["completions", "no-shell"],
        &["delete", "k", "--if-absent"],
    ];
    for words in cases {
        let error = parse(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{words:?}: {error}");
    }
    assert_eq!(
        parse(&["--help"]).unwrap_err().kind(),
        ErrorKind::DisplayHelp
    );
    let advice = parse(&["get", "hex:0"]).unwrap_err().to_string();
    assert!(
        advice.contains("a key that really starts with hex: is written as hex:6865783a"),
        "{advice}"
    );
}

#[test]
fn keys_are_bytes() {
    let key = |text: &[u8]| Key::parse(OsStr::from_bytes(text)).unwrap().0;
    assert_eq!(key(b"plain"), b"plain");
    assert_eq!(key(b"hex:00Ff"), [0, 255]);
    assert_eq!(key(b"hex:6865783a31"), b"hex:1");
    assert_eq!(key(b"hex:"), b"");
    assert_eq!(key(b"\xff\xfe"), [255, 254], "not every argument is UTF-8");
    assert_eq!(key(b"HEX:zz"), b"HEX:zz");
}

#[test]
fn set_get_delete() {
    Setup::run(async |setup| {
        assert_eq!(setup.done(&["set", "k", "value"]).await, "version\t1\n");
        assert_eq!(setup.done(&["get", "k"]).await, "value");
        let (shown, _) = setup.orlop_styled(true, &["get", "k"]).await;
        assert_eq!(shown, b"value\n", "the prompt gets a line of its own");
        let (shown, _) = setup.orlop_styled(true, &["set", "k", "-1"]).await;
        assert_eq!(shown, b"replaced, version 2\n");
        assert_eq!(setup.done(&["delete", "k"]).await, "version\t3\n");
        setup.refused(&["delete", "k"]).await;
        setup.refused(&["get", "k"]).await;
        setup.done(&["set", "hex:00ff", ""]).await;
        assert_eq!(setup.value(&[0, 255]).unwrap(), b"");
    });
}

#[test]
fn conditions() {
    Setup::run(async |setup| {
        setup.refused(&["set", "k", "v", "--if-present"]).await;
        setup.refused(&["set", "k", "v", "--if-version", "1"]).await;
        setup.done(&["set", "k", "v", "--if-absent"]).await;
        setup.refused(&["set", "k", "v", "--if-absent"]).await;
        setup.done(&["set", "k", "w", "--if-version", "1"]).await;
        setup.refused(&["delete", "k", "--if-version", "1"]).await;
        assert_eq!(setup.value(b"k").unwrap(), b"w");
        setup.done(&["delete", "k", "--if-version", "2"]).await;
        assert_eq!(setup.value(b"k"), None);
    });
}

#[test]
fn values_from_files() {
    Setup::run(async |setup| {
        let path = setup.directory.path().join("value");
        let bytes: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
        std::fs::write(&path, &bytes).unwrap();
        setup
            .done(&["set", "k", "--file", path.to_str().unwrap()])
            .await;
        assert!(setup.value(b"k").unwrap() == bytes);
        let (output, _) = setup.orlop_styled(false, &["get", "k"]).await;
        assert!(output == bytes, "byte for byte");

        let missing = setup
            .failure(&["set", "k", "--file", "/nowhere/value"])
            .await;
        assert_eq!(missing.0, 2);
        assert!(
            missing.1.starts_with("cannot read /nowhere/value: "),
            "{}",
            missing.1
        );
        // A file without end is not read to its end.
        let endless = setup.failure(&["set", "k", "--file", "/dev/zero"]).await;
        assert_eq!(
            endless,
            (
                2,
                "/dev/zero has more than 33554432 bytes, the limit of a value".to_string()
            )
        );
    });
}

#[test]
fn prefixes() {
    Setup::run(async |setup| {
        for number in 0..2_500 {
            let key = format!("p/{number:04}").into_bytes();
            setup.fake.map.borrow_mut().insert(key, (b"v".to_vec(), 7));
        }
        setup
            .fake
            .map
            .borrow_mut()
            .insert(vec![0xff], (vec![0, 1], 8));
        let calls = setup.fake.calls.get();
        let all = setup.done(&["prefix", ""]).await;
        assert_eq!(all.lines().count(), 2_501);
        assert_eq!(setup.fake.calls.get() - calls, 3, "page by page");
        assert_eq!(all.lines().next(), Some("p/0000\t7\tv"));
        assert_eq!(all.lines().last(), Some("hex:ff\t8\thex:0001"));
        let keys = setup
            .done(&["prefix", "p/", "--keys-only", "--limit", "1500"])
            .await;
        assert_eq!(
            (keys.lines().count(), keys.lines().last()),
            (1_500, Some("p/1499"))
        );
        assert_eq!(setup.done(&["prefix", "p/", "--limit", "0"]).await, "");
        assert_eq!(
            setup.done(&["prefix", "hex:ff", "--keys-only"]).await,
            "hex:ff\n"
        );
        let (shown, _) = setup.orlop_styled(true, &["prefix", "p/0000"]).await;
        assert_eq!(
            String::from_utf8(shown).unwrap(),
            "p/0000  (version 7, 1 B)  v\n"
        );
    });
}

#[test]
fn ping_and_stat() {
    Setup::run(async |setup| {
        let lines = setup.done(&["ping"]).await;
        assert!(
            lines.starts_with("server_version\t1.2.3\nshard_count\t2\nround_trip_us\t"),
            "{lines}"
        );
        let (shown, _) = setup.orlop_styled(true, &["ping"]).await;
        let shown = String::from_utf8(shown).unwrap();
        assert!(
            shown.starts_with("unix:/") && shown.ends_with(": orlop 1.2.3, 2 shards\n"),
            "{shown}"
        );
        let json: serde_json::Value =
            serde_json::from_str(&setup.done(&["stat", "--json"]).await).unwrap();
        assert_eq!(json["connections"], 3);
        assert!(
            setup
                .done(&["stat"])
                .await
                .contains("shard.1.commit_p99_us\t170\n")
        );
    });
}

#[test]
fn an_error_of_the_server_is_three() {
    Setup::run(async |setup| {
        *setup.fake.error.borrow_mut() = Some(ErrorWord::OutOfSpace.error("0 bytes are free"));
        let failure = setup.failure(&["set", "k", "v"]).await;
        assert_eq!(
            failure,
            (
                3,
                "the server is out of space: 0 bytes are free".to_string()
            )
        );
        assert_eq!(setup.failure(&["stat"]).await.0, 3);
    });
}

#[test]
fn no_connection_is_four() {
    Setup::run(async |mut setup| {
        setup.fake.silent.set(true);
        let silent = setup.failure(&["get", "k", "--timeout", "0.05"]).await;
        assert_eq!(silent.0, 4);
        assert!(
            silent.1.ends_with("within 0.05 s (--timeout)"),
            "{}",
            silent.1
        );
        setup.socket.set_file_name("nobody");
        let refused = setup.failure(&["ping"]).await;
        assert_eq!(refused.0, 4);
        assert!(
            refused.1.starts_with("cannot connect to unix:/"),
            "{}",
            refused.1
        );
    });
}

#[test]
fn a_backup_is_written_whole_or_not_at_all() {
    Setup::run(async |setup| {
        let target = setup.directory.path().join("copy");
        let words = ["backup", target.to_str().unwrap(), "--json"];
        let left = || std::fs::read_dir(setup.directory.path()).unwrap().count();
        let parts = vec![
            Part::Begin(2, 8),
            Part::File("segment-0.log", 5, 9000),
            Part::Chunk(b"abcde"),
            Part::File("manifest", 3, 3),
            Part::Chunk(b"man"),
        ];
        // All but the last part, a name that is a path, and no part at all.
        *setup.fake.copy.borrow_mut() = parts[..4].to_vec();
        assert_eq!(setup.failure(&words).await.0, 3);
        *setup.fake.copy.borrow_mut() = vec![parts[0].clone(), Part::File("../x", 8, 8)];
        let (code, said) = setup.failure(&words).await;
        assert_eq!(code, 3);
        assert!(said.contains("\"../x\""), "{said}");
        setup.fake.silent.set(true);
        let impatient = [&words[..], &["--timeout", "0.2"]].concat();
        assert_eq!(setup.failure(&impatient).await.0, 4);
        setup.fake.silent.set(false);
        assert_eq!(left(), 1, "only the socket");

        *setup.fake.copy.borrow_mut() = parts;
        let said = setup.done(&words).await;
        let result: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&result["files"], &result["bytes"]), (&2.into(), &8.into()));
        let file = std::fs::read(target.join("segment-0.log")).unwrap();
        assert_eq!(file.len(), 9000, "zeros up to the full length");
        assert!(file.starts_with(b"abcde\0"));
        assert_eq!(std::fs::read(target.join("manifest")).unwrap(), b"man");
        assert_eq!(left(), 2);

        // Without the zeros, as a stream.
        let tar = setup.directory.path().join("copy.tar");
        let line = setup.done(&["backup", tar.to_str().unwrap()]).await;
        assert!(
            line.ends_with("files\t2\tbytes\t8\tlast_versions\t\n"),
            "{line}"
        );
        let mut archive = tar::Archive::new(std::fs::File::open(&tar).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().into_owned(), entry.size())
        });
        let expected = [("segment-0.log", 5), ("manifest", 3)];
        let expected = expected.map(|(name, bytes)| (PathBuf::from(name), bytes));
        assert_eq!(entries.collect::<Vec<_>>(), expected);
        assert_eq!(setup.failure(&words).await.0, 2, "it is there already");
    });
}

#[test]
fn completions_and_the_manual_are_made() {
    let made = |words: &[&str]| {
        let mut output = Vec::new();
        let end = crate::run(parse(words).unwrap(), Style { human: false }, &mut output);
        assert_eq!(end.unwrap(), Answer::Done);
        String::from_utf8(output).unwrap()
    };
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            made(&["completions", shell]).contains("keys-only"),
            "{shell}"
        );
    }
    let manual = made(&["man"]);
    assert!(
        manual.contains(".TH orlop") && manual.contains("Exit codes:"),
        "{manual}"
    );
}

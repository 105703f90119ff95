//! Foreign clients against the real server: Python's `pycapnp`, C++ with Debian's `libcapnp`, JavaScript with `capnp-es`.
//!
//! Of each language there is an example for users, `scripts/examples/client.*`, whose head says how to build and run it,
//! and a program of checks, `tests/clients/checks.*`, built in the same way. The first run follows the steps of the heads
//! in a directory beside the build's files. Where that is impossible the tests say SKIPPED, and with `CI=true` that is a
//! failure.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Flags, Server, run, skip};

/// The address in the steps of every example.
const ADDRESS: &str = "127.0.0.1:6000";

/// What every example prints.
const PRINTED: &str = "\
greeting: hello
no such key: absent
only if absent: refused
under item/: 100 keys, item/00 to item/99
4 MiB: the same
empty key: invalidArgument
";

/// A language, and where its programs are made.
struct Language {
    name: &'static str,
    /// What the name of a program of it ends with.
    ending: &'static str,
    /// What the lines of the head begin with.
    comment: &'static str,
    /// Files that go into what the steps make: it is made anew when one has changed.
    made_from: &'static [&'static str],
    made: Mutex<Option<Result<Steps, String>>>,
}

static PYTHON: Language = Language {
    name: "python",
    ending: "py",
    comment: "",
    made_from: &[],
    made: Mutex::new(None),
};

static CPP: Language = Language {
    name: "cpp",
    ending: "cpp",
    comment: "// ",
    made_from: &[
        "schema/orlop.capnp",
        "scripts/examples/client.cpp",
        "tests/clients/checks.cpp",
    ],
    made: Mutex::new(None),
};

static JAVASCRIPT: Language = Language {
    name: "javascript",
    ending: "mjs",
    comment: "// ",
    made_from: &[
        "schema/orlop.cgr",
        "scripts/examples/package.json",
        "scripts/examples/package-lock.json",
    ],
    made: Mutex::new(None),
};

/// The commands in the head of an example.
#[derive(Clone)]
struct Steps {
    build: Vec<String>,
    run: String,
}

impl Language {
    /// A directory with the schema, the examples and the checks, laid out like the project.
    fn home(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("client-{}", self.name))
    }

    /// Makes the programs, once; the error is why there are none.
    fn made(&self) -> Result<Steps, String> {
        let mut made = self.made.lock().unwrap();
        made.get_or_insert_with(|| self.make()).clone()
    }

    fn make(&self) -> Result<Steps, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let home = self.home();
        let steps = self.steps();
        let script = steps.build_script();
        let mut wanted = script.clone().into_bytes();
        for file in self.made_from {
            wanted.extend(std::fs::read(root.join(file)).unwrap());
        }
        let stamp = home.join("made");
        let is_made = std::fs::read(&stamp).is_ok_and(|found| found == wanted);
        if !is_made && home.exists() {
            std::fs::remove_dir_all(&home).unwrap();
        }
        for (from, to) in [
            ("schema", "schema"),
            ("scripts/examples", "scripts/examples"),
            ("tests/clients", "scripts/examples"),
        ] {
            copy_files(&root.join(from), &home.join(to));
        }
        if !is_made {
            run_build(&script, &home)?;
            std::fs::write(&stamp, wanted).unwrap();
        }
        Ok(steps)
    }

    /// The indented lines of the example's head; one that ends with `\` goes on in the next.
    fn steps(&self) -> Steps {
        let file = format!("scripts/examples/client.{}", self.ending);
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file));
        let text = text.unwrap();
        let head = text.lines().take_while(|line| {
            line.starts_with(self.comment.trim_end()) && !line.starts_with("import ")
        });
        let mut build: Vec<String> = Vec::new();
        let mut goes_on = false;
        for line in head.filter_map(|line| line.strip_prefix(self.comment)?.strip_prefix("    ")) {
            let (line, continues) = match line.strip_suffix('\\') {
                Some(line) => (line, true),
                None => (line, false),
            };
            match build.last_mut() {
                Some(last) if goes_on => last.push_str(line.trim_start()),
                _ => build.push(line.to_owned()),
            }
            goes_on = continues;
        }
        let run = build.pop().expect("the head says how to run it");
        assert!(run.contains(ADDRESS), "{file}: {run}");
        Steps { build, run }
    }

    /// Runs the example or the checks against an address, for at most a minute.
    async fn run(&self, steps: &Steps, program: &str, address: SocketAddr, more: &str) -> Output {
        let line = steps.run.replace(ADDRESS, &address.to_string());
        let line = format!("exec {} {more}", line.replace("client", program));
        let home = self.home();
        let arguments = ["-ec".as_ref(), line.as_ref()];
        run_program(Path::new("sh"), &arguments, &home).await
    }

    /// Runs checks against an address and demands that all hold.
    async fn check(&self, steps: &Steps, checks: &[&str], address: SocketAddr) {
        let output = self.run(steps, "checks", address, &checks.join(" ")).await;
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{}: {stdout}\n{stderr}", self.name);
        let all: String = checks.iter().map(|check| format!("ok {check}\n")).collect();
        assert_eq!(stdout, all, "{}: {stderr}", self.name);
    }
}

impl Steps {
    /// The steps as one script. A last step that makes the example makes the checks as well, at the same time.
    fn build_script(&self) -> String {
        let mut lines = self.build.clone();
        if let Some(last) = lines.pop_if(|last| last.contains("client")) {
            lines.push(format!("{last} &"));
            lines.push(last.replace("client", "checks"));
            lines.push("wait $!".to_owned());
        }
        lines.join("\n")
    }
}

/// Copies the files of a directory, not what is below it.
fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Runs a script that builds; the error is the last line of what it said.
fn run_build(script: &str, home: &Path) -> Result<(), String> {
    let output = Command::new("timeout")
        .args(["300", "sh", "-ec", script])
        .current_dir(home)
        .output();
    match output {
        Err(error) => Err(format!("timeout: {error}")),
        Ok(output) if !output.status.success() => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            let last = said.trim().lines().last().unwrap_or_default();
            Err(format!("{}: {last}", home.display()))
        }
        Ok(_) => Ok(()),
    }
}

/// Python with `pycapnp`; the error is why there is none.
pub(crate) fn python() -> Result<PathBuf, String> {
    let steps = PYTHON.made()?;
    let words: Vec<&str> = steps.run.split(' ').collect();
    Ok(PYTHON.home().join(words[0]))
}

/// Runs a program in a directory, for at most a minute, off the runtime's thread: proxies run on that.
pub(crate) async fn run_program(program: &Path, arguments: &[&OsStr], directory: &Path) -> Output {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).args(arguments);
    command.current_dir(directory);
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

/// Every method, condition, kind of answer and size, answered by the fast path and without it.
fn does_everything(language: &Language) {
    let steps = match language.made() {
        Ok(steps) => steps,
        Err(reason) => return skip(&reason),
    };
    for fast_path in [true, false] {
        run(async |scratch| {
            let flags = Flags::large().fast_path(fast_path);
            let server = Server::start(&scratch.data(), &flags).await;
            let checks = [
                "operations",
                "batches",
                "listing",
                "numbers",
                "in_flight",
                "errors",
                "large_value",
            ];
            language.check(&steps, &checks, server.address()).await;
            server.stop().await;
        });
    }
}

#[test]
fn a_python_program_does_everything_the_schema_says() {
    does_everything(&PYTHON);
}

#[test]
fn a_cpp_program_does_everything_the_schema_says() {
    does_everything(&CPP);
}

#[test]
fn a_javascript_program_does_everything_the_schema_says() {
    does_everything(&JAVASCRIPT);
}

/// The example runs by the steps at its head, also on a store where it has run before.
fn prints_what_it_promises(language: &Language) {
    let steps = match language.made() {
        Ok(steps) => steps,
        Err(reason) => return skip(&reason),
    };
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::large()).await;
        for _ in 0..2 {
            let output = language.run(&steps, "client", server.address(), "").await;
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{stderr}");
            assert_eq!(String::from_utf8_lossy(&output.stdout), PRINTED, "{stderr}");
        }
        server.stop().await;
    });
}

#[test]
fn the_python_example_prints_what_it_promises() {
    prints_what_it_promises(&PYTHON);
}

#[test]
fn the_cpp_example_prints_what_it_promises() {
    prints_what_it_promises(&CPP);
}

#[test]
fn the_javascript_example_prints_what_it_promises() {
    prints_what_it_promises(&JAVASCRIPT);
}

/// Two checks through a proxy. `open().store.get(key)` is one round trip: the get leaves before the answer to open has
/// come. And when the connection ends before the answer, the call ends too.
fn pipelines_and_sees_the_end(language: &Language) {
    const KEY: &[u8] = b"the pipelined key";
    let steps = match language.made() {
        Ok(steps) => steps,
        Err(reason) => return skip(&reason),
    };
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        client.set(KEY, b"got in one round trip").await.unwrap();
        let address = server.address();
        for check in ["pipelining", "ended"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let proxy = listener.local_addr().unwrap();
            let proxied = tokio::task::spawn_local(async move {
                let (mut client, mut server) = forward_until(listener, address, KEY).await;
                if check == "pipelining" {
                    // From here on nothing is held; the connection ends when either side ends it.
                    tokio::io::copy_bidirectional(&mut client, &mut server)
                        .await
                        .ok();
                }
            });
            language.check(&steps, &[check], proxy).await;
            proxied.await.unwrap();
        }
        server.stop().await;
    });
}

#[test]
fn a_python_program_pipelines_open_and_get_in_one_round_trip() {
    pipelines_and_sees_the_end(&PYTHON);
}

#[test]
fn a_cpp_program_pipelines_open_and_get_in_one_round_trip() {
    pipelines_and_sees_the_end(&CPP);
}

#[test]
fn a_javascript_program_pipelines_open_and_get_in_one_round_trip() {
    pipelines_and_sees_the_end(&JAVASCRIPT);
}

/// Forwards one connection up to `word` on its way to the server, and nothing from the server.
async fn forward_until(
    listener: TcpListener,
    server: SocketAddr,
    word: &'static [u8],
) -> (TcpStream, TcpStream) {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut server = TcpStream::connect(server).await.unwrap();
    let mut asked = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while !asked.windows(word.len()).any(|window| window == word) {
        let len = client.read(&mut buffer).await.unwrap();
        assert!(len > 0, "the client left before it asked");
        asked.extend_from_slice(&buffer[..len]);
        server.write_all(&buffer[..len]).await.unwrap();
    }
    (client, server)
}

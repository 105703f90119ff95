//! A foreign client: Python's `pycapnp`, installed from its package index, against the real server.
//!
//! The first run makes a virtual environment beside the build's files. Where that is impossible the tests say SKIPPED,
//! and with `CI=true` that is a failure. The Python side is `tests/python/client.py`.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Flags, Server, run, skip};

const PACKAGE: &str = "pycapnp==2.2.*";

/// Python with the package, made once; the error is why there is none.
pub(crate) fn python() -> Result<PathBuf, String> {
    static MADE: Mutex<Option<Result<PathBuf, String>>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap();
    made.get_or_insert_with(make_environment).clone()
}

fn make_environment() -> Result<PathBuf, String> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-venv");
    let python = home.join("bin").join("python");
    let has_package = |python: &Path| {
        let output = Command::new(python)
            .args(["-c", "import capnp; print(capnp.__version__)"])
            .output();
        output.is_ok_and(|output| output.status.success() && output.stdout.starts_with(b"2.2."))
    };
    if has_package(&python) {
        return Ok(python);
    }
    let step = |what: &str, command: &mut Command| match command.output() {
        Err(error) => Err(format!("{what}: {error}")),
        Ok(output) if !output.status.success() => {
            let said = [output.stdout, output.stderr].concat();
            let last = String::from_utf8_lossy(&said)
                .trim()
                .lines()
                .last()
                .unwrap_or_default()
                .to_owned();
            Err(format!("{what}: {last}"))
        }
        Ok(_) => Ok(()),
    };
    step(
        "python3 -m venv",
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&home),
    )?;
    step(
        "pip install",
        Command::new(&python).args(["-m", "pip", "install", "--quiet", PACKAGE]),
    )?;
    if has_package(&python) {
        Ok(python)
    } else {
        Err("the package does not load".to_owned())
    }
}

/// Runs Python, for at most a minute, off the runtime's thread: proxies run on that.
pub(crate) async fn run_program(python: &Path, arguments: &[&OsStr]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("60").arg(python).args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

/// Runs one check of the Python program against an address.
async fn run_check(python: &Path, check: &str, address: SocketAddr) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (program, schema) = (
        root.join("tests/python/client.py"),
        root.join("schema/orlop.capnp"),
    );
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    run_program(
        python,
        &[
            program.as_ref(),
            check.as_ref(),
            schema.as_ref(),
            host.as_ref(),
            port.as_ref(),
        ],
    )
    .await
}

#[track_caller]
fn expect_ok(check: &str, output: &Output) {
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{check}: {stdout}\n{stderr}");
    assert_eq!(stdout.trim(), format!("ok {check}"), "{stderr}");
}

#[test]
fn a_python_program_does_everything_the_schema_says() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return skip(&reason),
    };
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::large()).await;
        for check in [
            "operations",
            "batches",
            "listing",
            "numbers",
            "errors",
            "large_value",
        ] {
            expect_ok(check, &run_check(&python, check, server.address()).await);
        }
        server.stop().await;
    });
}

/// `open().store.get(key)` is one round trip: the get leaves before the answer to open has come.
#[test]
fn a_python_program_pipelines_open_and_get_in_one_round_trip() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return skip(&reason),
    };
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        client
            .set(b"the pipelined key", b"got in one round trip")
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let held_back = tokio::task::spawn_local(hold_answers_until(
            listener,
            server.address(),
            b"the pipelined key",
        ));
        expect_ok("pipelining", &run_check(&python, "pipelining", proxy).await);
        held_back.await.unwrap();
        server.stop().await;
    });
}

/// Forwards one connection, but nothing from the server before `word` has passed on its way to it.
async fn hold_answers_until(listener: TcpListener, server: SocketAddr, word: &'static [u8]) {
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
    // From here on nothing is held; the connection ends when either side ends it.
    tokio::io::copy_bidirectional(&mut client, &mut server)
        .await
        .ok();
}

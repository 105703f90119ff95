//! Runs the real `orlopd` for the tests: starts it on port 0, waits for its ready line, kills it, stops it, restarts it.
//!
//! Guarantees: every wait has an end, so no test hangs; nothing sleeps, a test waits for a line, a reply or an exit; a
//! server dies with the test that started it; a test's directory is removed when it passes and kept, with its path
//! printed, when it fails. [`with_server`] also proves at the end of each test that the server was not harmed.
//! Does not: speak to the server (the tests do, with `orlop::client`, the tool `orlop`, or bytes made by hand).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::{mpsc as events, oneshot};
use futures::future::{FutureExt, Shared};
use orlop::client::tokio::{Address, connect};
use orlop::client::{Client, PrefixQuery};

/// How long one test may take when it does not say otherwise.
const TEST_SECONDS_MAX: u64 = 90;

/// How long a server may take to say that it is ready, or to end after it was told to.
const SERVER_WAIT: Duration = Duration::from_secs(40);

/// A test that measures time takes this alone; all others share it.
static QUIET: RwLock<()> = RwLock::new(());

/// Runs a test on a runtime of its own, with a directory of its own and a time limit.
pub(crate) fn run(test: impl AsyncFnOnce(&Scratch)) {
    run_for(TEST_SECONDS_MAX, test);
}

/// As [`run`], for a test that may take up to `seconds`.
pub(crate) fn run_for(seconds: u64, test: impl AsyncFnOnce(&Scratch)) {
    let _shared = QUIET.read().unwrap_or_else(PoisonError::into_inner);
    drive(seconds, test);
}

/// As [`run_for`], for a test that waits and does nothing: also beside those that run alone, which would wait for it.
pub(crate) fn run_idle(seconds: u64, test: impl AsyncFnOnce(&Scratch)) {
    drive(seconds, test);
}

/// As [`run_for`], while no other test runs: for tests that look at a clock.
pub(crate) fn run_alone(seconds: u64, test: impl AsyncFnOnce(&Scratch)) {
    let _alone = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    drive(seconds, test);
}

fn drive(seconds: u64, test: impl AsyncFnOnce(&Scratch)) {
    let limit = Duration::from_secs(seconds);
    let _watchdog = Watchdog::start(limit + Duration::from_secs(15));
    let scratch = Scratch::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let tasks = tokio::task::LocalSet::new();
    let outcome = tasks.block_on(&runtime, async {
        tokio::time::timeout(limit, test(&scratch)).await
    });
    assert!(
        outcome.is_ok(),
        "the test took longer than its limit of {seconds} s"
    );
}

/// Ends the whole run if a test blocks its thread beyond its limit, where no timer of its runtime can end it.
struct Watchdog {
    _until_dropped: mpsc::Sender<()>,
}

impl Watchdog {
    fn start(limit: Duration) -> Watchdog {
        let (done, waiting) = mpsc::channel::<()>();
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        std::thread::spawn(move || {
            if waiting.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{test}: blocked for more than {limit:?}; the run ends here");
                std::process::abort();
            }
        });
        Watchdog {
            _until_dropped: done,
        }
    }
}

/// The directory of one test, on the file system of the build directory: the system's own one for temporary files may
/// refuse O_DIRECT.
pub(crate) struct Scratch(Option<tempfile::TempDir>);

impl Scratch {
    fn new() -> Scratch {
        let test = std::thread::current()
            .name()
            .unwrap_or("test")
            .replace("::", "-");
        let directory = tempfile::Builder::new()
            .prefix(&format!("{test}-"))
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        Scratch(Some(directory))
    }

    /// A path in the directory; nothing is made there.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0
            .as_ref()
            .expect("kept until dropped")
            .path()
            .join(name)
    }

    /// Where servers of this test keep their data.
    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(directory) = self.0.take()
        {
            eprintln!("kept: {}", directory.keep().display());
        }
    }
}

/// A directory with a short path, for sockets: their paths end at 107 bytes.
pub(crate) fn short_directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("orlop-").tempdir().unwrap()
}

/// Set in the environment, it turns the fast path of all servers off: the tests run both ways.
pub(crate) const NO_FAST_PATH: &str = "ORLOP_TEST_NO_FAST_PATH";

/// Stands for the absence of `--no-fast-path` among flags that all have a value.
const FAST_PATH: &str = "fast path";

/// The command line of a server, without `--data`.
#[derive(Clone)]
pub(crate) struct Flags(Vec<(String, String)>);

impl Flags {
    /// Two shards with everything small, so that a start takes milliseconds and segments change often.
    pub(crate) fn small() -> Flags {
        Flags(Vec::new())
            .with("--listen", "127.0.0.1:0")
            .with("--shards", "2")
            .with("--segment-size", "1MiB")
            .with("--max-value-size", "64KiB")
            .with("--cache", "8MiB")
    }

    /// Two shards with the server's own sizes, for values of up to 16 MiB.
    pub(crate) fn large() -> Flags {
        Flags(Vec::new())
            .with("--listen", "127.0.0.1:0")
            .with("--shards", "2")
            .with("--cache", "256MiB")
    }

    /// Sets or replaces a flag.
    pub(crate) fn with(mut self, flag: &str, value: impl ToString) -> Flags {
        self.0.retain(|(known, _)| known != flag);
        self.0.push((flag.to_owned(), value.to_string()));
        self
    }

    /// Answers the hot calls by the fast path or not, whatever the run of the tests says.
    pub(crate) fn fast_path(self, on: bool) -> Flags {
        self.with(FAST_PATH, on)
    }

    /// The words of the command line.
    pub(crate) fn arguments(&self) -> Vec<&str> {
        let asked = self.0.iter().find(|(flag, _)| flag == FAST_PATH);
        let slow = match asked {
            Some((_, on)) => on == "false",
            None => std::env::var_os(NO_FAST_PATH).is_some(),
        };
        let words = self.0.iter().filter(|(flag, _)| flag != FAST_PATH);
        words
            .flat_map(|(flag, value)| [flag.as_str(), value])
            .chain(slow.then_some("--no-fast-path"))
            .collect()
    }
}

/// How a process ended.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Exit {
    /// Demands exit code `code` and, on stderr, one line that holds all of `words`, letters' case aside.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!((self.code, self.signal), (Some(code), None), "{self:#?}");
        let said = self
            .stderr
            .lines()
            .map(str::to_lowercase)
            .any(|line| words.iter().all(|word| line.contains(&word.to_lowercase())));
        assert!(said, "no line with all of {words:?}: {self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
    }
}

/// What a process that was started has become.
pub(crate) enum Started {
    Ready(Server),
    Ended(Exit),
    NotYet(Process),
}

/// A server process, ready or not.
pub(crate) struct Process {
    child: Arc<Mutex<Child>>,
    lines: events::UnboundedReceiver<String>,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    status: Shared<oneshot::Receiver<ExitStatus>>,
}

impl Process {
    /// Starts `orlopd` on a directory.
    pub(crate) fn spawn(data: &Path, flags: &Flags) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlopd"));
        command.arg("--data").arg(data).args(flags.arguments());
        Process::spawn_command(command)
    }

    /// Starts a command line that ends in being `orlopd`.
    pub(crate) fn spawn_command(mut command: Command) -> Process {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"ORLOP_") {
                command.env_remove(name);
            }
        }
        die_with_this_thread(&mut command);
        let mut child = command.spawn().unwrap();
        let (line_sender, lines) = events::unbounded();
        let stdout = Arc::new(Mutex::new(String::new()));
        let stderr = Arc::new(Mutex::new(String::new()));
        let out = collect(
            child.stdout.take().expect("piped"),
            stdout.clone(),
            Some(line_sender),
        );
        let err = collect(child.stderr.take().expect("piped"), stderr.clone(), None);
        let child = Arc::new(Mutex::new(child));
        let (status_sender, status) = oneshot::channel();
        let waited = child.clone();
        std::thread::spawn(move || {
            // Both pipes end when the process does. Only then is it reaped, so that a signal never meets a reused id.
            out.join().expect("the collector does not panic");
            err.join().expect("the collector does not panic");
            let status = lock(&waited).wait().expect("a child can be waited for");
            // A test that ended does not want to know.
            status_sender.send(status).ok();
        });
        Process {
            child,
            lines,
            stdout,
            stderr,
            status: status.shared(),
        }
    }

    /// Waits for the ready line; the process's end if it ends instead.
    pub(crate) async fn ready(self) -> Result<Server, Exit> {
        match self.ready_within(SERVER_WAIT).await {
            Started::Ready(server) => Ok(server),
            Started::Ended(exit) => Err(exit),
            Started::NotYet(_) => panic!("no ready line within {SERVER_WAIT:?}"),
        }
    }

    /// Waits for the ready line for at most `patience`.
    pub(crate) async fn ready_within(mut self, patience: Duration) -> Started {
        match tokio::time::timeout(patience, self.lines.next()).await {
            Ok(Some(line)) => {
                let addresses = parse_ready_line(&line);
                Started::Ready(Server {
                    process: self,
                    addresses,
                })
            }
            Ok(None) => Started::Ended(self.exit().await),
            Err(_) => Started::NotYet(self),
        }
    }

    /// Sends SIGKILL and waits for the end.
    pub(crate) async fn kill(self) -> Exit {
        self.signal(libc::SIGKILL);
        self.exit().await
    }

    /// Waits for the end.
    pub(crate) async fn exit(&self) -> Exit {
        let status = tokio::time::timeout(SERVER_WAIT, self.status.clone()).await;
        let Ok(status) = status else {
            panic!(
                "still running after {SERVER_WAIT:?}; stderr:\n{}",
                lock(&self.stderr)
            );
        };
        let status = status.expect("the waiting thread does not panic");
        Exit {
            code: status.code(),
            signal: status.signal(),
            stdout: lock(&self.stdout).clone(),
            stderr: lock(&self.stderr).clone(),
        }
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        lock(&self.child).id()
    }

    /// Sends a signal, unless the process has ended.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let mut child = lock(&self.child);
        if child.try_wait().expect("a child can be asked").is_none() {
            let pid = libc::pid_t::try_from(child.id()).expect("a process id fits");
            // SAFETY: `kill` takes no pointers; the child is not reaped while the lock is held, so the id is its own.
            let result = unsafe { libc::kill(pid, signal) };
            assert_eq!(result, 0, "kill({pid}, {signal})");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        if std::thread::panicking() {
            let stderr = lock(&self.stderr);
            let tail: Vec<&str> = stderr.lines().rev().take(40).collect();
            let mut text = String::new();
            for line in tail.iter().rev() {
                writeln!(text, "  orlopd: {line}").expect("a String takes everything");
            }
            eprintln!("{text}");
        }
    }
}

/// Makes the kernel kill the child when this thread ends, also when the test run is aborted.
fn die_with_this_thread(command: &mut Command) {
    // SAFETY: between fork and exec only `prctl` is called, which is safe there; it takes no pointers here.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

fn collect(
    pipe: impl Read + Send + 'static,
    text: Arc<Mutex<String>>,
    lines: Option<events::UnboundedSender<String>>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut text = lock(&text);
            text.push_str(&line);
            text.push('\n');
            if let Some(lines) = &lines {
                // Nobody listens after the ready line.
                lines.unbounded_send(line).ok();
            }
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parse_ready_line(line: &str) -> Vec<SocketAddr> {
    let addresses = line
        .strip_prefix("ready: ")
        .unwrap_or_else(|| panic!("not a ready line: {line:?}"));
    addresses
        .split(' ')
        .map(|a| a.parse().unwrap_or_else(|_| panic!("{a:?} in {line:?}")))
        .collect()
}

/// A server that serves.
pub(crate) struct Server {
    process: Process,
    addresses: Vec<SocketAddr>,
}

impl Server {
    /// Starts a server and waits until it is ready.
    pub(crate) async fn start(data: &Path, flags: &Flags) -> Server {
        match Process::spawn(data, flags).ready().await {
            Ok(server) => server,
            Err(exit) => panic!("the server did not start: {exit:#?}"),
        }
    }

    /// Starts a server that must refuse to start.
    pub(crate) async fn refused(data: &Path, flags: &Flags) -> Exit {
        match Process::spawn(data, flags).ready().await {
            Ok(server) => panic!("the server started, it should not: {:?}", server.addresses),
            Err(exit) => exit,
        }
    }

    /// The address that all shards share.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The address of each shard, in shard order.
    pub(crate) fn shard_addresses(&self) -> &[SocketAddr] {
        &self.addresses[1..]
    }

    /// A client on the shared address.
    pub(crate) async fn client(&self) -> Client {
        client_of(self.address()).await
    }

    /// The most memory that the process had at one time since it started or since [`Server::forget_peak`], in bytes.
    pub(crate) fn peak_resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        let kib: u64 = line.trim_end_matches("kB").trim().parse().unwrap();
        kib << 10
    }

    /// From now on only what comes counts for the peak.
    pub(crate) fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5").unwrap();
    }

    /// What the server has logged so far.
    pub(crate) fn stderr(&self) -> String {
        lock(&self.process.stderr).clone()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        self.process.signal(signal);
    }

    /// Waits for the end.
    pub(crate) async fn exit(&self) -> Exit {
        self.process.exit().await
    }

    /// Sends SIGKILL and waits for the end.
    pub(crate) async fn kill(self) -> Exit {
        self.process.kill().await
    }

    /// Sends SIGTERM, waits, and demands a clean end: code 0, no panic, one line on stdout.
    pub(crate) async fn stop(self) -> Exit {
        self.signal(libc::SIGTERM);
        let exit = self.exit().await;
        assert_eq!((exit.code, exit.signal), (Some(0), None), "{exit:#?}");
        assert!(!exit.stderr.contains("panicked"), "{exit:#?}");
        assert_eq!(
            exit.stdout.lines().count(),
            1,
            "only the ready line belongs on stdout: {exit:#?}"
        );
        exit
    }
}

/// A client on any address.
pub(crate) async fn client_of(address: SocketAddr) -> Client {
    connect(&Address::Tcp(address.to_string())).await.unwrap()
}

/// Runs a test against one small server, and demands afterwards that the server still answers and stops cleanly.
pub(crate) fn with_server(test: impl AsyncFnOnce(&Server)) {
    with_server_of(Flags::small(), test);
}

/// As [`with_server`], with the given flags.
pub(crate) fn with_server_of(flags: Flags, test: impl AsyncFnOnce(&Server)) {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &flags).await;
        test(&server).await;
        let client = server.client().await;
        let outcome = client.set(b"harness: still alive", b"yes").await;
        assert!(
            outcome.is_ok(),
            "the server does not take a write any more: {outcome:?}"
        );
        server.stop().await;
    });
}

/// Waits until `condition` holds, asking again whenever other tasks have run, for at most `limit`.
pub(crate) async fn until(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::task::yield_now().await;
    }
}

/// What is in a store: the value of each key with its version.
pub(crate) type Content = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

/// Everything that a server holds, page by page.
pub(crate) async fn everything(client: &Client) -> Content {
    let (mut content, mut after) = (Content::new(), Vec::new());
    loop {
        let query = PrefixQuery {
            after: &after,
            ..PrefixQuery::new(b"")
        };
        let page = client.get_prefix(&query).await.unwrap();
        for entry in page.entries {
            after.clone_from(&entry.key);
            content.insert(entry.key, (entry.value, entry.version));
        }
        if !page.more {
            return content;
        }
    }
}

/// Says that a test could not run here. Where `CI=true` nothing may be skipped: it fails instead.
#[track_caller]
pub(crate) fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test}: SKIPPED although CI=true: {reason}"
    );
    report(&format!("*** SKIPPED {test}: {reason}"));
}

/// Prints a line that is seen although the test passes: a figure, or what was not tested.
pub(crate) fn report(line: &str) {
    // Past the capture of libtest, which hides what a passing test prints.
    let line = format!("\n{line}\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("stderr is open");
}

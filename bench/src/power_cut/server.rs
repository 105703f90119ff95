//! An `orlopd` of our own: started on a directory, asked, killed.
//!
//! Guarantees: it is dead and reaped when this is dropped, and dies with this process; a start that hangs ends after
//! `READY_SECONDS_MAX`. What it logs goes to a file, whose end is in the message when the start failed.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use orlop::client::tokio::{Address, connect};
use orlop::client::{Client, PrefixQuery};

use super::history::Stored;
use crate::load::Failure;

const READY_SECONDS_MAX: u64 = 60;
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(20);
const UNMOUNT_PAUSE: Duration = Duration::from_millis(5);

/// Two shards with everything small: segments change often, and a start takes milliseconds.
const FLAGS: [&str; 12] = [
    "--listen",
    "127.0.0.1:0",
    "--shards",
    "2",
    "--segment-size",
    "1MiB",
    "--max-value-size",
    "64KiB",
    "--cache",
    "8MiB",
    "--log",
    "info",
];

pub(crate) struct Server {
    child: Child,
    address: Address,
}

impl Server {
    /// Starts it and waits for its ready line.
    pub(crate) fn start(orlopd: &Path, data: &Path, log: &Path) -> Result<Server, String> {
        let cannot = |error| format!("cannot start {}: {error}", orlopd.display());
        let stderr = std::fs::File::create(log).map_err(cannot)?;
        let mut command = Command::new(orlopd);
        command.arg("--data").arg(data).args(FLAGS);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        // SAFETY: between fork and exec only `prctl` is called, which is safe there; it takes no pointers here.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(cannot)?;
        let stdout = child.stdout.take().expect("piped");
        let (sender, line) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            // A read that fails leaves the line empty, which is no ready line either.
            BufReader::new(stdout).read_line(&mut text).ok();
            // Whoever waited may have given up.
            sender.send(text).ok();
        });
        let line = line.recv_timeout(Duration::from_secs(READY_SECONDS_MAX));
        let mut server = Server {
            child,
            address: Address::Tcp(String::new()),
        };
        match line.as_deref().map(|line| line.strip_prefix("ready: ")) {
            Ok(Some(rest)) => {
                let address = rest.split_whitespace().next().unwrap_or_default();
                server.address = Address::Tcp(address.to_owned());
                Ok(server)
            }
            // Without a ready line its output has ended, and so does it.
            Ok(None) => Err(server.not_ready(log, true)),
            Err(_) => Err(server.not_ready(log, false)),
        }
    }

    fn not_ready(mut self, log: &Path, in_time: bool) -> String {
        let ended = if in_time {
            match self.child.wait() {
                Ok(status) => format!("it ended with {status}"),
                Err(error) => format!("it cannot be waited for: {error}"),
            }
        } else {
            format!("it was not ready after {READY_SECONDS_MAX} s")
        };
        let said = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().rev().take(8).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!(
            "the server did not start: {ended}\n    {}",
            lines.join("\n    ")
        )
    }

    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        Ok(connect(&self.address).await?)
    }

    /// Everything that is stored.
    pub(crate) async fn stored(&self) -> Result<Stored, Failure> {
        let client = self.client().await?;
        let mut stored = Stored::new();
        let mut after = Vec::new();
        loop {
            let query = PrefixQuery {
                after: &after,
                max_bytes: 16 << 20,
                ..PrefixQuery::new(b"")
            };
            let page = client.get_prefix(&query).await?;
            for entry in page.entries {
                after.clone_from(&entry.key);
                stored.insert(entry.key, (entry.value, entry.version));
            }
            if !page.more {
                return Ok(stored);
            }
        }
    }

    pub(crate) fn kill(mut self) {
        self.end(libc::SIGKILL);
    }

    /// Asks it to stop; an exit code other than 0 is an error.
    pub(crate) fn stop(mut self) -> Result<(), String> {
        match self.end(libc::SIGTERM) {
            Some(status) if status.success() => Ok(()),
            status => Err(format!("the server stopped with {status:?}")),
        }
    }

    fn end(&mut self, signal: libc::c_int) -> Option<ExitStatus> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(status);
        }
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id fits");
        // SAFETY: `kill` takes no pointers; the child is not reaped yet, so the id is its own.
        unsafe { libc::kill(pid, signal) };
        self.child.wait().ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(libc::SIGKILL);
    }
}

/// A mounted file system, unmounted when this is dropped.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Mounts an image, as after a crash: the file system reads its journal.
    pub(crate) fn image(image: &Path, directory: &Path) -> Result<Mount, String> {
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", "loop"]);
        succeeded(command.arg(image).arg(directory))?;
        Ok(Mount(directory.to_owned()))
    }

    /// Unmounts it. The kernel lets go of the files of a killed process with io_uring some time after its end.
    pub(crate) fn unmount(self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let result = succeeded(Command::new("umount").arg(&self.0));
            if result.is_ok() || begun.elapsed() > UNMOUNT_PATIENCE {
                std::mem::forget(self);
                return result;
            }
            std::thread::sleep(UNMOUNT_PAUSE);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Something went wrong before; whoever started this cleans up what is left.
        succeeded(Command::new("umount").arg(&self.0)).ok();
    }
}

fn succeeded(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", said.trim()))
}

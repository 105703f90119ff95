//! How the process ends: every error that can end it, and the one place that turns it into an exit code.
//!
//! Guarantees: the text of an error is one sentence that says what to do. Called by the binary through `server::main`
//! and by everything that can fail before the server serves.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::server::config::ConfigError;
use crate::storage::StorageError;

/// Exit code: stopped as asked.
pub const DONE: u8 = 0;
/// Exit code: the command line, the configuration or the machine does not fit.
pub const USAGE: u8 = 2;
/// Exit code: the data directory belongs to something else.
pub const DIRECTORY: u8 = 3;
/// Exit code: acknowledged data does not verify.
pub const CORRUPT: u8 = 4;
/// Exit code: the disk failed or is full.
pub const DISK: u8 = 5;
/// Exit code: stopped at once by a second signal, as a shell reports an interrupt.
pub const INTERRUPTED: u8 = 130;

/// The codes as `--help` shows them.
pub(crate) const HELP: &str = "\
Exit codes:
  0    stopped by SIGTERM or SIGINT, after everything submitted was answered
  2    wrong usage or configuration, or something is missing: io_uring, locked
       memory, O_DIRECT, a free address
  3    the data directory is in use, of another store or of an unknown format
  4    corruption found: acknowledged data does not verify; nothing was changed
  5    the disk failed, is full or is read-only
  130  stopped at once by a second signal";

/// The codes of `orlopd verify`.
pub(crate) const VERIFY_HELP: &str = "\
Exit codes:
  0  everything verifies: the server would start
  2  wrong usage
  3  the directory is in use, holds no store, or one of an unknown format
  4  damage found, or an acknowledged write is missing: each is in the result
  5  the disk did not give its bytes";

/// The codes of `orlopd inspect`.
pub(crate) const INSPECT_HELP: &str = "\
Exit codes:
  0  shown, also what does not verify: whether that is damage, \"orlopd verify\" says
  2  wrong usage, or no such segment
  3  the directory is in use, holds no store, or one of an unknown format
  5  the disk did not give its bytes";

/// Why the server could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The settings do not fit together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine lacks something; the sentence says what and how to change it.
    #[error("{0}")]
    Environment(String),
    /// The kernel refused something that never fails on a machine that fits.
    #[error("{action}: {source}")]
    System {
        /// What was being done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another --listen address")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody listens on the address already.
    #[error("{address} is in use by another process: stop it, or choose another --listen address")]
    AddressInUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The unix socket cannot be made.
    #[error("cannot listen on the unix socket {}: {what}", path.display())]
    UnixSocket {
        /// The path asked for.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// The data directory cannot be written.
    #[error("{action} {}: {source}; {advice}", path.display())]
    Disk {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// The data could not be opened, or the last of it not be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The last writes did not complete while stopping.
    #[error("the disk did not complete the last writes within {} s: the next start recovers what was acknowledged", .0.as_secs())]
    CloseTimeout(Duration),
    /// The thread of a shard could not run.
    #[error("the thread of shard {shard} could not run: {what}")]
    Executor {
        /// Number of the shard.
        shard: u16,
        /// What the runtime said.
        what: String,
    },
}

impl ServerError {
    /// The code that the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            ServerError::Config(_)
            | ServerError::Environment(_)
            | ServerError::System { .. }
            | ServerError::Listen { .. }
            | ServerError::AddressInUse { .. }
            | ServerError::UnixSocket { .. }
            | ServerError::Executor { .. } => USAGE,
            ServerError::Disk { .. } | ServerError::CloseTimeout(_) => DISK,
            ServerError::Storage(error) => storage_exit_code(error),
        }
    }

    /// For `map_err` on calls that never fail on a machine that fits.
    pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> ServerError {
        move |source| ServerError::System { action, source }
    }
}

fn storage_exit_code(error: &StorageError) -> u8 {
    match error {
        StorageError::Locked { .. } | StorageError::Incompatible { .. } => DIRECTORY,
        StorageError::Corrupt { .. } => CORRUPT,
        StorageError::Io { .. } | StorageError::Full { .. } | StorageError::Poisoned => DISK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_errors_have_the_documented_codes() {
        let io = || io::Error::from(io::ErrorKind::Other);
        for (error, code) in [
            (
                StorageError::Locked {
                    directory: "d".into(),
                },
                3,
            ),
            (StorageError::Incompatible("another store".into()), 3),
            (
                StorageError::Corrupt {
                    file: "f".into(),
                    offset: 8,
                    what: "w".into(),
                },
                4,
            ),
            (
                StorageError::Full {
                    file: "f".into(),
                    bytes: 1,
                },
                5,
            ),
            (
                StorageError::Io {
                    action: "writing",
                    file: "f".into(),
                    source: io(),
                },
                5,
            ),
            (StorageError::Poisoned, 5),
        ] {
            let shown = error.to_string();
            let error = ServerError::from(error);
            assert_eq!(error.exit_code(), code, "{error}");
            assert_eq!(error.to_string(), shown);
        }
    }

    #[test]
    fn what_a_person_must_change_is_code_2_and_what_the_disk_did_is_code_5() {
        let io = || io::Error::from_raw_os_error(28);
        let address = "127.0.0.1:1".parse().unwrap();
        assert_eq!(ServerError::Environment("x".into()).exit_code(), 2);
        assert_eq!(ServerError::AddressInUse { address }.exit_code(), 2);
        assert_eq!(
            ServerError::Listen {
                address,
                source: io()
            }
            .exit_code(),
            2
        );
        assert_eq!(
            ServerError::Executor {
                shard: 0,
                what: "x".into()
            }
            .exit_code(),
            2
        );
        assert_eq!(
            ServerError::UnixSocket {
                path: "/s".into(),
                what: "x".into()
            }
            .exit_code(),
            2
        );
        let disk = ServerError::Disk {
            action: "writing",
            path: "/d".into(),
            source: io(),
            advice: "free some",
        };
        assert_eq!(disk.exit_code(), 5);
        assert_eq!(
            disk.to_string(),
            "writing /d: No space left on device (os error 28); free some"
        );
        assert_eq!(
            ServerError::CloseTimeout(Duration::from_secs(20)).exit_code(),
            5
        );
    }
}

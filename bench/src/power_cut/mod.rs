//! `orlop-bench power-cut`: what survives of a server's acknowledgements when the power goes, on a real file system.
//!
//! The device below the file system is logged, write by write and flush by flush (`scripts/powercut.sh` makes it, with
//! QEMU's `blklogwrites`). `record` loads a server on it and keeps when each acknowledgement came; `replay` rebuilds the
//! device as power cuts would have left it, mounts it, starts a server and compares.
//! `record` -> `server`, `write_log`, `turnover` -> `history` -> `replay` -> `image`, `server`.
//! Does not: set up devices, or clean up after a process that was killed. The script does.

mod history;
mod image;
mod record;
mod replay;
mod server;
mod turnover;
mod write_log;

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use tokio::task::LocalSet;

use crate::load::mixed;

#[derive(Debug, Subcommand)]
pub(crate) enum PowerCut {
    /// Load a server on a device whose writes are logged, and record every acknowledgement
    Record(RecordOptions),
    /// Rebuild the device as power cuts leave it, start a server on each, and compare
    Replay(ReplayOptions),
}

#[derive(Debug, Args)]
pub(crate) struct RecordOptions {
    /// The device's write log, in the format of dm-log-writes
    #[arg(long, value_name = "FILE")]
    log: PathBuf,

    /// The server's data directory, on the device
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// The server's binary
    #[arg(long, value_name = "FILE")]
    orlopd: PathBuf,

    /// Where the server logs
    #[arg(long, value_name = "FILE")]
    server_log: PathBuf,

    /// Where the record goes (the file is replaced)
    #[arg(long, value_name = "FILE")]
    history: PathBuf,

    /// Acknowledged writes, over all lives of the server
    #[arg(long, value_name = "N", default_value_t = 8_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    writes: u64,

    /// What is written; the default is new each time
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayOptions {
    /// The device's write log, in the format of dm-log-writes
    #[arg(long, value_name = "FILE")]
    log: PathBuf,

    /// The device as it was left: the whole log must make exactly this
    #[arg(long, value_name = "FILE")]
    disk: PathBuf,

    /// What `record` wrote
    #[arg(long, value_name = "FILE")]
    history: PathBuf,

    /// The server's binary
    #[arg(long, value_name = "FILE")]
    orlopd: PathBuf,

    /// A directory for images and mounts
    #[arg(long, value_name = "DIR")]
    work: PathBuf,

    /// Power cuts
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    points: usize,

    /// Where the cuts are; the default is new each time
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Only the cut of this number
    #[arg(long, value_name = "N")]
    only: Option<usize>,
}

/// Records or replays. Returns the exit code.
pub(crate) fn run(command: &PowerCut) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match (runtime, command) {
        (Err(error), _) => Err((3, format!("cannot start the runtime: {error}"))),
        (Ok(runtime), PowerCut::Record(options)) => {
            let recorded = record::record(options, options.seed.unwrap_or_else(new_seed));
            LocalSet::new()
                .block_on(&runtime, recorded)
                .map_err(|failure| (failure.exit_code(), failure.to_string()))
                .and_then(|history| history.save(&options.history).map_err(|text| (3, text)))
                .map(|()| 0)
        }
        (Ok(runtime), PowerCut::Replay(options)) => {
            let seed = options.seed.unwrap_or_else(new_seed);
            let replayed = replay::replay(options, seed, runtime);
            replayed
                .map(|all_right| u8::from(!all_right))
                .map_err(|sentence| (3, sentence))
        }
    };
    result.unwrap_or_else(|(code, sentence)| {
        eprintln!("orlop-bench: {sentence}");
        code
    })
}

/// Short enough to be typed.
fn new_seed() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    mixed(since.as_nanos() as u64) >> 32
}

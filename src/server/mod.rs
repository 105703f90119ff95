//! The outside of the server: configuration, sockets, Cap'n Proto, life cycle.
//!
//! Owns: everything between the command line and [`Shard`](crate::shard::Shard). Guarantees: the data directory is
//! locked before a port is bound; nothing is served before every shard has recovered; a stop in order answers what was
//! received; every way to end has its exit code (`exit`). Does not: know what a shard does with a key. The binary calls
//! [`main`] and nothing else.

pub mod arguments;
pub mod config;
mod connections;
pub mod cpus;
pub mod exit;
mod inspect;
mod listener;
mod logging;
mod memory;
mod os;
mod preflight;
mod process;
mod promised;
mod readiness;
mod restore;
mod service;
mod session;
mod sessions;
mod shard_server;
mod shard_thread;
mod shards;
mod signals;
pub mod size;
mod sockets;
mod sparse_log;
mod stream;
mod verify;
mod watchdog;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use clap::{CommandFactory as _, Parser as _};
use sd_notify::NotifyState;

use crate::limits;
use crate::placement::{Placement, ShardId};
use crate::server::arguments::{Arguments, Command, ServeArguments};
use crate::server::config::{Config, Machine};
use crate::server::connections::Connections;
use crate::server::exit::ServerError;
use crate::server::logging::ReadyOutput;
use crate::server::process::{Process, Started};
use crate::server::shard_thread::{Event, ShardStart, ShardThread};
use crate::server::shards::Shards;
use crate::server::sockets::{ShardSockets, Sockets};
use crate::shard::{ShardConfig, StoreOptions, mesh};
use crate::storage::directory::DataDirectory;

/// What `orlopd` does: serves until it is told to stop, and says in the exit code how that went.
pub fn main() -> ExitCode {
    let started = Started::now();
    let arguments = Arguments::parse();
    match arguments.command {
        None => {}
        Some(Command::Verify(asked)) => return end(verify::run(&asked)),
        Some(Command::Inspect(asked)) => return end(inspect::run(&asked)),
        Some(Command::Restore(asked)) => return end(restore::run(&asked)),
        Some(Command::Completions { shell }) => {
            return print(|text| {
                clap_complete::generate(shell, &mut Arguments::command(), "orlopd", text);
                Ok(())
            });
        }
        Some(Command::Man) => {
            return print(|text| clap_mangen::Man::new(Arguments::command()).render(text));
        }
    }
    let config = match check(arguments.serve.clone()) {
        Ok(config) => config,
        // Like the errors of the parser, and before there is a log.
        Err(error) => return end(Err(error)),
    };
    match logging::start(arguments.serve.log, arguments.serve.log_format)
        .and_then(|()| run(&config, started))
    {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => {
            tracing::error!(exit_code = error.exit_code(), "{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn check(asked: ServeArguments) -> Result<Config, ServerError> {
    let machine = Machine::detect().map_err(ServerError::system(
        "asking for the CPUs and the memory of this machine",
    ))?;
    Ok(Config::check(asked, &machine)?)
}

/// Serves until a signal asks to stop. Everything that happens between the start and the end is in this order here.
fn run(config: &Config, started: Started) -> Result<(), ServerError> {
    memory::keep_for_a_while();
    os::refuse_huge_pages().map_err(ServerError::system("refusing huge pages"))?;
    let (tell, events) = channel();
    signals::watch(tell.clone())?;
    let output = ReadyOutput::take()?;
    preflight::check_machine(config.shard_count())?;
    preflight::check_directory(&config.data)?;
    let mut directory = DataDirectory::open(&config.data, config.shard_count())?;
    let mut sockets = Sockets::open(config.listen, config.unix.as_deref(), config.shard_count())?;
    let ready_line = sockets.ready_line();
    let process = Arc::new(Process::new(
        started,
        directory.store_uuid(),
        Placement::new(directory.placement_seed(), config.shard_count()),
        config.value_len_max,
        config.fast_path,
        sockets.ports.clone(),
        Connections::new(config.shard_count(), limits::CONNECTIONS_MAX),
    ));
    let threads = start_shards(
        config,
        &directory,
        &process,
        std::mem::take(&mut sockets.shards),
        &tell,
    )?;
    let mut shards = Shards::new(threads, events);
    if let Some(before) = directory.manifest().previous {
        tracing::info!(
            before = before.shards,
            now = config.shard_count(),
            "another number of shards: served at once, moved in the background"
        );
    }
    if !shards.hand_over()? {
        return Ok(());
    }
    let Some(heartbeats) = shards.wait_recovered()? else {
        return Ok(());
    };
    directory.confirm_served()?;
    shards.serve()?;
    process.note_ready();
    output.print(&ready_line);
    notify_service_manager(&[NotifyState::Ready]);
    watchdog::start(heartbeats)?;
    tracing::info!(address = %sockets.address, shards = config.shard_count(), took_ms = process.recovery_ms(), "serving");
    shards.wait_for_stop()?;
    notify_service_manager(&[NotifyState::Stopping]);
    shards.stop()
}

/// Starts a thread per shard; they recover at the same time.
fn start_shards(
    config: &Config,
    directory: &DataDirectory,
    process: &Arc<Process>,
    sockets: Vec<ShardSockets>,
    events: &Sender<Event>,
) -> Result<Vec<ShardThread>, ServerError> {
    let seats = mesh::seats(config.shard_count());
    let mut threads = Vec::with_capacity(seats.len());
    for (((shard, cpu), sockets), seat) in process
        .placement
        .shards()
        .zip(&config.shard_cpus)
        .zip(sockets)
        .zip(seats)
    {
        let idle_poll = config.idle_poll;
        let config = shard_config(config, directory, process.placement, shard)?;
        let start = ShardStart {
            cpu: *cpu,
            idle_poll,
            config,
            seat,
            sockets,
            process: Arc::clone(process),
        };
        threads.push(ShardThread::spawn(start, events.clone())?);
    }
    Ok(threads)
}

fn shard_config(
    config: &Config,
    directory: &DataDirectory,
    placement: Placement,
    id: ShardId,
) -> Result<ShardConfig, ServerError> {
    let mut salt_seed = [0; 8];
    getrandom::fill(&mut salt_seed).map_err(|error| {
        ServerError::Environment(format!("the kernel gives no random numbers: {error}"))
    })?;
    let store = StoreOptions {
        store_uuid: directory.store_uuid(),
        shard: id.number(),
        generation: directory.manifest().generation,
        previous: directory.manifest().previous,
        run: directory.run(),
        salt_seed: u64::from_le_bytes(salt_seed),
        segment_bytes: config.segment_bytes,
        value_len_max: config.value_len_max,
        cache_bytes: config.cache_bytes / u64::from(config.shard_count()),
        pending_bytes_max: limits::SHARD_PENDING_BYTES_MAX,
        dead_bytes_min: limits::DEAD_SEGMENTS_MIN * u64::from(config.segment_bytes),
        served: directory.manifest().served,
    };
    Ok(ShardConfig {
        id,
        placement,
        directory: directory.path().to_owned(),
        store,
        scrub_rate: config.shard_scrub_rate(),
    })
}

/// Tells systemd, if it started this process, where it is in its life.
fn notify_service_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}

/// How it ends where there is no log: with the code, or with a sentence on standard error.
fn end(result: Result<u8, ServerError>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints what a hidden command makes on standard output.
fn print(make: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> ExitCode {
    let mut text = Vec::new();
    match make(&mut text).and_then(|()| io::stdout().write_all(&text)) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => {
            eprintln!("error: cannot print: {error}");
            ExitCode::from(exit::USAGE)
        }
    }
}

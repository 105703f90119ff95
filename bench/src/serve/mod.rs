//! `orlop-bench serve`: an embedded engine behind orlop's schema and orlop's wire, so that a comparison with `orlopd` is
//! one of engines and not of transports.
//!
//! One thread of connections, which also reads, and one thread that commits (`committer`). Guarantees: with `--sync
//! always` an answer to a write comes after the engine's durable commit; all writes that wait share one commit; a failed
//! commit ends the server with exit code 3, unanswered. `mod` -> `session`, `direct` -> `store` -> `committer` -> `engine`.

mod committer;
mod decode;
mod direct;
mod engine;
mod session;
mod store;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use committer::Committer;
use engine::{EngineName, Sync};
use store::Store;

#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    /// Embedded engine
    #[arg(long, value_name = "NAME")]
    engine: EngineName,

    /// Directory of the database; made if it is not there
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Address to serve on; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6000")]
    listen: SocketAddr,

    /// Pin the server to this CPU
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,

    /// When a write is answered
    #[arg(long, value_name = "WHEN", default_value = "always")]
    sync: Sync,

    /// Memory of the engine's cache, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    cache_mib: u32,
}

/// Serves until SIGTERM or SIGINT. Returns the exit code.
pub(crate) fn run(options: &ServeOptions) -> u8 {
    match served(options) {
        Ok(()) => 0,
        Err(sentence) => {
            eprintln!("orlop-bench: {}: {sentence}", options.engine);
            3
        }
    }
}

fn served(options: &ServeOptions) -> Result<(), String> {
    if let Some(cpu) = options.cpu {
        crate::process::pin(cpu)?;
    }
    crate::process::open_as_many_files_as_allowed()?;
    let dir = &options.data;
    std::fs::create_dir_all(dir)
        .map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    let cache_bytes = (options.cache_mib as usize) << 20;
    let engine = engine::open(options.engine, dir, cache_bytes, options.sync)
        .map_err(|error| format!("{error} (--data {})", dir.display()))?;
    let Committer {
        writes,
        mut committed,
        thread,
        uuid,
    } = committer::start(engine.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let ended = LocalSet::new().block_on(&runtime, async {
        let listen = options.listen;
        let (listener, address) = bind(listen)
            .await
            .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
        let store = Store::new((options.engine, engine), writes, uuid, address.port());
        let answering = Rc::clone(&store);
        let answers = tokio::task::spawn_local(async move {
            while let Some(committed) = committed.recv().await {
                answering.answer(committed);
            }
        });
        announce(options, address)?;
        tokio::select! {
            result = accept(&listener, &store) => result,
            // The committer has ended: joined below, it says why.
            _ = answers => Ok(()),
            result = stopped() => result,
        }
    });
    // Every sender of writes went with the tasks: the committer commits what it has and ends.
    drop(runtime);
    let committing = thread.join().map_err(|_| "the committer panicked")?;
    committing.map_err(|error| error.to_string())?;
    ended
}

async fn bind(listen: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Says on standard output that the server serves; standard error says with which settings.
fn announce(options: &ServeOptions, address: SocketAddr) -> Result<(), String> {
    eprintln!(
        "orlop-bench: {} in {}, sync {}, cache {} MiB",
        options.engine,
        options.data.display(),
        options.sync,
        options.cache_mib
    );
    let mut output = std::io::stdout();
    writeln!(output, "ready: {address}")
        .and_then(|()| output.flush())
        .map_err(|error| format!("cannot write the ready line: {error}"))
}

async fn accept(listener: &TcpListener, store: &Rc<Store>) -> Result<(), String> {
    loop {
        let (stream, _) = listener
            .accept()
            .await
            .map_err(|error| format!("cannot accept a connection: {error}"))?;
        if stream.set_nodelay(true).is_ok() {
            tokio::task::spawn_local(session::serve(Rc::clone(store), stream));
        }
    }
}

async fn stopped() -> Result<(), String> {
    let failed = |error| format!("cannot wait for signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

//! `orlop-bench load`: a load on one thread, closed or open loop, on orlop or a peer; its verification and its report.
//!
//! Order: connect, preload, warm up, measure, read back, report. One tokio thread; everything shared is in `run.rs`.
//! Guarantees: a run that met a wrong answer, an error or a lost connection prints no result, only the sentence, and its
//! exit code is not 0; an interrupted one prints what it measured, marked.
//! `options` (`workload`, `sizes`) -> `source` (`trace`) -> `driver` -> (`writer`, `ledger`, `page`, `value`, `keys`)
//! -> `tally` -> `report`.

mod ack_log;
mod alarm;
mod driver;
mod failure;
mod keys;
mod ledger;
mod mix;
mod options;
mod page;
mod progress;
mod random;
mod report;
mod run;
mod sizes;
mod source;
mod sweep;
mod tally;
mod trace;
mod value;
mod workload;
mod writer;

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

pub(crate) use driver::OVERLOADED_PAUSE;
pub(crate) use failure::Failure;
pub(crate) use keys::KeySpace;
pub(crate) use options::{LoadOptions, seconds};
pub(crate) use random::{Random, mixed};
pub(crate) use report::{latency, microseconds};
pub(crate) use tally::latencies;
pub(crate) use value::{HEADER_LEN, Stamp, decode, encode};

use driver::Connections;
use options::Plan;
use progress::{Progress, Stage, flush_ack_log};
use report::{Pass, Report};
use run::Run;

/// How a load ended, when it did not fail.
struct Ended {
    preload: Option<Pass>,
    read_back: Option<Pass>,
    interrupted: Option<Signal>,
}

#[derive(Debug, Clone, Copy)]
struct Signal {
    name: &'static str,
    number: i32,
}

/// Runs the load and prints its result. Returns the exit code.
pub(crate) fn run(options: &LoadOptions) -> u8 {
    let plan = match options.plan(random_number) {
        Ok(plan) => plan,
        Err(sentence) => {
            eprintln!("orlop-bench: {sentence}");
            return 2;
        }
    };
    match prepared(options.cpu, &plan).and_then(|runtime| loaded(&runtime, plan)) {
        Ok((run, ended)) => finished(&run, &ended, options.json),
        Err(failure) => {
            eprintln!("orlop-bench: {failure}");
            failure.exit_code()
        }
    }
}

fn prepared(cpu: Option<usize>, plan: &Plan) -> Result<tokio::runtime::Runtime, Failure> {
    if let Some(cpu) = cpu {
        crate::process::pin(cpu).map_err(Failure::Machine)?;
    }
    crate::process::raise_open_files(plan.connections()).map_err(Failure::Machine)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(|error| Failure::Machine(format!("cannot start the runtime: {error}")))
}

/// Everything between the plan and the report. The ack log is whole in the file when this returns, failure or not.
fn loaded(runtime: &tokio::runtime::Runtime, plan: Plan) -> Result<(Rc<Run>, Ended), Failure> {
    let run = Run::new(plan, random_number() as u32)?;
    let progress = Progress::new();
    let result = LocalSet::new().block_on(runtime, watched(run.clone(), progress.clone()));
    progress.clear();
    let flushed = run.flush_ack_log();
    let ended = result?;
    flushed?;
    Ok((run, ended))
}

async fn watched(run: Rc<Run>, progress: Rc<Progress>) -> Result<Ended, Failure> {
    let mut ended = Ended {
        preload: None,
        read_back: None,
        interrupted: None,
    };
    let watch = tokio::task::spawn_local(progress.clone().watch(run.clone()));
    let flush = run
        .has_ack_log()
        .then(|| tokio::task::spawn_local(flush_ack_log(run.clone())));
    let result = tokio::select! {
        result = stages(&run, &progress, &mut ended) => result,
        failure = run.failure() => Err(failure),
        signal = interruption() => signal.map(|signal| ended.interrupted = Some(signal)),
    };
    watch.abort();
    if let Some(flush) = flush {
        flush.abort();
    }
    result.map(|()| ended)
}

async fn stages(run: &Rc<Run>, progress: &Progress, ended: &mut Ended) -> Result<(), Failure> {
    let plan = &run.plan;
    progress.enter(Stage::Connecting, plan.connections() as u64);
    let mut connections = Connections::open(run).await?;
    if plan.preload {
        progress.enter(Stage::Preloading, plan.keys.count);
        let begun = Instant::now();
        connections.preload(run).await?;
        ended.preload = Some(Pass {
            keys: plan.keys.count,
            took: begun.elapsed(),
        });
    }
    progress.enter(
        Stage::Measuring,
        (plan.warm_up + plan.duration).as_millis() as u64,
    );
    connections.measure(run).await?;
    if plan.verify {
        let known = run.ask(|ledger| ledger.known().count()).unwrap_or(0);
        progress.enter(Stage::ReadingBack, known as u64);
        let begun = Instant::now();
        let keys = connections.read_back(run).await?;
        ended.read_back = Some(Pass {
            keys,
            took: begun.elapsed(),
        });
    }
    Ok(())
}

/// Resolves when somebody asks this process to end.
async fn interruption() -> Result<Signal, Failure> {
    let listen = |kind| {
        signal(kind)
            .map_err(|error| Failure::Machine(format!("cannot listen for signals: {error}")))
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => Signal { name: "SIGINT", number: libc::SIGINT },
        _ = terminate.recv() => Signal { name: "SIGTERM", number: libc::SIGTERM },
        _ = hang_up.recv() => Signal { name: "SIGHUP", number: libc::SIGHUP },
    })
}

/// Prints the result and gives the exit code.
fn finished(run: &Run, ended: &Ended, json: bool) -> u8 {
    let tally = run.tally.borrow();
    if ended.interrupted.is_some() && tally.calls() == 0 {
        eprintln!("orlop-bench: interrupted before anything was measured");
    } else {
        let report = Report {
            plan: &run.plan,
            tally: &tally,
            measured: run.measured(),
            preload: ended.preload,
            read_back: ended.read_back,
            checked: run.checked.get(),
            interrupted: ended.interrupted.map(|signal| signal.name),
        };
        if json {
            println!("{}", report.json())
        } else {
            println!("{}", report.text())
        }
    }
    ended
        .interrupted
        .map_or(0, |signal| 128 + signal.number as u8)
}

/// A number that another process, or this program tomorrow, does not have.
fn random_number() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    random::mixed((since.as_nanos() as u64) ^ (u64::from(std::process::id()) << 32))
}

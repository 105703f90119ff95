//! The two passes over all keys of orlop around a load: the preload, which writes each once, and the read-back at the end.
//!
//! Both use every connection, one batch in flight on each, sized so that neither a message nor what the server may hold
//! comes near a limit. Guarantees: the preload returns when every key is acknowledged (what is answered `overloaded` is
//! sent again); the read-back has judged every key of which the ledger knows a write. Used by `Connections`.

use std::cell::RefCell;
use std::rc::Rc;

use orlop::client::ClientError;
use tokio::task::JoinSet;

use super::driver::{Caller, OVERLOADED_PAUSE};
use super::failure::Failure;
use super::run::Run;
use super::writer::Writer;

/// Keys and values of one batch.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_KEYS_MAX: usize = 1_000;

/// Connections that preload at once: beyond it batches only wait in the server.
const PRELOADERS_MAX: usize = 16;

type Numbers = Rc<RefCell<Box<dyn Iterator<Item = u64>>>>;

/// Adds keys to `batch` until it is large enough.
fn next_batch(run: &Run, numbers: &Numbers, batch: &mut Vec<u64>) {
    let plan = &run.plan;
    let bytes = |number: u64| plan.keys.size.of(number) + plan.value_size.of(number);
    let mut size: usize = batch.iter().map(|number| bytes(*number)).sum();
    let mut numbers = numbers.borrow_mut();
    while size < BATCH_BYTES && batch.len() < BATCH_KEYS_MAX {
        let Some(number) = numbers.next() else {
            return;
        };
        size += bytes(number);
        batch.push(number);
    }
}

/// Writes every key once.
pub(crate) async fn preload(run: &Rc<Run>, clients: &[Caller]) -> Result<(), Failure> {
    let numbers: Numbers = Rc::new(RefCell::new(Box::new(0..run.plan.keys.count)));
    let mut tasks = JoinSet::new();
    for (index, client) in clients.iter().take(PRELOADERS_MAX).enumerate() {
        let writer = Writer::new((run.plan.workers() + index) as u32);
        tasks.spawn_local(preload_share(
            run.clone(),
            client.clone(),
            writer,
            numbers.clone(),
        ));
    }
    finish(tasks).await
}

async fn preload_share(
    run: Rc<Run>,
    client: Caller,
    mut writer: Writer,
    numbers: Numbers,
) -> Result<(), Failure> {
    let mut batch = Vec::new();
    loop {
        next_batch(&run, &numbers, &mut batch);
        if batch.is_empty() {
            return Ok(());
        }
        writer.prepare(&run, batch.drain(..));
        let outcomes = match client.write(&writer.mutations()).await {
            Err(ClientError::Overloaded(_)) => {
                writer.refused_whole(&run);
                batch.extend(writer.numbers());
                tokio::time::sleep(OVERLOADED_PAUSE).await;
                continue;
            }
            answer => answer?,
        };
        writer.count_outcomes(outcomes.len())?;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            if writer.answered(&run, index, outcome)? {
                run.advance(1);
            } else {
                batch.push(writer.number(index));
            }
        }
    }
}

/// Reads every key of which a write is known, and demands the newest one. Returns how many there were.
pub(crate) async fn read_back(run: &Rc<Run>, clients: &[Caller]) -> Result<u64, Failure> {
    let known: Vec<u64> = run
        .ask(|ledger| ledger.known().collect())
        .unwrap_or_default();
    let count = known.len() as u64;
    let numbers: Numbers = Rc::new(RefCell::new(Box::new(known.into_iter())));
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn_local(read_back_share(
            run.clone(),
            client.clone(),
            numbers.clone(),
        ));
    }
    finish(tasks).await?;
    Ok(count)
}

async fn read_back_share(run: Rc<Run>, client: Caller, numbers: Numbers) -> Result<(), Failure> {
    let mut batch = Vec::new();
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        next_batch(&run, &numbers, &mut batch);
        if batch.is_empty() {
            return Ok(());
        }
        keys.resize_with(batch.len(), Vec::new);
        for (key, number) in keys.iter_mut().zip(&batch) {
            run.plan.keys.write_key(*number, key);
        }
        let lookups = match client.get_many(&keys).await {
            Err(ClientError::Overloaded(_)) => {
                tokio::time::sleep(OVERLOADED_PAUSE).await;
                continue;
            }
            answer => answer?,
        };
        if lookups.len() != keys.len() {
            let text = format!(
                "{} keys were asked for and {} lookups came back",
                keys.len(),
                lookups.len()
            );
            return Err(Failure::Server(ClientError::Protocol(text)));
        }
        for (number, found) in batch.drain(..).zip(&lookups) {
            let found = found
                .as_ref()
                .map(|found| (found.value.as_slice(), found.version));
            run.judge(1, |ledger| ledger.read_back(number, found))?;
            run.advance(1);
        }
    }
}

/// Waits for all tasks, or for the first failure.
pub(crate) async fn finish(mut tasks: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a task neither panics nor is aborted")?;
    }
    Ok(())
}

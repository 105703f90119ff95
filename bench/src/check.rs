//! `orlop-bench check`: reads everything that an ack log promises back from a server, usually after it was killed.
//!
//! For each key the newest acknowledged version must still be there: the key present, its version that one with the same
//! value, or a newer one (a write whose acknowledgement the log does not hold). Anything older is a lost write.
//! Exit codes as for `load`. One connection, batches of `getMany`.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use orlop::client::tokio::{Address, connect};
use orlop::client::{Client, ClientError, Found};
use tokio::task::LocalSet;

use orlop::ack_log::{self, Acknowledged};

use crate::load::{Failure, OVERLOADED_PAUSE};

/// Keys of one `getMany`; fewer when values are large, see `batch_keys`.
const BATCH_KEYS_MAX: usize = 1_000;
const BATCH_BYTES: usize = 4 << 20;

#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// Server to ask: HOST:PORT or unix:PATH
    #[arg(
        long,
        env = "ORLOP_SERVER",
        value_name = "ADDR",
        default_value = "127.0.0.1:6000"
    )]
    server: Address,

    /// Ack log that `orlop-bench load --ack-log` wrote
    #[arg(long, value_name = "FILE")]
    ack_log: PathBuf,
}

/// The newest acknowledged write of each key.
type Newest = HashMap<String, Acknowledged>;

/// Checks and prints. Returns the exit code.
pub(crate) fn run(options: &CheckOptions) -> u8 {
    let (newest, lines) = match newest(options) {
        Ok(found) => found,
        Err(sentence) => {
            eprintln!("orlop-bench: {sentence}");
            return 2;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("orlop-bench: cannot start the runtime: {error}");
            return 3;
        }
    };
    match LocalSet::new().block_on(&runtime, check(options, &newest)) {
        Ok(Verdict { lost, .. }) if !lost.is_empty() => {
            for sentence in lost.iter().take(10) {
                eprintln!("orlop-bench: {sentence}");
            }
            eprintln!(
                "orlop-bench: {} of {} keys lost an acknowledged write",
                lost.len(),
                newest.len()
            );
            1
        }
        Ok(Verdict { newer, .. }) => {
            println!(
                "{lines} acknowledged writes of {} keys: none lost ({newer} keys hold a newer version)",
                newest.len()
            );
            0
        }
        Err(failure) => {
            eprintln!("orlop-bench: {failure}");
            failure.exit_code()
        }
    }
}

fn newest(options: &CheckOptions) -> Result<(Newest, u64), String> {
    let mut newest = Newest::new();
    let mut lines = 0;
    ack_log::read(&options.ack_log, |line| {
        lines += 1;
        match newest.get_mut(&line.key) {
            Some(known) if known.version < line.version => *known = line,
            Some(_) => (),
            None => drop(newest.insert(line.key.clone(), line)),
        }
    })?;
    Ok((newest, lines))
}

#[derive(Default)]
struct Verdict {
    lost: Vec<String>,
    newer: u64,
}

async fn check(options: &CheckOptions, newest: &Newest) -> Result<Verdict, Failure> {
    let client = connect(&options.server).await?;
    let mut verdict = Verdict::default();
    let mut keys: Vec<&Acknowledged> = newest.values().collect();
    keys.sort_by(|a, b| a.key.cmp(&b.key));
    let mut rest = keys.as_slice();
    let mut size = 1;
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(size.min(rest.len()));
        rest = later;
        let bytes = judge_batch(&client, batch, &mut verdict).await?;
        size = batch_keys(bytes / batch.len());
    }
    Ok(verdict)
}

/// How many keys to ask for when one took `bytes`.
fn batch_keys(bytes: usize) -> usize {
    (BATCH_BYTES / bytes.max(1)).clamp(1, BATCH_KEYS_MAX)
}

async fn judge_batch(
    client: &Client,
    batch: &[&Acknowledged],
    verdict: &mut Verdict,
) -> Result<usize, Failure> {
    let keys: Vec<&[u8]> = batch
        .iter()
        .map(|acknowledged| acknowledged.key.as_bytes())
        .collect();
    let lookups = loop {
        match client.get_many(&keys).await {
            Err(ClientError::Overloaded(_)) => tokio::time::sleep(OVERLOADED_PAUSE).await,
            answer => break answer?,
        }
    };
    let mut bytes = 0;
    for (acknowledged, found) in batch.iter().zip(&lookups) {
        bytes += found.as_ref().map_or(0, |found| found.value.len()) + acknowledged.key.len();
        match judge(acknowledged, found.as_ref()) {
            Ok(newer) => verdict.newer += u64::from(newer),
            Err(sentence) => verdict.lost.push(sentence),
        }
    }
    Ok(bytes)
}

/// Whether the key holds a newer version than the acknowledged one, or what is wrong.
fn judge(acknowledged: &Acknowledged, found: Option<&Found>) -> Result<bool, String> {
    let Acknowledged {
        key,
        version,
        crc32,
        ..
    } = acknowledged;
    let wrong = |found: String| {
        Err(format!(
            "wrong answer for key {key}: expected version {version} (crc32 {crc32:08x}) or newer; found {found}"
        ))
    };
    let Some(found) = found else {
        return wrong("no such key".to_owned());
    };
    let found_crc32 = crc32fast::hash(&found.value);
    if found.version < *version {
        return wrong(format!(
            "version {}: the acknowledged write is lost",
            found.version
        ));
    }
    if found.version == *version && found_crc32 != *crc32 {
        return wrong(format!(
            "another value with this version (crc32 {found_crc32:08x})"
        ));
    }
    Ok(found.version > *version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(version: u64, value: &[u8]) -> Option<Found> {
        Some(Found {
            value: value.to_vec(),
            version,
        })
    }

    #[test]
    fn only_the_acknowledged_write_or_a_newer_one_will_do() {
        let crc32 = crc32fast::hash(b"value");
        let acknowledged = Acknowledged {
            key: "k1".to_owned(),
            version: 7,
            crc32,
            monotonic_ns: 1,
        };
        assert_eq!(judge(&acknowledged, found(7, b"value").as_ref()), Ok(false));
        assert_eq!(judge(&acknowledged, found(8, b"other").as_ref()), Ok(true));
        for wrong in [None, found(6, b"value"), found(7, b"other")] {
            let sentence = judge(&acknowledged, wrong.as_ref()).expect_err("a lost write");
            assert!(
                sentence.contains("k1") && sentence.contains("version 7"),
                "{sentence}"
            );
        }
    }

    #[test]
    fn batches_shrink_with_the_values() {
        assert_eq!(batch_keys(0), BATCH_KEYS_MAX);
        assert_eq!(batch_keys(1 << 20), 4);
        assert_eq!(batch_keys(32 << 20), 1);
    }
}

//! The command line of `orlop-bench load`, and the plan that it becomes once every value is checked.
//!
//! Guarantees: a `Plan` respects every limit of the wire, so that a refusal by the server during the run is news.
//! Read by every file of the load; written nowhere after the start.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use orlop::client::tokio::Address;
use orlop::limits;

use super::keys::{KEY_SIZE_MIN, KEYS_MAX, KeySpace};
use super::mix::{Kind, Mix};
use super::random::Distribution;
use super::value::HEADER_LEN;

/// Clients times requests in flight: beyond it the generator measures itself.
const WORKERS_MAX: usize = 100_000;

#[derive(Debug, Clone, Args)]
pub(crate) struct LoadOptions {
    /// Server to load: HOST:PORT or unix:PATH
    #[arg(
        long,
        env = "ORLOP_SERVER",
        value_name = "ADDR",
        default_value = "127.0.0.1:6000"
    )]
    server: Address,

    /// Connections
    #[arg(long, value_name = "N", default_value_t = 50)]
    clients: usize,

    /// Requests that each connection keeps in flight
    #[arg(long, value_name = "N", default_value_t = 1)]
    in_flight: usize,

    /// Seconds to measure
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    duration: Duration,

    /// Seconds of load before measuring starts
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    warm_up: Duration,

    /// Weights of the operations, read:write or read:write:prefix
    #[arg(long, value_name = "R:W[:P]", default_value = "50:50")]
    mix: Mix,

    /// Bytes of a key
    #[arg(long, value_name = "BYTES", default_value_t = 16)]
    key_size: usize,

    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    value_size: usize,

    /// Number of different keys
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    keys: u64,

    /// How keys are chosen: uniform, or zipfian (theta 0.99, scrambled as YCSB does it)
    #[arg(long, value_name = "NAME", default_value = "uniform")]
    distribution: Distribution,

    /// Keys in one call: above 1, reads are `getMany` and writes are `write`
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,

    /// Write every key once before the load starts
    #[arg(long)]
    preload: bool,

    /// Check every answer, and read all acknowledged writes back at the end
    #[arg(long)]
    verify: bool,

    /// Append a line to this file for every acknowledged write (the file is replaced)
    #[arg(long, value_name = "FILE")]
    ack_log: Option<PathBuf>,

    /// Sequence of operations and keys; the default is a new one each time
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Pin the load generator to this CPU
    #[arg(long, value_name = "N")]
    pub(crate) cpu: Option<usize>,

    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a run does; every field is checked.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) server: Address,
    pub(crate) clients: usize,
    pub(crate) in_flight: usize,
    pub(crate) duration: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) mix: Mix,
    pub(crate) keys: KeySpace,
    pub(crate) value_size: usize,
    pub(crate) distribution: Distribution,
    pub(crate) batch: usize,
    pub(crate) preload: bool,
    pub(crate) verify: bool,
    pub(crate) ack_log: Option<PathBuf>,
    pub(crate) seed: u64,
}

impl LoadOptions {
    /// The plan, or a sentence that names the option, its value and its limit.
    pub(crate) fn plan(&self, new_seed: impl FnOnce() -> u64) -> Result<Plan, String> {
        within("--clients", self.clients, 1, limits::CONNECTIONS_MAX)?;
        within(
            "--in-flight",
            self.in_flight,
            1,
            limits::CONNECTION_CALLS_MAX,
        )?;
        within(
            "--clients times --in-flight",
            self.clients * self.in_flight,
            1,
            WORKERS_MAX,
        )?;
        within(
            "--key-size",
            self.key_size,
            KEY_SIZE_MIN,
            limits::KEY_LEN_MAX,
        )?;
        within("--value-size", self.value_size, 0, limits::VALUE_LEN_MAX)?;
        within("--keys", self.keys, 1, KEYS_MAX)?;
        within("--batch", self.batch, 1, limits::BATCH_MAX)?;
        if self.batch > 1 {
            let bytes = self.batch * (self.key_size + self.value_size);
            within(
                "--batch times the size of a key and a value",
                bytes,
                1,
                limits::ANSWER_BYTES_MAX,
            )?;
        }
        if self.duration.is_zero() {
            return Err("--duration is 0: nothing would be measured; give at least 0.1".to_owned());
        }
        if self.verify && self.value_size < HEADER_LEN {
            return Err(format!(
                "--value-size is {}, but --verify needs values of at least {HEADER_LEN} bytes, which say whose they are",
                self.value_size
            ));
        }
        if self.ack_log.is_some() && !self.preload && !self.mix.has(Kind::Write) {
            return Err(format!(
                "--ack-log with --mix {} would stay empty: give writes a weight, or --preload",
                self.mix
            ));
        }
        Ok(Plan {
            server: self.server.clone(),
            clients: self.clients,
            in_flight: self.in_flight,
            duration: self.duration,
            warm_up: self.warm_up,
            mix: self.mix,
            keys: KeySpace {
                count: self.keys,
                size: self.key_size,
            },
            value_size: self.value_size,
            distribution: self.distribution,
            batch: self.batch,
            preload: self.preload,
            verify: self.verify,
            ack_log: self.ack_log.clone(),
            seed: self.seed.unwrap_or_else(new_seed),
        })
    }
}

impl Plan {
    pub(crate) fn workers(&self) -> usize {
        self.clients * self.in_flight
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    name: &str,
    value: T,
    least: T,
    most: T,
) -> Result<(), String> {
    if value < least || value > most {
        return Err(format!("{name} is {value}: give {least} to {most}"));
    }
    Ok(())
}

/// A length of time as a decimal number of seconds, at most 30 days.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    const MAX: f64 = 30.0 * 86_400.0;
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!(
            "'{text}' is not a number of seconds from 0 to {MAX}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: LoadOptions,
    }

    fn plan(arguments: &[&str]) -> Result<Plan, String> {
        let line = std::iter::once("load").chain(arguments.iter().copied());
        Line::try_parse_from(line)
            .map_err(|error| error.to_string())?
            .options
            .plan(|| 5)
    }

    #[test]
    fn the_defaults_are_a_plan() {
        let plan = plan(&["--server", "127.0.0.1:6000"]).expect("the defaults");
        assert_eq!(
            (plan.clients, plan.in_flight, plan.batch, plan.seed),
            (50, 1, 1, 5)
        );
        assert_eq!(plan.duration, Duration::from_secs(10));
    }

    #[test]
    fn every_value_outside_its_limits_is_refused_with_its_name() {
        let wrong: &[&[&str]] = &[
            &["--clients", "0"],
            &["--clients", "8193"],
            &["--in-flight", "0"],
            &["--in-flight", "4097"],
            &["--key-size", "9"],
            &["--key-size", "65536"],
            &["--value-size", "33554433"],
            &["--keys", "0"],
            &["--batch", "0"],
            &["--batch", "10001"],
            &["--duration", "0"],
            &["--duration", "-1"],
            &["--duration", "NaN"],
            &["--warm-up", "inf"],
            &["--mix", "1"],
            &["--distribution", "normal"],
        ];
        for arguments in wrong {
            let message = plan(&[&arguments.join("=")]).expect_err(arguments[1]);
            assert!(message.contains(arguments[0]), "{arguments:?}: {message}");
        }
    }

    #[test]
    fn options_that_make_no_sense_together_are_refused() {
        let wrong: &[&[&str]] = &[
            &["--verify", "--value-size", "31"],
            &["--batch", "10000", "--value-size", "4096"],
            &["--ack-log", "/tmp/x", "--mix", "1:0"],
            &["--clients", "8000", "--in-flight", "4000"],
        ];
        for arguments in wrong {
            plan(arguments).expect_err(arguments[0]);
        }
        plan(&["--verify", "--value-size", "32"]).expect("the shortest value that can be verified");
        plan(&["--ack-log", "/tmp/x", "--mix", "1:0", "--preload"])
            .expect("the preload fills the log");
    }
}

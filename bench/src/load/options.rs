//! The command line of `orlop-bench load`, and the plan that it becomes once every value is checked.
//!
//! Guarantees: a `Plan` respects every limit of the wire, so that a refusal by the server during the run is news.
//! Read by every file of the load; written nowhere after the start.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use orlop::client::tokio::Address;
use orlop::limits;

use super::driver::System;
use super::keys::{KEY_SIZE_MIN, KEYS_MAX, KeySpace};
use super::mix::{Kind, Mix};
use super::random::Distribution;
use super::sizes::Sizes;
use super::value::HEADER_LEN;
use super::workload::Workload;

/// Clients times requests in flight: beyond it the generator measures itself.
const WORKERS_MAX: usize = 100_000;

/// Fewest calls per second of an open loop: at fewer, a server that has nothing to do looks like one that has stopped.
const RATE_MIN: f64 = 1.0;
const RATE_MAX: f64 = 1e7;

#[derive(Debug, Clone, Args)]
pub(crate) struct LoadOptions {
    /// Server to load: HOST:PORT or unix:PATH; the default is the system's usual port on 127.0.0.1
    #[arg(long, env = "ORLOP_SERVER", value_name = "ADDR")]
    server: Option<Address>,

    /// What the server speaks: orlop, redis, valkey, memcached or etcd
    #[arg(long, value_name = "NAME", default_value = "orlop")]
    system: System,

    /// Connections
    #[arg(long, value_name = "N", default_value_t = 50)]
    clients: usize,

    /// Requests that each connection keeps in flight; with --rate at most
    #[arg(long, value_name = "N", default_value_t = 1)]
    in_flight: usize,

    /// Open loop: calls per second over all connections, as a Poisson process; the default is a closed loop
    #[arg(long, value_name = "N")]
    rate: Option<f64>,

    /// Seconds to measure
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    duration: Duration,

    /// Seconds of load before measuring starts
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    warm_up: Duration,

    /// Operations, distribution and sizes by name: read-only, half, write-only, prefix, ycsb-a to ycsb-f, etc
    #[arg(long, value_name = "NAME")]
    workload: Option<Workload>,

    /// Weights of the operations, read:write or read:write:prefix; the default is the workload's, or 50:50
    #[arg(long, value_name = "R:W[:P]")]
    mix: Option<Mix>,

    /// Bytes of a key; the default is the workload's, or 16
    #[arg(long, value_name = "BYTES")]
    key_size: Option<usize>,

    /// Bytes of a value; the default is the workload's, or 512
    #[arg(long, value_name = "BYTES")]
    value_size: Option<usize>,

    /// Number of different keys at the start
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    keys: u64,

    /// How keys are chosen: uniform, zipfian (theta 0.99, scrambled as YCSB does it) or latest (the newest are the
    /// hottest); the default is the workload's, or uniform
    #[arg(long, value_name = "NAME")]
    distribution: Option<Distribution>,

    /// Keys in one call: above 1, reads are `getMany` and writes are `write`
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,

    /// Write every key once before the load starts
    #[arg(long)]
    preload: bool,

    /// Check every answer, and read all acknowledged writes back at the end (orlop only)
    #[arg(long)]
    verify: bool,

    /// Append a line to this file for every acknowledged write (the file is replaced; orlop only)
    #[arg(long, value_name = "FILE")]
    ack_log: Option<PathBuf>,

    /// Ask the owner of each key, over a connection to each shard (orlop only)
    #[arg(long)]
    shard_aware: bool,

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
    pub(crate) system: System,
    pub(crate) clients: usize,
    pub(crate) in_flight: usize,
    pub(crate) duration: Duration,
    pub(crate) warm_up: Duration,
    /// Calls per second of an open loop; nothing: a closed one.
    pub(crate) rate: Option<f64>,
    pub(crate) workload: Option<Workload>,
    pub(crate) mix: Mix,
    pub(crate) keys: KeySpace,
    pub(crate) value_size: Sizes,
    pub(crate) distribution: Distribution,
    pub(crate) batch: usize,
    pub(crate) preload: bool,
    pub(crate) verify: bool,
    pub(crate) ack_log: Option<PathBuf>,
    /// Each client has a connection to each shard.
    pub(crate) shard_aware: bool,
    pub(crate) seed: u64,
}

impl LoadOptions {
    /// The plan, or a sentence that names the option, its value and its limit.
    pub(crate) fn plan(&self, new_seed: impl FnOnce() -> u64) -> Result<Plan, String> {
        let shape = Workload::shape(self.workload);
        let plan = Plan {
            server: self.server.clone().unwrap_or(self.system.usual_address()),
            system: self.system,
            clients: self.clients,
            in_flight: self.in_flight,
            duration: self.duration,
            warm_up: self.warm_up,
            rate: self.rate,
            workload: self.workload,
            mix: self.mix.unwrap_or(shape.mix),
            keys: KeySpace {
                count: self.keys,
                size: self.key_size.map_or(shape.key_size, Sizes::Fixed),
            },
            value_size: self.value_size.map_or(shape.value_size, Sizes::Fixed),
            distribution: self.distribution.unwrap_or(shape.distribution),
            batch: self.batch,
            preload: self.preload,
            verify: self.verify,
            shard_aware: self.shard_aware,
            ack_log: self.ack_log.clone(),
            seed: self.seed.unwrap_or_else(new_seed),
        };
        plan.within_limits()?;
        plan.makes_sense()?;
        plan.system.can(&plan)?;
        Ok(plan)
    }
}

impl Plan {
    fn within_limits(&self) -> Result<(), String> {
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
        let key_size = self.keys.size;
        within("--key-size", key_size.min(), KEY_SIZE_MIN, usize::MAX)?;
        within(
            "--key-size",
            key_size.max(),
            KEY_SIZE_MIN,
            limits::KEY_LEN_MAX,
        )?;
        within(
            "--value-size",
            self.value_size.max(),
            0,
            limits::VALUE_LEN_MAX,
        )?;
        within("--keys", self.keys.count, 1, KEYS_MAX)?;
        within("--batch", self.batch, 1, limits::BATCH_MAX)?;
        if self.batch > 1 {
            within(
                "--batch times the largest size of a key and a value",
                self.batch * (key_size.max() + self.value_size.max()),
                1,
                limits::ANSWER_BYTES_MAX,
            )?;
        }
        if let Some(rate) = self.rate {
            within("--rate", rate, RATE_MIN, RATE_MAX)?;
        }
        if self.duration.is_zero() {
            return Err("--duration is 0: nothing would be measured; give at least 0.1".to_owned());
        }
        Ok(())
    }

    fn makes_sense(&self) -> Result<(), String> {
        if self.verify && self.value_size.min() < HEADER_LEN {
            return Err(format!(
                "--value-size is {}, but --verify needs values of at least {HEADER_LEN} bytes, which say whose they are",
                self.value_size
            ));
        }
        if self.verify && (self.mix.has(Kind::Insert) || self.mix.has(Kind::Scan)) {
            return Err(format!(
                "--verify checks the keys that are there from the start, and {} inserts new ones and scans them: leave --verify out",
                self.name()
            ));
        }
        if self.batch > 1 && self.mix.kinds().any(Kind::is_never_batched) {
            return Err(format!(
                "--batch is {}, but inserts, scans and read-modify-writes of {} take one key: leave --batch out",
                self.batch,
                self.name()
            ));
        }
        let writes = [Kind::Write, Kind::Insert, Kind::ReadModifyWrite];
        if self.ack_log.is_some() && !self.preload && !writes.iter().any(|kind| self.mix.has(*kind))
        {
            return Err(format!(
                "--ack-log with --mix {} would stay empty: give writes a weight, or --preload",
                self.mix
            ));
        }
        Ok(())
    }

    /// What the load is called in messages: its workload, or its mix.
    pub(crate) fn name(&self) -> String {
        match self.workload {
            Some(workload) => format!("--workload {workload}"),
            None => format!("--mix {}", self.mix),
        }
    }

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
    // Asked this way round for the sake of NaN, which is not inside anything.
    if (&least..=&most).contains(&&value) {
        return Ok(());
    }
    Err(format!("{name} is {value}: give {least} to {most}"))
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
pub(crate) mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: LoadOptions,
    }

    /// What these arguments mean; for the tests of all files that read a plan.
    pub(crate) fn plan(arguments: &[&str]) -> Result<Plan, String> {
        let line = std::iter::once("load").chain(arguments.iter().copied());
        Line::try_parse_from(line)
            .map_err(|error| error.to_string())?
            .options
            .plan(|| 5)
    }

    fn options(arguments: &[&str]) -> LoadOptions {
        Line::parse_from(std::iter::once("load").chain(arguments.iter().copied())).options
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
            &["--rate", "0.5"],
            &["--rate", "NaN"],
            &["--rate", "20000000"],
            &["--rate", "many"],
            &["--workload", "ycsb-g"],
            &["--system", "mysql"],
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
            &["--workload", "ycsb-d", "--verify"],
            &["--workload", "ycsb-e", "--verify"],
            &["--workload", "etc", "--verify"],
            &["--workload", "ycsb-f", "--batch", "2"],
            &["--workload", "etc", "--batch", "100"],
        ];
        for arguments in wrong {
            plan(arguments).expect_err(arguments[0]);
        }
        plan(&["--workload", "ycsb-f", "--verify"]).expect("two calls of one key");
        plan(&["--verify", "--value-size", "32"]).expect("the shortest value that can be verified");
        plan(&["--ack-log", "/tmp/x", "--mix", "1:0", "--preload"])
            .expect("the preload fills the log");
    }

    #[test]
    fn a_workload_sets_what_is_not_given() {
        let plan = |more: &[&str]| {
            let arguments = [&["--workload", "ycsb-b"], more].concat();
            plan(&arguments).expect("a plan")
        };
        let of = plan(&[]);
        assert_eq!(of.mix.to_string(), "95:5:0");
        assert_eq!(of.distribution, Distribution::Zipfian);
        assert_eq!(of.keys.size, Sizes::Fixed(23));
        assert_eq!(of.value_size, Sizes::Fixed(1000));
        let of = plan(&[
            "--mix",
            "1:2",
            "--value-size",
            "9",
            "--distribution",
            "uniform",
        ]);
        assert_eq!(of.mix.to_string(), "1:2:0");
        assert_eq!(of.distribution, Distribution::Uniform);
        assert_eq!(of.keys.size, Sizes::Fixed(23));
        assert_eq!(of.value_size, Sizes::Fixed(9));
    }

    #[test]
    fn what_a_system_cannot_do_is_a_sentence_with_its_name() {
        let wrong: &[(&str, &[&str])] = &[
            ("redis", &["--verify"]),
            ("redis", &["--shard-aware"]),
            ("valkey", &["--ack-log", "/tmp/x"]),
            ("redis", &["--workload", "prefix"]),
            ("memcached", &["--mix", "1:1:1"]),
            ("redis", &["--workload", "ycsb-e"]),
            ("memcached", &["--workload", "ycsb-e"]),
            ("memcached", &["--key-size", "251"]),
            ("etcd", &["--batch", "2"]),
            ("etcd", &["--server", "unix:/tmp/x"]),
            ("etcd", &["--value-size", "1600000"]),
        ];
        for (system, arguments) in wrong {
            let line = [&["--system", system], *arguments].concat();
            let message = plan(&line).expect_err(arguments[0]);
            assert!(message.contains(system), "{arguments:?}: {message}");
        }
        for (system, arguments) in [
            ("redis", &["--batch", "64"][..]),
            ("memcached", &["--workload", "etc", "--batch", "8"]),
            ("etcd", &["--workload", "prefix"]),
            ("etcd", &["--workload", "ycsb-e"]),
            (
                "memcached",
                &["--workload", "ycsb-d", "--server", "unix:/tmp/x"],
            ),
        ] {
            let line = [&["--system", system], arguments].concat();
            plan(&line).expect(system);
        }
    }

    #[test]
    fn every_system_has_its_usual_port() {
        for (system, address) in [
            ("orlop", "127.0.0.1:6000"),
            ("redis", "127.0.0.1:6379"),
            ("valkey", "127.0.0.1:6379"),
            ("memcached", "127.0.0.1:11211"),
            ("etcd", "127.0.0.1:2379"),
        ] {
            let options = LoadOptions {
                server: None,
                ..options(&["--system", system])
            };
            let plan = options.plan(|| 1).expect("a plan");
            assert_eq!(plan.server.to_string(), address);
        }
    }
}

//! The result of a load, as a table for people and as JSON for programs.
//!
//! Guarantees: both hold the same figures; a run that was cut short says so in both. The JSON's fields are documented
//! in `bench/README.md`; objects of an operation are flat, so that a shell can take a field out of them.

use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use super::driver::System;
use super::mix::Kind;
use super::options::Plan;
use super::tally::{KindTally, Tally};

/// One pass over the keys, before or after the load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass {
    pub(crate) keys: u64,
    pub(crate) took: Duration,
}

/// Everything that is told about a run.
pub(crate) struct Report<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) tally: &'a Tally,
    pub(crate) measured: Duration,
    pub(crate) preload: Option<Pass>,
    /// Set when all acknowledged writes were read back and were right.
    pub(crate) read_back: Option<Pass>,
    pub(crate) checked: u64,
    /// The signal that ended the run early.
    pub(crate) interrupted: Option<&'static str>,
}

const QUANTILES: [(&str, &str, f64); 4] = [
    ("p50", "p50Us", 0.5),
    ("p90", "p90Us", 0.9),
    ("p99", "p99Us", 0.99),
    ("p99.9", "p999Us", 0.999),
];

/// Of the calls of an open loop that were due, the share which must be answered for the rate to count as kept: what a
/// server that is fast enough has not answered yet when the window closes is less.
const KEPT_SHARE_MIN: f64 = 0.99;

fn name(kind: Kind, plan: &Plan) -> (&'static str, &'static str) {
    // The call as orlop's schema names it, or the operation, and the JSON's field.
    let orlop = plan.system == System::Orlop;
    match (kind, plan.batch > 1) {
        (Kind::Read, false) => ("get", "read"),
        (Kind::Read, true) if orlop => ("getMany", "read"),
        (Kind::Read, true) => ("get batch", "read"),
        (Kind::Write, false) => ("set", "write"),
        (Kind::Write, true) if orlop => ("write", "write"),
        (Kind::Write, true) => ("set batch", "write"),
        (Kind::Prefix, _) => (if orlop { "getPrefix" } else { "prefix" }, "prefix"),
        (Kind::Insert, _) => ("insert", "insert"),
        (Kind::Scan, _) => ("scan", "scan"),
        (Kind::ReadModifyWrite, _) => ("get and set", "readModifyWrite"),
    }
}

impl Report<'_> {
    pub(crate) fn json(&self) -> Value {
        let plan = self.plan;
        let mut report = json!({
            "orlopBench": "load",
            "version": env!("CARGO_PKG_VERSION"),
            "interrupted": self.interrupted,
            "system": plan.system.to_string(),
            "server": plan.server.to_string(),
            "loop": if plan.rate.is_some() { "open" } else { "closed" },
            "rate": plan.rate,
            "rateKept": self.rate_kept(),
            "overdue": plan.rate.map(|_| self.tally.all_overdue()),
            "workload": plan.workload.map(|workload| workload.to_string()),
            "clients": plan.clients,
            "inFlight": plan.in_flight,
            "batch": plan.batch,
            "mix": plan.mix.to_string(),
            "keySize": plan.keys.size.fixed(),
            "valueSize": plan.value_size.fixed(),
            "keys": plan.keys.count,
            "distribution": plan.distribution.to_string(),
            "seed": plan.seed,
            "verify": plan.verify,
            "shardAware": plan.shard_aware,
            "warmUpSeconds": plan.warm_up.as_secs_f64(),
            "measuredSeconds": rounded(self.measured.as_secs_f64()),
            "callsPerSecond": self.rate(self.tally.calls()),
            "keysPerSecond": self.rate(self.tally.keys()),
            "absent": self.tally.absent,
            "overloaded": self.tally.overloaded,
            "answersChecked": self.checked,
            "preload": self.preload.map(pass),
            "readBack": self.read_back.map(pass),
        });
        for kind in plan.mix.kinds() {
            report[name(kind, plan).1] = self.kind(self.tally.kind(kind));
        }
        report
    }

    fn kind(&self, tally: &KindTally) -> Value {
        let mut object = json!({
            "calls": tally.calls,
            "keys": tally.keys,
            "callsPerSecond": self.rate(tally.calls),
            "keysPerSecond": self.rate(tally.keys),
            "meanUs": rounded(tally.latencies_ns.mean() / 1e3),
            "maxUs": microseconds(tally.latencies_ns.max()),
        });
        for (_, field, quantile) in QUANTILES {
            object[field] = microseconds(tally.latencies_ns.value_at_quantile(quantile)).into();
        }
        object
    }

    /// What was done, in two lines or three.
    fn heading(&self) -> String {
        let plan = self.plan;
        let mut text = format!(
            "{}: {} clients x {} in flight on {}, {:.1} s measured after {:.1} s of warm-up\n",
            plan.system,
            plan.clients,
            plan.in_flight,
            plan.server,
            self.measured.as_secs_f64(),
            plan.warm_up.as_secs_f64(),
        );
        if plan.shard_aware {
            text += "each client has a connection to each shard and asks the owner of a key\n";
        }
        if let Some(rate) = plan.rate {
            text += &format!(
                "open loop: {rate} calls/s as a Poisson process, latency from when a call was due\n"
            );
        }
        if let Some(workload) = plan.workload {
            text += &format!("workload {workload}, ");
        }
        let weights = match plan.mix.kinds().any(Kind::is_never_batched) {
            true => "read:write:prefix:insert:scan:read-modify-write",
            false => "read:write:prefix",
        };
        text += &format!(
            "mix {} ({weights}), batch {}, {} keys of {} ({}), values of {}, seed {}\n",
            plan.mix,
            plan.batch,
            plan.keys.count,
            plan.keys.size,
            plan.distribution,
            plan.value_size,
            plan.seed,
        );
        text
    }

    pub(crate) fn text(&self) -> String {
        let plan = self.plan;
        let mut text = self.heading();
        if let Some(pass) = self.preload {
            text += &format!("preloaded: {}\n", pass_text(pass));
        }
        text += &self.table().to_string();
        text += &format!(
            "\ntotal: {:.0} calls/s, {:.0} keys/s",
            self.rate(self.tally.calls()),
            self.rate(self.tally.keys())
        );
        if let (Some(rate), Some(kept)) = (plan.rate, self.rate_kept()) {
            text += &format!("; {rate} calls/s were due");
            if !kept {
                text += &format!(
                    "\nRATE NOT KEPT: {} calls were due and not answered; their latency so far is counted, \
                     so the latencies are too low, and grow with --duration",
                    self.tally.all_overdue()
                );
            }
        }
        if self.tally.absent > 0 {
            text += &format!("; {} keys read were absent", self.tally.absent);
        }
        if self.tally.overloaded > 0 {
            text += &format!("; {} answers were 'overloaded'", self.tally.overloaded);
        }
        if plan.verify {
            text += &format!("\nverified: {} answers, none wrong", self.checked);
        }
        if let Some(pass) = self.read_back {
            text += &format!(
                "\nread back: {}, each the last acknowledged write",
                pass_text(pass)
            );
        }
        if let Some(signal) = self.interrupted {
            text += &format!("\nINTERRUPTED by {signal}: the figures are of the part that ran");
            if plan.verify {
                text += ", and nothing was read back";
            }
        }
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        let fixed = ["operation", "calls", "calls/s", "keys/s"].into_iter();
        table.set_header(
            fixed
                .chain(QUANTILES.iter().map(|(title, ..)| *title))
                .chain(["max"]),
        );
        for kind in self.plan.mix.kinds() {
            let tally = self.tally.kind(kind);
            let mut row = vec![
                name(kind, self.plan).0.to_owned(),
                tally.calls.to_string(),
                format!("{:.0}", self.rate(tally.calls)),
                format!("{:.0}", self.rate(tally.keys)),
            ];
            let quantile = |(_, _, quantile): &(_, _, f64)| {
                latency(tally.latencies_ns.value_at_quantile(*quantile))
            };
            row.extend(QUANTILES.iter().map(quantile));
            row.push(latency(tally.latencies_ns.max()));
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// Whether an open loop answered what was due; nothing for a closed one, and for one that was cut short.
    fn rate_kept(&self) -> Option<bool> {
        self.plan.rate.filter(|_| self.interrupted.is_none())?;
        let due = self.tally.all_latencies();
        let answered = due - self.tally.all_overdue();
        Some(answered as f64 >= due as f64 * KEPT_SHARE_MIN)
    }

    fn rate(&self, count: u64) -> f64 {
        per_second(count, self.measured)
    }
}

fn pass(pass: Pass) -> Value {
    json!({
        "keys": pass.keys,
        "seconds": rounded(pass.took.as_secs_f64()),
        "keysPerSecond": per_second(pass.keys, pass.took),
    })
}

fn pass_text(pass: Pass) -> String {
    format!(
        "{} keys in {:.1} s ({:.0} keys/s)",
        pass.keys,
        pass.took.as_secs_f64(),
        per_second(pass.keys, pass.took)
    )
}

fn per_second(count: u64, took: Duration) -> f64 {
    if took.is_zero() {
        0.0
    } else {
        rounded(count as f64 / took.as_secs_f64())
    }
}

/// Three decimals: more are noise.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

pub(crate) fn microseconds(nanoseconds: u64) -> f64 {
    rounded(nanoseconds as f64 / 1e3)
}

/// A latency for people: three significant digits and a unit.
pub(crate) fn latency(nanoseconds: u64) -> String {
    let micros = nanoseconds as f64 / 1e3;
    match micros {
        ..10.0 => format!("{micros:.2} us"),
        ..100.0 => format!("{micros:.1} us"),
        ..1e3 => format!("{micros:.0} us"),
        ..1e4 => format!("{:.2} ms", micros / 1e3),
        ..1e5 => format!("{:.1} ms", micros / 1e3),
        ..1e6 => format!("{:.0} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::options::LoadOptions;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: LoadOptions,
    }

    fn plan(arguments: &[&str]) -> Plan {
        let line = ["load", "--server", "127.0.0.1:6000"]
            .into_iter()
            .chain(arguments.iter().copied());
        Line::parse_from(line).options.plan(|| 1).expect("a plan")
    }

    fn tally() -> Tally {
        let mut tally = Tally::new();
        for micros in 1..=100 {
            tally.answered(Kind::Read, 1, 0);
            tally.took(Kind::Read, Duration::from_micros(micros));
        }
        tally.answered(Kind::Write, 1, 0);
        tally.took(Kind::Write, Duration::from_millis(3));
        tally
    }

    fn report<'a>(
        plan: &'a Plan,
        tally: &'a Tally,
        interrupted: Option<&'static str>,
    ) -> Report<'a> {
        let measured = Duration::from_secs(2);
        Report {
            plan,
            tally,
            measured,
            preload: None,
            read_back: None,
            checked: 0,
            interrupted,
        }
    }

    #[test]
    fn json_holds_rates_and_quantiles_of_the_operations_in_the_mix_only() {
        let (plan, tally) = (plan(&["--mix", "9:1"]), tally());
        let json = report(&plan, &tally, None).json();
        assert_eq!(json["read"]["calls"], 100);
        assert_eq!(json["read"]["callsPerSecond"], 50.0);
        let median = json["read"]["p50Us"].as_f64().expect("a number");
        assert!((median - 50.0).abs() < 0.1, "{median}");
        assert!(
            json["write"]["maxUs"]
                .as_f64()
                .is_some_and(|max| (max - 3000.0).abs() < 5.0)
        );
        assert!(json.get("prefix").is_none());
        assert!(json["interrupted"].is_null());
    }

    #[test]
    fn the_table_names_the_calls_and_a_cut_run_says_so() {
        let (plan, tally) = (
            plan(&["--mix", "9:1", "--batch", "64", "--verify"]),
            tally(),
        );
        let text = report(&plan, &tally, None).text();
        assert!(
            text.contains("getMany") && text.contains("50.0 us") && text.contains("3.00 ms"),
            "{text}"
        );
        assert!(
            text.contains("none wrong") && !text.contains("INTERRUPTED"),
            "{text}"
        );
        let text = report(&plan, &tally, Some("SIGINT")).text();
        assert!(
            text.contains("INTERRUPTED by SIGINT") && text.contains("nothing was read back"),
            "{text}"
        );
        assert_eq!(
            report(&plan, &tally, Some("SIGINT")).json()["interrupted"],
            "SIGINT"
        );
    }

    #[test]
    fn an_open_loop_tells_its_rate_and_whether_it_was_kept() {
        let plan = plan(&[
            "--rate",
            "1500",
            "--workload",
            "ycsb-d",
            "--system",
            "redis",
        ]);
        let mut tally = tally();
        let json = report(&plan, &tally, None).json();
        let told = ["system", "loop", "rate", "rateKept", "workload", "mix"]
            .map(|field| json[field].to_string());
        let expected = [
            "\"redis\"",
            "\"open\"",
            "1500.0",
            "true",
            "\"ycsb-d\"",
            "\"95:0:0:5:0:0\"",
        ];
        assert_eq!(told, expected);
        assert!(json["insert"].is_object() && json["write"].is_null());
        let text = report(&plan, &tally, None).text();
        assert!(
            text.contains("1500 calls/s were due") && !text.contains("NOT KEPT"),
            "{text}"
        );
        // Of 103 calls 101 are answered.
        for _ in 0..2 {
            tally.overdue(Kind::Insert, Duration::from_secs(1));
        }
        let json = report(&plan, &tally, None).json();
        assert_eq!(json["rateKept"], false);
        assert_eq!(json["overdue"], 2);
        let text = report(&plan, &tally, None).text();
        assert!(text.contains("RATE NOT KEPT: 2 calls"), "{text}");
        let json = report(&plan, &tally, Some("SIGINT")).json();
        assert!(json["rateKept"].is_null(), "{json}");
    }

    #[test]
    fn a_closed_loop_of_etc_has_no_rate_and_no_single_size() {
        let (plan, tally) = (plan(&["--workload", "etc"]), tally());
        let json = report(&plan, &tally, None).json();
        assert_eq!(json["loop"], "closed");
        for field in ["rate", "rateKept", "overdue", "keySize", "valueSize"] {
            assert!(json[field].is_null(), "{field}: {json}");
        }
        let text = report(&plan, &tally, None).text();
        assert!(
            text.contains("workload etc") && text.contains("ETC-like"),
            "{text}"
        );
    }

    #[test]
    fn latencies_have_three_digits() {
        let cases = [
            (1_234, "1.23 us"),
            (54_321, "54.3 us"),
            (543_210, "543 us"),
            (5_432_100, "5.43 ms"),
        ];
        for (nanoseconds, expected) in cases {
            assert_eq!(latency(nanoseconds), expected);
        }
        assert_eq!(latency(12_000_000_000), "12.00 s");
    }
}

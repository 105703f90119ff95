//! Other systems beside orlop: the same keys, sizes, connections and calls in flight, one system after the other.

use super::chart::{Bars, Unit};
use super::figure::{count, digits, latency, size};
use super::machine::Machine;
use super::raw::{Object, ReportError};
use super::sample::{Rounds, Sample, commands, rounds, samples, skipped};
use super::section::{Plot, Section};
use super::table::Table;

const ORLOP: &str = "orlop";

/// Systems that answer a write before it is on the disk.
const NOT_DURABLE: [&str; 3] = ["redis", "valkey", "memcached"];

/// What was asked of a system in one run.
fn asked(sample: &Sample) -> String {
    match (sample.clients, sample.in_flight) {
        (1, 1) => format!("{}, 1 client", sample.operation),
        (clients, 1) => format!("{}, {clients} clients", sample.operation),
        (clients, in_flight) => format!("{}, {clients} x {in_flight}", sample.operation),
    }
}

pub(crate) fn section(machine: &Machine, runs: &[Object]) -> Result<Section, ReportError> {
    let samples = samples(runs)?;
    let Some(first) = samples.first() else {
        return Err(machine.wrong("peers was run, but raw/peers.jsonl has no run".to_owned()));
    };
    let groups = rounds(&samples, |sample| (sample.system.clone(), asked(sample)));
    let systems = rounds(&samples, |sample| sample.system.clone());
    let loads = rounds(&samples, asked);
    let skipped = skipped(runs)?;
    let mut tables = Vec::new();
    for load in &loads {
        let shown = asked(load.first());
        tables.push((format!("{shown}: calls per second"), table(&groups, &shown)));
    }
    tables.push((
        "How each system ran".to_owned(),
        started(runs, &systems, &skipped)?,
    ));
    let bars = Bars {
        title: "Calls per second".to_owned(),
        groups: loads.iter().map(|load| asked(load.first())).collect(),
        systems: systems
            .iter()
            .map(|system| {
                let name = &system.first().system;
                let rate = |load: &Rounds| found(&groups, name, &asked(load.first())).map(rate);
                (name.clone(), loads.iter().map(rate).collect())
            })
            .collect(),
        y_title: "calls per second",
        unit: Unit::Rate,
    };
    Ok(Section {
        name: "peers",
        title: "Beside other systems",
        question: "How does orlop compare with other stores on this machine, asked in the same way?",
        method: format!(
            "Values of {}, keys uniformly at random, all in memory, each server on one CPU and the load generator on the other. \"50 x \
             16\" is 50 connections with 16 calls in flight each. In each round each system is started on an empty directory, filled, \
             loaded and stopped, one after the other; {}. A ratio above 1 says that orlop answers more.",
            size(first.value_size as f64),
            machine.rounds()?
        ),
        findings: findings(&groups, &loads, &skipped),
        plots: vec![Plot {
            name: "peers",
            caption: "Calls per second, medians of the rounds",
            svg: bars.svg(),
        }],
        tables,
        limits: vec![
            "That a system is better or worse as a whole: each has features and promises that the others lack. Rows that are not \
             durable do less for a write.",
            "Several CPUs for a server, a network between the two sides, data that do not fit into memory.",
            "redb and fjall as libraries: they stand behind orlop's protocol here, in a server of orlop-bench.",
        ],
        commands: commands(runs)?,
    })
}

fn found<'a>(groups: &'a [Rounds], system: &str, load: &str) -> Option<&'a Rounds> {
    let wanted = |group: &&Rounds| group.first().system == system && asked(group.first()) == load;
    groups.iter().find(wanted)
}

fn rate(group: &Rounds) -> f64 {
    group.median(|sample| sample.calls_per_second)
}

fn durable(system: &str) -> bool {
    !NOT_DURABLE.contains(&system)
}

fn table(groups: &[Rounds], load: &str) -> Table {
    let mut table = Table::new(
        2,
        &[
            "system",
            "a write is answered",
            "calls/s",
            "of the rounds",
            "p50",
            "p99",
            "orlop / this",
        ],
    );
    let orlop = found(groups, ORLOP, load).map(rate);
    for group in groups.iter().filter(|group| asked(group.first()) == load) {
        let rates = group.spread(|sample| sample.calls_per_second);
        let system = &group.first().system;
        table.row([
            system.clone(),
            if durable(system) {
                "when durable"
            } else {
                "before"
            }
            .to_owned(),
            count(rates.median),
            format!("{} to {}", count(rates.least), count(rates.most)),
            latency(group.median(|sample| sample.p50_us)),
            latency(group.median(|sample| sample.p99_us)),
            orlop.map_or(String::new(), |orlop| digits(orlop / rates.median)),
        ]);
    }
    table
}

/// What each system said of itself when it was started, and which ones were not.
fn started(
    runs: &[Object],
    systems: &[Rounds],
    skipped: &[(String, String)],
) -> Result<Table, ReportError> {
    let mut table = Table::new(2, &["system", "settings"]);
    for system in systems {
        let name = &system.first().system;
        let said = runs.iter().find(|run| {
            run.has("/settings") && run.text("/system").is_ok_and(|system| system == name)
        });
        let settings = said.map_or(Ok(""), |run| run.text("/settings"))?;
        table.row([name.clone(), settings.to_owned()]);
    }
    for (system, sentence) in skipped {
        table.row([system.clone(), format!("not measured: {sentence}")]);
    }
    Ok(table)
}

fn findings(groups: &[Rounds], loads: &[Rounds], skipped: &[(String, String)]) -> Vec<String> {
    let mut findings = Vec::new();
    for load in loads {
        let shown = asked(load.first());
        let Some(orlop) = found(groups, ORLOP, &shown).map(rate) else {
            continue;
        };
        let is_write = load.first().operation == "SET";
        let others = groups.iter().filter(|group| {
            let sample = group.first();
            // Writes are compared with writes that promise the same.
            asked(sample) == shown
                && sample.system != ORLOP
                && (!is_write || durable(&sample.system))
        });
        let ratios: Vec<String> = others
            .map(|other| format!("{} x {}", digits(orlop / rate(other)), other.first().system))
            .collect();
        let kind = if is_write { "durable " } else { "" };
        let beside = match ratios.is_empty() {
            true => "beside nothing comparable".to_owned(),
            false => ratios.join(", "),
        };
        findings.push(format!("{kind}{shown}: {}/s, {beside}.", count(orlop)));
    }
    for (system, sentence) in skipped {
        findings.push(format!(
            "{system} was not measured: {}.",
            sentence.trim_end_matches('.')
        ));
    }
    findings
}

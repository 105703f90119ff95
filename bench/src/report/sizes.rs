//! Experiment 1: values of different sizes, one caller.

use super::chart::{Lines, Series, Unit};
use super::curves::{Growing, LINES, LOADS, latencies, of};
use super::figure::{count, digits, latency, percent, size};
use super::machine::Machine;
use super::raw::{Object, ReportError};
use super::sample::{Rounds, commands, rounds, samples};
use super::section::{Plot, Section};
use super::table::Table;

const MIB: f64 = 1048576.0;

const SIZES: Growing = Growing {
    title: "size of a value",
    of: |sample| sample.value_size,
    shown: |bytes| size(bytes as f64),
};

pub(crate) fn section(machine: &Machine, runs: &[Object]) -> Result<Section, ReportError> {
    let mut samples = samples(runs)?;
    samples.sort_by_key(|sample| sample.value_size);
    let groups = rounds(&samples, |sample| {
        (sample.value_size, sample.load.clone(), sample.operation)
    });
    Ok(Section {
        name: "exp1",
        title: "Experiment 1: sizes of values",
        question: "How long does one caller wait for one call, from a small value to a large one?",
        method: format!(
            "One client with one call at a time, keys uniformly at random, values in memory; read-only, and half reads and half \
             durable writes. A store of its own for each size and round, the sizes one after the other in each round; {}.",
            machine.rounds()?
        ),
        findings: findings(machine, &groups)?,
        plots: vec![
            Plot {
                name: "exp1-latency",
                caption: "Latency of one call over the size of its value: median (solid) and 99th percentile (dashed)",
                svg: latencies(&groups, "One call, by size of the value", SIZES),
            },
            Plot {
                name: "exp1-throughput",
                caption: "Bytes of values that one caller moves; with 50/50 both directions together",
                svg: throughput(machine, &groups)?,
            },
        ],
        tables: vec![(
            "Latency and throughput by size of the value".to_owned(),
            table(&groups),
        )],
        limits: vec![
            "What many callers get: one call at a time leaves the server idle between two calls (experiment 3).",
            "A network: both ends are on one machine, on the loopback.",
            "Reads from the disk: all values are in memory.",
        ],
        commands: commands(runs)?,
    })
}

fn table(groups: &[Rounds]) -> Table {
    let mut table = Table::new(
        3,
        &[
            "value",
            "load",
            "call",
            "p50",
            "p99",
            "p99.9",
            "calls/s",
            "MiB/s",
            "p50 of the rounds",
        ],
    );
    for group in groups {
        let sample = group.first();
        let p50 = group.spread(|sample| sample.p50_us);
        let rate = group.median(|sample| sample.calls_per_second);
        table.row([
            size(sample.value_size as f64),
            sample.load.clone(),
            sample.operation.to_owned(),
            latency(p50.median),
            latency(group.median(|sample| sample.p99_us)),
            latency(group.median(|sample| sample.p999_us)),
            count(rate),
            digits(rate * sample.value_size as f64 / MIB),
            format!("{} to {}", latency(p50.least), latency(p50.most)),
        ]);
    }
    table
}

/// Value bytes of all calls of the run, in MiB per second.
fn moved(group: &Rounds) -> f64 {
    group.median(|sample| sample.run_calls_per_second * sample.value_size as f64 / MIB)
}

fn throughput(machine: &Machine, groups: &[Rounds]) -> Result<String, ReportError> {
    let mut series = Vec::new();
    for (colour, load) in LOADS.into_iter().enumerate() {
        let points = of(groups, load, "GET")
            .into_iter()
            .map(|group| (SIZES.x(group), moved(group)));
        series.push(Series {
            name: load.to_owned(),
            colour,
            dashed: false,
            points: points.collect(),
        });
    }
    let x_ticks = SIZES.ticks(groups);
    let baselines = [
        ("loopback alone", 6, machine.loopback_mib()?),
        ("device, 1 MiB writes", 7, machine.device_write_mib()?),
    ];
    for (name, colour, mib) in baselines {
        if let Some(mib) = mib {
            series.push(Series {
                name: name.to_owned(),
                colour,
                dashed: true,
                points: x_ticks.iter().map(|(at, _)| (*at, mib)).collect(),
            });
        }
    }
    let lines = Lines {
        title: "Bytes moved by one caller, by size of the value".to_owned(),
        x_title: SIZES.title,
        x_ticks,
        y_title: "MiB/s",
        unit: Unit::MibPerSecond,
        logarithmic: true,
        series,
    };
    Ok(lines.svg())
}

fn findings(machine: &Machine, groups: &[Rounds]) -> Result<Vec<String>, ReportError> {
    let mut findings = Vec::new();
    for (load, operation, _) in LINES {
        let line = of(groups, load, operation);
        let (Some(first), Some(last)) = (line.first(), line.last()) else {
            continue;
        };
        let us = |group: &Rounds| latency(group.median(|sample| sample.p50_us));
        findings.push(format!(
            "{operation}, {load}: {} with values of {}, {} with values of {} (p50).",
            us(first),
            size(first.first().value_size as f64),
            us(last),
            size(last.first().value_size as f64),
        ));
    }
    let largest = of(groups, "read-only", "GET").pop();
    if let (Some(group), Some(loopback)) = (largest, machine.loopback_mib()?) {
        findings.push(format!(
            "Reads of the largest values move {} MiB/s, {} of what the loopback carries alone.",
            digits(moved(group)),
            percent(moved(group) / loopback)
        ));
    }
    let largest = of(groups, "50/50", "SET").pop();
    if let (Some(group), Some(device)) = (largest, machine.device_write_mib()?) {
        let mib = group.median(|sample| sample.value_size as f64 / MIB / (sample.p50_us / 1e6));
        findings.push(format!(
            "While a SET of the largest value is under way, {} MiB/s become durable (size by p50), {} of what the device takes in \
             1 MiB O_DSYNC writes.",
            digits(mib),
            percent(mib / device)
        ));
    }
    Ok(findings)
}

//! Experiment 3: more and more clients, until throughput stops growing.

use super::chart::{Lines, Series, Unit};
use super::curves::{Growing, LOADS, latencies, of};
use super::figure::{count, latency};
use super::machine::Machine;
use super::raw::{Object, ReportError};
use super::sample::{Rounds, commands, rounds, samples};
use super::section::{Plot, Section};
use super::table::Table;

/// A throughput of this share of the best is as good as the best.
const AS_GOOD: f64 = 0.95;

const CLIENTS: Growing = Growing {
    title: "clients, one call at a time each",
    of: |sample| sample.clients,
    shown: |clients| clients.to_string(),
};

pub(crate) fn section(machine: &Machine, runs: &[Object]) -> Result<Section, ReportError> {
    let mut samples = samples(runs)?;
    samples.sort_by_key(|sample| sample.clients);
    let groups = rounds(&samples, |sample| {
        (sample.load.clone(), sample.clients, sample.operation)
    });
    Ok(Section {
        name: "exp3",
        title: "Experiment 3: number of clients",
        question: "How many callers does one shard serve before more of them only wait longer?",
        method: format!(
            "Each client is a connection with one call at a time; their number doubles until two doublings in a row bring less than \
             5 % more calls per second. Keys uniformly at random, values in memory; read-only, and half reads and half durable \
             writes; {}.",
            machine.rounds()?
        ),
        findings: LOADS
            .into_iter()
            .filter_map(|load| knee(&groups, load))
            .collect(),
        plots: vec![
            Plot {
                name: "exp3-throughput",
                caption: "Calls per second over the number of clients; with 50/50 reads and writes together",
                svg: throughput(&groups),
            },
            Plot {
                name: "exp3-latency",
                caption: "Latency of one call over the number of clients: median (solid) and 99th percentile (dashed)",
                svg: latencies(&groups, "Latency by number of clients", CLIENTS),
            },
        ],
        tables: vec![(
            "Latency and throughput by number of clients".to_owned(),
            table(&groups),
        )],
        limits: vec![
            "Latency at a given rate of arrivals: in a closed loop a slow answer keeps its caller from asking (orlop-bench load --rate asks regardless).",
            "More than one shard, or a load generator that has more than one CPU: where the generator is the limit, the server could do more.",
            "Several calls in flight on one connection, which raise throughput further (experiment with the peers).",
        ],
        commands: commands(runs)?,
    })
}

fn table(groups: &[Rounds]) -> Table {
    let mut table = Table::new(
        3,
        &[
            "clients",
            "load",
            "call",
            "p50",
            "p99",
            "p99.9",
            "calls/s",
            "all calls/s",
            "all calls/s of the rounds",
        ],
    );
    for group in groups {
        let sample = group.first();
        let all = group.spread(|sample| sample.run_calls_per_second);
        table.row([
            sample.clients.to_string(),
            sample.load.clone(),
            sample.operation.to_owned(),
            latency(group.median(|sample| sample.p50_us)),
            latency(group.median(|sample| sample.p99_us)),
            latency(group.median(|sample| sample.p999_us)),
            count(group.median(|sample| sample.calls_per_second)),
            count(all.median),
            format!("{} to {}", count(all.least), count(all.most)),
        ]);
    }
    table
}

fn all_calls(group: &Rounds) -> f64 {
    group.median(|sample| sample.run_calls_per_second)
}

/// From where on more clients bring nothing but latency, in a sentence.
fn knee(groups: &[Rounds], load: &str) -> Option<String> {
    let line = of(groups, load, "GET");
    let best = line
        .iter()
        .map(|group| all_calls(group))
        .fold(0.0, f64::max);
    let knee = line
        .iter()
        .find(|group| all_calls(group) >= AS_GOOD * best)?;
    let last = line.last()?;
    let p99 = |group: &Rounds| latency(group.median(|sample| sample.p99_us));
    let mut sentence = format!(
        "{load}: throughput grows up to {} ({}/s, within 5 % of the best, {}/s); a GET there takes {} (p50), {} (p99)",
        clients(knee),
        count(all_calls(knee)),
        count(best),
        latency(knee.median(|sample| sample.p50_us)),
        p99(knee),
    );
    if last.first().clients > knee.first().clients {
        sentence += &format!(
            ". With {} it is {}/s and p99 is {}",
            clients(last),
            count(all_calls(last)),
            p99(last)
        );
    } else {
        sentence += ", and the sweep ended there: more clients may bring more";
    }
    Some(sentence + ".")
}

fn clients(group: &Rounds) -> String {
    match group.first().clients {
        1 => "1 client".to_owned(),
        number => format!("{number} clients"),
    }
}

fn throughput(groups: &[Rounds]) -> String {
    let series = LOADS.into_iter().enumerate();
    Lines {
        title: "Throughput by number of clients".to_owned(),
        x_title: CLIENTS.title,
        x_ticks: CLIENTS.ticks(groups),
        y_title: "calls per second",
        unit: Unit::Rate,
        logarithmic: false,
        series: series
            .map(|(colour, load)| Series {
                name: load.to_owned(),
                colour,
                dashed: false,
                points: of(groups, load, "GET")
                    .into_iter()
                    .map(|group| (CLIENTS.x(group), all_calls(group)))
                    .collect(),
            })
            .collect(),
    }
    .svg()
}

//! Experiment 2: the server goes down and comes back with a store that fills memory.

use super::chart::{Bars, Unit};
use super::figure::{count, digits, size, time};
use super::machine::Machine;
use super::raw::{Object, ReportError};
use super::sample::{Spread, commands, skipped};
use super::section::{Plot, Section};
use super::table::Table;

/// The moments after the start, as the script calls them, and in words.
const MOMENTS: [(&str, &str); 3] = [
    ("readyMs", "ready"),
    ("firstReadMs", "first value read"),
    ("allInMemoryMs", "everything in memory"),
];

/// One system: how long it took to stop, and then from the start to each of `MOMENTS`, in milliseconds.
struct Restarts {
    system: String,
    stop: Spread,
    moments: [Spread; 3],
}

pub(crate) fn section(machine: &Machine, runs: &[Object]) -> Result<Section, ReportError> {
    let restarts = restarts(runs)?;
    let Some(first) = runs.iter().find(|run| run.has("/restart")) else {
        return Err(machine.wrong("exp2 was run, but raw/exp2.jsonl has no restart".to_owned()));
    };
    let (keys, value_size) = (
        first.number("/restart/keys")?,
        first.number("/restart/valueSize")?,
    );
    let skipped = skipped(runs)?;
    let bars = Bars {
        title: format!("Restart with {} of values", size(keys * value_size)),
        groups: MOMENTS
            .iter()
            .map(|(_, words)| (*words).to_owned())
            .collect(),
        systems: restarts
            .iter()
            .map(|system| {
                let moments = system.moments.iter().map(|moment| Some(moment.median));
                (system.system.clone(), moments.collect())
            })
            .collect(),
        y_title: "time since the start",
        unit: Unit::Time,
    };
    Ok(Section {
        name: "exp2",
        title: "Experiment 2: restart",
        question: "How long is the server away when it is stopped and started again with a full store?",
        method: format!(
            "{} keys with values of {} ({}), written once, and the same calls for each system. In each round each system is stopped as its \
             users would (SIGTERM), the page cache is dropped where that is allowed, and it is started again on all CPUs with \
             nothing else to do. Ready is when it says or answers so; the first value read is the first key that was written. \
             Redis has everything in memory when it is ready; orlop serves at once and brings values back in the background. {}.",
            count(keys),
            size(value_size),
            size(keys * value_size),
            rounds_of(runs)?,
        ),
        findings: findings(&restarts, &skipped),
        plots: vec![Plot {
            name: "exp2-restart",
            caption: "Time from the start of the process",
            svg: bars.svg(),
        }],
        tables: vec![(
            "Times of a restart, medians".to_owned(),
            table(&restarts, &skipped),
        )],
        limits: vec![
            "A restart after a crash: the log then has a tail without an index, which is read; the tests of durability do that.",
            "The first value is read by a program that is started for it, which adds its own start of some milliseconds.",
            "Redis to the millisecond: its times hold what the script that starts it takes, about 0.1 s.",
            "A peer whose log was never rewritten: Redis was asked to rewrite its append-only file, which is its faster start.",
        ],
        commands: commands(runs)?,
    })
}

fn table(restarts: &[Restarts], skipped: &[(String, String)]) -> Table {
    let mut table = Table::new(
        1,
        &[
            "system",
            "stopped in",
            "ready",
            "first value read",
            "everything in memory",
            "ready, of the rounds",
        ],
    );
    for system in restarts {
        let ready = system.moments[0];
        let cells = [system.system.clone(), time(system.stop.median)];
        let moments = system.moments.iter().map(|moment| time(moment.median));
        let rounds = format!("{} to {}", time(ready.least), time(ready.most));
        table.row(cells.into_iter().chain(moments).chain([rounds]));
    }
    for (system, sentence) in skipped {
        table.row([format!("{system}: not measured ({sentence})")]);
    }
    table
}

/// How many times each system was restarted, in words.
fn rounds_of(runs: &[Object]) -> Result<String, ReportError> {
    let rounds: Result<Vec<u64>, _> = runs
        .iter()
        .filter(|run| run.has("/restart"))
        .map(|run| run.whole("/round"))
        .collect();
    Ok(match rounds?.into_iter().max() {
        Some(1) | None => "One round".to_owned(),
        Some(rounds) => format!("Medians of {rounds} rounds"),
    })
}

fn restarts(runs: &[Object]) -> Result<Vec<Restarts>, ReportError> {
    let mut systems: Vec<String> = Vec::new();
    for run in runs.iter().filter(|run| run.has("/restart")) {
        let system = run.text("/system")?.to_owned();
        if !systems.contains(&system) {
            systems.push(system);
        }
    }
    let of = |system: &str, field: &str| {
        let numbers: Result<Vec<f64>, _> = runs
            .iter()
            .filter(|run| {
                run.has("/restart") && run.text("/system").is_ok_and(|name| name == system)
            })
            .map(|run| run.number(&format!("/restart/{field}")))
            .collect();
        numbers.map(|numbers| Spread::of(numbers.into_iter()))
    };
    let restart = |system: String| {
        let [ready, first, all] = MOMENTS.map(|(field, _)| of(&system, field));
        Ok(Restarts {
            stop: of(&system, "stopMs")?,
            moments: [ready?, first?, all?],
            system,
        })
    };
    systems.into_iter().map(restart).collect()
}

fn findings(restarts: &[Restarts], skipped: &[(String, String)]) -> Vec<String> {
    let mut findings = Vec::new();
    for system in restarts {
        let [ready, first, all] = system.moments.map(|moment| time(moment.median));
        findings.push(format!(
            "{}: ready after {ready}, the first value after {first}, everything in memory after {all}.",
            system.system
        ));
    }
    let orlop = restarts.iter().find(|system| system.system == "orlop");
    for other in restarts.iter().filter(|system| system.system != "orlop") {
        let Some(orlop) = orlop else { continue };
        for (index, (_, words)) in MOMENTS.iter().enumerate().skip(1) {
            findings.push(format!(
                "Up to {words}, {} takes {} times as long as orlop.",
                other.system,
                digits(other.moments[index].median / orlop.moments[index].median)
            ));
        }
    }
    for (system, sentence) in skipped {
        findings.push(format!("{system} was not measured: {sentence}."));
    }
    findings
}

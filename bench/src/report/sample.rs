//! What one operation of one run of the load generator measured, and medians over rounds.
//!
//! Guarantees: a run that was interrupted, or in which nothing was answered, is refused. Used by the sections of the
//! experiments that load a server.

use super::raw::{Object, ReportError};

/// The median of the rounds, and the least and the most of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of at least one number.
    pub(crate) fn of(numbers: impl Iterator<Item = f64>) -> Spread {
        let mut numbers: Vec<f64> = numbers.collect();
        numbers.sort_by(f64::total_cmp);
        let middle = numbers.len() / 2;
        let median = if numbers.len() % 2 == 1 {
            numbers[middle]
        } else {
            (numbers[middle - 1] + numbers[middle]) / 2.0
        };
        Spread {
            median,
            least: numbers[0],
            most: numbers[numbers.len() - 1],
        }
    }
}

/// One operation of one run.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// As the script named it: `orlop`, `redis-always`.
    pub(crate) system: String,
    /// What was asked: `read-only`, `50/50`, `write-only`.
    pub(crate) load: String,
    /// GET or SET.
    pub(crate) operation: &'static str,
    pub(crate) clients: u64,
    pub(crate) in_flight: u64,
    /// Bytes.
    pub(crate) value_size: u64,
    pub(crate) calls_per_second: f64,
    /// Calls per second of the whole run, all its operations together.
    pub(crate) run_calls_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
}

/// The samples of all runs, in their order; a run has one of each operation in its mix. Lines without a run are left out.
pub(crate) fn samples(runs: &[Object]) -> Result<Vec<Sample>, ReportError> {
    let mut samples = Vec::new();
    for run in runs.iter().filter(|run| run.has("/run")) {
        if run.has("/run/interrupted") {
            return Err(run.wrong("the run was interrupted, its figures are not whole"));
        }
        let before = samples.len();
        for (field, operation) in [("read", "GET"), ("write", "SET")] {
            if run.has(&format!("/run/{field}")) {
                samples.push(sample(run, field, operation)?);
            }
        }
        if samples.len() == before {
            return Err(run.wrong("the run has neither reads nor writes"));
        }
    }
    Ok(samples)
}

fn sample(run: &Object, field: &str, operation: &'static str) -> Result<Sample, ReportError> {
    let number = |name: &str| run.number(&format!("/run/{field}/{name}"));
    if number("callsPerSecond")? <= 0.0 {
        return Err(run.wrong(format!("no {operation} was answered while it was measured")));
    }
    Ok(Sample {
        system: run.text("/system")?.to_owned(),
        load: run.text("/load")?.to_owned(),
        operation,
        clients: run.whole("/run/clients")?,
        in_flight: run.whole("/run/inFlight")?,
        value_size: run.whole("/run/valueSize")?,
        calls_per_second: number("callsPerSecond")?,
        run_calls_per_second: run.number("/run/callsPerSecond")?,
        p50_us: number("p50Us")?,
        p99_us: number("p99Us")?,
        p999_us: number("p999Us")?,
    })
}

/// Samples of the same thing, one of each round.
#[derive(Debug, Clone)]
pub(crate) struct Rounds(Vec<Sample>);

impl Rounds {
    /// Any of them: for what they have in common.
    pub(crate) fn first(&self) -> &Sample {
        &self.0[0]
    }

    pub(crate) fn spread(&self, of: impl Fn(&Sample) -> f64) -> Spread {
        Spread::of(self.0.iter().map(of))
    }

    pub(crate) fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        self.spread(of).median
    }
}

/// Groups samples that have the same key, in the order in which the keys first appear.
pub(crate) fn rounds<K: PartialEq>(samples: &[Sample], key: impl Fn(&Sample) -> K) -> Vec<Rounds> {
    let mut groups: Vec<(K, Vec<Sample>)> = Vec::new();
    for sample in samples {
        let found = key(sample);
        match groups.iter_mut().find(|(known, _)| *known == found) {
            Some((_, group)) => group.push(sample.clone()),
            None => groups.push((found, vec![sample.clone()])),
        }
    }
    groups.into_iter().map(|(_, group)| Rounds(group)).collect()
}

/// Systems that were not measured, each with the sentence why, each once.
pub(crate) fn skipped(runs: &[Object]) -> Result<Vec<(String, String)>, ReportError> {
    let mut skipped = Vec::new();
    for run in runs.iter().filter(|run| run.has("/skipped")) {
        let pair = (
            run.text("/system")?.to_owned(),
            run.text("/skipped")?.to_owned(),
        );
        if !skipped.contains(&pair) {
            skipped.push(pair);
        }
    }
    Ok(skipped)
}

/// The commands of the first round, each once; those of the others differ in their seeds.
pub(crate) fn commands(runs: &[Object]) -> Result<Vec<String>, ReportError> {
    let mut commands = Vec::new();
    for run in runs.iter().filter(|run| run.has("/command")) {
        let command = run.text("/command")?.to_owned();
        if run.whole("/round")? == 1 && !commands.contains(&command) {
            commands.push(command);
        }
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0].into_iter());
        assert_eq!((spread.median, spread.least, spread.most), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of([7.0].into_iter()).median, 7.0);
    }

    #[test]
    fn a_run_that_was_interrupted_or_answered_nothing_is_refused() {
        let line = |interrupted, calls| {
            let read = json!({"callsPerSecond": calls, "p50Us": 1, "p99Us": 2, "p999Us": 3});
            let run = json!({
                "interrupted": interrupted, "clients": 1, "inFlight": 1, "valueSize": 512, "callsPerSecond": calls,
                "read": read,
            });
            Object::of(json!({"system": "orlop", "load": "read-only", "run": run}))
        };
        assert_eq!(samples(&[line(json!(null), 5.0)]).unwrap().len(), 1);
        let error = samples(&[line(json!("SIGINT"), 5.0)]).unwrap_err();
        assert!(error.to_string().contains("interrupted"), "{error}");
        let error = samples(&[line(json!(null), 0.0)]).unwrap_err();
        assert!(error.to_string().contains("no GET"), "{error}");
    }
}

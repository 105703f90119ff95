//! Where and how the experiments ran (`about.json`), and what the machine does without a server (`raw/device.jsonl`,
//! `raw/loopback.jsonl`).

use std::path::Path;

use super::figure::{count, digits, latency, short, size};
use super::raw::{Object, ReportError, about, runs_if_any};
use super::sample::Spread;
use super::table::Table;

pub(crate) struct Machine {
    about: Object,
    device: Vec<Object>,
    loopback: Vec<Object>,
    title: String,
    settings: Vec<(&'static str, String)>,
    baselines: Option<Table>,
    quick: bool,
}

/// The requests of the device's baseline, as `orlop-bench device` calls them.
const DEVICE: [(&str, &str); 4] = [
    ("syncWrite4k", "device: 4 KiB O_DSYNC write"),
    ("syncWrite1m", "device: 1 MiB O_DSYNC write"),
    ("read1m", "device: 1 MiB read, sequential"),
    ("read4k", "device: 4 KiB read, random"),
];

const QUICK: &str = "Made with --quick: it shows that everything works, not how fast anything is.";

impl Machine {
    pub(crate) fn read(directory: &Path) -> Result<Machine, ReportError> {
        let about = about(directory)?;
        let mut machine = Machine {
            device: runs_if_any(directory, "device")?,
            loopback: runs_if_any(directory, "loopback")?,
            title: format!("orlop: experiments of {}", about.text("/date")?),
            settings: Vec::new(),
            baselines: None,
            quick: about.flag("/quick")?,
            about,
        };
        machine.settings = machine.read_settings()?;
        machine.baselines = machine.read_baselines()?;
        Ok(machine)
    }

    /// The experiments that were run, in their order.
    pub(crate) fn experiments(&self) -> Result<Vec<&str>, ReportError> {
        self.about.texts("/experiments")
    }

    /// The error that concerns `about.json`.
    pub(crate) fn wrong(&self, what: String) -> ReportError {
        self.about.wrong(what)
    }

    pub(crate) fn title(&self) -> String {
        self.title.clone()
    }

    pub(crate) fn warning(&self) -> Option<&'static str> {
        self.quick.then_some(QUICK)
    }

    /// Which rounds and which seconds stand behind a figure.
    pub(crate) fn rounds(&self) -> Result<String, ReportError> {
        let rounds = self.about.whole("/rounds")?;
        let seconds = short(&digits(self.about.number("/seconds")?));
        let warm_up = short(&digits(self.about.number("/warmUpSeconds")?));
        let shown = if rounds == 1 {
            format!("one round of {seconds} s")
        } else {
            format!("medians of {rounds} rounds of {seconds} s")
        };
        Ok(format!("{shown} after {warm_up} s of warm-up"))
    }

    pub(crate) fn settings(&self) -> Table {
        let mut table = Table::new(2, &["what", "value"]);
        for (name, value) in &self.settings {
            table.row([(*name).to_owned(), value.clone()]);
        }
        table
    }

    fn read_settings(&self) -> Result<Vec<(&'static str, String)>, ReportError> {
        let about = &self.about;
        let text = |pointer: &str| about.text(pointer).map(str::to_owned);
        let mut settings = vec![
            ("processor", text("/cpu")?),
            ("CPUs that could be used", about.whole("/cpus")?.to_string()),
            ("memory", size(about.number("/memoryBytes")?)),
            ("kernel", text("/kernel")?),
            ("file system of the data", text("/fileSystem")?),
            ("commit", text("/commit")?),
            ("server", text("/server")?),
            ("CPU of the server", about.whole("/serverCpu")?.to_string()),
            (
                "CPU of the load generator",
                about.whole("/loadCpu")?.to_string(),
            ),
            ("rounds", self.rounds()?),
            ("key", size(about.number("/keySize")?)),
            ("command", text("/command")?),
        ];
        settings.push((
            "stolen time",
            format!(
                "a run from which the host withheld more than {} % of the CPUs was repeated, up to {} times; the run that lost least \
                 stands. The figures that stand lost {} to {} %.",
                short(&digits(about.number("/stolenMaxPercent")?)),
                about.whole("/tries")?,
                short(&digits(about.number("/stolenLeastPercent")?)),
                short(&digits(about.number("/stolenMostPercent")?)),
            ),
        ));
        Ok(settings)
    }

    /// The device's and the loopback's own figures; none if neither was measured.
    pub(crate) fn baselines(&self) -> Option<&Table> {
        self.baselines.as_ref()
    }

    fn read_baselines(&self) -> Result<Option<Table>, ReportError> {
        if self.device.is_empty() && self.loopback.is_empty() {
            return Ok(None);
        }
        let mut table = Table::new(
            1,
            &["what", "per second", "MiB/s", "p50", "p99", "p50 of all"],
        );
        for (field, name) in DEVICE {
            let with: Vec<&Object> = self
                .device
                .iter()
                .filter(|run| run.has(&format!("/run/{field}")))
                .collect();
            if with.is_empty() {
                continue;
            }
            let spread = |number: &str| spread(&with, &format!("/run/{field}/{number}"));
            let p50 = spread("p50Us")?;
            table.row([
                name.to_owned(),
                count(spread("perSecond")?.median),
                digits(spread("mibPerSecond")?.median),
                latency(p50.median),
                latency(spread("p99Us")?.median),
                format!("{} to {}", latency(p50.least), latency(p50.most)),
            ]);
        }
        let loopback: Vec<&Object> = self.loopback.iter().collect();
        if !loopback.is_empty() {
            let p50 = spread(&loopback, "/run/roundTripUs/p50Us")?;
            table.row([
                "loopback: round trip of 64 B".to_owned(),
                String::new(),
                String::new(),
                latency(p50.median),
                latency(spread(&loopback, "/run/roundTripUs/p99Us")?.median),
                format!("{} to {}", latency(p50.least), latency(p50.most)),
            ]);
            table.row([
                "loopback: messages of 4 MiB, one way".to_owned(),
                String::new(),
                digits(spread(&loopback, "/run/mibPerSecond")?.median),
            ]);
        }
        Ok(Some(table))
    }

    /// MiB per second that the loopback carries in messages of 4 MiB, if it was measured.
    pub(crate) fn loopback_mib(&self) -> Result<Option<f64>, ReportError> {
        median(&self.loopback, "/run/mibPerSecond")
    }

    /// MiB per second that the device takes in 1 MiB O_DSYNC writes, one at a time, if it was measured.
    pub(crate) fn device_write_mib(&self) -> Result<Option<f64>, ReportError> {
        median(&self.device, "/run/syncWrite1m/mibPerSecond")
    }
}

fn spread(runs: &[&Object], pointer: &str) -> Result<Spread, ReportError> {
    let numbers: Result<Vec<f64>, _> = runs.iter().map(|run| run.number(pointer)).collect();
    Ok(Spread::of(numbers?.into_iter()))
}

fn median(runs: &[Object], pointer: &str) -> Result<Option<f64>, ReportError> {
    if runs.is_empty() {
        return Ok(None);
    }
    let runs: Vec<&Object> = runs.iter().collect();
    Ok(Some(spread(&runs, pointer)?.median))
}

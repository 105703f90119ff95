//! `orlop-bench report`: makes tables, plots and a page for people from the raw results of `scripts/experiments.sh`.
//!
//! `machine` and `raw` read, `sample` has the medians, `sizes`, `restart`, `clients` and `peers` are the experiments, each
//! a `section`; `chart`, `table` and `html` show them. Guarantees: everything is read and rendered before anything is
//! written; each file appears whole or not at all, the page last. Does not: measure.

mod chart;
mod clients;
mod curves;
mod figure;
mod html;
mod machine;
mod peers;
mod raw;
mod restart;
mod sample;
mod section;
mod sizes;
mod table;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;

use machine::Machine;
use raw::{Object, ReportError, runs};
use section::Section;

#[derive(Debug, Args)]
pub(crate) struct ReportOptions {
    /// A directory of results, as scripts/experiments.sh makes it: about.json and raw/
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Makes the report and prints where it is. Returns the exit code.
pub(crate) fn run(options: &ReportOptions) -> u8 {
    match report(&options.dir) {
        Ok(page) => {
            println!("{}", page.display());
            0
        }
        Err(error) => {
            eprintln!("orlop-bench: {error}");
            error.exit_code()
        }
    }
}

type Experiment = fn(&Machine, &[Object]) -> Result<Section, ReportError>;

const EXPERIMENTS: [(&str, Experiment); 4] = [
    ("exp1", sizes::section),
    ("exp2", restart::section),
    ("exp3", clients::section),
    ("peers", peers::section),
];

fn report(directory: &Path) -> Result<PathBuf, ReportError> {
    let machine = Machine::read(directory)?;
    let mut sections = Vec::new();
    for name in machine.experiments()? {
        let Some((_, section)) = EXPERIMENTS.iter().find(|(known, _)| *known == name) else {
            return Err(machine.wrong(format!(
                "'{name}' is not an experiment: exp1, exp2, exp3 and peers are"
            )));
        };
        sections.push(section(&machine, &runs(directory, name)?)?);
    }
    if sections.is_empty() {
        return Err(machine.wrong("experiments is empty: nothing was measured".to_owned()));
    }
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for section in &sections {
        files.push((
            format!("{}.md", section.name),
            section.markdown().into_bytes(),
        ));
        for plot in &section.plots {
            let png = chart::png(&plot.svg).map_err(|reason| ReportError::Undrawable {
                plot: plot.name.to_owned(),
                reason,
            })?;
            files.push((format!("{}.svg", plot.name), plot.svg.clone().into_bytes()));
            files.push((format!("{}.png", plot.name), png));
        }
    }
    files.push((
        "report.html".to_owned(),
        html::page(&machine, &sections).into_bytes(),
    ));
    for (name, bytes) in &files {
        let path = directory.join(name);
        write_whole(&path, bytes).map_err(|source| ReportError::Unwritable {
            path: path.clone(),
            source,
        })?;
    }
    Ok(directory.join("report.html"))
}

/// Under its name the file is whole or as it was before. What a full disk left is removed.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".partial");
    let beside = PathBuf::from(beside);
    let written = File::create(&beside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err()
        && let Err(error) = fs::remove_file(&beside)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("orlop-bench: {} is left: {error}", beside.display());
    }
    written
}

//! T2: every workload of a few steps, cut at every operation of the disk, with everything that the cut may leave.
//!
//! Where `simulation` leaves to chance what is lost, nothing is left to chance here: at each moment `SimDisk::cuts`
//! gives every subset of the changes that are not durable, writes torn at sectors included. Each state is recovered and
//! compared with the model: what was acknowledged is there, what was not is whole or absent, in the order of the
//! commits. Recovering what a recovery left, or a cut at any operation of one, gives the same.
//!
//! States with the same bytes are recovered once. A workload is judged in its last step only: its beginning is a
//! workload of its own.
//!
//! `ORLOP_SWEEPS=long` takes more steps where they overlap, and cuts every recovery.

mod recovered;
mod workload;

use std::collections::HashMap;
use std::time::Instant;

use super::model::Model;
use super::sweeps_are_long;
use crate::storage::disk::sim::SimDisk;

use recovered::{Found, Recoveries};
use workload::{Base, Schedule, Step, Workload};

/// States of one moment, beyond which writes are torn in fewer ways.
const CUTS_MAX: usize = 8192;

/// One in so many recoveries is cut itself.
const CUT_RECOVERIES_ONE_IN: u64 = 64;

#[derive(Default, Debug)]
struct Figures {
    workloads: u64,
    crash_points: u64,
    /// Those at which some write was torn in fewer ways than it could have been.
    bounded: u64,
    states: u64,
}

/// What is judged, and what is known of states that were met before.
struct Explorer {
    figures: Figures,
    recoveries: Recoveries,
    /// What was just done, should a recovery panic.
    story: String,
}

impl Explorer {
    /// Judges everything that a power cut at this moment leaves. `served`: the store has been open.
    fn look(&mut self, disk: &SimDisk, model: &Model, served: bool) -> Result<(), String> {
        let cuts = disk.cuts(CUTS_MAX);
        self.figures.bounded += u64::from(cuts.bounded);
        let mut expected: HashMap<u64, Result<Found, String>> = HashMap::new();
        for cut in cuts.iter() {
            self.figures.states += 1;
            let found = self.recoveries.of(&cut, served)?;
            let here = expected
                .entry(found.last_version)
                .or_insert_with(|| expect(model, found.last_version));
            match here {
                Ok(here) if here == found => {}
                Ok(here) => return Err(format!("phantom: recovered {found:?}, expected {here:?}")),
                Err(failure) => return Err(failure.clone()),
            }
        }
        Ok(())
    }

    /// Runs one workload and judges its last step.
    fn explore(&mut self, base: &Base, steps: &[Step], schedule: Schedule) {
        self.story = format!("{}, {schedule:?}: {steps:?}", base.title);
        self.figures.workloads += 1;
        let mut workload = Workload::start(base, schedule);
        let mut result = Ok(());
        for (index, step) in steps.iter().enumerate() {
            let is_last = index + 1 == steps.len();
            let mut look = |disk: &SimDisk, model: &Model, served, is_new| {
                self.figures.crash_points += u64::from(is_last);
                match is_last && is_new {
                    true => self.look(disk, model, served),
                    false => Ok(()),
                }
            };
            result = workload.take(*step, is_last, &mut look);
            if result.is_err() {
                break;
            }
        }
        if let Err(failure) = result {
            panic!("{}\n{failure}", workload.trace());
        }
    }

    /// All workloads of up to `steps_max` steps of `letters`, shorter ones first.
    fn explore_all(&mut self, base: &Base, letters: &[Step], steps_max: u32, schedule: Schedule) {
        let begun = (Instant::now(), self.recoveries.distinct());
        for steps in 0..=steps_max {
            for number in 0..letters.len().pow(steps) {
                // The opening is a step of its own, so that it can be the last one.
                let mut workload = vec![Step::Open];
                let digit = |place| letters[number / letters.len().pow(place) % letters.len()];
                workload.extend((0..steps).rev().map(digit));
                self.explore(base, &workload, schedule);
            }
        }
        println!(
            "{}, {schedule:?}, up to {steps_max} steps: {} states more, {:.1} s",
            base.title,
            self.recoveries.distinct() - begun.1,
            begun.0.elapsed().as_secs_f32()
        );
    }
}

impl Drop for Explorer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("in the workload {}", self.story);
        }
    }
}

/// What recovery must find if the log ends with `last_version`.
fn expect(model: &Model, last_version: u64) -> Result<Found, String> {
    let mut model = model.clone();
    model.recovered(last_version)?;
    let entries = model.present().into_iter();
    Ok(Found::new(
        last_version,
        entries.map(|(key, value, version)| (key, value.to_vec(), version)),
    ))
}

#[test]
fn every_cut_of_every_small_workload_recovers_what_was_acknowledged() {
    let long = sweeps_are_long();
    let begun = Instant::now();
    let mut explorer = Explorer {
        figures: Figures::default(),
        recoveries: Recoveries::new(if long { 1 } else { CUT_RECOVERIES_ONE_IN }),
        story: String::new(),
    };
    let more = u32::from(long);
    let (empty, used) = (Base::empty(), Base::used());
    let all = Step::ALL;
    explorer.explore_all(&empty, &all, 4, Schedule::OneByOne);
    explorer.explore_all(&used, &all, 3 + more, Schedule::OneByOne);
    for schedule in [Schedule::OldestFirst, Schedule::NewestFirst] {
        for base in [&empty, &used] {
            explorer.explore_all(base, &all, 2 + more, schedule);
        }
    }
    let Figures {
        workloads,
        crash_points,
        bounded,
        states,
    } = explorer.figures;
    println!(
        "exhaustive: {workloads} workloads, {crash_points} crash points ({bounded} bounded), {states} crash states, {}, lost 0, phantom 0; {:.0} s",
        explorer.recoveries,
        begun.elapsed().as_secs_f32(),
    );
    assert!(explorer.recoveries.distinct() > 100_000);
}

//! The power cuts: for many positions of the write log, the device as a cut at that position leaves it, mounted, a server
//! started on it, and everything in it compared with the history.
//!
//! A cut falls between two flushes. What was complete at the first one is there; of the writes since then any subset is,
//! and any of their sectors. Only those that a correct server has acknowledged rest on the first flush.
//! Guarantees: the same seed makes the same cuts. The first failing image is kept.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use super::ReplayOptions;
use super::history::{Alone, History};
use super::image::{Aftermath, Image, cut};
use super::server::{Mount, Server};
use super::write_log::{Action, Entry, WriteLog};
use crate::load::Random;

/// What is told of one failing cut, and how many failing cuts are told in full.
const STORIES_MAX: usize = 5;
const TOLD_MAX: u64 = 5;

/// What a commit may cost the device. It is one write and one flush; the rest is room for a commit of the file system's
/// journal, which comes every five seconds.
const COST_MAX: f64 = 1.1;

/// What was found.
#[derive(Default)]
struct Tally {
    points: u64,
    with_later_writes: u64,
    aftermath: Aftermath,
    checked: u64,
    lost: u64,
    phantoms: u64,
    refused: u64,
    failed: u64,
    slowest_start: Duration,
}

/// One power cut: everything before `flushed` is durable, the cut comes when `cut` entries are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    flushed: usize,
    cut: usize,
}

struct Replay<'a> {
    options: &'a ReplayOptions,
    seed: u64,
    log: WriteLog,
    entries: Vec<Entry>,
    history: History,
    runtime: Runtime,
    tally: Tally,
}

/// Replays and prints the figures; true if nothing was wrong.
pub(crate) fn replay(options: &ReplayOptions, seed: u64, runtime: Runtime) -> Result<bool, String> {
    let log = WriteLog::open(&options.log)?;
    let mut replay = Replay {
        entries: log.entries()?,
        history: History::load(&options.history)?,
        options,
        seed,
        log,
        runtime,
        tally: Tally::default(),
    };
    let size = std::fs::metadata(&options.disk)
        .map_err(|error| format!("cannot look at {}: {error}", options.disk.display()))?
        .len();
    let points = points(&replay.entries, &replay.history, options.points, seed);
    if points.is_empty() {
        return Err("the write log has no flush after the start of the server".to_owned());
    }
    let mut image = Image::new(size);
    let mut next = 0;
    for (number, point) in points.iter().enumerate() {
        for entry in &replay.entries[next..point.flushed] {
            image.apply(&replay.log, entry)?;
        }
        next = point.flushed;
        if options.only.is_none_or(|only| only == number) {
            replay.one(number, *point, &image)?;
        }
        if (number + 1) % points.len().div_ceil(10) == 0 {
            eprintln!("power-cut: {} of {} cuts", number + 1, points.len());
        }
    }
    for entry in &replay.entries[next..] {
        image.apply(&replay.log, entry)?;
    }
    if !image.is_in(&options.disk)? {
        return Err("the whole write log does not make the device: it is not complete".to_owned());
    }
    Ok(replay.verdict(points.len()))
}

/// Cuts spread over the whole log; every other one where several writes lie between two flushes, if there are such
/// places: there files are made, and the file system's own journal is written.
fn points(entries: &[Entry], history: &History, count: usize, seed: u64) -> Vec<Point> {
    let begun = usize::try_from(history.begun).expect("a 64-bit machine");
    let is_flush = |entry: &Entry| entry.action == Action::Flush;
    let flushes: Vec<usize> = (begun..entries.len())
        .filter(|&index| is_flush(&entries[index]))
        .map(|index| index + 1)
        .collect();
    let until = |flushed: usize| {
        let next = entries[flushed..].iter().position(is_flush);
        next.map_or(entries.len(), |distance| flushed + distance)
    };
    let crowded: Vec<usize> = flushes
        .iter()
        .copied()
        .filter(|&flushed| until(flushed) > flushed + 1)
        .collect();
    if flushes.is_empty() {
        return Vec::new();
    }
    let mut random = Random::for_worker(seed, u64::MAX);
    let mut points: Vec<Point> = (0..count)
        .map(|number| {
            let from = if number % 2 == 0 || crowded.is_empty() {
                &flushes
            } else {
                &crowded
            };
            let flushed = from[random.below(from.len() as u64) as usize];
            let later = (until(flushed) - flushed) as u64;
            let cut = if number % 4 == 0 || later == 0 {
                flushed
            } else {
                flushed + 1 + random.below(later) as usize
            };
            Point { flushed, cut }
        })
        .collect();
    points.sort_unstable_by_key(|point| (point.flushed, point.cut));
    points
}

impl Replay<'_> {
    /// Makes one cut and looks at what is left.
    fn one(&mut self, number: usize, point: Point, image: &Image) -> Result<(), String> {
        let path = self.options.work.join("crash.img");
        let (_, aftermath) = self.crash(number, point, image, path.clone())?;
        let directory = self.options.work.join("mounted");
        std::fs::create_dir_all(&directory)
            .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
        let mount = Mount::image(&path, &directory)?;
        let log = self.options.work.join("server.log");
        let begun = Instant::now();
        let mut stories = Vec::new();
        match Server::start(&self.options.orlopd, &directory.join("data"), &log) {
            Err(sentence) => {
                self.tally.refused += 1;
                stories.push(format!("REFUSED: {sentence}"));
            }
            Ok(server) => {
                self.tally.slowest_start = self.tally.slowest_start.max(begun.elapsed());
                let stored = LocalSet::new().block_on(&self.runtime, server.stored());
                let stored = stored.map_err(|failure| failure.to_string())?;
                server.kill();
                let judgement = self.history.judge(point.cut as u64, &stored);
                self.tally.checked += judgement.checked;
                self.tally.lost += judgement.lost.len() as u64;
                self.tally.phantoms += judgement.phantoms.len() as u64;
                let lost = judgement.lost.into_iter().map(|one| format!("LOST: {one}"));
                let phantoms = judgement.phantoms.into_iter();
                let phantoms = phantoms.map(|one| format!("PHANTOM: {one}"));
                stories = lost.chain(phantoms).collect();
            }
        }
        mount.unmount()?;
        self.tally.points += 1;
        self.tally.with_later_writes += u64::from(point.cut > point.flushed);
        self.tally.aftermath.whole += aftermath.whole;
        self.tally.aftermath.torn += aftermath.torn;
        self.tally.aftermath.lost += aftermath.lost;
        if !stories.is_empty() {
            self.tally.failed += 1;
            self.tell(number, point, image, aftermath, &stories)?;
        }
        Ok(())
    }

    /// The device after a cut, in a file.
    fn crash(
        &self,
        number: usize,
        point: Point,
        image: &Image,
        path: PathBuf,
    ) -> Result<(File, Aftermath), String> {
        let file = image.save(&path)?;
        let mut random = Random::for_worker(self.seed, number as u64);
        let later = &self.entries[point.flushed..point.cut];
        let aftermath = cut(&file, &self.log, later, &mut random)?;
        Ok((file, aftermath))
    }

    fn tell(
        &self,
        number: usize,
        point: Point,
        image: &Image,
        aftermath: Aftermath,
        stories: &[String],
    ) -> Result<(), String> {
        eprintln!(
            "power-cut: cut {number} (--seed {} --points {} --only {number}): flushed {}, cut at {}, writes after the \
             flush: {aftermath:?}",
            self.seed, self.options.points, point.flushed, point.cut
        );
        let shown = if self.tally.failed > TOLD_MAX {
            0
        } else {
            STORIES_MAX.min(stories.len())
        };
        for story in &stories[..shown] {
            eprintln!("  {story}");
        }
        if stories.len() > shown {
            eprintln!("  and {} more", stories.len() - shown);
        }
        let kept = self.options.work.join("failed.img");
        if !kept.exists() {
            self.crash(number, point, image, kept)?;
        }
        Ok(())
    }

    /// Prints the figures; true if nothing was wrong.
    fn verdict(&self, points: usize) -> bool {
        let Tally {
            points: mounted,
            with_later_writes,
            aftermath,
            checked,
            lost,
            phantoms,
            refused,
            failed,
            slowest_start,
        } = &self.tally;
        let Aftermath {
            whole,
            torn,
            lost: dropped,
        } = aftermath;
        println!(
            "power cuts: seed {}: crash points mounted {mounted} of {points} ({with_later_writes} with writes after the \
             last flush: {whole} whole, {torn} torn, {dropped} dropped), acknowledgements checked {checked}, lost {lost}, \
             phantom {phantoms}, refused {refused}, slowest start {} ms",
            self.seed,
            slowest_start.as_millis()
        );
        let cheap = self.history.alone.is_none_or(|alone| {
            let (writes, bytes, flushes) = cost(&self.entries, alone);
            let commits = alone.commits as f64;
            let (per_commit, flushes) = (writes as f64 / commits, flushes as f64 / commits);
            println!(
                "device: {} commits one after the other: {per_commit:.2} writes of {:.0} bytes and {flushes:.2} flushes \
                 per commit",
                alone.commits,
                bytes as f64 / (writes as f64).max(1.0),
            );
            per_commit <= COST_MAX && flushes <= COST_MAX
        });
        if !cheap {
            eprintln!("power-cut: a commit costs the device more than one write and one flush");
        }
        *failed == 0 && cheap
    }
}

/// Writes, their bytes, and flushes between two positions.
fn cost(entries: &[Entry], alone: Alone) -> (u64, u64, u64) {
    let during = (alone.from as usize)..(alone.to as usize).min(entries.len());
    let (mut writes, mut bytes, mut flushes) = (0, 0, 0);
    for entry in entries.get(during).unwrap_or_default() {
        match entry.action {
            Action::Write { .. } => {
                writes += 1;
                bytes += entry.len;
            }
            Action::Flush => flushes += 1,
            Action::Discard | Action::Mark => {}
        }
    }
    (writes, bytes, flushes)
}

#[cfg(test)]
mod tests {
    use super::super::write_log::made::{self, FLUSHED, Scratch, WRITE};
    use super::*;

    /// Flushes end at positions 2, 5 and 6; there are writes before, between and after.
    fn entries() -> Vec<Entry> {
        let scratch = Scratch::new("points");
        let write = (WRITE, 8, &[1; 512][..]);
        let flush = (FLUSHED, 0, &[][..]);
        made::write(
            &scratch.0,
            &[write, flush, write, write, flush, flush, write],
        );
        WriteLog::open(&scratch.0).unwrap().entries().unwrap()
    }

    #[test]
    fn a_cut_lies_at_a_flush_or_before_the_next_one() {
        let history = History::default();
        let points = points(&entries(), &history, 400, 3);
        assert_eq!(points.len(), 400);
        let allowed = [(2, 2), (2, 3), (2, 4), (5, 5), (6, 6), (6, 7)];
        for (flushed, cut) in allowed {
            assert!(points.contains(&Point { flushed, cut }), "{flushed} {cut}");
        }
        for point in &points {
            assert!(allowed.contains(&(point.flushed, point.cut)), "{point:?}");
        }
        assert!(points.is_sorted_by_key(|point| point.flushed));
    }

    #[test]
    fn cuts_begin_where_the_server_did_and_repeat_with_their_seed() {
        let history = History {
            begun: 4,
            ..History::default()
        };
        let made = |seed| points(&entries(), &history, 50, seed);
        assert!(made(3).iter().all(|point| point.flushed >= 5));
        assert_eq!(made(3), made(3));
        assert_ne!(made(3), made(4));
    }

    #[test]
    fn a_commit_costs_what_lies_between_its_positions() {
        let alone = Alone {
            commits: 1,
            from: 2,
            to: 6,
        };
        assert_eq!(cost(&entries(), alone), (2, 1024, 2));
    }
}

//! What a person sees on standard error while a load runs, and the alarm when the server stops answering.
//!
//! Draws only on a terminal. Guarantees: a run in which nothing succeeds for `STALL_SECONDS` is ended with a failure
//! instead of hanging. One task, a few times per second; reads the counters of `Run`, touches nothing else.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ack_log::FLUSH_MS;
use super::failure::Failure;
use super::run::Run;

/// How long nothing may succeed before the run is given up.
const STALL_SECONDS: u64 = 30;

const DRAW_EVERY: Duration = Duration::from_millis(250);

/// What the load is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Connecting,
    Preloading,
    Measuring,
    ReadingBack,
}

pub(crate) struct Progress {
    stage: Cell<Stage>,
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new() -> Rc<Progress> {
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{prefix:>12} [{bar:40}] {percent:>3}%  {msg}")
            .expect("a valid template");
        bar.set_style(style.progress_chars("=> "));
        Rc::new(Progress {
            stage: Cell::new(Stage::Connecting),
            bar,
        })
    }

    /// A new stage begins; `length` is what counts as its whole: milliseconds when measuring, keys otherwise.
    pub(crate) fn enter(&self, stage: Stage, length: u64) {
        self.stage.set(stage);
        self.bar.set_length(length.max(1));
        self.bar.set_position(0);
        self.bar.set_message("");
        self.bar.set_prefix(match stage {
            Stage::Connecting => "connecting",
            Stage::Preloading => "preloading",
            Stage::Measuring => "loading",
            Stage::ReadingBack => "reading back",
        });
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage.get()
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Draws, and watches that the server answers. Never ends by itself.
    pub(crate) async fn watch(self: Rc<Progress>, run: Rc<Run>) {
        let mut ticks = tokio::time::interval(DRAW_EVERY);
        let mut last = (run.done(), Instant::now());
        let mut moved = last.1;
        let mut stage = (self.stage(), last.0, last.1);
        loop {
            ticks.tick().await;
            let (done, now) = (run.done(), Instant::now());
            if self.stage() != stage.0 {
                stage = (self.stage(), done, now);
            }
            if done != last.0 {
                moved = now;
            } else if now - moved > Duration::from_secs(STALL_SECONDS) {
                let overloaded = run.tally.borrow().overloaded;
                run.fail(Failure::Stalled {
                    seconds: STALL_SECONDS,
                    overloaded,
                });
            }
            let rate = (done - last.0) as f64 / (now - last.1).as_secs_f64().max(1e-3);
            self.bar.set_message(format!("{rate:.0} keys/s"));
            self.bar.set_position(match stage.0 {
                Stage::Measuring => (now - stage.2).as_millis() as u64,
                _ => done - stage.1,
            });
            last = (done, now);
        }
    }
}

/// Hands the lines of the ack log to the kernel while the load runs. Never ends by itself.
pub(crate) async fn flush_ack_log(run: Rc<Run>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(FLUSH_MS));
    loop {
        ticks.tick().await;
        if let Err(failure) = run.flush_ack_log() {
            run.fail(failure);
        }
    }
}

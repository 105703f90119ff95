//! The coroutines of one shard: the log writer, the maker of spare segments, compaction, the scrub, the warming of the
//! cache, the heartbeat, and one receiver per link of the mesh. Each is one function; `start` spawns all but compaction,
//! which begins when the server serves.

use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::channel::oneshot;
use futures::future::{Either, select};
use glommio::TaskQueueHandle;
use glommio::channels::shared_channel::ConnectedReceiver;

use crate::limits;
use crate::shard::mesh::Incoming;
use crate::shard::request::Message;
use crate::shard::ticket::Waiter;
use crate::shard::{LogEnded, Shard, answer_at_once};
use crate::storage::{Completion, Pace, ScrubStep, Step, StorageError, StoreStat};

/// How long the maker of spare segments waits after it found the disk full.
const FULL_DISK_RETRY: Duration = Duration::from_millis(500);

/// How long compaction waits when there is nothing for it to do.
const COMPACTION_IDLE: Duration = Duration::from_millis(100);

/// The longest pause that compaction makes for its pace at once, so that it notices when it becomes urgent.
const COMPACTION_PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long the scrub waits when nothing is sealed, and the longest that it sleeps at once.
const SCRUB_IDLE: Duration = Duration::from_millis(500);

/// The longest that an executor sleeps.
const HEARTBEAT: Duration = Duration::from_millis(limits::HEARTBEAT_MS);

/// Large writes rest so many times as long as the last one took while there are small writes: they have a quarter of the
/// log's time, and a small write mostly waits for none.
const REST_PER_LARGE: u32 = 3;

/// The longest rest: a disk that stalls once says little of the next write.
const REST_MAX: Duration = Duration::from_millis(50);

/// The exit code of a process that could not write its log any more.
const EXIT_DISK_FAILURE: i32 = 5;

/// Ends the process: after a failed write nothing may be acknowledged, and recovery needs nobody.
pub(super) fn stop_process(shard: u16, error: &StorageError) -> ! {
    // Not through the log queue: the process ends before its thread would write it.
    eprintln!("orlopd: shard {shard} stops the server: {error}");
    std::process::exit(EXIT_DISK_FAILURE)
}

/// Bounds how long the executor sleeps until the task is dropped: the runtime can park with runnable work, also while a
/// shard recovers and joins the mesh.
pub(super) fn keep_awake(queue: TaskQueueHandle) -> glommio::Task<()> {
    let awake = async {
        loop {
            glommio::timer::sleep(HEARTBEAT).await;
        }
    };
    glommio::spawn_local_into(awake, queue).expect("the queue was made for this executor")
}

/// Spawns the coroutines of a shard.
pub(super) fn start(
    shard: &Rc<Shard>,
    incoming: Vec<Incoming>,
    log_ends: oneshot::Receiver<LogEnded>,
) {
    let queues = shard.queues();
    let spawn = |future, queue| {
        let task =
            glommio::spawn_local_into(future, queue).expect("the queue was made for this executor");
        drop(task.detach());
    };
    spawn(boxed(write_log(Rc::clone(shard), log_ends)), queues.commit);
    spawn(boxed(make_spares(Rc::clone(shard))), queues.background);
    if shard.scrub_rate > 0 {
        spawn(boxed(scrub(Rc::clone(shard))), queues.background);
    }
    spawn(boxed(warm_cache(Rc::clone(shard))), queues.background);
    spawn(boxed(heartbeat(Rc::clone(shard))), queues.serve);
    for (from, receiver) in incoming {
        spawn(
            boxed(receive(Rc::clone(shard), from, receiver)),
            queues.serve,
        );
    }
}

/// Spawns compaction.
pub(super) fn start_compaction(shard: &Rc<Shard>) {
    let task = glommio::spawn_local_into(compact(Rc::clone(shard)), shard.queues().compaction)
        .expect("the queue was made for this executor");
    drop(task.detach());
}

fn boxed(
    future: impl Future<Output = ()> + 'static,
) -> futures::future::LocalBoxFuture<'static, ()> {
    Box::pin(future)
}

/// Group commit: while one frame is on its way to the disk the next one fills. Nothing here waits for a timer, except
/// large writes while there are small ones; this queue has its turn when the sessions that are ready have run, so that all
/// their writes are in the frame.
async fn write_log(shard: Rc<Shard>, mut ends: oneshot::Receiver<LogEnded>) {
    let mut rest = Rest::default();
    loop {
        rest.end_if_over(&shard);
        let ended = {
            let (staged, over) = (pin!(shard.store.staged()), pin!(rest.is_over()));
            // Nobody but this task writes the log, so that nothing is staged behind its end and then committed.
            match select(select(staged, over), &mut ends).await {
                Either::Left(_) => None,
                Either::Right((ended, _)) => Some(ended),
            }
        };
        if let Some(ended) = ended {
            let result = shard.store.close().await.map(|(completions, answers)| {
                answer_all(completions);
                answers.into_iter().for_each(answer_at_once);
            });
            // Without a sender the shard is gone, and with it who waits.
            let _nobody_waits = ended.map(|ended| ended.send(result));
            return;
        }
        shard.store.let_in().into_iter().for_each(answer_at_once);
        if !shard.store.is_staged() {
            continue;
        }
        let started = Instant::now();
        shard.committing.set(true);
        match shard.store.commit().await {
            Ok(completions) => {
                let took = started.elapsed();
                shard.counters.commit_took(took);
                answer_all(completions);
                rest.begin_if_due(&shard, took);
            }
            Err(error) => stop_process(shard.id.number(), &error),
        }
        shard.committing.set(false);
    }
}

/// The rest of large writes while there are small ones, which have to wait for each of them.
#[derive(Default)]
struct Rest {
    until: Option<Instant>,
}

impl Rest {
    /// After a commit that took so long.
    fn begin_if_due(&mut self, shard: &Shard, took: Duration) {
        if shard.store.take_due_rest() {
            self.until = Some(Instant::now() + (REST_PER_LARGE * took).min(REST_MAX));
            shard.store.rest_large(true);
        }
    }

    fn end_if_over(&mut self, shard: &Shard) {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            self.until = None;
            shard.store.rest_large(false);
        }
    }

    async fn is_over(&self) {
        match self.until {
            Some(until) => {
                glommio::timer::sleep(until.saturating_duration_since(Instant::now())).await;
            }
            None => std::future::pending().await,
        }
    }
}

fn answer_all(completions: Vec<Completion<Waiter>>) {
    for completion in completions {
        let result = completion
            .result
            .map(|outcome| outcome.into_inner())
            .map_err(Into::into);
        completion.waiter.answer(result);
    }
}

async fn make_spares(shard: Rc<Shard>) {
    let mut full = false;
    loop {
        match shard.store.prepare().await {
            Ok(()) if full => {
                full = false;
                tracing::info!(
                    shard = shard.id.number(),
                    "there is space again, sets are accepted"
                );
            }
            Ok(()) => {}
            Err(error) if error.is_full() => {
                if !full {
                    tracing::error!(shard = shard.id.number(), %error, "sets will be refused with outOfSpace");
                }
                full = true;
                glommio::timer::sleep(FULL_DISK_RETRY).await;
            }
            Err(error) => stop_process(shard.id.number(), &error),
        }
    }
}

/// Wins back dead bytes at the pace that the store asks for. When the log does not verify there the shard goes on without
/// compaction: what is damaged is told to those who read it, and nothing of it may be dropped.
async fn compact(shard: Rc<Shard>) {
    if let Err(error) = shard.store.trim().await {
        stop_process(shard.id.number(), &error);
    }
    let mut current = None;
    let mut migrates = shard.store.foreign_segments() > 0;
    while !shard.draining.get() {
        shard.tell_news();
        if migrates && shard.store.foreign_segments() == 0 {
            migrates = false;
            tracing::info!(
                shard = shard.id.number(),
                "moved: nothing is left in segments of another number of shards"
            );
        }
        // A drain waits for the step, so that its copies are not given up with a log that ends.
        shard.compacting.set(true);
        let step = shard.store.compact(&mut current).await;
        shard.compacting.set(false);
        let pause = match step {
            Ok(Step::Idle) => COMPACTION_IDLE,
            Ok(Step::Worked { bytes, pace }) => match pace {
                Pace::Unbounded => Duration::ZERO,
                Pace::Bounded(per_second) => {
                    Duration::from_secs_f64(bytes as f64 / per_second as f64)
                        .min(COMPACTION_PAUSE_MAX)
                }
            },
            Err(StorageError::Poisoned) => return,
            Err(error) => {
                tracing::error!(shard = shard.id.number(), %error, "compaction stops: what the log holds does not verify any more");
                return;
            }
        };
        if pause.is_zero() {
            glommio::executor().yield_now().await;
        } else {
            glommio::timer::sleep(pause).await;
        }
    }
}

/// Reads what is on disk again and again, slowly, to know of damage before somebody needs what is damaged.
async fn scrub(shard: Rc<Shard>) {
    let mut current = None;
    while !shard.draining.get() {
        let mut pause = match shard.store.scrub(&mut current).await {
            Ok(ScrubStep::Idle) => SCRUB_IDLE,
            Ok(ScrubStep::Worked { bytes }) => {
                let rate = scrub_rate(shard.scrub_rate, &shard.store.stat());
                Duration::from_secs_f64(bytes as f64 / rate as f64)
            }
            // Damage is none: only a failed write ends the store.
            Err(_) => return,
        };
        glommio::executor().yield_now().await;
        while !pause.is_zero() && !shard.draining.get() {
            let slice = pause.min(SCRUB_IDLE);
            glommio::timer::sleep(slice).await;
            pause -= slice;
        }
    }
}

/// Bytes per second at which a pass over the log takes about a day, within what `greatest` allows.
fn scrub_rate(greatest: u64, stat: &StoreStat) -> u64 {
    let log = stat.disk_live_bytes + stat.disk_tombstone_bytes + stat.disk_dead_bytes;
    let least = (greatest / limits::SCRUB_RATE_MIN_DIVISOR).max(1);
    (log / limits::SCRUB_PASS_SECONDS).clamp(least, greatest)
}

async fn warm_cache(shard: Rc<Shard>) {
    for segment in shard.store.warm_order() {
        match shard.store.warm(segment).await {
            Ok(true) => glommio::executor().yield_now().await,
            Ok(false) => break,
            Err(error) => {
                tracing::error!(shard = shard.id.number(), %error, "what the log holds does not verify any more");
                break;
            }
        }
    }
    shard.counters.warming.set(false);
}

/// Does what [`keep_awake`] does for as long as the shard lives, measures how late it is, and tells the watchdog that it
/// runs.
async fn heartbeat(shard: Rc<Shard>) {
    loop {
        let started = Instant::now();
        glommio::timer::sleep(HEARTBEAT).await;
        let late = started.elapsed().saturating_sub(HEARTBEAT).as_micros() as u64;
        let stall_max_us = &shard.counters.stall_max_us;
        stall_max_us.set(stall_max_us.get().max(late));
        let alive = shard.started.elapsed().as_millis() as u64;
        shard.heartbeat.store(alive, Ordering::Relaxed);
        shard.mesh.flush();
        shard.collect_rooms();
    }
}

async fn receive(shard: Rc<Shard>, from: usize, receiver: ConnectedReceiver<Vec<Message>>) {
    while let Some(batch) = receiver.recv().await {
        for message in batch {
            match message {
                Message::Request { id, request } => shard.serve(from, id, request),
                Message::Reply { id, reply } => shard.mesh.replied(from, id, reply),
            }
        }
        // What a full link did not take before may go now.
        shard.flush_soon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_of_the_scrub_takes_a_day_within_its_bounds() {
        let rate = |greatest: u64, log: u64| {
            let stat = StoreStat {
                disk_live_bytes: log / 2,
                disk_dead_bytes: log - log / 2,
                ..StoreStat::default()
            };
            scrub_rate(greatest, &stat)
        };
        let greatest = limits::SCRUB_RATE_DEFAULT;
        let least = greatest / limits::SCRUB_RATE_MIN_DIVISOR;
        let log = |rate: u64| rate * limits::SCRUB_PASS_SECONDS;
        assert_eq!(rate(greatest, 0), least);
        assert_eq!(rate(greatest, log(least) - 1), least);
        assert_eq!(rate(greatest, log(least + 1)), least + 1);
        assert_eq!(rate(greatest, log(greatest)), greatest);
        assert_eq!(rate(greatest, log(greatest + 1)), greatest);
        assert_eq!((rate(1, 0), rate(1, u64::MAX)), (1, 1));
    }
}

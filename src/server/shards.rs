//! The threads of all shards as the main thread drives them: recovered together, serving, drained together, closed.
//!
//! Guarantees: a step begins when every shard has finished the one before; the first failure ends the server with its
//! own exit code; no step of the stop waits for ever.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::limits;
use crate::server::exit::ServerError;
use crate::server::shard_thread::{Command, Event, ShardThread};
use crate::shard::{Handover, Recovered};

/// What a drain may take beyond its own deadline: the last commit, the last look.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);

/// The threads, and what they say.
pub(crate) struct Shards {
    // None: its end was reported.
    threads: Vec<Option<ShardThread>>,
    events: Receiver<Event>,
}

impl Shards {
    pub(crate) fn new(threads: Vec<ShardThread>, events: Receiver<Event>) -> Shards {
        Shards {
            threads: threads.into_iter().map(Some).collect(),
            events,
        }
    }

    /// Waits until every shard has read its logs, and lets each open what all of them found of its keys. False when a
    /// signal asks to stop before.
    pub(crate) fn hand_over(&mut self) -> Result<bool, ServerError> {
        let mut inboxes: Vec<Vec<Handover>> = self.threads.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.threads.len() {
            match self.next()? {
                Event::Read { handovers } => {
                    for (inbox, handover) in inboxes.iter_mut().zip(handovers) {
                        inbox.push(handover);
                    }
                }
                Event::StopRequested => return Ok(false),
                event => unreachable!("{event:?} before the shards have read"),
            }
        }
        for (thread, inbox) in self.threads.iter_mut().flatten().zip(inboxes) {
            thread.open(inbox)?;
        }
        Ok(true)
    }

    /// Waits until every shard is ready to serve, and returns their heartbeats in shard order; `None` when a signal
    /// asks to stop before.
    pub(crate) fn wait_recovered(&mut self) -> Result<Option<Vec<Arc<AtomicU64>>>, ServerError> {
        let mut heartbeats = vec![None; self.threads.len()];
        while heartbeats.iter().any(Option::is_none) {
            match self.next()? {
                Event::Recovered {
                    shard,
                    recovered,
                    heartbeat,
                } => {
                    log_recovery(shard, &recovered);
                    heartbeats[usize::from(shard)] = Some(heartbeat);
                }
                Event::StopRequested => return Ok(None),
                event => unreachable!("{event:?} before the shards serve"),
            }
        }
        Ok(Some(heartbeats.into_iter().flatten().collect()))
    }

    /// Lets every shard accept connections.
    pub(crate) fn serve(&mut self) -> Result<(), ServerError> {
        self.command(Command::Serve)
    }

    /// Waits until a signal asks to stop.
    pub(crate) fn wait_for_stop(&mut self) -> Result<(), ServerError> {
        loop {
            if let Event::StopRequested = self.next()? {
                return Ok(());
            }
        }
    }

    /// Stops in order: all drain, then all close.
    pub(crate) fn stop(mut self) -> Result<(), ServerError> {
        let drain = Duration::from_secs(limits::DRAIN_SECONDS_MAX) + DRAIN_MARGIN;
        self.command(Command::Drain)?;
        self.wait_all(drain, |event| matches!(event, Event::Drained))?;
        self.command(Command::Close)?;
        self.wait_all(drain, |event| matches!(event, Event::Closed))?;
        tracing::info!("stopped: everything submitted is durable");
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<(), ServerError> {
        self.threads
            .iter_mut()
            .flatten()
            .try_for_each(|thread| thread.command(command))
    }

    /// Waits until every shard has said what `expected` accepts.
    fn wait_all(
        &mut self,
        limit: Duration,
        expected: impl Fn(&Event) -> bool,
    ) -> Result<(), ServerError> {
        let deadline = Instant::now() + limit;
        let mut missing = self.threads.len();
        while missing > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = match self.events.recv_timeout(left) {
                Ok(event) => self.judge(event)?,
                Err(RecvTimeoutError::Timeout) => return Err(ServerError::CloseTimeout(limit)),
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("the thread that takes signals holds a sender")
                }
            };
            missing -= usize::from(expected(&event));
        }
        Ok(())
    }

    /// The next event that is not a failure.
    fn next(&mut self) -> Result<Event, ServerError> {
        let event = self
            .events
            .recv()
            .expect("the thread that takes signals holds a sender for ever");
        self.judge(event)
    }

    fn judge(&mut self, event: Event) -> Result<Event, ServerError> {
        match event {
            Event::Failed(error) => Err(error),
            Event::Gone { shard } => {
                let thread = self.threads[usize::from(shard)]
                    .take()
                    .expect("a thread goes once");
                Err(thread.reason(shard))
            }
            event => Ok(event),
        }
    }
}

fn log_recovery(shard: u16, recovered: &Recovered) {
    tracing::info!(
        shard,
        records = recovered.records,
        bytes = recovered.bytes,
        segments = recovered.segments,
        from_footers = recovered.from_footers,
        foreign_segments = recovered.foreign_segments,
        last_version = recovered.last_version,
        "recovered"
    );
    if let Some(tail) = &recovered.torn_tail {
        tracing::warn!(
            shard,
            segment = tail.segment,
            file = tail.file,
            offset = tail.offset,
            bytes = tail.bytes,
            "cut a torn tail: the last commit before the crash was not complete, nothing of it was acknowledged"
        );
    }
}

//! Aborts the process when a shard hangs: its heartbeat stands still while this thread's time goes on.
//!
//! A shard that hangs holds its keys hostage and acknowledges nothing; recovery is cheap, so dying is better. It counts
//! its own sleeps instead of reading a clock: a process that was stopped and continued is not hung.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::limits;
use crate::server::exit::ServerError;

/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What one shard's heartbeat did at the last looks.
struct Pulse {
    heartbeat: Arc<AtomicU64>,
    seen: u64,
    still: u64,
}

impl Pulse {
    fn new(heartbeat: Arc<AtomicU64>) -> Pulse {
        let seen = heartbeat.load(Ordering::Relaxed);
        Pulse {
            heartbeat,
            seen,
            still: 0,
        }
    }

    /// Looks once; returns for how many looks the heartbeat has stood still.
    fn look(&mut self) -> u64 {
        let now = self.heartbeat.load(Ordering::Relaxed);
        self.still = if now == self.seen { self.still + 1 } else { 0 };
        self.seen = now;
        self.still
    }
}

/// Watches the heartbeats of all shards, in shard order, from a thread of its own, until the process ends.
pub(crate) fn start(heartbeats: Vec<Arc<AtomicU64>>) -> Result<(), ServerError> {
    let mut pulses: Vec<Pulse> = heartbeats.into_iter().map(Pulse::new).collect();
    let watch = move || {
        loop {
            thread::sleep(LOOK_INTERVAL);
            if let Some(shard) = first_hung(&mut pulses) {
                // The panic hook writes the log and aborts.
                panic!(
                    "shard {shard} has been hung for {} s: aborting, the next start recovers what was acknowledged",
                    limits::WATCHDOG_SECONDS_MAX
                );
            }
        }
    };
    thread::Builder::new()
        .name("watchdog".into())
        .spawn(watch)
        .map_err(ServerError::system("starting the watchdog"))?;
    Ok(())
}

fn first_hung(pulses: &mut [Pulse]) -> Option<usize> {
    let looks_max = limits::WATCHDOG_SECONDS_MAX / LOOK_INTERVAL.as_secs();
    let still: Vec<u64> = pulses.iter_mut().map(Pulse::look).collect();
    still.iter().position(|looks| *looks > looks_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_heartbeat_that_stands_still_for_the_whole_time_is_a_hang() {
        let hearts: Vec<_> = (0..2).map(|_| Arc::new(AtomicU64::new(7))).collect();
        let mut pulses: Vec<_> = hearts.iter().cloned().map(Pulse::new).collect();
        for look in 0..limits::WATCHDOG_SECONDS_MAX {
            hearts[0].fetch_add(1, Ordering::Relaxed);
            assert_eq!(first_hung(&mut pulses), None, "look {look}");
        }
        hearts[0].fetch_add(1, Ordering::Relaxed);
        assert_eq!(first_hung(&mut pulses), Some(1));
        hearts[1].fetch_add(1, Ordering::Relaxed);
        assert_eq!(first_hung(&mut pulses), None);
    }
}

//! What all shards of this process share, and nothing of it on the path of a call.
//!
//! Owns: identity, start time, ports, the counters of connections. Guarantees: immutable after the start, but for
//! counters that only `stat` and connections touch. Made by `server::run`, read by sessions.

use std::fs;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::placement::Placement;
use crate::server::connections::Connections;

/// When the process started, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    at: SystemTime,
    instant: Instant,
}

impl Started {
    pub(crate) fn now() -> Started {
        Started {
            at: SystemTime::now(),
            instant: Instant::now(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.instant.elapsed()
    }
}

/// What all shards share.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) store_uuid: [u8; 16],
    pub(crate) placement: Placement,
    pub(crate) value_len_max: usize,
    /// Whether connections answer the hot methods themselves.
    pub(crate) fast_path: bool,
    /// TCP port of each shard, in shard order.
    pub(crate) ports: Vec<u16>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) started_at_unix_ms: u64,
    started: Started,
    recovery: OnceLock<Duration>,
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Process {
    pub(crate) fn new(
        started: Started,
        store_uuid: [u8; 16],
        placement: Placement,
        value_len_max: usize,
        fast_path: bool,
        ports: Vec<u16>,
        connections: Arc<Connections>,
    ) -> Process {
        // A clock before 1970 is a clock that was never set.
        let started_at_unix_ms =
            milliseconds(started.at.duration_since(UNIX_EPOCH).unwrap_or_default());
        Process {
            store_uuid,
            placement,
            value_len_max,
            fast_path,
            ports,
            connections,
            started_at_unix_ms,
            started,
            recovery: OnceLock::new(),
        }
    }

    /// Notes that the server begins to serve: that is how long the start took. Later calls change nothing.
    pub(crate) fn note_ready(&self) {
        self.recovery.get_or_init(|| self.started.elapsed());
    }

    pub(crate) fn uptime_ms(&self) -> u64 {
        milliseconds(self.started.elapsed())
    }

    /// From the start of the process to the ready line; 0 before it.
    pub(crate) fn recovery_ms(&self) -> u64 {
        self.recovery.get().copied().map_or(0, milliseconds)
    }

    /// Memory of the process as the kernel counts it; 0 where it does not say.
    pub(crate) fn resident_bytes(&self) -> u64 {
        fs::read_to_string("/proc/self/status")
            .ok()
            .as_deref()
            .and_then(resident)
            .unwrap_or(0)
    }
}

fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_is_noted_once_and_memory_is_counted() {
        let placement = Placement::new(1, 1);
        let process = Process::new(
            Started::now(),
            [0; 16],
            placement,
            1,
            true,
            vec![1],
            Connections::new(1, 1),
        );
        assert_eq!(process.recovery_ms(), 0);
        process.note_ready();
        let noted = process.recovery.get().copied();
        assert!(noted.is_some());
        process.note_ready();
        assert_eq!(process.recovery.get().copied(), noted);
        assert!(process.started_at_unix_ms > 1_600_000_000_000);
        assert!(process.resident_bytes() > 1 << 20);
        assert_eq!(
            resident("VmPeak: 9 kB\nVmRSS:\t     12 kB\n"),
            Some(12 << 10)
        );
        assert_eq!(resident("VmRSS: many"), None);
    }
}

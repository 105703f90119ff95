//! The checked settings of one server: every field is read somewhere, and every relation between them holds.
//!
//! Owns: defaults that depend on the machine, and the checks across flags. Guarantees: a [`Config`] can be served, as
//! far as that can be known without touching the disk or the network. Does not: parse text (`arguments`), look at the
//! data directory (`preflight`, storage). Called by `server::main`.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::limits;
use crate::server::arguments::ServeArguments;
use crate::server::{cpus, os, size};
use crate::storage::disk::BLOCK;
use crate::storage::format::{SEGMENT_BYTES_MAX, segment_bytes_min};

/// Settings that fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the data is.
    pub data: PathBuf,
    /// The common address of all shards; port 0 picks one.
    pub listen: SocketAddr,
    /// Path of the unix socket, if there is to be one.
    pub unix: Option<PathBuf>,
    /// CPU of each shard; there are as many shards as entries.
    pub shard_cpus: Vec<usize>,
    /// Bytes of values in memory over all shards.
    pub cache_bytes: u64,
    /// Largest value, in bytes.
    pub value_len_max: usize,
    /// Size of a log file, in bytes.
    pub segment_bytes: u32,
    /// Bytes per second that the background reads of sealed segments may take over all shards; 0: there are none.
    pub scrub_rate: u64,
    /// How long an idle shard looks for work before it sleeps.
    pub idle_poll: Duration,
    /// Whether connections answer the hot methods themselves.
    pub fast_path: bool,
}

/// What the defaults depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// CPUs that this process may use.
    pub cpus: Vec<usize>,
    /// Memory that this process may use, in bytes.
    pub memory_bytes: u64,
}

/// Settings that do not fit together, as one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Machine {
    /// This machine, as the kernel and the control group of the process describe it.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn detect() -> io::Result<Machine> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let total = memory_total(&meminfo).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "/proc/meminfo has no line MemTotal",
            )
        })?;
        // No file, no limit: control groups may be absent, or of version 1.
        let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limits = group_memory_files(&group).into_iter().filter_map(|file| {
            let text = fs::read_to_string(file).ok()?;
            text.trim().parse::<u64>().ok()
        });
        Ok(Machine {
            cpus: os::allowed_cpus()?,
            memory_bytes: limits.chain([total]).min().unwrap_or(total),
        })
    }
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The files that may limit the memory of a process whose `/proc/self/cgroup` reads `group`.
fn group_memory_files(group: &str) -> Vec<PathBuf> {
    let Some(path) = group.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let root = PathBuf::from("/sys/fs/cgroup");
    let own = root.join(path);
    own.ancestors()
        .take_while(|at| at.starts_with(&root))
        .map(|at| at.join("memory.max"))
        .collect()
}

impl Config {
    /// Checks what was asked for against the machine and the limits.
    ///
    /// # Errors
    /// A sentence that names the value given, the limit, and what to change.
    pub fn check(asked: ServeArguments, machine: &Machine) -> Result<Config, ConfigError> {
        let value_len_max = check_value_len(asked.max_value_size)?;
        let segment_bytes = check_segment(asked.segment_size, value_len_max)?;
        let shard_cpus = check_cpus(asked.shards, asked.cpus.map(|list| list.0), &machine.cpus)?;
        Ok(Config {
            data: asked.data,
            listen: asked.listen,
            unix: asked.unix,
            shard_cpus,
            cache_bytes: asked.cache.unwrap_or(machine.memory_bytes / 4),
            value_len_max,
            segment_bytes,
            scrub_rate: asked.scrub_rate,
            idle_poll: Duration::from_micros(asked.idle_poll.into()),
            fast_path: !asked.no_fast_path,
        })
    }

    /// Number of shards.
    pub fn shard_count(&self) -> u16 {
        u16::try_from(self.shard_cpus.len())
            .expect("check() allows SHARDS_MAX shards, which is far below 65536")
    }

    /// What one shard has of [`Self::scrub_rate`].
    pub fn shard_scrub_rate(&self) -> u64 {
        self.scrub_rate.div_ceil(u64::from(self.shard_count()))
    }
}

fn check_value_len(bytes: u64) -> Result<usize, ConfigError> {
    let len = usize::try_from(bytes).unwrap_or(usize::MAX);
    if (1..=limits::VALUE_LEN_MAX).contains(&len) {
        return Ok(len);
    }
    Err(ConfigError(format!(
        "--max-value-size is {}, it must be between 1 byte and {}",
        size::display(bytes),
        size::display(limits::VALUE_LEN_MAX as u64)
    )))
}

fn check_segment(bytes: u64, value_len_max: usize) -> Result<u32, ConfigError> {
    let shown = size::display(bytes);
    let least = segment_bytes_min(value_len_max);
    if bytes < least {
        return Err(ConfigError(format!(
            "--segment-size is {shown}, it must be at least {} to hold a value of --max-value-size {}: make it larger, \
             or the largest value smaller",
            size::display(least),
            size::display(value_len_max as u64)
        )));
    }
    if bytes > SEGMENT_BYTES_MAX {
        return Err(ConfigError(format!(
            "--segment-size is {shown}, it must be at most {}",
            size::display(SEGMENT_BYTES_MAX)
        )));
    }
    if !bytes.is_multiple_of(BLOCK as u64) {
        return Err(ConfigError(format!(
            "--segment-size is {shown}, it must be a multiple of {BLOCK}: {} is the next one",
            size::display(bytes.next_multiple_of(BLOCK as u64))
        )));
    }
    Ok(u32::try_from(bytes).expect("at most SEGMENT_BYTES_MAX, which fits 32 bits"))
}

fn check_cpus(
    shards: Option<u64>,
    asked: Option<Vec<usize>>,
    allowed: &[usize],
) -> Result<Vec<usize>, ConfigError> {
    let pinned = asked.is_some();
    let pool = asked.unwrap_or_else(|| allowed.to_vec());
    if let Some(cpu) = pool.iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(ConfigError(format!(
            "--cpus names CPU {cpu}, but this process may use only {}",
            cpus::display(allowed)
        )));
    }
    // A machine with more CPUs than there may be shards still starts without a flag.
    let count = shards.unwrap_or(if pinned {
        pool.len() as u64
    } else {
        pool.len().min(limits::SHARDS_MAX) as u64
    });
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if !(1..=limits::SHARDS_MAX).contains(&count) {
        return Err(ConfigError(format!(
            "--shards is {count}, it must be between 1 and {}",
            limits::SHARDS_MAX
        )));
    }
    if pinned && pool.len() < count {
        return Err(ConfigError(format!(
            "--cpus lists {} CPUs ({}) for --shards {count}: each shard needs a CPU of its own, list more or leave \
             --cpus away",
            pool.len(),
            cpus::display(&pool)
        )));
    }
    // More shards than CPUs share them in turn: slower, but right, and useful to try things out.
    Ok(pool.iter().copied().cycle().take(count).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::server::arguments::Arguments;

    fn checked(arguments: &[&str]) -> Result<Config, String> {
        let machine = Machine {
            cpus: vec![0, 1, 4, 5],
            memory_bytes: 8 << 30,
        };
        let parsed = Arguments::try_parse_from(["orlopd"].iter().chain(arguments)).unwrap();
        Config::check(parsed.serve, &machine).map_err(|error| error.to_string())
    }

    fn refused(arguments: &[&str], words: &[&str]) {
        let sentence = checked(arguments).unwrap_err();
        for word in words {
            assert!(sentence.contains(word), "\"{word}\" is not in: {sentence}");
        }
    }

    #[test]
    fn without_flags_every_cpu_has_a_shard_and_the_cache_a_quarter_of_the_memory() {
        let config = checked(&[]).unwrap();
        assert_eq!(config.shard_cpus, [0, 1, 4, 5]);
        assert_eq!(config.shard_count(), 4);
        assert_eq!(config.cache_bytes, 2 << 30);
    }

    #[test]
    fn cpus_are_used_in_the_order_given_and_set_the_number_of_shards() {
        assert_eq!(checked(&["--cpus=5,1"]).unwrap().shard_cpus, [5, 1]);
        assert_eq!(
            checked(&["--cpus=5,1", "--shards=1"]).unwrap().shard_cpus,
            [5]
        );
        assert_eq!(
            checked(&["--shards=6"]).unwrap().shard_cpus,
            [0, 1, 4, 5, 0, 1]
        );
    }

    #[test]
    fn cpus_that_cannot_carry_the_shards_are_refused() {
        refused(
            &["--cpus=0-1", "--shards=3"],
            &["--cpus lists 2 CPUs (0-1)", "--shards 3"],
        );
        refused(&["--cpus=0,2"], &["CPU 2", "0-1,4-5"]);
    }

    #[test]
    fn the_number_of_shards_has_bounds() {
        assert_eq!(checked(&["--shards=1"]).unwrap().shard_count(), 1);
        assert_eq!(
            usize::from(checked(&["--shards=1024"]).unwrap().shard_count()),
            limits::SHARDS_MAX
        );
        refused(&["--shards=0"], &["--shards is 0", "between 1 and 1024"]);
        refused(&["--shards=1025"], &["--shards is 1025", "1024"]);
    }

    #[test]
    fn a_cache_of_nothing_is_allowed() {
        assert_eq!(checked(&["--cache=0"]).unwrap().cache_bytes, 0);
    }

    #[test]
    fn the_scrub_is_slow_shared_by_the_shards_and_can_be_off() {
        let rate = |flags: &[&str]| checked(flags).unwrap().shard_scrub_rate();
        assert_eq!(rate(&[]), limits::SCRUB_RATE_DEFAULT / 4);
        assert_eq!(rate(&["--scrub-rate=64M", "--shards=2"]), 32 << 20);
        assert_eq!(rate(&["--scrub-rate=1", "--shards=3"]), 1);
        assert_eq!(rate(&["--scrub-rate=0"]), 0);
    }

    #[test]
    fn the_largest_value_has_bounds() {
        assert_eq!(checked(&["--max-value-size=1"]).unwrap().value_len_max, 1);
        assert_eq!(
            checked(&["--max-value-size=32M"]).unwrap().value_len_max,
            limits::VALUE_LEN_MAX
        );
        refused(
            &["--max-value-size=0"],
            &["--max-value-size is 0 bytes", "32MiB"],
        );
        refused(&["--max-value-size=33554433"], &["33554433 bytes", "32MiB"]);
    }

    #[test]
    fn a_segment_must_hold_the_largest_record() {
        let least = segment_bytes_min(1 << 20);
        let flag = |bytes: u64| format!("--segment-size={bytes}");
        let fits = checked(&["--max-value-size=1M", &flag(least)]).unwrap();
        assert_eq!(u64::from(fits.segment_bytes), least);
        let least_shown = format!("at least {}", size::display(least));
        refused(
            &["--max-value-size=1M", &flag(least - BLOCK as u64)],
            &["--segment-size is ", &least_shown, "--max-value-size 1MiB"],
        );
        refused(
            &["--segment-size=16M"],
            &["--segment-size is 16MiB", "--max-value-size 16MiB"],
        );
    }

    #[test]
    fn a_segment_is_whole_blocks_of_at_most_4_gib() {
        assert_eq!(
            checked(&["--segment-size=4294963200"])
                .unwrap()
                .segment_bytes,
            u32::MAX - 4095
        );
        refused(
            &["--segment-size=4G"],
            &["--segment-size is 4GiB", "at most 4194300KiB"],
        );
        refused(
            &["--segment-size=67108865"],
            &[
                "67108865 bytes",
                "multiple of 4096",
                "65540KiB is the next one",
            ],
        );
    }

    #[test]
    fn memory_is_what_the_kernel_and_the_control_group_allow() {
        assert_eq!(
            memory_total("MemFree: 1 kB\nMemTotal:       16 kB\n"),
            Some(16384)
        );
        assert_eq!(memory_total("MemTotal: much"), None);
        assert_eq!(
            group_memory_files("1:cpu:/x\n0::/a/b\n"),
            [
                "/sys/fs/cgroup/a/b/memory.max",
                "/sys/fs/cgroup/a/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
            .map(PathBuf::from)
        );
        assert!(group_memory_files("1:cpu:/x\n").is_empty());
        let here = Machine::detect().unwrap();
        assert!(here.memory_bytes > 64 << 20, "{here:?}");
    }
}

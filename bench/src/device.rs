//! `orlop-bench device`: what the device under a directory can do, as the baseline beside durable figures.
//!
//! Four measurements, one request at a time, plain `pwrite`/`pread` on this thread: 4 KiB and 1 MiB writes with
//! `O_DIRECT|O_DSYNC` into a file that was zeroed and synced before (what one commit of the log costs at least), then
//! sequential 1 MiB reads and 4 KiB reads at random blocks, with `O_DIRECT`. The server submits the same writes through io_uring, which adds an executor's
//! turn and takes nothing away, so this is a floor. The file is unlinked as soon as it is open: nothing stays behind,
//! whatever ends the process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::load::{Random, latencies, latency, microseconds, seconds};

pub(crate) const BLOCK: usize = 4096;
const MIB: usize = 1 << 20;
const FILE_BYTES: usize = 256 * MIB;

/// Which blocks are read in which order: the same in every run.
const READ_SEED: u64 = 1;

#[derive(Debug, Args)]
pub(crate) struct DeviceOptions {
    /// Directory on the device to measure (needs 256 MiB)
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,

    /// Seconds of each of the four measurements
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    seconds: Duration,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Requests of one size, one at a time.
struct Measured {
    bytes: usize,
    took: Duration,
    latencies_ns: Histogram<u64>,
}

/// Measures and prints. Returns the exit code.
pub(crate) fn run(options: &DeviceOptions) -> u8 {
    if options.seconds.is_zero() {
        eprintln!("orlop-bench: --seconds is 0: nothing would be measured; give at least 0.1");
        return 2;
    }
    match measure(&options.dir, options.seconds) {
        Ok(measured) if options.json => {
            println!("{}", report_json(&options.dir, &measured));
            0
        }
        Ok(measured) => {
            println!(
                "{}: one request at a time, O_DIRECT; writes O_DSYNC into a zeroed file",
                options.dir.display()
            );
            println!("{}", report_table(&measured));
            0
        }
        Err(failed) => {
            eprintln!("orlop-bench: {}", sentence(&options.dir, &failed));
            3
        }
    }
}

type Failed = (&'static str, io::Error);

fn sentence(dir: &Path, (action, error): &Failed) -> String {
    format!(
        "cannot {action} in {}: {error}{}",
        dir.display(),
        advice(error)
    )
}

/// 4 KiB writes, 1 MiB writes, 1 MiB reads, 4 KiB reads.
fn measure(dir: &Path, each: Duration) -> Result<[Measured; 4], Failed> {
    let file = zeroed_file(dir)?;
    let mut memory = Aligned::zeros(MIB);
    let buffer = memory.bytes();
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = (index * 31 % 251) as u8 + 1;
    }
    let small = repeat(BLOCK, each, |at| file.write_all_at(&buffer[..BLOCK], at))
        .map_err(|error| ("write 4 KiB", error))?;
    let large = repeat(MIB, each, |at| file.write_all_at(buffer, at))
        .map_err(|error| ("write 1 MiB", error))?;
    let read = repeat(MIB, each, |at| file.read_exact_at(buffer, at))
        .map_err(|error| ("read 1 MiB", error))?;
    let mut random = Random::for_worker(READ_SEED, 0);
    let mut block = || random.below((FILE_BYTES / BLOCK) as u64) * BLOCK as u64;
    let read_small = repeat(BLOCK, each, |_| {
        file.read_exact_at(&mut buffer[..BLOCK], block())
    })
    .map_err(|error| ("read 4 KiB", error))?;
    Ok([small, large, read, read_small])
}

/// A file of `FILE_BYTES` zeros, synced, open with O_DIRECT|O_DSYNC, and already without a name.
fn zeroed_file(dir: &Path) -> Result<File, Failed> {
    let path = dir.join(format!(".orlop-bench-device-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC);
    let file = options
        .open(&path)
        .map_err(|error| ("create a file with O_DIRECT", error))?;
    std::fs::remove_file(&path).map_err(|error| ("unlink the new file", error))?;
    let mut memory = Aligned::zeros(8 * MIB);
    let zeros = memory.bytes();
    for at in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(zeros, at as u64)
            .map_err(|error| ("write 256 MiB of zeros", error))?;
    }
    file.sync_all()
        .map_err(|error| ("sync the new file", error))?;
    Ok(file)
}

/// Memory that O_DIRECT takes.
struct Aligned {
    memory: Vec<u8>,
    len: usize,
}

impl Aligned {
    fn zeros(len: usize) -> Aligned {
        Aligned {
            memory: vec![0; len + BLOCK],
            len,
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let offset = self.memory.as_ptr().align_offset(BLOCK);
        &mut self.memory[offset..offset + self.len]
    }
}

/// Durable writes of 4 KiB, one behind the other, in a file as `measure` has it.
pub(crate) struct DurableBlocks {
    file: File,
    block: Aligned,
    at: usize,
}

impl DurableBlocks {
    pub(crate) fn create(dir: &Path) -> Result<DurableBlocks, String> {
        let file = zeroed_file(dir).map_err(|failed| sentence(dir, &failed))?;
        Ok(DurableBlocks {
            file,
            block: Aligned::zeros(BLOCK),
            at: 0,
        })
    }

    pub(crate) fn write(&mut self) -> io::Result<()> {
        let at = self.next_at();
        self.file.write_all_at(self.block.bytes(), at)
    }

    /// Where the next block goes, in bytes; behind the last one comes the first.
    pub(crate) fn next_at(&mut self) -> u64 {
        let at = self.at;
        self.at = (self.at + BLOCK) % FILE_BYTES;
        at as u64
    }

    /// Where the file, which has no name, can be opened once more for as long as this lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

fn repeat(
    bytes: usize,
    each: Duration,
    mut request: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<Measured> {
    let mut latencies_ns = latencies();
    let begun = Instant::now();
    let mut last = begun;
    let mut at = 0;
    while last - begun < each {
        request(at as u64)?;
        let now = Instant::now();
        latencies_ns.saturating_record((now - last).as_nanos() as u64);
        last = now;
        at = (at + bytes) % FILE_BYTES;
    }
    Ok(Measured {
        bytes,
        took: last - begun,
        latencies_ns,
    })
}

fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL) => {
            "; its file system does not take O_DIRECT: choose a directory on ext4 or xfs"
        }
        Some(libc::ENOSPC) => "; 256 MiB are needed",
        _ => "",
    }
}

impl Measured {
    fn per_second(&self) -> f64 {
        (self.latencies_ns.len() as f64 / self.took.as_secs_f64()).round()
    }

    fn mib_per_second(&self) -> f64 {
        (self.latencies_ns.len() as f64 * self.bytes as f64 / MIB as f64 / self.took.as_secs_f64())
            .round()
    }

    fn quantile(&self, quantile: f64) -> u64 {
        self.latencies_ns.value_at_quantile(quantile)
    }
}

fn report_json(dir: &Path, measured: &[Measured; 4]) -> Value {
    let object = |measured: &Measured| {
        json!({
            "requests": measured.latencies_ns.len(),
            "perSecond": measured.per_second(),
            "mibPerSecond": measured.mib_per_second(),
            "p50Us": microseconds(measured.quantile(0.5)),
            "p99Us": microseconds(measured.quantile(0.99)),
            "maxUs": microseconds(measured.latencies_ns.max()),
        })
    };
    let [small, large, read, read_small] = measured.each_ref().map(object);
    json!({ "orlopBench": "device", "dir": dir.to_string_lossy(), "syncWrite4k": small, "syncWrite1m": large, "read1m": read, "read4k": read_small })
}

fn report_table(measured: &[Measured; 4]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["request", "per second", "MiB/s", "p50", "p99", "max"]);
    for (name, measured) in [
        "4 KiB O_DSYNC write",
        "1 MiB O_DSYNC write",
        "1 MiB read",
        "4 KiB read, random",
    ]
    .into_iter()
    .zip(measured)
    {
        table.add_row([
            name.to_owned(),
            measured.per_second().to_string(),
            measured.mib_per_second().to_string(),
            latency(measured.quantile(0.5)),
            latency(measured.quantile(0.99)),
            latency(measured.latencies_ns.max()),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_walk_through_the_file_and_wrap() {
        let mut offsets = Vec::new();
        let measured = repeat(64 * MIB, Duration::from_millis(5), |at| {
            offsets.push(at);
            Ok(())
        });
        let measured = measured.expect("the request succeeds");
        assert_eq!(measured.latencies_ns.len(), offsets.len() as u64);
        assert!(offsets.len() > 5, "{} requests", offsets.len());
        let step = 64 * MIB as u64;
        assert_eq!(offsets[..6], [0, step, 2 * step, 3 * step, 0, step]);
    }

    #[test]
    fn a_latency_is_recorded_as_long_as_it_was() {
        // A histogram that cannot grow once recorded every request over two microseconds as nothing.
        let long = Duration::from_millis(3);
        let request = |_| {
            let begun = Instant::now();
            while begun.elapsed() < long {
                std::hint::spin_loop();
            }
            Ok(())
        };
        let measured = repeat(BLOCK, 4 * long, request).expect("the request succeeds");
        assert!(
            measured.quantile(0.0) >= 2_900_000,
            "{} ns",
            measured.quantile(0.0)
        );
    }

    #[test]
    fn a_failed_request_ends_the_measurement() {
        let result = repeat(BLOCK, Duration::from_secs(1), |_| {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(result.is_err());
    }

    #[test]
    fn a_directory_that_is_none_is_named() {
        let (action, error) =
            zeroed_file(Path::new("/nonexistent/directory")).expect_err("no such directory");
        assert_eq!(
            (action, error.kind()),
            ("create a file with O_DIRECT", io::ErrorKind::NotFound)
        );
    }
}

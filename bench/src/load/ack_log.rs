//! Writes the acknowledgement log: one line per write that the server acknowledged, for whoever wants to check them later
//! ([`orlop::ack_log`] has the form and reads it).
//!
//! Guarantees: a line is written only after its acknowledgement; lines reach the kernel within `FLUSH_MS`, at the
//! end, and when the process is asked to end.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use orlop::ack_log::HEADER;

/// How long a line may wait in this process.
pub(crate) const FLUSH_MS: u64 = 10;

const BUFFER_BYTES_MAX: usize = 64 << 10;

pub(crate) struct AckLog {
    file: File,
    lines: Vec<u8>,
}

impl AckLog {
    /// Creates the file; one that exists is replaced.
    pub(crate) fn create(path: &Path) -> io::Result<AckLog> {
        let mut log = AckLog {
            file: File::create(path)?,
            lines: Vec::with_capacity(2 * BUFFER_BYTES_MAX),
        };
        writeln!(log.lines, "{HEADER}")?;
        log.flush()?;
        Ok(log)
    }

    pub(crate) fn append(&mut self, key: &[u8], version: u64, value: &[u8]) -> io::Result<()> {
        self.lines.extend_from_slice(key);
        writeln!(
            self.lines,
            " {version} {:08x} {}",
            crc32fast::hash(value),
            monotonic_ns()
        )?;
        if self.lines.len() >= BUFFER_BYTES_MAX {
            self.flush()
        } else {
            Ok(())
        }
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.lines)?;
        self.lines.clear();
        Ok(())
    }
}

fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec for the kernel to fill; the clock exists on every Linux.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    assert_eq!(result, 0, "CLOCK_MONOTONIC exists on every Linux");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use orlop::ack_log::{Acknowledged, read};

    use super::*;

    /// A path of its own for each test; the file is removed at the end.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            Scratch(
                std::env::temp_dir().join(format!("orlop-ack-log-{}-{name}", std::process::id())),
            )
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            // The test may have failed before it made the file.
            std::fs::remove_file(&self.0).ok();
        }
    }

    fn all(path: &Path) -> Result<Vec<Acknowledged>, String> {
        let mut lines = Vec::new();
        read(path, |line| lines.push(line))?;
        Ok(lines)
    }

    #[test]
    fn a_line_has_the_documented_form() {
        let scratch = Scratch::new("form");
        let mut log = AckLog::create(&scratch.0).expect("a file in the temporary directory");
        log.append(b"k000000001", 42, b"123456789").expect("a line");
        log.flush().expect("a flush");
        let text = std::fs::read_to_string(&scratch.0).expect("the log");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], HEADER);
        // The check value of CRC-32: zlib.crc32(b"123456789").
        assert!(
            lines[1].starts_with("k000000001 42 cbf43926 "),
            "{}",
            lines[1]
        );
        assert!(
            lines[1]
                .rsplit(' ')
                .next()
                .is_some_and(|time| time.parse::<u64>().is_ok_and(|ns| ns > 0))
        );
        assert_eq!(lines.len(), 2);
        let read = all(&scratch.0).expect("a whole log");
        assert_eq!(
            (read[0].key.as_str(), read[0].version, read[0].crc32),
            ("k000000001", 42, 0xcbf4_3926)
        );
    }

    #[test]
    fn many_lines_reach_the_file_in_order() {
        let scratch = Scratch::new("many");
        let mut log = AckLog::create(&scratch.0).expect("a file in the temporary directory");
        for version in 0..5000 {
            log.append(b"key", version, &[]).expect("a line");
        }
        let before = all(&scratch.0).expect("full buffers were written").len();
        assert!(
            before > 1000,
            "only {before} lines were written before the flush"
        );
        log.flush().expect("a flush");
        let lines = all(&scratch.0).expect("a whole log");
        assert_eq!(lines.len(), 5000);
        assert!(
            lines
                .windows(2)
                .all(|pair| pair[0].version < pair[1].version
                    && pair[0].monotonic_ns <= pair[1].monotonic_ns)
        );
    }
}

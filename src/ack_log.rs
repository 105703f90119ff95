//! The acknowledgement log, as a file: what a client was promised, one line per write, for whoever checks later that it is
//! kept (`orlop-bench load --ack-log` writes it, `orlopd verify --acks` reads it).
//!
//! A first line [`HEADER`], then one line per acknowledged write, its fields parted by a space: the key (printable), its
//! version, the CRC-32 of the value (zlib's, eight hexadecimal digits), nanoseconds of CLOCK_MONOTONIC when the
//! acknowledgement was read. A last line without its newline is not a line: its writer was killed.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The first line.
pub const HEADER: &str = "# orlop-bench ack log 1: key version crc32 monotonic_ns";

/// One acknowledged write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// The key.
    pub key: String,
    /// The version that the server gave it.
    pub version: u64,
    /// Of the value.
    pub crc32: u32,
    /// When the acknowledgement was read, by CLOCK_MONOTONIC of that machine.
    pub monotonic_ns: u64,
}

/// Reads a log and hands every acknowledged write to `each`.
///
/// # Errors
/// A sentence that names the file, and the line that has another form.
pub fn read(path: &Path, mut each: impl FnMut(Acknowledged)) -> Result<(), String> {
    let shown = path.display();
    let file =
        File::open(path).map_err(|error| format!("cannot open the ack log {shown}: {error}"))?;
    let mut reader = BufReader::new(file);
    let mut line = String::new();
    for number in 1u64.. {
        line.clear();
        let read = reader
            .read_line(&mut line)
            .map_err(|error| format!("cannot read the ack log {shown}: {error}"))?;
        let Some(whole) = line.strip_suffix('\n') else {
            // Nothing, or what a killed process had begun to write.
            debug_assert!(read == line.len());
            return if number == 1 {
                Err(format!("{shown} is no ack log: its first line is missing"))
            } else {
                Ok(())
            };
        };
        if number == 1 {
            if whole != HEADER {
                return Err(format!(
                    "{shown} is no ack log: its first line is not '{HEADER}'"
                ));
            }
            continue;
        }
        each(parsed(whole).ok_or_else(|| {
            format!("line {number} of {shown} is not 'key version crc32 monotonic_ns': '{whole}'")
        })?);
    }
    Ok(())
}

fn parsed(line: &str) -> Option<Acknowledged> {
    let mut fields = line.split(' ');
    let acknowledged = Acknowledged {
        key: fields.next().filter(|key| !key.is_empty())?.to_owned(),
        version: fields.next()?.parse().ok()?,
        crc32: u32::from_str_radix(fields.next().filter(|crc| crc.len() == 8)?, 16).ok()?,
        monotonic_ns: fields.next()?.parse().ok()?,
    };
    fields.next().is_none().then_some(acknowledged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(path: &Path) -> Result<Vec<Acknowledged>, String> {
        let mut lines = Vec::new();
        read(path, |line| lines.push(line))?;
        Ok(lines)
    }

    #[test]
    fn a_line_cut_by_a_kill_is_left_out_and_a_bad_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("acks");
        std::fs::write(&file, format!("{HEADER}\nkey 1 00000000 5\nkey 2 0000")).unwrap();
        assert_eq!(all(&file).unwrap().len(), 1);
        std::fs::write(&file, format!("{HEADER}\nkey 1 0000 5\n")).unwrap();
        assert!(all(&file).is_err_and(|text| text.contains("line 2")));
        for not_a_log in ["", "hello\n", "# orlop"] {
            std::fs::write(&file, not_a_log).unwrap();
            assert!(
                all(&file).is_err_and(|text| text.contains("no ack log")),
                "{not_a_log}"
            );
        }
    }
}

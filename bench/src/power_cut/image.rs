//! The content of the device at a position of its write log, and what a power cut may make of it.
//!
//! Guarantees: an image that was advanced to a flush holds every write that was complete then. On top of it a cut leaves
//! any subset of the later writes, and of a write any subset of its sectors of 512 bytes.
//! Does not: reorder the surviving writes. Two that overlap come from a kernel that waits for the first one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::write_log::{Action, Entry, WriteLog};
use crate::load::Random;

/// What a device writes whole or not at all.
const SECTOR: usize = 512;

/// Only chunks that were ever written go to a file; the rest stays a hole.
const CHUNK: usize = 64 << 10;

/// The place of ext4's superblock. It is written in place, with one checksum over two sectors: a torn one is the file
/// system's end, not the server's.
const SUPERBLOCK_END: u64 = 4096;

pub(crate) struct Image {
    bytes: Vec<u8>,
    written: Vec<bool>,
}

/// Writes after the last flush, by what a cut made of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aftermath {
    pub(crate) whole: u64,
    pub(crate) torn: u64,
    pub(crate) lost: u64,
}

impl Image {
    /// A device of zeros.
    pub(crate) fn new(len: u64) -> Image {
        let len = usize::try_from(len).expect("a 64-bit machine");
        Image {
            bytes: vec![0; len],
            written: vec![false; len.div_ceil(CHUNK)],
        }
    }

    /// Does what an entry of the log did.
    pub(crate) fn apply(&mut self, log: &WriteLog, entry: &Entry) -> Result<(), String> {
        match entry.action {
            Action::Write { .. } => self.place(entry.offset, &log.data(entry)?),
            Action::Discard => self.place(entry.offset, &vec![0; entry.len as usize]),
            Action::Flush | Action::Mark => Ok(()),
        }
    }

    fn place(&mut self, offset: u64, data: &[u8]) -> Result<(), String> {
        let start = offset as usize;
        let size = self.bytes.len();
        let Some(target) = self.bytes.get_mut(start..start + data.len()) else {
            return Err(format!(
                "the write log has {} bytes at {offset}, behind the end of the device of {size} bytes",
                data.len()
            ));
        };
        target.copy_from_slice(data);
        let chunks = start / CHUNK..(start + data.len()).div_ceil(CHUNK);
        self.written[chunks].fill(true);
        Ok(())
    }

    /// Writes the image to a new file.
    pub(crate) fn save(&self, path: &Path) -> Result<File, String> {
        let save = || {
            let file = File::create(path)?;
            file.set_len(self.bytes.len() as u64)?;
            let chunks = self.bytes.chunks(CHUNK).zip(&self.written).enumerate();
            for (index, (chunk, _)) in chunks.filter(|(_, (_, written))| **written) {
                file.write_all_at(chunk, (index * CHUNK) as u64)?;
            }
            Ok(file)
        };
        save().map_err(|error: std::io::Error| format!("cannot write {}: {error}", path.display()))
    }

    /// Whether a file holds exactly this.
    pub(crate) fn is_in(&self, path: &Path) -> Result<bool, String> {
        let bytes = std::fs::read(path).map_err(|error| {
            format!("cannot read the device's image {}: {error}", path.display())
        })?;
        Ok(bytes == self.bytes)
    }
}

/// Lets the writes of `entries` happen to a saved image as far as chance wants.
pub(crate) fn cut(
    file: &File,
    log: &WriteLog,
    entries: &[Entry],
    random: &mut Random,
) -> Result<Aftermath, String> {
    let mut aftermath = Aftermath::default();
    let put = |offset: u64, data: &[u8]| {
        file.write_all_at(data, offset)
            .map_err(|error| format!("cannot write the image of a crash: {error}"))
    };
    for entry in entries {
        let forced = match entry.action {
            Action::Write { forced } => forced,
            // A discard promises nothing about the old content.
            Action::Discard | Action::Flush | Action::Mark => continue,
        };
        let data = log.data(entry)?;
        let fate = if forced { 0 } else { random.below(3) };
        if fate == 0 {
            put(entry.offset, &data)?;
            aftermath.whole += 1;
        } else if fate == 1 || entry.offset < SUPERBLOCK_END {
            aftermath.lost += 1;
        } else {
            // A head that arrived, or sectors in any order.
            let sectors = data.len().div_ceil(SECTOR) as u64;
            let head = (random.below(2) == 0).then(|| random.below(sectors));
            for (index, sector) in (0..).zip(data.chunks(SECTOR)) {
                let arrived = head.map_or_else(|| random.below(2) == 0, |head| index < head);
                if arrived {
                    put(entry.offset + index * SECTOR as u64, sector)?;
                }
            }
            aftermath.torn += 1;
        }
    }
    Ok(aftermath)
}

#[cfg(test)]
mod tests {
    use super::super::write_log::made::{self, DISCARDED, FLUSHED, Scratch, WRITE};
    use super::*;

    const LEN: usize = 256 << 10;

    fn log_of(scratch: &Scratch, entries: &[made::Made]) -> (WriteLog, Vec<Entry>) {
        made::write(&scratch.0, entries);
        let log = WriteLog::open(&scratch.0).unwrap();
        let entries = log.entries().unwrap();
        (log, entries)
    }

    #[test]
    fn an_image_is_what_the_log_wrote_and_discarded() {
        let (scratch, saved) = (Scratch::new("image"), Scratch::new("image-saved"));
        let (log, entries) = log_of(
            &scratch,
            &[
                (WRITE, 300, &[1; 2048]),
                (FLUSHED, 0, &[]),
                (WRITE, 301, &[2; 512]),
                (DISCARDED, 302, &[0; 512]),
            ],
        );
        let mut image = Image::new(LEN as u64);
        for entry in &entries {
            image.apply(&log, entry).unwrap();
        }
        let mut expected = vec![0; LEN];
        let sectors = [1, 2, 0, 1].map(|byte| [byte; 512]).concat();
        expected[300 * 512..304 * 512].copy_from_slice(&sectors);
        image.save(&saved.0).unwrap();
        assert_eq!(std::fs::read(&saved.0).unwrap(), expected);
        assert!(image.is_in(&saved.0).unwrap());
        expected[7] = 1;
        std::fs::write(&saved.0, &expected).unwrap();
        assert!(!image.is_in(&saved.0).unwrap());
    }

    #[test]
    fn a_write_behind_the_end_is_an_error() {
        let scratch = Scratch::new("behind");
        let (log, entries) = log_of(&scratch, &[(WRITE, 511, &[1; 1024])]);
        let mut image = Image::new(LEN as u64);
        assert!(image.apply(&log, &entries[0]).is_err());
    }

    #[test]
    fn a_cut_leaves_each_sector_new_or_old_and_every_fate_comes() {
        let (scratch, saved) = (Scratch::new("cut"), Scratch::new("cut-saved"));
        let (log, entries) = log_of(&scratch, &[(WRITE, 16, &[9; 4096]), (WRITE, 2, &[9; 1024])]);
        let mut fates = Aftermath::default();
        for number in 0..60 {
            let file = Image::new(LEN as u64).save(&saved.0).unwrap();
            let one = cut(&file, &log, &entries, &mut Random::for_worker(1, number)).unwrap();
            fates.whole += one.whole;
            fates.torn += one.torn;
            fates.lost += one.lost;
            let bytes = std::fs::read(&saved.0).unwrap();
            for sector in bytes.chunks(512) {
                assert!(sector == [0; 512] || sector == [9; 512]);
            }
            let superblock = &bytes[1024..2048];
            assert!(superblock == [0; 1024] || superblock == [9; 1024], "torn");
        }
        assert!(
            fates.whole > 10 && fates.torn > 5 && fates.lost > 10,
            "{fates:?}"
        );
    }
}

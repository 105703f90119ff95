//! The log of every write that reached a block device, in the on-disk format of Linux's dm-log-writes, which QEMU's
//! `blklogwrites` writes too.
//!
//! Little-endian. Sector 0: magic u64, version u64, number of entries u64, sector size u32. Then one entry after the
//! other, each a sector with {first sector u64, sectors u64, flags u64, length of a mark u64} and, unless it is a discard,
//! the sectors' data. Sectors are of the size that sector 0 says.
//! Guarantees: numbers from the file are checked before they are used. Position N means: N entries are complete.
//! QEMU answers a flush only after the entry of the flush and the number of entries are in the file. So whoever has an
//! answer that rests on a flush reads a position that includes this flush.
//! Does not interpret what was written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const ENTRIES_AT: u64 = 16;
const SECTOR_SIZES: std::ops::RangeInclusive<u64> = 512..=65_536;

const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// Marks are short texts.
const MARK_LEN_MAX: u64 = 64 << 10;

pub(crate) struct WriteLog {
    file: File,
    sector_size: u64,
}

/// What an entry did to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Bytes that are durable only after the next flush, or at once when `forced`.
    Write { forced: bool },
    /// Everything that was complete before is durable.
    Flush,
    /// The bytes read as zeros from now on.
    Discard,
    /// A note in the log; nothing happened to the device.
    Mark,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) action: Action,
    /// Where on the device, in bytes.
    pub(crate) offset: u64,
    /// How many bytes of the device.
    pub(crate) len: u64,
    /// Where in the log the data begins.
    data_at: u64,
}

impl WriteLog {
    pub(crate) fn open(path: &Path) -> Result<WriteLog, String> {
        let shown = path.display();
        let file = File::open(path)
            .map_err(|error| format!("cannot open the write log {shown}: {error}"))?;
        let mut log = WriteLog {
            file,
            sector_size: 0,
        };
        let [magic, version, _, sector_size] = log.words(0)?;
        // The sector size has four bytes, and what follows them is not ours.
        log.sector_size = sector_size & u64::from(u32::MAX);
        if (magic, version) != (MAGIC, VERSION) {
            return Err(format!(
                "{shown} is no write log: it begins with {magic:#x} and version {version}, not {MAGIC:#x} and {VERSION}"
            ));
        }
        if !log.sector_size.is_power_of_two() || !SECTOR_SIZES.contains(&log.sector_size) {
            return Err(format!(
                "{shown} says that its sectors have {} bytes",
                log.sector_size
            ));
        }
        Ok(log)
    }

    /// How many entries are complete by now.
    pub(crate) fn position(&self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        self.file
            .read_exact_at(&mut bytes, ENTRIES_AT)
            .map_err(|error| format!("cannot read the position of the write log: {error}"))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// All entries, without their data.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, String> {
        let end = self
            .file
            .metadata()
            .map_err(|error| format!("cannot ask for the size of the write log: {error}"))?
            .len();
        let mut entries = Vec::new();
        let mut at = self.sector_size;
        for number in 0..self.position()? {
            let (entry, next) = self
                .entry(at)?
                .filter(|(_, next)| *next <= end)
                .ok_or_else(|| {
                    format!("entry {number} of the write log, at {at}, makes no sense")
                })?;
            entries.push(entry);
            at = next;
        }
        Ok(entries)
    }

    /// The entry at a place and the place of the next one; nothing if its numbers cannot be.
    fn entry(&self, at: u64) -> Result<Option<(Entry, u64)>, String> {
        let [first, sectors, flags, mark_len] = self.words(at)?;
        let data_at = at + self.sector_size;
        let action = match flags {
            0 => Action::Write { forced: false },
            FORCED => Action::Write { forced: true },
            FLUSH if sectors == 0 => Action::Flush,
            DISCARD => Action::Discard,
            MARK if mark_len <= MARK_LEN_MAX => Action::Mark,
            _ => return Ok(None),
        };
        let place = first.checked_mul(self.sector_size);
        let (Some(offset), Some(len)) = (place, sectors.checked_mul(self.sector_size)) else {
            return Ok(None);
        };
        let logged = match action {
            Action::Write { .. } => len,
            Action::Flush | Action::Discard => 0,
            Action::Mark => mark_len.next_multiple_of(self.sector_size),
        };
        let fits = offset.checked_add(len).is_some();
        let next = data_at.checked_add(logged).filter(|_| fits);
        let entry = Entry {
            action,
            offset,
            len,
            data_at,
        };
        Ok(next.map(|next| (entry, next)))
    }

    /// What a write wrote.
    pub(crate) fn data(&self, entry: &Entry) -> Result<Vec<u8>, String> {
        let mut data = vec![0; usize::try_from(entry.len).expect("a 64-bit machine")];
        self.file
            .read_exact_at(&mut data, entry.data_at)
            .map_err(|error| format!("cannot read the write log at {}: {error}", entry.data_at))?;
        Ok(data)
    }

    fn words(&self, at: u64) -> Result<[u64; 4], String> {
        let mut bytes = [0; 32];
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(|error| format!("cannot read the write log at {at}: {error}"))?;
        let mut words = [0; 4];
        for (word, eight) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*eight);
        }
        Ok(words)
    }
}

/// Logs made by hand, for the tests of those who read them.
#[cfg(test)]
pub(crate) mod made {
    use super::*;

    /// One entry for [`write`]: flags, first sector and data. A flush has no data.
    pub(crate) type Made<'a> = (u64, u64, &'a [u8]);

    pub(crate) const WRITE: u64 = 0;
    pub(crate) const FLUSHED: u64 = FLUSH;
    pub(crate) const DISCARDED: u64 = DISCARD;

    /// A log of these entries, with sectors of 512 bytes.
    pub(crate) fn write(path: &Path, entries: &[Made]) {
        let sector = |words: [u64; 4]| {
            let mut bytes = words.map(u64::to_le_bytes).concat();
            bytes.resize(512, 0);
            bytes
        };
        let mut log = sector([MAGIC, VERSION, entries.len() as u64, 512]);
        for &(flags, first, data) in entries {
            log.extend(sector([first, data.len() as u64 / 512, flags, 0]));
            if flags & DISCARD == 0 {
                log.extend(data);
            }
        }
        std::fs::write(path, log).expect("a file in a temporary directory");
    }

    /// A path of its own for each test; the file is removed at the end.
    pub(crate) struct Scratch(pub(crate) std::path::PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Scratch {
            let name = format!("orlop-power-cut-{}-{name}", std::process::id());
            Scratch(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            // The test may have failed before it made the file.
            std::fs::remove_file(&self.0).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::made::{DISCARDED, FLUSHED, Scratch, WRITE};
    use super::*;

    #[test]
    fn entries_come_back_in_order_with_their_data() {
        let scratch = Scratch::new("entries");
        let data = [[7; 512], [8; 512]].concat();
        made::write(
            &scratch.0,
            &[
                (WRITE, 3, &data),
                (FLUSHED, 0, &[]),
                (DISCARDED, 1, &[0; 1024]),
                (FORCED, 9, &[1; 512]),
            ],
        );
        let log = WriteLog::open(&scratch.0).unwrap();
        assert_eq!(log.position().unwrap(), 4);
        let entries = log.entries().unwrap();
        let actions: Vec<Action> = entries.iter().map(|entry| entry.action).collect();
        let expected = [
            Action::Write { forced: false },
            Action::Flush,
            Action::Discard,
            Action::Write { forced: true },
        ];
        assert_eq!(actions, expected);
        assert_eq!((entries[0].offset, entries[0].len), (3 * 512, 1024));
        assert_eq!(log.data(&entries[0]).unwrap(), data);
        assert_eq!((entries[2].offset, entries[2].len), (512, 1024));
        assert_eq!(log.data(&entries[3]).unwrap(), [1; 512]);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let scratch = Scratch::new("refused");
        std::fs::write(&scratch.0, [0; 4096]).unwrap();
        assert!(WriteLog::open(&scratch.0).is_err_and(|text| text.contains("no write log")));
        made::write(&scratch.0, &[(WRITE, u64::MAX / 2, &[0; 512])]);
        let log = WriteLog::open(&scratch.0).unwrap();
        assert!(log.entries().is_err_and(|text| text.contains("entry 0")));
        made::write(&scratch.0, &[(FLUSHED, 0, &[]), (0xff00, 0, &[])]);
        let log = WriteLog::open(&scratch.0).unwrap();
        assert!(log.entries().is_err_and(|text| text.contains("entry 1")));
    }

    #[test]
    fn a_log_that_ends_too_early_is_refused() {
        let scratch = Scratch::new("short");
        made::write(&scratch.0, &[(WRITE, 0, &[0; 2048])]);
        let whole = std::fs::read(&scratch.0).unwrap();
        std::fs::write(&scratch.0, &whole[..whole.len() - 512]).unwrap();
        let log = WriteLog::open(&scratch.0).unwrap();
        assert!(log.entries().is_err_and(|text| text.contains("entry 0")));
    }
}

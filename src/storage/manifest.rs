//! Identity of a data directory, as bytes: two slots of one block each, written in turn, so that a torn write leaves
//! the other one whole.
//!
//! Guarantees: decoding never panics; the valid slot with the higher run number wins.
//! Does not: touch files (`directory` does).

use crate::storage::disk::BLOCK;
use crate::storage::segment::LogId;

/// First bytes of a slot.
pub const MANIFEST_MAGIC: [u8; 8] = *b"ORLOPMAN";
/// Version of the format of manifest and log together.
pub const MANIFEST_FORMAT: u32 = super::format::FORMAT_VERSION;
/// Bytes of the whole file.
pub const MANIFEST_BYTES: usize = 2 * BLOCK;
/// The only placement rule so far: see `shard::placement`.
const PLACEMENT_XXH3_64: u16 = 1;

/// The logs that the shards write, or wrote, for as long as their number stayed the same: one each, in shard order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// The log of shard 0.
    pub first_log: LogId,
    /// How many shards.
    pub shards: u16,
}

impl Generation {
    /// The log of a shard.
    pub fn log(&self, shard: u16) -> LogId {
        assert!(shard < self.shards, "a shard of this generation");
        LogId(self.first_log.0 + u32::from(shard))
    }

    /// All of its logs.
    pub fn logs(&self) -> impl Iterator<Item = LogId> + use<> {
        let first = self.first_log.0;
        (first..first + u32::from(self.shards)).map(LogId)
    }

    /// Whether the log is one of them.
    pub fn has(&self, log: LogId) -> bool {
        self.logs().any(|own| own == log)
    }
}

/// What a manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manifest {
    /// Made at random when the directory was created.
    pub store_uuid: [u8; 16],
    /// Seed of the placement hash.
    pub placement_seed: u64,
    /// The logs of the last run.
    pub generation: Generation,
    /// Those of the run that served last, as long as the present ones have not: everything is in these, then.
    pub previous: Option<Generation>,
    /// The first log that no generation has had.
    pub next_log: LogId,
    /// Starts of the server on this directory, this one included.
    pub run: u64,
    /// Whether a run has served with these logs: from then on each of them has segments, and their absence is damage.
    pub served: bool,
}

impl Manifest {
    /// What the next start with so many shards writes. Another number of shards begins a generation of logs; one that has
    /// not served yet is given up without a trace, because nothing but copies was in it.
    pub fn next_run(&self, shards: u16) -> Manifest {
        let run = self.run + 1;
        if self.generation.shards == shards {
            return Manifest { run, ..*self };
        }
        let before = match self.served {
            true => Some(self.generation),
            false => self.previous,
        };
        if let Some(generation) = before.filter(|before| before.shards == shards) {
            return Manifest {
                generation,
                previous: None,
                run,
                served: true,
                ..*self
            };
        }
        let next = self.next_log.0.checked_add(u32::from(shards));
        Manifest {
            generation: Generation {
                first_log: self.next_log,
                shards,
            },
            previous: before,
            next_log: LogId(next.expect("4 billion logs are more than starts of a server")),
            run,
            served: false,
            ..*self
        }
    }
}

/// Why a slot does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadSlot {
    /// All zero: never written.
    Empty,
    /// Damaged or torn.
    Invalid,
    /// Not even the start of one: another program's file.
    Foreign,
    /// Whole, but of a format that this program does not know.
    Format(u32),
}

impl Manifest {
    /// The slot as one block.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK);
        block.extend_from_slice(&MANIFEST_MAGIC);
        block.extend_from_slice(&[0; 4]);
        block.extend_from_slice(&MANIFEST_FORMAT.to_le_bytes());
        block.extend_from_slice(&self.store_uuid);
        block.extend_from_slice(&self.placement_seed.to_le_bytes());
        block.extend_from_slice(&self.run.to_le_bytes());
        block.extend_from_slice(&self.generation.shards.to_le_bytes());
        block.extend_from_slice(&PLACEMENT_XXH3_64.to_le_bytes());
        block.extend_from_slice(&u32::from(self.served).to_le_bytes());
        block.extend_from_slice(&self.generation.first_log.0.to_le_bytes());
        block.extend_from_slice(&self.next_log.0.to_le_bytes());
        let previous = self
            .previous
            .map(|previous| (previous.first_log.0, previous.shards));
        let (first_log, shards) = previous.unwrap_or_default();
        block.extend_from_slice(&first_log.to_le_bytes());
        block.extend_from_slice(&shards.to_le_bytes());
        block.resize(BLOCK, 0);
        let crc = crc32fast::hash(&block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Where in the file this run's slot is.
    pub fn slot_offset(&self) -> u64 {
        (self.run % 2) * BLOCK as u64
    }

    fn decode_slot(block: &[u8]) -> Result<Manifest, BadSlot> {
        if block.iter().all(|byte| *byte == 0) {
            return Err(BadSlot::Empty);
        }
        let field =
            |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"));
        if block[..8] != MANIFEST_MAGIC {
            return Err(BadSlot::Foreign);
        }
        if block[8..12] != crc32fast::hash(&block[12..]).to_le_bytes() {
            return Err(BadSlot::Invalid);
        }
        let format = field(12) as u32;
        if format != MANIFEST_FORMAT {
            return Err(BadSlot::Format(format));
        }
        let placement = (field(48) >> 16) as u16;
        if placement != PLACEMENT_XXH3_64 {
            return Err(BadSlot::Invalid);
        }
        let mut store_uuid = [0; 16];
        store_uuid.copy_from_slice(&block[16..32]);
        let generation = |first_log, shards| Generation {
            first_log: LogId(first_log as u32),
            shards: shards as u16,
        };
        let previous = generation(field(64), field(68));
        let current = generation(field(56), field(48));
        let fits = |one: &Generation| one.first_log.0.checked_add(one.shards.into()).is_some();
        let (run, next_log) = (field(40), (field(56) >> 32) as u32);
        // A start counts on from both.
        let counts_on = run < u64::MAX && next_log.checked_add(u16::MAX.into()).is_some();
        if current.shards == 0 || !fits(&current) || !fits(&previous) || !counts_on {
            return Err(BadSlot::Invalid);
        }
        Ok(Manifest {
            store_uuid,
            placement_seed: field(32),
            run,
            generation: current,
            previous: (previous.shards > 0).then_some(previous),
            next_log: LogId(next_log),
            served: block[52] != 0,
        })
    }

    /// Reads the whole file. The error is the worst reason why neither slot counts.
    pub fn decode(file: &[u8]) -> Result<Manifest, BadSlot> {
        let mut padded = file.to_vec();
        padded.resize(MANIFEST_BYTES, 0);
        let slots = [
            Manifest::decode_slot(&padded[..BLOCK]),
            Manifest::decode_slot(&padded[BLOCK..MANIFEST_BYTES]),
        ];
        match slots {
            [Ok(first), Ok(second)] => Ok(if first.run > second.run {
                first
            } else {
                second
            }),
            // Also beside a slot of this format: a newer program has been here after that slot was written.
            [Err(BadSlot::Format(format)), _] | [_, Err(BadSlot::Format(format))] => {
                Err(BadSlot::Format(format))
            }
            [Ok(only), Err(_)] | [Err(_), Ok(only)] => Ok(only),
            [Err(BadSlot::Empty), Err(BadSlot::Empty)] => Err(BadSlot::Empty),
            [
                Err(BadSlot::Foreign),
                Err(BadSlot::Foreign | BadSlot::Empty),
            ] => Err(BadSlot::Foreign),
            [Err(_), Err(_)] => Err(BadSlot::Invalid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(run: u64) -> Manifest {
        Manifest {
            store_uuid: [7; 16],
            placement_seed: 11,
            generation: Generation {
                first_log: LogId(70_000),
                shards: 2,
            },
            previous: (run > 1).then_some(Generation {
                first_log: LogId(69_000),
                shards: 1000,
            }),
            next_log: LogId(70_002),
            run,
            served: run > 2,
        }
    }

    #[test]
    fn a_manifest_from_which_no_start_can_count_on_is_damaged() {
        let last = Manifest {
            run: u64::MAX - 1,
            next_log: LogId(u32::MAX - u32::from(u16::MAX)),
            ..manifest(3)
        };
        let decoded = |manifest: &Manifest| {
            let mut file = vec![0; MANIFEST_BYTES];
            let at = manifest.slot_offset() as usize;
            file[at..at + BLOCK].copy_from_slice(&manifest.encode());
            Manifest::decode(&file)
        };
        assert_eq!(decoded(&last), Ok(last));
        let next = last.next_run(u16::MAX);
        assert_eq!(next.run, u64::MAX);
        let runs_out = Manifest {
            run: u64::MAX,
            ..last
        };
        let logs_run_out = Manifest {
            next_log: LogId(last.next_log.0 + 1),
            ..last
        };
        assert_eq!(decoded(&runs_out), Err(BadSlot::Invalid));
        assert_eq!(decoded(&logs_run_out), Err(BadSlot::Invalid));
    }

    #[test]
    fn another_number_of_shards_begins_a_generation_of_logs_that_were_never_used() {
        let two = manifest(3);
        assert_eq!(two.next_run(2), Manifest { run: 4, ..two });
        let five = two.next_run(5);
        let logs: Vec<_> = five.generation.logs().map(|log| log.0).collect();
        assert_eq!(logs, [70_002, 70_003, 70_004, 70_005, 70_006]);
        assert_eq!((five.previous, five.served), (Some(two.generation), false));
        // Not served: with yet another number what is to be read stays the same; the log numbers are not used again.
        let one = five.next_run(1);
        assert_eq!(
            (one.generation.first_log, one.previous),
            (LogId(70_007), Some(two.generation))
        );
        // Back to the logs that everything is still in.
        let back = one.next_run(2);
        assert_eq!(
            (back.generation, back.previous, back.served),
            (two.generation, None, true)
        );
        assert_eq!(back.next_log, LogId(70_008));
        // Served: from then on these are what is read.
        let served = Manifest {
            served: true,
            ..one
        };
        assert_eq!(served.next_run(2).previous, Some(one.generation));
        assert_eq!(served.next_run(2).generation.first_log, LogId(70_008));
    }

    fn file(runs: &[u64]) -> Vec<u8> {
        let mut file = vec![0; MANIFEST_BYTES];
        for run in runs {
            let at = manifest(*run).slot_offset() as usize;
            file[at..at + BLOCK].copy_from_slice(&manifest(*run).encode());
        }
        file
    }

    #[test]
    fn the_newer_slot_wins_and_a_torn_one_leaves_the_other() {
        assert_eq!(Manifest::decode(&file(&[])), Err(BadSlot::Empty));
        assert_eq!(Manifest::decode(&file(&[1])), Ok(manifest(1)));
        assert_eq!(Manifest::decode(&file(&[1, 2])), Ok(manifest(2)));
        assert_eq!(Manifest::decode(&file(&[3, 2])), Ok(manifest(3)));
        let mut torn = file(&[3, 2]);
        torn[BLOCK + 20] ^= 1;
        assert_eq!(Manifest::decode(&torn), Ok(manifest(2)));
        torn[20] ^= 1;
        assert_eq!(Manifest::decode(&torn), Err(BadSlot::Invalid));
    }

    #[test]
    fn another_format_is_named_even_beside_an_older_slot() {
        let mut newer = file(&[1, 2]);
        newer[12] = 9;
        let crc = crc32fast::hash(&newer[12..BLOCK]);
        newer[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Manifest::decode(&newer), Err(BadSlot::Format(9)));
    }
}

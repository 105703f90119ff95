//! Identity of a data directory, as bytes: two slots of one block each, written in turn, so that a torn write leaves
//! the other one whole.
//!
//! Guarantees: decoding never panics; the valid slot with the higher run number wins.
//! Does not: touch files (`directory` does).

use crate::storage::disk::BLOCK;

/// First bytes of a slot.
pub const MANIFEST_MAGIC: [u8; 8] = *b"ORLOPMAN";
/// Version of the format of manifest and log together.
pub const MANIFEST_FORMAT: u32 = super::format::FORMAT_VERSION;
/// Bytes of the whole file.
pub const MANIFEST_BYTES: usize = 2 * BLOCK;
/// The only placement rule so far: see `shard::placement`.
const PLACEMENT_XXH3_64: u16 = 1;

/// What a manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manifest {
    /// Made at random when the directory was created.
    pub store_uuid: [u8; 16],
    /// Seed of the placement hash.
    pub placement_seed: u64,
    /// Shards of the last run.
    pub shard_count: u16,
    /// Starts of the server on this directory, this one included.
    pub run: u64,
    /// Whether a run has served: from then on each shard has segments, and their absence is damage.
    pub served: bool,
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
        block.extend_from_slice(&self.shard_count.to_le_bytes());
        block.extend_from_slice(&PLACEMENT_XXH3_64.to_le_bytes());
        block.push(u8::from(self.served));
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
        Ok(Manifest {
            store_uuid,
            placement_seed: field(32),
            run: field(40),
            shard_count: field(48) as u16,
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
            shard_count: 2,
            run,
            served: run > 2,
        }
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

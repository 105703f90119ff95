//! Reads the whole log of a shard that is not served, and says everything that is wrong with it.
//!
//! What is damage is decided by the code of `recovery`: a log without findings starts, one with findings is refused.
//! Guarantees: no file is changed; every frame that can be told from its neighbours is looked at, also behind damage.
//! Does not: repair.

use crate::storage::damage::Damage;
use crate::storage::disk::Disk;
use crate::storage::error::StorageError;
use crate::storage::format::RecordKind;
use crate::storage::index::Index;
use crate::storage::recovery::{Reading, Recovered, read_log};
use crate::storage::survey::Purpose;
use crate::storage::writer::LogIdentity;

/// The log that is checked.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    /// Identity of the store.
    pub store_uuid: [u8; 16],
    /// The shard.
    pub shard: u16,
    /// The shard has served before: a log without segments is damage.
    pub must_exist: bool,
}

/// What a check found.
#[derive(Debug)]
pub struct Verified {
    /// What a start would recover; with damage, what of it could be read.
    pub recovered: Recovered,
    /// Keys that are present.
    pub keys: u64,
    /// Every damaged place; always `Corrupt`. Empty: a start would succeed.
    pub damage: Vec<StorageError>,
}

/// A set or delete of the log.
#[derive(Debug, Clone, Copy)]
pub struct LoggedWrite<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The version that it was given.
    pub version: u64,
    /// The value; `None`: a delete.
    pub value: Option<&'a [u8]>,
}

/// The checksum that acknowledgement logs give of a value: CRC-32 as zlib computes it.
pub fn checksum(value: &[u8]) -> u32 {
    crc32fast::hash(value)
}

/// Checks the log of one shard and shows every write that is in it to `each`, in no particular order; some twice, where
/// compaction has copied them.
///
/// # Errors
/// `Incompatible` for files of another store or format, `Io` when the disk does not give its bytes.
pub async fn verify<D: Disk>(
    disk: &D,
    options: &VerifyOptions,
    mut each: impl FnMut(LoggedWrite<'_>),
) -> Result<Verified, StorageError> {
    let identity = LogIdentity {
        store_uuid: options.store_uuid,
        shard: options.shard,
        // Of what would be written.
        run: 0,
        salt_seed: 0,
        segment_bytes: 0,
    };
    let mut index = Index::new(0);
    let mut damage = Damage::Collected(Vec::new());
    let reading = Reading {
        purpose: Purpose::Check,
        must_exist: options.must_exist,
        damage: &mut damage,
        each: Some(&mut |record| {
            each(LoggedWrite {
                key: record.key,
                version: record.version,
                value: (record.kind == RecordKind::Set).then_some(record.value),
            });
        }),
    };
    let (_, log) = read_log(disk, &identity, &mut index, reading).await?;
    Ok(Verified {
        recovered: log.recovered,
        keys: index.keys(),
        damage: match damage {
            Damage::Collected(found) => found,
            Damage::Refuses => unreachable!("this check collects"),
        },
    })
}

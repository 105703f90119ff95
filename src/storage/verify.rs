//! Reads the whole log of a shard that is not served, and says everything that is wrong with it.
//!
//! What is damage is decided by the code of `recovery`: a log without findings starts, one with findings is refused.
//! Guarantees: no file is changed; every frame that can be told from its neighbours is looked at, also behind damage.
//! Does not: repair.

use crate::storage::damage::Damage;
use crate::storage::disk::Disk;
use crate::storage::error::StorageError;
use crate::storage::format::{Record, RecordKind};
use crate::storage::handover::{Handover, Owner};
use crate::storage::index::{Change, Index};
use crate::storage::opening::read_logs;
use crate::storage::options::StoreOptions;
use crate::storage::recovered::Recovered;
use crate::storage::recovery::Reading;
use crate::storage::segment::{Location, SegmentId};
use crate::storage::writer::Durable;

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

/// A shard whose logs were read to their end.
pub struct Checking {
    index: Index,
    recovered: Recovered,
    damage: Vec<StorageError>,
}

/// Checks what one shard reads at a start and shows every write that is in it to `each`, in no particular order; some
/// twice, where compaction has copied them. `owner` says whose a key is. Returns what the shard hands over to each;
/// [`Checking::finish`] wants what each has handed over to this one.
///
/// # Errors
/// `Incompatible` for files of another store or format, `Io` when the disk does not give its bytes.
pub async fn verify<D: Disk>(
    disk: &D,
    options: &StoreOptions,
    owner: Owner<'_>,
    mut each: impl FnMut(LoggedWrite<'_>),
) -> Result<(Checking, Vec<Handover>), StorageError> {
    let mut index = Index::new(0);
    let mut show = |record: &Record<'_>| {
        each(LoggedWrite {
            key: record.key,
            version: record.version,
            value: (record.kind == RecordKind::Set).then_some(record.value),
        });
    };
    let mut reading = Reading {
        everything: true,
        damage: Damage::Collected(Vec::new()),
        each: Some(&mut show),
        owner,
        shards: options.generation.shards,
    };
    let logs = read_logs(disk, options, &mut index, &mut reading).await?;
    let checking = Checking {
        index,
        recovered: logs.recovered,
        damage: match reading.damage {
            Damage::Collected(found) => found,
            Damage::Refuses => unreachable!("this check collects"),
        },
    };
    Ok((checking, logs.handovers))
}

impl Checking {
    /// Counts what is present, when all shards have handed over what they read.
    pub fn finish(mut self, handovers: &[Handover]) -> Verified {
        let segments = handovers.iter().flat_map(|handover| &handover.segments);
        for entry in segments.flat_map(|segment| segment.entries.iter()) {
            let change = Change {
                kind: entry.kind,
                version: entry.version,
                // Nobody will read there.
                location: Location {
                    segment: SegmentId::FOREIGN,
                    offset: entry.offset,
                    bytes: entry.record_bytes() as u32,
                },
                value_len: entry.value_len as usize,
            };
            self.index
                .recover(entry.key, Durable::after_recovery(change));
        }
        self.index.finish_recovery(|_, _| ());
        Verified {
            recovered: self.recovered,
            keys: self.index.keys(),
            damage: self.damage,
        }
    }
}

//! How a store is opened.

use crate::storage::manifest::{Generation, Manifest};
use crate::storage::writer::LogIdentity;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Identity of the store, from the manifest.
    pub store_uuid: [u8; 16],
    /// The shard, from 0.
    pub shard: u16,
    /// The logs of all shards, from the manifest.
    pub generation: Generation,
    /// Those of the run that served last, if the present ones have not yet: everything is in these, then.
    pub previous: Option<Generation>,
    /// Number of this start, from the manifest.
    pub run: u64,
    /// Random; the epochs of segments are drawn from it.
    pub salt_seed: u64,
    /// Size of new segments, in bytes: a multiple of 4096, at least `format::segment_bytes_min` of the next field. They are
    /// larger where a record that is there already needs it.
    pub segment_bytes: u32,
    /// Longest value that will be written, in bytes.
    pub value_len_max: usize,
    /// Budget of the value cache, in bytes.
    pub cache_bytes: u64,
    /// Bytes of records that may wait for the disk; further ones are rejected.
    pub pending_bytes_max: usize,
    /// Dead bytes of sealed segments that compaction leaves alone whatever their share.
    pub dead_bytes_min: u64,
    /// The logs of this generation have served before: then a shard without segments is damage, not a new store.
    pub served: bool,
}

impl StoreOptions {
    /// To read a store of this manifest, and never write to it.
    pub fn to_read(manifest: &Manifest, shard: u16) -> StoreOptions {
        StoreOptions {
            store_uuid: manifest.store_uuid,
            shard,
            generation: manifest.generation,
            previous: manifest.previous,
            run: manifest.run,
            salt_seed: 0,
            segment_bytes: 0,
            value_len_max: 0,
            cache_bytes: 0,
            pending_bytes_max: 0,
            dead_bytes_min: 0,
            served: manifest.served,
        }
    }

    pub(super) fn identity(&self) -> LogIdentity {
        LogIdentity {
            store_uuid: self.store_uuid,
            log: self.generation.log(self.shard),
            run: self.run,
            salt_seed: self.salt_seed,
            segment_bytes: self.segment_bytes,
        }
    }

    /// The logs of the generation before that this shard reads, if the present one has not served yet.
    pub(super) fn logs_before(&self) -> Vec<LogIdentity> {
        let turn = |at: usize| at % usize::from(self.generation.shards) == usize::from(self.shard);
        let logs = self.previous.iter().flat_map(|before| before.logs());
        logs.enumerate()
            .filter(|(at, _)| turn(*at))
            .map(|(_, log)| LogIdentity {
                log,
                ..self.identity()
            })
            .collect()
    }
}

//! Opens a store, in two steps: a shard reads its logs, and hands over what in them belongs to others; when all shards
//! have, each takes in what is its own and begins.
//!
//! Usually a shard reads its own log and there is nothing to hand over. After the number of shards has changed the logs of
//! the generation before are read, each by one shard, which from then on *keeps* their segments: its own log lists them.
//! That lasts until every shard has moved its records out of them (`foreign`).
//!
//! Guarantees: the first step changes no file, so that a refused start changes nothing; versions go on above the highest
//! one that any shard found.
//! Does not: carry handovers between threads (the server does).

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::storage::damage::Damage;
use crate::storage::directory::MANIFEST_NAME;
use crate::storage::disk::Disk;
use crate::storage::error::StorageError;
use crate::storage::foreign::Foreign;
use crate::storage::format::segment_bytes_for;
use crate::storage::frames::holds_records;
use crate::storage::handover::{HandedSegment, Handover, Owner, hand_over};
use crate::storage::index::{Change, Index};
use crate::storage::options::StoreOptions;
use crate::storage::plant::{Plant, planted};
use crate::storage::recovered::Recovered;
use crate::storage::recovery::{ReadLog, Reading, read_log};
use crate::storage::segment::{self, Location, SegmentId, SpareFile};
use crate::storage::segments::{Segment, Segments};
use crate::storage::store::Store;
use crate::storage::survey::{SegmentFile, Survey, segment_files, survey};
use crate::storage::writer::{Durable, LogEnd, LogIdentity, Unindexed};

/// What a store begins on.
pub(super) struct OpenedLog<F> {
    pub(super) index: Index,
    pub(super) segments: Segments<F>,
    pub(super) foreign: Foreign,
    /// Sealed segments that lack their footer.
    pub(super) unindexed: Vec<Unindexed<F>>,
    pub(super) end: LogEnd,
    /// Files that are ready for use.
    pub(super) spares: Vec<SpareFile<F>>,
    /// Above the number of every file.
    pub(super) next_file: u32,
}

/// A shard that has read its logs.
pub struct Opening<D: Disk> {
    disk: Rc<D>,
    options: StoreOptions,
    index: Index,
    /// Its own log, and the files that there are of it.
    log: ReadLog<D::File>,
    found: Option<Survey<D::File>>,
    recovered: Recovered,
}

/// Reads what a shard has to read. `owner` says whose a key is. Returns what it hands over to each shard, in shard order;
/// [`Opening::finish`] wants what each has handed over to this one.
///
/// # Errors
/// `Corrupt` and `Incompatible` as recovery finds them, `Io`.
pub async fn read<D: Disk>(
    disk: D,
    options: StoreOptions,
    owner: Owner<'_>,
) -> Result<(Opening<D>, Vec<Handover>), StorageError> {
    let segment_bytes = u64::from(options.segment_bytes);
    assert!(
        segment_bytes >= super::format::segment_bytes_min(options.value_len_max),
        "the configuration checks that a segment holds the largest record"
    );
    // A crash may have left names and blocks that only memory knows; what is shown from here on must be durable.
    disk.sync_directory()
        .await
        .map_err(|source| StorageError::io("syncing", "the data directory", source))?;
    let mut index = Index::new(options.cache_bytes);
    let mut reading = Reading {
        everything: false,
        damage: Damage::Refuses,
        each: None,
        owner,
        shards: options.generation.shards,
    };
    let logs = read_logs(&disk, &options, &mut index, &mut reading).await?;
    let opening = Opening {
        disk: Rc::new(disk),
        options,
        index,
        log: logs.own,
        found: logs.found,
        recovered: logs.recovered,
    };
    Ok((opening, logs.handovers))
}

/// What a shard has read.
pub(super) struct Logs<F> {
    /// Its own log.
    pub(super) own: ReadLog<F>,
    /// The files of that; `None`: it was not read, because it has not served yet.
    pub(super) found: Option<Survey<F>>,
    /// One for each shard.
    pub(super) handovers: Vec<Handover>,
    /// Of all that was read.
    pub(super) recovered: Recovered,
}

/// Reads the log of a shard, or its share of the logs before, and changes no file.
pub(super) async fn read_logs<D: Disk>(
    disk: &D,
    options: &StoreOptions,
    index: &mut Index,
    reading: &mut Reading<'_>,
) -> Result<Logs<D::File>, StorageError> {
    let (mut own, mut found) = (ReadLog::empty(), None);
    if options.served || options.previous.is_none() {
        let identity = options.identity();
        let (files, log) = read_log(disk, &identity, options.served, Some(index), reading).await?;
        (own, found) = (log, Some(files));
    }
    let mut recovered = own.recovered.clone();
    let mut kept = std::mem::take(&mut own.kept);
    if options.shard == 0
        && let Err(error) = check_unserved(disk, options).await
    {
        reading.damage.note(error)?;
    }
    if !options.served {
        for identity in options.logs_before() {
            let (files, log) = read_log(disk, &identity, true, None, reading).await?;
            files.close().await?;
            recovered.add(log.recovered);
            kept.extend(log.kept);
        }
    }
    let (shard, shards) = (options.shard, options.generation.shards);
    let handovers = hand_over(shard, shards, recovered.last_version, kept);
    Ok(Logs {
        own,
        found,
        handovers,
        recovered,
    })
}

/// Logs that are newer than those of the run that served last have never served, and their files will be removed. There
/// is nothing in them, or the manifest that says so is of an earlier time.
async fn check_unserved<D: Disk>(disk: &D, options: &StoreOptions) -> Result<(), StorageError> {
    let last_served = match options.served {
        true => Some(options.generation),
        false => options.previous,
    };
    let Some(end) = last_served.and_then(|served| served.logs().last()) else {
        return Ok(());
    };
    let files = segment_files(disk).await?;
    let newer: BTreeSet<_> = files.into_keys().map(|(log, _)| log).collect();
    for log in newer.into_iter().filter(|log| *log > end) {
        let identity = LogIdentity {
            log,
            ..options.identity()
        };
        let found = survey(disk, &identity, &mut Damage::Refuses).await?;
        let mut holds = false;
        for segment in &found.segments {
            holds |= holds_records(segment).await?;
        }
        found.close().await?;
        if holds {
            return Err(StorageError::Corrupt {
                file: MANIFEST_NAME.to_owned(),
                offset: 0,
                what: format!(
                    "log {} has never served by this manifest, and there are records in it: a manifest of an earlier \
                     time was put back, restore the newest",
                    log.0
                ),
            });
        }
    }
    Ok(())
}

impl<D: Disk> Opening<D> {
    /// Takes in what all shards have handed over to this one, and opens the store.
    ///
    /// # Errors
    /// `Full` when there is no room for a segment, `Io`.
    pub async fn finish<W>(
        mut self,
        handovers: Vec<Handover>,
    ) -> Result<(Store<D, W>, Recovered), StorageError> {
        let (spares, next_file) = self.remove_unused().await?;
        self.remove_strays(&handovers).await?;
        let versions = handovers.iter().map(|handover| handover.last_version);
        let mut end = self.log.end;
        if !planted(Plant::RepeatShardVersion) {
            end.last_version = versions.max().unwrap_or(0).max(end.last_version);
        }
        self.recovered.last_version = end.last_version;
        let mut foreign = Foreign::new(self.options.shard, self.options.generation.shards);
        for segment in handovers.into_iter().flat_map(|one| one.segments) {
            self.take_in(&mut foreign, segment).await?;
        }
        let segments = &mut self.log.segments;
        let mut longest = 0;
        self.index.finish_recovery(|location, tombstone| {
            longest = longest.max(location.bytes);
            segments.record_lives(location, tombstone);
        });
        self.make_room_for(longest);
        let identity = self.options.identity();
        let opened = OpenedLog {
            index: self.index,
            segments: self.log.segments,
            foreign,
            unindexed: self.log.unindexed,
            end,
            spares,
            next_file,
        };
        let store = Store::begin(self.disk, self.options, identity, opened).await?;
        Ok((store, self.recovered))
    }

    /// Compaction copies every record into a new segment, also one that was written when segments were larger.
    fn make_room_for(&mut self, record_bytes: u32) {
        let needed = segment_bytes_for(record_bytes as usize);
        if needed <= self.options.segment_bytes.into() || planted(Plant::TrustSegmentSize) {
            return;
        }
        tracing::warn!(
            shard = self.options.shard,
            segment_size = self.options.segment_bytes,
            needed,
            "the longest record does not fit into a segment of --segment-size: new ones are made as large as it needs"
        );
        self.options.segment_bytes = u32::try_from(needed).expect("it is in a segment");
    }

    /// Removes files of its own log that are no part of it. Returns the spares among them, and a number above that of
    /// every file.
    async fn remove_unused(&mut self) -> Result<(Vec<SpareFile<D::File>>, u32), StorageError> {
        let Some(found) = self.found.take() else {
            // A start with this number of shards that never served: nothing in it was promised to anybody.
            let own = self.options.identity().log;
            for (log, file) in segment_files(&*self.disk).await?.into_keys() {
                if log == own {
                    segment::remove(&*self.disk, &segment::name(log, file)).await?;
                }
            }
            return Ok((Vec::new(), 1));
        };
        let torn = found.unreadable.into_iter().map(|file| file.at);
        for file in found.unused.into_iter().chain(torn) {
            tracing::info!(
                file = file.name,
                "removing a segment file that was never used"
            );
            self.remove(file).await?;
        }
        for segment in found.segments {
            let id = SegmentId(segment.header.number);
            if self.log.segments.get(id).is_none() {
                tracing::info!(file = segment.at.name, "removing a retired segment");
                self.remove(segment.at).await?;
            }
        }
        Ok((found.spares, found.next_file))
    }

    async fn remove(&self, file: SegmentFile<D::File>) -> Result<(), StorageError> {
        let name = file.name.clone();
        file.close().await?;
        segment::remove(&*self.disk, &name).await
    }

    /// One shard removes the files of logs that are not read any more.
    async fn remove_strays(&self, handovers: &[Handover]) -> Result<(), StorageError> {
        if self.options.shard != 0 {
            return Ok(());
        }
        let segments = handovers.iter().flat_map(|one| &one.segments);
        let known: BTreeSet<_> = segments
            .map(|segment| (segment.at.segment.log, segment.at.file))
            .collect();
        for (log, file) in segment_files(&*self.disk).await?.into_keys() {
            if !self.options.generation.has(log) && !known.contains(&(log, file)) {
                let name = segment::name(log, file);
                tracing::info!(file = name, "removing a segment file that nobody needs");
                segment::remove(&*self.disk, &name).await?;
            }
        }
        Ok(())
    }

    /// Takes in what of a segment of another log is this shard's.
    async fn take_in(
        &mut self,
        foreign: &mut Foreign,
        handed: HandedSegment,
    ) -> Result<(), StorageError> {
        let HandedSegment {
            at,
            keeper,
            first_version,
            allocated_bytes,
            entries,
        } = handed;
        foreign.add(at, keeper, first_version, allocated_bytes);
        if entries.count() == 0 {
            foreign.leave(at.segment);
            return Ok(());
        }
        let name = segment::name(at.segment.log, at.file);
        let file = self.disk.open(&name).await;
        let file = file.map_err(|source| StorageError::io("opening", &name, source))?;
        let id = SegmentId(SegmentId::FOREIGN.0 + self.log.segments.foreign().count() as u32);
        let segment = Segment {
            key: at.segment,
            file: Rc::new(file),
            file_number: at.file,
            epoch: at.epoch,
            first_version,
            allocated_bytes,
            used_bytes: at.end,
            footer_bytes: 0,
            live_bytes: 0,
            tombstone_bytes: 0,
        };
        self.log.segments.add(id, segment);
        for entry in entries.iter() {
            let change = Change {
                kind: entry.kind,
                version: entry.version,
                location: Location {
                    segment: id,
                    offset: entry.offset,
                    bytes: entry.record_bytes() as u32,
                },
                value_len: entry.value_len as usize,
            };
            self.index
                .recover(entry.key, Durable::after_recovery(change));
        }
        Ok(())
    }
}

#[cfg(test)]
impl<D: Disk, W> Store<D, W> {
    /// Opens the store of a shard that has nothing to do with others.
    pub(super) async fn open(
        disk: D,
        options: StoreOptions,
    ) -> Result<(Store<D, W>, Recovered), StorageError> {
        let shard = options.shard;
        let (opening, mut handovers) = read(disk, options, &|_| shard).await?;
        opening
            .finish(vec![handovers.swap_remove(shard.into())])
            .await
    }
}

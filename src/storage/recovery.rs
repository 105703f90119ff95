//! Reads a log: the frames of its segments, or their footers, and where the log ends.
//!
//! The newest segment comes first, because it says which others there are (`lineage`); those may be of other logs.
//! Where the log ends, and whether what stands there is damage, is decided by `verdict`.
//!
//! Guarantees: what is read is durable (files and directory are synced before they are read), is a prefix of the
//! commit order and contains every acknowledged record; nothing is repaired or changed; numbers from disk are bounded
//! before use.
//! Does not: find the files (`survey` does), open a store on them (`opening` does) or cache values.

use std::collections::BTreeSet;
use std::rc::Rc;

use futures::stream::{StreamExt as _, iter};

use crate::storage::damage::Damage;
use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::footer::{FooterBuilder, FooterEntry, count_entries, read_footer};
use crate::storage::format::{
    FRAME_HEADER_BYTES, Record, RecordKind, SEGMENT_HEADER_BYTES, retired_segment,
};
use crate::storage::frames::{FrameRecord, FrameScan, look_behind, next_frame};
use crate::storage::handover::{KeptSegment, Owner};
use crate::storage::index::{Change, Index};
use crate::storage::indexing::find_footer;
use crate::storage::lineage::{self, Told};
use crate::storage::plant::{Plant, planted};
use crate::storage::recovered::{Recovered, TornTail};
use crate::storage::scan::Scanner;
use crate::storage::segment::{Location, SegmentId};
use crate::storage::segments::{Segment, Segments};
use crate::storage::survey::{Opened, Survey, open_listed, survey};
use crate::storage::table::{self, TableEntry};
use crate::storage::verdict::{Behind, Found, Verdict, verdict};
use crate::storage::writer::{Durable, LogEnd, LogIdentity, Unindexed};

/// Footers that are read at the same time.
const FOOTERS_AHEAD: usize = 8;

/// How logs are read.
pub(super) struct Reading<'a> {
    /// Read the frames also where there is a footer, and hold it against them.
    pub(super) everything: bool,
    pub(super) damage: Damage,
    /// Is shown every set and delete whose frame is read, in no particular order.
    pub(super) each: Option<&'a mut dyn FnMut(&Record<'_>)>,
    /// Whose the keys in segments of other logs are.
    pub(super) owner: Owner<'a>,
    /// Of how many shards.
    pub(super) shards: u16,
}

/// A log as it was read; where damage was collected, what could be read of it.
pub(super) struct ReadLog<F> {
    pub(super) segments: Segments<F>,
    /// What it lists of other logs; of a log that is not the shard's own all segments.
    pub(super) kept: Vec<KeptSegment>,
    /// Sealed segments that lack their footer.
    pub(super) unindexed: Vec<Unindexed<F>>,
    pub(super) end: LogEnd,
    pub(super) recovered: Recovered,
}

impl<F> ReadLog<F> {
    /// One that is not begun.
    pub(super) fn empty() -> ReadLog<F> {
        ReadLog {
            segments: Segments::new(),
            kept: Vec::new(),
            unindexed: Vec::new(),
            end: LogEnd {
                segment: SegmentId(0),
                file: 0,
                offset: 0,
                last_version: 0,
            },
            recovered: Recovered::default(),
        }
    }
}

/// Reads a log, and changes no file. Its records go into `index`, where it is the shard's own; without one everything is
/// sorted by owner, as are records in segments of other logs always. `must_exist`: a log without segments is damage.
pub(super) async fn read_log<D: Disk>(
    disk: &D,
    identity: &LogIdentity,
    must_exist: bool,
    index: Option<&mut Index>,
    reading: &mut Reading<'_>,
) -> Result<(Survey<D::File>, ReadLog<D::File>), StorageError> {
    let found = survey(disk, identity, &mut reading.damage).await?;
    let mut log = Recovery {
        disk,
        identity,
        index,
        reading,
        taken: BTreeSet::new(),
        blind: false,
        log: ReadLog::empty(),
    };
    match lineage::newest(&found, identity, must_exist) {
        Ok(None) => {}
        Ok(Some(newest)) => log.take_log(&found, newest).await?,
        Err(error) => {
            log.reading.damage.note(error)?;
            log.take_each(&found).await?;
        }
    }
    let mut log = log.log;
    log.recovered.last_version = log.end.last_version;
    log.recovered.segments = (log.segments.count() + log.kept.len()) as u32;
    log.recovered.foreign_segments = log.kept.len() as u32;
    Ok((found, log))
}

/// A log on its way into memory.
struct Recovery<'a, 'r, D: Disk> {
    disk: &'a D,
    identity: &'a LogIdentity,
    index: Option<&'a mut Index>,
    reading: &'a mut Reading<'r>,
    /// Numbers of the segments of this log that were taken.
    taken: BTreeSet<u32>,
    /// Which segments belong to the log is not known: then a footer is where one ends.
    blind: bool,
    log: ReadLog<D::File>,
}

/// A segment while it is read.
struct Taking<'s, F> {
    segment: &'s Opened<F>,
    /// Where its records go, unless that is the index.
    kept: Option<KeptSegment>,
    footer: FooterBuilder,
    records: u64,
}

impl<D: Disk> Recovery<'_, '_, D> {
    /// The newest segment, then back to the one that lists the others, then those.
    async fn take_log(
        &mut self,
        found: &Survey<D::File>,
        newest: &Opened<D::File>,
    ) -> Result<(), StorageError> {
        let damage_before = self.reading.damage.count();
        let mut told = self.take_segment(newest, None).await?;
        let mut last = newest;
        while told.table.is_none() && self.reading.damage.count() == damage_before {
            match lineage::before(found, last) {
                Ok(Some(before)) => {
                    let end = Some(last.header.previous_end);
                    told = self.take_segment(before, end).await?;
                    last = before;
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.reading.damage.note(error)?;
                    return self.take_each(found).await;
                }
            }
        }
        if self.reading.damage.count() > damage_before {
            // What says which segments there are is damaged itself.
            return self.take_each(found).await;
        }
        self.take_listed(found, &told).await
    }

    /// The segments that the table lists, of this log and of others.
    async fn take_listed(
        &mut self,
        found: &Survey<D::File>,
        told: &Told,
    ) -> Result<(), StorageError> {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for entry in lineage::listed(told) {
            if entry.segment.log == self.identity.log {
                match lineage::find(found, &entry) {
                    Ok(segment) => own.push((segment, entry.end)),
                    Err(error) => self.reading.damage.note(error)?,
                }
            } else {
                match open_listed(self.disk, self.identity, found, &entry).await {
                    Ok(segment) => others.push((segment, entry.end)),
                    Err(error) => self.reading.damage.note(error)?,
                }
            }
        }
        let opened = others.iter().map(|(segment, end)| (segment, *end));
        let listed: Vec<_> = own.into_iter().chain(opened).collect();
        self.take_sealed(&listed).await?;
        for (segment, _) in others {
            segment.at.close().await?;
        }
        Ok(())
    }

    /// Segments whose ends are known.
    async fn take_sealed(
        &mut self,
        sealed: &[(&Opened<D::File>, u64)],
    ) -> Result<(), StorageError> {
        if self.reading.everything {
            for (segment, end) in sealed {
                drop(self.take_segment(segment, Some(*end)).await?);
            }
            return Ok(());
        }
        let footers = sealed
            .iter()
            .map(|(segment, end)| find_footer(segment.file(), segment.header.epoch, *end));
        let mut footers = iter(footers).buffered(FOOTERS_AHEAD);
        for (segment, end) in sealed {
            let footer = footers.next().await.expect("one for each segment")?;
            self.expect_keys(footer.as_deref(), sealed.len());
            let taken = footer.is_some_and(|footer| self.take_footer(segment, *end, &footer));
            if !taken {
                drop(self.take_segment(segment, Some(*end)).await?);
            }
        }
        Ok(())
    }

    /// Makes room in the index once, for as many keys as the first footer lets expect of all segments.
    fn expect_keys(&mut self, footer: Option<&[u8]>, segments: usize) {
        if self.log.recovered.from_footers == 0
            && let (Some(footer), Some(index)) = (footer, &mut self.index)
        {
            index.expect_keys(count_entries(footer) * segments as u64);
        }
    }

    /// Every segment that is there and not taken yet, without knowing which belong to the log: where damage is
    /// collected, so that none is missed.
    async fn take_each(&mut self, found: &Survey<D::File>) -> Result<(), StorageError> {
        self.blind = true;
        for segment in &found.segments {
            let number = segment.header.number;
            if !self.taken.contains(&number) {
                let next = found
                    .segments
                    .iter()
                    .find(|next| next.header.previous_number == number);
                let end = next.map(|next| next.header.previous_end);
                self.take_segment(segment, end).await?;
            }
        }
        Ok(())
    }

    /// Takes what the footer of a segment says of it. False: nothing was taken, the footer does not verify.
    fn take_footer(&mut self, segment: &Opened<D::File>, end: u64, footer: &[u8]) -> bool {
        if check_length(segment, Some(end)).is_err() {
            return false;
        }
        let mut taking = self.begin(segment, end);
        let read = read_footer(footer, end, |entry| self.take_entry(&mut taking, &entry));
        let records = match read {
            Ok(records) => records,
            Err(what) => {
                tracing::warn!(
                    file = segment.at.name,
                    offset = end,
                    what,
                    "the footer of a segment does not verify: reading the segment"
                );
                self.log.recovered.bad_footers += 1;
                return false;
            }
        };
        self.log.recovered.records += records;
        self.log.recovered.from_footers += 1;
        self.end(taking, end, footer.len() as u64);
        true
    }

    fn is_own(&self, segment: &Opened<D::File>) -> bool {
        self.index.is_some() && segment.header.log == self.identity.log
    }

    fn begin<'s>(&self, segment: &'s Opened<D::File>, end: u64) -> Taking<'s, D::File> {
        let at = TableEntry {
            segment: segment.header.key(),
            file: segment.header.file,
            epoch: segment.header.epoch,
            end,
        };
        let kept = || {
            let (first_version, bytes) = (segment.header.first_version, segment.at.bytes);
            KeptSegment::new(at, first_version, bytes, self.reading.shards)
        };
        Taking {
            segment,
            kept: (!self.is_own(segment)).then(kept),
            footer: FooterBuilder::new(segment.header.segment_bytes),
            records: 0,
        }
    }

    fn take_entry(&mut self, taking: &mut Taking<'_, D::File>, entry: &FooterEntry<'_>) {
        taking.records += 1;
        if let Some(kept) = &mut taking.kept {
            return kept.push(self.reading.owner, entry);
        }
        let index = self.index.as_mut().expect("own segments have an index");
        let location = Location {
            segment: SegmentId(taking.segment.header.number),
            offset: entry.offset,
            bytes: entry.record_bytes() as u32,
        };
        let change = Change {
            kind: entry.kind,
            version: entry.version,
            location,
            value_len: entry.value_len as usize,
        };
        index.recover(entry.key, Durable::after_recovery(change));
    }

    /// A segment was read up to `end`; `footer_bytes` of its footer stand behind that.
    fn end(&mut self, taking: Taking<'_, D::File>, end: u64, footer_bytes: u64) {
        let Taking { segment, kept, .. } = taking;
        let header = &segment.header;
        self.log.recovered.bytes += end;
        if header.log == self.identity.log {
            self.taken.insert(header.number);
        }
        if let Some(mut kept) = kept {
            kept.at.end = end;
            self.log.kept.push(kept);
            return;
        }
        let added = Segment {
            key: header.key(),
            file: Rc::clone(&segment.at.file),
            file_number: header.file,
            epoch: header.epoch,
            first_version: header.first_version,
            allocated_bytes: segment.at.bytes,
            used_bytes: end,
            footer_bytes,
            live_bytes: 0,
            tombstone_bytes: 0,
        };
        self.log.segments.add(SegmentId(header.number), added);
    }

    /// Reads a segment into memory. `known_end`: where it ends, as a later one says.
    async fn take_segment(
        &mut self,
        segment: &Opened<D::File>,
        known_end: Option<u64>,
    ) -> Result<Told, StorageError> {
        let first = SEGMENT_HEADER_BYTES as u64;
        let limit = match check_length(segment, known_end) {
            Ok(limit) => limit,
            Err(error) => {
                self.reading.damage.note(error)?;
                (segment.at.bytes - segment.at.bytes % BLOCK as u64).max(first)
            }
        };
        let file = Rc::clone(&segment.at.file);
        let mut scanner = Scanner::new(file, segment.at.name.clone(), first, limit);
        let mut frame = FrameScan::new(&segment.header);
        let mut taking = self.begin(segment, limit);
        while !(known_end.is_some() && scanner.position() == limit) {
            let (offset, end_known) = (scanner.position(), known_end.is_some());
            let (found, what) = frame.read(&mut scanner).await?;
            let damage = if found == Found::Whole {
                match self.take_frame(&mut frame, &mut scanner, &mut taking).await {
                    Ok(()) => continue,
                    Err(error) => error,
                }
            } else if self.blind && frame.at_footer {
                break;
            } else {
                match end_of_log(segment, end_known, &mut scanner, &frame, found, what).await {
                    Ok(tail) => {
                        self.log.recovered.torn_tail = tail;
                        break;
                    }
                    Err(error) => error,
                }
            };
            if !planted(Plant::AcceptBadFrame) {
                self.reading.damage.note(damage)?;
            }
            // Only a check comes here: it goes on with the next frame.
            taking.footer.abandon();
            match next_frame(segment, offset + BLOCK as u64, limit).await? {
                Some((at, after_version)) => {
                    (scanner, frame.last_version) = (at, after_version);
                }
                None => break,
            }
        }
        if known_end.is_none() {
            self.log.end = LogEnd {
                segment: SegmentId(segment.header.number),
                file: segment.header.file,
                offset: frame.end,
                last_version: frame.last_version,
            };
        } else if self.reading.everything {
            self.check_footer(&taking, frame.end).await?;
        }
        self.log.recovered.records += taking.records;
        let unindexed = Unindexed {
            segment: SegmentId(segment.header.number),
            file: Rc::clone(&segment.at.file),
            file_name: segment.at.name.clone(),
            bytes: segment.at.bytes,
            epoch: segment.header.epoch,
            end: frame.end,
            last_version: frame.last_version,
            footer: std::mem::replace(&mut taking.footer, FooterBuilder::new(0)),
        };
        if self.is_own(segment) && unindexed.footer_end().is_some() {
            self.log.unindexed.push(unindexed);
        }
        self.end(taking, frame.end, 0);
        Ok(frame.told)
    }

    /// Holds the footer of a segment that was read to its end against what was read.
    async fn check_footer(
        &mut self,
        taking: &Taking<'_, D::File>,
        end: u64,
    ) -> Result<(), StorageError> {
        let (file, epoch) = (taking.segment.file(), taking.segment.header.epoch);
        let Some(footer) = find_footer(file, epoch, end).await? else {
            return Ok(());
        };
        let mut read = taking.footer.entries();
        let mut agrees = true;
        let verified = read_footer(&footer, end, |entry| {
            agrees &= read.next().is_some_and(|read| read == entry);
        });
        match verified {
            Err(_) => self.log.recovered.bad_footers += 1,
            Ok(_) if agrees && read.next().is_none() => {}
            Ok(_) if !taking.footer.is_wanted() => {}
            Ok(_) => {
                let what = "the footer says something else than the records".to_owned();
                self.reading
                    .damage
                    .note(corrupt(taking.segment, end, what))?;
            }
        }
        Ok(())
    }

    /// Takes the frame that was found whole into memory and moves behind it.
    async fn take_frame(
        &mut self,
        taken: &mut FrameScan<'_>,
        scanner: &mut Scanner<D::File>,
        taking: &mut Taking<'_, D::File>,
    ) -> Result<(), StorageError> {
        let start = scanner.position();
        let last = taken
            .records
            .last()
            .map_or(FRAME_HEADER_BYTES, |record| record.offset + record.bytes);
        let frame_bytes = last.next_multiple_of(BLOCK);
        let frame = scanner.peek(frame_bytes).await?;
        for FrameRecord { offset, bytes } in &taken.records {
            let record = Record::decode_verified(&frame[*offset..offset + bytes]);
            match record.kind {
                RecordKind::Set | RecordKind::Delete => {}
                RecordKind::Retire => {
                    taken.told.retired.push(retired_segment(record.key));
                    continue;
                }
                RecordKind::Table => {
                    let table = table::decode(record.value);
                    let at = start + *offset as u64;
                    taken.told.table =
                        Some(table.map_err(|what| corrupt(taking.segment, at, what))?);
                    continue;
                }
                RecordKind::Footer => continue,
            }
            let entry = FooterEntry {
                kind: record.kind,
                version: record.version,
                offset: (start + *offset as u64) as u32,
                value_len: record.value.len() as u32,
                key: record.key,
            };
            taking.footer.push(&entry);
            self.take_entry(taking, &entry);
            taken.last_version = taken.last_version.max(record.version);
            if let Some(each) = &mut self.reading.each {
                each(&record);
            }
        }
        scanner.consume(frame_bytes);
        taken.end = scanner.position();
        Ok(())
    }
}

fn corrupt<F>(segment: &Opened<F>, offset: u64, what: String) -> StorageError {
    StorageError::Corrupt {
        file: segment.at.name.clone(),
        offset,
        what,
    }
}

/// Checks that the file reaches as far as its segment does. Returns where its frames end at the latest.
fn check_length<F>(segment: &Opened<F>, known_end: Option<u64>) -> Result<u64, StorageError> {
    let end = known_end.unwrap_or(segment.header.segment_bytes);
    if segment.at.bytes < end
        || !end.is_multiple_of(BLOCK as u64)
        || end < SEGMENT_HEADER_BYTES as u64
    {
        let what = format!("the file has {} bytes, expected {end}", segment.at.bytes);
        return Err(corrupt(segment, segment.at.bytes, what));
    }
    Ok(end)
}

/// Judges a place that holds no whole frame: the end of the log, with what was torn there if anything was, or damage.
async fn end_of_log<F: DiskFile>(
    segment: &Opened<F>,
    end_known: bool,
    scanner: &mut Scanner<F>,
    frame: &FrameScan<'_>,
    found: Found,
    what: String,
) -> Result<Option<TornTail>, StorageError> {
    let offset = scanner.position();
    let (behind, bytes) = match found {
        Found::Unchained | Found::Misplaced => (Behind::Nothing, 0),
        _ if end_known => (Behind::Nothing, 0),
        _ => look_behind(scanner, &segment.header, frame.last_version).await?,
    };
    match verdict(found, behind, end_known) {
        Verdict::Take => unreachable!("a whole frame is taken, not judged"),
        Verdict::End => Ok(None),
        Verdict::TornTail => Ok(Some(TornTail {
            segment: segment.header.number,
            file: segment.at.name.clone(),
            offset,
            bytes,
        })),
        Verdict::Corrupt => {
            let what = format!(
                "{what} (after version {}; nothing was changed)",
                frame.last_version
            );
            Err(corrupt(segment, offset, what))
        }
    }
}

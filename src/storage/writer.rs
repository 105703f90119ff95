//! The end of the log: where the next frame goes, and the proof that one is durable.
//!
//! Owns: the active segment, and [`Durable`].
//! Guarantees: a frame is one O_DIRECT|O_DSYNC write to blocks that are there already, of one segment; after any failure
//! the log takes nothing more; a segment takes frames only after its header is durable, and its first one lists the
//! segments before it.
//! Does not: group records (`pending` does), touch the index, make files (`spares` does), retry.

use std::cell::RefCell;
use std::rc::Rc;

use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::footer::{FooterBuilder, FooterEntry};
use crate::storage::format::{
    FRAME_HEADER_BYTES, FrameHeader, Record, RecordKind, SEGMENT_HEADER_BYTES, SegmentHeader,
    SegmentState,
};
use crate::storage::segment::{
    self, LogId, SegmentId, SegmentKey, SpareFile, write_header, write_whole,
};
use crate::storage::segments::Segment;
use crate::storage::table::{self, TableEntry, table_frame_bytes};

/// Something that survives a power cut. Only a completed commit and recovery can make one, so that neither an
/// acknowledgement nor the visible index can get ahead of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable<T>(T);

impl<T> Durable<T> {
    /// Read back from a disk that was synced first.
    pub(super) fn after_recovery(value: T) -> Durable<T> {
        Durable(value)
    }

    /// What is durable.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// What is durable, by itself.
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// The completed write of a frame: turns what was in it into something durable.
pub(super) struct Committed(());

impl Committed {
    pub(super) fn durable<T>(&self, value: T) -> Durable<T> {
        Durable(value)
    }
}

/// What all segments of a log have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogIdentity {
    pub(super) store_uuid: [u8; 16],
    pub(super) log: LogId,
    pub(super) run: u64,
    /// Epochs are drawn from it: random in production, the seed of a simulation in tests.
    pub(super) salt_seed: u64,
    pub(super) segment_bytes: u32,
}

impl LogIdentity {
    // SplitMix64: distinct uses give distinct epochs, a random seed makes them unguessable.
    pub(super) fn epoch(&self, nth_use: u32) -> u64 {
        let mut mixed = self
            .salt_seed
            .wrapping_add(u64::from(nth_use).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Where a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogEnd {
    /// The last segment; 0: there is none.
    pub(super) segment: SegmentId,
    /// The number in the name of its file.
    pub(super) file: u32,
    /// End of its last frame, in bytes.
    pub(super) offset: u64,
    /// The last version that was given out.
    pub(super) last_version: u64,
}

/// Where a frame goes.
pub(super) struct Place<F> {
    pub(super) segment: SegmentId,
    pub(super) file: Rc<F>,
    pub(super) offset: u64,
    pub(super) epoch: u64,
    /// The number in the name of the file.
    pub(super) file_number: u32,
    /// The last version given out before the frame.
    pub(super) last_version: u64,
}

impl<F> Place<F> {
    /// The offset in blocks.
    pub(super) fn block(&self) -> u32 {
        u32::try_from(self.offset / BLOCK as u64).expect("a segment is smaller than 4 GiB")
    }
}

struct State<F> {
    end: LogEnd,
    epoch: u64,
    file: Rc<F>,
    /// Length of the file, in bytes.
    bytes: u64,
    /// Where the first frame behind the table goes.
    begin: u64,
    footer: FooterBuilder,
}

/// A sealed segment whose footer is not written yet.
pub(super) struct Unindexed<F> {
    pub(super) segment: SegmentId,
    pub(super) file: Rc<F>,
    pub(super) file_name: String,
    /// Length of the file, in bytes.
    pub(super) bytes: u64,
    pub(super) epoch: u64,
    /// End of its last frame, in bytes.
    pub(super) end: u64,
    /// The last version given out before that end.
    pub(super) last_version: u64,
    pub(super) footer: FooterBuilder,
}

/// The log of one shard, at its end.
pub(super) struct Log<D: Disk> {
    disk: Rc<D>,
    identity: LogIdentity,
    state: RefCell<State<D::File>>,
}

/// A segment that was made the active one.
pub(super) type Activated<F> = (SegmentId, Segment<F>);

impl<D: Disk> Log<D> {
    /// Starts a fresh segment behind `end`, which is where the last of `before` ends.
    pub(super) async fn start(
        disk: Rc<D>,
        identity: LogIdentity,
        end: LogEnd,
        spare: SpareFile<D::File>,
        before: &[TableEntry],
    ) -> Result<(Log<D>, Activated<D::File>), StorageError> {
        let (state, activated) = Self::activate(&*disk, &identity, end, spare, before).await?;
        let log = Log {
            disk,
            identity,
            state: RefCell::new(state),
        };
        Ok((log, activated))
    }

    /// Makes a spare the segment behind `end`: its header, durable, fixes for ever where the log before it ends, its
    /// first frame which segments that log has.
    async fn activate(
        disk: &D,
        identity: &LogIdentity,
        end: LogEnd,
        spare: SpareFile<D::File>,
        before: &[TableEntry],
    ) -> Result<(State<D::File>, Activated<D::File>), StorageError> {
        let number = SegmentId(end.segment.0 + 1);
        assert!(!number.is_foreign(), "a log has at most 2^31 segments");
        let header = SegmentHeader {
            state: SegmentState::Log,
            store_uuid: identity.store_uuid,
            log: identity.log,
            number: number.0,
            file: spare.number,
            recycled: spare.recycled,
            run: identity.run,
            epoch: spare.epoch,
            first_version: end.last_version + 1,
            segment_bytes: spare.bytes,
            previous_number: end.segment.0,
            previous_file: end.file,
            previous_end: end.offset,
            previous_last_version: end.last_version,
        };
        let file_name = segment::name(identity.log, spare.number);
        write_header(disk, &spare.file, &file_name, &header).await?;
        let frame = table_frame(disk, &header, before);
        let used_bytes = (SEGMENT_HEADER_BYTES + table_frame_bytes(before.len())) as u64;
        let offset = SEGMENT_HEADER_BYTES as u64;
        write_whole(&*spare.file, &file_name, offset, Rc::new(frame)).await?;
        let segment = Segment {
            key: SegmentKey {
                log: identity.log,
                number: number.0,
            },
            file: Rc::clone(&spare.file),
            file_number: spare.number,
            epoch: spare.epoch,
            first_version: header.first_version,
            allocated_bytes: spare.bytes,
            used_bytes,
            footer_bytes: 0,
            live_bytes: 0,
            tombstone_bytes: 0,
        };
        let end = LogEnd {
            segment: number,
            file: spare.number,
            offset: used_bytes,
            last_version: end.last_version,
        };
        let state = State {
            end,
            epoch: spare.epoch,
            file: spare.file,
            bytes: spare.bytes,
            begin: used_bytes,
            footer: FooterBuilder::new(identity.segment_bytes.into()),
        };
        Ok((state, (number, segment)))
    }

    /// Number of the log.
    pub(super) fn id(&self) -> LogId {
        self.identity.log
    }

    /// The largest frame that an empty segment takes, in bytes: beside it there is the header, the table, and one block
    /// for the closing frame.
    pub(super) fn frame_bytes_max(&self) -> usize {
        self.identity.segment_bytes as usize - SEGMENT_HEADER_BYTES - BLOCK
    }

    /// Where a frame of this length goes, or `None` if the active segment has no room for it and for its footer, to which
    /// the frame adds `index_bytes`. Without a footer it does when nothing else is in the segment, or `at_any_cost`.
    pub(super) fn place(
        &self,
        frame_bytes: usize,
        index_bytes: usize,
        at_any_cost: bool,
    ) -> Option<Place<D::File>> {
        let room = self.room();
        let mut state = self.state.borrow_mut();
        let with_footer = frame_bytes as u64 + state.footer.room_with(index_bytes);
        if with_footer > room {
            let is_first = state.end.offset == state.begin;
            if frame_bytes as u64 > room || !(is_first || at_any_cost) {
                return None;
            }
            state.footer.abandon();
        }
        drop(state);
        Some(self.closing_place())
    }

    /// Notes a set or delete of the frame that was committed last for the footer.
    pub(super) fn index(&self, entry: &FooterEntry<'_>) {
        self.state.borrow_mut().footer.push(entry);
    }

    /// Where the closing frame goes: one block behind the last frame, which no other frame takes.
    pub(super) fn closing_place(&self) -> Place<D::File> {
        let state = self.state.borrow();
        Place {
            segment: state.end.segment,
            file: Rc::clone(&state.file),
            file_number: state.end.file,
            offset: state.end.offset,
            epoch: state.epoch,
            last_version: state.end.last_version,
        }
    }

    /// Seals the active segment, which is returned, and goes on in `spare`; `before` are all segments up to that one.
    ///
    /// # Errors
    /// Any is final: the spare's new header may be on disk, and cuts what would be written to the old segment.
    pub(super) async fn rotate(
        &self,
        spare: SpareFile<D::File>,
        before: &[TableEntry],
    ) -> Result<(Activated<D::File>, Unindexed<D::File>), StorageError> {
        let end = self.end();
        let (state, activated) =
            Self::activate(&*self.disk, &self.identity, end, spare, before).await?;
        let sealed = self.state.replace(state);
        let sealed = Unindexed {
            segment: sealed.end.segment,
            file: sealed.file,
            file_name: segment::name(self.identity.log, sealed.end.file),
            bytes: sealed.bytes,
            epoch: sealed.epoch,
            end: sealed.end.offset,
            last_version: sealed.end.last_version,
            footer: sealed.footer,
        };
        Ok((activated, sealed))
    }

    /// Bytes of frames that the active segment still takes; one more block is kept for the closing frame.
    pub(super) fn room(&self) -> u64 {
        let state = self.state.borrow();
        (state.bytes - BLOCK as u64).saturating_sub(state.end.offset)
    }

    /// Writes a frame at its place, in one write, and moves the end of the log behind it.
    pub(super) async fn commit(
        &self,
        place: Place<D::File>,
        frame: Rc<<D::File as DiskFile>::Buffer>,
        last_version: u64,
    ) -> Result<Committed, StorageError> {
        let frame_bytes = (*frame).as_ref().len() as u64;
        let file_name = segment::name(self.identity.log, place.file_number);
        write_whole(&*place.file, &file_name, place.offset, frame).await?;
        let mut state = self.state.borrow_mut();
        assert_eq!(
            (state.end.segment, state.end.offset, state.end.last_version),
            (place.segment, place.offset, place.last_version),
            "one frame is in flight at a time"
        );
        state.end.offset += frame_bytes;
        state.end.last_version = last_version;
        Ok(Committed(()))
    }

    /// Where the log ends now.
    pub(super) fn end(&self) -> LogEnd {
        self.state.borrow().end
    }
}

/// The first frame of a segment.
fn table_frame<D: Disk>(
    disk: &D,
    header: &SegmentHeader,
    before: &[TableEntry],
) -> <D::File as DiskFile>::Buffer {
    let value = table::encode(before);
    let record = Record {
        kind: RecordKind::Table,
        moved: false,
        version: 0,
        key: b"",
        value: &value,
    };
    let payload_bytes = record.bytes();
    let mut frame = disk.buffer(table_frame_bytes(before.len()));
    frame.as_mut().fill(0);
    record.encode(&mut frame.as_mut()[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + payload_bytes]);
    let frame_header = FrameHeader {
        epoch: header.epoch,
        block: (SEGMENT_HEADER_BYTES / BLOCK) as u32,
        records: 1,
        first_version: header.first_version,
        previous_last_version: header.previous_last_version,
        payload_bytes: payload_bytes as u32,
        flags: 0,
    };
    frame_header.encode(frame.as_mut());
    frame
}

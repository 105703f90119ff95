//! The end of the log: where the next frame goes, and the proof that one is durable.
//!
//! Owns: the active segment, its spare, and [`Durable`].
//! Guarantees: a frame is one O_DIRECT|O_DSYNC write to zeroed blocks of one segment; after any failure the log takes
//! nothing more; a segment takes frames only after its header is durable.
//! Does not: group records (`pending` does), touch the index, retry.

use std::cell::RefCell;
use std::rc::Rc;

use crate::storage::disk::{BLOCK, Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentState};
use crate::storage::segment::{self, SegmentId, make_spare, write_header, write_whole};
use crate::storage::signal::Signal;

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
    pub(super) shard: u16,
    pub(super) run: u64,
    /// Epochs are drawn from it: random in production, the seed of a simulation in tests.
    pub(super) salt_seed: u64,
    pub(super) segment_bytes: u32,
}

impl LogIdentity {
    // SplitMix64: distinct numbers give distinct epochs, a random seed makes them unguessable.
    fn epoch(&self, number: u32) -> u64 {
        let mut mixed = self
            .salt_seed
            .wrapping_add(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn header(&self, state: SegmentState, number: u32, end: &LogEnd) -> SegmentHeader {
        SegmentHeader {
            state,
            store_uuid: self.store_uuid,
            shard: self.shard,
            number,
            run: self.run,
            epoch: self.epoch(number),
            first_version: end.last_version + 1,
            segment_bytes: self.segment_bytes.into(),
            previous_end: end.offset,
            previous_last_version: end.last_version,
        }
    }
}

/// Where a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogEnd {
    /// The last segment; 0: there is none.
    pub(super) segment: SegmentId,
    /// End of its last frame, in bytes.
    pub(super) offset: u64,
    /// Version of the last record.
    pub(super) last_version: u64,
}

/// Where a frame goes.
pub(super) struct Place<F> {
    pub(super) segment: SegmentId,
    pub(super) file: Rc<F>,
    pub(super) offset: u64,
    pub(super) epoch: u64,
    /// Version of the last record before the frame.
    pub(super) last_version: u64,
}

impl<F> Place<F> {
    /// The offset in blocks.
    pub(super) fn block(&self) -> u32 {
        u32::try_from(self.offset / BLOCK as u64).expect("a segment is smaller than 4 GiB")
    }
}

enum Spare<F> {
    Wanted,
    Making,
    Ready(Rc<F>),
    /// There was no room for one.
    NoSpace,
}

struct State<F> {
    end: LogEnd,
    epoch: u64,
    file: Rc<F>,
    spare: Spare<F>,
}

/// What a rotation made the active segment.
pub(super) struct Rotated<F> {
    pub(super) segment: SegmentId,
    pub(super) file: Rc<F>,
    pub(super) allocated_bytes: u64,
}

/// The log of one shard, at its end.
pub(super) struct Log<D: Disk> {
    disk: Rc<D>,
    identity: LogIdentity,
    state: RefCell<State<D::File>>,
    spare_changed: Signal,
}

impl<D: Disk> Log<D> {
    /// Starts a fresh segment behind `end`, in `spare` if an earlier run left one.
    pub(super) async fn start(
        disk: Rc<D>,
        identity: LogIdentity,
        end: LogEnd,
        spare: Option<Rc<D::File>>,
    ) -> Result<(Log<D>, Rotated<D::File>), StorageError> {
        let number = end.segment.0 + 1;
        let file = match spare {
            Some(file) => file,
            None => make_spare(&*disk, &identity.header(SegmentState::Spare, number, &end)).await?,
        };
        let (state, rotated) = Self::activate(&disk, &identity, end, file).await?;
        let log = Log {
            disk,
            identity,
            state: RefCell::new(state),
            spare_changed: Signal::default(),
        };
        Ok((log, rotated))
    }

    /// Makes `file` the segment behind `end`: its header, durable, fixes for ever where the log before it ends.
    async fn activate(
        disk: &D,
        identity: &LogIdentity,
        end: LogEnd,
        file: Rc<D::File>,
    ) -> Result<(State<D::File>, Rotated<D::File>), StorageError> {
        let number = end.segment.0 + 1;
        let header = identity.header(SegmentState::Log, number, &end);
        write_header(disk, &file, &segment::name(identity.shard, number), &header).await?;
        let segment = SegmentId(number);
        let rotated = Rotated {
            segment,
            file: Rc::clone(&file),
            allocated_bytes: header.segment_bytes,
        };
        let end = LogEnd {
            segment,
            offset: SEGMENT_HEADER_BYTES as u64,
            last_version: end.last_version,
        };
        Ok((
            State {
                end,
                epoch: header.epoch,
                file,
                spare: Spare::Wanted,
            },
            rotated,
        ))
    }

    /// The largest frame that an empty segment takes, in bytes: one block is its header, and one is left for the closing
    /// frame.
    pub(super) fn frame_bytes_max(&self) -> usize {
        self.identity.segment_bytes as usize - SEGMENT_HEADER_BYTES - BLOCK
    }

    /// Where a frame of this length goes, or `None` if the active segment has no room for it.
    pub(super) fn place(&self, frame_bytes: usize) -> Option<Place<D::File>> {
        (frame_bytes as u64 <= self.room()).then(|| self.closing_place())
    }

    /// Where the closing frame goes: one block behind the last frame, which no other frame takes.
    pub(super) fn closing_place(&self) -> Place<D::File> {
        let state = self.state.borrow();
        Place {
            segment: state.end.segment,
            file: Rc::clone(&state.file),
            offset: state.end.offset,
            epoch: state.epoch,
            last_version: state.end.last_version,
        }
    }

    /// Seals the active segment and goes on in the spare; waits for it if it is not ready.
    ///
    /// # Errors
    /// `Full` when there is no room for a spare: nothing has changed and a later call may succeed. Any other is final:
    /// the spare's new header may be on disk, and cuts what would be written to the old segment.
    pub(super) async fn rotate(&self) -> Result<Rotated<D::File>, StorageError> {
        self.spare_changed
            .until(|| matches!(self.state.borrow().spare, Spare::Ready(_) | Spare::NoSpace))
            .await;
        let (end, file) = {
            let mut state = self.state.borrow_mut();
            let Spare::Ready(file) = std::mem::replace(&mut state.spare, Spare::Wanted) else {
                state.spare = Spare::NoSpace;
                return Err(self.full(state.end.segment.0 + 1));
            };
            (state.end, file)
        };
        let (state, rotated) = Self::activate(&self.disk, &self.identity, end, file).await?;
        *self.state.borrow_mut() = state;
        self.spare_changed.notify();
        Ok(rotated)
    }

    fn full(&self, number: u32) -> StorageError {
        StorageError::Full {
            file: segment::name(self.identity.shard, number),
            bytes: self.identity.segment_bytes.into(),
        }
    }

    /// Waits until a spare is wanted and makes it. `Full` means that there is no room now; call again later.
    pub(super) async fn prepare(&self) -> Result<(), StorageError> {
        self.spare_changed
            .until(|| matches!(self.state.borrow().spare, Spare::Wanted | Spare::NoSpace))
            .await;
        let end = {
            let mut state = self.state.borrow_mut();
            // While it is tried again a commit that needs it does not wait: there was no room a moment ago.
            if !matches!(state.spare, Spare::NoSpace) {
                state.spare = Spare::Making;
            }
            state.end
        };
        let header = self
            .identity
            .header(SegmentState::Spare, end.segment.0 + 1, &end);
        let made = make_spare(&*self.disk, &header).await;
        let (spare, result) = match made {
            Ok(file) => (Spare::Ready(file), Ok(())),
            Err(error) if error.is_full() => (Spare::NoSpace, Err(error)),
            Err(error) => (Spare::Making, Err(error)),
        };
        self.state.borrow_mut().spare = spare;
        self.spare_changed.notify();
        result
    }

    /// Whether there was no room for the next segment.
    pub(super) fn is_out_of_space(&self) -> bool {
        matches!(self.state.borrow().spare, Spare::NoSpace)
    }

    /// Bytes of frames that the active segment still takes; one more block is kept for the closing frame.
    pub(super) fn room(&self) -> u64 {
        u64::from(self.identity.segment_bytes) - BLOCK as u64 - self.state.borrow().end.offset
    }

    /// Bytes of the spare that is ready, if there is one.
    pub(super) fn spare_bytes(&self) -> u64 {
        match self.state.borrow().spare {
            Spare::Ready(_) => self.identity.segment_bytes.into(),
            _ => 0,
        }
    }

    /// Writes a frame at its place, in one write, and moves the end of the log behind it.
    pub(super) async fn commit(
        &self,
        place: Place<D::File>,
        frame: Rc<<D::File as DiskFile>::Buffer>,
        last_version: u64,
    ) -> Result<Committed, StorageError> {
        let frame_bytes = (*frame).as_ref().len() as u64;
        let file_name = segment::name(self.identity.shard, place.segment.0);
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

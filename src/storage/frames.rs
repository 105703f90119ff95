//! Reads the frames of one segment, one after the other, and says what stands where there is none.
//!
//! Guarantees: a frame that it finds whole verifies in every byte and follows the one before it.
//! Does not: judge what is not whole (`verdict` does), or take records anywhere (`recovery` does).

use std::rc::Rc;

use crate::storage::disk::{BLOCK, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::format::{
    FRAME_FOOTER, FrameHeader, Record, RecordKind, SEGMENT_HEADER_BYTES, SegmentHeader,
    claims_epoch, read_frame,
};
use crate::storage::lineage::Told;
use crate::storage::scan::Scanner;
use crate::storage::survey::Opened;
use crate::storage::verdict::{Behind, Found};

/// Where in its frame a record is, in bytes.
#[derive(Clone, Copy)]
pub(super) struct FrameRecord {
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

/// Reads frames of one segment, one after the other.
pub(super) struct FrameScan<'a> {
    pub(super) header: &'a SegmentHeader,
    /// The last version before the next frame.
    pub(super) last_version: u64,
    /// End of the last frame that was taken, in bytes.
    pub(super) end: u64,
    /// Of the frame that was read.
    pub(super) records: Vec<FrameRecord>,
    pub(super) told: Told,
    /// What stands behind the frames is the footer of the segment.
    pub(super) at_footer: bool,
}

impl<'a> FrameScan<'a> {
    /// Begins at the first frame.
    pub(super) fn new(header: &'a SegmentHeader) -> Self {
        FrameScan {
            header,
            last_version: header.previous_last_version,
            end: SEGMENT_HEADER_BYTES as u64,
            records: Vec::new(),
            told: Told::default(),
            at_footer: false,
        }
    }

    /// What stands at the scanner's position, and in words when it is no whole frame.
    pub(super) async fn read<F: DiskFile>(
        &mut self,
        scanner: &mut Scanner<F>,
    ) -> Result<(Found, String), StorageError> {
        let offset = scanner.position();
        let block = scanner.peek(BLOCK).await?;
        if block.is_empty() || is_untouched(block, self.header) {
            return Ok((Found::Zero, "nothing where a frame is expected".into()));
        }
        let Some(header) = FrameHeader::decode(block) else {
            return Ok((Found::Broken, "no frame header that verifies".into()));
        };
        if header.epoch != self.header.epoch {
            return Ok((Found::Broken, "a frame of another segment".into()));
        }
        let place = u64::from(header.block) * BLOCK as u64;
        if place != offset {
            let what = format!("a frame that was written for offset {place}");
            return Ok((Found::Misplaced, what));
        }
        let frame = scanner.peek(header.frame_bytes()).await?;
        if frame.len() < header.frame_bytes() {
            let what = format!(
                "a frame of {} bytes, the segment ends after {}",
                header.frame_bytes(),
                frame.len()
            );
            return Ok((Found::Broken, what));
        }
        self.records.clear();
        let records = &mut self.records;
        let verified = read_frame(&header, frame, |offset, record| {
            records.push(FrameRecord {
                offset,
                bytes: record.bytes(),
            });
        });
        if let Err((at, what)) = verified {
            return Ok((
                Found::Broken,
                format!(
                    "the frame does not verify at offset {}: {what}",
                    offset + at as u64
                ),
            ));
        }
        if header.flags & FRAME_FOOTER != 0 {
            self.at_footer = true;
            let what = "the footer of a sealed segment: the segment behind it is missing";
            return Ok((Found::Unchained, what.into()));
        }
        // Also where they hold no table: the first frame of a segment and no other has one.
        if let Some(what) = self.misses_table(&header, frame) {
            return Ok((Found::Unchained, what));
        }
        if header.previous_last_version != self.last_version {
            let what = format!(
                "a frame that follows version {}: frames are missing",
                header.previous_last_version
            );
            return Ok((Found::Unchained, what));
        }
        Ok((Found::Whole, String::new()))
    }

    /// Why the frame cannot stand here, as far as tables go.
    fn misses_table(&self, header: &FrameHeader, frame: &[u8]) -> Option<String> {
        let is_first = u64::from(header.block) * BLOCK as u64 == SEGMENT_HEADER_BYTES as u64;
        let tables = self.records.iter().filter(|record| {
            let bytes = &frame[record.offset..record.offset + record.bytes];
            Record::decode_verified(bytes).kind == RecordKind::Table
        });
        match (is_first, tables.count()) {
            (true, 1) | (false, 0) => None,
            (true, _) => Some("the first frame of a segment without its table".into()),
            (false, _) => Some("a table behind the first frame".into()),
        }
    }
}

/// Whether there is a set or delete in the frames that verify from the front of a segment on.
pub(super) async fn holds_records<F: DiskFile>(segment: &Opened<F>) -> Result<bool, StorageError> {
    let first = SEGMENT_HEADER_BYTES as u64;
    let limit = (segment.at.bytes - segment.at.bytes % BLOCK as u64).max(first);
    let file = Rc::clone(&segment.at.file);
    let mut scanner = Scanner::new(file, segment.at.name.clone(), first, limit);
    let mut frames = FrameScan::new(&segment.header);
    while let (Found::Whole, _) = frames.read(&mut scanner).await? {
        let header = FrameHeader::decode(scanner.peek(BLOCK).await?).expect("it is whole");
        let frame = scanner.peek(header.frame_bytes()).await?;
        let is_record = |record: &FrameRecord| {
            let bytes = &frame[record.offset..record.offset + record.bytes];
            let kind = Record::decode_verified(bytes).kind;
            matches!(kind, RecordKind::Set | RecordKind::Delete)
        };
        if frames.records.iter().any(is_record) {
            return Ok(true);
        }
        scanner.consume(header.frame_bytes());
    }
    Ok(false)
}

/// Whether nothing of this use of the file was written to a block. A file that was used before holds what that left, so
/// only a frame of this epoch counts there.
fn is_untouched(block: &[u8], header: &SegmentHeader) -> bool {
    if header.recycled {
        !claims_epoch(block, header.epoch)
    } else {
        block.iter().all(|byte| *byte == 0)
    }
}

/// What stands behind a position that holds no whole frame, and how far bytes other than zero reach from it.
pub(super) async fn look_behind<F: DiskFile>(
    scanner: &mut Scanner<F>,
    header: &SegmentHeader,
    last_version: u64,
) -> Result<(Behind, u64), StorageError> {
    let start = scanner.position();
    let mut remains = 0;
    let mut first = true;
    loop {
        let offset = scanner.position();
        let block = scanner.peek(BLOCK).await?;
        if block.is_empty() {
            return Ok((
                if remains == 0 {
                    Behind::Nothing
                } else {
                    Behind::Remains
                },
                remains,
            ));
        }
        let later = FrameHeader::decode(block).is_some_and(|frame| {
            let in_place = u64::from(frame.block) * BLOCK as u64 == offset;
            frame.epoch == header.epoch && (frame.first_version > last_version || !in_place)
        });
        if later && !first {
            return Ok((Behind::Frame, 0));
        }
        if !is_untouched(block, header)
            && let Some(last) = block.iter().rposition(|byte| *byte != 0)
        {
            remains = offset + last as u64 + 1 - start;
        }
        first = false;
        let len = block.len();
        scanner.consume(len);
    }
}

/// The next frame header of this segment from `offset` on, with the version that its frame follows.
pub(super) async fn next_frame<F: DiskFile>(
    segment: &Opened<F>,
    offset: u64,
    limit: u64,
) -> Result<Option<(Scanner<F>, u64)>, StorageError> {
    let file = Rc::clone(&segment.at.file);
    let mut scanner = Scanner::new(file, segment.at.name.clone(), offset.min(limit), limit);
    loop {
        let place = scanner.position();
        let block = scanner.peek(BLOCK).await?;
        if block.is_empty() {
            return Ok(None);
        }
        let len = block.len();
        if let Some(header) = FrameHeader::decode(block).filter(|header| {
            header.epoch == segment.header.epoch && u64::from(header.block) * BLOCK as u64 == place
        }) {
            return Ok(Some((scanner, header.previous_last_version)));
        }
        scanner.consume(len);
    }
}

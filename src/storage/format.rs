//! The bytes on disk: segment headers, frames and records. `FORMAT.md` is the prose of this file; a test ties the two.
//!
//! Owns: every offset, width and magic number of the log, and the checks on them.
//! Guarantees: decoding never panics and never trusts a length that the bytes at hand do not cover.
//! Does not: read or write files, decide what a bad frame means (`recovery` does).
//!
//! All numbers are little-endian.

use crate::limits;
use crate::storage::body::Body;
use crate::storage::disk::BLOCK;
use crate::storage::plant::{Plant, planted};
use crate::storage::segment::{LogId, SegmentKey};

/// Version of the format that this program writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// First bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"ORLOPSEG";
/// First bytes of a frame.
pub const FRAME_MAGIC: [u8; 4] = *b"ORLF";

/// Bytes of a segment header: one block.
pub const SEGMENT_HEADER_BYTES: usize = BLOCK;
/// Bytes of a frame header.
pub const FRAME_HEADER_BYTES: usize = 64;
/// Bytes of a record before its key.
pub const RECORD_HEADER_BYTES: usize = 32;

/// Largest segment: positions within one are 32-bit.
pub const SEGMENT_BYTES_MAX: u64 = (u32::MAX as u64 + 1) - BLOCK as u64;

/// Largest frame: one record of the largest size, or a batch below that.
pub const FRAME_BYTES_MAX: usize =
    (FRAME_HEADER_BYTES + RECORD_HEADER_BYTES + limits::KEY_LEN_MAX + limits::VALUE_LEN_MAX)
        .next_multiple_of(BLOCK);

const _: () = assert!(SEGMENT_HEADER_BYTES == BLOCK);
const _: () = assert!(FRAME_BYTES_MAX < SEGMENT_BYTES_MAX as usize);
const _: () = assert!(limits::KEY_LEN_MAX <= u16::MAX as usize);

/// Smallest segment that can hold a value of `value_len_max` bytes under the longest key.
pub const fn segment_bytes_min(value_len_max: usize) -> u64 {
    segment_bytes_for(RECORD_HEADER_BYTES + limits::KEY_LEN_MAX + value_len_max)
}

/// Smallest segment that can hold a record of so many bytes.
pub(super) const fn segment_bytes_for(record_bytes: usize) -> u64 {
    let frame = (FRAME_HEADER_BYTES + record_bytes).next_multiple_of(BLOCK);
    (SEGMENT_HEADER_BYTES + frame + BLOCK) as u64
}

fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// What a segment is in use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SegmentState {
    /// Zeroed and ready; it holds no frames.
    Spare = 1,
    /// Part of the log.
    Log = 2,
}

/// First block of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Spare or part of the log.
    pub state: SegmentState,
    /// The store that it belongs to.
    pub store_uuid: [u8; 16],
    /// The log that it is part of, or was made for.
    pub log: LogId,
    /// Its place in that log, from 1; 0 for a spare, which has none yet.
    pub number: u32,
    /// The number in the name of its file, which it keeps in every use.
    pub file: u32,
    /// Whether the file had another use before: then bytes of that use lie behind its frames, not zeros.
    pub recycled: bool,
    /// The start of the server that wrote it, from the manifest.
    pub run: u64,
    /// Random; repeated in each frame, so that bytes of another segment or an earlier use never pass for this one's.
    pub epoch: u64,
    /// No record before this segment has this version or a higher one.
    pub first_version: u64,
    /// Length of the file when it was made.
    pub segment_bytes: u64,
    /// Number of the segment before it; 0: it is the first. Of a spare: of the active segment when it was made.
    pub previous_number: u32,
    /// The number in the name of the file of that segment.
    pub previous_file: u32,
    /// Where that segment ends: what lies behind that is not part of the log, for ever.
    pub previous_end: u64,
    /// Version of the last record before this segment.
    pub previous_last_version: u64,
}

mod segment_at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const CRC: usize = 8;
    pub(super) const FORMAT: usize = 12;
    pub(super) const STORE_UUID: usize = 16;
    pub(super) const LOG: usize = 32;
    pub(super) const NUMBER: usize = 36;
    pub(super) const RUN: usize = 40;
    pub(super) const EPOCH: usize = 48;
    pub(super) const FIRST_VERSION: usize = 56;
    pub(super) const SEGMENT_BYTES: usize = 64;
    pub(super) const PREVIOUS_END: usize = 72;
    pub(super) const PREVIOUS_LAST_VERSION: usize = 80;
    pub(super) const FILE: usize = 88;
    pub(super) const RECYCLED: usize = 92;
    pub(super) const PREVIOUS_NUMBER: usize = 96;
    pub(super) const PREVIOUS_FILE: usize = 100;
    pub(super) const STATE: usize = 104;
    pub(super) const END: usize = 108;
}

/// Why a block is no segment header of this format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadHeader {
    /// Not the magic, or a checksum that does not fit: never written whole, or damaged.
    Invalid(String),
    /// Whole, but of a format that this program does not know.
    Format(u32),
}

impl SegmentHeader {
    /// The segment, among those of all logs.
    pub fn key(&self) -> SegmentKey {
        SegmentKey {
            log: self.log,
            number: self.number,
        }
    }

    /// Writes the header into `block`, which becomes a whole block.
    pub fn encode(&self, block: &mut [u8]) {
        assert_eq!(
            block.len(),
            SEGMENT_HEADER_BYTES,
            "a segment header is one block"
        );
        block.fill(0);
        put(block, segment_at::MAGIC, SEGMENT_MAGIC);
        put(block, segment_at::FORMAT, FORMAT_VERSION.to_le_bytes());
        put(block, segment_at::STORE_UUID, self.store_uuid);
        put(block, segment_at::LOG, self.log.0.to_le_bytes());
        put(block, segment_at::STATE, (self.state as u32).to_le_bytes());
        put(block, segment_at::NUMBER, self.number.to_le_bytes());
        put(block, segment_at::FILE, self.file.to_le_bytes());
        let recycled = u32::from(self.recycled);
        put(block, segment_at::RECYCLED, recycled.to_le_bytes());
        put(
            block,
            segment_at::PREVIOUS_NUMBER,
            self.previous_number.to_le_bytes(),
        );
        put(
            block,
            segment_at::PREVIOUS_FILE,
            self.previous_file.to_le_bytes(),
        );
        put(block, segment_at::RUN, self.run.to_le_bytes());
        put(block, segment_at::EPOCH, self.epoch.to_le_bytes());
        put(
            block,
            segment_at::FIRST_VERSION,
            self.first_version.to_le_bytes(),
        );
        put(
            block,
            segment_at::SEGMENT_BYTES,
            self.segment_bytes.to_le_bytes(),
        );
        put(
            block,
            segment_at::PREVIOUS_END,
            self.previous_end.to_le_bytes(),
        );
        put(
            block,
            segment_at::PREVIOUS_LAST_VERSION,
            self.previous_last_version.to_le_bytes(),
        );
        let crc = crc32fast::hash(&block[segment_at::FORMAT..]);
        put(block, segment_at::CRC, crc.to_le_bytes());
    }

    /// Reads a header from the first block of a file.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, BadHeader> {
        if block.len() < SEGMENT_HEADER_BYTES {
            return Err(BadHeader::Invalid(format!(
                "the file ends after {} bytes",
                block.len()
            )));
        }
        let block = &block[..SEGMENT_HEADER_BYTES];
        if block[..8] != SEGMENT_MAGIC {
            return Err(BadHeader::Invalid("no segment magic".into()));
        }
        let expected = get_u32(block, segment_at::CRC);
        let found = crc32fast::hash(&block[segment_at::FORMAT..]);
        if expected != found {
            return Err(BadHeader::Invalid(format!(
                "header checksum {found:08x}, expected {expected:08x}"
            )));
        }
        let format = get_u32(block, segment_at::FORMAT);
        if format != FORMAT_VERSION {
            return Err(BadHeader::Format(format));
        }
        let state = match get_u32(block, segment_at::STATE) {
            1 => SegmentState::Spare,
            2 => SegmentState::Log,
            other => return Err(BadHeader::Invalid(format!("unknown segment state {other}"))),
        };
        let mut store_uuid = [0; 16];
        store_uuid.copy_from_slice(&block[segment_at::STORE_UUID..segment_at::STORE_UUID + 16]);
        Ok(SegmentHeader {
            state,
            store_uuid,
            log: LogId(get_u32(block, segment_at::LOG)),
            number: get_u32(block, segment_at::NUMBER),
            file: get_u32(block, segment_at::FILE),
            recycled: get_u32(block, segment_at::RECYCLED) != 0,
            previous_number: get_u32(block, segment_at::PREVIOUS_NUMBER),
            previous_file: get_u32(block, segment_at::PREVIOUS_FILE),
            run: get_u64(block, segment_at::RUN),
            epoch: get_u64(block, segment_at::EPOCH),
            first_version: get_u64(block, segment_at::FIRST_VERSION),
            segment_bytes: get_u64(block, segment_at::SEGMENT_BYTES),
            previous_end: get_u64(block, segment_at::PREVIOUS_END),
            previous_last_version: get_u64(block, segment_at::PREVIOUS_LAST_VERSION),
        })
    }
}

/// Whether these bytes are the start of a frame of this epoch, or of what was left of one: a frame header that does not
/// verify any more passes as well.
pub fn claims_epoch(bytes: &[u8], epoch: u64) -> bool {
    bytes.len() >= frame_at::EPOCH + 8
        && bytes[..4] == FRAME_MAGIC
        && get_u64(bytes, frame_at::EPOCH) == epoch
}

/// Flag of a frame without records that a clean stop writes: it proves that the frame before it was acknowledged.
pub const FRAME_CLOSING: u32 = 1;

/// Flag of the frame behind the end of a segment that holds its footer and is no part of the log.
pub const FRAME_FOOTER: u32 = 2;

/// Start of a frame: one group commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Of the segment.
    pub epoch: u64,
    /// Where the frame starts, in blocks from the start of the segment: a frame at another place is not valid.
    pub block: u32,
    /// Number of records.
    pub records: u32,
    /// Version of the first record that gives one out; where there is none the version that would come next.
    pub first_version: u64,
    /// The last version given out before this frame.
    pub previous_last_version: u64,
    /// Bytes of records behind the header, without the padding.
    pub payload_bytes: u32,
    /// 0, [`FRAME_CLOSING`] or [`FRAME_FOOTER`].
    pub flags: u32,
}

mod frame_at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const CRC: usize = 4;
    pub(super) const EPOCH: usize = 8;
    pub(super) const BLOCK: usize = 16;
    pub(super) const RECORDS: usize = 20;
    pub(super) const FIRST_VERSION: usize = 24;
    pub(super) const PREVIOUS_LAST_VERSION: usize = 32;
    pub(super) const PAYLOAD_BYTES: usize = 40;
    pub(super) const FLAGS: usize = 44;
    pub(super) const END: usize = 48;
}

impl FrameHeader {
    /// Bytes of the whole frame on disk: header, records, zero padding to a block.
    pub fn frame_bytes(&self) -> usize {
        (FRAME_HEADER_BYTES + self.payload_bytes as usize).next_multiple_of(BLOCK)
    }

    /// Writes the header into the first bytes of a frame.
    pub fn encode(&self, frame: &mut [u8]) {
        let header = &mut frame[..FRAME_HEADER_BYTES];
        header.fill(0);
        put(header, frame_at::MAGIC, FRAME_MAGIC);
        put(header, frame_at::EPOCH, self.epoch.to_le_bytes());
        put(header, frame_at::BLOCK, self.block.to_le_bytes());
        put(header, frame_at::RECORDS, self.records.to_le_bytes());
        put(
            header,
            frame_at::FIRST_VERSION,
            self.first_version.to_le_bytes(),
        );
        put(
            header,
            frame_at::PREVIOUS_LAST_VERSION,
            self.previous_last_version.to_le_bytes(),
        );
        put(
            header,
            frame_at::PAYLOAD_BYTES,
            self.payload_bytes.to_le_bytes(),
        );
        put(header, frame_at::FLAGS, self.flags.to_le_bytes());
        let crc = crc32fast::hash(&header[frame_at::EPOCH..]);
        put(header, frame_at::CRC, crc.to_le_bytes());
    }

    /// Reads a frame header; `None` where there is none that verifies. Lengths are bounded by [`FRAME_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Option<FrameHeader> {
        let header = bytes.get(..FRAME_HEADER_BYTES)?;
        if header[..4] != FRAME_MAGIC
            || get_u32(header, frame_at::CRC) != crc32fast::hash(&header[frame_at::EPOCH..])
        {
            return None;
        }
        let decoded = FrameHeader {
            epoch: get_u64(header, frame_at::EPOCH),
            block: get_u32(header, frame_at::BLOCK),
            records: get_u32(header, frame_at::RECORDS),
            first_version: get_u64(header, frame_at::FIRST_VERSION),
            previous_last_version: get_u64(header, frame_at::PREVIOUS_LAST_VERSION),
            payload_bytes: get_u32(header, frame_at::PAYLOAD_BYTES),
            flags: get_u32(header, frame_at::FLAGS),
        };
        let bounded = decoded.payload_bytes as usize <= FRAME_BYTES_MAX
            && decoded.frame_bytes() <= FRAME_BYTES_MAX;
        bounded.then_some(decoded)
    }
}

/// What a record does to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// The key has this value from this version on.
    Set = 1,
    /// The key is absent from this version on: a tombstone.
    Delete = 2,
    /// A segment whose live records are all elsewhere is no part of the log any more. The key is its log and number.
    Retire = 3,
    /// Which segments make up the log before the one that begins with this record: a [`table`](super::table).
    Table = 4,
    /// What the sets and deletes of a sealed segment are: its footer.
    Footer = 5,
}

/// Bytes of the key of a retirement: the number of the log, that of the segment.
pub const RETIRE_KEY_BYTES: usize = 8;

/// The key of the record that retires a segment.
pub fn retire_key(segment: SegmentKey) -> [u8; RETIRE_KEY_BYTES] {
    let mut key = [0; RETIRE_KEY_BYTES];
    put(&mut key, 0, segment.log.0.to_le_bytes());
    put(&mut key, 4, segment.number.to_le_bytes());
    key
}

/// The segment that the key of a verified retirement names.
pub fn retired_segment(key: &[u8]) -> SegmentKey {
    assert_eq!(
        key.len(),
        RETIRE_KEY_BYTES,
        "`decode` knows the shape of a retirement"
    );
    SegmentKey {
        log: LogId(get_u32(key, 0)),
        number: get_u32(key, 4),
    }
}

/// Flag of a set or delete that compaction copied from another segment: its version is an older one.
pub const RECORD_MOVED: u8 = 1;

pub(super) mod record_at {
    pub(in crate::storage) const CRC: usize = 0;
    pub(in crate::storage) const KIND: usize = 4;
    pub(in crate::storage) const FLAGS: usize = 5;
    pub(in crate::storage) const CODEC: usize = 6;
    pub(in crate::storage) const KEY_LEN: usize = 8;
    pub(in crate::storage) const VALUE_LEN: usize = 12;
    pub(in crate::storage) const VERSION: usize = 16;
    pub(in crate::storage) const EXPIRES: usize = 24;
    pub(in crate::storage) const KEY: usize = 32;
}

const _: () = assert!(record_at::KEY == RECORD_HEADER_BYTES);
const _: () =
    assert!(frame_at::END <= FRAME_HEADER_BYTES && segment_at::END <= SEGMENT_HEADER_BYTES);

/// One record, as bytes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it does.
    pub kind: RecordKind,
    /// A copy that compaction made.
    pub moved: bool,
    /// Of a set or delete greater than every earlier version of this key; of the others the last one given out.
    pub version: u64,
    /// 1 to 65,535 bytes; none for a table.
    pub key: &'a [u8],
    /// Empty for a delete.
    pub value: &'a [u8],
}

/// Bytes of a record with a key and a value of these lengths.
pub const fn record_bytes(key_len: usize, value_len: usize) -> usize {
    RECORD_HEADER_BYTES + key_len + value_len
}

impl<'a> Record<'a> {
    /// Whether its version was given out for it: those increase from record to record.
    pub fn is_new(&self) -> bool {
        !self.moved && matches!(self.kind, RecordKind::Set | RecordKind::Delete)
    }

    /// Writes the record into `out`, which has exactly its length.
    pub fn encode(&self, out: &mut [u8]) {
        let body = Body::copy(self.key, self.value, out);
        body.encode_around(self.kind, self.moved, self.version, out);
    }

    /// Reads the record at the start of `bytes` and verifies it; the error says what is wrong with it.
    pub fn decode(bytes: &'a [u8]) -> Result<Record<'a>, String> {
        let header = bytes.get(..RECORD_HEADER_BYTES).ok_or_else(|| {
            format!(
                "a record header needs {RECORD_HEADER_BYTES} bytes, {} are left",
                bytes.len()
            )
        })?;
        let key_len = get_u16(header, record_at::KEY_LEN) as usize;
        let value_len = get_u32(header, record_at::VALUE_LEN) as usize;
        if value_len > limits::VALUE_LEN_MAX {
            return Err(format!(
                "record with a key of {key_len} and a value of {value_len} bytes"
            ));
        }
        let len = record_bytes(key_len, value_len);
        let whole = bytes
            .get(..len)
            .ok_or_else(|| format!("record of {len} bytes, {} are left", bytes.len()))?;
        let expected = get_u32(header, record_at::CRC);
        let found = crc32fast::hash(&whole[record_at::KIND..]);
        if expected != found && !planted(Plant::SkipCrc) {
            return Err(format!(
                "record checksum {found:08x}, expected {expected:08x}"
            ));
        }
        let kind = kind_of(header[record_at::KIND])
            .ok_or_else(|| format!("unknown record kind {}", header[record_at::KIND]))?;
        let (flags, codec) = (header[record_at::FLAGS], header[record_at::CODEC]);
        if flags & !RECORD_MOVED != 0 || codec != 0 || get_u64(header, record_at::EXPIRES) != 0 {
            return Err(format!(
                "record with flags {flags}, codec {codec} or an expiry time: not of this version"
            ));
        }
        let moved = flags & RECORD_MOVED != 0;
        let (key, value) = whole[RECORD_HEADER_BYTES..].split_at(key_len);
        let in_shape = match kind {
            RecordKind::Set => key_len > 0,
            RecordKind::Delete => key_len > 0 && value.is_empty(),
            RecordKind::Retire => key_len == RETIRE_KEY_BYTES && value.is_empty() && !moved,
            RecordKind::Table | RecordKind::Footer => key_len == 0 && !moved,
        };
        if !in_shape {
            return Err(format!(
                "a {kind:?} record with a key of {key_len} and a value of {value_len} bytes, flags {flags}"
            ));
        }
        Ok(Record {
            kind,
            moved,
            version: get_u64(header, record_at::VERSION),
            key,
            value,
        })
    }

    /// Reads a record of exactly these bytes that [`Record::decode`] has verified before.
    pub fn decode_verified(bytes: &'a [u8]) -> Record<'a> {
        let key_len = get_u16(bytes, record_at::KEY_LEN) as usize;
        let kind = kind_of(bytes[record_at::KIND]).expect("`decode` knew the kind");
        let (key, value) = bytes[RECORD_HEADER_BYTES..].split_at(key_len);
        Record {
            kind,
            moved: bytes[record_at::FLAGS] & RECORD_MOVED != 0,
            version: get_u64(bytes, record_at::VERSION),
            key,
            value,
        }
    }

    /// Bytes of this record on disk.
    pub fn bytes(&self) -> usize {
        record_bytes(self.key.len(), self.value.len())
    }
}

fn kind_of(byte: u8) -> Option<RecordKind> {
    match byte {
        1 => Some(RecordKind::Set),
        2 => Some(RecordKind::Delete),
        3 => Some(RecordKind::Retire),
        4 => Some(RecordKind::Table),
        5 => Some(RecordKind::Footer),
        _ => None,
    }
}

/// Checks a whole frame behind its header: exactly the announced records, each verifying, versions in order, padding
/// zero. Calls `each` with the offset within the frame and the record; the error says what is wrong, and where.
pub fn read_frame<'a>(
    header: &FrameHeader,
    frame: &'a [u8],
    mut each: impl FnMut(usize, Record<'a>),
) -> Result<(), (usize, String)> {
    let end = FRAME_HEADER_BYTES + header.payload_bytes as usize;
    assert_eq!(
        frame.len(),
        header.frame_bytes(),
        "the caller read the whole frame"
    );
    let mut at = FRAME_HEADER_BYTES;
    let mut last_version = header.previous_last_version;
    let mut first = Some(header.first_version);
    for _ in 0..header.records {
        let record = Record::decode(&frame[at..end]).map_err(|what| (at, what))?;
        let in_order = match record.is_new() {
            true => {
                record.version > last_version
                    && first.take().is_none_or(|first| first == record.version)
            }
            false => record.version <= last_version,
        };
        if !in_order {
            return Err((
                at,
                format!("version {} after version {last_version}", record.version),
            ));
        }
        last_version = last_version.max(record.version);
        each(at, record);
        at += record.bytes();
    }
    if at != end {
        return Err((
            at,
            format!(
                "{} bytes behind the last of {} records",
                end - at,
                header.records
            ),
        ));
    }
    match frame[end..].iter().position(|byte| *byte != 0) {
        Some(position) => Err((end + position, "padding that is not zero".into())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_md_states_the_offsets_of_this_file() {
        let document = include_str!("FORMAT.md");
        let rows = [
            ("segment", "crc", segment_at::CRC, 4),
            ("segment", "format version", segment_at::FORMAT, 4),
            ("segment", "store UUID", segment_at::STORE_UUID, 16),
            ("segment", "log", segment_at::LOG, 4),
            ("segment", "state", segment_at::STATE, 4),
            ("segment", "number", segment_at::NUMBER, 4),
            ("segment", "run", segment_at::RUN, 8),
            ("segment", "epoch", segment_at::EPOCH, 8),
            ("segment", "first version", segment_at::FIRST_VERSION, 8),
            ("segment", "segment bytes", segment_at::SEGMENT_BYTES, 8),
            ("segment", "previous end", segment_at::PREVIOUS_END, 8),
            (
                "segment",
                "previous last version",
                segment_at::PREVIOUS_LAST_VERSION,
                8,
            ),
            ("segment", "file", segment_at::FILE, 4),
            ("segment", "recycled", segment_at::RECYCLED, 4),
            ("segment", "previous number", segment_at::PREVIOUS_NUMBER, 4),
            ("segment", "previous file", segment_at::PREVIOUS_FILE, 4),
            ("frame", "crc", frame_at::CRC, 4),
            ("frame", "epoch", frame_at::EPOCH, 8),
            ("frame", "block", frame_at::BLOCK, 4),
            ("frame", "records", frame_at::RECORDS, 4),
            ("frame", "first version", frame_at::FIRST_VERSION, 8),
            (
                "frame",
                "previous last version",
                frame_at::PREVIOUS_LAST_VERSION,
                8,
            ),
            ("frame", "payload bytes", frame_at::PAYLOAD_BYTES, 4),
            ("frame", "flags", frame_at::FLAGS, 4),
            ("record", "crc", record_at::CRC, 4),
            ("record", "kind", record_at::KIND, 1),
            ("record", "flags", record_at::FLAGS, 1),
            ("record", "codec", record_at::CODEC, 1),
            ("record", "key length", record_at::KEY_LEN, 2),
            ("record", "value length", record_at::VALUE_LEN, 4),
            ("record", "version", record_at::VERSION, 8),
            ("record", "expires", record_at::EXPIRES, 8),
        ];
        for (structure, field, offset, width) in rows {
            let row = format!("| {structure} | {offset} | {width} | {field} |");
            assert!(document.contains(&row), "FORMAT.md lacks the row: {row}");
        }
        assert!(document.contains(&format!("Format version: {FORMAT_VERSION}")));
    }

    #[test]
    fn the_worked_example_of_format_md_is_what_this_code_writes() {
        let mut frame = vec![0; BLOCK];
        let record = Record {
            kind: RecordKind::Set,
            moved: false,
            version: 7,
            key: b"ship",
            value: b"orlop",
        };
        record.encode(&mut frame[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + record.bytes()]);
        let header = FrameHeader {
            epoch: 0x1122_3344_5566_7788,
            block: 1,
            records: 1,
            first_version: 7,
            previous_last_version: 6,
            payload_bytes: record.bytes() as u32,
            flags: 0,
        };
        header.encode(&mut frame);
        let hex: String = frame[..112]
            .chunks(16)
            .map(|line| {
                line.iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect::<Vec<_>>()
                    .join(" ")
                    + "\n"
            })
            .collect();
        assert!(
            include_str!("FORMAT.md").contains(&hex),
            "FORMAT.md lacks the example:\n{hex}"
        );
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed() {
        let mut frame = vec![0; BLOCK];
        let records = [
            Record {
                kind: RecordKind::Set,
                moved: false,
                version: 3,
                key: b"a",
                value: &[9; 100],
            },
            Record {
                kind: RecordKind::Delete,
                moved: true,
                version: 2,
                key: b"b",
                value: b"",
            },
        ];
        let mut at = FRAME_HEADER_BYTES;
        for record in &records {
            record.encode(&mut frame[at..at + record.bytes()]);
            at += record.bytes();
        }
        let header = FrameHeader {
            epoch: 1,
            block: 4,
            records: 2,
            first_version: 3,
            previous_last_version: 1,
            payload_bytes: (at - FRAME_HEADER_BYTES) as u32,
            flags: 0,
        };
        header.encode(&mut frame);
        let mut seen = Vec::new();
        assert_eq!(
            read_frame(&header, &frame, |_, record| seen.push(record)),
            Ok(())
        );
        assert_eq!(seen, records);
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let verdict = FrameHeader::decode(&damaged).map(|found| {
                read_frame(
                    &found,
                    &damaged[..found.frame_bytes().min(BLOCK)],
                    |_, _| (),
                )
            });
            assert!(
                !matches!(verdict, Some(Ok(()))),
                "flipped bit {bit} went unnoticed"
            );
        }
    }

    #[test]
    fn a_segment_header_survives_the_round_trip_and_no_flipped_bit() {
        let header = SegmentHeader {
            state: SegmentState::Log,
            store_uuid: *b"0123456789abcdef",
            log: LogId(3),
            number: 9,
            file: 11,
            recycled: true,
            previous_number: 8,
            previous_file: 5,
            run: 4,
            epoch: 77,
            first_version: 1000,
            segment_bytes: 1 << 20,
            previous_end: 8192,
            previous_last_version: 999,
        };
        let mut block = vec![0xff; BLOCK];
        header.encode(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Ok(header));
        for bit in 0..block.len() * 8 {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                SegmentHeader::decode(&damaged).is_err(),
                "flipped bit {bit} went unnoticed"
            );
        }
    }
}

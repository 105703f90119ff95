//! What the sets and deletes of a sealed segment are, as bytes behind its end: so that a start reads those instead of the
//! values.
//!
//! A footer is a cache. Where it is missing or does not verify the segment is read from front to back. The same entries
//! carry what one shard has read to the shard that owns the keys (`handover`).
//!
//! Guarantees: entries are taken only when all of them verify and lie inside their segment.
//! Does not: read or write files (`indexing` does).

use crate::limits;
use crate::storage::disk::BLOCK;
use crate::storage::format::{
    FRAME_FOOTER, FRAME_HEADER_BYTES, FrameHeader, RECORD_HEADER_BYTES, Record, RecordKind,
    SEGMENT_HEADER_BYTES, read_frame, record_bytes,
};

/// A segment whose footer would be more than its size divided by this has none: to read it whole costs little more.
const SHARE_DIVISOR: u64 = 8;

mod entry_at {
    pub(super) const VERSION: usize = 0;
    pub(super) const OFFSET: usize = 8;
    pub(super) const VALUE_LEN: usize = 12;
    pub(super) const KEY_LEN: usize = 16;
    pub(super) const KIND: usize = 18;
    pub(super) const KEY: usize = 20;
}

/// Bytes of an entry before its key.
pub(super) const FOOTER_ENTRY_BYTES: usize = entry_at::KEY;

/// One set or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FooterEntry<'a> {
    /// [`RecordKind::Set`] or [`RecordKind::Delete`].
    pub(super) kind: RecordKind,
    pub(super) version: u64,
    /// Of the record in its segment, in bytes.
    pub(super) offset: u32,
    pub(super) value_len: u32,
    pub(super) key: &'a [u8],
}

impl FooterEntry<'_> {
    /// Bytes of the record.
    pub(super) fn record_bytes(&self) -> usize {
        record_bytes(self.key.len(), self.value_len as usize)
    }
}

/// Entries in the making.
#[derive(Debug, Clone, Default)]
pub(super) struct Entries {
    bytes: Vec<u8>,
    count: u64,
}

impl Entries {
    pub(super) fn push(&mut self, entry: &FooterEntry<'_>) {
        let key_len = u16::try_from(entry.key.len()).expect("a key is at most 64 KiB long");
        let bytes = &mut self.bytes;
        bytes.extend_from_slice(&entry.version.to_le_bytes());
        bytes.extend_from_slice(&entry.offset.to_le_bytes());
        bytes.extend_from_slice(&entry.value_len.to_le_bytes());
        bytes.extend_from_slice(&key_len.to_le_bytes());
        bytes.extend_from_slice(&[entry.kind as u8, 0]);
        bytes.extend_from_slice(entry.key);
        self.count += 1;
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// All of them, in the order in which they were pushed.
    pub(super) fn iter(&self) -> impl Iterator<Item = FooterEntry<'_>> {
        EntriesOf(&self.bytes).map(|entry| entry.expect("`push` wrote it"))
    }
}

/// The entries in verified bytes; the error says what is wrong with the next one, and ends it.
struct EntriesOf<'a>(&'a [u8]);

impl<'a> Iterator for EntriesOf<'a> {
    type Item = Result<FooterEntry<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let next = split_entry(self.0);
        self.0 = next.as_ref().map_or(&[], |(_, rest)| rest);
        Some(next.map(|(entry, _)| entry))
    }
}

/// The entries in the value of a footer record, up to one that does not verify.
pub(super) fn entries(value: &[u8]) -> impl Iterator<Item = Result<FooterEntry<'_>, String>> {
    EntriesOf(value)
}

fn split_entry(bytes: &[u8]) -> Result<(FooterEntry<'_>, &[u8]), String> {
    let short = || format!("a footer entry in {} bytes", bytes.len());
    let (header, rest) = bytes
        .split_at_checked(FOOTER_ENTRY_BYTES)
        .ok_or_else(short)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let version = header[entry_at::VERSION..entry_at::VERSION + 8].try_into();
    let key_len = header[entry_at::KEY_LEN..entry_at::KEY_LEN + 2].try_into();
    let key_len = usize::from(u16::from_le_bytes(key_len.expect("two bytes")));
    let (key, rest) = rest.split_at_checked(key_len).ok_or_else(short)?;
    let kind = match header[entry_at::KIND] {
        1 => RecordKind::Set,
        2 => RecordKind::Delete,
        other => return Err(format!("a footer entry of kind {other}")),
    };
    let entry = FooterEntry {
        kind,
        version: u64::from_le_bytes(version.expect("eight bytes")),
        offset: word(entry_at::OFFSET),
        value_len: word(entry_at::VALUE_LEN),
        key,
    };
    Ok((entry, rest))
}

/// Bytes of a frame whose footer has so many bytes of entries.
fn frame_bytes(entry_bytes: usize) -> usize {
    (FRAME_HEADER_BYTES + RECORD_HEADER_BYTES + entry_bytes).next_multiple_of(BLOCK)
}

/// The footer of a segment that is being filled, or that is read without one.
#[derive(Debug, Clone)]
pub(super) struct FooterBuilder {
    entries: Entries,
    /// Bytes of entries beyond which there is none; 0: there is none.
    bytes_max: usize,
}

impl FooterBuilder {
    /// Of a segment of so many bytes.
    pub(super) fn new(segment_bytes: u64) -> FooterBuilder {
        let share = usize::try_from(segment_bytes / SHARE_DIVISOR).unwrap_or(usize::MAX);
        FooterBuilder {
            entries: Entries::default(),
            bytes_max: share.min(limits::VALUE_LEN_MAX),
        }
    }

    /// Its entries so far.
    pub(super) fn entries(&self) -> impl Iterator<Item = FooterEntry<'_>> {
        self.entries.iter()
    }

    /// Whether there will be one, as far as is known.
    pub(super) fn is_wanted(&self) -> bool {
        self.bytes_max > 0
    }

    /// There will be none.
    pub(super) fn abandon(&mut self) {
        *self = FooterBuilder {
            entries: Entries::default(),
            bytes_max: 0,
        };
    }

    pub(super) fn push(&mut self, entry: &FooterEntry<'_>) {
        if self.entries.bytes.len() + FOOTER_ENTRY_BYTES + entry.key.len() > self.bytes_max {
            self.abandon();
        } else {
            self.entries.push(entry);
        }
    }

    /// Room that it takes when so many bytes of entries come to it.
    pub(super) fn room_with(&self, more_bytes: usize) -> u64 {
        let bytes = self.entries.bytes.len() + more_bytes;
        match self.is_wanted() && bytes <= self.bytes_max {
            true => frame_bytes(bytes) as u64,
            false => 0,
        }
    }

    /// Its bytes on disk; `None`: there is none.
    pub(super) fn frame_bytes(&self) -> Option<usize> {
        self.is_wanted()
            .then(|| frame_bytes(self.entries.bytes.len()))
    }

    /// Writes the frame, `frame_bytes` long, for a segment of this epoch that ends at `end` with `last_version`.
    pub(super) fn encode(&self, out: &mut [u8], epoch: u64, end: u64, last_version: u64) {
        assert_eq!(Some(out.len()), self.frame_bytes(), "room for exactly this");
        out.fill(0);
        let record = Record {
            kind: RecordKind::Footer,
            moved: false,
            version: 0,
            key: b"",
            value: &self.entries.bytes,
        };
        let payload_bytes = record.bytes();
        record.encode(&mut out[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + payload_bytes]);
        let header = FrameHeader {
            epoch,
            block: u32::try_from(end / BLOCK as u64).expect("a segment is smaller than 4 GiB"),
            records: 1,
            first_version: last_version + 1,
            previous_last_version: last_version,
            payload_bytes: payload_bytes as u32,
            flags: FRAME_FOOTER,
        };
        header.encode(out);
    }
}

/// The length of the footer whose first block this is, if it is one of this epoch for this end of a segment.
pub(super) fn announced_bytes(block: &[u8], epoch: u64, end: u64) -> Option<usize> {
    let header = FrameHeader::decode(block)?;
    let belongs = header.epoch == epoch
        && u64::from(header.block) * BLOCK as u64 == end
        && header.flags == FRAME_FOOTER
        && header.records == 1;
    belongs.then(|| header.frame_bytes())
}

/// How many entries a footer has, or seems to have.
pub(super) fn count_entries(frame: &[u8]) -> u64 {
    let value = frame.get(FRAME_HEADER_BYTES + RECORD_HEADER_BYTES..);
    let entries = entries(value.unwrap_or_default());
    // Behind the last one there is padding, which is no entry.
    entries.take_while(Result::is_ok).count() as u64
}

/// Shows every entry of a footer to `each`, after all of them were checked. `end`: that of the segment.
///
/// # Errors
/// What does not verify; then `each` was not called.
pub(super) fn read_footer(
    frame: &[u8],
    end: u64,
    mut each: impl FnMut(FooterEntry<'_>),
) -> Result<u64, String> {
    let header = FrameHeader::decode(frame).ok_or("no frame header that verifies")?;
    if frame.len() != header.frame_bytes() {
        return Err(format!("{} bytes of a footer", frame.len()));
    }
    let mut value = None;
    read_frame(&header, frame, |_, record| {
        value = (record.kind == RecordKind::Footer).then_some(record.value);
    })
    .map_err(|(_, what)| what)?;
    let value = value.ok_or("a frame without a footer")?;
    let mut count = 0;
    for entry in EntriesOf(value) {
        let entry = entry?;
        let inside = u64::from(entry.offset) >= SEGMENT_HEADER_BYTES as u64
            && u64::from(entry.offset) + entry.record_bytes() as u64 <= end;
        if !inside || entry.key.is_empty() || entry.value_len as usize > limits::VALUE_LEN_MAX {
            return Err(format!(
                "a footer entry for {} bytes at offset {}, the segment ends at {end}",
                entry.record_bytes(),
                entry.offset
            ));
        }
        count += 1;
    }
    EntriesOf(value).flatten().for_each(&mut each);
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u64 = 1 << 20;

    fn entry(key: &[u8], offset: u32) -> FooterEntry<'_> {
        FooterEntry {
            kind: if offset.is_multiple_of(3) {
                RecordKind::Delete
            } else {
                RecordKind::Set
            },
            version: u64::from(offset) << 20,
            offset,
            value_len: offset % 300,
            key,
        }
    }

    fn built(keys: &[Vec<u8>]) -> (FooterBuilder, Vec<u8>) {
        let mut builder = FooterBuilder::new(1 << 20);
        for (number, key) in keys.iter().enumerate() {
            builder.push(&entry(key, 4096 + number as u32));
        }
        let mut frame = vec![0xff; builder.frame_bytes().unwrap()];
        builder.encode(&mut frame, 9, END, 77);
        (builder, frame)
    }

    #[test]
    fn a_footer_survives_the_round_trip_and_no_flipped_bit() {
        let keys: Vec<_> = (1..100_u8).map(|len| vec![len; len.into()]).collect();
        let (builder, frame) = built(&keys);
        assert_eq!(announced_bytes(&frame[..BLOCK], 9, END), Some(frame.len()));
        assert_eq!(announced_bytes(&frame[..BLOCK], 8, END), None);
        assert_eq!(announced_bytes(&frame[..BLOCK], 9, END - 4096), None);
        let mut seen = Vec::new();
        let count = read_footer(&frame, END, |entry| {
            seen.push((entry.key.to_vec(), entry.offset));
        });
        assert_eq!(count, Ok(99));
        let pushed = builder.entries.iter();
        let pushed: Vec<_> = pushed.map(|one| (one.key.to_vec(), one.offset)).collect();
        assert_eq!(seen, pushed);
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = read_footer(&damaged, END, |_| panic!("taken with bit {bit} flipped"));
            assert!(found.is_err());
        }
    }

    #[test]
    fn an_entry_beyond_the_end_of_its_segment_is_not_taken() {
        let (_, frame) = built(&[b"a".to_vec(), b"b".to_vec()]);
        assert!(read_footer(&frame, 4096 + 33, |_| panic!("taken")).is_err());
    }

    #[test]
    fn a_footer_that_saves_little_is_given_up_at_once() {
        let mut builder = FooterBuilder::new(8 * 4096);
        let key = [7; 1000];
        for number in 0..4 {
            assert!(builder.room_with(1020) > 0);
            builder.push(&entry(&key, 4096 + number));
        }
        assert_eq!(builder.room_with(1020), 0);
        builder.push(&entry(&key, 9999));
        assert_eq!((builder.frame_bytes(), builder.entries.count()), (None, 0));
    }

    #[test]
    fn format_md_states_the_offsets_of_this_file() {
        let document = include_str!("FORMAT.md");
        let rows = [
            ("version", entry_at::VERSION, 8),
            ("offset", entry_at::OFFSET, 4),
            ("value length", entry_at::VALUE_LEN, 4),
            ("key length", entry_at::KEY_LEN, 2),
            ("kind", entry_at::KIND, 1),
        ];
        for (field, offset, width) in rows {
            let row = format!("| footer entry | {offset} | {width} | {field} |");
            assert!(document.contains(&row), "FORMAT.md lacks the row: {row}");
        }
    }
}

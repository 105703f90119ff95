//! The segments that make up a log, as bytes: the first record of every segment lists those before it.
//!
//! So the newest segment alone says which files must be there and where each of them ends: a file that is missing is
//! told from one that was retired, and one that came back after it was removed from one that belongs there.

use crate::storage::disk::BLOCK;
use crate::storage::format::{FRAME_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::storage::segment::{LogId, SegmentKey};

/// A segment before the one that holds the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableEntry {
    /// Its log, which may be another than that of the table, and its place in it.
    pub segment: SegmentKey,
    /// The number in the name of its file.
    pub file: u32,
    /// Its epoch.
    pub epoch: u64,
    /// End of its last frame, in bytes.
    pub end: u64,
}

mod entry_at {
    pub(super) const LOG: usize = 0;
    pub(super) const NUMBER: usize = 4;
    pub(super) const FILE: usize = 8;
    pub(super) const END_BLOCK: usize = 12;
    pub(super) const EPOCH: usize = 16;
}

/// Bytes of an entry.
pub const TABLE_ENTRY_BYTES: usize = 24;

/// Entries for which a new segment has room beyond those known when it was made.
const ENTRIES_AHEAD: usize = 64;

/// Bytes of the frame that holds a table of so many entries.
pub const fn table_frame_bytes(entries: usize) -> usize {
    (FRAME_HEADER_BYTES + RECORD_HEADER_BYTES + entries * TABLE_ENTRY_BYTES).next_multiple_of(BLOCK)
}

/// Bytes that a segment keeps for its table, beyond what users configure for records.
pub const fn table_room(entries: usize) -> u64 {
    table_frame_bytes(entries + ENTRIES_AHEAD) as u64
}

/// The value of a table record.
pub fn encode(entries: &[TableEntry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * TABLE_ENTRY_BYTES);
    for entry in entries {
        let end_block = u32::try_from(entry.end / BLOCK as u64);
        bytes.extend_from_slice(&entry.segment.log.0.to_le_bytes());
        bytes.extend_from_slice(&entry.segment.number.to_le_bytes());
        bytes.extend_from_slice(&entry.file.to_le_bytes());
        let end_block = end_block.expect("a segment is smaller than 4 GiB");
        bytes.extend_from_slice(&end_block.to_le_bytes());
        bytes.extend_from_slice(&entry.epoch.to_le_bytes());
    }
    bytes
}

/// Reads the value of a table record; the error says what is wrong with it.
pub fn decode(value: &[u8]) -> Result<Vec<TableEntry>, String> {
    let (entries, rest) = value.as_chunks::<TABLE_ENTRY_BYTES>();
    if !rest.is_empty() {
        return Err(format!("a table of {} bytes", value.len()));
    }
    let mut table = Vec::with_capacity(entries.len());
    for entry in entries {
        let field =
            |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
        let epoch = entry[entry_at::EPOCH..].try_into().expect("eight bytes");
        table.push(TableEntry {
            segment: SegmentKey {
                log: LogId(field(entry_at::LOG)),
                number: field(entry_at::NUMBER),
            },
            file: field(entry_at::FILE),
            end: u64::from(field(entry_at::END_BLOCK)) * BLOCK as u64,
            epoch: u64::from_le_bytes(epoch),
        });
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_md_states_the_offsets_of_this_file() {
        let document = include_str!("FORMAT.md");
        let rows = [
            ("log", entry_at::LOG, 4),
            ("number", entry_at::NUMBER, 4),
            ("file", entry_at::FILE, 4),
            ("end block", entry_at::END_BLOCK, 4),
            ("epoch", entry_at::EPOCH, 8),
        ];
        for (field, offset, width) in rows {
            let row = format!("| table entry | {offset} | {width} | {field} |");
            assert!(document.contains(&row), "FORMAT.md lacks the row: {row}");
        }
    }

    #[test]
    fn a_table_survives_the_round_trip_and_no_cut() {
        let entry = |number: u32| TableEntry {
            segment: SegmentKey {
                log: LogId(3),
                number,
            },
            file: number + 7,
            epoch: u64::from(number) << 40 | 5,
            end: u64::from(number) * BLOCK as u64,
        };
        let table: Vec<_> = (1..50).map(entry).collect();
        let bytes = encode(&table);
        assert_eq!(decode(&bytes), Ok(table));
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
    }
}

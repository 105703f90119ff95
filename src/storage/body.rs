//! Key and value of a record at their places in a frame, with the checksum that was made on the way.
//!
//! A large write waits in the lane with its body in place; what stands around it, its version first of all, is known when
//! its turn comes. Nothing that takes time is left to be done then, between two frames.
//! Does not: decode (`format` does), or know where a frame goes.

use crate::storage::format::{
    RECORD_HEADER_BYTES, RECORD_MOVED, RecordKind, put, record_at, record_bytes,
};

/// A longer value is copied in pieces of so many bytes, each of which is still in the caches when its checksum is computed.
const COPIED_PIECE_BYTES: usize = 64 << 10;

/// Key and value of a record at their places, without what is around them.
pub(super) struct Body {
    key_len: usize,
    /// Of both; only of long ones, else they are faster read once more.
    crc: Option<crc32fast::Hasher>,
}

impl Body {
    /// Copies key and value to their places in `out`, which has exactly the length of the record.
    pub(super) fn copy(key: &[u8], value: &[u8], out: &mut [u8]) -> Body {
        let len = record_bytes(key.len(), value.len());
        assert_eq!(out.len(), len, "room for exactly this record");
        let key_len = key.len();
        let (key_at, value_at) = out[RECORD_HEADER_BYTES..].split_at_mut(key_len);
        key_at.copy_from_slice(key);
        if value.len() < COPIED_PIECE_BYTES {
            value_at.copy_from_slice(value);
            return Body { key_len, crc: None };
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(key);
        let pieces = value.chunks(COPIED_PIECE_BYTES);
        for (from, to) in pieces.zip(value_at.chunks_mut(COPIED_PIECE_BYTES)) {
            to.copy_from_slice(from);
            crc.update(to);
        }
        Body {
            key_len,
            crc: Some(crc),
        }
    }

    /// Writes what the record has beside key and value, which `copy` has put into `out`.
    pub(super) fn encode_around(
        &self,
        kind: RecordKind,
        moved: bool,
        version: u64,
        out: &mut [u8],
    ) {
        let key_len = u16::try_from(self.key_len).expect("callers check the length of a key");
        let value_len = u32::try_from(out.len() - RECORD_HEADER_BYTES - self.key_len)
            .expect("callers check the length of a value");
        let header = &mut out[..RECORD_HEADER_BYTES];
        header.fill(0);
        header[record_at::KIND] = kind as u8;
        header[record_at::FLAGS] = if moved { RECORD_MOVED } else { 0 };
        put(header, record_at::KEY_LEN, key_len.to_le_bytes());
        put(header, record_at::VALUE_LEN, value_len.to_le_bytes());
        put(header, record_at::VERSION, version.to_le_bytes());
        let crc = match &self.crc {
            None => crc32fast::hash(&out[record_at::KIND..]),
            Some(body) => {
                let mut crc = crc32fast::Hasher::new();
                crc.update(&out[record_at::KIND..RECORD_HEADER_BYTES]);
                crc.combine(body);
                crc.finalize()
            }
        };
        put(out, record_at::CRC, crc.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::format::Record;

    #[test]
    fn a_value_of_any_length_is_copied_whole_and_has_the_checksum_of_the_whole_record() {
        let bytes: Vec<u8> = (0..3 * COPIED_PIECE_BYTES as u32 + 8)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let pieces = (0..=3).map(|pieces| pieces * COPIED_PIECE_BYTES);
        for len in pieces.flat_map(|len| [len.saturating_sub(1), len, len + 1]) {
            let record = Record {
                kind: RecordKind::Set,
                moved: len % 2 == 0,
                version: 7,
                key: b"ship",
                value: &bytes[..len],
            };
            let mut out = vec![0xff; record.bytes()];
            record.encode(&mut out);
            assert_eq!(Record::decode(&out), Ok(record), "{len} bytes");
        }
    }
}

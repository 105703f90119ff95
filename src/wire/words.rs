//! Cap'n Proto by hand, for the few structs that are worth it: pointers, words, bytes filled up to words.
//!
//! Everything written with this is little endian and of one segment. Tests read it back with `capnp`.

/// Bytes of a word.
pub const WORD_BYTES: usize = 8;

/// A struct and what its pointers point to behind it, to be written as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Words of the struct's data section.
    pub data_words: u16,
    /// The struct's pointers.
    pub pointers: u16,
    /// Words of everything together.
    pub words: usize,
}

/// Words that so many bytes take.
pub const fn words_of(bytes: usize) -> usize {
    bytes.div_ceil(WORD_BYTES)
}

/// A pointer to a struct that begins `offset_words` behind the pointer.
pub const fn struct_pointer(offset_words: usize, data_words: u16, pointers: u16) -> u64 {
    (offset_words as u64) << 2 | (data_words as u64) << 32 | (pointers as u64) << 48
}

/// A pointer to `len` bytes that begin `offset_words` behind the pointer.
pub const fn bytes_pointer(offset_words: usize, len: usize) -> u64 {
    const LIST: u64 = 1;
    const OF_BYTES: u64 = 2 << 32;
    LIST | (offset_words as u64) << 2 | OF_BYTES | (len as u64) << 35
}

/// A pointer to a list of structs of so many `words` together. The list begins `offset_words` behind the pointer with a tag:
/// [`struct_pointer`] of one struct, with their number as the offset.
pub const fn structs_pointer(offset_words: usize, words: usize) -> u64 {
    const LIST: u64 = 1;
    const OF_STRUCTS: u64 = 7 << 32;
    LIST | (offset_words as u64) << 2 | OF_STRUCTS | (words as u64) << 35
}

/// Appends words.
pub fn append(to: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        to.extend_from_slice(&word.to_le_bytes());
    }
}

/// Appends bytes, and zeros up to the next word. `to` must end at a word of the message.
pub fn append_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(bytes);
    let missing = words_of(bytes.len()) * WORD_BYTES - bytes.len();
    to.extend_from_slice(&[0; WORD_BYTES][..missing]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_filled_up_to_words() {
        for len in 0..20 {
            let mut to = vec![1; 8];
            append_bytes(&mut to, &vec![7; len]);
            assert_eq!(to.len(), 8 + 8 * words_of(len));
            assert!(to[8..8 + len].iter().all(|byte| *byte == 7));
            assert!(to[8 + len..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn pointers_are_those_of_the_encoding() {
        // From the specification: a struct of one data word and two pointers, three words on; five bytes, next word.
        assert_eq!(struct_pointer(3, 1, 2), 3 << 2 | 1 << 32 | 2 << 48);
        assert_eq!(bytes_pointer(0, 5), 1 | 2 << 32 | 5 << 35);
        // A list of structs, two words on, that takes six words.
        assert_eq!(structs_pointer(2, 6), 1 | 2 << 2 | 7 << 32 | 6 << 35);
    }
}

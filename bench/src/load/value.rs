//! Values that say what they are: who wrote them, to which key, as which of its writes, and whether every byte is there.
//!
//! Layout, little-endian: run u32 (a random number per process), writer u32, key number u64, sequence u64, length u32,
//! check u32 over what precedes, then a fill that depends on all of these. So a value of another key, a mixture of two
//! values of the same key, a cut or a changed one are all told from a whole one; which whole value is *right* is the
//! ledger's question. Values shorter than the header are fill only and cannot be verified.
//! Used by workers (encode) and by the ledger (decode).

use super::random::{GOLDEN, mixed};

/// Shortest value that can be verified.
pub(crate) const HEADER_LEN: usize = 32;

/// Identity of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) run: u32,
    pub(crate) writer: u32,
    pub(crate) key: u64,
    pub(crate) sequence: u64,
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "write {} of writer {} in run {:08x}",
            self.sequence, self.writer, self.run
        )
    }
}

/// What is wrong with the bytes of a value, before asking whether it is the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Malformed {
    Short { len: usize },
    NotOurs,
    Length { announced: u32, found: usize },
    Torn { offset: usize },
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Malformed::Short { len } => write!(
                out,
                "{len} bytes, too few for a value of this load ({HEADER_LEN} at least)"
            ),
            Malformed::NotOurs => {
                out.write_str("bytes that no load wrote, or whose head is damaged")
            }
            Malformed::Length { announced, found } => {
                write!(out, "{found} bytes of a value of {announced}")
            }
            Malformed::Torn { offset } => {
                write!(out, "a damaged or torn value, wrong from byte {offset} on")
            }
        }
    }
}

/// Makes `value` (its length decides) the value of `stamp`.
pub(crate) fn encode(stamp: Stamp, value: &mut [u8]) {
    let len = u32::try_from(value.len()).expect("a value is at most 32 MiB");
    let header = header(stamp, len);
    let fill = if value.len() >= HEADER_LEN {
        value[..HEADER_LEN].copy_from_slice(&header);
        &mut value[HEADER_LEN..]
    } else {
        value
    };
    let mut words = Fill::new(&header);
    let (blocks, rest) = fill.as_chunks_mut::<FILL_BLOCK_BYTES>();
    for block in blocks {
        *block = words.next_block();
    }
    rest.copy_from_slice(&words.next_block()[..rest.len()]);
}

/// Whose value this is, if it is whole.
pub(crate) fn decode(value: &[u8]) -> Result<Stamp, Malformed> {
    let Some((head, fill)) = value.split_first_chunk::<HEADER_LEN>() else {
        return Err(Malformed::Short { len: value.len() });
    };
    let short = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let stamp = Stamp {
        run: short(0),
        writer: short(4),
        key: long(8),
        sequence: long(16),
    };
    let announced = short(24);
    if header(stamp, announced) != *head {
        return Err(Malformed::NotOurs);
    }
    if announced as usize != value.len() {
        return Err(Malformed::Length {
            announced,
            found: value.len(),
        });
    }
    let mut words = Fill::new(head);
    for (index, found) in fill.chunks(FILL_BLOCK_BYTES).enumerate() {
        let expected = &words.next_block()[..found.len()];
        if found != expected {
            let differs = found.iter().zip(expected).take_while(|(a, b)| a == b);
            return Err(Malformed::Torn {
                offset: HEADER_LEN + index * FILL_BLOCK_BYTES + differs.count(),
            });
        }
    }
    Ok(stamp)
}

fn header(stamp: Stamp, len: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0..4].copy_from_slice(&stamp.run.to_le_bytes());
    header[4..8].copy_from_slice(&stamp.writer.to_le_bytes());
    header[8..16].copy_from_slice(&stamp.key.to_le_bytes());
    header[16..24].copy_from_slice(&stamp.sequence.to_le_bytes());
    header[24..28].copy_from_slice(&len.to_le_bytes());
    let check = fill_seed(&header) as u32;
    header[28..32].copy_from_slice(&check.to_le_bytes());
    header
}

/// One number that depends on every byte of the header.
fn fill_seed(header: &[u8; HEADER_LEN]) -> u64 {
    let (words, _) = header.as_chunks::<8>();
    words.iter().fold(GOLDEN, |seed, word| {
        mixed(seed ^ u64::from_le_bytes(*word)).wrapping_add(GOLDEN)
    })
}

/// Bytes of the fill that are made and compared at once.
const FILL_BLOCK_BYTES: usize = 64;

/// The fill of a value, block by block: a value must be made and checked in less time than it is copied by the server, so
/// it is additions and shifts alone, of which a processor does several at once.
struct Fill([u64; FILL_BLOCK_BYTES / 8]);

impl Fill {
    fn new(header: &[u8; HEADER_LEN]) -> Fill {
        let seed = fill_seed(header);
        Fill(std::array::from_fn(|lane| {
            seed.wrapping_add(GOLDEN.wrapping_mul(lane as u64))
        }))
    }

    fn next_block(&mut self) -> [u8; FILL_BLOCK_BYTES] {
        let mut block = [0; FILL_BLOCK_BYTES];
        let (words, _) = block.as_chunks_mut::<8>();
        for (word, lane) in words.iter_mut().zip(&mut self.0) {
            *word = (*lane ^ (*lane >> 29)).to_le_bytes();
            *lane = lane.wrapping_add(GOLDEN.wrapping_mul(FILL_BLOCK_BYTES as u64 / 8));
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        run: 0xabcd,
        writer: 3,
        key: 77,
        sequence: 12,
    };

    fn value_of(stamp: Stamp, len: usize) -> Vec<u8> {
        let mut value = vec![0; len];
        encode(stamp, &mut value);
        value
    }

    #[test]
    fn a_whole_value_says_whose_it_is_at_every_length() {
        for len in (HEADER_LEN..HEADER_LEN + 40).chain([512, 4096, 100_001]) {
            assert_eq!(decode(&value_of(STAMP, len)), Ok(STAMP), "length {len}");
        }
    }

    #[test]
    fn every_changed_bit_is_found() {
        let whole = value_of(STAMP, 101);
        for bit in 0..whole.len() * 8 {
            let mut value = whole.clone();
            value[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&value).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_mixture_of_two_writes_of_one_key_is_found_wherever_it_is_torn() {
        let old = value_of(STAMP, 512);
        let new = value_of(
            Stamp {
                sequence: STAMP.sequence + 1,
                ..STAMP
            },
            512,
        );
        // The first bytes that differ are those of the sequence: before them a tear changes nothing.
        for cut in 17..511 {
            let torn = [&new[..cut], &old[cut..]].concat();
            assert!(
                torn == old || torn == new || decode(&torn).is_err(),
                "cut at {cut}"
            );
        }
        let torn = [&new[..256], &old[256..]].concat();
        assert_eq!(decode(&torn), Err(Malformed::Torn { offset: 256 }));
    }

    #[test]
    fn a_cut_or_padded_value_is_found() {
        let whole = value_of(STAMP, 300);
        assert_eq!(
            decode(&whole[..299]),
            Err(Malformed::Length {
                announced: 300,
                found: 299
            })
        );
        assert_eq!(
            decode(&[whole.as_slice(), &[0]].concat()),
            Err(Malformed::Length {
                announced: 300,
                found: 301
            })
        );
        assert_eq!(decode(&whole[..31]), Err(Malformed::Short { len: 31 }));
        assert_eq!(decode(&[]), Err(Malformed::Short { len: 0 }));
    }

    #[test]
    fn zeros_and_text_are_not_ours() {
        assert_eq!(decode(&[0; 512]), Err(Malformed::NotOurs));
        assert_eq!(decode(&[b'x'; 64]), Err(Malformed::NotOurs));
    }

    #[test]
    fn values_of_different_writes_differ_also_when_they_are_too_short_to_verify() {
        assert_ne!(
            value_of(STAMP, 16),
            value_of(
                Stamp {
                    sequence: 13,
                    ..STAMP
                },
                16
            )
        );
        assert_eq!(value_of(STAMP, 0), Vec::<u8>::new());
    }
}

//! Where a message begins and ends in a stream of bytes: the segment table, and the collection of messages from pieces
//! of any size.
//!
//! Pure: bytes in, messages out. Nothing is allocated for a length that is not checked, and a message's memory grows
//! with the bytes that are there. Memory of large messages is used again (`recycle.rs`), so that reading one neither zeroes
//! nor moves what it reads. `receive.rs` feeds it.

use std::collections::VecDeque;

use capnp::Word;
use capnp::message::ReaderSegments;

use super::recycle;
use crate::proto::ErrorWord;

/// Segments of one message. The same bound as in every stock Cap'n Proto library.
pub(super) const SEGMENTS_MAX: u32 = 512;

/// Address space that is first reserved for the body of a message that is not there yet, at most what is announced; all that
/// is announced when that is full: each time what is there has to move. It is not touched before bytes arrive, and so
/// takes no memory.
const BODY_RESERVED_FIRST_BYTES: usize = 1 << 20;

/// Room that is touched ahead of the bytes that arrive, and the most that one read of a body takes.
const BODY_ROOM_BYTES: usize = 256 << 10;

/// From so many missing bytes on, the body is read in place and not through the shared read buffer.
const BODY_IN_PLACE_BYTES_MIN: usize = 32 << 10;

const WORD_BYTES: usize = 8;
const WORD_ZERO: Word = capnp::word(0, 0, 0, 0, 0, 0, 0, 0);

/// The segments of one received message, in one allocation.
pub(super) struct Segments {
    /// May be longer than the message.
    words: Vec<Word>,
    body_words: usize,
    /// Where each segment ends, in words; `None` for the usual single segment.
    ends: Option<Box<[u32]>>,
}

impl Segments {
    /// The segments of a message, copied together.
    pub(super) fn copy_of(message: &dyn ReaderSegments) -> Segments {
        let segments = (0..message.len() as u32).filter_map(|id| message.get_segment(id));
        let bytes: usize = segments.clone().map(<[u8]>::len).sum();
        let mut words = Word::allocate_zeroed_vec(bytes / WORD_BYTES);
        let mut filled = 0;
        let mut ends = Vec::new();
        for segment in segments {
            Word::words_to_bytes_mut(&mut words)[filled..][..segment.len()]
                .copy_from_slice(segment);
            filled += segment.len();
            ends.push((filled / WORD_BYTES) as u32);
        }
        Segments {
            body_words: words.len(),
            words,
            ends: (ends.len() > 1).then(|| ends.into_boxed_slice()),
        }
    }

    /// Memory that the message takes.
    pub(super) fn bytes(&self) -> usize {
        self.body_words * WORD_BYTES
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        recycle::give_body(std::mem::take(&mut self.words));
    }
}

impl ReaderSegments for Segments {
    fn get_segment(&self, id: u32) -> Option<&[u8]> {
        let words = match &self.ends {
            None if id == 0 => &self.words[..self.body_words],
            None => return None,
            Some(ends) => {
                let end = *ends.get(id as usize)? as usize;
                let start = if id == 0 {
                    0
                } else {
                    ends[id as usize - 1] as usize
                };
                &self.words[start..end]
            }
        };
        Some(Word::words_to_bytes(words))
    }

    fn len(&self) -> usize {
        self.ends.as_ref().map_or(1, |ends| ends.len())
    }
}

/// The only segment of a message that is still where it was read.
pub(super) struct Whole<'a>(&'a [u8]);

impl<'a> Whole<'a> {
    /// The message that starts `bytes`, and what follows it; `None` unless it is complete, within the bound and has one
    /// segment that can be read in place.
    pub(super) fn at_start_of(
        bytes: &'a [u8],
        message_bytes_max: usize,
    ) -> Option<(Whole<'a>, &'a [u8])> {
        let (table, rest) = bytes.split_at_checked(WORD_BYTES)?;
        let body_bytes = read_u32(table, 4) as usize * WORD_BYTES;
        let in_place = segment_count(table) == 1
            && WORD_BYTES + body_bytes <= message_bytes_max
            && rest.as_ptr().cast::<Word>().is_aligned();
        if !in_place {
            return None;
        }
        let (body, rest) = rest.split_at_checked(body_bytes)?;
        Some((Whole(body), rest))
    }

    /// Length of the message's content.
    pub(super) fn bytes(&self) -> usize {
        self.0.len()
    }
}

impl ReaderSegments for Whole<'_> {
    fn get_segment(&self, id: u32) -> Option<&[u8]> {
        (id == 0).then_some(self.0)
    }

    fn len(&self) -> usize {
        1
    }
}

/// A checked segment table.
struct Table {
    bytes: usize,
    body_words: usize,
    ends: Option<Box<[u32]>>,
}

impl Table {
    /// Reads the table at the start of `bytes`; `None` when more bytes are needed.
    fn parse(bytes: &[u8], message_bytes_max: usize) -> Result<Option<Self>, capnp::Error> {
        let Some(table_bytes) = table_bytes(bytes)? else {
            return Ok(None);
        };
        if bytes.len() < table_bytes {
            return Ok(None);
        }
        let count = segment_count(bytes) as usize;
        let mut body_words = 0_u64;
        let mut ends = (count > 1).then(|| Vec::with_capacity(count));
        for index in 0..count {
            body_words += u64::from(read_u32(bytes, 4 + index * 4));
            let message_bytes = body_words * WORD_BYTES as u64 + table_bytes as u64;
            if message_bytes > message_bytes_max as u64 {
                return Err(ErrorWord::InvalidArgument.error(format_args!(
                    "a message of {message_bytes} bytes or more is over the limit of \
                     {message_bytes_max} bytes; send less in one call"
                )));
            }
            if let Some(ends) = &mut ends {
                ends.push(
                    u32::try_from(body_words)
                        .expect("a message within its bound has fewer than 2^32 words"),
                );
            }
        }
        let body_words = usize::try_from(body_words).expect("within message_bytes_max, a usize");
        Ok(Some(Self {
            bytes: table_bytes,
            body_words,
            ends: ends.map(Vec::into_boxed_slice),
        }))
    }

    fn body_bytes(&self) -> usize {
        self.body_words * WORD_BYTES
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of four bytes"))
}

/// Number of segments, from the first four bytes, which must be there and checked by [`table_bytes`].
fn segment_count(bytes: &[u8]) -> u32 {
    read_u32(bytes, 0).wrapping_add(1)
}

/// Length of the segment table that starts `bytes`, padding included; `None` when not even that can be told.
fn table_bytes(bytes: &[u8]) -> Result<Option<usize>, capnp::Error> {
    if bytes.len() < 4 {
        return Ok(None);
    }
    let count = u64::from(read_u32(bytes, 0)) + 1;
    if count > u64::from(SEGMENTS_MAX) {
        return Err(ErrorWord::InvalidArgument.error(format_args!(
            "a message of {count} segments is over the limit of {SEGMENTS_MAX}; is the peer speaking \
             Cap'n Proto?"
        )));
    }
    let unpadded = 4 + 4 * count as usize;
    Ok(Some(unpadded.next_multiple_of(WORD_BYTES)))
}

/// The message that has begun to arrive.
enum Partial {
    Nothing,
    /// Fewer bytes than the segment table has.
    Table(Vec<u8>),
    /// `words` is the room made so far, `filled` the bytes in it.
    Body {
        table: Table,
        words: Vec<Word>,
        filled: usize,
    },
}

impl Partial {
    fn body(table: Table) -> Partial {
        Partial::Body {
            words: recycle::take_body(table.body_words),
            table,
            filled: 0,
        }
    }
}

/// Turns pieces of a byte stream into messages.
pub(super) struct Assembler {
    message_bytes_max: usize,
    partial: Partial,
}

impl Assembler {
    pub(super) fn new(message_bytes_max: usize) -> Self {
        // A body's words are counted in 32 bits (`Segments::ends`).
        let message_bytes_max = message_bytes_max.min(u32::MAX as usize);
        Self {
            message_bytes_max,
            partial: Partial::Nothing,
        }
    }

    /// Whether a message has begun and is not complete.
    pub(super) fn has_partial(&self) -> bool {
        !matches!(self.partial, Partial::Nothing)
    }

    /// Takes from `bytes` what the message needs that has begun, if one has; returns the rest.
    pub(super) fn feed_begun<'a>(
        &mut self,
        bytes: &'a [u8],
        complete: &mut VecDeque<Segments>,
    ) -> Result<&'a [u8], capnp::Error> {
        let mut rest = bytes;
        while self.has_partial() && !rest.is_empty() {
            rest = self.feed_piece(rest, complete)?;
        }
        Ok(rest)
    }

    /// Takes all of `bytes`; what becomes complete goes to the back of `complete`. After an error the stream has no
    /// meaning any more.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        complete: &mut VecDeque<Segments>,
    ) -> Result<(), capnp::Error> {
        while !bytes.is_empty() {
            bytes = self.feed_piece(bytes, complete)?;
        }
        Ok(())
    }

    /// Takes the bytes of one message, or of its table; returns what follows.
    fn feed_piece<'a>(
        &mut self,
        bytes: &'a [u8],
        complete: &mut VecDeque<Segments>,
    ) -> Result<&'a [u8], capnp::Error> {
        match &mut self.partial {
            Partial::Nothing => self.begin(bytes, complete),
            Partial::Table(table) => {
                // The shortest table has eight bytes.
                let wanted = table_bytes(table)?.unwrap_or(WORD_BYTES);
                let (now, later) = bytes.split_at(bytes.len().min(wanted - table.len()));
                table.extend_from_slice(now);
                if let Some(table) = Table::parse(table, self.message_bytes_max)? {
                    self.partial = Partial::body(table);
                    self.complete_body(complete);
                }
                Ok(later)
            }
            Partial::Body {
                table,
                words,
                filled,
            } => {
                let (now, later) = bytes.split_at(bytes.len().min(table.body_bytes() - *filled));
                make_room(words, *filled, now.len(), table.body_words);
                Word::words_to_bytes_mut(words)[*filled..][..now.len()].copy_from_slice(now);
                *filled += now.len();
                self.complete_body(complete);
                Ok(later)
            }
        }
    }

    /// The start of a message, which usually is whole. Returns what follows it.
    fn begin<'a>(
        &mut self,
        bytes: &'a [u8],
        complete: &mut VecDeque<Segments>,
    ) -> Result<&'a [u8], capnp::Error> {
        let Some(table) = Table::parse(bytes, self.message_bytes_max)? else {
            self.partial = Partial::Table(bytes.to_vec());
            return Ok(&[]);
        };
        let rest = &bytes[table.bytes..];
        let Some((body, rest)) = rest.split_at_checked(table.body_bytes()) else {
            self.partial = Partial::body(table);
            return Ok(rest);
        };
        let mut words = Word::allocate_zeroed_vec(table.body_words);
        Word::words_to_bytes_mut(&mut words).copy_from_slice(body);
        complete.push_back(Segments {
            words,
            body_words: table.body_words,
            ends: table.ends,
        });
        Ok(rest)
    }

    fn complete_body(&mut self, complete: &mut VecDeque<Segments>) {
        match std::mem::replace(&mut self.partial, Partial::Nothing) {
            Partial::Body {
                table,
                words,
                filled,
            } if filled == table.body_bytes() => {
                complete.push_back(Segments {
                    words,
                    body_words: table.body_words,
                    ends: table.ends,
                });
            }
            unfinished => self.partial = unfinished,
        }
    }

    /// Room for the next bytes of a large body, to read them in place; `None` when the shared buffer serves better.
    pub(super) fn body_room(&mut self) -> Option<&mut [u8]> {
        let Partial::Body {
            table,
            words,
            filled,
        } = &mut self.partial
        else {
            return None;
        };
        if table.body_bytes() - *filled < BODY_IN_PLACE_BYTES_MIN {
            return None;
        }
        make_room(words, *filled, 1, table.body_words);
        let end = table.body_bytes().min(words.len() * WORD_BYTES);
        let end = end.min(*filled + BODY_ROOM_BYTES);
        Some(&mut Word::words_to_bytes_mut(words)[*filled..end])
    }

    /// Memory of the unfinished message in bytes: touched, and reserved.
    #[cfg(test)]
    pub(super) fn body_memory(&self) -> (usize, usize) {
        match &self.partial {
            Partial::Body { words, .. } => {
                (words.len() * WORD_BYTES, words.capacity() * WORD_BYTES)
            }
            _ => (0, 0),
        }
    }

    /// `bytes` were read into [`Self::body_room`].
    pub(super) fn body_arrived(&mut self, bytes: usize, complete: &mut VecDeque<Segments>) {
        let Partial::Body { filled, .. } = &mut self.partial else {
            unreachable!("body_room gave room in this body");
        };
        *filled += bytes;
        self.complete_body(complete);
    }
}

/// Grows `words` so that `more` bytes fit behind `filled`, within the announced size.
fn make_room(words: &mut Vec<Word>, filled: usize, more: usize, body_words: usize) {
    let needed = (filled + more).div_ceil(WORD_BYTES);
    if needed <= words.len() {
        return;
    }
    let grown = (words.len() + BODY_ROOM_BYTES / WORD_BYTES)
        .max(needed)
        .min(body_words);
    if grown > words.capacity() {
        let reserved = match words.capacity() {
            0 => grown.max(BODY_RESERVED_FIRST_BYTES / WORD_BYTES),
            _ => body_words,
        };
        let reserved = reserved.min(body_words);
        words.reserve_exact(reserved - words.len());
    }
    words.resize(grown, WORD_ZERO);
}

//! Messages are cut from a stream without loss, and nothing is allocated on a header's word.

use std::collections::VecDeque;

use capnp::message::{Builder, HeapAllocator, ReaderSegments};
use proptest::prelude::*;

use crate::wire::frame::{Assembler, Segments};

/// A message on the wire whose root is `value`.
pub(super) fn encoded(value: &[u8], first_segment_words: u32) -> Vec<u8> {
    let mut message = Builder::new(HeapAllocator::new().first_segment_words(first_segment_words));
    message.set_root::<capnp::data::Owned>(value).unwrap();
    let mut bytes = Vec::new();
    capnp::serialize::write_message(&mut bytes, &message).unwrap();
    bytes
}

fn flatten(segments: &Segments) -> Vec<Vec<u8>> {
    (0..segments.len())
        .map(|id| segments.get_segment(id as u32).unwrap().to_vec())
        .collect()
}

#[test]
fn a_stream_may_be_cut_anywhere() {
    // One, two and three segments, with and without padding of the table.
    let mut three_segments = 2_u32.to_le_bytes().to_vec();
    for words in [1_u32, 0, 2] {
        three_segments.extend_from_slice(&words.to_le_bytes());
    }
    three_segments.extend_from_slice(&[7; 24]);
    let parts = [
        encoded(b"first", 16),
        encoded(&[3; 100], 2),
        three_segments,
        encoded(b"", 1),
    ];
    let stream = parts.concat();
    let mut whole = VecDeque::new();
    Assembler::new(1 << 20).feed(&stream, &mut whole).unwrap();
    let whole: Vec<_> = whole.iter().map(flatten).collect();
    assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 3, 1]);
    for cut in 0..=stream.len() {
        let mut assembler = Assembler::new(1 << 20);
        let mut got = VecDeque::new();
        assembler.feed(&stream[..cut], &mut got).unwrap();
        let at_border = [0, 1, 2, 3, 4]
            .iter()
            .any(|&n| parts[..n].concat().len() == cut);
        assert_eq!(assembler.has_partial(), !at_border, "cut at {cut}");
        assembler.feed(&stream[cut..], &mut got).unwrap();
        assert!(!assembler.has_partial());
        assert_eq!(
            got.iter().map(flatten).collect::<Vec<_>>(),
            whole,
            "cut at {cut}"
        );
    }
    let mut byte_by_byte = VecDeque::new();
    let mut assembler = Assembler::new(1 << 20);
    for byte in &stream {
        assembler
            .feed(std::slice::from_ref(byte), &mut byte_by_byte)
            .unwrap();
    }
    assert_eq!(byte_by_byte.iter().map(flatten).collect::<Vec<_>>(), whole);
}

proptest! {
    #[test]
    fn any_messages_in_any_pieces_arrive(
        messages in prop::collection::vec((0_usize..200_000, 0_u32..64), 1..6),
        pieces in prop::collection::vec(1_usize..150_000, 1..20),
    ) {
        let values: Vec<Vec<u8>> = messages.iter().map(|(len, _)| vec![*len as u8; *len]).collect();
        let stream: Vec<u8> =
            values.iter().zip(&messages).flat_map(|(value, (_, words))| encoded(value, *words)).collect();
        let mut assembler = Assembler::new(1 << 20);
        let mut got = VecDeque::new();
        let mut at = 0;
        for piece in pieces.iter().cycle() {
            if at == stream.len() {
                break;
            }
            // As the receiver does: a large body in place, everything else through a buffer.
            let count = if let Some(room) = assembler.body_room() {
                let count = (*piece).min(room.len());
                room[..count].copy_from_slice(&stream[at..at + count]);
                assembler.body_arrived(count, &mut got);
                count
            } else {
                let count = (*piece).min(stream.len() - at);
                assembler.feed(&stream[at..at + count], &mut got).unwrap();
                count
            };
            at += count;
        }
        prop_assert_eq!(got.len(), values.len());
        for (segments, value) in got.into_iter().zip(&values) {
            let message = capnp::message::Reader::new(segments, capnp::message::ReaderOptions::new());
            prop_assert_eq!(message.get_root::<capnp::data::Reader<'_>>().unwrap(), &value[..]);
        }
    }

    #[test]
    fn garbage_is_refused_or_waited_for(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let mut assembler = Assembler::new(1 << 16);
        let mut got = VecDeque::new();
        // Whatever it says: it must return, and hold no more than what arrived.
        if assembler.feed(&bytes, &mut got).is_ok() {
            let held: usize = got.iter().map(Segments::bytes).sum();
            prop_assert!(held <= bytes.len());
        }
    }
}

#[test]
fn headers_over_the_bounds_are_refused_before_their_message() {
    let refused = |bytes: &[u8]| {
        let mut got = VecDeque::new();
        let error = Assembler::new(1 << 20).feed(bytes, &mut got).unwrap_err();
        assert!(got.is_empty());
        error.extra
    };
    // 512 segments are allowed, 513 are not; four bytes tell.
    assert!(refused(&512_u32.to_le_bytes()).contains("513 segments is over the limit of 512"));
    assert!(refused(&u32::MAX.to_le_bytes()).contains("4294967296 segments"));
    assert!(refused(b"GET / HTTP/1.1\r\n").contains("is the peer speaking Cap'n Proto?"));
    assert!(
        Assembler::new(1 << 20)
            .feed(&511_u32.to_le_bytes(), &mut VecDeque::new())
            .is_ok()
    );
    // The bound counts the segment table: 2^17 words would be 1 MiB and eight bytes.
    let announce = |words: u32| [0_u32.to_le_bytes(), words.to_le_bytes()].concat();
    assert!(
        refused(&announce(1 << 17))
            .contains("1048584 bytes or more is over the limit of 1048576 bytes")
    );
    assert!(refused(&announce(u32::MAX)).contains("34359738368 bytes"));
    assert!(
        Assembler::new(1 << 20)
            .feed(&announce((1 << 17) - 1), &mut VecDeque::new())
            .is_ok()
    );
    // The sum over segments counts, not each of them.
    let two = [1_u32, 1 << 16, 1 << 16, 0].map(u32::to_le_bytes).concat();
    assert!(refused(&two).contains("is over the limit of 1048576 bytes"));
}

#[test]
fn memory_follows_the_bytes_that_arrive() {
    let mut assembler = Assembler::new(64 << 20);
    let mut got = VecDeque::new();
    let words = (40_u32 << 20) / 8;
    assembler
        .feed(
            &[0_u32.to_le_bytes(), words.to_le_bytes()].concat(),
            &mut got,
        )
        .unwrap();
    assert_eq!(assembler.body_memory(), (0, 0));
    assembler.feed(&[0; 1000], &mut got).unwrap();
    assert_eq!(assembler.body_memory(), (256 << 10, 1 << 20));
    let mut arrived = 1000;
    while let Some(room) = assembler.body_room() {
        assert!(room.len() <= 256 << 10);
        // A slow sender: less than there is room for.
        let count = room.len().min(100_000);
        assembler.body_arrived(count, &mut got);
        arrived += count;
        let (touched, reserved) = assembler.body_memory();
        assert!(touched <= arrived + (256 << 10));
        let all = if arrived > 1 << 20 { 40 << 20 } else { 1 << 20 };
        assert!(reserved <= all, "{reserved} bytes for {arrived}");
    }
    assembler
        .feed(&vec![0; (40 << 20) - arrived], &mut got)
        .unwrap();
    assert_eq!(got[0].bytes(), 40 << 20);
}

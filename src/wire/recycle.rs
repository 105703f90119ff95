//! Buffers that the connections of one thread share, so that an idle connection holds none.
//!
//! Reading borrows one buffer for the length of a poll; writing takes a buffer when there is something to send and gives
//! it back when it is written. Ten thousand quiet connections then cost no buffer memory at all. A large message is collected
//! in memory that an earlier one has left, which is not zeroed, not moved and not asked of the kernel once more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use capnp::Word;

/// Bytes that one read may take.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// Write buffers kept for reuse on one thread.
const WRITE_BUFFERS_KEPT_MAX: usize = 32;

/// A write buffer that has grown beyond this is given back to the allocator.
const WRITE_BUFFER_KEPT_BYTES_MAX: usize = 256 << 10;

/// Smallest memory of a received message that is kept for reuse: for less the allocator does as well.
const BODY_KEPT_BYTES_MIN: usize = 256 << 10;

/// Memory of received messages that is kept for reuse on one thread, together: a few messages of 4 MiB, or one of 16 MiB.
const BODIES_KEPT_BYTES_MAX: usize = 20 << 20;

thread_local! {
    static READ_BUFFER: Cell<Vec<Word>> = const { Cell::new(Vec::new()) };
    static WRITE_BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static BODIES: RefCell<VecDeque<Vec<Word>>> = const { RefCell::new(VecDeque::new()) };
}

/// Memory for a message of so many words: as long, with whatever an earlier message has left in it, or empty.
pub(super) fn take_body(words: usize) -> Vec<Word> {
    if words * size_of::<Word>() < BODY_KEPT_BYTES_MIN {
        return Vec::new();
    }
    BODIES.with_borrow_mut(|kept| {
        let fitting = kept
            .iter()
            .enumerate()
            .filter(|(_, body)| body.len() >= words);
        let smallest = fitting.min_by_key(|(_, body)| body.len());
        let at = smallest.map(|(at, _)| at);
        at.and_then(|at| kept.remove(at)).unwrap_or_default()
    })
}

/// Takes back the memory of a message that nobody reads any more. What was kept longest makes room for it.
pub(super) fn give_body(body: Vec<Word>) {
    let bytes_of = |body: &Vec<Word>| body.capacity() * size_of::<Word>();
    if !(BODY_KEPT_BYTES_MIN..=BODIES_KEPT_BYTES_MAX).contains(&bytes_of(&body)) {
        return;
    }
    let given = BODIES.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        kept.push_back(body);
        while kept.iter().map(bytes_of).sum::<usize>() > BODIES_KEPT_BYTES_MAX {
            kept.pop_front();
        }
    });
    // A message may outlive the buffers of a thread that ends: then its memory is freed.
    given.unwrap_or_default();
}

/// Lends the thread's read buffer to `read`. What it holds on entry has no meaning; it starts at the boundary of a word, so
/// that messages can be read where they are.
pub(super) fn with_read_buffer<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    // Taken out for the time of use: a stream that is itself built on a connection gets a buffer of its own.
    let mut buffer = READ_BUFFER.take();
    if buffer.is_empty() {
        buffer = Word::allocate_zeroed_vec(READ_BUFFER_BYTES / size_of::<Word>());
    }
    let result = read(Word::words_to_bytes_mut(&mut buffer));
    READ_BUFFER.set(buffer);
    result
}

/// An empty buffer for bytes to be written.
pub(super) fn take_write_buffer() -> Vec<u8> {
    WRITE_BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Takes back a buffer whose bytes are written.
pub(super) fn give_write_buffer(mut buffer: Vec<u8>) {
    if buffer.capacity() > WRITE_BUFFER_KEPT_BYTES_MAX {
        return;
    }
    buffer.clear();
    WRITE_BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < WRITE_BUFFERS_KEPT_MAX {
            kept.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: usize) -> Vec<Word> {
        Word::allocate_zeroed_vec(bytes / size_of::<Word>())
    }

    fn kept() -> Vec<usize> {
        BODIES.with_borrow(|kept| kept.iter().map(|body| body.len() * 8).collect())
    }

    #[test]
    fn memory_of_large_messages_is_kept_within_its_bound() {
        give_body(body(BODY_KEPT_BYTES_MIN - 8));
        give_body(body(BODIES_KEPT_BYTES_MAX + 8));
        assert!(kept().is_empty(), "too small, and too large");
        for mib in [1, 4, 2, 9] {
            give_body(body(mib << 20));
        }
        assert_eq!(take_body(10 << 17).len(), 0, "none is large enough");
        assert_eq!(take_body(16).len(), 0, "a small message needs none");
        assert_eq!(
            take_body((1 << 17) + 1).len(),
            2 << 17,
            "the smallest that fits"
        );
        assert_eq!(kept(), [1 << 20, 4 << 20, 9 << 20]);
        give_body(body(10 << 20));
        assert_eq!(kept(), [9 << 20, 10 << 20], "the oldest make room");
        give_body(body(BODIES_KEPT_BYTES_MAX));
        assert_eq!(kept(), [BODIES_KEPT_BYTES_MAX]);
    }
}

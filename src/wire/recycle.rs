//! Buffers that the connections of one thread share, so that an idle connection holds none.
//!
//! Reading borrows one buffer for the length of a poll; writing takes a buffer when there is something to send and gives
//! it back when it is written. Ten thousand quiet connections then cost no buffer memory at all.

use std::cell::{Cell, RefCell};

use capnp::Word;

/// Bytes that one read may take.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// Write buffers kept for reuse on one thread.
const WRITE_BUFFERS_KEPT_MAX: usize = 32;

/// A write buffer that has grown beyond this is given back to the allocator.
const WRITE_BUFFER_KEPT_BYTES_MAX: usize = 256 << 10;

thread_local! {
    static READ_BUFFER: Cell<Vec<Word>> = const { Cell::new(Vec::new()) };
    static WRITE_BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
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

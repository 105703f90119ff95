//! The segments of a message that somebody else keeps, for readers that want to own what they read.

use capnp::message::ReaderSegments;

/// Segments by reference, behind the pointer of which nothing more is known.
#[derive(Clone, Copy)]
pub(super) struct Borrowed<'a>(pub(super) &'a dyn ReaderSegments);

impl ReaderSegments for Borrowed<'_> {
    fn get_segment(&self, id: u32) -> Option<&[u8]> {
        self.0.get_segment(id)
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

//! The plain content of a simulated directory: what the damage tests take, spoil and give back.
//!
//! Every mutation names a file that must exist and a place inside it: a test that damages nothing is a defect, so a
//! miss panics. Knows nothing of what the bytes mean.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::storage::disk::BLOCK;

/// Files by name. Clones share the bytes until one of them is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    files: BTreeMap<String, Rc<Vec<u8>>>,
}

impl Image {
    /// The image of these files.
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        let shared = |(name, bytes)| (name, Rc::new(bytes));
        Self::of_shared(files.into_iter().map(shared).collect())
    }

    pub(super) fn of_shared(files: BTreeMap<String, Rc<Vec<u8>>>) -> Self {
        Self { files }
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The bytes of a file.
    pub fn file(&self, name: &str) -> &[u8] {
        self.files
            .get(name)
            .unwrap_or_else(|| panic!("the image has no file {name}"))
    }

    pub(super) fn shared(&self, name: &str) -> Rc<Vec<u8>> {
        Rc::clone(&self.files[name])
    }

    /// The bytes of a file, to be spoilt.
    pub fn file_mut(&mut self, name: &str) -> &mut Vec<u8> {
        let bytes = self
            .files
            .get_mut(name)
            .unwrap_or_else(|| panic!("the image has no file {name}"));
        Rc::make_mut(bytes)
    }

    /// Adds a file or replaces it.
    pub fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(name.to_owned(), Rc::new(bytes));
    }

    /// Takes a file away.
    pub fn remove(&mut self, name: &str) -> Vec<u8> {
        let bytes = self
            .files
            .remove(name)
            .unwrap_or_else(|| panic!("the image has no file {name}"));
        Rc::unwrap_or_clone(bytes)
    }

    /// Turns one bit over.
    pub fn flip_bit(&mut self, name: &str, byte: usize, bit: u32) {
        self.file_mut(name)[byte] ^= 1 << bit;
    }

    /// The bytes of block `index` of a file.
    pub fn block(&self, name: &str, index: usize) -> &[u8] {
        &self.file(name)[index * BLOCK..(index + 1) * BLOCK]
    }

    /// Overwrites block `index` of a file.
    pub fn set_block(&mut self, name: &str, index: usize, bytes: &[u8]) {
        self.file_mut(name)[index * BLOCK..(index + 1) * BLOCK].copy_from_slice(bytes);
    }

    /// Exchanges two blocks, of one file or of two.
    pub fn swap_blocks(&mut self, left: (&str, usize), right: (&str, usize)) {
        let kept = self.block(left.0, left.1).to_vec();
        let moved = self.block(right.0, right.1).to_vec();
        self.set_block(left.0, left.1, &moved);
        self.set_block(right.0, right.1, &kept);
    }
}

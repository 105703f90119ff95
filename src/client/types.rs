//! What goes into operations and comes out of them, as plain Rust. The meaning of every field is in
//! `schema/orlop.capnp`; `convert.rs` translates.

/// The newest durable value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value.
    pub value: Vec<u8>,
    /// Its version: greater than every earlier version of the key.
    pub version: u64,
}

/// When a write takes effect, judged against the newest version of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    #[default]
    None,
    /// If the key is absent.
    IfAbsent,
    /// If the key is present, with any version.
    IfPresent,
    /// If the key is present with exactly this version.
    IfVersion(u64),
}

/// What became of a write. Either way it is durable when it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write took effect.
    Written {
        /// The version of what was written; 0 when a delete found nothing to delete.
        version: u64,
        /// Whether the key was present just before.
        existed: bool,
    },
    /// The condition did not hold.
    Refused {
        /// The version that stands in the way; `None`: the key is absent.
        current: Option<u64>,
    },
}

/// What a [`Mutation`] does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Gives the key this value.
    Set(&'a [u8]),
    /// Removes the key.
    Delete,
}

/// One of many writes in a [`Client::write`](super::Client::write).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutation<'a> {
    /// 1 to 65,535 bytes.
    pub key: &'a [u8],
    /// What happens to it.
    pub change: Change<'a>,
    /// When it happens.
    pub condition: Condition,
}

/// What a [`Client::get_prefix`](super::Client::get_prefix) asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixQuery<'a> {
    /// The start of the keys that are wanted; empty: all keys.
    pub prefix: &'a [u8],
    /// Only keys greater than this; empty: from the first.
    pub after: &'a [u8],
    /// Most entries in the page, 1 to 100,000.
    pub max_entries: u32,
    /// Most bytes of keys and values in the page, 1 to 16,777,216; a single entry may be larger.
    pub max_bytes: u32,
    /// Leaves the values empty.
    pub keys_only: bool,
}

impl<'a> PrefixQuery<'a> {
    /// The first page of `prefix`, of at most 1,000 entries and 1 MiB.
    pub fn new(prefix: &'a [u8]) -> Self {
        Self {
            prefix,
            after: &[],
            max_entries: 1_000,
            max_bytes: 1 << 20,
            keys_only: false,
        }
    }
}

/// A key with its value and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Vec<u8>,
    /// The value; empty if only keys were asked for.
    pub value: Vec<u8>,
    /// The version of the value.
    pub version: u64,
}

/// Some entries in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Whether there are more: ask again with `after` set to the last key.
    pub more: bool,
}

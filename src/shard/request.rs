//! What crosses from one shard's thread to another's: requests, their replies, in batches. Everything is owned and
//! `Send`.

use crate::shard::backup::{BackupAnswer, BackupAsk};
use crate::shard::error::ShardError;
use crate::shard::room::Lent;
use crate::shard::stat::ShardStat;
use crate::storage::{Change, Condition, Mutation, News, Outcome, PageEntry, PrefixQuery};

/// A mutation that owns its bytes.
pub(super) struct OwnedMutation {
    key: Box<[u8]>,
    set: Option<Box<[u8]>>,
    condition: Condition,
}

impl OwnedMutation {
    pub(super) fn new(mutation: &Mutation<'_>) -> OwnedMutation {
        let set = match mutation.change {
            Change::Set(value) => Some(value.into()),
            Change::Delete => None,
        };
        OwnedMutation {
            key: mutation.key.into(),
            set,
            condition: mutation.condition,
        }
    }

    pub(super) fn borrow(&self) -> Mutation<'_> {
        let change = self.set.as_deref().map_or(Change::Delete, Change::Set);
        Mutation {
            key: &self.key,
            change,
            condition: self.condition,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.set.as_ref().map_or(0, |value| value.len())
    }
}

/// A prefix query that owns its bytes.
#[derive(Clone)]
pub(super) struct OwnedQuery {
    prefix: Box<[u8]>,
    after: Box<[u8]>,
    max_entries: usize,
    max_bytes: usize,
    keys_only: bool,
}

impl OwnedQuery {
    pub(super) fn new(query: &PrefixQuery<'_>) -> OwnedQuery {
        OwnedQuery {
            prefix: query.prefix.into(),
            after: query.after.into(),
            max_entries: query.max_entries,
            max_bytes: query.max_bytes,
            keys_only: query.keys_only,
        }
    }

    pub(super) fn borrow(&self) -> PrefixQuery<'_> {
        PrefixQuery {
            prefix: &self.prefix,
            after: &self.after,
            max_entries: self.max_entries,
            max_bytes: self.max_bytes,
            keys_only: self.keys_only,
        }
    }
}

/// What one shard asks of another, for keys that the other owns.
pub(super) enum Request {
    Get(Vec<Box<[u8]>>),
    Write(Vec<OwnedMutation>),
    Page(OwnedQuery),
    Stat,
    /// What the receiver has to know of segments of other logs.
    News(News),
    /// A step of the backup with this number, which is counted by the shard that asks.
    Backup {
        backup: u32,
        ask: BackupAsk,
    },
}

impl Request {
    /// Bytes of keys and values in it, for the budget of the sender.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Request::Get(keys) => keys.iter().map(|key| key.len()).sum(),
            Request::Write(mutations) => mutations.iter().map(OwnedMutation::bytes).sum(),
            Request::Page(query) => query.prefix.len() + query.after.len(),
            Request::Stat | Request::News(_) | Request::Backup { .. } => 0,
        }
    }

    /// Keys that it reads or writes for a client.
    pub(super) fn keys(&self) -> u64 {
        match self {
            Request::Get(keys) => keys.len() as u64,
            Request::Write(mutations) => mutations.len() as u64,
            Request::Page(_) | Request::Stat | Request::News(_) | Request::Backup { .. } => 0,
        }
    }
}

/// A value and its version, by value.
pub(super) type OwnedFound = (Vec<u8>, u64);

/// A present key on its way to another shard.
pub(super) struct OwnedEntry {
    pub(super) key: Box<[u8]>,
    pub(super) value: Vec<u8>,
    pub(super) version: u64,
}

impl From<PageEntry> for OwnedEntry {
    fn from(entry: PageEntry) -> OwnedEntry {
        OwnedEntry {
            key: entry.key,
            value: entry.value.map_or_else(Vec::new, |value| value.to_vec()),
            version: entry.version,
        }
    }
}

/// Keys in order on their way to another shard.
pub(super) struct OwnedPage {
    pub(super) entries: Vec<OwnedEntry>,
    pub(super) more: bool,
    pub(super) room: Lent,
}

/// The answer to a [`Request`].
pub(super) enum Reply {
    Get(Result<(Vec<Option<OwnedFound>>, Option<Lent>), ShardError>),
    Write(Vec<Result<Outcome, ShardError>>),
    Page(Result<OwnedPage, ShardError>),
    Stat(Box<ShardStat>),
    News,
    Backup(Result<BackupAnswer, ShardError>),
}

/// What travels; `id` pairs a reply with its request.
pub(super) enum Message {
    Request { id: u32, request: Request },
    Reply { id: u32, reply: Reply },
}

//! The thread that writes: all writes that are ready become one transaction of the engine, then all are answered.
//!
//! Guarantees: writes take effect in the order in which they were handed over, and their outcomes come back in that order,
//! after the commit. A failed commit ends the thread: nothing after it is answered. Does not: read for clients.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::engine::{Engine, EngineError, Rows, VERSION_BYTES};

/// Mutations of one transaction, unless one call has more.
const GROUP_MUTATIONS_MAX: usize = 10_000;

/// Bytes of keys and values of one transaction, unless one call has more.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// Versions that are promised not to be given again with one write of the head: those that a kill leaves unused are lost.
const VERSIONS_RESERVED: u64 = 1 << 20;

const UUID_BYTES: usize = 16;

/// A write as it goes to the engine.
pub(super) struct Mutation {
    pub(super) key: Vec<u8>,
    pub(super) change: Change,
    pub(super) condition: Condition,
}

pub(super) enum Change {
    /// What to store, with room for the version.
    Set(Vec<u8>),
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    None,
    IfAbsent,
    IfPresent,
    IfVersion(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The version is 0 when a delete found nothing.
    Written {
        version: u64,
        existed: bool,
    },
    Refused {
        current: Option<u64>,
    },
}

/// The writes of one call.
pub(super) type Writes = Vec<Mutation>;

/// The outcomes of the calls of one commit, in order.
pub(super) type Committed = Vec<Vec<Outcome>>;

/// The running thread.
pub(super) struct Committer {
    pub(super) writes: mpsc::Sender<Writes>,
    pub(super) committed: UnboundedReceiver<Committed>,
    pub(super) thread: JoinHandle<Result<(), EngineError>>,
    /// Identity of the store.
    pub(super) uuid: [u8; UUID_BYTES],
}

/// Starts the thread. It ends when every sender of writes is gone and all that was sent is committed.
pub(super) fn start(engine: Arc<dyn Engine>) -> Result<Committer, String> {
    let mut head = Head::read(engine.as_ref()).map_err(|error| error.to_string())?;
    let uuid = head.uuid;
    let (writes, waiting) = mpsc::channel();
    let (done, committed) = unbounded_channel();
    let thread = std::thread::Builder::new()
        .name("committer".to_owned())
        .spawn(move || commit_all(engine.as_ref(), &mut head, &waiting, &done))
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    Ok(Committer {
        writes,
        committed,
        thread,
        uuid,
    })
}

fn commit_all(
    engine: &dyn Engine,
    head: &mut Head,
    waiting: &mpsc::Receiver<Writes>,
    done: &UnboundedSender<Committed>,
) -> Result<(), EngineError> {
    while let Ok(first) = waiting.recv() {
        let group = gather(first, waiting);
        head.reserve(engine, group.iter().map(Vec::len).sum())?;
        let committed = commit(engine, head, group)?;
        if done.send(committed).is_err() {
            break;
        }
    }
    Ok(())
}

/// The calls of one transaction: what is ready, within the bounds.
fn gather(first: Writes, waiting: &mpsc::Receiver<Writes>) -> Vec<Writes> {
    let bytes_of = |writes: &Writes| writes.iter().map(Mutation::bytes).sum::<usize>();
    let mut bytes = bytes_of(&first);
    let mut mutations = first.len();
    let mut group = vec![first];
    while bytes < GROUP_BYTES_MAX && mutations < GROUP_MUTATIONS_MAX {
        let Ok(next) = waiting.try_recv() else { break };
        bytes += bytes_of(&next);
        mutations += next.len();
        group.push(next);
    }
    group
}

fn commit(
    engine: &dyn Engine,
    head: &mut Head,
    group: Vec<Writes>,
) -> Result<Committed, EngineError> {
    let mut committed = Vec::with_capacity(group.len());
    engine.commit(Box::new(|rows| {
        let mut changed = false;
        for writes in group {
            let mut outcomes = Vec::with_capacity(writes.len());
            for mutation in writes {
                let outcome = apply(rows, mutation, head)?;
                changed |= outcome.changed();
                outcomes.push(outcome);
            }
            committed.push(outcomes);
        }
        Ok(changed)
    }))?;
    Ok(committed)
}

fn apply(rows: &mut dyn Rows, mutation: Mutation, head: &mut Head) -> Result<Outcome, EngineError> {
    let Mutation {
        key,
        change,
        condition,
    } = mutation;
    if condition != Condition::None {
        let current = rows.version(&key)?;
        if !condition.holds(current) {
            return Ok(Outcome::Refused { current });
        }
    }
    match change {
        Change::Set(mut stored) => {
            let version = head.next_version();
            stored[..VERSION_BYTES].copy_from_slice(&version.to_le_bytes());
            let existed = rows.put(&key, stored)?;
            Ok(Outcome::Written { version, existed })
        }
        Change::Delete => {
            let existed = rows.remove(&key)?;
            let version = if existed { head.next_version() } else { 0 };
            Ok(Outcome::Written { version, existed })
        }
    }
}

impl Mutation {
    fn bytes(&self) -> usize {
        let value = match &self.change {
            Change::Set(stored) => stored.len(),
            Change::Delete => 0,
        };
        self.key.len() + value
    }
}

impl Condition {
    fn holds(self, current: Option<u64>) -> bool {
        match self {
            Condition::None => true,
            Condition::IfAbsent => current.is_none(),
            Condition::IfPresent => current.is_some(),
            Condition::IfVersion(version) => current == Some(version),
        }
    }
}

impl Outcome {
    fn changed(self) -> bool {
        match self {
            Outcome::Written { version, .. } => version != 0,
            Outcome::Refused { .. } => false,
        }
    }
}

/// The engine's head: who the store is, and below which version everything may have been given.
struct Head {
    uuid: [u8; UUID_BYTES],
    next: u64,
    reserved: u64,
}

impl Head {
    /// The head of the store; made when there is none.
    fn read(engine: &dyn Engine) -> Result<Head, EngineError> {
        let found = engine.head()?;
        let parts = found.as_deref().and_then(|bytes| {
            let (uuid, rest) = bytes.split_first_chunk()?;
            Some((*uuid, u64::from_le_bytes(rest.try_into().ok()?)))
        });
        let (uuid, reserved) = match parts {
            Some(parts) => parts,
            None => (random_uuid()?, 1),
        };
        let mut head = Head {
            uuid,
            next: reserved,
            reserved,
        };
        head.reserve(engine, 1)?;
        Ok(head)
    }

    /// Makes sure that so many versions can be given which no later start gives again.
    fn reserve(&mut self, engine: &dyn Engine, count: usize) -> Result<(), EngineError> {
        let wanted = self.next + count as u64;
        if wanted > self.reserved {
            self.reserved = wanted + VERSIONS_RESERVED;
            let bytes = [&self.uuid[..], &self.reserved.to_le_bytes()].concat();
            engine.set_head(&bytes)?;
        }
        Ok(())
    }

    fn next_version(&mut self) -> u64 {
        assert!(self.next < self.reserved, "versions are reserved before");
        self.next += 1;
        self.next - 1
    }
}

fn random_uuid() -> Result<[u8; UUID_BYTES], EngineError> {
    let mut uuid = [0; UUID_BYTES];
    let source = std::fs::File::open(Path::new("/dev/urandom"));
    source
        .and_then(|mut source| std::io::Read::read_exact(&mut source, &mut uuid))
        .map_err(EngineError::new("read random bytes"))?;
    Ok(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(count: usize, value_len: usize) -> Writes {
        let write = || Mutation {
            key: vec![1],
            change: Change::Set(vec![0; value_len]),
            condition: Condition::None,
        };
        (0..count).map(|_| write()).collect()
    }

    fn gathered(first: Writes, others: Vec<Writes>) -> usize {
        let (sender, waiting) = mpsc::channel();
        for call in others {
            sender.send(call).expect("the receiver is there");
        }
        gather(first, &waiting).len()
    }

    #[test]
    fn a_group_is_what_is_ready_up_to_its_bounds() {
        assert_eq!(gathered(writes(1, 0), Vec::new()), 1);
        assert_eq!(gathered(writes(1, 0), vec![writes(3, 9), writes(2, 9)]), 3);
        let most = GROUP_MUTATIONS_MAX;
        let full = vec![writes(most - 2, 0), writes(1, 0), writes(1, 0)];
        assert_eq!(gathered(writes(1, 0), full), 3, "{most} mutations");
        let large = vec![writes(1, GROUP_BYTES_MAX), writes(1, 0)];
        assert_eq!(gathered(writes(1, 0), large), 2, "over the bytes");
        // A single call is never cut.
        assert_eq!(gathered(writes(2 * most, 0), vec![writes(1, 0)]), 1);
    }

    #[test]
    fn conditions_are_judged_by_the_current_version() {
        let cases = [
            (Condition::None, [true, true, true]),
            (Condition::IfAbsent, [true, false, false]),
            (Condition::IfPresent, [false, true, true]),
            (Condition::IfVersion(7), [false, true, false]),
        ];
        for (condition, expected) in cases {
            let holds = [None, Some(7), Some(8)].map(|current| condition.holds(current));
            assert_eq!(holds, expected, "{condition:?}");
        }
    }
}

//! The store that all connections share: reads from a snapshot of the engine on this thread, writes through the committer.
//!
//! Guarantees: a write that was submitted is answered when its commit is done, in the order of submission; a read that
//! begins after the answer to a write shows it. The snapshot is kept between two commits, as an embedder would do: to
//! begin one for each read would measure that.

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use orlop::proto::ErrorWord;

use super::committer::{Change, Committed, Outcome, Writes};
use super::engine::{Engine, EngineError, EngineName, Snapshot, split};

/// Is called with the outcomes of a call's writes.
type Answer = Box<dyn FnOnce(&[Outcome])>;

/// One page of rows in order.
pub(super) struct Page {
    pub(super) rows: Vec<Row>,
    pub(super) more: bool,
}

pub(super) struct Row {
    pub(super) key: Vec<u8>,
    /// Empty when only keys were asked for.
    pub(super) value: Vec<u8>,
    pub(super) version: u64,
}

/// What a page is to hold.
pub(super) struct PageQuery<'a> {
    pub(super) prefix: &'a [u8],
    pub(super) after: &'a [u8],
    pub(super) entries_max: usize,
    pub(super) bytes_max: usize,
    pub(super) keys_only: bool,
}

/// Operations since the start, by keys.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) sets: Cell<u64>,
    pub(super) gets: Cell<u64>,
    pub(super) deletes: Cell<u64>,
    pub(super) get_prefixes: Cell<u64>,
    pub(super) connections: Cell<u32>,
}

pub(super) struct Store {
    engine: Arc<dyn Engine>,
    snapshot: RefCell<Option<Box<dyn Snapshot>>>,
    writes: mpsc::Sender<Writes>,
    answers: RefCell<VecDeque<Answer>>,
    pub(super) counters: Counters,
    pub(super) name: EngineName,
    pub(super) uuid: [u8; 16],
    pub(super) port: u16,
    begun: Instant,
    begun_at_unix_ms: u64,
}

impl Store {
    pub(super) fn new(
        (name, engine): (EngineName, Arc<dyn Engine>),
        writes: mpsc::Sender<Writes>,
        uuid: [u8; 16],
        port: u16,
    ) -> Rc<Store> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Rc::new(Store {
            engine,
            snapshot: RefCell::default(),
            writes,
            answers: RefCell::default(),
            counters: Counters::default(),
            name,
            uuid,
            port,
            begun: Instant::now(),
            begun_at_unix_ms: since_1970.map_or(0, |time| time.as_millis() as u64),
        })
    }

    /// Committed rows, not older than the last answer to a write.
    pub(super) fn snapshot(&self) -> Result<Ref<'_, dyn Snapshot>, capnp::Error> {
        if self.snapshot.borrow().is_none() {
            let snapshot = self.engine.snapshot().map_err(refused)?;
            self.snapshot.replace(Some(snapshot));
        }
        Ok(Ref::map(self.snapshot.borrow(), |snapshot| {
            snapshot.as_deref().expect("it was taken above")
        }))
    }

    /// Hands the writes of one call to the committer; `answer` is called when they are committed.
    ///
    /// # Errors
    /// When the committer has ended, which ends the server.
    pub(super) fn submit(
        &self,
        writes: Writes,
        answer: impl FnOnce(&[Outcome]) + 'static,
    ) -> Result<(), capnp::Error> {
        for mutation in &writes {
            let counter = match mutation.change {
                Change::Set(_) => &self.counters.sets,
                Change::Delete => &self.counters.deletes,
            };
            counter.set(counter.get() + 1);
        }
        if self.writes.send(writes).is_err() {
            return Err(ErrorWord::ShuttingDown.error("the engine has failed: the server ends"));
        }
        self.answers.borrow_mut().push_back(Box::new(answer));
        Ok(())
    }

    /// Answers the calls of one commit.
    pub(super) fn answer(&self, committed: Committed) {
        self.snapshot.replace(None);
        for outcomes in committed {
            let answer = self.answers.borrow_mut().pop_front();
            answer.expect("every call in a commit was submitted")(&outcomes);
        }
    }

    /// Rows under a prefix, in order.
    pub(super) fn page(&self, query: &PageQuery<'_>) -> Result<Page, capnp::Error> {
        let counter = &self.counters.get_prefixes;
        counter.set(counter.get() + 1);
        let mut page = Page {
            rows: Vec::new(),
            more: false,
        };
        let mut bytes = 0;
        let mut each = |key: &[u8], stored: &[u8]| {
            if !key.starts_with(query.prefix) {
                return false;
            }
            let (version, value) = split(stored);
            let value = if query.keys_only { &[][..] } else { value };
            bytes += key.len() + value.len();
            let full = page.rows.len() == query.entries_max || bytes > query.bytes_max;
            if full && !page.rows.is_empty() {
                page.more = true;
                return false;
            }
            page.rows.push(Row {
                key: key.to_vec(),
                value: value.to_vec(),
                version,
            });
            true
        };
        self.snapshot()?
            .scan(query.from(), &mut each)
            .map_err(refused)?;
        Ok(page)
    }

    /// Milliseconds since the start, and the start since 1970.
    pub(super) fn times_ms(&self) -> (u64, u64) {
        (
            self.begun.elapsed().as_millis() as u64,
            self.begun_at_unix_ms,
        )
    }

    /// Counts reads of so many keys.
    pub(super) fn count_gets(&self, keys: usize) {
        let counter = &self.counters.gets;
        counter.set(counter.get() + keys as u64);
    }
}

impl PageQuery<'_> {
    fn from(&self) -> Bound<&[u8]> {
        if !self.after.is_empty() && self.after >= self.prefix {
            Bound::Excluded(self.after)
        } else if self.prefix.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Included(self.prefix)
        }
    }
}

/// What an engine could not read, as an exception.
pub(super) fn refused(error: EngineError) -> capnp::Error {
    ErrorWord::Corrupt.error(error)
}

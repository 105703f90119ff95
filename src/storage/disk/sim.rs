//! A directory in memory that behaves as badly as a real one may: seeded, deterministic, faulty. For tests only.
//!
//! Owns the durable content of the files, and every change that is not durable yet: writes to files from
//! [`Disk::create`] and truncations before [`DiskFile::sync`], names before [`Disk::sync_directory`], everything in
//! flight. An operation is in flight from the first poll of its future until [`SimDisk::step`] completes it, in any
//! order. [`SimDisk::crash`] answers what a power cut leaves at this moment: each change that is not durable is dropped,
//! kept or torn at [`SECTOR`]s, independently of the others. [`SimDisk::kill`] answers what the next process finds
//! after `kill -9`: everything that was issued is visible, but what was not durable can still be lost.
//! [`SimDisk::cuts`] answers everything that a power cut may leave.
//!
//! It is never more lenient than the contract of [`Disk`]: buffers come full of noise, alignment is asserted, a
//! failed sync loses what it should have kept even if a later one succeeds, a read of bytes in flight sees a mixture.
//! `storage/tests/sim_disk.rs` shows each of these.
//!
//! Does not: lie about durability, destroy neighbours of what is written, or simulate time. Called by the tests of
//! storage.

mod action;
mod cuts;
mod image;
mod inode;
mod rng;
mod world;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::storage::disk::{BLOCK, Disk, DiskBuffer, DiskFile};

use action::{Action, Answer};
pub use cuts::{Cut, Cuts};
pub use image::Image;
pub use rng::Rng;
use world::World;

/// The unit in which a write is torn: what a device writes whole or not at all.
pub const SECTOR: usize = 512;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(
    missing_docs,
    reason = "the names are those of the operations of Disk and DiskFile"
)]
pub enum Kind {
    Create,
    Open,
    List,
    Remove,
    SyncDirectory,
    Write,
    Read,
    Sync,
    Truncate,
    Close,
}

/// One operation, as fault plans, tests and the trace see it.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Place in the order of issue, from 0, over the life of the disk.
    pub number: u64,
    /// What it does.
    pub kind: Kind,
    /// The file it is about; empty for the directory.
    pub file: Rc<str>,
    /// First byte, for reads and writes; the new length, for a truncation.
    pub offset: u64,
    /// Bytes, for reads and writes.
    pub len: usize,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "#{} {:?} {} @{} +{}",
            self.number, self.kind, self.file, self.offset, self.len
        )
    }
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It returns this error (an `errno`); what reached the disk is unknown.
    Error(i32),
    /// A write that stops early and says so. For writes alone.
    ShortWrite,
}

/// What was asked of the disk so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each counts the operations of its name")]
pub struct Counters {
    pub operations: u64,
    pub creates: u64,
    pub removes: u64,
    pub writes: u64,
    pub bytes_written: u64,
    pub reads: u64,
    pub bytes_read: u64,
    pub syncs: u64,
    pub directory_syncs: u64,
    /// Writes whose future was dropped before they were complete: the contract forbids it.
    pub abandoned_writes: u64,
}

/// The simulated directory; clones are the same directory through the same descriptor.
#[derive(Clone)]
pub struct SimDisk {
    world: Rc<RefCell<World>>,
    /// Errors of directory syncs that its descriptor was told of.
    told: Rc<Cell<u64>>,
}

impl SimDisk {
    /// An empty directory whose every choice follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::of(World::new(Rng::new(seed)))
    }

    /// A directory with this content, all of it durable.
    pub fn with_image(seed: u64, image: &Image) -> Self {
        let mut world = World::new(Rng::new(seed));
        world.load(image);
        Self::of(world)
    }

    fn of(world: World) -> Self {
        Self {
            world: Rc::new(RefCell::new(world)),
            told: Rc::default(),
        }
    }

    /// Completes one operation in flight, chosen by chance. False when there is none.
    pub fn step(&self) -> bool {
        self.step_where(|_| true)
    }

    /// Completes one operation in flight among those that `chosen` accepts. False when there is none.
    pub fn step_where(&self, chosen: impl Fn(&Operation) -> bool) -> bool {
        let waker = {
            let mut world = self.world.borrow_mut();
            let candidates = world.in_flight_where(chosen);
            if candidates.is_empty() {
                return false;
            }
            let index = candidates[world.rng.index(candidates.len())];
            world.complete(index)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// The same directory through a descriptor of its own, as another shard has it: it is told of each error of a
    /// directory sync from now on, whoever met it.
    pub fn reopened(&self) -> Self {
        let told = self.world.borrow().directory_errors;
        Self {
            world: Rc::clone(&self.world),
            told: Rc::new(Cell::new(told)),
        }
    }

    /// The operations in flight, in the order of issue.
    pub fn in_flight(&self) -> Vec<Operation> {
        self.world.borrow().in_flight()
    }

    /// What a power cut at this moment leaves. The disk itself is unchanged: several cuts of one moment can be tried.
    pub fn crash(&self) -> Self {
        Self::of(self.world.borrow_mut().crash())
    }

    /// All that [`SimDisk::crash`] may answer with at this moment, and so without chance. Where they are more than
    /// `most`, writes are torn in fewer ways.
    pub fn cuts(&self, most: usize) -> Cuts {
        self.world.borrow().cuts(most)
    }

    /// What the next process finds when this one is killed at this moment.
    pub fn kill(&self) -> Self {
        Self::of(self.world.borrow_mut().kill())
    }

    /// From now on asks `plan` about each operation as it is issued. Replaces the previous plan; a crash forgets it.
    pub fn fail_when(&self, plan: impl FnMut(&Operation) -> Option<Fault> + 'static) {
        self.world.borrow_mut().plan = Some(Box::new(plan));
    }

    /// The `number`-th operation, by [`Operation::number`], fails.
    pub fn fail_nth(&self, number: u64, fault: Fault) {
        self.fail_when(move |operation| (operation.number == number).then_some(fault));
    }

    /// No operation fails any more.
    pub fn fail_no_more(&self) {
        self.world.borrow_mut().plan = None;
    }

    /// Bytes that all files together may hold; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world.borrow_mut().capacity = bytes;
    }

    /// What was asked so far.
    pub fn counters(&self) -> Counters {
        self.world.borrow().counters
    }

    /// The files as a process sees them now.
    pub fn image(&self) -> Image {
        self.world.borrow().image()
    }

    /// Damages a file behind everybody's back, at once and durably.
    pub fn damage(&self, name: &str, spoil: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.world.borrow_mut();
        let mut image = world.image();
        spoil(image.file_mut(name));
        world.overwrite(name, image.remove(name));
    }

    /// Adds a line to the trace, so that the story of a failure tells what the test did as well.
    pub fn note(&self, line: impl FnOnce() -> String) {
        self.world.borrow_mut().trace_note(line());
    }

    /// The last few thousand events, over crashes, one per line.
    pub fn trace(&self) -> String {
        self.world.borrow().trace()
    }

    async fn run(&self, action: Action) -> io::Result<Answer> {
        InFlight {
            world: Rc::clone(&self.world),
            state: State::Planned(action),
        }
        .await
    }

    fn file(&self, inode: u64, name: &str, durable_writes: bool) -> SimFile {
        SimFile {
            disk: self.clone(),
            inode,
            name: Rc::from(name),
            durable_writes,
            closed: false,
        }
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk")
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn create(&self, name: &str) -> io::Result<SimFile> {
        let inode = self
            .run(Action::Create { name: name.into() })
            .await?
            .into_inode();
        self.world.borrow_mut().opened(inode);
        Ok(self.file(inode, name, false))
    }

    async fn open(&self, name: &str) -> io::Result<SimFile> {
        let inode = self
            .run(Action::Open { name: name.into() })
            .await?
            .into_inode();
        self.world.borrow_mut().opened(inode);
        Ok(self.file(inode, name, true))
    }

    async fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.run(Action::List).await?.into_names())
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.run(Action::Remove { name: name.into() })
            .await
            .map(|_| ())
    }

    async fn sync_directory(&self) -> io::Result<()> {
        let told = Rc::clone(&self.told);
        self.run(Action::SyncDirectory { told }).await.map(|_| ())
    }

    fn buffer(&self, len: usize) -> SimBuffer {
        assert!(
            len > 0 && len.is_multiple_of(BLOCK),
            "a buffer of {len} bytes is not made of blocks"
        );
        SimBuffer::noise(&mut self.world.borrow_mut().rng, len)
    }
}

/// Memory aligned to [`BLOCK`], full of noise at first.
pub struct SimBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl SimBuffer {
    fn noise(rng: &mut Rng, len: usize) -> Self {
        let mut memory = vec![0; len + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        rng.fill(&mut memory[start..start + len]);
        Self { memory, start, len }
    }
}

impl AsRef<[u8]> for SimBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl AsMut<[u8]> for SimBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl DiskBuffer for SimBuffer {
    fn truncate(&mut self, len: usize) {
        assert!(
            len > 0 && len.is_multiple_of(BLOCK),
            "a buffer of {len} bytes is not made of blocks"
        );
        assert!(
            len <= self.len,
            "a buffer of {} bytes cannot be cut to {len}",
            self.len
        );
        self.len = len;
    }
}

/// An open file of a [`SimDisk`].
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
    name: Rc<str>,
    durable_writes: bool,
    closed: bool,
}

impl DiskFile for SimFile {
    type Buffer = SimBuffer;
    type Bytes = Vec<u8>;

    async fn write_at(&self, offset: u64, buffer: Rc<SimBuffer>) -> io::Result<usize> {
        assert_aligned(offset, buffer.len);
        let action = Action::Write {
            inode: self.inode,
            name: Rc::clone(&self.name),
            offset,
            buffer,
            durable: self.durable_writes,
        };
        Ok(self.disk.run(action).await?.into_written())
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        assert_aligned(offset, len);
        let action = Action::Read {
            inode: self.inode,
            name: Rc::clone(&self.name),
            offset,
            len,
        };
        Ok(self.disk.run(action).await?.into_bytes())
    }

    async fn sync(&self) -> io::Result<()> {
        let action = Action::Sync {
            inode: self.inode,
            name: Rc::clone(&self.name),
        };
        self.disk.run(action).await.map(|_| ())
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        assert!(
            len.is_multiple_of(BLOCK as u64),
            "a length of {len} bytes is not made of blocks"
        );
        let action = Action::Truncate {
            inode: self.inode,
            name: Rc::clone(&self.name),
            len,
        };
        self.disk.run(action).await.map(|_| ())
    }

    async fn close(mut self) -> io::Result<()> {
        self.closed = true;
        let action = Action::Close {
            inode: self.inode,
            name: Rc::clone(&self.name),
        };
        self.disk.run(action).await.map(|_| ())
    }
}

impl Drop for SimFile {
    /// The file stays open until a later step: dropping closes "at some later time".
    fn drop(&mut self) {
        // The world is borrowed here only while a panic inside it unwinds.
        if let (false, Ok(mut world)) = (self.closed, self.disk.world.try_borrow_mut()) {
            world.issue(Action::Close {
                inode: self.inode,
                name: Rc::clone(&self.name),
            });
        }
    }
}

fn assert_aligned(offset: u64, len: usize) {
    assert!(
        offset.is_multiple_of(BLOCK as u64),
        "offset {offset} is not at a block"
    );
    assert!(
        len > 0 && len.is_multiple_of(BLOCK),
        "a length of {len} bytes is not made of blocks"
    );
}

/// Where the answer of an operation in flight arrives.
#[derive(Default)]
struct Slot {
    answer: Option<io::Result<Answer>>,
    waker: Option<Waker>,
}

enum State {
    Planned(Action),
    Issued {
        slot: Rc<RefCell<Slot>>,
        is_write: bool,
    },
    Answered,
}

/// The future of one operation: issues it at the first poll, is ready once a step completed it.
struct InFlight {
    world: Rc<RefCell<World>>,
    state: State,
}

impl Future for InFlight {
    type Output = io::Result<Answer>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.state = match std::mem::replace(&mut this.state, State::Answered) {
            State::Planned(action) => {
                let is_write = matches!(action, Action::Write { .. });
                State::Issued {
                    slot: this.world.borrow_mut().issue(action),
                    is_write,
                }
            }
            issued @ State::Issued { .. } => issued,
            State::Answered => panic!("polled after its answer"),
        };
        let State::Issued { slot, .. } = &this.state else {
            unreachable!("set above")
        };
        let mut slot_now = slot.borrow_mut();
        if let Some(answer) = slot_now.answer.take() {
            drop(slot_now);
            this.state = State::Answered;
            return Poll::Ready(answer);
        }
        slot_now.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let (State::Issued { is_write: true, .. }, Ok(mut world)) =
            (&self.state, self.world.try_borrow_mut())
        {
            world.counters.abandoned_writes += 1;
        }
    }
}

//! The state behind a simulated directory: names, files, operations in flight, faults, trace, and what completing an
//! operation does. What a power cut or a kill leaves is in `aftermath`.
//!
//! Called by the parent module, which turns it into futures.

mod aftermath;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::task::Waker;

use super::action::{Action, Answer};
use super::inode::{Change, Fate, Inode, torn};
use super::{Counters, Fault, Image, Kind, Operation, Rng, SECTOR, Slot};
use crate::storage::disk::BLOCK;

/// Events that the trace remembers.
const TRACE_LINES_MAX: usize = 4_096;

struct Pending {
    operation: Operation,
    action: Action,
    fault: Option<Fault>,
    /// The changes that a sync covers are older than this.
    issued_at: u64,
    slot: Rc<RefCell<Slot>>,
}

#[derive(Clone)]
struct NameChange {
    sequence: u64,
    name: Rc<str>,
    /// The file that the name means from now on; none when it is removed.
    inode: Option<u64>,
    fate: Fate,
}

enum Event {
    Issued(Operation),
    Completed(Operation, Result<(), io::Error>),
    Note(String),
}

type Plan = Box<dyn FnMut(&Operation) -> Option<Fault>>;

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) plan: Option<Plan>,
    pub(super) capacity: Option<u64>,
    pub(super) counters: Counters,
    /// Directory syncs that failed: each descriptor is told of each once.
    pub(super) directory_errors: u64,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<Rc<str>, u64>,
    durable_names: BTreeMap<Rc<str>, u64>,
    name_changes: VecDeque<NameChange>,
    in_flight: Vec<Pending>,
    next_sequence: u64,
    events: Rc<RefCell<VecDeque<Event>>>,
}

impl World {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            rng,
            plan: None,
            capacity: None,
            counters: Counters::default(),
            directory_errors: 0,
            inodes: BTreeMap::new(),
            next_inode: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: VecDeque::new(),
            in_flight: Vec::new(),
            next_sequence: 0,
            events: Rc::default(),
        }
    }

    pub(super) fn load(&mut self, image: &Image) {
        for name in image.names() {
            self.put(name.into(), image.shared(name));
        }
    }

    /// A file that is there and durable.
    fn put(&mut self, name: Rc<str>, bytes: Rc<Vec<u8>>) {
        let inode = self.make_inode(Inode::durable(bytes));
        self.names.insert(Rc::clone(&name), inode);
        self.durable_names.insert(name, inode);
    }

    fn make_inode(&mut self, inode: Inode) -> u64 {
        self.next_inode += 1;
        self.inodes.insert(self.next_inode, inode);
        self.next_inode
    }

    pub(super) fn image(&self) -> Image {
        let files = self
            .names
            .iter()
            .map(|(name, inode)| (name.to_string(), Rc::clone(self.inodes[inode].visible())));
        Image::of_shared(files.collect())
    }

    pub(super) fn overwrite(&mut self, name: &str, bytes: Vec<u8>) {
        let inode = self.names[name];
        let mut spoilt = Inode::durable(Rc::new(bytes));
        spoilt.open = self.inodes[&inode].open;
        self.inodes.insert(inode, spoilt);
    }

    pub(super) fn opened(&mut self, inode: u64) {
        self.inode(inode).open += 1;
    }

    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes
            .get_mut(&inode)
            .expect("a file with a handle or a name is kept")
    }

    fn sequence(&mut self) -> u64 {
        self.next_sequence += 1;
        self.next_sequence
    }

    pub(super) fn issue(&mut self, action: Action) -> Rc<RefCell<Slot>> {
        let operation = action.describe(self.counters.operations);
        self.count(&operation);
        let fault = self.plan.as_mut().and_then(|plan| plan(&operation));
        if fault == Some(Fault::ShortWrite) {
            assert_eq!(operation.kind, Kind::Write, "only a write can be short");
        }
        self.record(Event::Issued(operation.clone()));
        let slot = Rc::new(RefCell::new(Slot::default()));
        let issued_at = self.sequence();
        self.in_flight.push(Pending {
            operation,
            action,
            fault,
            issued_at,
            slot: Rc::clone(&slot),
        });
        slot
    }

    fn count(&mut self, operation: &Operation) {
        let counters = &mut self.counters;
        counters.operations += 1;
        match operation.kind {
            Kind::Create => counters.creates += 1,
            Kind::Remove => counters.removes += 1,
            Kind::Write => {
                counters.writes += 1;
                counters.bytes_written += operation.len as u64;
            }
            Kind::Read => {
                counters.reads += 1;
                counters.bytes_read += operation.len as u64;
            }
            Kind::Sync => counters.syncs += 1,
            Kind::SyncDirectory => counters.directory_syncs += 1,
            Kind::Open | Kind::List | Kind::Truncate | Kind::Close => {}
        }
    }

    pub(super) fn in_flight(&self) -> Vec<Operation> {
        self.in_flight
            .iter()
            .map(|pending| pending.operation.clone())
            .collect()
    }

    pub(super) fn in_flight_where(&self, chosen: impl Fn(&Operation) -> bool) -> Vec<usize> {
        (0..self.in_flight.len())
            .filter(|&index| chosen(&self.in_flight[index].operation))
            .collect()
    }

    pub(super) fn complete(&mut self, index: usize) -> Option<Waker> {
        let mut pending = self.in_flight.remove(index);
        if let Action::SyncDirectory { told } = &pending.action {
            let is_news = told.get() < self.directory_errors;
            self.directory_errors += u64::from(pending.fault.is_some());
            told.set(self.directory_errors);
            if is_news {
                pending.fault = pending.fault.or(Some(Fault::Error(libc::EIO)));
            }
        }
        let result = match pending.fault {
            None => self.perform(&pending),
            Some(Fault::ShortWrite) => self.perform_short(&pending),
            Some(Fault::Error(errno)) => {
                self.perform_badly(&pending);
                Err(io::Error::from_raw_os_error(errno))
            }
        };
        let outcome = result
            .as_ref()
            .map(|_| ())
            .map_err(|error| io::Error::from(error.kind()));
        self.record(Event::Completed(pending.operation, outcome));
        let mut slot = pending.slot.borrow_mut();
        slot.answer = Some(result);
        slot.waker.take()
    }

    fn perform(&mut self, pending: &Pending) -> io::Result<Answer> {
        match &pending.action {
            Action::Create { name } => {
                if self.names.contains_key(name) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                if self
                    .capacity
                    .is_some_and(|capacity| self.used() + BLOCK as u64 > capacity)
                {
                    return Err(no_space());
                }
                Ok(Answer::Inode(self.create(name)))
            }
            Action::Open { name } => self
                .names
                .get(name)
                .copied()
                .map(Answer::Inode)
                .ok_or_else(|| io::ErrorKind::NotFound.into()),
            Action::List => {
                let len = |inode| self.inodes[inode].visible().len() as u64;
                Ok(Answer::Names(
                    self.names
                        .iter()
                        .map(|(name, inode)| (name.to_string(), len(inode)))
                        .collect(),
                ))
            }
            Action::Remove { name } => self.remove(name).map(|()| Answer::Done),
            Action::SyncDirectory { .. } => {
                self.sync_names(pending.issued_at, false);
                Ok(Answer::Done)
            }
            Action::Write {
                inode,
                offset,
                buffer,
                durable,
                ..
            } => self.write(*inode, *offset, buffer.as_ref().as_ref(), *durable),
            Action::Read {
                inode, offset, len, ..
            } => Ok(Answer::Bytes(self.read(*inode, *offset, *len))),
            Action::Sync { inode, .. } => {
                self.inode(*inode).sync(pending.issued_at, || Fate::Durable);
                Ok(Answer::Done)
            }
            Action::Truncate { inode, len, .. } => {
                let sequence = self.sequence();
                self.inode(*inode)
                    .add(sequence, Change::Truncate { len: *len }, Fate::Volatile);
                Ok(Answer::Done)
            }
            Action::Close { inode, .. } => {
                self.inode(*inode).open -= 1;
                Ok(Answer::Done)
            }
        }
    }

    fn create(&mut self, name: &Rc<str>) -> u64 {
        let inode = self.make_inode(Inode::default());
        self.names.insert(Rc::clone(name), inode);
        let sequence = self.sequence();
        let change = NameChange {
            sequence,
            name: Rc::clone(name),
            inode: Some(inode),
            fate: Fate::Volatile,
        };
        self.name_changes.push_back(change);
        inode
    }

    fn remove(&mut self, name: &Rc<str>) -> io::Result<()> {
        let inode = *self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let open = self.inodes[&inode].open;
        assert_eq!(open, 0, "{name} is removed while {open} handles are open");
        self.names.remove(name);
        let sequence = self.sequence();
        let change = NameChange {
            sequence,
            name: Rc::clone(name),
            inode: None,
            fate: Fate::Volatile,
        };
        self.name_changes.push_back(change);
        Ok(())
    }

    fn sync_names(&mut self, before: u64, failed: bool) {
        for change in &mut self.name_changes {
            if change.sequence < before && change.fate == Fate::Volatile {
                change.fate = if failed && self.rng.chance(1, 2) {
                    Fate::Doomed
                } else {
                    Fate::Durable
                };
            }
        }
        while let Some(change) = self
            .name_changes
            .pop_front_if(|change| change.fate == Fate::Durable)
        {
            rename(&mut self.durable_names, change.name, change.inode);
        }
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .map(|inode| self.inodes[inode].visible().len() as u64)
            .sum()
    }

    fn write(
        &mut self,
        inode: u64,
        offset: u64,
        bytes: &[u8],
        durable: bool,
    ) -> io::Result<Answer> {
        let room = match self.capacity {
            Some(capacity) => {
                let free = capacity.saturating_sub(self.used());
                let end = self.inode(inode).visible().len() as u64 + free;
                (end.saturating_sub(offset) as usize / BLOCK * BLOCK).min(bytes.len())
            }
            None => bytes.len(),
        };
        let fate = if durable {
            Fate::Durable
        } else {
            Fate::Volatile
        };
        if room > 0 {
            let sequence = self.sequence();
            self.inode(inode).add(
                sequence,
                Change::Write {
                    offset,
                    bytes: bytes[..room].to_vec(),
                },
                fate,
            );
        }
        // A full file system says so either way.
        if room == bytes.len() || (room > 0 && self.rng.chance(1, 2)) {
            Ok(Answer::Written(room))
        } else {
            Err(no_space())
        }
    }

    /// What a read returns: bytes that are being written at the same time are old or new, sector by sector.
    fn read(&mut self, inode: u64, offset: u64, len: usize) -> Vec<u8> {
        let visible = self.inodes[&inode].visible();
        let file_len = visible.len();
        let start = (offset as usize).min(file_len);
        let end = (offset as usize + len).min(file_len);
        let mut seen = visible[start..end].to_vec();
        for change in self.changes_in_flight(inode) {
            let Change::Write { offset, bytes } = change else {
                continue;
            };
            let overlaps = (offset as usize) < end && offset as usize + bytes.len() > start;
            if !overlaps || offset as usize + bytes.len() > file_len {
                continue;
            }
            for run in torn(offset, &bytes, &mut self.rng) {
                let Change::Write { offset, bytes } = run else {
                    unreachable!("a torn write is made of writes")
                };
                for (place, byte) in (offset as usize..).zip(bytes) {
                    if (start..end).contains(&place) {
                        seen[place - start] = byte;
                    }
                }
            }
        }
        seen
    }

    fn changes_in_flight(&self, of: u64) -> Vec<Change> {
        let change = |pending: &Pending| match &pending.action {
            Action::Write {
                inode,
                offset,
                buffer,
                ..
            } if *inode == of => Some(Change::Write {
                offset: *offset,
                bytes: buffer.as_ref().as_ref().to_vec(),
            }),
            Action::Truncate { inode, len, .. } if *inode == of => {
                Some(Change::Truncate { len: *len })
            }
            _ => None,
        };
        self.in_flight.iter().filter_map(change).collect()
    }

    fn perform_short(&mut self, pending: &Pending) -> io::Result<Answer> {
        let Action::Write {
            inode,
            offset,
            buffer,
            durable,
            ..
        } = &pending.action
        else {
            unreachable!("asserted when it was issued")
        };
        let bytes = buffer.as_ref().as_ref();
        let written = self.rng.index(bytes.len() / SECTOR) * SECTOR;
        let fate = if *durable {
            Fate::Durable
        } else {
            Fate::Volatile
        };
        if written > 0 {
            let sequence = self.sequence();
            self.inode(*inode).add(
                sequence,
                Change::Write {
                    offset: *offset,
                    bytes: bytes[..written].to_vec(),
                },
                fate,
            );
        }
        Ok(Answer::Written(written))
    }

    /// The effects of an operation that answers with an error: any, part or nothing of what it should have done.
    fn perform_badly(&mut self, pending: &Pending) {
        match &pending.action {
            Action::Create { name } => {
                if !self.names.contains_key(name) && self.rng.chance(1, 2) {
                    self.create(name);
                }
            }
            Action::Remove { name } => {
                let idle = self
                    .names
                    .get(name)
                    .is_some_and(|inode| self.inodes[inode].open == 0);
                if idle && self.rng.chance(1, 2) {
                    self.remove(name).expect("it has this name");
                }
            }
            Action::SyncDirectory { .. } => self.sync_names(pending.issued_at, true),
            Action::Write {
                inode,
                offset,
                buffer,
                ..
            } => {
                for run in torn(*offset, buffer.as_ref().as_ref(), &mut self.rng) {
                    let sequence = self.sequence();
                    self.inode(*inode).add(sequence, run, Fate::Doomed);
                }
            }
            Action::Sync { inode, .. } => {
                let mut rng = self.rng.fork();
                let fate = move || {
                    if rng.chance(1, 2) {
                        Fate::Durable
                    } else {
                        Fate::Doomed
                    }
                };
                self.inode(*inode).sync(pending.issued_at, fate);
            }
            Action::Truncate { inode, len, .. } => {
                if self.rng.chance(1, 2) {
                    let sequence = self.sequence();
                    self.inode(*inode)
                        .add(sequence, Change::Truncate { len: *len }, Fate::Doomed);
                }
            }
            // A close that fails has closed.
            Action::Close { inode, .. } => self.inode(*inode).open -= 1,
            Action::Open { .. } | Action::List | Action::Read { .. } => {}
        }
    }

    fn record(&mut self, event: Event) {
        let mut events = self.events.borrow_mut();
        if events.len() == TRACE_LINES_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    pub(super) fn trace_note(&mut self, line: String) {
        self.record(Event::Note(line));
    }

    pub(super) fn trace(&self) -> String {
        let line = |event: &Event| match event {
            Event::Issued(operation) => format!("  issued    {operation}\n"),
            Event::Completed(operation, Ok(())) => format!("  completed {operation}\n"),
            Event::Completed(operation, Err(error)) => {
                format!("  failed    {operation}: {error}\n")
            }
            Event::Note(line) => format!("{line}\n"),
        };
        self.events.borrow().iter().map(line).collect()
    }
}

fn rename(names: &mut BTreeMap<Rc<str>, u64>, name: Rc<str>, inode: Option<u64>) {
    match inode {
        Some(inode) => names.insert(name, inode),
        None => names.remove(&name),
    };
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

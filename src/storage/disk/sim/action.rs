//! What the simulated disk is asked to do, and what it answers.

use std::cell::Cell;
use std::rc::Rc;

use super::{Kind, Operation, SimBuffer};

pub(super) enum Action {
    Create {
        name: Rc<str>,
    },
    Open {
        name: Rc<str>,
    },
    List,
    Remove {
        name: Rc<str>,
    },
    SyncDirectory {
        /// How many errors this descriptor was told of.
        told: Rc<Cell<u64>>,
    },
    Write {
        inode: u64,
        name: Rc<str>,
        offset: u64,
        buffer: Rc<SimBuffer>,
        durable: bool,
    },
    Read {
        inode: u64,
        name: Rc<str>,
        offset: u64,
        len: usize,
    },
    Sync {
        inode: u64,
        name: Rc<str>,
    },
    Truncate {
        inode: u64,
        name: Rc<str>,
        len: u64,
    },
    Close {
        inode: u64,
        name: Rc<str>,
    },
}

impl Action {
    pub(super) fn describe(&self, number: u64) -> Operation {
        let nobody: Rc<str> = Rc::from("");
        let (kind, file, offset, len) = match self {
            Action::Create { name } => (Kind::Create, name, 0, 0),
            Action::Open { name } => (Kind::Open, name, 0, 0),
            Action::List => (Kind::List, &nobody, 0, 0),
            Action::Remove { name } => (Kind::Remove, name, 0, 0),
            Action::SyncDirectory { .. } => (Kind::SyncDirectory, &nobody, 0, 0),
            Action::Write {
                name,
                offset,
                buffer,
                ..
            } => (Kind::Write, name, *offset, buffer.len),
            Action::Read {
                name, offset, len, ..
            } => (Kind::Read, name, *offset, *len),
            Action::Sync { name, .. } => (Kind::Sync, name, 0, 0),
            Action::Truncate { name, len, .. } => (Kind::Truncate, name, *len, 0),
            Action::Close { name, .. } => (Kind::Close, name, 0, 0),
        };
        Operation {
            number,
            kind,
            file: Rc::clone(file),
            offset,
            len,
        }
    }
}

pub(super) enum Answer {
    Done,
    Inode(u64),
    Names(Vec<(String, u64)>),
    Written(usize),
    Bytes(Vec<u8>),
}

impl Answer {
    pub(super) fn into_inode(self) -> u64 {
        let Answer::Inode(inode) = self else {
            unreachable!("create and open answer with a file")
        };
        inode
    }

    pub(super) fn into_names(self) -> Vec<(String, u64)> {
        let Answer::Names(names) = self else {
            unreachable!("list answers with names")
        };
        names
    }

    pub(super) fn into_written(self) -> usize {
        let Answer::Written(len) = self else {
            unreachable!("write answers with a length")
        };
        len
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        let Answer::Bytes(bytes) = self else {
            unreachable!("read answers with bytes")
        };
        bytes
    }
}

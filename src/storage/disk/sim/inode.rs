//! One simulated file: what is certainly on the platter, the ordered changes on top of it that may or may not be, and
//! what a process sees, which is all of them.
//!
//! Decides what a power cut leaves of a file, and how a write tears (in every way: `cuts`). Called by the world alone.

use std::collections::VecDeque;
use std::rc::Rc;

use super::cuts::{Content, Tearing, any_length, perhaps};
use super::{Rng, SECTOR};

/// Whether a change survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Perhaps; the next sync makes it certain.
    Volatile,
    /// Perhaps, whatever this process syncs later: the write itself, or the sync that covered it, failed.
    Doomed,
    /// Certainly.
    Durable,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Truncate { len: u64 },
}

#[derive(Clone, Debug)]
struct Logged {
    sequence: u64,
    change: Change,
    fate: Fate,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    base: Rc<Vec<u8>>,
    changes: VecDeque<Logged>,
    visible: Rc<Vec<u8>>,
    /// Handles, counting those that were dropped and are not closed yet.
    pub(super) open: usize,
}

impl Inode {
    pub(super) fn durable(bytes: Rc<Vec<u8>>) -> Self {
        Self {
            base: Rc::clone(&bytes),
            changes: VecDeque::new(),
            visible: bytes,
            open: 0,
        }
    }

    pub(super) fn visible(&self) -> &Rc<Vec<u8>> {
        &self.visible
    }

    pub(super) fn add(&mut self, sequence: u64, change: Change, fate: Fate) {
        apply(Rc::make_mut(&mut self.visible), &change);
        self.changes.push_back(Logged {
            sequence,
            change,
            fate,
        });
        self.fold();
    }

    /// Settles what a sync covers: every volatile change older than `before` gets the fate that `fate` says.
    pub(super) fn sync(&mut self, before: u64, mut fate: impl FnMut() -> Fate) {
        for logged in &mut self.changes {
            if logged.sequence < before && logged.fate == Fate::Volatile {
                logged.fate = fate();
            }
        }
        self.fold();
    }

    /// The process that has it open ends. What a failed sync doomed is on its way all the same, or it would not be
    /// visible: files are read past the page cache. A sync of the next process covers it.
    pub(super) fn survive_kill(&mut self) {
        self.open = 0;
        for logged in self
            .changes
            .iter_mut()
            .filter(|logged| logged.fate == Fate::Doomed)
        {
            logged.fate = Fate::Volatile;
        }
    }

    fn fold(&mut self) {
        while let Some(first) = self
            .changes
            .pop_front_if(|first| first.fate == Fate::Durable)
        {
            apply(Rc::make_mut(&mut self.base), &first.change);
        }
    }

    /// What a power cut leaves, with `in_flight` on top of the completed changes.
    pub(super) fn after_crash(&self, rng: &mut Rng, in_flight: Vec<Change>) -> Vec<u8> {
        let mut bytes = self.base.to_vec();
        let mut certain_len = bytes.len();
        let mut largest_len = bytes.len().max(self.visible.len());
        for logged in &self.changes {
            if logged.fate == Fate::Durable {
                apply(&mut bytes, &logged.change);
                certain_len = len_after(certain_len, &logged.change);
            } else {
                apply_perhaps(&mut bytes, &logged.change, rng);
                certain_len = certain_len.min(len_after(certain_len, &logged.change));
            }
        }
        for change in &in_flight {
            largest_len = largest_len.max(len_after(largest_len, change));
            certain_len = certain_len.min(len_after(certain_len, change));
            apply_perhaps(&mut bytes, change, rng);
        }
        // The length travels apart from the data: a file that was growing may be cut anywhere after what is certain,
        // or have grown without its data.
        let grows = |change: &Change| {
            matches!(change, Change::Write { .. }) && len_after(0, change) > certain_len
        };
        let uncertain = self
            .changes
            .iter()
            .filter(|logged| logged.fate != Fate::Durable)
            .map(|logged| &logged.change);
        if uncertain.chain(&in_flight).any(grows) {
            let sectors = (largest_len - certain_len).div_ceil(SECTOR);
            let somewhere = (certain_len + rng.index(sectors + 1) * SECTOR).min(largest_len);
            match rng.below(6) {
                0 => bytes.resize(largest_len, 0),
                1 => bytes.resize(somewhere, 0),
                2 => bytes.truncate(somewhere),
                _ => {}
            }
        }
        bytes
    }

    /// Everything that a power cut may leave, with `in_flight` on top of the completed changes.
    pub(super) fn after_any_crash(&self, in_flight: &[Change], tearing: Tearing) -> Vec<Content> {
        if self.changes.is_empty() && in_flight.is_empty() {
            return vec![Content::of(Rc::clone(&self.base))];
        }
        let mut states = vec![self.base.to_vec()];
        let (mut certain_len, mut largest_len) = (self.base.len(), self.visible.len());
        let mut grows = false;
        let completed = self
            .changes
            .iter()
            .map(|logged| (&logged.change, logged.fate == Fate::Durable));
        for (change, is_durable) in completed.chain(in_flight.iter().map(|change| (change, false)))
        {
            let len = len_after(certain_len, change);
            largest_len = largest_len.max(len);
            if is_durable {
                states.iter_mut().for_each(|state| apply(state, change));
                certain_len = len;
            } else {
                grows |= len > certain_len;
                states = perhaps(states, change, tearing);
                certain_len = certain_len.min(len);
            }
        }
        if grows {
            states = any_length(states, certain_len, largest_len);
        }
        states
            .into_iter()
            .map(|bytes| Content::of(Rc::new(bytes)))
            .collect()
    }
}

fn len_after(len: usize, change: &Change) -> usize {
    match change {
        Change::Write { offset, bytes } => len.max(*offset as usize + bytes.len()),
        Change::Truncate { len } => *len as usize,
    }
}

fn len_of(change: &Change) -> usize {
    match change {
        Change::Write { bytes, .. } => bytes.len(),
        Change::Truncate { .. } => 0,
    }
}

pub(super) fn apply(image: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, bytes } => {
            let start = *offset as usize;
            let end = start + bytes.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[start..end].copy_from_slice(bytes);
        }
        Change::Truncate { len } => image.resize(*len as usize, 0),
    }
}

/// Applies a change that nobody was promised: not at all, wholly, or torn.
fn apply_perhaps(image: &mut Vec<u8>, change: &Change, rng: &mut Rng) {
    match change {
        Change::Write { offset, bytes } => {
            let runs = torn(*offset, bytes, rng);
            let interrupted = runs.iter().any(|run| len_of(run) < bytes.len());
            runs.iter().for_each(|run| apply(image, run));
            // Rarely a sector is neither old nor new: the device was at it.
            if interrupted && rng.chance(1, 16) {
                let mut noise = vec![0; SECTOR];
                rng.fill(&mut noise);
                let sector = rng.index(bytes.len() / SECTOR) * SECTOR;
                apply(
                    image,
                    &Change::Write {
                        offset: offset + sector as u64,
                        bytes: noise,
                    },
                );
            }
        }
        Change::Truncate { .. } => {
            if rng.chance(1, 2) {
                apply(image, change);
            }
        }
    }
}

/// The sectors of a write that arrive when it is interrupted, as writes of their own.
pub(super) fn torn(offset: u64, bytes: &[u8], rng: &mut Rng) -> Vec<Change> {
    let sectors = bytes.len() / SECTOR;
    let mut kept = vec![false; sectors];
    match rng.below(8) {
        0 | 1 => {}
        2 | 3 => kept.fill(true),
        4 => {
            let prefix = rng.index(sectors + 1);
            kept[..prefix].fill(true);
        }
        5 => {
            let suffix = rng.index(sectors + 1);
            kept[suffix..].fill(true);
        }
        6 => {
            kept.fill(true);
            kept[rng.index(sectors)] = false;
        }
        _ => kept
            .iter_mut()
            .for_each(|sector| *sector = rng.chance(1, 2)),
    }
    let mut runs = Vec::new();
    let mut index = 0;
    while index < sectors {
        let run = kept[index..].iter().take_while(|&&sector| sector).count();
        if run > 0 {
            let range = index * SECTOR..(index + run) * SECTOR;
            runs.push(Change::Write {
                offset: offset + range.start as u64,
                bytes: bytes[range].to_vec(),
            });
        }
        index += run.max(1);
    }
    runs
}

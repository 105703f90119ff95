//! What is left when the power goes or the process is killed: the world that the next process finds.

use std::rc::Rc;

use super::super::action::Action;
use super::super::inode::{Change, Fate, Inode, torn};
use super::{Pending, World, rename};

impl World {
    fn successor(&mut self) -> Self {
        let mut next = Self::new(self.rng.fork());
        next.capacity = self.capacity;
        next.events = Rc::clone(&self.events);
        next
    }

    pub(in super::super) fn crash(&mut self) -> Self {
        self.trace_note("power cut".to_owned());
        let mut next = self.successor();
        let mut names = self.durable_names.clone();
        for change in &self.name_changes {
            if change.fate == Fate::Durable || self.rng.chance(1, 2) {
                rename(&mut names, Rc::clone(&change.name), change.inode);
            }
        }
        for (name, inode) in names {
            let mut in_flight = self.changes_in_flight(inode);
            if in_flight.len() > 1 && self.rng.chance(1, 2) {
                in_flight.reverse();
            }
            let bytes = self.inodes[&inode].after_crash(&mut self.rng, in_flight);
            next.put(name, bytes);
        }
        for (name, created) in self.names_in_flight() {
            if self.rng.chance(1, 2) {
                continue;
            }
            if !created {
                next.names.remove(&name);
                next.durable_names.remove(&name);
            } else if !self.names.contains_key(&name) && !next.names.contains_key(&name) {
                next.put(name, Vec::new());
            }
        }
        next
    }

    pub(in super::super) fn kill(&mut self) -> Self {
        self.trace_note("kill -9".to_owned());
        let mut next = self.successor();
        next.inodes.clone_from(&self.inodes);
        next.inodes.values_mut().for_each(Inode::survive_kill);
        next.next_inode = self.next_inode;
        next.next_sequence = self.next_sequence;
        next.names.clone_from(&self.names);
        next.durable_names.clone_from(&self.durable_names);
        next.name_changes.clone_from(&self.name_changes);
        for change in next
            .name_changes
            .iter_mut()
            .filter(|change| change.fate == Fate::Doomed)
        {
            change.fate = Fate::Volatile;
        }
        let inodes: Vec<u64> = self.inodes.keys().copied().collect();
        for inode in inodes {
            for change in self.changes_in_flight(inode) {
                let arrived = match change {
                    // What was handed over may have been in the middle of being copied.
                    Change::Write { offset, bytes } => torn(offset, &bytes, &mut self.rng),
                    Change::Truncate { .. } => {
                        if self.rng.chance(1, 2) {
                            vec![change]
                        } else {
                            Vec::new()
                        }
                    }
                };
                for change in arrived {
                    let sequence = next.sequence();
                    next.inode(inode).add(sequence, change, Fate::Volatile);
                }
            }
        }
        for (name, created) in self.names_in_flight() {
            if self.rng.chance(1, 2) {
                continue;
            }
            if created && !next.names.contains_key(&name) {
                next.create(&name);
            } else if !created && next.names.contains_key(&name) {
                next.remove(&name)
                    .expect("it has this name and nobody has it open");
            }
        }
        next
    }

    /// Creates (true) and removes (false) in flight.
    fn names_in_flight(&self) -> Vec<(Rc<str>, bool)> {
        let name = |pending: &Pending| match &pending.action {
            Action::Create { name } => Some((Rc::clone(name), true)),
            Action::Remove { name } => Some((Rc::clone(name), false)),
            _ => None,
        };
        self.in_flight.iter().filter_map(name).collect()
    }
}

//! What is left when the power goes or the process is killed: the world that the next process finds.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::action::Action;
use super::super::cuts::{Content, Cuts, Tearing};
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
            next.put(name, Rc::new(bytes));
        }
        for (name, created) in self.names_in_flight() {
            if self.rng.chance(1, 2) {
                continue;
            }
            if !created {
                next.names.remove(&name);
                next.durable_names.remove(&name);
            } else if !self.names.contains_key(&name) && !next.names.contains_key(&name) {
                next.put(name, Rc::default());
            }
        }
        next
    }

    /// All that `crash` may answer with, `most` of them if that can be had by tearing writes in fewer ways.
    pub(in super::super) fn cuts(&self, most: usize) -> Cuts {
        let cuts = self.cuts_torn(Tearing::Fine, false);
        match cuts.count() > most {
            true => self.cuts_torn(Tearing::Coarse, true),
            false => cuts,
        }
    }

    fn cuts_torn(&self, tearing: Tearing, bounded: bool) -> Cuts {
        let mut outcomes = vec![self.durable_names.clone()];
        for change in &self.name_changes {
            let mut done = outcomes.clone();
            for names in &mut done {
                rename(names, Rc::clone(&change.name), change.inode);
            }
            match change.fate {
                Fate::Durable => outcomes = done,
                _ => outcomes.extend(done),
            }
        }
        outcomes.dedup();
        let mut known = BTreeMap::new();
        let mut contents = |inode: u64| {
            let of = || {
                let in_flight = self.changes_in_flight(inode);
                Rc::new(self.inodes[&inode].after_any_crash(&in_flight, tearing))
            };
            Rc::clone(known.entry(inode).or_insert_with(of))
        };
        let mut ways = Vec::new();
        for names in outcomes {
            let files = names
                .into_iter()
                .map(|(name, inode)| (name, contents(inode)));
            ways.push(files.collect::<BTreeMap<_, _>>());
        }
        for (name, created) in self.names_in_flight() {
            for index in 0..ways.len() {
                let mut done = ways[index].clone();
                match created {
                    true if self.names.contains_key(&name) || done.contains_key(&name) => continue,
                    true => drop(
                        done.insert(Rc::clone(&name), Rc::new(vec![Content::of(Rc::default())])),
                    ),
                    false => drop(done.remove(&name)),
                }
                ways.push(done);
            }
        }
        Cuts::new(ways, bounded)
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

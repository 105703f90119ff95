//! The sequence of operations that one connection is asked to do: what, on which keys, how much.
//!
//! Guarantees: it depends on the seed, the plan and the connection's place alone, never on a system, on answers or on
//! time; so every system does the same, and `--seed` repeats it. A new key of connection `c` of `n` is the next of
//! `count + c`, `count + c + n`, ...: no two connections insert the same one. Knows nothing of protocols or of when an
//! operation starts (`source.rs`).

use super::mix::{Kind, Mix};
use super::options::Plan;
use super::random::{Distribution, Draw, Random};

/// Most entries of a scan, as YCSB's `maxscanlength`; fewer are as likely.
pub(crate) const SCAN_ENTRIES_MAX: u32 = 100;

/// One operation; the buffer is used again and again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    /// The keys: a batch for reads and writes, one otherwise (a scan starts at it, a prefix read asks for its group).
    pub(crate) numbers: Vec<u64>,
    /// Entries that a scan asks for.
    pub(crate) entries: u32,
}

impl Operation {
    /// Nothing yet; for `Trace::next` to fill.
    pub(crate) fn empty() -> Operation {
        Operation {
            kind: Kind::Read,
            numbers: Vec::new(),
            entries: 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Trace {
    random: Random,
    mix: Mix,
    draw: Draw,
    distribution: Distribution,
    /// Keys that are there from the beginning.
    count: u64,
    batch: usize,
    connection: u64,
    connections: u64,
    /// New keys that this trace has asked for.
    inserted: u64,
}

impl Trace {
    pub(crate) fn new(plan: &Plan, connection: usize) -> Trace {
        Trace {
            random: Random::for_worker(plan.seed, connection as u64),
            mix: plan.mix,
            draw: Draw::new(plan.distribution, plan.keys.count),
            distribution: plan.distribution,
            count: plan.keys.count,
            batch: plan.batch,
            connection: connection as u64,
            connections: plan.clients as u64,
            inserted: 0,
        }
    }

    /// Makes `operation` the next one.
    pub(crate) fn next(&mut self, operation: &mut Operation) {
        let kind = self.mix.next(&mut self.random);
        operation.kind = kind;
        operation.numbers.clear();
        operation.entries = 0;
        match kind {
            Kind::Read | Kind::Write => {
                for _ in 0..self.batch {
                    let number = self.choose();
                    operation.numbers.push(number);
                }
            }
            Kind::Prefix | Kind::ReadModifyWrite => {
                let number = self.choose();
                operation.numbers.push(number);
            }
            Kind::Insert => {
                operation.numbers.push(self.own(self.inserted));
                self.inserted += 1;
            }
            Kind::Scan => {
                let number = self.choose();
                operation.numbers.push(number);
                operation.entries = 1 + self.random.below(u64::from(SCAN_ENTRIES_MAX)) as u32;
            }
        }
    }

    /// A key that is there already.
    fn choose(&mut self) -> u64 {
        let drawn = self.draw.next(&mut self.random);
        match self.distribution {
            Distribution::Uniform | Distribution::Zipfian => drawn,
            // Own new keys, the last first, and then the others from the end.
            Distribution::Latest if drawn < self.inserted => self.own(self.inserted - 1 - drawn),
            Distribution::Latest => self.count - 1 - (drawn - self.inserted),
        }
    }

    /// The number of the new key with this place among those of the connection.
    fn own(&self, place: u64) -> u64 {
        self.count + self.connection + place * self.connections
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{DefaultHasher, Hash, Hasher};

    use super::*;
    use crate::load::options::tests::plan;

    fn operations(plan: &Plan, connection: usize, count: usize) -> Vec<Operation> {
        let mut trace = Trace::new(plan, connection);
        let mut operation = Operation::empty();
        (0..count)
            .map(|_| {
                trace.next(&mut operation);
                operation.clone()
            })
            .collect()
    }

    /// Operations, keys and sizes of every connection.
    fn fingerprint(plan: &Plan) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut key = Vec::new();
        for connection in 0..plan.clients {
            for operation in operations(plan, connection, 2_000) {
                operation.hash(&mut hasher);
                for number in &operation.numbers {
                    plan.keys.write_key(*number, &mut key);
                    (&key, plan.value_size.of(*number)).hash(&mut hasher);
                }
            }
        }
        hasher.finish()
    }

    #[test]
    fn the_same_seed_is_the_same_trace_for_every_system() {
        for workload in ["half", "ycsb-a", "ycsb-d", "ycsb-f", "etc"] {
            let of = |system: &str, seed: &str| {
                let plan = plan(&[
                    "--system",
                    system,
                    "--workload",
                    workload,
                    "--seed",
                    seed,
                    "--clients",
                    "3",
                ]);
                fingerprint(&plan.expect("a plan"))
            };
            let expected = of("orlop", "9");
            for system in ["redis", "valkey", "memcached", "etcd"] {
                assert_eq!(of(system, "9"), expected, "{workload} for {system}");
            }
            assert_ne!(of("orlop", "10"), expected, "{workload}: another seed");
        }
    }

    #[test]
    fn connections_do_different_things_and_insert_different_keys() {
        let plan = plan(&["--workload", "ycsb-e", "--clients", "3", "--keys", "100"]);
        let plan = plan.expect("a plan");
        let mut inserted = HashSet::new();
        for connection in 0..3 {
            for operation in operations(&plan, connection, 1_000) {
                let number = operation.numbers[0];
                match operation.kind {
                    Kind::Insert => assert!(number >= 100 && inserted.insert(number), "{number}"),
                    Kind::Scan => {
                        assert!(number < 100);
                        assert!((1..=SCAN_ENTRIES_MAX).contains(&operation.entries));
                    }
                    kind => panic!("{kind:?} in ycsb-e"),
                }
            }
        }
        assert!(inserted.len() > 100, "{}", inserted.len());
        assert_ne!(operations(&plan, 0, 50), operations(&plan, 1, 50));
    }

    #[test]
    fn the_latest_keys_are_there_when_they_are_read() {
        let plan = plan(&["--workload", "ycsb-d", "--clients", "2", "--keys", "50"]);
        let plan = plan.expect("a plan");
        let mut there: HashSet<u64> = (0..50).collect();
        let mut newest = 49;
        let mut hits = 0;
        for operation in operations(&plan, 1, 20_000) {
            let number = operation.numbers[0];
            if operation.kind == Kind::Insert {
                there.insert(number);
                newest = number;
            } else {
                assert!(there.contains(&number), "key {number} is not there yet");
                hits += u32::from(number == newest);
            }
        }
        // The newest of 50 has a share of 1 / zeta(50), about 22 %.
        assert!(
            hits > 3_500 && hits < 5_000,
            "{hits} reads of the newest key"
        );
    }

    #[test]
    fn batches_have_their_size() {
        let plan = plan(&["--batch", "8", "--mix", "1:1:1"]).expect("a plan");
        for operation in operations(&plan, 0, 200) {
            let expected = if operation.kind == Kind::Prefix { 1 } else { 8 };
            assert_eq!(operation.numbers.len(), expected, "{operation:?}");
        }
    }
}

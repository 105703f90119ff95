//! Makes the writes of one writer and judges their answers.
//!
//! `prepare` fills buffers that are reused from call to call: keys, values that say whose they are, and what the ledger
//! knew when the write began. `answered` settles one answer: ledger, ack log, counters. Does not send; used by
//! the drivers and by `sweep.rs`.

use orlop::client::{Change, ClientError, Condition, Mutation, Outcome};

use super::failure::Failure;
use super::run::Run;
use super::value::{self, Stamp};

pub(crate) struct Writer {
    id: u32,
    sequence: u64,
    prepared: usize,
    stamps: Vec<Stamp>,
    floors: Vec<u64>,
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
}

impl Writer {
    pub(crate) fn new(id: u32) -> Writer {
        Writer {
            id,
            sequence: 0,
            prepared: 0,
            stamps: Vec::new(),
            floors: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Makes one write for each of `numbers`, in order.
    pub(crate) fn prepare(&mut self, run: &Run, numbers: impl ExactSizeIterator<Item = u64>) {
        self.prepared = numbers.len();
        self.stamps.clear();
        self.floors.clear();
        self.keys
            .resize_with(self.prepared.max(self.keys.len()), Vec::new);
        self.values
            .resize_with(self.prepared.max(self.values.len()), Vec::new);
        for (index, number) in numbers.enumerate() {
            let stamp = Stamp {
                run: run.id,
                writer: self.id,
                key: number,
                sequence: self.sequence,
            };
            self.sequence += 1;
            run.plan.keys.write_key(number, &mut self.keys[index]);
            let value = &mut self.values[index];
            value.resize(run.plan.value_size.of(number), 0);
            value::encode(stamp, value);
            let floor = run.ask(|ledger| {
                ledger.begin(stamp);
                ledger.floor(number)
            });
            self.stamps.push(stamp);
            self.floors.push(floor.unwrap_or(0));
        }
    }

    pub(crate) fn key(&self, index: usize) -> &[u8] {
        &self.keys[index]
    }

    pub(crate) fn value(&self, index: usize) -> &[u8] {
        &self.values[index]
    }

    /// Keys and values of what was prepared, side by side.
    pub(crate) fn pairs(&self) -> (&[Vec<u8>], &[Vec<u8>]) {
        (&self.keys[..self.prepared], &self.values[..self.prepared])
    }

    pub(crate) fn number(&self, index: usize) -> u64 {
        self.stamps[index].key
    }

    /// Keys of what was prepared.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.stamps.iter().map(|stamp| stamp.key)
    }

    /// What was prepared, as the mutations of one `write`.
    pub(crate) fn mutations(&self) -> Vec<Mutation<'_>> {
        let set = |index| Mutation {
            key: self.key(index),
            change: Change::Set(self.value(index)),
            condition: Condition::None,
        };
        (0..self.prepared).map(set).collect()
    }

    /// Settles the answer to write `index`. True: written. False: `overloaded`, nothing was done.
    pub(crate) fn answered(
        &self,
        run: &Run,
        index: usize,
        answer: Result<Outcome, ClientError>,
    ) -> Result<bool, Failure> {
        let stamp = self.stamps[index];
        match answer {
            Ok(Outcome::Written { version, existed }) => {
                let floor = self.floors[index];
                run.judge(1, |ledger| {
                    ledger.acknowledge(stamp, floor, version, existed)
                })?;
                run.log(self.key(index), version, self.value(index))?;
                Ok(true)
            }
            Ok(Outcome::Refused { current }) => {
                let expected = "a write without a condition to be done".to_owned();
                let found = format!("'refused', current version {}", current.unwrap_or(0));
                Err(super::ledger::Wrong {
                    key: run.plan.keys.name(stamp.key),
                    expected,
                    found,
                }
                .into())
            }
            Err(ClientError::Overloaded(_)) => {
                run.overloaded();
                run.ask(|ledger| ledger.refuse(stamp));
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The whole call was answered `overloaded`: nothing of it was done.
    pub(crate) fn refused_whole(&self, run: &Run) {
        run.overloaded();
        for stamp in &self.stamps {
            run.ask(|ledger| ledger.refuse(*stamp));
        }
    }

    /// A `write` must be answered with one outcome per mutation.
    pub(crate) fn count_outcomes(&self, found: usize) -> Result<(), Failure> {
        if found == self.prepared {
            return Ok(());
        }
        let text = format!(
            "{} mutations were sent and {found} outcomes came back",
            self.prepared
        );
        Err(Failure::Server(ClientError::Protocol(text)))
    }
}

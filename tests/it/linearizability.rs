//! T6: many clients on few keys, across kills: is there for each key one order of all calls that explains every answer?
//!
//! Lanes on several connections read, write and delete the same keys at once, under conditions that are met only
//! sometimes; some do not wait for their answer. The server is killed, or told to stop, and started again, and the
//! lanes go on. Every call is recorded with its begin, its end and its answer; what was without an answer when the
//! server was dead may have happened until then. At the end each key's whole life is one history for the checker.
//! `ORLOP_LINEARIZABILITY_SECONDS` makes it longer, `ORLOP_SEED` repeats what the clients decide.

mod checker;
mod examples;
mod register;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::{join_all, select_all};
use orlop::client::tokio::{Address, connect};
use orlop::client::{Change, Client, ClientError, Condition, Found, Outcome};

use crate::batches::mutation;
use crate::harness::{Flags, Server, report, run_for, short_directory};
use crate::random::Random;
use checker::{Operation, check};
use register::{Answer, Call};

const SECONDS_DEFAULT: u64 = 15;
const CLIENTS: usize = 8;
/// Callers on each connection.
const LANES: usize = 3;
const KEYS: usize = 16;
/// Calls on one key in one life of the server whose caller does not wait. Each may take effect at any later time, so
/// they multiply what the checker has to consider.
const ABANDONED_MAX: usize = 2;

/// Everything that was called, in one order: the clients share one thread.
struct Recorder {
    time: u64,
    next_value: u64,
    keys: Vec<Key>,
}

/// One key.
#[derive(Default)]
struct Key {
    /// Calls that have ended.
    history: Vec<Operation>,
    /// Calls under way, with their tickets.
    under_way: Vec<(u64, Operation)>,
    /// Calls under way for whose answer nobody waits.
    abandoned: usize,
    /// A version that some client was told last; a condition may ask for it.
    version: u64,
}

impl Recorder {
    fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// A call is about to be made. Its begin is its ticket.
    fn begin(&mut self, client: usize, key: usize, call: Call) -> u64 {
        let begun = self.now();
        let operation = Operation {
            client,
            call,
            answer: Answer::Missing,
            begun,
            ended: begun,
        };
        self.keys[key].under_way.push((begun, operation));
        begun
    }

    /// It has this answer.
    fn end(&mut self, key: usize, ticket: u64, answer: Answer) {
        let ended = self.now();
        let key = &mut self.keys[key];
        let place = key.under_way.iter().position(|(begun, _)| *begun == ticket);
        let (_, mut operation) = key.under_way.swap_remove(place.expect("it was begun"));
        match answer {
            Answer::Found(Some((_, version)))
            | Answer::Refused {
                current: Some(version),
            }
            | Answer::Written { version, .. } => key.version = version,
            _ => {}
        }
        operation.answer = answer;
        operation.ended = ended;
        key.history.push(operation);
    }

    /// The server is dead: what is under way has happened by now, or never will.
    fn server_died(&mut self) {
        for key in 0..self.keys.len() {
            self.keys[key].abandoned = 0;
            for (_, mut operation) in std::mem::take(&mut self.keys[key].under_way) {
                // A read without an answer says nothing.
                if operation.call != Call::Get {
                    operation.ended = self.now();
                    self.keys[key].history.push(operation);
                }
            }
        }
    }
}

/// A value that holds its number, and a filler that is the number's too.
fn value_of(number: u64) -> Vec<u8> {
    let mut random = Random::new(number);
    let len = match random.within(0..20) {
        0 => random.within(0..60_000),
        1..6 => random.within(0..5_000),
        _ => random.within(0..300),
    };
    let mut value = number.to_le_bytes().to_vec();
    value.extend(random.bytes(len as usize));
    value
}

fn number_of(value: &[u8]) -> u64 {
    let number = value.first_chunk().copied().map(u64::from_le_bytes);
    let number = number.expect("PHANTOM: a value too short for any");
    assert!(value == value_of(number), "TORN: not the value {number}");
    number
}

fn name_of(key: usize) -> Vec<u8> {
    format!("shared/{key:03}").into_bytes()
}

fn found(found: Option<Found>) -> Answer {
    Answer::Found(found.map(|found| (number_of(&found.value), found.version)))
}

fn outcome(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Written { version, existed } => Answer::Written { version, existed },
        Outcome::Refused { current } => Answer::Refused { current },
    }
}

/// A caller with one call under way at a time, beside those that it does not wait for.
struct Lane {
    id: usize,
    random: Random,
    recorder: Rc<RefCell<Recorder>>,
}

impl Lane {
    /// Works until the server is gone; that is the only way it may end.
    async fn work(&mut self, client: &Client) {
        loop {
            let key = self.random.within(0..KEYS as u64) as usize;
            let step = match self.random.within(0..20) {
                0 => self.read_many(client).await,
                1 | 2 => self.write_many(client).await,
                _ => self.one(client, key).await,
            };
            match step {
                Ok(()) => {}
                Err(ClientError::Disconnected(_) | ClientError::ShuttingDown(_)) => return,
                Err(error) => panic!("client {}: {error:?}", self.id),
            }
        }
    }

    /// One call on one key; now and then without patience for its answer.
    async fn one(&mut self, client: &Client, key: usize) -> Result<(), ClientError> {
        let call = if self.random.within(0..5) < 2 {
            Call::Get
        } else {
            self.change(key)
        };
        let impatient = self.random.one_in(40) && {
            let abandoned = &mut self.recorder.borrow_mut().keys[key].abandoned;
            *abandoned += 1;
            *abandoned <= ABANDONED_MAX
        };
        let ticket = self.recorder.borrow_mut().begin(self.id, key, call);
        let patience = if impatient {
            Duration::from_micros(self.random.within(0..1_000))
        } else {
            Duration::MAX
        };
        let Ok(answer) = tokio::time::timeout(patience, called(client, key, call)).await else {
            return Ok(());
        };
        self.recorder.borrow_mut().end(key, ticket, answer?);
        Ok(())
    }

    /// A set or a delete under some condition.
    fn change(&mut self, key: usize) -> Call {
        let version = self.recorder.borrow().keys[key].version;
        let condition = match self.random.within(0..8) {
            0 => Condition::IfAbsent,
            1 => Condition::IfPresent,
            2 | 3 => Condition::IfVersion(version.max(1)),
            _ => Condition::None,
        };
        if self.random.one_in(4) {
            return Call::Delete { condition };
        }
        let mut recorder = self.recorder.borrow_mut();
        recorder.next_value += 1;
        Call::Set {
            value: recorder.next_value,
            condition,
        }
    }

    fn some_keys(&mut self) -> Vec<usize> {
        (0..KEYS).filter(|_| self.random.one_in(4)).collect()
    }

    async fn read_many(&mut self, client: &Client) -> Result<(), ClientError> {
        let keys = self.some_keys();
        let tickets = keys.iter().map(|&key| (key, Call::Get));
        let tickets = self.begin_all(&tickets.collect::<Vec<_>>());
        let names: Vec<Vec<u8>> = keys.iter().map(|&key| name_of(key)).collect();
        let lookups = client.get_many(&names).await?;
        for (key, (ticket, lookup)) in keys.into_iter().zip(tickets.into_iter().zip(lookups)) {
            self.recorder.borrow_mut().end(key, ticket, found(lookup));
        }
        Ok(())
    }

    async fn write_many(&mut self, client: &Client) -> Result<(), ClientError> {
        let keys = self.some_keys();
        let calls: Vec<(usize, Call)> = keys
            .into_iter()
            .map(|key| (key, self.change(key)))
            .collect();
        let bytes: Vec<(Vec<u8>, Option<Vec<u8>>, Condition)> = calls
            .iter()
            .map(|&(key, call)| match call {
                Call::Set { value, condition } => (name_of(key), Some(value_of(value)), condition),
                Call::Delete { condition } => (name_of(key), None, condition),
                Call::Get => unreachable!("a change is no read"),
            })
            .collect();
        let mutations: Vec<_> = bytes
            .iter()
            .map(|(name, value, condition)| {
                let change = value.as_deref().map_or(Change::Delete, Change::Set);
                mutation(name, change, *condition)
            })
            .collect();
        let tickets = self.begin_all(&calls);
        let outcomes = client.write(&mutations).await?;
        for ((key, _), (ticket, one)) in calls.into_iter().zip(tickets.into_iter().zip(outcomes)) {
            // One that the stopping server did not take may be called unanswered.
            match one {
                Ok(one) => self.recorder.borrow_mut().end(key, ticket, outcome(one)),
                Err(ClientError::ShuttingDown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn begin_all(&self, calls: &[(usize, Call)]) -> Vec<u64> {
        let mut recorder = self.recorder.borrow_mut();
        calls
            .iter()
            .map(|&(key, call)| recorder.begin(self.id, key, call))
            .collect()
    }
}

async fn called(client: &Client, key: usize, call: Call) -> Result<Answer, ClientError> {
    let name = name_of(key);
    Ok(match call {
        Call::Get => found(client.get(&name).await?),
        Call::Set { value, condition } => {
            outcome(client.set_if(&name, &value_of(value), condition).await?)
        }
        Call::Delete { condition } => outcome(client.delete_if(&name, condition).await?),
    })
}

/// Lets all lanes work until the server is killed or told to stop, at a random time.
async fn one_life(
    server: Server,
    socket: Address,
    lanes: Vec<Lane>,
    random: &mut Random,
    kill: bool,
) -> Vec<Lane> {
    let mut addresses = vec![Address::Tcp(server.address().to_string()), socket];
    let shards = server.shard_addresses().iter();
    addresses.extend(shards.map(|shard| Address::Tcp(shard.to_string())));
    let clients = join_all((0..CLIENTS).map(|i| connect(&addresses[i % addresses.len()]))).await;
    let clients: Vec<Client> = clients.into_iter().map(Result::unwrap).collect();
    let mut tasks: Vec<_> = lanes
        .into_iter()
        .map(|mut lane| {
            let client = clients[lane.id / LANES].clone();
            tokio::task::spawn_local(async move {
                lane.work(&client).await;
                lane
            })
        })
        .collect();
    let life = Duration::from_micros(random.within(20_000..900_000));
    let early = tokio::time::timeout(life, select_all(&mut tasks)).await;
    if let Ok((lane, ..)) = early {
        // A failed check in the lane is the better story.
        lane.unwrap();
        panic!("the server ended by itself: {:#?}", server.exit().await);
    }
    if kill {
        let exit = server.kill().await;
        assert_eq!(exit.signal, Some(libc::SIGKILL), "{exit:#?}");
    } else {
        server.stop().await;
    }
    join_all(tasks)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

#[test]
fn every_key_has_one_order_of_calls_that_explains_all_answers() {
    let seconds = std::env::var("ORLOP_LINEARIZABILITY_SECONDS").map_or(SECONDS_DEFAULT, |text| {
        text.parse()
            .expect("ORLOP_LINEARIZABILITY_SECONDS: a number")
    });
    run_for(120 + 3 * seconds, async |scratch| {
        let seed = Random::seed();
        report(&format!("linearizability: seed {seed}"));
        let mut random = Random::new(seed);
        let recorder = Rc::new(RefCell::new(Recorder {
            time: 0,
            next_value: 0,
            keys: (0..KEYS).map(|_| Key::default()).collect(),
        }));
        let mut lanes: Vec<Lane> = (0..CLIENTS * LANES)
            .map(|id| Lane {
                id,
                random: Random::new(random.next()),
                recorder: recorder.clone(),
            })
            .collect();
        let sockets = short_directory();
        let socket = sockets.path().join("socket");
        let flags = Flags::small()
            .with("--unix", socket.display())
            // Room for a few values, so that many reads go to the disk.
            .with("--cache", "128KiB");
        let (begun, mut kills, mut stops) = (Instant::now(), 0, 0);
        while begun.elapsed() < Duration::from_secs(seconds) {
            let server = Server::start(&scratch.data(), &flags).await;
            let kill = !random.one_in(5);
            let socket = Address::Unix(socket.clone());
            lanes = one_life(server, socket, lanes, &mut random, kill).await;
            recorder.borrow_mut().server_died();
            kills += u64::from(kill);
            stops += u64::from(!kill);
        }
        verdict(seed, &recorder.borrow(), kills, stops);
    });
}

fn verdict(seed: u64, recorder: &Recorder, kills: u64, stops: u64) {
    let all = || recorder.keys.iter().flat_map(|key| &key.history);
    let answered = |wanted: fn(Answer) -> bool| all().filter(|one| wanted(one.answer)).count();
    let (calls, missing) = (all().count(), answered(|one| one == Answer::Missing));
    let refused = answered(|one| matches!(one, Answer::Refused { .. }));
    let begun = Instant::now();
    for (key, content) in recorder.keys.iter().enumerate() {
        if let Err(violation) = check(&content.history) {
            panic!("key {key}, ORLOP_SEED={seed}: {violation}");
        }
    }
    report(&format!(
        "linearizability: seed {seed}: {KEYS} histories, {calls} operations ({missing} without an answer, {refused} \
         refused) by {} clients, {kills} kills, {stops} stops, violations 0 (checked in {} ms)",
        CLIENTS * LANES,
        begun.elapsed().as_millis()
    ));
    assert!(kills > 0 && calls > 100, "hardly any load");
    assert!(missing > 0 && refused > 0, "only easy calls were made");
}

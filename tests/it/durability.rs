//! Kill the real server under load, again and again, also while it recovers, and start it with ever other numbers of
//! shards, also while it still moves what the last one wrote: what was acknowledged is there.
//!
//! Many writers keep in memory what the server acknowledged to them. After each restart every key must hold exactly the
//! newest acknowledged write, or the one write that was on its way when the server died; nothing else may be there.
//! `ORLOP_KILLS` and `ORLOP_SEED` make it longer and repeat it. SIGKILL proves recovery; that acknowledged bytes do not
//! live in the page cache is proved by the simulation of the disk in `src/storage`.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

use futures::future::{join_all, select_all};
use orlop::client::tokio::{Address, connect};
use orlop::client::{Change, Client, ClientError, Condition, Outcome, PrefixQuery};
use orlop::limits::PAGE_ENTRIES_MAX;

use crate::batches::mutation;
use crate::harness::{Flags, Process, Scratch, Server, Started, report, run_for, short_directory};
use crate::random::Random;

const KILLS_DEFAULT: usize = 24;
const CLIENTS: usize = 12;
/// Sequential writers on each connection.
const LANES: usize = 4;
const KEYS_OF_LANE: usize = 16;

/// What a key holds: a value with its version, or nothing.
type Content = Option<(Vec<u8>, u64)>;

/// One key of one writer.
struct Key {
    name: Vec<u8>,
    /// The newest acknowledged content.
    acknowledged: Content,
    /// The highest version that was acknowledged or read.
    version: u64,
    /// What was asked for and not answered: a value, or a delete.
    attempt: Option<Option<Vec<u8>>>,
}

/// A writer that has one call under way at a time, on keys that nobody else writes.
struct Lane {
    id: String,
    keys: Vec<Key>,
    writes: u64,
    random: Random,
    acknowledged: u64,
}

impl Lane {
    fn new(id: String, seed: u64) -> Lane {
        let name = |i| format!("{id}/key-{i:02}").into_bytes();
        let key = |i| Key {
            name: name(i),
            acknowledged: None,
            version: 0,
            attempt: None,
        };
        Lane {
            keys: (0..KEYS_OF_LANE).map(key).collect(),
            id,
            writes: 0,
            random: Random::new(seed),
            acknowledged: 0,
        }
    }

    /// A value that says who wrote it, then filler of a random length.
    fn next_value(&mut self) -> Vec<u8> {
        self.writes += 1;
        let mut value = format!("{}#{}|", self.id, self.writes).into_bytes();
        let filler = match self.random.within(0..20) {
            0 => self.random.within(0..60_000),
            1..5 => self.random.within(0..6_000),
            _ => self.random.within(0..400),
        };
        let filler = self.random.bytes(filler as usize);
        value.extend(filler);
        value
    }

    /// Writes and reads until the connection breaks; that is the only way it may end.
    async fn work(&mut self, client: &Client) {
        loop {
            match self.step(client).await {
                Ok(()) => {}
                Err(ClientError::Disconnected(_)) => return,
                Err(error) => panic!("{}: {error:?}", self.id),
            }
        }
    }

    async fn step(&mut self, client: &Client) -> Result<(), ClientError> {
        let k = self.random.within(0..KEYS_OF_LANE as u64) as usize;
        match self.random.within(0..10) {
            0 => {
                let key = &self.keys[k];
                let found = client
                    .get(&key.name)
                    .await?
                    .map(|found| (found.value, found.version));
                assert!(
                    found == key.acknowledged,
                    "{}: {} reads {}",
                    self.id,
                    k,
                    Shown(&found)
                );
                Ok(())
            }
            1 => {
                self.keys[k].attempt = Some(None);
                let outcome = client.delete(&self.keys[k].name).await?;
                self.take(k, outcome);
                Ok(())
            }
            2 => {
                let value = self.next_value();
                let key = &mut self.keys[k];
                let condition = match &key.acknowledged {
                    Some((_, version)) => Condition::IfVersion(*version),
                    None => Condition::IfAbsent,
                };
                key.attempt = Some(Some(value.clone()));
                let outcome = client.set_if(&key.name, &value, condition).await?;
                self.take(k, outcome);
                Ok(())
            }
            3 => self.batch(client).await,
            _ => {
                let value = self.next_value();
                self.keys[k].attempt = Some(Some(value.clone()));
                let outcome = client.set(&self.keys[k].name, &value).await?;
                self.take(k, outcome);
                Ok(())
            }
        }
    }

    /// Several keys in one call; each is durable on its own, so each may be there or not after a crash.
    async fn batch(&mut self, client: &Client) -> Result<(), ClientError> {
        let chosen: Vec<usize> = (0..KEYS_OF_LANE)
            .filter(|_| self.random.one_in(3))
            .collect();
        for &k in &chosen {
            let value = if self.random.one_in(6) {
                None
            } else {
                Some(self.next_value())
            };
            self.keys[k].attempt = Some(value);
        }
        let mutations: Vec<_> = chosen
            .iter()
            .map(|&k| {
                let value = self.keys[k].attempt.as_ref().expect("set above");
                let change = value.as_deref().map_or(Change::Delete, Change::Set);
                mutation(&self.keys[k].name, change, Condition::None)
            })
            .collect();
        let outcomes = client.write(&mutations).await?;
        assert_eq!(outcomes.len(), chosen.len());
        for (k, outcome) in chosen.into_iter().zip(outcomes) {
            self.take(k, outcome?);
        }
        Ok(())
    }

    /// The server has answered the attempt on a key.
    fn take(&mut self, k: usize, outcome: Outcome) {
        let key = &mut self.keys[k];
        let Outcome::Written { version, existed } = outcome else {
            panic!(
                "{}: refused, although nobody else writes key {k}: {outcome:?}",
                self.id
            )
        };
        assert_eq!(existed, key.acknowledged.is_some(), "{}: key {k}", self.id);
        let attempt = key.attempt.take().expect("an attempt was under way");
        if attempt.is_some() || existed {
            assert!(
                version > key.version,
                "{}: key {k}: version {version} after {}",
                self.id,
                key.version
            );
            key.version = version;
        }
        key.acknowledged = attempt.map(|value| (value, version));
        self.acknowledged += 1;
    }

    /// Compares what a restarted server holds with what is known; from now on that is what is known.
    fn verify(&mut self, stored: &mut BTreeMap<Vec<u8>, (Vec<u8>, u64)>) {
        for key in &mut self.keys {
            let found = stored.remove(&key.name);
            let name = String::from_utf8_lossy(&key.name);
            let attempted = match (&key.attempt, &found) {
                (Some(Some(value)), Some((stored, version))) => {
                    value == stored && *version > key.version
                }
                (Some(None), None) => true,
                _ => false,
            };
            assert!(
                found == key.acknowledged || attempted,
                "LOST: {name} holds {}, acknowledged is {}, attempted {:?}",
                Shown(&found),
                Shown(&key.acknowledged),
                key.attempt
                    .as_ref()
                    .map(|value| value.as_ref().map(Vec::len)),
            );
            if let Some((_, version)) = &found {
                key.version = key.version.max(*version);
            }
            key.acknowledged = found;
            key.attempt = None;
        }
    }
}

/// A content for a message: who wrote it, not the filler.
struct Shown<'a>(&'a Content);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => write!(f, "nothing"),
            Some((value, version)) => {
                let text = String::from_utf8_lossy(value);
                let who = text.split('|').next().unwrap_or_default();
                write!(f, "{who} ({} bytes, version {version})", value.len())
            }
        }
    }
}

/// What was done so far.
#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    kills_in_recovery: usize,
    /// Starts with another number of shards.
    changes: usize,
    /// Shards of the last start.
    shards: u64,
    acknowledged: u64,
    slowest_recovery: Duration,
}

#[test]
fn every_acknowledged_write_survives_sigkill() {
    let kills = std::env::var("ORLOP_KILLS").map_or(KILLS_DEFAULT, |text| {
        text.parse().expect("ORLOP_KILLS: a number")
    });
    run_for(60 + 10 * kills as u64, async |scratch| {
        let seed = Random::seed();
        report(&format!("durability: seed {seed}"));
        let mut random = Random::new(seed);
        let lanes = (0..CLIENTS * LANES)
            .map(|i| Lane::new(format!("c{:02}.{}", i / LANES, i % LANES), random.next()));
        let mut lanes: Vec<Lane> = lanes.collect();
        let mut tally = Tally::default();
        let sockets = short_directory();
        let flags = Flags::small().with("--unix", sockets.path().join("socket").display());
        while tally.kills < kills {
            let server = start(scratch, &flags, &mut random, &mut tally).await;
            verify(&server, &mut lanes).await;
            let socket = Address::Unix(sockets.path().join("socket"));
            lanes = load_until_killed(server, socket, lanes, &mut random, &mut tally).await;
        }
        let server = start(scratch, &flags, &mut random, &mut tally).await;
        verify(&server, &mut lanes).await;
        tally.acknowledged = lanes.iter().map(|lane| lane.acknowledged).sum();
        report(&format!(
            "durability: seed {seed}: {} kills ({} during recovery), {} changes of the number of shards, {} \
             acknowledged writes verified, lost 0, phantom 0, slowest recovery {} ms",
            tally.kills,
            tally.kills_in_recovery,
            tally.changes,
            tally.acknowledged,
            tally.slowest_recovery.as_millis()
        ));
        assert!(
            tally.acknowledged > 100 * kills as u64,
            "hardly any load: {tally:?}"
        );
        server.stop().await;
    });
}

/// Starts the server; in every other case kills it at a random time before it is ready, up to twice, and starts it again.
async fn start(scratch: &Scratch, flags: &Flags, random: &mut Random, tally: &mut Tally) -> Server {
    let mut tries = random.within(0..4).saturating_sub(1);
    loop {
        let began = Instant::now();
        if tally.shards == 0 || random.one_in(3) {
            let shards = random.within(1..4);
            tally.changes += usize::from(tally.shards != 0 && tally.shards != shards);
            tally.shards = shards;
        }
        let flags = flags.clone().with("--shards", tally.shards);
        let process = Process::spawn(&scratch.data(), &flags);
        let usual_us = tally.slowest_recovery.as_micros().max(1_000) as u64;
        let patience = Duration::from_micros(random.within(0..usual_us));
        if tries == 0 {
            let server = process
                .ready()
                .await
                .unwrap_or_else(|exit| panic!("no recovery: {exit:#?}"));
            tally.slowest_recovery = tally.slowest_recovery.max(began.elapsed());
            return server;
        }
        tries -= 1;
        let exit = match process.ready_within(patience).await {
            Started::Ready(server) => server.kill().await,
            Started::NotYet(process) => process.kill().await,
            Started::Ended(exit) => exit,
        };
        assert_eq!(exit.signal, Some(libc::SIGKILL), "no recovery: {exit:#?}");
        tally.kills += 1;
        tally.kills_in_recovery += 1;
    }
}

/// Reads everything and compares it with what the writers know. A key that no writer knows is a phantom.
async fn verify(server: &Server, lanes: &mut [Lane]) {
    let client = server.client().await;
    let mut stored = BTreeMap::new();
    let mut after = Vec::new();
    loop {
        let query = PrefixQuery {
            after: &after,
            max_entries: PAGE_ENTRIES_MAX as u32,
            ..PrefixQuery::new(b"")
        };
        let page = client.get_prefix(&query).await.unwrap();
        for entry in page.entries {
            after.clone_from(&entry.key);
            stored.insert(entry.key, (entry.value, entry.version));
        }
        if !page.more {
            break;
        }
    }
    // Listing and point reads go by different indexes.
    let names: Vec<&[u8]> = lanes
        .iter()
        .flat_map(|lane| lane.keys.iter().map(|key| &key.name[..]))
        .collect();
    for (name, found) in names.iter().zip(client.get_many(&names).await.unwrap()) {
        let found = found.map(|found| (found.value, found.version));
        assert!(
            found.as_ref() == stored.get(*name),
            "{}: get and getPrefix differ",
            String::from_utf8_lossy(name)
        );
    }
    for lane in lanes {
        lane.verify(&mut stored);
    }
    assert!(
        stored.is_empty(),
        "PHANTOM: {:?}",
        stored
            .keys()
            .map(|key| String::from_utf8_lossy(key))
            .collect::<Vec<_>>()
    );
}

/// Lets all lanes work on `CLIENTS` connections, kills the server at a random time, and gives the lanes back.
async fn load_until_killed(
    server: Server,
    socket: Address,
    lanes: Vec<Lane>,
    random: &mut Random,
    tally: &mut Tally,
) -> Vec<Lane> {
    let shards = server.shard_addresses();
    let addresses = [
        Address::Tcp(server.address().to_string()),
        Address::Tcp(shards[0].to_string()),
        Address::Tcp(shards[shards.len() - 1].to_string()),
        socket,
    ];
    let clients = join_all((0..CLIENTS).map(|i| connect(&addresses[i % addresses.len()]))).await;
    let clients: Vec<Client> = clients.into_iter().map(Result::unwrap).collect();
    let mut tasks: Vec<_> = lanes
        .into_iter()
        .enumerate()
        .map(|(i, mut lane)| {
            let client = clients[i / LANES].clone();
            tokio::task::spawn_local(async move {
                lane.work(&client).await;
                lane
            })
        })
        .collect();
    let life = Duration::from_micros(random.within(5_000..500_000));
    let early = tokio::time::timeout(life, select_all(&mut tasks)).await;
    if let Ok((lane, ..)) = early {
        // A failed check in the lane is the better story.
        lane.unwrap();
        panic!("the server ended by itself: {:#?}", server.exit().await);
    }
    let exit = server.kill().await;
    assert_eq!(exit.signal, Some(libc::SIGKILL), "{exit:#?}");
    tally.kills += 1;
    join_all(tasks)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

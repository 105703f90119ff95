//! The load before the power cuts: a server on the logged device, several writers, several kills, every fact recorded.
//!
//! Each life of the server ends with SIGKILL in the middle of the load, the last one with SIGTERM. The keys of a writer
//! are its own, so that what may be in them is known exactly. Most writes go to a few of them: so segments die while
//! something in them still lives, and compaction has to copy it. Before the load, writes one at a time show what a commit
//! costs the device.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use orlop::client::{Client, ClientError, Outcome};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::RecordOptions;
use super::history::{Alone, History, Write, stamp};
use super::server::Server;
use super::turnover::Turnover;
use super::write_log::WriteLog;
use crate::load::{Failure, HEADER_LEN, Random, encode};

const CLIENTS: usize = 4;
/// Writers on each connection.
const LANES: usize = 3;
const KEYS_OF_LANE: usize = 40;
/// The first of them get most of the writes.
const HOT_KEYS_OF_LANE: usize = 6;
/// How often the server is started.
const LIVES: u64 = 4;
/// Few enough for the first segment, so that nothing but the commits is written.
const ALONE: u64 = 200;
const ALONE_VALUE_LEN: usize = 100;
/// How long the device must have been left alone to be called quiet.
const QUIET: Duration = Duration::from_millis(300);
const QUIET_TRIES_MAX: usize = 30;

/// What the writers share.
struct Recording {
    log: WriteLog,
    history: RefCell<History>,
    turnover: Cell<Turnover>,
    /// Acknowledged writes of this life, and how many end it.
    acknowledged: Cell<u64>,
    enough: u64,
    reached: Notify,
}

/// Records a load of about `options.writes` acknowledged writes.
pub(crate) async fn record(options: &RecordOptions, seed: u64) -> Result<History, Failure> {
    let log = WriteLog::open(&options.log).map_err(Failure::Machine)?;
    let begun = log.position().map_err(Failure::Machine)?;
    let history = History {
        run: seed as u32,
        begun,
        alone: None,
        keys: vec![Vec::new(); CLIENTS * LANES * KEYS_OF_LANE],
    };
    let recording = Rc::new(Recording {
        log,
        history: RefCell::new(history),
        turnover: Cell::default(),
        acknowledged: Cell::new(0),
        enough: options.writes.div_ceil(LIVES),
        reached: Notify::new(),
    });
    for life in 0..LIVES {
        let server = Server::start(&options.orlopd, &options.data, &options.server_log)
            .map_err(Failure::Machine)?;
        if life == 0 {
            alone(&recording, &server).await?;
        }
        one_life(&recording, server, seed, life).await?;
    }
    let recording = Rc::into_inner(recording).expect("every writer has ended");
    let mut turnover = recording.turnover.get();
    turnover
        .count_files(&options.orlopd, &options.data)
        .map_err(Failure::Machine)?;
    if let Some(sentence) = turnover.missing() {
        return Err(Failure::Machine(sentence));
    }
    println!("recorded: {LIVES} lives of the server, {turnover}");
    Ok(recording.history.into_inner())
}

/// Writes one at a time while nothing else happens.
async fn alone(recording: &Recording, server: &Server) -> Result<(), Failure> {
    let position = || recording.log.position().map_err(Failure::Machine);
    let client = server.client().await?;
    let mut from = position()?;
    // Segments for later are prepared in the background.
    for _ in 0..QUIET_TRIES_MAX {
        tokio::time::sleep(QUIET).await;
        let now = position()?;
        if now == from {
            break;
        }
        from = now;
    }
    for _ in 0..ALONE {
        recording.write(&client, 0, Some(ALONE_VALUE_LEN)).await?;
    }
    recording.history.borrow_mut().alone = Some(Alone {
        commits: ALONE,
        from,
        to: position()?,
    });
    Ok(())
}

async fn one_life(
    recording: &Rc<Recording>,
    server: Server,
    seed: u64,
    life: u64,
) -> Result<(), Failure> {
    recording.acknowledged.set(0);
    let mut writers = JoinSet::new();
    for connection in 0..CLIENTS {
        let client = server.client().await?;
        for lane in connection * LANES..(connection + 1) * LANES {
            let random = Random::for_worker(seed, life << 32 | lane as u64);
            let lane = writes_until_disconnected(recording.clone(), client.clone(), lane, random);
            writers.spawn_local(lane);
        }
    }
    let asker = server.client().await?;
    let last = life + 1 == LIVES;
    tokio::select! {
        () = recording.reached.notified() => {}
        // Writers go on until the server is gone.
        Some(ended) = writers.join_next() => {
            ended.expect("a writer does not panic")?;
            return Err(Failure::Machine("the server ended by itself".to_owned()));
        }
    }
    let mut turnover = recording.turnover.get();
    turnover.count_life(&asker).await?;
    recording.turnover.set(turnover);
    drop(asker);
    if last {
        server.stop().map_err(Failure::Machine)?;
    } else {
        server.kill();
    }
    while let Some(ended) = writers.join_next().await {
        ended.expect("a writer does not panic")?;
    }
    Ok(())
}

async fn writes_until_disconnected(
    recording: Rc<Recording>,
    client: Client,
    lane: usize,
    mut random: Random,
) -> Result<(), Failure> {
    loop {
        let among = if random.below(4) > 0 {
            HOT_KEYS_OF_LANE
        } else {
            KEYS_OF_LANE
        };
        let key = lane * KEYS_OF_LANE + random.below(among as u64) as usize;
        let filler = match random.below(30) {
            0 => random.below(50_000),
            1..6 => random.below(6_000),
            _ => random.below(500),
        };
        let len = (random.below(5) > 0).then_some(HEADER_LEN + filler as usize);
        match recording.write(&client, key, len).await {
            Ok(()) => {}
            Err(ClientError::Disconnected(_) | ClientError::ShuttingDown(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

impl Recording {
    /// A set of a value of this length, or a delete, and what is known of it before and after.
    async fn write(
        &self,
        client: &Client,
        key: usize,
        len: Option<usize>,
    ) -> Result<(), ClientError> {
        let write = Write {
            is_delete: len.is_none(),
            sent: self.position(),
            acknowledged: None,
        };
        let (run, name, sequence) = {
            let mut history = self.history.borrow_mut();
            history.keys[key].push(write);
            let name = history.key_space().name(key as u64);
            (history.run, name, history.keys[key].len() - 1)
        };
        let outcome = match len {
            Some(len) => {
                let mut value = vec![0; len];
                encode(stamp(run, key as u64, sequence), &mut value);
                client.set(name.as_bytes(), &value).await?
            }
            None => client.delete(name.as_bytes()).await?,
        };
        let Outcome::Written { version, .. } = outcome else {
            let text = format!("a write without a condition was refused: {outcome:?}");
            return Err(ClientError::Protocol(text));
        };
        let at = self.position();
        self.history.borrow_mut().keys[key][sequence].acknowledged = Some((version, at));
        self.acknowledged.set(self.acknowledged.get() + 1);
        if self.acknowledged.get() == self.enough {
            self.reached.notify_one();
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        let position = self.log.position();
        position.expect("a log that was opened can be read")
    }
}

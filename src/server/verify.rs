//! `orlopd verify`: reads a whole data directory that is not served and says everything that is wrong with it.
//!
//! One thread per CPU, one shard at a time each. Guarantees: nothing is changed; the answer is the one that a start would
//! give, and on standard output alone. Does not: need io_uring or room on the disk.

use std::collections::HashSet;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::placement::Placement;
use crate::server::arguments::VerifyArguments;
use crate::server::exit::{self, ServerError};
use crate::server::promised::{Broken, Kept, Promised, Stored};
use crate::storage::directory::StoppedStore;
use crate::storage::disk::read_only::ReadOnlyDisk;
use crate::storage::{Checking, Handover, StorageError, StoreOptions, Verified, verify};

/// How often the progress is drawn.
const DRAW: Duration = Duration::from_millis(200);

/// Everything that was found.
struct Checked {
    shards: Vec<Verified>,
    /// With `--acks`.
    kept: Option<Kept>,
}

/// Checks the directory and prints what it found; returns the exit code.
pub(crate) fn run(asked: &VerifyArguments) -> Result<u8, ServerError> {
    let mut promised = match &asked.acks {
        Some(file) => Some(Promised::read(file).map_err(ServerError::Environment)?),
        None => None,
    };
    let store = StoppedStore::open(&asked.directory.data)?;
    let checked = Checked {
        shards: check_shards(&store, promised.as_mut())?,
        kept: promised.map(Promised::judge),
    };
    let text = match asked.json {
        true => checked.to_json(),
        false => checked.to_text(),
    };
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(ServerError::system("printing the result"))?;
    Ok(match checked.is_whole() {
        true => exit::DONE,
        false => exit::CORRUPT,
    })
}

/// What the threads of a check share.
struct Sharing<'a> {
    store: &'a StoppedStore,
    /// The keys of an acknowledgement log.
    keys: Option<HashSet<Vec<u8>>>,
    /// Bytes read.
    read: Arc<AtomicU64>,
    next: AtomicU64,
    failed: AtomicBool,
    /// By shard: what all of them have handed over to it.
    inboxes: Vec<Mutex<Vec<Handover>>>,
    all_have_read: Barrier,
}

/// What is heard of a shard.
type Outcome = Result<(u16, Verified, Stored), StorageError>;

/// Checks every shard and draws the progress meanwhile. The result is in shard order.
pub(super) fn check_shards(
    store: &StoppedStore,
    mut promised: Option<&mut Promised>,
) -> Result<Vec<Verified>, ServerError> {
    let count = store.manifest().generation.shards;
    let bar = progress(store.segment_files()?.iter().map(|(_, bytes)| bytes).sum());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(usize::from(count));
    let sharing = Sharing {
        store,
        keys: promised.as_deref().map(Promised::keys),
        read: Arc::default(),
        next: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        inboxes: (0..count).map(|_| Mutex::default()).collect(),
        all_have_read: Barrier::new(threads),
    };
    let (sender, results) = channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, sharing) = (sender.clone(), &sharing);
            scope.spawn(move || sharing.check_some(&sender));
        }
        drop(sender);
        let mut shards: Vec<Option<Verified>> = (0..count).map(|_| None).collect();
        loop {
            match results.recv_timeout(DRAW) {
                Ok(checked) => {
                    let (shard, verified, stored) = checked?;
                    shards[usize::from(shard)] = Some(verified);
                    if let Some(promised) = &mut promised {
                        promised.take(stored);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            bar.set_position(sharing.read.load(Ordering::Relaxed));
        }
        bar.finish_and_clear();
        let answered = |shard: Option<_>| shard.expect("every shard is taken and answered for");
        Ok(shards.into_iter().map(answered).collect())
    })
}

impl Sharing<'_> {
    /// Reads shards as long as there are some that nobody has taken; then, when all are read, ends what it has read.
    fn check_some(&self, results: &Sender<Outcome>) {
        let mut own = Vec::new();
        while !self.failed.load(Ordering::Relaxed)
            && let Some(shard) = self.take_next()
        {
            match self.read_shard(shard) {
                Ok((checking, stored)) => own.push((shard, checking, stored)),
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    results.send(Err(error)).unwrap_or_default();
                }
            }
        }
        self.all_have_read.wait();
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        for (shard, checking, stored) in own {
            let inbox = &self.inboxes[usize::from(shard)];
            let verified = checking.finish(&inbox.lock().expect("nobody panics with it"));
            // Nobody listens any more when another shard could not be read.
            results
                .send(Ok((shard, verified, stored)))
                .unwrap_or_default();
        }
    }

    fn take_next(&self) -> Option<u16> {
        let shard = u16::try_from(self.next.fetch_add(1, Ordering::Relaxed)).ok()?;
        (usize::from(shard) < self.inboxes.len()).then_some(shard)
    }

    fn read_shard(&self, shard: u16) -> Result<(Checking, Stored), StorageError> {
        let disk = ReadOnlyDisk::new(self.store.path(), Arc::clone(&self.read));
        let manifest = self.store.manifest();
        let options = StoreOptions::to_read(manifest, shard);
        let placement = Placement::new(manifest.placement_seed, manifest.generation.shards);
        let owner = |key: &[u8]| placement.owner(key).number();
        let mut stored = Stored::default();
        let checking = verify(&disk, &options, &owner, |write| {
            if let Some(keys) = &self.keys {
                stored.see(keys, &write);
            }
        });
        let (checking, handovers) = futures::executor::block_on(checking)?;
        for (inbox, handover) in self.inboxes.iter().zip(handovers) {
            inbox.lock().expect("nobody panics with it").push(handover);
        }
        Ok((checking, stored))
    }
}

/// A bar on standard error, if that is a terminal. Files that are kept ready are not read, so it may end early.
fn progress(bytes: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "verify {bar:40} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
    ProgressBar::new(bytes)
        .with_style(ProgressStyle::with_template(style).expect("the template is a constant"))
}

impl Checked {
    fn is_whole(&self) -> bool {
        let undamaged = self.shards.iter().all(|shard| shard.damage.is_empty());
        undamaged && self.kept.as_ref().is_none_or(|kept| kept.broken.is_empty())
    }

    fn to_text(&self) -> String {
        let shards = self.shards.iter().enumerate();
        let mut text: String = shards
            .map(|(number, shard)| shard_to_text(number, shard))
            .collect();
        if let Some(kept) = &self.kept {
            text += &format!(
                "acknowledged: {} writes of {} keys: {} keys as they were last written, {} overwritten or deleted since, {} broken\n",
                kept.writes,
                kept.keys,
                kept.last,
                kept.superseded,
                kept.broken.len()
            );
            for Broken { key, what } in &kept.broken {
                text += &format!("BROKEN: key {key}: {what}\n");
            }
        }
        text
    }

    fn to_json(&self) -> String {
        let shards = self.shards.iter().enumerate();
        let shards: Vec<Value> = shards
            .map(|(number, shard)| shard_to_json(number, shard))
            .collect();
        let mut result = json!({ "whole": self.is_whole(), "shards": shards });
        if let Some(kept) = &self.kept {
            let broken = |one: &Broken| json!({ "key": one.key, "what": one.what });
            result["acknowledged"] = json!({
                "writes": kept.writes,
                "keys": kept.keys,
                "last": kept.last,
                "superseded": kept.superseded,
                "broken": kept.broken.iter().map(broken).collect::<Vec<_>>(),
            });
        }
        format!("{result}\n")
    }
}

fn shard_to_text(number: usize, shard: &Verified) -> String {
    let Verified {
        recovered,
        keys,
        damage,
    } = shard;
    let verdict = match damage.len() {
        0 => "whole".to_owned(),
        1 => "1 damaged place".to_owned(),
        places => format!("{places} damaged places"),
    };
    let mut text = format!(
        "shard {number}: {keys} keys, {} records in {} segments, {} bytes, last version {}: {verdict}\n",
        recovered.records, recovered.segments, recovered.bytes, recovered.last_version
    );
    if let Some(tail) = &recovered.torn_tail {
        text += &format!(
            "shard {number}: torn tail of {} bytes in {} at offset {}: a crash cut a write that was not acknowledged\n",
            tail.bytes, tail.file, tail.offset
        );
    }
    if recovered.bad_footers > 0 {
        text += &format!(
            "shard {number}: {} footers of segments do not verify: a start reads those segments whole, nothing is lost\n",
            recovered.bad_footers
        );
    }
    for damage in damage {
        text += &format!("shard {number}: {damage}\n");
    }
    text
}

fn shard_to_json(number: usize, shard: &Verified) -> Value {
    let recovered = &shard.recovered;
    let damage = |damage: &StorageError| match damage {
        StorageError::Corrupt { file, offset, what } => {
            json!({ "file": file, "offset": offset, "what": what })
        }
        other => json!({ "what": other.to_string() }),
    };
    let torn_tail = recovered
        .torn_tail
        .as_ref()
        .map(|tail| json!({ "file": tail.file, "offset": tail.offset, "bytes": tail.bytes }));
    json!({
        "shard": number,
        "keys": shard.keys,
        "records": recovered.records,
        "segments": recovered.segments,
        "bytes": recovered.bytes,
        "lastVersion": recovered.last_version,
        "foreignSegments": recovered.foreign_segments,
        "badFooters": recovered.bad_footers,
        "tornTail": torn_tail,
        "damage": shard.damage.iter().map(damage).collect::<Vec<_>>(),
    })
}

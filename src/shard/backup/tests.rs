//! Steps of a backup between two shards, in the orders that a client who gives up can bring about.
//!
//! The executors are not ended: a connected channel waits for its other end. They go with the test's process.

use std::path::Path;
use std::sync::{Arc, Barrier, Mutex, mpsc as threads};

use glommio::{LocalExecutorBuilder, Placement as Cpus};

use super::*;
use crate::placement::Placement;
use crate::shard::mesh::{Seat, seats};
use crate::shard::{Handover, ShardConfig, StartingShard, StoreOptions};
use crate::storage::directory::DataDirectory;

/// What the shards hand over to each other at the start: by the shard that gets it, then by the one that gives it.
type Inboxes = Arc<Mutex<Vec<Vec<Handover>>>>;

fn config(directory: &DataDirectory, id: ShardId, placement: Placement) -> ShardConfig {
    let segment_bytes = 1 << 20;
    let store = StoreOptions {
        segment_bytes,
        value_len_max: 64 << 10,
        cache_bytes: 1 << 20,
        pending_bytes_max: limits::SHARD_PENDING_BYTES_MAX,
        dead_bytes_min: limits::DEAD_SEGMENTS_MIN * u64::from(segment_bytes),
        run: directory.run(),
        ..StoreOptions::to_read(directory.manifest(), id.number())
    };
    ShardConfig {
        id,
        placement,
        directory: directory.path().to_owned(),
        store,
        scrub_rate: 0,
    }
}

#[derive(Debug, PartialEq)]
enum News {
    Complete,
    /// A shard ends only by a panic.
    Ended,
}

struct Reporter(threads::Sender<News>);

impl Drop for Reporter {
    fn drop(&mut self) {
        self.0.send(News::Ended).unwrap_or_default();
    }
}

/// Starts two shards of a new store in threads of their own, and runs `body` to its end beside the first.
fn beside_two_shards<F: Future<Output = ()> + 'static>(
    path: &Path,
    body: impl FnOnce(Rc<Shard>) -> F + Send + 'static,
) {
    let directory = DataDirectory::open(path, 2).unwrap();
    let placement = Placement::new(directory.placement_seed(), 2);
    let inboxes: Inboxes = Arc::new(Mutex::new(vec![Vec::new(), Vec::new()]));
    let all_have_read = Arc::new(Barrier::new(2));
    let (reports, news) = threads::channel();
    let mut body = Some(body);
    for (id, seat) in placement.shards().zip(seats(2)) {
        let config = config(&directory, id, placement);
        let (inboxes, all_have_read) = (Arc::clone(&inboxes), Arc::clone(&all_have_read));
        let (body, reporter) = (body.take(), Reporter(reports.clone()));
        let live = move || async move {
            let shard = start(config, seat, &inboxes, &all_have_read).await;
            if let Some(body) = body {
                body(shard).await;
                reporter.0.send(News::Complete).unwrap_or_default();
            }
            futures::future::pending::<()>().await;
            drop(reporter);
        };
        let thread = LocalExecutorBuilder::new(Cpus::Unbound).spawn(live);
        drop(thread.expect("an executor can be made"));
    }
    assert_eq!(news.recv(), Ok(News::Complete));
}

async fn start(
    config: ShardConfig,
    seat: Seat,
    inboxes: &Inboxes,
    all_have_read: &Barrier,
) -> Rc<Shard> {
    let id = config.id;
    let (starting, handovers) = StartingShard::read(config).await.unwrap();
    for (inbox, handover) in inboxes.lock().unwrap().iter_mut().zip(handovers) {
        inbox.push(handover);
    }
    all_have_read.wait();
    let handovers = std::mem::take(&mut inboxes.lock().unwrap()[id.index()]);
    starting.open(handovers, seat).await.unwrap()
}

#[test]
fn a_read_that_nobody_waits_for_any_more_may_come_after_its_cut_is_let_go() {
    // Beside the test program: where the system keeps temporary files there may be no disk.
    let program = std::env::current_exe().unwrap();
    let home = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    beside_two_shards(&home.path().join("data"), |shard| async move {
        let other = shard.placement.shards().last().expect("there are two");
        for backup in 0..100 {
            let ask = |ask| shard.call(other, Request::Backup { backup, ask }).unwrap();
            ask(BackupAsk::Pin).await.unwrap();
            let Ok(Reply::Backup(Ok(BackupAnswer::Cut(cut)))) = ask(BackupAsk::Cut).await else {
                panic!("a shard answers what it was asked")
            };
            let (_, place) = places_of((&other, &cut)).remove(0);
            // One batch: the other shard has all of them before its disk has read anything.
            let (read, unpin) = (ask(BackupAsk::Read(place)), ask(BackupAsk::Unpin));
            let (read, unpin) = futures::future::join(read, unpin).await;
            assert!(matches!(unpin, Ok(Reply::Backup(Ok(BackupAnswer::Done)))));
            let Ok(Reply::Backup(Ok(BackupAnswer::Read(bytes)))) = read else {
                panic!("a shard answers what it was asked")
            };
            assert_eq!(bytes.len(), place.len);
        }
    });
}

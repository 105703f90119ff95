//! Two shards without a server, and what shows best there.
//!
//! The executors are not ended: a connected channel waits for its other end. They go with the test's process.

use std::sync::{Barrier, Mutex, mpsc as threads};

use glommio::{LocalExecutorBuilder, Placement as Cpus};

use super::*;
use crate::shard::mesh::{Seat, seats};
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

/// Starts two shards of a new store for the test `name` in threads of their own, and runs `body` to its end beside the first.
pub(super) fn beside_two_shards<F: Future<Output = ()> + 'static>(
    name: &str,
    body: impl FnOnce(Rc<Shard>) -> F + Send + 'static,
) {
    // Beside the test program: where the system keeps temporary files there may be no disk. The shards make spare segments
    // as long as they live, so what is there is removed by the next run.
    let program = std::env::current_exe().unwrap();
    let data = program.with_file_name(format!("two-shards-{name}"));
    if data.exists() {
        std::fs::remove_dir_all(&data).unwrap();
    }
    let directory = DataDirectory::open(&data, 2).unwrap();
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
fn an_answer_that_grows_while_it_waits_for_room_is_checked_again() {
    const SHORT: usize = 16 << 10;
    const LONG: usize = 64 << 10;
    beside_two_shards("room", |shard| async move {
        let mut keys = (0u8..).map(|number| [number]);
        let key = keys
            .find(|key| shard.placement.owner(key) == shard.id)
            .expect("it owns some");
        let write = async |len| {
            let value = vec![b'v'; len];
            let mutation = Mutation {
                key: &key,
                change: Change::Set(&value),
                condition: Condition::None,
            };
            shard.submit(&mutation).await.expect("there is room");
        };
        write(SHORT).await;
        let many = vec![&key[..]; limits::ANSWER_BYTES_MAX / LONG + 1];
        // For another shard all that is found is copied.
        let asks = 1;
        let held = shard.rooms[asks].take(usize::MAX).await;
        let mut reading = std::pin::pin!(shard.get_own(&many, asks));
        assert!(futures::poll!(reading.as_mut()).is_pending());
        write(LONG).await;
        drop(held);
        let answer = reading.await.err();
        assert!(
            matches!(answer, Some(ShardError::AnswerTooLarge { .. })),
            "{answer:?}"
        );
    });
}

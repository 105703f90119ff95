//! Backups that do not come to their end: the client takes no more of them, or the server stops.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{Either, select};
use orlop::proto::orlop_capnp::{backup_sink, store};

use super::{WAIT, complete, segments, verify, write_round};
use crate::harness::{Flags, Server, run, run_for, run_idle, until};
use crate::random::Random;

/// A sink that tells when it has had as many calls as it wanted, and answers none from then on.
struct Wanting {
    calls: Cell<u64>,
    enough: RefCell<Option<oneshot::Sender<()>>>,
}

impl Wanting {
    /// The sink, and what tells that it has had its calls.
    fn sink(calls: u64) -> (backup_sink::Client, oneshot::Receiver<()>) {
        let (enough, had_enough) = oneshot::channel();
        let sink = Wanting {
            calls: Cell::new(calls),
            enough: RefCell::new(Some(enough)),
        };
        (capnp_rpc::new_client(sink), had_enough)
    }

    async fn called(&self) -> Result<(), capnp::Error> {
        let left = self.calls.get().saturating_sub(1);
        self.calls.set(left);
        if left > 0 {
            return Ok(());
        }
        if let Some(enough) = self.enough.take() {
            enough.send(()).unwrap_or_default();
        }
        std::future::pending().await
    }
}

impl backup_sink::Server for Wanting {
    async fn begin(
        self: Rc<Self>,
        _: backup_sink::BeginParams,
        _: backup_sink::BeginResults,
    ) -> Result<(), capnp::Error> {
        self.called().await
    }

    async fn file(
        self: Rc<Self>,
        _: backup_sink::FileParams,
        _: backup_sink::FileResults,
    ) -> Result<(), capnp::Error> {
        self.called().await
    }

    async fn chunk(
        self: Rc<Self>,
        _: backup_sink::ChunkParams,
        _: backup_sink::ChunkResults,
    ) -> Result<(), capnp::Error> {
        self.called().await
    }
}

/// Asks for a backup whose sink never answers: what the call ends with.
async fn silent_backup(server: &Server) -> capnp::Error {
    let store = crate::stock::store(server.address()).await;
    let mut request = store.backup_request();
    let (silent, _) = Wanting::sink(0);
    request.get().set_sink(silent);
    let ended = request.send().promise.await;
    ended.map(drop).unwrap_err()
}

#[test]
fn a_stop_does_not_wait_for_a_backup() {
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        write_round(&server.client().await, 100, 0).await;
        let stop = async {
            until("the backup begins", WAIT, async || {
                server.stderr().contains("a backup begins")
            })
            .await;
            server.signal(libc::SIGTERM);
        };
        let (error, ()) = futures::join!(silent_backup(&server), stop);
        assert!(error.extra.contains("shuttingDown: "), "{error:?}");
        let exit = server.exit().await;
        assert_eq!(exit.code, Some(0), "{exit:#?}");
    });
}

/// Asks for a backup and gives it up when its sink has had `calls` calls, the answer at the latest; whether it began.
async fn given_up_backup(store: &store::Client, calls: u64) -> bool {
    let (sink, had_enough) = Wanting::sink(calls);
    let mut request = store.backup_request();
    request.get().set_sink(sink);
    let answer = request.send().promise;
    match select(had_enough, answer).await {
        Either::Left(_) => true,
        Either::Right((answer, _)) => match answer {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind, capnp::ErrorKind::Overloaded, "{error:?}");
                false
            }
        },
    }
}

#[test]
fn backups_that_are_given_up_anywhere_let_go_of_every_shard() {
    run_for(120, async |scratch| {
        let seed = Random::seed();
        println!("backups that are given up: seed {seed}");
        let mut random = Random::new(seed);
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let client = server.client().await;
        write_round(&client, 2000, 0).await;
        let [first, second] = server.shard_addresses()[..] else {
            panic!("there are two shards")
        };
        let stores = [
            crate::stock::store(first).await,
            crate::stock::store(second).await,
        ];
        let give_up = async {
            let mut begun = 0;
            while begun < 300 {
                let store = &stores[usize::from(random.one_in(2))];
                begun += u64::from(given_up_backup(store, random.within(0..12)).await);
            }
        };
        let writing = async {
            loop {
                write_round(&client, 2000, 1).await;
            }
        };
        select(Box::pin(give_up), Box::pin(writing)).await;
        // Nothing is pinned any more: what compaction retires goes, on either shard, and another backup may run.
        let before = segments(&scratch.data());
        until("retired segments go", WAIT, async || {
            write_round(&client, 2000, 2).await;
            let now = segments(&scratch.data());
            let gone = |shard: &str| before.difference(&now).any(|name| name.starts_with(shard));
            gone("segment-0000") && gone("segment-0001")
        })
        .await;
        complete(&server, &scratch.path("copy")).await;
        verify(&scratch.path("copy"), None).await;
        server.stop().await;
    });
}

#[test]
fn a_sink_that_does_not_answer_for_a_minute_ends_the_backup() {
    run_idle(120, async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let begun = std::time::Instant::now();
        let error = silent_backup(&server).await;
        assert_eq!(error.kind, capnp::ErrorKind::Overloaded, "{error:?}");
        let words = "overloaded: the sink of the backup has not answered for 60 s";
        assert!(error.extra.contains(words), "{error:?}");
        assert!(begun.elapsed() >= Duration::from_secs(60));
        server.stop().await;
    });
}

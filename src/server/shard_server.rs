//! One shard's part of the server, on its executor: who is connected, and whether the server stops.
//!
//! Owns: the sessions of the shard and its stop switch. Guarantees: after a drain every call that was received is
//! answered or its connection was closed late, and every write that was submitted here is durable. Made by
//! `shard_thread`; shared by the accept loops and all sessions of the executor.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::channel::oneshot;
use futures::future::Shared;
use glommio::net::TcpStream;
use glommio::timer::sleep;

use crate::limits;
use crate::server::process::Process;
use crate::server::readiness::Readiness;
use crate::server::session;
use crate::server::sessions::Sessions;
use crate::server::sparse_log::SparseLog;
use crate::server::stream::Stream;
use crate::shard::Shard;

/// Time between two looks at the deadlines of the connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How often a drain looks whether the connections are gone.
const DRAIN_POLL: Duration = Duration::from_millis(2);

/// A switch that goes on once, and wakes everybody who waits for it.
pub(crate) struct Stop {
    unset: RefCell<Option<oneshot::Sender<()>>>,
    requested: Shared<oneshot::Receiver<()>>,
}

impl Stop {
    fn new() -> Stop {
        let (unset, requested) = oneshot::channel();
        Stop {
            unset: RefCell::new(Some(unset)),
            requested: requested.shared(),
        }
    }

    fn request(&self) {
        // Dropping the sender resolves the future.
        drop(self.unset.borrow_mut().take());
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.unset.borrow().is_none()
    }

    pub(crate) fn requested(&self) -> impl Future<Output = ()> + Unpin + use<> {
        self.requested.clone().map(|_| ())
    }
}

/// Characters of what a broken connection says that are logged.
const LOGGED_CHARS_MAX: usize = 400;

/// What the connections of one shard share.
pub(crate) struct ShardServer {
    number: u16,
    shard: Rc<Shard>,
    process: Arc<Process>,
    sessions: Sessions,
    readiness: Rc<Readiness>,
    stop: Stop,
    refused: SparseLog,
    broken: SparseLog,
}

impl ShardServer {
    /// # Errors
    /// As [`Readiness::new`].
    pub(crate) fn new(
        number: u16,
        shard: Rc<Shard>,
        process: Arc<Process>,
    ) -> io::Result<Rc<ShardServer>> {
        let readiness = Readiness::new(shard.turns())?;
        glommio::spawn_local_into(Rc::clone(&readiness).tell(), shard.queues().serve)
            .expect("the queue lives as long as the executor")
            .detach();
        Ok(Rc::new(ShardServer {
            number,
            shard,
            process,
            sessions: Sessions::default(),
            readiness,
            stop: Stop::new(),
            refused: SparseLog::default(),
            broken: SparseLog::default(),
        }))
    }

    pub(crate) fn shard(&self) -> &Rc<Shard> {
        &self.shard
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub(crate) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Starts a session on an accepted connection, or closes it when there are as many as there may be.
    pub(crate) fn admit(self: &Rc<Self>, socket: TcpStream) {
        match self.process.connections.enter(self.number) {
            Some(slot) => {
                let stream = match Stream::new(socket, &self.readiness) {
                    Ok(stream) => stream,
                    Err(error) => return self.note_session_end(Err(error.into())),
                };
                let session = session::serve(Rc::clone(self), stream, slot);
                glommio::spawn_local_into(session, self.shard.queues().serve)
                    .expect("the queue lives as long as the executor")
                    .detach();
            }
            None => {
                if let Some(left_out) = self.refused.turn(Instant::now()) {
                    let limit = self.process.connections.max();
                    tracing::warn!(
                        limit,
                        left_out,
                        "closed a new connection: as many are open as there may be"
                    );
                }
            }
        }
    }

    /// Logs how a session ended by itself: a peer that goes is nothing, a peer that sends garbage is worth a line.
    pub(crate) fn note_session_end(&self, result: Result<(), capnp::Error>) {
        match result {
            Ok(()) => tracing::debug!(shard = self.number, "a connection ended"),
            Err(error) if error.kind == capnp::ErrorKind::Disconnected => {
                tracing::debug!(shard = self.number, %error, "a connection ended");
            }
            Err(mut error) => {
                if let Some(left_out) = self.broken.turn(Instant::now()) {
                    // A peer may say why it goes, at any length.
                    if let Some((end, _)) = error.extra.char_indices().nth(LOGGED_CHARS_MAX) {
                        error.extra.truncate(end);
                    }
                    tracing::warn!(shard = self.number, %error, left_out, "a connection broke");
                }
            }
        }
    }

    /// Ends connections whose peers stand still, for ever.
    pub(crate) async fn watch_deadlines(self: Rc<Self>) {
        loop {
            sleep(SWEEP_INTERVAL).await;
            self.sessions.sweep(Instant::now());
        }
    }

    /// Answers what was received, closes every connection, and waits until every write is durable.
    pub(crate) async fn drain(&self) {
        self.stop.request();
        let deadline = Instant::now() + Duration::from_secs(limits::DRAIN_SECONDS_MAX);
        while self.sessions.len() > 0 {
            if Instant::now() >= deadline {
                self.sessions.end_all();
            }
            sleep(DRAIN_POLL).await;
        }
        self.shard.drain().await;
    }
}

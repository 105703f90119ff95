//! The life of one shard's thread: a pinned executor that recovers, serves, drains and closes when it is told to.
//!
//! The main thread gives commands over a socket pair, which wakes the executor like any other input, and hears events
//! over a channel. Guarantees: nothing is served before every shard has recovered, nothing is closed before every
//! shard has drained; an executor that cannot start is reported, not waited for. The executor is never torn down: the
//! process ends.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::AsyncReadExt as _;
use glommio::net::TcpStream;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use socket2::Socket;

use crate::server::exit::ServerError;
use crate::server::process::Process;
use crate::server::shard_server::ShardServer;
use crate::server::sockets::ShardSockets;
use crate::server::{listener, memory, os};
use crate::shard::mesh::Seat;
use crate::shard::{Handover, Recovered, ShardConfig, StartingShard};

/// What a shard's thread is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Command {
    /// Open what is in the inbox.
    Open = b'o',
    /// Accept connections.
    Serve = b's',
    /// Stop accepting, answer what was received, make everything durable.
    Drain = b'd',
    /// End the log.
    Close = b'c',
}

/// What the main thread hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// A shard has read its logs; what it found for each, in shard order.
    Read { handovers: Vec<Handover> },
    /// A shard is ready to serve.
    Recovered {
        shard: u16,
        recovered: Recovered,
        heartbeat: Arc<AtomicU64>,
    },
    /// A shard has answered everything.
    Drained,
    /// A shard has ended its log.
    Closed,
    /// A shard cannot go on.
    Failed(ServerError),
    /// The thread of a shard is gone without a word.
    Gone { shard: u16 },
    /// A signal asked for a stop.
    StopRequested,
}

/// Everything one shard starts from.
pub(crate) struct ShardStart {
    pub(crate) cpu: usize,
    /// How long the executor looks for work before it sleeps.
    pub(crate) idle_poll: Duration,
    pub(crate) config: ShardConfig,
    pub(crate) seat: Seat,
    pub(crate) sockets: ShardSockets,
    pub(crate) process: Arc<Process>,
}

/// A running thread.
pub(crate) struct ShardThread {
    handle: ExecutorJoinHandle<()>,
    commands: UnixStream,
    inbox: Inbox,
}

/// What all shards have handed over to one, before it is told to open.
type Inbox = Arc<Mutex<Vec<Handover>>>;

/// Reports the thread's end; it is meant to live for ever.
struct GoneNotice {
    shard: u16,
    events: Sender<Event>,
}

impl Drop for GoneNotice {
    fn drop(&mut self) {
        self.events
            .send(Event::Gone { shard: self.shard })
            .unwrap_or_default();
    }
}

impl ShardThread {
    /// Starts the executor and on it the recovery of the shard.
    pub(crate) fn spawn(
        start: ShardStart,
        events: Sender<Event>,
    ) -> Result<ShardThread, ServerError> {
        let shard = start.config.id.number();
        let pair = UnixStream::pair().map_err(ServerError::system("making a socket pair"))?;
        let (commands, theirs) = pair;
        let notice = GoneNotice {
            shard,
            events: events.clone(),
        };
        let inbox = Inbox::default();
        let its_inbox = Arc::clone(&inbox);
        let handle = LocalExecutorBuilder::new(Placement::Fixed(start.cpu))
            .name(&format!("shard-{shard}"))
            .io_memory(IO_MEMORY_BYTES)
            .spin_before_park(start.idle_poll)
            .spawn(move || async move {
                let _notice = notice;
                let commands = Commands(TcpStream::from(Socket::from(theirs)));
                live(start, commands, its_inbox, events).await;
            })
            .map_err(|error| ServerError::Executor {
                shard,
                what: error.to_string(),
            })?;
        Ok(ShardThread {
            handle,
            commands,
            inbox,
        })
    }

    /// Tells the thread to open its shard with what all have handed over to it.
    pub(crate) fn open(&mut self, handovers: Vec<Handover>) -> Result<(), ServerError> {
        *self.inbox.lock().expect("nobody panics with it") = handovers;
        self.command(Command::Open)
    }

    /// Tells the thread what to do next.
    pub(crate) fn command(&mut self, command: Command) -> Result<(), ServerError> {
        self.commands
            .write_all(&[command as u8])
            .map_err(ServerError::system("giving a command to a shard"))
    }

    /// Why the thread is gone.
    pub(crate) fn reason(self, shard: u16) -> ServerError {
        let what = match self.handle.join() {
            Ok(()) => "it ended early".to_owned(),
            Err(error) => error.to_string(),
        };
        ServerError::Executor { shard, what }
    }
}

/// Memory that an executor registers with its rings for writes, in bytes; larger writes take ordinary memory.
const IO_MEMORY_BYTES: usize = 2 << 20;

/// The commands as the executor reads them.
struct Commands(TcpStream);

impl Commands {
    /// Waits for `expected`; the main thread keeps the order.
    async fn wait(&mut self, expected: Command) -> io::Result<()> {
        let mut byte = [0];
        self.0.read_exact(&mut byte).await?;
        assert_eq!(
            byte[0], expected as u8,
            "the main thread gives commands in order"
        );
        Ok(())
    }
}

async fn live(start: ShardStart, commands: Commands, inbox: Inbox, events: Sender<Event>) {
    // The main thread hears of a failure and ends the process; a failed send means that it is about to.
    match steps(start, commands, inbox, &events).await {
        Ok(()) => {}
        Err(error) => events.send(Event::Failed(error)).unwrap_or_default(),
    }
    futures::future::pending().await
}

async fn steps(
    start: ShardStart,
    mut commands: Commands,
    inbox: Inbox,
    events: &Sender<Event>,
) -> Result<(), ServerError> {
    let shard = start.config.id.number();
    if let Err(error) = os::ask_for_long_slice() {
        tracing::warn!(shard, %error, "commits may wait for the kernel's own work");
    }
    let lost = || ServerError::system("waiting for a command");
    let (starting, handovers) = StartingShard::read(start.config).await?;
    events.send(Event::Read { handovers }).unwrap_or_default();
    commands.wait(Command::Open).await.map_err(lost())?;
    let handovers = std::mem::take(&mut *inbox.lock().expect("nobody panics with it"));
    let served = starting.open(handovers, start.seat).await?;
    memory::give_back();
    let recovered = Event::Recovered {
        shard,
        recovered: served.recovered().clone(),
        heartbeat: served.heartbeat(),
    };
    events.send(recovered).unwrap_or_default();

    commands.wait(Command::Serve).await.map_err(lost())?;
    served.begin_compaction();
    let server = ShardServer::new(shard, Rc::clone(&served), start.process)
        .map_err(ServerError::system("preparing to accept connections"))?;
    let accepting = accept_on(&server, start.sockets);
    glommio::spawn_local_into(
        Rc::clone(&server).watch_deadlines(),
        served.queues().background,
    )
    .expect("the queue lives as long as the executor")
    .detach();

    commands.wait(Command::Drain).await.map_err(lost())?;
    for task in accepting {
        task.cancel().await;
    }
    server.drain().await;
    events.send(Event::Drained).unwrap_or_default();

    commands.wait(Command::Close).await.map_err(lost())?;
    served.close().await?;
    events.send(Event::Closed).unwrap_or_default();
    Ok(())
}

/// Starts an accept loop for each socket of the shard.
fn accept_on(server: &Rc<ShardServer>, sockets: ShardSockets) -> Vec<glommio::Task<()>> {
    let queue = server.shard().queues().serve;
    [Some(sockets.common), Some(sockets.own), sockets.unix]
        .into_iter()
        .flatten()
        .map(|socket| {
            let accepting = listener::accept(Rc::clone(server), os::listener(socket));
            glommio::spawn_local_into(accepting, queue)
                .expect("the queue lives as long as the executor")
        })
        .collect()
}

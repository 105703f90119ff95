//! Which sockets of a shard have something to read.
//!
//! A socket that waits with the runtime costs a request to the ring for each wait and an interrupt of this CPU for each
//! arrival, because a ring wants its completions handled at once. Here all sockets are in one set, and the runtime waits
//! for the set: what arrives while the shard is at work is found together when it looks again.
//!
//! Owns: the set, and who waits for which socket. Guarantees: what arrives wakes who waits; a socket is asked again only
//! when something arrived or the last look was not the end of it.
//! Does not: read (`stream` does), or know of writing: sockets that take no more are rare, and wait with the runtime.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ahash::RandomState;
use glommio::io::PollableFd;
use glommio::timer::sleep;

use crate::server::os::{self, Arrival, Epoll};
use crate::server::sparse_log::SparseLog;
use crate::shard::turns::Turns;

/// Arrivals that are taken from the kernel at a time.
const ARRIVALS: usize = 256;

/// How long to wait after the kernel could not tell of arrivals.
const PAUSE: Duration = Duration::from_millis(50);

/// What is known of one socket.
#[derive(Default)]
struct Socket {
    has_something: Cell<bool>,
    /// The peer sends nothing more: reading goes on to the very end, of which nobody tells again.
    is_last: Cell<bool>,
    reader: RefCell<Option<Waker>>,
}

impl Socket {
    fn arrived(&self, arrival: Arrival) {
        self.has_something.set(true);
        self.is_last.set(self.is_last.get() || arrival.is_last());
        if let Some(reader) = self.reader.borrow_mut().take() {
            reader.wake();
        }
    }
}

/// The sockets of one executor.
pub(crate) struct Readiness {
    set: PollableFd<Epoll>,
    sockets: RefCell<HashMap<u64, Rc<Socket>, RandomState>>,
    next_token: Cell<u64>,
    turns: Rc<Turns>,
    failed: SparseLog,
}

impl Readiness {
    /// An empty set, on this executor; `turns` learns when something has arrived. Somebody has to run [`Self::tell`].
    ///
    /// # Errors
    /// Of the system: it has no descriptor left.
    pub(crate) fn new(turns: &Rc<Turns>) -> io::Result<Rc<Readiness>> {
        Ok(Rc::new(Readiness {
            set: PollableFd::new(Epoll::new()?)?,
            sockets: RefCell::default(),
            next_token: Cell::new(0),
            turns: Rc::clone(turns),
            failed: SparseLog::default(),
        }))
    }

    /// Wakes who waits for what arrives, for ever.
    pub(crate) async fn tell(self: Rc<Self>) {
        let mut arrivals = [Arrival::NONE; ARRIVALS];
        loop {
            if let Err(error) = self.set.readable().await {
                self.note_failure(&error.into()).await;
            }
            self.turns.looked();
            loop {
                match self.set.get_ref().arrived(&mut arrivals) {
                    Ok(arrived) => {
                        self.wake(arrived);
                        if arrived.len() < ARRIVALS {
                            break;
                        }
                    }
                    Err(error) => {
                        self.note_failure(&error).await;
                        break;
                    }
                }
            }
        }
    }

    fn wake(&self, arrived: &[Arrival]) {
        let sockets = self.sockets.borrow();
        for arrival in arrived {
            // A socket that was dropped meanwhile is not there any more.
            if let Some(socket) = sockets.get(&arrival.token()) {
                socket.arrived(*arrival);
            }
        }
    }

    async fn note_failure(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::Interrupted {
            return;
        }
        if let Some(left_out) = self.failed.turn(Instant::now()) {
            tracing::error!(%error, left_out, "the system does not tell what has arrived");
        }
        sleep(PAUSE).await;
    }

    /// Watches a socket until the answer is dropped, which must be before the socket is.
    ///
    /// # Errors
    /// Of the system: it watches as many as it may.
    pub(crate) fn watch(self: &Rc<Self>, socket: &impl AsRawFd) -> io::Result<Watch> {
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        self.set.get_ref().add(socket, token)?;
        let watched = Rc::new(Socket::default());
        self.sockets.borrow_mut().insert(token, Rc::clone(&watched));
        Ok(Watch {
            readiness: Rc::clone(self),
            token,
            descriptor: socket.as_raw_fd(),
            socket: watched,
        })
    }
}

/// One watched socket.
pub(crate) struct Watch {
    readiness: Rc<Readiness>,
    token: u64,
    descriptor: RawFd,
    socket: Rc<Socket>,
}

impl Watch {
    /// Reads what has arrived, or waits until something does.
    pub(crate) fn poll_read(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let socket = &self.socket;
        while socket.has_something.get() {
            match os::receive(&self.descriptor, buffer) {
                Ok(bytes) => {
                    // Less than there was room for is all: what comes later is told of.
                    let is_all = bytes < buffer.len() && !socket.is_last.get();
                    socket.has_something.set(!is_all);
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.has_something.set(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let mut reader = socket.reader.borrow_mut();
        match &mut *reader {
            Some(reader) => reader.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.readiness.sockets.borrow_mut().remove(&self.token);
        let removed = self.readiness.set.get_ref().remove(&self.descriptor);
        debug_assert!(removed.is_ok(), "it was added: {removed:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::task::ready;

    use futures::FutureExt as _;
    use glommio::LocalExecutor;

    use super::*;

    /// Runs `story` with a set that tells.
    fn run<F: Future<Output = ()>>(story: impl FnOnce(Rc<Readiness>) -> F) {
        let executor = LocalExecutor::default();
        executor.run(async {
            let readiness = Readiness::new(&Rc::default()).unwrap();
            let telling = glommio::spawn_local(Rc::clone(&readiness).tell());
            story(readiness).await;
            telling.cancel().await;
        });
    }

    /// The next bytes, at most as many as the length says.
    async fn read(watch: &Watch, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; len];
        poll_fn(|context| {
            let bytes = ready!(watch.poll_read(context, &mut buffer))?;
            buffer.truncate(bytes);
            Poll::Ready(Ok(std::mem::take(&mut buffer)))
        })
        .await
    }

    fn waits(watch: &Watch) -> bool {
        read(watch, 100).now_or_never().is_none()
    }

    #[test]
    fn what_arrives_is_read_and_what_does_not_is_waited_for() {
        run(async |readiness| {
            let (mut theirs, ours) = UnixStream::pair().unwrap();
            let watch = readiness.watch(&ours).unwrap();
            for round in 0..3 {
                assert!(waits(&watch), "nothing was sent in round {round}");
                theirs.write_all(b"something").unwrap();
                assert_eq!(read(&watch, 100).await.unwrap(), b"something");
            }
        });
    }

    #[test]
    fn what_was_there_before_is_told_of() {
        run(async |readiness| {
            let (mut theirs, ours) = UnixStream::pair().unwrap();
            theirs.write_all(b"early").unwrap();
            let watch = readiness.watch(&ours).unwrap();
            assert_eq!(read(&watch, 100).await.unwrap(), b"early");
        });
    }

    #[test]
    fn what_a_reader_leaves_is_read_without_a_new_arrival() {
        run(async |readiness| {
            let (mut theirs, ours) = UnixStream::pair().unwrap();
            let watch = readiness.watch(&ours).unwrap();
            theirs.write_all(b"1234567").unwrap();
            for part in [b"123".as_slice(), b"456", b"7"] {
                assert_eq!(read(&watch, 3).await.unwrap(), part);
            }
            assert!(waits(&watch));
        });
    }

    /// The end is told of once, maybe together with bytes before it.
    #[test]
    fn the_end_is_found_behind_the_last_bytes() {
        run(async |readiness| {
            let (mut theirs, ours) = UnixStream::pair().unwrap();
            theirs.write_all(b"last").unwrap();
            drop(theirs);
            let watch = readiness.watch(&ours).unwrap();
            assert_eq!(read(&watch, 100).await.unwrap(), b"last");
            let end = read(&watch, 100).now_or_never();
            assert_eq!(end.expect("it is known").unwrap(), b"");
        });
    }

    #[test]
    fn many_sockets_are_told_of_one_by_one() {
        run(async |readiness| {
            let pairs: Vec<_> = (0..2 * ARRIVALS as u32 + 3)
                .map(|_| UnixStream::pair().unwrap())
                .collect();
            let watch = |pair: &(UnixStream, UnixStream)| readiness.watch(&pair.1).unwrap();
            let watches: Vec<_> = pairs.iter().map(watch).collect();
            let reads = watches.iter().map(|watch| read(watch, 100));
            let reads = futures::future::join_all(reads);
            let write = async {
                for (number, (theirs, _)) in pairs.iter().enumerate() {
                    let (mut theirs, number) = (theirs, number as u64);
                    theirs.write_all(&number.to_le_bytes()).unwrap();
                }
            };
            let (found, ()) = futures::future::join(reads, write).await;
            for (number, found) in found.into_iter().enumerate() {
                assert_eq!(found.unwrap(), (number as u64).to_le_bytes());
            }
        });
    }

    #[test]
    fn a_dropped_watch_is_gone() {
        run(async |readiness| {
            let (mut theirs, ours) = UnixStream::pair().unwrap();
            drop(readiness.watch(&ours).unwrap());
            theirs.write_all(b"for nobody").unwrap();
            assert!(readiness.sockets.borrow().is_empty());
            let mut arrivals = [Arrival::NONE; 2];
            let arrived = readiness.set.get_ref().arrived(&mut arrivals).unwrap();
            assert!(arrived.is_empty());
            let again = readiness.watch(&ours).unwrap();
            assert_eq!(read(&again, 100).await.unwrap(), b"for nobody");
        });
    }
}

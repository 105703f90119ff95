//! A client that survives its connection: it connects when it is first used and again whenever the connection is gone.
//!
//! Reads whose connection breaks are repeated once, on a new connection. Writes are never repeated: whether the first
//! attempt took effect is unknown, and only the caller can tell what that means.

use std::cell::RefCell;
use std::io;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use ::tokio::time::{sleep, timeout};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;

use super::{Address, broke};
use crate::client::{
    Client, ClientError, Condition, Entry, Found, Mutation, Outcome, Page, PrefixQuery, ServerInfo,
    Stat,
};

/// How long an operation waits for a connection unless told otherwise.
pub(super) const PATIENCE_DEFAULT: Duration = Duration::from_secs(10);

/// Pause after the first failed attempt to connect; doubled after each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(10);

/// Longest pause between two attempts to connect.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Even with no patience an attempt may take so long.
const ATTEMPT_MIN: Duration = Duration::from_secs(1);

/// Like [`Client`], with the same operations, for a server that may go away and come back. Clones share one connection.
#[derive(Clone)]
pub struct ReconnectingClient(Rc<Inner>);

struct Inner {
    address: Address,
    patience: Duration,
    state: RefCell<State>,
}

enum State {
    Idle,
    /// Everybody who needs the connection waits for the same attempt.
    Connecting(Shared<oneshot::Receiver<Attempt>>),
    Connected(Client),
}

/// What came of an attempt. An `io::Error` cannot be given to many.
type Attempt = Result<Client, (io::ErrorKind, String)>;

impl ReconnectingClient {
    /// A client of the server at `address`. Nothing happens until the first operation, which waits up to ten seconds for
    /// a connection, with growing pauses between attempts.
    pub fn new(address: Address) -> Self {
        Self::with_patience(address, PATIENCE_DEFAULT)
    }

    /// The same, with another time to wait for a connection. Zero: one attempt.
    pub fn with_patience(address: Address, patience: Duration) -> Self {
        Self(Rc::new(Inner {
            address,
            patience,
            state: RefCell::new(State::Idle),
        }))
    }

    /// A client with a live connection, to be used for several operations.
    pub async fn client(&self) -> Result<Client, ClientError> {
        let attempt = {
            let mut state = self.0.state.borrow_mut();
            match &*state {
                State::Connected(client) if !client.is_closed() => return Ok(client.clone()),
                State::Connecting(attempt) => attempt.clone(),
                State::Connected(_) | State::Idle => {
                    let (done, attempt) = oneshot::channel();
                    ::tokio::task::spawn_local(connect_patiently(Rc::downgrade(&self.0), done));
                    let attempt = attempt.shared();
                    *state = State::Connecting(attempt.clone());
                    attempt
                }
            }
        };
        let (kind, reason) = match attempt.await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(failure)) => failure,
            Err(oneshot::Canceled) => (
                io::ErrorKind::Interrupted,
                "the runtime is stopping".to_string(),
            ),
        };
        let source = io::Error::new(kind, reason);
        Err(ClientError::Connect {
            address: self.0.address.to_string(),
            source,
        })
    }

    /// Whether there is a live connection.
    pub(super) fn is_connected(&self) -> bool {
        let state = self.0.state.borrow();
        matches!(&*state, State::Connected(client) if !client.is_closed())
    }

    /// An operation that may be done twice.
    pub(super) async fn read<T>(
        &self,
        operation: impl AsyncFn(Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let client = self.client().await?;
        let answer = operation(client.clone()).await;
        if !broke(&answer) {
            return answer;
        }
        self.forget(&client);
        operation(self.client().await?).await
    }

    /// An operation that must not be done twice.
    pub(super) async fn write_once<T>(
        &self,
        operation: impl AsyncFnOnce(Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let client = self.client().await?;
        let answer = operation(client.clone()).await;
        if broke(&answer) {
            self.forget(&client);
        }
        answer
    }

    /// This connection is of no use any more; there may be another one already.
    fn forget(&self, client: &Client) {
        let mut state = self.0.state.borrow_mut();
        if let State::Connected(current) = &*state
            && current.shares_connection_with(client)
        {
            *state = State::Idle;
        }
    }

    /// As [`Client::get`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Found>, ClientError> {
        self.read(async |client| client.get(key).await).await
    }

    /// As [`Client::set`].
    pub async fn set(&self, key: &[u8], value: &[u8]) -> Result<Outcome, ClientError> {
        self.set_if(key, value, Condition::None).await
    }

    /// As [`Client::set_if`].
    pub async fn set_if(
        &self,
        key: &[u8],
        value: &[u8],
        condition: Condition,
    ) -> Result<Outcome, ClientError> {
        self.write_once(async |client| client.set_if(key, value, condition).await)
            .await
    }

    /// As [`Client::delete`].
    pub async fn delete(&self, key: &[u8]) -> Result<Outcome, ClientError> {
        self.delete_if(key, Condition::None).await
    }

    /// As [`Client::delete_if`].
    pub async fn delete_if(
        &self,
        key: &[u8],
        condition: Condition,
    ) -> Result<Outcome, ClientError> {
        self.write_once(async |client| client.delete_if(key, condition).await)
            .await
    }

    /// As [`Client::get_many`].
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
    ) -> Result<Vec<Option<Found>>, ClientError> {
        self.read(async |client| client.get_many(keys).await).await
    }

    /// As [`Client::write`].
    pub async fn write(
        &self,
        mutations: &[Mutation<'_>],
    ) -> Result<Vec<Result<Outcome, ClientError>>, ClientError> {
        self.write_once(async |client| client.write(mutations).await)
            .await
    }

    /// As [`Client::get_prefix`].
    pub async fn get_prefix(&self, query: &PrefixQuery<'_>) -> Result<Page, ClientError> {
        self.read(async |client| client.get_prefix(query).await)
            .await
    }

    /// As [`Client::stream_prefix`]. Not repeated: batches may have been delivered.
    pub async fn stream_prefix(
        &self,
        prefix: &[u8],
        keys_only: bool,
        on_batch: impl FnMut(Vec<Entry>) -> Result<(), String> + 'static,
    ) -> Result<u64, ClientError> {
        self.write_once(async |client| client.stream_prefix(prefix, keys_only, on_batch).await)
            .await
    }

    /// As [`Client::stat`].
    pub async fn stat(&self) -> Result<Stat, ClientError> {
        self.read(async |client| client.stat().await).await
    }

    /// As [`Client::info`].
    pub async fn info(&self) -> Result<ServerInfo, ClientError> {
        self.read(async |client| client.info().await).await
    }
}

/// Tries to connect until it succeeds, the patience is used up or nobody holds the client any more.
async fn connect_patiently(inner: Weak<Inner>, done: oneshot::Sender<Attempt>) {
    let Some((address, patience)) = inner
        .upgrade()
        .map(|inner| (inner.address.clone(), inner.patience))
    else {
        return;
    };
    let give_up_at = Instant::now() + patience;
    let mut pause = PAUSE_FIRST;
    let attempt = loop {
        let left = give_up_at.saturating_duration_since(Instant::now());
        let error = match timeout(left.max(ATTEMPT_MIN), super::open(&address)).await {
            Ok(Ok(client)) => break Ok(client),
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
        let left = give_up_at.saturating_duration_since(Instant::now());
        if left.is_zero() || inner.strong_count() == 0 {
            break Err((error.kind(), error.to_string()));
        }
        sleep(pause.min(left)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    };
    if let Some(inner) = inner.upgrade() {
        *inner.state.borrow_mut() = match &attempt {
            Ok(client) => State::Connected(client.clone()),
            Err(_) => State::Idle,
        };
    }
    // Whoever waited may have lost interest.
    done.send(attempt).unwrap_or_default();
}

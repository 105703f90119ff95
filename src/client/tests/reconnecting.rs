//! The reconnecting client over real sockets, with a server that goes away and comes back.

use std::rc::Rc;
use std::time::{Duration, Instant};

use ::tokio::net::{TcpListener, UnixListener};
use ::tokio::sync::Notify;
use ::tokio::task::{JoinHandle, LocalSet, spawn_local};
use ::tokio::time::timeout;
use futures::io::{AsyncRead, AsyncWrite};

use super::fake::{self, Fake};
use crate::client::tokio::{Address, Compat, ReconnectingClient, connect};
use crate::client::{ClientError, Condition, Outcome};

pub(super) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = ::tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async { timeout(Duration::from_secs(60), test).await };
    let ended = LocalSet::new().block_on(&runtime, limited);
    ended.expect("no test waits for so long")
}

/// A listening server whose connections all break when it is stopped.
pub(super) struct Server {
    pub(super) fake: Rc<Fake>,
    pub(super) address: Address,
    accepting: JoinHandle<()>,
    stop: Rc<Notify>,
}

impl Server {
    pub(super) async fn start(fake: &Rc<Fake>, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let stop = Rc::new(Notify::new());
        let (connection_fake, connection_stop) = (Rc::clone(fake), Rc::clone(&stop));
        let accepting = spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (reader, writer) = stream.into_split();
                let (reader, writer) = (Compat::new(reader), Compat::new(writer));
                spawn_local(serve(
                    Rc::clone(&connection_fake),
                    reader,
                    writer,
                    Rc::clone(&connection_stop),
                ));
            }
        });
        Self {
            fake: Rc::clone(fake),
            address,
            accepting,
            stop,
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.address
            .to_string()
            .rsplit_once(':')
            .unwrap()
            .1
            .parse()
            .unwrap()
    }

    /// Breaks the connections and goes on accepting.
    pub(super) fn break_connections(&self) {
        self.stop.notify_waiters();
    }

    pub(super) async fn stop(self) -> (Rc<Fake>, u16) {
        let port = self.port();
        self.break_connections();
        self.accepting.abort();
        // The listener is closed when its task is gone.
        assert!(self.accepting.await.unwrap_err().is_cancelled());
        (self.fake, port)
    }
}

async fn serve(
    fake: Rc<Fake>,
    reader: impl AsyncRead + Unpin + 'static,
    writer: impl AsyncWrite + Unpin + 'static,
    stop: Rc<Notify>,
) {
    let system = fake::serve(&fake, reader, writer);
    ::tokio::select! {
        _ = system => {}
        () = stop.notified() => {}
    }
}

#[test]
fn connects_over_tcp_and_unix() {
    run(async {
        let fake = Rc::new(Fake::default());
        let server = Server::start(&fake, 0).await;
        let client = connect(&server.address).await.unwrap();
        client.set(b"k", b"v").await.unwrap();

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let stop = Rc::clone(&server.stop);
        spawn_local(async move {
            let (reader, writer) = listener.accept().await.unwrap().0.into_split();
            serve(fake, Compat::new(reader), Compat::new(writer), stop).await;
        });
        let over_unix = connect(&Address::Unix(path)).await.unwrap();
        assert_eq!(over_unix.get(b"k").await.unwrap().unwrap().value, b"v");
        let large = vec![7; 3 << 20];
        over_unix.set(b"large", &large).await.unwrap();
        assert!(client.get(b"large").await.unwrap().unwrap().value == large);
    });
}

#[test]
fn a_refused_connection_names_the_address() {
    run(async {
        // A port that was just free.
        let (_, port) = Server::start(&Rc::default(), 0).await.stop().await;
        let address: Address = format!("127.0.0.1:{port}").parse().unwrap();
        let Err(error) = connect(&address).await else {
            panic!("nobody listens")
        };
        assert!(
            error
                .to_string()
                .starts_with(&format!("cannot connect to 127.0.0.1:{port}: ")),
            "{error}"
        );
        let client = ReconnectingClient::with_patience(address, Duration::ZERO);
        let (first, second) = futures::join!(client.get(b"a"), client.set(b"b", b""));
        assert!(
            matches!(first, Err(ClientError::Connect { .. })),
            "{first:?}"
        );
        assert!(
            matches!(second, Err(ClientError::Connect { .. })),
            "{second:?}"
        );
        let missing = Address::Unix("/nowhere/socket".into());
        assert!(matches!(
            connect(&missing).await,
            Err(ClientError::Connect { .. })
        ));
    });
}

#[test]
fn operations_share_one_connection() {
    run(async {
        let fake = Rc::new(Fake::default());
        let server = Server::start(&fake, 0).await;
        let client = ReconnectingClient::new(server.address.clone());
        let keys: Vec<[u8; 1]> = (0..50).map(|number| [number]).collect();
        let sets = keys.iter().map(|key| client.set(key, key));
        for outcome in futures::future::join_all(sets).await {
            outcome.unwrap();
        }
        assert_eq!(
            client
                .get_many(&keys)
                .await
                .unwrap()
                .iter()
                .flatten()
                .count(),
            50
        );
        assert_eq!(fake.opens.get(), 1);
    });
}

#[test]
fn a_read_is_repeated_and_a_write_is_not() {
    run(async {
        let fake = Rc::new(Fake::default());
        let server = Server::start(&fake, 0).await;
        let client = ReconnectingClient::new(server.address.clone());
        client.set(b"k", b"v").await.unwrap();
        fake.silent.set(true);
        let waiting = fake.calls.get();
        let reader = client.clone();
        let read = spawn_local(async move { reader.get(b"k").await });
        let writer = client.clone();
        let write =
            spawn_local(async move { writer.set_if(b"k", b"w", Condition::IfVersion(1)).await });
        while fake.calls.get() < waiting + 2 {
            ::tokio::task::yield_now().await;
        }
        fake.silent.set(false);
        server.break_connections();
        assert_eq!(read.await.unwrap().unwrap().unwrap().value, b"v");
        let write = write.await.unwrap();
        assert!(
            matches!(write, Err(ClientError::Disconnected(_))),
            "{write:?}"
        );
        assert_eq!(fake.opens.get(), 2, "one new connection for both");
        assert_eq!(fake.calls.get(), waiting + 3, "only the read came again");
        let again = client
            .set_if(b"k", b"w", Condition::IfVersion(1))
            .await
            .unwrap();
        assert_eq!(
            again,
            Outcome::Written {
                version: 2,
                existed: true
            }
        );
    });
}

#[test]
fn a_server_that_comes_back_is_found() {
    run(async {
        let fake = Rc::new(Fake::default());
        let server = Server::start(&fake, 0).await;
        let client = ReconnectingClient::new(server.address.clone());
        client.set(b"k", b"v").await.unwrap();
        let (fake, port) = server.stop().await;
        let reader = client.clone();
        let read = spawn_local(async move { reader.get(b"k").await });
        // The reader has met a closed port at least once before the server is back.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(50) {
            ::tokio::task::yield_now().await;
        }
        assert!(!read.is_finished());
        let _server = Server::start(&fake, port).await;
        assert_eq!(read.await.unwrap().unwrap().unwrap().value, b"v");
    });
}

#[test]
fn patience_ends() {
    run(async {
        let (_, port) = Server::start(&Rc::default(), 0).await.stop().await;
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        let client = ReconnectingClient::with_patience(address, Duration::from_millis(120));
        let begun = Instant::now();
        let answer = client.get(b"k").await;
        assert!(
            matches!(answer, Err(ClientError::Connect { .. })),
            "{answer:?}"
        );
        assert!(begun.elapsed() >= Duration::from_millis(120));
    });
}

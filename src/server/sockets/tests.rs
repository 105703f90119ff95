//! The sockets against the kernel: who may share an address, what survives a restart, what connections inherit.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;

use super::*;
use crate::server::exit;

const LOOPBACK: &str = "127.0.0.1:0";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn open(listen: SocketAddr, shards: u16) -> Result<Sockets, ServerError> {
    Sockets::open(listen, None, shards)
}

/// Accepts everything that waits, without blocking.
fn accept_waiting(socket: &Socket) -> Vec<Socket> {
    socket.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| match socket.accept() {
        Ok((accepted, _)) => Some(accepted),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    })
    .collect()
}

#[test]
fn the_common_address_reaches_every_shard_and_each_port_its_own() {
    let sockets = open(address(LOOPBACK), 2).unwrap();
    let clients: Vec<_> = (0..64)
        .map(|_| TcpStream::connect(sockets.address).unwrap())
        .collect();
    let accepted: Vec<_> = sockets
        .shards
        .iter()
        .map(|shard| accept_waiting(&shard.common).len())
        .collect();
    assert_eq!(accepted.iter().sum::<usize>(), clients.len());
    assert!(
        accepted.iter().all(|count| *count > 0),
        "one shard gets everything: {accepted:?}"
    );
    for (shard, port) in sockets.shards.iter().zip(&sockets.ports) {
        let _client = TcpStream::connect((sockets.address.ip(), *port)).unwrap();
        assert_eq!(accept_waiting(&shard.own).len(), 1);
    }
}

#[test]
fn the_ready_line_lists_the_common_address_and_every_shard() {
    let sockets = open(address(LOOPBACK), 2).unwrap();
    let (common, first, second) = (sockets.address, sockets.ports[0], sockets.ports[1]);
    assert_ne!(common.port(), 0);
    assert_eq!(
        sockets.ready_line(),
        format!("ready: {common} 127.0.0.1:{first} 127.0.0.1:{second}")
    );
}

#[test]
fn ipv6_works() {
    let Ok(sockets) = open(address("[::1]:0"), 2) else {
        assert!(
            TcpListener::bind("[::1]:0").is_err(),
            "this machine has IPv6"
        );
        eprintln!("SKIPPED: this machine has no IPv6");
        return;
    };
    assert!(sockets.ready_line().starts_with("ready: [::1]:"));
    let _client = TcpStream::connect(sockets.address).unwrap();
}

#[test]
fn an_address_that_somebody_listens_on_is_refused() {
    let foreign = TcpListener::bind(LOOPBACK).unwrap();
    let error = open(foreign.local_addr().unwrap(), 2).unwrap_err();
    assert!(matches!(error, ServerError::AddressInUse { .. }), "{error}");
    assert_eq!(error.exit_code(), exit::USAGE);
}

/// SO_REUSEPORT would let a second server of the same user join the first one's address.
#[test]
fn a_second_server_cannot_join_the_address_of_the_first() {
    for shards in [1, 2] {
        let first = open(address(LOOPBACK), shards).unwrap();
        let error = open(first.address, shards).unwrap_err();
        assert!(matches!(error, ServerError::AddressInUse { .. }), "{error}");
        // Nor by the address that stands for all.
        let error = open(
            SocketAddr::new(address("0.0.0.0:0").ip(), first.address.port()),
            shards,
        )
        .unwrap_err();
        assert!(matches!(error, ServerError::AddressInUse { .. }), "{error}");
    }
}

/// A killed server leaves connections behind: closed by us first (FIN_WAIT, then TIME_WAIT), or still open in a client.
#[test]
fn lingering_connections_do_not_refuse_a_restart() {
    let first = open(address(LOOPBACK), 2).unwrap();
    let at = first.address;
    let mut clients: Vec<_> = (0..8).map(|_| TcpStream::connect(at).unwrap()).collect();
    let mut accepted: Vec<_> = first
        .shards
        .iter()
        .flat_map(|shard| accept_waiting(&shard.common))
        .collect();
    assert_eq!(accepted.len(), clients.len());
    // Half of the connections end here first and wait for the client; one client answers, which makes a TIME_WAIT.
    let open_still = accepted.split_off(4);
    drop(accepted);
    let mut rest = Vec::new();
    clients
        .iter_mut()
        .filter(|client| client.set_nonblocking(true).is_ok())
        .for_each(|client| {
            if client.read_to_end(&mut rest).is_ok() {
                client.shutdown(std::net::Shutdown::Write).unwrap();
            }
        });
    drop(first);
    let second = open(at, 2).unwrap();
    let mut client = TcpStream::connect(at).unwrap();
    client.write_all(b"x").unwrap();
    let taken: usize = second
        .shards
        .iter()
        .map(|shard| accept_waiting(&shard.common).len())
        .sum();
    assert_eq!(taken, 1);
    drop(open_still);
}

#[test]
fn accepted_connections_inherit_the_options() {
    let sockets = open(address(LOOPBACK), 1).unwrap();
    let shard = &sockets.shards[0];
    let _clients = [sockets.address.port(), sockets.ports[0]]
        .map(|port| TcpStream::connect(("127.0.0.1", port)).unwrap());
    for accepted in accept_waiting(&shard.common)
        .into_iter()
        .chain(accept_waiting(&shard.own))
    {
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(
            accepted.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(limits::PEER_STALL_SECONDS_MAX))
        );
    }
}

#[test]
fn the_unix_socket_is_private_and_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let sockets = Sockets::open(address(LOOPBACK), Some(&path), 2).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let _client = UnixStream::connect(&path).unwrap();
    assert_eq!(
        accept_waiting(sockets.shards[1].unix.as_ref().unwrap()).len(),
        1
    );
    drop(sockets);
    assert!(!path.exists());
}

/// A restart right after `kill -9` was refused: the kernel had reaped the process, and still held the listening socket
/// for the io_uring that polled it.
#[test]
fn a_listener_that_is_about_to_go_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let dying = UnixListener::bind(&path).unwrap();
    let opened = std::thread::spawn({
        let path = path.clone();
        move || Sockets::open(address(LOOPBACK), Some(&path), 1)
    });
    // It has looked, and found somebody.
    drop(dying.accept().unwrap());
    drop(dying);
    opened.join().unwrap().unwrap();
}

#[test]
fn a_stale_unix_socket_is_replaced_and_anything_else_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let sockets = Sockets::open(address(LOOPBACK), Some(&path), 1).unwrap();

    let in_use = Sockets::open(address(LOOPBACK), Some(&path), 1).unwrap_err();
    assert!(
        in_use.to_string().contains("another process listens"),
        "{in_use}"
    );
    assert!(path.exists());
    drop(sockets);

    fs::write(&path, b"precious").unwrap();
    let not_a_socket = Sockets::open(address(LOOPBACK), Some(&path), 1).unwrap_err();
    assert!(
        not_a_socket.to_string().contains("not a socket"),
        "{not_a_socket}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_socket_that_was_replaced_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let sockets = Sockets::open(address(LOOPBACK), Some(&path), 1).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(sockets);
    assert!(path.exists());
}

#[test]
fn an_address_of_another_machine_is_refused() {
    let error = open(address("192.0.2.1:6000"), 1).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot listen on 192.0.2.1:6000"),
        "{error}"
    );
    assert_eq!(error.exit_code(), exit::USAGE);
}

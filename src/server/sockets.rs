//! The listening sockets: one common TCP address for all shards, an own port for each, and a unix socket.
//!
//! Guarantees: the common address belongs to this process alone (SO_REUSEPORT would share it with a second server in
//! silence); a restart is not refused because connections of the run before linger; the file of the unix socket is
//! removed when this goes, if it is still ours. Does not: accept (`listener` does). Made by `server::run` on the main
//! thread, handed to the executors as descriptors.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::limits;
use crate::server::exit::ServerError;

/// How often somebody who listens where this server wants to is looked at again.
const LISTENER_PAUSE: Duration = Duration::from_millis(50);

/// The sockets of one shard, all listening.
#[derive(Debug)]
pub(crate) struct ShardSockets {
    /// On the address that all shards share.
    pub(crate) common: Socket,
    /// On a port of its own.
    pub(crate) own: Socket,
    /// The unix socket, shared by all shards: a connection goes to whoever takes it first.
    pub(crate) unix: Option<Socket>,
}

/// Every socket of the server.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// The common address, with the port that was picked.
    pub(crate) address: SocketAddr,
    /// Port of each shard.
    pub(crate) ports: Vec<u16>,
    /// The sockets of each shard.
    pub(crate) shards: Vec<ShardSockets>,
    /// The unix socket's file, to be kept until the end.
    _unix_file: Option<UnixSocketFile>,
}

impl Sockets {
    /// Binds and listens for `shards` shards. Connections wait in the kernel's queue until a shard accepts them.
    ///
    /// # Errors
    /// A sentence with the address and what the kernel said.
    pub(crate) fn open(
        listen: SocketAddr,
        unix: Option<&Path>,
        shards: u16,
    ) -> Result<Sockets, ServerError> {
        let (address, common) = bind_common(listen, shards)?;
        let own_address = SocketAddr::new(address.ip(), 0);
        let refused = |source| ServerError::Listen {
            address: own_address,
            source,
        };
        let unix = unix.map(bind_unix).transpose()?;
        let mut ports = Vec::new();
        let mut sockets = Vec::new();
        for common in common {
            let own = bind_tcp(own_address, Sharing::Alone)
                .and_then(listening)
                .map_err(refused)?;
            ports.push(local_address(&own).map_err(refused)?.port());
            let unix = unix
                .as_ref()
                .map(|(socket, _)| socket.try_clone())
                .transpose();
            let unix = unix.map_err(ServerError::system("duplicating the unix socket"))?;
            sockets.push(ShardSockets { common, own, unix });
        }
        Ok(Sockets {
            address,
            ports,
            shards: sockets,
            _unix_file: unix.map(|(_, file)| file),
        })
    }

    /// The line for standard output: the common address, then each shard's own.
    pub(crate) fn ready_line(&self) -> String {
        let mut line = format!("ready: {}", self.address);
        for port in &self.ports {
            line.push_str(&format!(" {}", SocketAddr::new(self.address.ip(), *port)));
        }
        line
    }
}

/// How a TCP socket treats others on its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// A port that the kernel picks.
    Alone,
    /// A given port: refused while somebody listens on it, not because closed connections linger.
    NoListener,
    /// One more socket on a port that this process listens on.
    Shards,
}

fn bind_tcp(address: SocketAddr, sharing: Sharing) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(sharing != Sharing::Alone)?;
    socket.set_reuse_port(sharing == Sharing::Shards)?;
    // Accepted connections inherit these.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(limits::KEEPALIVE_IDLE_SECONDS))
            .with_interval(Duration::from_secs(limits::KEEPALIVE_PROBE_SECONDS))
            .with_retries(limits::KEEPALIVE_PROBES),
    )?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(limits::PEER_STALL_SECONDS_MAX)))?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

fn listening(socket: Socket) -> io::Result<Socket> {
    socket.listen(limits::ACCEPT_BACKLOG_MAX)?;
    Ok(socket)
}

fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    let address = socket.local_addr()?;
    address
        .as_socket()
        .ok_or_else(|| io::Error::other("a TCP socket without an internet address"))
}

/// What `attempt` returns, tried again for a while as long as somebody else `is_there`.
///
/// A killed server is one for some time after its end: the kernel takes an io_uring down in the background, and the
/// sockets that it polled listen until then. A restart right after the kill must not need anybody.
fn while_it_passes<T>(is_there: impl Fn(&T) -> bool, mut attempt: impl FnMut() -> T) -> T {
    let patience = Duration::from_millis(limits::LISTENER_WAIT_MS_MAX);
    let begun = Instant::now();
    loop {
        let result = attempt();
        if !is_there(&result) || begun.elapsed() > patience {
            return result;
        }
        std::thread::sleep(LISTENER_PAUSE);
    }
}

/// One socket per shard on `listen`.
///
/// SO_REUSEPORT lets any process of the same user join, so the first socket is bound and *listens* without it: that
/// fails while anybody else listens, joined or not. Only then it is opened to the sockets of the other shards. Sockets
/// of an earlier run that linger (TIME_WAIT and the like) do not listen and have SO_REUSEADDR, so they do not matter.
fn bind_common(listen: SocketAddr, shards: u16) -> Result<(SocketAddr, Vec<Socket>), ServerError> {
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ServerError::AddressInUse { address: listen },
        _ => ServerError::Listen {
            address: listen,
            source,
        },
    };
    let sharing = if listen.port() == 0 {
        Sharing::Alone
    } else {
        Sharing::NoListener
    };
    let in_use = |result: &io::Result<Socket>| matches!(result, Err(error) if error.kind() == io::ErrorKind::AddrInUse);
    let bind = || bind_tcp(listen, sharing).and_then(listening);
    let first = while_it_passes(in_use, bind).map_err(refused)?;
    // For lingering sockets of this run not to matter to the next one.
    first.set_reuse_address(true).map_err(refused)?;
    first.set_reuse_port(true).map_err(refused)?;
    let address = local_address(&first).map_err(refused)?;
    let mut sockets = vec![first];
    for _ in 1..shards {
        sockets.push(
            bind_tcp(address, Sharing::Shards)
                .and_then(listening)
                .map_err(refused)?,
        );
    }
    Ok((address, sockets))
}

/// The file of a unix socket that this process made.
#[derive(Debug)]
pub(crate) struct UnixSocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        // Somebody may have replaced it; then it is theirs.
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the file of the unix socket could not be removed");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn bind_unix(path: &Path) -> Result<(Socket, UnixSocketFile), ServerError> {
    let refused = |what: String| ServerError::UnixSocket {
        path: path.to_owned(),
        what,
    };
    remove_stale(path).map_err(refused)?;
    let bind = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        let address = SockAddr::unix(path)?;
        socket.bind(&address)?;
        let file = UnixSocketFile {
            path: path.to_owned(),
            identity: identity(path)?,
        };
        // Only this user may connect; nobody can before it listens.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok((listening(socket)?, file))
    };
    bind().map_err(|error: io::Error| refused(format!("{error}; choose another --unix path")))
}

/// Removes the file of a socket that nobody listens on any more, as a killed server leaves it.
fn remove_stale(path: &Path) -> Result<(), String> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{error}; choose another --unix path")),
    };
    if !metadata.file_type().is_socket() {
        return Err(
            "the file exists and is not a socket: remove it or choose another --unix path".into(),
        );
    }
    match while_it_passes(Result::is_ok, || UnixStream::connect(path)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(|error| {
            format!("the stale socket cannot be removed: {error}; remove it or choose another --unix path")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{error}; choose another --unix path")),
        Ok(_) => Err("another process listens on it: stop it, or choose another --unix path".into()),
    }
}

#[cfg(test)]
mod tests;

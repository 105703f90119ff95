//! Where a client connects: the accept loops of one shard.
//!
//! Guarantees: an error of one connection does not end the loop; running out of descriptors makes it wait, not spin.
//! Does not: make sockets (`sockets` does) or serve connections (`session` does).

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::net::TcpListener;
use glommio::timer::sleep;

use crate::server::shard_server::ShardServer;
use crate::server::sparse_log::SparseLog;

/// How long to leave new connections waiting after the kernel had no room for one.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until the task is cancelled.
pub(crate) async fn accept(server: Rc<ShardServer>, listener: TcpListener) {
    let log = SparseLog::default();
    loop {
        match listener.accept().await {
            Ok(socket) => server.admit(socket),
            Err(error) => {
                let error = io::Error::from(error);
                // What happened to a connection before it was accepted is its own affair.
                if !is_of_one_connection(&error) {
                    if let Some(left_out) = log.turn(Instant::now()) {
                        tracing::warn!(%error, left_out, "a connection could not be accepted");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
        // A flood of connections would otherwise keep the executor for itself.
        glommio::yield_if_needed().await;
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_descriptors_is_not_the_fault_of_a_connection() {
        let of_one = |code| is_of_one_connection(&io::Error::from_raw_os_error(code));
        assert!(of_one(libc::ECONNABORTED) && of_one(libc::EINTR));
        assert!(
            !of_one(libc::EMFILE)
                && !of_one(libc::ENFILE)
                && !of_one(libc::ENOBUFS)
                && !of_one(libc::EBADF)
        );
    }
}

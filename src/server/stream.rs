//! The byte stream of one connection, with more than one handle.
//!
//! The wire owns a reading and a writing half; the session keeps a third handle to close the connection in
//! order. Handles share one socket without a lock, because they live on one executor. TCP and unix sockets are the
//! same thing here. What arrives is read as `readiness` tells of it; sending is the runtime's.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;

use crate::server::os;
use crate::server::readiness::{Readiness, Watch};

/// A handle of the stream; the socket closes with the last one.
#[derive(Clone)]
pub(crate) struct Stream(Rc<Socket>);

struct Socket {
    // Dropped before the socket that it watches.
    arrivals: Watch,
    socket: RefCell<TcpStream>,
}

impl Stream {
    /// # Errors
    /// As [`Readiness::watch`].
    pub(crate) fn new(socket: TcpStream, readiness: &Rc<Readiness>) -> io::Result<Stream> {
        Ok(Stream(Rc::new(Socket {
            arrivals: readiness.watch(&socket)?,
            socket: RefCell::new(socket),
        })))
    }

    /// Tells the peer that nothing more will come.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        os::shutdown_write(self)
    }

    /// Whether the peer's kernel has everything that was written.
    pub(crate) fn is_delivered(&self) -> bool {
        // A socket that does not tell is a socket that is gone.
        os::unacknowledged_bytes(self).unwrap_or(0) == 0
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.socket.borrow().as_raw_fd()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.0.arrivals.poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.socket.borrow_mut()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.socket.borrow_mut()).poll_write_vectored(context, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.socket.borrow_mut()).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.socket.borrow_mut()).poll_close(context)
    }
}

//! One connection to a peer, kept full of requests by one task.
//!
//! Everything that is to be sent goes out in one write, and what one read brings is answered before the next: so the
//! generator is not slower than the tools that come with the peers. The bytes and their meaning are `pipeline.rs`'s.
//! Guarantees: a connection that ends, and an answer that is an error, end the run. Used by `Connections`.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use ::orlop::client::tokio::Address;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::pipeline::{Pipeline, Then};
use super::{Protocol, System};
use crate::load::alarm::Alarm;
use crate::load::failure::Failure;
use crate::load::options::Plan;
use crate::load::run::Run;
use crate::load::source::Source;

/// Bytes of the buffer for answers at first; it grows to the largest answer.
const INPUT_BYTES: usize = 16 << 10;

/// Bytes that were sent and are still kept, while others wait behind them.
const SENT_BYTES_MAX: usize = 256 << 10;

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

pub(crate) struct Lane {
    system: System,
    client: usize,
    stream: Box<dyn Stream>,
    pipeline: Pipeline,
    out: Vec<u8>,
    sent: usize,
    /// Its length is the room; the bytes from `begin` to `end` were read and not used yet.
    input: Vec<u8>,
    begin: usize,
    end: usize,
    /// The alarm is set for then.
    alarm_at: Option<Instant>,
}

impl Lane {
    /// Connects lane `number`, which belongs to client `client`.
    pub(crate) async fn open(
        plan: &Plan,
        number: usize,
        client: usize,
        protocol: Box<dyn Protocol>,
    ) -> Result<Lane, Failure> {
        let stream = connect(&plan.server).await;
        Ok(Lane {
            system: plan.system,
            client,
            stream: stream.map_err(|source| Failure::Unreachable {
                system: plan.system,
                address: plan.server.to_string(),
                source,
            })?,
            pipeline: Pipeline::new(protocol, number as u32),
            out: Vec::new(),
            sent: 0,
            input: vec![0; INPUT_BYTES],
            begin: 0,
            end: 0,
            alarm_at: None,
        })
    }

    pub(crate) fn client(&self) -> usize {
        self.client
    }

    /// Works until `source` has no more and everything is answered; gives the lane back for more.
    pub(crate) async fn work(
        mut self,
        run: Rc<Run>,
        source: Rc<RefCell<Source>>,
        depth: usize,
        alarm: Rc<Alarm>,
    ) -> Result<Lane, Failure> {
        self.pipeline.depth = depth;
        self.alarm_at = None;
        poll_fn(|context| self.poll(context, &run, &source, &alarm)).await?;
        Ok(self)
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        run: &Run,
        source: &RefCell<Source>,
        alarm: &Alarm,
    ) -> Poll<Result<(), Failure>> {
        loop {
            let now = Instant::now();
            let then = self
                .pipeline
                .fill(run, source, now, &mut self.out, self.sent);
            if then == Then::End && self.pipeline.is_idle() {
                return Poll::Ready(Ok(()));
            }
            let moved = self.send(context).map_err(|source| self.lost(source))?;
            match self.receive(context) {
                Poll::Ready(Ok(())) => self.answers(run)?,
                Poll::Ready(Err(source)) => return Poll::Ready(Err(self.lost(source))),
                // Room to send more, but nothing that would wake this task.
                Poll::Pending if moved && then == Then::Full && self.pipeline.has_room() => {}
                Poll::Pending => {
                    if let Then::At(due) = then
                        && self.alarm_at != Some(due)
                    {
                        self.alarm_at = Some(due);
                        alarm.wake_at(due, context.waker().clone());
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Sends what there is to send. True: all of it is gone.
    fn send(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        while self.sent < self.out.len() {
            let pending = &self.out[self.sent..];
            match Pin::new(&mut *self.stream).poll_write(context, pending)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(bytes) => self.sent += bytes,
                Poll::Pending => break,
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > SENT_BYTES_MAX {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(self.out.is_empty())
    }

    /// Reads once, behind what is there already.
    fn receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.end == self.input.len() {
            if self.begin > 0 {
                self.input.copy_within(self.begin..self.end, 0);
                self.end -= self.begin;
                self.begin = 0;
            } else {
                // One answer fills it: its length was checked by the protocol.
                self.input.resize(2 * self.input.len(), 0);
            }
        }
        let mut room = ReadBuf::new(&mut self.input[self.end..]);
        match Pin::new(&mut *self.stream).poll_read(context, &mut room) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => match room.filled().len() {
                0 => {
                    let closed = "the server closed it";
                    Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, closed)))
                }
                bytes => {
                    self.end += bytes;
                    Poll::Ready(Ok(()))
                }
            },
        }
    }

    /// Judges the answers that have come.
    fn answers(&mut self, run: &Run) -> Result<(), Failure> {
        let input = &self.input[self.begin..self.end];
        let used = self
            .pipeline
            .take(run, Instant::now(), input, &mut self.out)
            .map_err(|refusal| Failure::Refused {
                system: self.system,
                refusal,
            })?;
        self.begin += used;
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        }
        Ok(())
    }

    fn lost(&self, source: io::Error) -> Failure {
        Failure::Lost {
            system: self.system,
            source,
        }
    }
}

async fn connect(address: &Address) -> io::Result<Box<dyn Stream>> {
    Ok(match address {
        Address::Tcp(host_and_port) => {
            let stream = TcpStream::connect(host_and_port.as_str()).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
    })
}

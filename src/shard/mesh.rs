//! The links between shards: one bounded channel for each ordered pair, built once at start.
//!
//! A shard collects what it has for another one while it runs and sends it as one batch, so that under load many
//! requests share a wake-up. What is outstanding is bounded by number and by bytes; beyond that a request is answered
//! `overloaded` at once and the sender's executor never waits.
//!
//! Owns: channels, outboxes, the replies that are awaited.
//! Does not: know what requests mean (`serve` does).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use ahash::RandomState;
use futures::channel::oneshot;
use glommio::channels::shared_channel::{
    ConnectedReceiver, ConnectedSender, SharedReceiver, SharedSender, new_bounded,
};
use glommio::{GlommioError, ResourceType};

use crate::limits;
use crate::placement::ShardId;
use crate::shard::error::ShardError;
use crate::shard::request::{Message, Reply, Request};

/// Batches on their way over one link; when they are that many, further messages join the outbox.
const LINK_BATCHES_MAX: usize = 64;

type Batch = Vec<Message>;

/// One shard's ends of the mesh, to be carried to its thread.
pub struct Seat {
    senders: Vec<Option<SharedSender<Batch>>>,
    receivers: Vec<Option<SharedReceiver<Batch>>>,
}

/// The ends of a mesh of `shards` shards, in shard order.
pub fn seats(shards: u16) -> Vec<Seat> {
    let shards = usize::from(shards);
    let empty = || Seat {
        senders: (0..shards).map(|_| None).collect(),
        receivers: (0..shards).map(|_| None).collect(),
    };
    let mut seats: Vec<Seat> = (0..shards).map(|_| empty()).collect();
    for from in 0..shards {
        for to in (0..shards).filter(|to| *to != from) {
            let (sender, receiver) = new_bounded(LINK_BATCHES_MAX);
            seats[from].senders[to] = Some(sender);
            seats[to].receivers[from] = Some(receiver);
        }
    }
    seats
}

struct Awaited {
    reply: oneshot::Sender<Reply>,
    bytes: usize,
}

/// The sending side of one link.
struct Link {
    sender: ConnectedSender<Batch>,
    outbox: RefCell<Batch>,
    awaited: RefCell<HashMap<u32, Awaited, RandomState>>,
    bytes: Cell<usize>,
    next_id: Cell<u32>,
}

/// One shard's connected ends.
pub(super) struct Mesh {
    links: Vec<Option<Link>>,
    /// Set while a flush is scheduled.
    flush_scheduled: Cell<bool>,
}

/// The receiving end of one link.
pub(super) type Incoming = (usize, ConnectedReceiver<Batch>);

impl Mesh {
    /// Connects a seat; returns when all shards have taken theirs.
    pub(super) async fn join(seat: Seat) -> (Rc<Mesh>, Vec<Incoming>) {
        let sending = futures::future::join_all(seat.senders.into_iter().map(|sender| async {
            match sender {
                Some(sender) => Some(sender.connect().await),
                None => None,
            }
        }));
        let receiving =
            futures::future::join_all(seat.receivers.into_iter().enumerate().filter_map(
                |(from, receiver)| {
                    receiver.map(|receiver| async move { (from, receiver.connect().await) })
                },
            ));
        let (senders, incoming) = futures::future::join(sending, receiving).await;
        let link = |sender| Link {
            sender,
            outbox: RefCell::default(),
            awaited: RefCell::new(HashMap::default()),
            bytes: Cell::default(),
            next_id: Cell::default(),
        };
        let links = senders.into_iter().map(|sender| sender.map(link)).collect();
        (
            Rc::new(Mesh {
                links,
                flush_scheduled: Cell::new(false),
            }),
            incoming,
        )
    }

    fn link(&self, to: usize) -> &Link {
        self.links[to].as_ref().expect("no shard sends to itself")
    }

    /// Sends a request to its owner. The reply comes through the receiver, which may be dropped.
    pub(super) fn call(
        &self,
        to: ShardId,
        request: Request,
    ) -> Result<oneshot::Receiver<Reply>, ShardError> {
        let link = self.link(to.index());
        let bytes = request.bytes();
        let mut awaited = link.awaited.borrow_mut();
        if awaited.len() >= limits::MESH_IN_FLIGHT_MAX {
            return Err(ShardError::Overloaded(format!(
                "{} requests wait for shard {}, the limit is {}: try again later",
                awaited.len(),
                to.number(),
                limits::MESH_IN_FLIGHT_MAX
            )));
        }
        if link.bytes.get() > 0 && link.bytes.get() + bytes > limits::MESH_BYTES_IN_FLIGHT_MAX {
            return Err(ShardError::Overloaded(format!(
                "{} bytes wait for shard {}, the limit is {}: try again later",
                link.bytes.get(),
                to.number(),
                limits::MESH_BYTES_IN_FLIGHT_MAX
            )));
        }
        let (sender, receiver) = oneshot::channel();
        let id = link.next_id.get();
        // An id comes round again after 4 billion requests; no request is outstanding for so long.
        link.next_id.set(id.wrapping_add(1));
        awaited.insert(
            id,
            Awaited {
                reply: sender,
                bytes,
            },
        );
        link.bytes.set(link.bytes.get() + bytes);
        link.outbox
            .borrow_mut()
            .push(Message::Request { id, request });
        Ok(receiver)
    }

    /// Sends the reply to a request that came from `to`.
    pub(super) fn reply(&self, to: usize, id: u32, reply: Reply) {
        self.link(to)
            .outbox
            .borrow_mut()
            .push(Message::Reply { id, reply });
    }

    /// Hands a reply that came from `from` to whoever waits for it.
    pub(super) fn replied(&self, from: usize, id: u32, reply: Reply) {
        let link = self.link(from);
        let awaited = link
            .awaited
            .borrow_mut()
            .remove(&id)
            .expect("a shard replies to what it was asked, once");
        link.bytes.set(link.bytes.get() - awaited.bytes);
        // Whoever asked may be gone; what was asked has happened all the same.
        drop(awaited.reply.send(reply));
    }

    /// True once per flush: the caller schedules one.
    pub(super) fn wants_flush(&self) -> bool {
        !self.flush_scheduled.replace(true)
    }

    /// Sends what the outboxes hold. What a full link does not take stays for the next flush.
    pub(super) fn flush(&self) {
        self.flush_scheduled.set(false);
        for link in self.links.iter().flatten() {
            let batch = std::mem::take(&mut *link.outbox.borrow_mut());
            if batch.is_empty() {
                continue;
            }
            match link.sender.try_send(batch) {
                Ok(()) => {}
                Err(GlommioError::WouldBlock(ResourceType::Channel(batch))) => {
                    *link.outbox.borrow_mut() = batch;
                }
                // The other shard is gone, and with it the process.
                Err(_) => {}
            }
        }
    }

    /// Requests of this shard that are not answered yet, and messages that have not left it.
    pub(super) fn outstanding(&self) -> usize {
        let of = |link: &Link| link.awaited.borrow().len() + link.outbox.borrow().len();
        self.links.iter().flatten().map(of).sum()
    }
}

#[cfg(test)]
mod tests;

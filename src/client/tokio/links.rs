//! The connections of a sharded client: one to the address that was given, and one to each shard's own port.
//!
//! Which shard owns a key is read from `info` on the connection to the given address, whenever that is a new one: a server
//! that was started again may have another number of shards, and has other ports. A shard's connection, its *link*, is used
//! once its port has answered `info` just so: whoever listens there otherwise is another server, perhaps of another store.
//!
//! Guarantees: nothing here makes a call fail or wait. A key whose link is not there has a substitute, and the port is tried
//! again in the background, after growing pauses, when one of its keys is asked for. Does not: repeat calls (`sharded`
//! does), measure whether a link that is open answers.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use ::tokio::task::spawn_local;
use ::tokio::time::{sleep, timeout};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{Shared, join_all};

use super::parts::{Cut, Part, cut};
use super::{Address, ReconnectingClient};
use crate::client::{Client, ClientError, Limits, ServerInfo, check_call_size};
use crate::limits;
use crate::placement::{PLACEMENT_HASH, Placement};

/// Pause after the first failed attempt to reach a shard's port; doubled after each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long an attempt may take: a port behind a firewall may say nothing at all.
const ATTEMPT_MAX: Duration = Duration::from_secs(3);

/// How a call goes: by a shard's link, or (`None`) by the connection to the given address, which is made when it is not
/// there.
pub(super) type Lane = Option<Client>;

/// Something that many wait for. It is over when the other end is gone.
type Finished = Shared<oneshot::Receiver<()>>;

pub(super) struct Links {
    address: Address,
    entry: ReconnectingClient,
    known: RefCell<Known>,
}

/// What is known of the server's shards.
#[derive(Default)]
struct Known {
    /// The connection on which this was read or is being read.
    read_on: Option<Client>,
    reading: Option<Finished>,
    info: Rc<ServerInfo>,
    /// `None`: nobody's owner is known, or all keys have the same.
    placement: Option<Placement>,
    /// Of each shard.
    links: Vec<Link>,
    /// Counts the replacements of `links`.
    generation: u64,
}

enum Link {
    Open(Client),
    Opening(Finished),
    /// The port was not reached. `pause` is the last one before `retry_at`.
    Shut {
        retry_at: Instant,
        pause: Duration,
    },
}

impl Link {
    fn client(&self) -> Option<&Client> {
        match self {
            Link::Open(client) if !client.is_closed() => Some(client),
            _ => None,
        }
    }

    fn shut(pause: Duration) -> Link {
        Link::Shut {
            retry_at: Instant::now() + pause,
            pause,
        }
    }
}

impl Links {
    pub(super) fn new(address: Address, patience: Duration) -> Links {
        Links {
            entry: ReconnectingClient::with_patience(address.clone(), patience),
            address,
            known: RefCell::default(),
        }
    }

    /// The connection to the given address. Whoever gets a client of it says so with [`Self::met`].
    pub(super) fn entry(&self) -> &ReconnectingClient {
        &self.entry
    }

    /// How a call on a key goes.
    pub(super) fn lane_of(self: &Rc<Self>, key: &[u8]) -> Lane {
        let owner = {
            let known = self.known.borrow();
            let owner = known.placement?.owner(key).index();
            if let Some(client) = known.links[owner].client() {
                return Some(client.clone());
            }
            owner
        };
        self.open_if_due(owner);
        self.substitute()
    }

    /// How a call on many keys goes; of each item its key and the bytes of its value. What a server would refuse is not
    /// cut, so that it is refused as a whole, in the words of one that got the whole.
    pub(super) fn cut<'a>(
        self: &Rc<Self>,
        items: impl Iterator<Item = (&'a [u8], usize)> + Clone,
    ) -> Cut<Lane> {
        let known = self.known.borrow();
        let Some(placement) = known.placement else {
            return Cut::Whole(None);
        };
        let elsewhere = known.links.len();
        let number_of = |(key, _): (&[u8], usize)| {
            let owner = placement.owner(key).index();
            let is_open = known.links[owner].client().is_some();
            if is_open { owner } else { elsewhere }
        };
        let lane_of = |number: usize| match known.links.get(number) {
            Some(link) => link.client().cloned(),
            None => self.substitute(),
        };
        let (cut, has_substitute) = match cut(items.clone().map(number_of), elsewhere + 1) {
            Cut::Whole(number) => (Cut::Whole(lane_of(number)), number == elsewhere),
            Cut::Parts(parts) => {
                let has_substitute = parts.iter().any(|part| part.lane == elsewhere);
                if may_be_cut(&parts, items, &known.info.limits) {
                    let parts = parts.into_iter().map(|part| Part {
                        lane: lane_of(part.lane),
                        items: part.items,
                    });
                    (Cut::Parts(parts.collect()), has_substitute)
                } else {
                    (Cut::Whole(self.substitute()), has_substitute)
                }
            }
        };
        drop(known);
        if has_substitute {
            (0..elsewhere).for_each(|shard| self.open_if_due(shard));
        }
        cut
    }

    /// What serves a key whose link is not there: the given address, unless only a link is connected now.
    pub(super) fn substitute(&self) -> Lane {
        if self.entry.is_connected() {
            return None;
        }
        let known = self.known.borrow();
        known.links.iter().find_map(Link::client).cloned()
    }

    /// A link is of no use any more.
    pub(super) fn lost(&self, client: &Client) {
        let mut known = self.known.borrow_mut();
        for link in &mut known.links {
            if let Link::Open(current) = link
                && current.shares_connection_with(client)
            {
                *link = Link::shut(PAUSE_FIRST);
            }
        }
    }

    /// Sees to it that what is known of the shards was read on this connection to the given address.
    pub(super) fn met(self: &Rc<Self>, entry: &Client) {
        let is_known = |known: &Known| {
            let read_on = known.read_on.as_ref();
            read_on.is_some_and(|read_on| read_on.shares_connection_with(entry))
        };
        // Over a unix socket no port is known to lead to the same server.
        if matches!(self.address, Address::Unix(_)) || is_known(&self.known.borrow()) {
            return;
        }
        let (finish, finished) = oneshot::channel();
        let mut known = self.known.borrow_mut();
        known.read_on = Some(entry.clone());
        known.reading = Some(finished.shared());
        spawn_local(read_shards(Rc::downgrade(self), entry.clone(), finish));
    }

    /// Connects to everything that is not connected. Returns the number of links that are open then.
    pub(super) async fn open_all(self: &Rc<Self>) -> Result<usize, ClientError> {
        // That nobody answers at the given address is an error here.
        self.entry
            .read(async |client| {
                self.met(&client);
                client.info().await
            })
            .await?;
        let reading = self.known.borrow().reading.clone();
        if let Some(reading) = reading {
            // Nothing is sent, the other end goes.
            reading.await.unwrap_or_default();
        }
        join_all(self.open_shut_links()).await;
        let known = self.known.borrow();
        Ok(known.links.iter().filter_map(Link::client).count())
    }

    fn open_shut_links(self: &Rc<Self>) -> Vec<Finished> {
        let mut known = self.known.borrow_mut();
        let mut attempts = Vec::new();
        for shard in 0..known.links.len() {
            match &known.links[shard] {
                Link::Opening(finished) => attempts.push(finished.clone()),
                link if link.client().is_some() => {}
                Link::Open(_) | Link::Shut { .. } => attempts.push(self.open(&mut known, shard)),
            }
        }
        attempts
    }

    /// Tries to open the link of a shard, unless that was tried just now.
    fn open_if_due(self: &Rc<Self>, shard: usize) {
        let mut known = self.known.borrow_mut();
        let is_due = match &known.links[shard] {
            Link::Open(client) => client.is_closed(),
            Link::Opening(_) => false,
            Link::Shut { retry_at, .. } => *retry_at <= Instant::now(),
        };
        if is_due {
            drop(self.open(&mut known, shard));
        }
    }

    fn open(self: &Rc<Self>, known: &mut Known, shard: usize) -> Finished {
        let pause = match known.links[shard] {
            Link::Shut { pause, .. } => (pause * 2).clamp(PAUSE_FIRST, PAUSE_MAX),
            Link::Open(_) | Link::Opening(_) => PAUSE_FIRST,
        };
        let attempt = Attempt {
            links: Rc::downgrade(self),
            generation: known.generation,
            shard,
            address: self.address.with_port(known.info.shard_ports[shard]),
            info: Rc::clone(&known.info),
            pause,
        };
        let (finish, finished) = oneshot::channel();
        let finished = finished.shared();
        known.links[shard] = Link::Opening(finished.clone());
        spawn_local(attempt.make(finish));
        finished
    }

    /// Takes what the server says of its shards.
    fn learn(self: &Rc<Self>, entry: &Client, info: ServerInfo) -> Vec<Finished> {
        {
            let mut known = self.known.borrow_mut();
            let read_on = known.read_on.as_ref();
            if !read_on.is_some_and(|read_on| read_on.shares_connection_with(entry)) {
                return Vec::new();
            }
            // The server that was there before is served by the links that it has.
            if *known.info != info {
                known.placement = placement_of(&info);
                let shards = known
                    .placement
                    .map_or(0, |placement| placement.shard_count());
                known.links = (0..shards).map(|_| Link::shut(Duration::ZERO)).collect();
                known.info = Rc::new(info);
                known.generation += 1;
            }
        }
        self.open_shut_links()
    }
}

/// The rule by which the server places keys, if it is one that this client knows and if there is anything to choose.
fn placement_of(info: &ServerInfo) -> Option<Placement> {
    let shards = info.placement.shard_count;
    let is_usable = info.placement.hash == PLACEMENT_HASH
        && (2..=limits::SHARDS_MAX).contains(&(shards as usize))
        && info.shard_ports.len() == shards as usize;
    let shards = u16::try_from(shards).ok().filter(|_| is_usable)?;
    Some(Placement::new(info.placement.seed, shards))
}

/// Whether a server takes each part of a call, and would not refuse the call for one of its items.
fn may_be_cut<'a>(
    parts: &[Part<usize>],
    items: impl Iterator<Item = (&'a [u8], usize)>,
    limits: &Limits,
) -> bool {
    let mut bytes = Vec::new();
    for (key, value_bytes) in items {
        let fits = (1..=limits.key_bytes_max as usize).contains(&key.len())
            && value_bytes <= limits.value_bytes_max as usize;
        if !fits {
            return false;
        }
        bytes.push(key.len() + value_bytes);
    }
    parts.iter().all(|part| {
        let part_bytes = part.items.iter().map(|at| bytes[*at]).sum();
        part.items.len() <= limits.batch_max as usize
            && check_call_size(part_bytes, part.items.len()).is_ok()
    })
}

/// One attempt to open a link.
struct Attempt {
    links: Weak<Links>,
    generation: u64,
    shard: usize,
    address: Option<Address>,
    /// What the shard has to answer.
    info: Rc<ServerInfo>,
    /// Until the next attempt, if this one fails.
    pause: Duration,
}

impl Attempt {
    /// `_finish` goes when the attempt has ended.
    async fn make(self, _finish: oneshot::Sender<()>) {
        let reached = timeout(ATTEMPT_MAX, self.reach()).await.ok().flatten();
        let Some(links) = self.links.upgrade() else {
            return;
        };
        let mut known = links.known.borrow_mut();
        if known.generation == self.generation {
            known.links[self.shard] = match reached {
                Some(client) => Link::Open(client),
                None => Link::shut(self.pause),
            };
        }
    }

    async fn reach(&self) -> Option<Client> {
        let client = super::open(self.address.as_ref()?).await.ok()?;
        let info = client.info().await.ok()?;
        (info == *self.info).then_some(client)
    }
}

/// Reads what the server says of its shards and opens their links. `_finish` goes when that has ended.
async fn read_shards(links: Weak<Links>, entry: Client, _finish: oneshot::Sender<()>) {
    let mut pause = PAUSE_FIRST;
    let info = loop {
        match entry.info().await {
            Ok(info) => break info,
            // What overloads the connection is served without links.
            Err(ClientError::Overloaded(_)) if links.strong_count() > 0 => sleep(pause).await,
            // Broken: the next connection is asked. Or no orlop: it says so to every call.
            Err(_) => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    };
    let Some(links) = links.upgrade() else {
        return;
    };
    let attempts = links.learn(&entry, info);
    drop((links, entry));
    join_all(attempts).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(hash: &str, shard_count: u32, ports: usize) -> ServerInfo {
        let placement = crate::client::Placement {
            hash: hash.to_string(),
            seed: 1,
            shard_count,
        };
        ServerInfo {
            placement,
            shard_ports: vec![6001; ports],
            ..ServerInfo::default()
        }
    }

    #[test]
    fn only_a_sound_placement_is_followed() {
        let shards = |info| placement_of(&info).map(|placement| placement.shard_count());
        assert_eq!(shards(info("xxh3-64", 2, 2)), Some(2));
        assert_eq!(shards(info("xxh3-64", 1_024, 1_024)), Some(1_024));
        assert_eq!(shards(info("xxh3-64", 1_025, 1_025)), None);
        assert_eq!(shards(info("xxh3-64", u32::MAX, 2)), None);
        assert_eq!(shards(info("xxh3-64", 3, 2)), None);
        assert_eq!(shards(info("xxh3-64", 1, 1)), None, "nothing to choose");
        assert_eq!(shards(info("xxh3-64", 0, 0)), None);
        assert_eq!(shards(info("fnv", 2, 2)), None);
    }
}

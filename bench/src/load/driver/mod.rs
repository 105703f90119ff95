//! The systems that a load can be put on, and the connections to them.
//!
//! orlop goes through its Rust client, a task per request in flight (`orlop.rs`,
//! `caller.rs`). The others are spoken to byte by byte:
//! `lane.rs` keeps a connection full of requests, `pipeline.rs` says which, and a `Protocol` (`resp.rs`, `memcached.rs`,
//! `etcd.rs`) writes them and reads the answers. All take their operations from the same traces.
//! Guarantees: what a system cannot do is refused before anything is connected. Used by `load::run`.

mod caller;
mod etcd;
mod lane;
mod memcached;
mod orlop;
mod pipeline;
mod resp;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Instant;

use ::orlop::client::tokio::Address;
use tokio::task::JoinSet;

use super::alarm::Alarm;
use super::failure::Failure;
use super::mix::Kind;
use super::options::Plan;
use super::run::Run;
use super::source::Source;
use super::sweep;

use lane::Lane;

pub(crate) use caller::Caller;
pub(crate) use orlop::OVERLOADED_PAUSE;

/// Requests that a preload keeps in flight on a connection which can hold more than one.
const PRELOAD_IN_FLIGHT: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    Orlop,
    Redis,
    Valkey,
    Memcached,
    Etcd,
}

const SYSTEMS: [(System, &str, u16); 5] = [
    (System::Orlop, "orlop", 6000),
    (System::Redis, "redis", 6379),
    (System::Valkey, "valkey", 6379),
    (System::Memcached, "memcached", 11211),
    (System::Etcd, "etcd", 2379),
];

impl System {
    /// Where its server listens on this machine, unless told otherwise.
    pub(crate) fn usual_address(self) -> Address {
        let (_, _, port) = SYSTEMS[self as usize];
        Address::Tcp(format!("127.0.0.1:{port}"))
    }

    /// Refuses a plan that it cannot carry out, in a sentence.
    pub(crate) fn can(self, plan: &Plan) -> Result<(), String> {
        if self == System::Orlop {
            return Ok(());
        }
        if plan.verify || plan.ack_log.is_some() {
            let option = if plan.verify { "--verify" } else { "--ack-log" };
            return Err(format!(
                "{option} needs a version for every write, which {self} does not answer: it works with --system orlop only"
            ));
        }
        if plan.shard_aware {
            return Err(format!(
                "--shard-aware asks the owner of each key in orlop, and {self} has no shards with ports of their own"
            ));
        }
        let ranges = plan.mix.has(Kind::Prefix) || plan.mix.has(Kind::Scan);
        match self {
            System::Redis | System::Valkey | System::Memcached if ranges => Err(format!(
                "{self} keeps no order of keys, so it has no prefix reads and no scans, of which {} has some",
                plan.name()
            )),
            System::Memcached => at_most(
                "--key-size",
                plan.keys.size.max(),
                memcached::KEY_LEN_MAX,
                self,
            ),
            System::Etcd => {
                if let Address::Unix(_) = plan.server {
                    return Err(format!(
                        "--server is {}, but etcd is spoken to over TCP: give HOST:PORT",
                        plan.server
                    ));
                }
                if plan.batch > 1 {
                    return Err(format!(
                        "--batch is {}, but a put of etcd is of one key: leave --batch out",
                        plan.batch
                    ));
                }
                let bytes = plan.keys.size.max() + plan.value_size.max();
                at_most("a key and its value", bytes, etcd::PAIR_BYTES_MAX, self)
            }
            System::Orlop | System::Redis | System::Valkey => Ok(()),
        }
    }

    fn protocol(self, server: &Address) -> Box<dyn Protocol> {
        match self {
            System::Redis | System::Valkey => Box::new(resp::Resp),
            System::Memcached => Box::new(memcached::Memcached),
            System::Etcd => Box::new(etcd::Etcd::new(&server.to_string())),
            System::Orlop => unreachable!("orlop is loaded through its client"),
        }
    }

    /// Whether a connection takes a request before the last one is answered. If not, each has its own connection.
    fn is_pipelined(self) -> bool {
        match self {
            // HTTP/1.1 answers one request after the other.
            System::Etcd => false,
            System::Orlop | System::Redis | System::Valkey | System::Memcached => true,
        }
    }
}

impl Plan {
    /// Connections of the whole load.
    pub(crate) fn connections(&self) -> usize {
        if self.system.is_pipelined() {
            self.clients
        } else {
            self.clients * self.in_flight
        }
    }
}

fn at_most(name: &str, bytes: usize, most: usize, system: System) -> Result<(), String> {
    if bytes > most {
        return Err(format!(
            "{name} may be {bytes} bytes, and {system} takes at most {most}"
        ));
    }
    Ok(())
}

impl FromStr for System {
    type Err = String;

    fn from_str(text: &str) -> Result<System, String> {
        let found = SYSTEMS.iter().find(|(_, name, _)| *name == text);
        found.map(|(system, ..)| *system).ok_or_else(|| {
            let names = SYSTEMS.map(|(_, name, _)| name).join(", ");
            format!("'{text}' is not a system: say one of {names}")
        })
    }
}

impl fmt::Display for System {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(SYSTEMS[*self as usize].1)
    }
}

/// What is asked for in one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// The values of the keys.
    Get,
    /// The keys get the values.
    Set,
    /// At most so many entries, from the first key up to the second, which is not wanted any more.
    Range { entries: u32 },
}

/// One request, in bytes that belong to the caller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) call: Call,
    pub(crate) keys: &'a [Vec<u8>],
    /// As many as keys for `Set`, none otherwise.
    pub(crate) values: &'a [Vec<u8>],
}

/// An answer that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Bytes that it took.
    pub(crate) used: usize,
    /// Keys written, values found, or entries.
    pub(crate) count: u64,
}

/// An answer that ends the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The server said no: its words.
    Error(String),
    /// These bytes are not an answer of this protocol.
    Foreign(String),
}

/// How a system is spoken to. Answers come in the order of the requests.
pub(crate) trait Protocol {
    /// Appends the message of `request`.
    fn ask(&mut self, request: Request<'_>, out: &mut Vec<u8>);

    /// Reads the answer to a `call` of `keys` keys from the start of `input`; nothing when it is not whole yet.
    fn answer(&mut self, call: Call, keys: usize, input: &[u8]) -> Result<Option<Answer>, Refusal>;
}

/// The first bytes of something, for a message.
fn beginning(bytes: &[u8]) -> String {
    const SHOWN: usize = 80;
    String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned()
}

/// The line at the start of `input`, without its end; nothing when it is not whole yet.
fn line(input: &[u8]) -> Result<Option<&[u8]>, Refusal> {
    const LINE_LEN_MAX: usize = 64 << 10;
    match input.iter().position(|&byte| byte == b'\n') {
        Some(end) if end > 0 && input[end - 1] == b'\r' => Ok(Some(&input[..end - 1])),
        Some(_) => Err(Refusal::Foreign(beginning(input))),
        None if input.len() > LINE_LEN_MAX => Err(Refusal::Foreign(beginning(input))),
        None => Ok(None),
    }
}

/// A length that the server announced; nothing when it is no number, or more than anybody asked for.
fn length(digits: &[u8]) -> Option<usize> {
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number <= ::orlop::limits::CLIENT_MESSAGE_BYTES_MAX).then_some(number)
}

/// All connections of a load.
pub(crate) enum Connections {
    Orlop(Vec<Caller>),
    Lanes(Vec<Lane>),
}

impl Connections {
    pub(crate) async fn open(run: &Run) -> Result<Connections, Failure> {
        let plan = &run.plan;
        if plan.system == System::Orlop {
            let mut clients = Vec::with_capacity(plan.clients);
            for _ in 0..plan.clients {
                clients.push(Caller::open(&plan.server, plan.shard_aware).await?);
                run.advance(1);
            }
            return Ok(Connections::Orlop(clients));
        }
        let per_client = plan.connections() / plan.clients;
        let mut lanes = Vec::with_capacity(plan.connections());
        for number in 0..plan.connections() {
            let protocol = plan.system.protocol(&plan.server);
            lanes.push(Lane::open(plan, number, number / per_client, protocol).await?);
            run.advance(1);
        }
        Ok(Connections::Lanes(lanes))
    }

    /// Writes every key once.
    pub(crate) async fn preload(&mut self, run: &Rc<Run>) -> Result<(), Failure> {
        match self {
            Connections::Orlop(clients) => sweep::preload(run, clients).await,
            Connections::Lanes(lanes) => {
                let next = Rc::new(Cell::new(0));
                let source = |_| Source::sweep(next.clone(), run.plan.keys.count);
                let alarm = Rc::new(Alarm::new()?);
                work(run, lanes, source, PRELOAD_IN_FLIGHT, &alarm).await
            }
        }
    }

    /// Loads from now on until the window closes.
    pub(crate) async fn measure(&mut self, run: &Rc<Run>) -> Result<(), Failure> {
        let alarm = Rc::new(Alarm::new()?);
        let start = Instant::now();
        let until = run.start_clock(start);
        let source = |client| Source::load(run, client, start, until);
        let ended = async {
            match self {
                Connections::Orlop(clients) => orlop::work(run, clients, source, &alarm).await,
                Connections::Lanes(lanes) => {
                    work(run, lanes, source, run.plan.in_flight, &alarm).await
                }
            }
        };
        tokio::select! {
            ended = ended => ended,
            failure = alarm.ring() => Err(failure),
        }
    }

    /// Reads everything back; only a verifying load, so only orlop, has something to hold against it.
    pub(crate) async fn read_back(&self, run: &Rc<Run>) -> Result<u64, Failure> {
        match self {
            Connections::Orlop(clients) => sweep::read_back(run, clients).await,
            Connections::Lanes(_) => Ok(0),
        }
    }
}

/// Lets all lanes work on the sources of their clients; afterwards tells what was due and left over.
async fn work(
    run: &Rc<Run>,
    lanes: &mut Vec<Lane>,
    source: impl Fn(usize) -> Source,
    in_flight: usize,
    alarm: &Rc<Alarm>,
) -> Result<(), Failure> {
    let sources = shared_sources(run, source);
    let pipelined = run.plan.system.is_pipelined();
    let depth = if pipelined { in_flight } else { 1 };
    let mut tasks = JoinSet::new();
    for lane in lanes.drain(..) {
        let source = sources[lane.client()].clone();
        tasks.spawn_local(lane.work(run.clone(), source, depth, alarm.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        lanes.push(ended.expect("a lane neither panics nor is aborted")?);
    }
    tell_overdue(run, &sources);
    Ok(())
}

type SharedSource = Rc<RefCell<Source>>;

/// One source for each client.
fn shared_sources(run: &Run, source: impl Fn(usize) -> Source) -> Vec<SharedSource> {
    let shared = |client| Rc::new(RefCell::new(source(client)));
    (0..run.plan.clients).map(shared).collect()
}

fn tell_overdue(run: &Run, sources: &[SharedSource]) {
    for source in sources {
        source
            .borrow_mut()
            .overdue(|kind, due| run.overdue(kind, due));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_has_a_name_and_another_is_refused_with_the_list() {
        for (system, name, _) in SYSTEMS {
            assert_eq!(name.parse(), Ok(system));
            assert_eq!(system.to_string(), name);
        }
        let message = "mysql".parse::<System>().expect_err("no such system");
        assert!(
            message.contains("mysql") && message.contains("memcached"),
            "{message}"
        );
    }

    #[test]
    fn a_line_ends_with_both_of_its_bytes() {
        assert_eq!(line(b"+OK\r\n+"), Ok(Some(&b"+OK"[..])));
        assert_eq!(line(b"+OK\r"), Ok(None));
        assert_eq!(line(b"\r\n"), Ok(Some(&b""[..])));
        for wrong in [&b"\n"[..], b"+OK\n", &[b'x'; 70_000]] {
            line(wrong).expect_err("not a line");
        }
    }

    #[test]
    fn a_length_is_a_number_that_can_be() {
        assert_eq!(length(b"0"), Some(0));
        assert_eq!(length(b"512"), Some(512));
        for wrong in [
            &b""[..],
            b"-1",
            b"1x",
            b"99999999999",
            b"184467440737095516160",
        ] {
            assert_eq!(length(wrong), None);
        }
    }
}

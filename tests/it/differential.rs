//! The fast path and the general RPC system side by side: random sequences of messages, honest and hostile, are sent to a
//! server of each kind. Both must give the same answers, end the same connections for the same reason, and hold the same
//! data afterwards.
//!
//! What may differ is left out of the comparison: the order of answers, the answer to a call that was given up with
//! `Finish` before it returned, and values that are being written while they are read (no round does that).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use capnp::any_pointer;
use capnp::message::{Builder, HeapAllocator, Reader};
use capnp::serialize::OwnedSegments;
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::{call, cap_descriptor, exception, message, return_};
use orlop::limits::{PAGE_BYTES_MAX, PAGE_ENTRIES_MAX};
use orlop::proto::orlop_capnp::{bootstrap, condition, store};

use crate::harness::{Content, Flags, Server, everything, run_for};
use crate::random::Random;
use crate::raw::{self, RawClient};

/// Rounds of an ordinary run; `ORLOP_ROUNDS` asks for more.
const ROUNDS: u64 = 400;

/// Keys that are written before the first round and only read from then on.
const STABLE_KEYS: u64 = 20;

/// A question whose number no random call uses.
const BARRIER: u32 = 1 << 20;

/// What is said of a question number that is used twice, whatever else is wrong with the call.
const IN_USE: &str = "in-use question id";

/// The end of a connection without a word.
const CLOSED: &str = "closed";

/// What a connection has said in one round.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    /// By question.
    answers: BTreeMap<u32, Vec<String>>,
    /// Why the server ended the connection, if it did.
    abort: Option<String>,
}

/// One connection to one of the servers.
struct Side {
    client: RawClient,
    /// Export of the store.
    store: u32,
}

impl Side {
    /// Connects and waits for the store.
    async fn connect(server: &Server) -> Side {
        let mut client = RawClient::connect(server.address()).await;
        loop {
            let message = client.receive().await.expect("the connection opens");
            if let Some((raw::OPEN, store)) = export_in(&message) {
                return Side { client, store };
            }
        }
    }

    /// Sends a round and reads until everything in `awaited` is answered and the connection still lives, or has ended.
    async fn round(&mut self, bytes: &[u8], awaited: &BTreeSet<u32>) -> Said {
        self.client.send(bytes).await;
        let mut said = Said::default();
        while !awaited.iter().all(|id| said.answers.contains_key(id)) {
            let Some(message) = self.client.receive().await else {
                said.abort.get_or_insert_with(|| CLOSED.to_owned());
                break;
            };
            note(&message, &mut said);
        }
        said
    }
}

/// The question that a message answers with one capability, and its export.
fn export_in(message: &Reader<OwnedSegments>) -> Option<(u32, u32)> {
    let root: message::Reader<'_> = message.get_root().unwrap();
    let message::Return(Ok(answer)) = root.which().unwrap() else {
        return None;
    };
    let return_::Results(Ok(payload)) = answer.which().unwrap() else {
        return None;
    };
    let descriptor = payload.get_cap_table().unwrap().try_get(0)?;
    match descriptor.which().unwrap() {
        cap_descriptor::SenderHosted(export) => Some((answer.get_answer_id(), export)),
        _ => None,
    }
}

fn note(message: &Reader<OwnedSegments>, said: &mut Said) {
    let root: message::Reader<'_> = message.get_root().unwrap();
    match root.which() {
        Ok(message::Return(answer)) => {
            let answer = answer.unwrap();
            let text = match answer.which().unwrap() {
                return_::Results(_) if export_in(message).is_some() => {
                    format!("export {:?}", export_in(message))
                }
                return_::Results(payload) => {
                    let results = payload.unwrap().get_content();
                    let words = results.target_size().unwrap().word_count as u32 + 1;
                    let mut content = Builder::new(HeapAllocator::new().first_segment_words(words));
                    content
                        .set_root_canonical::<any_pointer::Owned>(results)
                        .unwrap();
                    shortened(content.get_segments_for_output()[0])
                }
                return_::Exception(exception) => shown(exception.unwrap()),
                return_::Canceled(()) => "canceled".to_owned(),
                _ => panic!("an answer of a kind that no server gives"),
            };
            let question = answer.get_answer_id();
            said.answers.entry(question).or_default().push(text);
        }
        Ok(message::Abort(reason)) => said.abort = Some(shown(reason.unwrap())),
        // What becomes of capabilities of the client.
        _ => {}
    }
}

/// The bytes of an answer, or of a long one what tells it from others.
fn shortened(bytes: &[u8]) -> String {
    if bytes.len() <= 8 << 10 {
        return format!("{bytes:?}");
    }
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} bytes like {:x}", bytes.len(), hasher.finish())
}

fn shown(exception: exception::Reader<'_>) -> String {
    let reason = exception.get_reason().unwrap().to_string().unwrap();
    format!("{:?}: {reason}", exception.get_type().unwrap())
}

/// What a call is made on.
#[derive(Clone, Copy, Debug)]
enum Target {
    Import(u32),
    /// A pointer field of the answer to a question.
    Promised(u32, u16),
}

/// Makes the messages of one round.
struct Round<'a> {
    random: &'a mut Random,
    store: u32,
    number: u64,
    bytes: Vec<u8>,
    /// Questions whose answers are compared.
    awaited: BTreeSet<u32>,
    /// What is sent, for the message of a failure.
    story: String,
    next: u32,
    /// The call that is made writes.
    writes: bool,
    /// The last call asks for a page.
    is_page: bool,
}

impl Round<'_> {
    fn push(&mut self, bytes: &[u8], what: std::fmt::Arguments<'_>) {
        self.bytes.extend_from_slice(bytes);
        writeln!(self.story, "  {what}").unwrap();
    }

    /// A number that was used just now, but not for a page: that may be read from disk, and when its number is free again
    /// is a matter of time.
    fn last_used(&self) -> u32 {
        if self.is_page {
            return raw::OPEN;
        }
        self.next.saturating_sub(1)
    }

    fn target(&mut self) -> Target {
        match self.random.within(0..100) {
            0 => Target::Import(self.store + 1 + self.random.within(0..3) as u32),
            1 => Target::Promised(raw::OPEN, 1),
            2 => Target::Promised(raw::BOOTSTRAP, 0),
            3 => Target::Promised(12_345, 0),
            4 => Target::Promised(self.next.saturating_sub(1), 0),
            5..40 => Target::Promised(raw::OPEN, 0),
            _ => Target::Import(self.store),
        }
    }

    /// One that is only read, or one that only this round writes: also where a call has the parameters of another one.
    fn key(&mut self) -> Vec<u8> {
        match self.random.within(0..12) {
            _ if self.writes => self.own_key(),
            0 => Vec::new(),
            1 => self.random.bytes(70_000),
            _ => format!("stable {}", self.random.within(0..STABLE_KEYS + 5)).into_bytes(),
        }
    }

    fn own_key(&mut self) -> Vec<u8> {
        format!("round {} {}", self.number, self.random.within(0..6)).into_bytes()
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.random.within(0..12) {
            0 => 70_000,
            1 => 0,
            2 => 65_536,
            _ => self.random.within(0..300) as usize,
        };
        self.random.bytes(len)
    }

    fn call(&mut self) {
        let question = match self.random.within(0..300) {
            // In use already, or perhaps.
            0 => raw::OPEN,
            1 => self.last_used(),
            _ => self.next,
        };
        self.next += 1;
        let target = self.target();
        let method = match self.random.within(0..40) {
            0 => self.random.within(8..12) as u16,
            n => [0, 0, 1, 1, 2, 3, 4, 5][n as usize % 8],
        };
        let interface = match self.random.within(0..60) {
            0 => bootstrap::Client::TYPE_ID,
            1 => 42,
            _ => store::Client::TYPE_ID,
        };
        // Small segments make far pointers.
        let first_words = match self.random.within(0..6) {
            0 => 1,
            1 => self.random.within(2..40) as u32,
            _ => 1024,
        };
        let mut message = Builder::new(HeapAllocator::new().first_segment_words(first_words));
        let mut call = message.init_root::<message::Builder<'_>>().init_call();
        call.set_question_id(question);
        call.set_interface_id(interface);
        call.set_method_id(method);
        fill_target(target, call.reborrow());
        // `info` tells two servers apart.
        let mut compared = interface != bootstrap::Client::TYPE_ID;
        match self.random.within(0..80) {
            0 => {
                call.reborrow().get_send_results_to().set_yourself(());
                compared = false;
            }
            1 if self.random.one_in(4) => {
                call.reborrow().get_send_results_to().init_third_party();
            }
            _ => {}
        }
        let mut payload = call.init_params();
        if self.random.one_in(40) {
            payload
                .reborrow()
                .init_cap_table(1)
                .get(0)
                .set_sender_hosted(7);
        }
        // Parameters of another method now and then, or none.
        let filled = match self.random.within(0..25) {
            0 => self.random.within(0..6) as u16,
            1 => u16::MAX,
            _ => method,
        };
        self.writes = [1, 2, 4].contains(&method);
        self.is_page = method == 5;
        // With other parameters a page may hold what this round writes.
        compared &= method != 5 || filled == 5;
        self.fill(filled, payload.get_content());
        let mut bytes = capnp::serialize::write_message_to_words(&message);
        if self.random.one_in(30) {
            // Behind the first words, which say where the envelope is.
            let at = 8 * self.random.within(4..(bytes.len() as u64 / 8).max(5)) as usize;
            if let Some(word) = bytes.get_mut(at..at + 8) {
                word[self.random.within(0..8) as usize] ^= 1 << self.random.within(0..8);
            }
            // It may be another question now, or none at all.
            compared = false;
        }
        if question != self.next - 1 || !compared {
            // A number that is used twice may have one answer or two, as time will have it.
            self.awaited.remove(&question);
        } else {
            self.awaited.insert(question);
        }
        self.push(
            &bytes,
            format_args!("call {question} of {interface:x}.{method} with {filled} on {target:?}, {first_words} words"),
        );
    }

    fn fill(&mut self, method: u16, content: any_pointer::Builder<'_>) {
        match method {
            0 => {
                let key = self.key();
                content
                    .init_as::<store::get_params::Builder<'_>>()
                    .set_key(&key);
            }
            1 => {
                let (key, value) = (self.key(), self.value());
                let mut params = content.init_as::<store::set_params::Builder<'_>>();
                params.set_key(&key);
                params.set_value(&value);
                self.condition(|| params.init_condition());
            }
            2 => {
                let key = self.key();
                let mut params = content.init_as::<store::delete_params::Builder<'_>>();
                params.set_key(&key);
                self.condition(|| params.init_condition());
            }
            3 => {
                let keys: Vec<_> = (0..self.random.within(0..5)).map(|_| self.key()).collect();
                let mut list = content
                    .init_as::<store::get_many_params::Builder<'_>>()
                    .init_keys(keys.len() as u32);
                for (at, key) in (0..).zip(&keys) {
                    list.set(at, key);
                }
            }
            4 => {
                let count = self.random.within(0..5) as u32;
                let mut list = content
                    .init_as::<store::write_params::Builder<'_>>()
                    .init_mutations(count);
                for at in 0..count {
                    let (key, value) = (self.key(), self.value());
                    let mut one = list.reborrow().get(at);
                    one.set_key(&key);
                    if self.random.one_in(3) {
                        one.set_delete(());
                    } else {
                        one.set_set(&value);
                    }
                    self.condition(|| one.init_condition());
                }
            }
            5 => self.prefix_query(content.init_as()),
            _ => {}
        }
    }

    fn prefix_query(&mut self, mut params: store::get_prefix_params::Builder<'_>) {
        let key = self.key();
        match self.random.within(0..6) {
            _ if self.writes => params.set_prefix(&key),
            // Without a prefix there is also what is being written.
            0 if !key.is_empty() => params.set_prefix(&key),
            1 => params.set_prefix(b"stable 1"),
            _ => params.set_prefix(b"stable"),
        }
        if self.random.one_in(3) {
            params.set_after(&self.key());
        }
        if let Some(bound) = self.page_bound(PAGE_ENTRIES_MAX, STABLE_KEYS) {
            params.set_max_entries(bound);
        }
        if let Some(bound) = self.page_bound(PAGE_BYTES_MAX, 300_000) {
            params.set_max_bytes(bound);
        }
        params.set_keys_only(self.random.one_in(4));
    }

    /// What bounds a page, or should not.
    fn page_bound(&mut self, max: usize, low: u64) -> Option<u32> {
        match self.random.within(0..12) {
            0 => Some([0, max as u32 + 1, u32::MAX][self.random.within(0..3) as usize]),
            1 => Some(1),
            2 => Some(max as u32),
            3..8 => Some(1 + self.random.within(0..low) as u32),
            _ => None,
        }
    }

    fn condition<'b>(&mut self, init: impl FnOnce() -> condition::Builder<'b>) {
        match self.random.within(0..8) {
            0 => init().set_if_absent(()),
            1 => init().set_if_present(()),
            2 => init().set_if_version(self.random.within(0..50)),
            3 => init().set_none(()),
            _ => {}
        }
    }

    fn finish(&mut self) {
        let back = self.random.within(1..6) as u32;
        let question = match self.random.within(0..100) {
            0 => raw::OPEN,
            1 => BARRIER - 1,
            _ => self.next.saturating_sub(back),
        };
        // Whether the answer was given before is a matter of time.
        self.awaited.remove(&question);
        self.push(&raw::finish(question), format_args!("finish {question}"));
    }

    fn other(&mut self) {
        let mut message = Builder::new_default();
        let root = message.init_root::<message::Builder<'_>>();
        let what = self.random.within(0..6);
        match what {
            0 => {
                let mut release = root.init_release();
                release.set_id(self.store);
                release.set_reference_count(self.random.within(0..3) as u32);
            }
            1 => root.init_bootstrap().set_question_id(self.next),
            2 => root.init_bootstrap().set_question_id(self.last_used()),
            3 => {
                let mut call = root.init_call();
                call.set_question_id(self.next);
                call.set_interface_id(bootstrap::Client::TYPE_ID);
                fill_target(Target::Promised(raw::BOOTSTRAP, 0), call.reborrow());
            }
            4 => root
                .init_unimplemented()
                .init_resolve()
                .init_cap()
                .set_sender_hosted(self.store),
            _ => {
                let mut disembargo = root.init_disembargo();
                disembargo
                    .reborrow()
                    .init_target()
                    .set_imported_cap(self.store);
                disembargo.init_context().set_sender_loopback(3);
            }
        }
        self.next += 1;
        let bytes = capnp::serialize::write_message_to_words(&message);
        self.push(&bytes, format_args!("message of kind {what}"));
    }

    /// Fills the round. Its last call is an honest one, so that the end of what came before is seen.
    fn make(&mut self) {
        for _ in 0..1 + self.random.within(0..16) {
            match self.random.within(0..60) {
                0 => self.other(),
                1..12 => self.finish(),
                _ => self.call(),
            }
        }
        let question = BARRIER + self.number as u32;
        let mut barrier = Builder::new_default();
        let mut call = barrier.init_root::<message::Builder<'_>>().init_call();
        call.set_question_id(question);
        call.set_interface_id(store::Client::TYPE_ID);
        call.set_method_id(1);
        fill_target(Target::Import(self.store), call.reborrow());
        let mut params = call
            .init_params()
            .init_content()
            .init_as::<store::set_params::Builder<'_>>();
        params.set_key(b"barrier");
        params.set_value(&self.number.to_le_bytes());
        self.awaited.insert(question);
        let bytes = capnp::serialize::write_message_to_words(&barrier);
        self.push(&bytes, format_args!("the barrier {question}"));
    }
}

fn fill_target(target: Target, call: call::Builder<'_>) {
    let mut to = call.init_target();
    match target {
        Target::Import(id) => to.set_imported_cap(id),
        Target::Promised(question, field) => {
            let mut promised = to.init_promised_answer();
            promised.set_question_id(question);
            if question != raw::BOOTSTRAP {
                promised
                    .init_transform(1)
                    .get(0)
                    .set_get_pointer_field(field);
            }
        }
    }
}

#[test]
fn the_fast_path_answers_as_the_general_rpc_system_does() {
    run_for(180, async |scratch| {
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let rounds = std::env::var("ORLOP_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
        // One shard: then versions are the same, too. Of a segment of 16 MiB no value here is so large that others pass it.
        let flags = Flags::small()
            .with("--shards", "1")
            .with("--segment-size", "16MiB");
        let fast = Server::start(&scratch.path("fast"), &flags.clone().fast_path(true)).await;
        let slow = Server::start(&scratch.path("slow"), &flags.fast_path(false)).await;
        let clients = [fast.client().await, slow.client().await];
        for client in &clients {
            for i in 0..STABLE_KEYS {
                // Some are large enough to be written from where they are.
                let value = Random::new(i).bytes((3_900 * i as usize).min(64 << 10));
                client
                    .set(format!("stable {i}").as_bytes(), &value)
                    .await
                    .unwrap();
            }
        }
        let mut sides = None;
        let (mut ended, mut compared) = (0, 0);
        for number in 0..rounds {
            let (mut of_fast, mut of_slow) = match sides.take() {
                Some(sides) => sides,
                None => (Side::connect(&fast).await, Side::connect(&slow).await),
            };
            assert_eq!(of_fast.store, of_slow.store);
            let mut round = Round {
                random: &mut random,
                store: of_fast.store,
                number,
                bytes: Vec::new(),
                awaited: BTreeSet::new(),
                story: String::new(),
                next: raw::FIRST_QUESTION + 40 * number as u32,
                writes: false,
                is_page: false,
            };
            round.make();
            let Round {
                bytes,
                awaited,
                story,
                ..
            } = round;
            let (said_fast, said_slow) = futures::join!(
                of_fast.round(&bytes, &awaited),
                of_slow.round(&bytes, &awaited)
            );
            let aborts = (&said_fast.abort, &said_slow.abort);
            assert_eq!(
                aborts.0.is_some(),
                aborts.1.is_some(),
                "round {number}: {aborts:?}\n{story}"
            );
            if let (Some(fast), Some(slow)) = aborts {
                // A connection that closes with unread input may lose its last words.
                let lost = fast == CLOSED || slow == CLOSED;
                // With two things wrong at once either may be told.
                let either = [fast, slow].iter().any(|reason| reason.contains(IN_USE));
                assert!(
                    lost || either || fast == slow,
                    "round {number}: {aborts:?}\n{story}"
                );
                ended += 1;
                // What the round wrote may be on its way to the disk; behind this it is there.
                for client in &clients {
                    client.set(b"end", b"").await.unwrap();
                }
                continue;
            }
            for id in &awaited {
                let (left, right) = (&said_fast.answers[id], &said_slow.answers[id]);
                assert_eq!(left, right, "question {id} of round {number}:\n{story}");
                compared += 1;
            }
            sides = Some((of_fast, of_slow));
        }
        println!("{compared} answers compared, {ended} connections ended");
        assert!(compared > rounds && ended > rounds / 20);
        drop(sides);
        let [of_fast, of_slow] = clients;
        let (of_fast, of_slow) = (everything(&of_fast).await, everything(&of_slow).await);
        let only = |left: &Content, right: &Content| -> Vec<String> {
            let others = left
                .iter()
                .filter(|(key, held)| right.get(*key) != Some(held));
            let shown = |(key, (value, version)): (&Vec<u8>, &(Vec<u8>, u64))| {
                let key = String::from_utf8_lossy(key);
                format!("{key}: {} bytes @{version}", value.len())
            };
            others.map(shown).collect()
        };
        assert_eq!(only(&of_fast, &of_slow), only(&of_slow, &of_fast));
        fast.stop().await;
        slow.stop().await;
    });
}

//! What is in flight on one connection to a peer: which requests go out now, and what their answers mean.
//!
//! No sockets, no clock: bytes and moments come from the caller (`lane.rs`, and tests with a clock of their own).
//! Guarantees: at most `depth` requests in flight, and at most about `OUT_BYTES_MAX` waiting to be sent; an operation
//! counts from the moment at which it was to start. Does not know any protocol's bytes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Instant;

use super::{Call, Protocol, Refusal, Request};
use crate::load::keys::{KeySpace, PREFIX_LEN};
use crate::load::mix::Kind;
use crate::load::run::Run;
use crate::load::source::Source;
use crate::load::trace::Operation;
use crate::load::writer::Writer;

/// Bytes that wait to be sent, before one more request.
const OUT_BYTES_MAX: usize = 256 << 10;

/// Most entries of a prefix read, as orlop's client asks by default.
const PREFIX_ENTRIES: u32 = 1_000;

/// Above every key: they begin with `k`.
const END_OF_KEYS: &[u8] = b"l";

pub(crate) struct Pipeline {
    protocol: Box<dyn Protocol>,
    pub(crate) depth: usize,
    writer: Writer,
    keys: Vec<Vec<u8>>,
    operation: Operation,
    /// When `operation` is to start; nothing: it has started, and there may be another.
    reserved: Option<Instant>,
    /// The oldest first.
    in_flight: VecDeque<InFlight>,
}

struct InFlight {
    kind: Kind,
    begun: Instant,
    call: Call,
    keys: usize,
    /// The key to write when this read is answered.
    then_write: Option<u64>,
    /// Keys of this operation that were not found so far.
    absent: u64,
}

/// Why no more requests go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Answers, or room to send, must come first.
    Full,
    /// The next operation is due then.
    At(Instant),
    /// There are no more.
    End,
}

impl Pipeline {
    /// `writer`: the number that tells its values from those of other connections.
    pub(crate) fn new(protocol: Box<dyn Protocol>, writer: u32) -> Pipeline {
        Pipeline {
            protocol,
            depth: 1,
            writer: Writer::new(writer),
            keys: Vec::new(),
            operation: Operation::empty(),
            reserved: None,
            in_flight: VecDeque::new(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether one more request may be in flight.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight.len() < self.depth
    }

    /// Appends the requests that are to start by `now` to `out`, of which `sent` bytes are gone.
    pub(crate) fn fill(
        &mut self,
        run: &Run,
        source: &RefCell<Source>,
        now: Instant,
        out: &mut Vec<u8>,
        sent: usize,
    ) -> Then {
        while self.has_room() && out.len() - sent < OUT_BYTES_MAX {
            let intended = match self.reserved {
                Some(due) => due,
                None => match source.borrow_mut().next(now, &mut self.operation) {
                    Some(intended) => intended,
                    None => return Then::End,
                },
            };
            if intended > now {
                self.reserved = Some(intended);
                return Then::At(intended);
            }
            self.reserved = None;
            self.start(run, intended, out);
        }
        Then::Full
    }

    fn start(&mut self, run: &Run, begun: Instant, out: &mut Vec<u8>) {
        let Operation {
            kind,
            ref numbers,
            entries,
        } = self.operation;
        let first = numbers[0];
        let space = run.plan.keys;
        let (mut call, mut keys) = (Call::Get, numbers.len());
        self.keys.resize_with(keys.max(2), Vec::new);
        match kind {
            Kind::Write | Kind::Insert => {
                call = Call::Set;
                self.writer.prepare(run, numbers.iter().copied());
            }
            Kind::Read | Kind::ReadModifyWrite => {
                for (key, number) in self.keys.iter_mut().zip(numbers) {
                    space.write_key(*number, key);
                }
            }
            Kind::Prefix => {
                (call, keys) = (
                    Call::Range {
                        entries: PREFIX_ENTRIES,
                    },
                    2,
                );
                let group = first / crate::load::keys::GROUP;
                for (key, group) in self.keys.iter_mut().zip([group, group + 1]) {
                    key.resize(PREFIX_LEN, 0);
                    KeySpace::write_prefix(group, key);
                }
            }
            Kind::Scan => {
                (call, keys) = (Call::Range { entries }, 2);
                space.write_key(first, &mut self.keys[0]);
                self.keys[1].clear();
                self.keys[1].extend_from_slice(END_OF_KEYS);
            }
        }
        let (keys, values) = match call {
            Call::Set => self.writer.pairs(),
            Call::Get | Call::Range { .. } => (&self.keys[..keys], &[][..]),
        };
        self.protocol.ask(Request { call, keys, values }, out);
        self.in_flight.push_back(InFlight {
            kind,
            begun,
            call,
            keys: keys.len(),
            then_write: (kind == Kind::ReadModifyWrite).then_some(first),
            absent: 0,
        });
    }

    /// Reads the answers that are whole at the start of `input`, which came at `now`. Returns how many bytes they took.
    /// The write of a read-modify-write is appended to `out`.
    pub(crate) fn take(
        &mut self,
        run: &Run,
        now: Instant,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<usize, Refusal> {
        let mut used = 0;
        while let Some(oldest) = self.in_flight.front()
            && used < input.len()
        {
            let answer = self
                .protocol
                .answer(oldest.call, oldest.keys, &input[used..])?;
            let Some(answer) = answer else {
                return Ok(used);
            };
            used += answer.used;
            if let Some(asked) = self.in_flight.pop_front() {
                self.answered(run, now, asked, answer.count, out);
            }
        }
        if used < input.len() && self.in_flight.is_empty() {
            return Err(Refusal::Foreign(super::beginning(&input[used..])));
        }
        Ok(used)
    }

    fn answered(
        &mut self,
        run: &Run,
        now: Instant,
        mut asked: InFlight,
        count: u64,
        out: &mut Vec<u8>,
    ) {
        if asked.call == Call::Get {
            asked.absent += asked.keys as u64 - count;
        }
        if let Some(number) = asked.then_write.take() {
            self.writer.prepare(run, std::iter::once(number));
            let (keys, values) = self.writer.pairs();
            let call = Call::Set;
            self.protocol.ask(Request { call, keys, values }, out);
            self.in_flight.push_back(InFlight { call, ..asked });
            return;
        }
        let keys = match asked.kind {
            Kind::Read | Kind::Write | Kind::Insert => asked.keys as u64,
            Kind::Prefix | Kind::Scan => count,
            Kind::ReadModifyWrite => 2,
        };
        run.finished(asked.kind, asked.begun, now, keys, asked.absent);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::super::resp::Resp;
    use super::*;
    use crate::load::options::tests::plan;

    fn owned(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    /// The message for this request.
    pub(crate) fn asked(
        protocol: &mut dyn Protocol,
        call: Call,
        keys: &[&str],
        values: &[&str],
    ) -> String {
        let (keys, values) = (owned(keys), owned(values));
        let mut out = Vec::new();
        let (keys, values) = (&keys, &values);
        protocol.ask(Request { call, keys, values }, &mut out);
        String::from_utf8(out).expect("the request is text")
    }

    /// What the answer `text` counts, after no cut of it was taken for a whole one, nor what follows it for a part.
    pub(crate) fn torn(protocol: &mut dyn Protocol, call: Call, keys: usize, text: &str) -> u64 {
        for cut in 0..text.len() {
            let answer = protocol.answer(call, keys, &text.as_bytes()[..cut]);
            assert_eq!(answer, Ok(None), "{text:?} cut at {cut}");
        }
        let mut counts = [text.to_owned(), format!("{text}+x$1*")].map(|text_and_more| {
            let answer = protocol.answer(call, keys, text_and_more.as_bytes());
            let answer = answer.expect("an answer").expect("a whole one");
            assert_eq!(answer.used, text.len(), "{text_and_more:?}");
            answer.count
        });
        counts.sort_unstable();
        assert_eq!(counts[0], counts[1]);
        counts[0]
    }

    fn run_of(arguments: &[&str]) -> Rc<Run> {
        let arguments = [&["--system", "redis", "--seed", "1"], arguments].concat();
        Run::new(plan(&arguments).expect("a plan"), 1).expect("no ack log to make")
    }

    /// A server that answers one request in a millisecond and none for two of its ten seconds, on a clock of its own.
    fn stalled(arguments: &[&str]) -> Rc<Run> {
        const SERVICE: Duration = Duration::from_millis(1);
        let common = ["--clients", "1", "--mix", "1:0", "--warm-up", "0"];
        let run = run_of(&[&common, arguments].concat());
        let start = Instant::now();
        let stall = start + Duration::from_secs(4)..start + Duration::from_secs(6);
        let until = run.start_clock(start);
        let source = RefCell::new(Source::load(&run, 0, start, until));
        let mut pipeline = Pipeline::new(Box::new(Resp), 0);
        pipeline.depth = run.plan.in_flight;
        let mut answers = VecDeque::new();
        let (mut now, mut free) = (start, start);
        loop {
            let mut out = Vec::new();
            let then = pipeline.fill(&run, &source, now, &mut out, 0);
            while answers.len() < pipeline.in_flight.len() {
                let begin = free.max(now);
                let begin = if stall.contains(&begin) {
                    stall.end
                } else {
                    begin
                };
                free = begin + SERVICE;
                answers.push_back(free);
            }
            let next = match (answers.front(), then) {
                (Some(answer), Then::At(due)) => (*answer).min(due),
                (Some(answer), Then::Full | Then::End) => *answer,
                (None, Then::At(due)) => due,
                (None, Then::End) => break,
                (None, Then::Full) => panic!("nothing is in flight, and nothing is asked"),
            };
            now = next;
            if answers.front() == Some(&now) {
                answers.pop_front();
                let used = pipeline.take(&run, now, b"$-1\r\n", &mut out);
                assert_eq!(used, Ok(5));
            }
        }
        source
            .borrow_mut()
            .overdue(|kind, due| run.overdue(kind, due));
        run
    }

    /// Calls, and how many of them took longer than this.
    fn over(run: &Run, limit: Duration) -> (u64, u64) {
        let tally = run.tally.borrow();
        let latencies = &tally.kind(Kind::Read).latencies_ns;
        let within = latencies.count_between(0, limit.as_nanos() as u64);
        (latencies.len(), latencies.len() - within)
    }

    #[test]
    fn a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one() {
        let limit = Duration::from_millis(100);
        let (calls, slow) = over(&stalled(&["--in-flight", "1"]), limit);
        assert_eq!((calls, slow), (8_000, 1), "closed loop");

        // A thousand operations are due in the stall, and the server needs two more seconds to make up for it.
        let run = stalled(&["--in-flight", "1", "--rate", "500"]);
        let (calls, slow) = over(&run, limit);
        assert!(calls.abs_diff(5_000) < 250, "{calls} calls");
        assert!(slow > 1_500 && slow < 2_200, "{slow} slow ones");
        let tally = run.tally.borrow();
        let read = tally.kind(Kind::Read);
        assert!(read.latencies_ns.value_at_quantile(0.9) > 1_000_000_000);
        assert_eq!(read.overdue, 0, "the rate was kept");
    }

    #[test]
    fn what_a_slow_server_leaves_undone_is_counted_with_its_latency_so_far() {
        let run = stalled(&["--in-flight", "4", "--rate", "2000"]);
        let tally = run.tally.borrow();
        let read = tally.kind(Kind::Read);
        assert!(read.calls.abs_diff(8_000) < 10, "{} calls", read.calls);
        assert!(read.overdue.abs_diff(12_000) < 500, "{}", read.overdue);
        let due = read.latencies_ns.len();
        assert!(due.abs_diff(20_000) < 500, "{due} were due");
        assert!(read.latencies_ns.value_at_quantile(0.5) > 1_000_000_000);
    }

    #[test]
    fn no_more_requests_are_in_flight_than_allowed_and_bytes_are_bounded() {
        let run = run_of(&["--clients", "1", "--mix", "0:1", "--value-size", "100000"]);
        let start = Instant::now();
        let until = run.start_clock(start);
        let source = RefCell::new(Source::load(&run, 0, start, until));
        for (depth, expected) in [(2, 2), (100, 3)] {
            let mut pipeline = Pipeline::new(Box::new(Resp), 0);
            pipeline.depth = depth;
            let mut out = Vec::new();
            let then = pipeline.fill(&run, &source, start, &mut out, 0);
            assert_eq!(then, Then::Full);
            assert_eq!(pipeline.in_flight.len(), expected, "depth {depth}");
        }
    }

    #[test]
    fn a_read_modify_write_writes_the_key_it_has_read_and_counts_once() {
        let run = run_of(&["--clients", "1", "--workload", "ycsb-f", "--warm-up", "0"]);
        let start = Instant::now();
        let until = run.start_clock(start);
        let source = RefCell::new(Source::load(&run, 0, start, until));
        let mut pipeline = Pipeline::new(Box::new(Resp), 0);
        let mut out = Vec::new();
        loop {
            out.clear();
            pipeline.fill(&run, &source, start, &mut out, 0);
            if pipeline.operation.kind == Kind::ReadModifyWrite {
                break;
            }
            pipeline
                .take(&run, start, b"$-1\r\n", &mut out)
                .expect("an answer");
        }
        let key = {
            let mut key = Vec::new();
            run.plan
                .keys
                .write_key(pipeline.operation.numbers[0], &mut key);
            String::from_utf8(key).expect("text")
        };
        assert!(String::from_utf8_lossy(&out).contains(&format!("GET\r\n$23\r\n{key}")));
        out.clear();
        let later = start + Duration::from_millis(2);
        let used = pipeline.take(&run, later, b"$1\r\nx\r\n", &mut out);
        assert_eq!(used, Ok(7));
        assert!(String::from_utf8_lossy(&out).contains(&format!("SET\r\n$23\r\n{key}")));
        assert_eq!(run.tally.borrow().kind(Kind::ReadModifyWrite).calls, 0);
        let end = start + Duration::from_millis(5);
        assert_eq!(pipeline.take(&run, end, b"+OK\r\n", &mut out), Ok(5));
        let tally = run.tally.borrow();
        let both = tally.kind(Kind::ReadModifyWrite);
        assert_eq!((both.calls, both.keys), (1, 2));
        assert!(both.latencies_ns.max().abs_diff(5_000_000) < 10_000);
        assert!(pipeline.is_idle());
    }

    #[test]
    fn an_answer_that_nobody_asked_for_is_refused() {
        let run = run_of(&[]);
        let mut pipeline = Pipeline::new(Box::new(Resp), 0);
        pipeline
            .take(&run, Instant::now(), b"+OK\r\n", &mut Vec::new())
            .expect_err("nothing is in flight");
    }
}

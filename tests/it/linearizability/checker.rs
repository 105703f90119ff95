//! Is there one order of these calls that explains every answer? The search of Wing and Gong with Lowe's improvements.
//!
//! Each call takes effect at one moment between its begin and its end. The search goes through these events in order and
//! keeps every configuration that is possible so far: the state of the key, and which of the calls under way have taken
//! effect already. A call is put into the order only when some call ends that must have taken effect by then (Lowe's
//! just-in-time linearization), and equal configurations are kept once (his memoisation). No configuration left means
//! that no order explains the answers. A call without an answer may have taken effect until its end, or never.
//! Guarantees: exact in both directions. A failure is shown from the last moment at which nothing was under way, with
//! the calls removed that change nothing and are not needed for it.

use std::collections::{BTreeSet, HashSet};
use std::fmt::{Display, Formatter};

use super::register::{Answer, Call, State};

/// One call of one client. Times are positions in one order of all events; no two events have the same.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) client: usize,
    pub(crate) call: Call,
    pub(crate) answer: Answer,
    pub(crate) begun: u64,
    /// Of a call without an answer: when it could not take effect any more, because the server was dead.
    pub(crate) ended: u64,
}

/// Why a history has no explanation.
#[derive(Debug)]
pub(crate) struct Violation {
    /// What the key could hold when nothing was under way for the last time.
    from: BTreeSet<State>,
    /// The calls since then that are needed for the contradiction, by their begin.
    calls: Vec<Operation>,
    /// What the key could hold just before the call ended that could not be placed.
    before: BTreeSet<State>,
}

/// The end of a call that nobody needs to place.
const NEVER: u64 = u64::MAX;

/// Most calls on one key that may be under way at a time.
const UNDER_WAY_MAX: usize = 64;

/// One way in which everything so far can be explained.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Configuration {
    state: State,
    /// The places in `under_way` of the calls that have taken effect.
    placed: u64,
}

/// Where a search failed: at the end of `operations[index]`.
struct Failure {
    index: usize,
    quiet_at: u64,
    quiet: BTreeSet<State>,
    before: BTreeSet<State>,
}

/// Whether one order explains a history of one key that begins absent.
pub(crate) fn check(operations: &[Operation]) -> Result<(), Violation> {
    let empty = BTreeSet::from([State::EMPTY]);
    search(&empty, operations).map_err(|failure| explained(operations, &failure))
}

fn search(from: &BTreeSet<State>, operations: &[Operation]) -> Result<(), Failure> {
    let mut events: Vec<(u64, usize)> = (0..operations.len())
        .flat_map(|index| {
            let Operation { begun, ended, .. } = operations[index];
            [(begun, index), (ended, index)]
        })
        .filter(|&(time, _)| time != NEVER)
        .collect();
    events.sort_unstable();
    let mut under_way = [None; UNDER_WAY_MAX];
    let start = from.iter().map(|&state| Configuration { state, placed: 0 });
    let mut possible: HashSet<Configuration> = start.collect();
    let (mut quiet_at, mut quiet) = (0, from.clone());
    for (time, index) in events {
        if time == operations[index].begun {
            let free = under_way.iter().position(Option::is_none);
            under_way[free.expect("fewer calls on one key than places")] = Some(index);
            continue;
        }
        let place = under_way.iter().position(|&call| call == Some(index));
        let place = place.expect("a call begins before it ends");
        let next = after_end_of(place, operations, &under_way, &possible);
        if next.is_empty() {
            return Err(Failure {
                index,
                quiet_at,
                quiet,
                before: states(&possible),
            });
        }
        possible = next;
        under_way[place] = None;
        if under_way.iter().all(Option::is_none) {
            (quiet_at, quiet) = (time, states(&possible));
        }
    }
    Ok(())
}

fn states(possible: &HashSet<Configuration>) -> BTreeSet<State> {
    possible.iter().map(|one| one.state).collect()
}

/// What is possible once the call at `place` has ended: it has taken effect, now at the latest, with any others that
/// are under way before it. Without an answer it may also never have.
fn after_end_of(
    place: usize,
    operations: &[Operation],
    under_way: &[Option<usize>; UNDER_WAY_MAX],
    possible: &HashSet<Configuration>,
) -> HashSet<Configuration> {
    let ending = 1_u64 << place;
    let mut survivors = HashSet::new();
    let mut seen = possible.clone();
    let mut waiting: Vec<Configuration> = possible.iter().copied().collect();
    let never = under_way[place].is_some_and(|index| operations[index].answer == Answer::Missing);
    if never {
        survivors.extend(possible.iter().filter(|one| one.placed & ending == 0));
    }
    while let Some(one) = waiting.pop() {
        if one.placed & ending != 0 {
            survivors.insert(Configuration {
                placed: one.placed & !ending,
                ..one
            });
            continue;
        }
        for (other, call) in under_way.iter().enumerate() {
            let Some(index) = *call else { continue };
            if one.placed & (1 << other) != 0 {
                continue;
            }
            let Operation { call, answer, .. } = operations[index];
            let Some(state) = one.state.after(call, answer) else {
                continue;
            };
            let next = Configuration {
                state,
                placed: one.placed | 1 << other,
            };
            if seen.insert(next) {
                waiting.push(next);
            }
        }
    }
    survivors
}

/// Cuts a failed history down: to what is since the last quiet moment, up to the end of the call that failed, without
/// reads and refusals that the contradiction does not need. (A write cannot be left out: without it a read of its value
/// would be a contradiction that was not there.)
fn explained(operations: &[Operation], failure: &Failure) -> Violation {
    let end = operations[failure.index].ended;
    let recent = operations
        .iter()
        .filter(|one| one.begun > failure.quiet_at && one.begun < end);
    let mut calls: Vec<Operation> = recent.cloned().collect();
    for one in calls.iter_mut().filter(|one| one.ended > end) {
        one.ended = NEVER;
    }
    let mut before = failure.before.clone();
    for index in (0..calls.len()).rev() {
        if !State::is_kept_by(calls[index].call, calls[index].answer) {
            continue;
        }
        let left_out = calls.remove(index);
        match search(&failure.quiet, &calls) {
            Err(failure) => before = failure.before,
            Ok(()) => calls.insert(index, left_out),
        }
    }
    calls.sort_unstable_by_key(|one| one.begun);
    Violation {
        from: failure.quiet.clone(),
        calls,
        before,
    }
}

impl Display for Violation {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "no order of these calls explains the answers.")?;
        writeln!(f, "  before them the key could be {:?}", self.from)?;
        for one in &self.calls {
            let Operation {
                client,
                call,
                answer,
                begun,
                ended,
            } = one;
            let ended = if *ended == NEVER {
                "later".to_owned()
            } else {
                ended.to_string()
            };
            writeln!(
                f,
                "  [{begun}, {ended}] client {client}: {call:?} -> {answer:?}"
            )?;
        }
        write!(
            f,
            "  before the first of them ended that has no place the key could be {:?}",
            self.before
        )
    }
}

//! The checker checked: histories that must fail and histories that must not, and another checker's verdict on
//! thousands of small random ones.

use orlop::client::Condition;
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

use super::checker::{Operation, check};
use super::register::{Answer, Call, State};
use crate::harness::report;
use crate::random::Random;

const RANDOM_HISTORIES: u64 = 20_000;

fn operation(client: usize, times: [u64; 2], call: Call, answer: Answer) -> Operation {
    let [begun, ended] = times;
    Operation {
        client,
        call,
        answer,
        begun,
        ended,
    }
}

fn set(value: u64) -> Call {
    Call::Set {
        value,
        condition: Condition::None,
    }
}

fn set_if(value: u64, condition: Condition) -> Call {
    Call::Set { value, condition }
}

const DELETE: Call = Call::Delete {
    condition: Condition::None,
};

fn written(version: u64, existed: bool) -> Answer {
    Answer::Written { version, existed }
}

fn found(value: u64, version: u64) -> Answer {
    Answer::Found(Some((value, version)))
}

const ABSENT: Answer = Answer::Found(None);

/// Demands that the history fails, and that its explanation names all of `words`.
#[track_caller]
fn fails(history: &[Operation], words: &[&str]) {
    let violation = check(history).expect_err("a violation").to_string();
    for word in words {
        assert!(violation.contains(word), "no {word:?} in: {violation}");
    }
}

#[track_caller]
fn holds(history: &[Operation]) {
    if let Err(violation) = check(history) {
        panic!("{violation}");
    }
}

#[test]
fn a_stale_read_is_a_violation() {
    let history = [
        operation(0, [1, 2], set(10), written(1, false)),
        operation(0, [3, 4], set(11), written(2, true)),
        operation(1, [5, 6], Call::Get, found(11, 2)),
        operation(2, [7, 8], Call::Get, found(10, 1)),
    ];
    fails(&history, &["client 2", "Found(Some((10, 1)))", "value: 11"]);
    // While the second set is under way either value is right, but not the old one after the new one.
    let overlapping = |first, second| {
        [
            operation(0, [1, 2], set(10), written(1, false)),
            operation(0, [3, 20], set(11), written(2, true)),
            operation(1, [5, 6], Call::Get, first),
            operation(2, [7, 8], Call::Get, second),
        ]
    };
    holds(&overlapping(found(10, 1), found(10, 1)));
    holds(&overlapping(found(10, 1), found(11, 2)));
    holds(&overlapping(found(11, 2), found(11, 2)));
    fails(&overlapping(found(11, 2), found(10, 1)), &["client 2"]);
}

#[test]
fn a_lost_update_is_a_violation() {
    let history = |second| {
        [
            operation(0, [1, 2], set(10), written(1, false)),
            operation(
                1,
                [3, 6],
                set_if(11, Condition::IfVersion(1)),
                written(2, true),
            ),
            operation(2, [4, 7], set_if(12, Condition::IfVersion(1)), second),
        ]
    };
    fails(&history(written(3, true)), &["IfVersion(1)"]);
    holds(&history(Answer::Refused { current: Some(2) }));
    // A refusal by the very version that was asked for.
    fails(&history(Answer::Refused { current: Some(1) }), &["Refused"]);
    let lost = [
        operation(0, [1, 2], set(10), written(1, false)),
        operation(0, [3, 4], Call::Get, ABSENT),
    ];
    fails(&lost, &["Found(None)"]);
}

#[test]
fn a_value_that_was_never_written_is_a_violation() {
    fails(
        &[
            operation(0, [1, 2], set(10), written(1, false)),
            operation(0, [3, 4], Call::Get, found(77, 1)),
        ],
        &["77"],
    );
    // Before its write began.
    fails(
        &[
            operation(0, [1, 2], Call::Get, found(10, 1)),
            operation(1, [3, 4], set(10), written(1, false)),
        ],
        &["Found(Some((10, 1)))"],
    );
    // The right value with another's version.
    fails(
        &[
            operation(0, [1, 2], set(10), written(1, false)),
            operation(0, [3, 4], Call::Get, found(10, 2)),
        ],
        &["(10, 2)"],
    );
}

#[test]
fn a_deleted_key_that_returns_is_a_violation() {
    let history = |read| {
        [
            operation(0, [1, 2], set(10), written(1, false)),
            operation(0, [3, 4], DELETE, written(2, true)),
            operation(1, [5, 6], Call::Get, read),
        ]
    };
    holds(&history(ABSENT));
    fails(&history(found(10, 1)), &["newest: 2"]);
    // Also to those who only hear of it.
    let told = |answer| {
        [
            operation(0, [1, 2], set(10), written(1, false)),
            operation(0, [3, 4], DELETE, written(2, true)),
            operation(1, [5, 6], set(11), answer),
        ]
    };
    holds(&told(written(3, false)));
    fails(&told(written(3, true)), &["existed: true"]);
}

#[test]
fn versions_of_a_key_grow_also_across_a_delete() {
    let history = |version| {
        [
            operation(0, [1, 2], set(10), written(5, false)),
            operation(0, [3, 4], DELETE, written(6, true)),
            operation(0, [5, 6], set(11), written(version, false)),
        ]
    };
    holds(&history(7));
    fails(&history(6), &["version: 6"]);
    fails(&history(1), &["version: 1"]);
}

#[test]
fn a_write_without_an_answer_happened_once_and_before_the_server_died_or_never() {
    // The server dies at 4.
    let history = |first, second| {
        [
            operation(0, [1, 2], set(10), written(1, false)),
            operation(0, [3, 4], set(11), Answer::Missing),
            operation(1, [5, 6], Call::Get, first),
            operation(1, [7, 8], Call::Get, second),
        ]
    };
    holds(&history(found(10, 1), found(10, 1)));
    holds(&history(found(11, 2), found(11, 2)));
    // Its version is unknown, but not arbitrary.
    fails(&history(found(11, 1), found(11, 1)), &["Above(1)"]);
    fails(&history(found(11, 2), found(11, 3)), &["(11, 3)"]);
    // There, and gone after a second crash; not there, and back after a second crash.
    fails(&history(found(11, 2), found(10, 1)), &["(10, 1)"]);
    fails(&history(found(10, 1), found(11, 2)), &["(11, 2)"]);
    // A delete without an answer.
    let deleted = |first, second| {
        [
            operation(0, [1, 2], set(10), written(1, false)),
            operation(0, [3, 4], DELETE, Answer::Missing),
            operation(1, [5, 6], Call::Get, first),
            operation(1, [7, 8], Call::Get, second),
        ]
    };
    holds(&deleted(ABSENT, ABSENT));
    holds(&deleted(found(10, 1), found(10, 1)));
    fails(&deleted(ABSENT, found(10, 1)), &["Absent"]);
    fails(&deleted(found(10, 1), ABSENT), &["Found(None)"]);
}

#[test]
fn the_explanation_leaves_out_what_the_contradiction_does_not_need() {
    let mut history = vec![operation(0, [1, 2], set(10), written(1, false))];
    for i in 0..50 {
        history.push(operation(
            1,
            [10 + 2 * i, 11 + 2 * i],
            Call::Get,
            found(10, 1),
        ));
    }
    history.push(operation(3, [200, 300], set(11), written(2, true)));
    for client in 4..20 {
        let begun = 201 + client as u64;
        history.push(operation(
            client,
            [begun, begun + 30],
            Call::Get,
            found(10, 1),
        ));
    }
    history.push(operation(30, [260, 270], Call::Get, found(12, 3)));
    let violation = check(&history).expect_err("12 was never written");
    let text = violation.to_string();
    assert!(
        text.contains("client 3:") && text.contains("client 30:"),
        "{text}"
    );
    assert_eq!(text.matches("client ").count(), 2, "{text}");
}

/// The same specification in the terms of the other checker.
struct Register;

impl Specification for Register {
    type State = Option<State>;
    type Operation = (Call, Answer);

    fn init() -> Option<State> {
        Some(State::EMPTY)
    }

    fn apply(operation: &(Call, Answer), state: &Option<State>) -> (bool, Option<State>) {
        let after = state.and_then(|state| state.after(operation.0, operation.1));
        (after.is_some(), after)
    }
}

/// What the other checker says. It knows no calls without an answer: those have happened or not, in some combination.
fn other_verdict(history: &[Operation]) -> bool {
    let unanswered: Vec<usize> = (0..history.len())
        .filter(|&index| history[index].answer == Answer::Missing)
        .collect();
    (0..1_u32 << unanswered.len()).any(|happened| {
        let left_out = |index: usize| {
            let place = unanswered.iter().position(|&one| one == index);
            place.is_some_and(|place| happened & (1 << place) == 0)
        };
        let mut events: Vec<(u64, usize, bool)> = (0..history.len())
            .filter(|&index| !left_out(index))
            .flat_map(|index| {
                [
                    (history[index].begun, index, true),
                    (history[index].ended, index, false),
                ]
            })
            .collect();
        events.sort_unstable();
        let actions = events.into_iter().map(|(_, index, begins)| {
            let operation = (history[index].call, history[index].answer);
            if begins {
                (index, Action::Call(operation))
            } else {
                (index, Action::Response(operation))
            }
        });
        let actions: Vec<_> = actions.collect();
        actions.is_empty()
            || WGLChecker::<Register>::is_linearizable(History::from_actions(actions))
    })
}

/// A small history that a correct server could have made, with its order of effects, and then perhaps one lie in it.
fn random_history(random: &mut Random) -> Vec<Operation> {
    let count = 2 + random.within(0..6) as usize;
    let clients = 1 + random.within(0..4);
    let mut free_at = vec![0; clients as usize];
    // Each client's calls one after the other; the moment of effect lies between begin and end.
    let mut planned: Vec<(u64, Operation)> = (0..count)
        .map(|index| {
            let client = random.within(0..clients) as usize;
            let begun = free_at[client] + 1 + random.within(0..20);
            let effect = begun + random.within(0..30);
            let ended = effect + 1 + random.within(0..30);
            free_at[client] = ended;
            let condition = match random.within(0..6) {
                0 => Condition::IfAbsent,
                1 => Condition::IfPresent,
                2 => Condition::IfVersion(1 + random.within(0..4)),
                _ => Condition::None,
            };
            let call = match random.within(0..5) {
                0 | 1 => Call::Get,
                2 => Call::Delete { condition },
                _ => Call::Set {
                    value: index as u64,
                    condition,
                },
            };
            (effect, operation(client, [begun, ended], call, ABSENT))
        })
        .collect();
    planned.sort_by_key(|&(effect, _)| effect);
    let (mut content, mut newest) = (None, 0);
    for (_, one) in &mut planned {
        let unanswered = one.call != Call::Get && random.one_in(5);
        if unanswered && random.one_in(2) {
            one.answer = Answer::Missing;
            continue;
        }
        one.answer = answered(one.call, &mut content, &mut newest);
        if unanswered {
            one.answer = Answer::Missing;
        }
    }
    let mut history: Vec<Operation> = planned.into_iter().map(|(_, one)| one).collect();
    if random.one_in(2) {
        let liar = random.within(0..count as u64) as usize;
        history[liar].answer = lie(history[liar].answer, random);
    }
    // Times of different events differ, and order is all that counts.
    for (index, one) in history.iter_mut().enumerate() {
        one.begun = one.begun * 64 + 2 * index as u64;
        one.ended = one.ended * 64 + 2 * index as u64 + 1;
    }
    history
}

/// What a server with this content answers.
fn answered(call: Call, content: &mut Option<(u64, u64)>, newest: &mut u64) -> Answer {
    let (Call::Set { condition, .. } | Call::Delete { condition }) = call else {
        return Answer::Found(*content);
    };
    let current = content.map(|(_, version)| version);
    let met = match condition {
        Condition::None => true,
        Condition::IfAbsent => current.is_none(),
        Condition::IfPresent => current.is_some(),
        Condition::IfVersion(version) => current == Some(version),
    };
    if !met {
        return Answer::Refused { current };
    }
    let existed = current.is_some();
    match call {
        Call::Set { value, .. } => {
            *newest += 1;
            *content = Some((value, *newest));
            written(*newest, existed)
        }
        _ if existed => {
            *newest += 1;
            *content = None;
            written(*newest, true)
        }
        _ => written(0, false),
    }
}

fn lie(answer: Answer, random: &mut Random) -> Answer {
    match answer {
        Answer::Found(_) if random.one_in(3) => ABSENT,
        Answer::Found(_) => found(random.within(0..8), 1 + random.within(0..5)),
        Answer::Written { version, existed } if random.one_in(2) => written(version, !existed),
        Answer::Written { existed, .. } => written(1 + random.within(0..6), existed),
        Answer::Refused { .. } => Answer::Refused {
            current: random.one_in(2).then(|| 1 + random.within(0..5)),
        },
        Answer::Missing => Answer::Missing,
    }
}

#[test]
fn another_checker_agrees_on_random_histories() {
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let mut violations = 0;
    for number in 0..RANDOM_HISTORIES {
        let history = random_history(&mut random);
        let verdict = check(&history);
        assert_eq!(
            verdict.is_ok(),
            other_verdict(&history),
            "ORLOP_SEED={seed}, history {number}: {verdict:?} on {history:#?}"
        );
        violations += u64::from(verdict.is_err());
    }
    report(&format!(
        "linearizability: seed {seed}: {RANDOM_HISTORIES} random histories, {violations} of them violations, \
         another checker agrees on all"
    ));
    let share = violations * 100 / RANDOM_HISTORIES;
    assert!((10..90).contains(&share), "{violations} violations");
}

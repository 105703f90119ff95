//! What one key is allowed to answer, as a sequential specification: a register with versions.
//!
//! Owns the calls, the answers and the state between them. An answer that never came is one too: then the call has done
//! what it can do, or nothing. The version of an unanswered write is unknown until somebody is told of it; until then
//! only its lower bound is.
//! Does not: know about time and overlapping calls. That is [`super::checker`].

use orlop::client::Condition;

/// What a client asked for. A value is named by a number, and no two writes have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Get,
    Set { value: u64, condition: Condition },
    Delete { condition: Condition },
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Of a get: the value and its version, or that the key is absent.
    Found(Option<(u64, u64)>),
    Written {
        version: u64,
        existed: bool,
    },
    Refused {
        current: Option<u64>,
    },
    /// None came: the server died, or the client did not wait.
    Missing,
}

/// What a key may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum State {
    /// Nothing; every version given so far is at most `newest`, or was never told to anybody.
    Absent {
        newest: u64,
    },
    Present {
        value: u64,
        version: Version,
    },
}

/// The version of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Version {
    Exactly(u64),
    /// Of a write without an answer: unknown, but above this.
    Above(u64),
}

impl Version {
    fn may_be(self, version: u64) -> bool {
        match self {
            Version::Exactly(known) => known == version,
            Version::Above(floor) => version > floor,
        }
    }

    /// A later version is above this.
    fn floor(self) -> u64 {
        match self {
            Version::Exactly(floor) | Version::Above(floor) => floor,
        }
    }
}

impl State {
    /// A key that nobody ever wrote.
    pub(crate) const EMPTY: State = State::Absent { newest: 0 };

    /// The state after `call` if it may be answered so here. A call without an answer that would change nothing has no
    /// state after it: leaving it out says the same.
    pub(crate) fn after(self, call: Call, answer: Answer) -> Option<State> {
        match (call, answer) {
            (Call::Get, Answer::Found(found)) => self.shown(found),
            (
                Call::Set { condition, .. } | Call::Delete { condition },
                Answer::Refused { current },
            ) => self.refused(condition, current),
            (Call::Set { value, condition }, Answer::Written { version, existed }) => {
                let before = self.meeting(condition)?;
                let fits = version > before.newest() && existed == before.is_present();
                fits.then_some(State::Present {
                    value,
                    version: Version::Exactly(version),
                })
            }
            (Call::Delete { condition }, Answer::Written { version, existed }) => {
                let before = self.meeting(condition)?;
                if existed {
                    let fits = before.is_present() && version > before.newest();
                    fits.then_some(State::Absent { newest: version })
                } else {
                    (!before.is_present() && version == 0).then_some(before)
                }
            }
            (Call::Set { value, condition }, Answer::Missing) => {
                let newest = self.meeting(condition)?.newest();
                Some(State::Present {
                    value,
                    version: Version::Above(newest),
                })
            }
            (Call::Delete { condition }, Answer::Missing) => {
                let before = self.meeting(condition)?;
                before.is_present().then_some(State::Absent {
                    newest: before.newest(),
                })
            }
            _ => None,
        }
    }

    /// True if the call, answered so, leaves every key as it is: a history without it is explained by the same order.
    pub(crate) fn is_kept_by(call: Call, answer: Answer) -> bool {
        call == Call::Get || matches!(answer, Answer::Refused { .. })
    }

    fn is_present(self) -> bool {
        matches!(self, State::Present { .. })
    }

    fn newest(self) -> u64 {
        match self {
            State::Absent { newest } => newest,
            State::Present { version, .. } => version.floor(),
        }
    }

    fn shown(self, found: Option<(u64, u64)>) -> Option<State> {
        match (self, found) {
            (State::Absent { .. }, None) => Some(self),
            (State::Present { value, version }, Some((shown, shown_version))) => {
                let fits = value == shown && version.may_be(shown_version);
                fits.then_some(State::Present {
                    value,
                    version: Version::Exactly(shown_version),
                })
            }
            _ => None,
        }
    }

    fn refused(self, condition: Condition, current: Option<u64>) -> Option<State> {
        let told = match (self, current) {
            (State::Absent { .. }, None) => self,
            (State::Present { value, version }, Some(current)) if version.may_be(current) => {
                State::Present {
                    value,
                    version: Version::Exactly(current),
                }
            }
            _ => return None,
        };
        told.meeting(condition).is_none().then_some(told)
    }

    /// This state, with what `condition` says about it if it holds.
    fn meeting(self, condition: Condition) -> Option<State> {
        match (condition, self) {
            (Condition::None, _)
            | (Condition::IfAbsent, State::Absent { .. })
            | (Condition::IfPresent, State::Present { .. }) => Some(self),
            (Condition::IfVersion(wanted), State::Present { value, version }) => {
                version.may_be(wanted).then_some(State::Present {
                    value,
                    version: Version::Exactly(wanted),
                })
            }
            _ => None,
        }
    }
}

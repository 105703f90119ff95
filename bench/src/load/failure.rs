//! Why a load ends early, the sentence for it, and the exit code.
//!
//! Exit codes of `orlop-bench`: 0 done, 1 a wrong answer, 2 wrong usage, 3 the server (or this machine) answered an
//! error, 4 no connection or a lost one, 128 + signal when interrupted. Made by drivers, printed by `load::run`.

use std::io;

use orlop::client::ClientError;

use super::driver::{Refusal, System};
use super::ledger::Wrong;

#[derive(Debug)]
pub(crate) enum Failure {
    Wrong(Wrong),
    /// The server refused something that a checked plan may ask for.
    Server(ClientError),
    /// Never connected, or the connection broke.
    Connection(ClientError),
    /// A peer's server cannot be reached.
    Unreachable {
        system: System,
        address: String,
        source: io::Error,
    },
    /// The connection to a peer's server ended.
    Lost {
        system: System,
        source: io::Error,
    },
    /// A peer's server said no, or something that is not its protocol.
    Refused {
        system: System,
        refusal: Refusal,
    },
    /// Nothing was answered for too long.
    Stalled {
        seconds: u64,
        overloaded: u64,
    },
    AckLog(io::Error),
    Machine(String),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Wrong(_) => 1,
            Failure::Server(_)
            | Failure::Refused { .. }
            | Failure::AckLog(_)
            | Failure::Machine(_) => 3,
            Failure::Connection(_)
            | Failure::Unreachable { .. }
            | Failure::Lost { .. }
            | Failure::Stalled { .. } => 4,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match error {
            ClientError::Connect { .. }
            | ClientError::Disconnected(_)
            | ClientError::ShuttingDown(_) => Failure::Connection(error),
            _ => Failure::Server(error),
        }
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Failure {
        Failure::Wrong(wrong)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Wrong(wrong) => write!(out, "{wrong}"),
            Failure::Server(error) => write!(
                out,
                "the server answered an error, the run is void: {error}"
            ),
            Failure::Connection(error @ ClientError::Connect { .. }) => {
                write!(out, "{error}")?;
                source(error, out)?;
                write!(out, "; is orlopd running there? (--server, ORLOP_SERVER)")
            }
            Failure::Connection(error) => write!(
                out,
                "the connection was lost during the run, the run is void: {error}"
            ),
            Failure::Unreachable {
                system,
                address,
                source,
            } => write!(
                out,
                "cannot connect to {address}: {source}; is {system} running there? (--server)"
            ),
            Failure::Lost { system, source } => write!(
                out,
                "the connection to {system} was lost during the run, the run is void: {source}"
            ),
            Failure::Refused {
                system,
                refusal: Refusal::Error(text),
            } => write!(
                out,
                "{system} answered an error, the run is void: {}",
                text.escape_debug()
            ),
            Failure::Refused {
                system,
                refusal: Refusal::Foreign(text),
            } => write!(
                out,
                "the server does not speak the protocol of {system} (--system), the run is void: {}",
                text.escape_debug()
            ),
            Failure::Stalled {
                seconds,
                overloaded: 0,
            } => {
                write!(
                    out,
                    "the server has answered nothing for {seconds} s, the run is void"
                )
            }
            Failure::Stalled {
                seconds,
                overloaded,
            } => {
                write!(
                    out,
                    "no operation succeeded for {seconds} s ({overloaded} were answered 'overloaded'), the run is void: \
                             use fewer --clients or --in-flight"
                )
            }
            Failure::AckLog(error) => {
                write!(out, "cannot write the ack log, the run is void: {error}")
            }
            Failure::Machine(sentence) => out.write_str(sentence),
        }
    }
}

/// The cause, where the error's own words do not hold it already.
fn source(error: &ClientError, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    let Some(cause) = std::error::Error::source(error).map(ToString::to_string) else {
        return Ok(());
    };
    if error.to_string().contains(&cause) {
        Ok(())
    } else {
        write!(out, ": {cause}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let wrong = Wrong {
            key: "k".to_owned(),
            expected: "a".to_owned(),
            found: "b".to_owned(),
        };
        let cases = [
            (Failure::from(wrong), 1),
            (Failure::from(ClientError::OutOfSpace("full".to_owned())), 3),
            (
                Failure::from(ClientError::Disconnected("gone".to_owned())),
                4,
            ),
            (
                Failure::from(ClientError::ShuttingDown("stopping".to_owned())),
                4,
            ),
            (
                Failure::Stalled {
                    seconds: 30,
                    overloaded: 0,
                },
                4,
            ),
            (Failure::AckLog(refused()), 3),
            (
                Failure::Unreachable {
                    system: System::Redis,
                    address: "127.0.0.1:6379".to_owned(),
                    source: refused(),
                },
                4,
            ),
            (
                Failure::Lost {
                    system: System::Etcd,
                    source: refused(),
                },
                4,
            ),
            (
                Failure::Refused {
                    system: System::Valkey,
                    refusal: Refusal::Error("MISCONF no space".to_owned()),
                },
                3,
            ),
            (
                Failure::Refused {
                    system: System::Memcached,
                    refusal: Refusal::Foreign("hello".to_owned()),
                },
                3,
            ),
        ];
        for (failure, code) in cases {
            assert_eq!(failure.exit_code(), code, "{failure}");
        }
    }

    #[test]
    fn a_wrong_answer_names_key_expected_and_found() {
        let wrong = Wrong {
            key: "k01".to_owned(),
            expected: "version 7".to_owned(),
            found: "version 3".to_owned(),
        };
        let text = Failure::from(wrong).to_string();
        assert_eq!(
            text,
            "wrong answer for key k01: expected version 7; found version 3"
        );
    }
}

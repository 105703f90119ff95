//! memcached's text protocol: `get` of one or many keys, `set`.
//!
//! It has no batch of writes: N `set`s go out together and count as one call, which ends with the last answer. It keeps
//! nothing on disk, so it is an upper bound and no peer. Used by `lane.rs`.

use std::io::Write;

use super::{Answer, Call, Protocol, Refusal, Request, beginning, length, line};

/// Longest key that it takes.
pub(crate) const KEY_LEN_MAX: usize = 250;

pub(crate) struct Memcached;

impl Protocol for Memcached {
    fn ask(&mut self, request: Request<'_>, out: &mut Vec<u8>) {
        let Request { call, keys, values } = request;
        match call {
            Call::Get => {
                out.extend_from_slice(b"get");
                for key in keys {
                    out.push(b' ');
                    out.extend_from_slice(key);
                }
                out.extend_from_slice(b"\r\n");
            }
            Call::Set => {
                for (key, value) in keys.iter().zip(values) {
                    out.extend_from_slice(b"set ");
                    out.extend_from_slice(key);
                    // Flags 0, never expires.
                    write!(out, " 0 0 {}\r\n", value.len()).expect("memory takes every write");
                    out.extend_from_slice(value);
                    out.extend_from_slice(b"\r\n");
                }
            }
            Call::Range { .. } => unreachable!("a plan with ranges is refused"),
        }
    }

    fn answer(&mut self, call: Call, keys: usize, input: &[u8]) -> Result<Option<Answer>, Refusal> {
        match call {
            Call::Set => stored(keys, input),
            _ => values(keys, input),
        }
    }
}

/// `STORED` for each of `keys`.
fn stored(keys: usize, input: &[u8]) -> Result<Option<Answer>, Refusal> {
    let mut used = 0;
    for _ in 0..keys {
        let Some(line) = line(&input[used..])? else {
            return Ok(None);
        };
        if line != b"STORED" {
            return Err(refusal(line, input));
        }
        used += line.len() + 2;
    }
    let count = keys as u64;
    Ok(Some(Answer { used, count }))
}

/// `VALUE key flags length`, the bytes, for each key that was found, and `END`.
fn values(keys: usize, input: &[u8]) -> Result<Option<Answer>, Refusal> {
    let mut answer = Answer { used: 0, count: 0 };
    loop {
        let rest = &input[answer.used..];
        let Some(line) = line(rest)? else {
            return Ok(None);
        };
        if line == b"END" {
            answer.used += line.len() + 2;
            return Ok(Some(answer));
        }
        let announced = line
            .strip_prefix(b"VALUE ")
            .and_then(|line| line.rsplit(|&byte| byte == b' ').next())
            .and_then(length)
            .filter(|_| answer.count < keys as u64);
        let Some(bytes) = announced else {
            return Err(refusal(line, input));
        };
        let end = line.len() + 2 + bytes;
        match rest.get(end..end + 2) {
            None => return Ok(None),
            Some(b"\r\n") => answer.used += end + 2,
            Some(_) => return Err(Refusal::Foreign(beginning(rest))),
        }
        answer.count += 1;
    }
}

fn refusal(line: &[u8], input: &[u8]) -> Refusal {
    let errors: [&[u8]; 4] = [b"SERVER_ERROR", b"CLIENT_ERROR", b"ERROR", b"NOT_STORED"];
    if errors.iter().any(|error| line.starts_with(error)) {
        Refusal::Error(beginning(line))
    } else {
        Refusal::Foreign(beginning(input))
    }
}

#[cfg(test)]
mod tests {
    use super::super::pipeline::tests::{asked, torn};
    use super::*;

    #[test]
    fn requests_are_the_documented_bytes() {
        let cases: [(Call, &[&str], &[&str], &str); 4] = [
            (Call::Get, &["k1"], &[], "get k1\r\n"),
            (Call::Get, &["k1", "k2"], &[], "get k1 k2\r\n"),
            (
                Call::Set,
                &["k1"],
                &["v\r\n1"],
                "set k1 0 0 4\r\nv\r\n1\r\n",
            ),
            (
                Call::Set,
                &["k1", "k2"],
                &["a", ""],
                "set k1 0 0 1\r\na\r\nset k2 0 0 0\r\n\r\n",
            ),
        ];
        for (call, keys, values, expected) in cases {
            assert_eq!(asked(&mut Memcached, call, keys, values), expected);
        }
    }

    #[test]
    fn answers_are_read_however_they_are_cut() {
        let cases: [(Call, usize, &str, u64); 5] = [
            (Call::Set, 1, "STORED\r\n", 1),
            (Call::Set, 2, "STORED\r\nSTORED\r\n", 2),
            (Call::Get, 1, "END\r\n", 0),
            (Call::Get, 1, "VALUE k1 0 5\r\nEND\r\n\r\nEND\r\n", 1),
            (
                Call::Get,
                3,
                "VALUE k1 0 0\r\n\r\nVALUE k3 0 2\r\n\r\n\r\nEND\r\n",
                2,
            ),
        ];
        for (call, keys, text, count) in cases {
            assert_eq!(torn(&mut Memcached, call, keys, text), count, "{text:?}");
        }
    }

    #[test]
    fn errors_and_foreign_answers_are_told_apart() {
        let full = "SERVER_ERROR out of memory storing object";
        for call in [Call::Get, Call::Set] {
            let answer = Memcached.answer(call, 1, format!("{full}\r\n").as_bytes());
            assert_eq!(answer, Err(Refusal::Error(full.to_owned())));
        }
        let cases: [(Call, &[u8]); 6] = [
            (Call::Get, b"STORED\r\n"),
            (Call::Get, b"VALUE k1 0 x\r\n"),
            (Call::Get, b"VALUE k1 0 1\r\nabc"),
            (Call::Get, b"VALUE a 0 0\r\n\r\nVALUE b 0 0\r\n\r\nEND\r\n"),
            (Call::Set, b"END\r\n"),
            (Call::Set, b"-ERR unknown command\r\n"),
        ];
        for (call, bytes) in cases {
            let answer = Memcached.answer(call, 1, bytes);
            assert!(
                matches!(answer, Err(Refusal::Foreign(_))),
                "{bytes:?}: {answer:?}"
            );
        }
    }
}

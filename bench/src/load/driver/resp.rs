//! RESP2, which Redis and Valkey speak: `GET`, `SET`, and for batches `MGET` and `MSET`, each one message with one answer.
//!
//! `MSET` writes all its keys at once, which orlop's `write` does not promise; a pipeline of `SET`s would be answered one
//! by one, which `write` is not either. Prefix reads and scans do not exist. Used by `lane.rs`.

use std::io::Write;

use super::{Answer, Call, Protocol, Refusal, Request, beginning, length, line};

pub(crate) struct Resp;

impl Protocol for Resp {
    fn ask(&mut self, request: Request<'_>, out: &mut Vec<u8>) {
        let Request { call, keys, values } = request;
        let command: &[u8] = match (call, keys.len()) {
            (Call::Get, 1) => b"GET",
            (Call::Get, _) => b"MGET",
            (Call::Set, 1) => b"SET",
            (Call::Set, _) => b"MSET",
            (Call::Range { .. }, _) => unreachable!("a plan with ranges is refused"),
        };
        header(b'*', 1 + keys.len() + values.len(), out);
        bulk(command, out);
        for (index, key) in keys.iter().enumerate() {
            bulk(key, out);
            if let Some(value) = values.get(index) {
                bulk(value, out);
            }
        }
    }

    fn answer(&mut self, call: Call, keys: usize, input: &[u8]) -> Result<Option<Answer>, Refusal> {
        let Some(first) = line(input)? else {
            return Ok(None);
        };
        let foreign = || Refusal::Foreign(beginning(input));
        let after = first.len() + 2;
        match (first.split_first(), call) {
            (Some((b'-', text)), _) => Err(Refusal::Error(beginning(text))),
            (Some((b'+', b"OK")), Call::Set) => Ok(Some(Answer {
                used: after,
                count: keys as u64,
            })),
            (Some((b'*', digits)), Call::Get) if keys > 1 && length(digits) == Some(keys) => {
                let mut answer = Answer {
                    used: after,
                    count: 0,
                };
                for _ in 0..keys {
                    let Some(found) = element(&input[answer.used..])? else {
                        return Ok(None);
                    };
                    answer.used += found.used;
                    answer.count += found.count;
                }
                Ok(Some(answer))
            }
            (Some((b'$', _)), Call::Get) if keys == 1 => element(input),
            _ => Err(foreign()),
        }
    }
}

/// One bulk string, or the absence of one.
fn element(input: &[u8]) -> Result<Option<Answer>, Refusal> {
    let foreign = || Refusal::Foreign(beginning(input));
    let Some(first) = line(input)? else {
        return Ok(None);
    };
    let Some((b'$', digits)) = first.split_first() else {
        return Err(foreign());
    };
    let begin = first.len() + 2;
    if digits == b"-1" {
        return Ok(Some(Answer {
            used: begin,
            count: 0,
        }));
    }
    let end = begin + length(digits).ok_or_else(foreign)?;
    match input.get(end..end + 2) {
        None => Ok(None),
        Some(b"\r\n") => Ok(Some(Answer {
            used: end + 2,
            count: 1,
        })),
        Some(_) => Err(foreign()),
    }
}

fn header(kind: u8, number: usize, out: &mut Vec<u8>) {
    out.push(kind);
    write!(out, "{number}\r\n").expect("memory takes every write");
}

fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    header(b'$', bytes.len(), out);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::pipeline::tests::{asked, torn};
    use super::*;

    #[test]
    fn requests_are_the_documented_bytes() {
        let cases: [(Call, &[&str], &[&str], &str); 4] = [
            (Call::Get, &["k1"], &[], "*2\r\n$3\r\nGET\r\n$2\r\nk1\r\n"),
            (
                Call::Get,
                &["k1", "key2"],
                &[],
                "*3\r\n$4\r\nMGET\r\n$2\r\nk1\r\n$4\r\nkey2\r\n",
            ),
            (
                Call::Set,
                &["k1"],
                &["v\r\n1"],
                "*3\r\n$3\r\nSET\r\n$2\r\nk1\r\n$4\r\nv\r\n1\r\n",
            ),
            (
                Call::Set,
                &["k1", "k2"],
                &["a", ""],
                "*5\r\n$4\r\nMSET\r\n$2\r\nk1\r\n$1\r\na\r\n$2\r\nk2\r\n$0\r\n\r\n",
            ),
        ];
        for (call, keys, values, expected) in cases {
            assert_eq!(asked(&mut Resp, call, keys, values), expected);
        }
    }

    #[test]
    fn answers_are_read_however_they_are_cut() {
        let cases: [(Call, usize, &str, u64); 6] = [
            (Call::Set, 1, "+OK\r\n", 1),
            (Call::Set, 7, "+OK\r\n", 7),
            (Call::Get, 1, "$-1\r\n", 0),
            (Call::Get, 1, "$0\r\n\r\n", 1),
            (Call::Get, 1, "$4\r\na\r\nb\r\n", 1),
            (Call::Get, 3, "*3\r\n$1\r\nx\r\n$-1\r\n$5\r\nab\r\nc\r\n", 2),
        ];
        for (call, keys, text, count) in cases {
            assert_eq!(torn(&mut Resp, call, keys, text), count, "{text:?}");
        }
    }

    #[test]
    fn an_error_is_given_in_the_servers_words() {
        let words = "MISCONF Errors writing to the AOF file: No space left on device";
        let answer = Resp.answer(Call::Set, 1, format!("-{words}\r\n").as_bytes());
        assert_eq!(answer, Err(Refusal::Error(words.to_owned())));
    }

    #[test]
    fn what_is_no_answer_is_told_from_one() {
        let cases: [(Call, usize, &[u8]); 9] = [
            (Call::Get, 1, b"HTTP/1.1 400 Bad Request\r\n"),
            (Call::Get, 1, b"+OK\r\n"),
            (Call::Get, 1, b"*1\r\n$1\r\nx\r\n"),
            (Call::Get, 1, b"$1\r\nxyz"),
            (Call::Get, 1, b"$99999999999\r\n"),
            (Call::Get, 2, b"*3\r\n"),
            (Call::Get, 2, b"*2\r\n:1\r\n"),
            (Call::Set, 1, b"$1\r\nx\r\n"),
            (Call::Set, 1, b"\0\0\0\n"),
        ];
        for (call, keys, bytes) in cases {
            let answer = Resp.answer(call, keys, bytes);
            assert!(
                matches!(answer, Err(Refusal::Foreign(_))),
                "{bytes:?}: {answer:?}"
            );
        }
    }
}

//! etcd's HTTP/JSON gateway: `POST /v3/kv/range` and `/v3/kv/put`, keys and values in base64, connections kept.
//!
//! HTTP/1.1 answers one request after the other, so a connection has one in flight. The gateway turns every request
//! into gRPC inside the server: it costs etcd something that its own clients do not pay. Answers are read as far as
//! counting needs. Used by `lane.rs`.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{Answer, Call, Protocol, Refusal, Request, beginning, length, line};

/// Most bytes of a key and its value: a request of etcd is at most 1.5 MiB by default, and has some bytes around them.
pub(crate) const PAIR_BYTES_MAX: usize = (3 << 19) - 1024;

const HEAD_LEN_MAX: usize = 64 << 10;

pub(crate) struct Etcd {
    host: String,
    body: String,
}

impl Etcd {
    pub(crate) fn new(host: &str) -> Etcd {
        Etcd {
            host: host.to_owned(),
            body: String::new(),
        }
    }

    fn field(&mut self, name: &str, bytes: &[u8]) {
        self.body
            .push_str(if self.body.is_empty() { "{" } else { "," });
        self.body.push('"');
        self.body.push_str(name);
        self.body.push_str("\":\"");
        BASE64.encode_string(bytes, &mut self.body);
        self.body.push('"');
    }
}

impl Protocol for Etcd {
    fn ask(&mut self, request: Request<'_>, out: &mut Vec<u8>) {
        let Request { call, keys, values } = request;
        self.body.clear();
        self.field("key", &keys[0]);
        let path = match call {
            Call::Get => "range",
            Call::Set => {
                self.field("value", &values[0]);
                "put"
            }
            Call::Range { entries } => {
                self.field("range_end", &keys[1]);
                self.body.push_str(&format!(",\"limit\":{entries}"));
                "range"
            }
        };
        self.body.push('}');
        write!(
            out,
            "POST /v3/kv/{path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
            self.host,
            self.body.len(),
            self.body
        )
        .expect("memory takes every write");
    }

    fn answer(
        &mut self,
        call: Call,
        _keys: usize,
        input: &[u8],
    ) -> Result<Option<Answer>, Refusal> {
        let Some(message) = message(input)? else {
            return Ok(None);
        };
        let json: Option<serde_json::Value> = serde_json::from_slice(&message.body).ok();
        if message.status != 200 {
            let words = json.as_ref().and_then(|json| {
                let said = |name: &str| json.get(name).and_then(serde_json::Value::as_str);
                said("message").or_else(|| said("error"))
            });
            let words = words.map_or_else(|| beginning(&message.body), str::to_owned);
            return Err(Refusal::Error(format!("{words} (HTTP {})", message.status)));
        }
        let foreign = || Refusal::Foreign(beginning(&message.body));
        let json = json.ok_or_else(foreign)?;
        if json.get("header").is_none() {
            return Err(foreign());
        }
        let entries = json.get("kvs").and_then(serde_json::Value::as_array);
        Ok(Some(Answer {
            used: message.used,
            count: match call {
                Call::Set => 1,
                Call::Get | Call::Range { .. } => entries.map_or(0, |entries| entries.len() as u64),
            },
        }))
    }
}

/// A whole answer of HTTP/1.1.
#[derive(Debug)]
struct Message {
    status: u16,
    body: Vec<u8>,
    used: usize,
}

/// How the end of a body is told.
enum Body {
    Length(usize),
    Chunked,
}

fn message(input: &[u8]) -> Result<Option<Message>, Refusal> {
    let foreign = || Refusal::Foreign(beginning(input));
    let Some(first) = line(input)? else {
        return Ok(None);
    };
    let status = first
        .strip_prefix(b"HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        .ok_or_else(foreign)?;
    let mut at = first.len() + 2;
    let mut body = None;
    loop {
        let Some(header) = line(&input[at..])? else {
            return Ok(None);
        };
        at += header.len() + 2;
        if at > HEAD_LEN_MAX {
            return Err(foreign());
        }
        if header.is_empty() {
            break;
        }
        let Some(colon) = header.iter().position(|&byte| byte == b':') else {
            return Err(foreign());
        };
        let (name, value) = (&header[..colon], header[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            body = Some(Body::Length(length(value).ok_or_else(foreign)?));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            body = Some(Body::Chunked);
        }
    }
    let (body, used) = match body {
        None => return Err(foreign()),
        Some(Body::Length(bytes)) => match input.get(at..at + bytes) {
            None => return Ok(None),
            Some(body) => (body.to_vec(), at + bytes),
        },
        Some(Body::Chunked) => match chunks(&input[at..])? {
            None => return Ok(None),
            Some((body, bytes)) => (body, at + bytes),
        },
    };
    Ok(Some(Message { status, body, used }))
}

/// The body in chunks at the start of `input`, and how many bytes they took; trailers are not expected.
fn chunks(input: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Refusal> {
    let foreign = || Refusal::Foreign(beginning(input));
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(size) = line(&input[at..])? else {
            return Ok(None);
        };
        let bytes = std::str::from_utf8(size)
            .ok()
            .and_then(|digits| usize::from_str_radix(digits, 16).ok())
            .filter(|bytes| body.len() + bytes <= ::orlop::limits::CLIENT_MESSAGE_BYTES_MAX)
            .ok_or_else(foreign)?;
        at += size.len() + 2;
        let Some(chunk) = input.get(at..at + bytes + 2) else {
            return Ok(None);
        };
        if !chunk.ends_with(b"\r\n") {
            return Err(foreign());
        }
        body.extend_from_slice(&chunk[..bytes]);
        at += bytes + 2;
        if bytes == 0 {
            return Ok(Some((body, at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pipeline::tests::{asked, torn};
    use super::*;

    fn etcd() -> Etcd {
        Etcd::new("127.0.0.1:2379")
    }

    fn post(path: &str, body: &str) -> String {
        format!(
            "POST /v3/kv/{path} HTTP/1.1\r\nHost: 127.0.0.1:2379\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn answer(status: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    #[test]
    fn requests_are_the_documented_bytes() {
        let asked = |call, keys: &[&str], values: &[&str]| asked(&mut etcd(), call, keys, values);
        assert_eq!(
            asked(Call::Get, &["foo"], &[]),
            post("range", r#"{"key":"Zm9v"}"#)
        );
        assert_eq!(
            asked(Call::Set, &["foo"], &["bar\n"]),
            post("put", r#"{"key":"Zm9v","value":"YmFyCg=="}"#)
        );
        assert_eq!(
            asked(Call::Range { entries: 7 }, &["a", "b"], &[]),
            post("range", r#"{"key":"YQ==","range_end":"Yg==","limit":7}"#)
        );
    }

    #[test]
    fn answers_are_read_however_they_are_cut() {
        let none = answer("200 OK", r#"{"header":{"revision":"4"}}"#);
        let two = answer(
            "200 OK",
            r#"{"header":{},"kvs":[{"key":"YQ==","value":"Yg=="},{"key":"Yw=="}],"count":"2"}"#,
        );
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                       d\r\n{\"header\":{},\r\nA\r\n\"kvs\":[{}]\r\n1\r\n}\r\n0\r\n\r\n";
        let range = Call::Range { entries: 9 };
        let cases = [
            (Call::Set, none.as_str(), 1),
            (Call::Get, &none, 0),
            (range, &two, 2),
            (Call::Get, chunked, 1),
        ];
        for (call, text, count) in cases {
            assert_eq!(torn(&mut etcd(), call, 1, text), count, "{text:?}");
        }
    }

    #[test]
    fn an_error_is_given_in_the_servers_words() {
        let body = r#"{"error":"etcdserver: mvcc: database space exceeded","code":8,"message":"etcdserver: mvcc: database space exceeded"}"#;
        let text = answer("429 Too Many Requests", body);
        let refusal = etcd().answer(Call::Set, 1, text.as_bytes());
        let words = "etcdserver: mvcc: database space exceeded (HTTP 429)";
        assert_eq!(refusal, Err(Refusal::Error(words.to_owned())));
        let refusal = etcd().answer(Call::Set, 1, answer("404 Not Found", "gone").as_bytes());
        assert_eq!(refusal, Err(Refusal::Error("gone (HTTP 404)".to_owned())));
    }

    #[test]
    fn what_is_no_answer_is_told_from_one() {
        let cases = [
            "+OK\r\n".to_owned(),
            "HTTP/1.1 abc\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nno header\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n".to_owned(),
            answer("200 OK", "<html>"),
            answer("200 OK", r#"{"other":1}"#),
        ];
        for text in cases {
            let answer = etcd().answer(Call::Get, 1, text.as_bytes());
            assert!(
                matches!(answer, Err(Refusal::Foreign(_))),
                "{text:?}: {answer:?}"
            );
        }
    }
}

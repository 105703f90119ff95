//! Servers of a few lines that speak like Redis, memcached and etcd's gateway, over one map, and note what they are asked.
//!
//! They read requests by their own means, so a codec that is wrong in the same way twice would still be found. A thread
//! per connection; the test ends with the process, and so do they.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tongue {
    Redis,
    Memcached,
    Etcd,
}

/// What happens to the requests after the first `HONEST_REQUESTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The disk is full, in the words of the system.
    Error,
    HangUp,
}

/// How many requests are answered before the fault.
pub(crate) const HONEST_REQUESTS: usize = 100;

/// One request as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Get(Vec<String>),
    Set(Vec<(String, usize)>),
    Range {
        from: String,
        to: String,
        limit: u64,
    },
}

pub(crate) struct Fake {
    pub(crate) address: String,
    state: Arc<State>,
}

struct State {
    tongue: Tongue,
    fault: Fault,
    rows: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    asked: Mutex<Vec<Asked>>,
}

/// What a request found.
enum Done {
    Found(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Stored,
}

impl Fake {
    pub(crate) fn start(tongue: Tongue, fault: Fault) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(State {
            tongue,
            fault,
            rows: Mutex::default(),
            asked: Mutex::default(),
        });
        let served = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.expect("a connection"), served.clone());
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Fake { address, state }
    }

    /// Everything that it was asked, in the order of a single connection.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().expect("no panic").clone()
    }

    pub(crate) fn keys(&self) -> usize {
        self.state.rows.lock().expect("no panic").len()
    }
}

impl State {
    /// Answers until the client goes away, or the fault comes.
    fn serve(&self, stream: TcpStream) {
        stream.set_nodelay(true).expect("an option of every socket");
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut writer = stream;
        loop {
            let answer = match self.tongue {
                Tongue::Redis => self.redis(&mut reader),
                Tongue::Memcached => self.memcached(&mut reader),
                Tongue::Etcd => self.etcd(&mut reader),
            };
            // In two pieces: the seam is somewhere else in every answer.
            let Some(answer) = answer else { return };
            let (head, tail) = answer.split_at(answer.len() / 2);
            if writer
                .write_all(head)
                .and_then(|()| writer.write_all(tail))
                .is_err()
            {
                return;
            }
        }
    }

    /// Does a request. Nothing: the connection is to be closed. An error: the disk is full.
    fn perform(&self, asked: Asked, values: &[Vec<u8>]) -> Option<Result<Done, ()>> {
        let mut requests = self.asked.lock().expect("no panic");
        requests.push(asked.clone());
        if requests.len() > HONEST_REQUESTS {
            match self.fault {
                Fault::None => (),
                Fault::Error => return Some(Err(())),
                Fault::HangUp => return None,
            }
        }
        let mut rows = self.rows.lock().expect("no panic");
        Some(Ok(match asked {
            Asked::Get(keys) => {
                let found = |key: String| {
                    let value = rows.get(key.as_bytes()).cloned();
                    (key.into_bytes(), value)
                };
                Done::Found(keys.into_iter().map(found).collect())
            }
            Asked::Set(pairs) => {
                for ((key, _), value) in pairs.iter().zip(values) {
                    rows.insert(key.clone().into_bytes(), value.clone());
                }
                Done::Stored
            }
            Asked::Range { from, to, limit } => {
                let range = rows.range(from.into_bytes()..to.into_bytes());
                let entry = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), Some(value.clone()));
                Done::Found(range.take(limit as usize).map(entry).collect())
            }
        }))
    }

    fn redis(&self, reader: &mut impl BufRead) -> Option<Vec<u8>> {
        let count: usize = line(reader)?.strip_prefix('*')?.parse().ok()?;
        let mut words = Vec::new();
        for _ in 0..count {
            let len: usize = line(reader)?.strip_prefix('$')?.parse().ok()?;
            words.push(bytes_and_end(reader, len)?);
        }
        let command = String::from_utf8(words.remove(0)).expect("a command is text");
        let many = command.starts_with('M');
        let done = match command.as_str() {
            "GET" | "MGET" => self.perform(Asked::Get(words.into_iter().map(text).collect()), &[]),
            "SET" | "MSET" => {
                let (keys, values): (Vec<_>, Vec<_>) = words
                    .chunks(2)
                    .map(|pair| (pair[0].clone(), pair[1].clone()))
                    .unzip();
                self.perform(sets(keys, &values), &values)
            }
            _ => panic!("redis was asked for {command}"),
        };
        Some(match done? {
            Err(()) => {
                b"-MISCONF Errors writing to the AOF file: No space left on device\r\n".to_vec()
            }
            Ok(Done::Stored) => b"+OK\r\n".to_vec(),
            Ok(Done::Found(entries)) => {
                let mut answer = Vec::new();
                if many {
                    answer.extend(format!("*{}\r\n", entries.len()).into_bytes());
                }
                for (_, value) in entries {
                    match value {
                        None => answer.extend(b"$-1\r\n"),
                        Some(value) => {
                            answer.extend(format!("${}\r\n", value.len()).into_bytes());
                            answer.extend([value.as_slice(), b"\r\n"].concat());
                        }
                    }
                }
                answer
            }
        })
    }

    fn memcached(&self, reader: &mut impl BufRead) -> Option<Vec<u8>> {
        let line = line(reader)?;
        let words: Vec<&str> = line.split(' ').collect();
        let done = match words.as_slice() {
            ["get", keys @ ..] => self.perform(
                Asked::Get(keys.iter().map(|key| (*key).to_owned()).collect()),
                &[],
            ),
            ["set", key, "0", "0", len] => {
                let value = bytes_and_end(reader, len.parse().expect("a length"))?;
                let values = [value];
                self.perform(sets(vec![key.as_bytes().to_vec()], &values), &values)
            }
            _ => return Some(b"ERROR\r\n".to_vec()),
        };
        Some(match done? {
            Err(()) => b"SERVER_ERROR out of memory storing object\r\n".to_vec(),
            Ok(Done::Stored) => b"STORED\r\n".to_vec(),
            Ok(Done::Found(entries)) => {
                let mut answer = Vec::new();
                for (key, value) in entries {
                    let Some(value) = value else { continue };
                    answer.extend([b"VALUE ", key.as_slice()].concat());
                    answer.extend(format!(" 0 {}\r\n", value.len()).into_bytes());
                    answer.extend([value.as_slice(), b"\r\n"].concat());
                }
                answer.extend(b"END\r\n");
                answer
            }
        })
    }

    fn etcd(&self, reader: &mut impl BufRead) -> Option<Vec<u8>> {
        let request = line(reader)?;
        let mut len = 0;
        loop {
            let header = line(reader)?;
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("Content-Length: ") {
                len = value.parse().expect("a length");
            }
        }
        let mut body = vec![0; len];
        reader.read_exact(&mut body).ok()?;
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let field = |name: &str| {
            BASE64
                .decode(body[name].as_str().expect("text"))
                .expect("base64")
        };
        let done = match request.as_str() {
            "POST /v3/kv/put HTTP/1.1" => {
                let values = [field("value")];
                self.perform(sets(vec![field("key")], &values), &values)
            }
            "POST /v3/kv/range HTTP/1.1" if body.get("range_end").is_none() => {
                self.perform(Asked::Get(vec![text(field("key"))]), &[])
            }
            "POST /v3/kv/range HTTP/1.1" => {
                let (from, to) = (text(field("key")), text(field("range_end")));
                let limit = body["limit"].as_u64().expect("a limit");
                self.perform(Asked::Range { from, to, limit }, &[])
            }
            _ => panic!("etcd was asked for {request}"),
        };
        Some(match done? {
            Err(()) => {
                let words = "etcdserver: mvcc: database space exceeded";
                let body = json!({ "error": words, "message": words, "code": 8 }).to_string();
                let head = "HTTP/1.1 429 Too Many Requests\r\nContent-Length:";
                format!("{head} {}\r\n\r\n{body}", body.len()).into_bytes()
            }
            Ok(Done::Stored) => {
                let body = json!({ "header": {} }).to_string();
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
                .into_bytes()
            }
            Ok(Done::Found(entries)) => {
                let entry = |(key, value): (Vec<u8>, Option<Vec<u8>>)| {
                    let value = value?;
                    Some(json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) }))
                };
                let entries: Vec<Value> = entries.into_iter().filter_map(entry).collect();
                let body = json!({ "header": {}, "kvs": entries }).to_string();
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes()
            }
        })
    }
}

fn sets(keys: Vec<Vec<u8>>, values: &[Vec<u8>]) -> Asked {
    let lens = values.iter().map(Vec::len);
    Asked::Set(keys.into_iter().map(text).zip(lens).collect())
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("keys are text")
}

/// A line without its end; nothing when the client is gone.
fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    Some(line.strip_suffix("\r\n").expect("a whole line").to_owned())
}

fn bytes_and_end(reader: &mut impl BufRead, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len + 2];
    reader.read_exact(&mut bytes).ok()?;
    assert_eq!(bytes.split_off(len), b"\r\n");
    Some(bytes)
}

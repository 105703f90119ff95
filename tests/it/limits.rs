//! What a call may not ask for: each bound of the wire at its edge, refused with a sentence that names value and limit,
//! the connection and the server unharmed.
//!
//! What is not a call at all (garbage, broken connections) is in `hostile.rs`.

use std::fmt::Debug;

use orlop::client::{Change, ClientError, Condition, PrefixQuery};
use orlop::limits::{
    BATCH_MAX, CONNECTION_CALLS_MAX, KEY_LEN_MAX, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX,
};
use orlop::proto::orlop_capnp::{condition, store};

use crate::batches::mutation;
use crate::harness::{Flags, Server, run, with_server, with_server_of};
use crate::raw::{self, Answer, RawClient};
use crate::stock;

/// Demands that a call was refused as never possible, with a sentence that holds `words`.
#[track_caller]
fn refused<T: Debug>(result: Result<T, ClientError>, words: &[&str]) {
    let Err(ClientError::InvalidArgument(sentence)) = &result else {
        panic!("not refused: {result:?}")
    };
    for word in words {
        assert!(sentence.contains(word), "no {word:?} in {sentence:?}");
    }
}

#[test]
fn an_empty_key_is_refused() {
    with_server(async |server| {
        let client = server.client().await;
        refused(client.get(b"").await, &["key"]);
        refused(client.set(b"", b"value").await, &["key"]);
        refused(client.delete(b"").await, &["key"]);
        refused(client.get_many(&[&b"fine"[..], b""]).await, &["key"]);
        let mutations = [
            mutation(b"fine", Change::Set(b"x"), Condition::None),
            mutation(b"", Change::Delete, Condition::None),
        ];
        refused(client.write(&mutations).await, &["key"]);
        assert_eq!(
            client.get(b"fine").await.unwrap(),
            None,
            "a batch with an invalid mutation wrote something"
        );
    });
}

#[test]
fn a_key_over_the_limit_is_refused() {
    with_server(async |server| {
        let client = server.client().await;
        let key = vec![b'k'; KEY_LEN_MAX + 1];
        let words = ["65536", "65535"];
        refused(client.get(&key).await, &words);
        refused(client.set(&key, b"value").await, &words);
        refused(client.delete(&key).await, &words);
        refused(client.get_many(&[&key]).await, &words);
        refused(
            client
                .write(&[mutation(&key, Change::Delete, Condition::None)])
                .await,
            &words,
        );
        refused(client.get_prefix(&PrefixQuery::new(&key)).await, &words);
        let after = PrefixQuery {
            after: &key,
            ..PrefixQuery::new(b"k")
        };
        refused(client.get_prefix(&after).await, &words);
        refused(client.stream_prefix(&key, false, |_| Ok(())).await, &words);
        client.set(&key[1..], b"value").await.unwrap();
    });
}

#[test]
fn a_value_over_the_limit_is_refused() {
    with_server(async |server| {
        let client = server.client().await;
        let value = vec![b'v'; (64 << 10) + 1];
        refused(
            client.set(b"key", &value).await,
            &["65537", "65536", "--max-value-size"],
        );
        let mutations = [
            mutation(b"fine", Change::Set(b"x"), Condition::None),
            mutation(b"key", Change::Set(&value), Condition::None),
        ];
        refused(client.write(&mutations).await, &["65537", "65536"]);
        assert_eq!(
            client.get_many(&["key", "fine"]).await.unwrap(),
            [None, None]
        );
        client.set(b"key", &value[1..]).await.unwrap();
    });
}

#[test]
fn the_default_limit_of_a_value_is_16_mib() {
    with_server_of(Flags::large(), async |server| {
        let client = server.client().await;
        let value = vec![b'v'; (16 << 20) + 1];
        refused(client.set(b"key", &value).await, &["16777217", "16777216"]);
        assert_eq!(client.get(b"key").await.unwrap(), None);
    });
}

/// The message is made by the generated code with a condition it knows, then the discriminant is changed to one that
/// only a later schema could have.
#[test]
fn a_condition_that_the_server_does_not_know_is_refused() {
    with_server(async |server| {
        const MARK: u64 = 0x5afe_c0de_5afe_c0de;
        let known = |version: u64| {
            raw::store_call(raw::FIRST_QUESTION, raw::method::SET, |content| {
                let mut parameters = content.init_as::<store::set_params::Builder<'_>>();
                parameters.set_key(b"key");
                parameters.set_value(b"value");
                let mut condition: condition::Builder<'_> = parameters.init_condition();
                condition.set_if_version(version);
            })
        };
        let mut bytes = known(MARK);
        let mark = bytes
            .windows(8)
            .position(|window| window == MARK.to_le_bytes())
            .unwrap();
        // The discriminant is the 16 bits at the start of the struct, one word before the version.
        let discriminant = mark - 8;
        assert_eq!(bytes[discriminant], 3, "ifVersion has ordinal 3");
        bytes[discriminant] = 77;

        let mut client = RawClient::connect(server.address()).await;
        client.send(&bytes).await;
        let answer = client.answer(raw::FIRST_QUESTION).await;
        let Some(Answer::Exception(reason)) = answer else {
            panic!("{answer:?}")
        };
        assert!(
            reason.contains("invalidArgument") && reason.contains("condition"),
            "{reason}"
        );
        assert!(!client.is_closed().await);
        assert_eq!(server.client().await.get(b"key").await.unwrap(), None);
    });
}

#[test]
fn page_limits_of_zero_or_beyond_the_bound_are_refused() {
    with_server(async |server| {
        let client = server.client().await;
        client.set(b"key", b"value").await.unwrap();
        let query = PrefixQuery::new(b"");
        for max_entries in [0, PAGE_ENTRIES_MAX as u32 + 1, u32::MAX] {
            let result = client
                .get_prefix(&PrefixQuery {
                    max_entries,
                    ..query.clone()
                })
                .await;
            refused(
                result,
                &[
                    "maxEntries",
                    &max_entries.to_string(),
                    &PAGE_ENTRIES_MAX.to_string(),
                ],
            );
        }
        for max_bytes in [0, PAGE_BYTES_MAX as u32 + 1, u32::MAX] {
            let result = client
                .get_prefix(&PrefixQuery {
                    max_bytes,
                    ..query.clone()
                })
                .await;
            refused(
                result,
                &[
                    "maxBytes",
                    &max_bytes.to_string(),
                    &PAGE_BYTES_MAX.to_string(),
                ],
            );
        }
        let widest = PrefixQuery {
            max_entries: PAGE_ENTRIES_MAX as u32,
            max_bytes: PAGE_BYTES_MAX as u32,
            ..query.clone()
        };
        assert_eq!(client.get_prefix(&widest).await.unwrap().entries.len(), 1);
    });
}

#[test]
fn a_batch_over_the_limit_is_refused_whole() {
    with_server(async |server| {
        let client = server.client().await;
        let keys: Vec<[u8; 4]> = (0..=BATCH_MAX as u32).map(u32::to_be_bytes).collect();
        let words = ["10001", "10000"];
        refused(client.get_many(&keys).await, &words);
        let mutations: Vec<_> = keys
            .iter()
            .map(|key| mutation(key, Change::Set(b"x"), Condition::None))
            .collect();
        refused(client.write(&mutations).await, &words);
        assert_eq!(client.stat().await.unwrap().keys, 0);

        let outcomes = client.write(&mutations[1..]).await.unwrap();
        assert_eq!(outcomes.len(), BATCH_MAX);
        assert_eq!(
            client
                .get_many(&keys[1..])
                .await
                .unwrap()
                .iter()
                .flatten()
                .count(),
            BATCH_MAX
        );
    });
}

#[test]
fn an_answer_of_get_many_over_the_limit_is_refused() {
    with_server_of(Flags::large(), async |server| {
        let client = server.client().await;
        client.set(b"large", &vec![b'v'; 12 << 20]).await.unwrap();
        let result = client.get_many(&["large"; 3]).await;
        refused(result, &["33554432"]);
        let two = client.get_many(&["large"; 2]).await.unwrap();
        assert!(
            two.iter()
                .all(|found| found.as_ref().unwrap().value.len() == 12 << 20)
        );
    });
}

/// A page stops before its limit instead of failing, and holds one entry even where that alone is over it.
#[test]
fn a_page_holds_a_value_that_is_larger_than_the_page() {
    with_server_of(Flags::large(), async |server| {
        let client = server.client().await;
        let value = vec![b'v'; 5 << 20];
        for key in ["a", "b", "c"] {
            client.set(key.as_bytes(), &value).await.unwrap();
        }
        let page = client.get_prefix(&PrefixQuery::new(b"")).await.unwrap();
        assert_eq!((page.entries.len(), page.more), (1, true));
        assert!(page.entries[0].value == value);
        let query = PrefixQuery {
            max_bytes: 11 << 20,
            ..PrefixQuery::new(b"")
        };
        let page = client.get_prefix(&query).await.unwrap();
        assert_eq!((page.entries.len(), page.more), (2, true));
        let query = PrefixQuery {
            max_bytes: 16 << 20,
            ..PrefixQuery::new(b"")
        };
        let page = client.get_prefix(&query).await.unwrap();
        assert_eq!((page.entries.len(), page.more), (3, false));
    });
}

/// A flood of calls on one connection: each is answered, with its result or with `overloaded`, and none is half done.
#[test]
fn calls_over_the_limit_of_a_connection_are_answered_overloaded() {
    with_server(async |server| {
        let calls = 3 * CONNECTION_CALLS_MAX as u32;
        let mut client = RawClient::connect(server.address()).await;
        let mut bytes = Vec::new();
        for i in 0..calls {
            bytes.extend(raw::set(
                raw::FIRST_QUESTION + i,
                &i.to_be_bytes(),
                b"value",
            ));
        }
        let (mut reader, mut writer) = client.stream.split();
        let flood = async {
            tokio::io::AsyncWriteExt::write_all(&mut writer, &bytes)
                .await
                .unwrap()
        };
        let (mut written, mut overloaded) = (Vec::new(), 0);
        let answers = async {
            while written.len() + overloaded < calls as usize {
                let message = raw::receive(&mut reader)
                    .await
                    .expect("the connection stays open");
                match raw::answer_of(&message) {
                    Some((question, Answer::Results)) if question >= raw::FIRST_QUESTION => {
                        written.push(question - raw::FIRST_QUESTION);
                    }
                    Some((_, Answer::Exception(reason))) => {
                        assert!(reason.contains("overloaded"), "{reason}");
                        overloaded += 1;
                    }
                    _ => {}
                }
            }
        };
        futures::join!(flood, answers);
        println!("{} written, {overloaded} overloaded", written.len());
        assert!(
            written.len() >= CONNECTION_CALLS_MAX,
            "{} written",
            written.len()
        );
        let other = server.client().await;
        assert_eq!(other.stat().await.unwrap().keys, written.len() as u64);
        for i in written {
            assert!(
                other.get(&i.to_be_bytes()).await.unwrap().is_some(),
                "{i} was answered but is not there"
            );
        }
    });
}

#[test]
fn any_credential_opens() {
    with_server(async |server| {
        for credential in [&b""[..], b"anything", &[0xff; 1000]] {
            let bootstrap = stock::connect(server.address()).await;
            let mut request = bootstrap.open_request();
            request.get().set_credential(credential);
            let store = request
                .send()
                .promise
                .await
                .unwrap()
                .get()
                .unwrap()
                .get_store()
                .unwrap();
            let mut request = store.get_request();
            request.get().set_key(b"key");
            request.send().promise.await.unwrap();
        }
    });
}

/// The kinds of exception are part of the contract: programs in other languages branch on them.
#[test]
fn errors_have_the_kind_that_the_schema_names() {
    with_server(async |server| {
        let store = stock::store(server.address()).await;
        let mut request = store.get_request();
        request.get().set_key(b"");
        let error = request.send().promise.await.err().expect("refused");
        assert_eq!(error.kind, capnp::ErrorKind::Failed);
        assert!(error.to_string().contains("invalidArgument: "), "{error}");
    });
}

/// Full at run time: nothing was written, reads go on, deletes of what is there are not needed to read it.
#[test]
fn limits_of_a_server_are_the_ones_of_its_flags() {
    run(async |scratch| {
        let flags = Flags::small().with("--max-value-size", "1KiB");
        let server = Server::start(&scratch.data(), &flags).await;
        let client = server.client().await;
        assert_eq!(client.info().await.unwrap().limits.value_bytes_max, 1024);
        refused(client.set(b"key", &[0; 1025]).await, &["1025", "1024"]);
        client.set(b"key", &[0; 1024]).await.unwrap();
        server.stop().await;
        // Less is allowed later: what is larger stays readable.
        let flags = flags.with("--max-value-size", "512B");
        let server = Server::start(&scratch.data(), &flags).await;
        let client = server.client().await;
        refused(client.set(b"other", &[0; 513]).await, &["513", "512"]);
        assert_eq!(client.get(b"key").await.unwrap().unwrap().value.len(), 1024);
        server.stop().await;
    });
}

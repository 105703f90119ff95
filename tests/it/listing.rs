//! `getPrefix` and `streamPrefix`: order over all shards, pages and how they resume, the window of a stream.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::try_join_all;
use orlop::client::{Change, Client, ClientError, Condition, Entry, Mutation, PrefixQuery};
use orlop::limits::{
    ENTRY_BYTES_MORE, PAGE_ENTRIES_MAX, PUSH_BYTES_MAX, PUSH_ENTRIES_MAX, PUSHED_BYTES_MAX,
};
use orlop::proto::orlop_capnp::entry_sink;

use crate::harness::{Flags, Server, until, with_server, with_server_of};
use crate::operations::version_of;
use crate::random::Random;
use crate::stock;

type Model = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

/// Sets many keys over a small alphabet, so that prefixes share and end everywhere, and deletes some of them again.
async fn fill(client: &Client, random: &mut Random, count: usize) -> Model {
    let mut model = Model::new();
    for _ in 0..count {
        let len = random.within(1..7) as usize;
        let key: Vec<u8> = (0..len)
            .map(|_| [0x00, 0x01, b'a', b'b', 0xfe, 0xff][random.within(0..6) as usize])
            .collect();
        let len = random.within(0..200) as usize;
        let value = random.bytes(len);
        model.insert(key, (value, 0));
    }
    let written = try_join_all(model.iter().map(|(key, (value, _))| client.set(key, value)))
        .await
        .unwrap();
    for (entry, outcome) in model.values_mut().zip(written) {
        entry.1 = version_of(outcome);
    }
    let gone: Vec<Vec<u8>> = model.keys().filter(|_| random.one_in(5)).cloned().collect();
    try_join_all(gone.iter().map(|key| client.delete(key)))
        .await
        .unwrap();
    model.retain(|key, _| !gone.contains(key));
    model
}

fn expected(model: &Model, prefix: &[u8], keys_only: bool) -> Vec<Entry> {
    let under = model
        .range(prefix.to_vec()..)
        .take_while(|(key, _)| key.starts_with(prefix));
    under
        .map(|(key, (value, version))| Entry {
            key: key.clone(),
            value: if keys_only { Vec::new() } else { value.clone() },
            version: *version,
        })
        .collect()
}

/// Reads all pages; checks that each is within its limits and that `more` is true exactly until the last one.
async fn read_pages(client: &Client, query: &PrefixQuery<'_>) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    let mut after = query.after.to_vec();
    loop {
        let page = client
            .get_prefix(&PrefixQuery {
                after: &after,
                ..*query
            })
            .await
            .unwrap();
        assert!(
            page.entries.len() <= query.max_entries as usize,
            "{} entries",
            page.entries.len()
        );
        let bytes: usize = page
            .entries
            .iter()
            .map(|entry| entry.key.len() + entry.value.len())
            .sum();
        assert!(
            bytes <= query.max_bytes as usize || page.entries.len() == 1,
            "{bytes} bytes in {} entries, asked for {}",
            page.entries.len(),
            query.max_bytes
        );
        assert!(
            !page.entries.is_empty() || !page.more,
            "an empty page that says there is more"
        );
        if let Some(last) = page.entries.last() {
            after.clone_from(&last.key);
        }
        all.extend(page.entries);
        if !page.more {
            return all;
        }
    }
}

#[test]
fn a_prefix_lists_its_keys_in_order_over_all_shards() {
    with_server(async |server| {
        let seed = Random::seed();
        println!("seed {seed}");
        let client = server.client().await;
        let model = fill(&client, &mut Random::new(seed), 1_500).await;
        let prefixes: [&[u8]; 8] = [
            b"",
            b"a",
            b"ab",
            b"\0",
            b"\xff",
            b"\xff\xff",
            b"\xfe\xff\xff",
            b"zzz",
        ];
        for prefix in prefixes {
            let entries = expected(&model, prefix, false);
            assert!(
                prefix.len() > 2 || !entries.is_empty(),
                "{prefix:?} should find something"
            );
            let query = PrefixQuery {
                max_entries: PAGE_ENTRIES_MAX as u32,
                ..PrefixQuery::new(prefix)
            };
            assert_eq!(
                client.get_prefix(&query).await.unwrap().entries,
                entries,
                "prefix {prefix:?}"
            );
        }
    });
}

#[test]
fn pages_of_any_size_add_up_to_the_whole() {
    with_server(async |server| {
        let seed = Random::seed();
        println!("seed {seed}");
        let client = server.client().await;
        let model = fill(&client, &mut Random::new(seed), 400).await;
        for prefix in [&b""[..], b"a", b"\xff"] {
            for keys_only in [false, true] {
                let entries = expected(&model, prefix, keys_only);
                for (max_entries, max_bytes) in [
                    (1, 1 << 20),
                    (7, 1 << 20),
                    (1_000, 1),
                    (1_000, 300),
                    (1_000, 1 << 20),
                ] {
                    let query = PrefixQuery {
                        max_entries,
                        max_bytes,
                        keys_only,
                        ..PrefixQuery::new(prefix)
                    };
                    let read = read_pages(&client, &query).await;
                    assert!(
                        read == entries,
                        "{query:?}: {} of {} entries",
                        read.len(),
                        entries.len()
                    );
                }
            }
        }
    });
}

/// A shard gathers a long page in parts, 64 entries each.
#[test]
fn a_page_of_one_shard_ends_exactly_at_its_bounds() {
    with_server_of(Flags::small().with("--shards", "1"), async |server| {
        let client = server.client().await;
        const LARGE: usize = 5_000;
        let lens: Vec<usize> = (0..300_usize)
            .map(|i| if i.is_multiple_of(64) { LARGE } else { i % 9 })
            .collect();
        let keys: Vec<String> = (0..lens.len()).map(|i| format!("key{i:03}")).collect();
        let (sets, value) = (keys.iter().zip(&lens), [7; LARGE]);
        try_join_all(sets.map(|(key, len)| client.set(key.as_bytes(), &value[..*len])))
            .await
            .unwrap();
        let up_to = |count: usize| -> usize { lens[..count].iter().map(|len| 6 + len).sum() };
        for count in [1, 64, 65, 127, 128, 129, 191, 256, 257, 299, 300] {
            for max_bytes in [up_to(count) - 1, up_to(count), up_to(count) + 1] {
                for max_entries in [1, 127, 128, 129, 200, 256, 300, 301] {
                    let fits = |n: &usize| *n == 1 || up_to(*n) <= max_bytes;
                    let expected = (1..=lens.len().min(max_entries)).take_while(fits).count();
                    let query = PrefixQuery {
                        max_entries: max_entries as u32,
                        max_bytes: max_bytes as u32,
                        ..PrefixQuery::new(b"key")
                    };
                    let page = client.get_prefix(&query).await.unwrap();
                    let case = (max_entries, max_bytes);
                    assert_eq!(page.entries.len(), expected, "{case:?}");
                    assert_eq!(page.more, expected < lens.len(), "{case:?}");
                    let in_order = page.entries.iter().zip(&keys);
                    assert!(
                        in_order
                            .clone()
                            .all(|(entry, key)| entry.key == key.as_bytes())
                    );
                }
            }
        }
    });
}

#[test]
fn a_page_starts_behind_after_wherever_that_is() {
    with_server(async |server| {
        let client = server.client().await;
        for key in [&b"a"[..], b"b", b"b\0", b"b1", b"b2", b"c"] {
            client.set(key, b"").await.unwrap();
        }
        let cases: [(&[u8], &[&[u8]]); 9] = [
            (b"", &[b"b", b"b\0", b"b1", b"b2"]),
            (b"a", &[b"b", b"b\0", b"b1", b"b2"]),
            (b"b", &[b"b\0", b"b1", b"b2"]),
            (b"b\0", &[b"b1", b"b2"]),
            (b"b\0\0", &[b"b1", b"b2"]),
            (b"b1", &[b"b2"]),
            (b"b2", &[]),
            (b"c", &[]),
            (b"\xff", &[]),
        ];
        for (after, expected) in cases {
            let page = client
                .get_prefix(&PrefixQuery {
                    after,
                    ..PrefixQuery::new(b"b")
                })
                .await
                .unwrap();
            let keys: Vec<&[u8]> = page.entries.iter().map(|entry| &entry.key[..]).collect();
            assert_eq!(keys, expected, "after {after:?}");
            assert!(!page.more, "after {after:?}");
        }
    });
}

/// The store grows between the pages; what was there all the time is listed exactly once.
#[test]
fn paging_through_a_changing_prefix_misses_and_repeats_nothing_that_stays() {
    with_server(async |server| {
        let client = server.client().await;
        let stays = |i: u32| format!("p/{i:04}");
        for i in 0..300 {
            client.set(stays(i).as_bytes(), b"stays").await.unwrap();
        }
        let mut seen = Vec::new();
        let mut after = Vec::new();
        for round in 0.. {
            let query = PrefixQuery {
                after: &after,
                max_entries: 11,
                ..PrefixQuery::new(b"p/")
            };
            let page = client.get_prefix(&query).await.unwrap();
            seen.extend(
                page.entries
                    .iter()
                    .filter(|entry| entry.value == b"stays")
                    .map(|entry| entry.key.clone()),
            );
            after.clone_from(&page.entries.last().unwrap().key);
            if !page.more {
                break;
            }
            for place in ["0000", "0150", "0299"] {
                let comes = format!("p/{place}+{round}");
                client
                    .set(comes.as_bytes(), b"comes and goes")
                    .await
                    .unwrap();
                if round % 2 == 0 {
                    client.delete(comes.as_bytes()).await.unwrap();
                }
            }
        }
        let expected: Vec<Vec<u8>> = (0..300).map(|i| stays(i).into_bytes()).collect();
        assert_eq!(seen, expected);
    });
}

#[test]
fn a_stream_pushes_every_entry_in_order() {
    with_server(async |server| {
        let seed = Random::seed();
        println!("seed {seed}");
        let client = server.client().await;
        let model = fill(&client, &mut Random::new(seed), 1_000).await;
        for (prefix, keys_only) in [
            (&b""[..], false),
            (b"", true),
            (b"a", false),
            (b"nothing", false),
        ] {
            let received = Rc::new(RefCell::new(Vec::new()));
            let sink = received.clone();
            let count = client
                .stream_prefix(prefix, keys_only, move |batch| {
                    sink.borrow_mut().extend(batch);
                    Ok(())
                })
                .await
                .unwrap();
            let entries = expected(&model, prefix, keys_only);
            assert_eq!(count, entries.len() as u64, "prefix {prefix:?}");
            assert_eq!(
                received.take(),
                entries,
                "prefix {prefix:?}, keys only: {keys_only}"
            );
        }
    });
}

#[test]
fn an_error_of_the_sink_ends_the_stream_with_that_error() {
    with_server(async |server| {
        let client = server.client().await;
        fill_large(server, 20).await;
        let error = client
            .stream_prefix(b"large/", false, |_| Err("the sink is full".to_owned()))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("the sink is full"), "{error}");
        assert!(!matches!(error, ClientError::Disconnected(_)), "{error:?}");
        client.get(b"large/0").await.unwrap();
    });
}

/// Sets `count` keys under `large/` whose values fill a push each.
async fn fill_large(server: &Server, count: usize) {
    let client = server.client().await;
    let info = client.info().await.unwrap();
    let value = vec![b'v'; (info.limits.value_bytes_max as usize).min(PUSH_BYTES_MAX)];
    for i in 0..count {
        client
            .set(format!("large/{i}").as_bytes(), &value)
            .await
            .unwrap();
    }
}

/// A sink that answers its pushes only when it is told to.
struct HeldSink {
    pushes: Rc<Cell<usize>>,
    release: RefCell<Option<oneshot::Receiver<()>>>,
}

impl entry_sink::Server for HeldSink {
    async fn push(
        self: Rc<Self>,
        _: entry_sink::PushParams,
        _: entry_sink::PushResults,
    ) -> Result<(), capnp::Error> {
        self.pushes.set(self.pushes.get() + 1);
        let release = self.release.borrow_mut().take();
        match release {
            // Only the first push waits for the word; the others wait for ever.
            Some(release) => release
                .await
                .map_err(|_| capnp::Error::failed("the test ended".to_owned())),
            None => std::future::pending().await,
        }
    }
}

fn one_mib_values() -> Flags {
    Flags::small()
        .with("--max-value-size", "1MiB")
        .with("--segment-size", "8MiB")
        .with("--cache", "64MiB")
}

#[test]
fn a_stream_has_at_most_its_window_of_pushes_unanswered() {
    with_server_of(one_mib_values(), async |server| {
        let window = PUSHED_BYTES_MAX / PUSH_BYTES_MAX;
        fill_large(server, 2 * window).await;
        let store = stock::store(server.address()).await;
        let pushes = Rc::new(Cell::new(0));
        let (release, held) = oneshot::channel();
        let sink = HeldSink {
            pushes: pushes.clone(),
            release: RefCell::new(Some(held)),
        };
        let mut request = store.stream_prefix_request();
        request.get().set_prefix(b"large/");
        request.get().set_sink(capnp_rpc::new_client(sink));
        let call = request.send().promise;

        let limit = Duration::from_secs(20);
        until("the window fills", limit, async || pushes.get() >= window).await;
        // Calls that are answered meanwhile show that the server had its chance to push more.
        let other = server.client().await;
        for _ in 0..200 {
            other.get(b"large/0").await.unwrap();
            store.stat_request().send().promise.await.unwrap();
        }
        assert_eq!(pushes.get(), window);
        release.send(()).unwrap();
        until("the window moves by one", limit, async || {
            pushes.get() > window
        })
        .await;
        for _ in 0..200 {
            store.stat_request().send().promise.await.unwrap();
        }
        assert_eq!(pushes.get(), window + 1);
        drop(call);
    });
}

#[test]
fn the_window_of_a_stream_counts_what_is_around_short_keys() {
    with_server_of(Flags::small().with("--shards", "1"), async |server| {
        let client = server.client().await;
        const KEYS: usize = 110_000;
        let keys: Vec<String> = (0..KEYS).map(|i| format!("{i:06}")).collect();
        for part in keys.chunks(10_000) {
            let sets: Vec<_> = part
                .iter()
                .map(|key| Mutation {
                    key: key.as_bytes(),
                    change: Change::Set(b""),
                    condition: Condition::None,
                })
                .collect();
            client.write(&sets).await.unwrap();
        }
        let store = stock::store(server.address()).await;
        let pushes = Rc::new(Cell::new(0));
        let sink = HeldSink {
            pushes: pushes.clone(),
            release: RefCell::new(None),
        };
        let mut request = store.stream_prefix_request();
        request.get().set_keys_only(true);
        request.get().set_sink(capnp_rpc::new_client(sink));
        let call = request.send().promise;
        let window = PUSHED_BYTES_MAX.div_ceil(PUSH_ENTRIES_MAX * (6 + ENTRY_BYTES_MORE));
        assert!(
            window < KEYS / PUSH_ENTRIES_MAX,
            "or the test shows nothing"
        );
        until("the window fills", Duration::from_secs(20), async || {
            pushes.get() >= window
        })
        .await;
        for _ in 0..200 {
            store.stat_request().send().promise.await.unwrap();
        }
        assert_eq!(pushes.get(), window);
        drop(call);
    });
}

/// A sink that answers at once.
struct CountingSink(Rc<Cell<usize>>);

impl entry_sink::Server for CountingSink {
    async fn push(
        self: Rc<Self>,
        _: entry_sink::PushParams,
        _: entry_sink::PushResults,
    ) -> Result<(), capnp::Error> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

#[test]
fn dropping_the_call_stops_the_stream() {
    with_server_of(one_mib_values(), async |server| {
        const VALUES: usize = 300;
        fill_large(server, VALUES).await;
        let store = stock::store(server.address()).await;
        let pushes = Rc::new(Cell::new(0));
        let mut request = store.stream_prefix_request();
        request.get().set_prefix(b"large/");
        request
            .get()
            .set_sink(capnp_rpc::new_client(CountingSink(pushes.clone())));
        let call = tokio::task::spawn_local(request.send().promise);
        until("the first push", Duration::from_secs(20), async || {
            pushes.get() > 0
        })
        .await;
        call.abort();
        // What was under way arrives; then there is silence, although the connection still answers.
        let mut last = pushes.get();
        let mut quiet = 0;
        while quiet < 50 {
            store.stat_request().send().promise.await.unwrap();
            quiet = if pushes.get() == last { quiet + 1 } else { 0 };
            last = pushes.get();
        }
        assert!(
            last < VALUES,
            "all {VALUES} values were pushed although the call was dropped"
        );
    });
}

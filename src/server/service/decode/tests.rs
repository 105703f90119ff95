//! Every limit of the wire, at the limit and one beyond.

use capnp::message::{Builder, HeapAllocator, ReaderOptions, TypedReader};
use capnp::serialize::{self, OwnedSegments};

use super::*;
use crate::shard::Change;

fn reason<T>(result: Result<T, Error>) -> String {
    let error = result.err().expect("it is refused");
    assert_eq!(error.kind, capnp::ErrorKind::Failed);
    assert!(
        matches!(
            ErrorWord::parse(&error.extra),
            Some((ErrorWord::InvalidArgument, _))
        ),
        "{}",
        error.extra
    );
    error.extra
}

/// The message as a peer with a newer schema would send it: the root's union has a member that we do not know.
fn with_unknown_member<T: capnp::traits::Owned>(
    message: &Builder<HeapAllocator>,
) -> TypedReader<OwnedSegments, T> {
    let mut bytes = serialize::write_message_to_words(message);
    // Segment table, root pointer, then the struct; its first 16 bits are the number of the member.
    bytes[16..18].copy_from_slice(&99_u16.to_le_bytes());
    serialize::read_message(&mut bytes.as_slice(), ReaderOptions::new())
        .unwrap()
        .into_typed()
}

#[test]
fn keys_are_1_to_65535_bytes() {
    assert_eq!(key(b"k").unwrap(), b"k");
    assert_eq!(key(&vec![0; limits::KEY_LEN_MAX]).unwrap().len(), 65_535);
    assert!(reason(key(b"")).contains("the key is empty, keys are 1 to 65535 bytes"));
    assert!(
        reason(key(&vec![0; 65_536])).contains("the key is 65536 bytes, keys are 1 to 65535 bytes")
    );
}

#[test]
fn values_are_at_most_what_the_server_takes() {
    assert_eq!(value(b"", 4).unwrap(), b"");
    assert_eq!(value(b"four", 4).unwrap(), b"four");
    assert!(
        reason(value(b"fiver", 4))
            .contains("the value is 5 bytes, this server takes at most 4 bytes")
    );
}

#[test]
fn every_condition_is_understood() {
    type Set = fn(condition::Builder<'_>);
    let sets: [(Set, Condition); 4] = [
        (|mut at| at.set_none(()), Condition::None),
        (|mut at| at.set_if_absent(()), Condition::IfAbsent),
        (|mut at| at.set_if_present(()), Condition::IfPresent),
        (|mut at| at.set_if_version(7), Condition::IfVersion(7)),
    ];
    for (set, expected) in sets {
        let mut message = Builder::new_default();
        set(message.init_root());
        assert_eq!(
            condition(message.get_root_as_reader().unwrap()).unwrap(),
            expected
        );
    }
}

#[test]
fn a_condition_of_a_newer_schema_is_refused() {
    let mut message = Builder::new_default();
    message
        .init_root::<condition::Builder<'_>>()
        .set_if_version(7);
    let message = with_unknown_member::<condition::Owned>(&message);
    assert!(reason(condition(message.get().unwrap())).contains("the condition has number 99"));
}

#[test]
fn a_mutation_is_checked_like_a_call() {
    let mut message = Builder::new_default();
    let mut at: mutation::Builder<'_> = message.init_root();
    at.set_key(b"k");
    at.set_set(b"four");
    at.reborrow().init_condition().set_if_absent(());
    let one = mutation(message.get_root_as_reader().unwrap(), 4).unwrap();
    assert_eq!((one.key, one.condition), (&b"k"[..], Condition::IfAbsent));
    assert!(matches!(one.change, Change::Set(b"four")));
    assert!(
        reason(mutation(message.get_root_as_reader().unwrap(), 3)).contains("the value is 4 bytes")
    );
    let unknown = with_unknown_member::<mutation::Owned>(&message);
    assert!(reason(mutation(unknown.get().unwrap(), 4)).contains("the change has number 99"));
}

#[test]
fn batches_are_bounded() {
    let mut message = Builder::new_default();
    let mut list: data_list::Builder<'_> = message.initn_root(10_000);
    for at in 0..10_000 {
        list.set(at, b"k");
    }
    assert_eq!(
        keys(message.get_root_as_reader().unwrap()).unwrap().len(),
        limits::BATCH_MAX
    );
    let mut message = Builder::new_default();
    message.initn_root::<data_list::Builder<'_>>(10_001);
    let sentence = reason(keys(message.get_root_as_reader().unwrap()));
    assert!(
        sentence.contains("10001 keys in one call, the limit is 10000"),
        "{sentence}"
    );
    let mut message = Builder::new_default();
    message.initn_root::<struct_list::Builder<'_, mutation::Owned>>(10_001);
    let sentence = reason(mutations(message.get_root_as_reader().unwrap(), 1));
    assert!(
        sentence.contains("10001 mutations in one call, the limit is 10000"),
        "{sentence}"
    );
}

#[test]
fn a_batch_says_which_part_is_wrong() {
    let mut message = Builder::new_default();
    let mut list: data_list::Builder<'_> = message.initn_root(2);
    list.set(0, b"k");
    let sentence = reason(keys(message.get_root_as_reader().unwrap()));
    assert!(
        sentence.starts_with("invalidArgument: key 1: the key is empty"),
        "{sentence}"
    );
}

#[test]
fn pages_have_bounds() {
    let query = |prefix: &[u8], after: &[u8], entries: u32, bytes: u32| {
        let mut message = Builder::new_default();
        let mut at: store::get_prefix_params::Builder<'_> = message.init_root();
        at.set_prefix(prefix);
        at.set_after(after);
        at.set_max_entries(entries);
        at.set_max_bytes(bytes);
        let query = prefix_query(message.get_root_as_reader().unwrap())?;
        Ok((query.max_entries, query.max_bytes))
    };
    let long = vec![0; 65_536];
    assert_eq!(query(b"", b"", 1, 1).unwrap(), (1, 1));
    assert_eq!(
        query(&long[1..], &long[1..], 100_000, 16_777_216).unwrap(),
        (100_000, 16_777_216)
    );
    assert!(
        reason(query(b"", b"", 0, 1)).contains("maxEntries is 0, it must be between 1 and 100000")
    );
    assert!(reason(query(b"", b"", 100_001, 1)).contains("maxEntries is 100001"));
    assert!(
        reason(query(b"", b"", 1, 0)).contains("maxBytes is 0, it must be between 1 and 16777216")
    );
    assert!(reason(query(b"", b"", 1, 16_777_217)).contains("maxBytes is 16777217"));
    assert!(reason(query(&long, b"", 1, 1)).contains("prefix is 65536 bytes"));
    assert!(reason(query(b"", &long, 1, 1)).contains("after is 65536 bytes"));
}

//! Calls that make much of little: parts that are pointed at many times, lists of nothing, messages in hundreds of
//! segments, pointers in circles, nesting without end.

use capnp::message::{AllocationStrategy, Builder, HeapAllocator};
use capnp_rpc::rpc_capnp::message;
use orlop::limits::{BATCH_MAX, KEY_LEN_MAX, MESSAGE_CAPABILITIES_MAX};
use orlop::proto::orlop_capnp::store;

use super::attack::withstand;
use crate::harness::{Flags, with_server, with_server_of};
use crate::raw::{self, Answer, FIRST_QUESTION, RawClient};

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[8 * at..][..8].try_into().unwrap())
}

fn set_word(bytes: &mut [u8], at: usize, to: u64) {
    bytes[8 * at..][..8].copy_from_slice(&to.to_le_bytes());
}

/// Makes the first pointer of a list, all others of which are null, the pointer of all.
fn repeat_first_pointer(bytes: &mut [u8], pointers: usize) {
    let words = bytes.len() / 8;
    let first = (0..words - pointers)
        .find(|at| word(bytes, *at) != 0 && (1..pointers).all(|more| word(bytes, at + more) == 0))
        .expect("there is such a list");
    let pointer = word(bytes, first);
    let (offset, rest) = (pointer as u32 as i32 >> 2, pointer >> 32);
    for at in 0..pointers {
        let to = offset - at as i32;
        let kind = pointer & 3;
        set_word(
            bytes,
            first + at,
            u64::from((to << 2) as u32) | kind | rest << 32,
        );
    }
}

/// A `getMany` of one key, ten thousand times: 700 MB of keys in a message of 150 kB.
#[test]
fn one_key_that_is_pointed_at_ten_thousand_times_is_refused() {
    with_server(async |server| {
        let mut call = raw::store_call(FIRST_QUESTION, raw::method::GET_MANY, |content| {
            let parameters = content.init_as::<store::get_many_params::Builder<'_>>();
            parameters
                .init_keys(BATCH_MAX as u32)
                .set(0, &vec![b'k'; KEY_LEN_MAX]);
        });
        repeat_first_pointer(&mut call, BATCH_MAX);
        withstand(server, 1, async || {
            for _ in 0..20 {
                let mut client = RawClient::connect(server.address()).await;
                client.send(&call).await;
                let answer = client.answer(FIRST_QUESTION).await;
                assert!(matches!(answer, Some(Answer::Exception(_))), "{answer:?}");
            }
        })
        .await;
    });
}

/// A table of capabilities that is a list of a million structs without a word.
#[test]
fn a_table_of_a_million_capabilities_is_refused() {
    with_server(async |server| {
        const TABLE: u32 = 1_234;
        let call = raw::store_call_with(FIRST_QUESTION, raw::method::GET, |call| {
            call.init_params().init_cap_table(TABLE);
        });
        let mut empty = call.clone();
        let tag = u64::from(TABLE << 2) | 1 << 32 | 1 << 48;
        let at = (0..call.len() / 8)
            .find(|at| word(&call, *at) == tag)
            .expect("the tag of the table");
        set_word(&mut empty, at, 0x000f_ffff << 2);
        withstand(server, 1, async || {
            for (call, may_close) in [(&call, false), (&empty, true)] {
                for _ in 0..50 {
                    let mut client = RawClient::connect(server.address()).await;
                    client.send(call).await;
                    match client.answer(FIRST_QUESTION).await {
                        Some(Answer::Exception(reason)) => {
                            let limit = format!("the limit is {MESSAGE_CAPABILITIES_MAX}");
                            assert!(reason.contains(&limit), "{reason}");
                        }
                        answer => assert!(may_close && answer.is_none(), "{answer:?}"),
                    }
                }
            }
        })
        .await;
    });
}

/// The path to a capability in an answer, a million steps of nothing.
#[test]
fn a_path_of_a_million_steps_is_refused() {
    with_server(async |server| {
        const STEPS: u32 = 1_234;
        let mut call = raw::store_call_with(FIRST_QUESTION, raw::method::GET, |call| {
            call.init_target()
                .init_promised_answer()
                .init_transform(STEPS);
        });
        let tag = u64::from(STEPS << 2) | 1 << 32;
        let at = (0..call.len() / 8)
            .find(|at| word(&call, *at) == tag)
            .expect("the tag of the path");
        withstand(server, 1, async || {
            let mut client = RawClient::connect(server.address()).await;
            client.send(&call).await;
            let answer = client.answer(FIRST_QUESTION).await;
            assert!(
                matches!(&answer, Some(Answer::Exception(reason)) if reason.contains("1234 operations")),
                "{answer:?}"
            );
            set_word(&mut call, at, 0x000f_ffff << 2);
            client.send(&call).await;
            client.answer(FIRST_QUESTION).await;
        })
        .await;
    });
}

/// A message that the server would send back: lists of lists of the same lists, 64 to the sixth in all.
#[test]
fn lists_of_the_same_lists_are_not_sent_back() {
    with_server(async |server| {
        // Message (union 10: provide), Provide, whose recipient is the outermost list.
        let mut words: Vec<u64> = vec![1 << 32 | 1 << 48, 10, 1 << 32 | 2 << 48, 7, 0];
        let struct_pointer =
            |offset: u64, data: u64, pointers: u64| offset << 2 | data << 32 | pointers << 48;
        words[0] = struct_pointer(0, 1, 1);
        words[2] = struct_pointer(0, 1, 2);
        let list_pointer = |offset: u64, count: u64| 1 | offset << 2 | 6 << 32 | count << 35;
        words.push(list_pointer(0, 64));
        for level in 0..6_u64 {
            for at in 0..64 {
                words.push(if level < 5 {
                    list_pointer(63 - at, 64)
                } else {
                    0
                });
            }
        }
        let mut bytes = [0_u32.to_le_bytes(), (words.len() as u32).to_le_bytes()].concat();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        withstand(server, 1, async || {
            for _ in 0..20 {
                let mut client = RawClient::connect(server.address()).await;
                client.send(&bytes).await;
                assert!(client.is_closed().await);
            }
        })
        .await;
    });
}

/// The most segments that a message may have: it is answered like any other.
#[test]
fn a_call_in_five_hundred_segments_is_answered() {
    with_server(async |server| {
        let call = |keys: u32| {
            let mut message = Builder::new(
                HeapAllocator::new()
                    .first_segment_words(1)
                    .allocation_strategy(AllocationStrategy::FixedSize),
            );
            let mut call = message.init_root::<message::Builder<'_>>().init_call();
            call.set_question_id(FIRST_QUESTION);
            call.set_interface_id(<store::Client as capnp::traits::HasTypeId>::TYPE_ID);
            call.set_method_id(raw::method::GET_MANY);
            let mut target = call.reborrow().init_target().init_promised_answer();
            target.set_question_id(raw::OPEN);
            target.init_transform(1).get(0).set_get_pointer_field(0);
            let content = call.init_params().init_content();
            let mut list = content
                .init_as::<store::get_many_params::Builder<'_>>()
                .init_keys(keys);
            for at in 0..keys {
                list.set(at, b"a key");
            }
            capnp::serialize::write_message_to_words(&message)
        };
        let segments = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap()) + 1;
        let most = (1..600)
            .map(call)
            .take_while(|bytes| segments(bytes) <= 512)
            .last()
            .unwrap();
        assert!(segments(&most) >= 511, "{} segments", segments(&most));
        withstand(server, 1, async || {
            for _ in 0..50 {
                let mut client = RawClient::connect(server.address()).await;
                client.send(&most).await;
                let answer = client.answer(FIRST_QUESTION).await;
                assert!(matches!(answer, Some(Answer::Results)), "{answer:?}");
            }
        })
        .await;
    });
}

/// Far pointers that lead to themselves, to each other, and through landing pads in circles.
#[test]
fn far_pointers_in_circles_end_the_connection() {
    with_server(async |server| {
        let far =
            |double: u64, offset: u64, segment: u64| 2 | double << 2 | offset << 3 | segment << 32;
        let circles: [&[&[u64]]; 5] = [
            &[&[far(0, 0, 0)]],
            &[&[far(0, 0, 1)], &[far(0, 0, 0)]],
            &[&[far(1, 0, 1)], &[far(0, 0, 1), far(1, 0, 1)]],
            &[&[far(1, 0, 1)], &[far(0, 0, 0), 1 << 32 | 1 << 48]],
            &[&[far(0, 0, 511)]],
        ];
        withstand(server, 1, async || {
            for segments in circles {
                let mut bytes = (segments.len() as u32 - 1).to_le_bytes().to_vec();
                bytes.extend(
                    segments
                        .iter()
                        .flat_map(|words| (words.len() as u32).to_le_bytes()),
                );
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                bytes.extend(segments.concat().iter().flat_map(|word| word.to_le_bytes()));
                let mut client = RawClient::connect(server.address()).await;
                client.send(&bytes).await;
                assert!(client.is_closed().await, "{segments:x?}");
            }
        })
        .await;
    });
}

/// A key that is a pointer to a pointer to a pointer; and a message that is unimplemented, and so is what it is about.
#[test]
fn nesting_without_end_is_refused_where_somebody_looks() {
    with_server_of(Flags::large(), async |server| {
        let mut call = raw::get(FIRST_QUESTION, b"12345678");
        let end = call.len() / 8 - 1;
        assert_eq!(word(&call, end), u64::from_le_bytes(*b"12345678"));
        let depth = 100_000;
        // The key's pointer, which is right before the key, becomes one to a struct of one pointer, and so on.
        set_word(&mut call, end - 1, 1 << 48);
        set_word(&mut call, end, 1 << 48);
        call.extend((1..depth).flat_map(|_| (1_u64 << 48).to_le_bytes()));
        call.extend([0; 8]);
        let words = call.len() as u32 / 8 - 1;
        call[4..8].copy_from_slice(&words.to_le_bytes());
        let mut unimplemented = vec![0; 8];
        for _ in 0..depth {
            unimplemented.extend((1_u64 << 32 | 1 << 48).to_le_bytes());
            unimplemented.extend(0_u64.to_le_bytes());
        }
        unimplemented.extend([0; 8]);
        let words = unimplemented.len() as u32 / 8 - 1;
        unimplemented[4..8].copy_from_slice(&words.to_le_bytes());
        withstand(server, 1, async || {
            for _ in 0..10 {
                let mut client = RawClient::connect(server.address()).await;
                client.send(&call).await;
                let answer = client.answer(FIRST_QUESTION).await;
                assert!(matches!(answer, Some(Answer::Exception(_))), "{answer:?}");
                client.send(&unimplemented).await;
                assert!(client.is_closed().await);
            }
        })
        .await;
    });
}

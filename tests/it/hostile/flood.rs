//! Messages without end: questions that are never finished, capabilities that nobody has, messages of the protocol that
//! a client of two parties never sends. What would be kept is bounded; beyond that the answer is `overloaded`, or the
//! connection ends.

use orlop::limits::{
    CONNECTION_BYTES_OUT_MAX, CONNECTION_PROMISES_MAX, CONNECTION_QUESTIONS_MAX, ECHO_BYTES_MAX,
    PIPELINE_DEPTH_MAX, VALUE_LEN_MAX_DEFAULT,
};

use super::attack::withstand;
use crate::harness::{Flags, Server, with_server, with_server_of};
use crate::raw::{self, Answer, FIRST_QUESTION, RawClient};

/// Questions of a flood.
const FLOOD: u32 = 3 * CONNECTION_QUESTIONS_MAX as u32;

/// What came back for the questions of a flood.
#[derive(Default, Debug)]
struct Answers {
    results: usize,
    overloaded: usize,
    other_exceptions: usize,
}

/// Sends one question for each number, reads all answers and finishes nothing.
async fn flood(
    client: &mut RawClient,
    questions: std::ops::Range<u32>,
    of: impl Fn(u32) -> Vec<u8>,
) -> Answers {
    let bytes: Vec<u8> = questions.clone().flat_map(of).collect();
    let (mut reader, mut writer) = client.stream.split();
    let send = async {
        tokio::io::AsyncWriteExt::write_all(&mut writer, &bytes)
            .await
            .unwrap();
    };
    let count = questions.len();
    let receive = async {
        let mut answers = Answers::default();
        while answers.results + answers.overloaded + answers.other_exceptions < count {
            let message = raw::receive(&mut reader)
                .await
                .expect("the connection stays open");
            match raw::answer_of(&message) {
                Some((question, _)) if !questions.contains(&question) => {}
                Some((_, Answer::Results)) => answers.results += 1,
                Some((_, Answer::Exception(reason))) if reason.contains("overloaded: ") => {
                    answers.overloaded += 1;
                }
                Some((_, Answer::Exception(_))) => answers.other_exceptions += 1,
                _ => {}
            }
        }
        answers
    };
    let ((), answers) = futures::join!(send, receive);
    answers
}

/// A flood of questions whose answers are kept until they are finished: as many as may be kept are, and after they are
/// finished the connection is as new.
async fn only_so_many_are_kept(server: &Server, of: impl Fn(u32) -> Vec<u8>) {
    withstand(server, 1, async || {
        let mut client = RawClient::connect(server.address()).await;
        let questions = FIRST_QUESTION..FIRST_QUESTION + FLOOD;
        let answers = flood(&mut client, questions.clone(), &of).await;
        println!("{answers:?}");
        // Those of the bootstrap and of `open` are kept as well.
        let kept = answers.results + answers.other_exceptions;
        assert_eq!(kept, CONNECTION_QUESTIONS_MAX - 2);
        let finishes: Vec<u8> = questions.flat_map(raw::finish).collect();
        client.send(&finishes).await;
        let again = flood(&mut client, FIRST_QUESTION..FIRST_QUESTION + 100, &of).await;
        assert_eq!(again.overloaded, 0, "{again:?}");
    })
    .await;
}

#[test]
fn bootstraps_without_finish_are_bounded() {
    with_server(async |server| only_so_many_are_kept(server, raw::bootstrap_as).await);
}

#[test]
fn opened_stores_without_finish_are_bounded() {
    with_server(async |server| only_so_many_are_kept(server, raw::open_as).await);
}

/// An exception waits for its Finish as well.
#[test]
fn refused_calls_without_finish_are_bounded() {
    with_server(async |server| {
        only_so_many_are_kept(server, |question| raw::get(question, b"")).await;
    });
}

#[test]
fn calls_of_unknown_methods_and_on_unknown_answers_are_bounded() {
    with_server(async |server| {
        let unknown_method = |question| raw::store_call(question, 999, |_| {});
        only_so_many_are_kept(server, unknown_method).await;
        let on_nothing = |question| {
            raw::store_call_with(question, raw::method::GET, |call| {
                call.init_target()
                    .init_promised_answer()
                    .set_question_id(u32::MAX);
            })
        };
        only_so_many_are_kept(server, on_nothing).await;
    });
}

/// Calls whose answers need no Finish leave nothing behind, and neither do calls that are given up at once.
#[test]
fn calls_that_are_answered_or_given_up_do_not_add_up() {
    with_server(async |server| {
        withstand(server, 1, async || {
            let mut client = RawClient::connect(server.address()).await;
            for round in 0..30 {
                let first = FIRST_QUESTION + round * 2_000;
                let answers =
                    flood(&mut client, first..first + 2_000, |q| raw::get(q, b"key")).await;
                assert_eq!(answers.results, 2_000, "{answers:?}");
            }
            let given_up: Vec<u8> = (0..FLOOD)
                .flat_map(|i| {
                    let question = FIRST_QUESTION + i % 1_000;
                    let stat = raw::store_call(question, 7, |_| {});
                    [
                        raw::bootstrap_as(question + 1_000),
                        stat,
                        raw::finish(question),
                        raw::finish(question + 1_000),
                    ]
                    .concat()
                })
                .collect();
            let (mut reader, mut writer) = client.stream.split();
            let last = FIRST_QUESTION + 5_000;
            let send = async {
                // An id is free again when the call has returned, so this connection may end; what it holds meanwhile
                // is looked at.
                if tokio::io::AsyncWriteExt::write_all(&mut writer, &given_up)
                    .await
                    .is_ok()
                {
                    tokio::io::AsyncWriteExt::write_all(&mut writer, &raw::get(last, b"key"))
                        .await
                        .unwrap_or_default();
                }
            };
            let receive = async {
                while let Some(message) = raw::receive(&mut reader).await {
                    if raw::answer_of(&message).is_some_and(|(question, _)| question == last) {
                        return;
                    }
                }
            };
            futures::join!(send, receive);
        })
        .await;
    });
}

/// Messages that end the connection: each names what nobody has, or what the server does not do.
#[test]
fn messages_about_nothing_end_the_connection() {
    with_server(async |server| {
        let call_on_import = raw::store_call_with(FIRST_QUESTION, raw::method::GET, |call| {
            call.init_target().set_imported_cap(77_777);
        });
        let release = |id, count| {
            raw::message(|root| {
                let mut release = root.init_release();
                release.set_id(id);
                release.set_reference_count(count);
            })
        };
        let disembargo = raw::message(|root| {
            let mut disembargo = root.init_disembargo();
            disembargo.reborrow().init_context().set_sender_loopback(1);
            disembargo
                .init_target()
                .init_promised_answer()
                .set_question_id(raw::BOOTSTRAP);
        });
        let looped_back = raw::message(|root| {
            root.init_disembargo()
                .init_context()
                .set_receiver_loopback(9);
        });
        let accepted = raw::message(|root| root.init_disembargo().init_context().set_accept(()));
        let answer = raw::message(|root| {
            root.init_return().init_results();
        });
        let to_third_party = raw::store_call_with(FIRST_QUESTION, raw::method::GET, |call| {
            call.init_send_results_to().init_third_party();
        });
        let unimplemented = raw::message(|root| {
            root.init_unimplemented().init_finish().set_question_id(1);
        });
        let abort = raw::message(|root| root.init_abort().set_reason("x".repeat(10 << 20)));
        let twice = [raw::bootstrap_as(9), raw::bootstrap_as(9)].concat();
        let attacks = [
            ("a call on an unknown capability", call_on_import),
            ("a release of an unknown capability", release(77_777, 1)),
            ("a release of more than there is", release(0, u32::MAX)),
            ("a disembargo to the server's own", disembargo),
            ("an unknown embargo", looped_back),
            ("a disembargo of three parties", accepted),
            ("an answer to nothing", answer),
            ("results for a third party", to_third_party),
            ("an unimplemented Finish", unimplemented),
            ("a long last word", abort),
            ("one id twice", twice),
        ];
        withstand(server, 1, async || {
            for (what, bytes) in &attacks {
                let mut client = RawClient::connect(server.address()).await;
                client.send(&bytes.repeat(3)).await;
                assert!(
                    client.is_closed().await,
                    "the connection stays open after {what}"
                );
            }
        })
        .await;
        let log = server.stderr();
        assert!(log.len() < 64 << 10, "{} bytes of log", log.len());
    });
}

/// Provide, Accept, Join: sent back as the protocol wants, unless they are large.
#[test]
fn messages_of_three_parties_are_sent_back_while_they_are_small() {
    with_server(async |server| {
        let provide = |bytes: usize| {
            raw::message(|root| {
                let mut provide = root.init_provide();
                provide.set_question_id(FIRST_QUESTION);
                provide
                    .init_recipient()
                    .set_as::<capnp::data::Owned>(&vec![b'p'; bytes][..])
                    .unwrap();
            })
        };
        let accept = raw::message(|root| root.init_accept().set_question_id(FIRST_QUESTION));
        let join = raw::message(|root| root.init_join().set_question_id(FIRST_QUESTION));
        withstand(server, 1, async || {
            let mut client = RawClient::connect(server.address()).await;
            let some = [provide(100), accept.clone(), join.clone()].concat();
            let (mut reader, mut writer) = client.stream.split();
            let flood = some.repeat(10_000);
            let send = async {
                tokio::io::AsyncWriteExt::write_all(&mut writer, &flood)
                    .await
                    .unwrap();
            };
            let receive = async {
                let mut sent_back = 0;
                while sent_back < 30_000 {
                    let message = raw::receive(&mut reader)
                        .await
                        .expect("the connection stays open");
                    sent_back += usize::from(raw::is_unimplemented(&message));
                }
            };
            futures::join!(send, receive);
            client.send(&provide(ECHO_BYTES_MAX as usize)).await;
            assert!(client.is_closed().await);
        })
        .await;
    });
}

/// Capabilities that are promises: a circle of them ends the connection, and so do too many.
#[test]
fn promises_in_a_circle_or_without_end_close_the_connection() {
    with_server(async |server| {
        let promise = |question, id| {
            raw::stream_prefix_with(question, b"", |mut descriptor| {
                descriptor.set_sender_promise(id)
            })
        };
        let resolve = |id, fill: &dyn Fn(capnp_rpc::rpc_capnp::cap_descriptor::Builder<'_>)| {
            raw::message(|root| {
                let mut resolve = root.init_resolve();
                resolve.set_promise_id(id);
                fill(resolve.init_cap());
            })
        };
        server.client().await.set(b"key", b"value").await.unwrap();
        let two = [promise(FIRST_QUESTION, 5), promise(FIRST_QUESTION + 1, 6)].concat();
        withstand(server, 1, async || {
            let circles = [
                resolve(5, &|mut to| to.set_sender_hosted(5)),
                resolve(5, &|mut to| to.set_sender_hosted(6)),
                resolve(5, &|mut to| to.set_sender_promise(6)),
                resolve(5, &|mut to| to.set_receiver_hosted(0)),
                resolve(5, &|to| {
                    to.init_receiver_answer().set_question_id(FIRST_QUESTION)
                }),
                resolve(5, &|mut to| to.set_none(())),
            ];
            for circle in circles {
                let mut client = RawClient::connect(server.address()).await;
                client.send(&two).await;
                client.send(&circle).await;
                assert!(client.is_closed().await);
            }
            let mut client = RawClient::connect(server.address()).await;
            client.send(&two).await;
            client
                .send(&resolve(5, &|mut to| to.set_sender_hosted(7)))
                .await;
            assert!(
                !client.is_closed().await,
                "a promise that becomes a capability is kept"
            );
            let many = (0..=CONNECTION_PROMISES_MAX as u32)
                .flat_map(|i| promise(FIRST_QUESTION + 10 + i, 100 + i))
                .collect::<Vec<u8>>();
            client.send(&many).await;
            // The streams that are refused give their sinks back; nobody waits for an answer to so many.
            client.is_closed().await;
        })
        .await;
    });
}

/// Calls on the answers of calls that wait: so deep and no deeper.
#[test]
fn calls_that_wait_for_each_other_are_bounded_in_depth() {
    with_server(async |server| {
        server.client().await.set(b"key", b"value").await.unwrap();
        withstand(server, 1, async || {
            let mut client = RawClient::connect(server.address()).await;
            // The sink never answers, so this call does not.
            client
                .send(&raw::stream_prefix(FIRST_QUESTION, b"", 1))
                .await;
            let chained = |question: u32| {
                raw::store_call_with(question, raw::method::GET, |call| {
                    call.init_target()
                        .init_promised_answer()
                        .set_question_id(question - 1);
                })
            };
            let with_answer = |question: u32| {
                raw::stream_prefix_with(question, b"", |descriptor| {
                    descriptor
                        .init_receiver_answer()
                        .set_question_id(question - 1);
                })
            };
            let links = 10_000;
            let chain: Vec<u8> = (1..links)
                .flat_map(|i| {
                    let question = FIRST_QUESTION + i;
                    if i % 2 == 0 {
                        chained(question)
                    } else {
                        with_answer(question)
                    }
                })
                .collect();
            client.send(&chain).await;
            let mut refused = 0;
            // What comes after a refused one finds no answer to be made on, or begins a chain of its own.
            while refused == 0 {
                let message = client.receive().await.expect("the connection stays open");
                if let Some((_, Answer::Exception(reason))) = raw::answer_of(&message) {
                    refused +=
                        usize::from(reason.contains(&format!("the limit is {PIPELINE_DEPTH_MAX}")));
                }
            }
        })
        .await;
    });
}

#[test]
fn reads_that_are_given_up_count_no_answers() {
    // The value stays on the disk, so that reads of it wait.
    let flags = Flags::large().with("--cache", "1MiB").fast_path(true);
    with_server_of(flags, async |server| {
        let value = vec![b'v'; VALUE_LEN_MAX_DEFAULT];
        let writer = server.client().await;
        writer.set(b"large", &value).await.unwrap();
        let mut client = RawClient::connect(server.address()).await;
        let count = 3 * CONNECTION_BYTES_OUT_MAX / value.len();
        let questions = FIRST_QUESTION..FIRST_QUESTION + count as u32;
        let of = |question| [raw::get(question, b"large"), raw::finish(question)].concat();
        let given_up: Vec<u8> = questions.clone().flat_map(of).collect();
        client.send(&given_up).await;
        let mut answered = 0;
        while answered < count {
            let message = raw::receive(&mut client.stream).await.expect("it is open");
            match raw::answer_of(&message) {
                // A busy server may have come to the answer before the Finish.
                Some((question, _)) if questions.contains(&question) => answered += 1,
                _ => {}
            }
        }
        let answers = flood(&mut client, questions.end..questions.end + 1, |question| {
            raw::get(question, b"small")
        })
        .await;
        assert_eq!(answers.results, 1, "{answers:?}");
    });
}

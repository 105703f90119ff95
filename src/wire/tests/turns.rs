//! What a connection does when it is polled, and what it leaves alone.

use std::task::Context;

use futures::task::noop_waker_ref;

use super::*;

/// Asks for a message and waits for a turn.
fn asked(bare: &mut Bare) -> Promise<Option<Box<dyn IncomingMessage>>, capnp::Error> {
    let mut question = bare.connection.receive_incoming_message();
    let mut context = Context::from_waker(noop_waker_ref());
    assert!(question.poll_unpin(&mut context).is_pending());
    question
}

#[test]
fn nothing_is_received_that_nobody_waits_for() {
    let (reader, peer) = pipe(1 << 20);
    let (_peer_reader, writer) = pipe(1 << 20);
    let mut bare = Bare::new(reader.clone(), writer, LIMITS);
    bare.pool.run_until_stalled();
    drop(asked(&mut bare));
    peer.put(&encoded(b"one", 16));
    bare.pool.run_until_stalled();
    assert_eq!((reader.reads(), bare.meter.messages_in()), (0, 0));
    assert_eq!(expect_value(bare.receive()), b"one");
}

#[test]
fn a_message_for_a_question_that_was_given_up_is_the_next_one() {
    let (reader, peer) = pipe(1 << 20);
    let (_peer_reader, writer) = pipe(1 << 20);
    let mut bare = Bare::new(reader, writer, LIMITS);
    let question = asked(&mut bare);
    peer.put(&encoded(b"one", 16));
    peer.put(&encoded(b"two", 16));
    bare.pool.run_until_stalled();
    assert_eq!(bare.meter.messages_in(), 1);
    drop(question);
    bare.pool.run_until_stalled();
    assert_eq!(bare.meter.messages_in(), 1, "nobody waits for the second");
    assert_eq!(expect_value(bare.receive()), b"one");
    assert_eq!(expect_value(bare.receive()), b"two");
    assert_eq!(bare.meter.bytes_in_flight(), 0);
}

#[test]
fn an_end_for_a_question_that_was_given_up_is_told_the_next_one() {
    let (reader, peer) = pipe(1 << 20);
    let (_peer_reader, writer) = pipe(1 << 20);
    let mut bare = Bare::new(reader, writer, LIMITS);
    let question = asked(&mut bare);
    peer.put(&[0]);
    peer.close();
    bare.pool.run_until_stalled();
    drop(question);
    let Err(error) = bare.receive() else {
        panic!("the error is lost")
    };
    assert!(error.extra.contains("in the middle of a message"));
}

#[test]
fn a_message_that_nobody_takes_goes_with_the_connection() {
    let (reader, peer) = pipe(1 << 20);
    let (_peer_reader, writer) = pipe(1 << 20);
    let mut bare = Bare::new(reader, writer, LIMITS);
    let question = asked(&mut bare);
    peer.put(&encoded(b"one", 16));
    bare.pool.run_until_stalled();
    assert!(bare.meter.bytes_in_flight() > 0);
    drop(question);
    let Bare {
        connection, meter, ..
    } = bare;
    drop(connection);
    assert_eq!(meter.bytes_in_flight(), 0);
}

#[test]
fn a_stream_that_takes_nothing_is_not_tried_for_what_arrives() {
    let (reader, peer) = pipe(1 << 20);
    let (peer_reader, writer) = pipe(100);
    let watched = writer.clone();
    let mut bare = Bare::new(reader, writer, LIMITS);
    bare.send(&[1; 5_000]);
    bare.pool.run_until_stalled();
    assert_eq!(watched.refusals(), 1);
    for _ in 0..3 {
        let received = bare.receive_later();
        peer.put(&encoded(b"call", 16));
        bare.pool.run_until_stalled();
        assert_eq!(expect_value(received.take().unwrap()), b"call");
        bare.send(b"answer");
        bare.pool.run_until_stalled();
    }
    assert_eq!(watched.refusals(), 1);
    while !bare.meter.is_flushed() {
        peer_reader.drain();
        bare.pool.run_until_stalled();
    }
}

/// As when a future is first polled in place and then spawned.
#[test]
fn a_connection_wakes_the_task_that_polled_it_last() {
    let (client_end, server_end) = duplex(100);
    let (mut client_side, _) = connect(client_end, Side::Client, LIMITS, None);
    let (mut server_side, _) = connect(server_end, Side::Server, LIMITS, info_server());
    let client: bootstrap::Client = client_side.bootstrap();
    let answer = version(&client);
    let mut context = Context::from_waker(noop_waker_ref());
    for _ in 0..3 {
        assert!(client_side.poll_unpin(&mut context).is_pending());
        assert!(server_side.poll_unpin(&mut context).is_pending());
    }
    let mut pool = LocalPool::new();
    pool.spawner().spawn_local(client_side.map(drop)).unwrap();
    pool.spawner().spawn_local(server_side.map(drop)).unwrap();
    assert_eq!(pool.run_until(answer).unwrap(), "7.8.9");
}

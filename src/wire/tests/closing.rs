//! How a connection ends for `capnp_rpc`: question by question.

use capnp_rpc::rpc_capnp::message;

use super::*;

/// A message of the protocol as bytes.
fn framed(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut message = Builder::new_default();
    fill(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

fn bootstrap_as(question: u32) -> Vec<u8> {
    framed(|root| root.init_bootstrap().set_question_id(question))
}

fn finish(question: u32) -> Vec<u8> {
    framed(|root| root.init_finish().set_question_id(question))
}

fn release(export: u32, references: u32) -> Vec<u8> {
    framed(|root| {
        let mut release = root.init_release();
        release.set_id(export);
        release.set_reference_count(references);
    })
}

/// The question that a message begins or ends.
fn question_of(told: &dyn IncomingMessage) -> (&'static str, u32) {
    let root = told.get_body().unwrap();
    let root = root.get_as::<message::Reader<'_>>().unwrap();
    match root.which().unwrap() {
        message::Bootstrap(Ok(bootstrap)) => ("begins", bootstrap.get_question_id()),
        message::Finish(Ok(finish)) => ("ends", finish.get_question_id()),
        _ => panic!("another message"),
    }
}

#[test]
fn questions_that_are_open_at_the_end_are_ended_first() {
    for is_clean in [true, false] {
        let (reader, peer) = pipe(1 << 20);
        let (_peer_reader, writer) = pipe(1 << 20);
        let mut bare = Bare::on(Side::Server, reader, writer, LIMITS);
        (0..40).for_each(|question| peer.put(&bootstrap_as(question)));
        (0..4).for_each(|question| peer.put(&finish(question)));
        if !is_clean {
            peer.put(&[0; 3]);
        }
        peer.close();
        let mut told = Vec::new();
        let end = loop {
            match bare.receive() {
                Ok(Some(message)) => told.push(question_of(message.as_ref())),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        assert_eq!(end, is_clean);
        let sent = (0..40).map(|question| ("begins", question));
        let sent = sent.chain((0..4).map(|question| ("ends", question)));
        let (first, mut last) = (&told[..44], told[44..].to_vec());
        assert_eq!(first, sent.collect::<Vec<_>>());
        last.sort_unstable();
        let open = (4..40).map(|question| ("ends", question));
        assert_eq!(last, open.collect::<Vec<_>>());
        assert_eq!(bare.meter.bytes_in_flight(), 0);
    }
}

/// Never answers; whether it is still there shows from outside.
struct Kept(Rc<()>);

impl bootstrap::Server for Kept {
    async fn info(
        self: Rc<Self>,
        _: bootstrap::InfoParams,
        _: bootstrap::InfoResults,
    ) -> Result<(), capnp::Error> {
        assert_eq!(*self.0, ());
        std::future::pending().await
    }
}

#[test]
fn a_connection_with_many_open_questions_ends_and_keeps_nothing() {
    let (client_end, server_end) = duplex(1 << 20);
    let kept = Rc::new(());
    let server: bootstrap::Client = capnp_rpc::new_client(Kept(Rc::clone(&kept)));
    let (server_side, _) = connect(server_end, Side::Server, LIMITS, Some(server.client));
    let (_reader, peer) = client_end;
    (0..100).for_each(|question| peer.put(&bootstrap_as(question)));
    // Each answer was one more reference to the same capability, of which the peer gives some back without a Finish.
    peer.put(&release(0, 60));
    peer.close();
    LocalPool::new().run_until(server_side).unwrap();
    assert_eq!(Rc::strong_count(&kept), 1);
}

#[test]
fn a_connection_that_is_given_up_keeps_no_call_that_waits() {
    let (client_end, server_end) = duplex(1 << 16);
    let kept = Rc::new(());
    let waiting: bootstrap::Client = capnp_rpc::new_client(Kept(Rc::clone(&kept)));
    let (mut client_side, _) = connect(client_end, Side::Client, LIMITS, None);
    let (server_side, meter) = connect(server_end, Side::Server, LIMITS, Some(waiting.client));
    let client: bootstrap::Client = client_side.bootstrap();
    let mut pool = LocalPool::new();
    pool.spawner().spawn_local(client_side.map(drop)).unwrap();
    let (give_up, given_up) = futures::channel::oneshot::channel::<()>();
    let serving = futures::future::select(server_side, given_up).map(drop);
    pool.spawner().spawn_local(serving).unwrap();
    let call = client.info_request().send().promise;
    pool.run_until_stalled();
    assert!(meter.messages_in() >= 2, "the call has arrived");
    assert!(Rc::strong_count(&kept) > 1, "and waits");
    drop(give_up);
    pool.run_until_stalled();
    assert_eq!(Rc::strong_count(&kept), 1);
    drop(call);
}

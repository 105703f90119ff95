//! The mesh between two executors: what many requests share, and what a hop costs beside the runtime's bare channel.
//!
//! The executors are not ended: a connected channel waits for its other end. They go with the test's process.

use std::sync::mpsc;
use std::time::Instant;

use glommio::{Latency, LocalExecutorBuilder, Placement, Shares};
use hdrhistogram::Histogram;

use super::*;
use crate::shard::tasks::keep_awake;

/// Round trips of each side before the other has its turn.
const ROUND: usize = 500;

/// Turns of each side.
const ROUNDS: usize = 5;

fn spawn<F: Future<Output = ()> + 'static>(body: impl FnOnce() -> F + Send + 'static) {
    let live = move || async move {
        // As a shard has it: the runtime can park with runnable work.
        let queue = glommio::executor().create_task_queue(
            Shares::default(),
            Latency::NotImportant,
            "awake",
        );
        let awake = keep_awake(queue);
        body().await;
        awake.await
    };
    let thread = LocalExecutorBuilder::new(Placement::Unbound).spawn(live);
    drop(thread.expect("an executor can be made"));
}

/// Replies to whatever comes, as a shard does: batch by batch.
async fn answer(seat: Seat) {
    let (mesh, mut incoming) = Mesh::join(seat).await;
    let (from, receiver) = incoming.remove(0);
    while let Some(batch) = receiver.recv().await {
        for message in batch {
            if let Message::Request { id, .. } = message {
                mesh.reply(from, id, Reply::News);
            }
        }
        mesh.flush();
    }
}

/// The asking side; the batches that arrive are counted.
async fn ask(seat: Seat) -> (Rc<Mesh>, Rc<Cell<u64>>) {
    let (mesh, mut incoming) = Mesh::join(seat).await;
    let (from, receiver) = incoming.remove(0);
    let batches = Rc::new(Cell::new(0));
    let (copy, counted) = (Rc::clone(&mesh), Rc::clone(&batches));
    let hear = async move {
        while let Some(batch) = receiver.recv().await {
            counted.set(counted.get() + 1);
            for message in batch {
                if let Message::Reply { id, reply } = message {
                    copy.replied(from, id, reply);
                }
            }
        }
    };
    glommio::spawn_local(hear).detach();
    (mesh, batches)
}

fn other() -> ShardId {
    let both = crate::placement::Placement::new(0, 2);
    both.shards().last().expect("there are two")
}

fn request() -> Request {
    Request::Get(vec![b"key".as_slice().into()])
}

#[test]
fn requests_of_one_turn_share_a_batch() {
    const REQUESTS: usize = 1000;
    let (done, result) = mpsc::channel();
    let mut seats = seats(2);
    let (there, here) = (seats.pop().expect("two"), seats.pop().expect("two"));
    spawn(|| answer(there));
    spawn(|| async move {
        let (mesh, batches) = ask(here).await;
        let call = |_| mesh.call(other(), request()).expect("room for it");
        let calls: Vec<_> = (0..REQUESTS).map(call).collect();
        mesh.flush();
        let answered = futures::future::join_all(calls).await;
        assert!(answered.iter().all(Result::is_ok));
        assert_eq!(mesh.outstanding(), 0);
        done.send(batches.get()).expect("the test waits");
    });
    let batches = result.recv().expect("the executor answers");
    assert_eq!(batches, 1, "for {REQUESTS} requests there and back");
}

/// Nothing of time is asserted: the figures are printed side by side, each turn of one beside a turn of the other.
#[test]
fn a_hop_beside_the_bare_channel_of_the_runtime() {
    let (done, result) = mpsc::channel();
    let mut seats = seats(2);
    let (there, here) = (seats.pop().expect("two"), seats.pop().expect("two"));
    let (to_there, from_here) = new_bounded::<u32>(1);
    let (to_here, from_there) = new_bounded::<u32>(1);
    spawn(|| async move {
        let bare = async move {
            let (receiver, sender) =
                futures::future::join(from_here.connect(), to_here.connect()).await;
            while let Some(number) = receiver.recv().await {
                sender.send(number).await.expect("the other end lives");
            }
        };
        futures::future::join(answer(there), bare).await;
    });
    spawn(|| async move {
        let ((mesh, _), (sender, receiver)) = futures::future::join(
            ask(here),
            futures::future::join(to_there.connect(), from_there.connect()),
        )
        .await;
        let mut figures = [(); 2].map(|()| Histogram::<u64>::new(3).expect("three digits"));
        for number in 0..2 * ROUND * ROUNDS {
            let side = number / ROUND % 2;
            let started = Instant::now();
            if side == 0 {
                let number = number as u32;
                sender.send(number).await.expect("the other end lives");
                assert_eq!(receiver.recv().await, Some(number));
            } else {
                let reply = mesh.call(other(), request()).expect("room for it");
                mesh.flush();
                reply.await.expect("it is answered");
            }
            let nanoseconds = started.elapsed().as_nanos() as u64;
            figures[side].record(nanoseconds).expect("it grows");
        }
        done.send(figures.map(|figure| figure.value_at_quantile(0.5)))
            .expect("the test waits");
    });
    let [bare, hop] = result.recv().expect("the executor answers");
    println!(
        "mesh: p50 of a hop there and back {:.1} us, of a bare channel of the runtime {:.1} us: {:.2} x",
        hop as f64 / 1e3,
        bare as f64 / 1e3,
        hop as f64 / bare as f64
    );
    assert!(bare > 0 && hop > 0);
}

//! `getPrefix` and `streamPrefix`: a page of a prefix, or all of them, pushed to the client's sink with a bounded number of
//! bytes unanswered.
//!
//! Guarantees: memory of one call is bounded by the pushes in flight, of which few are for a peer that does not read; a
//! dropped call stops at its next await; a stop of the server ends the call instead of waiting for the sink.

use capnp::Error;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};

use super::{decode, encode, fault};
use crate::limits;
use crate::proto::orlop_capnp::entry_sink;
use crate::server::session::Session;
use crate::shard::room::Part;
use crate::shard::turns::end_turn;
use crate::shard::{Entry, Page, PrefixQuery};

/// Bytes of one value that are copied in one turn.
const COPIED_BYTES_PER_TURN: usize = 64 << 10;

/// Pushes that the sink has not answered yet.
#[derive(Default)]
struct Pushes {
    /// Each ends with its bytes.
    unanswered: FuturesUnordered<LocalBoxFuture<'static, Result<usize, Error>>>,
    /// Of all of them together.
    bytes: usize,
}

/// One call of `getPrefix` up to its answer. The page has its room as long as the part is kept: until the answer is queued,
/// which counts by itself.
pub(super) async fn page(
    session: &Session,
    query: &PrefixQuery<'_>,
) -> Result<(Page, Part), Error> {
    session.shard().count_get_prefix();
    // Nothing is made for a peer that does not read.
    session.reserve_answer(0)?;
    let room = session.page_room(query.max_bytes).await;
    let page = session
        .shard()
        .get_prefix(query)
        .await
        .map_err(fault::refused)?;
    Ok((page, room))
}

/// Pushes every entry of `prefix` in order, and returns how many there were when the sink has answered all.
pub(super) async fn push_all(
    session: &Session,
    prefix: &[u8],
    keys_only: bool,
    sink: &entry_sink::Client,
) -> Result<u64, Error> {
    let mut pushes = Pushes::default();
    let mut after = Vec::new();
    let mut pushed = 0;
    loop {
        session.peer_reads().await?;
        let query = PrefixQuery {
            prefix,
            after: &after,
            max_entries: limits::PUSH_ENTRIES_MAX,
            max_bytes: limits::PUSH_BYTES_MAX,
            keys_only,
        };
        let page = session
            .shard()
            .get_prefix(&query)
            .await
            .map_err(fault::refused)?;
        session.check_running()?;
        if let Some(last) = page.entries.last() {
            after.clear();
            after.extend_from_slice(&last.key);
            pushed += page.entries.len() as u64;
            pushes.push(sink, &page.entries).await;
        }
        let unanswered_max = if page.more {
            limits::PUSHED_BYTES_MAX - 1
        } else {
            0
        };
        drop(page.entries);
        while pushes.bytes > unanswered_max {
            pushes.answered(session).await?;
        }
        if !page.more {
            return Ok(pushed);
        }
        // A prefix in memory and a fast sink would keep this executor for themselves.
        end_turn().await;
    }
}

impl Pushes {
    /// Takes as many turns as its entries need.
    async fn push(&mut self, sink: &entry_sink::Client, entries: &[Entry]) {
        // Many short keys are mostly what is around them.
        let bytes = encode::entries_bytes(entries) + entries.len() * limits::ENTRY_BYTES_MORE;
        let mut request = sink.push_request();
        let mut to = request.get().init_entries(decode::count(entries.len()));
        for (at, entry) in (0..).zip(entries) {
            let place = encode::all_but_value(entry, to.reborrow().get(at));
            copy_in_turns(&entry.value, place).await;
        }
        let answer = request.send().promise;
        self.bytes += bytes;
        self.unanswered
            .push(Box::pin(async move { answer.await.map(|_| bytes) }));
    }

    /// Waits until the sink has answered one more push, or the server stops.
    async fn answered(&mut self, session: &Session) -> Result<(), Error> {
        if let Some(answer) = session.unless_stopped(self.unanswered.next()).await? {
            self.bytes -= answer.map_err(fault::of_sink)?;
        }
        Ok(())
    }
}

/// Copies a value, which may take as long as many small calls, in more turns than one.
async fn copy_in_turns(from: &[u8], to: &mut [u8]) {
    let pieces = from.chunks(COPIED_BYTES_PER_TURN);
    for (at, (from, to)) in pieces.zip(to.chunks_mut(COPIED_BYTES_PER_TURN)).enumerate() {
        if at > 0 {
            end_turn().await;
        }
        to.copy_from_slice(from);
    }
}

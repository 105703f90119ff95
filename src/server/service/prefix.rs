//! `streamPrefix`: pages of a prefix, pushed to the client's sink with a bounded number unanswered.
//!
//! Guarantees: memory of one call is bounded by the pushes in flight; a dropped call stops at its next await; a stop of
//! the server ends the call instead of waiting for the sink.

use capnp::Error;
use capnp::capability::{Promise, Response};
use futures::future::{Either, select};
use futures::stream::{FuturesUnordered, StreamExt as _};

use super::{decode, encode, fault};
use crate::limits;
use crate::proto::orlop_capnp::{entry_sink, entry_sink::push_results};
use crate::server::session::Session;
use crate::shard::{Entry, PrefixQuery};

/// Pushes that the sink has not answered yet.
type Pushes = FuturesUnordered<Promise<Response<push_results::Owned>, Error>>;

/// Pushes every entry of `prefix` in order, and returns how many there were when the sink has answered all.
pub(super) async fn push_all(
    session: &Session,
    prefix: &[u8],
    keys_only: bool,
    sink: &entry_sink::Client,
) -> Result<u64, Error> {
    let mut pushes = Pushes::new();
    let mut after = Vec::new();
    let mut pushed = 0;
    loop {
        let query = PrefixQuery {
            prefix,
            after: &after,
            max_entries: limits::PAGE_ENTRIES_MAX,
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
            pushes.push(push(sink, &page.entries));
        }
        let unanswered_max = if page.more {
            limits::PUSHES_IN_FLIGHT_MAX - 1
        } else {
            0
        };
        drop(page.entries);
        while pushes.len() > unanswered_max {
            answered(session, &mut pushes).await?;
        }
        if !page.more {
            return Ok(pushed);
        }
        // A prefix in memory and a fast sink would keep this executor for themselves.
        glommio::yield_if_needed().await;
    }
}

fn push(
    sink: &entry_sink::Client,
    entries: &[Entry],
) -> Promise<Response<push_results::Owned>, Error> {
    let mut request = sink.push_request();
    encode::entries(
        entries,
        request.get().init_entries(decode::count(entries.len())),
    );
    request.send().promise
}

/// Waits until the sink has answered one more push, or the server stops.
async fn answered(session: &Session, pushes: &mut Pushes) -> Result<(), Error> {
    match select(pushes.next(), session.stopping()).await {
        Either::Left((Some(answer), _)) => answer.map(drop).map_err(fault::of_sink),
        Either::Left((None, _)) => Ok(()),
        Either::Right(((), _)) => session.check_running(),
    }
}

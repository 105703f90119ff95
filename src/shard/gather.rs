//! Calls that concern several shards: split by owner, answered by each, joined in the order that was asked for.

use futures::channel::oneshot;
use futures::future::try_join_all;

use crate::limits;
use crate::placement::ShardId;
use crate::shard::error::ShardError;
use crate::shard::request::{OwnedEntry, OwnedQuery, Reply, Request};
use crate::shard::room::Part;
use crate::shard::stat::ShardStat;
use crate::shard::ticket::{BatchTicket, Waiter};
use crate::shard::turns::end_turn;
use crate::shard::{Found, Shard, Value, gone};
use crate::storage::{Mutation, PageEntry, PrefixQuery};

use super::request::OwnedMutation;

/// The values of many keys, with the room that they have.
pub struct FoundMany {
    /// One for each key; `None` where it is absent.
    pub found: Vec<Option<Found>>,
    pub(super) room: Option<Part>,
}

/// A present key of a page.
pub struct Entry {
    /// The key.
    pub key: Box<[u8]>,
    /// Its value; empty when only keys were asked for.
    pub value: Value,
    /// Its version.
    pub version: u64,
}

impl From<PageEntry> for Entry {
    fn from(entry: PageEntry) -> Entry {
        Entry {
            key: entry.key,
            value: entry.value.map_or_else(Value::default, Value::Stored),
            version: entry.version,
        }
    }
}

/// A page of keys in order: over all shards, or of one.
pub struct Page<E = Entry> {
    /// The entries.
    pub entries: Vec<E>,
    /// Whether there are further keys behind the last one.
    pub more: bool,
}

/// Entries of a page that are gathered before others have their turn.
const ENTRIES_PER_TURN: usize = 64;

/// Entries of several shards that are joined before others have their turn.
const JOINED_PER_TURN: usize = 256;

impl Shard {
    /// The newest durable value of each key, in the order of `keys`.
    ///
    /// # Errors
    /// `AnswerTooLarge` over `limits::ANSWER_BYTES_MAX`, `Overloaded`, `Corrupt`.
    pub async fn get_many(&self, keys: &[&[u8]]) -> Result<FoundMany, ShardError> {
        if self.placement.shard_count() == 1 {
            return self.get_own(keys, self.id.index()).await;
        }
        let parts = self.by_owner(keys.iter().map(|key| self.placement.owner(key)));
        let of_part = |part: &[usize]| part.iter().map(|at| keys[*at]).collect::<Vec<_>>();
        let mut answers = Vec::new();
        for (owner, part) in &parts {
            let keys = of_part(part);
            answers.push(async move {
                if *owner == self.id {
                    return self.get_own(&keys, self.id.index()).await;
                }
                let request = Request::Get(keys.iter().map(|key| Box::from(*key)).collect());
                self.get_from(*owner, request).await
            });
        }
        let mut joined: Vec<Option<Found>> = keys.iter().map(|_| None).collect();
        let (mut bytes, mut room) = (0, None);
        for ((_, part), answer) in parts.iter().zip(try_join_all(answers).await?) {
            room = room.or(answer.room);
            for (at, found) in part.iter().zip(answer.found) {
                bytes += found
                    .as_ref()
                    .map_or(0, |found| keys[*at].len() + found.value.len());
                joined[*at] = found;
            }
        }
        check_answer(bytes, keys.len())?;
        Ok(FoundMany {
            found: joined,
            room,
        })
    }

    pub(super) async fn get_from(
        &self,
        owner: ShardId,
        request: Request,
    ) -> Result<FoundMany, ShardError> {
        Ok(FoundMany {
            found: found_in(self.call(owner, request)?.await)?,
            room: None,
        })
    }

    /// Positions by owner, owners in shard order.
    fn by_owner(&self, owners: impl Iterator<Item = ShardId>) -> Vec<(ShardId, Vec<usize>)> {
        let mut parts: Vec<(ShardId, Vec<usize>)> = self
            .placement
            .shards()
            .map(|shard| (shard, Vec::new()))
            .collect();
        for (at, owner) in owners.enumerate() {
            parts[owner.index()].1.push(at);
        }
        parts.retain(|(_, part)| !part.is_empty());
        parts
    }

    /// Submits mutations, each to its owner. They belong to the shards when this returns: those of this shard are in
    /// its log's frames, the others on their way. Mutations of one key keep their order.
    pub fn submit_batch(&self, mutations: &[Mutation<'_>]) -> BatchTicket {
        if self.placement.shard_count() == 1 {
            return self.submit_own(mutations);
        }
        let ticket = BatchTicket::new(mutations.len());
        for (owner, part) in self.by_owner(
            mutations
                .iter()
                .map(|mutation| self.placement.owner(mutation.key)),
        ) {
            let waiters: Vec<Waiter> = part.iter().map(|at| ticket.waiter(*at)).collect();
            if owner == self.id {
                part.iter()
                    .zip(waiters)
                    .for_each(|(at, waiter)| self.submit_one(&mutations[*at], waiter));
            } else {
                let owned = part
                    .iter()
                    .map(|at| OwnedMutation::new(&mutations[*at]))
                    .collect();
                self.submit_to(owner, owned, waiters);
            }
        }
        ticket
    }

    pub(super) fn submit_to(
        &self,
        owner: ShardId,
        mutations: Vec<OwnedMutation>,
        waiters: Vec<Waiter>,
    ) {
        let answer_all = |waiters: Vec<Waiter>, error: ShardError| {
            waiters
                .into_iter()
                .for_each(|waiter| waiter.answer(Err(error.clone())));
        };
        let reply = match self.call(owner, Request::Write(mutations)) {
            Ok(reply) => reply,
            Err(error) => return answer_all(waiters, error),
        };
        let task = async move {
            match reply.await {
                Ok(Reply::Write(results)) => {
                    waiters
                        .into_iter()
                        .zip(results)
                        .for_each(|(waiter, result)| waiter.answer(result));
                }
                Ok(_) => unreachable!("a shard replies to what it was asked"),
                Err(_) => answer_all(waiters, gone()),
            }
        };
        drop(glommio::spawn_local(task).detach());
    }

    /// A page of present keys over all shards, in order.
    ///
    /// # Errors
    /// `Overloaded`, `Corrupt`.
    pub async fn get_prefix(&self, query: &PrefixQuery<'_>) -> Result<Page, ShardError> {
        if self.placement.shard_count() == 1 {
            return self.own_page(query, Entry::from).await;
        }
        let parts = self
            .placement
            .shards()
            .map(|shard| self.page_of(shard, query));
        let parts = try_join_all(parts).await?;
        Ok(merge(parts, query).await)
    }

    async fn page_of(&self, shard: ShardId, query: &PrefixQuery<'_>) -> Result<Page, ShardError> {
        if shard == self.id {
            return self.own_page(query, Entry::from).await;
        }
        match self
            .call(shard, Request::Page(OwnedQuery::new(query)))?
            .await
        {
            Ok(Reply::Page(page)) => {
                let page = page?;
                let room = |entry: &OwnedEntry| match entry.value.is_empty() {
                    false => Some(page.room.clone()),
                    true => None,
                };
                let entries = page.entries.into_iter().map(|entry| Entry {
                    value: Value::Received {
                        room: room(&entry),
                        bytes: entry.value,
                    },
                    key: entry.key,
                    version: entry.version,
                });
                Ok(Page {
                    entries: entries.collect(),
                    more: page.more,
                })
            }
            Ok(_) => unreachable!("a shard replies to what it was asked"),
            Err(_) => Err(gone()),
        }
    }

    /// A page of this shard's keys, each made into what is wanted of it. Others have their turns while it is gathered.
    pub(super) async fn own_page<E>(
        &self,
        query: &PrefixQuery<'_>,
        make: impl Fn(PageEntry) -> E,
    ) -> Result<Page<E>, ShardError> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut after = Box::from(query.after);
        loop {
            let part = PrefixQuery {
                after: &after,
                max_entries: ENTRIES_PER_TURN.min(query.max_entries - entries.len()),
                max_bytes: query.max_bytes - bytes,
                ..*query
            };
            let part = self.store.page(&part).await?;
            if let Some(last) = part.entries.last() {
                after.clone_from(&last.key);
            }
            for entry in part.entries {
                bytes += entry.key.len() + entry.value.as_ref().map_or(0, |value| value.len());
                // The first entry of a part may be larger than what is left.
                if bytes > query.max_bytes && !entries.is_empty() {
                    let more = true;
                    return Ok(Page { entries, more });
                }
                entries.push(make(entry));
            }
            let is_full = entries.len() >= query.max_entries || bytes > query.max_bytes;
            if !part.more || is_full {
                return Ok(Page {
                    entries,
                    more: part.more,
                });
            }
            end_turn().await;
        }
    }

    /// The figures of all shards, in order.
    ///
    /// # Errors
    /// `Overloaded`.
    pub async fn stat(&self) -> Result<Vec<ShardStat>, ShardError> {
        try_join_all(self.placement.shards().map(|shard| async move {
            if shard == self.id {
                return Ok(self.own_stat());
            }
            match self.call(shard, Request::Stat)?.await {
                Ok(Reply::Stat(stat)) => Ok(*stat),
                Ok(_) => unreachable!("a shard replies to what it was asked"),
                Err(_) => Err(gone()),
            }
        }))
        .await
    }
}

/// What another shard has found.
pub(super) fn found_in(
    reply: Result<Reply, oneshot::Canceled>,
) -> Result<Vec<Option<Found>>, ShardError> {
    match reply {
        Ok(Reply::Get(found)) => {
            let (found, room) = found?;
            let received = |(bytes, version)| Found {
                value: Value::Received {
                    bytes,
                    room: room.clone(),
                },
                version,
            };
            Ok(found.into_iter().map(|found| found.map(received)).collect())
        }
        Ok(_) => unreachable!("a shard replies to what it was asked"),
        Err(_) => Err(gone()),
    }
}

/// An answer of several keys that is too large is refused; one key always fits.
pub(super) fn check_answer(bytes: usize, keys: usize) -> Result<(), ShardError> {
    let limit = limits::ANSWER_BYTES_MAX;
    if keys > 1 && bytes > limit {
        Err(ShardError::AnswerTooLarge { bytes, limit })
    } else {
        Ok(())
    }
}

/// Joins the pages of several shards into one. A shard whose page is cut may have keys right behind it, so the joined page
/// ends at the first such cut at the latest. Takes as many turns as it needs.
async fn merge(parts: Vec<Page>, query: &PrefixQuery<'_>) -> Page {
    let cut = parts
        .iter()
        .filter(|part| part.more)
        .filter_map(|part| part.entries.last())
        .map(|last| last.key.clone());
    let cut = cut.min();
    let mut parts: Vec<_> = parts
        .into_iter()
        .map(|part| part.entries.into_iter())
        .collect();
    let (mut entries, mut bytes) = (Vec::new(), 0);
    loop {
        let next = parts
            .iter_mut()
            .filter(|part| !part.as_slice().is_empty())
            .min_by(|left, right| left.as_slice()[0].key.cmp(&right.as_slice()[0].key));
        let Some(next) = next else {
            let more = cut.is_some();
            return Page { entries, more };
        };
        let entry = &next.as_slice()[0];
        bytes += entry.key.len() + entry.value.len();
        let is_full =
            entries.len() == query.max_entries || bytes > query.max_bytes && !entries.is_empty();
        if is_full || cut.as_ref().is_some_and(|cut| entry.key > *cut) {
            let more = true;
            return Page { entries, more };
        }
        entries.extend(next.next());
        if entries.len().is_multiple_of(JOINED_PER_TURN) {
            end_turn().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &[&str], more: bool) -> Page {
        let entry = |key: &&str| Entry {
            key: key.as_bytes().into(),
            value: Value::Received {
                bytes: vec![0; 10],
                room: None,
            },
            version: 1,
        };
        Page {
            entries: keys.iter().map(entry).collect(),
            more,
        }
    }

    fn merged(parts: Vec<Page>, max_entries: usize, max_bytes: usize) -> (Vec<String>, bool) {
        let query = PrefixQuery {
            prefix: b"",
            after: b"",
            max_entries,
            max_bytes,
            keys_only: false,
        };
        let page = futures::executor::block_on(merge(parts, &query));
        let keys = page
            .entries
            .iter()
            .map(|entry| String::from_utf8(entry.key.to_vec()).unwrap())
            .collect();
        (keys, page.more)
    }

    #[test]
    fn a_joined_page_never_skips_a_key_that_a_cut_page_did_not_show() {
        let parts = || vec![page(&["a", "c"], true), page(&["b", "d", "e"], false)];
        assert_eq!(
            merged(parts(), 10, 1000),
            (vec!["a".into(), "b".into(), "c".into()], true)
        );
        assert_eq!(
            merged(parts(), 2, 1000),
            (vec!["a".into(), "b".into()], true)
        );
        assert_eq!(
            merged(parts(), 10, 22),
            (vec!["a".into(), "b".into()], true)
        );
        assert_eq!(merged(parts(), 10, 1), (vec!["a".into()], true));
        let whole = vec![page(&["a"], false), page(&[], false), page(&["b"], false)];
        assert_eq!(
            merged(whole, 2, 1000),
            (vec!["a".into(), "b".into()], false)
        );
    }
}

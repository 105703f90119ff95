//! What a shard does for the others: executes their requests on its own keys and replies.

use std::rc::Rc;

use crate::shard::error::ShardError;
use crate::shard::request::{
    OwnedEntry, OwnedFound, OwnedMutation, OwnedPage, OwnedQuery, Reply, Request,
};
use crate::shard::room::{Lent, Part};
use crate::shard::turns::{InTurn, Share};
use crate::shard::{FoundMany, Shard};

impl Shard {
    /// Starts on a request of shard `from`. Writes are submitted before this returns, in the order of the requests.
    pub(super) fn serve(self: &Rc<Self>, from: usize, id: u32, request: Request) {
        match request {
            Request::Write(mutations) => self.serve_write(from, id, &mutations),
            Request::Get(keys) => {
                let shard = Rc::clone(self);
                self.reply_later(from, id, async move {
                    Reply::Get(shard.serve_get(from, &keys).await)
                });
            }
            Request::Page(query) => {
                let shard = Rc::clone(self);
                self.reply_later(from, id, async move {
                    Reply::Page(shard.serve_page(from, &query).await)
                });
            }
            Request::Stat => self.reply(from, id, Reply::Stat(Box::new(self.own_stat()))),
            Request::Backup { backup, ask } => self.serve_backup(from, id, backup, ask),
            Request::News(news) => {
                let from_shard = u16::try_from(from).expect("there are at most 65,535 shards");
                self.store.hear(from_shard, news);
                self.reply(from, id, Reply::News);
            }
        }
    }

    /// Tells the other shards what this one's store has to tell them.
    pub(super) fn tell_news(&self) {
        while let Some(notice) = self.store.next_notice() {
            let to = self.placement.shards().nth(notice.to.into());
            let to = to.expect("a notice goes to a shard of this server");
            if self.mesh.call(to, Request::News(notice.news)).is_err() {
                // Overloaded: the next step of compaction comes back to it.
                return self.store.put_back(notice);
            }
            self.flush_soon();
        }
    }

    fn serve_write(self: &Rc<Self>, from: usize, id: u32, mutations: &[OwnedMutation]) {
        let borrowed: Vec<_> = mutations.iter().map(OwnedMutation::borrow).collect();
        let shard = Rc::clone(self);
        self.submit_own(&borrowed)
            .then(move |results| shard.reply(from, id, Reply::Write(results)));
    }

    pub(super) fn reply(&self, to: usize, id: u32, reply: Reply) {
        self.mesh.reply(to, id, reply);
        self.flush_soon();
    }

    /// Replies when `work` is done: at once if it need not wait.
    fn reply_later(
        self: &Rc<Self>,
        to: usize,
        id: u32,
        work: impl Future<Output = Reply> + 'static,
    ) {
        let mut work = Box::pin(work);
        if let Some(reply) = futures::FutureExt::now_or_never(work.as_mut()) {
            return self.reply(to, id, reply);
        }
        let shard = Rc::clone(self);
        let task = async move { shard.reply(to, id, work.await) };
        let task = InTurn::new(Box::pin(task), &Share::new(&self.turns));
        drop(glommio::spawn_local(task).detach());
    }

    async fn serve_get(
        &self,
        from: usize,
        keys: &[Box<[u8]>],
    ) -> Result<(Vec<Option<OwnedFound>>, Option<Lent>), ShardError> {
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        let FoundMany { found, room } = self.get_own(&keys, from).await?;
        let owned = found
            .into_iter()
            .map(|found| found.map(|found| (found.value.to_vec(), found.version)));
        Ok((owned.collect(), room.map(Part::lend)))
    }

    async fn serve_page(&self, from: usize, query: &OwnedQuery) -> Result<OwnedPage, ShardError> {
        let query = query.borrow();
        let mut room = self.rooms[from].take(query.max_bytes).await;
        let page = self.own_page(&query, OwnedEntry::from).await?;
        let bytes = page
            .entries
            .iter()
            .map(|entry| size_of::<OwnedEntry>() + entry.key.len() + entry.value.len());
        room.shrink(bytes.sum());
        Ok(OwnedPage {
            entries: page.entries,
            more: page.more,
            room: room.lend(),
        })
    }
}

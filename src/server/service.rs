//! The schema's methods: decode, check limits, hand to the shard, encode.
//!
//! Guarantees: nothing from the wire is trusted; a write is submitted to the shard before the first await, so that a
//! call which its client drops neither loses nor tears what was submitted; a value in memory is copied once, into the
//! answer. Does not: know who owns a key (the shard does), keep anything beyond a call. One [`StoreService`] per
//! connection, made by `session`.

mod backup;
mod decode;
mod direct;
mod encode;
mod fault;
mod info;
mod prefix;
mod reply;

use std::rc::Rc;

use capnp::Error;

use crate::limits;
use crate::proto::orlop_capnp::{bootstrap, store};
use crate::server::session::Session;
use crate::shard::{Change, Mutation, Shard};

pub(crate) use direct::DirectStore;

/// The bootstrap capability of one connection.
pub(crate) struct Bootstrap {
    session: Rc<Session>,
    store: store::Client,
}

impl Bootstrap {
    pub(crate) fn new(session: Rc<Session>) -> Bootstrap {
        let store = capnp_rpc::new_client(StoreService {
            session: Rc::clone(&session),
        });
        Bootstrap { session, store }
    }
}

impl bootstrap::Server for Bootstrap {
    async fn open(
        self: Rc<Self>,
        _: bootstrap::OpenParams,
        mut results: bootstrap::OpenResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        results.get().set_store(self.store.clone());
        Ok(())
    }

    async fn info(
        self: Rc<Self>,
        _: bootstrap::InfoParams,
        mut results: bootstrap::InfoResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        info::server_info(self.session.process(), results.get().init_info());
        Ok(())
    }
}

/// The store as one connection sees it.
struct StoreService {
    session: Rc<Session>,
}

impl StoreService {
    fn shard(&self) -> &Shard {
        self.session.shard()
    }

    fn value_len_max(&self) -> usize {
        self.session.process().value_len_max
    }
}

// The parameters live until the answer is encoded: their bytes stay counted against the connection's budget.
impl store::Server for StoreService {
    async fn get(
        self: Rc<Self>,
        params: store::GetParams,
        mut results: store::GetResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        let key = decode::key(params.get()?.get_key()?)?;
        let begun = self.shard().begin_get(key);
        let (found, _room) = self.session.get(begun).await.map_err(fault::refused)?;
        self.session
            .reserve_answer(encode::lookup_bytes(found.as_ref()))?;
        encode::lookup(found.as_ref(), results.get().init_lookup());
        Ok(())
    }

    async fn set(
        self: Rc<Self>,
        params: store::SetParams,
        mut results: store::SetResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        let request = params.get()?;
        let key = decode::key(request.get_key()?)?;
        let value = decode::value(request.get_value()?, self.value_len_max())?;
        let condition = decode::condition(request.get_condition()?)?;
        let ticket = self.shard().submit(&Mutation {
            key,
            change: Change::Set(value),
            condition,
        });
        let outcome = ticket.await.map_err(fault::refused)?;
        encode::outcome(outcome, results.get().init_outcome());
        Ok(())
    }

    async fn delete(
        self: Rc<Self>,
        params: store::DeleteParams,
        mut results: store::DeleteResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        let request = params.get()?;
        let key = decode::key(request.get_key()?)?;
        let condition = decode::condition(request.get_condition()?)?;
        let ticket = self.shard().submit(&Mutation {
            key,
            change: Change::Delete,
            condition,
        });
        let outcome = ticket.await.map_err(fault::refused)?;
        encode::outcome(outcome, results.get().init_outcome());
        Ok(())
    }

    async fn get_many(
        self: Rc<Self>,
        params: store::GetManyParams,
        mut results: store::GetManyResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        let keys = decode::keys(params.get()?.get_keys()?)?;
        let many = self.shard().get_many(&keys).await.map_err(fault::refused)?;
        let found = &many.found;
        let bytes = found
            .iter()
            .map(|found| encode::lookup_bytes(found.as_ref()));
        self.session.reserve_answer(bytes.sum())?;
        let mut lookups = results.get().init_lookups(decode::count(found.len()));
        for (at, found) in (0..).zip(found) {
            encode::lookup(found.as_ref(), lookups.reborrow().get(at));
        }
        Ok(())
    }

    async fn write(
        self: Rc<Self>,
        params: store::WriteParams,
        mut results: store::WriteResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        let mutations = decode::mutations(params.get()?.get_mutations()?, self.value_len_max())?;
        let ticket = self.shard().submit_batch(&mutations);
        drop(mutations);
        let answers = ticket.await;
        let mut outcomes = results.get().init_outcomes(decode::count(answers.len()));
        for (at, answer) in (0..).zip(answers) {
            let outcome = outcomes.reborrow().get(at);
            match answer {
                Ok(answer) => encode::outcome(answer, outcome),
                Err(error) => encode::failed(error, outcome),
            }
        }
        Ok(())
    }

    async fn get_prefix(
        self: Rc<Self>,
        params: store::GetPrefixParams,
        mut results: store::GetPrefixResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        let query = decode::prefix_query(params.get()?)?;
        let (page, _room) = prefix::page(&self.session, &query).await?;
        self.session
            .reserve_answer(encode::entries_bytes(&page.entries))?;
        let mut answer = results.get();
        encode::entries(
            &page.entries,
            answer
                .reborrow()
                .init_entries(decode::count(page.entries.len())),
        );
        answer.set_more(page.more);
        Ok(())
    }

    async fn stream_prefix(
        self: Rc<Self>,
        params: store::StreamPrefixParams,
        mut results: store::StreamPrefixResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        let request = params.get()?;
        let prefix = decode::prefix(request.get_prefix()?)?.to_vec();
        let sink = request.get_sink().map_err(decode::no_sink)?;
        let keys_only = request.get_keys_only();
        let _stream = self.session.begin_stream()?;
        self.shard().count_get_prefix();
        let session = Rc::clone(&self.session);
        let pushing = async move { prefix::push_all(&session, &prefix, keys_only, &sink).await };
        let count = self.session.in_turns(pushing).await?;
        results.get().set_count(count);
        Ok(())
    }

    async fn stat(
        self: Rc<Self>,
        _: store::StatParams,
        mut results: store::StatResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        let shards = self.shard().stat().await.map_err(fault::refused)?;
        info::stat(self.session.process(), &shards, results.get().init_stat());
        Ok(())
    }

    async fn backup(
        self: Rc<Self>,
        params: store::BackupParams,
        mut results: store::BackupResults,
    ) -> Result<(), Error> {
        let _call = self.session.begin_call()?;
        let sink = params.get()?.get_sink().map_err(decode::no_sink)?;
        let sent = backup::send_all(&self.session, &sink).await?;
        results.get().set_files(sent.files);
        results.get().set_bytes(sent.bytes);
        Ok(())
    }
}

// What the schema promises and the bounds that it is built on must not drift apart.
const _: () =
    assert!(limits::PAGE_BYTES_MAX + limits::VALUE_LEN_MAX < limits::CLIENT_MESSAGE_BYTES_MAX);
const _: () = assert!(limits::ANSWER_BYTES_MAX < limits::CLIENT_MESSAGE_BYTES_MAX);

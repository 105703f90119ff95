//! The receiving end of `streamPrefix`: a capability that hands each batch to a closure.

use std::cell::RefCell;
use std::rc::Rc;

use super::Entry;
use super::convert::read_entries;
use crate::proto::orlop_capnp::entry_sink;

/// Where the closure's refusal is kept: over the wire and back it would lose its form.
pub(super) type Refusal = Rc<RefCell<Option<String>>>;

struct Sink<F> {
    on_batch: RefCell<F>,
    refusal: Refusal,
}

/// The capability to give to the server, and where a refusal will be found.
pub(super) fn sink<F>(on_batch: F) -> (entry_sink::Client, Refusal)
where
    F: FnMut(Vec<Entry>) -> Result<(), String> + 'static,
{
    let refusal = Refusal::default();
    let sink = Sink {
        on_batch: RefCell::new(on_batch),
        refusal: Rc::clone(&refusal),
    };
    (capnp_rpc::new_client(sink), refusal)
}

impl<F> entry_sink::Server for Sink<F>
where
    F: FnMut(Vec<Entry>) -> Result<(), String> + 'static,
{
    async fn push(
        self: Rc<Self>,
        params: entry_sink::PushParams,
        _: entry_sink::PushResults,
    ) -> Result<(), capnp::Error> {
        if let Some(reason) = &*self.refusal.borrow() {
            return Err(capnp::Error::failed(reason.clone()));
        }
        let entries = read_entries(params.get()?.get_entries()?)?;
        let answer = (self.on_batch.borrow_mut())(entries);
        answer.map_err(|reason| {
            *self.refusal.borrow_mut() = Some(reason.clone());
            capnp::Error::failed(reason)
        })
    }
}

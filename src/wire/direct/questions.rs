//! Who answers which question of the peer, and which exports are capabilities whose calls are answered directly.
//!
//! It mirrors `capnp_rpc`'s table of answers from the messages that go in and out, because an id must not have two
//! owners, and its table of exports as far as the answers of opening calls fill it. Where the mirror may differ it
//! knows less: then `capnp_rpc` gets the call.

use std::cell::RefCell;
use std::collections::HashMap;

use capnp::message::{Builder, HeapAllocator};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, message_target, promised_answer, return_};

use crate::wire::send::Watch;

/// Who answers a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// This connection, later.
    Direct,
    /// `capnp_rpc`.
    Rpc,
}

/// What a call is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A capability whose calls are answered directly.
    Ours,
    /// The same, as soon as the opening call that it comes from has returned.
    Opening,
    /// The answer of another question.
    Promised,
    /// Anything else.
    Other,
}

/// A question that is not done with.
enum Asked {
    /// A direct call that waits.
    Direct {
        /// The peer has sent `Finish`.
        unwanted: bool,
    },
    Rpc(Handed),
}

/// A question that `capnp_rpc` was handed.
#[derive(Default)]
struct Handed {
    /// The pointer field of the results that will hold the opened capability.
    opens: Option<u16>,
    returned: bool,
    finished: bool,
    /// The export of the opened capability.
    export: Option<u32>,
}

/// An opened capability that the peer holds.
struct Export {
    id: u32,
    references: u32,
}

/// The tables of one connection.
#[derive(Default)]
pub(super) struct Questions {
    asked: RefCell<HashMap<u32, Asked>>,
    exports: RefCell<Vec<Export>>,
}

impl Questions {
    pub(super) fn owner(&self, id: u32) -> Option<Owner> {
        self.asked.borrow().get(&id).map(|asked| match asked {
            Asked::Direct { .. } => Owner::Direct,
            Asked::Rpc(_) => Owner::Rpc,
        })
    }

    /// A direct call waits.
    pub(super) fn waits(&self, id: u32) {
        self.asked
            .borrow_mut()
            .insert(id, Asked::Direct { unwanted: false });
    }

    /// A direct call is about to be answered. Returns whether the peer still wants the answer.
    pub(super) fn waited(&self, id: u32) -> bool {
        match self.asked.borrow_mut().remove(&id) {
            Some(Asked::Direct { unwanted }) => !unwanted,
            _ => unreachable!("a waiting question is forgotten when it is answered"),
        }
    }

    /// `capnp_rpc` gets a question. If the id is in use it will end the connection.
    pub(super) fn handed_over(&self, id: u32, opens: Option<u16>) {
        let handed = Handed {
            opens,
            ..Handed::default()
        };
        self.asked.borrow_mut().insert(id, Asked::Rpc(handed));
    }

    /// The peer has sent `Finish`. Returns whose question it was.
    pub(super) fn finished(&self, id: u32, release_results: bool) -> Option<Owner> {
        let mut asked = self.asked.borrow_mut();
        match asked.get_mut(&id)? {
            Asked::Direct { unwanted } => {
                *unwanted = true;
                Some(Owner::Direct)
            }
            Asked::Rpc(handed) => {
                handed.finished = true;
                if let Some(export) = handed.export.take()
                    && release_results
                {
                    self.released(export, 1);
                }
                if handed.returned {
                    asked.remove(&id);
                }
                Some(Owner::Rpc)
            }
        }
    }

    /// The peer gives back references to an export.
    pub(super) fn released(&self, id: u32, references: u32) {
        self.exports.borrow_mut().retain_mut(|export| {
            if export.id == id {
                export.references = export.references.saturating_sub(references);
            }
            export.references > 0
        });
    }

    /// What a call is made on.
    pub(super) fn target(&self, target: message_target::Reader<'_>) -> Target {
        match target.which() {
            Ok(message_target::ImportedCap(id)) => {
                if self.exports.borrow().iter().any(|export| export.id == id) {
                    Target::Ours
                } else {
                    Target::Other
                }
            }
            Ok(message_target::PromisedAnswer(Ok(answer))) => self.promised(answer),
            _ => Target::Promised,
        }
    }

    fn promised(&self, answer: promised_answer::Reader<'_>) -> Target {
        match self.asked.borrow().get(&answer.get_question_id()) {
            Some(Asked::Rpc(Handed {
                opens: Some(field),
                returned,
                finished: false,
                export,
            })) if takes_field(answer, *field) => match (returned, export) {
                (false, _) => Target::Opening,
                (true, Some(_)) => Target::Ours,
                // It returned an exception, and so will the call.
                (true, None) => Target::Other,
            },
            _ => Target::Promised,
        }
    }

    fn returned(&self, answer: return_::Reader<'_>) {
        let id = answer.get_answer_id();
        let mut asked = self.asked.borrow_mut();
        let Some(Asked::Rpc(handed)) = asked.get_mut(&id) else {
            return;
        };
        handed.returned = true;
        let exports = exports_of(answer);
        match (handed.opens, &exports[..]) {
            (Some(_), [export]) => {
                handed.export = Some(*export);
                self.exported(*export);
            }
            _ => exports.iter().for_each(|export| self.forget(*export)),
        }
        if handed.finished || answer.get_no_finish_needed() {
            asked.remove(&id);
        }
    }

    fn exported(&self, id: u32) {
        let mut exports = self.exports.borrow_mut();
        match exports.iter_mut().find(|export| export.id == id) {
            Some(export) => export.references += 1,
            None => exports.push(Export { id, references: 1 }),
        }
    }

    /// An export that comes by another way than an opening call is not known well enough.
    fn forget(&self, id: u32) {
        self.exports.borrow_mut().retain(|export| export.id != id);
    }
}

impl Watch for Questions {
    fn sent(&self, message: &Builder<HeapAllocator>) {
        let Ok(root) = message.get_root_as_reader::<message::Reader<'_>>() else {
            return;
        };
        if let Ok(message::Return(Ok(answer))) = root.which() {
            self.returned(answer);
        }
    }

    /// Whoever waits for an answer waits on this side.
    fn ended(&self, _: &capnp::Error) {}
}

/// Whether a promised answer is the capability in `field` of the results.
fn takes_field(answer: promised_answer::Reader<'_>, field: u16) -> bool {
    let Ok(transform) = answer.get_transform() else {
        return false;
    };
    transform.len() == 1
        && matches!(
            transform.get(0).which(),
            Ok(promised_answer::op::GetPointerField(taken)) if taken == field
        )
}

/// The exports that an answer gives to the peer.
fn exports_of(answer: return_::Reader<'_>) -> Vec<u32> {
    let Ok(return_::Results(Ok(payload))) = answer.which() else {
        return Vec::new();
    };
    let Ok(table) = payload.get_cap_table() else {
        return Vec::new();
    };
    let hosted = |descriptor: cap_descriptor::Reader<'_>| match descriptor.which() {
        Ok(cap_descriptor::SenderHosted(id)) => Some(id),
        _ => None,
    };
    table.iter().filter_map(hosted).collect()
}

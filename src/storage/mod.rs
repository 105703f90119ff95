//! One shard's durable map: knows files and bytes; nothing of RPC, sockets, other shards or the runtime.
//!
//! The contract of [`Store`]: what `submit` accepted is written in order; an answer comes after it is durable; reads
//! show durable state only; after a failed write nothing is answered any more. `FORMAT.md` says what is on disk.
//!
//! | file | what it owns |
//! |---|---|
//! | `store` | the order in which everything else is touched |
//! | `pending` | writes that are accepted and not yet durable, by frame |
//! | `writer` | the end of the log, [`Durable`] |
//! | `segment` | segment files and their byte counts |
//! | `format` | bytes of segments, frames, records |
//! | `survey` | which files make up a log |
//! | `recovery` | opening a log; where it ends |
//! | `scan`, `reader` | reading a segment through, reading one record |
//! | `index`, `entry` | key -> location, by hash and in order |
//! | `cache`, `chunk` | values in memory |
//! | `page` | keys in order; warming the cache |
//! | `directory`, `manifest` | the data directory as a whole |
//! | `disk` | the seam to the files |

mod cache;
mod chunk;
pub mod directory;
pub mod disk;
mod entry;
mod error;
pub mod format;
mod index;
pub mod manifest;
mod page;
mod pending;
mod reader;
mod recovery;
mod scan;
pub mod segment;
mod signal;
mod store;
mod survey;
#[cfg(test)]
mod tests;
mod writer;

pub use error::StorageError;
pub use page::{Page, PageEntry, PrefixQuery};
pub use pending::Outcome;
pub use reader::Value;
pub use recovery::{Recovered, TornTail};
pub use store::{
    Change, Completion, Condition, DiskRef, Found, Lookup, Mutation, Store, StoreOptions,
    StoreStat, SubmitError, Submitted,
};
pub use writer::Durable;

//! One shard's durable map: knows files and bytes; nothing of RPC, sockets, other shards or the runtime.
//!
//! The contract of [`Store`]: what `submit` accepted is written in order; an answer comes after it is durable; reads
//! show durable state only; after a failed write nothing is answered any more. `FORMAT.md` says what is on disk.
//!
//! | file | what it owns |
//! |---|---|
//! | `store` | the order in which everything else is touched |
//! | `mutation` | a write as its caller sees it |
//! | `pending` | writes that are accepted and not yet durable, by frame |
//! | `writer` | the end of the log, [`Durable`] |
//! | `spares`, `segment` | files for segments to come; segment files |
//! | `segments` | which bytes of which segment are live |
//! | `compact`, `victim` | winning back dead bytes; where most are |
//! | `format`, `table` | bytes of segments, frames, records; of the list of segments |
//! | `survey`, `lineage`, `recovery` | which files there are; which are the log; opening it and where it ends |
//! | `scan`, `reader` | reading a segment through, reading one record |
//! | `index`, `entry` | key -> location, by hash and in order |
//! | `cache`, `chunk` | values in memory |
//! | `page` | keys in order; warming the cache |
//! | `snapshot` | a copy of the log while it is served; files of one |
//! | `directory`, `manifest` | the data directory as a whole |
//! | `disk` | the seam to the files |

mod cache;
mod chunk;
mod compact;
mod damage;
pub mod directory;
pub mod disk;
mod entry;
mod error;
pub mod format;
mod frames;
mod index;
mod inspect;
mod lineage;
pub mod manifest;
mod mutation;
mod page;
mod pending;
mod reader;
mod recovery;
mod scan;
pub mod segment;
mod segments;
mod signal;
pub mod snapshot;
mod spares;
mod stat;
mod store;
mod survey;
pub mod table;
#[cfg(test)]
mod tests;
mod verdict;
mod verify;
mod victim;
mod writer;

pub use compact::{Compaction, Pace, Step};
pub use error::StorageError;
pub use inspect::{Detail, inspect};
pub use mutation::{Change, Completion, Condition, Mutation, SubmitError, Submitted};
pub use page::{Page, PageEntry, PrefixQuery};
pub use pending::Outcome;
pub use reader::Value;
pub use recovery::{Recovered, TornTail};
pub use stat::StoreStat;
pub use store::{DiskRef, Found, Lookup, Store, StoreOptions};
pub use verify::{LoggedWrite, Verified, VerifyOptions, checksum, verify};
pub use writer::Durable;

//! One shard's durable map: knows files and bytes; nothing of RPC, sockets, other shards or the runtime.
//!
//! The contract of [`Store`]: what `submit` accepted is written, for each key in order; an answer comes after it is durable;
//! reads show durable state only; after a failed write nothing is answered any more. `FORMAT.md` says what is on disk.
//!
//! | file | what it owns |
//! |---|---|
//! | `store`, `options` | the order in which everything else is touched; how a store is opened |
//! | `mutation` | a write as its caller sees it |
//! | `lane` | large writes that are accepted and wait for their turn |
//! | `pending` | writes that are accepted and not yet durable, by frame |
//! | `writer` | the end of the log, [`Durable`] |
//! | `spares`, `segment` | files for segments to come; segment files |
//! | `segments` | which bytes of which segment are live |
//! | `compact`, `victim`, `worklist` | winning back dead bytes; where most are; what a victim holds, from its footer |
//! | `format`, `table` | bytes of segments, frames, records; of the list of segments |
//! | `survey`, `lineage`, `recovery`, `recovered` | which files there are; which are the log; reading it; what that found |
//! | `opening`, `handover` | opening a store; what shards hand each other for that |
//! | `footer`, `indexing` | what is in a sealed segment, as bytes; on disk |
//! | `foreign` | segments of other logs, after the number of shards has changed |
//! | `scan`, `reader`, `lookup` | reading a segment through, reading one record; what is known of a key |
//! | `index`, `entry`, `ordered` | key -> location, by hash; one key; keys in order |
//! | `cache`, `chunk` | values in memory |
//! | `page` | keys in order; warming the cache |
//! | `scrub` | reading sealed segments again, to know of damage |
//! | `plant` | bugs for the tests to find; nothing outside of tests |
//! | `snapshot` | a copy of the log while it is served; files of one |
//! | `directory`, `manifest` | the data directory as a whole |
//! | `disk` | the seam to the files |

mod body;
mod cache;
mod chunk;
mod compact;
mod damage;
pub mod directory;
pub mod disk;
mod entry;
mod error;
mod footer;
mod foreign;
pub mod format;
mod frames;
mod handover;
mod index;
mod indexing;
mod inspect;
mod lane;
mod lineage;
mod lookup;
pub mod manifest;
mod mutation;
mod opening;
mod options;
mod ordered;
mod page;
mod pending;
mod plant;
mod prefetch;
mod reader;
mod recovered;
mod recovery;
mod scan;
mod scrub;
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
mod worklist;
mod writer;

pub use compact::{Compaction, Pace, Step};
pub use error::StorageError;
pub use foreign::{News, Notice};
pub use handover::{Handover, Owner};
pub use inspect::{Detail, inspect, show_manifest};
pub use lookup::{DiskRef, Found, Lookup};
pub use mutation::{Change, Completion, Condition, Mutation, SubmitError, Submitted};
pub use opening::{Opening, read};
pub use options::StoreOptions;
pub use page::{Page, PageEntry, PrefixQuery};
pub use pending::Outcome;
pub use reader::Value;
pub use recovered::{Recovered, TornTail};
pub use scrub::{Scrub, ScrubStep};
pub use stat::StoreStat;
pub use store::Store;
pub use verify::{Checking, LoggedWrite, Verified, checksum, verify};
pub use writer::Durable;

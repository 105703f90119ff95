#![doc = include_str!("ARCHITECTURE.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod ack_log;
pub mod client;
pub mod limits;
#[cfg(any(feature = "server", feature = "cli"))]
pub mod partial;
#[cfg(any(feature = "server", feature = "tokio"))]
pub mod placement;
pub mod proto;
pub mod wire;

#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod shard;
#[cfg(feature = "server")]
pub mod storage;

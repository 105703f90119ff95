//! One two-party Cap'n Proto connection over any pair of byte streams: a [`Setup`] says what is special about it, a
//! [`Connection`] is the future that reads, writes and runs the `capnp_rpc::RpcSystem` above it.
//!
//! Guarantees:
//! - Reading: one read takes as many messages as the stream has ready. A message takes memory as its bytes arrive, never
//!   for what its header announces, and a header beyond [`WireLimits::message_bytes_max`] or 512 segments ends the
//!   connection with an error that says so.
//! - Writing: whatever is sent within one turn of the executor leaves in one write, up to 1 MiB, or 128 KiB while
//!   others wait ([`Setup::share_turns`]). Large segments and values are handed to the stream where they are, without a copy.
//! - Turns: what needs no `capnp_rpc` does not wake it. What is for it reaches it in the turn in which it arrives.
//! - Budgets: while the messages that are being worked on, or the bytes that the peer has not taken, are over their
//!   bounds, nothing more is received. The [`Meter`] shows both, and what a watchdog or an orderly stop needs.
//! - The server's side bounds what `capnp_rpc` keeps for its peer, and what one message may make of itself.
//!
//! - Direct answers: where the caller asks for it, the hot calls of one interface are answered without `capnp_rpc`
//!   ([`direct`]), in the order and with the budgets of all others. A caller can make such calls without it as well
//!   ([`asker`]).
//!
//! What it does not do: open sockets, keep time (the caller watches [`Meter::progress`]), count calls, or know what the
//! messages of an application say. It uses neither glommio nor tokio: streams are `futures` streams and everything is driven
//! by polling the [`Connection`].

mod admission;
pub mod asker;
mod borrowed;
mod bounds;
mod closing;
mod connection;
pub mod direct;
mod envelope;
mod frame;
mod gate;
mod inbox;
mod meter;
mod network;
#[cfg(test)]
pub(crate) mod pipe;
mod receive;
mod recycle;
mod send;
#[cfg(test)]
mod tests;
pub mod words;
mod write;

pub use connection::{Connection, Setup};
pub use gate::Gate;
pub use meter::Meter;

/// The bounds of one connection, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireLimits {
    /// Largest message that is received, its segment table included.
    pub message_bytes_max: usize,
    /// Received messages that are still being worked on. At the bound nothing more is received; one message may go over it.
    pub bytes_in_max: usize,
    /// Sent messages that the peer has not taken yet. At the bound nothing more is received.
    pub bytes_out_max: usize,
}

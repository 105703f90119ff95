//! What both ends of the wire share: the generated code of `schema/orlop.capnp` and the words of its error contract.
//!
//! It depends on nothing of the project. Conversions between the schema's types and the server's or the client's own
//! are with those.

#![allow(
    clippy::unwrap_used,
    clippy::unimplemented,
    reason = "the generated code does"
)]

capnp::generated_code!(pub mod orlop_capnp);

mod error_word;
pub mod method;

pub use error_word::ErrorWord;

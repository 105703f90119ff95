//! The generated code of `schema/orlop.capnp` and the words of its error contract, for both ends of the wire.

capnp::generated_code!(pub mod orlop_capnp);

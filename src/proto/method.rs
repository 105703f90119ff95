//! The ordinals of the methods that both ends handle without the generated dispatch, as in `schema/orlop.capnp`.
//!
//! Public for whoever serves the schema with the direct calls of `wire`, as the benchmarks' embedded engines do.

/// `Bootstrap.open`.
pub const OPEN: u16 = 0;
/// `Store.get`.
pub const GET: u16 = 0;
/// `Store.set`.
pub const SET: u16 = 1;
/// `Store.delete`.
pub const DELETE: u16 = 2;
/// `Store.getMany`.
pub const GET_MANY: u16 = 3;
/// `Store.write`.
pub const WRITE: u16 = 4;
/// `Store.getPrefix`.
pub const GET_PREFIX: u16 = 5;

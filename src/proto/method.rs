//! The ordinals of the methods that both ends handle without the generated dispatch, as in `schema/orlop.capnp`.

/// `Bootstrap.open`.
pub(crate) const OPEN: u16 = 0;
/// `Store.get`.
pub(crate) const GET: u16 = 0;
/// `Store.set`.
pub(crate) const SET: u16 = 1;
/// `Store.delete`.
pub(crate) const DELETE: u16 = 2;
/// `Store.getMany`.
pub(crate) const GET_MANY: u16 = 3;
/// `Store.write`.
pub(crate) const WRITE: u16 = 4;

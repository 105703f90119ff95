//! When freed memory goes back to the kernel.
//!
//! Memory that is touched for the first time costs a fault per page, as much as all else that is done with it, so what may
//! be needed again is kept for a while: without that a value of 4 MiB takes a shard milliseconds. Whereas a server that has
//! just started may stay idle, and would keep what its recovery needed, a fifth of its index.

use std::time::Duration;

/// Memory that was not needed for so long goes back.
const KEPT: Duration = Duration::from_secs(1);

/// `mi_option_purge_delay` in `mimalloc.h`, in milliseconds, for which the bindings have no name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps freed memory for a while, unless the environment says for how long. Called once, before there are shards.
pub(crate) fn keep_for_a_while() {
    // SAFETY: it takes no pointers, and other threads may read the option meanwhile.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, KEPT.as_millis() as _) }
}

/// Gives back what the allocator holds of no use: of this thread, and freed memory of all threads. Called once per shard,
/// before it serves.
pub(crate) fn give_back() {
    // SAFETY: it takes no pointers and may be called by any thread at any time; a process that has another allocator has
    // nothing to collect.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

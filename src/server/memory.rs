//! Memory that was needed for a while, back to the kernel.
//!
//! The allocator gives freed memory back while others are busy with it; a server that has just started may stay idle and
//! keep what its recovery needed, a fifth of its index. Called once per shard, before it serves.

/// Gives back what the allocator holds of no use: of this thread, and freed memory of all threads.
pub(crate) fn give_back() {
    // SAFETY: it takes no pointers and may be called by any thread at any time; a process that has another allocator has
    // nothing to collect.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

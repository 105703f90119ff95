//! Memory on its way before it is looked at: lookups of several keys wait for memory once and not for each key.

/// Bytes that the processor moves at once.
const LINE_BYTES: usize = 64;

/// Asks for the first `bytes` behind `address`, without waiting. The address need not be one that may be read.
pub(super) fn prefetch(address: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..bytes.div_ceil(LINE_BYTES) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = address.wrapping_add(line * LINE_BYTES).cast();
        // SAFETY: a hint reads nothing that a program could see, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }
    }
    // Elsewhere lookups are right, and no faster than one by one.
    #[cfg(not(target_arch = "x86_64"))]
    let _not_asked_for = (address, bytes, LINE_BYTES);
}

//! The recovery decision: a table over what stands at a position of the log and what stands behind it.
//!
//! One frame of a shard is in flight at a time, so a later frame proves that an earlier one was acknowledged: only what has
//! nothing valid behind it can be a torn tail, everything else that does not verify is corruption.

/// What stands at the position where the next frame is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A frame that verifies and follows the one before it.
    Whole,
    /// A frame that verifies, but does not follow the one before it: one is missing.
    Unchained,
    /// A frame header of this segment that says it belongs elsewhere. No crash leaves that: a write went astray.
    Misplaced,
    /// Nothing of this use of the file was ever written here: zeros, or what an earlier use left.
    Zero,
    /// Bytes that are no whole frame of this segment.
    Broken,
}

/// What stands behind a position that holds no whole frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// Zeros only to the end of the file, or what an earlier use left.
    Nothing,
    /// Bytes, but no frame header of this segment.
    Remains,
    /// A later frame of this segment, or one that went astray.
    Frame,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The frame is part of the log.
    Take,
    /// The log ends here, cleanly.
    End,
    /// The log ends here; what follows was never acknowledged.
    TornTail,
    /// Acknowledged data is damaged: the start is refused.
    Corrupt,
}

/// The recovery decision. `end_known`: a later segment says how far this one reaches, and that is further on.
pub(super) fn verdict(found: Found, behind: Behind, end_known: bool) -> Verdict {
    match (found, behind, end_known) {
        (Found::Whole, _, _) => Verdict::Take,
        (Found::Unchained | Found::Misplaced, _, _) => Verdict::Corrupt,
        (_, _, true) => Verdict::Corrupt,
        (_, Behind::Frame, false) => Verdict::Corrupt,
        (Found::Zero, Behind::Nothing, false) => Verdict::End,
        (Found::Zero, Behind::Remains, false) => Verdict::TornTail,
        (Found::Broken, Behind::Nothing | Behind::Remains, false) => Verdict::TornTail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of the table. The reasons: with a known end nothing before it may be missing; a later frame proves
    /// that this one was acknowledged; without either, what does not verify was never acknowledged.
    #[test]
    fn the_verdict_on_every_combination() {
        use {Behind as B, Found as F, Verdict as V};
        for behind in [B::Nothing, B::Remains, B::Frame] {
            for end_known in [false, true] {
                assert_eq!(verdict(F::Whole, behind, end_known), V::Take);
                assert_eq!(verdict(F::Unchained, behind, end_known), V::Corrupt);
                assert_eq!(verdict(F::Misplaced, behind, end_known), V::Corrupt);
            }
            assert_eq!(verdict(F::Zero, behind, true), V::Corrupt);
            assert_eq!(verdict(F::Broken, behind, true), V::Corrupt);
        }
        assert_eq!(verdict(F::Zero, B::Nothing, false), V::End);
        assert_eq!(verdict(F::Zero, B::Remains, false), V::TornTail);
        assert_eq!(verdict(F::Zero, B::Frame, false), V::Corrupt);
        assert_eq!(verdict(F::Broken, B::Nothing, false), V::TornTail);
        assert_eq!(verdict(F::Broken, B::Remains, false), V::TornTail);
        assert_eq!(verdict(F::Broken, B::Frame, false), V::Corrupt);
    }
}

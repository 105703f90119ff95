//! What is known of one key: as a start found it, and the writes since then.

/// A value and its version; `None`: absent.
pub(super) type State = Option<(Vec<u8>, u64)>;

/// A write of one key.
pub(super) struct Write {
    pub(super) id: u64,
    pub(super) value: Option<Vec<u8>>,
}

/// What is known of one key.
#[derive(Default)]
pub(super) struct Known {
    /// As the last start found it.
    pub(super) base: State,
    /// Since then, in order.
    pub(super) writes: Vec<Write>,
    /// How many of them were acknowledged; a later one implies those before it.
    pub(super) acknowledged: usize,
    /// The highest version that anybody saw.
    pub(super) version: u64,
}

impl Known {
    pub(super) fn is_present(&self) -> bool {
        self.writes
            .last()
            .map_or(self.base.is_some(), |write| write.value.is_some())
    }

    /// Whether a client may see this, at least `since` of the writes being durable.
    pub(super) fn allows(&self, since: usize, found: &State) -> bool {
        let found = found.as_ref().map(|(value, _)| value);
        let base = self.base.as_ref().map(|(value, _)| value);
        (since == 0 && base == found)
            || self.writes[since.saturating_sub(1)..]
                .iter()
                .any(|write| write.value.as_ref() == found)
    }
}

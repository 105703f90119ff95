//! What becomes of damage: it refuses a start, or is written down by a check of the whole log.
//!
//! Start and check are the same code, so that they cannot disagree about what damage is; only here they part.

use crate::storage::error::StorageError;

/// Damage that was found so far, if that is what is asked for.
pub(super) enum Damage {
    /// The first one ends it.
    Refuses,
    /// All of it, in the order in which it was found.
    Collected(Vec<StorageError>),
}

impl Damage {
    /// Takes note of damage.
    ///
    /// # Errors
    /// The damage itself when it refuses the start; an error that is no damage always.
    pub(super) fn note(&mut self, error: StorageError) -> Result<(), StorageError> {
        match (self, error) {
            (Damage::Collected(found), error @ StorageError::Corrupt { .. }) => {
                // A file that is not what it should be is also missing where it belongs: one line is enough.
                if !found.iter().any(|known| same_place(known, &error)) {
                    found.push(error);
                }
                Ok(())
            }
            (_, error) => Err(error),
        }
    }

    /// How many damaged places were found.
    pub(super) fn count(&self) -> usize {
        match self {
            Damage::Refuses => 0,
            Damage::Collected(found) => found.len(),
        }
    }
}

fn same_place(one: &StorageError, other: &StorageError) -> bool {
    match (one, other) {
        (
            StorageError::Corrupt { file, offset, .. },
            StorageError::Corrupt {
                file: other_file,
                offset: other_offset,
                ..
            },
        ) => (file, offset) == (other_file, other_offset),
        _ => false,
    }
}

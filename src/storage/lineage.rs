//! Which of the segments that were found make up the log: as the newest one says, whose first frame lists those before
//! it and whose later frames retire some of them.
//!
//! A crash may have left a segment behind that one with nothing but its header, so the list is that of the newest
//! segment that has one. It may also have torn a header, before there was a frame behind it. A segment that is listed and
//! not there is damage; one that is there and not listed was retired, and came back or was not removed yet.
//!
//! A table also lists segments of other logs, which the shard keeps since the number of shards has changed.
//!
//! Does not: read frames (`recovery` does, and asks here what they mean).

use std::collections::BTreeMap;

use crate::storage::error::StorageError;
use crate::storage::segment::{self, SegmentKey};
use crate::storage::survey::{Opened, Survey, Unreadable};
use crate::storage::table::TableEntry;
use crate::storage::writer::LogIdentity;

/// What one segment says of others.
#[derive(Default)]
pub(super) struct Told {
    /// The segments before it; `None`: it has no frame.
    pub(super) table: Option<Vec<TableEntry>>,
    /// Segments that it retires.
    pub(super) retired: Vec<SegmentKey>,
}

/// The newest segment.
///
/// # Errors
/// `Corrupt` when there is none and the shard has served before, a spare was made when there was a newer one, or a file
/// without a valid header is one.
pub(super) fn newest<'a, F>(
    found: &'a Survey<F>,
    identity: &LogIdentity,
    must_exist: bool,
) -> Result<Option<&'a Opened<F>>, StorageError> {
    let newest = found.segments.last();
    let number = newest.map_or(0, |newest| newest.header.number);
    let damaged = found
        .unreadable
        .iter()
        .find(|file| file.lists.is_some_and(|lists| lists >= number));
    if let Some(file) = damaged {
        return Err(unreadable(file));
    }
    if found.witnessed.0 > number {
        return Err(missing(segment::name(identity.log, found.witnessed.1)));
    }
    match newest {
        None if must_exist => Err(missing(segment::name(identity.log, 1))),
        newest => Ok(newest),
    }
}

fn unreadable<F>(file: &Unreadable<F>) -> StorageError {
    StorageError::Corrupt {
        file: file.at.name.clone(),
        offset: 0,
        what: format!("the segment header does not verify: {}", file.what),
    }
}

/// The segment before one that has no frame; `None`: there never was one.
///
/// # Errors
/// `Corrupt` when it is not there.
pub(super) fn before<'a, F>(
    found: &'a Survey<F>,
    segment: &Opened<F>,
) -> Result<Option<&'a Opened<F>>, StorageError> {
    let number = segment.header.previous_number;
    if number == 0 {
        return Ok(None);
    }
    match at(found, number) {
        Some(before) => Ok(Some(before)),
        None => Err(StorageError::Corrupt {
            file: segment.at.name.clone(),
            offset: 0,
            what: format!("segment {number}, which it follows, is missing"),
        }),
    }
}

/// The segments that are listed and not retired, by log and number.
pub(super) fn listed(told: &Told) -> impl Iterator<Item = TableEntry> {
    let mut listed = BTreeMap::new();
    for entry in told.table.iter().flatten() {
        if !told.retired.contains(&entry.segment) {
            listed.insert(entry.segment, *entry);
        }
    }
    listed.into_values()
}

/// The segment of this log that a table lists.
///
/// # Errors
/// `Corrupt` when it is not there, or its file is in another use.
pub(super) fn find<'a, F>(
    found: &'a Survey<F>,
    entry: &TableEntry,
) -> Result<&'a Opened<F>, StorageError> {
    let Some(segment) = at(found, entry.segment.number) else {
        let name = segment::name(entry.segment.log, entry.file);
        if let Some(file) = found.unreadable.iter().find(|file| file.at.name == name) {
            return Err(unreadable(file));
        }
        return Err(missing(name));
    };
    check_use(segment, entry)?;
    Ok(segment)
}

/// Whether a file is in the use in which a table lists it.
pub(super) fn check_use<F>(segment: &Opened<F>, entry: &TableEntry) -> Result<(), StorageError> {
    let header = &segment.header;
    if (header.key(), header.file, header.epoch) == (entry.segment, entry.file, entry.epoch) {
        return Ok(());
    }
    Err(StorageError::Corrupt {
        file: segment.at.name.clone(),
        offset: 0,
        what: format!(
            "segment {} in another use of the file than the log knows: files were copied back",
            entry.segment.number
        ),
    })
}

fn at<F>(found: &Survey<F>, number: u32) -> Option<&Opened<F>> {
    let at = found
        .segments
        .binary_search_by_key(&number, |segment| segment.header.number);
    at.ok().map(|at| &found.segments[at])
}

/// A segment file that belongs to the log and is not there.
pub(super) fn missing(file: String) -> StorageError {
    StorageError::Corrupt {
        file,
        offset: 0,
        what: "the segment file is missing".into(),
    }
}

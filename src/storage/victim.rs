//! Where compaction pays: which segment has the most dead bytes, and how urgent that is.
//!
//! The share of dead bytes is kept between two bounds: below the first nothing is done, from there on the rate grows,
//! and at the second nothing holds compaction back. So a store takes at most about twice its live bytes, and a burst of
//! overwrites does not compete with its own compaction.
//!
//! Does not: read or copy anything (`compact` does).

use crate::storage::compact::room_needed;
use crate::storage::disk::BLOCK;
use crate::storage::segment::SegmentId;
use crate::storage::segments::{Segment, Segments};

/// Dead share of the sealed segments, in percent, from which on they are compacted.
const DEAD_PERCENT_MIN: u64 = 36;

/// Dead share from which on compaction runs as fast as it can.
const DEAD_PERCENT_MAX: u64 = 44;

/// Bytes per second that compaction reads and copies for each percent above the minimum.
const BYTES_PER_SECOND_AND_PERCENT: u64 = 16 << 20;

/// Dead share of a segment, in percent, that is worth its copying when the disk is full.
const DEAD_PERCENT_WHEN_FULL: u64 = 6;

/// Dead bytes of a segment that are worth its copying when the disk is full and deletes have hardly any room left: that of
/// a few of them.
const DEAD_BYTES_WHEN_URGENT: u64 = 4 * BLOCK as u64;

/// What is left of the active segment for deletes to be urgent, as a divisor of the size of a segment.
const URGENT_ROOM_DIVISOR: u64 = 32;

/// When tombstones are more than this share of the sealed segments, in percent, the oldest segment is next: they can go
/// only with what is older.
const TOMBSTONE_PERCENT_MAX: u64 = 10;

/// Bytes per second that compaction reads and copies of segments that were written under another number of shards.
const MIGRATION_BYTES_PER_SECOND: u64 = 64 << 20;

/// Segments beyond what their bytes need, before small ones are merged. Every start leaves a short one.
const SHORT_SEGMENTS_MAX: u64 = 16;

/// How fast compaction may go; the greater one is the faster one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// Bytes per second.
    Bounded(u64),
    /// As fast as other work lets it.
    Unbounded,
}

/// What is left when there is no room for another file, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// In the active segment.
    pub(super) left: u64,
    /// For the copies of one segment.
    pub(super) for_copies: u64,
}

/// What to compact next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) victim: SegmentId,
    pub(super) pace: Pace,
}

/// Bytes of a segment that compacting it wins back. The oldest one needs no tombstones: nothing older is left for them
/// to hide.
fn winnable<F>(segment: &Segment<F>, is_oldest: bool) -> u64 {
    let tombstones = if is_oldest {
        segment.tombstone_bytes
    } else {
        0
    };
    segment.used_bytes - segment.live_bytes + tombstones
}

/// Of several segments.
#[derive(Default)]
struct Sums {
    used: u64,
    dead: u64,
    tombstones: u64,
    count: u64,
}

impl Sums {
    /// `sealed`: segments with what compacting each wins back.
    fn of<'a, F: 'a>(sealed: impl Iterator<Item = (SegmentId, &'a Segment<F>, u64)>) -> Sums {
        sealed.fold(Sums::default(), |mut sums, (_, segment, win)| {
            sums.used += segment.used_bytes;
            sums.dead += win;
            sums.tombstones += segment.tombstone_bytes;
            sums.count += 1;
            sums
        })
    }
}

/// The pace that the dead bytes of sealed segments ask for; `None` where they are too few to matter, `dead_min` or less.
fn pace_of(dead: u64, used: u64, dead_min: u64) -> Option<Pace> {
    if dead == 0 || dead < dead_min || dead * 100 < used * DEAD_PERCENT_MIN {
        return None;
    }
    if dead * 100 >= used * DEAD_PERCENT_MAX {
        return Some(Pace::Unbounded);
    }
    let over = dead * 100 / used - DEAD_PERCENT_MIN;
    Some(Pace::Bounded(BYTES_PER_SECOND_AND_PERCENT * (over + 1)))
}

/// The pace that the dead bytes ask for now: they grow while a segment is being compacted. `active` does not count.
pub(super) fn pace_now<F>(
    segments: &Segments<F>,
    active: SegmentId,
    dead_min: u64,
) -> Option<Pace> {
    let others = segments.own().filter(|(id, _)| *id != active);
    let sums = Sums::of(others.map(|(id, segment)| (id, segment, winnable(segment, false))));
    pace_of(sums.dead, sums.used, dead_min)
}

/// The segment to compact now, if any is worth it. `active` takes the copies and is never chosen; `segment_bytes` is the
/// size of a new one, `dead_min` what is left alone; `foreign_since` the lowest first version of the segments of other logs that exist anywhere; `full`:
/// there is no room for another file, only that.
pub(super) fn choose<F>(
    segments: &Segments<F>,
    active: SegmentId,
    segment_bytes: u64,
    dead_min: u64,
    foreign_since: Option<u64>,
    full: Option<Room>,
) -> Option<Choice> {
    let (oldest, first) = segments
        .own()
        .min_by_key(|(_, segment)| segment.first_version)?;
    let is_oldest = |id| {
        let nothing_older = foreign_since.is_none_or(|since| since > first.first_version);
        id == oldest && nothing_older
    };
    let sealed = || {
        let others = segments.own().filter(move |(id, _)| *id != active);
        others.map(move |(id, segment)| (id, segment, winnable(segment, is_oldest(id))))
    };
    // All shards take them in the same order, so that one after the other is needed by nobody.
    let foreign = segments
        .foreign()
        .filter(|(_, segment)| segment.live_bytes > 0)
        .min_by_key(|(_, segment)| (segment.first_version, segment.key));
    let choice = |victim, pace| Some(Choice { victim, pace });
    // Nothing has to be copied for these.
    let free = sealed().find(|(id, segment, _)| {
        let needed = if is_oldest(*id) {
            segment.live_bytes - segment.tombstone_bytes
        } else {
            segment.live_bytes
        };
        needed == 0
    });
    if let Some((victim, ..)) = free {
        return choice(victim, Pace::Unbounded);
    }
    let Sums {
        used,
        dead,
        tombstones,
        count,
    } = Sums::of(sealed());
    if let Some(room) = full {
        let victim = choose_when_full(sealed(), foreign, segment_bytes, room)?;
        return choice(victim, Pace::Unbounded);
    }
    let pressed = pace_of(dead, used, dead_min);
    if let (Some((victim, _)), false) = (foreign, pressed == Some(Pace::Unbounded)) {
        return choice(victim, Pace::Bounded(MIGRATION_BYTES_PER_SECOND));
    }
    let best = sealed().max_by_key(|(_, segment, win)| win * 1000 / segment.used_bytes)?;
    // Where a segment of another log is older they would only be copied, again and again.
    if tombstones * 100 > used * TOMBSTONE_PERCENT_MAX && is_oldest(oldest) {
        return choice(oldest, Pace::Bounded(BYTES_PER_SECOND_AND_PERCENT))
            .filter(|_| oldest != active);
    }
    if let Some(pace) = pressed {
        return choice(best.0, pace);
    }
    if count > 2 * (used / segment_bytes) + SHORT_SEGMENTS_MAX {
        let shortest = sealed().min_by_key(|(_, segment, _)| segment.used_bytes)?;
        return choice(shortest.0, Pace::Bounded(BYTES_PER_SECOND_AND_PERCENT));
    }
    None
}

/// What to compact when there is room for its copies alone: the segment with most dead bytes that is worth it, or else
/// the next of another log.
fn choose_when_full<'a, F: 'a>(
    sealed: impl Iterator<Item = (SegmentId, &'a Segment<F>, u64)>,
    foreign: Option<(SegmentId, &'a Segment<F>)>,
    segment_bytes: u64,
    room: Room,
) -> Option<SegmentId> {
    let urgent = room.left < segment_bytes / URGENT_ROOM_DIVISOR;
    let pays = |segment: &Segment<F>, win| {
        win * 100 >= segment.used_bytes * DEAD_PERCENT_WHEN_FULL
            || (urgent && win >= DEAD_BYTES_WHEN_URGENT)
    };
    let fits = |segment: &Segment<F>| room_needed(segment.live_bytes) <= room.for_copies;
    let best = sealed
        .filter(|(_, segment, win)| pays(segment, *win) && fits(segment))
        .max_by_key(|(_, segment, win)| win * 1000 / segment.used_bytes);
    best.map(|(victim, ..)| victim).or(foreign
        .filter(|(_, segment)| fits(segment))
        .map(|(victim, _)| victim))
}

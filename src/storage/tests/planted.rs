//! T4: the test of the tests. Bugs are planted one at a time, and each must be found by the tests that there are, within a
//! bound. What none of them finds is a hole in them.
//!
//! Everything here has fixed seeds: the outcome is the same each time. The same tests pass where nothing is planted: the
//! stories as tests of their own, the universes of the simulation at the end here.

use std::panic::catch_unwind;
use std::sync::Once;

use super::simulation::universe;
use super::{compaction, damage, failed_syncs, io_errors, lane, migration};
use crate::storage::plant::{Plant, PlantedHere, plant};

const BUGS: [Plant; 29] = [
    Plant::AcknowledgeEarly,
    Plant::ExposeEarly,
    Plant::RefuseEarly,
    Plant::SkipCrc,
    Plant::AcceptBadFrame,
    Plant::DropTombstone,
    Plant::CopyReplaced,
    Plant::RewriteTail,
    Plant::DirtyPadding,
    Plant::IgnoreShortWrite,
    Plant::GoOnAfterError,
    Plant::RotateEarly,
    Plant::CacheStale,
    Plant::RetrySync,
    Plant::SkipDirectorySync,
    Plant::SkipFileSync,
    Plant::SkipClosingFrame,
    Plant::RetireEarly,
    Plant::ReuseReadFile,
    Plant::RepeatEpoch,
    Plant::RepeatVersion,
    Plant::RepeatShardVersion,
    Plant::ForgetForeign,
    Plant::UnlistForeign,
    Plant::RetireForOne,
    Plant::CutBeforeRetirement,
    Plant::TrustSegmentSize,
    Plant::PassOwnKey,
    Plant::LetAllIn,
];

/// Universes that are run with nothing planted, at least.
const UNIVERSES_WHOLE: u64 = 200;

/// The test that has to find a bug.
enum Finder {
    /// The simulation, within so many universes.
    Simulation { universes: u64 },
    /// The simulation of changed numbers of shards, within so many universes.
    Migration { universes: u64 },
    /// A test, as it stands.
    Test(&'static str, fn()),
}

impl Finder {
    /// Several times what it took when this was written.
    fn of(bug: Plant) -> Finder {
        let soon = Finder::Simulation { universes: 100 };
        let erased: fn() = damage::an_erased_block_or_sector_is_refused_or_harmless;
        match bug {
            Plant::AcknowledgeEarly
            | Plant::ExposeEarly
            | Plant::RefuseEarly
            | Plant::DirtyPadding
            | Plant::RotateEarly
            | Plant::CacheStale
            | Plant::SkipDirectorySync
            | Plant::SkipFileSync
            | Plant::RepeatEpoch
            | Plant::RepeatVersion
            | Plant::PassOwnKey => soon,
            // Some take long: a key has to be deleted after the change, its tombstone compacted, its old record read again.
            Plant::RepeatShardVersion
            | Plant::ForgetForeign
            | Plant::UnlistForeign
            | Plant::RetireForOne
            | Plant::TrustSegmentSize => Finder::Migration { universes: 4000 },
            Plant::RetireEarly => Finder::Simulation { universes: 500 },
            // A torn write spoils the block before it only when a sector of that comes out as neither old nor new.
            Plant::RewriteTail | Plant::DropTombstone => Finder::Simulation { universes: 2000 },
            Plant::SkipCrc | Plant::AcceptBadFrame | Plant::SkipClosingFrame => {
                Finder::Test("damage: erase", erased)
            }
            Plant::LetAllIn => Finder::Test(
                "lane: a small write",
                lane::a_small_write_waits_for_one_large_one_at_most,
            ),
            Plant::CutBeforeRetirement => Finder::Test(
                "migration: a copy while a segment of another log is being retired",
                migration::stories::what_is_deleted_stays_deleted_in_a_copy_of_a_store_that_moves,
            ),
            Plant::CopyReplaced => Finder::Test(
                "compaction: a key being deleted",
                compaction::a_key_that_is_being_deleted_is_not_copied,
            ),
            Plant::ReuseReadFile => Finder::Test(
                "compaction: a reader",
                compaction::what_a_reader_has_found_stays_until_it_is_read,
            ),
            Plant::IgnoreShortWrite => Finder::Test(
                "I/O errors: short write",
                io_errors::every_write_may_be_short,
            ),
            Plant::GoOnAfterError => Finder::Test(
                "I/O errors: EIO",
                io_errors::every_operation_may_fail_with_an_io_error,
            ),
            Plant::RetrySync => Finder::Test(
                "I/O errors: failed syncs",
                failed_syncs::a_failed_sync_is_never_followed_by_the_use_of_its_file,
            ),
        }
    }
}

/// How a bug was found.
struct Found {
    by: String,
    universes: u64,
    failure: String,
}

/// Looks for the bug in one universe after the other.
fn find_in(name: &str, universes: u64, run: impl Fn(u64) -> Option<String>) -> Option<Found> {
    (1..=universes).find_map(|seed| {
        let failure = run(seed)?;
        assert_eq!(
            run(seed).as_ref(),
            Some(&failure),
            "seed {seed} does not replay"
        );
        Some(Found {
            by: format!("{name}, {seed} universes"),
            universes: seed,
            failure,
        })
    })
}

/// Looks for the bug that is planted in this thread.
fn find(finder: &Finder) -> Option<Found> {
    match *finder {
        Finder::Simulation { universes } => {
            find_in("simulation", universes, |seed| universe(seed, false).err())
        }
        Finder::Migration { universes } => find_in("migration", universes, |seed| {
            migration::universe(seed).err()
        }),
        Finder::Test(name, test) => catch_unwind(test).err().map(|panic| Found {
            by: name.to_owned(),
            universes: 0,
            failure: match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => panic.downcast_ref::<&str>().unwrap_or(&"").to_string(),
            },
        }),
    }
}

/// Lets panics that a planted bug causes pass without a word: they are how it is found.
fn expect_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !PlantedHere::any() {
                before(panic);
            }
        }));
    });
}

#[test]
fn every_planted_bug_is_found() {
    expect_panics();
    let (mut found, mut lines, mut universes) = (0, Vec::new(), UNIVERSES_WHOLE);
    for (number, bug) in BUGS.into_iter().enumerate() {
        assert_eq!(bug as usize, number, "every bug is listed, in its order");
        let here = plant(bug);
        let outcome = find(&Finder::of(bug));
        drop(here);
        let line = match outcome {
            Some(how) => {
                found += 1;
                universes = universes.max(how.universes);
                let failure = how.failure.lines().next().unwrap_or_default();
                format!("{bug:?}: found by {}: {failure:.150}", how.by)
            }
            None => format!("{bug:?}: NOT FOUND"),
        };
        println!("{line}");
        lines.push(line);
    }
    println!("planted bugs: {found}/{} caught", BUGS.len());
    assert_eq!(found, BUGS.len(), "{lines:#?}");
    for seed in 1..=universes {
        if let Err(failure) = universe(seed, false) {
            panic!("seed {seed} fails with nothing planted: {failure}");
        }
    }
    for seed in 1..=UNIVERSES_WHOLE {
        if let Err(failure) = migration::universe(seed) {
            panic!("migration: seed {seed} fails with nothing planted: {failure}");
        }
    }
    println!("nothing planted: {universes} universes pass");
}

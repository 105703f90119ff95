//! The integration tests: the real binaries, started, asked, killed and restarted. One binary, so that it links once.

#![allow(
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a test tells one story; what it does not expect is how it fails"
)]
// How the tests work.

mod harness;
mod random;
mod raw;
mod stock;

// What a client is promised.
mod batches;
mod counters;
mod large_values;
mod limits;
mod linearizability;
mod listing;
mod model;
mod operations;
mod routing;
mod sharded;
// What the disk and the machine may do to it.
mod backup;
mod damage;
mod durability;
mod fixtures;
mod liveness;
mod resharding;
mod restore;
mod scrub;
mod shutdown;
// What a client cannot break, and no bytes at all.
mod fuzz;
mod hostile;
// The two ways in which a server answers.
mod both_ways;
mod differential;
// Other programs: the tool, foreign languages, the schema's compiler.
mod cli;
mod clients;
mod schema;
// The project itself.
mod readme;
mod tidy;
mod verify;

//! Tests of storage on the simulated disk: the model itself, the engine under simulation, the log damage by damage,
//! I/O errors, and the contract of the store.

mod compaction;
mod damage;
mod executor;
mod exhaustive;
mod failed_syncs;
mod io_errors;
mod lane;
mod life;
mod migration;
mod model;
mod planted;
mod scrub;
mod sim_cuts;
mod sim_disk;
mod sim_faults;
mod simulation;
mod snapshot;
mod spares;
mod starts;
mod tasks;
mod warming;
mod worklist;

/// Whether the sweeps take their time: `ORLOP_SWEEPS=long`, for runs of hours.
fn sweeps_are_long() -> bool {
    std::env::var("ORLOP_SWEEPS").is_ok_and(|value| value == "long")
}

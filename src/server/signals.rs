//! SIGTERM and SIGINT: the first asks for a stop in order, the second ends the process at once.
//!
//! Guarantees: a signal works at any time after the start of logging, also during recovery. The signals are taken by a
//! plain thread, never by a handler that could interrupt an executor.

use std::sync::mpsc::Sender;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

use crate::server::exit::{self, ServerError};
use crate::server::shard_thread::Event;

/// Takes the signals from now on, and reports the first one.
pub(crate) fn watch(events: Sender<Event>) -> Result<(), ServerError> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(ServerError::system("registering for signals"))?;
    let take = move || {
        let mut stopping = false;
        for signal in signals.forever() {
            let signal = signal_name(signal).unwrap_or("a signal");
            if stopping {
                tracing::warn!(
                    signal,
                    "stopping at once: what was not answered has an unknown outcome"
                );
                std::process::exit(i32::from(exit::INTERRUPTED));
            }
            stopping = true;
            tracing::info!(signal, "stopping: a second signal stops at once");
            // Nobody listens when the process ends already.
            events.send(Event::StopRequested).unwrap_or_default();
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(take)
        .map_err(ServerError::system(
            "starting the thread that takes signals",
        ))?;
    Ok(())
}

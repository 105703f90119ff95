//! The log: structured lines on standard error, written by a thread of its own.
//!
//! Owns: standard output as well, because it carries one line only. Guarantees: a log line never blocks a shard (a full
//! queue drops lines and the count is reported at the end); lines logged before the process ends are written,
//! whoever ends it, and also when it panics. Does not: rotate or filter by module; a service manager does that.
//! Called by `server::main`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::panic;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};

use crate::limits;
use crate::server::arguments::{LogFormat, LogLevel};
use crate::server::exit::ServerError;
use crate::server::os;

struct Writer {
    dropped: ErrorCounter,
    // Writes what is queued when it is dropped.
    _guard: WorkerGuard,
}

static WRITER: Mutex<Option<Writer>> = Mutex::new(None);

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> LevelFilter {
        match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

/// Starts logging, once per process.
///
/// # Errors
/// When the process logs already or the kernel refuses.
pub(crate) fn start(level: LogLevel, format: LogFormat) -> Result<(), ServerError> {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(limits::LOG_LINES_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(io::stderr());
    let dropped = writer.error_counter();
    let lines = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from(level))
        .with_writer(writer)
        .with_ansi(false);
    let set = match format {
        LogFormat::Text => tracing::subscriber::set_global_default(lines.finish()),
        LogFormat::Json => {
            tracing::subscriber::set_global_default(lines.json().flatten_event(true).finish())
        }
    };
    set.map_err(|error| ServerError::Environment(format!("logging cannot start: {error}")))?;
    *WRITER
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(Writer {
        dropped,
        _guard: guard,
    });
    os::at_exit(flush_at_exit).map_err(ServerError::system("registering the end of the log"))?;
    abort_on_panic();
    Ok(())
}

extern "C" fn flush_at_exit() {
    flush();
}

/// Writes what is queued and ends logging. Lines after it are lost.
fn flush() {
    let writer = WRITER
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
        .take();
    if let Some(writer) = writer {
        let dropped = writer.dropped.dropped_lines();
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "log lines were dropped: standard error is read too slowly"
            );
        }
    }
}

/// A panic anywhere is a defect, and half a server is worse than none: recovery is cheap. Logs it and aborts.
fn abort_on_panic() {
    panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let message = info.payload_as_str().unwrap_or("a panic without a message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(thread = thread.name(), place, "panic, aborting: {message}");
        flush();
        std::process::abort();
    }));
}

/// Standard output as it was at the start, for the one line that it carries.
#[derive(Debug)]
pub(crate) struct ReadyOutput(File);

impl ReadyOutput {
    /// Takes standard output away from everybody else: a library prints errors of connections there.
    pub(crate) fn take() -> Result<ReadyOutput, ServerError> {
        let what = ServerError::system;
        let stdout = io::stdout();
        let ours = stdout
            .as_fd()
            .try_clone_to_owned()
            .map_err(what("duplicating standard output"))?;
        let null = OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .map_err(what("opening /dev/null"))?;
        os::replace_descriptor(&null, &stdout).map_err(what("replacing standard output"))?;
        Ok(ReadyOutput(File::from(ours)))
    }

    /// Writes `line` and closes standard output.
    pub(crate) fn print(mut self, line: &str) {
        // Nobody reads the line when a service manager started us and waits for its own notification.
        if let Err(error) = writeln!(self.0, "{line}").and_then(|()| self.0.flush()) {
            tracing::warn!(%error, "the ready line could not be written to standard output");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_its_own() {
        let filters = [
            LogLevel::Error,
            LogLevel::Warn,
            LogLevel::Info,
            LogLevel::Debug,
            LogLevel::Trace,
        ];
        let filters = filters.map(LevelFilter::from);
        assert!(filters.is_sorted());
        assert_eq!(
            filters.map(|filter| filter.to_string()),
            ["error", "warn", "info", "debug", "trace"]
        );
    }
}

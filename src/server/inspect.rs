//! `orlopd inspect`: what the bytes of a data directory mean, in lines for people.
//!
//! Guarantees: nothing is changed. Does not: judge (`verify` does).

use std::io::{self, BufWriter, Write as _};
use std::sync::Arc;

use crate::server::arguments::InspectArguments;
use crate::server::exit::{self, ServerError};
use crate::storage::directory::StoppedStore;
use crate::storage::disk::read_only::ReadOnlyDisk;
use crate::storage::{Detail, inspect, show_manifest};

/// Shows what was asked for; returns the exit code.
pub(crate) fn run(asked: &InspectArguments) -> Result<u8, ServerError> {
    let store = StoppedStore::open(&asked.directory.data)?;
    let mut files = store.segment_files()?;
    if let Some(segment) = &asked.segment {
        files.retain(|(name, _)| name == segment);
        if files.is_empty() {
            let data = asked.directory.data.display();
            return Err(ServerError::Environment(format!(
                "{data} has no segment file \"{segment}\": \"orlopd inspect --data {data}\" lists them"
            )));
        }
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = show(asked, &store, &files, &mut out)?;
    match printed.and_then(|()| out.flush()) {
        // Who reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(exit::DONE),
        printed => printed
            .map(|()| exit::DONE)
            .map_err(ServerError::system("printing")),
    }
}

/// The outer error is of the store, the inner one of `out`.
fn show(
    asked: &InspectArguments,
    store: &StoppedStore,
    files: &[(String, u64)],
    out: &mut impl io::Write,
) -> Result<io::Result<()>, ServerError> {
    let mut printed = match asked.segment {
        None => writeln!(out, "{}", show_manifest(store.manifest())),
        Some(_) => Ok(()),
    };
    let detail = match (asked.frames, asked.records) {
        (_, true) => Detail::Records,
        (true, false) => Detail::Frames,
        (false, false) => Detail::Header,
    };
    let disk = ReadOnlyDisk::new(store.path(), Arc::default());
    for (name, bytes) in files {
        let showing = inspect(&disk, name, *bytes, detail, |line| {
            if printed.is_ok() {
                printed = writeln!(out, "{line}");
            }
        });
        futures::executor::block_on(showing)?;
        if printed.is_err() {
            break;
        }
    }
    Ok(printed)
}

//! `orlopd restore`: makes a data directory of what `orlop backup` has written.
//!
//! Guarantees: the directory appears whole, durable and verified, or nothing of it is left; only files of a store are
//! made, by plain names. Does not: merge into a store, or repair.

mod source;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use crate::partial::{Partial, PartialError};
use crate::server::arguments::RestoreArguments;
use crate::server::exit::{self, ServerError};
use crate::server::verify;
use crate::storage::StorageError;
use crate::storage::directory::{MANIFEST_NAME, StoppedStore};
use crate::storage::disk::BLOCK;
use crate::storage::segment::LogId;
use crate::storage::snapshot::{self, CopiedSegment};
use source::Source;

/// Bytes that are copied at once.
const COPY_BYTES: usize = 1 << 20;

/// What to do when the disk is in the way.
const ADVICE: &str = "nothing was restored; make room, or name another directory with --data";

/// Makes the directory and says what is in it; returns the exit code.
pub(crate) fn run(asked: &RestoreArguments) -> Result<u8, ServerError> {
    let source = Source::open(&asked.source)?;
    let partial = Partial::directory(&asked.data).map_err(not_made)?;
    let mut restoring = Restoring {
        source: &asked.source,
        partial: &partial,
        newest: HashMap::new(),
        manifest: false,
        files: 0,
        bytes: 0,
        buffer: vec![0; COPY_BYTES],
        bar: progress(source.bytes()),
    };
    source.each(|name, bytes, content| restoring.take(name, bytes, content))?;
    restoring.complete()?;
    let (files, bytes) = (restoring.files, restoring.bytes);
    let store = StoppedStore::open(partial.path())?;
    let shards = match asked.no_verify {
        true => Vec::new(),
        false => verify::check_shards(&store, None)?,
    };
    let mut damage = shards.iter().flat_map(|shard| &shard.damage).peekable();
    if damage.peek().is_some() {
        for place in damage {
            eprintln!("{place}");
        }
        eprintln!("error: the copy is damaged: nothing was restored");
        return Ok(exit::CORRUPT);
    }
    // Its lock goes: from here on a server may have the directory.
    drop(store);
    partial.finish().map_err(not_made)?;
    let keys: u64 = shards.iter().map(|shard| shard.keys).sum();
    let verified = match asked.no_verify {
        true => "not verified".to_owned(),
        false => format!("{keys} keys, verified"),
    };
    writeln!(
        io::stdout(),
        "restored {}: {files} files, {bytes} bytes, {verified}",
        asked.data.display()
    )
    .map_err(ServerError::system("printing the result"))?;
    Ok(exit::DONE)
}

/// A bar on standard error, if that is a terminal and the length is known.
fn progress(bytes: Option<u64>) -> ProgressBar {
    let Some(bytes) = bytes.filter(|_| io::stderr().is_terminal()) else {
        return ProgressBar::hidden();
    };
    let style = "restore {bar:40} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
    ProgressBar::new(bytes)
        .with_style(ProgressStyle::with_template(style).expect("the template is a constant"))
}

fn not_made(error: PartialError) -> ServerError {
    match error {
        PartialError::Target(sentence) => StorageError::Incompatible(sentence).into(),
        PartialError::Io { ref source, .. } if is_missing(source) => {
            ServerError::Environment(error.to_string())
        }
        PartialError::Io {
            action,
            path,
            source,
        } => ServerError::Disk {
            action,
            path,
            source,
            advice: ADVICE,
        },
    }
}

/// Whether a place is not there or not for this user: for a person to change.
fn is_missing(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    [NotFound, NotADirectory, PermissionDenied].contains(&error.kind())
}

/// The source cannot be restored, whoever asks.
fn unfit(source: &Path, what: impl std::fmt::Display) -> ServerError {
    StorageError::Incompatible(format!(
        "{}: {what}: name what \"orlop backup\" has written",
        source.display()
    ))
    .into()
}

/// A directory on its way.
struct Restoring<'a> {
    source: &'a Path,
    partial: &'a Partial,
    /// Of each log, the newest segment and its file.
    newest: HashMap<LogId, (CopiedSegment, String)>,
    manifest: bool,
    files: u64,
    bytes: u64,
    buffer: Vec<u8>,
    bar: ProgressBar,
}

impl Restoring<'_> {
    /// Copies one file of `bytes` bytes.
    fn take(&mut self, name: &str, bytes: u64, content: &mut dyn Read) -> Result<(), ServerError> {
        let log = snapshot::log_of(name);
        if log.is_none() && name != MANIFEST_NAME {
            return Err(unfit(
                self.source,
                format_args!("it holds {name:?}, no file of a store"),
            ));
        }
        let file = match self.partial.create(name) {
            Err(PartialError::Io { source, .. })
                if source.kind() == io::ErrorKind::AlreadyExists =>
            {
                return Err(unfit(self.source, format_args!("it holds {name} twice")));
            }
            created => created.map_err(not_made)?,
        };
        let mut copied = 0;
        while copied < bytes {
            let len = (bytes - copied).min(COPY_BYTES as u64) as usize;
            let got = fill(content, &mut self.buffer[..len])
                .map_err(|error| source::unreadable(self.source, error))?;
            if got < len {
                return Err(unfit(
                    self.source,
                    format_args!("it is cut short in {name}"),
                ));
            }
            if let (0, Some(log)) = (copied, log) {
                self.look(log, name, got)?;
            }
            let written = (&file).write_all(&self.buffer[..got]);
            written.map_err(|error| self.unwritten(error))?;
            copied += got as u64;
            self.bar.inc(got as u64);
        }
        file.sync_all().map_err(|error| self.unwritten(error))?;
        self.manifest |= name == MANIFEST_NAME;
        self.files += 1;
        self.bytes += copied;
        Ok(())
    }

    /// Notes the newest segment of a log, from the first bytes of its file.
    fn look(&mut self, log: LogId, name: &str, len: usize) -> Result<(), ServerError> {
        let block = &self.buffer[..len.min(BLOCK)];
        if let Some(segment) = snapshot::read_copied(name, block)? {
            let newest = self.newest.entry(log).or_insert((segment, name.into()));
            if segment.number > newest.0.number {
                *newest = (segment, name.into());
            }
        }
        Ok(())
    }

    /// Gives the newest segment of each log its full length, where recovery looks for its end.
    fn complete(&self) -> Result<(), ServerError> {
        self.bar.finish_and_clear();
        if !self.manifest {
            return Err(unfit(
                self.source,
                "it is cut short or no backup: there is no manifest",
            ));
        }
        for (segment, name) in self.newest.values() {
            let lengthen = |file: File| {
                if file.metadata()?.len() < segment.full_bytes {
                    file.set_len(segment.full_bytes)?;
                    file.sync_all()?;
                }
                Ok(())
            };
            let path = self.partial.path().join(name);
            let file = OpenOptions::new().write(true).open(path);
            file.and_then(lengthen)
                .map_err(|error| self.unwritten(error))?;
        }
        Ok(())
    }

    fn unwritten(&self, source: io::Error) -> ServerError {
        ServerError::Disk {
            action: "writing",
            path: self.partial.path().to_owned(),
            source,
            advice: ADVICE,
        }
    }
}

/// Reads as much as there is, up to the length of `into`.
fn fill(from: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match from.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

//! What is restored: a tar stream or a directory, as files with names.
//!
//! Guarantees: names are those of files at the top, never paths; a tar stream that ends without its end mark, and a
//! directory that a server has, are refused. Does not: know which names belong to a store.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType};

use super::{is_missing, unfit};
use crate::server::exit::ServerError;
use crate::storage::StorageError;
use crate::storage::directory::{MANIFEST_NAME, StoppedStore};

/// What a tar stream is made of, in bytes.
const TAR_BLOCK: u64 = 512;

/// Bytes of one read of a tar stream.
const READ_BYTES: usize = 1 << 20;

/// Something to restore from.
pub(super) struct Source {
    path: PathBuf,
    form: Form,
}

enum Form {
    Directory(StoppedStore),
    Tar {
        stream: Box<dyn Read>,
        bytes: Option<u64>,
    },
}

/// The bytes of the source could not be read.
pub(super) fn unreadable(source: &Path, error: io::Error) -> ServerError {
    if error.raw_os_error().is_some() && !is_missing(&error) {
        return StorageError::Io {
            action: "reading",
            file: source.display().to_string(),
            source: error,
        }
        .into();
    }
    unfit(
        source,
        format_args!("it is cut short or no backup: {error}"),
    )
}

impl Source {
    /// Opens a tar stream in a file or, as `-`, on standard input, or a directory that no server has.
    pub(super) fn open(path: &Path) -> Result<Source, ServerError> {
        let missing = |error: io::Error| {
            ServerError::Environment(format!("cannot open {}: {error}", path.display()))
        };
        let form = if path == Path::new("-") {
            Form::Tar {
                stream: Box::new(io::stdin()),
                bytes: None,
            }
        } else if std::fs::metadata(path).map_err(missing)?.is_dir() {
            Form::Directory(StoppedStore::open(path)?)
        } else {
            let file = File::open(path).map_err(missing)?;
            Form::Tar {
                bytes: file.metadata().ok().map(|file| file.len()),
                stream: Box::new(file),
            }
        };
        Ok(Source {
            path: path.to_owned(),
            form,
        })
    }

    /// Bytes that will be read, if it is known.
    pub(super) fn bytes(&self) -> Option<u64> {
        match &self.form {
            Form::Directory(store) => {
                let files = store.segment_files().ok()?;
                Some(files.iter().map(|(_, bytes)| bytes).sum())
            }
            Form::Tar { bytes, .. } => *bytes,
        }
    }

    /// Shows each file to `take`: its name, its length, and what it holds.
    pub(super) fn each(
        self,
        take: impl FnMut(&str, u64, &mut dyn Read) -> Result<(), ServerError>,
    ) -> Result<(), ServerError> {
        match self.form {
            Form::Directory(store) => each_in_directory(&self.path, &store, take),
            Form::Tar { stream, .. } => each_in_tar(&self.path, stream, take),
        }
    }
}

/// The lock of the store is held meanwhile, so that no server changes it.
fn each_in_directory(
    path: &Path,
    store: &StoppedStore,
    mut take: impl FnMut(&str, u64, &mut dyn Read) -> Result<(), ServerError>,
) -> Result<(), ServerError> {
    let entries = std::fs::read_dir(path).map_err(|error| unreadable(path, error))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names
        .collect::<io::Result<Vec<_>>>()
        .map_err(|error| unreadable(path, error))?;
    // A directory without a manifest is no store: it comes last.
    names.sort_by_key(|name| (name == MANIFEST_NAME, name.clone()));
    for name in names {
        let file = File::open(store.path().join(&name));
        let file = file.and_then(|file| Ok((file.metadata()?, file)));
        let (about, mut file) = file.map_err(|error| unreadable(path, error))?;
        if !about.is_file() {
            return Err(unfit(
                path,
                format_args!("it holds {name:?}, no file of a store"),
            ));
        }
        take(&name, about.len(), &mut file)?;
    }
    Ok(())
}

fn each_in_tar(
    path: &Path,
    stream: Box<dyn Read>,
    mut take: impl FnMut(&str, u64, &mut dyn Read) -> Result<(), ServerError>,
) -> Result<(), ServerError> {
    let read = Cell::new(0);
    let counted = Counted {
        stream: BufReader::with_capacity(READ_BYTES, stream),
        read: &read,
    };
    let mut archive = Archive::new(counted);
    let broken = |error| unreadable(path, error);
    let mut end = 0;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let bytes = entry.size();
        let name = entry.path().map_err(broken)?.into_owned();
        let kind = entry.header().entry_type();
        match (kind, plain_name(&name)) {
            // The top itself, as other programs write it.
            (EntryType::Directory, Some("")) => {}
            (EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse, Some(plain))
                if !plain.is_empty() =>
            {
                take(plain, bytes, &mut entry)?;
            }
            _ => {
                return Err(unfit(
                    path,
                    format_args!("it holds {name:?}, no file of a store"),
                ));
            }
        }
        end = read.get();
    }
    // The last thing that was read is a block behind the last file, or there is none.
    match read.get() >= end.next_multiple_of(TAR_BLOCK) + TAR_BLOCK {
        true => Ok(()),
        false => Err(unfit(
            path,
            "it is cut short or no backup: there is no end mark",
        )),
    }
}

/// The name of a file at the top; empty for the top itself, `None` for everything else.
fn plain_name(path: &Path) -> Option<&str> {
    let mut parts = path
        .components()
        .filter(|part| !matches!(part, Component::CurDir));
    match (parts.next(), parts.next()) {
        (None, None) => Some(""),
        (Some(Component::Normal(name)), None) => name.to_str(),
        _ => None,
    }
}

/// A stream that knows how much was taken of it.
struct Counted<'a, R> {
    stream: R,
    read: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.stream.read(into)?;
        self.read.set(self.read.get() + got as u64);
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_at_the_top_have_a_name() {
        for (path, name) in [
            ("manifest", Some("manifest")),
            ("./manifest", Some("manifest")),
            ("./", Some("")),
            ("../manifest", None),
            ("/manifest", None),
            ("a/manifest", None),
            ("a/../manifest", None),
        ] {
            assert_eq!(plain_name(Path::new(path)), name, "{path}");
        }
    }
}

//! A file or directory that appears under its name whole or not at all: it is made under another name beside it, synced
//! and renamed. `orlop backup` and `orlopd restore` write theirs so.
//!
//! Guarantees: what is not finished is removed, also when a signal ends the process; after [`Partial::finish`] all of it
//! is durable. What a SIGKILL or a power cut left is recognised by its name and its lock, which is gone, and is replaced.
//! Does not: know what is written.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What is behind the name of something that is not finished.
const SUFFIX: &str = ".partial";

/// The exit code of a process that a signal ended while something was not finished.
pub const EXIT_INTERRUPTED: i32 = 130;

/// Why nothing appears.
#[derive(Debug, thiserror::Error)]
pub enum PartialError {
    /// The name cannot be taken; the sentence says why and what to do.
    #[error("{0}")]
    Target(String),
    /// The system refused something.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl PartialError {
    /// For `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PartialError {
        let path = path.to_owned();
        move |source| PartialError::Io {
            action,
            path,
            source,
        }
    }
}

/// Something that is not finished. Dropping it removes it.
pub struct Partial {
    target: PathBuf,
    /// The directory of both names.
    parent: PathBuf,
    made: Arc<Made>,
    /// Locked: whoever finds it so leaves it alone.
    file: File,
}

/// What is to be removed.
struct Made {
    path: PathBuf,
    is_directory: bool,
    /// Taken to make or rename anything: who removes it keeps it.
    finished: Mutex<bool>,
}

impl Made {
    fn new(path: PathBuf, is_directory: bool) -> Made {
        Made {
            path,
            is_directory,
            finished: Mutex::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self) -> io::Result<()> {
        let removed = match self.is_directory {
            true => fs::remove_dir_all(&self.path),
            false => fs::remove_file(&self.path),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

/// Registered before anything is made, so that no signal comes in between.
fn take_signals() -> Result<Signals, PartialError> {
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]);
    signals.map_err(|error| PartialError::Target(format!("cannot take signals: {error}")))
}

/// At the first signal removes what is not finished, and ends the process.
fn remove_at_signal(made: &Made, mut signals: Signals) {
    if signals.forever().next().is_none() {
        return;
    }
    // Kept to the end: nothing is made or renamed any more.
    let finished = made.lock();
    if !*finished {
        match made.remove() {
            Ok(()) => eprintln!("interrupted: nothing is left"),
            Err(error) => eprintln!("interrupted: {} is left: {error}", made.path.display()),
        }
    }
    std::process::exit(EXIT_INTERRUPTED);
}

impl Partial {
    /// Begins a directory, for this user only; from now on SIGINT, SIGTERM and SIGHUP remove it, unless it is finished, and
    /// end the process. `target` is missing or an empty directory, and what it is in exists.
    ///
    /// # Errors
    /// `Target` when it is neither or somebody else writes it now, `Io`.
    pub fn directory(target: &Path) -> Result<Partial, PartialError> {
        let Places {
            target,
            parent,
            beside,
        } = Places::of(target)?;
        match fs::symlink_metadata(&target) {
            Ok(there) if !there.is_dir() => {
                return Err(taken(&target, "exists and is no directory"));
            }
            Ok(there) => {
                let mut entries =
                    fs::read_dir(&target).map_err(PartialError::io("listing", &target))?;
                if entries.next().is_some() {
                    return Err(taken(&target, "is not empty"));
                }
                let around =
                    fs::metadata(&parent).map_err(PartialError::io("looking at", &parent))?;
                if around.dev() != there.dev() {
                    return Err(taken(
                        &target,
                        "is where a file system is mounted, and cannot be replaced as a whole",
                    ));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(PartialError::io("looking at", &target)(source)),
        }
        clear(&beside, &target)?;
        let signals = take_signals()?;
        let io = |action| PartialError::io(action, &beside);
        let mut builder = fs::DirBuilder::new();
        builder
            .mode(0o700)
            .create(&beside)
            .map_err(io("creating"))?;
        let file = File::open(&beside).map_err(io("opening"))?;
        Partial::begin(target, parent, Made::new(beside, true), file, signals)
    }

    /// Begins a file, as [`Self::directory`]. `target` is missing, and what it is in exists.
    ///
    /// # Errors
    /// `Target` when it exists or somebody else writes it now, `Io`.
    pub fn file(target: &Path) -> Result<Partial, PartialError> {
        let Places {
            target,
            parent,
            beside,
        } = Places::of(target)?;
        if fs::symlink_metadata(&target).is_ok() {
            return Err(taken(&target, "exists already"));
        }
        clear(&beside, &target)?;
        let signals = take_signals()?;
        let file = new_file(&beside).map_err(PartialError::io("creating", &beside))?;
        Partial::begin(target, parent, Made::new(beside, false), file, signals)
    }

    fn begin(
        target: PathBuf,
        parent: PathBuf,
        made: Made,
        file: File,
        signals: Signals,
    ) -> Result<Partial, PartialError> {
        // Between its creation and this somebody may have taken it for a leftover.
        file.try_lock().map_err(|_| being_written(&target))?;
        let partial = Partial {
            target,
            parent,
            made: Arc::new(made),
            file,
        };
        let made = Arc::clone(&partial.made);
        let thread = std::thread::Builder::new().name("signals".into());
        let started = thread.spawn(move || remove_at_signal(&made, signals));
        drop(started.map_err(PartialError::io("taking signals for", partial.path()))?);
        Ok(partial)
    }

    /// Where it is for now.
    pub fn path(&self) -> &Path {
        &self.made.path
    }

    /// The file, if it is one.
    pub fn as_file(&self) -> &File {
        &self.file
    }

    /// Makes a file in the directory, for this user only.
    ///
    /// # Errors
    /// `Io`, also when there is one of that name.
    pub fn create(&self, name: &str) -> Result<File, PartialError> {
        let path = self.made.path.join(name);
        let _nobody_removes = self.made.lock();
        new_file(&path).map_err(PartialError::io("creating", &path))
    }

    /// Makes it durable and gives it its name. Its files are synced.
    ///
    /// # Errors
    /// `Io`; then nothing is left of it, unless only the directory around it could not be synced.
    pub fn finish(self) -> Result<(), PartialError> {
        let path = &self.made.path;
        self.file
            .sync_all()
            .map_err(PartialError::io("syncing", path))?;
        let mut finished = self.made.lock();
        fs::rename(path, &self.target).map_err(PartialError::io("renaming", path))?;
        *finished = true;
        let parent = File::open(&self.parent).and_then(|parent| parent.sync_all());
        parent.map_err(PartialError::io("syncing", &self.parent))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let mut finished = self.made.lock();
        if !*finished && let Err(error) = self.made.remove() {
            eprintln!("{} is left: {error}", self.made.path.display());
        }
        // A signal that comes now finds nothing to do.
        *finished = true;
    }
}

fn taken(target: &Path, what: &str) -> PartialError {
    PartialError::Target(format!(
        "{} {what}: name a place where nothing is",
        target.display()
    ))
}

fn being_written(target: &Path) -> PartialError {
    PartialError::Target(format!(
        "{} is being written by another process",
        target.display()
    ))
}

/// Where something appears.
struct Places {
    /// Its name, without links where it exists.
    target: PathBuf,
    parent: PathBuf,
    /// The name beside it for what is not finished.
    beside: PathBuf,
}

impl Places {
    fn of(asked: &Path) -> Result<Places, PartialError> {
        let target = match fs::canonicalize(asked) {
            Ok(resolved) => resolved,
            Err(_) => asked.to_owned(),
        };
        let Some(name) = target.file_name() else {
            return Err(taken(asked, "has no name of its own"));
        };
        let mut beside = name.to_owned();
        beside.push(SUFFIX);
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok(Places {
            beside: parent.join(beside),
            parent,
            target,
        })
    }
}

/// Removes what an earlier process left behind that was killed.
fn clear(beside: &Path, target: &Path) -> Result<(), PartialError> {
    let found = match File::open(beside) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(PartialError::io("opening", beside)(source)),
    };
    found.try_lock().map_err(|_| being_written(target))?;
    let is_directory = found.metadata().is_ok_and(|found| found.is_dir());
    let removed = match is_directory {
        true => fs::remove_dir_all(beside),
        false => fs::remove_file(beside),
    };
    removed.map_err(PartialError::io("removing", beside))
}

fn new_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_directory_appears_when_it_is_finished_and_not_before() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("copy");
        for exists in [false, true] {
            if exists {
                fs::remove_dir_all(&target).unwrap();
                fs::create_dir(&target).unwrap();
            }
            let partial = Partial::directory(&target).unwrap();
            drop(partial.create("one").unwrap());
            assert!(partial.create("one").is_err(), "a name is made once");
            assert_eq!(target.exists(), exists);
            partial.finish().unwrap();
            assert_eq!(names(home.path()), ["copy"]);
            assert_eq!(names(&target), ["one"]);
        }
        let refused = Partial::directory(&target).map(drop).unwrap_err();
        assert!(refused.to_string().contains("is not empty"), "{refused}");
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let partial = Partial::directory(&home.path().join("copy")).unwrap();
        drop(partial.create("one").unwrap());
        drop(partial);
        drop(Partial::file(&home.path().join("copy.tar")).unwrap());
        assert!(names(home.path()).is_empty());
    }

    #[test]
    fn a_file_takes_no_name_that_is_taken() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("copy.tar");
        Partial::file(&target).unwrap().finish().unwrap();
        let refused = Partial::file(&target).map(drop).unwrap_err();
        assert!(refused.to_string().contains("exists already"), "{refused}");
        let refused = Partial::directory(&target).map(drop).unwrap_err();
        assert!(refused.to_string().contains("is no directory"), "{refused}");
        assert_eq!(names(home.path()), ["copy.tar"]);
    }

    #[test]
    fn a_leftover_is_replaced_and_what_somebody_writes_is_not() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("copy");
        let leftover = home.path().join("copy.partial");
        fs::create_dir(&leftover).unwrap();
        fs::write(leftover.join("half"), b"half").unwrap();
        let partial = Partial::directory(&target).unwrap();
        assert!(names(&leftover).is_empty());
        for refused in [Partial::directory(&target), Partial::file(&target)] {
            let refused = refused.map(drop).unwrap_err();
            assert!(refused.to_string().contains("another process"), "{refused}");
        }
        partial.finish().unwrap();
        assert_eq!(names(home.path()), ["copy"]);
    }
}

//! A data directory as a whole: created once, locked by one process, identified by its manifest.
//!
//! Owns: the lock and the manifest file.
//! Guarantees: while a `DataDirectory` lives no other process has one of the same directory; the run number of this
//! start is durable before it is used.
//! Does not: know segments (each shard's store does). Used before any executor runs, so it uses blocking calls.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::storage::disk::list_files;
use crate::storage::error::StorageError;
use crate::storage::manifest::{BadSlot, Generation, MANIFEST_BYTES, MANIFEST_FORMAT, Manifest};
use crate::storage::segment::{self, LogId};

/// Name of the manifest in the data directory.
pub const MANIFEST_NAME: &str = "manifest";

/// An open, locked data directory.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    manifest: Manifest,
    /// The manifest; open and locked until the process ends.
    file: File,
}

impl DataDirectory {
    /// Opens `path` for this process, and makes it a new store if it is empty or missing.
    ///
    /// # Errors
    /// `Locked` when another process has it, `Incompatible` for another format, `Corrupt` for a damaged manifest, `Io` for
    /// the rest.
    pub fn open(path: &Path, shard_count: u16) -> Result<DataDirectory, StorageError> {
        create_durably(path).map_err(|source| {
            StorageError::io(
                "creating the data directory",
                path.display().to_string(),
                source,
            )
        })?;
        let path = path.canonicalize().map_err(|source| {
            StorageError::io(
                "resolving the data directory",
                path.display().to_string(),
                source,
            )
        })?;
        let lock = Self::open_locked(&path)?;
        let manifest = match Self::read(&path, &lock)? {
            Some(found) => found.next_run(shard_count),
            None => Manifest {
                store_uuid: random(&path)?,
                placement_seed: u64::from_le_bytes(random(&path)?),
                generation: Generation {
                    first_log: LogId(0),
                    shards: shard_count,
                },
                previous: None,
                next_log: LogId(shard_count.into()),
                run: 1,
                served: false,
            },
        };
        Self::write(&path, &lock, &manifest)?;
        Ok(DataDirectory {
            path,
            manifest,
            file: lock,
        })
    }

    /// The directory, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Identity of the store.
    pub fn store_uuid(&self) -> [u8; 16] {
        self.manifest.store_uuid
    }

    /// Seed of the placement hash.
    pub fn placement_seed(&self) -> u64 {
        self.manifest.placement_seed
    }

    /// Number of this start, from 1.
    pub fn run(&self) -> u64 {
        self.manifest.run
    }

    /// What it says of itself, as of this start.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Notes durably that all shards have their segments, which list those of the generation before. Call before anything
    /// is acknowledged, moved or removed.
    ///
    /// # Errors
    /// `Io` when the manifest cannot be written.
    pub fn confirm_served(&mut self) -> Result<(), StorageError> {
        if !self.manifest.served {
            (self.manifest.served, self.manifest.previous) = (true, None);
            Self::write(&self.path, &self.file, &self.manifest)?;
        }
        Ok(())
    }

    fn open_locked(path: &Path) -> Result<File, StorageError> {
        let name = path.join(MANIFEST_NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&name)
            .map_err(|source| StorageError::io("opening", name.display().to_string(), source))?;
        lock(&file, libc::LOCK_EX, path)?;
        Ok(file)
    }

    fn read(path: &Path, file: &File) -> Result<Option<Manifest>, StorageError> {
        let name = path.join(MANIFEST_NAME).display().to_string();
        let mut bytes = Vec::new();
        file.take(MANIFEST_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| StorageError::io("reading", &name, source))?;
        match Manifest::decode(&bytes) {
            Ok(manifest) => match newer_log(path, manifest.next_log)? {
                None => Ok(Some(manifest)),
                Some(log) => Err(StorageError::Corrupt {
                    file: name,
                    offset: manifest.slot_offset(),
                    what: format!(
                        "there are files of log {}, which this manifest does not know: one of an earlier time was put \
                         back, restore the newest",
                        log.0
                    ),
                }),
            },
            Err(BadSlot::Format(format)) => Err(StorageError::Incompatible(format!(
                "{name} has format version {format}; this program knows version {MANIFEST_FORMAT}: use the program that wrote it"
            ))),
            Err(BadSlot::Foreign) => Err(StorageError::Incompatible(format!(
                "{name} is not the manifest of an orlop store: use another --data directory"
            ))),
            // A crash before the first manifest was durable leaves an empty or torn one and no segments.
            Err(_) if !has_segments(path)? => Ok(None),
            Err(_) => Err(StorageError::Corrupt {
                file: name,
                offset: 0,
                what: "neither slot of the manifest verifies, and there are segments: restore the manifest".into(),
            }),
        }
    }

    fn write(path: &Path, file: &File, manifest: &Manifest) -> Result<(), StorageError> {
        let name = path.join(MANIFEST_NAME).display().to_string();
        let io = |action| {
            let name = name.clone();
            move |source| StorageError::io(action, name, source)
        };
        if file.metadata().map_err(io("reading the length of"))?.len() < MANIFEST_BYTES as u64 {
            file.write_all_at(&vec![0; MANIFEST_BYTES], 0)
                .map_err(io("writing"))?;
        }
        file.write_all_at(&manifest.encode(), manifest.slot_offset())
            .map_err(io("writing"))?;
        file.sync_all().map_err(io("syncing"))?;
        File::open(path)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| StorageError::io("syncing", path.display().to_string(), source))
    }
}

/// A store that no process serves, held so for as long as this lives; to read, never to write.
#[derive(Debug)]
pub struct StoppedStore {
    path: PathBuf,
    manifest: Manifest,
    /// Shares the lock with others that only read.
    _lock: File,
}

impl StoppedStore {
    /// Opens the store at `path`.
    ///
    /// # Errors
    /// `Locked` when a server has it, `Incompatible` where there is no store or one of another format, `Corrupt` for a
    /// damaged manifest, `Io` for the rest.
    pub fn open(path: &Path) -> Result<StoppedStore, StorageError> {
        let name = path.join(MANIFEST_NAME);
        let file = match File::open(&name) {
            Ok(file) => file,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(no_store(path));
            }
            Err(source) => {
                return Err(StorageError::io(
                    "opening",
                    name.display().to_string(),
                    source,
                ));
            }
        };
        lock(&file, libc::LOCK_SH, path)?;
        let manifest = DataDirectory::read(path, &file)?.ok_or_else(|| no_store(path))?;
        Ok(StoppedStore {
            path: path.to_owned(),
            manifest,
            _lock: file,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Names and lengths in bytes of all segment files, in order of their names.
    ///
    /// # Errors
    /// `Io` when the directory cannot be read.
    pub fn segment_files(&self) -> Result<Vec<(String, u64)>, StorageError> {
        let mut files = list_files(&self.path).map_err(|source| {
            StorageError::io("listing", self.path.display().to_string(), source)
        })?;
        files.retain(|(name, _)| segment::parse_name(name).is_some());
        files.sort_unstable();
        Ok(files)
    }
}

fn no_store(path: &Path) -> StorageError {
    StorageError::Incompatible(format!(
        "{} holds no orlop store: name its directory with --data",
        path.display()
    ))
}

/// Takes the lock of a store: `LOCK_EX` to serve it, `LOCK_SH` to read it.
fn lock(file: &File, kind: libc::c_int, path: &Path) -> Result<(), StorageError> {
    // SAFETY: flock takes a descriptor that is open for the length of the call and touches no memory.
    let taken = unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) };
    if taken == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    match source.kind() {
        io::ErrorKind::WouldBlock => Err(StorageError::Locked {
            directory: path.display().to_string(),
        }),
        _ => Err(StorageError::io(
            "locking",
            path.join(MANIFEST_NAME).display().to_string(),
            source,
        )),
    }
}

/// Makes the directory and those above it, so that a power cut cannot take the store away with its directory.
fn create_durably(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|ancestor| !ancestor.exists())
        .collect();
    fs::create_dir_all(path)?;
    for created in missing {
        let parent = created
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn random<const N: usize>(path: &Path) -> Result<[u8; N], StorageError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        StorageError::io(
            "drawing random numbers for",
            path.display().to_string(),
            io::Error::other(error),
        )
    })?;
    Ok(bytes)
}

fn has_segments(path: &Path) -> Result<bool, StorageError> {
    Ok(newer_log(path, LogId(0))?.is_some())
}

/// A log from `next` on of which there are files.
fn newer_log(path: &Path, next: LogId) -> Result<Option<LogId>, StorageError> {
    let io = |source| StorageError::io("listing", path.display().to_string(), source);
    for entry in fs::read_dir(path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let segment = name.to_str().and_then(segment::parse_name);
        if let Some((log, _)) = segment.filter(|(log, _)| *log >= next) {
            return Ok(Some(log));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        // Beside the test program: the system's temporary directory may be of another kind.
        let program = std::env::current_exe().unwrap();
        tempfile::tempdir_in(program.parent().unwrap()).unwrap()
    }

    #[test]
    fn identity_stays_and_the_run_number_grows() {
        let home = directory();
        let first = DataDirectory::open(home.path(), 2).unwrap();
        let (uuid, seed) = (first.store_uuid(), first.placement_seed());
        assert_eq!(first.run(), 1);
        drop(first);
        for run in 2..6 {
            let again = DataDirectory::open(home.path(), 2).unwrap();
            assert_eq!(
                (again.store_uuid(), again.placement_seed(), again.run()),
                (uuid, seed, run)
            );
        }
        let mut served = DataDirectory::open(home.path(), 2).unwrap();
        assert!(!served.manifest().served);
        served.confirm_served().unwrap();
        drop(served);
        assert!(
            DataDirectory::open(home.path(), 2)
                .unwrap()
                .manifest()
                .served
        );
    }

    #[test]
    fn a_second_opener_is_refused() {
        let home = directory();
        let _first = DataDirectory::open(home.path(), 1).unwrap();
        assert!(matches!(
            DataDirectory::open(home.path(), 1),
            Err(StorageError::Locked { .. })
        ));
    }

    #[test]
    fn a_file_that_is_no_manifest_is_left_alone() {
        let home = directory();
        let name = home.path().join(MANIFEST_NAME);
        fs::write(&name, b"colour: blue\n").unwrap();
        assert!(matches!(
            DataDirectory::open(home.path(), 1),
            Err(StorageError::Incompatible(_))
        ));
        assert_eq!(fs::read(&name).unwrap(), b"colour: blue\n");
    }

    #[test]
    fn what_the_generation_before_holds_is_read_until_the_new_one_has_served() {
        let home = directory();
        let mut two = DataDirectory::open(home.path(), 2).unwrap();
        two.confirm_served().unwrap();
        let logs_of_two = two.manifest().generation;
        drop(two);
        for _ in 0..2 {
            let three = DataDirectory::open(home.path(), 3).unwrap();
            assert_eq!(three.manifest().previous, Some(logs_of_two));
            assert_eq!(three.manifest().generation.first_log, LogId(2));
        }
        let mut three = DataDirectory::open(home.path(), 3).unwrap();
        three.confirm_served().unwrap();
        drop(three);
        let three = DataDirectory::open(home.path(), 3).unwrap();
        assert_eq!(
            (three.manifest().previous, three.manifest().served),
            (None, true)
        );
    }

    #[test]
    fn a_lost_manifest_with_segments_is_corruption_and_without_is_a_new_store() {
        let home = directory();
        drop(DataDirectory::open(home.path(), 1).unwrap());
        fs::write(home.path().join(MANIFEST_NAME), b"").unwrap();
        drop(DataDirectory::open(home.path(), 1).unwrap());
        fs::write(home.path().join(segment::name(LogId(0), 1)), b"").unwrap();
        fs::write(home.path().join(MANIFEST_NAME), b"").unwrap();
        assert!(matches!(
            DataDirectory::open(home.path(), 1),
            Err(StorageError::Corrupt { .. })
        ));
    }
}

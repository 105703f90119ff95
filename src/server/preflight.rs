//! Whether this machine can run the server: io_uring, locked memory, open files, and a directory that takes O_DIRECT.
//!
//! Guarantees: what is missing is named in one sentence before any executor starts, where it would be a panic or a
//! stack of errors; limits that the process may raise by itself are raised. Does not: look into the data (storage
//! does). Called once by `server::run`, from the only thread, with blocking calls.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::limits;
use crate::server::exit::ServerError;
use crate::server::os::{self, Resource, ResourceLimit, UNLIMITED};
use crate::server::size;

/// Locked memory that one executor needs for its rings, in bytes; the runtime refuses to start with less.
const LOCKED_BYTES_PER_SHARD: u64 = 512 << 10;

/// Locked memory beside the executors, in bytes.
const LOCKED_BYTES_MARGIN: u64 = 256 << 10;

/// Files that one shard has open at most: segments, rings, event descriptors, listeners.
const FILES_PER_SHARD: u64 = 256;

/// Unit of direct writes, in bytes.
const BLOCK: usize = 4096;

const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// Checks the machine and raises the limits of the process for `shards` executors.
///
/// # Errors
/// The first thing that is missing, with what to change.
pub(crate) fn check_machine(shards: u16) -> Result<(), ServerError> {
    let switch = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    os::probe_io_uring().map_err(|error| io_uring_missing(&error, switch.as_deref()))?;
    raise_locked_memory(shards)?;
    raise_open_files(shards)
}

/// The sentence for a kernel that refuses an io_uring; `switch` is what `kernel.io_uring_disabled` says.
fn io_uring_missing(error: &io::Error, switch: Option<&str>) -> ServerError {
    let forbidden = switch.map(str::trim).filter(|switch| *switch != "0");
    ServerError::Environment(match (error.raw_os_error(), forbidden) {
        (Some(libc::ENOSYS), _) => {
            "io_uring is not in this kernel, or a sandbox hides it: use Linux 5.8 or newer, and in a container a seccomp \
             profile that allows io_uring_setup, io_uring_enter and io_uring_register"
                .into()
        }
        (Some(libc::EPERM | libc::EACCES), Some(switch)) => {
            format!("io_uring is switched off: kernel.io_uring_disabled is {switch}, run: sysctl kernel.io_uring_disabled=0")
        }
        (Some(libc::EPERM | libc::EACCES), None) => {
            "io_uring is forbidden here: in a container, use a seccomp profile that allows io_uring_setup, \
             io_uring_enter and io_uring_register (Docker: --security-opt seccomp=FILE)"
                .into()
        }
        (Some(libc::ENOMEM), _) => {
            "there is no locked memory for an io_uring: raise the limit (ulimit -l unlimited, systemd LimitMEMLOCK=infinity, \
             Docker --ulimit memlock=-1)"
                .into()
        }
        _ => format!("io_uring cannot be used: {error}; the server needs it, see dmesg and the limits of the process"),
    })
}

/// Raises a limit as far as the kernel lets this process, and returns what is in force then.
fn raise(resource: Resource) -> Result<u64, ServerError> {
    let before = os::resource_limit(resource)
        .map_err(ServerError::system("reading a limit of the process"))?;
    // Going beyond the hard limit takes a privilege that the process has or has not; both are fine.
    let everything = ResourceLimit {
        soft: UNLIMITED,
        hard: UNLIMITED,
    };
    let possible = ResourceLimit {
        soft: before.hard,
        hard: before.hard,
    };
    let raised = match resource {
        Resource::LockedMemory => os::set_resource_limit(resource, everything).is_ok(),
        // The hard limit of open files is large enough everywhere, and the kernel refuses to make it infinite.
        Resource::OpenFiles => false,
    };
    if !raised && before.soft < before.hard {
        os::set_resource_limit(resource, possible)
            .map_err(ServerError::system("raising a limit of the process"))?;
    }
    Ok(os::resource_limit(resource)
        .map_err(ServerError::system("reading a limit of the process"))?
        .soft)
}

fn raise_locked_memory(shards: u16) -> Result<(), ServerError> {
    let limit = raise(Resource::LockedMemory)?;
    let needed = u64::from(shards) * LOCKED_BYTES_PER_SHARD + LOCKED_BYTES_MARGIN;
    if limit >= needed {
        return Ok(());
    }
    Err(ServerError::Environment(format!(
        "this process may lock {} of memory, {shards} shards need {}: raise the limit (ulimit -l unlimited, systemd \
         LimitMEMLOCK=infinity, Docker --ulimit memlock=-1) or start fewer --shards",
        size::display(limit),
        size::display(needed)
    )))
}

fn raise_open_files(shards: u16) -> Result<(), ServerError> {
    let limit = raise(Resource::OpenFiles)?;
    let shards_need = u64::from(shards) * FILES_PER_SHARD;
    if limit < shards_need {
        return Err(ServerError::Environment(format!(
            "this process may open {limit} files, {shards} shards need {shards_need}: raise the limit (ulimit -n, systemd \
             LimitNOFILE=) or start fewer --shards"
        )));
    }
    let connections = limits::CONNECTIONS_MAX as u64;
    if limit < shards_need + connections {
        tracing::warn!(
            limit,
            "this process may open fewer files than {connections} connections need: more are refused when it runs out, \
             raise the limit (ulimit -n, systemd LimitNOFILE=)"
        );
    }
    Ok(())
}

/// Makes the data directory if it is missing and writes one block into it as the log will be written.
///
/// # Errors
/// `Environment` when the file system is of the wrong kind, `Disk` when it refuses the write.
pub(crate) fn check_directory(path: &Path) -> Result<(), ServerError> {
    let disk = |action, advice| {
        let path = path.to_owned();
        move |source| ServerError::Disk {
            action,
            path,
            source,
            advice,
        }
    };
    if let Err(error) = fs::create_dir_all(path) {
        return Err(match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                ServerError::Environment(format!(
                    "--data {} is not a directory, or is below something that is not: choose another",
                    path.display()
                ))
            }
            _ => disk(
                "making the data directory",
                "make it writable for this user, or choose another --data",
            )(error),
        });
    }
    let directory = File::open(path).map_err(disk(
        "opening the data directory",
        "make it readable for this user",
    ))?;
    let magic = os::file_system_magic(&directory).map_err(disk(
        "asking for the file system of",
        "choose another --data",
    ))?;
    if [TMPFS_MAGIC, RAMFS_MAGIC].contains(&magic) {
        return Err(ServerError::Environment(format!(
            "--data {} is in memory (tmpfs), where nothing is durable: choose a directory on a disk",
            path.display()
        )));
    }
    write_probe(path)
}

/// Removes its file when it goes, whatever happened.
struct Probe<'a>(&'a Path);

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(self.0) {
            tracing::warn!(file = %self.0.display(), %error, "the probe file could not be removed: remove it by hand");
        }
    }
}

fn write_probe(directory: &Path) -> Result<(), ServerError> {
    let path = directory.join(format!(".orlop-probe-{}", std::process::id()));
    let direct_refused = |error: &io::Error| {
        [Some(libc::EINVAL), Some(libc::EOPNOTSUPP)].contains(&error.raw_os_error())
    };
    let no_direct = || {
        ServerError::Environment(format!(
            "the file system of --data {} does not take direct writes (O_DIRECT): choose a directory on ext4, xfs or btrfs",
            directory.display()
        ))
    };
    // Made without O_DIRECT: some file systems leave the new file behind when they refuse the flag.
    let made = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path);
    made.map_err(|error| directory_refused("creating a file in", directory, error))?;
    let probe = Probe(&path);
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(probe.0);
    let file = match file {
        Ok(file) => file,
        Err(error) if direct_refused(&error) => return Err(no_direct()),
        Err(error) => return Err(directory_refused("opening a file in", directory, error)),
    };
    // A direct write wants aligned memory: the aligned part of twice as much.
    let memory = vec![0_u8; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    match file.write_all_at(&memory[start..start + BLOCK], 0) {
        Ok(()) => Ok(()),
        Err(error) if direct_refused(&error) => Err(no_direct()),
        Err(error) => Err(directory_refused("writing to", directory, error)),
    }
}

fn directory_refused(action: &'static str, path: &Path, source: io::Error) -> ServerError {
    let advice = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space on this file system"
        }
        io::ErrorKind::ReadOnlyFilesystem => "mount it for writing, or choose another --data",
        io::ErrorKind::PermissionDenied => {
            "make it writable for this user, or choose another --data"
        }
        _ => "see the kernel's log (dmesg) for what the disk reported",
    };
    ServerError::Disk {
        action,
        path: path.to_owned(),
        source,
        advice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::exit;

    /// A directory beside the test program: where the system keeps temporary files there may be no disk.
    fn on_disk() -> tempfile::TempDir {
        let program = std::env::current_exe().unwrap();
        tempfile::tempdir_in(program.parent().unwrap()).unwrap()
    }

    fn sentence(code: i32, switch: Option<&str>) -> String {
        let error = io_uring_missing(&io::Error::from_raw_os_error(code), switch);
        assert_eq!(error.exit_code(), exit::USAGE);
        error.to_string()
    }

    #[test]
    fn a_missing_io_uring_says_what_to_change() {
        assert!(sentence(libc::ENOSYS, None).contains("Linux 5.8 or newer"));
        assert!(sentence(libc::EPERM, Some("2\n")).contains("kernel.io_uring_disabled is 2"));
        assert!(sentence(libc::EPERM, Some("0\n")).contains("seccomp"));
        assert!(sentence(libc::EPERM, None).contains("seccomp"));
        assert!(sentence(libc::ENOMEM, None).contains("memlock"));
        assert!(sentence(libc::EMFILE, None).contains("io_uring cannot be used"));
    }

    #[test]
    fn this_machine_can_run_one_shard() {
        check_machine(1).unwrap();
    }

    #[test]
    fn a_directory_is_made_and_left_empty() {
        let parent = on_disk();
        let path = parent.path().join("a/b");
        check_directory(&path).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        check_directory(&path).unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_a_configuration_error() {
        let parent = on_disk();
        let file = parent.path().join("file");
        File::create(&file).unwrap();
        for path in [file.clone(), file.join("below")] {
            let error = check_directory(&path).unwrap_err();
            assert_eq!(error.exit_code(), exit::USAGE, "{error}");
            assert!(
                error.to_string().contains(&path.display().to_string()),
                "{error}"
            );
        }
    }

    #[test]
    fn a_directory_in_memory_is_refused() {
        if Path::new("/dev/shm").is_dir() {
            let directory = tempfile::tempdir_in("/dev/shm").unwrap();
            let error = check_directory(directory.path()).unwrap_err();
            assert_eq!(error.exit_code(), exit::USAGE);
            assert!(error.to_string().contains("tmpfs"), "{error}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_a_disk_error() {
        // procfs refuses new files whoever asks, root included.
        let error = check_directory(Path::new("/proc/orlop-test")).unwrap_err();
        assert_eq!(error.exit_code(), exit::DISK, "{error}");
        let error = write_probe(Path::new("/proc/self")).unwrap_err();
        assert_eq!(error.exit_code(), exit::DISK, "{error}");
        for (code, word) in [
            (libc::ENOSPC, "free space"),
            (libc::EROFS, "mount it"),
            (libc::EACCES, "writable"),
            (libc::EIO, "dmesg"),
        ] {
            let error = directory_refused(
                "writing to",
                Path::new("/d"),
                io::Error::from_raw_os_error(code),
            );
            assert_eq!(error.exit_code(), exit::DISK);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

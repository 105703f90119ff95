//! The system calls that the server needs and the standard library lacks: each as one safe function.
//!
//! Guarantees: all unsafe code of the server is in this file; a failed call is an `io::Error`, never ignored.
//! Does not: decide anything. Called by the configuration, the checks before the start, and the life cycle.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd as _, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use glommio::net::TcpListener;

/// A limit of the process: what is in force, and how far it may be raised without privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResourceLimit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Which limit of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    LockedMemory,
    OpenFiles,
}

impl Resource {
    fn code(self) -> libc::__rlimit_resource_t {
        match self {
            Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
            Resource::OpenFiles => libc::RLIMIT_NOFILE,
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The CPUs that this process may run on, ascending.
pub(crate) fn allowed_cpus() -> io::Result<Vec<usize>> {
    // The kernel refuses a mask that is shorter than its own; grow until it fits.
    let mut words = mem::size_of::<libc::cpu_set_t>() / mem::size_of::<u64>();
    loop {
        let mut mask = vec![0_u64; words];
        // SAFETY: the pointer and the length in bytes describe `mask`, which the kernel fills with plain bits.
        let result = unsafe {
            libc::sched_getaffinity(0, words * mem::size_of::<u64>(), mask.as_mut_ptr().cast())
        };
        match check(result) {
            Ok(_) => {
                let bits = |(word, bits): (usize, &u64)| {
                    let bits = *bits;
                    (0..64)
                        .filter(move |bit| bits >> bit & 1 == 1)
                        .map(move |bit| word * 64 + bit)
                };
                return Ok(mask.iter().enumerate().flat_map(bits).collect());
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && words < 1 << 12 => {
                words *= 2
            }
            Err(error) => return Err(error),
        }
    }
}

/// The limit in force.
pub(crate) fn resource_limit(resource: Resource) -> io::Result<ResourceLimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that the kernel fills.
    check(unsafe { libc::getrlimit(resource.code(), &mut limit) })?;
    Ok(ResourceLimit {
        soft: limit.rlim_cur,
        hard: limit.rlim_max,
    })
}

/// Changes the limit; raising `hard` takes a privilege.
pub(crate) fn set_resource_limit(resource: Resource, limit: ResourceLimit) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    };
    // SAFETY: `limit` is a valid rlimit that the kernel only reads.
    check(unsafe { libc::setrlimit(resource.code(), &limit) })?;
    Ok(())
}

/// No limit at all, as a value of [`ResourceLimit`].
pub(crate) const UNLIMITED: u64 = libc::RLIM_INFINITY;

/// Makes an io_uring of the smallest size and drops it again: whether this kernel lets this process have one.
pub(crate) fn probe_io_uring() -> io::Result<()> {
    // struct io_uring_params is 120 bytes and all zero by default.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel reads and fills 120 bytes at the pointer, which is aligned and lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1_u32, parameters.as_mut_ptr()) };
    let fd = check(libc::c_int::try_from(fd).expect("the kernel returns a descriptor or -1"))?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Magic number of the file system that `file` is on.
pub(crate) fn file_system_magic(file: &File) -> io::Result<i64> {
    // SAFETY: statfs is plain data, for which all zeroes is a valid value.
    let mut answer: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: the descriptor is open and `answer` is a valid statfs that the kernel fills.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &mut answer) })?;
    Ok(answer.f_type)
}

/// Bytes written to the socket that the peer has not acknowledged yet.
pub(crate) fn unacknowledged_bytes(socket: &impl AsRawFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (the same number as SIOCOUTQ) stores one int at the pointer.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) })?;
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// Tells the peer of a connected socket that nothing more will come.
pub(crate) fn shutdown_write(socket: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: shutdown touches no memory.
    check(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) })?;
    Ok(())
}

/// Reads what has arrived on a connected socket; `WouldBlock` when nothing has.
pub(crate) fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length describe `buffer`, which the kernel fills with plain bytes.
    let result = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A set of sockets that tells which of them have something new to read.
pub(crate) struct Epoll(OwnedFd);

/// What is new on one socket.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Arrival(libc::epoll_event);

impl Arrival {
    /// Room for one.
    pub(crate) const NONE: Arrival = Arrival(libc::epoll_event { events: 0, u64: 0 });

    /// What the socket was added with.
    pub(crate) fn token(self) -> u64 {
        self.0.u64
    }

    /// Whether the peer sends nothing more, or the connection is broken.
    pub(crate) fn is_last(self) -> bool {
        let last = libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;
        self.0.events & last as u32 != 0
    }
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: it takes no memory.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Tells of `socket` from now on, each time when something arrives, and at first if something is there.
    pub(crate) fn add(&self, socket: &impl AsRawFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET) as u32,
            u64: token,
        };
        self.control(libc::EPOLL_CTL_ADD, socket, &mut event)
    }

    /// Tells of `socket` no more.
    pub(crate) fn remove(&self, socket: &impl AsRawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, socket, &mut { Arrival::NONE.0 })
    }

    fn control(
        &self,
        operation: libc::c_int,
        socket: &impl AsRawFd,
        event: &mut libc::epoll_event,
    ) -> io::Result<()> {
        let (set, socket) = (self.0.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: the kernel only reads the event.
        check(unsafe { libc::epoll_ctl(set, operation, socket, event) }).map(|_| ())
    }

    /// What has arrived since the last call, as far as it has room in `arrivals`; never waits.
    pub(crate) fn arrived<'a>(&self, arrivals: &'a mut [Arrival]) -> io::Result<&'a [Arrival]> {
        let most = libc::c_int::try_from(arrivals.len()).unwrap_or(libc::c_int::MAX);
        let events = arrivals.as_mut_ptr().cast::<libc::epoll_event>();
        // SAFETY: `Arrival` is a transparent wrapper of an event, and there is room for `most` of them.
        let count = check(unsafe { libc::epoll_wait(self.0.as_raw_fd(), events, most, 0) })?;
        Ok(&arrivals[..usize::try_from(count).expect("it is not negative")])
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Gives a listening socket, TCP or unix, to the runtime of the calling executor. What it accepts is the runtime's
/// stream either way: it only sends and receives.
pub(crate) fn listener(socket: impl IntoRawFd) -> TcpListener {
    // SAFETY: the descriptor is open and listening, and `into_raw_fd` gives up its ownership.
    unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) }
}

/// Makes the descriptor number of `target` stand for what `source` is.
pub(crate) fn replace_descriptor(source: &impl AsRawFd, target: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: both descriptors are open through the call; `target` keeps its number and its owner.
    check(unsafe { libc::dup2(source.as_raw_fd(), target.as_raw_fd()) })?;
    Ok(())
}

/// Runs `function` when the process ends through `exit`, on the thread that ends it.
pub(crate) fn at_exit(function: extern "C" fn()) -> io::Result<()> {
    // SAFETY: `function` is a plain function that lives as long as the program.
    if unsafe { libc::atexit(function) } == 0 {
        Ok(())
    } else {
        Err(io::Error::other("atexit refused the function"))
    }
}

/// How the kernel shares a CPU out to a thread: `struct sched_attr`, its first 48 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Scheduling {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// The slice, in nanoseconds, since Linux 6.12; before that nothing for the policies that concern us.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Longer than what the kernel gives to a thread that asks for nothing.
const SLICE: Duration = Duration::from_millis(10);

impl Scheduling {
    /// Of the calling thread.
    fn current() -> io::Result<Scheduling> {
        let mut found = Scheduling::default();
        let size = mem::size_of::<Scheduling>();
        let (thread, flags) = (0, 0);
        // SAFETY: the kernel fills at most `size` bytes at the pointer, with plain numbers.
        let result =
            unsafe { libc::syscall(libc::SYS_sched_getattr, thread, &mut found, size, flags) };
        check(i32::from(result < 0).wrapping_neg())?;
        Ok(found)
    }

    /// For the calling thread.
    fn apply(&self) -> io::Result<()> {
        let (thread, flags) = (0, 0);
        // SAFETY: the kernel only reads the structure, whose length is its first field.
        let result = unsafe { libc::syscall(libc::SYS_sched_setattr, thread, self, flags) };
        check(i32::from(result < 0).wrapping_neg()).map(|_| ())
    }
}

/// Lets threads that wake up on the CPU of the calling one go first, as far as it is for the kernel to say: its slice
/// becomes longer than theirs, for the same share of the CPU.
///
/// The kernel's own workers are meant. Where a device cannot write through its cache, they complete a synchronous write, on the
/// CPU that hears of it. A thread that is always at work lets them wait for the next tick, 4 ms, and if it is an executor, its own
/// commits wait with them.
pub(crate) fn ask_for_long_slice() -> io::Result<()> {
    let found = Scheduling::current()?;
    let policy = i32::try_from(found.policy).unwrap_or(-1);
    if ![libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&policy) {
        return Ok(());
    }
    let wanted = Scheduling {
        size: mem::size_of::<Scheduling>() as u32,
        runtime: SLICE.as_nanos() as u64,
        ..found
    };
    wanted.apply()
}

/// Where the kernel says which memory it backs with huge pages.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// The huge pages that are asked for stay allowed; since Linux 6.18.
const PR_THP_DISABLE_EXCEPT_ADVISED: libc::c_ulong = 1 << 1;

/// Keeps the kernel from backing memory of this process with huge pages that nobody asked for: one of which little is
/// used counts in full against the resident memory, which users plan by the size of their data.
pub(crate) fn refuse_huge_pages() -> io::Result<()> {
    if refuse_huge_pages_but(PR_THP_DISABLE_EXCEPT_ADVISED).is_ok() {
        return Ok(());
    }
    let by_default =
        std::fs::read_to_string(HUGE_PAGES).is_ok_and(|word| word.contains("[always]"));
    if by_default {
        return refuse_huge_pages_but(0);
    }
    Ok(())
}

fn refuse_huge_pages_but(flags: libc::c_ulong) -> io::Result<()> {
    let (none, yes): (libc::c_ulong, libc::c_ulong) = (0, 1);
    // SAFETY: this option takes two numbers and two zeros, and touches no memory.
    let result = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, flags, none, none) };
    check(result).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_that_nobody_asked_for_can_be_refused() {
        refuse_huge_pages().unwrap();
        let is_refused = |memory: &str| {
            // More than the memory around it can hide.
            let touched = vec![1_u8; 64 << 20];
            let maps = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            drop(touched);
            let line = maps.lines().find(|line| line.starts_with(memory)).unwrap();
            let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            kib < 32 << 10
        };
        assert!(is_refused("AnonHugePages:"));
    }

    #[test]
    fn a_long_slice_changes_nothing_else() {
        let asked = std::thread::spawn(|| {
            let before = Scheduling::current()?;
            ask_for_long_slice()?;
            Ok::<_, io::Error>((before, Scheduling::current()?))
        });
        let (before, after) = asked.join().unwrap().unwrap();
        let slice = SLICE.as_nanos() as u64;
        // Before Linux 6.12 the kernel neither says nor knows.
        assert!([0, slice].contains(&after.runtime), "{after:?}");
        assert_eq!(after.runtime == 0, before.runtime == 0, "{before:?}");
        let unchanged = Scheduling {
            runtime: before.runtime,
            ..after
        };
        assert_eq!(unchanged, before);
    }

    #[test]
    fn the_process_may_use_at_least_one_cpu() {
        let cpus = allowed_cpus().unwrap();
        assert!(!cpus.is_empty());
        assert!(cpus.is_sorted());
        // The standard library also counts the quota of the control group, which only makes it fewer.
        assert!(cpus.len() >= std::thread::available_parallelism().unwrap().get());
    }

    #[test]
    fn a_soft_limit_can_be_set_up_to_the_hard_one() {
        let before = resource_limit(Resource::OpenFiles).unwrap();
        set_resource_limit(
            Resource::OpenFiles,
            ResourceLimit {
                soft: before.hard,
                hard: before.hard,
            },
        )
        .unwrap();
        assert_eq!(
            resource_limit(Resource::OpenFiles).unwrap().soft,
            before.hard
        );
    }

    #[test]
    fn tmpfs_is_told_apart() {
        const TMPFS: i64 = 0x0102_1994;
        if std::path::Path::new("/dev/shm").is_dir() {
            assert_eq!(
                file_system_magic(&File::open("/dev/shm").unwrap()).unwrap(),
                TMPFS
            );
        }
        assert_ne!(
            file_system_magic(&File::open("/proc").unwrap()).unwrap(),
            TMPFS
        );
    }

    #[test]
    fn a_silent_peer_leaves_no_unacknowledged_bytes() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(unacknowledged_bytes(&ours).unwrap(), 0);
    }
}

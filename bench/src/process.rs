//! What the load generator and `serve` ask of the kernel for themselves: a CPU of their own, enough file descriptors, the
//! memory that they take.
//!
//! Called by `main` before anything runs.

use std::io;

/// Pins the calling thread (and what it starts later) to one CPU, where the kernel's own work goes before its.
pub(crate) fn pin(cpu: usize) -> Result<(), String> {
    let most = libc::CPU_SETSIZE as usize;
    if cpu >= most {
        return Err(format!("--cpu is {cpu}: give 0 to {}", most - 1));
    }
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the pointer and the size are those of `set`; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    if result != 0 {
        return Err(format!(
            "cannot run on CPU {cpu} (--cpu): {}",
            io::Error::last_os_error()
        ));
    }
    if let Err(error) = ask_for_long_slice() {
        eprintln!(
            "orlop-bench: writes of the server may wait for the load on CPU {cpu}: no longer slice ({error})"
        );
    }
    Ok(())
}

/// The CPUs that the calling thread may run on, ascending.
pub(crate) fn allowed_cpus() -> Result<Vec<usize>, String> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer and the size are those of `set`; 0 is the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if result != 0 {
        return Err(format!(
            "cannot ask which CPUs this process may use: {}",
            io::Error::last_os_error()
        ));
    }
    // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside the set.
    let allowed = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &set) };
    Ok((0..libc::CPU_SETSIZE as usize).filter(allowed).collect())
}

/// As `struct sched_attr`: size and policy, flags, nice and priority, slice in nanoseconds, two more of other policies.
type Scheduling = [u64; 6];

/// Where the slice is.
const SLICE: usize = 3;

/// Longer than what the kernel gives to a thread that asks for nothing.
const SLICE_NS: u64 = 10_000_000;

/// Lets the kernel's own workers on the CPU of the calling thread go first, where the kernel knows how (since Linux 6.12):
/// they complete writes of the server that is measured, and would else wait for the next tick while the load is made.
fn ask_for_long_slice() -> io::Result<()> {
    let mut scheduling: Scheduling = [0; 6];
    let (thread, flags, size) = (0, 0, size_of::<Scheduling>());
    // SAFETY: the kernel fills at most `size` bytes at the pointer, with plain numbers.
    let found = unsafe {
        let attributes = scheduling.as_mut_ptr();
        libc::syscall(libc::SYS_sched_getattr, thread, attributes, size, flags)
    };
    if found != 0 {
        return Err(io::Error::last_os_error());
    }
    scheduling[SLICE] = SLICE_NS;
    // SAFETY: the kernel only reads the bytes, whose length is their first field, as it was filled above.
    let set = unsafe {
        let attributes = scheduling.as_ptr();
        libc::syscall(libc::SYS_sched_setattr, thread, attributes, flags)
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Raises the soft limit of open files to what `connections` need, as far as the hard limit allows.
pub(crate) fn raise_open_files(connections: usize) -> Result<(), String> {
    const OTHERS: u64 = 64;
    let wanted = connections as u64 + OTHERS;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for the kernel to fill.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(format!(
            "cannot read the limit of open files: {}",
            io::Error::last_os_error()
        ));
    }
    if limit.rlim_cur >= wanted {
        return Ok(());
    }
    if limit.rlim_max < wanted {
        return Err(format!(
            "{connections} connections need {wanted} open files, and this process may have {}: raise the limit (ulimit -n {wanted}) or lower --clients",
            limit.rlim_max
        ));
    }
    limit.rlim_cur = wanted;
    // SAFETY: `limit` is a valid rlimit whose soft value is not above its hard one.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(format!(
            "cannot raise the limit of open files to {wanted}: {}",
            io::Error::last_os_error()
        ));
    }
    Ok(())
}

/// Raises the soft limit of open files to the hard one: an engine's files are not counted beforehand.
pub(crate) fn open_as_many_files_as_allowed() -> Result<(), String> {
    let failed = || {
        format!(
            "cannot raise the limit of open files: {}",
            io::Error::last_os_error()
        )
    };
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for the kernel to fill.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(failed());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid rlimit whose soft value is its hard one.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(failed());
    }
    Ok(())
}

/// Memory of this process as the kernel counts it, in bytes; 0 where the kernel does not say.
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_does_not_exist_is_refused_and_named() {
        assert!(pin(1_000_000).is_err_and(|text| text.contains("1000000")));
        assert!(pin(1_023).is_err_and(|text| text.contains("1023")));
    }

    #[test]
    fn a_thread_may_use_the_cpu_that_it_is_pinned_to_and_no_other() {
        let last = *allowed_cpus().unwrap().last().unwrap();
        let pinned = std::thread::spawn(move || pin(last).and_then(|()| allowed_cpus()));
        assert_eq!(pinned.join().unwrap(), Ok(vec![last]));
    }

    #[test]
    fn more_open_files_than_allowed_are_refused_with_the_limit() {
        assert!(raise_open_files(usize::MAX / 2).is_err_and(|text| text.contains("ulimit")));
        raise_open_files(1).expect("a process has this many");
    }
}

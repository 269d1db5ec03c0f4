//! `waitid` with what the process used.
//!
//! ```c
//! int syscall(SYS_waitid, idtype_t idtype, id_t id, siginfo_t *infop, int options, struct rusage *rusage);
//! ```
//! <https://man7.org/linux/man-pages/man2/waitid.2.html>

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;

use super::check;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// What a process and those it waited for used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// Largest resident set of any one process, in bytes.
    pub max_rss: u64,
}

/// When to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// When the process has ended.
    Yes,
    /// At once; `None` if it still runs.
    No,
}

/// Takes the status of a child that has ended; the zombie is gone after that.
pub fn waitid(pidfd: BorrowedFd<'_>, block: Block) -> Result<Option<(Ended, Used)>, Errno> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let options = libc::WEXITED | if block == Block::No { libc::WNOHANG } else { 0 };
    // SAFETY: both pointers are to memory of the right type that outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            info.as_mut_ptr(),
            options,
            usage.as_mut_ptr(),
        )
    })?;
    // SAFETY: both were zeroed, which is valid for them, and the kernel filled them in.
    let (info, usage) = unsafe { (info.assume_init(), usage.assume_init()) };
    // SAFETY: after waitid the fields of the SIGCHLD variant are the ones that are set (or zero: nothing ended).
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let ended =
        if info.si_code == libc::CLD_EXITED { Ended::Exited(status) } else { Ended::Signalled(status) };
    let used = Used {
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        max_rss: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    };
    Ok(Some((ended, used)))
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(time.tv_sec.unsigned_abs(), (time.tv_usec.unsigned_abs() as u32) * 1000)
}

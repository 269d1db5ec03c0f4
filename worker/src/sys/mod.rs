//! System calls that rustix does not have: the only unsafe code of rbuild.
//!
//! One family of calls a file, each with its manual page. They are thin: no policy, no retries, descriptors owned or
//! borrowed. All of them may be called between `clone3` and `execve`: none allocates, locks or touches `errno`'s users.
#![expect(unsafe_code, reason = "raw system calls live here and nowhere else")]

pub mod async_fd;
pub mod clone3;
pub mod close_range;
pub mod execve;
pub mod fd;
pub mod interface;
pub mod keyctl;
pub mod mount_setattr;
pub mod pidfd;
pub mod seccomp;
pub mod setns;
pub mod signal;
pub mod waitid;

use rustix::io::Errno;

/// The result of `syscall(2)` as a `Result`.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 { Err(errno()) } else { Ok(result) }
}

fn errno() -> Errno {
    // SAFETY: `__errno_location` returns the calling thread's own errno, which is always readable.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

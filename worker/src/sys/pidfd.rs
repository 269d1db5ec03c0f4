//! `pidfd_send_signal` with any number, real-time signals included.
//!
//! ```c
//! int syscall(SYS_pidfd_send_signal, int pidfd, int sig, siginfo_t *info, unsigned int flags);
//! ```
//! <https://man7.org/linux/man-pages/man2/pidfd_send_signal.2.html>

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::check;

/// Sends signal `number` to the process.
pub fn send_signal(pidfd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null `info` means what `kill` would send.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, no_info, 0) })
        .map(drop)
}

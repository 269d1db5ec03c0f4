//! `setns` and `unshare`: enter other namespaces.
//!
//! ```c
//! int setns(int fd, int nstype);
//! int unshare(int flags);
//! ```
//! <https://man7.org/linux/man-pages/man2/setns.2.html>, <https://man7.org/linux/man-pages/man2/unshare.2.html>

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Moves the calling *thread* into the network namespace of a process (Linux 5.8 takes a pidfd).
pub fn enter_network_of(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: numbers only; it changes the calling thread's namespace and nothing in memory.
    let result = unsafe { libc::setns(pidfd.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == -1 { Err(super::errno()) } else { Ok(()) }
}

/// Moves the calling process into new namespaces (`clone3::NEW*`). With `NEWUSER` the process must have one thread.
pub fn unshare(namespaces: u64) -> Result<(), Errno> {
    let flags = libc::c_int::try_from(namespaces).map_err(|_| Errno::INVAL)?;
    // SAFETY: the `NEW*` flags change no memory and close no descriptor (CLONE_FILES is not among them).
    let result = unsafe { libc::unshare(flags) };
    if result == -1 { Err(super::errno()) } else { Ok(()) }
}

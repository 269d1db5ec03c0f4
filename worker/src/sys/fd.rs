//! `dup3` onto a given number.
//!
//! ```c
//! int dup3(int oldfd, int newfd, int flags);
//! ```
//! <https://man7.org/linux/man-pages/man2/dup3.2.html>

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::clone3::InChild;

/// Makes `fd` standard descriptor `number` (0, 1 or 2), open across `execve`. `fd` must be above 2.
pub fn make_standard(_: &InChild, fd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    // SAFETY: numbers only. What was open at `number` is closed, as the caller wants; the process is a clone that is
    // about to execve, and nothing else in it uses its standard descriptors.
    let result = unsafe { libc::dup3(fd.as_raw_fd(), number, 0) };
    if result == -1 { Err(super::errno()) } else { Ok(()) }
}

/// Moves `fd` to `number`, closed on `execve`; whatever was there is closed.
pub fn move_to(_: &InChild, fd: OwnedFd, number: i32) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() == number {
        return Ok(fd);
    }
    // SAFETY: numbers only; see `make_standard`. The new descriptor is owned by nobody yet.
    unsafe {
        if libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) == -1 {
            return Err(super::errno());
        }
        Ok(OwnedFd::from_raw_fd(number))
    }
}

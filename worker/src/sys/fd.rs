//! `dup2` onto the three standard descriptors.
//!
//! ```c
//! int dup2(int oldfd, int newfd);
//! ```
//! <https://man7.org/linux/man-pages/man2/dup2.2.html>

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Makes `fd` the calling process's descriptor number `target`, without close-on-exec. `target` must not be the number
/// of `fd` itself (the flag would stay).
pub fn dup_onto(fd: BorrowedFd<'_>, target: i32) -> Result<(), Errno> {
    // SAFETY: numbers only. What was open at `target` is closed, as the caller wants; 0, 1 and 2 are nobody's `OwnedFd`.
    let result = unsafe { libc::dup2(fd.as_raw_fd(), target) };
    if result == -1 { Err(super::errno()) } else { Ok(()) }
}

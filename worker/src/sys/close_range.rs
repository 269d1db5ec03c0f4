//! `close_range`: closes all descriptors of a range.
//!
//! ```c
//! int close_range(unsigned int first, unsigned int last, int flags);
//! ```
//! <https://man7.org/linux/man-pages/man2/close_range.2.html>

use rustix::io::Errno;

use super::check;
use super::clone3::InChild;

/// Closes every descriptor from `first` on, whoever opened it. Nothing that owns or borrows one may be used afterwards.
pub fn close_from(_: &InChild, first: u32) -> Result<(), Errno> {
    // SAFETY: the call takes numbers only. Descriptors vanish under their owners, but the process is a clone that is
    // about to execve, and none of them is used again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

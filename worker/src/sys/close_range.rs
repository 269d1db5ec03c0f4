//! `close_range`: closes all descriptors of a range.
//!
//! ```c
//! int close_range(unsigned int first, unsigned int last, int flags);
//! ```
//! <https://man7.org/linux/man-pages/man2/close_range.2.html>

use rustix::io::Errno;

use super::check;

/// Closes every descriptor from `first` on, whoever opened it.
///
/// # Safety
///
/// No owned or borrowed descriptor of that range may be used (or dropped) afterwards. That holds in a process that is
/// about to `execve`.
pub unsafe fn close_from(first: u32) -> Result<(), Errno> {
    // SAFETY: the call takes numbers only; that the descriptors are not used again is the caller's promise.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

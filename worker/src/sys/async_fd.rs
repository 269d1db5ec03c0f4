//! tokio's `AsyncFd` for descriptors that we own.
//!
//! Not a system call of its own (`epoll_ctl`): tokio's constructor is unsafe because a type might give out a number that
//! it does not own. <https://man7.org/linux/man-pages/man2/epoll_ctl.2.html>

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers `fd` with the current runtime, to wait until it is readable. Gives it back if that fails.
pub fn readable(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, (OwnedFd, Errno)> {
    register(fd, Interest::READABLE)
}

/// The same for what `interest` says.
pub fn register(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, (OwnedFd, Errno)> {
    // SAFETY: an `OwnedFd` gives out the same open descriptor, its own, until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|error| {
        let (fd, error) = error.into_parts();
        (fd, Errno::from_io_error(&error).unwrap_or(Errno::IO))
    })
}

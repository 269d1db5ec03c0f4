//! Network interfaces: `ioctl(SIOCSIFFLAGS)`.
//!
//! ```c
//! int ioctl(int fd, SIOCSIFFLAGS, struct ifreq *ifr);
//! ```
//! <https://man7.org/linux/man-pages/man7/netdevice.7.html>

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    // `struct ifreq` is a union; this fills it up to its largest member.
    rest: [u8; 22],
}

/// Brings the loopback interface of `socket`'s network namespace up.
pub fn loopback_up(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    request.flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` has the size and layout of `struct ifreq` and outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) };
    if result == -1 { Err(super::errno()) } else { Ok(()) }
}

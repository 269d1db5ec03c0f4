//! `mount_setattr`: flags of a mount, or of a tree of mounts.
//!
//! ```c
//! int syscall(SYS_mount_setattr, int dirfd, const char *path, unsigned int flags, struct mount_attr *attr, size_t size);
//! ```
//! <https://man7.org/linux/man-pages/man2/mount_setattr.2.html>

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::check;

/// Nothing can be written.
pub const RDONLY: u64 = 0x1;
/// Set-user-ID bits and file capabilities mean nothing.
pub const NOSUID: u64 = 0x2;
/// Device nodes cannot be opened.
pub const NODEV: u64 = 0x4;
/// Nothing can be executed.
pub const NOEXEC: u64 = 0x8;

/// `struct mount_attr` (`MOUNT_ATTR_SIZE_VER0`).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// How far a change goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This mount.
    Mount,
    /// This mount and all below it.
    Tree,
}

/// Sets flags of the mount that `mount` is the root of.
pub fn mount_setattr(mount: BorrowedFd<'_>, set: u64, reach: Reach) -> Result<(), Errno> {
    let mut attr = MountAttr { set, clear: 0, propagation: 0, userns_fd: 0 };
    let recursive = if reach == Reach::Tree { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string that ends in NUL, `attr` is a `mount_attr` of the size given; both outlive
    // the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw mut attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

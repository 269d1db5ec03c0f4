//! File systems that a sandbox mounts for itself, and moving mounts about.
//!
//! Runs between `clone3` and `execve`: no allocation. Mounts are descriptors; nothing here takes a path inside an
//! image.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use crate::sys::mount_setattr::{NODEV, NOEXEC, NOSUID, RDONLY};

/// A new file system, attached nowhere yet. `attributes` are of `sys::mount_setattr`.
pub(crate) fn new(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        fsconfig_set_string(&context, *name, *value)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags(attributes))
}

/// A second mount of what `source` is: a mount, or a file or directory in one that is attached.
pub(crate) fn clone(source: BorrowedFd<'_>, submounts: Submounts) -> Result<OwnedFd, Errno> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if submounts == Submounts::Included {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(source, c"", flags)
}

/// Whether mounts below are part of a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Submounts {
    /// They are.
    Included,
    /// They are not.
    Excluded,
}

/// Attaches a mount on a file or directory.
pub(crate) fn attach(mount: &OwnedFd, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// Attaches a mount where only its descriptor leads to: on top of the root of the mount namespace, which absolute paths
/// do not cross. The kernel lets only attached mounts be cloned in part (before Linux 6.15) or be the new root. All of
/// them go when the old root goes.
pub(crate) fn park(mount: &OwnedFd) -> Result<(), Errno> {
    move_mount(mount, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    PARKED.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// How many mounts this process has parked: one child, one sandbox.
static PARKED: AtomicUsize = AtomicUsize::new(0);

/// Lets go of the old root, which [`pivot_root`](rustix::process::pivot_root) put on top of the new one, the working
/// directory, and of all that is parked: below the new root (and so now above the old one) or on it. The kernel takes
/// the uppermost mount each time. One of the parked mounts became the root, and the old root has its place.
pub(crate) fn unmount_old_root() -> Result<(), Errno> {
    for _ in 0..PARKED.load(Ordering::Relaxed) {
        unmount(c".", UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// A mount of the host's `/proc` with all that is mounted there: what a user namespace may have in a container that
/// hides parts of it. It shows the processes of the container.
pub(crate) fn host_proc() -> Result<OwnedFd, Errno> {
    host(c"/proc")
}

fn host(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags)
}

/// A mount of the host's `/sys`, unwritable: what a user namespace that shares the host's network may have.
pub(crate) fn host_sys() -> Result<OwnedFd, Errno> {
    let mount = host(c"/sys")?;
    crate::sys::mount_setattr::mount_setattr(mount.as_fd(), RDONLY, crate::sys::mount_setattr::Reach::Tree)?;
    Ok(mount)
}

/// The same attributes, as `fsmount` takes them.
fn flags(attributes: u64) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    for (attribute, flag) in [
        (RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ] {
        if attributes & attribute != 0 {
            flags |= flag;
        }
    }
    flags
}

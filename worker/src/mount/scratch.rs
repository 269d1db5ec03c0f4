//! Where a step's writes go if overlayfs cannot keep them in the state directory: a file system in memory.
//!
//! Overlayfs takes no upper directory on another overlayfs, and lets nobody make a deletion mark (a device 0:0) on
//! itself. That is what the root of a container is, and so where the state directory of a CI job often is, unless it is
//! on a volume. Layers can still be *lower* directories there, as long as they delete nothing.

use std::ffi::CString;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, mkdirat, statfs};
use rustix::io::Errno;
use rustix::mount::{
    FsOpenFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen, move_mount,
};
use store::root::Root;

use super::overlay::{OverlayError, c_path};
use super::special;
use crate::diff::Marks;
use crate::inside;

/// File systems that are known to keep what overlayfs writes (`f_type`): ext4, XFS, Btrfs, tmpfs, F2FS, bcachefs.
const GOOD: [u32; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010, 0xca45_1a4e];

/// Whether overlayfs can keep changes and deletions in the state directory. Tried only on unusual file systems.
pub fn keeps_changes(root: &Root, marks: Marks) -> Result<(), Errno> {
    let known = statfs(root.path()).is_ok_and(|stat| GOOD.contains(&(stat.f_type as u32)));
    if known { Ok(()) } else { attempt(root, marks) }
}

/// Has the kernel make an overlay that nobody mounts.
fn attempt(root: &Root, marks: Marks) -> Result<(), Errno> {
    let work = root.work_dir().map_err(|_| Errno::IO)?;
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if marks == Marks::User {
        fsconfig_set_flag(&context, c"userxattr")?;
    }
    for (name, option) in [("lower", c"lowerdir"), ("upper", c"upperdir"), ("work", c"workdir")] {
        let path = work.path().join(name);
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| errno(&error))?;
        fsconfig_set_string(&context, option, path)?;
    }
    fsconfig_create(&context)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// A file system in memory with an upper directory; it is gone with its last owner.
#[derive(Clone, Debug)]
pub struct Scratch {
    mount: Arc<OwnedFd>,
    on: PathBuf,
}

impl Scratch {
    /// A new one, empty. `on`: an empty directory, on which the sandbox mounts it for itself.
    pub fn new(on: &Path) -> Result<Self, Errno> {
        // As many files as fit: the default limit is by memory too.
        let mount = special::new(c"tmpfs", &[(c"mode", c"0700"), (c"nr_inodes", c"0")], 0)?;
        mkdirat(&mount, "upper", Mode::from_raw_mode(0o755))?;
        mkdirat(&mount, "work", Mode::from_raw_mode(0o700))?;
        Ok(Self { mount: Arc::new(mount), on: on.to_owned() })
    }

    /// The upper directory, as this process reaches it.
    pub fn upper(&self) -> PathBuf {
        Path::new(&inside::proc_path(self.mount.as_fd())).join("upper")
    }

    pub(super) fn prepare(&self) -> Result<Prepared, OverlayError> {
        Ok(Prepared {
            mount: self.mount.clone(),
            on: c_path(&self.on)?,
            upper: c_path(&self.on.join("upper"))?,
            work: c_path(&self.on.join("work"))?,
        })
    }
}

/// A [`Scratch`] as the child needs it.
#[derive(Debug)]
pub(super) struct Prepared {
    mount: Arc<OwnedFd>,
    on: CString,
    pub(super) upper: CString,
    pub(super) work: CString,
}

impl Prepared {
    /// Attaches it in the mount namespace of the caller: before Linux 6.15 an upper directory must be in that. Does not
    /// allocate.
    pub(super) fn attach(&self) -> Result<(), Errno> {
        move_mount(&*self.mount, c"", CWD, self.on.as_c_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }
}

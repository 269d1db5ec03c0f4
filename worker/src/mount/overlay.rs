//! The overlay: layers over each other, and where writes go.
//!
//! [`Overlay::prepare`] makes the strings; [`Overlay::mount`] runs in the child, in its own mount namespace, so that
//! the mount is gone when the step is, however it ends.
//!
//! Options: `volatile`, so that neither a `sync` in the step nor the unmount waits for the disk (the store syncs in the
//! background and does not trust what was not synced); no index, redirects or metacopy, so that the upper directory
//! says by itself all that changed; `userxattr` in a user namespace, which may not set `trusted.*`.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, open_tree,
};

use super::{scratch, special};
use crate::exec::plan::{Access, Lower};

/// An overlay that can be mounted without allocating.
#[derive(Debug)]
pub(crate) struct Overlay {
    // First is the top.
    lowers: Vec<Prepared>,
    // Upper and work directory.
    writable: Option<(CString, CString)>,
    // Where these are, if it must be attached first.
    scratch: Option<scratch::Prepared>,
    user_xattr: bool,
    // For kernels before 6.5, which take all lower directories as one string, and only through `mount(2)`.
    legacy: Option<Legacy>,
}

#[derive(Debug)]
enum Prepared {
    Path(CString),
    Mount(Arc<OwnedFd>),
}

#[derive(Debug)]
struct Legacy {
    // Is covered by the mount, in the child's mount namespace only.
    on: CString,
    options: CString,
}

/// A path that no C string can hold.
#[derive(Debug, thiserror::Error)]
#[error("could not use the layer directory {0:?}: its path contains a NUL byte")]
pub struct OverlayError(PathBuf);

pub(super) fn c_path(path: &Path) -> Result<CString, OverlayError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| OverlayError(path.to_owned()))
}

impl Overlay {
    /// `lowers`: first at the bottom, at least one (two if it is read-only).
    pub(crate) fn prepare(lowers: &[Lower], access: &Access, user_xattr: bool) -> Result<Self, OverlayError> {
        let mut prepared = Vec::with_capacity(lowers.len());
        for lower in lowers.iter().rev() {
            prepared.push(match lower {
                Lower::Directory(path) => Prepared::Path(c_path(path)?),
                Lower::Mount(fd) => Prepared::Mount(fd.clone()),
            });
        }
        let (writable, scratch) = match access {
            Access::ReadOnly => (None, None),
            Access::Writable { upper, work } => (Some((c_path(upper)?, c_path(work)?)), None),
            Access::InMemory(scratch) => {
                let scratch = scratch.prepare()?;
                (Some((scratch.upper.clone(), scratch.work.clone())), Some(scratch))
            }
        };
        let legacy = legacy(&prepared, writable.as_ref(), user_xattr);
        Ok(Self { lowers: prepared, writable, scratch, user_xattr, legacy })
    }

    /// Mounts it; it is attached where only the descriptor leads to it. Does not allocate.
    pub(crate) fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
        if let Some(scratch) = &self.scratch {
            scratch.attach()?;
        }
        match self.mount_by_fsconfig(attributes) {
            // The option is unknown, or so is the call.
            Err(Errno::INVAL | Errno::NOSYS) if self.legacy.is_some() => self.mount_by_options(attributes),
            result => result,
        }
    }

    fn mount_by_fsconfig(&self, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
        let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |name: &CStr, value: &CStr| fsconfig_set_string(&context, name, value);
        for lower in &self.lowers {
            match lower {
                Prepared::Path(path) => set_path(&context, c"lowerdir+", path)?,
                Prepared::Mount(mount) => {
                    // Linux 6.15 takes mounts that are attached nowhere.
                    fsconfig_set_fd(&context, c"lowerdir+", mount.as_fd())?;
                }
            }
        }
        if let Some((upper, work)) = &self.writable {
            set_path(&context, c"upperdir", upper)?;
            set_path(&context, c"workdir", work)?;
            fsconfig_set_flag(&context, c"volatile")?;
        }
        set(c"index", c"off")?;
        set(c"redirect_dir", c"nofollow")?;
        set(c"metacopy", c"off")?;
        if self.user_xattr {
            fsconfig_set_flag(&context, c"userxattr")?;
        }
        fsconfig_create(&context)?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        special::park(&mount)?;
        Ok(mount)
    }

    fn mount_by_options(&self, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
        let legacy = self.legacy.as_ref().ok_or(Errno::INVAL)?;
        let mut flags = MountFlags::empty();
        if attributes.contains(MountAttrFlags::MOUNT_ATTR_NODEV) {
            flags |= MountFlags::NODEV;
        }
        if attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
            flags |= MountFlags::RDONLY;
        }
        mount(c"overlay", legacy.on.as_c_str(), c"overlay", flags, legacy.options.as_c_str())?;
        open_tree(CWD, legacy.on.as_c_str(), OpenTreeFlags::OPEN_TREE_CLOEXEC)
    }
}

/// `fsconfig` takes strings of up to 255 bytes, and takes a backslash in some of them for an escape. Such a path is
/// opened (here: it must be by the mount namespace that mounts) and named by its descriptor.
fn set_path(context: &OwnedFd, option: &CStr, path: &CStr) -> Result<(), Errno> {
    let bytes = path.to_bytes();
    if bytes.len() <= 255 && !bytes.contains(&b'\\') {
        return fsconfig_set_string(context, option, path);
    }
    let fd = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut name = *b"/proc/self/fd/0000000000\0";
    let mut number = fd.as_raw_fd();
    for digit in name[14..24].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    // No leading zeroes in the kernel's names.
    let zeroes = name[14..23].iter().take_while(|digit| **digit == b'0').count();
    name.copy_within(14 + zeroes.., 14);
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| Errno::INVAL)?;
    fsconfig_set_string(context, option, name)
}

/// All options in one string; `None` if a layer is a mount, which old kernels cannot have made.
fn legacy(lowers: &[Prepared], writable: Option<&(CString, CString)>, user_xattr: bool) -> Option<Legacy> {
    let mut paths = Vec::with_capacity(lowers.len());
    for lower in lowers {
        match lower {
            Prepared::Path(path) => paths.push(path),
            Prepared::Mount(_) => return None,
        }
    }
    let mut options = b"index=off,redirect_dir=nofollow,metacopy=off".to_vec();
    if user_xattr {
        options.extend_from_slice(b",userxattr");
    }
    options.extend_from_slice(b",lowerdir=");
    for (index, path) in paths.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        escape(path.to_bytes(), b"\\:,", &mut options);
    }
    if let Some((upper, work)) = writable {
        for (name, path) in [(&b",upperdir="[..], upper), (b",workdir=", work)] {
            options.extend_from_slice(name);
            escape(path.to_bytes(), b"\\,", &mut options);
        }
        options.extend_from_slice(b",volatile");
    }
    // `mount(2)` copies one page.
    if options.len() >= 4096 {
        return None;
    }
    let on = writable.map(|(upper, _)| upper).or(paths.first().copied())?.clone();
    Some(Legacy { on, options: CString::new(options).ok()? })
}

fn escape(path: &[u8], special: &[u8], to: &mut Vec<u8>) {
    for byte in path {
        if special.contains(byte) {
            to.push(b'\\');
        }
        to.push(*byte);
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;
    use rustix::mount::{MountPropagationFlags, mount_change};

    use super::*;
    use crate::sys::clone3::{NEWNS, clone3, exit};
    use crate::sys::waitid::{Block, Ended, waitid};

    #[test]
    fn the_option_string_of_old_kernels_escapes_what_it_must() {
        let c = |text: &str| CString::new(text).unwrap();
        let lowers = [Prepared::Path(c("/b:1")), Prepared::Path(c("/a,\\"))];
        let legacy = legacy(&lowers, Some(&(c("/u:,"), c("/w"))), true).unwrap();
        let want = "index=off,redirect_dir=nofollow,metacopy=off,userxattr,lowerdir=/b\\:1:/a\\,\\\\,\
                    upperdir=/u:\\,,workdir=/w,volatile";
        assert_eq!(legacy.options.to_str().unwrap(), want);
        assert_eq!(legacy.on, c("/u:,"));
    }

    #[test]
    fn both_ways_of_mounting_show_the_layers_in_order() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        for odd in ["plain", "a:b", "c,d\\e"] {
            let base = tempfile::tempdir().unwrap();
            let path = |name: &str| base.path().join(odd).join(name);
            for name in ["one", "two", "upper", "work", "work2"] {
                std::fs::create_dir_all(path(name)).unwrap();
            }
            std::fs::write(path("one/f"), "1").unwrap();
            std::fs::write(path("two/f"), "22").unwrap();
            let lowers = [Lower::Directory(path("one")), Lower::Directory(path("two"))];
            for (index, work) in ["work", "work2"].into_iter().enumerate() {
                let access = Access::Writable { upper: path("upper"), work: path(work) };
                let overlay = Overlay::prepare(&lowers, &access, false).unwrap();
                let new = [c"new0", c"new1"][index];
                let mut child = |_| {
                    let shown = || {
                        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
                        let none = MountAttrFlags::empty();
                        let root =
                            if index == 0 { overlay.mount(none) } else { overlay.mount_by_options(none) }?;
                        mkdirat(&root, new, Mode::from_raw_mode(0o755))?;
                        Ok::<_, Errno>(rustix::fs::statat(&root, c"f", rustix::fs::AtFlags::empty())?.st_size)
                    };
                    exit(shown().map_or_else(|errno| 100 + errno.raw_os_error(), |size| size as i32))
                };
                let cloned = clone3(NEWNS, None, &mut child).unwrap();
                let (ended, _) = waitid(cloned.pidfd.as_fd(), Block::Yes).unwrap().unwrap();
                assert_eq!(ended, Ended::Exited(2), "{odd} {work}");
                assert!(path("upper").join(new.to_str().unwrap()).is_dir());
            }
        }
    }
}

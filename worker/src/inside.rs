//! Files by path below a directory's descriptor, without ever following a symbolic link or leaving the directory.
//!
//! Paths come from layers and may be longer than the kernel takes at once.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use bstr::{BString, ByteSlice};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::{Errno, Result};

/// What the kernel takes at once, with some room (`PATH_MAX` is 4096 with the NUL).
const MAX_AT_ONCE: usize = 4000;

/// The most bytes of an attribute's value or of the list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_XATTR: usize = 1 << 16;

/// Opens `path` below `root`; the empty path is `root` itself.
///
/// Fails with `ELOOP` where a component is a symbolic link: `path` must have been resolved.
pub fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    if path.is_empty() {
        return open_here(root, b".", flags, mode);
    }
    let mut at: Option<OwnedFd> = None;
    let mut rest = path;
    while rest.len() > MAX_AT_ONCE {
        let cut = rest[..MAX_AT_ONCE].rfind_byte(b'/').ok_or(Errno::NAMETOOLONG)?;
        let here = at.as_ref().map_or(root, |fd| fd.as_fd());
        at = Some(open_here(here, &rest[..cut], OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?);
        rest = &rest[cut + 1..];
    }
    open_here(at.as_ref().map_or(root, |fd| fd.as_fd()), rest, flags, mode)
}

/// Opens a directory for making and looking up names in it.
pub fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    open(root, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

fn open_here(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    // Not there before Linux 5.6, and seccomp filters of old container engines refuse it.
    static NO_OPENAT2: AtomicBool = AtomicBool::new(false);
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(dir, path, flags, mode, resolve) {
            Err(Errno::NOSYS | Errno::PERM) => {}
            // A rename anywhere while `..` was looked at; there is none in our paths, so it is safe to ask again.
            Err(Errno::AGAIN) => return open_here(dir, path, flags, mode),
            result => return result,
        }
    }
    let opened = open_by_component(dir, path, flags, mode)?;
    // It was openat2 that was refused, not the file.
    NO_OPENAT2.store(true, Ordering::Relaxed);
    Ok(opened)
}

fn open_by_component(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let mut at: Option<OwnedFd> = None;
    let mut rest = path;
    while let Some((part, behind)) = rest.split_once_str("/") {
        let here = at.as_ref().map_or(dir, |fd| fd.as_fd());
        let walk = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = Some(rustix::fs::openat(here, part, walk, Mode::empty())?);
        rest = behind;
    }
    rustix::fs::openat(at.as_ref().map_or(dir, |fd| fd.as_fd()), rest, flags, mode)
}

/// Sets the modification time of what is at `path` to `to`, if it is `from` to the nanosecond; both are seconds since the
/// epoch. What is not there needs none.
pub fn replace_mtime(root: BorrowedFd<'_>, path: &[u8], from: i64, to: i64) -> Result<()> {
    let fd = match open(root, path, OFlags::PATH, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(()),
        fd => fd?,
    };
    let stat = rustix::fs::fstat(&fd)?;
    if (stat.st_mtime, stat.st_mtime_nsec) == (from, 0) { set_mtime(fd.as_fd(), to, 0) } else { Ok(()) }
}

/// Sets the modification time of a file, which may be opened with `O_PATH`.
pub fn set_mtime(fd: BorrowedFd<'_>, seconds: i64, nanoseconds: i64) -> Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    };
    rustix::fs::utimensat(rustix::fs::CWD, &*proc_path(fd), &times, AtFlags::empty())
}

/// The names in a directory, in the order of their bytes.
pub fn list(dir: BorrowedFd<'_>) -> Result<Vec<BString>> {
    let mut buffer = [MaybeUninit::uninit(); 1 << 15];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        match entry?.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(BString::from(name)),
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A descriptor as a path, for calls that refuse descriptors opened with `O_PATH`. It leads to the very file, even if
/// that is a symbolic link.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// All extended attributes of a file that is open for reading. A file system without them has none.
pub fn xattrs_of_open(fd: BorrowedFd<'_>) -> Result<Vec<(BString, BString)>> {
    read_xattrs(
        |names| rustix::fs::flistxattr(fd, rustix::buffer::spare_capacity(names)),
        |name, value| rustix::fs::fgetxattr(fd, name, rustix::buffer::spare_capacity(value)),
    )
}

/// All extended attributes of the file that `fd` names, which may be opened with `O_PATH`. A file system without them
/// has none.
pub fn xattrs(fd: BorrowedFd<'_>) -> Result<Vec<(BString, BString)>> {
    let path = proc_path(fd);
    // Following the link in /proc, and not one further.
    read_xattrs(
        |names| rustix::fs::listxattr(&*path, rustix::buffer::spare_capacity(names)),
        |name, value| rustix::fs::getxattr(&*path, name, rustix::buffer::spare_capacity(value)),
    )
}

/// The same for the file `name` in a directory, without opening it; of the link if it is one.
pub fn xattrs_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<(BString, BString)>> {
    // There is no call that takes a descriptor and a name before Linux 6.13.
    let path = [proc_path(dir).as_bytes(), b"/", name].concat();
    read_xattrs(
        |names| rustix::fs::llistxattr(&*path, rustix::buffer::spare_capacity(names)),
        |name, value| rustix::fs::lgetxattr(&*path, name, rustix::buffer::spare_capacity(value)),
    )
}

fn read_xattrs(
    list: impl Fn(&mut Vec<u8>) -> Result<usize>,
    get: impl Fn(&[u8], &mut Vec<u8>) -> Result<usize>,
) -> Result<Vec<(BString, BString)>> {
    // Nearly every file has none or one, so the small buffer nearly always does.
    let mut names: Vec<u8> = Vec::with_capacity(256);
    loop {
        match list(&mut names) {
            Ok(_) => break,
            Err(Errno::RANGE) if names.capacity() < MAX_XATTR => names.reserve(MAX_XATTR),
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    let mut found = Vec::new();
    for name in names.split_str(b"\0").filter(|name| !name.is_empty()) {
        let mut value: Vec<u8> = Vec::with_capacity(256);
        loop {
            match get(name, &mut value) {
                Ok(_) => {
                    found.push((BString::from(name), BString::from(value)));
                    break;
                }
                Err(Errno::RANGE) if value.capacity() < MAX_XATTR => value.reserve(MAX_XATTR),
                // Gone meanwhile, or one that is listed but not for us.
                Err(Errno::NODATA | Errno::NOTSUP) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn no_link_is_followed_and_nothing_above_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/file"), "x").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let root = rustix::fs::openat(CWD, dir.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        for (path, expected) in [
            (&b"a/file"[..], Ok(())),
            (b"", Ok(())),
            (b"link/file", Err(Errno::LOOP)),
            (b"link", Err(Errno::LOOP)),
            (b"a/none", Err(Errno::NOENT)),
            (b"../etc", Err(Errno::XDEV)),
        ] {
            let opened = open(root.as_fd(), path, OFlags::RDONLY, Mode::empty());
            assert_eq!(opened.map(|_| ()), expected, "{}", path.as_bstr());
        }
        assert!(open_by_component(root.as_fd(), b"link/file", OFlags::NOFOLLOW, Mode::empty()).is_err());
        assert_eq!(list(root.as_fd()).unwrap(), ["a", "link"]);
    }

    #[test]
    fn paths_longer_than_the_kernel_takes_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::openat(CWD, dir.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        let mut path: Vec<u8> = Vec::new();
        for _ in 0..100 {
            let here = open_dir(root.as_fd(), &path).unwrap();
            let name = "d".repeat(200);
            rustix::fs::mkdirat(&here, &*name, Mode::from_raw_mode(0o755)).unwrap();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
        }
        assert!(path.len() > 20_000);
        open_dir(root.as_fd(), &path).unwrap();
    }
}

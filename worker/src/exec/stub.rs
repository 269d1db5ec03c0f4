//! Mount points that were made in a root are removed again, so that none reaches the layer.
//!
//! The step may have changed anything meanwhile: moved directories, put links or files of its own in their place. So
//! every path is resolved again inside the directory, without following links, and only an empty file or directory is
//! removed. Its parent gets back the time it had, unless the step changed it too; a parent that is in the upper
//! directory for the mount point alone goes as well.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, fstat,
    listxattr, open, openat, openat2, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::report::{Before, Stub};
use super::target::Kind;

/// Where the stubs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In an upper directory that was empty when the step began.
    FreshUpper,
    /// In a directory that holds other things.
    Other,
}

/// Removes what is left of `stubs` in `base`. Stops at nothing: what cannot be removed stays.
pub(super) fn remove(base: &Path, place: Place, stubs: &[Stub]) {
    let Ok(base) = open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
        return;
    };
    for stub in stubs.iter().rev() {
        let (parent, name) = split(&stub.path);
        if let Ok(directory) = open_in(base.as_fd(), parent)
            && remove_one(&directory, name, stub).is_ok()
            && place == Place::FreshUpper
            && !parent.is_empty()
        {
            // An error means that it is not alone, or not unchanged.
            let _stays = remove_unchanged(base.as_fd(), parent, &directory, stub.parent);
        }
    }
}

fn remove_one(directory: &OwnedFd, name: &OsStr, stub: &Stub) -> Result<(), Errno> {
    let before = fstat(directory)?;
    let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match (stub.kind, FileType::from_raw_mode(found.st_mode)) {
        (Kind::File, FileType::RegularFile) if found.st_size == 0 && found.st_nlink == 1 => {
            unlinkat(directory, name, AtFlags::empty())?;
        }
        (Kind::Directory, FileType::Directory) => unlinkat(directory, name, AtFlags::REMOVEDIR)?,
        _ => return Err(Errno::EXIST),
    }
    // The removal changed it.
    let mtime = if modified(&before) == stub.after { stub.parent.mtime } else { modified(&before) };
    set_modified(directory.as_fd(), mtime)
}

/// Removes a directory that says nothing which the layer below does not say.
fn remove_unchanged(
    base: BorrowedFd<'_>,
    path: &[u8],
    directory: &OwnedFd,
    lower: Before,
) -> Result<(), Errno> {
    let now = fstat(directory)?;
    let same = now.st_mode == lower.mode
        && now.st_uid == lower.uid
        && now.st_gid == lower.gid
        && modified(&now) == lower.mtime;
    let readable =
        openat(directory, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if !same || !only_overlay_attributes(&readable)? || Dir::read_from(&readable)?.any(is_entry) {
        return Err(Errno::NOTEMPTY);
    }
    let (parent, name) = split(path);
    let parent = open_in(base, parent)?;
    let before = fstat(&parent)?;
    unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
    set_modified(parent.as_fd(), modified(&before))
}

fn is_entry(entry: Result<rustix::fs::DirEntry, Errno>) -> bool {
    entry.is_ok_and(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
}

/// Whether the directory has no attributes but the kernel's notes on a copied-up directory. `opaque` is more than that.
fn only_overlay_attributes(directory: &OwnedFd) -> Result<bool, Errno> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(directory));
    let mut names = vec![0; 65536];
    let length = listxattr(path.as_str(), &mut names[..])?;
    Ok(names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).all(|name| {
        let overlay = name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay."));
        matches!(overlay, Some(b"origin" | b"impure" | b"uuid"))
    }))
}

fn split(path: &[u8]) -> (&[u8], &OsStr) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], OsStr::from_bytes(&path[slash + 1..])),
        None => (b"", OsStr::from_bytes(path)),
    }
}

fn open_in(base: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { OsString::from(".") } else { OsStr::from_bytes(path).to_owned() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(base, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
}

#[expect(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
pub(super) fn modified(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime as i64, stat.st_mtime_nsec as u32)
}

fn set_modified(directory: BorrowedFd<'_>, mtime: (i64, u32)) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: i64::from(mtime.1) },
    };
    utimensat(directory, c".", &times, AtFlags::empty())
}

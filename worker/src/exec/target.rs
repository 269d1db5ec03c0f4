//! Mount points: finds a path inside a root, makes it if it is missing, and tells what was made.
//!
//! Runs in the child: no allocation. The root is a stranger's: every look goes through `openat2(RESOLVE_IN_ROOT)` from
//! its descriptor, so links lead nowhere else, and `/proc`'s magic links are refused. Links that dangle are followed
//! inside the root and their target is made, as BuildKit does.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, mkdirat, openat, openat2,
    readlinkat_raw, statat,
};
use rustix::io::Errno;

/// What a target must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory.
    Directory,
    /// Anything but a directory.
    File,
}

/// What is done about links on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// Followed inside the root.
    Follow,
    /// `ELOOP`.
    Refuse,
}

/// Something that was made.
pub(super) struct Made<'a> {
    /// Its path in the root; no part of it is a link.
    pub(super) path: &'a CStr,
    /// What it is.
    pub(super) kind: Kind,
    /// The directory it was made in, as it was before.
    pub(super) parent: &'a Stat,
    /// That directory.
    pub(super) directory: BorrowedFd<'a>,
    /// Its name in it.
    pub(super) name: &'a CStr,
}

/// Finds or makes `path` in `root`; `made` hears of everything that had to be made.
pub(super) fn place(
    root: BorrowedFd<'_>,
    path: &CStr,
    kind: Kind,
    links: Links,
    made: &mut dyn FnMut(Made<'_>) -> Result<(), Errno>,
) -> Result<OwnedFd, Errno> {
    match find(root, path, links) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    let mut walk = Walk { real: Path::new(), rest: Path::new() };
    walk.rest.append(path.to_bytes())?;
    let mut followed = 0;
    let mut name = Path::new();
    while walk.next(&mut name)? {
        match name.bytes() {
            b"." => continue,
            b".." => {
                walk.real.pop();
                continue;
            }
            _ => {}
        }
        let length = walk.real.length;
        let directory = open(root, walk.real.as_cstr(), OFlags::DIRECTORY, Links::Refuse)?;
        walk.real.push(name.bytes())?;
        match statat(&directory, name.as_cstr(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                followed += 1;
                // The kernel's limit. `/proc`'s links may lead anywhere, whatever their text says.
                if followed > 40 || links == Links::Refuse || is_proc(&directory)? {
                    return Err(Errno::LOOP);
                }
                walk.real.truncate(length);
                walk.follow(&directory, name.as_cstr())?;
            }
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let parent = fstat(&directory)?;
                let kind = if walk.rest.is_blank() { kind } else { Kind::Directory };
                match kind {
                    Kind::Directory => mkdirat(&directory, name.as_cstr(), Mode::from_raw_mode(0o755))?,
                    Kind::File => {
                        let flags = OFlags::CREATE
                            | OFlags::EXCL
                            | OFlags::WRONLY
                            | OFlags::NOFOLLOW
                            | OFlags::CLOEXEC;
                        drop(openat(&directory, name.as_cstr(), flags, Mode::from_raw_mode(0o644))?);
                    }
                }
                made(Made {
                    path: walk.real.as_cstr(),
                    kind,
                    parent: &parent,
                    directory: rustix::fd::AsFd::as_fd(&directory),
                    name: name.as_cstr(),
                })?;
            }
            Err(error) => return Err(error),
        }
    }
    open(root, walk.real.as_cstr(), OFlags::empty(), Links::Refuse)
}

/// Finds `path` in `root`.
pub(super) fn find(root: BorrowedFd<'_>, path: &CStr, links: Links) -> Result<OwnedFd, Errno> {
    open(root, path, OFlags::empty(), links)
}

fn open(root: BorrowedFd<'_>, path: &CStr, flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { c"." } else { path };
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if links == Links::Refuse {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    let mut tries = 0;
    loop {
        match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty(), resolve) {
            // Something was renamed on the host meanwhile, and the kernel cannot tell whether `..` stayed inside.
            Err(Errno::AGAIN) if tries < 128 => tries += 1,
            result => return result,
        }
    }
}

fn is_proc(directory: &OwnedFd) -> Result<bool, Errno> {
    #[expect(clippy::unnecessary_cast, reason = "the types differ between architectures")]
    Ok(fstatfs(directory)?.f_type as i64 == libc::PROC_SUPER_MAGIC as i64)
}

/// A path that is being walked: what is behind, free of links, and what is ahead.
struct Walk {
    real: Path,
    rest: Path,
}

impl Walk {
    /// Takes the next part of the way.
    fn next(&mut self, name: &mut Path) -> Result<bool, Errno> {
        let rest = self.rest.bytes();
        let Some(start) = rest.iter().position(|byte| *byte != b'/') else { return Ok(false) };
        let end =
            rest[start..].iter().position(|byte| *byte == b'/').map_or(rest.len(), |length| start + length);
        name.truncate(0);
        name.append(&rest[start..end])?;
        self.rest.remove_front(end);
        Ok(true)
    }

    /// Puts where a link leads in front of the rest.
    fn follow(&mut self, directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        let mut buffer = [MaybeUninit::uninit(); SIZE];
        let (link, _) = readlinkat_raw(directory, name, &mut buffer[..])?;
        if link.first() == Some(&b'/') {
            self.real.truncate(0);
        }
        self.rest.insert_front(link)
    }
}

/// The kernel's `PATH_MAX`.
const SIZE: usize = 4096;

/// A path of limited length that needs no allocator.
struct Path {
    // `bytes[length]` is NUL.
    bytes: [u8; SIZE],
    length: usize,
}

impl Path {
    fn new() -> Self {
        Self { bytes: [0; SIZE], length: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn as_cstr(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }

    /// Nothing ahead but slashes and dots: what is made next is the end of the path.
    fn is_blank(&self) -> bool {
        self.bytes().split(|byte| *byte == b'/').all(|part| matches!(part, b"" | b"."))
    }

    fn truncate(&mut self, length: usize) {
        self.length = length;
        self.bytes[length] = 0;
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let end = self.length + bytes.len();
        if end >= SIZE {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes[self.length..end].copy_from_slice(bytes);
        self.truncate(end);
        Ok(())
    }

    /// Appends a part.
    fn push(&mut self, name: &[u8]) -> Result<(), Errno> {
        if self.length > 0 {
            self.append(b"/")?;
        }
        self.append(name)
    }

    /// Drops the last part.
    fn pop(&mut self) {
        let end = self.bytes().iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.truncate(end);
    }

    fn remove_front(&mut self, count: usize) {
        self.bytes.copy_within(count..self.length, 0);
        self.truncate(self.length - count);
    }

    fn insert_front(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let end = self.length + bytes.len();
        if end >= SIZE {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes.copy_within(..self.length, bytes.len());
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        self.truncate(end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Places `path` in a root with the given links and returns what was made, and what the target really is.
    fn placed(links: &[(&str, &str)], path: &str, kind: Kind) -> Result<(Vec<String>, String), Errno> {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        for (link, to) in links {
            symlink(to, root.path().join(link)).unwrap();
        }
        let fd = fs::File::open(root.path()).unwrap();
        let mut made = Vec::new();
        let target = place(fd.as_fd(), &CString::new(path).unwrap(), kind, Links::Follow, &mut |m| {
            made.push(m.path.to_str().unwrap().to_owned());
            Ok(())
        })?;
        let at =
            fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&target))).unwrap();
        let inside = at.strip_prefix(root.path()).expect("inside the root");
        Ok((made, inside.to_str().unwrap().to_owned()))
    }

    #[test]
    fn what_is_missing_is_made_inside_the_root() {
        use Kind::{Directory, File};
        for (links, path, kind, made, real) in [
            (&[][..], "/etc", Directory, &[][..], "etc"),
            (&[], "/etc/hosts", File, &["etc/hosts"], "etc/hosts"),
            (&[], "/a/b/", Directory, &["a", "a/b"], "a/b"),
            (&[], "/a/b/.", Directory, &["a", "a/b"], "a/b"),
            (&[("l", "/etc")], "/l/hosts", File, &["etc/hosts"], "etc/hosts"),
            (&[("l", "../../../../etc")], "/l/hosts", File, &["etc/hosts"], "etc/hosts"),
            (&[("l", "/run/x/resolv")], "/l", File, &["run", "run/x", "run/x/resolv"], "run/x/resolv"),
            (&[("l", "m"), ("m", "../n/")], "/l", Directory, &["n"], "n"),
            (&[("etc/r", "../run/r")], "/etc/r", File, &["run", "run/r"], "run/r"),
        ] {
            let (got, at) = placed(links, path, kind).unwrap();
            assert_eq!(
                (got.as_slice(), at.as_str()),
                (made.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>().as_slice(), real),
                "{path}"
            );
        }
    }

    #[test]
    fn loops_and_magic_links_are_refused() {
        assert_eq!(placed(&[("a", "b"), ("b", "a")], "/a", Kind::File), Err(Errno::LOOP));
        assert_eq!(placed(&[("a", "b"), ("b", "a")], "/a/x", Kind::File), Err(Errno::LOOP));
        let root = fs::File::open("/").unwrap();
        let magic = find(root.as_fd(), c"/proc/self/cwd", Links::Follow);
        assert_eq!(magic.unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_path_that_grows_without_end_is_refused() {
        let long = format!("{}x", "d/".repeat(2000));
        let links: Vec<_> = [("l", long.as_str())].into();
        assert_eq!(
            placed(&links, &format!("/l/{}", "e/".repeat(100)), Kind::Directory),
            Err(Errno::NAMETOOLONG)
        );
    }
}

//! What a step wrote, as a layer: overlayfs' upper directory becomes a tar and its index.
//!
//! Nothing else is looked at: overlayfs already has every changed file here, deletions as character devices 0:0 and
//! hidden directories by an extended attribute (Linux, `Documentation/filesystems/overlayfs.rst`). What is not a change
//! is left out as BuildKit does: directories that were only copied up, marks that hide nothing. Nobody may write to the
//! directory meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bstr::{BStr, BString, ByteSlice};
use image::ContentDigest;
use image::layer::write::WriteError;
use image::layer::{Data, Entry, Kind, LayerIndex, LayerWriter};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::inside;
use crate::isolate::userns::Ids;

/// Which extended attributes overlayfs keeps its marks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.`: mounted by root.
    Trusted,
    /// `user.overlay.`: mounted in a user namespace, with the option `userxattr`.
    User,
}

impl Marks {
    /// Where overlayfs keeps them when this process mounts it.
    pub fn of_this_process() -> Self {
        if Ids::current().is_namespace() { Self::User } else { Self::Trusted }
    }

    /// What the attributes' names begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.",
            Self::User => "user.overlay.",
        }
    }
}

/// The layers below, as far as it matters here: the entry that is seen at a path.
pub type Lower<'a> = &'a dyn Fn(&BStr) -> Option<Entry>;

/// How an upper directory is read.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "closures have none")]
pub struct Options<'a> {
    /// Where overlayfs' marks are.
    pub marks: Marks,
    /// What is below; without it, marks and copied-up directories are kept even where they change nothing.
    pub lower: Option<Lower<'a>>,
}

/// An upper directory that could not be made a layer.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A file could not be looked at.
    #[error("could not read {path:?} of the step's changes: {source}")]
    Read {
        /// Below the upper directory.
        path: BString,
        /// Why.
        source: Errno,
    },
    /// Overlayfs was mounted with an option that keeps data elsewhere.
    #[error("could not read {path:?} of the step's changes: it has the overlayfs attribute {attribute}")]
    Elsewhere {
        /// Below the upper directory.
        path: BString,
        /// Which one.
        attribute: BString,
    },
    /// The layer could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Writes the layer that `upper` holds to `out`.
pub fn write_layer<W: Write + Send>(
    upper: BorrowedFd<'_>,
    options: &Options<'_>,
    out: W,
) -> Result<(W, LayerIndex), DiffError> {
    write_entries(upper, scan(upper, options)?, out)
}

/// The same, and the nanoseconds of the modification times of the layer's entries, in order, which a layer has not.
pub fn write_layer_with_nanoseconds<W: Write + Send>(
    upper: BorrowedFd<'_>,
    options: &Options<'_>,
    out: W,
) -> Result<(W, LayerIndex, Vec<u32>), DiffError> {
    let mut scan = Scan::new(options);
    scan.nanoseconds = Some(HashMap::new());
    scan.go_through(upper)?;
    let (out, index) = write_entries(upper, scan.entries, out)?;
    let known = scan.nanoseconds.unwrap_or_default();
    let nanoseconds = index.entries().iter().map(|entry| known.get(&entry.path).copied().unwrap_or(0));
    let nanoseconds = nanoseconds.collect();
    Ok((out, index, nanoseconds))
}

/// Writes the layer of the changes that [`scan`] found in `upper` to `out`.
pub fn write_entries<W: Write + Send>(
    upper: BorrowedFd<'_>,
    entries: Vec<Entry>,
    out: W,
) -> Result<(W, LayerIndex), DiffError> {
    let mut layer = LayerWriter::with(out, store::pool::hash_and_write);
    for entry in entries {
        if let Kind::File { size: 1.., .. } = entry.kind {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            let fd = inside::open(upper, &entry.path, flags, Mode::empty())
                .map_err(|source| DiffError::Read { path: entry.path.clone(), source })?;
            layer.append(entry, Data::New(&mut File::from(fd)))?;
        } else {
            layer.append(entry, Data::None)?;
        }
    }
    Ok(layer.finish()?)
}

/// Whether there is so little in `upper` that its layer is written before another thread would have woken up.
pub fn is_small(upper: BorrowedFd<'_>) -> bool {
    let (mut files, mut bytes) = (0, 0);
    let mut directories = vec![BString::default()];
    while let Some(path) = directories.pop() {
        let Ok(dir) = inside::open_dir(upper, &path) else { return false };
        let Ok(names) = inside::list(dir.as_fd()) else { return false };
        files += names.len();
        if files > SMALL_FILES {
            return false;
        }
        for name in names {
            match rustix::fs::statat(&dir, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    directories.push(image::tree::path::join(&path, &name));
                }
                Ok(stat) => bytes += stat.st_size,
                Err(_) => return false,
            }
        }
        if bytes > SMALL_BYTES {
            return false;
        }
    }
    true
}

const SMALL_FILES: usize = 32;
const SMALL_BYTES: i64 = 64 << 10;

/// The changes that `upper` holds, in order. Files have no content digest yet.
pub fn scan(upper: BorrowedFd<'_>, options: &Options<'_>) -> Result<Vec<Entry>, DiffError> {
    let mut scan = Scan::new(options);
    scan.go_through(upper)?;
    Ok(scan.entries)
}

/// A directory being gone through.
struct Level {
    path: BString,
    dir: Option<OwnedFd>,
    // Those to come, the next one last.
    names: Vec<BString>,
}

impl Level {
    fn open(upper: BorrowedFd<'_>, path: BString) -> Result<Self, DiffError> {
        let mut level = Self { path, dir: None, names: Vec::new() };
        let names = inside::list(level.dir(upper)?);
        level.names = names.map_err(|source| DiffError::Read { path: level.path.clone(), source })?;
        level.names.reverse();
        Ok(level)
    }

    fn dir(&mut self, upper: BorrowedFd<'_>) -> Result<BorrowedFd<'_>, DiffError> {
        if self.dir.is_none() {
            let dir = inside::open_dir(upper, &self.path)
                .map_err(|source| DiffError::Read { path: self.path.clone(), source })?;
            self.dir = Some(dir);
        }
        Ok(self.dir.as_ref().expect("it was just opened").as_fd())
    }
}

struct Scan<'a> {
    options: &'a Options<'a>,
    // Where the first name of each file that has several is in `entries`, by device and inode.
    links: HashMap<(u64, u64), usize>,
    entries: Vec<Entry>,
    // Directories on the way to here that are as they are below: only written if something in them is.
    unchanged: Vec<Entry>,
    // Of modification times, by path; if somebody wants them.
    nanoseconds: Option<HashMap<BString, u32>>,
}

impl<'a> Scan<'a> {
    fn new(options: &'a Options<'a>) -> Self {
        Self { options, links: HashMap::new(), entries: Vec::new(), unchanged: Vec::new(), nanoseconds: None }
    }

    fn go_through(&mut self, upper: BorrowedFd<'_>) -> Result<(), DiffError> {
        let mut levels = vec![Level::open(upper, BString::default())?];
        // The root's own attributes are those of the layers below; a step's change to them is not part of a layer in
        // BuildKit either.
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                let done = levels.pop().expect("it was just looked at");
                // Nothing below it changed, and it did not either.
                self.unchanged.retain(|entry| entry.path != done.path);
                continue;
            };
            let mut path = level.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            if self.add(level.dir(upper)?, name.as_bstr(), path.as_bstr())? {
                // One open directory at a time: trees are deeper than a process may have descriptors.
                level.dir = None;
                levels.push(Level::open(upper, path)?);
            }
        }
        Ok(())
    }

    /// Adds what is at `path`, which is `name` in `dir`; `true` if it is a directory to go into.
    fn add(&mut self, dir: BorrowedFd<'_>, name: &BStr, path: &BStr) -> Result<bool, DiffError> {
        let error = |source| DiffError::Read { path: path.into(), source };
        let stat = rustix::fs::statat(dir, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW).map_err(error)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Socket {
            tracing::warn!("left the socket {path:?} out of the layer");
            return Ok(false);
        }
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            self.add_whiteout(path);
            return Ok(false);
        }
        if let Some(nanoseconds) = &mut self.nanoseconds {
            nanoseconds.insert(path.into(), u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        }
        let mut entry = Entry {
            path: path.into(),
            kind: Kind::Fifo,
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: stat.st_mtime,
            xattrs: BTreeMap::new(),
        };
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino))
        {
            let first = &self.entries[*first];
            entry.kind = Kind::Hardlink { target: first.path.clone() };
            entry.xattrs.clone_from(&first.xattrs);
            self.push(entry);
            return Ok(false);
        }
        let mut opaque = false;
        for (name, value) in inside::xattrs_at(dir, name).map_err(error)? {
            match name.strip_prefix(self.options.marks.prefix().as_bytes()) {
                Some(b"opaque") => opaque = value == "y",
                // A deletion on a file system without devices; only those of the directory are looked at by overlayfs.
                Some(b"whiteout") if kind == FileType::RegularFile && stat.st_size == 0 => {
                    self.add_whiteout(path);
                    return Ok(false);
                }
                Some(b"redirect" | b"metacopy") => {
                    return Err(DiffError::Elsewhere { path: path.into(), attribute: name });
                }
                _ => {
                    entry.xattrs.insert(name, value);
                }
            }
        }
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        entry.kind = match kind {
            FileType::RegularFile => Kind::File {
                size: u64::try_from(stat.st_size).unwrap_or_default(),
                offset: 0,
                content: ContentDigest([0; 32]),
            },
            FileType::Directory => Kind::Directory { opaque, implied: false },
            FileType::Symlink => Kind::Symlink {
                target: rustix::fs::readlinkat(dir, name.as_bytes(), Vec::new())
                    .map_err(error)?
                    .into_bytes()
                    .into(),
            },
            FileType::CharacterDevice => Kind::CharDevice { major, minor },
            FileType::BlockDevice => Kind::BlockDevice { major, minor },
            FileType::Fifo => Kind::Fifo,
            _ => return Err(error(Errno::OPNOTSUPP)),
        };
        if kind == FileType::Directory {
            self.add_directory(entry);
            return Ok(true);
        }
        self.push(entry);
        if stat.st_nlink > 1 && kind == FileType::RegularFile {
            self.links.insert((stat.st_dev, stat.st_ino), self.entries.len() - 1);
        }
        Ok(false)
    }

    fn add_directory(&mut self, mut entry: Entry) {
        // The writer leaves these out anyway, and they must not make a difference here.
        entry.xattrs.retain(|name, _| !image::layer::whiteout::is_unwanted_xattr(name));
        let below = self.options.lower.map(|lower| lower(entry.path.as_bstr()));
        if let (Some(below), Kind::Directory { opaque, .. }) = (&below, &mut entry.kind) {
            // Overlayfs marks every new directory; only where another one is below does it hide something.
            *opaque &= below.as_ref().is_some_and(|below| below.kind.is_dir());
            if let Some(below) = below
                && below.kind.is_dir()
                && !*opaque
                && (below.mode, below.uid, below.gid) == (entry.mode, entry.uid, entry.gid)
                && below.xattrs == entry.xattrs
            {
                self.unchanged.push(entry);
                return;
            }
        }
        self.push(entry);
    }

    fn add_whiteout(&mut self, path: &BStr) {
        if self.options.lower.is_some_and(|lower| lower(path).is_none()) {
            return;
        }
        self.push(Entry {
            path: path.into(),
            kind: Kind::Whiteout,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: BTreeMap::new(),
        });
    }

    /// Adds an entry, and before it the directories above it that are otherwise unchanged.
    fn push(&mut self, entry: Entry) {
        self.entries.append(&mut self.unchanged);
        self.entries.push(entry);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};
    use std::path::Path;
    use std::{fs, io};

    use image::layer::index_tar;
    use rustix::fs::CWD;
    use rustix::mount::{MountFlags, UnmountFlags};

    use super::*;

    fn options(lower: Option<Lower<'_>>) -> Options<'_> {
        Options { marks: Marks::Trusted, lower }
    }

    fn open(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    /// What `step` changes in a tree that `before` made, seen through overlayfs. `None` if this is not root.
    fn changes(before: fn(&Path), step: fn(&Path)) -> Option<Vec<Entry>> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let [lower, upper, work, merged] =
            ["lower", "upper", "work", "merged"].map(|name| dir.path().join(name));
        for made in [&lower, &upper, &work, &merged] {
            fs::create_dir(made).unwrap();
        }
        before(&lower);
        let data = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off",
            lower.display(),
            upper.display(),
            work.display()
        );
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), Some(&*data)).unwrap();
        let done = std::panic::catch_unwind(|| step(&merged));
        rustix::mount::unmount(&merged, UnmountFlags::DETACH).unwrap();
        done.unwrap();

        let below = scan(open(&lower).as_fd(), &options(None)).unwrap();
        let lower = |path: &BStr| below.iter().find(|entry| entry.path == path).cloned();
        let upper = open(&upper);
        let (tar, index) = write_layer(upper.as_fd(), &options(Some(&lower)), Vec::new()).unwrap();
        assert_eq!(index_tar(&tar[..], io::sink()).unwrap(), index);
        Some(index.into_entries())
    }

    fn names(entries: &[Entry]) -> Vec<String> {
        entries.iter().skip(1).map(|entry| entry.path.to_string()).collect()
    }

    #[test]
    fn every_kind_of_change_is_in_the_layer() {
        let before = |root: &Path| {
            fs::create_dir_all(root.join("etc/old")).unwrap();
            fs::write(root.join("etc/passwd"), "root").unwrap();
            fs::write(root.join("etc/old/file"), "x").unwrap();
            fs::write(root.join("gone"), "x").unwrap();
            fs::create_dir(root.join("replaced")).unwrap();
            fs::write(root.join("replaced/hidden"), "x").unwrap();
            fs::create_dir(root.join("untouched")).unwrap();
            fs::write(root.join("untouched/file"), "x").unwrap();
        };
        let step = |root: &Path| {
            fs::write(root.join("etc/passwd"), "root user").unwrap();
            fs::remove_file(root.join("gone")).unwrap();
            fs::remove_dir_all(root.join("replaced")).unwrap();
            fs::create_dir(root.join("replaced")).unwrap();
            fs::write(root.join("replaced/new"), "y").unwrap();
            fs::create_dir(root.join("made")).unwrap();
            fs::write(root.join("made/z"), "data").unwrap();
            fs::hard_link(root.join("made/z"), root.join("made/a")).unwrap();
            symlink("../../outside", root.join("made/link")).unwrap();
            lchown(root.join("made/z"), Some(1000), Some(70_000)).unwrap();
            fs::set_permissions(root.join("made/z"), PermissionsExt::from_mode(0o4711)).unwrap();
            rustix::fs::setxattr(
                root.join("made/z"),
                "security.capability",
                b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                rustix::fs::XattrFlags::empty(),
            )
            .unwrap();
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mkfifoat(CWD, root.join("made/pipe"), mode).unwrap();
            rustix::fs::mknodat(
                CWD,
                root.join("made/null"),
                FileType::CharacterDevice,
                mode,
                rustix::fs::makedev(1, 3),
            )
            .unwrap();
            drop(std::os::unix::net::UnixListener::bind(root.join("made/socket")).unwrap());
            // Copied up, made as it was, and so no change.
            fs::write(root.join("untouched/new"), "").unwrap();
            fs::remove_file(root.join("untouched/new")).unwrap();
            fs::write(root.join("made/removed"), "").unwrap();
            fs::remove_file(root.join("made/removed")).unwrap();
        };
        let Some(entries) = changes(before, step) else { return };
        assert_eq!(
            names(&entries),
            [
                "etc",
                "etc/passwd",
                "gone",
                "made",
                "made/a",
                "made/link",
                "made/null",
                "made/pipe",
                "made/z",
                "replaced",
                "replaced/new"
            ]
        );
        let get = |path: &str| entries.iter().find(|entry| entry.path == path).unwrap();
        assert_eq!(get("gone").kind, Kind::Whiteout);
        assert_eq!(get("made").kind, Kind::Directory { opaque: false, implied: false });
        assert_eq!(get("replaced").kind, Kind::Directory { opaque: true, implied: false });
        let file = get("made/a");
        assert!(
            matches!(file.kind, Kind::File { size: 4, content, .. } if content == ContentDigest::of(b"data"))
        );
        assert_eq!((file.mode, file.uid, file.gid), (0o4711, 1000, 70_000));
        assert_eq!(file.xattrs[&BString::from("security.capability")].len(), 20);
        assert_eq!(get("made/z").kind, Kind::Hardlink { target: "made/a".into() });
        assert_eq!(get("made/link").kind, Kind::Symlink { target: "../../outside".into() });
        assert_eq!(get("made/null").kind, Kind::CharDevice { major: 1, minor: 3 });
    }

    #[test]
    fn names_that_would_read_as_deletions_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".wh.real"), "").unwrap();
        let error = write_layer(open(dir.path()).as_fd(), &options(None), Vec::new()).unwrap_err();
        assert!(error.to_string().contains(".wh.real"), "{error}");
    }
}

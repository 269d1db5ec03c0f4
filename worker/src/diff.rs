//! What a step wrote, as a layer: overlayfs' upper directory becomes a tar and its index.
//!
//! Overlayfs already has every changed file here, deletions as character devices 0:0 and hidden directories by an
//! extended attribute (Linux, `Documentation/filesystems/overlayfs.rst`). As in BuildKit, a hidden directory is compared
//! with the one that took its place, so that a layer has a whiteout for each name that is gone, and what is not a change
//! is left out: what was only copied up, deletions of nothing. Nobody may write to the directory meanwhile.

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

use crate::below::Below;
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

/// How an upper directory is read.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Where overlayfs' marks are.
    pub marks: Marks,
    /// What is below; without it, marks and what was copied up are kept even where they change nothing.
    pub lower: Option<&'a dyn Below>,
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
    let mut layer = LayerWriter::with(out, store::pool::aside);
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
    // Those to come, the next one last, and whether each is here: of a directory that hides another, the other's names
    // are here, too.
    names: Vec<(BString, bool)>,
    // The directory below, whose names overlayfs does not show, is compared with this one.
    hides: bool,
}

/// What follows an entry.
enum Next {
    /// The next one.
    Sibling,
    /// What is in it; `hides` as in [`Level`].
    Children { hides: bool },
}

impl Level {
    fn open(upper: BorrowedFd<'_>, path: BString, hidden: Option<Vec<BString>>) -> Result<Self, DiffError> {
        let mut level = Self { path, dir: None, names: Vec::new(), hides: hidden.is_some() };
        let names = inside::list(level.dir(upper)?);
        let names = names.map_err(|source| DiffError::Read { path: level.path.clone(), source })?;
        let mut gone = hidden.unwrap_or_default();
        gone.retain(|name| names.binary_search(name).is_err());
        level.names = names.into_iter().map(|name| (name, true)).collect();
        level.names.extend(gone.into_iter().map(|name| (name, false)));
        level.names.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
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
        let mut levels = vec![Level::open(upper, BString::default(), None)?];
        // The root's own attributes are those of the layers below; a step's change to them is not part of a layer in
        // BuildKit either.
        while let Some(level) = levels.last_mut() {
            let Some((name, is_here)) = level.names.pop() else {
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
            if !is_here {
                self.add_whiteout(path.as_bstr());
                continue;
            }
            let in_hiding = level.hides;
            if let Next::Children { hides } =
                self.add(level.dir(upper)?, name.as_bstr(), path.as_bstr(), in_hiding)?
            {
                // One open directory at a time: trees are deeper than a process may have descriptors.
                level.dir = None;
                let lower = self.options.lower.filter(|_| hides);
                let hidden = lower.map(|lower| lower.names(path.as_bstr()));
                levels.push(Level::open(upper, path, hidden)?);
            }
        }
        Ok(())
    }

    /// Adds what is at `path`, which is `name` in `dir`, a directory that hides another if `in_hiding`.
    fn add(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &BStr,
        path: &BStr,
        in_hiding: bool,
    ) -> Result<Next, DiffError> {
        let error = |source| DiffError::Read { path: path.into(), source };
        let stat = rustix::fs::statat(dir, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW).map_err(error)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Socket {
            tracing::warn!("left the socket {path:?} out of the layer");
            return Ok(Next::Sibling);
        }
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            self.add_whiteout(path);
            return Ok(Next::Sibling);
        }
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        if let Some(known) = &mut self.nanoseconds {
            known.insert(path.into(), nanoseconds);
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
        let mut opaque = false;
        for (name, value) in inside::xattrs_at(dir, name).map_err(error)? {
            match name.strip_prefix(self.options.marks.prefix().as_bytes()) {
                Some(b"opaque") => opaque = value == "y",
                // A deletion on a file system without devices; only those of the directory are looked at by overlayfs.
                Some(b"whiteout") if kind == FileType::RegularFile && stat.st_size == 0 => {
                    self.add_whiteout(path);
                    return Ok(Next::Sibling);
                }
                Some(b"redirect" | b"metacopy") => {
                    return Err(DiffError::Elsewhere { path: path.into(), attribute: name });
                }
                // The writer leaves these out anyway, and they must not make a difference here.
                _ if image::layer::whiteout::is_unwanted_xattr(&name) => {}
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
            return Ok(Next::Children { hides: self.add_directory(entry, in_hiding) });
        }
        if self.was_copied_up(dir, &entry, nanoseconds).map_err(error)? {
            return Ok(Next::Sibling);
        }
        let several = stat.st_nlink > 1 && kind == FileType::RegularFile;
        if several && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
            entry.kind = Kind::Hardlink { target: self.entries[*first].path.clone() };
            self.push(entry);
            return Ok(Next::Sibling);
        }
        self.push(entry);
        if several {
            self.links.insert((stat.st_dev, stat.st_ino), self.entries.len() - 1);
        }
        Ok(Next::Sibling)
    }

    /// Adds a directory; whether it hides another.
    fn add_directory(&mut self, mut entry: Entry, in_hiding: bool) -> bool {
        let Some(lower) = self.options.lower else {
            self.push(entry);
            return false;
        };
        let below = lower.entry(entry.path.as_bstr()).filter(|below| below.kind.is_dir());
        let opaque = std::mem::replace(&mut entry.kind, DIRECTORY) != DIRECTORY;
        match &below {
            Some(below) if have_same_attributes(below, &entry) => self.unchanged.push(entry),
            _ => self.push(entry),
        }
        // Overlayfs marks every new directory; only where another one is below does it hide something.
        below.is_some() && (opaque || in_hiding)
    }

    /// Whether what is in `dir` is as it is below, and nobody wrote to it since: then it is here only because its
    /// attributes were set to what they were, or its name was another in between.
    fn was_copied_up(&self, dir: BorrowedFd<'_>, entry: &Entry, nanoseconds: u32) -> Result<bool, Errno> {
        let path = entry.path.as_bstr();
        let Some((lower, below)) = self.options.lower.and_then(|lower| Some((lower, lower.entry(path)?)))
        else {
            return Ok(false);
        };
        if below.mtime != entry.mtime || !have_same_attributes(&below, entry) {
            return Ok(false);
        }
        let content = match (&below.kind, &entry.kind) {
            (Kind::File { size, content, .. }, Kind::File { size: now, .. }) if size == now => Some(content),
            (kind, now) if kind == now => None,
            _ => return Ok(false),
        };
        // Layers have whole seconds; in what was mounted there may be more.
        if lower.nanoseconds(path).unwrap_or(0) != nanoseconds {
            return Ok(false);
        }
        let Some(content) = content else { return Ok(true) };
        let fd = inside::open(
            dir,
            image::tree::path::name(path),
            OFlags::RDONLY | OFlags::NONBLOCK,
            Mode::empty(),
        )?;
        let mut hasher = blake3::Hasher::new();
        // What cannot be read is an error when it is written into the layer.
        Ok(hasher.update_reader(File::from(fd)).is_ok()
            && ContentDigest(*hasher.finalize().as_bytes()) == *content)
    }

    fn add_whiteout(&mut self, path: &BStr) {
        if self.options.lower.is_some_and(|lower| lower.entry(path).is_none()) {
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

const DIRECTORY: Kind = Kind::Directory { opaque: false, implied: false };

/// Whether both have one mode, one owner and the same extended attributes.
fn have_same_attributes(a: &Entry, b: &Entry) -> bool {
    let symlinks = matches!((&a.kind, &b.kind), (Kind::Symlink { .. }, Kind::Symlink { .. }));
    (a.mode == b.mode || symlinks) && (a.uid, a.gid) == (b.uid, b.gid) && a.xattrs == b.xattrs
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

    /// The entries of a directory, with the nanoseconds of their times.
    #[derive(Debug)]
    struct Scanned {
        entries: Vec<Entry>,
        root: OwnedFd,
    }

    impl Below for Scanned {
        fn entry(&self, path: &BStr) -> Option<Entry> {
            let mut entry = self.entries.iter().find(|entry| entry.path == path).cloned()?;
            if let Kind::File { content, .. } = &mut entry.kind {
                let fd = inside::open(self.root.as_fd(), path, OFlags::RDONLY, Mode::empty()).unwrap();
                *content = ContentDigest::of(&io::read_to_string(File::from(fd)).unwrap().into_bytes());
            }
            Some(entry)
        }

        fn names(&self, path: &BStr) -> Vec<BString> {
            inside::list(inside::open_dir(self.root.as_fd(), path).unwrap().as_fd()).unwrap()
        }

        fn nanoseconds(&self, path: &BStr) -> Option<u32> {
            let stat = rustix::fs::statat(&self.root, <&[u8]>::from(path), AtFlags::SYMLINK_NOFOLLOW).ok()?;
            u32::try_from(stat.st_mtime_nsec).ok()
        }
    }

    fn options(lower: Option<&dyn Below>) -> Options<'_> {
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

        let root = open(&lower);
        let lower = Scanned { entries: scan(root.as_fd(), &options(None)).unwrap(), root };
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
            fs::create_dir_all(root.join("replaced/again/deep")).unwrap();
            fs::write(root.join("replaced/again/deep/file"), "x").unwrap();
            fs::create_dir(root.join("untouched")).unwrap();
            fs::write(root.join("untouched/file"), "x").unwrap();
        };
        let step = |root: &Path| {
            fs::write(root.join("etc/passwd"), "root user").unwrap();
            fs::remove_file(root.join("gone")).unwrap();
            fs::remove_dir_all(root.join("replaced")).unwrap();
            fs::create_dir(root.join("replaced")).unwrap();
            fs::write(root.join("replaced/new"), "y").unwrap();
            fs::create_dir(root.join("replaced/again")).unwrap();
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
                "replaced/again",
                "replaced/again/deep",
                "replaced/hidden",
                "replaced/new"
            ]
        );
        let get = |path: &str| entries.iter().find(|entry| entry.path == path).unwrap();
        assert_eq!(get("gone").kind, Kind::Whiteout);
        assert_eq!(get("made").kind, Kind::Directory { opaque: false, implied: false });
        assert_eq!(get("replaced").kind, DIRECTORY);
        assert_eq!(
            (&get("replaced/hidden").kind, &get("replaced/again/deep").kind),
            (&Kind::Whiteout, &Kind::Whiteout)
        );
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
    fn what_was_only_copied_up_is_no_change() {
        let before = |root: &Path| {
            for name in ["owned", "moved", "linked", "written", "d/file"] {
                fs::create_dir_all(root.join("d")).unwrap();
                fs::write(root.join(name), "x").unwrap();
            }
            symlink("owned", root.join("symlink")).unwrap();
            let old = rustix::fs::Timespec { tv_sec: 1000, tv_nsec: 0 };
            let old = rustix::fs::Timestamps { last_access: old, last_modification: old };
            for name in ["owned", "moved"] {
                rustix::fs::utimensat(CWD, root.join(name), &old, AtFlags::empty()).unwrap();
            }
        };
        let step = |root: &Path| {
            for name in ["owned", "symlink", "d", "d/file"] {
                lchown(root.join(name), Some(0), Some(0)).unwrap();
            }
            fs::rename(root.join("moved"), root.join("x")).unwrap();
            fs::rename(root.join("x"), root.join("moved")).unwrap();
            fs::hard_link(root.join("linked"), root.join("linked-2")).unwrap();
            fs::hard_link(root.join("linked"), root.join("linked-3")).unwrap();
            // The same bytes, but written.
            fs::write(root.join("written"), "x").unwrap();
        };
        let Some(entries) = changes(before, step) else { return };
        assert_eq!(names(&entries), ["linked-2", "linked-3", "written"]);
        assert!(matches!(entries[1].kind, Kind::File { size: 1, .. }), "{:?}", entries[1]);
        assert_eq!(entries[2].kind, Kind::Hardlink { target: "linked-2".into() });
    }

    #[test]
    fn names_that_would_read_as_deletions_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".wh.real"), "").unwrap();
        let error = write_layer(open(dir.path()).as_fd(), &options(None), Vec::new()).unwrap_err();
        assert!(error.to_string().contains(".wh.real"), "{error}");
    }
}

//! Layers as directories: each is extracted once, and serves every step that mounts it.
//!
//! For hosts that cannot mount layers in place: without root, and kernels before Linux 6.12. A directory has what
//! overlayfs expects of a lower one: deletions are character devices 0:0, opaque directories carry an attribute.
//!
//! Nothing here follows a link: an index says that every parent is a directory, and every name is made in the
//! descriptor of its directory. Directories get their attributes last, or they could not be written to.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use bstr::{BStr, BString, ByteSlice};
use image::layer::index::parent;
use image::layer::{Entry, Kind, LayerIndex};
use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::diff::Marks;
use crate::inside;

/// Why a layer could not be extracted.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The kernel refused something.
    #[error("could not {action} {path:?} of layer {layer}: {source}")]
    File {
        /// What was being done.
        action: &'static str,
        /// To which entry.
        path: BString,
        /// Of which layer.
        layer: image::DiffId,
        /// Why not.
        source: Errno,
    },
    /// In a user namespace, the entry belongs to an ID that is not mapped.
    #[error(
        "could not give {path:?} of layer {layer} to {uid}:{gid}: the user namespace has no such user or group; \
         /etc/subuid and /etc/subgid must grant a range that reaches {highest}",
        highest = uid.max(gid)
    )]
    Unmapped {
        /// The entry.
        path: BString,
        /// Of which layer.
        layer: image::DiffId,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// The tar is not the one that the index is of.
    #[error("could not read {path:?} of layer {layer} from its tar: {source}")]
    Tar {
        /// The entry.
        path: BString,
        /// Of which layer.
        layer: image::DiffId,
        /// Why.
        source: std::io::Error,
    },
    /// A hard link to a file that only a lower layer has.
    #[error("could not extract {path:?} of layer {layer}: it is a hard link to {target:?} of another layer")]
    ForeignLink {
        /// The entry.
        path: BString,
        /// What it links to.
        target: BString,
        /// Of which layer.
        layer: image::DiffId,
    },
}

/// How many files of one directory are made by one job.
const FILES_A_JOB: usize = 128;

/// How much is copied at once, and how long a run of zeros must be to become a hole.
const COPY: usize = 1 << 18;
const HOLE: usize = 1 << 16;

/// Extracts a layer into the empty directory `into`; in parallel on the current rayon pool.
///
/// Times, owners, modes and extended attributes are those of the entries; the root keeps its own if the layer does not
/// describe it. Devices are left out where the kernel does not let us make them: a user namespace cannot use them
/// either.
pub fn extract(
    index: &LayerIndex,
    tar: &File,
    into: BorrowedFd<'_>,
    marks: Marks,
) -> Result<(), ExtractError> {
    let extraction = Extraction {
        layer: index.diff_id(),
        tar,
        into,
        marks,
        ours: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    };
    let mut here = Here::default();
    let mut directories: Vec<&Entry> = Vec::new();
    for entry in index.entries().iter().skip(1).filter(|entry| entry.kind.is_dir()) {
        let (dir, name) = extraction.open_parent(&mut here, entry)?;
        rustix::fs::mkdirat(dir, name, Mode::RWXU).map_err(extraction.file("make directory", entry))?;
        directories.push(entry);
    }

    let mut others: Vec<&Entry> = index.entries().iter().filter(|entry| !entry.kind.is_dir()).collect();
    // Stable: within a directory the order stays.
    others.sort_by(|a, b| parent(&a.path).cmp(&parent(&b.path)));
    let jobs: Vec<&[&Entry]> = others
        .chunk_by(|a, b| parent(&a.path) == parent(&b.path))
        .flat_map(|siblings| siblings.chunks(FILES_A_JOB))
        .collect();
    jobs.into_par_iter().try_for_each(|entries| extraction.make_all(entries))?;

    let mut here = Here::default();
    for entry in &others {
        if let Kind::Hardlink { target } = &entry.kind {
            extraction.link(&mut here, entry, target.as_bstr(), index)?;
        }
    }
    directories
        .par_iter()
        .rev()
        .with_min_len(FILES_A_JOB)
        .try_for_each(|entry| extraction.finish_directory(entry))?;
    let root = &index.entries()[0];
    if let Kind::Directory { implied: false, .. } = root.kind {
        return extraction.finish_directory(root);
    }
    if let Kind::Directory { opaque: true, .. } = root.kind {
        extraction.set_opaque(into, root)?;
    }
    Ok(())
}

struct Extraction<'a> {
    layer: image::DiffId,
    tar: &'a File,
    into: BorrowedFd<'a>,
    marks: Marks,
    // Owner and group of what we make.
    ours: (u32, u32),
}

/// The directory that was used last.
#[derive(Default)]
struct Here {
    path: BString,
    fd: Option<OwnedFd>,
}

impl<'a> Extraction<'a> {
    fn file(&self, action: &'static str, entry: &Entry) -> impl Fn(Errno) -> ExtractError {
        let (path, layer) = (entry.path.clone(), self.layer);
        move |source| ExtractError::File { action, path: path.clone(), layer, source }
    }

    fn open_parent<'h, 'e>(
        &self,
        here: &'h mut Here,
        entry: &'e Entry,
    ) -> Result<(BorrowedFd<'h>, &'e [u8]), ExtractError> {
        let dir = parent(&entry.path).unwrap_or_default();
        if here.fd.is_none() || here.path != dir {
            let fd = inside::open_dir(self.into, dir).map_err(self.file("open the directory of", entry))?;
            *here = Here { path: dir.into(), fd: Some(fd) };
        }
        let fd = here.fd.as_ref().expect("it was just opened");
        Ok((fd.as_fd(), entry.path[dir.len()..].trim_start_with(|c| c == '/')))
    }

    /// Makes entries of one directory, all but hard links.
    fn make_all(&self, entries: &[&Entry]) -> Result<(), ExtractError> {
        let mut here = Here::default();
        let mut buffer = Vec::new();
        for entry in entries {
            let (dir, name) = self.open_parent(&mut here, entry)?;
            match &entry.kind {
                Kind::File { size, offset, .. } => {
                    let flags =
                        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
                        .map_err(self.file("make", entry))?;
                    let file = File::from(fd);
                    self.copy(entry, &file, *offset, *size, &mut buffer)?;
                    self.finish_open(file.as_fd(), entry)?;
                }
                Kind::Symlink { target } => {
                    rustix::fs::symlinkat(&**target, dir, name).map_err(self.file("make", entry))?;
                    self.finish_named(dir, name, entry)?;
                }
                Kind::CharDevice { major, minor } => {
                    self.make_node(dir, name, entry, FileType::CharacterDevice, (*major, *minor))?;
                }
                Kind::BlockDevice { major, minor } => {
                    self.make_node(dir, name, entry, FileType::BlockDevice, (*major, *minor))?;
                }
                Kind::Fifo => self.make_node(dir, name, entry, FileType::Fifo, (0, 0))?,
                Kind::Whiteout => {
                    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
                        .map_err(self.file("mark the deletion of", entry))?;
                }
                Kind::Hardlink { .. } | Kind::Directory { .. } => {}
            }
        }
        Ok(())
    }

    fn copy(
        &self,
        entry: &Entry,
        file: &File,
        offset: u64,
        size: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ExtractError> {
        let tar = |source| ExtractError::Tar { path: entry.path.clone(), layer: self.layer, source };
        let write = |error: std::io::Error| {
            self.file("write", entry)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        };
        buffer.resize(COPY, 0);
        let mut at = 0;
        let mut hole_at_end = false;
        while at < size {
            let length = usize::try_from(size - at).map_or(COPY, |left| left.min(COPY));
            self.tar.read_exact_at(&mut buffer[..length], offset + at).map_err(tar)?;
            for (number, piece) in buffer[..length].chunks(HOLE).enumerate() {
                hole_at_end = piece.len() == HOLE && piece.iter().all(|byte| *byte == 0);
                if !hole_at_end {
                    file.write_all_at(piece, at + (number * HOLE) as u64).map_err(write)?;
                }
            }
            at += length as u64;
        }
        if hole_at_end {
            file.set_len(size).map_err(write)?;
        }
        Ok(())
    }

    fn make_node(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), ExtractError> {
        match rustix::fs::mknodat(dir, name, kind, Mode::RUSR, rustix::fs::makedev(major, minor)) {
            Ok(()) => self.finish_named(dir, name, entry),
            Err(Errno::PERM) if kind != FileType::Fifo => {
                tracing::debug!("left out the device {:?} of layer {}", entry.path, self.layer);
                Ok(())
            }
            Err(error) => Err(self.file("make", entry)(error)),
        }
    }

    fn link(
        &self,
        here: &mut Here,
        entry: &Entry,
        target: &BStr,
        index: &LayerIndex,
    ) -> Result<(), ExtractError> {
        let Some(file) = index.get(target) else {
            return Err(ExtractError::ForeignLink {
                path: entry.path.clone(),
                target: target.into(),
                layer: self.layer,
            });
        };
        let mut there = Here::default();
        let (from, old) = self.open_parent(&mut there, file)?;
        let (to, new) = self.open_parent(here, entry)?;
        rustix::fs::linkat(from, old, to, new, AtFlags::empty()).map_err(self.file("make", entry))
    }

    fn finish_directory(&self, entry: &Entry) -> Result<(), ExtractError> {
        let fd = inside::open_dir(self.into, &entry.path).map_err(self.file("open", entry))?;
        if let Kind::Directory { opaque: true, .. } = entry.kind {
            self.set_opaque(fd.as_fd(), entry)?;
        }
        self.finish_open(fd.as_fd(), entry)
    }

    fn set_opaque(&self, dir: BorrowedFd<'_>, entry: &Entry) -> Result<(), ExtractError> {
        let name = format!("{}opaque", self.marks.prefix());
        rustix::fs::fsetxattr(dir, name, b"y", XattrFlags::empty())
            .map_err(self.file("mark as opaque", entry))
    }

    /// Owner, mode, attributes, time: a change of owner takes setuid bits and capabilities away, and each of them
    /// changes nothing but the change time.
    fn finish_open(&self, fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), ExtractError> {
        if (entry.uid, entry.gid) != self.ours {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(|error| self.owner_error(entry, error))?;
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode.into()))
            .map_err(self.file("change the mode of", entry))?;
        for (name, value) in &entry.xattrs {
            self.check_xattr(
                entry,
                name.as_bstr(),
                rustix::fs::fsetxattr(fd, &**name, value, XattrFlags::empty()),
            )?;
        }
        rustix::fs::futimens(fd, &times(entry)).map_err(self.file("set the time of", entry))
    }

    /// The same for what cannot be opened without consequences.
    fn finish_named(&self, dir: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        if (entry.uid, entry.gid) != self.ours {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| self.owner_error(entry, error))?;
        }
        let is_link = matches!(entry.kind, Kind::Symlink { .. });
        if !is_link {
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(entry.mode.into()), AtFlags::empty())
                .map_err(self.file("change the mode of", entry))?;
        }
        if !entry.xattrs.is_empty() {
            let fd =
                inside::open(dir, name, OFlags::PATH, Mode::empty()).map_err(self.file("open", entry))?;
            let path = inside::proc_path(fd.as_fd());
            for (name, value) in &entry.xattrs {
                let set = rustix::fs::setxattr(&*path, &**name, value, XattrFlags::empty());
                self.check_xattr(entry, name.as_bstr(), set)?;
            }
        }
        rustix::fs::utimensat(dir, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.file("set the time of", entry))
    }

    fn owner_error(&self, entry: &Entry, error: Errno) -> ExtractError {
        match error {
            Errno::INVAL => ExtractError::Unmapped {
                path: entry.path.clone(),
                layer: self.layer,
                uid: entry.uid,
                gid: entry.gid,
            },
            error => self.file("change the owner of", entry)(error),
        }
    }

    /// What this file system or user namespace has no place for is left out: nothing in a step could read it.
    fn check_xattr(&self, entry: &Entry, name: &BStr, set: Result<(), Errno>) -> Result<(), ExtractError> {
        match set {
            Err(Errno::NOTSUP | Errno::PERM) => {
                tracing::warn!("left out the attribute {name} of {:?} of layer {}", entry.path, self.layer);
                Ok(())
            }
            set => set.map_err(self.file("set an attribute of", entry)),
        }
    }
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use image::ContentDigest;
    use image::layer::{Data, LayerWriter};

    use super::*;
    use crate::diff::{Options, write_layer};

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            xattrs: BTreeMap::new(),
        }
    }

    /// A layer with one of everything, in a tar file.
    fn sample() -> (File, LayerIndex) {
        let file = |size| Kind::File { size, offset: 0, content: ContentDigest([0; 32]) };
        let directory = |opaque| Kind::Directory { opaque, implied: false };
        let mut holes = vec![0; 1 << 20];
        holes[700_000] = 1;
        let entries: Vec<(Entry, &[u8])> = vec![
            (Entry { mode: 0o1777, mtime: -1, ..entry("a", directory(false)) }, b""),
            (Entry { mode: 0o000, ..entry("a/file", file(5)) }, b"hello"),
            (entry("a/holes", file(holes.len() as u64)), &holes),
            (entry("a/link", Kind::Symlink { target: "/etc/../../x".into() }), b""),
            (Entry { mode: 0o555, ..entry("b", directory(true)) }, b""),
            (entry("b/again", Kind::Hardlink { target: "a/file".into() }), b""),
            (entry("b/gone", Kind::Whiteout), b""),
            (Entry { mode: 0o600, ..entry("b/null", Kind::CharDevice { major: 1, minor: 3 }) }, b""),
            (Entry { mode: 0o620, ..entry("b/pipe", Kind::Fifo) }, b""),
            (
                Entry {
                    mode: 0o6755,
                    uid: 1234,
                    gid: 3_000_000,
                    mtime: 4_000_000_000,
                    xattrs: BTreeMap::from([
                        (
                            "security.capability".into(),
                            b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..].into(),
                        ),
                        ("user.empty".into(), b""[..].into()),
                    ]),
                    ..entry("b/tool", file(0))
                },
                b"",
            ),
        ];
        let mut layer = LayerWriter::new(tempfile::tempfile().unwrap());
        for (entry, mut bytes) in entries {
            let data = match entry.kind {
                Kind::File { .. } => Data::New(&mut bytes),
                _ => Data::None,
            };
            layer.append(entry, data).unwrap();
        }
        layer.finish().unwrap()
    }

    #[test]
    fn what_is_extracted_reads_back_as_the_same_layer() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (tar, index) = sample();
        let dir = tempfile::tempdir().unwrap();
        let into = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        extract(&index, &tar, into.as_fd(), Marks::Trusted).unwrap();
        let options = Options { marks: Marks::Trusted, lower: None };
        let (_, again) = write_layer(into.as_fd(), &options, std::io::sink()).unwrap();
        assert_eq!(again.entries(), index.entries());
        assert_eq!(again.diff_id(), index.diff_id());
        let holes = rustix::fs::statat(&into, "a/holes", AtFlags::empty()).unwrap();
        assert!(holes.st_blocks * 512 <= 2 * HOLE as i64, "{}", holes.st_blocks);
    }

    #[test]
    fn links_to_other_layers_are_an_error() {
        let mut layer = LayerWriter::new(tempfile::tempfile().unwrap());
        layer.append(entry("a", Kind::Hardlink { target: "below".into() }), Data::None).unwrap();
        let (tar, index) = layer.finish().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let into = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let error = extract(&index, &tar, into.as_fd(), Marks::Trusted).unwrap_err();
        assert!(error.to_string().contains("hard link to \"below\""), "{error}");
    }
}

//! `type=tar` and `type=local`: the files of an image, without layers.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bstr::BString;
use image::DiffId;
use image::layer::{Data, Entry, Kind, LayerWriter};
use image::tree::{InodeId, Location, Tree};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use store::error::StoreError;
use store::layer::Layers;

/// Files that could not be written out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlatError {
    /// A layer could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tar could not be written.
    #[error(transparent)]
    Write(#[from] image::layer::write::WriteError),
    /// A file could not be written.
    #[error("could not write {path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes all of `tree` as one tar to `out`. Times later than `epoch` become that.
pub(crate) fn write_tar(
    tree: &Tree,
    layers: &Layers,
    epoch: Option<i64>,
    out: impl Write,
) -> Result<(), FlatError> {
    let mut files = LayerFiles::new(layers);
    let mut writer = LayerWriter::new(out);
    let mut names: HashMap<InodeId, BString> = HashMap::new();
    for node in tree.walk(tree.root()) {
        let mut entry = clamped(node.entry.clone(), epoch);
        match node.inode() {
            None => writer.append(entry, Data::None)?,
            Some(inode) => {
                let path = entry.path.clone();
                if let Some(target) = names.get(&inode.id) {
                    entry.kind = Kind::Hardlink { target: target.clone() };
                    writer.append(entry, Data::None)?;
                    continue;
                }
                names.insert(inode.id, path.clone());
                let entry = clamped(Entry { path, ..inode.entry.clone() }, epoch);
                match files.open(&inode.location)? {
                    Some(mut reader) => writer.append(entry, Data::Known(&mut reader))?,
                    None => writer.append(entry, Data::None)?,
                }
            }
        }
    }
    writer.finish()?;
    Ok(())
}

fn clamped(mut entry: Entry, epoch: Option<i64>) -> Entry {
    entry.mtime = epoch.map_or(entry.mtime, |epoch| entry.mtime.min(epoch));
    if let Kind::Directory { implied, opaque } = &mut entry.kind {
        (*implied, *opaque) = (false, false);
    }
    entry
}

/// Writes all of `tree` below `dest`, as files of whoever runs this: owners, devices and extended attributes are not kept,
/// as in BuildKit. What is there already stays, unless the tree has something of its name.
///
/// `dest` is the user's own directory and what is written is a stranger's: a symbolic link of the tree is made last, so
/// that nothing is ever written through it; one that was there before is replaced, not followed.
pub(crate) fn write_directory(
    tree: &Tree,
    layers: &Layers,
    epoch: Option<i64>,
    dest: &Path,
) -> Result<(), FlatError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| FlatError::Io { path, source }
    };
    fs::create_dir_all(dest).map_err(at(dest))?;
    let mut files = LayerFiles::new(layers);
    let mut names: HashMap<InodeId, PathBuf> = HashMap::new();
    let mut links = Vec::new();
    let mut dirs = Vec::new();
    for node in tree.walk(tree.root()) {
        let entry = clamped(node.entry.clone(), epoch);
        let path = dest.join(std::ffi::OsStr::from_bytes(&entry.path));
        if let Some(inode) = node.inode() {
            make_way(&path, false).map_err(at(&path))?;
            if let Some(first) = names.get(&inode.id) {
                fs::hard_link(first, &path).map_err(at(&path))?;
                continue;
            }
            let mut file = File::create_new(&path).map_err(at(&path))?;
            if let Some(mut reader) = files.open(&inode.location)? {
                io::copy(&mut reader, &mut file).map_err(at(&path))?;
            }
            // Without set-user-ID: the file is the caller's now.
            let mode = u32::from(inode.entry.mode & 0o777);
            file.set_permissions(Permissions::from_mode(mode)).map_err(at(&path))?;
            set_mtime(&path, clamped(inode.entry.clone(), epoch).mtime).map_err(at(&path))?;
            names.insert(inode.id, path);
            continue;
        }
        match entry.kind {
            Kind::Directory { .. } => {
                make_way(&path, true).map_err(at(&path))?;
                match fs::create_dir(&path) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(at(&path)(error));
                    }
                    _ => dirs.push((path, entry)),
                }
            }
            Kind::Symlink { target } => {
                make_way(&path, false).map_err(at(&path))?;
                links.push((path, target));
            }
            Kind::Fifo => {
                make_way(&path, false).map_err(at(&path))?;
                let mode = Mode::from_raw_mode(u32::from(entry.mode & 0o777));
                rustix::fs::mknodat(CWD, &path, FileType::Fifo, mode, 0)
                    .map_err(|errno| at(&path)(errno.into()))?;
            }
            // Devices cannot be made by everybody, and nobody wants them in an output directory.
            _ => {}
        }
    }
    for (path, target) in links {
        std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&target), &path).map_err(at(&path))?;
    }
    for (path, entry) in dirs.iter().rev() {
        let mode = u32::from(entry.mode & 0o777);
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(at(path))?;
        set_mtime(path, entry.mtime).map_err(at(path))?;
    }
    Ok(())
}

/// Removes what is at `path` unless it is a directory where one is wanted.
fn make_way(path: &Path, for_dir: bool) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() && for_dir => Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn set_mtime(path: &Path, seconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Reads files out of layers' tars, each of which is opened once.
pub(super) struct LayerFiles<'a> {
    layers: &'a Layers,
    open: BTreeMap<DiffId, File>,
}

impl<'a> LayerFiles<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self { layers, open: BTreeMap::new() }
    }

    /// The bytes at a location; `None` if there are none.
    fn open(&mut self, location: &Location) -> Result<Option<impl Read>, StoreError> {
        let Location::Layer { layer, offset, size } = location else { return Ok(None) };
        self.range(layer, *offset, *size).map(Some)
    }

    /// Bytes of a layer's tar.
    pub(super) fn range(&mut self, layer: &DiffId, offset: u64, size: u64) -> Result<impl Read, StoreError> {
        if !self.open.contains_key(layer) {
            self.open.insert(*layer, self.layers.open_tar(layer)?);
        }
        Ok(Range { file: &self.open[layer], offset, left: size })
    }
}

/// Part of a file.
struct Range<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buf[..want], self.offset)?;
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use bstr::ByteSlice as _;
    use store::root::Root;

    use super::*;

    fn layer(root: &Root, entries: &[(&str, Kind, &str)]) -> DiffId {
        let mut writer = LayerWriter::new(root.layers().create().unwrap());
        for (path, kind, data) in entries {
            let entry = Entry {
                path: (*path).into(),
                kind: kind.clone(),
                mode: if kind.is_dir() { 0o755 } else { 0o640 },
                uid: 7,
                gid: 7,
                mtime: 1_600_000_000,
                xattrs: BTreeMap::new(),
            };
            let mut bytes = data.as_bytes();
            let data = if data.is_empty() { Data::None } else { Data::New(&mut bytes) };
            writer.append(entry, data).unwrap();
        }
        let (new, index) = writer.finish().unwrap();
        new.commit(index).unwrap().diff_id
    }

    fn file(data: &str) -> Kind {
        Kind::File { size: data.len() as u64, offset: 0, content: image::ContentDigest::of(data.as_bytes()) }
    }

    #[test]
    fn the_merged_files_are_written_and_never_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("state")).unwrap();
        let directory = Kind::Directory { opaque: false, implied: false };
        let layers = [
            layer(
                &root,
                &[("d", directory.clone(), ""), ("d/a", file("old"), "old"), ("d/b", file("b"), "b")],
            ),
            layer(
                &root,
                &[
                    ("d", directory, ""),
                    ("d/a", file("new"), "new"),
                    ("d/b", Kind::Whiteout, ""),
                    ("d/c", Kind::Hardlink { target: "d/a".into() }, ""),
                    ("l", Kind::Symlink { target: "/outside".into() }, ""),
                ],
            ),
        ];
        let tree = Tree::of_layers(layers.iter().map(|layer| root.layers().index(layer).unwrap()));
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        std::os::unix::fs::symlink("/nonexistent", out.join("d")).unwrap();
        write_directory(&tree, &root.layers(), None, &out).unwrap();
        assert_eq!(fs::read(out.join("d/a")).unwrap(), b"new");
        assert_eq!(fs::read(out.join("d/c")).unwrap(), b"new");
        assert!(!out.join("d/b").exists());
        assert_eq!(fs::read_link(out.join("l")).unwrap(), Path::new("/outside"));
        // Once more over what is there.
        write_directory(&tree, &root.layers(), None, &out).unwrap();

        let mut tar = Vec::new();
        write_tar(&tree, &root.layers(), Some(5), &mut tar).unwrap();
        let index = image::layer::read::index_tar(&tar[..], io::sink()).unwrap();
        let paths: Vec<String> =
            index.entries().iter().map(|entry| entry.path.to_str_lossy().into_owned()).collect();
        assert_eq!(paths, ["", "d", "d/a", "d/c", "l"]);
        assert!(index.entries().iter().all(|entry| entry.mtime <= 5));
    }
}

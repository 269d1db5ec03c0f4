//! `type=tar` and `type=local`: the files of an image, without layers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bstr::BString;
use image::digest::Hasher;
use image::layer::index::{is_below, path_cmp};
use image::layer::{Data, Entry, Kind, LayerWriter};
use image::tree::path::join;
use image::tree::{InodeId, Location, Node, Tree};
use image::{DiffId, Digest};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use store::error::StoreError;
use store::layer::Layers;
use store::root::now;

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

/// What is written out of one image.
#[derive(Clone, Debug)]
pub(crate) struct Part<'a> {
    /// The directory it goes into; empty for none. Of a part of the tree, what that is called there.
    pub(crate) directory: String,
    /// The part of the tree that is written; empty for all of it.
    pub(crate) top: BString,
    pub(crate) tree: &'a Tree,
    /// The time of all files, as in BuildKit.
    pub(crate) epoch: Option<i64>,
    /// Files beside those of the tree, by name: what is said about them.
    pub(crate) documents: Vec<(String, Vec<u8>)>,
}

impl<'a> Part<'a> {
    fn nodes(&self) -> impl Iterator<Item = Node<'a>> {
        let top = self.top.clone();
        let is_in = move |path: &BString| *path == top || is_below(path, &top);
        self.tree.walk(self.tree.root()).filter(move |node| is_in(&node.entry.path))
    }

    /// A path below what is written.
    fn rest<'p>(&self, path: &'p [u8]) -> &'p [u8] {
        let rest = &path[self.top.len()..];
        rest.strip_prefix(b"/").unwrap_or(rest)
    }
}

/// Writes all of `parts` as one tar to `out`.
pub(crate) fn write_tar(
    parts: &[Part<'_>],
    layers: &Layers,
    out: impl Write + Send,
) -> Result<(), FlatError> {
    enum Bytes<'a> {
        None,
        Layer(Location),
        Document(&'a [u8]),
    }
    let mut entries: Vec<(Entry, Bytes<'_>)> = Vec::new();
    for part in parts {
        let below = |path: &[u8]| -> BString {
            let path = part.rest(path);
            let slash: &[u8] = if part.directory.is_empty() || path.is_empty() { b"" } else { b"/" };
            [part.directory.as_bytes(), slash, path].concat().into()
        };
        let mut names: HashMap<InodeId, BString> = HashMap::new();
        for node in part.nodes() {
            let mut entry = dated(node.entry.clone(), part.epoch);
            let mut bytes = Bytes::None;
            if let Some(inode) = node.inode() {
                match names.get(&inode.id) {
                    Some(target) => entry.kind = Kind::Hardlink { target: below(target) },
                    None => {
                        names.insert(inode.id, entry.path.clone());
                        entry = dated(Entry { path: entry.path, ..inode.entry.clone() }, part.epoch);
                        bytes = Bytes::Layer(inode.location);
                    }
                }
            }
            entry.path = below(&entry.path);
            if !entry.path.is_empty() {
                entries.push((entry, bytes));
            }
        }
        for (name, text) in &part.documents {
            let content = image::ContentDigest::of(text);
            let entry = Entry {
                path: below(&join(&part.top, name.as_bytes())),
                kind: Kind::File { size: text.len() as u64, offset: 0, content },
                mode: 0o600,
                uid: 0,
                gid: 0,
                mtime: part.epoch.unwrap_or_else(now),
                xattrs: BTreeMap::new(),
            };
            entries.push((entry, Bytes::Document(text)));
        }
    }
    // Of two with one name the later counts: a document, or the same directory of another part.
    entries.sort_by(|(a, _), (b, _)| path_cmp(&a.path, &b.path));
    let mut files = LayerFiles::new(layers);
    let mut writer = LayerWriter::new(out);
    let mut entries = entries.into_iter().peekable();
    while let Some((entry, bytes)) = entries.next() {
        if entries.peek().is_some_and(|(next, _)| next.path == entry.path) {
            continue;
        }
        match bytes {
            Bytes::None => writer.append(entry, Data::None)?,
            Bytes::Document(mut text) => writer.append(entry, Data::Known(&mut text))?,
            Bytes::Layer(location) => match files.open(&location)? {
                Some(mut reader) => writer.append(entry, Data::Known(&mut reader))?,
                None => writer.append(entry, Data::None)?,
            },
        }
    }
    writer.finish()?;
    Ok(())
}

/// The path and the digest of every regular file of `tree`, as attestations name them.
pub(crate) fn digests(tree: &Tree, layers: &Layers) -> Result<Vec<(BString, Digest)>, FlatError> {
    let mut files = LayerFiles::new(layers);
    let mut all = Vec::new();
    for node in tree.walk(tree.root()) {
        let Some(inode) = node.inode() else { continue };
        let Kind::File { .. } = inode.entry.kind else { continue };
        let mut hasher = Hasher::sha256();
        if let Some(mut reader) = files.open(&inode.location)? {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let path = || PathBuf::from(std::ffi::OsStr::from_bytes(&node.entry.path));
                let n = reader.read(&mut buffer).map_err(|source| FlatError::Io { path: path(), source })?;
                if n == 0 {
                    break;
                }
                hasher.update(&buffer[..n]);
            }
        }
        all.push((node.entry.path.clone(), hasher.finish()));
    }
    Ok(all)
}

fn dated(mut entry: Entry, epoch: Option<i64>) -> Entry {
    entry.mtime = epoch.unwrap_or(entry.mtime);
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
///
/// Returns what there is now because of it, for [`remove_others`].
pub(crate) fn write_directory(
    part: &Part<'_>,
    layers: &Layers,
    dest: &Path,
) -> Result<HashSet<PathBuf>, FlatError> {
    let Part { directory, top, epoch, documents, .. } = part;
    let dest = &if directory.is_empty() { dest.to_owned() } else { dest.join(directory) };
    let epoch = *epoch;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| FlatError::Io { path, source }
    };
    let is_dir = top.is_empty() || part.tree.get(top).is_some_and(|node| node.is_dir());
    let first = if is_dir { Some(dest.as_path()) } else { dest.parent() };
    if let Some(first) = first {
        fs::create_dir_all(first).map_err(at(first))?;
    }
    let mut files = LayerFiles::new(layers);
    let mut names: HashMap<InodeId, PathBuf> = HashMap::new();
    let mut links = Vec::new();
    let mut dirs = Vec::new();
    let mut written = HashSet::new();
    for node in part.nodes() {
        let entry = dated(node.entry.clone(), epoch);
        let path = match part.rest(&entry.path) {
            // The directory that was there is the caller's.
            b"" if directory.is_empty() => continue,
            b"" => dest.clone(),
            rest => dest.join(std::ffi::OsStr::from_bytes(rest)),
        };
        written.insert(path.clone());
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
            set_mtime(&path, dated(inode.entry.clone(), epoch).mtime).map_err(at(&path))?;
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
    for (name, text) in documents {
        let path = dest.join(name);
        make_way(&path, false).map_err(at(&path))?;
        fs::write(&path, text).map_err(at(&path))?;
        set_mtime(&path, epoch.unwrap_or_else(now)).map_err(at(&path))?;
        written.insert(path);
    }
    for (path, entry) in dirs.iter().rev() {
        let mode = u32::from(entry.mode & 0o777);
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(at(path))?;
        set_mtime(path, entry.mtime).map_err(at(path))?;
    }
    Ok(written)
}

/// Removes all below `dest` that was not `written`, and follows no link to do so.
pub(crate) fn remove_others(dest: &Path, written: &HashSet<PathBuf>) -> Result<(), FlatError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| FlatError::Io { path, source }
    };
    for child in fs::read_dir(dest).map_err(at(dest))? {
        let child = child.map_err(at(dest))?;
        let (path, kind) = (child.path(), child.file_type().map_err(at(dest))?);
        match (written.contains(&path), kind.is_dir()) {
            (true, true) => remove_others(&path, written)?,
            (true, false) => {}
            (false, true) => fs::remove_dir_all(&path).map_err(at(&path))?,
            (false, false) => fs::remove_file(&path).map_err(at(&path))?,
        }
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
        let said = vec![("provenance.json".to_owned(), b"{}".to_vec())];
        let part = Part {
            directory: String::new(),
            top: BString::default(),
            tree: &tree,
            epoch: None,
            documents: said,
        };
        write_directory(&part, &root.layers(), &out).unwrap();
        assert_eq!(fs::read(out.join("provenance.json")).unwrap(), b"{}");
        assert_eq!(fs::read(out.join("d/a")).unwrap(), b"new");
        assert_eq!(fs::read(out.join("d/c")).unwrap(), b"new");
        assert!(!out.join("d/b").exists());
        assert_eq!(fs::read_link(out.join("l")).unwrap(), Path::new("/outside"));
        // Once more over what is there, and then nothing else is.
        fs::create_dir_all(out.join("old/er")).unwrap();
        fs::write(out.join("d/old"), "").unwrap();
        std::os::unix::fs::symlink(dir.path(), out.join("old/link")).unwrap();
        let written = write_directory(&part, &root.layers(), &out).unwrap();
        assert!(out.join("old/er").exists());
        remove_others(&out, &written).unwrap();
        let left = |dir: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(dir).unwrap().map(|child| child.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(left(&out), ["d", "l", "provenance.json"]);
        assert_eq!(left(&out.join("d")), ["a", "c"]);
        assert!(dir.path().join("state").exists());
        let part = Part { epoch: Some(5), ..part };
        let mut tar = Vec::new();
        write_tar(std::slice::from_ref(&part), &root.layers(), &mut tar).unwrap();
        let index = image::layer::read::index_tar(&tar[..], io::sink()).unwrap();
        let paths: Vec<String> =
            index.entries().iter().map(|entry| entry.path.to_str_lossy().into_owned()).collect();
        assert_eq!(paths, ["", "d", "d/a", "d/c", "l", "provenance.json"]);
        assert!(index.entries()[1..].iter().all(|entry| entry.mtime == 5));

        let named = |name: &str| Part { directory: name.to_owned(), documents: Vec::new(), ..part.clone() };
        let mut tar = Vec::new();
        write_tar(&[named("linux_arm64"), named("linux_amd64")], &root.layers(), &mut tar).unwrap();
        let index = image::layer::read::index_tar(&tar[..], io::sink()).unwrap();
        let link = index.entries().iter().find(|entry| entry.path == "linux_arm64/d/c").unwrap();
        assert_eq!(link.kind, Kind::Hardlink { target: "linux_arm64/d/a".into() });
        assert_eq!(index.entries()[1].path, "linux_amd64");

        let digests = digests(&tree, &root.layers()).unwrap();
        assert_eq!(digests[0], ("d/a".into(), Digest::of(b"new")));
        assert_eq!(digests[1].1, digests[0].1);
    }
}

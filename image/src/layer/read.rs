//! A stranger's layer tar becomes an index. Hostile names end here.
//!
//! The bytes go through unchanged to where the layer is kept, hashed on the way; entries are understood as docker's
//! unpacking would in a directory: in the tar's order, the last of two with one path wins, a path may lead through a
//! symbolic link that the tar itself brought, hard links are other names of what stood at the target at that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::rc::Rc;

use bstr::{BStr, BString, ByteSlice};

use super::archive::{TarEntry, TarKind, TarReader, normalise};
use super::entry::{Entry, Kind, SYMLINK_MODE};
use super::index::{LayerIndex, parent};
use super::whiteout::{self, Marker};
use crate::digest::{ContentDigest, DiffId, Hasher};

pub use super::archive::ReadError;

/// The most memory that the entries of one layer may take, roughly counted. A directory of a million files fits.
const MAX_MEMORY: usize = 512 << 20;

/// The most symbolic links on the way to one entry, as in Linux's `MAXSYMLINKS`.
const MAX_LINKS: usize = 40;

/// The most steps on the way to one entry whose path leads through links.
const MAX_STEPS: usize = 8192;

/// Reads a layer's tar, uncompressed, copies its bytes to `sink` and gives the index.
///
/// The input is read to its end, which may lie behind the end of the archive. Nothing is promised about `sink` when an
/// error comes back: throw it away.
pub fn index_tar(reader: impl Read, sink: impl Write) -> Result<LayerIndex, ReadError> {
    let mut tar =
        TarReader::new(Tee { reader, sink, hasher: Hasher::sha256(), copied: 0, write_error: None });
    let result = collect(&mut tar).and_then(|layer| tar.drain().map(|()| layer));
    let mut tee = tar.into_inner();
    if let Some(error) = tee.write_error.take() {
        return Err(ReadError::Write(error));
    }
    let layer = result?;
    tee.sink.flush().map_err(ReadError::Write)?;
    layer.finish(DiffId(tee.hasher.finish()), tee.copied)
}

fn collect<R: Read>(tar: &mut TarReader<R>) -> Result<Collector, ReadError> {
    let mut layer = Collector::new();
    let mut buffer = vec![0; 1 << 17];
    while let Some(entry) = tar.next_entry()? {
        let content = match &entry.kind {
            TarKind::File { size, .. } => Some(hash(tar, *size, entry.path.as_bstr(), &mut buffer)?),
            _ => None,
        };
        layer.add(entry, content)?;
    }
    Ok(layer)
}

fn hash(tar: &mut impl Read, size: u64, path: &BStr, buffer: &mut [u8]) -> Result<ContentDigest, ReadError> {
    let mut hasher = blake3::Hasher::new();
    let mut left = size;
    while left > 0 {
        match tar.read(buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                left -= n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(bad(path, "the tar ends in the middle of it"));
            }
            Err(error) => return Err(ReadError::Read(error)),
        }
    }
    Ok(ContentDigest(*hasher.finalize().as_bytes()))
}

/// Passes bytes on as they are read, and hashes them.
struct Tee<R, W> {
    reader: R,
    sink: W,
    hasher: Hasher,
    copied: u64,
    // What ended the reading, when it was not the reader.
    write_error: Option<io::Error>,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buf)?;
        if let Err(error) = self.sink.write_all(&buf[..n]) {
            self.write_error = Some(error);
            return Err(io::Error::other("the layer's tar could not be written"));
        }
        self.hasher.update(&buf[..n]);
        self.copied += n as u64;
        Ok(n)
    }
}

/// What stands at a name; hard links share it.
struct Node {
    kind: Kind,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: i64,
    xattrs: BTreeMap<BString, BString>,
}

impl Node {
    fn implied() -> Rc<Self> {
        Rc::new(Self {
            kind: Kind::Directory { opaque: false, implied: true },
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: BTreeMap::new(),
        })
    }
}

/// A path with NUL for `/`, so that the order of bytes is the order of an index.
type Key = Box<[u8]>;

fn key(path: &[u8]) -> Key {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

fn path(key: &[u8]) -> BString {
    key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect::<Vec<u8>>().into()
}

/// The layer as it has been read so far.
struct Collector {
    names: BTreeMap<Key, Rc<Node>>,
    whiteouts: BTreeSet<Key>,
    opaque: BTreeSet<Key>,
    entries: usize,
    memory: usize,
}

impl Collector {
    fn new() -> Self {
        Self {
            names: BTreeMap::from([(Key::default(), Node::implied())]),
            whiteouts: BTreeSet::new(),
            opaque: BTreeSet::new(),
            entries: 0,
            memory: 0,
        }
    }

    fn add(&mut self, entry: TarEntry, content: Option<ContentDigest>) -> Result<(), ReadError> {
        self.entries += 1;
        if entry.path.is_empty() {
            return self.insert(BString::default(), entry, content);
        }
        let (dir, name) = split(&entry.path);
        if dir.split_str("/").any(|part| part.starts_with(b".wh..wh.")) {
            return Ok(());
        }
        if !dir.is_empty() && dir.split_str("/").any(|part| part.starts_with(whiteout::PREFIX)) {
            return Err(bad(entry.path.as_bstr(), "a directory's name begins with .wh."));
        }
        let marker = match whiteout::classify(name) {
            Marker::Metadata => return Ok(()),
            Marker::Invalid => return Err(bad(entry.path.as_bstr(), "it deletes nothing that can be named")),
            marker => marker,
        };
        let dir = self.directory(dir, entry.path.as_bstr())?;
        match marker {
            Marker::Whiteout(hidden) => {
                let hidden = join(&dir, hidden);
                self.account(2 * hidden.len())?;
                self.whiteouts.insert(key(&hidden));
                Ok(())
            }
            Marker::Opaque => {
                self.account(2 * dir.len())?;
                self.opaque.insert(key(&dir));
                Ok(())
            }
            _ => self.insert(join(&dir, name), entry, content),
        }
    }

    /// Puts an entry in place of what is there.
    fn insert(
        &mut self,
        path: BString,
        entry: TarEntry,
        content: Option<ContentDigest>,
    ) -> Result<(), ReadError> {
        let TarEntry { kind, mut mode, uid, gid, mtime, mut xattrs, .. } = entry;
        xattrs.retain(|name, _| !whiteout::is_unwanted_xattr(name));
        let kind = match kind {
            TarKind::File { size, offset: Some(offset) } => {
                let content = content.expect("files come with their hash");
                Kind::File { size, offset, content }
            }
            TarKind::File { offset: None, .. } => {
                return Err(bad(path.as_bstr(), "sparse files cannot be read from a layer"));
            }
            TarKind::Directory => Kind::Directory { opaque: false, implied: false },
            TarKind::Symlink(target) => {
                mode = SYMLINK_MODE;
                Kind::Symlink { target }
            }
            // What docker makes of it: overlayfs takes this very device for a deletion.
            TarKind::CharDevice { major: 0, minor: 0 } => {
                self.remove(&key(&path));
                self.account(2 * path.len())?;
                self.whiteouts.insert(key(&path));
                return Ok(());
            }
            TarKind::CharDevice { major, minor } => Kind::CharDevice { major, minor },
            TarKind::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
            TarKind::Fifo => Kind::Fifo,
            TarKind::Hardlink(target) => {
                if target.is_empty() {
                    return Err(bad(path.as_bstr(), "a hard link to the root"));
                }
                let (dir, name) = split(&target);
                let target = join(&self.resolve(dir, path.as_bstr())?, name);
                match self.names.get(&key(&target)) {
                    Some(node) if node.kind.is_dir() => {
                        return Err(bad(path.as_bstr(), "a hard link to a directory"));
                    }
                    Some(_) if target == path => return Err(bad(path.as_bstr(), "a hard link to itself")),
                    Some(node) => {
                        let node = Rc::clone(node);
                        return self.put(path, node);
                    }
                    None => Kind::Hardlink { target },
                }
            }
        };
        self.put(path, Rc::new(Node { kind, mode, uid, gid, mtime, xattrs }))
    }

    fn put(&mut self, path: BString, node: Rc<Node>) -> Result<(), ReadError> {
        let key = key(&path);
        self.account(
            2 * path.len() + node.xattrs.iter().map(|(k, v)| 64 + k.len() + v.len()).sum::<usize>(),
        )?;
        let keeps_children =
            node.kind.is_dir() && self.names.get(&key).is_some_and(|there| there.kind.is_dir());
        if !keeps_children {
            self.remove(&key);
        }
        self.names.insert(key, node);
        Ok(())
    }

    /// Removes a name and all below it.
    fn remove(&mut self, key: &[u8]) {
        let Some(node) = self.names.remove(key) else { return };
        if !node.kind.is_dir() {
            return;
        }
        let below: Vec<Key> = self
            .names
            .range::<[u8], _>((std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(key) && name.get(key.len()) == Some(&0))
            .map(|(name, _)| name.clone())
            .collect();
        for name in below {
            self.names.remove(&name);
        }
    }

    /// Where the directory `dir` of the entry `of` really is. What is missing on the way is implied.
    fn directory(&mut self, dir: &[u8], of: &BStr) -> Result<BString, ReadError> {
        if self.names.get(&key(dir)).is_some_and(|node| node.kind.is_dir()) {
            return Ok(dir.into());
        }
        let dir = self.resolve(dir, of)?;
        // A link's target has not been looked at before.
        normalise(&dir).map_err(|problem| bad(of, problem))?;
        if dir.split_str("/").any(|part| part.starts_with(whiteout::PREFIX)) {
            return Err(bad(of, "a directory's name begins with .wh."));
        }
        let name = key(&dir);
        if self.make_parents(&name)? && !self.names.contains_key(&name) {
            self.put(dir.clone(), Node::implied())?;
        }
        Ok(dir)
    }

    /// Follows the symbolic links that this tar brought on the way to the directory `dir` of the entry `of`. What this
    /// tar does not have is taken for a directory.
    fn resolve(&self, dir: &[u8], of: &BStr) -> Result<BString, ReadError> {
        let mut todo: Vec<BString> = Vec::new();
        push_parts(&mut todo, dir);
        let mut at = BString::default();
        let (mut links, mut steps) = (0, 0);
        while let Some(part) = todo.pop() {
            steps += 1;
            if links > MAX_LINKS || steps > MAX_STEPS {
                return Err(bad(of, "its path leads through too many symbolic links"));
            }
            if part == ".." {
                at = parent(&at).unwrap_or_default().into();
                continue;
            }
            let next = join(&at, &part);
            match self.names.get(&key(&next)).map(|node| &node.kind) {
                None | Some(Kind::Directory { .. }) => at = next,
                Some(Kind::Symlink { target }) => {
                    links += 1;
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    push_parts(&mut todo, target);
                }
                Some(_) => return Err(bad(of, "its path leads through something that is no directory")),
            }
        }
        Ok(at)
    }

    fn account(&mut self, bytes: usize) -> Result<(), ReadError> {
        self.memory += bytes + 2 * size_of::<Entry>();
        if self.memory > MAX_MEMORY {
            return Err(ReadError::TooManyEntries { entries: self.entries, limit: MAX_MEMORY });
        }
        Ok(())
    }

    fn finish(mut self, diff_id: DiffId, tar_size: u64) -> Result<LayerIndex, ReadError> {
        let opaque = self.deletions()?;
        let mut entries: Vec<Entry> = Vec::with_capacity(self.names.len());
        // The first name of each file that has several, by where it is in memory.
        let mut first: BTreeMap<*const Node, BString> = BTreeMap::new();
        for (name, node) in &self.names {
            let path = path(name);
            let mut kind = node.kind.clone();
            match &mut kind {
                Kind::Directory { opaque: is_opaque, .. } => *is_opaque = opaque.contains(name),
                Kind::Hardlink { target } if self.names.contains_key(&key(target)) => {
                    return Err(bad(path.as_bstr(), "a hard link to a later entry"));
                }
                Kind::File { .. } if Rc::strong_count(node) > 1 => match first.get(&Rc::as_ptr(node)) {
                    Some(target) => kind = Kind::Hardlink { target: target.clone() },
                    None => {
                        first.insert(Rc::as_ptr(node), path.clone());
                    }
                },
                _ => {}
            }
            let Node { mode, uid, gid, mtime, ref xattrs, .. } = **node;
            entries.push(Entry { path, kind, mode, uid, gid, mtime, xattrs: xattrs.clone() });
        }
        LayerIndex::new(entries, diff_id, tar_size).map_err(|error| match error {
            super::index::IndexError::Entry { path, problem } => {
                ReadError::Entry { path, problem: problem.into() }
            }
            other => ReadError::Entry { path: BString::default(), problem: other.to_string().into() },
        })
    }

    /// Puts deletions in place and gives the directories that hide what is below them.
    ///
    /// A deletion concerns lower layers only: what this layer has at the same path stays, whatever came first.
    fn deletions(&mut self) -> Result<BTreeSet<Key>, ReadError> {
        let mut opaque = BTreeSet::new();
        for name in std::mem::take(&mut self.opaque) {
            if self.make_parents(&name)? {
                self.names.entry(name.clone()).or_insert_with(Node::implied);
                opaque.insert(name);
            }
        }
        for name in std::mem::take(&mut self.whiteouts) {
            match self.names.get(&name) {
                Some(node) if node.kind.is_dir() => {
                    opaque.insert(name);
                }
                Some(_) => {}
                None => {
                    if self.make_parents(&name)? {
                        let node = Node {
                            kind: Kind::Whiteout,
                            mode: 0,
                            uid: 0,
                            gid: 0,
                            mtime: 0,
                            xattrs: BTreeMap::new(),
                        };
                        self.names.insert(name, Rc::new(node));
                    }
                }
            }
        }
        Ok(opaque)
    }

    /// Implies the directories above a name; `false` if one of them is something else now, which hides lower layers
    /// anyway.
    fn make_parents(&mut self, name: &[u8]) -> Result<bool, ReadError> {
        for (at, _) in name.iter().enumerate().filter(|(_, byte)| **byte == 0) {
            match self.names.get(&name[..at]) {
                Some(node) if node.kind.is_dir() => {}
                Some(_) => return Ok(false),
                None => {
                    self.account(2 * at)?;
                    self.names.insert(name[..at].into(), Node::implied());
                }
            }
        }
        Ok(true)
    }
}

/// Directory and name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let dir = parent(path).unwrap_or_default();
    (dir, if dir.is_empty() { path } else { &path[dir.len() + 1..] })
}

/// Puts the components of a path on a stack, the first one on top.
fn push_parts(stack: &mut Vec<BString>, path: &[u8]) {
    let parts = path.rsplit_str("/").filter(|part| !part.is_empty() && *part != b".");
    stack.extend(parts.map(BString::from));
}

fn join(dir: &[u8], name: &[u8]) -> BString {
    if dir.is_empty() { name.into() } else { [dir, b"/", name].concat().into() }
}

fn bad(path: impl Into<BString>, problem: &'static str) -> ReadError {
    ReadError::Entry { path: path.into(), problem: problem.into() }
}

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
    index_within(reader, sink, MAX_MEMORY)
}

fn index_within(reader: impl Read, sink: impl Write, limit: usize) -> Result<LayerIndex, ReadError> {
    let mut tar =
        TarReader::new(Tee { reader, sink, hasher: Hasher::sha256(), copied: 0, write_error: None });
    let result = collect(&mut tar, limit).and_then(|layer| tar.drain().map(|()| layer));
    let mut tee = tar.into_inner();
    if let Some(error) = tee.write_error.take() {
        return Err(ReadError::Write(error));
    }
    let layer = result?;
    tee.sink.flush().map_err(ReadError::Write)?;
    layer.finish(DiffId(tee.hasher.finish()), tee.copied)
}

fn collect<R: Read>(tar: &mut TarReader<R>, limit: usize) -> Result<Collector, ReadError> {
    let mut layer = Collector::new(limit);
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
    limit: usize,
}

impl Collector {
    fn new(limit: usize) -> Self {
        Self {
            names: BTreeMap::from([(Key::default(), Node::implied())]),
            whiteouts: BTreeSet::new(),
            opaque: BTreeSet::new(),
            entries: 0,
            memory: 0,
            limit,
        }
    }

    fn add(&mut self, entry: TarEntry, content: Option<ContentDigest>) -> Result<(), ReadError> {
        self.entries += 1;
        if entry.path.is_empty() {
            if entry.kind != TarKind::Directory {
                return Err(bad(entry.path.as_bstr(), "only a directory can be the root"));
            }
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
        if self.memory > self.limit {
            return Err(ReadError::TooManyEntries { entries: self.entries, limit: self.limit });
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

#[cfg(test)]
mod tests {
    use super::super::header::{BLOCK, Fields};
    use super::super::pax;
    use super::*;

    /// One entry of a tar made by hand; no field is checked.
    #[derive(Clone)]
    struct Raw<'a> {
        name: &'a str,
        typeflag: u8,
        link: &'a str,
        records: Vec<(&'a str, &'a [u8])>,
        data: &'a [u8],
    }

    fn raw(typeflag: u8, name: &str) -> Raw<'_> {
        Raw { name, typeflag, link: "", records: Vec::new(), data: b"" }
    }

    fn file<'a>(name: &'a str, data: &'a str) -> Raw<'a> {
        Raw { data: data.as_bytes(), ..raw(b'0', name) }
    }

    fn dir(name: &str) -> Raw<'_> {
        raw(b'5', name)
    }

    fn symlink<'a>(name: &'a str, link: &'a str) -> Raw<'a> {
        Raw { link, ..raw(b'2', name) }
    }

    fn hardlink<'a>(name: &'a str, link: &'a str) -> Raw<'a> {
        Raw { link, ..raw(b'1', name) }
    }

    fn block(typeflag: u8, name: &str, link: &str, size: u64) -> [u8; BLOCK] {
        Fields {
            prefix: b"",
            name: name.as_bytes(),
            link: link.as_bytes(),
            typeflag,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size,
            mtime: 0,
            device: (typeflag == b'3').then_some((0, 0)),
        }
        .encode()
    }

    fn data(tar: &mut Vec<u8>, bytes: &[u8]) {
        tar.extend_from_slice(bytes);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }

    fn tar(entries: &[Raw<'_>]) -> Vec<u8> {
        let mut tar = Vec::new();
        for entry in entries {
            if !entry.records.is_empty() {
                let mut body = Vec::new();
                for (key, value) in &entry.records {
                    pax::push(&mut body, key.as_bytes(), value);
                }
                tar.extend_from_slice(&block(b'x', "pax", "", body.len() as u64));
                data(&mut tar, &body);
            }
            tar.extend_from_slice(&block(entry.typeflag, entry.name, entry.link, entry.data.len() as u64));
            data(&mut tar, entry.data);
        }
        tar.resize(tar.len() + 2 * BLOCK, 0);
        tar
    }

    /// The layer in short: one word an entry.
    fn layer(entries: &[Raw<'_>]) -> Result<String, String> {
        let bytes = tar(entries);
        let mut copy = Vec::new();
        let index = index_tar(&bytes[..], &mut copy).map_err(|error| error.to_string())?;
        assert_eq!(copy, bytes);
        assert_eq!(index.diff_id(), DiffId(crate::Digest::of(&bytes)));
        assert_eq!(index.tar_size(), bytes.len() as u64);
        let show = |entry: &Entry| {
            let path = &entry.path;
            match &entry.kind {
                Kind::File { size, offset, content } => {
                    let data = &bytes[*offset as usize..][..*size as usize];
                    assert_eq!(*content, ContentDigest::of(data));
                    format!("{path}={}", data.as_bstr())
                }
                Kind::Directory { opaque, implied } => {
                    format!("{path}/{}{}", if *implied { "?" } else { "" }, if *opaque { "!" } else { "" })
                }
                Kind::Symlink { target } => format!("{path}->{target}"),
                Kind::Hardlink { target } => format!("{path}=>{target}"),
                Kind::Whiteout => format!("-{path}"),
                Kind::Fifo => format!("{path}|"),
                other => format!("{path} {other:?}"),
            }
        };
        Ok(index.entries().iter().map(show).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn strangers_names_stay_inside_the_root() {
        for (name, expected) in [
            ("a", "/? a=x"),
            ("/a", "/? a=x"),
            ("../a", "/? a=x"),
            ("../../../etc/a", "/? etc/? etc/a=x"),
            ("./../a", "/? a=x"),
            ("a/../../b", "/? b=x"),
            ("a//b/.///c", "/? a/? a/b/? a/b/c=x"),
            ("a/./b/../c", "/? a/? a/c=x"),
        ] {
            assert_eq!(layer(&[file(name, "x")]).as_deref(), Ok(expected), "{name}");
        }
        assert_eq!(layer(&[dir("./"), file("./a", "x")]).as_deref(), Ok("/ a=x"));
        for name in ["", ".", "/", "..", "a/.."] {
            let error = layer(&[file(name, "x")]).unwrap_err();
            assert!(error.contains("only a directory can be the root"), "{name}: {error}");
            assert!(layer(&[symlink(name, "/etc")]).is_err());
        }
    }

    #[test]
    fn a_path_may_lead_through_links_of_the_same_tar_and_no_further() {
        for (entries, expected) in [
            (vec![dir("d"), symlink("l", "d"), file("l/f", "x")], "/? d/ d/f=x l->d"),
            (vec![symlink("l", "/d"), file("l/f", "x")], "/? d/? d/f=x l->/d"),
            (vec![symlink("l", "../../../d"), file("l/f", "x")], "/? d/? d/f=x l->../../../d"),
            (vec![symlink("a/l", "../d/e"), file("a/l/f", "x")], "/? a/? a/l->../d/e d/? d/e/? d/e/f=x"),
            (vec![symlink("l", "m"), symlink("m", "n"), file("l/f", "x")], "/? l->m m->n n/? n/f=x"),
            // A directory replaces a link and what was written through it stays where it was.
            (vec![symlink("l", "d"), file("l/f", "x"), dir("l"), file("l/g", "y")], "/? d/? d/f=x l/ l/g=y"),
        ] {
            assert_eq!(layer(&entries).as_deref(), Ok(expected));
        }
        for entries in [
            vec![symlink("a", "b"), symlink("b", "a"), file("a/f", "x")],
            vec![symlink("a", "a"), file("a/f", "x")],
            vec![symlink("a", "a/a/a/a"), file("a/f", "x")],
            vec![file("a", "x"), file("a/f", "x")],
        ] {
            assert!(layer(&entries).unwrap_err().contains("its path leads through"));
        }
    }

    #[test]
    fn the_last_of_two_entries_counts() {
        for (entries, expected) in [
            (vec![file("a", "1"), file("a", "2")], "/? a=2"),
            (vec![file("a", "1"), dir("a"), file("a/b", "2")], "/? a/ a/b=2"),
            (vec![file("a/b", "1"), file("a", "2")], "/? a=2"),
            (vec![file("a/b/c", "1"), file("ab", "3"), symlink("a", "x")], "/? a->x ab=3"),
            (vec![file("a/b", "1"), dir("a")], "/? a/ a/b=1"),
            (vec![dir("a"), file("a/b", "1"), raw(b'6', "a"), dir("a")], "/? a/"),
        ] {
            assert_eq!(layer(&entries).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn hard_links_are_names_of_what_stood_there() {
        for (entries, expected) in [
            (vec![file("a", "1"), hardlink("b", "a")], "/? a=1 b=>a"),
            // The first name in order is the file, whichever the tar has first.
            (vec![file("b", "1"), hardlink("a", "/b")], "/? a=1 b=>a"),
            (vec![file("b", "1"), hardlink("a", "./x/../b"), hardlink("c", "a")], "/? a=1 b=>a c=>a"),
            (vec![file("a", "1"), hardlink("b", "a"), file("a", "2")], "/? a=2 b=1"),
            (vec![file("a", "1"), hardlink("b", "a"), file("b", "2")], "/? a=1 b=2"),
            (vec![symlink("l", "d"), file("d/a", "1"), hardlink("b", "l/a")], "/? b=1 d/? d/a=>b l->d"),
            (vec![symlink("a", "x"), hardlink("b", "a")], "/? a->x b->x"),
            (vec![raw(b'6', "a"), hardlink("b", "a")], "/? a| b|"),
            (vec![hardlink("b", "below")], "/? b=>below"),
            (vec![hardlink("b", "../../below")], "/? b=>below"),
            (vec![hardlink("b", "below"), hardlink("c", "b")], "/? b=>below c=>below"),
        ] {
            assert_eq!(layer(&entries).as_deref(), Ok(expected));
        }
        for (entries, problem) in [
            (vec![hardlink("b", "a"), file("a", "1")], "later entry"),
            (vec![dir("a"), hardlink("b", "a")], "to a directory"),
            (vec![file("a", "1"), hardlink("a", "a")], "to itself"),
            (vec![hardlink("a", "/")], "to the root"),
        ] {
            let error = layer(&entries).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn deletions_concern_lower_layers_only() {
        for (entries, expected) in [
            (vec![file(".wh.a", "")], "/? -a"),
            (vec![file("d/.wh.a", "")], "/? d/? -d/a"),
            (vec![dir(".wh.a")], "/? -a"),
            (vec![file(".wh.a", ""), file("a", "1")], "/? a=1"),
            (vec![file("a", "1"), file(".wh.a", "")], "/? a=1"),
            // A directory that replaces one.
            (vec![file(".wh.a", ""), dir("a"), file("a/b", "1")], "/? a/! a/b=1"),
            (vec![file("a/b", "1"), file(".wh.a", "")], "/? a/?! a/b=1"),
            // Docker makes the directory of a deletion, too.
            (vec![file(".wh.a", ""), file("a/.wh.b", "")], "/? a/?! -a/b"),
            (vec![dir("d"), file("d/.wh..wh..opq", "")], "/? d/!"),
            (vec![file("d/.wh..wh..opq", "not empty"), file("d/a", "1"), dir("d")], "/? d/! d/a=1"),
            (vec![dir("d/.wh..wh..opq"), file("d/.wh..wh..opq/x", "")], "/? d/?!"),
            (vec![file(".wh..wh..opq", "")], "/?!"),
            (vec![dir("d"), symlink("l", "d"), file("l/.wh.a", "")], "/? d/ -d/a l->d"),
            (vec![file("d/.wh.a", ""), file("d", "1")], "/? d=1"),
            (vec![file("d/.wh..wh..opq", ""), file("d", "1")], "/? d=1"),
            (vec![dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", "")], "/?"),
            // Overlayfs would take it for a deletion, so it is one.
            (vec![raw(b'3', "a")], "/? -a"),
            (vec![file("a", "x"), raw(b'3', "a")], "/? -a"),
        ] {
            assert_eq!(layer(&entries).as_deref(), Ok(expected));
        }
        for name in [".wh.", ".wh..", ".wh...", "d/.wh.", ".wh.a/b"] {
            assert!(layer(&[file(name, "")]).is_err(), "{name}");
        }
        let through_link = [symlink("l", ".wh.x"), file("l/f", "")];
        assert!(layer(&through_link).is_err());
    }

    #[test]
    fn extended_headers_are_understood() {
        let long = "d/".repeat(200) + "f";
        let with = |records: Vec<(&'static str, &'static [u8])>| Raw { records, ..file("a", "12345") };
        let bytes = tar(&[
            Raw {
                records: vec![("path", long.as_bytes()), ("size", b"5"), ("mtime", b"-0.5")],
                ..file("x", "12345")
            },
            Raw {
                records: vec![
                    ("SCHILY.xattr.user.x", b"\n9 path=b\n\0"),
                    ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                    ("SCHILY.xattr.user.overlay.redirect", b"/"),
                    ("SCHILY.xattr.security.selinux", b"label"),
                    ("uid", b"4000000000"),
                    ("gid", b"2097152"),
                ],
                ..file("b", "")
            },
            Raw { records: vec![("linkpath", long.as_bytes())], ..symlink("c", "short") },
        ]);
        let index = index_tar(&bytes[..], io::sink()).unwrap();
        assert_eq!(index.get(long.as_bytes()).unwrap().mtime, -1);
        let b = index.get(b"b").unwrap();
        assert_eq!((b.uid, b.gid), (4_000_000_000, 1 << 21));
        assert_eq!(b.xattrs.len(), 1);
        assert_eq!(b.xattrs[&BString::from("user.x")], &b"\n9 path=b\n\0"[..]);
        assert_eq!(index.get(b"c").unwrap().kind, Kind::Symlink { target: long.into() });

        for (records, problem) in [
            (vec![("path", &b"a\0b"[..])], "NUL"),
            (vec![("size", &b"1x"[..])], "not decimal"),
            (vec![("uid", &b"4294967295"[..])], "out of range"),
            (vec![("size", &b"6000"[..])], "ends in the middle"),
            (
                vec![("GNU.sparse.major", &b"0"[..]), ("GNU.sparse.map", b"0,5"), ("GNU.sparse.size", b"9")],
                "sparse",
            ),
        ] {
            let error = layer(&[with(records)]).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
        let mut global = Vec::new();
        let mut body = Vec::new();
        pax::push(&mut body, b"comment", b"a commit");
        global.extend_from_slice(&block(b'g', "pax", "", body.len() as u64));
        data(&mut global, &body);
        let rest = tar(&[file("a", "1")]);
        let index = index_tar(&[&global[..], &rest].concat()[..], io::sink()).unwrap();
        assert!(index.get(b"a").is_some());
        body.clear();
        pax::push(&mut body, b"path", b"other");
        let mut global = block(b'g', "pax", "", body.len() as u64).to_vec();
        data(&mut global, &body);
        assert!(index_tar(&[&global[..], &rest].concat()[..], io::sink()).is_err());
    }

    #[test]
    fn gnu_long_names_are_understood_and_bounded() {
        let long = "d/".repeat(150) + "f\0";
        let mut bytes = block(b'L', "././@LongLink", "", long.len() as u64).to_vec();
        data(&mut bytes, long.as_bytes());
        bytes.extend(tar(&[file("cut", "1")]));
        let index = index_tar(&bytes[..], io::sink()).unwrap();
        assert!(index.get(&long.as_bytes()[..long.len() - 1]).is_some());
        // 8 GiB are promised; nothing of the sort is set aside.
        let bomb = block(b'L', "././@LongLink", "", 1 << 32);
        assert!(index_tar(&bomb[..], io::sink()).unwrap_err().to_string().contains("longer than 1 MiB"));
    }

    #[test]
    fn broken_archives_are_refused() {
        let good = tar(&[file("a", "12"), file("b", "2")]);
        let read = |bytes: &[u8]| index_tar(bytes, io::sink()).map(|index| index.entries().len());
        assert_eq!(read(&good).unwrap(), 3);
        // Without the zeros at the end, and with other bytes behind them, it is still one.
        assert_eq!(read(&good[..2048]).unwrap(), 3);
        assert_eq!(read(&[&good[..], b"trailing"].concat()).unwrap(), 3);
        assert_eq!(read(b"").unwrap(), 1);
        let mut middle = good.clone();
        middle.splice(1024..1024, [0; BLOCK]);
        assert!(read(&middle).is_err());
        let mut checksum = good.clone();
        checksum[0] = b'b';
        assert!(read(&checksum).is_err());
        for cut in [1, 100, 511, 513, 700, 1025, 1500] {
            assert!(read(&good[..cut]).is_err(), "{cut}");
        }
        assert!(layer(&[raw(b'M', "a")]).unwrap_err().contains("type is unknown"));
        let huge = block(b'0', "a", "", 0o77_777_777_777);
        assert!(read(&huge).is_err());
    }

    #[test]
    fn too_many_entries_end_before_memory_does() {
        // A deep path implies a directory for each of its components: the same few bytes, again and again.
        struct Bomb {
            number: u64,
            block: Vec<u8>,
        }
        impl Read for Bomb {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                if self.block.is_empty() {
                    self.number += 1;
                    let path = format!("{}/{}f", self.number, "d/".repeat(4000));
                    let mut body = Vec::new();
                    pax::push(&mut body, b"path", path.as_bytes());
                    let mut out = block(b'x', "pax", "", body.len() as u64).to_vec();
                    data(&mut out, &body);
                    out.extend_from_slice(&block(b'0', "f", "", 0));
                    self.block = out;
                }
                let n = buf.len().min(self.block.len());
                buf[..n].copy_from_slice(&self.block[..n]);
                self.block.drain(..n);
                Ok(n)
            }
        }
        let error = index_within(Bomb { number: 0, block: Vec::new() }, io::sink(), 64 << 20).unwrap_err();
        assert!(matches!(error, ReadError::TooManyEntries { .. }), "{error}");
    }

    #[test]
    fn errors_say_which_side_failed() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("no network"))
            }
        }
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::other("no space"))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(matches!(index_tar(Fails, io::sink()), Err(ReadError::Read(_))));
        assert!(matches!(index_tar(&tar(&[file("a", "1")])[..], Fails), Err(ReadError::Write(_))));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_an_index_or_an_error(
            mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3000),
            valid in proptest::prelude::any::<bool>(),
        ) {
            // Most headers are not past the checksum; make some that are.
            if valid && bytes.len() >= BLOCK {
                let sum: u64 = bytes[..BLOCK]
                    .iter()
                    .enumerate()
                    .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
                    .sum();
                bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            let _ = index_tar(&bytes[..], io::sink());
        }
    }
}

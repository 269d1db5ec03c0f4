//! The index of a layer: its entries in the order of their paths, and what the layer is called.
//!
//! Small enough to read at once and enough for everything but file contents: those are in the tar, at the offsets
//! noted here. The index never opens the tar.
//!
//! On disk: the line `rbuild layer index 1`, a BLAKE3 hash of all that follows, then the fields and entries in postcard.
//! A file that cannot be read is no loss: it can be made again from the tar.

use std::cmp::Ordering;

use bstr::{BStr, BString, ByteSlice};
use serde::{Deserialize, Serialize};

use super::entry::{Entry, Kind};
use crate::digest::{ContentDigest, DiffId};

/// The entries of a layer and its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    // Strictly ascending by `path_cmp`, starting with the root; every entry's parent is a directory in here; a hard
    // link's target is a file before it or not in here at all; data lies within the tar at a multiple of 512.
    entries: Vec<Entry>,
    diff_id: DiffId,
    tar_size: u64,
    content: ContentDigest,
}

/// Entries or bytes that are not a layer's index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The first line is another one.
    #[error("could not read layer index: not an index of this version")]
    Version,
    /// The file was cut or changed.
    #[error("could not read layer index: its checksum does not match")]
    Checksum,
    /// The bytes behind the checksum do not decode.
    #[error("could not read layer index: {0}")]
    Decode(postcard::Error),
    /// An entry breaks what an index promises.
    #[error("could not index layer entry {path:?}: {problem}")]
    Entry {
        /// Its path.
        path: BString,
        /// What is wrong with it.
        problem: &'static str,
    },
}

const MAGIC: &[u8] = b"rbuild layer index 1\n";
const HASH_LEN: usize = 32;

#[derive(Serialize)]
struct BodyRef<'a> {
    diff_id: DiffId,
    tar_size: u64,
    content: ContentDigest,
    entries: &'a [Entry],
}

#[derive(Deserialize)]
struct Body {
    diff_id: DiffId,
    tar_size: u64,
    content: ContentDigest,
    entries: Vec<Entry>,
}

impl LayerIndex {
    /// Makes the index of the layer `diff_id`, whose tar is `tar_size` bytes long.
    ///
    /// `entries` must be in order, without duplicates, and name every parent directory down from the root.
    pub fn new(entries: Vec<Entry>, diff_id: DiffId, tar_size: u64) -> Result<Self, IndexError> {
        check(&entries, tar_size)?;
        let content = content_digest(&entries);
        Ok(Self { entries, diff_id, tar_size, content })
    }

    /// The layer's name: the digest of its tar.
    pub fn diff_id(&self) -> DiffId {
        self.diff_id
    }

    /// Length of the tar in bytes.
    pub fn tar_size(&self) -> u64 {
        self.tar_size
    }

    /// Hash of what the layer does to a tree: path, kind, mode, owner, link target, xattrs and bytes of every entry,
    /// never times or offsets.
    pub fn content(&self) -> ContentDigest {
        self.content
    }

    /// All entries in order: a directory's descendants directly follow it.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether it hides something of the layers below: it has a whiteout or an opaque directory.
    pub fn deletes(&self) -> bool {
        let hides =
            |entry: &Entry| matches!(entry.kind, Kind::Whiteout | Kind::Directory { opaque: true, .. });
        self.entries.iter().any(hides)
    }

    /// Gives the entries away.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// Whether the layer changes nothing: it has no entry but a made-up root.
    pub fn is_empty(&self) -> bool {
        matches!(&self.entries[..], [Entry { kind: Kind::Directory { implied: true, opaque: false }, .. }])
    }

    /// The entry at exactly this path.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.position(path).ok().map(|at| &self.entries[at])
    }

    /// Where the entry of this path is in [`Self::entries`], or where it would have to be inserted.
    pub fn position(&self, path: &[u8]) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| path_cmp(&entry.path, path))
    }

    /// Everything below `dir`, at any depth, without `dir` itself.
    pub fn descendants(&self, dir: &[u8]) -> &[Entry] {
        let start = match self.position(dir) {
            Ok(at) => at + 1,
            Err(at) => at,
        };
        let rest = &self.entries[start..];
        &rest[..rest.partition_point(|entry| is_below(&entry.path, dir))]
    }

    /// The entries directly in `dir`.
    pub fn children<'a>(&'a self, dir: &[u8]) -> Children<'a> {
        Children { rest: self.descendants(dir) }
    }

    /// The index as a file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = BodyRef {
            diff_id: self.diff_id,
            tar_size: self.tar_size,
            content: self.content,
            entries: &self.entries,
        };
        let mut bytes = Vec::with_capacity(MAGIC.len() + HASH_LEN + 128 + self.entries.len() * 96);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; HASH_LEN]);
        let mut bytes = postcard::to_extend(&body, bytes).expect("writing to memory cannot fail");
        let hash = blake3::hash(&bytes[MAGIC.len() + HASH_LEN..]);
        bytes[MAGIC.len()..MAGIC.len() + HASH_LEN].copy_from_slice(hash.as_bytes());
        bytes
    }

    /// Reads what [`Self::to_bytes`] gave. Any other bytes are an error.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IndexError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(IndexError::Version)?;
        let (hash, rest) = rest.split_at_checked(HASH_LEN).ok_or(IndexError::Checksum)?;
        if blake3::hash(rest).as_bytes() != hash {
            return Err(IndexError::Checksum);
        }
        let body: Body = postcard::from_bytes(rest).map_err(IndexError::Decode)?;
        check(&body.entries, body.tar_size)?;
        Ok(Self {
            entries: body.entries,
            diff_id: body.diff_id,
            tar_size: body.tar_size,
            content: body.content,
        })
    }
}

/// The entries directly in a directory, in order.
#[derive(Clone, Debug)]
pub struct Children<'a> {
    rest: &'a [Entry],
}

impl<'a> Iterator for Children<'a> {
    type Item = &'a Entry;

    fn next(&mut self) -> Option<&'a Entry> {
        let (child, rest) = self.rest.split_first()?;
        self.rest = match child.kind {
            Kind::Directory { .. } if rest.first().is_some_and(|next| is_below(&next.path, &child.path)) => {
                &rest[rest.partition_point(|entry| is_below(&entry.path, &child.path))..]
            }
            _ => rest,
        };
        Some(child)
    }
}

/// Compares paths component by component: `/` sorts before every other byte, so that what is in a directory directly
/// follows it (`a`, `a/b`, `a.c`).
pub fn path_cmp(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: u8| if byte == b'/' { 0 } else { byte };
    match a.iter().zip(b).position(|(a, b)| a != b) {
        Some(at) => rank(a[at]).cmp(&rank(b[at])),
        None => a.len().cmp(&b.len()),
    }
}

/// Whether `path` lies below the directory `dir`, at any depth.
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    if dir.is_empty() {
        return !path.is_empty();
    }
    path.len() > dir.len() && path[dir.len()] == b'/' && path.starts_with(dir)
}

/// The path of the directory that holds `path`; `None` for the root.
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.rfind_byte(b'/').map_or(&[], |slash| &path[..slash]))
}

/// Whether `path` has the form that [`Entry::path`] promises.
pub fn is_normal(path: &[u8]) -> bool {
    path.is_empty()
        || (!path.contains(&0)
            && path.split_str("/").all(|part| !part.is_empty() && part != b"." && part != b".."))
}

fn check(entries: &[Entry], tar_size: u64) -> Result<(), IndexError> {
    let fail = |entry: &Entry, problem| Err(IndexError::Entry { path: entry.path.clone(), problem });
    match entries.first() {
        Some(root) if root.path.is_empty() && root.kind.is_dir() => {}
        Some(first) => return fail(first, "the first entry must be the root directory"),
        None => return Err(IndexError::Entry { path: BString::default(), problem: "the root is missing" }),
    }
    // The directories from the root down to the entry before.
    let mut ancestors: Vec<&BStr> = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        if !is_normal(&entry.path) {
            return fail(entry, "the path is not in normal form");
        }
        if at > 0 && path_cmp(&entries[at - 1].path, &entry.path) != Ordering::Less {
            return fail(entry, "not in order");
        }
        if let Some(parent) = parent(&entry.path) {
            while ancestors.last().is_some_and(|dir| *dir != parent) {
                ancestors.pop();
            }
            if ancestors.is_empty() {
                return fail(entry, "its parent is not a directory of the layer");
            }
        }
        if entry.mode > 0o7777 {
            return fail(entry, "the mode has more than permission bits");
        }
        match &entry.kind {
            Kind::Directory { .. } => ancestors.push(entry.path.as_bstr()),
            Kind::File { size, offset, .. }
                if offset % 512 != 0 || offset.checked_add(*size).is_none_or(|end| end > tar_size) =>
            {
                return fail(entry, "its data is not in the tar");
            }
            Kind::Hardlink { target } => {
                if !is_normal(target) || target.is_empty() {
                    return fail(entry, "the link's target is not in normal form");
                }
                match entries.binary_search_by(|other| path_cmp(&other.path, target)) {
                    Ok(found) if found < at && matches!(entries[found].kind, Kind::File { .. }) => {}
                    Ok(_) => return fail(entry, "the link's target is not a file before it"),
                    Err(_) => {}
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Hashes what the entries do to a tree. Every field is preceded by its length or of fixed length, so different
/// entries never give the same input.
fn content_digest(entries: &[Entry]) -> ContentDigest {
    fn bytes(buffer: &mut Vec<u8>, bytes: &[u8]) {
        buffer.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        buffer.extend_from_slice(bytes);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"rbuild layer content 1\n");
    let mut buffer = Vec::with_capacity(1 << 16);
    for entry in entries {
        bytes(&mut buffer, &entry.path);
        buffer.extend_from_slice(&entry.mode.to_le_bytes());
        buffer.extend_from_slice(&entry.uid.to_le_bytes());
        buffer.extend_from_slice(&entry.gid.to_le_bytes());
        match &entry.kind {
            Kind::File { size, content, offset: _ } => {
                buffer.push(0);
                buffer.extend_from_slice(&size.to_le_bytes());
                buffer.extend_from_slice(&content.0);
            }
            Kind::Directory { opaque, implied } => {
                buffer.extend_from_slice(&[1, u8::from(*opaque), u8::from(*implied)]);
            }
            Kind::Symlink { target } => {
                buffer.push(2);
                bytes(&mut buffer, target);
            }
            Kind::Hardlink { target } => {
                buffer.push(3);
                bytes(&mut buffer, target);
            }
            Kind::CharDevice { major, minor } => {
                buffer.push(4);
                buffer.extend_from_slice(&major.to_le_bytes());
                buffer.extend_from_slice(&minor.to_le_bytes());
            }
            Kind::BlockDevice { major, minor } => {
                buffer.push(5);
                buffer.extend_from_slice(&major.to_le_bytes());
                buffer.extend_from_slice(&minor.to_le_bytes());
            }
            Kind::Fifo => buffer.push(6),
            Kind::Whiteout => buffer.push(7),
        }
        buffer.extend_from_slice(&(entry.xattrs.len() as u64).to_le_bytes());
        for (name, value) in &entry.xattrs {
            bytes(&mut buffer, name);
            bytes(&mut buffer, value);
        }
        if buffer.len() >= 1 << 15 {
            hasher.update(&buffer);
            buffer.clear();
        }
    }
    hasher.update(&buffer);
    ContentDigest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::Digest;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry { path: path.into(), kind, mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: BTreeMap::new() }
    }

    fn directory(path: &str) -> Entry {
        entry(path, Kind::Directory { opaque: false, implied: false })
    }

    fn file(path: &str) -> Entry {
        entry(path, Kind::File { size: 3, offset: 512, content: ContentDigest::of(b"abc") })
    }

    fn index(entries: Vec<Entry>) -> Result<LayerIndex, IndexError> {
        LayerIndex::new(entries, DiffId(Digest::of(b"tar")), 2048)
    }

    fn sample() -> LayerIndex {
        let entries = vec![
            directory(""),
            directory("a"),
            directory("a/b"),
            file("a/b/c"),
            entry("a/b.d", Kind::Fifo),
            directory("a/e"),
            file("a.f"),
            entry("g", Kind::Hardlink { target: "a/b/c".into() }),
        ];
        index(entries).unwrap()
    }

    #[test]
    fn a_directorys_descendants_follow_it() {
        let index = sample();
        let paths =
            |entries: Vec<&Entry>| entries.iter().map(|entry| entry.path.to_string()).collect::<Vec<_>>();
        assert_eq!(paths(index.descendants(b"a").iter().collect()), ["a/b", "a/b/c", "a/b.d", "a/e"]);
        assert_eq!(paths(index.children(b"a").collect()), ["a/b", "a/b.d", "a/e"]);
        assert_eq!(paths(index.children(b"").collect()), ["a", "a.f", "g"]);
        assert_eq!(index.descendants(b"").len(), 7);
        for nothing in [&b"a.f"[..], b"a/e", b"none", b"a/b/"] {
            assert!(index.children(nothing).next().is_none(), "{}", nothing.as_bstr());
        }
        for entry in index.entries() {
            assert_eq!(index.get(&entry.path), Some(entry));
        }
        assert_eq!(index.get(b"a/b/x"), None);
    }

    #[test]
    fn what_breaks_an_indexs_promises_is_refused() {
        let link = |path: &str, target: &str| entry(path, Kind::Hardlink { target: target.into() });
        for (entries, problem) in [
            (vec![], "the root is missing"),
            (vec![file("a")], "must be the root"),
            (vec![entry("", Kind::Fifo)], "must be the root"),
            (vec![directory(""), file("b"), file("a")], "not in order"),
            (vec![directory(""), file("a"), file("a")], "not in order"),
            (vec![directory(""), file("a.b"), directory("a")], "not in order"),
            (vec![directory(""), file("a/b")], "its parent"),
            (vec![directory(""), file("a"), file("a/b")], "its parent"),
            (vec![directory(""), directory("a"), directory("b"), file("b/c/d")], "its parent"),
            (vec![directory(""), file("a/../b")], "normal form"),
            (vec![directory(""), file("/a")], "normal form"),
            (vec![directory(""), link("a", "b"), file("b")], "not a file before it"),
            (vec![directory(""), directory("a"), link("b", "a")], "not a file before it"),
            (vec![directory(""), link("b", "../a")], "normal form"),
            (
                vec![
                    directory(""),
                    entry("a", Kind::File { size: 3, offset: 513, content: ContentDigest([0; 32]) }),
                ],
                "not in the tar",
            ),
            (
                vec![
                    directory(""),
                    entry("a", Kind::File { size: 2000, offset: 512, content: ContentDigest([0; 32]) }),
                ],
                "not in the tar",
            ),
            (
                vec![
                    directory(""),
                    entry("a", Kind::File { size: u64::MAX, offset: 512, content: ContentDigest([0; 32]) }),
                ],
                "not in the tar",
            ),
            (vec![Entry { mode: 0o10000, ..directory("") }], "permission bits"),
        ] {
            let error = index(entries).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn content_is_all_that_a_tree_shows_and_nothing_else() {
        let sample = sample();
        let changed = |change: &dyn Fn(&mut Entry)| {
            let mut entries = sample.entries().to_vec();
            change(&mut entries[3]);
            LayerIndex::new(entries, DiffId(Digest::of(b"other")), 4096).unwrap().content()
        };
        for same in [&(|entry: &mut Entry| entry.mtime = 7) as &dyn Fn(&mut Entry), &|entry| {
            entry.kind = Kind::File { size: 3, offset: 1024, content: ContentDigest::of(b"abc") };
        }] {
            assert_eq!(changed(same), sample.content());
        }
        let different: [&dyn Fn(&mut Entry); 6] = [
            &|entry| entry.mode = 0o700,
            &|entry| entry.uid = 1,
            &|entry| entry.gid = 1,
            &|entry| drop(entry.xattrs.insert("user.a".into(), "".into())),
            &|entry| entry.kind = Kind::File { size: 3, offset: 512, content: ContentDigest::of(b"abd") },
            &|entry| entry.path = "a/b/d".into(),
        ];
        let mut seen: Vec<ContentDigest> = different
            .iter()
            .map(|change| {
                let mut entries = sample.entries().to_vec();
                // Only its own content: a link to it would change as well.
                entries.pop();
                change(&mut entries[3]);
                index(entries).unwrap().content()
            })
            .collect();
        seen.push(sample.content());
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), different.len() + 1);
    }

    #[test]
    fn the_format_and_the_content_digest_are_pinned() {
        // When this fails, indexes on disk or cache keys would change their meaning: bump the version in `MAGIC`, or the
        // one in `content_digest`.
        let index = sample();
        assert_eq!(
            ContentDigest::of(&index.to_bytes()).hex(),
            "ba20f1c31ba81942d559833f127b816e2af3b8a1a6a5f2d0796ea67007fff053"
        );
        assert_eq!(index.content().hex(), "4ae75195b90218cee6086a13daa00d6c5553ca0cce63d8266cc81dabd3bb7683");
    }

    #[test]
    fn damage_is_noticed() {
        let bytes = sample().to_bytes();
        assert_eq!(LayerIndex::from_bytes(&bytes), Ok(sample()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(LayerIndex::from_bytes(&damaged).is_err(), "byte {at}");
            assert!(LayerIndex::from_bytes(&bytes[..at]).is_err(), "length {at}");
        }
        assert_eq!(LayerIndex::from_bytes(b"rbuild layer index 2\n"), Err(IndexError::Version));
    }

    proptest! {
        #[test]
        fn any_bytes_behind_a_right_checksum_give_an_index_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let bytes = [MAGIC, blake3::hash(&body).as_bytes(), &body].concat();
            let _ = LayerIndex::from_bytes(&bytes);
        }

        #[test]
        fn paths_are_compared_by_components(a in "[a-c./!]{0,6}", b in "[a-c./!]{0,6}") {
            let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(path_cmp(a.as_bytes(), b.as_bytes()), parts(&a).cmp(&parts(&b)));
        }
    }
}

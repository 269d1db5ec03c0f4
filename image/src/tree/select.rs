//! What a step reads of a tree, and the digest of it that its cache key takes in.
//!
//! The digest is over paths (relative to what is picked), kinds, modes, owners, link targets, xattrs and contents.
//! Times are not in it. What a step names and is not there is part of it too: the step itself says what it thinks of
//! that. Names of one file that are picked together are in it as such, whichever of them comes first in its layer: what
//! is made of them is not what is made of equal files.

use std::collections::{HashMap, HashSet};

use bstr::{BString, ByteSlice};

use super::copy::{self, CopyError, Match};
use super::draft::DraftError;
use super::filter::Filter;
use super::path;
use super::pattern::Patterns;
use super::view::{Dir, InodeId, Node, Tree};
use crate::digest::ContentDigest;
use crate::layer::{Entry, Kind};

/// One path or pattern that a step reads, with all that is below it.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    /// Absolute and clean.
    pub path: &'a str,
    /// `path` is a pattern of Go's `filepath.Match`.
    pub wildcard: bool,
    /// If `path` is a symbolic link, what it points to is read.
    pub follow_symlinks: bool,
    /// Patterns of what is not read, relative to what `path` is.
    pub exclude: &'a [String],
    /// The directories above matter, and `path` is an ignore-style pattern (`**`).
    pub parents: bool,
}

/// What was picked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Equal for equal files.
    pub digest: ContentDigest,
    /// The first [`MAX_FILES`] paths and their digests, in order.
    pub files: Vec<(BString, ContentDigest)>,
    /// How many there are.
    pub count: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

/// The most files that a [`Selection`] names.
pub const MAX_FILES: usize = 10_000;

/// Picks from `tree`.
pub fn select(tree: &Tree, picks: &[Pick<'_>]) -> Result<Selection, CopyError> {
    let mut digester = Digester {
        all: blake3::Hasher::new(),
        selection: Selection { digest: ContentDigest([0; 32]), files: Vec::new(), count: 0, bytes: 0 },
        named: HashSet::new(),
        inodes: Vec::new(),
        has_links: false,
    };
    for pick in picks {
        digester.all.update(b"pick");
        let exclude = Patterns::new(pick.exclude)?;
        if pick.parents {
            let pattern = pick.path.trim_matches('/');
            let include = if pattern.is_empty() { None } else { Some(Patterns::new([pattern])?) };
            digester.below(tree.root(), &Filter { include: include.as_ref(), exclude: &exclude })?;
            continue;
        }
        for found in copy::matches(tree, pick.path, pick.wildcard, pick.follow_symlinks)? {
            digester.one(tree, &found, &exclude)?;
        }
    }
    digester.links();
    let mut selection = digester.selection;
    selection.digest = ContentDigest(*digester.all.finalize().as_bytes());
    Ok(selection)
}

/// The digest of what `node` is, without its path and times.
pub fn node_digest(node: &Node<'_>) -> ContentDigest {
    let inode = node.inode();
    let entry = inode.as_ref().map_or(node.entry, |inode| inode.entry);
    let mut hasher = blake3::Hasher::new();
    match &entry.kind {
        Kind::File { content, .. } => hasher.update(b"f").update(&content.0),
        Kind::Directory { .. } => hasher.update(b"d"),
        Kind::Symlink { target } => field(hasher.update(b"l"), target),
        Kind::Hardlink { target } => field(hasher.update(b"h"), target),
        Kind::CharDevice { major, minor } => device(hasher.update(b"c"), *major, *minor),
        Kind::BlockDevice { major, minor } => device(hasher.update(b"b"), *major, *minor),
        Kind::Fifo => hasher.update(b"p"),
        Kind::Whiteout => hasher.update(b"w"),
    };
    attributes(&mut hasher, entry);
    ContentDigest(*hasher.finalize().as_bytes())
}

struct Digester {
    all: blake3::Hasher,
    selection: Selection,
    /// Paths in `selection.files`: a file may be picked twice.
    named: HashSet<BString>,
    /// The file of each node.
    inodes: Vec<Option<InodeId>>,
    /// Whether a node is a hard link.
    has_links: bool,
}

impl Digester {
    /// A match and what is below it.
    fn one(&mut self, tree: &Tree, found: &Match, exclude: &Patterns) -> Result<(), CopyError> {
        // A file that is copied into a directory is called as it was found.
        field(self.all.update(b"match"), path::name(&found.path));
        if let Some(node) = tree.get(&found.resolved) {
            self.node(b"", &node);
        }
        match tree.dir(&found.resolved) {
            Some(dir) => self.below(dir, &Filter { include: None, exclude }),
            None => Ok(()),
        }
    }

    /// What is below `dir`.
    fn below<'t>(&mut self, dir: Dir<'t>, filter: &Filter<'_>) -> Result<(), CopyError> {
        let skip = if dir.path().is_empty() { 0 } else { dir.path().len() + 1 };
        for chosen in filter.choose(dir).map_err(DraftError::TooDeep)? {
            self.node(&chosen.node.entry.path[skip..], &chosen.node);
        }
        Ok(())
    }

    fn node(&mut self, at: &[u8], node: &Node<'_>) {
        let digest = node_digest(node);
        field(self.all.update(b"node"), at).update(&digest.0);
        self.selection.count += 1;
        let inode = node.inode();
        self.selection.bytes += inode.as_ref().map_or(0, |inode| inode.size);
        self.inodes.push(inode.map(|inode| inode.id));
        self.has_links |= matches!(node.entry.kind, Kind::Hardlink { .. });
        let path = &node.entry.path;
        if self.selection.files.len() < MAX_FILES && self.named.insert(path.clone()) {
            self.selection.files.push((path.clone(), digest));
        }
    }

    /// Which nodes are names of one file: each later one and the first one, by the order in which they were picked.
    fn links(&mut self) {
        if !self.has_links {
            return;
        }
        let mut first: HashMap<InodeId, usize> = HashMap::with_capacity(self.inodes.len());
        for (at, id) in self.inodes.iter().enumerate() {
            let Some(id) = id else { continue };
            let known = *first.entry(*id).or_insert(at);
            if known != at {
                self.all.update(b"link").update(&(at as u64).to_le_bytes());
                self.all.update(&(known as u64).to_le_bytes());
            }
        }
    }
}

fn attributes(hasher: &mut blake3::Hasher, entry: &Entry) {
    // What a link's mode is, no two systems agree on.
    let mode = if matches!(entry.kind, Kind::Symlink { .. }) { 0o777 } else { entry.mode };
    hasher.update(&mode.to_le_bytes()).update(&entry.uid.to_le_bytes()).update(&entry.gid.to_le_bytes());
    for (name, value) in &entry.xattrs {
        field(hasher, name);
        field(hasher, value);
    }
}

fn device(hasher: &mut blake3::Hasher, major: u32, minor: u32) -> &mut blake3::Hasher {
    hasher.update(&major.to_le_bytes()).update(&minor.to_le_bytes())
}

/// Bytes with their length: two fields in a row are never taken for other two.
fn field<'h>(hasher: &'h mut blake3::Hasher, bytes: &[u8]) -> &'h mut blake3::Hasher {
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Item, dir, file, hard, link, tree, with};
    use super::*;

    fn pick(path: &str) -> Pick<'_> {
        Pick { path, wildcard: true, follow_symlinks: true, exclude: &[], parents: false }
    }

    fn items() -> Vec<Item> {
        vec![
            dir("src"),
            file("src/main.rs", "main"),
            file("src/lib.rs", "lib"),
            dir("src/deep"),
            file("src/deep/x.md", "x"),
            link("entry", "src/main.rs"),
            dir("other"),
            file("other/y", "y"),
        ]
    }

    fn digest(items: &[Item], pick: Pick<'_>) -> ContentDigest {
        select(&tree(items), &[pick]).unwrap().digest
    }

    #[test]
    fn what_is_picked_decides_the_digest_and_nothing_else() {
        let exclude = ["*/*.md".to_owned()];
        let picks = [
            pick("/src"),
            pick("/src/main.rs"),
            pick("/src/*.rs"),
            pick("/entry"),
            pick("/"),
            Pick { exclude: &exclude, ..pick("/src") },
            Pick { parents: true, ..pick("/src/**/*.md") },
            pick("/src/new"),
        ];
        let change = |at: &str, change: fn(&mut Entry)| -> Vec<Item> {
            let mut items = items();
            let item = items.iter_mut().find(|(entry, _)| entry.path == at).unwrap();
            *item = with(item.clone(), change);
            items
        };
        let content: fn(&mut Entry) = |entry| {
            entry.kind = Kind::File { size: 1, offset: 0, content: ContentDigest::of(b"changed") };
        };
        let replace = |item: Item| [items(), vec![item]].concat();
        for (what, items_now, misses) in [
            ("nothing", items(), [false; 8]),
            ("a time", change("src/main.rs", |entry| entry.mtime += 1), [false; 8]),
            ("main.rs", change("src/main.rs", content), [true, true, true, true, true, true, false, false]),
            (
                "a mode",
                change("src/main.rs", |entry| entry.mode = 0o600),
                [true, true, true, true, true, true, false, false],
            ),
            (
                "an owner",
                change("src/lib.rs", |entry| entry.uid = 1),
                [true, false, true, false, true, true, false, false],
            ),
            ("x.md", change("src/deep/x.md", content), [true, false, false, false, true, false, true, false]),
            (
                "an xattr",
                change("src/deep/x.md", |entry| drop(entry.xattrs.insert("user.a".into(), "b".into()))),
                [true, false, false, false, true, false, true, false],
            ),
            (
                "a directory's mode",
                change("src/deep", |entry| entry.mode = 0o700),
                [true, false, false, false, true, true, true, false],
            ),
            (
                "another directory",
                change("other/y", content),
                [false, false, false, false, true, false, false, false],
            ),
            (
                "a new file",
                replace(file("src/new", "n")),
                [true, false, false, false, true, true, false, true],
            ),
            (
                "a link",
                replace(link("entry", "src/lib.rs")),
                [false, false, false, true, true, false, false, false],
            ),
        ] {
            let got = picks.map(|pick| digest(&items_now, pick) != digest(&items(), pick));
            assert_eq!(got, misses, "{what}");
        }
    }

    #[test]
    fn a_moved_directory_is_the_same_and_a_renamed_file_is_not() {
        let here = vec![dir("a"), dir("a/s"), file("a/s/x", "x")];
        let there = vec![dir("b"), dir("b/s"), file("b/s/x", "x")];
        assert_eq!(digest(&here, pick("/a/s")), digest(&there, pick("/b/s")));
        assert_ne!(digest(&here, pick("/a/s/x")), digest(&[file("y", "x")], pick("/y")));
    }

    #[test]
    fn hard_links_count_when_more_than_one_name_is_picked() {
        let linked = [file("a", "1"), hard("b", "a"), file("c", "1")];
        let apart = [file("a", "1"), file("b", "1"), file("c", "1")];
        let other = [file("a", "1"), file("b", "1"), hard("c", "a")];
        assert_eq!(digest(&linked, pick("/b")), digest(&apart, pick("/b")));
        let all = [&linked, &apart, &other].map(|items| digest(items, pick("/")));
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
        // Which name is the file and which the link is no property of files.
        let turned = [hard("a", "b"), file("b", "1"), file("c", "1")];
        assert_eq!(digest(&turned, pick("/")), all[0]);
        assert_eq!(digest(&turned, pick("/[ab]")), digest(&linked, pick("/[ab]")));
    }

    #[test]
    fn the_files_are_named_once() {
        let selection = select(&tree(&items()), &[pick("/src/*.rs"), pick("/src/main.rs")]).unwrap();
        let names: Vec<_> = selection.files.iter().map(|(path, _)| path.to_string()).collect();
        assert_eq!(names, ["src/lib.rs", "src/main.rs"]);
        assert_eq!((selection.count, selection.bytes), (3, 11));
    }

    #[test]
    fn the_encoding_is_pinned() {
        // When this fails, every cached step misses: bump `solver::key::VERSION`.
        assert_eq!(digest(&items(), pick("/src")).hex()[..16], *"31ad3217b7821fa5");
    }
}

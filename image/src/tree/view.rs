//! [`Tree`]: what is where, over a chain of layers.
//!
//! A tree never holds a merged map: a lookup descends from the root and searches each layer's sorted entries, from the
//! top down, only as far as whiteouts and opaque directories let it. Besides layers, a tree can have a walked
//! directory of the host or files given as bytes: all that an operation needs to know is the [`Entry`] and where its
//! bytes are ([`Location`]). Those are read by the caller.

use std::sync::Arc;

use bstr::{BStr, BString, ByteSlice};

use super::path;
use crate::digest::{ContentDigest, DiffId};
use crate::layer::{Entry, Kind, LayerIndex};

/// File trees over each other, bottom first. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    parts: Vec<Part>,
}

/// Where the bytes of a regular file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// It has none: not a regular file, or an empty one.
    None,
    /// In a layer's tar.
    Layer {
        /// Which layer.
        layer: DiffId,
        /// Where its bytes start.
        offset: u64,
        /// How many there are.
        size: u64,
    },
    /// In a directory of the host.
    Host {
        /// What the caller calls it.
        directory: u64,
        /// Path below it.
        path: BString,
    },
    /// Here.
    Inline(Arc<[u8]>),
    /// In a spool of the caller's, such as the decompressed archive of an ADD.
    Spool {
        /// Which one.
        spool: usize,
        /// Where its bytes start.
        offset: u64,
        /// How many there are.
        size: u64,
    },
}

/// One path of a tree.
#[derive(Clone, Copy, Debug)]
pub struct Node<'t> {
    /// What is there.
    pub entry: &'t Entry,
    tree: &'t Tree,
    /// Index of the part that `entry` comes from.
    part: usize,
    /// Index of `entry` in that part.
    index: usize,
}

/// A regular file behind one or more names.
#[derive(Clone, Debug)]
pub struct Inode<'t> {
    /// The entry with its mode, owner, times and xattrs: of a hard link, that of its target.
    pub entry: &'t Entry,
    /// Length in bytes.
    pub size: u64,
    /// Hash of its bytes.
    pub content: ContentDigest,
    /// Where its bytes are.
    pub location: Location,
    /// Two files of a tree are one when their ids are equal.
    pub id: InodeId,
}

/// Tells the files of one tree apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(usize, usize);

/// A directory of a tree, ready for looking up what is in it.
#[derive(Clone, Debug)]
pub struct Dir<'t> {
    tree: &'t Tree,
    path: BString,
    /// The parts that contribute, topmost first.
    layers: Vec<Span>,
}

/// What a part has below a directory: `start..end` of its entries.
#[derive(Clone, Copy, Debug)]
struct Span {
    part: usize,
    start: usize,
    end: usize,
}

/// Entries in the order of [`path::compare`]. Each one's parent directories are there too.
#[derive(Clone, Debug)]
enum Part {
    Layer(Arc<LayerIndex>),
    Host(u64, Arc<Vec<Entry>>),
    Given(Arc<Vec<(Entry, Location)>>),
}

impl Tree {
    /// Nothing: `scratch`.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The layers of an image or snapshot, bottom first.
    pub fn of_layers(layers: impl IntoIterator<Item = Arc<LayerIndex>>) -> Self {
        Self { parts: layers.into_iter().map(Part::Layer).collect() }
    }

    /// A walked directory of the host, which the caller calls `directory`. The bytes of files are [`Location::Host`].
    pub fn of_host(directory: u64, entries: Vec<Entry>) -> Self {
        Self {
            parts: vec![Part::Host(
                directory,
                Arc::new(normal(entries, |entry| entry, |path| Entry::implied(path))),
            )],
        }
    }

    /// Files that are given one by one.
    pub fn of_entries(entries: Vec<(Entry, Location)>) -> Self {
        let parent = |path: &BStr| (Entry::implied(path), Location::None);
        Self { parts: vec![Part::Given(Arc::new(normal(entries, |(entry, _)| entry, parent)))] }
    }

    /// `self` with a layer on top.
    #[must_use]
    pub fn with_layer(&self, index: Arc<LayerIndex>) -> Self {
        let mut parts = self.parts.clone();
        parts.push(Part::Layer(index));
        Self { parts }
    }

    /// `self` with all of `upper` on top.
    #[must_use]
    pub fn with(&self, upper: &Self) -> Self {
        Self { parts: self.parts.iter().chain(&upper.parts).cloned().collect() }
    }

    /// What is at `path` (in the form of [`Entry::path`]); symbolic links are not followed, not in the middle either.
    /// The root is there only if a layer has an entry for it.
    pub fn get(&self, at: &[u8]) -> Option<Node<'_>> {
        if at.is_empty() {
            return self.root_entry();
        }
        let mut dir = self.root();
        let (parents, name) = (path::parent(at)?, path::name(at));
        for part in path::components(parents) {
            dir = dir.child(part)?.1?;
        }
        Some(dir.child(name)?.0)
    }

    /// The directory at `path`; symbolic links are not followed.
    pub fn dir(&self, at: &[u8]) -> Option<Dir<'_>> {
        let mut dir = self.root();
        for part in path::components(at) {
            dir = dir.child(part)?.1?;
        }
        Some(dir)
    }

    /// The root directory: there always is one.
    pub fn root(&self) -> Dir<'_> {
        let mut layers = Vec::with_capacity(self.parts.len());
        for (part, entries) in self.parts.iter().enumerate().rev() {
            let (start, opaque) = match entries.first() {
                Some(Entry { path, kind: Kind::Directory { opaque, .. }, .. }) if path.is_empty() => {
                    (1, *opaque)
                }
                _ => (0, false),
            };
            layers.push(Span { part, start, end: entries.len() });
            if opaque {
                break;
            }
        }
        Dir { tree: self, path: BString::default(), layers }
    }

    /// All nodes below `dir` in the order of [`path::compare`], each directory before what is in it.
    pub fn walk<'t>(&'t self, dir: Dir<'t>) -> Walk<'t> {
        Walk { stack: vec![dir.children().into_iter()] }
    }

    fn root_entry(&self) -> Option<Node<'_>> {
        let found = self.parts.iter().enumerate().rev().filter_map(|(part, entries)| {
            let entry = entries.first().filter(|entry| entry.path.is_empty())?;
            Some(Node { entry, tree: self, part, index: 0 })
        });
        let mut found = found.peekable();
        let top = found.peek().copied();
        found.find(|node| !node.is_implied()).or(top)
    }

    /// `entry` as seen from `part`: the file that a hard link there means. It is looked for in that part and below.
    fn inode(&self, part: usize, index: usize, hops: u32) -> Option<Inode<'_>> {
        let entry = self.parts[part].at(index);
        match &entry.kind {
            Kind::File { size, content, .. } => Some(Inode {
                entry,
                size: *size,
                content: *content,
                location: if *size == 0 { Location::None } else { self.parts[part].location(index) },
                id: InodeId(part, index),
            }),
            Kind::Hardlink { target } if hops > 0 => {
                // A hard link is to a file, not to a name: what upper layers do to that name is of no concern.
                let lower = Self { parts: self.parts[..=part].to_vec() };
                let (part, index) = lower.get(target).map(|node| (node.part, node.index))?;
                self.inode(part, index, hops - 1)
            }
            _ => None,
        }
    }
}

impl<'t> Node<'t> {
    /// The file that this is a name of; `None` if it is not a regular file.
    pub fn inode(&self) -> Option<Inode<'t>> {
        self.tree.inode(self.part, self.index, MAX_LINKS)
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.entry.kind.is_dir()
    }

    /// The last component of its path.
    pub fn name(&self) -> &'t BStr {
        path::name(&self.entry.path)
    }

    fn is_implied(&self) -> bool {
        matches!(self.entry.kind, Kind::Directory { implied: true, .. })
    }
}

impl<'t> Dir<'t> {
    /// Its path.
    pub fn path(&self) -> &BStr {
        self.path.as_bstr()
    }

    /// What is called `name` in it, and, if that is a directory, how to look into it.
    pub fn child(&self, name: &[u8]) -> Option<(Node<'t>, Option<Self>)> {
        let path = path::join(&self.path, name);
        let found = self.layers.iter().filter_map(|span| {
            let entries = &self.tree.parts[span.part];
            let index = entries.search(*span, &path).ok()?;
            Some((span.part, index, entries.end_below(*span, index, &path)))
        });
        merge(self.tree, path.as_bstr(), found)
    }

    /// Everything in it, by name.
    pub fn children(&self) -> Vec<(Node<'t>, Option<Self>)> {
        let mut heads = self.layers.clone();
        let mut all = Vec::new();
        loop {
            let least = heads
                .iter()
                .filter(|span| span.start < span.end)
                .map(|span| self.tree.parts[span.part].at(span.start).path.as_bstr())
                .min_by(|a, b| path::compare(a, b));
            let Some(least) = least else { break };
            let mut found = Vec::with_capacity(1);
            for span in &mut heads {
                let entries = &self.tree.parts[span.part];
                if span.start < span.end && entries.at(span.start).path == least {
                    let end = entries.end_below(*span, span.start, least);
                    found.push((span.part, span.start, end));
                    span.start = end;
                }
            }
            all.extend(merge(self.tree, least, found.into_iter()));
        }
        all
    }
}

/// The nodes of [`Tree::walk`].
#[derive(Debug)]
pub struct Walk<'t> {
    stack: Vec<std::vec::IntoIter<(Node<'t>, Option<Dir<'t>>)>>,
}

impl<'t> Iterator for Walk<'t> {
    type Item = Node<'t>;

    fn next(&mut self) -> Option<Node<'t>> {
        while let Some(level) = self.stack.last_mut() {
            if let Some((node, dir)) = level.next() {
                self.stack.extend(dir.map(|dir| dir.children().into_iter()));
                return Some(node);
            }
            self.stack.pop();
        }
        None
    }
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Layer(index) => index.entries().len(),
            Self::Host(_, entries) => entries.len(),
            Self::Given(entries) => entries.len(),
        }
    }

    fn at(&self, index: usize) -> &Entry {
        match self {
            Self::Layer(layer) => &layer.entries()[index],
            Self::Host(_, entries) => &entries[index],
            Self::Given(entries) => &entries[index].0,
        }
    }

    fn first(&self) -> Option<&Entry> {
        (self.len() > 0).then(|| self.at(0))
    }

    fn location(&self, index: usize) -> Location {
        match (self, &self.at(index).kind) {
            (Self::Layer(index), Kind::File { size, offset, .. }) => {
                Location::Layer { layer: index.diff_id(), offset: *offset, size: *size }
            }
            (Self::Host(directory, entries), Kind::File { .. }) => {
                Location::Host { directory: *directory, path: entries[index].path.clone() }
            }
            (Self::Given(entries), Kind::File { .. }) => entries[index].1.clone(),
            _ => Location::None,
        }
    }

    fn search(&self, span: Span, path: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (span.start, span.end);
        while low < high {
            let middle = low + (high - low) / 2;
            match path::compare(&self.at(middle).path, path) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// Where the entries below the one at `index` end.
    fn end_below(&self, span: Span, index: usize, path: &[u8]) -> usize {
        // Most entries have nothing below: look at the next one before searching.
        let mut low = index + 1;
        if low >= span.end || !path::is_below(&self.at(low).path, path) {
            return low;
        }
        let mut high = span.end;
        while low < high {
            let middle = low + (high - low) / 2;
            if path::is_below(&self.at(middle).path, path) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// Makes one node of what the parts have at `path`: `found` is (part, index, end of what is below), topmost first.
fn merge<'t>(
    tree: &'t Tree,
    path: &BStr,
    found: impl Iterator<Item = (usize, usize, usize)>,
) -> Option<(Node<'t>, Option<Dir<'t>>)> {
    let mut node: Option<Node<'t>> = None;
    let mut layers = Vec::new();
    for (part, index, end) in found {
        let here = Node { entry: tree.parts[part].at(index), tree, part, index };
        match here.entry.kind {
            Kind::Whiteout => break,
            Kind::Directory { opaque, .. } => {
                if node.is_none_or(|node| node.is_implied() && !here.is_implied()) {
                    node = Some(here);
                }
                layers.push(Span { part, start: index + 1, end });
                if opaque {
                    break;
                }
            }
            _ => {
                node = node.or(Some(here));
                break;
            }
        }
    }
    let node = node?;
    let dir = node.is_dir().then(|| Dir { tree, path: path.into(), layers });
    Some((node, dir))
}

/// Sorts, lets the last of equal paths win and adds missing parents.
fn normal<T>(mut all: Vec<T>, entry: impl Fn(&T) -> &Entry, parent: impl Fn(&BStr) -> T) -> Vec<T> {
    if is_normal(all.iter().map(|item| entry(item).path.as_bstr())) {
        return all;
    }
    all.sort_by(|a, b| path::compare(&entry(a).path, &entry(b).path));
    let mut sorted: Vec<T> = Vec::with_capacity(all.len());
    for item in all {
        let at = entry(&item).path.clone();
        if sorted.last().is_some_and(|last| entry(last).path == at) {
            sorted.pop();
        }
        let known = sorted.last().map(|last| entry(last).path.clone()).unwrap_or_default();
        let missing = at.find_iter("/").map(|end| at[..end].as_bstr());
        sorted.extend(missing.filter(|dir| known != *dir && !path::is_below(&known, dir)).map(&parent));
        sorted.push(item);
    }
    sorted
}

/// Whether paths are in order, each once and its parents before it.
fn is_normal<'p>(paths: impl Iterator<Item = &'p BStr>) -> bool {
    let mut last = BStr::new("");
    for (at, path) in paths.enumerate() {
        // Where something in the parent was last, the parent was before that.
        let parent = path::parent(path).unwrap_or_default();
        let known = parent.is_empty() || last == parent || path::is_below(last, parent);
        if !known || (at > 0 && path::compare(last, path).is_ge()) {
            return false;
        }
        last = path;
    }
    true
}

/// More hard links in a row than any tar has.
const MAX_LINKS: u32 = 16;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::testing::{Item, dir, file, gone, hard, line, list, opaque, tree, with};
    use super::*;

    fn stack(layers: &[&[Item]]) -> Tree {
        layers.iter().fold(Tree::empty(), |lower, items| lower.with(&tree(items)))
    }

    #[test]
    fn upper_layers_hide_and_merge() {
        let tree = stack(&[
            &[
                dir("a"),
                file("a/x", "1"),
                file("a/y", "1"),
                dir("b"),
                file("b/z", "1"),
                file("c", "1"),
                dir("d"),
                file("d/q", "1"),
            ],
            &[
                with(dir("a"), |e| e.mode = 0o700),
                gone("a/y"),
                file("a/new", "2"),
                opaque("b"),
                gone("c"),
                file("d", "2"),
            ],
            &[dir("d"), file("d/r", "3")],
        ]);
        let paths: Vec<_> = tree.walk(tree.root()).map(|node| node.entry.path.to_string()).collect();
        assert_eq!(paths, ["a", "a/new", "a/x", "b", "d", "d/r"]);
        assert_eq!(tree.get(b"a").unwrap().entry.mode, 0o700);
        assert!(tree.get(b"a/y").is_none() && tree.get(b"c").is_none() && tree.get(b"d/q").is_none());
        assert!(tree.get(b"a/x/deeper").is_none());
        assert!(tree.get(b"").is_none());
    }

    #[test]
    fn implied_directories_yield_to_lower_ones() {
        let tree = stack(&[&[with(dir("a"), |e| e.mode = 0o711)], &[file("a/x", "1")]]);
        assert_eq!(tree.get(b"a").unwrap().entry.mode, 0o711);
        assert_eq!(stack(&[&[file("a/x", "1")]]).get(b"a").unwrap().entry.mode, 0o755);
        // A file in between hides the lower directory.
        let tree = stack(&[&[with(dir("a"), |e| e.mode = 0o711)], &[file("a", "1")], &[file("a/x", "1")]]);
        assert_eq!(tree.get(b"a").unwrap().entry.mode, 0o755);
    }

    #[test]
    fn a_hard_link_outlives_its_first_name() {
        let tree = stack(&[
            &[with(file("a", "one"), |e| e.mode = 0o4755)],
            &[hard("b", "a")],
            &[file("a", "two"), hard("c", "b"), hard("loop", "loop")],
        ]);
        let inode = |path: &str| tree.get(path.as_bytes()).unwrap().inode();
        assert_eq!(inode("b").unwrap().content, ContentDigest::of(b"one"));
        assert_eq!(inode("c").unwrap().entry.mode, 0o4755);
        assert_eq!(inode("b").unwrap().id, inode("c").unwrap().id);
        assert_ne!(inode("a").unwrap().id, inode("b").unwrap().id);
        assert!(inode("loop").is_none());
    }

    /// The obvious model: layers applied to a map one after the other.
    fn apply(layers: &[Vec<Item>]) -> Vec<String> {
        let mut map: BTreeMap<Vec<BString>, Item> = BTreeMap::new();
        let key = |path: &BString| path::components(path).map(BString::from).collect::<Vec<_>>();
        for layer in layers {
            // Deletions are about the layers below, whatever the order of entries.
            for (entry, _) in layer {
                let at = key(&entry.path);
                let below = |other: &Vec<BString>| other.len() > at.len() && other.starts_with(&at);
                match entry.kind {
                    Kind::Directory { opaque: false, .. } => {
                        if map.get(&at).is_some_and(|(old, _)| !old.kind.is_dir()) {
                            map.remove(&at);
                        }
                    }
                    Kind::Directory { opaque: true, .. } => map.retain(|other, _| !below(other)),
                    _ => map.retain(|other, _| *other != at && !below(other)),
                }
            }
            for item in layer {
                let at = key(&item.0.path);
                let yields =
                    matches!(item.0.kind, Kind::Directory { implied: true, .. }) && map.contains_key(&at);
                if !yields && item.0.kind != Kind::Whiteout {
                    map.insert(at, item.clone());
                }
            }
        }
        let content = |entry: &Entry| match entry.kind {
            Kind::File { content, .. } => Some(content),
            _ => None,
        };
        map.into_values().map(|(entry, _)| line(&entry, content(&entry))).collect()
    }

    /// A layer as an index has it: parents are there, and nothing is below a file or a deletion.
    fn layers() -> impl Strategy<Value = Vec<Vec<Item>>> {
        let item = ("[ab](/[ab]){0,2}", 0..5_u8, 0..4_u16).prop_map(|(path, kind, mode)| {
            let item = match kind {
                0 => gone(&path),
                1 => opaque(&path),
                2 => dir(&path),
                _ => file(&path, &mode.to_string()),
            };
            with(item, |entry| entry.mode = if entry.kind == Kind::Whiteout { 0 } else { 0o700 + mode })
        });
        let layer = proptest::collection::vec(item, 0..6).prop_map(|items| {
            let mut kept: Vec<Item> = Vec::new();
            for item in items {
                let path = item.0.path.clone();
                let clash = kept.iter().any(|(old, _)| {
                    old.path == path
                        || (path::is_below(&path, &old.path) && !old.kind.is_dir())
                        || (path::is_below(&old.path, &path) && !item.0.kind.is_dir())
                });
                if !clash {
                    kept.push(item);
                }
            }
            normal(kept, |(entry, _)| entry, |path| (Entry::implied(path), Location::None))
        });
        proptest::collection::vec(layer, 1..5)
    }

    proptest! {
        #[test]
        fn a_tree_is_its_layers_applied_one_by_one(layers in layers()) {
            let tree = layers.iter().fold(Tree::empty(), |lower, items| lower.with(&tree(items)));
            let want = apply(&layers);
            prop_assert_eq!(list(&tree), want.clone());
            for node in tree.walk(tree.root()) {
                let again = tree.get(&node.entry.path).unwrap();
                prop_assert_eq!(again.entry, node.entry);
            }
        }
    }
}

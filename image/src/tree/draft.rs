//! [`Draft`]: a tree that is being changed, and the new layer that comes of it.
//!
//! The changes are kept apart from the base as a small tree of their own, which alone is walked in the end: what a
//! layer costs depends on what it changes, not on how large the base is. The layer has what overlayfs would leave in
//! its upper directory: changed entries and the directories that lead to them, with their own attributes. What was
//! written but is as it was before is not in it.

use std::collections::{BTreeMap, HashMap};

use bstr::{BStr, BString, ByteSlice};

use super::path;
use super::resolve::{Last, Look, ResolveError, View, resolve};
use super::view::{Dir, Location, Node, Tree};
use crate::layer::whiteout::{self, Marker};
use crate::layer::{Entry, Kind};

/// An entry of the new layer and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// What is at its path. The offset of a file is not meant.
    pub entry: Entry,
    /// Its bytes, if it is a file.
    pub location: Location,
}

/// A change that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// A path that leads nowhere.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A file is where a directory is needed.
    #[error("could not make directory {}: {} is not a directory", path::show(.path), path::show(.file))]
    NotDirectory {
        /// What was to be made.
        path: BString,
        /// What is in the way.
        file: BString,
    },
    /// A directory is where a file is to be.
    #[error("could not write {}: cannot replace a directory with a file", path::show(.0))]
    IsDirectory(BString),
    /// Nothing is there.
    #[error("could not remove {}: no such file or directory", path::show(.0))]
    Missing(BString),
    /// The root cannot be removed.
    #[error("could not remove /: it is the root")]
    Root,
    /// In a layer this name means a deletion.
    #[error("could not write {}: names that begin with .wh. mean deletions in image layers", path::show(.0))]
    Reserved(BString),
    /// Deeper than any path that can be opened.
    #[error("could not write {}...: more than {MAX_DEPTH} directories in each other", path::show(&.0[..40.min(.0.len())]))]
    TooDeep(BString),
}

/// The most directories in each other: a path of 4,095 bytes has no more.
pub const MAX_DEPTH: usize = 2048;

/// Attributes of directories that are made because something below them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: i64,
}

/// A base and changes to it.
#[derive(Clone, Debug)]
pub struct Draft<'b> {
    base: &'b Tree,
    root: Slot,
    links: u32,
}

/// Files with equal groups are names of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinkGroup(u32);

/// What is changed at a path and below.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    here: Here,
    below: BTreeMap<BString, Self>,
}

#[derive(Clone, Debug, Default)]
enum Here {
    /// As in the base. If something is below, it is a directory there.
    #[default]
    Base,
    /// Removed.
    Gone,
    /// New, replaced or changed.
    New(Box<New>),
}

#[derive(Clone, Debug)]
struct New {
    /// With an empty path: it is known from where the slot is.
    entry: Entry,
    location: Location,
    link: Option<LinkGroup>,
    /// For a directory: what the base has in a directory here shows through.
    merged: bool,
}

/// A place in a draft, with the base's view of it.
#[derive(Debug)]
pub(crate) struct Cursor<'d, 'b> {
    slot: &'d mut Slot,
    node: Option<Node<'b>>,
    dir: Option<Dir<'b>>,
}

impl<'b> Draft<'b> {
    /// No change yet.
    pub fn new(base: &'b Tree) -> Self {
        Self { base, root: Slot::default(), links: 0 }
    }

    /// The tree that is changed, without the changes.
    pub fn base(&self) -> &'b Tree {
        self.base
    }

    /// Makes the directory `at` and what is missing above it, with the same mode; a resolved path. Those that exist stay
    /// as they are.
    pub fn make_dirs(&mut self, at: &[u8], mode: u16, made: Made) -> Result<(), DraftError> {
        if path::components(at).count() > MAX_DEPTH {
            return Err(DraftError::TooDeep(at.into()));
        }
        let mut cursor = self.cursor();
        let mut here = BString::default();
        for name in path::components(at) {
            here = path::join(&here, name);
            cursor = cursor.child(name);
            match cursor.entry().map(|entry| entry.kind.is_dir()) {
                Some(true) => {}
                Some(false) => return Err(DraftError::NotDirectory { path: at.into(), file: here }),
                None => {
                    cursor.set_dir(
                        Entry { uid: made.uid, gid: made.gid, mtime: made.mtime, ..directory(mode) },
                        &here,
                    )?;
                }
            }
        }
        Ok(())
    }

    /// WORKDIR: makes the directory `path` (absolute, links followed) with its parents.
    pub fn mkdir(&mut self, path: &str, mode: u16, made: Made) -> Result<(), DraftError> {
        let at = resolve(self, path.as_bytes(), Last::Follow)?;
        self.make_dirs(&at, mode, made)
    }

    /// Writes a file with the bytes `data` to the destination `path` (absolute, links followed). If that ends in `/`
    /// or is a directory, the file goes into it as `name`. The modes are the file's and those of directories that are
    /// made on the way.
    pub fn mkfile(
        &mut self,
        path: &str,
        data: &[u8],
        (mode, parents_mode): (u16, u16),
        name: Option<&str>,
        made: Made,
    ) -> Result<(), DraftError> {
        let mut at = resolve(self, path.as_bytes(), Last::Follow)?;
        let is_dir = path.ends_with('/') || at.is_empty() || self.is_dir(&at);
        if let Some(name) = name.filter(|_| is_dir) {
            at = path::join(&at, path::name(&path::clean(name.as_bytes())));
        }
        if let Some(parent) = path::parent(&at) {
            self.make_dirs(parent, parents_mode, made)?;
        }
        let kind = Kind::File {
            size: data.len() as u64,
            offset: 0,
            content: crate::digest::ContentDigest::of(data),
        };
        let location = if data.is_empty() { Location::None } else { Location::Inline(data.into()) };
        let entry = Entry { kind, uid: made.uid, gid: made.gid, mtime: made.mtime, ..directory(mode) };
        self.cursor_at(&at)?.set(entry, location, None, &at)
    }

    /// Removes `path` (absolute; a link that it is goes itself) and all below it.
    pub fn rm(&mut self, path: &str, allow_missing: bool) -> Result<(), DraftError> {
        let at = match resolve(self, path.as_bytes(), Last::Keep) {
            Err(ResolveError::NotDirectory { .. }) if allow_missing => return Ok(()),
            at => at?,
        };
        if at.is_empty() {
            return Err(DraftError::Root);
        }
        if self.entry(at.as_bstr()).is_none() {
            return if allow_missing { Ok(()) } else { Err(DraftError::Missing(at)) };
        }
        self.cursor_at(&at)?.remove();
        Ok(())
    }

    /// Whether there is a directory at the resolved path `at`.
    pub fn is_dir(&self, at: &[u8]) -> bool {
        at.is_empty() || self.entry(at.as_bstr()).is_some_and(|entry| entry.kind.is_dir())
    }

    /// New groups of hard links.
    pub(crate) fn link_groups(&mut self, count: u32) -> impl Iterator<Item = LinkGroup> + use<> {
        let first = self.links;
        self.links += count;
        (first..first + count).map(LinkGroup)
    }

    pub(crate) fn cursor(&mut self) -> Cursor<'_, 'b> {
        // The root is a directory whether or not a layer has an entry for it.
        Cursor { slot: &mut self.root, node: self.base.get(b""), dir: Some(self.base.root()) }
    }

    /// The resolved path `at`, whose parent must be a directory.
    pub(crate) fn cursor_at(&mut self, at: &[u8]) -> Result<Cursor<'_, 'b>, DraftError> {
        if path::components(at).count() > MAX_DEPTH {
            return Err(DraftError::TooDeep(at.into()));
        }
        Ok(path::components(at).fold(self.cursor(), Cursor::child))
    }

    /// The entries of the new layer, in order.
    pub fn finish(self) -> Vec<NewEntry> {
        let mut out = Vec::new();
        let mut links = HashMap::new();
        let mut levels = vec![Level {
            left: self.root.below.into_iter(),
            base: Some(self.base.root()),
            path: BString::default(),
            needless: None,
        }];
        while let Some(level) = levels.last_mut() {
            let Some((name, slot)) = level.left.next() else {
                if level.needless == Some(out.len()) {
                    out.pop();
                }
                levels.pop();
                continue;
            };
            let base = level.base.as_ref().and_then(|dir| dir.child(&name));
            let path = path::join(&level.path, &name);
            levels.extend(slot.finish(base, path, &mut links, &mut out));
        }
        out
    }
}

/// A directory in which [`Draft::finish`] has come so far.
struct Level<'b> {
    left: std::collections::btree_map::IntoIter<BString, Slot>,
    /// What shows through.
    base: Option<Dir<'b>>,
    path: BString,
    /// If the new layer is still this long in the end, the directory's own entry is not needed.
    needless: Option<usize>,
}

impl<'b> Cursor<'_, 'b> {
    /// What is here now.
    pub(crate) fn entry(&self) -> Option<&Entry> {
        match &self.slot.here {
            Here::New(new) => Some(&new.entry),
            Here::Gone => None,
            Here::Base => self.node.map(|node| node.entry),
        }
    }

    /// What is called `name` in this directory.
    pub(crate) fn enter(&mut self, name: &BStr) -> Cursor<'_, 'b> {
        let (node, dir) = self.base_child(name);
        Cursor { slot: self.slot.child(name), node, dir }
    }

    /// What is here and no directory, to be linked to: its entry and bytes. A file is now in `group`, or stays in the one
    /// that it is in; layers have hard links to files only, so a link to anything else is one more of it.
    pub(crate) fn link(&mut self, group: LinkGroup) -> Option<(Entry, Location, Option<LinkGroup>)> {
        if let (Here::Base, Some(node)) = (&self.slot.here, self.node) {
            let mut entry = node.entry.clone();
            let mut location = Location::None;
            if let Some(inode) = node.inode() {
                let kind = Kind::File { size: inode.size, offset: 0, content: inode.content };
                entry = Entry { kind, ..inode.entry.clone() };
                location = inode.location;
            }
            if entry.kind.is_dir() {
                return None;
            }
            self.slot.here = Here::New(Box::new(New { entry, location, link: None, merged: true }));
        }
        let Here::New(new) = &mut self.slot.here else { return None };
        let is_file = matches!(new.entry.kind, Kind::File { .. });
        let group = is_file.then(|| *new.link.get_or_insert(group));
        (!new.entry.kind.is_dir()).then(|| (new.entry.clone(), new.location.clone(), group))
    }

    /// Puts something that is no directory here. A directory is not replaced.
    pub(crate) fn set(
        &mut self,
        entry: Entry,
        location: Location,
        link: Option<LinkGroup>,
        at: &[u8],
    ) -> Result<(), DraftError> {
        if at.is_empty() || self.entry().is_some_and(|old| old.kind.is_dir()) {
            return Err(DraftError::IsDirectory(at.into()));
        }
        check_name(at)?;
        self.slot.below.clear();
        self.slot.here = Here::New(Box::new(New { entry, location, link, merged: false }));
        Ok(())
    }

    /// Makes a directory here, or gives the one that is here these attributes. What else is here must be removed
    /// before.
    pub(crate) fn set_dir(&mut self, entry: Entry, at: &[u8]) -> Result<(), DraftError> {
        check_name(at)?;
        let merged = match &self.slot.here {
            Here::Base => true,
            Here::Gone => false,
            Here::New(new) => new.merged,
        };
        self.slot.here = Here::New(Box::new(New { entry, location: Location::None, link: None, merged }));
        Ok(())
    }

    /// Gives the directory that was made here another time.
    pub(crate) fn touch(&mut self, mtime: i64) {
        if let Here::New(new) = &mut self.slot.here {
            new.entry.mtime = mtime;
        }
    }

    /// Removes what is here and below.
    pub(crate) fn remove(&mut self) {
        self.slot.below.clear();
        self.slot.here = Here::Gone;
    }

    fn base_child(&self, name: &BStr) -> (Option<Node<'b>>, Option<Dir<'b>>) {
        let shows = match &self.slot.here {
            Here::Base => true,
            Here::Gone => false,
            Here::New(new) => new.merged,
        };
        let found = self.dir.as_ref().filter(|_| shows).and_then(|dir| dir.child(name));
        found.map_or((None, None), |(node, dir)| (Some(node), dir))
    }
}

impl<'d, 'b> Cursor<'d, 'b> {
    /// As [`Cursor::enter`], giving up this place.
    pub(crate) fn child(self, name: &BStr) -> Self {
        let (node, dir) = self.base_child(name);
        Cursor { slot: self.slot.child(name), node, dir }
    }
}

impl View for Draft<'_> {
    fn look(&self, path: &BStr) -> Option<Look> {
        self.entry(path).map(Look::of)
    }
}

impl Draft<'_> {
    /// What is at the resolved path `path` now. The root may have no entry.
    pub fn entry(&self, path: &BStr) -> Option<&Entry> {
        let mut slot = Some(&self.root);
        let mut dir = Some(self.base.root());
        let mut entry = self.base.get(b"").map(|node| node.entry);
        for name in path::components(path) {
            let base = dir.and_then(|dir| dir.child(name));
            slot = slot.and_then(|slot| slot.below.get(name));
            match slot.map(|slot| &slot.here) {
                None | Some(Here::Base) => {
                    let (node, below) = base?;
                    entry = Some(node.entry);
                    dir = below;
                }
                Some(Here::Gone) => return None,
                Some(Here::New(new)) => {
                    entry = Some(&new.entry);
                    dir = base.and_then(|(_, dir)| dir).filter(|_| new.merged);
                }
            }
        }
        entry
    }
}

impl Slot {
    fn child(&mut self, name: &BStr) -> &mut Self {
        self.below.entry(name.to_owned()).or_default()
    }

    /// Adds the entry of this place to `out`; gives what is below if it is a directory. `links` has the first names
    /// of link groups.
    fn finish<'b>(
        self,
        base: Option<(Node<'b>, Option<Dir<'b>>)>,
        path: BString,
        links: &mut HashMap<LinkGroup, BString>,
        out: &mut Vec<NewEntry>,
    ) -> Option<Level<'b>> {
        let (mut entry, base, changed, opaque) = match self.here {
            Here::Gone => {
                if base.is_some() {
                    let entry = Entry { kind: Kind::Whiteout, ..directory(0) };
                    out.push(NewEntry::new(entry, Location::None, path));
                }
                return None;
            }
            Here::Base => match base {
                Some((node, Some(dir))) => (node.entry.clone(), Some(dir), false, false),
                _ => return None,
            },
            Here::New(new) if !new.entry.kind.is_dir() => {
                if !base.is_some_and(|(node, _)| new.is_as(&node)) {
                    new.finish(path, links, out);
                }
                return None;
            }
            Here::New(new) => {
                let same = base
                    .as_ref()
                    .is_some_and(|(node, _)| node.is_dir() && same_owner(&new.entry, node.entry));
                let dir = base.and_then(|(_, dir)| dir);
                let opaque = !new.merged && dir.as_ref().is_some_and(|dir| !dir.children().is_empty());
                (new.entry, dir.filter(|_| new.merged), !same, opaque)
            }
        };
        entry.kind = Kind::Directory { opaque, implied: false };
        out.push(NewEntry::new(entry, Location::None, path.clone()));
        let needless = (!changed && !opaque).then_some(out.len());
        Some(Level { left: self.below.into_iter(), base, path, needless })
    }
}

impl New {
    fn finish(self, path: BString, links: &mut HashMap<LinkGroup, BString>, out: &mut Vec<NewEntry>) {
        let Some(group) = self.link else {
            return out.push(NewEntry::new(self.entry, self.location, path));
        };
        if let Some(target) = links.get(&group) {
            let kind = Kind::Hardlink { target: target.clone() };
            return out.push(NewEntry::new(Entry { kind, ..self.entry }, Location::None, path));
        }
        links.insert(group, path.clone());
        out.push(NewEntry::new(self.entry, self.location, path));
    }

    /// Whether writing this over `node` changes nothing.
    fn is_as(&self, node: &Node<'_>) -> bool {
        let (old, same) = match (&self.entry.kind, node.inode()) {
            (Kind::File { size, content, .. }, Some(inode)) => {
                (inode.entry, *size == inode.size && *content == inode.content)
            }
            (kind, _) => (node.entry, *kind == node.entry.kind),
        };
        same && self.entry.mtime == old.mtime && same_owner(&self.entry, old)
    }
}

impl NewEntry {
    fn new(mut entry: Entry, location: Location, path: BString) -> Self {
        entry.path = path;
        Self { entry, location }
    }
}

fn same_owner(a: &Entry, b: &Entry) -> bool {
    let symlink = matches!(a.kind, Kind::Symlink { .. });
    (a.mode == b.mode || symlink) && (a.uid, a.gid) == (b.uid, b.gid) && a.xattrs == b.xattrs
}

fn check_name(at: &[u8]) -> Result<(), DraftError> {
    match whiteout::classify(path::name(at)) {
        Marker::Name => Ok(()),
        _ => Err(DraftError::Reserved(at.into())),
    }
}

/// A directory of root's, to start from.
pub(crate) fn directory(mode: u16) -> Entry {
    Entry {
        path: BString::default(),
        kind: Kind::Directory { opaque: false, implied: false },
        mode,
        uid: 0,
        gid: 0,
        mtime: 0,
        xattrs: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::copy::{Copy, sources};
    use super::super::pattern::Patterns;
    use super::super::testing::{dir, file, line, link, list, tree};
    use super::*;

    const MADE: Made = Made { uid: 0, gid: 0, mtime: 7 };

    #[derive(Clone, Debug)]
    enum Change {
        Mkdir(String),
        Mkfile(String),
        Rm(String),
        Copy(String, String),
    }

    fn base() -> Tree {
        let lower = tree(&[
            dir("a"),
            file("a/a", "1"),
            dir("a/b"),
            file("a/b/a", "2"),
            link("b", "a/b"),
            file("c", "3"),
        ]);
        lower.with(&tree(&[dir("a"), file("a/b", "4"), link("d", "/a")]))
    }

    fn source() -> Tree {
        tree(&[dir("a"), dir("a/b"), file("a/b/c", "5"), link("a/c", "b"), file("b", "6"), dir("c")])
    }

    fn change() -> impl Strategy<Value = Change> {
        let path = || "/[abcd](/[abcd.]|/\\.\\.){0,2}/?";
        prop_oneof![
            path().prop_map(Change::Mkdir),
            path().prop_map(Change::Mkfile),
            path().prop_map(Change::Rm),
            (path(), path()).prop_map(|(from, to)| Change::Copy(from, to)),
        ]
    }

    fn apply(draft: &mut Draft<'_>, change: &Change) -> bool {
        let none = Patterns::default();
        match change {
            Change::Mkdir(path) => draft.mkdir(path, 0o700, MADE).is_ok(),
            Change::Mkfile(path) => draft.mkfile(path, b"new", (0o600, 0o755), Some("a"), MADE).is_ok(),
            Change::Rm(path) => draft.rm(path, false).is_ok(),
            Change::Copy(source, destination) => {
                let copy = Copy {
                    source,
                    destination,
                    wildcard: true,
                    allow_empty: true,
                    follow_symlinks: true,
                    contents_only: true,
                    parents: None,
                    exclude: &none,
                    owner: None,
                    chmod: None,
                    follow_destination: true,
                    created: 7,
                };
                let from = self::source();
                sources(&from, &copy)
                    .is_ok_and(|found| found.iter().all(|found| draft.copy(&from, found, &copy).is_ok()))
            }
        }
    }

    /// All paths that can be asked for, and what is there.
    fn view(entry: impl Fn(&BStr) -> Option<Entry>) -> Vec<String> {
        let names = ["a", "b", "c", "d", "nowhere"];
        let mut seen = Vec::new();
        let mut todo: Vec<String> = names.iter().map(ToString::to_string).collect();
        while let Some(path) = todo.pop() {
            let Some(entry) = entry(path.as_str().into()) else { continue };
            if entry.kind.is_dir() {
                todo.extend(names.iter().map(|name| format!("{path}/{name}")));
            }
            let kind = match entry.kind {
                Kind::Directory { .. } => Kind::Directory { opaque: false, implied: false },
                kind => kind,
            };
            let content = if let Kind::File { content, .. } = kind { Some(content) } else { None };
            seen.push(line(&Entry { path: path.into(), kind, ..entry }, content));
        }
        seen.sort();
        seen
    }

    proptest! {
        /// The layer over the base is the tree that the draft showed.
        #[test]
        fn the_layer_is_what_the_draft_shows(changes in proptest::collection::vec(change(), 1..8)) {
            let base = base();
            let mut draft = Draft::new(&base);
            for change in &changes {
                apply(&mut draft, change);
            }
            let shown = view(|path| draft.entry(path).cloned());
            let entries = draft.finish();
            prop_assert!(entries.is_sorted_by(|a, b| path::compare(&a.entry.path, &b.entry.path).is_lt()));
            let layer = tree(&entries.iter().map(|new| (new.entry.clone(), new.location.clone())).collect::<Vec<_>>());
            let made = base.with(&layer);
            prop_assert_eq!(view(|path| made.get(path).map(|node| node.entry.clone())), shown);
            // Every directory that leads to a change is there itself.
            prop_assert_eq!(list(&layer).len(), entries.iter().filter(|new| new.entry.kind != Kind::Whiteout).count());
        }
    }

    #[test]
    fn no_path_leaves_the_root() {
        let base = base();
        for path in [
            "..",
            "../..",
            "/..",
            "a/../..",
            "/a/../../..",
            "/",
            "",
            ".",
            "./",
            "//",
            "/a/b/../../../../x",
            "../x/",
        ] {
            for change in [
                Change::Mkdir(path.to_owned()),
                Change::Mkfile(path.to_owned()),
                Change::Rm(path.to_owned()),
                Change::Copy(path.to_owned(), "/t/".to_owned()),
                Change::Copy("/b".to_owned(), path.to_owned()),
            ] {
                let mut draft = Draft::new(&base);
                apply(&mut draft, &change);
                for new in draft.finish() {
                    assert_eq!(path::clean(&new.entry.path), new.entry.path, "{change:?}");
                    assert!(!new.entry.path.is_empty() && new.entry.kind != Kind::Whiteout, "{change:?}");
                }
            }
        }
    }
}

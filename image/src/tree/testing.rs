//! Short ways to write trees in tests.

use std::collections::BTreeMap;

use bstr::BString;

use super::view::{Location, Tree};
use crate::digest::ContentDigest;
use crate::layer::{Entry, Kind};

/// An entry and where its bytes are.
pub(crate) type Item = (Entry, Location);

pub(crate) fn entry(path: &str, kind: Kind, mode: u16) -> Entry {
    Entry { path: path.into(), kind, mode, uid: 0, gid: 0, mtime: 1000, xattrs: BTreeMap::new() }
}

pub(crate) fn dir(path: &str) -> Item {
    (entry(path, Kind::Directory { opaque: false, implied: false }, 0o755), Location::None)
}

pub(crate) fn opaque(path: &str) -> Item {
    (entry(path, Kind::Directory { opaque: true, implied: false }, 0o755), Location::None)
}

pub(crate) fn file(path: &str, content: &str) -> Item {
    let kind =
        Kind::File { size: content.len() as u64, offset: 0, content: ContentDigest::of(content.as_bytes()) };
    (entry(path, kind, 0o644), Location::Inline(content.as_bytes().into()))
}

pub(crate) fn link(path: &str, target: &str) -> Item {
    (entry(path, Kind::Symlink { target: BString::from(target) }, 0o777), Location::None)
}

pub(crate) fn hard(path: &str, target: &str) -> Item {
    (entry(path, Kind::Hardlink { target: BString::from(target) }, 0o644), Location::None)
}

pub(crate) fn gone(path: &str) -> Item {
    (entry(path, Kind::Whiteout, 0), Location::None)
}

pub(crate) fn with(item: Item, change: impl FnOnce(&mut Entry)) -> Item {
    let (mut entry, location) = item;
    change(&mut entry);
    (entry, location)
}

pub(crate) fn tree(items: &[Item]) -> Tree {
    Tree::of_entries(items.to_vec())
}

/// What is in a tree, a line a path.
pub(crate) fn list(tree: &Tree) -> Vec<String> {
    tree.walk(tree.root()).map(|node| line(node.entry, node.inode().map(|inode| inode.content))).collect()
}

pub(crate) fn line(entry: &Entry, content: Option<ContentDigest>) -> String {
    let Entry { path, mode, uid, gid, .. } = entry;
    let short = |content: ContentDigest| content.hex()[..6].to_owned();
    match &entry.kind {
        Kind::Directory { opaque, .. } => {
            format!("{path}/ {mode:o} {uid}:{gid}{}", if *opaque { " opaque" } else { "" })
        }
        Kind::File { .. } => {
            format!("{path} {mode:o} {uid}:{gid} {}", content.map(short).unwrap_or_default())
        }
        Kind::Hardlink { target } => format!("{path} == {target} {}", content.map(short).unwrap_or_default()),
        Kind::Symlink { target } => format!("{path} -> {target} {uid}:{gid}"),
        Kind::Whiteout => format!("{path} gone"),
        other => format!("{path} {mode:o} {uid}:{gid} {other:?}"),
    }
}

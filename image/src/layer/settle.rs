//! A layer as it must be mounted on top of others.
//!
//! A directory that a layer's tar only implies has the attributes that lower layers give it, and is where a link of
//! lower layers leads: so docker unpacks `lib/x` on a base whose `lib` is a link to `usr/lib`. Overlayfs would take the
//! made-up directory of the upper layer instead. So, before such a layer is mounted, its implied directories are settled.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::sync::Arc;

use bstr::{BStr, BString, ByteSlice};

use super::entry::{Entry, Kind};
use super::index::{LayerIndex, is_below, parent};

/// The most symbolic links on the way to one directory, as in Linux.
const MAX_LINKS: usize = 40;

/// What is seen at `path` through `layers`, bottom first: the attributes of the top-most layer that has it, without
/// following links or hard links.
pub fn lookup<'a>(layers: &'a [Arc<LayerIndex>], path: &[u8]) -> Option<&'a Entry> {
    let mut implied = None;
    for layer in layers.iter().rev() {
        match layer.get(path) {
            Some(Entry { kind: Kind::Whiteout, .. }) => return implied,
            Some(entry @ Entry { kind: Kind::Directory { implied: true, opaque }, .. }) => {
                implied = implied.or(Some(entry));
                if *opaque {
                    return implied;
                }
            }
            // A directory over a file hides it; a file below an implied directory gives it nothing.
            Some(entry) => {
                return if implied.is_some() && !entry.kind.is_dir() { implied } else { Some(entry) };
            }
            None => {}
        }
        let mut above = path;
        while let Some(dir) = parent(above) {
            match layer.get(dir).map(|entry| &entry.kind) {
                None | Some(Kind::Directory { opaque: false, .. }) => {}
                Some(_) => return implied,
            }
            above = dir;
        }
    }
    implied
}

/// The entries of `layer` as they stand on `lower`, bottom first; `None` if that changes nothing.
///
/// Implied directories take their attributes from below, and where a symbolic link is there, what the tar has below the
/// name is where the link leads. The root is left as it is: its attributes come from the directory that is mounted on
/// top.
pub fn settle(layer: &LayerIndex, lower: &[Arc<LayerIndex>]) -> Option<LayerIndex> {
    let moved = follow(layer, lower);
    let entries = moved.as_deref().unwrap_or(layer.entries());
    let changes: Vec<(usize, &Entry)> = entries
        .iter()
        .enumerate()
        .skip(1)
        .filter(|(_, entry)| is_implied(entry))
        .filter_map(|(at, entry)| Some((at, lookup(lower, &entry.path)?)))
        .filter(|(_, below)| matches!(below.kind, Kind::Directory { implied: false, .. }))
        .collect();
    if changes.is_empty() && moved.is_none() {
        return None;
    }
    let mut settled = entries.to_vec();
    for (at, below) in changes {
        settled[at] = Entry { kind: Kind::Directory { opaque: false, implied: false }, ..below.clone() };
    }
    // What follows a link may end at something that cannot be a directory. Then the layer stays as its tar has it.
    LayerIndex::new(settled, layer.diff_id(), layer.tar_size()).ok()
}

fn is_implied(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Directory { implied: true, opaque: false })
}

/// A path with NUL for `/`, so that the order of bytes is the order of an index.
fn key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

fn join(dir: &[u8], name: &[u8]) -> BString {
    if dir.is_empty() { name.into() } else { [dir, b"/", name].concat().into() }
}

/// The entries with those moved whose directories are links below; `None` if there are none.
fn follow(layer: &LayerIndex, lower: &[Arc<LayerIndex>]) -> Option<Vec<Entry>> {
    let is_link =
        |path: &[u8]| lookup(lower, path).is_some_and(|below| matches!(below.kind, Kind::Symlink { .. }));
    if !layer.entries().iter().skip(1).any(|entry| is_implied(entry) && is_link(&entry.path)) {
        return None;
    }
    // From the names in the tar to where they lead, the innermost last.
    let mut moves: Vec<(&BStr, BString)> = Vec::new();
    // By where they are, with where they were.
    let mut placed: BTreeMap<Vec<u8>, (Entry, &BStr)> = BTreeMap::new();
    for entry in layer.entries() {
        moves.retain(|(from, _)| is_below(&entry.path, from));
        let path = match moves.last() {
            Some((from, to)) => join(to, &entry.path[from.len() + 1..]),
            None => entry.path.clone(),
        };
        if is_implied(entry) && is_link(&path) {
            moves.push((entry.path.as_bstr(), resolve(lower, &path)?));
            continue;
        }
        let entry_there = Entry { path: path.clone(), ..entry.clone() };
        match placed.entry(key(&path)) {
            Slot::Vacant(slot) => drop(slot.insert((entry_there, entry.path.as_bstr()))),
            Slot::Occupied(mut slot) if is_implied(&slot.get().0) => {
                slot.insert((entry_there, entry.path.as_bstr()));
            }
            // Two names of one directory, or of one file: one is enough.
            Slot::Occupied(_) => {}
        }
    }
    let root = placed[&Vec::new()].0.clone();
    let missing: Vec<BString> = placed
        .values()
        .flat_map(|(entry, _)| std::iter::successors(parent(&entry.path), |dir| parent(dir)))
        .filter(|dir| !placed.contains_key(&key(dir)))
        .map(BString::from)
        .collect();
    for path in missing {
        let kind = Kind::Directory { opaque: false, implied: true };
        let entry = Entry {
            path: path.clone(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: BTreeMap::new(),
        };
        placed.insert(key(&path), (entry, b"".as_bstr()));
    }

    // The first of a file's names may be another one now.
    let mut first: BTreeMap<&BStr, BString> = BTreeMap::new();
    let mut entries = vec![root];
    for (entry, was) in placed.values().skip(1) {
        let mut entry = entry.clone();
        let file = match &entry.kind {
            Kind::File { .. } => Some(*was),
            Kind::Hardlink { target } => layer.get(target).map(|file| file.path.as_bstr()),
            _ => None,
        };
        if let Some(file) = file {
            entry.kind = match first.get(file) {
                Some(target) => Kind::Hardlink { target: target.clone() },
                None => layer.get(file)?.kind.clone(),
            };
            first.entry(file).or_insert_with(|| entry.path.clone());
        }
        entries.push(entry);
    }
    Some(entries)
}

/// Where `path` leads through the links of `layers`; `None` if they lead round in circles.
fn resolve(layers: &[Arc<LayerIndex>], path: &[u8]) -> Option<BString> {
    let parts = |path: &[u8]| -> Vec<BString> {
        path.rsplit_str("/").filter(|part| !part.is_empty() && *part != b".").map(BString::from).collect()
    };
    let mut todo = parts(path);
    let mut at = BString::default();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == ".." {
            at = parent(&at).unwrap_or_default().into();
            continue;
        }
        let next = join(&at, &part);
        match lookup(layers, &next).map(|entry| &entry.kind) {
            Some(Kind::Symlink { target }) => {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                if target.starts_with(b"/") {
                    at.clear();
                }
                todo.extend(parts(target));
            }
            _ => at = next,
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Data, LayerWriter};

    fn layer(entries: &[(&str, Kind, u16)]) -> Arc<LayerIndex> {
        let mut writer = LayerWriter::new(std::io::sink());
        for (path, kind, mode) in entries {
            let entry = Entry {
                path: (*path).into(),
                kind: kind.clone(),
                mode: *mode,
                uid: 0,
                gid: 0,
                mtime: 0,
                xattrs: BTreeMap::new(),
            };
            writer.append(entry, Data::None).unwrap();
        }
        Arc::new(writer.finish().unwrap().1)
    }

    fn directory(opaque: bool) -> Kind {
        Kind::Directory { opaque, implied: false }
    }

    #[test]
    fn implied_directories_take_what_lower_layers_say() {
        let base = layer(&[("tmp", directory(false), 0o1777), ("usr", directory(false), 0o750)]);
        let middle = layer(&[("usr/bin", directory(false), 0o711)]);
        let top = layer(&[("tmp/a", Kind::Fifo, 0), ("usr/bin/b", Kind::Fifo, 0), ("var/c", Kind::Fifo, 0)]);
        let settled = settle(&top, &[base.clone(), middle]).unwrap();
        let mode = |path: &str| settled.get(path.as_bytes()).unwrap().mode;
        assert_eq!([mode("tmp"), mode("usr"), mode("usr/bin"), mode("var")], [0o1777, 0o750, 0o711, 0o755]);
        assert_ne!(settled.content(), top.content());
        assert_eq!(settle(&top, &[]), None);
        assert_eq!(settle(&base, &[]), None);
    }

    #[test]
    fn what_is_hidden_gives_nothing() {
        let base = layer(&[("a", directory(false), 0o700), ("a/b", directory(false), 0o711)]);
        let top = layer(&[("a/b/c", Kind::Fifo, 0)]);
        let mode = |middle: Arc<LayerIndex>| {
            let settled = settle(&top, &[base.clone(), middle]);
            settled.map(|settled| (settled.get(b"a").unwrap().mode, settled.get(b"a/b").unwrap().mode))
        };
        assert_eq!(mode(layer(&[])), Some((0o700, 0o711)));
        assert_eq!(mode(layer(&[("a", directory(true), 0o750)])), Some((0o750, 0o755)));
        assert_eq!(mode(layer(&[("a", Kind::Whiteout, 0)])), None);
        assert_eq!(mode(layer(&[("a/b", Kind::Whiteout, 0)])), Some((0o700, 0o755)));
        assert_eq!(mode(layer(&[("a/b", Kind::Fifo, 0)])), Some((0o700, 0o755)));
    }

    #[test]
    fn implied_directories_are_where_the_links_below_lead() {
        let link = |target: &str| Kind::Symlink { target: target.into() };
        let base = layer(&[
            ("a", link("loop"), 0),
            ("lib", link("usr/lib"), 0),
            ("loop", link("a"), 0),
            ("usr", directory(false), 0o755),
            ("usr/lib", directory(false), 0o711),
            ("usr/lib/here", link("../../srv"), 0),
            ("var", link("/data"), 0),
        ]);
        let empty = || Kind::File { size: 0, offset: 0, content: crate::ContentDigest([0; 32]) };
        let top = layer(&[
            ("lib/file", empty(), 0o644),
            ("lib/gone", Kind::Whiteout, 0),
            ("lib/here/deep", Kind::Fifo, 0),
            ("m", Kind::Hardlink { target: "lib/file".into() }, 0),
            ("usr/lib/own", Kind::Fifo, 0),
            ("var/x", Kind::Fifo, 0),
            ("zz", Kind::Hardlink { target: "lib/file".into() }, 0),
        ]);
        let settled = settle(&top, std::slice::from_ref(&base)).unwrap();
        let paths: Vec<String> = settled.entries().iter().map(|entry| entry.path.to_string()).collect();
        assert_eq!(
            paths,
            [
                "",
                "data",
                "data/x",
                "m",
                "srv",
                "srv/deep",
                "usr",
                "usr/lib",
                "usr/lib/file",
                "usr/lib/gone",
                "usr/lib/own",
                "zz"
            ]
        );
        assert_eq!(settled.get(b"usr/lib").unwrap().mode, 0o711);
        assert!(matches!(settled.get(b"m").unwrap().kind, Kind::File { .. }));
        assert_eq!(settled.get(b"usr/lib/file").unwrap().kind, Kind::Hardlink { target: "m".into() });
        assert_eq!(settled.get(b"zz").unwrap().kind, Kind::Hardlink { target: "m".into() });
        // A directory that the tar describes replaces the link, and one that leads nowhere stays.
        assert_eq!(
            settle(
                &layer(&[("lib", directory(false), 0o755), ("lib/x", Kind::Fifo, 0)]),
                std::slice::from_ref(&base)
            ),
            None
        );
        assert_eq!(settle(&layer(&[("a/x", Kind::Fifo, 0)]), &[base]), None);
    }
}

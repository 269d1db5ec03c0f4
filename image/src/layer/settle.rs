//! A layer as it must be mounted on top of others.
//!
//! A directory that a layer's tar only implies has the attributes that lower layers give it; overlayfs would take the
//! made-up ones of the upper layer. So, before such a layer is mounted, its implied directories are filled in.

use std::sync::Arc;

use super::entry::{Entry, Kind};
use super::index::{LayerIndex, parent};

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

/// The entries of `layer` with its implied directories filled in from `lower`, bottom first; `None` if that changes
/// nothing. The root is left as it is: its attributes come from the directory that is mounted on top.
pub fn settle(layer: &LayerIndex, lower: &[Arc<LayerIndex>]) -> Option<LayerIndex> {
    let is_implied = |entry: &Entry| matches!(entry.kind, Kind::Directory { implied: true, opaque: false });
    let changes: Vec<(usize, &Entry)> = layer
        .entries()
        .iter()
        .enumerate()
        .skip(1)
        .filter(|(_, entry)| is_implied(entry))
        .filter_map(|(at, entry)| Some((at, lookup(lower, &entry.path)?)))
        .filter(|(_, below)| matches!(below.kind, Kind::Directory { implied: false, .. }))
        .collect();
    if changes.is_empty() {
        return None;
    }
    let mut entries = layer.entries().to_vec();
    for (at, below) in changes {
        entries[at] = Entry { kind: Kind::Directory { opaque: false, implied: false }, ..below.clone() };
    }
    let settled = LayerIndex::new(entries, layer.diff_id(), layer.tar_size());
    Some(settled.expect("only attributes of directories changed"))
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
                xattrs: std::collections::BTreeMap::new(),
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
}

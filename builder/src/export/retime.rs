//! `SOURCE_DATE_EPOCH` in layers (`rewrite-timestamp`): no time later than it. Layers in the cache keep the times they were made with, so that
//! another epoch does not make every step run again; what leaves is a copy with times cut to the epoch. So a build from
//! the cache gives the image that a cold one gives.

use std::io::Read;

use image::layer::{Data, Entry, Kind, LayerWriter};
use image::{ContentDigest, DiffId, Digest};
use store::lease::Item;
use store::root::Root;

use super::flat::LayerFiles;
use crate::failure::{Class, Failure, OrFail as _};

/// The layer with no time later than `epoch`: itself if it has none, else a copy, which is made once.
pub(crate) fn retime(root: &Root, layer: &DiffId, epoch: i64) -> Result<DiffId, Failure> {
    let layers = root.layers();
    let index = layers.index(layer)?;
    let is_late = |entry: &&Entry| entry.mtime > epoch && !is_implied(entry);
    if !index.entries().iter().any(|entry| is_late(&entry)) {
        return Ok(*layer);
    }
    let name = |text: String| ContentDigest::of(text.as_bytes()).0;
    let (of, how) = (name(format!("layer {layer}")), name(format!("times up to {epoch}")));
    if let Some(known) = root.memo().get(&of, &how)? {
        let known = DiffId(Digest::Sha256(known));
        root.hold([Item::Layer(known)])?;
        if layers.contains(&known)? {
            return Ok(known);
        }
    }
    let mut files = LayerFiles::new(&layers);
    let mut writer = LayerWriter::new(layers.create()?);
    for entry in index.entries().iter().filter(|entry| !is_implied(entry)) {
        let mut cut = entry.clone();
        cut.mtime = cut.mtime.min(epoch);
        let mut bytes = match entry.kind {
            Kind::File { size, offset, .. } if size > 0 => Some(files.range(layer, offset, size)?),
            _ => None,
        };
        let data = match &mut bytes {
            Some(bytes) => Data::Known(bytes as &mut (dyn Read + Send)),
            None => Data::None,
        };
        writer.append(cut, data).or_fail(Class::Host)?;
    }
    let (new, index) = writer.finish().or_fail(Class::Host)?;
    let made = new.commit(index)?.diff_id;
    if let Digest::Sha256(digest) = &made.0 {
        root.memo().put(&of, &how, digest)?;
    }
    Ok(made)
}

fn is_implied(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Directory { implied: true, .. })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn layer(root: &Root, times: &[(&str, Kind, i64)]) -> DiffId {
        let mut writer = LayerWriter::new(root.layers().create().unwrap());
        for (path, kind, mtime) in times {
            let entry = Entry {
                path: (*path).into(),
                kind: kind.clone(),
                mode: 0o755,
                uid: 1,
                gid: 2,
                mtime: *mtime,
                xattrs: BTreeMap::from([("user.x".into(), "y".into())]),
            };
            let mut bytes: &[u8] = b"text";
            let data = if entry.kind.is_dir() || entry.kind == Kind::Whiteout {
                Data::None
            } else {
                Data::New(&mut bytes)
            };
            writer.append(entry, data).unwrap();
        }
        let (new, index) = writer.finish().unwrap();
        new.commit(index).unwrap().diff_id
    }

    #[test]
    fn layers_that_differ_in_late_times_become_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("state")).unwrap();
        let file = || Kind::File { size: 4, offset: 0, content: ContentDigest::of(b"text") };
        let make = |time| {
            let directory = Kind::Directory { opaque: true, implied: false };
            layer(
                &root,
                &[
                    ("d", directory, time),
                    ("d/a", file(), time),
                    ("d/b", file(), 7),
                    ("gone", Kind::Whiteout, 0),
                ],
            )
        };
        let (old, new) = (make(1_000), make(2_000));
        assert_ne!(old, new);
        let cut = retime(&root, &old, 500).unwrap();
        assert_eq!(retime(&root, &new, 500).unwrap(), cut);
        // From the memo the second time, and a layer without late times is itself.
        assert_eq!(retime(&root, &old, 500).unwrap(), cut);
        assert_eq!(retime(&root, &cut, 500).unwrap(), cut);
        assert_eq!(retime(&root, &old, 5_000).unwrap(), old);
        assert_eq!(cut, make(500));
    }
}

//! What a cache mount has seen: the files that were copied into the steps that had it, and the times they had then.
//!
//! Tools that keep what they made in a cache mount (make, cargo, ninja) tell by modification times whether a source
//! changed. A new checkout has new times, and everything would be made again. So a step with cache mounts sees each
//! copied or bound file whose content is as the mount last saw it with the time it had then, and one whose content is
//! another with a time after all that is in the mount: also when a checkout gave it an older one, which those tools
//! would overlook.
//!
//! Only the step sees it: the times are in what is mounted, never in a layer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bstr::{BString, ByteSlice as _};
use image::layer::{Entry, Kind, LayerIndex};
use serde::{Deserialize, Serialize};

use crate::mount::Times;

/// More paths than this are not remembered; those that the last step did not see go first.
const MOST: usize = 200_000;
/// The first line of the file, and the version of what follows it.
const MAGIC: &[u8] = b"rbuild seen 1\n";

/// What one mount saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// By path in the step; what is below a bind mount is named `TARGET//PATH`.
    files: BTreeMap<BString, File>,
}

/// What was at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    /// Digest of what it is, without its attributes.
    content: [u8; 16],
    /// The time that the step saw, seconds since the epoch.
    mtime: i64,
}

/// When the step that last had a mount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// At this second.
    At(i64),
    /// That is not known: it was killed, or runs beside this one.
    Unknown,
}

/// The copied layers of a step, and where it sees them: `None` in its root, else the target of a bind mount.
pub(crate) type View = Vec<(Option<String>, Arc<LayerIndex>)>;

impl Seen {
    /// Reads bytes of [`Seen::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes.strip_prefix(MAGIC)?).ok()
    }

    /// As it is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(postcard::to_stdvec(self).expect("plain data"));
        bytes
    }

    /// Keeps what was `seen`, and drops the rest if it is too much.
    fn extend(&mut self, seen: &BTreeMap<BString, File>) {
        self.files.extend(seen.iter().map(|(path, file)| (path.clone(), *file)));
        if self.files.len() > MOST {
            self.files = seen.iter().take(MOST).map(|(path, file)| (path.clone(), *file)).collect();
        }
    }
}

/// The times a step is to see, and what its mounts have then seen. `mounts`: what they saw so far.
pub(crate) fn times(view: &View, mounts: &mut [(Seen, Written)], now: i64) -> Times {
    let known: Vec<&(Seen, Written)> = mounts.iter().collect();
    let after = |written: Written| match written {
        Written::At(second) => now.max(second.saturating_add(1)),
        // Something may have been written in this very second.
        Written::Unknown => now.saturating_add(1),
    };
    let mut times: Times = HashMap::new();
    let mut seen = BTreeMap::new();
    for (target, index) in view {
        let names = directory_contents(index.entries());
        for (at, entry) in index.entries().iter().enumerate() {
            let Some(content) = content(entry, names.get(&at)) else { continue };
            let path = match target {
                None => entry.path.clone(),
                Some(target) => format!("{target}//{}", entry.path).into(),
            };
            // What mounts saw at different times, the later one decides: making something once more is safe.
            let shown = known.iter().filter_map(|(seen, written)| {
                let file = seen.files.get(&path)?;
                Some(if file.content == content { file.mtime } else { after(*written) })
            });
            let mtime = shown.max().unwrap_or(entry.mtime);
            if mtime != entry.mtime {
                times.entry(index.diff_id()).or_default().insert(entry.path.clone(), mtime);
            }
            seen.insert(path, File { content, mtime });
        }
    }
    for (mount, _) in mounts {
        mount.extend(&seen);
    }
    times
}

/// The times in one layer that shows what `layers` show over each other, given with their own: each path has that of the
/// topmost one.
pub(crate) fn merged<'a>(
    layers: impl IntoIterator<Item = (&'a LayerIndex, Option<&'a HashMap<BString, i64>>)>,
) -> HashMap<BString, i64> {
    let mut merged = HashMap::new();
    for (index, own) in layers {
        // A directory that is only on the way to something leaves the one below as it is.
        let shown = |entry: &&Entry| !matches!(entry.kind, Kind::Directory { implied: true, .. });
        for entry in index.entries().iter().filter(shown) {
            match own.and_then(|own| own.get(&entry.path)) {
                Some(time) => merged.insert(entry.path.clone(), *time),
                None => merged.remove(&entry.path),
            };
        }
    }
    merged
}

fn content(entry: &Entry, names: Option<&blake3::Hasher>) -> Option<[u8; 16]> {
    let digest = match &entry.kind {
        Kind::File { content, .. } => content.0,
        Kind::Symlink { target } => *blake3::hash(target).as_bytes(),
        // A directory's time is that of its last change of names.
        Kind::Directory { implied: false, .. } => {
            names.map_or([0; 32], |hasher| *hasher.finalize().as_bytes())
        }
        _ => return None,
    };
    digest[..16].try_into().ok()
}

/// Digests of the names in directories, by the directories' positions.
fn directory_contents(entries: &[Entry]) -> HashMap<usize, blake3::Hasher> {
    let positions: HashMap<&[u8], usize> = entries
        .iter()
        .enumerate()
        .filter(|(_, e)| e.kind.is_dir())
        .map(|(at, e)| (&e.path[..], at))
        .collect();
    let mut names: HashMap<usize, blake3::Hasher> = HashMap::new();
    for entry in entries.iter().filter(|entry| !entry.path.is_empty()) {
        let (parent, name) = entry.path.rsplit_once_str("/").unwrap_or((b"", &entry.path));
        if let Some(at) = positions.get(parent) {
            names.entry(*at).or_default().update(name).update(b"\0");
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ContentDigest, DiffId, Digest};

    fn index(entries: &[(&str, &str, i64)]) -> Arc<LayerIndex> {
        let mut all: Vec<Entry> = entries
            .iter()
            .map(|(path, text, mtime)| Entry {
                path: (*path).into(),
                kind: match *text {
                    "/" => Kind::Directory { opaque: false, implied: false },
                    "(/)" => Kind::Directory { opaque: false, implied: true },
                    text => Kind::File { size: 1, offset: 512, content: ContentDigest::of(text.as_bytes()) },
                },
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: *mtime,
                xattrs: BTreeMap::new(),
            })
            .collect();
        all.insert(
            0,
            Entry {
                path: "".into(),
                kind: Kind::Directory { opaque: false, implied: true },
                ..all[0].clone()
            },
        );
        Arc::new(LayerIndex::new(all, DiffId(Digest::of(b"x")), 8192).unwrap())
    }

    fn shown(times: &Times, path: &str) -> Option<i64> {
        times.values().find_map(|layer| layer.get(path.as_bytes().as_bstr())).copied()
    }

    #[test]
    fn unchanged_files_keep_their_time_and_changed_ones_are_newer_than_the_mount() {
        let first: View = vec![(None, index(&[("d", "/", 5), ("d/a", "1", 10), ("d/b", "1", 10)]))];
        let mut mounts = [(Seen::default(), Written::Unknown)];
        assert!(times(&first, &mut mounts, 100).is_empty(), "what is new is as it is");
        mounts[0].1 = Written::At(200);
        // Checked out again, in the past as well.
        for (checkout, now, changed) in [(300, 301, 301), (50, 60, 201), (199, 200, 201)] {
            let again: View =
                vec![(None, index(&[("d", "/", checkout), ("d/a", "1", checkout), ("d/b", "2", checkout)]))];
            let mut mounts = mounts.clone();
            let seen = times(&again, &mut mounts, now);
            assert_eq!(shown(&seen, "d/a"), Some(10));
            assert_eq!(shown(&seen, "d"), Some(5), "a directory of the same names");
            assert_eq!(shown(&seen, "d/b").unwrap_or(checkout), changed);
            // And so the next time.
            mounts[0].1 = Written::At(now + 5);
            let seen = times(&again, &mut mounts, now + 50);
            assert_eq!((shown(&seen, "d/a"), shown(&seen, "d/b").unwrap_or(checkout)), (Some(10), changed));
        }
        let more: View =
            vec![(None, index(&[("d", "/", 9), ("d/a", "1", 9), ("d/b", "1", 9), ("d/c", "1", 9)]))];
        let seen = times(&more, &mut mounts, 300);
        assert_eq!((shown(&seen, "d"), shown(&seen, "d/c")), (Some(300), None));
    }

    #[test]
    fn after_a_killed_step_what_changed_is_newer_than_this_second() {
        let view = |text| -> View { vec![(Some("/src".to_owned()), index(&[("a", text, 10)]))] };
        let mut mounts = [(Seen::default(), Written::Unknown)];
        let _ = times(&view("1"), &mut mounts, 100);
        assert_eq!(shown(&times(&view("2"), &mut mounts, 100), "a"), Some(101));
        // Another place is another file.
        assert!(times(&vec![(None, index(&[("a", "3", 10)]))], &mut mounts, 100).is_empty());
    }

    #[test]
    fn of_two_mounts_the_later_time_counts() {
        let view: View = vec![(None, index(&[("a", "1", 10)]))];
        let mut old = [(Seen::default(), Written::At(1))];
        let _ = times(&view, &mut old, 50);
        let mut both = [old[0].clone(), (Seen::default(), Written::At(1))];
        let _ = times(&vec![(None, index(&[("a", "1", 30)]))], &mut both[1..], 50);
        assert!(times(&vec![(None, index(&[("a", "1", 30)]))], &mut both, 60).is_empty());
    }

    #[test]
    fn layers_in_one_show_the_times_of_the_topmost() {
        let below = index(&[("d", "/", 5), ("d/a", "1", 10), ("d/b", "1", 10), ("d/c", "1", 10)]);
        let above = index(&[("d", "(/)", 20), ("d/b", "2", 20), ("d/c", "2", 20)]);
        let times = |times: &[(&str, i64)]| -> HashMap<BString, i64> {
            times.iter().map(|(path, time)| (BString::from(*path), *time)).collect()
        };
        let (low, high) = (times(&[("d", 1), ("d/a", 2), ("d/b", 3), ("d/c", 4)]), times(&[("d/b", 7)]));
        for (layers, expected) in [
            (vec![(&*below, Some(&low))], low.clone()),
            // d/c is another file in the upper layer, and has that one's own time.
            (vec![(&*below, Some(&low)), (&*above, Some(&high))], times(&[("d", 1), ("d/a", 2), ("d/b", 7)])),
            (vec![(&*below, Some(&low)), (&*above, None)], times(&[("d", 1), ("d/a", 2)])),
            (vec![(&*below, None), (&*above, Some(&high))], times(&[("d/b", 7)])),
            (vec![(&*above, Some(&high)), (&*below, None)], HashMap::new()),
        ] {
            assert_eq!(merged(layers), expected);
        }
    }
}

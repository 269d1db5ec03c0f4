//! Cache mounts of this host into a cache.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use image::Descriptor;
use solver::Definition;
use solver::op::{MountKind, Op};
use store::directory::{DirectoryId, DirectoryKind};
use store::root::Root;
use store::temp::WorkDir;
use worker::UsedMount;
use worker::error::WorkerError;
use worker::kept::{self, MountDirectory};

use super::chunk::Chunker;
use super::index::{CachedMount, INDEX_TYPE, MountIndex, Pack};
use super::pack::{Packer, worth_keeping};
use crate::cache::CacheError;

/// What of cache mounts goes into a cache.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    /// All that the cache then has.
    pub(crate) mounts: Vec<CachedMount>,
    /// Blobs that it lacks, as files.
    pub(crate) new: Vec<(Descriptor, PathBuf)>,
    /// Where they are.
    pub(crate) work: Option<WorkDir>,
}

/// The cache mounts that a build may use, as far as their names are known before it.
pub(crate) fn named(definition: &Definition) -> BTreeSet<UsedMount> {
    let ops = definition.ids().filter_map(|id| match &definition.vertex(id).op {
        Op::Exec(exec) => Some(exec),
        _ => None,
    });
    ops.flat_map(|exec| &exec.mounts)
        .filter_map(|mount| match &mount.kind {
            MountKind::Cache { id, input: None, sharing, .. } => Some(UsedMount::new(id, id, *sharing)),
            _ => None,
        })
        .collect()
}

/// The name of a mount in a cache.
pub(crate) fn name_of(name: &[u8]) -> String {
    DirectoryId::new(DirectoryKind::CacheMount, name).hex()
}

/// What goes: `changed`, those in `known` that they do not replace, and no more than `max` bytes, the last used first.
/// `index_of` gives what the cache has of a mount.
pub(crate) fn save(
    root: &Root,
    changed: &[(UsedMount, Option<MountIndex>)],
    known: &[CachedMount],
    max: u64,
    now: i64,
) -> Result<Saved, CacheError> {
    let work = root.work_dir()?;
    let mut mounts = Vec::new();
    let mut new = Vec::new();
    for (mount, index) in changed {
        match save_one(root, mount, index.as_ref(), work.path(), now) {
            Ok(Some((cached, mut blobs))) => {
                mounts.push(cached);
                new.append(&mut blobs);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("could not export cache mount {}: {error}", mount.id),
        }
    }
    for mount in known {
        if !mounts.iter().any(|other: &CachedMount| other.name == mount.name) {
            mounts.push(mount.clone());
        }
    }
    let mounts = within(mounts, max);
    let listed = |blob: &Descriptor| {
        mounts.iter().any(|mount| mount.index.digest == blob.digest || mount.packs.contains(blob))
    };
    new.retain(|(blob, _)| listed(blob));
    Ok(Saved { mounts, new, work: Some(work) })
}

/// Those used last, as many as fit; one that is too big alone is left out.
fn within(mut mounts: Vec<CachedMount>, max: u64) -> Vec<CachedMount> {
    mounts.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.name.cmp(&b.name)));
    let mut left = max;
    mounts.retain(|mount| {
        let fits = mount.size <= left;
        if fits {
            left -= mount.size;
        } else {
            tracing::info!(
                "cache mount {} ({} bytes) is not exported: mounts-max is {max}",
                mount.id,
                mount.size
            );
        }
        fits
    });
    mounts.sort_by(|a, b| a.name.cmp(&b.name));
    mounts
}

type Blobs = Vec<(Descriptor, PathBuf)>;

fn save_one(
    root: &Root,
    mount: &UsedMount,
    known: Option<&MountIndex>,
    dir: &Path,
    now: i64,
) -> Result<Option<(CachedMount, Blobs)>, CacheError> {
    // A step of another build may have it; the next export takes it.
    let _lock = match mount.exclusive {
        false => None,
        true => match root.locks().try_lock(&kept::lock_name(&mount.name))? {
            Some(lock) => Some(lock),
            None => return Ok(None),
        },
    };
    let Some(directory) = root.directories().find(DirectoryKind::CacheMount, &mount.name)? else {
        return Ok(None);
    };
    let directory = MountDirectory::new(directory.path());
    if !directory.files().is_dir() {
        return Ok(None);
    }
    let packs = known.map(|index| index.packs.clone()).unwrap_or_default();
    let (mut index, mut blobs) = pack(&directory, packs.clone(), dir)?;
    if let Some(kept) = worth_keeping(&index, &packs) {
        (index, blobs) = pack(&directory, kept, dir)?;
    }
    index.seen = directory.seen().map(|seen| seen.to_bytes());
    index.written = directory.written();
    let bytes = index.to_bytes();
    let descriptor = Descriptor::of(INDEX_TYPE, &bytes);
    let path = dir.join(descriptor.digest.hex());
    std::fs::write(&path, &bytes).map_err(|source| WorkerError::Io { path: path.clone(), source })?;
    blobs.push((descriptor.clone(), path));
    let cached = CachedMount {
        name: name_of(&mount.name),
        id: mount.id.clone(),
        used: now,
        size: index.size(),
        index: descriptor,
        packs: index.packs.iter().map(Pack::descriptor).collect(),
    };
    Ok(Some((cached, blobs)))
}

fn pack(
    directory: &MountDirectory,
    known: Vec<Pack>,
    dir: &Path,
) -> Result<(MountIndex, Blobs), WorkerError> {
    let failed = |source: io::Error| WorkerError::Io { path: dir.to_owned(), source };
    let mut packer = Packer::new(known, dir);
    let mut chunker = Chunker::new(|chunk: &[u8]| packer.add(chunk));
    let (_, attributes) = kept::save(directory, io::BufWriter::with_capacity(1 << 20, &mut chunker))
        .and_then(|(mut out, attributes)| {
            out.flush().map_err(failed)?;
            Ok(((), attributes))
        })?;
    chunker.finish().map_err(failed)?;
    let (index, blobs) = packer.finish().map_err(failed)?;
    Ok((MountIndex { root: attributes.root, nanoseconds: attributes.nanoseconds, ..index }, blobs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Digest;

    #[test]
    fn those_used_last_stay_within_the_limit() {
        let mount = |name: &str, used, size| CachedMount {
            name: name.to_owned(),
            id: name.to_owned(),
            used,
            size,
            index: Descriptor::new(INDEX_TYPE, Digest::of(name.as_bytes()), 1),
            packs: Vec::new(),
        };
        let mounts =
            vec![mount("old", 1, 10), mount("huge", 9, 1000), mount("new", 3, 50), mount("mid", 2, 45)];
        let names: Vec<String> = within(mounts, 100).into_iter().map(|mount| mount.id).collect();
        assert_eq!(names, ["mid", "new"]);
    }

    #[test]
    fn only_what_changed_goes_again_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let used = UsedMount { name: b"/c".to_vec(), id: "/c".to_owned(), exclusive: true };
        let directory = root.directories().open(DirectoryKind::CacheMount, b"/c", "/c").unwrap();
        let mounted = MountDirectory::new(directory.path());
        std::fs::create_dir(mounted.files()).unwrap();
        let noise: Vec<u8> = (0..4_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(mounted.files().join("big"), &noise).unwrap();
        std::fs::write(mounted.files().join("small"), "1").unwrap();
        let first = save(&root, &[(used.clone(), None)], &[], 1 << 30, 5).unwrap();
        let bytes = |saved: &Saved| saved.new.iter().map(|(blob, _)| blob.size).sum::<u64>();
        let index = |saved: &Saved| {
            let path = &saved.new.iter().find(|(blob, _)| *blob == saved.mounts[0].index).unwrap().1;
            MountIndex::from_bytes(&std::fs::read(path).unwrap()).unwrap()
        };
        assert!(bytes(&first) > 100_000);
        std::fs::write(mounted.files().join("small"), "2").unwrap();
        let known = index(&first);
        let second = save(&root, &[(used.clone(), Some(known))], &first.mounts, 1 << 30, 6).unwrap();
        assert!(bytes(&second) * 3 < bytes(&first), "{} {}", bytes(&second), bytes(&first));
        assert_eq!(second.mounts.len(), 1);
        // Not used: it stays as it is.
        let third = save(&root, &[], &second.mounts, 1 << 30, 7).unwrap();
        assert_eq!((&third.mounts, third.new.len()), (&second.mounts, 0));

        let to = dir.path().join("to");
        std::fs::create_dir(&to).unwrap();
        let copies = dir.path().join("copies");
        std::fs::create_dir(&copies).unwrap();
        for (blob, path) in first.new.iter().chain(&second.new) {
            std::fs::copy(path, copies.join(blob.digest.hex())).unwrap();
        }
        crate::cache::mounts::load::tests::restore_from(&root, &index(&second), &copies, &to).unwrap();
        assert_eq!(std::fs::read(to.join("files/big")).unwrap(), noise);
        assert_eq!(std::fs::read(to.join("files/small")).unwrap(), b"2");
        // While a step has it, it does not go.
        let _busy = root.locks().try_lock(&kept::lock_name(b"/c")).unwrap().unwrap();
        assert!(save(&root, &[(used, None)], &[], 1 << 30, 5).unwrap().mounts.is_empty());
    }
}

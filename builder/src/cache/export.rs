//! What of a build goes into a cache, and the transfer to all of them.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures::stream::{self, StreamExt as _};
use image::{ContentDigest, Descriptor, DiffId};
use solver::record::{Record, SnapshotLayer};
use store::pool;
use store::registry::Client;
use store::root::{Root, now};
use store::temp::WorkDir;
use worker::UsedMount;

use super::CacheError;
use super::backends::{Sent, local, object, registry};
use super::format::{CacheIndex, CachedStep};
use super::import::{Imports, Place};
use super::mounts::index::{CachedMount, MountIndex};
use super::mounts::save::{self, name_of};
use super::options::{CacheTo, Mode, Target};
use super::session::Used;
use crate::failure::{Class, Failure};
use crate::progress::Handle;

/// Packs that are asked for at the same time.
const AT_ONCE: usize = 6;
/// Layers shorter than this go whatever running their step again would cost, bytes of tar: what a step that runs again
/// reads has to be fetched as well.
const ALWAYS: u64 = 4 << 20;
/// What a transfer is taken to carry where nothing was measured yet, bytes of tar a second: 20 MB/s of compressed bytes.
const SPEED: f64 = 60e6;

/// What goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Records and selections; its layers are filled in when their blobs are known.
    pub(crate) index: CacheIndex,
    /// Layers that are to be there, those of results first.
    pub(crate) layers: Vec<DiffId>,
    /// Other blobs that are to be there, as files: of cache mounts. The index lists them already.
    pub(crate) files: Vec<(Descriptor, PathBuf)>,
}

impl Plan {
    /// What of a build goes with `mode`. `results` are the layers of its images.
    ///
    /// Layers of base images do not go: whoever builds on them finds them where they are. With a `speed`, bytes of tar a
    /// second, a layer that no result has is left out if it takes longer to fetch than to make.
    pub(crate) fn new(
        root: &Root,
        used: &Used,
        results: &[SnapshotLayer],
        mode: Mode,
        speed: Option<f64>,
    ) -> Self {
        let mut plan = Self { index: index(root, used), ..Self::default() };
        let mut seen = HashSet::new();
        let made = results.iter().filter(|layer| layer.created.is_some()).map(|layer| layer.diff_id);
        plan.layers.extend(made.filter(|layer| seen.insert(*layer)));
        if mode == Mode::Max {
            let worth =
                used.records.values().filter(|record| speed.is_none_or(|speed| is_worth_it(record, speed)));
            plan.layers.extend(worth.map(|record| record.layer).filter(|layer| seen.insert(*layer)));
        }
        plan
    }
}

/// The records and selections of a build.
pub(crate) fn index(root: &Root, used: &Used) -> CacheIndex {
    let records = root.records();
    let steps = used.records.iter().map(|(key, record)| {
        let entry = records.entry(&key.0.0).ok().flatten();
        // Without its row it has no place, and explains nothing.
        let (step, stored, name) = entry
            .map_or((ContentDigest([0; 32]), record.created, String::new()), |e| {
                (ContentDigest(e.step), e.created, e.description)
            });
        (*key, CachedStep { step, stored, name, record: record.clone() })
    });
    CacheIndex { steps: steps.collect(), memo: used.memo.clone(), ..CacheIndex::default() }
}

fn is_worth_it(record: &Record, speed: f64) -> bool {
    record.bytes <= ALWAYS || record.bytes as f64 / speed <= record.seconds
}

/// What all exports of a build came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exports {
    pub(crate) sent: Sent,
    pub(crate) seconds: f64,
}

/// What a build leaves for caches.
#[derive(Debug, Default)]
pub(crate) struct Material {
    /// What its steps took from the cache and left there.
    pub(crate) used: Used,
    /// The layers of its results.
    pub(crate) results: Vec<SnapshotLayer>,
    /// Cache mounts that its steps name.
    pub(crate) named: BTreeSet<UsedMount>,
}

/// Writes the caches that are asked for, one after the other. A cache that cannot be written is told of, and fails the
/// build if that was asked for.
pub(crate) async fn export(
    root: &Root,
    client: &Client,
    imports: &Imports,
    caches: &[CacheTo],
    material: &Material,
    progress: &Handle,
) -> Result<Exports, Failure> {
    let begin = Instant::now();
    let mut all = Exports::default();
    for to in caches {
        let kind = match &to.target {
            Target::Registry { .. } => "registry",
            Target::Local { .. } => "local directory",
            Target::Objects(objects) => objects.service.name(),
            // It went with the image.
            Target::Inline => continue,
        };
        let task = progress.task(&format!("exporting cache to {kind}"));
        let insecure = match &to.target {
            Target::Registry { reference, insecure: true } => Some(&*reference.registry),
            _ => None,
        };
        // All that is asked of it, or it would not answer.
        let client = &crate::registry::insecure(client.clone(), insecure);
        let speed = to.weigh.then(|| root.speeds().of(&to.place()).unwrap_or(SPEED));
        let mut plan = Plan::new(root, &material.used, &material.results, to.mode, speed);
        // Holds the files until they are sent.
        let saved = add_mounts(root, client, imports, to, &material.named, &mut plan).await;
        if let Err(error) = &saved {
            tracing::warn!("could not export cache mounts to {}: {error}", to.name());
        }
        let written: Result<Sent, CacheError> = match &to.target {
            Target::Registry { reference, .. } => {
                registry::write(root, client, reference, to, &plan, &task).await
            }
            Target::Local { dest, tag, reset } => {
                local::write(root, client, imports, (dest, tag, *reset), to, &plan).await
            }
            Target::Objects(objects) => match object::Store::open(objects, client) {
                Ok(store) => store.write(root, client, imports, to, &plan).await,
                Err(error) => Err(error),
            },
            Target::Inline => unreachable!("skipped above"),
        };
        match written {
            Ok(sent) => {
                task.done();
                all.sent.layers += sent.layers;
                all.sent.new += sent.new;
                all.sent.bytes += sent.bytes;
                all.sent.manifest = sent.manifest.or(all.sent.manifest);
            }
            Err(error) => {
                let message = format!("could not export cache to {}: {error}", to.name());
                task.failed(&message);
                if !to.ignore_error {
                    return Err(Failure::new(Class::Network, message));
                }
                tracing::warn!("{message}");
            }
        }
    }
    all.seconds = begin.elapsed().as_secs_f64();
    Ok(all)
}

/// Adds cache mounts to what goes: those that steps of this build had, and of those that its steps name (`named`) such as
/// the cache lacks.
async fn add_mounts(
    root: &Root,
    client: &Client,
    imports: &Imports,
    to: &CacheTo,
    named: &BTreeSet<UsedMount>,
    plan: &mut Plan,
) -> Result<Option<WorkDir>, CacheError> {
    let Some(max) = to.mounts else { return Ok(None) };
    let there = Existing::open(root, client, &to.target).await;
    let known: &[CachedMount] = there.as_ref().map_or(&[], |there| &there.index.mounts);
    let mut changed = imports.used_mounts();
    let lacks = |mount: &&UsedMount| !known.iter().any(|other| other.name == name_of(&mount.name));
    let missing: Vec<UsedMount> = named.iter().filter(lacks).cloned().collect();
    changed.extend(missing);
    // Where this cache is new, what others in the same place have is there as well.
    let beside = if changed.is_empty() { Vec::new() } else { imports.beside(&to.target).await };
    let own = there.iter().map(|there| (&there.index, &there.place));
    let sources: Vec<(&CacheIndex, &Place)> = own.chain(beside).collect();
    let mut with_index = Vec::new();
    for mount in changed {
        let name = name_of(&mount.name);
        let before = sources
            .iter()
            .find_map(|(index, place)| Some((index.mounts.iter().find(|other| other.name == name)?, *place)));
        let index = match before {
            Some((before, place)) => mount_index(client, place, before).await,
            None => None,
        };
        with_index.push((mount, index));
    }
    let (job_root, known, now) = (root.clone(), known.to_vec(), now());
    let saved = pool::spawn(move || save::save(&job_root, &with_index, &known, max, now)).await??;
    plan.index.mounts = saved.mounts;
    plan.files = saved.new;
    Ok(saved.work)
}

/// A cache that is there already, where another is to be written.
struct Existing {
    index: CacheIndex,
    place: Place,
}

impl Existing {
    /// `None`: there is none, or none that can be read.
    async fn open(root: &Root, client: &Client, target: &Target) -> Option<Self> {
        let (index, place) = match target {
            Target::Registry { reference, .. } => {
                (registry::read(client, reference).await.ok()?, Place::Registry(reference.clone()))
            }
            Target::Local { dest, tag, .. } => {
                let (layout, index) = local::read(root, dest, tag, None).ok()?;
                (index, Place::Layout(Arc::new(layout)))
            }
            Target::Objects(objects) => {
                let store = object::Store::open(objects, client).ok()?;
                (store.read().await.ok()?, Place::Objects(store))
            }
            Target::Inline => return None,
        };
        Some(Self { index, place })
    }
}

/// What a place has of a mount. Packs that were removed there are not in it: they have to go again.
async fn mount_index(client: &Client, place: &Place, mount: &CachedMount) -> Option<MountIndex> {
    let bytes = place.blob(client, mount.index.clone()).await.ok()?;
    let mut index = MountIndex::from_bytes(&bytes).ok()?;
    let asked = index.packs.iter().map(|pack| place.has(client, pack.descriptor()));
    let there: Vec<bool> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let mut there = there.into_iter();
    index.packs.retain(|_| there.next().is_some_and(|there| there));
    Some(index)
}

#[cfg(test)]
mod tests {
    use image::Digest;
    use solver::key::{CacheKey, ResultDigest};

    use super::*;

    fn used(records: &[(u8, f64, u64)]) -> Used {
        let mut used = Used::default();
        for &(n, seconds, bytes) in records {
            let digest = ContentDigest::of(&[n]);
            let record = Record {
                layer: DiffId(Digest::of(&[n])),
                result: ResultDigest(digest),
                op: digest,
                inputs: Vec::new(),
                seconds,
                bytes,
                created: 1,
            };
            used.records.insert(CacheKey(digest), record);
        }
        used
    }

    #[test]
    fn layers_go_by_mode_and_by_what_they_cost() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let layer = |n: u8, created| SnapshotLayer { diff_id: DiffId(Digest::of(&[n])), created };
        // 1 is the base's, 2 the result's, 3 slow and big, 4 fast and big, 5 fast and small.
        let used = used(&[(2, 0.0, 1 << 30), (3, 100.0, 1 << 30), (4, 0.1, 1 << 30), (5, 0.0, 10)]);
        let results = [layer(1, None), layer(2, Some(1))];
        let plan = |mode, speed| {
            let plan = Plan::new(&root, &used, &results, mode, speed);
            assert_eq!(plan.index.steps.len(), 4, "all records go always");
            let names: Vec<u8> = plan
                .layers
                .iter()
                .map(|l| (1..6).find(|n| DiffId(Digest::of(&[*n])) == *l).unwrap())
                .collect();
            (names[0], names.into_iter().collect::<HashSet<u8>>())
        };
        assert_eq!(plan(Mode::Min, Some(SPEED)), (2, HashSet::from([2])));
        assert_eq!(plan(Mode::Max, Some(SPEED)), (2, HashSet::from([2, 3, 5])));
        // 1 GiB takes 0.05 s, or 1000 s.
        assert_eq!(plan(Mode::Max, Some(20e9)), (2, HashSet::from([2, 3, 4, 5])));
        assert_eq!(plan(Mode::Max, Some(1e6)), (2, HashSet::from([2, 5])));
        assert_eq!(plan(Mode::Max, None), (2, HashSet::from([2, 3, 4, 5])));
    }
}

//! [`Imports`]: the caches of `--cache-from`, read when something is first asked of them.
//!
//! What an imported record says is a claim of whoever wrote that cache, which is why caches are read only when they are
//! named, a record of this host is never replaced by one, and a layer is known to be what it should be when it is here.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{LocalBoxFuture, join_all};
use image::{ContentDigest, Descriptor, DiffId, Reference};
use solver::explain::nearest;
use solver::key::{CacheKey, ResultDigest};
use solver::record::{Record, RecordedInput};
use solver::runner::StepId;
use store::archive::OciLayout;
use store::compress::Algorithm;
use store::error::StoreError;
use store::layer::LayerBlob;
use store::pool;
use store::record::NewRecord;
use store::registry::Client;
use store::root::Root;
use tokio::sync::OnceCell;
use worker::source::image::OCI_LAYOUT;
use worker::{LayerSource, MountSource, UsedMount};

use super::CacheError;
use super::backends::{local, object, registry};
use super::format::{CacheIndex, CachedStep};
use super::mounts::index::MAX_BLOB;
use super::mounts::load;
use super::mounts::save::name_of;
use super::options::{CacheFrom, Origin, Target};
use crate::progress::Handle;

/// The caches that a build may take from.
pub(crate) struct Imports {
    root: Root,
    client: Client,
    from: Vec<CacheFrom>,
    progress: Handle,
    loaded: OnceCell<Vec<Import>>,
    /// Seconds that reading the indexes took.
    seconds: Cell<f64>,
    /// Cache mounts that steps had.
    mounts: RefCell<BTreeSet<UsedMount>>,
    /// Bytes of cache mounts that were fetched, and seconds that took.
    fetched: Cell<(u64, f64)>,
}

/// A cache whose index was read.
struct Import {
    name: String,
    origin: Origin,
    index: CacheIndex,
    blobs: HashMap<DiffId, Descriptor>,
    place: Place,
    /// Cache mounts are to be taken from it.
    mounts: bool,
}

/// Where the blobs of a cache are.
pub(super) enum Place {
    Registry(Reference),
    Layout(Arc<OciLayout>),
    Objects(object::Store),
}

impl Place {
    /// Whether a blob of a cache mount is there.
    pub(super) async fn has(&self, client: &Client, blob: Descriptor) -> bool {
        match self {
            Self::Registry(reference) => client.has_blob(reference, &blob.digest).await.unwrap_or(false),
            Self::Layout(layout) => layout.has_blob(&blob).unwrap_or(false),
            Self::Objects(store) => store.has(&blob).await.unwrap_or(false),
        }
    }

    /// Its name for [`store::speed::Speeds`].
    fn name(&self) -> String {
        match self {
            Self::Registry(reference) => reference.registry.clone(),
            Self::Layout(_) => OCI_LAYOUT.to_owned(),
            Self::Objects(store) => store.name(),
        }
    }

    /// The bytes of a blob of a cache mount.
    pub(super) async fn blob(&self, client: &Client, blob: Descriptor) -> Result<Bytes, CacheError> {
        match self {
            Self::Registry(reference) => Ok(client.blob_bytes(reference, &blob, MAX_BLOB).await?),
            Self::Layout(layout) => {
                let layout = layout.clone();
                Ok(pool::spawn(move || layout.blob_bytes(&blob, MAX_BLOB)).await??.into())
            }
            Self::Objects(store) => store.blob_bytes(&blob, MAX_BLOB).await,
        }
    }
}

impl fmt::Debug for Imports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imports").field("from", &self.from).finish_non_exhaustive()
    }
}

impl Imports {
    /// Nothing is read yet.
    pub(crate) fn new(root: Root, client: Client, from: Vec<CacheFrom>, progress: Handle) -> Self {
        let (loaded, seconds, mounts, fetched) = Default::default();
        Self { root, client, from, progress, loaded, seconds, mounts, fetched }
    }

    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.from.is_empty()
    }

    /// What reading them took so far, seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds.get()
    }

    /// Cache mounts that steps had so far.
    pub(crate) fn used_mounts(&self) -> BTreeSet<UsedMount> {
        self.mounts.borrow().clone()
    }

    /// Bytes of cache mounts that were fetched, and seconds that took.
    pub(crate) fn fetched_mounts(&self) -> (u64, f64) {
        self.fetched.get()
    }

    /// The record of `key` in the first cache that has it, and when it was recorded. Where its layer is, is remembered here.
    pub(crate) async fn record(&self, key: CacheKey) -> Option<(Record, i64)> {
        let imports = self.loaded().await;
        // One that has the layer as well saves more.
        let having = imports.iter().filter_map(|import| Some((import, import.index.steps.get(&key)?)));
        let (import, step) =
            having.min_by_key(|(import, step)| !import.blobs.contains_key(&step.record.layer))?;
        if let Err(error) = self.adopt(import, key, step) {
            tracing::warn!("could not keep an imported record: {error}");
        }
        Some((step.record.clone(), step.stored))
    }

    /// What a selector picked of a result, if a cache knows.
    pub(crate) async fn memo(&self, result: ResultDigest, selector: ContentDigest) -> Option<ContentDigest> {
        let imports = self.loaded().await;
        let found = imports.iter().find_map(|import| import.index.memo.get(&(result, selector)).copied())?;
        if let Err(error) = self.root.memo().put_new(&result.0.0, &selector.0, &found.0) {
            tracing::warn!("could not keep an imported selection: {error}");
        }
        Some(found)
    }

    /// The nearest record of what stood in a step's place, if the caches were read.
    pub(crate) fn previous(&self, step: StepId, reads: &[RecordedInput]) -> Option<Record> {
        let steps = self.loaded.get()?.iter().flat_map(|import| import.index.steps.values());
        let mut found: Vec<&CachedStep> = steps.filter(|other| other.step == step.0).collect();
        found.sort_by_key(|step| std::cmp::Reverse(step.stored));
        nearest(found.into_iter().map(|step| step.record.clone()), reads)
    }

    async fn loaded(&self) -> &[Import] {
        self.loaded
            .get_or_init(|| async {
                let begin = Instant::now();
                let all = join_all(self.from.iter().map(|from| self.load(from))).await;
                self.seconds.set(self.seconds.get() + begin.elapsed().as_secs_f64());
                all.into_iter().flatten().collect()
            })
            .await
    }

    async fn load(&self, from: &CacheFrom) -> Option<Import> {
        let name = from.name();
        let task = self.progress.task(&format!("importing cache manifest from {name}"));
        match self.read(from).await {
            Ok((index, place)) => {
                task.done();
                let (origin, blobs, mounts) = (from.origin.clone(), index.blobs(), from.mounts);
                Some(Import { name, origin, index, blobs, place, mounts })
            }
            Err(error) => {
                // The first build of all finds no cache.
                let message = format!("could not import cache from {name}: {error}");
                match error {
                    CacheError::Missing(_) => tracing::info!("{message}"),
                    _ => tracing::warn!("{message}"),
                }
                task.failed(&message);
                None
            }
        }
    }

    async fn read(&self, from: &CacheFrom) -> Result<(CacheIndex, Place), CacheError> {
        match &from.origin {
            Origin::Registry { reference, .. } => {
                let index = registry::read(&self.client, reference).await?;
                Ok((index, Place::Registry(reference.clone())))
            }
            Origin::Objects(objects) => {
                let store = object::Store::open(objects, &self.client)?;
                Ok((store.read().await?, Place::Objects(store)))
            }
            Origin::Local { src, tag, digest } => {
                let (layout, index) = local::read(&self.root, src, tag, digest.as_ref())?;
                Ok((index, Place::Layout(Arc::new(layout))))
            }
        }
    }

    /// Keeps an imported record, and where its layer is.
    fn adopt(&self, import: &Import, key: CacheKey, step: &CachedStep) -> Result<(), StoreError> {
        let layer = step.record.layer;
        if let (Place::Registry(reference), Some(blob)) = (&import.place, import.blobs.get(&layer)) {
            self.remember(layer, blob, reference)?;
        }
        let bytes = worker::cache::encode(&step.record);
        let new = NewRecord {
            key: key.0.0,
            step: step.step.0,
            diff_id: layer,
            bytes: &bytes,
            description: &step.name,
            seconds: step.record.seconds,
        };
        self.root.records().put_new(&new, &import.name, step.stored)?;
        Ok(())
    }

    fn remember(&self, layer: DiffId, blob: &Descriptor, at: &Reference) -> Result<(), StoreError> {
        let layers = self.root.layers();
        let known = layers.blobs_of(&layer)?;
        let is_known = known.iter().any(|known| known.digest == blob.digest);
        // What this host knows of its own layers is not added to by what others say.
        if !is_known && (!known.is_empty() || layers.contains(&layer)?) {
            return Ok(());
        }
        if !is_known {
            layers.remember_blob(
                &layer,
                &LayerBlob {
                    digest: blob.digest,
                    size: blob.size,
                    algorithm: Algorithm::of_media_type(&blob.media_type).unwrap_or(Algorithm::None),
                    media_type: blob.media_type.clone(),
                    level: None,
                    annotations: Default::default(),
                },
            )?;
        }
        layers.remember_location(&blob.digest, &at.registry, &at.repository)
    }

    /// The caches whose blobs are where those of a cache at `target` are.
    pub(super) async fn beside(&self, target: &Target) -> Vec<(&CacheIndex, &Place)> {
        let imports = self.loaded().await.iter().filter(|import| is_beside(&import.origin, target));
        imports.map(|import| (&import.index, &import.place)).collect()
    }

    /// Brings a layer that no registry gave. Caches at registries are none the wiser.
    pub(crate) async fn bring_layer(&self, diff_id: DiffId) -> bool {
        for import in self.loaded().await {
            let Some(blob) = import.blobs.get(&diff_id) else { continue };
            let (speeds, place, blob_size) = (self.root.speeds(), import.place.name(), blob.size);
            let transfer = speeds.begin(&place);
            let brought = match &import.place {
                Place::Registry(_) => continue,
                Place::Layout(layout) => {
                    let (root, layout, blob) = (self.root.clone(), layout.clone(), blob.clone());
                    let brought = pool::spawn(move || layout.bring_layer(&root, diff_id, &blob)).await;
                    brought.map_err(CacheError::from).and_then(|brought| Ok(brought?))
                }
                Place::Objects(store) => store.bring_layer(&self.root, diff_id, blob).await.map(|()| true),
            };
            match brought {
                Ok(true) => {
                    // A compressed form is unpacked when somebody reads it: how long its tar is, its record says.
                    let size = self.root.layers().size(&diff_id).ok().flatten();
                    let records = || import.index.steps.values().map(|step| &step.record);
                    let recorded = || Some(records().find(|record| record.layer == diff_id)?.bytes);
                    transfer.end(size.or_else(recorded).unwrap_or(blob_size));
                    return true;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!("could not take layer {diff_id} from {}: {error}", import.name);
                }
            }
        }
        false
    }
}

fn is_beside(origin: &Origin, target: &Target) -> bool {
    match (origin, target) {
        (Origin::Registry { reference: from, .. }, Target::Registry { reference: to, .. }) => {
            (&from.registry, &from.repository) == (&to.registry, &to.repository)
        }
        (Origin::Local { src, .. }, Target::Local { dest, reset, .. }) => {
            // What is beside it goes with a reset.
            !reset
                && std::fs::canonicalize(src)
                    .is_ok_and(|src| std::fs::canonicalize(dest).is_ok_and(|dest| src == dest))
        }
        (Origin::Objects(from), Target::Objects(to)) => from.has_same_blobs(to),
        _ => false,
    }
}

impl Imports {
    async fn fill_mount(&self, name: &[u8], directory: &Path) -> bool {
        if !self.from.iter().any(|from| from.mounts) {
            return false;
        }
        let name = name_of(name);
        let imports = self.loaded().await.iter().filter(|import| import.mounts);
        let found = imports.filter_map(|import| {
            let mount = import.index.mounts.iter().find(|mount| mount.name == name)?;
            Some((import, mount))
        });
        let Some((import, mount)) = found.max_by_key(|(_, mount)| mount.used) else { return false };
        let task = self.progress.task(&format!("importing cache mount {}", mount.id));
        let begin = Instant::now();
        let loaded =
            load::load(&self.root, mount, directory, |blob| import.place.blob(&self.client, blob)).await;
        let bytes = mount.index.size + mount.packs.iter().map(|pack| pack.size).sum::<u64>();
        let (bytes_before, seconds) = self.fetched.get();
        self.fetched.set((bytes_before + bytes, seconds + begin.elapsed().as_secs_f64()));
        match loaded {
            Ok(()) => task.done(),
            Err(error) => {
                // It begins empty, as it does where there is no cache.
                let message =
                    format!("could not import cache mount {} from {}: {error}", mount.id, import.name);
                tracing::warn!("{message}");
                task.failed(&message);
                return false;
            }
        }
        true
    }
}

impl MountSource for Imports {
    fn fill<'a>(&'a self, name: &'a [u8], directory: &'a Path) -> LocalBoxFuture<'a, bool> {
        self.fill_mount(name, directory).boxed_local()
    }

    fn used(&self, mount: UsedMount) {
        self.mounts.borrow_mut().insert(mount);
    }
}

impl LayerSource for Imports {
    fn bring(&self, diff_id: DiffId) -> LocalBoxFuture<'_, bool> {
        self.bring_layer(diff_id).boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::CacheTo;
    use super::*;

    #[test]
    fn caches_of_one_place_share_their_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let local = dir.path().display();
        for (from, to, expected) in [
            ("example.com/a:main".to_owned(), "type=registry,ref=example.com/a:branch".to_owned(), true),
            ("example.com/a:main".to_owned(), "type=registry,ref=example.com/b:main".to_owned(), false),
            ("example.com/a".to_owned(), format!("type=local,dest={local}"), false),
            (format!("type=local,src={local}"), format!("type=local,dest={local}/.,tag=x"), true),
            (format!("type=local,src={local}"), format!("type=local,dest={local},tag=x,reset=true"), false),
            ("type=fs,root=/c,name=a".to_owned(), "type=fs,root=/c,name=b".to_owned(), true),
            ("type=fs,root=/c,name=a".to_owned(), "type=fs,root=/c,prefix=p,name=a".to_owned(), false),
            ("type=fs,root=/c".to_owned(), "type=fs,root=/d".to_owned(), false),
        ] {
            let (origin, target) =
                (CacheFrom::parse(&from).unwrap().origin, CacheTo::parse(&to).unwrap().target);
            assert_eq!(is_beside(&origin, &target), expected, "{from} {to}");
        }
    }
}

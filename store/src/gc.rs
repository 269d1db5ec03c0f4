//! Pruning: what is here ([`Root::usage`]), and removing of it what is not wanted ([`Root::prune`]).
//!
//! Mark: what named images consist of is *shared*, what live processes hold is *in use*; neither is ever taken. Sweep:
//! of the rest, the least recently used goes first, until the limits are kept. Deciding, deleting the rows and moving
//! the files to the trash happen under the exclusive `locks/gc` (see lease.rs); emptying the trash does not.
//!
//! A prune that is killed leaves files without rows, which are not there for anybody and which the next prune removes,
//! and trash, which the next process removes. Cache records are small and outlive their layers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::{Descriptor, DiffId, Digest};
use rustix::fs::FlockOperation;

use crate::directory::{self, Directories, DirectoryId, DirectoryKind};
use crate::error::StoreError;
use crate::layer::digest_of;
use crate::lease::Item;
use crate::root::{RESERVE, Root, make_reserve, now, remove_tree};

/// Records, memos and pins that were not used for this long go with any prune, seconds.
const FORGET_AFTER: i64 = 180 * 24 * 3600;

/// What kind of thing takes up space. Named as BuildKit names them where it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UsageKind {
    /// A layer: its tar, indexes and directory.
    Layer,
    /// A config, manifest or compressed layer.
    Blob,
    /// `RUN --mount=type=cache`.
    CacheMount,
    /// A clone.
    Git,
    /// A stat cache of a local context.
    Local,
}

impl UsageKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Layer, Self::Blob, Self::CacheMount, Self::Git, Self::Local];

    /// The name in lists and filters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "regular",
            Self::Blob => "blob",
            Self::CacheMount => "exec.cachemount",
            Self::Git => "source.git.checkout",
            Self::Local => "source.local",
        }
    }
}

impl fmt::Display for UsageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that takes up space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What kind of thing.
    pub kind: UsageKind,
    /// Its name: a hash in hex.
    pub id: String,
    /// Bytes on disk.
    pub size: u64,
    /// When it was made, seconds since the epoch.
    pub created: i64,
    /// When it was last used, to the hour.
    pub last_used: i64,
    /// A live process holds it.
    pub in_use: bool,
    /// An image consists of it.
    pub shared: bool,
    /// What made it, for people.
    pub description: String,
    target: Target,
}

impl Usage {
    /// Whether a prune may take it.
    pub fn is_reclaimable(&self) -> bool {
        !self.in_use && !self.shared
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Layer(DiffId),
    Blob(Digest),
    Directory(DirectoryId),
    File(PathBuf),
}

/// What to remove. The default removes all that is reclaimable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Also images without a name, and what is remembered of what is not here.
    pub all: bool,
    /// Only what was not used for so long.
    pub unused_for: Option<Duration>,
    /// Keep at least so many bytes.
    pub reserved_space: Option<u64>,
    /// Use at most so many bytes.
    pub max_used_space: Option<u64>,
    /// Leave at least so many bytes of the disk free.
    pub min_free_space: Option<u64>,
    /// Only what one of these says; empty: anything.
    pub filters: Vec<Filter>,
}

/// Picks things to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Whose ID starts so.
    Id(String),
    /// Of this kind.
    Kind(UsageKind),
    /// Whose description has this in it.
    Description(String),
}

impl Filter {
    fn picks(&self, usage: &Usage) -> bool {
        match self {
            Self::Id(prefix) => usage.id.starts_with(prefix.strip_prefix("sha256:").unwrap_or(prefix)),
            Self::Kind(kind) => usage.kind == *kind,
            Self::Description(part) => usage.description.contains(part.as_str()),
        }
    }
}

impl Policy {
    /// How many bytes of `used` may stay; `None`: as few as possible.
    fn keep(&self, used: u64, free: u64) -> Option<u64> {
        if self.max_used_space.is_none() && self.min_free_space.is_none() {
            return self.reserved_space;
        }
        let keep = self.max_used_space.unwrap_or(u64::MAX);
        let lacking = self.min_free_space.unwrap_or(0).saturating_sub(free);
        let keep = if lacking > 0 { keep.min(used.saturating_sub(lacking)) } else { keep };
        Some(keep.max(self.reserved_space.unwrap_or(0)))
    }

    /// Which of `usages` go: positions, the first to go first.
    fn choose(&self, usages: &[Usage], free: u64, now: i64) -> Vec<usize> {
        let used: u64 = usages.iter().map(|usage| usage.size).sum();
        let before = self
            .unused_for
            .map(|unused| now.saturating_sub(i64::try_from(unused.as_secs()).unwrap_or(i64::MAX)));
        let mut candidates: Vec<usize> = (0..usages.len())
            .filter(|at| {
                let usage = &usages[*at];
                usage.is_reclaimable()
                    && before.is_none_or(|before| usage.last_used <= before)
                    && (self.filters.is_empty() || self.filters.iter().any(|filter| filter.picks(usage)))
            })
            .collect();
        let Some(keep) = self.keep(used, free) else { return candidates };
        // Of those used at the same time, what lies on top of others first.
        candidates.sort_by_key(|at| (usages[*at].last_used, std::cmp::Reverse(usages[*at].created)));
        let mut left = used;
        candidates
            .into_iter()
            .take_while(|at| {
                let goes = left > keep;
                left = left.saturating_sub(usages[*at].size);
                goes
            })
            .collect()
    }
}

/// What a prune did.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// What was removed.
    pub removed: Vec<Usage>,
    /// Images without a name that were forgotten.
    pub images: Vec<Digest>,
    /// Bytes that came free.
    pub bytes: u64,
}

/// What must stay.
#[derive(Debug, Default)]
struct Marks {
    layers: HashSet<DiffId>,
    blobs: HashSet<Digest>,
    directories: HashSet<DirectoryId>,
}

impl Root {
    /// All that takes up space, in no order.
    pub fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        let sizes = self.directory_sizes()?;
        // Without the lock: it is only to look at.
        let held = self.held()?;
        self.usages(&held, true, &sizes)
    }

    /// What [`Root::prune`] with this policy would remove.
    pub fn prune_dry(&self, policy: &Policy) -> Result<Pruned, StoreError> {
        let sizes = self.directory_sizes()?;
        let held = self.held()?;
        let usages = self.usages(&held, !policy.all, &sizes)?;
        let chosen = policy.choose(&usages, self.free_space()?, now());
        let images = if policy.all { self.nameless(&held)? } else { Vec::new() };
        let removed: Vec<Usage> = chosen.into_iter().map(|at| usages[at].clone()).collect();
        Ok(Pruned { bytes: removed.iter().map(|usage| usage.size).sum(), removed, images })
    }

    /// Removes what `policy` says.
    pub fn prune(&self, policy: &Policy) -> Result<Pruned, StoreError> {
        // On a full disk nothing could be written, not even what is to be deleted.
        let reserve = self.path().join(RESERVE);
        if self.free_space()? < 1 << 20 {
            let _ = fs::remove_file(&reserve);
        }
        self.flush()?;
        let sizes = self.directory_sizes()?;
        let trash = self.temp_path("trash")?;
        DirBuilder::new().mode(0o700).create(&trash).map_err(StoreError::io("make", &trash))?;

        let lock = self.gc_lock(FlockOperation::LockExclusive)?;
        let held = self.held()?;
        let images = if policy.all { self.nameless(&held)? } else { Vec::new() };
        let usages = self.usages(&held, !policy.all, &sizes)?;
        let chosen = policy.choose(&usages, self.free_space()?, now());
        let removed: Vec<Usage> = chosen.into_iter().map(|at| usages[at].clone()).collect();
        self.delete_rows(policy, &removed, &images, &held)?;
        let mut trash = Trash { dir: trash, next: 0 };
        for usage in &removed {
            for path in self.files_of(&usage.target) {
                trash.take(&path)?;
            }
        }
        self.take_orphans(&mut trash)?;
        drop(lock);

        remove_tree(&trash.dir).map_err(StoreError::io("remove", &trash.dir))?;
        if !reserve.exists() {
            make_reserve(self.path());
        }
        Ok(Pruned { bytes: removed.iter().map(|usage| usage.size).sum(), removed, images })
    }

    fn free_space(&self) -> Result<u64, StoreError> {
        let stat = rustix::fs::statvfs(self.path())
            .map_err(|error| StoreError::io("read", self.path())(error.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Marks an image's documents and layers.
    fn mark_image(&self, descriptor: &Descriptor, marks: &mut Marks) -> Result<(), StoreError> {
        let (mut manifests, mut documents) = (Vec::new(), Vec::new());
        self.images().collect(descriptor, 0, &mut manifests, &mut documents)?;
        marks.blobs.extend(documents);
        for (_, manifest) in manifests {
            marks.blobs.insert(manifest.config.digest);
            for layer in &manifest.layers {
                marks.blobs.insert(layer.digest);
                marks.layers.insert(DiffId(layer.digest));
            }
            match self.images().config(&manifest.config) {
                Ok(config) => marks.layers.extend(config.rootfs.diff_ids),
                Err(StoreError::Missing { .. } | StoreError::Document { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What named images consist of; with `nameless` the others too.
    fn mark_images(&self, nameless: bool) -> Result<Marks, StoreError> {
        let rows: Vec<(String, bool)> = self.inner.db.read(|db| {
            db.prepare(
                "SELECT descriptor, EXISTS(SELECT 1 FROM tags WHERE tags.digest = images.digest) FROM images",
            )?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
        })?;
        let mut marks = Marks::default();
        for (descriptor, named) in rows {
            if let (true, Ok(descriptor)) = (named || nameless, serde_json::from_str(&descriptor)) {
                self.mark_image(&descriptor, &mut marks)?;
            }
        }
        Ok(marks)
    }

    /// What processes hold, with all that belongs to it.
    fn mark_held(&self, held: &HashSet<Item>) -> Result<Marks, StoreError> {
        let mut marks = Marks::default();
        for item in held {
            match item {
                Item::Layer(diff_id) => {
                    marks.layers.insert(*diff_id);
                }
                Item::Blob(digest) => {
                    marks.blobs.insert(*digest);
                }
                Item::Directory(id) => {
                    marks.directories.insert(*id);
                }
                Item::Image(digest) => {
                    marks.blobs.insert(*digest);
                    if let Some(descriptor) = self.images().get(digest)? {
                        self.mark_image(&descriptor, &mut marks)?;
                    }
                }
            }
        }
        Ok(marks)
    }

    /// Images without a name that nobody holds.
    fn nameless(&self, held: &HashSet<Item>) -> Result<Vec<Digest>, StoreError> {
        let rows: Vec<Option<Digest>> = self.inner.db.read(|db| {
            db.prepare(
                "SELECT digest FROM images WHERE digest NOT IN (SELECT digest FROM tags) ORDER BY stored",
            )?
            .query_map([], |row| Ok(digest_of(row.get_ref(0)?.as_blob()?)))?
            .collect()
        })?;
        let free =
            |digest: &Digest| !held.contains(&Item::Image(*digest)) && !held.contains(&Item::Blob(*digest));
        Ok(rows.into_iter().flatten().filter(free).collect())
    }

    fn usages(
        &self,
        held: &HashSet<Item>,
        nameless: bool,
        sizes: &HashMap<PathBuf, u64>,
    ) -> Result<Vec<Usage>, StoreError> {
        let used = self.mark_held(held)?;
        let shared = self.mark_images(nameless)?;
        let mut usages = Vec::new();

        let layers: Vec<Option<Usage>> = self.inner.db.read(|db| {
            db.prepare(
                "SELECT diff_id, tar_size + index_size, created, last_used,
                (SELECT description FROM records WHERE records.diff_id = layers.diff_id LIMIT 1) FROM layers",
            )?
            .query_map([], |row| {
                let Some(diff_id) = digest_of(row.get_ref(0)?.as_blob()?).map(DiffId) else {
                    return Ok(None);
                };
                Ok(Some(Usage {
                    kind: UsageKind::Layer,
                    id: diff_id.0.hex(),
                    size: row.get(1)?,
                    created: row.get(2)?,
                    last_used: row.get(3)?,
                    in_use: used.layers.contains(&diff_id),
                    shared: shared.layers.contains(&diff_id),
                    description: row.get::<_, Option<String>>(4)?.unwrap_or_default(),
                    target: Target::Layer(diff_id),
                }))
            })?
            .collect()
        })?;
        usages.extend(layers.into_iter().flatten());
        // What mounters made of a layer is the layer's; they add to its name.
        let mut prepared: HashMap<String, u64> = HashMap::new();
        for (path, size) in
            sizes.iter().filter(|(path, _)| !path.starts_with(self.path().join("directories")))
        {
            *prepared.entry(stem(path)).or_default() += size;
        }
        for usage in &mut usages {
            let Target::Layer(diff_id) = &usage.target else { continue };
            usage.size += prepared.get(&diff_id.0.hex()).copied().unwrap_or(0);
        }

        let blobs: Vec<(Option<Digest>, u64, i64, i64)> = self.inner.db.read(|db| {
            db.prepare("SELECT digest, size, created, last_used FROM blobs")?
                .query_map([], |row| {
                    Ok((digest_of(row.get_ref(0)?.as_blob()?), row.get(1)?, row.get(2)?, row.get(3)?))
                })?
                .collect()
        })?;
        for (digest, size, created, last_used) in blobs {
            let Some(digest) = digest else { continue };
            usages.push(Usage {
                kind: UsageKind::Blob,
                id: digest.hex(),
                size,
                created,
                last_used,
                in_use: used.blobs.contains(&digest),
                shared: shared.blobs.contains(&digest),
                description: String::new(),
                target: Target::Blob(digest),
            });
        }

        for row in self.directories().list()? {
            usages.push(Usage {
                kind: match row.id.kind {
                    DirectoryKind::CacheMount => UsageKind::CacheMount,
                    DirectoryKind::Git => UsageKind::Git,
                },
                id: hex::encode(row.id.name),
                size: sizes.get(&directory::path(self.path(), &row.id)).copied().unwrap_or(0),
                created: row.created,
                last_used: row.last_used,
                in_use: used.directories.contains(&row.id),
                shared: false,
                description: row.description,
                target: Target::Directory(row.id),
            });
        }

        for path in children(&self.path().join("stat")) {
            let Ok(meta) = fs::metadata(&path) else { continue };
            usages.push(Usage {
                kind: UsageKind::Local,
                id: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                size: meta.len(),
                created: meta.mtime(),
                last_used: meta.mtime().max(meta.atime()),
                in_use: false,
                shared: false,
                description: "stat cache".to_owned(),
                target: Target::File(path),
            });
        }
        Ok(usages)
    }

    fn delete_rows(
        &self,
        policy: &Policy,
        removed: &[Usage],
        images: &[Digest],
        held: &HashSet<Item>,
    ) -> Result<(), StoreError> {
        let epoch = self.epoch();
        let old = now() - FORGET_AFTER;
        let lost: Vec<Vec<u8>> = self.inner.db.read(|db| {
            db.prepare("SELECT diff_id FROM layers WHERE epoch IS NOT NULL AND epoch <> ?1")?
                .query_map([epoch.bytes()], |row| row.get(0))?
                .collect()
        })?;
        self.inner.db.write(|tx| {
            for usage in removed {
                match &usage.target {
                    Target::Layer(diff_id) => {
                        tx.prepare_cached("DELETE FROM layers WHERE diff_id = ?1")?
                            .execute([diff_id.0.bytes()])?;
                        self.inner.indexes.remove(diff_id);
                    }
                    Target::Blob(digest) => {
                        tx.prepare_cached("DELETE FROM blobs WHERE digest = ?1")?
                            .execute([digest.bytes()])?;
                    }
                    Target::Directory(id) => Directories::forget(tx, id)?,
                    Target::File(_) => {}
                }
            }
            for digest in images {
                tx.prepare_cached("DELETE FROM images WHERE digest = ?1")?.execute([digest.bytes()])?;
            }
            // Written before a crash of the machine: not there for anybody who asks.
            for diff_id in &lost {
                if digest_of(diff_id).is_none_or(|digest| !held.contains(&Item::Layer(DiffId(digest)))) {
                    tx.prepare_cached("DELETE FROM layers WHERE diff_id = ?1")?.execute([diff_id])?;
                }
            }
            let gone = "diff_id NOT IN (SELECT diff_id FROM layers)";
            tx.execute(&format!("DELETE FROM records WHERE last_used < ?1 AND {gone}"), [old])?;
            tx.execute("DELETE FROM memo WHERE last_used < ?1", [old])?;
            tx.execute("DELETE FROM pins WHERE time < ?1", [old])?;
            tx.execute("DELETE FROM locations WHERE seen < ?1", [old])?;
            if policy.all && policy.filters.is_empty() {
                tx.execute(&format!("DELETE FROM records WHERE {gone}"), [])?;
                tx.execute("DELETE FROM memo", [])?;
                tx.execute("DELETE FROM pins", [])?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn files_of(&self, target: &Target) -> Vec<PathBuf> {
        match target {
            Target::Layer(diff_id) => self.layers().files(diff_id).into(),
            Target::Blob(digest) => vec![self.blobs().path(digest)],
            Target::Directory(id) => vec![directory::path(self.path(), id)],
            Target::File(path) => vec![path.clone()],
        }
    }

    /// Files that have no row: what a crash or a lost database left. The caller has the lock, so nobody is between the
    /// renaming of a file and the writing of its row.
    fn take_orphans(&self, trash: &mut Trash) -> Result<(), StoreError> {
        let keys = |sql: &str| -> Result<HashSet<String>, StoreError> {
            Ok(self.inner.db.read(|db| {
                db.prepare(sql)?.query_map([], |row| Ok(hex::encode(row.get_ref(0)?.as_blob()?)))?.collect()
            })?)
        };
        let layers = keys("SELECT diff_id FROM layers")?;
        let blobs = keys("SELECT digest FROM blobs")?;
        let directories = keys("SELECT name FROM directories")?;
        let held: HashSet<String> = {
            let marks = self.mark_held(&self.held()?)?;
            let layers = marks.layers.iter().map(|diff_id| diff_id.0.hex());
            let directories = marks.directories.iter().map(|id| hex::encode(id.name));
            layers.chain(marks.blobs.iter().map(Digest::hex)).chain(directories).collect()
        };
        let mut orphans = BTreeSet::new();
        for (dir, rows) in [("blobs", &blobs), ("layers", &layers), ("directories", &directories)] {
            for path in children(&self.path().join(dir)).iter().flat_map(|dir| children(dir)) {
                if !rows.contains(&stem(&path)) && !held.contains(&stem(&path)) {
                    orphans.insert(path);
                }
            }
        }
        for path in children(&self.path().join("mounts")) {
            if !layers.contains(&stem(&path)) && !held.contains(&stem(&path)) {
                orphans.insert(path);
            }
        }
        orphans.iter().try_for_each(|path| trash.take(path))
    }

    /// Bytes on disk of what is made of each layer and of each kept directory. Slow: they are walked.
    fn directory_sizes(&self) -> Result<HashMap<PathBuf, u64>, StoreError> {
        let kept = children(&self.path().join("directories"));
        let layers = children(&self.path().join("layers"));
        let images = layers
            .iter()
            .flat_map(|dir| children(dir))
            .filter(|path| path.extension().is_some_and(|e| e == "erofs"));
        let dirs = kept.iter().flat_map(|kind| children(kind)).chain(children(&self.path().join("mounts")));
        Ok(dirs.chain(images).map(|path| (path.clone(), disk_size(&path))).collect())
    }
}

/// A directory of the pruning process into which things are moved.
struct Trash {
    dir: PathBuf,
    next: u64,
}

impl Trash {
    fn take(&mut self, path: &Path) -> Result<(), StoreError> {
        let to = self.dir.join(self.next.to_string());
        self.next += 1;
        match fs::rename(path, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(StoreError::io("remove", path)),
        }
    }
}

/// The name without what stands after its first dot.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn disk_size(dir: &Path) -> u64 {
    let mut size = 0;
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        size += meta.blocks() * 512;
        if meta.is_dir() {
            todo.extend(children(&path));
        }
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer;
    use crate::record::NewRecord;
    use crate::root::tests::root;
    use crate::tag;
    use image::Reference;

    /// The root as a later process sees it, which holds nothing.
    fn reopen(root: Root) -> Root {
        let path = root.path().to_owned();
        drop(root);
        Root::open(&path).unwrap()
    }

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    fn set_used(root: &Root, diff_id: &DiffId, time: i64) {
        let args = (time, diff_id.0.bytes());
        root.inner
            .db
            .write(|tx| tx.execute("UPDATE layers SET last_used = ?1 WHERE diff_id = ?2", args))
            .unwrap();
    }

    #[test]
    fn what_is_named_or_held_stays_and_the_rest_goes() {
        let (_dir, first) = root();
        let named = tag::tests::store(&first, 0);
        let nameless = tag::tests::store(&first, 1);
        first.tags().set(&reference("a"), &named).unwrap();
        first.images().add(&nameless).unwrap();
        let loose = layer::tests::store(&first, 2).diff_id;
        let root = reopen(first);
        let other = Root::open(root.path()).unwrap();
        let held = layer::tests::store(&other, 3).diff_id;

        let dry = root.prune_dry(&Policy::default()).unwrap();
        let pruned = root.prune(&Policy::default()).unwrap();
        assert_eq!(dry.removed, pruned.removed);
        assert_eq!(pruned.removed.iter().map(|usage| usage.id.clone()).collect::<Vec<_>>(), [loose.0.hex()]);
        assert!(pruned.bytes >= 2048);
        assert!(!root.layers().contains(&loose).unwrap() && !root.layers().tar_path(&loose).exists());
        root.layers().index(&held).unwrap();

        let pruned = root.prune(&Policy { all: true, ..Policy::default() }).unwrap();
        assert_eq!(pruned.images, [nameless.digest]);
        // Its layer, manifest and config.
        assert_eq!(pruned.removed.len(), 3);
        let images = root.images().list().unwrap();
        assert_eq!(images.len(), 1);
        root.layers().index(&images[0].manifests[0].config.rootfs.diff_ids[0]).unwrap();
        drop(other);
        assert_eq!(root.prune(&Policy::default()).unwrap().removed.len(), 1);
        assert_eq!(fs::read_dir(root.temp_dir().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_only_as_much_as_must() {
        let (_dir, first) = root();
        let layers: Vec<DiffId> = (0..4).map(|zeros| layer::tests::store(&first, zeros).diff_id).collect();
        for (n, at) in [(0, 3), (1, 1), (2, 2), (3, 0)] {
            set_used(&first, &layers[n], at);
        }
        let root = reopen(first);
        let used: u64 = root.usage().unwrap().iter().map(|usage| usage.size).sum();
        let policy = Policy { max_used_space: Some(used - 1), ..Policy::default() };
        assert_eq!(root.prune(&policy).unwrap().removed[0].id, layers[3].0.hex());
        assert!(root.prune(&policy).unwrap().removed.is_empty());
        let unused = Policy { unused_for: Some(Duration::from_secs(60)), ..Policy::default() };
        set_used(&root, &layers[0], now());
        assert_eq!(root.prune(&unused).unwrap().removed.len(), 2);
        assert!(root.layers().contains(&layers[0]).unwrap());
    }

    #[test]
    fn limits_say_how_much_stays() {
        let policy = |reserved, max, free| Policy {
            reserved_space: reserved,
            max_used_space: max,
            min_free_space: free,
            ..Policy::default()
        };
        for (reserved, max, min_free, keep) in [
            (None, None, None, None),
            (Some(30), None, None, Some(30)),
            (None, Some(50), None, Some(50)),
            (Some(60), Some(50), None, Some(60)),
            // 100 used, 10 free.
            (None, None, Some(5), Some(u64::MAX)),
            (None, None, Some(25), Some(85)),
            (None, Some(50), Some(25), Some(50)),
            (None, Some(90), Some(25), Some(85)),
            (Some(95), None, Some(25), Some(95)),
        ] {
            assert_eq!(
                policy(reserved, max, min_free).keep(100, 10),
                keep,
                "{reserved:?} {max:?} {min_free:?}"
            );
        }
    }

    #[test]
    fn filters_pick_by_kind_and_by_id() {
        let (_dir, first) = root();
        let layer = layer::tests::store(&first, 0).diff_id;
        first.blobs().put_bytes(b"blob").unwrap();
        let mount = first
            .directories()
            .open(DirectoryKind::CacheMount, b"/root/.cache", "cache /root/.cache")
            .unwrap();
        fs::write(mount.path().join("f"), vec![1; 10_000]).unwrap();
        let id = mount.id();
        drop(mount);
        let root = reopen(first);
        let usages = root.usage().unwrap();
        assert_eq!(usages.len(), 3);
        assert!(usages.iter().any(|usage| usage.kind == UsageKind::CacheMount && usage.size > 10_000));
        let only = |filter| Policy { filters: vec![filter], ..Policy::default() };
        let removed = root.prune(&only(Filter::Kind(UsageKind::CacheMount))).unwrap().removed;
        assert_eq!(
            removed.iter().map(|usage| &usage.description).collect::<Vec<_>>(),
            ["cache /root/.cache"]
        );
        assert!(!directory::path(root.path(), &id).exists());
        assert_eq!(root.prune(&only(Filter::Id(layer.0.short()))).unwrap().removed.len(), 1);
        assert_eq!(root.usage().unwrap().len(), 1);
    }

    #[test]
    fn records_outlive_their_layers_until_all_goes() {
        let (_dir, first) = root();
        let diff_id = layer::tests::store(&first, 0).diff_id;
        let record = NewRecord { key: [1; 32], step: [1; 32], diff_id, bytes: b"x", description: "RUN x" };
        first.records().put(&record).unwrap();
        let root = reopen(first);
        assert_eq!(root.prune(&Policy::default()).unwrap().removed[0].description, "RUN x");
        assert!(root.records().get(&[1; 32]).unwrap().is_some());
        root.prune(&Policy { all: true, ..Policy::default() }).unwrap();
        assert!(root.records().get(&[1; 32]).unwrap().is_none());
    }

    #[test]
    fn files_without_rows_go() {
        let (_dir, first) = root();
        let diff_id = layer::tests::store(&first, 0).diff_id;
        let kept = layer::tests::store(&first, 1).diff_id;
        first.hold([kept.into()]).unwrap();
        // Mounters add to the name.
        for name in ["", ".0123456789abcdef"] {
            let mount = format!("{}{name}", first.layers().mount_path(&diff_id).display());
            fs::create_dir_all(Path::new(&mount).join("usr")).unwrap();
            fs::write(
                first.layers().erofs_path(&diff_id).with_extension(format!("x{name}.erofs")),
                vec![1; 5000],
            )
            .unwrap();
        }
        let usages = first.usage().unwrap();
        assert!(usages.iter().any(|usage| usage.id == diff_id.0.hex() && usage.size > 10_000));
        first.blobs().put_bytes(b"blob").unwrap();
        // The database is lost.
        let path = first.path().to_owned();
        drop(first);
        for file in ["meta.db", "meta.db-wal", "meta.db-shm"] {
            let _ = fs::remove_file(path.join(file));
        }
        let root = Root::open(&path).unwrap();
        layer::tests::store(&root, 1);
        root.prune(&Policy::default()).unwrap();
        assert!(root.layers().contains(&kept).unwrap());
        for dir in ["blobs/sha256", "mounts"] {
            assert_eq!(fs::read_dir(path.join(dir)).unwrap().count(), 0, "{dir}");
        }
        assert_eq!(fs::read_dir(path.join("layers/sha256")).unwrap().count(), 2);
    }

    /// Fault D15: pruning while others store and use the same layers.
    #[test]
    fn a_prune_never_takes_what_another_is_using() {
        let (_dir, first) = root();
        let path = first.path().to_owned();
        drop(first);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let builders: Vec<_> = (0..3)
                .map(|n| {
                    let path = &path;
                    scope.spawn(move || {
                        for round in 0..40 {
                            let root = Root::open(path).unwrap();
                            let zeros = round % 5;
                            let tar = layer::tests::tar(zeros);
                            let diff_id = DiffId(Digest::of(&tar));
                            let _lease = root.lease([diff_id.into()]).unwrap();
                            if !root.layers().contains(&diff_id).unwrap() {
                                layer::tests::store(&root, zeros);
                            }
                            let image = tag::tests::store(&root, zeros);
                            let name = format!("t{zeros}-{n}");
                            root.tags().set(&reference(&name), &image).unwrap();
                            root.layers().index(&diff_id).unwrap();
                            root.layers().open_tar(&diff_id).unwrap();
                            assert_eq!(root.images().resolve(&name).unwrap(), image);
                            assert!(root.tags().remove(&reference(&name)).unwrap());
                        }
                    })
                })
                .collect();
            let pruner = scope.spawn(|| {
                let root = Root::open(&path).unwrap();
                let mut removed = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    removed += root.prune(&Policy { all: true, ..Policy::default() }).unwrap().removed.len();
                }
                removed
            });
            let results: Vec<_> = builders.into_iter().map(|builder| builder.join()).collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(pruner.join().unwrap() > 0);
            for result in results {
                result.unwrap();
            }
        });
    }
}

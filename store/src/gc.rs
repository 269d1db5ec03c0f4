//! Pruning: removing what is not wanted ([`Root::prune`]) of what is here ([`Root::usage`]).
//!
//! Mark: what named images consist of is *shared*, what live processes hold is *in use*; neither is ever taken. Sweep:
//! of the rest, the least recently used goes first ([`Usage::worth`]: what took long to make counts as used later),
//! until the limits are kept. Deciding, deleting the rows and moving
//! the files to the trash happen under the exclusive `locks/gc` (see lease.rs); emptying the trash does not.
//!
//! A prune that is killed leaves files without rows, which are not there for anybody and which the next prune removes,
//! and trash, which the next process removes. Cache records are small and outlive their layers.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::{DiffId, Digest};
use rustix::fs::{FlockOperation, StatVfs};

use crate::directory::{self, Directories};
use crate::error::StoreError;
use crate::layer::digest_of;
use crate::lease::Item;
use crate::root::{RESERVE, Root, make_reserve, now};
use crate::temp::remove_tree;
use crate::usage::{Target, children, stem};
pub use crate::usage::{Usage, UsageKind};

/// With fewer free bytes a disk counts as full: a database and a directory need some to grow.
const LITTLE: u64 = 1 << 20;

/// Records, memos and pins that were not used for this long go with any prune, seconds.
const FORGET_AFTER: i64 = 180 * 24 * 3600;

/// A file of no finished name that is older than this, seconds, is not going to be finished.
const UNFINISHED: u64 = 3600;

/// Mount points that no step had for this long go, seconds. Steps set their time (`worker/src/exec/skeleton.rs`).
const UNUSED_SKELETON: u64 = 30 * 24 * 3600;

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
    /// What was used since then, seconds since the epoch, goes after all else.
    pub spare_since: Option<i64>,
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
        candidates.sort_by_key(|at| {
            let usage = &usages[*at];
            let spared = self.spare_since.is_some_and(|since| usage.last_used >= since);
            // Of those used at the same time, what lies on top of others first.
            (spared, usage.worth(), std::cmp::Reverse(usage.created))
        });
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

impl Root {
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
        if is_full(self.path()) {
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

        self.locks().sweep();
        self.sweep_leftovers();
        remove_tree(&trash.dir).map_err(StoreError::io("remove", &trash.dir))?;
        if !reserve.exists() {
            make_reserve(self.path());
        }
        Ok(Pruned { bytes: removed.iter().map(|usage| usage.size).sum(), removed, images })
    }

    fn free_space(&self) -> Result<u64, StoreError> {
        let stat = rustix::fs::statvfs(self.path())
            .map_err(|error| StoreError::io("read", self.path())(error.into()))?;
        Ok(free_bytes(&stat))
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
            tx.execute("DELETE FROM blocks WHERE blob NOT IN (SELECT digest FROM blobs)", [])?;
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
}

impl Root {
    /// Mount points that no step had for long, and files that killed processes did not finish. All can be made again, so
    /// what cannot be removed stays.
    fn sweep_leftovers(&self) {
        let older = |path: &Path, seconds: u64| {
            let modified = fs::symlink_metadata(path).and_then(|meta| meta.modified());
            modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > seconds))
        };
        for path in children(&self.path().join("skeletons")) {
            let unfinished = path.extension().is_some_and(|extension| extension == "tmp");
            if older(&path, if unfinished { UNFINISHED } else { UNUSED_SKELETON }) {
                let _ = remove_tree(&path);
            }
        }
        for path in children(self.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') && name.ends_with(".tmp") && path.is_file() && older(&path, UNFINISHED) {
                let _ = fs::remove_file(&path);
            }
        }
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

/// Whether the file system that `path` is on has no space worth speaking of left, or no inode.
pub fn is_full(path: &Path) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|stat| free_bytes(&stat) < LITTLE || (stat.f_files > 0 && stat.f_favail == 0))
}

fn free_bytes(stat: &StatVfs) -> u64 {
    stat.f_bavail.saturating_mul(stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::DirectoryKind;
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
    fn what_took_long_to_make_stays_longer() {
        let (_dir, first) = root();
        let layers: Vec<DiffId> = (0..3).map(|zeros| layer::tests::store(&first, zeros).diff_id).collect();
        // The oldest took minutes, the next nothing; all are small.
        for (n, seconds) in [(0, 300.0), (1, 0.0), (2, 0.0)] {
            let key = [n as u8; 32];
            let record =
                NewRecord { key, step: key, diff_id: layers[n], bytes: b"", description: "", seconds };
            first.records().put(&record).unwrap();
            set_used(&first, &layers[n], 1_000_000 + n as i64);
        }
        let root = reopen(first);
        let used: u64 = root.usage().unwrap().iter().map(|usage| usage.size).sum();
        let spared =
            Policy { max_used_space: Some(used - 1), spare_since: Some(1_000_001), ..Policy::default() };
        assert_eq!(root.prune_dry(&spared).unwrap().removed[0].id, layers[0].0.hex());
        let policy = Policy { max_used_space: Some(used - 1), ..Policy::default() };
        assert_eq!(root.prune(&policy).unwrap().removed[0].id, layers[1].0.hex());
    }

    #[test]
    fn leftovers_of_killed_processes_go() {
        let (_dir, root) = root();
        let skeletons = root.path().join("skeletons");
        let old = std::time::SystemTime::now() - Duration::from_secs(UNUSED_SKELETON + 60);
        let paths = ["old", "new", "old.1.2.tmp"].map(|name| skeletons.join(name));
        let files = [".last-build.json.7.tmp", ".other"].map(|name| root.path().join(name));
        paths.iter().for_each(|path| fs::create_dir_all(path.join("proc")).unwrap());
        files.iter().for_each(|path| fs::write(path, "").unwrap());
        for path in [&paths[0], &paths[2], &files[0], &files[1]] {
            fs::File::open(path).unwrap().set_modified(old).unwrap();
        }
        root.prune(&Policy::default()).unwrap();
        assert_eq!(paths.map(|path| path.exists()), [false, true, false]);
        assert_eq!(files.map(|path| path.exists()), [false, true]);
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
        let record = NewRecord {
            key: [1; 32],
            step: [1; 32],
            diff_id,
            bytes: b"x",
            description: "RUN x",
            seconds: 0.0,
        };
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

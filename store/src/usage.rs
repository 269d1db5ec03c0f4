//! What takes up space, whose it is, and what of it must stay.
//!
//! What named images consist of is *shared*, what live processes hold is *in use*.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use image::{Descriptor, DiffId, Digest};

use crate::directory::{self, DirectoryId, DirectoryKind};
use crate::error::StoreError;
use crate::layer::digest_of;
use crate::lease::Item;
use crate::root::Root;

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
    /// What is left of a step that failed.
    Sandbox,
}

impl UsageKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Layer, Self::Blob, Self::CacheMount, Self::Git, Self::Local, Self::Sandbox];

    /// The name in lists and filters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "regular",
            Self::Blob => "blob",
            Self::CacheMount => "exec.cachemount",
            Self::Git => "source.git.checkout",
            Self::Local => "source.local",
            Self::Sandbox => "exec.sandbox",
        }
    }
}

impl fmt::Display for UsageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that takes up space.
#[derive(Clone, Debug, PartialEq)]
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
    /// How long that took; 0 where it is not known.
    pub seconds: f64,
    pub(crate) target: Target,
}

impl Usage {
    /// Whether a prune may take it.
    pub fn is_reclaimable(&self) -> bool {
        !self.in_use && !self.shared
    }

    /// When it counts as used, seconds since the epoch: a second of work for a megabyte is worth a day, and no more than a
    /// month. So of things used at much the same time the dear ones stay.
    pub(crate) fn worth(&self) -> i64 {
        let megabytes = (self.size as f64 / 1e6).max(0.1);
        let days = (self.seconds / megabytes).clamp(0.0, 30.0);
        self.last_used.saturating_add((days * 86_400.0) as i64)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Layer(DiffId),
    Blob(Digest),
    Directory(DirectoryId),
    File(PathBuf),
}

/// What must stay.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub(crate) layers: HashSet<DiffId>,
    pub(crate) blobs: HashSet<Digest>,
    pub(crate) directories: HashSet<DirectoryId>,
}

impl Root {
    /// All that takes up space, in no order.
    pub fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        let sizes = self.directory_sizes()?;
        // Without the lock: it is only to look at.
        let held = self.held()?;
        self.usages(&held, true, &sizes)
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
    pub(crate) fn mark_held(&self, held: &HashSet<Item>) -> Result<Marks, StoreError> {
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
    pub(crate) fn nameless(&self, held: &HashSet<Item>) -> Result<Vec<Digest>, StoreError> {
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

    pub(crate) fn usages(
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
                (SELECT description FROM records WHERE records.diff_id = layers.diff_id LIMIT 1),
                (SELECT max(seconds) FROM records WHERE records.diff_id = layers.diff_id) FROM layers",
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
                    seconds: row.get::<_, Option<f64>>(5)?.unwrap_or_default(),
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
                seconds: 0.0,
                target: Target::Blob(digest),
            });
        }

        for row in self.directories().list()? {
            usages.push(Usage {
                kind: match row.id.kind {
                    DirectoryKind::CacheMount => UsageKind::CacheMount,
                    DirectoryKind::Git => UsageKind::Git,
                    DirectoryKind::Sandbox => UsageKind::Sandbox,
                },
                id: hex::encode(row.id.name),
                size: sizes.get(&directory::path(self.path(), &row.id)).copied().unwrap_or(0),
                created: row.created,
                last_used: row.last_used,
                in_use: used.directories.contains(&row.id),
                shared: false,
                description: row.description,
                seconds: 0.0,
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
                seconds: 0.0,
                target: Target::File(path),
            });
        }
        Ok(usages)
    }

    /// Bytes on disk of what is made of each layer and of each kept directory. Slow: they are walked.
    pub(crate) fn directory_sizes(&self) -> Result<HashMap<PathBuf, u64>, StoreError> {
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

/// The name without what stands after its first dot.
pub(crate) fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

pub(crate) fn children(dir: &Path) -> Vec<PathBuf> {
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

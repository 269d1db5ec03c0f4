//! Layers: one immutable tar file and its index, named by diff ID; and what is known of their compressed forms.
//!
//! A layer is here when it has a row, its tar has the size the row says, and it was written in this
//! [`Epoch`](crate::root::Epoch) or is known to be on disk. The index is checked against the hash in the row when it is
//! read, and made again from a tar that is what its name says. A layer that fails is dropped: to its reader it is not
//! there.
//!
//! A compressed form ([`LayerBlob`]) may be known long before, or without, being here as a blob: a base image's layers
//! are known from its manifest, and where to get them from [`Layers::locations`].

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use image::layer::index::LayerIndex;
use image::layer::read::{ReadError, index_tar};
use image::{DiffId, Digest};
use rusqlite::OptionalExtension;

use crate::compress::{Algorithm, Compression};
use crate::error::StoreError;
use crate::lease::Item;
use crate::root::{Root, USED_GRAIN, now};
use crate::temp::TempFile;

/// Indexes that nobody uses are dropped from memory when all together were longer than this on disk.
const CACHED_INDEX_BYTES: u64 = 48 << 20;

/// As long as the kernel keeps what was written before it thinks of a disk, as Linux is configured by default.
const IN_MEMORY: Duration = Duration::from_secs(30);

/// The layers of a root.
#[derive(Clone, Debug)]
pub struct Layers {
    root: Root,
}

/// A layer that is here.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its name.
    pub diff_id: DiffId,
    /// Length of its tar in bytes.
    pub size: u64,
    /// Its index.
    pub index: Arc<LayerIndex>,
}

/// A layer being written: its tar goes in through [`Write`].
#[derive(Debug)]
pub struct NewLayer {
    root: Root,
    tar: BufWriter<TempFile>,
}

/// A compressed form of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its media type in manifests.
    pub media_type: String,
    /// How it was compressed. No level: not by us.
    pub algorithm: Algorithm,
    /// The level, if we did it.
    pub level: Option<i32>,
    /// Annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
}

impl LayerBlob {
    /// Its descriptor.
    pub fn descriptor(&self) -> image::Descriptor {
        image::Descriptor {
            annotations: self.annotations.clone(),
            ..image::Descriptor::new(&self.media_type, self.digest, self.size)
        }
    }
}

impl Layers {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// Whether it is here, whole.
    pub fn contains(&self, diff_id: &DiffId) -> Result<bool, StoreError> {
        Ok(self.size(diff_id)?.is_some())
    }

    /// Which of `diff_ids` are here by what the database says. Their files are not looked at: whoever needs one does.
    pub fn listed(&self, diff_ids: &[DiffId]) -> Result<Vec<bool>, StoreError> {
        let rows = self.rows(diff_ids)?;
        let listed = diff_ids.iter().zip(rows).map(|(diff_id, row)| {
            let row = row.filter(|row| self.believes(row));
            row.inspect(|row| self.note_use(diff_id, row)).is_some()
        });
        Ok(listed.collect())
    }

    /// Whether it can be made present without making it again: a compressed form is here, or known to be at a registry.
    pub fn can_be_fetched(&self, diff_id: &DiffId) -> Result<bool, StoreError> {
        for blob in self.blobs_of(diff_id)? {
            if self.root.blobs().contains(&blob.digest)? || !self.locations(&blob.digest)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Length of its tar in bytes, if it is here, whole.
    pub fn size(&self, diff_id: &DiffId) -> Result<Option<u64>, StoreError> {
        Ok(self.row(diff_id)?.map(|row| row.tar_size))
    }

    /// Its index. Read once a process.
    pub fn index(&self, diff_id: &DiffId) -> Result<Arc<LayerIndex>, StoreError> {
        if let Some(index) = self.root.inner.indexes.get(diff_id) {
            return Ok(index);
        }
        let Some(row) = self.row(diff_id)? else { return Err(missing(diff_id)) };
        let parsed = self.sound_index(diff_id, &row).and_then(|bytes| {
            let index = LayerIndex::from_bytes(&bytes).ok()?;
            (index.diff_id() == *diff_id && index.tar_size() == row.tar_size).then_some((index, bytes.len()))
        });
        let Some((index, len)) = parsed else {
            self.forget(diff_id, row.written.as_deref())?;
            return self.index_again(diff_id);
        };
        Ok(self.root.inner.indexes.put(*diff_id, Arc::new(index), len as u64))
    }

    /// The bytes of the index, if they are those that `row` means.
    fn sound_index(&self, diff_id: &DiffId, row: &Row) -> Option<Vec<u8>> {
        let bytes = fs::read(self.index_path(diff_id)).ok()?;
        (row.index_hash == *blake3::hash(&bytes).as_bytes()).then_some(bytes)
    }

    /// The index of a layer whose row was dropped, from its tar, if that is what it should be.
    fn index_again(&self, diff_id: &DiffId) -> Result<Arc<LayerIndex>, StoreError> {
        let tar = File::open(self.tar_path(diff_id)).map_err(|_| missing(diff_id))?;
        match self.ingest(tar, diff_id) {
            Ok(stored) => Ok(stored.index),
            Err(StoreError::Rejected { .. }) => Err(missing(diff_id)),
            Err(error) => Err(error),
        }
    }

    /// Opens its tar for reading.
    pub fn open_tar(&self, diff_id: &DiffId) -> Result<File, StoreError> {
        let Some(_) = self.row(diff_id)? else { return Err(missing(diff_id)) };
        let path = self.tar_path(diff_id);
        File::open(&path).map_err(StoreError::io("open", path))
    }

    /// Whether its tar was written by this process so short a time ago that no disk has been asked for it: what is read is
    /// what was written, and hashed then.
    pub(crate) fn is_in_memory(&self, diff_id: &DiffId) -> bool {
        let written = self.root.inner.tars_written.lock().unwrap_or_else(PoisonError::into_inner);
        written.get(diff_id).is_some_and(|time| time.elapsed() < IN_MEMORY)
    }

    /// Where its tar is or would be. That there is a file does not say that the layer is here.
    pub fn tar_path(&self, diff_id: &DiffId) -> PathBuf {
        self.file(diff_id, "tar")
    }

    /// Where its EROFS index is or would be: made by whoever mounts it, by rename from [`Root::temp_dir`].
    pub fn erofs_path(&self, diff_id: &DiffId) -> PathBuf {
        self.file(diff_id, "erofs")
    }

    /// Where it is or would be as a directory: made by whoever mounts it, by rename from [`Root::temp_dir`]. It may
    /// vanish when the layer is not leased.
    pub fn mount_path(&self, diff_id: &DiffId) -> PathBuf {
        self.root.path().join("mounts").join(diff_id.0.hex())
    }

    /// Starts a new layer.
    pub fn create(&self) -> Result<NewLayer, StoreError> {
        let tar = BufWriter::with_capacity(256 << 10, self.root.temp_file()?);
        Ok(NewLayer { root: self.root.clone(), tar })
    }

    /// Stores the layer whose uncompressed tar `reader` gives, and holds it. It must be the one that `expected` names.
    pub fn ingest(&self, reader: impl Read, expected: &DiffId) -> Result<Stored, StoreError> {
        let mut layer = self.create()?;
        let rejected = |source: io::Error| StoreError::Rejected { what: "layer", digest: expected.0, source };
        let index = index_tar(reader, &mut layer).map_err(|error| match error {
            // Of whoever reads: it may be a network error, or say that the blob was not what it should be.
            ReadError::Read(error) => rejected(error),
            ReadError::Write(error) => StoreError::io("write", layer.tar.get_ref().path())(error),
            error => rejected(io::Error::new(io::ErrorKind::InvalidData, error)),
        })?;
        if index.diff_id() != *expected {
            let error =
                image::digest::VerifyError::Digest { expected: expected.0, actual: index.diff_id().0 };
            return Err(rejected(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        layer.commit(index)
    }

    /// Removes it, whoever uses it. `false`: it was not here.
    pub fn remove(&self, diff_id: &DiffId) -> Result<bool, StoreError> {
        let known = self.root.inner.db.write(|tx| {
            Ok(tx.prepare_cached("DELETE FROM layers WHERE diff_id = ?1")?.execute([diff_id.0.bytes()])? > 0)
        })?;
        self.root.inner.indexes.remove(diff_id);
        for path in self.files(diff_id) {
            self.root.remove(&path)?;
        }
        Ok(known)
    }

    /// Notes that `blob` is a compressed form of the layer `diff_id`.
    pub fn remember_blob(&self, diff_id: &DiffId, blob: &LayerBlob) -> Result<(), StoreError> {
        let annotations = serde_json::to_string(&blob.annotations).expect("a map of strings is JSON");
        self.root.inner.db.write(|tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO layer_blobs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
                .execute((
                    diff_id.0.bytes(),
                    blob.digest.bytes(),
                    blob.size,
                    &blob.media_type,
                    blob.algorithm.code(),
                    blob.level,
                    annotations,
                ))
        })?;
        Ok(())
    }

    /// The known compressed forms of a layer.
    pub fn blobs_of(&self, diff_id: &DiffId) -> Result<Vec<LayerBlob>, StoreError> {
        Ok(self.root.inner.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT digest, size, media_type, algorithm, level, annotations FROM layer_blobs WHERE diff_id = ?1",
            )?;
            let rows = query.query_map([diff_id.0.bytes()], |row| {
                Ok(match (digest_of(row.get_ref(0)?.as_blob()?), Algorithm::from_code(row.get(3)?)) {
                    (Some(digest), Some(algorithm)) => Some(LayerBlob {
                        digest,
                        size: row.get(1)?,
                        media_type: row.get(2)?,
                        algorithm,
                        level: row.get(4)?,
                        annotations: serde_json::from_str(row.get_ref(5)?.as_str()?).unwrap_or_default(),
                    }),
                    _ => None,
                })
            })?;
            rows.filter_map(Result::transpose).collect()
        })?)
    }

    /// The form of a layer that we once made with `compression`.
    pub fn blob_as(
        &self,
        diff_id: &DiffId,
        compression: Compression,
    ) -> Result<Option<LayerBlob>, StoreError> {
        Ok(self
            .blobs_of(diff_id)?
            .into_iter()
            .find(|blob| blob.algorithm == compression.algorithm && blob.level == Some(compression.level)))
    }

    /// The layers of which `digest` is a compressed form.
    pub fn layers_of(&self, digest: &Digest) -> Result<Vec<DiffId>, StoreError> {
        Ok(self.root.inner.db.read(|db| {
            let mut query = db.prepare_cached("SELECT diff_id FROM layer_blobs WHERE digest = ?1")?;
            let rows = query.query_map([digest.bytes()], |row| Ok(digest_of(row.get_ref(0)?.as_blob()?)))?;
            rows.filter_map(Result::transpose).map(|digest| digest.map(DiffId)).collect()
        })?)
    }

    /// Notes that a registry has `digest` in a repository.
    pub fn remember_location(
        &self,
        digest: &Digest,
        registry: &str,
        repository: &str,
    ) -> Result<(), StoreError> {
        self.root.inner.db.write(|tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO locations VALUES (?1, ?2, ?3, ?4)")?.execute((
                digest.bytes(),
                registry,
                repository,
                now(),
            ))
        })?;
        Ok(())
    }

    /// Notes that a registry does not have `digest` in a repository after all.
    pub fn forget_location(
        &self,
        digest: &Digest,
        registry: &str,
        repository: &str,
    ) -> Result<(), StoreError> {
        self.root.inner.db.write(|tx| {
            tx.prepare_cached(
                "DELETE FROM locations WHERE digest = ?1 AND registry = ?2 AND repository = ?3",
            )?
            .execute((digest.bytes(), registry, repository))
        })?;
        Ok(())
    }

    /// The registries and repositories that have `digest`, the one seen last first.
    pub fn locations(&self, digest: &Digest) -> Result<Vec<(String, String)>, StoreError> {
        Ok(self.root.inner.db.read(|db| {
            db.prepare_cached(
                "SELECT registry, repository FROM locations WHERE digest = ?1 ORDER BY seen DESC, registry, repository",
            )?
            .query_map([digest.bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
        })?)
    }

    /// The row, if it is to be believed and the tar is as long as it says.
    fn row(&self, diff_id: &DiffId) -> Result<Option<Row>, StoreError> {
        let Some(row) = self.rows(std::slice::from_ref(diff_id))?.pop().flatten() else { return Ok(None) };
        let has_length = || fs::metadata(self.tar_path(diff_id)).is_ok_and(|meta| meta.len() == row.tar_size);
        if !self.believes(&row) || !has_length() {
            self.forget(diff_id, row.written.as_deref())?;
            return Ok(None);
        }
        self.note_use(diff_id, &row);
        Ok(Some(row))
    }

    /// Whether the files of the row were written in this epoch or are known to be on disk.
    fn believes(&self, row: &Row) -> bool {
        row.written.as_deref().is_none_or(|written| written == self.root.epoch().bytes())
    }

    fn note_use(&self, diff_id: &DiffId, row: &Row) {
        if row.last_used < now() - USED_GRAIN {
            self.root.used(|used| used.layers.push(diff_id.0.bytes().to_vec()));
        }
    }

    /// What the database says.
    fn rows(&self, diff_ids: &[DiffId]) -> Result<Vec<Option<Row>>, StoreError> {
        let query = |db: &rusqlite::Connection| {
            let mut query = db.prepare_cached(
                "SELECT tar_size, index_hash, last_used, epoch FROM layers WHERE diff_id = ?1",
            )?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok(Row {
                    tar_size: row.get(0)?,
                    index_hash: row.get(1)?,
                    last_used: row.get(2)?,
                    written: row.get(3)?,
                })
            };
            diff_ids.iter().map(|diff_id| query.query_row([diff_id.0.bytes()], row).optional()).collect()
        };
        Ok(match diff_ids.len() {
            1 => self.root.inner.db.read(query)?,
            _ => self.root.inner.db.read_many(query)?,
        })
    }

    /// Drops a layer that is not what its row says, unless somebody stored it again meanwhile. What was made from its
    /// tar is not believed either.
    fn forget(&self, diff_id: &DiffId, written: Option<&[u8]>) -> Result<(), StoreError> {
        self.root.inner.indexes.remove(diff_id);
        let dropped = self.root.inner.db.write(|tx| {
            tx.prepare_cached("DELETE FROM layers WHERE diff_id = ?1 AND epoch IS ?2")?
                .execute((diff_id.0.bytes(), written))
        })?;
        if dropped > 0 {
            self.root.remove(&self.erofs_path(diff_id))?;
            self.root.remove(&self.mount_path(diff_id))?;
        }
        Ok(())
    }

    fn file(&self, diff_id: &DiffId, extension: &str) -> PathBuf {
        let dir = self.root.path().join("layers").join(diff_id.0.algorithm());
        dir.join(format!("{}.{extension}", diff_id.0.hex()))
    }

    fn index_path(&self, diff_id: &DiffId) -> PathBuf {
        self.file(diff_id, "idx")
    }

    pub(crate) fn files(&self, diff_id: &DiffId) -> [PathBuf; 4] {
        [self.tar_path(diff_id), self.index_path(diff_id), self.erofs_path(diff_id), self.mount_path(diff_id)]
    }
}

#[derive(Debug)]
struct Row {
    tar_size: u64,
    index_hash: [u8; 32],
    last_used: i64,
    written: Option<Vec<u8>>,
}

impl NewLayer {
    /// The file behind the writer, after all that was written so far: for copying ranges into it directly, at its end.
    pub fn file(&mut self) -> io::Result<&File> {
        self.tar.flush()?;
        Ok(self.tar.get_ref().file())
    }

    /// Stores the layer under the diff ID of `index`, which must be the index of exactly what was written, and holds it
    /// until the root is closed.
    ///
    /// The caller vouches for the diff ID: it was computed while the tar was written.
    pub fn commit(self, index: LayerIndex) -> Result<Stored, StoreError> {
        let diff_id = index.diff_id();
        let size = index.tar_size();
        let layers = self.root.layers();
        let unfinished = |source| StoreError::Rejected { what: "layer", digest: diff_id.0, source };
        let tar = self.tar.into_inner().map_err(|error| unfinished(error.into_error()))?;
        let actual = tar.file().metadata().map_err(StoreError::io("read", tar.path()))?.len();
        if actual != size {
            let error = image::digest::VerifyError::Size { digest: diff_id.0, expected: size, actual };
            return Err(unfinished(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        let bytes = index.to_bytes();
        let mut index_file = self.root.temp_file()?;
        index_file.write_all(&bytes).map_err(StoreError::io("write", index_file.path()))?;
        let index = Arc::new(index);
        self.root.publish(&[Item::Layer(diff_id)], || {
            // Not believed blindly: a damaged layer is replaced by whoever makes it again.
            if layers.row(&diff_id)?.is_some_and(|row| layers.sound_index(&diff_id, &row).is_some()) {
                return Ok(());
            }
            let (to_index, to_tar) = (layers.index_path(&diff_id), layers.tar_path(&diff_id));
            index_file.rename(&to_index).map_err(StoreError::io("create", &to_index))?;
            tar.rename(&to_tar).map_err(StoreError::io("create", &to_tar))?;
            let mut written = self.root.inner.tars_written.lock().unwrap_or_else(PoisonError::into_inner);
            written.insert(diff_id, Instant::now());
            drop(written);
            let now = now();
            self.root.inner.db.write(|tx| {
                tx.prepare_cached("INSERT OR REPLACE INTO layers VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)")?
                    .execute((
                        diff_id.0.bytes(),
                        size,
                        bytes.len() as u64,
                        blake3::hash(&bytes).as_bytes(),
                        now,
                        self.root.stamp(),
                    ))
            })?;
            Ok(())
        })?;
        let index = self.root.inner.indexes.put(diff_id, index, bytes.len() as u64);
        Ok(Stored { diff_id, size, index })
    }
}

impl Write for NewLayer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tar.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tar.flush()
    }
}

/// Indexes in memory.
#[derive(Default)]
pub(crate) struct IndexCache(Mutex<Cached>);

#[derive(Default)]
struct Cached {
    by_layer: HashMap<DiffId, (Arc<LayerIndex>, u64)>,
    bytes: u64,
}

impl IndexCache {
    fn get(&self, diff_id: &DiffId) -> Option<Arc<LayerIndex>> {
        self.lock().by_layer.get(diff_id).map(|(index, _)| index.clone())
    }

    /// Keeps an index; gives the one that is kept.
    fn put(&self, diff_id: DiffId, index: Arc<LayerIndex>, len: u64) -> Arc<LayerIndex> {
        let mut cached = self.lock();
        if cached.bytes + len > CACHED_INDEX_BYTES {
            cached.by_layer.retain(|_, (index, _)| Arc::strong_count(index) > 1);
            cached.bytes = cached.by_layer.values().map(|(_, len)| len).sum();
        }
        let (kept, _) = cached.by_layer.entry(diff_id).or_insert((index, len)).clone();
        cached.bytes += len;
        kept
    }

    pub(crate) fn remove(&self, diff_id: &DiffId) {
        self.lock().by_layer.remove(diff_id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A digest as it stands in the database.
pub(crate) fn digest_of(bytes: &[u8]) -> Option<Digest> {
    match bytes.len() {
        32 => Some(Digest::Sha256(bytes.try_into().ok()?)),
        64 => Some(Digest::Sha512(bytes.try_into().ok()?)),
        _ => None,
    }
}

fn missing(diff_id: &DiffId) -> StoreError {
    StoreError::Missing { what: "layer", name: diff_id.to_string() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::root::tests::root;
    use image::layer::LayerWriter;

    /// A tar with nothing in it; `zeros` blocks of 512 bytes make it another layer.
    pub(crate) fn tar(zeros: usize) -> Vec<u8> {
        vec![0; 1024 + 512 * zeros]
    }

    /// Stores an empty layer.
    pub(crate) fn store(root: &Root, zeros: usize) -> Stored {
        let tar = tar(zeros);
        root.layers().ingest(&tar[..], &DiffId(Digest::of(&tar))).unwrap()
    }

    #[test]
    fn a_layer_that_was_stored_is_there_for_the_next_process() {
        let (dir, root) = root();
        let stored = store(&root, 0);
        assert_eq!(root.layers().size(&stored.diff_id).unwrap(), Some(1024));
        drop(root);
        let root = Root::open(&dir.path().join("root")).unwrap();
        let layers = root.layers();
        let index = layers.index(&stored.diff_id).unwrap();
        assert_eq!(index.entries(), stored.index.entries());
        assert!(Arc::ptr_eq(&index, &layers.index(&stored.diff_id).unwrap()));
        let mut bytes = Vec::new();
        layers.open_tar(&stored.diff_id).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, tar(0));
        // Again: the same layer, not another.
        store(&root, 0);
        assert!(layers.remove(&stored.diff_id).unwrap() && !layers.contains(&stored.diff_id).unwrap());
        assert!(!layers.tar_path(&stored.diff_id).exists() && !layers.index_path(&stored.diff_id).exists());
        assert!(layers.index(&stored.diff_id).unwrap_err().is_missing());
    }

    #[test]
    fn another_diff_id_or_another_length_is_refused_and_leaves_nothing() {
        let (_dir, root) = root();
        let other = DiffId(Digest::of(b"other"));
        assert!(matches!(root.layers().ingest(&tar(0)[..], &other), Err(StoreError::Rejected { .. })));
        let mut layer = root.layers().create().unwrap();
        let (_, index) = LayerWriter::new(&mut layer).finish().unwrap();
        layer.write_all(b"more").unwrap();
        let diff_id = index.diff_id();
        assert!(matches!(layer.commit(index), Err(StoreError::Rejected { .. })));
        assert!(!root.layers().contains(&diff_id).unwrap());
        assert_eq!(fs::read_dir(root.temp_dir().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn torn_files_are_no_layer_and_do_not_stand_in_the_way_of_a_new_one() {
        for spoil in ["tar", "idx", "tar gone", "idx gone"] {
            let heals = spoil.starts_with("idx");
            let (dir, root) = root();
            let stored = store(&root, 1);
            let (name, gone) = spoil.split_once(' ').map_or((spoil, false), |(name, _)| (name, true));
            let path = root.layers().file(&stored.diff_id, name);
            match gone {
                true => fs::remove_file(&path).unwrap(),
                false => fs::write(&path, b"").unwrap(),
            }
            fs::create_dir_all(root.layers().mount_path(&stored.diff_id).join("etc")).unwrap();
            drop(root);
            let root = Root::open(&dir.path().join("root")).unwrap();
            match root.layers().index(&stored.diff_id) {
                // From the tar.
                Ok(index) => assert!(heals && index.entries() == stored.index.entries(), "{spoil}"),
                Err(error) => assert!(!heals && error.is_missing(), "{spoil}: {error}"),
            }
            assert_eq!(root.layers().contains(&stored.diff_id).unwrap(), heals, "{spoil}");
            assert!(!root.layers().mount_path(&stored.diff_id).exists(), "{spoil}");
            store(&root, 1);
            root.layers().index(&stored.diff_id).unwrap();
        }
    }

    #[test]
    fn what_is_listed_is_looked_at_when_it_is_wanted() {
        let (_dir, root) = root();
        let (kept, gone) = (store(&root, 1).diff_id, store(&root, 2).diff_id);
        let unknown = DiffId(Digest::of(b"unknown"));
        let layers = root.layers();
        fs::remove_file(layers.tar_path(&gone)).unwrap();
        assert_eq!(layers.listed(&[unknown, kept, gone]).unwrap(), [false, true, true]);
        assert!(layers.contains(&kept).unwrap() && !layers.contains(&gone).unwrap());
        assert_eq!(layers.listed(&[unknown, kept, gone]).unwrap(), [false, true, false]);
    }

    #[test]
    fn a_layer_that_is_made_again_replaces_a_damaged_one() {
        let (dir, root) = root();
        let stored = store(&root, 1);
        let [tar, index] = ["tar", "idx"].map(|name| root.layers().file(&stored.diff_id, name));
        fs::write(&tar, vec![1; fs::metadata(&tar).unwrap().len() as usize]).unwrap();
        fs::remove_file(index).unwrap();
        store(&root, 1);
        assert_eq!(fs::read(tar).unwrap(), tests::tar(1));
        drop(root);
        Root::open(&dir.path().join("root")).unwrap().layers().index(&stored.diff_id).unwrap();
    }

    #[test]
    fn a_tar_that_changed_and_has_no_index_is_no_layer() {
        let (dir, root) = root();
        let stored = store(&root, 1);
        let [tar, index] = ["tar", "idx"].map(|name| root.layers().file(&stored.diff_id, name));
        let mut bytes = fs::read(&tar).unwrap();
        bytes[700] = 1;
        fs::write(&tar, bytes).unwrap();
        fs::remove_file(index).unwrap();
        drop(root);
        let root = Root::open(&dir.path().join("root")).unwrap();
        assert!(root.layers().index(&stored.diff_id).unwrap_err().is_missing());
        assert!(!root.layers().contains(&stored.diff_id).unwrap());
    }

    #[test]
    fn after_a_crash_of_the_machine_only_what_was_synced_is_there() {
        let (dir, root) = root();
        let synced = store(&root, 0).diff_id;
        let blob = root.blobs().put_bytes(b"blob").unwrap();
        assert!(root.is_unsynced().unwrap());
        root.sync().unwrap();
        assert!(!root.is_unsynced().unwrap());
        let lost = store(&root, 1).diff_id;
        let lost_blob = root.blobs().put_bytes(b"lost").unwrap();
        // As if written before the machine started.
        for table in ["layers", "blobs"] {
            let sql = format!("UPDATE {table} SET epoch = x'00' WHERE epoch IS NOT NULL");
            root.inner.db.write(|tx| tx.execute(&sql, [])).unwrap();
        }
        drop(root);
        let root = Root::open(&dir.path().join("root")).unwrap();
        assert!(root.layers().contains(&synced).unwrap() && root.blobs().contains(&blob).unwrap());
        assert_eq!(root.layers().listed(&[synced, lost]).unwrap(), [true, false]);
        assert!(!root.layers().contains(&lost).unwrap() && !root.blobs().contains(&lost_blob).unwrap());
        store(&root, 1);
        assert!(root.layers().contains(&lost).unwrap());
    }

    #[test]
    fn a_compressed_form_is_known_before_it_is_here() {
        let (_dir, root) = root();
        let layers = root.layers();
        let diff_id = DiffId(Digest::of(b"layer"));
        let blob = |level, name: &str| LayerBlob {
            digest: Digest::of(name.as_bytes()),
            size: 7,
            media_type: image::manifest::media_type::OCI_LAYER_GZIP.to_owned(),
            algorithm: Algorithm::Gzip,
            level,
            annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        };
        layers.remember_blob(&diff_id, &blob(None, "base")).unwrap();
        layers.remember_blob(&diff_id, &blob(Some(2), "ours")).unwrap();
        assert_eq!(layers.blobs_of(&diff_id).unwrap().len(), 2);
        let ours = layers.blob_as(&diff_id, Compression { algorithm: Algorithm::Gzip, level: 2 }).unwrap();
        assert_eq!(ours, Some(blob(Some(2), "ours")));
        assert_eq!(
            layers.blob_as(&diff_id, Compression { algorithm: Algorithm::Gzip, level: 3 }).unwrap(),
            None
        );
        assert_eq!(layers.layers_of(&blob(None, "base").digest).unwrap(), [diff_id]);
        let digest = blob(None, "base").digest;
        layers.remember_location(&digest, "docker.io", "library/debian").unwrap();
        layers.remember_location(&digest, "docker.io", "library/debian").unwrap();
        assert_eq!(
            layers.locations(&digest).unwrap(),
            [("docker.io".to_owned(), "library/debian".to_owned())]
        );
        layers.forget_location(&digest, "docker.io", "library/debian").unwrap();
        assert!(layers.locations(&digest).unwrap().is_empty());
    }
}

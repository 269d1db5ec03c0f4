//! Images and their names.
//!
//! An image is a manifest or an index among the blobs. A locally built image's manifest lists its layers uncompressed
//! (the digest is the diff ID, the bytes are the layer's tar): a valid OCI manifest that costs nothing. A pulled image
//! keeps the bytes it came with.
//!
//! A tag points at an image. Setting it is one transaction; until the new image is known to be on disk the old row is
//! kept, so that after a crash of the machine the tag is the old image or the new one.

use std::collections::HashMap;

use image::manifest::{Document, media_type};
use image::{Descriptor, DiffId, Digest, ImageConfig, Index, Manifest, Platform, Reference};
use rusqlite::OptionalExtension;

use crate::error::StoreError;
use crate::lease::Item;
use crate::root::{Root, USED_GRAIN, now};

/// How deep indexes may lie in indexes.
const MAX_DEPTH: u32 = 4;

/// The images of a root.
#[derive(Clone, Debug)]
pub struct Images {
    root: Root,
}

/// The names of images in a root.
#[derive(Clone, Debug)]
pub struct Tags {
    root: Root,
}

/// A name and what it points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The name, with its tag.
    pub reference: Reference,
    /// The image.
    pub descriptor: Descriptor,
    /// When it was set, seconds since the epoch.
    pub time: i64,
}

/// An image in a list.
#[derive(Clone, Debug)]
pub struct ListedImage {
    /// Its manifest or index.
    pub descriptor: Descriptor,
    /// Its names; none: it dangles.
    pub tags: Vec<Reference>,
    /// Its manifests that are here, one a platform.
    pub manifests: Vec<ListedManifest>,
    /// When it came here, seconds since the epoch.
    pub stored: i64,
}

/// One platform's part of a [`ListedImage`].
#[derive(Clone, Debug)]
pub struct ListedManifest {
    /// The manifest.
    pub descriptor: Descriptor,
    /// The config's digest: Docker's image ID.
    pub id: Digest,
    /// The config.
    pub config: ImageConfig,
    /// Bytes of its layers, see [`Images::layer_sizes`].
    pub size: u64,
}

impl Images {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// Stores a document (manifest, index or config) and holds it.
    pub fn put_document(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, StoreError> {
        let digest = self.root.blobs().put_bytes(bytes)?;
        Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
    }

    /// Stores the manifest of an image that was made here.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<Descriptor, StoreError> {
        let bytes = serde_json::to_vec(manifest).expect("a manifest has string keys only");
        let kind =
            if manifest.media_type.is_empty() { media_type::OCI_MANIFEST } else { &manifest.media_type };
        self.put_document(kind, &bytes)
    }

    /// Stores the index of an image that was made here.
    pub fn put_index(&self, index: &Index) -> Result<Descriptor, StoreError> {
        let bytes = serde_json::to_vec(index).expect("an index has string keys only");
        let kind = if index.media_type.is_empty() { media_type::OCI_INDEX } else { &index.media_type };
        self.put_document(kind, &bytes)
    }

    /// Makes and stores the manifest of an image whose layers are in this root: config first, layers as they are.
    pub fn put_local(&self, config: &ImageConfig) -> Result<Descriptor, StoreError> {
        self.put_local_as(&config.to_bytes(), &config.rootfs.diff_ids)
    }

    /// The same from the bytes of a config that names these layers.
    pub fn put_local_as(&self, config: &[u8], diff_ids: &[DiffId]) -> Result<Descriptor, StoreError> {
        let config = self.put_document(media_type::OCI_CONFIG, config)?;
        let mut layers = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let Some(size) = self.root.layers().size(diff_id)? else {
                return Err(StoreError::Missing { what: "layer", name: diff_id.to_string() });
            };
            layers.push(Descriptor::new(media_type::OCI_LAYER, diff_id.0, size));
        }
        self.put_manifest(&Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: std::collections::BTreeMap::new(),
        })
    }

    /// Notes that a stored document is an image, so that it is listed and kept though it has no name.
    pub fn add(&self, descriptor: &Descriptor) -> Result<(), StoreError> {
        self.root.inner.db.write(|tx| add(tx, descriptor))?;
        Ok(())
    }

    /// Forgets an image and its names; what belongs to it alone is for prune. `false`: it was not known.
    pub fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.root.inner.db.write(|tx| {
            tx.prepare_cached("DELETE FROM tags WHERE digest = ?1")?.execute([digest.bytes()])?;
            Ok(tx.prepare_cached("DELETE FROM images WHERE digest = ?1")?.execute([digest.bytes()])? > 0)
        })?)
    }

    /// The descriptor of a known image.
    pub fn get(&self, digest: &Digest) -> Result<Option<Descriptor>, StoreError> {
        Ok(self.root.inner.db.read(|db| image_row(db, digest))?)
    }

    /// Finds an image by name, by digest of its manifest, index or config, or by the first hex digits of one of these.
    pub fn resolve(&self, text: &str) -> Result<Descriptor, StoreError> {
        let missing = || StoreError::Missing { what: "image", name: text.to_owned() };
        if let Ok(reference) = text.parse::<Reference>()
            && let Some(descriptor) = self.root.tags().get(&reference)?
        {
            return Ok(descriptor);
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty()
            || prefix.len() > 128
            || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(missing());
        }
        let mut found: Option<Descriptor> = None;
        for image in self.list()? {
            let ids = image.manifests.iter().flat_map(|manifest| [manifest.id, manifest.descriptor.digest]);
            if ids.chain([image.descriptor.digest]).any(|digest| digest.hex().starts_with(prefix)) {
                if found.is_some_and(|other| other.digest != image.descriptor.digest) {
                    return Err(StoreError::Ambiguous(text.to_owned()));
                }
                found = Some(image.descriptor);
            }
        }
        found.ok_or_else(missing)
    }

    /// Reads a manifest or index.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Document, StoreError> {
        let bytes = self.root.blobs().read(&descriptor.digest)?;
        Document::parse(&bytes, Some(&descriptor.media_type)).map_err(|source| StoreError::Document {
            what: "manifest",
            name: descriptor.digest.to_string(),
            source: Box::new(source),
        })
    }

    /// Reads a config.
    pub fn config(&self, descriptor: &Descriptor) -> Result<ImageConfig, StoreError> {
        let bytes = self.root.blobs().read(&descriptor.digest)?;
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Document {
            what: "config",
            name: descriptor.digest.to_string(),
            source: Box::new(source),
        })
    }

    /// The manifest for `platform` in a manifest or index, with its own descriptor. `None`: there is none for it.
    pub fn manifest(
        &self,
        descriptor: &Descriptor,
        platform: &Platform,
    ) -> Result<Option<(Descriptor, Manifest)>, StoreError> {
        let mut descriptor = descriptor.clone();
        for _ in 0..=MAX_DEPTH {
            match self.document(&descriptor)? {
                Document::Manifest(manifest) => return Ok(Some((descriptor, manifest))),
                Document::Index(index) => match index.select(platform) {
                    Some(found) => descriptor = found.clone(),
                    None => return Ok(None),
                },
            }
        }
        Ok(None)
    }

    /// All manifests of a manifest or index that are here.
    pub fn manifests(&self, descriptor: &Descriptor) -> Result<Vec<(Descriptor, Manifest)>, StoreError> {
        let mut found = Vec::new();
        self.collect(descriptor, 0, &mut found, &mut Vec::new())?;
        Ok(found)
    }

    /// Bytes of each layer as a container sees it: of its tar where that is here, else of its blob.
    pub fn layer_sizes(&self, manifest: &Manifest, config: &ImageConfig) -> Result<Vec<u64>, StoreError> {
        let size = |(at, blob): (usize, &Descriptor)| {
            let tar = config.rootfs.diff_ids.get(at).map(|diff_id| self.root.layers().size(diff_id));
            Ok(tar.transpose()?.flatten().unwrap_or(blob.size))
        };
        manifest.layers.iter().enumerate().map(size).collect()
    }

    /// All images, the newest first.
    pub fn list(&self) -> Result<Vec<ListedImage>, StoreError> {
        let rows: Vec<(String, i64)> = self.root.inner.db.read(|db| {
            db.prepare_cached("SELECT descriptor, stored FROM images ORDER BY stored DESC, digest")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        let mut tags: HashMap<Digest, Vec<Reference>> = HashMap::new();
        for tag in self.root.tags().list()? {
            tags.entry(tag.descriptor.digest).or_default().push(tag.reference);
        }
        let mut images = Vec::new();
        for (descriptor, stored) in rows {
            let Ok(descriptor) = serde_json::from_str::<Descriptor>(&descriptor) else { continue };
            let tags = tags.remove(&descriptor.digest).unwrap_or_default();
            let mut manifests = Vec::new();
            for (descriptor, manifest) in self.manifests(&descriptor)? {
                let Ok(config) = self.config(&manifest.config) else { continue };
                let size = self.layer_sizes(&manifest, &config)?.iter().sum();
                manifests.push(ListedManifest { descriptor, id: manifest.config.digest, config, size });
            }
            if !manifests.is_empty() {
                images.push(ListedImage { descriptor, tags, manifests, stored });
            }
        }
        Ok(images)
    }

    /// Gathers manifests, and in `documents` everything that was looked at, here or not.
    pub(crate) fn collect(
        &self,
        descriptor: &Descriptor,
        depth: u32,
        found: &mut Vec<(Descriptor, Manifest)>,
        documents: &mut Vec<Digest>,
    ) -> Result<(), StoreError> {
        if documents.contains(&descriptor.digest) {
            return Ok(());
        }
        documents.push(descriptor.digest);
        match self.document(descriptor) {
            Ok(Document::Manifest(manifest)) => found.push((descriptor.clone(), manifest)),
            Ok(Document::Index(index)) => {
                for child in index.manifests.iter().filter(|_| depth < MAX_DEPTH) {
                    self.collect(child, depth + 1, found, documents)?;
                }
            }
            // Only some platforms of an index are here; other documents may be attached to it.
            Err(StoreError::Missing { .. } | StoreError::Document { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Tags {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// Points a name at an image whose documents are stored; `latest` if it has no tag.
    pub fn set(&self, reference: &Reference, descriptor: &Descriptor) -> Result<(), StoreError> {
        self.root.hold([Item::Image(descriptor.digest)])?;
        // A cached build writes nothing.
        if self.get(reference)?.as_ref() == Some(descriptor) {
            return Ok(());
        }
        let name = name(reference);
        self.root.inner.db.write(|tx| {
            add(tx, descriptor)?;
            let turn: i64 = tx
                .prepare_cached("SELECT coalesce(max(turn), 0) + 1 FROM tags WHERE reference = ?1")?
                .query_row([&name], |row| row.get(0))?;
            tx.prepare_cached("INSERT INTO tags VALUES (?1, ?2, ?3, ?4, ?5)")?.execute((
                &name,
                turn,
                descriptor.digest.bytes(),
                now(),
                self.root.stamp(),
            ))?;
            // Of those that may be lost only the newest counts; of those that are safe, too.
            tx.prepare_cached(
                "DELETE FROM tags WHERE reference = ?1 AND turn < ?2 AND (epoch IS NOT NULL OR turn <
                    (SELECT coalesce(max(turn), 0) FROM tags WHERE reference = ?1 AND epoch IS NULL))",
            )?
            .execute((&name, turn))
        })?;
        Ok(())
    }

    /// The image that a name points at.
    pub fn get(&self, reference: &Reference) -> Result<Option<Descriptor>, StoreError> {
        let name = name(reference);
        let row: Option<(String, i64)> = self.root.inner.db.read(|db| {
            db.prepare_cached(
                "SELECT images.descriptor, images.last_used FROM tags JOIN images USING (digest)
                WHERE reference = ?1 AND (epoch IS NULL OR epoch = ?2) ORDER BY turn DESC LIMIT 1",
            )?
            .query_row((name, self.root.epoch().bytes()), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
        })?;
        let Some((descriptor, last_used)) = row else { return Ok(None) };
        let descriptor: Option<Descriptor> = serde_json::from_str(&descriptor).ok();
        if let Some(descriptor) = &descriptor
            && last_used < now() - USED_GRAIN
        {
            self.root.used(|used| used.images.push(descriptor.digest.bytes().to_vec()));
        }
        // A name that is pinned is that image or none.
        Ok(descriptor.filter(|descriptor| {
            reference.digest.is_none_or(|digest| reference.tag.is_none() || digest == descriptor.digest)
        }))
    }

    /// Removes a name. The image stays. `false`: there was no such name.
    pub fn remove(&self, reference: &Reference) -> Result<bool, StoreError> {
        let name = name(reference);
        Ok(self.root.inner.db.write(|tx| {
            Ok(tx.prepare_cached("DELETE FROM tags WHERE reference = ?1")?.execute([name])? > 0)
        })?)
    }

    /// All names, in order.
    pub fn list(&self) -> Result<Vec<Tag>, StoreError> {
        let rows: Vec<(String, String, i64)> = self.root.inner.db.read(|db| {
            // SQLite takes the bare columns from the row that has the maximum.
            db.prepare_cached(
                "SELECT reference, descriptor, time, max(turn) FROM tags JOIN images USING (digest)
                WHERE epoch IS NULL OR epoch = ?1 GROUP BY reference ORDER BY reference",
            )?
            .query_map([self.root.epoch().bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect()
        })?;
        Ok(rows
            .into_iter()
            .filter_map(|(reference, descriptor, time)| {
                Some(Tag {
                    reference: reference.parse().ok()?,
                    descriptor: serde_json::from_str(&descriptor).ok()?,
                    time,
                })
            })
            .collect())
    }
}

/// The layers of a config that are named by a manifest's layers, in order; an error if they are not as many.
pub fn layers_of(manifest: &Manifest, config: &ImageConfig) -> Result<Vec<(DiffId, Descriptor)>, StoreError> {
    if manifest.layers.len() != config.rootfs.diff_ids.len() {
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        return Err(StoreError::Document {
            what: "config",
            name: manifest.config.digest.to_string(),
            source: format!("it has {diff_ids} layers, its manifest {layers}").into(),
        });
    }
    Ok(config.rootfs.diff_ids.iter().copied().zip(manifest.layers.iter().cloned()).collect())
}

fn name(reference: &Reference) -> String {
    let mut reference = reference.clone().with_default_tag();
    if reference.tag.is_some() {
        reference.digest = None;
    }
    reference.to_string()
}

fn add(tx: &rusqlite::Transaction<'_>, descriptor: &Descriptor) -> rusqlite::Result<()> {
    let json = serde_json::to_string(descriptor).expect("a descriptor has string keys only");
    tx.prepare_cached(
        "INSERT INTO images VALUES (?1, ?2, ?3, ?3) ON CONFLICT DO UPDATE SET last_used = excluded.last_used",
    )?
    .execute((descriptor.digest.bytes(), json, now()))?;
    Ok(())
}

fn image_row(db: &rusqlite::Connection, digest: &Digest) -> rusqlite::Result<Option<Descriptor>> {
    let json: Option<String> = db
        .prepare_cached("SELECT descriptor FROM images WHERE digest = ?1")?
        .query_row([digest.bytes()], |row| row.get(0))
        .optional()?;
    Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::layer;
    use crate::root::tests::root;

    /// An image of one empty layer.
    pub(crate) fn store(root: &Root, zeros: usize) -> Descriptor {
        let stored = layer::tests::store(root, zeros);
        let mut config = ImageConfig::scratch(&Platform::new("linux", "amd64", None));
        config.rootfs.diff_ids.push(stored.diff_id);
        root.images().put_local(&config).unwrap()
    }

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn an_image_is_found_by_name_and_by_digest_and_by_the_start_of_one() {
        let (_dir, root) = root();
        let (images, tags) = (root.images(), root.tags());
        let (a, b) = (store(&root, 0), store(&root, 1));
        tags.set(&reference("a"), &a).unwrap();
        images.add(&b).unwrap();
        assert_eq!(images.resolve("a").unwrap(), a);
        assert_eq!(images.resolve("docker.io/library/a:latest").unwrap(), a);
        assert_eq!(images.resolve(&b.digest.to_string()).unwrap(), b);
        let listed = images.list().unwrap();
        let id = listed.iter().find(|image| image.descriptor == b).unwrap().manifests[0].id;
        assert_eq!(images.resolve(&id.short()).unwrap(), b);
        assert!(matches!(images.resolve("a:other"), Err(StoreError::Missing { .. })));
        assert!(matches!(images.resolve("0000000000aa"), Err(StoreError::Missing { .. })));
        assert_eq!(listed.len(), 2);
        assert_eq!(listed.iter().filter(|image| image.tags.is_empty()).count(), 1);
        assert!(tags.remove(&reference("a")).unwrap() && !tags.remove(&reference("a")).unwrap());
        assert!(images.remove(&a.digest).unwrap());
        assert_eq!(images.list().unwrap().len(), 1);
    }

    #[test]
    fn the_manifest_of_a_local_image_lists_its_layers_as_they_are() {
        let (_dir, root) = root();
        let descriptor = store(&root, 0);
        let platform = Platform::new("linux", "amd64", None);
        let (_, manifest) = root.images().manifest(&descriptor, &platform).unwrap().unwrap();
        let config = root.images().config(&manifest.config).unwrap();
        let layers = layers_of(&manifest, &config).unwrap();
        assert_eq!(layers[0].0.0, layers[0].1.digest);
        assert_eq!((layers[0].1.size, layers[0].1.media_type.as_str()), (1024, media_type::OCI_LAYER));
    }

    #[test]
    fn a_layer_is_as_large_as_its_tar_while_that_is_here() {
        let (_dir, root) = root();
        let local = store(&root, 0);
        let (_, mut manifest) = root.images().manifests(&local).unwrap().remove(0);
        let config = root.images().config(&manifest.config).unwrap();
        manifest.layers[0].size = 7;
        let pulled = root.images().put_manifest(&manifest).unwrap();
        for image in [&local, &pulled] {
            root.images().add(image).unwrap();
        }
        let size_of = |image: &Descriptor| {
            let listed = root.images().list().unwrap();
            listed.iter().find(|listed| listed.descriptor == *image).unwrap().manifests[0].size
        };
        assert_eq!((size_of(&local), size_of(&pulled)), (1024, 1024));
        root.layers().remove(&config.rootfs.diff_ids[0]).unwrap();
        assert_eq!(size_of(&pulled), 7);
    }

    #[test]
    fn after_a_crash_of_the_machine_a_tag_is_the_old_image_or_the_new_one() {
        let (_dir, root) = root();
        let images: Vec<Descriptor> = (0..4).map(|zeros| store(&root, zeros)).collect();
        let name = reference("a:1");
        root.tags().set(&name, &images[0]).unwrap();
        root.sync().unwrap();
        for image in &images[1..3] {
            root.tags().set(&name, image).unwrap();
            assert_eq!(root.tags().get(&name).unwrap().as_ref(), Some(image));
        }
        assert_eq!(root.tags().list().unwrap().len(), 1);
        assert_eq!(root.tags().list().unwrap()[0].descriptor, images[2]);
        root.inner
            .db
            .write(|tx| tx.execute("UPDATE tags SET epoch = x'00' WHERE epoch IS NOT NULL", []))
            .unwrap();
        assert_eq!(root.tags().get(&name).unwrap().as_ref(), Some(&images[0]));
        assert_eq!(root.tags().list().unwrap()[0].descriptor, images[0]);
        root.tags().set(&name, &images[3]).unwrap();
        root.sync().unwrap();
        let rows: i64 =
            root.inner.db.read(|db| db.query_row("SELECT count(*) FROM tags", [], |row| row.get(0))).unwrap();
        assert_eq!(rows, 1);
        assert_eq!(root.tags().get(&name).unwrap().as_ref(), Some(&images[3]));
    }

    #[test]
    fn an_index_that_is_here_in_part_is_listed_with_what_is_here() {
        let (_dir, root) = root();
        let here = store(&root, 0);
        let platform = |arch| Some(Platform::new("linux", arch, None));
        let index = Index {
            schema_version: 2,
            media_type: media_type::OCI_INDEX.to_owned(),
            manifests: vec![
                Descriptor {
                    platform: platform("arm64"),
                    ..Descriptor::of(media_type::OCI_MANIFEST, b"gone")
                },
                Descriptor { platform: platform("amd64"), ..here.clone() },
            ],
            annotations: std::collections::BTreeMap::new(),
        };
        let descriptor = root.images().put_index(&index).unwrap();
        root.tags().set(&reference("multi"), &descriptor).unwrap();
        assert_eq!(root.images().list().unwrap()[0].manifests.len(), 1);
        let found = root.images().manifest(&descriptor, &Platform::new("linux", "amd64", None)).unwrap();
        assert_eq!(found.unwrap().0.digest, here.digest);
        assert!(
            root.images()
                .manifest(&descriptor, &Platform::new("linux", "arm64", None))
                .unwrap_err()
                .is_missing()
        );
        assert!(
            root.images().manifest(&descriptor, &Platform::new("linux", "s390x", None)).unwrap().is_none()
        );
    }

    #[test]
    fn a_name_with_a_digest_is_that_image_or_none() {
        let (_dir, root) = root();
        let (a, b) = (store(&root, 0), store(&root, 1));
        root.tags().set(&reference("a:1"), &a).unwrap();
        let pinned = |digest: Digest| reference(&format!("a:1@{digest}"));
        assert_eq!(root.tags().get(&pinned(a.digest)).unwrap(), Some(a));
        assert_eq!(root.tags().get(&pinned(b.digest)).unwrap(), None);
    }
}

//! A cache in an object store: `type=s3|gcs|azblob|redis|fs|gha`.
//!
//! `blobs/DIGEST` are layers and what cache mounts consist of, `manifests/NAME` is the index: where BuildKit has them.
//! There is nothing that lists blobs, so nothing is removed there: that is a lifecycle rule of the bucket.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use image::{Descriptor, DiffId, Digest};
use store::compress::Algorithm;
use store::layer::LayerBlob;
use store::pool;
use store::registry::Client;
use store::root::Root;
use worker::error::WorkerError;

use super::Sent;
use super::bucket::Bucket;
use super::local::{Blob, blob};
use crate::cache::CacheError;
use crate::cache::export::Plan;
use crate::cache::format::{CacheIndex, FormatError, MAX_CONFIG};
use crate::cache::import::Imports;
use crate::cache::options::{CacheTo, Objects};

/// Blobs that are sent at the same time.
const AT_ONCE: usize = 4;

/// An object store that holds caches.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    bucket: Bucket,
    objects: Objects,
}

impl Store {
    /// Nothing is asked yet.
    pub(crate) fn open(objects: &Objects, client: &Client) -> Result<Self, CacheError> {
        Ok(Self { bucket: Bucket::open(objects, client)?, objects: objects.clone() })
    }

    /// Its name in messages.
    pub(crate) fn name(&self) -> String {
        self.objects.name()
    }

    /// The index of the cache.
    pub(crate) async fn read(&self) -> Result<CacheIndex, CacheError> {
        let name = self.objects.names.first().expect("there is at least one name");
        let found = self.bucket.read_replaced(&self.manifest(name), MAX_CONFIG + 1).await?;
        let Some(bytes) = found else {
            return Err(CacheError::Missing(format!("{name} in {}", self.objects.name())));
        };
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(FormatError::TooBig.into());
        }
        Ok(CacheIndex::from_config(&bytes)?)
    }

    /// Whether it has a blob.
    pub(crate) async fn has(&self, blob: &Descriptor) -> Result<bool, CacheError> {
        self.bucket.has(&self.blob(&blob.digest), blob.size).await
    }

    /// A blob of no more than `limit` bytes, not verified.
    pub(crate) async fn blob_bytes(&self, blob: &Descriptor, limit: u64) -> Result<Bytes, CacheError> {
        let found = self.bucket.read(&self.blob(&blob.digest), blob.size.min(limit)).await?;
        found.ok_or_else(|| self.lacks(&blob.digest))
    }

    /// Brings a layer, or a compressed form of it.
    pub(crate) async fn bring_layer(
        &self,
        root: &Root,
        diff_id: DiffId,
        blob: &Descriptor,
    ) -> Result<(), CacheError> {
        let fetched = self.bucket.fetch(&self.blob(&blob.digest), blob.size, root.temp_file()?).await?;
        let temp = fetched.ok_or_else(|| self.lacks(&blob.digest))?;
        let (root, blob) = (root.clone(), blob.clone());
        pool::spawn(move || -> Result<(), CacheError> {
            let failed = |source| WorkerError::Io { path: temp.path().to_owned(), source };
            let file = File::open(temp.path()).map_err(failed)?;
            root.hold([diff_id.into()])?;
            if blob.digest == diff_id.0 {
                root.layers().ingest(file, &diff_id)?;
                return Ok(());
            }
            root.blobs().put(&blob.digest, blob.size, file)?;
            let form = LayerBlob {
                digest: blob.digest,
                size: blob.size,
                algorithm: Algorithm::of_media_type(&blob.media_type).unwrap_or(Algorithm::None),
                media_type: blob.media_type,
                level: None,
                annotations: Default::default(),
            };
            Ok(root.layers().remember_blob(&diff_id, &form)?)
        })
        .await?
    }

    /// Writes what is missing, and the index last.
    pub(crate) async fn write(
        &self,
        root: &Root,
        client: &Client,
        imports: &Imports,
        to: &CacheTo,
        plan: &Plan,
    ) -> Result<Sent, CacheError> {
        // Each blob is asked for once.
        let there = RefCell::new(HashSet::new());
        let layers = plan.layers.iter().map(|diff_id| {
            let is_there = async |blob: &Descriptor| {
                let is_there = self.has(blob).await.unwrap_or(false);
                if is_there {
                    let _once = there.borrow_mut().insert(blob.digest);
                }
                is_there
            };
            async move { blob(root, client, imports, to, *diff_id, is_there).await }
        });
        let blobs: Vec<Option<Blob>> = stream::iter(layers).buffered(AT_ONCE).try_collect().await?;
        let mut index = plan.index.clone();
        let known = plan.layers.iter().zip(&blobs);
        index.layers =
            known.filter_map(|(diff_id, blob)| Some((*diff_id, blob.as_ref()?.0.clone()))).collect();
        let all: Vec<&Blob> = blobs.iter().flatten().chain(&plan.files).collect();
        let sent = stream::iter(&all).map(async |blob: &&Blob| {
            if there.borrow().contains(&blob.0.digest) { Ok(false) } else { self.put(blob).await }
        });
        let sent: Vec<bool> = sent.buffered(AT_ONCE).try_collect().await?;
        let config = Bytes::from(index.to_config());
        for name in &self.objects.names {
            self.bucket.replace(&self.manifest(name), config.clone()).await?;
        }
        let mut total = Sent::default();
        for (is_new, (blob, _)) in sent.into_iter().zip(all) {
            total.count(blob, is_new);
        }
        Ok(total)
    }

    /// `false`: it is there already.
    async fn put(&self, (blob, from): &Blob) -> Result<bool, CacheError> {
        if self.has(blob).await? {
            return Ok(false);
        }
        self.bucket.put(&self.blob(&blob.digest), from, blob.size).await
    }

    fn lacks(&self, digest: &Digest) -> CacheError {
        CacheError::Missing(format!("blob {digest} in {}", self.objects.name()))
    }

    fn blob(&self, digest: &Digest) -> String {
        format!("{}{}{digest}", self.objects.prefix, self.objects.blobs_prefix)
    }

    fn manifest(&self, name: &str) -> String {
        format!("{}{}{name}", self.objects.prefix, self.objects.manifests_prefix)
    }
}

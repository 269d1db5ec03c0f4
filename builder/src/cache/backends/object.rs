//! `type=s3|gcs|azblob|redis|fs`: a cache in an object store, through OpenDAL, each behind the feature of its name.
//!
//! `blobs/DIGEST` are layers and what cache mounts consist of, `manifests/NAME` is the index: where BuildKit has them.
//! There is nothing that lists blobs, so nothing is removed there: that is a lifecycle rule of the bucket.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use image::{Descriptor, DiffId, Digest};
use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::{ErrorKind, Operator};
use store::compress::Algorithm;
use store::layer::LayerBlob;
use store::pool;
use store::registry::Client;
use store::root::Root;
use worker::error::WorkerError;

use super::Sent;
use super::local::{Blob, blob};
use crate::cache::CacheError;
use crate::cache::export::Plan;
use crate::cache::format::{CacheIndex, MAX_CONFIG};
use crate::cache::import::Imports;
use crate::cache::options::{CacheTo, Objects, Service};

/// Blobs go in parts of this length, bytes: the shortest that S3 takes is 5 MiB.
const PART: usize = 8 << 20;
/// Blobs that are sent at the same time.
const AT_ONCE: usize = 4;

/// An object store that holds caches.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    operator: Operator,
    objects: Objects,
}

impl Store {
    /// Nothing is asked yet.
    pub(crate) fn open(objects: &Objects) -> Result<Self, CacheError> {
        store::registry::install_crypto();
        opendal_http_transport_reqwest::install_default();
        let operator = operator(objects)?.layer(TimeoutLayer::new()).layer(RetryLayer::new().with_jitter());
        Ok(Self { operator, objects: objects.clone() })
    }

    /// The index of the cache: one request.
    pub(crate) async fn read(&self) -> Result<CacheIndex, CacheError> {
        let name = self.objects.names.first().expect("there is at least one name");
        let path = self.manifest(name);
        let found = match self.operator.stat(&path).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(CacheError::Missing(format!("{name} in {}", self.objects.name())));
            }
            found => found?,
        };
        if found.content_length() > MAX_CONFIG {
            return Err(crate::cache::format::FormatError::TooBig.into());
        }
        Ok(CacheIndex::from_config(&self.operator.read(&path).await?.to_bytes())?)
    }

    /// A blob of no more than `limit` bytes, not verified.
    pub(crate) async fn blob_bytes(&self, blob: &Descriptor, limit: u64) -> Result<Bytes, CacheError> {
        let path = self.blob(&blob.digest);
        // Ranges, so that no more comes than is expected.
        Ok(self.operator.reader(&path).await?.read(0..blob.size.min(limit)).await?.to_bytes())
    }

    /// Brings a layer, or a compressed form of it.
    pub(crate) async fn bring_layer(
        &self,
        root: &Root,
        diff_id: DiffId,
        blob: &Descriptor,
    ) -> Result<(), CacheError> {
        let path = self.blob(&blob.digest);
        let mut temp = root.temp_file()?;
        let reader = self.operator.reader_with(&path).chunk(PART).concurrent(AT_ONCE).await?;
        let mut bytes = reader.into_bytes_stream(0..blob.size).await?;
        while let Some(part) = bytes.next().await {
            let part = part.map_err(|source| WorkerError::Io { path: temp.path().to_owned(), source })?;
            temp = pool::spawn(move || {
                std::io::Write::write_all(&mut temp, &part)
                    .map_err(|source| WorkerError::Io { path: temp.path().to_owned(), source })
                    .map(|()| temp)
            })
            .await??;
        }
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
        let layers = plan.layers.iter().map(|diff_id| async move {
            let there = async |blob: &Descriptor| self.has(blob).await;
            blob(root, client, imports, to, *diff_id, there).await
        });
        let blobs: Vec<Option<Blob>> = stream::iter(layers).buffered(AT_ONCE).try_collect().await?;
        let mut index = plan.index.clone();
        let known = plan.layers.iter().zip(&blobs);
        index.layers =
            known.filter_map(|(diff_id, blob)| Some((*diff_id, blob.as_ref()?.0.clone()))).collect();
        let all: Vec<&Blob> = blobs.iter().flatten().chain(&plan.files).collect();
        let sent = stream::iter(&all).map(|(blob, path)| self.put(blob, path)).buffered(AT_ONCE);
        let sent: Vec<bool> = sent.try_collect().await?;
        let config = Bytes::from(index.to_config());
        for name in &self.objects.names {
            self.operator.write(&self.manifest(name), config.clone()).await?;
        }
        let mut total = Sent::default();
        for (is_new, (blob, _)) in sent.into_iter().zip(all) {
            total.count(blob, is_new);
        }
        Ok(total)
    }

    async fn has(&self, blob: &Descriptor) -> bool {
        let found = self.operator.stat(&self.blob(&blob.digest)).await;
        found.is_ok_and(|found| found.content_length() == blob.size)
    }

    /// `false`: it is there already.
    async fn put(&self, blob: &Descriptor, from: &Path) -> Result<bool, CacheError> {
        if self.has(blob).await {
            return Ok(false);
        }
        let failed = |source| WorkerError::Io { path: from.to_owned(), source };
        let mut file = File::open(from).map_err(failed)?;
        let path = self.blob(&blob.digest);
        let mut writer = self.operator.writer(&path).await?;
        loop {
            let mut part = Vec::with_capacity(PART.min(blob.size as usize));
            file.by_ref().take(PART as u64).read_to_end(&mut part).map_err(failed)?;
            if part.is_empty() {
                break;
            }
            writer.write(part).await?;
        }
        writer.close().await?;
        Ok(true)
    }

    fn blob(&self, digest: &Digest) -> String {
        format!("{}{}{digest}", self.objects.prefix, self.objects.blobs_prefix)
    }

    fn manifest(&self, name: &str) -> String {
        format!("{}{}{name}", self.objects.prefix, self.objects.manifests_prefix)
    }
}

/// The store that is meant.
fn operator(objects: &Objects) -> Result<Operator, CacheError> {
    // What a service does not need is not set; what it needs it asks for.
    let set = |name: &str| objects.settings.get(name).map_or("", String::as_str);
    match objects.service {
        #[cfg(feature = "s3")]
        Service::S3 => {
            let mut s3 = opendal::services::S3::default()
                .bucket(set("bucket"))
                .region(set("region"))
                .access_key_id(set("access_key_id"))
                .secret_access_key(set("secret_access_key"))
                .session_token(set("session_token"));
            let endpoint = set("endpoint_url");
            if !endpoint.is_empty() {
                s3 = s3.endpoint(endpoint);
            }
            // As in BuildKit the bucket is in the host name, unless another endpoint says otherwise.
            if endpoint.is_empty() || set("use_path_style") != "true" {
                s3 = s3.enable_virtual_host_style();
            }
            Ok(Operator::new(s3)?)
        }
        #[cfg(feature = "gcs")]
        Service::Gcs => {
            let mut gcs = opendal::services::Gcs::default()
                .bucket(set("bucket"))
                .credential_path(set("credential_path"));
            if !set("endpoint_url").is_empty() {
                gcs = gcs.endpoint(set("endpoint_url"));
            }
            Ok(Operator::new(gcs)?)
        }
        #[cfg(feature = "azblob")]
        Service::Azblob => Ok(Operator::new(
            opendal::services::Azblob::default()
                .container(set("container"))
                .endpoint(set("account_url"))
                .account_name(set("account_name"))
                .account_key(set("secret_access_key")),
        )?),
        #[cfg(feature = "redis")]
        Service::Redis => Ok(Operator::new(
            opendal::services::Redis::default()
                .endpoint(set("url"))
                .username(set("username"))
                .password(set("password")),
        )?),
        #[cfg(feature = "fs")]
        Service::Fs => Ok(Operator::new(opendal::services::Fs::default().root(set("root")))?),
        #[allow(unreachable_patterns, reason = "with all features there is no other service")]
        service => Err(CacheError::NotBuilt(service.name())),
    }
}

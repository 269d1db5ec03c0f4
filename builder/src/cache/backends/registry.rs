//! `type=registry`: a cache under a name at a registry, or in an image there.

use std::cell::RefCell;
use std::path::Path;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use image::manifest::{Document, media_type};
use image::{Descriptor, DiffId, Manifest, Reference};
use store::push::{self, Watch};
use store::registry::{Body, Class, Client, Progress, Pushed, RegistryError};
use store::root::Root;
use worker::error::WorkerError;

use super::Sent;
use super::inline::extract;
use crate::cache::CacheError;
use crate::cache::export::Plan;
use crate::cache::format::{CONFIG_TYPE, CacheIndex, MAX_CONFIG};
use crate::cache::options::CacheTo;
use crate::progress::Task;

/// Blobs of cache mounts that are sent at the same time.
const AT_ONCE: usize = 4;
/// How many images of an index are looked into.
const MAX_IMAGES: usize = 32;

/// Reads the index, which takes two requests.
pub(crate) async fn read(client: &Client, reference: &Reference) -> Result<CacheIndex, CacheError> {
    let found = match client.resolve(reference).await {
        Ok(found) => found,
        Err(error) if error.class() == Class::NotFound => {
            return Err(CacheError::Missing(reference.familiar()));
        }
        Err(error) => return Err(error.into()),
    };
    let config = async |descriptor: &Descriptor| client.blob_bytes(reference, descriptor, MAX_CONFIG).await;
    match found.document {
        Document::Manifest(manifest) if manifest.config.media_type == CONFIG_TYPE => {
            Ok(CacheIndex::from_config(&config(&manifest.config).await?)?)
        }
        Document::Manifest(manifest) => image(&manifest, config).await,
        Document::Index(index) => {
            if let Some(found) = index.manifests.iter().find(|entry| entry.media_type == CONFIG_TYPE) {
                return Ok(CacheIndex::from_config(&config(found).await?)?);
            }
            let images = index.manifests.iter().filter(|entry| {
                media_type::is_manifest(&entry.media_type)
                    && entry.platform.as_ref().is_some_and(|platform| platform.os != "unknown")
            });
            let mut all: Option<CacheIndex> = None;
            for entry in images.take(MAX_IMAGES) {
                let found = client.resolve(&reference.by_digest(entry.digest)).await?;
                let Document::Manifest(manifest) = found.document else { continue };
                let one = image(&manifest, config).await?;
                match &mut all {
                    None => all = Some(one),
                    Some(all) => {
                        all.steps.extend(one.steps);
                        all.memo.extend(one.memo);
                        all.layers.extend(one.layers);
                    }
                }
            }
            all.ok_or_else(|| CacheError::Missing(reference.familiar()))
        }
    }
}

async fn image(
    manifest: &Manifest,
    config: impl AsyncFn(&Descriptor) -> Result<bytes::Bytes, RegistryError>,
) -> Result<CacheIndex, CacheError> {
    extract(manifest, &config(&manifest.config).await?)
}

/// Sends what is missing there, layers in parallel, and the index last.
pub(crate) async fn write(
    root: &Root,
    client: &Client,
    reference: &Reference,
    to: &CacheTo,
    plan: &Plan,
    task: &Task,
) -> Result<Sent, CacheError> {
    let options = push::Options { compression: to.compression, force: to.force_compression, oci: to.oci };
    let watch = Shown { task, sent: RefCell::default() };
    let uploads = plan.files.iter().map(|(blob, path)| upload(client, reference, blob, path));
    let pushed = stream::iter(uploads).buffered(AT_ONCE).try_collect::<Vec<Pushed>>().await?;
    for (how, (blob, _)) in pushed.iter().zip(&plan.files) {
        watch.sent.borrow_mut().count(blob, *how != Pushed::Existed);
    }
    let manifest = push::push_artifact(root, client, &plan.layers, reference, &options, &watch, |blobs| {
        plan.index.clone().artifact(&plan.layers, blobs, to.oci, to.image_manifest)
    })
    .await?;
    Ok(Sent { manifest: Some(manifest), ..watch.sent.into_inner() })
}

async fn upload(
    client: &Client,
    reference: &Reference,
    blob: &Descriptor,
    path: &Path,
) -> Result<Pushed, CacheError> {
    let failed = |source| WorkerError::Io { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(failed)?;
    let body = Body::Bytes(bytes.into());
    Ok(client.push_blob(reference, blob, body, None, false, &Progress::none()).await?)
}

struct Shown<'a> {
    task: &'a Task,
    sent: RefCell<Sent>,
}

impl Watch for Shown<'_> {
    fn begin(&self, diff_id: &DiffId) -> Progress {
        self.task.reporter(&diff_id.to_string())
    }

    fn end(&self, diff_id: &DiffId, blob: &Descriptor, how: Pushed) {
        self.task.progress(&diff_id.to_string(), blob.size, Some(blob.size), true);
        self.sent.borrow_mut().count(blob, how == Pushed::Uploaded);
    }
}

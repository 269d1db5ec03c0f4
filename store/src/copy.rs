//! An image from one repository to another, without the store: blobs are mounted where one registry has both, else passed
//! on while they arrive.

use std::sync::Arc;

use futures::future::try_join_all;
use image::manifest::Document;
use image::{Descriptor, Manifest, Reference};

use crate::push::{PushError, RemoteSource};
use crate::registry::{Body, Client, Progress, RegistryError};

/// Puts the manifest `descriptor` of `from`'s repository into the one of `target`, with all it names, by its digest.
pub async fn copy(
    client: &Client,
    from: &Reference,
    descriptor: &Descriptor,
    target: &Reference,
) -> Result<(), PushError> {
    if from.registry == target.registry && from.repository == target.repository {
        return Ok(());
    }
    let refused = |what: String| {
        move |source: RegistryError| PushError::Registry {
            what,
            target: target.familiar(),
            source: Box::new(source),
        }
    };
    let found = client.resolve(&from.by_digest(descriptor.digest)).await;
    let found = found.map_err(refused(format!("manifest {}", descriptor.digest)))?;
    if let Document::Manifest(Manifest { config, layers, .. }) = &found.document {
        let blobs = layers.iter().chain([config]);
        try_join_all(blobs.map(async |blob| {
            let mount = (from.registry == target.registry).then_some(from.repository.as_str());
            let source = RemoteSource { client: client.clone(), from: from.clone(), blob: blob.clone() };
            let body = Body::Source(Arc::new(source));
            client
                .push_blob(target, blob, body, mount, false, &Progress::none())
                .await
                .map_err(refused(format!("blob {}", blob.digest)))
        }))
        .await?;
    }
    let there = Reference { tag: None, ..target.by_digest(descriptor.digest) };
    client
        .put_manifest(&there, &descriptor.media_type, found.bytes)
        .await
        .map_err(refused("manifest".to_owned()))?;
    Ok(())
}

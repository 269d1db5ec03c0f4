//! `type=local`: a cache in an OCI layout, which other tools can read.

use std::path::{Path, PathBuf};

use futures::future::try_join_all;
use image::manifest::Document;
use image::{Descriptor, DiffId, Digest};
use store::archive::content::pack;
use store::archive::{ArchiveError, OciLayout, oci_layout};
use store::compress::Algorithm;
use store::pool;
use store::registry::{Client, Progress};
use store::root::Root;
use worker::source::image::pull_layer;

use super::Sent;
use super::inline::extract;
use crate::cache::CacheError;
use crate::cache::export::Plan;
use crate::cache::format::{CONFIG_TYPE, CacheIndex};
use crate::cache::import::Imports;
use crate::cache::options::CacheTo;

/// Reads the index of the cache called `tag`, or `digest`, in the layout at `src`.
pub(crate) fn read(
    root: &Root,
    src: &Path,
    tag: &str,
    digest: Option<&Digest>,
) -> Result<(OciLayout, CacheIndex), CacheError> {
    let layout = match OciLayout::open(root, src) {
        Err(ArchiveError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(CacheError::Missing(src.display().to_string()));
        }
        layout => layout?,
    };
    let Some(entry) = layout.find(Some(tag), digest) else {
        return Err(CacheError::Missing(match digest {
            Some(digest) => format!("{digest} in {}", src.display()),
            None => format!("{tag} in {}", src.display()),
        }));
    };
    let bytes = layout.document(entry)?;
    let document = Document::parse(&bytes, Some(&entry.media_type))
        .map_err(|source| ArchiveError::Document { digest: entry.digest, source })?;
    let index = match document {
        Document::Manifest(manifest) if manifest.config.media_type == CONFIG_TYPE => {
            CacheIndex::from_config(&layout.document(&manifest.config)?)?
        }
        Document::Manifest(manifest) => extract(&manifest, &layout.document(&manifest.config)?)?,
        Document::Index(index) => {
            match index.manifests.iter().find(|entry| entry.media_type == CONFIG_TYPE) {
                Some(config) => CacheIndex::from_config(&layout.document(config)?)?,
                None => return Err(CacheError::Missing(format!("{tag} in {}", src.display()))),
            }
        }
    };
    Ok((layout, index))
}

/// Where a layer's blob is.
pub(super) type Blob = (Descriptor, PathBuf);

/// Writes what is missing in the layout at `dest`, and the index last.
pub(crate) async fn write(
    root: &Root,
    client: &Client,
    imports: &Imports,
    (dest, tag, reset): (&Path, &str, bool),
    to: &CacheTo,
    plan: &Plan,
) -> Result<Sent, CacheError> {
    let work = plan.layers.iter().map(|diff_id| {
        let there = async |blob: &Descriptor| oci_layout::has_blob(dest, &blob.digest, blob.size);
        blob(root, client, imports, to, *diff_id, there)
    });
    let blobs: Vec<Option<Blob>> = try_join_all(work).await?;
    let mut sent = Sent::default();
    for (descriptor, _) in blobs.iter().flatten() {
        sent.count(descriptor, !oci_layout::has_blob(dest, &descriptor.digest, descriptor.size));
    }
    for (descriptor, _) in &plan.files {
        sent.count(descriptor, !oci_layout::has_blob(dest, &descriptor.digest, descriptor.size));
    }
    let descriptors: Vec<Option<Descriptor>> =
        blobs.iter().map(|blob| blob.as_ref().map(|(descriptor, _)| descriptor.clone())).collect();
    let artifact = plan.index.clone().artifact(&plan.layers, &descriptors, to.oci, to.image_manifest);
    sent.manifest = Some(Descriptor::of(&artifact.document.0, &artifact.document.1));
    // Of cache mounts also what stays there, so that a reset leaves it.
    let new = plan.files.iter().map(|(blob, path)| (blob.digest, blob.size, path.clone()));
    let listed = plan.index.mounts.iter().flat_map(|mount| [&mount.index].into_iter().chain(&mount.packs));
    let listed = listed.map(|blob| (blob.digest, blob.size, PathBuf::new()));
    let layers = blobs.into_iter().flatten().map(|(blob, path)| (blob.digest, blob.size, path));
    let files = layers.chain(new).chain(listed).collect::<Vec<_>>();
    let (dest, tag) = (dest.to_owned(), tag.to_owned());
    pool::spawn(move || {
        let (kind, bytes) = &artifact.document;
        oci_layout::write_artifact(&dest, &tag, (kind, bytes), &artifact.config, &files, reset)
    })
    .await??;
    Ok(sent)
}

/// The form in which a layer goes; made unless it is `there`. `None`: the layer cannot be had.
pub(super) async fn blob(
    root: &Root,
    client: &Client,
    imports: &Imports,
    to: &CacheTo,
    diff_id: DiffId,
    there: impl AsyncFn(&Descriptor) -> bool,
) -> Result<Option<Blob>, CacheError> {
    let layers = root.layers();
    let algorithm = to.compression.algorithm;
    let kind = if to.oci { algorithm.oci_media_type() } else { algorithm.docker_media_type() };
    let kind = kind.expect("only what has a media type can be asked for");
    let exact = to.force_compression;
    for known in layers.blobs_of(&diff_id)? {
        let ours = known.level == Some(to.compression.level);
        let usable = known.algorithm == algorithm && (ours || (!exact && known.level.is_none()));
        let descriptor = Descriptor::new(kind, known.digest, known.size);
        if usable && there(&descriptor).await {
            return Ok(Some((descriptor, root.blobs().path(&known.digest))));
        }
    }
    if !layers.contains(&diff_id)? {
        let pulled = pull_layer(root, client, diff_id, Progress::none()).await;
        match pulled {
            Err(error) if error.is_elsewhere() => {
                if !imports.bring_layer(diff_id).await {
                    return Ok(None);
                }
            }
            result => result?,
        }
    }
    if algorithm == Algorithm::None {
        let Some(size) = layers.size(&diff_id)? else { return Ok(None) };
        return Ok(Some((Descriptor::new(kind, diff_id.0, size), layers.tar_path(&diff_id))));
    }
    let (job_root, compression) = (root.clone(), to.compression);
    let blob = pool::beside(move || pack(&job_root, &diff_id, compression, exact)).await??;
    let path = root.blobs().path(&blob.digest);
    Ok(Some((Descriptor::new(kind, blob.digest, blob.size), path)))
}

//! From a solved build to an image, and where it goes.
//!
//! The build makes an [`AssembledImage`] a platform; an exporter writes them out and says in [`Exported`] what they
//! became: `image` into the store (and on to a registry), `archive` into a file, `flat` as plain files. `metadata`
//! tells the caller about it.

pub(crate) mod archive;
pub(crate) mod assemble;
pub(crate) mod file;
pub(crate) mod flat;
pub(crate) mod image;
pub(crate) mod metadata;
pub(crate) mod options;
pub(crate) mod push;

use ::image::config::RootFs;
use ::image::manifest::media_type;
use ::image::{Descriptor, DiffId, Digest, ImageConfig, Index, Manifest, Platform, Reference};
use store::root::Root;

use crate::failure::Failure;
use options::{Annotations, Options};

/// A built image of one platform: its layers are in the store.
#[derive(Clone, Debug)]
pub(crate) struct AssembledImage {
    /// The config, with its layers and times.
    pub(crate) config: ImageConfig,
    /// What it is for; decides its place in an index.
    pub(crate) platform: Platform,
}

impl AssembledImage {
    /// The layers, bottom first.
    pub(crate) fn diff_ids(&self) -> &[DiffId] {
        let RootFs { diff_ids, .. } = &self.config.rootfs;
        diff_ids
    }
}

/// What an exporter made.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    /// The manifest, or the index of several platforms, as it was written.
    pub(crate) descriptor: Descriptor,
    /// The config of a single image: Docker's image ID.
    pub(crate) config: Option<Digest>,
    /// Its names.
    pub(crate) names: Vec<Reference>,
}

/// Which descriptor of a layer goes into a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listing {
    /// Its tar: what costs nothing.
    Uncompressed,
    /// The compressed form it was pulled as if that is at hand, else its tar.
    AsPulled,
}

/// Stores configs and manifests, and an index if there are several images. Returns the descriptor of what is on top.
fn put_documents(
    root: &Root,
    images: &[AssembledImage],
    options: &Options,
    listing: Listing,
) -> Result<Descriptor, Failure> {
    let annotations = &options.annotations;
    let mut manifests = Vec::with_capacity(images.len());
    for image in images {
        let config_type = assemble::config_type(options.oci);
        let config = root.images().put_document(config_type, &image.config.to_bytes())?;
        let layers = image
            .diff_ids()
            .iter()
            .map(|diff_id| layer(root, diff_id, options.oci, listing))
            .collect::<Result<Vec<_>, _>>()?;
        let notes = Annotations::of(&annotations.manifest, Some(&image.platform));
        let bytes = assemble::manifest(config, layers, notes, options.oci);
        let manifest_type = if options.oci { media_type::OCI_MANIFEST } else { media_type::DOCKER_MANIFEST };
        let mut descriptor = root.images().put_document(manifest_type, &bytes)?;
        descriptor.platform = Some(image.platform.clone());
        descriptor.annotations = Annotations::of(&annotations.manifest_descriptor, Some(&image.platform));
        manifests.push(descriptor);
    }
    if let [one] = &mut manifests[..] {
        if !annotations.index.is_empty() || !annotations.index_descriptor.is_empty() {
            return Err(Failure::usage("index annotations need an image of several platforms"));
        }
        // Only an index says what a manifest is for.
        return Ok(Descriptor { platform: None, ..one.clone() });
    }
    let index = Index {
        schema_version: 2,
        media_type: if options.oci { media_type::OCI_INDEX } else { media_type::DOCKER_INDEX }.to_owned(),
        manifests,
        annotations: Annotations::of(&annotations.index, None),
    };
    let bytes = serde_json::to_vec_pretty(&index).expect("an index has string keys only");
    let mut descriptor = root.images().put_document(&index.media_type, &bytes)?;
    descriptor.annotations = Annotations::of(&annotations.index_descriptor, None);
    Ok(descriptor)
}

fn layer(root: &Root, diff_id: &DiffId, oci: bool, listing: Listing) -> Result<Descriptor, Failure> {
    let layers = root.layers();
    if listing == Listing::AsPulled {
        for blob in layers.blobs_of(diff_id)?.iter().filter(|blob| blob.level.is_none()) {
            let algorithm = blob.algorithm;
            let kind = if oci { algorithm.oci_media_type() } else { algorithm.docker_media_type() };
            let (Some(kind), true) = (kind, root.blobs().contains(&blob.digest)?) else { continue };
            return Ok(Descriptor { media_type: kind.to_owned(), ..blob.descriptor() });
        }
    }
    let Some(size) = layers.size(diff_id)? else {
        // A base that no step needed was not fetched: it is listed as its registry has it.
        if let Some(blob) = layers.blobs_of(diff_id)?.into_iter().find(|blob| blob.level.is_none()) {
            return Ok(blob.descriptor());
        }
        return Err(store::error::StoreError::Missing { what: "layer", name: diff_id.to_string() }.into());
    };
    let kind = if oci { media_type::OCI_LAYER } else { media_type::DOCKER_LAYER };
    Ok(Descriptor::new(kind, diff_id.0, size))
}

/// The config of an image that has one manifest only.
fn only_config<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> Option<Digest> {
    let mut manifests = manifests.into_iter();
    match (manifests.next(), manifests.next()) {
        (Some(manifest), None) => Some(manifest.config.digest),
        _ => None,
    }
}

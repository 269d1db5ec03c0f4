//! Attestations beside an image, as BuildKit stores them: a manifest of their own in the same index, for a platform that
//! nobody has, which names the manifest that it is about.

use std::collections::BTreeMap;

use image::manifest::media_type;
use image::{Descriptor, Manifest, Platform, Reference};
use store::root::Root;

use super::AssembledImage;
use crate::attest::{STATEMENT, statement, subjects};
use crate::failure::Failure;

/// Stores the attestations of `image`, which has the manifest `about`. Gives the entry for the index.
pub(super) fn attach(
    root: &Root,
    image: &AssembledImage,
    about: &Descriptor,
    names: &[Reference],
) -> Result<Descriptor, Failure> {
    let config = root.images().put_document(media_type::OCI_EMPTY, b"{}")?;
    let mut layers = Vec::new();
    for attestation in &image.attestations {
        let bytes = statement(attestation, subjects(&about.digest, names, &image.platform));
        let mut layer = root.images().put_document(STATEMENT, &bytes)?;
        layer
            .annotations
            .insert("in-toto.io/predicate-type".to_owned(), attestation.predicate_type.to_owned());
        layers.push(layer);
    }
    let subject = Descriptor::new(&about.media_type, about.digest, about.size);
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        artifact_type: Some("application/vnd.docker.attestation.manifest.v1+json".to_owned()),
        config,
        layers,
        subject: Some(subject),
        annotations: BTreeMap::new(),
    };
    let bytes = serde_json::to_vec_pretty(&manifest).expect("a manifest has string keys only");
    let mut descriptor = root.images().put_document(media_type::OCI_MANIFEST, &bytes)?;
    descriptor.platform = Some(Platform::new("unknown", "unknown", None));
    descriptor.annotations = BTreeMap::from([
        ("vnd.docker.reference.digest".to_owned(), about.digest.to_string()),
        ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
    ]);
    Ok(descriptor)
}

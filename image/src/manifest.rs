//! Descriptors, manifests and indexes (image-spec `descriptor.md`, `manifest.md`, `image-index.md`), OCI and Docker.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;

/// Media types that are read or written.
#[allow(missing_docs, reason = "the names say it")]
pub mod media_type {
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
    pub const DOCKER_FOREIGN_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

    /// Whether `media_type` is an index (or Docker's manifest list).
    pub fn is_index(media_type: &str) -> bool {
        matches!(media_type, OCI_INDEX | DOCKER_INDEX)
    }

    /// Whether `media_type` is an image manifest.
    pub fn is_manifest(media_type: &str) -> bool {
        matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
    }
}

/// Points at a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's length in bytes.
    pub size: u64,
    /// Where else it may be fetched. Kept, never followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: what the manifest is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The type of an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor with nothing optional.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
        }
    }

    /// The descriptor of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }
}

/// An image manifest: a config and layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`media_type::OCI_MANIFEST`] or [`media_type::DOCKER_MANIFEST`]; OCI manifests may leave it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The type of an artifact that is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// Layers, base first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// The manifest that this one speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image index: manifests by platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// [`media_type::OCI_INDEX`] or [`media_type::DOCKER_INDEX`]; OCI indexes may leave it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The manifests, in order of preference.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// The manifest that serves `platform` best; attestations (`unknown/unknown`) never do.
    pub fn select(&self, platform: &Platform) -> Option<&Descriptor> {
        self.manifests
            .iter()
            .filter_map(|descriptor| Some((descriptor.platform.as_ref()?.serves(platform)?, descriptor)))
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, descriptor)| descriptor)
    }
}

/// What a registry or layout gave for a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there are a few in a build, and none is kept in numbers")]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// Bytes that are no manifest and no index.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or fields of the wrong type.
    #[error("could not parse manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// A type that is neither, or Docker's schema 1.
    #[error("unsupported manifest type {0:?}")]
    MediaType(String),
    /// `manifests` and `layers` in one document, or another type inside than outside (CVE-2021-41190).
    #[error("ambiguous manifest: {0}")]
    Ambiguous(&'static str),
}

impl Document {
    /// Parses `bytes`. `content_type` is what the transport said they are; it, the document's own `mediaType` and its
    /// fields must agree.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            #[serde(default)]
            media_type: String,
            #[serde(default)]
            schema_version: u32,
            manifests: Option<serde_json::Value>,
            layers: Option<serde_json::Value>,
            config: Option<serde_json::Value>,
        }
        let probe: Probe = serde_json::from_slice(bytes)?;
        if probe.schema_version != 2 {
            return Err(DocumentError::MediaType(format!("schemaVersion {}", probe.schema_version)));
        }
        if probe.manifests.is_some() && (probe.layers.is_some() || probe.config.is_some()) {
            return Err(DocumentError::Ambiguous("it has both manifests and layers"));
        }
        let known = |t: &&str| media_type::is_index(t) || media_type::is_manifest(t);
        let outside = content_type.map(|t| t.split(';').next().unwrap_or(t).trim()).filter(known);
        let inside = (!probe.media_type.is_empty()).then_some(probe.media_type.as_str());
        if let (Some(outside), Some(inside)) = (outside, inside)
            && outside != inside
        {
            return Err(DocumentError::Ambiguous("its mediaType is not the type it was served as"));
        }
        let is_index = match inside.or(outside) {
            Some(t) if media_type::is_index(t) => true,
            Some(t) if media_type::is_manifest(t) => false,
            Some(t) => return Err(DocumentError::MediaType(t.to_owned())),
            None => probe.manifests.is_some(),
        };
        if is_index == probe.config.is_some() {
            return Err(DocumentError::Ambiguous("its fields are not those of its type"));
        }
        if is_index {
            Ok(Self::Index(serde_json::from_slice(bytes)?))
        } else {
            Ok(Self::Manifest(serde_json::from_slice(bytes)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_is_two_things_is_refused() {
        let parse = |text: &str, content_type| Document::parse(text.as_bytes(), content_type);
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(parse(index, None), Ok(Document::Index(_))));
        assert!(matches!(parse(index, Some(media_type::OCI_INDEX)), Ok(Document::Index(_))));
        assert!(parse(index, Some(media_type::OCI_MANIFEST)).is_err());
        assert!(parse(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, None).is_err());
        assert!(parse(r#"{"schemaVersion":1}"#, None).is_err());
        let typed =
            format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media_type::OCI_INDEX);
        assert!(parse(&typed, Some(media_type::DOCKER_INDEX)).is_err());
        assert!(parse(&typed, Some("application/json")).is_ok());
    }

    #[test]
    fn an_index_gives_the_nearest_platform_and_never_an_attestation() {
        let descriptor = |platform: Platform| Descriptor {
            platform: Some(platform),
            ..Descriptor::of(media_type::OCI_MANIFEST, b"")
        };
        let index = Index {
            schema_version: 2,
            media_type: String::new(),
            manifests: vec![
                descriptor(Platform::new("unknown", "unknown", None)),
                descriptor(Platform::new("linux", "arm", Some("v6"))),
                descriptor(Platform::new("linux", "amd64", None)),
            ],
            annotations: BTreeMap::new(),
        };
        assert_eq!(index.select(&Platform::new("linux", "amd64", None)), Some(&index.manifests[2]));
        assert_eq!(index.select(&Platform::new("linux", "arm", Some("v7"))), Some(&index.manifests[1]));
        assert_eq!(index.select(&Platform::new("linux", "s390x", None)), None);
    }
}

//! Images in files: OCI image layouts, as a directory or a tar, and what `docker save` writes.
//!
//! [`Content`] is what is written, the same for all forms; [`load`] reads all forms. Both are verified: what is read
//! before it is stored, what is written because it was.

pub mod content;
pub mod docker_archive;
pub mod files;
pub mod oci_archive;
pub mod oci_layout;

use std::io;
use std::path::PathBuf;

use image::manifest::DocumentError;
use image::{Descriptor, Digest, Reference};

use crate::blocks::PackError;
use crate::compress::CompressError;
use crate::error::StoreError;

pub use content::{Content, Packing};
pub use files::Files;
pub use oci_layout::{OciLayout, load};

/// The image's full name: containerd's annotation in an index.
pub const ANNOTATION_NAME: &str = "io.containerd.image.name";
/// The image's tag, or whatever name a layout knows it by (image-spec, `annotations.md`).
pub const ANNOTATION_REF: &str = "org.opencontainers.image.ref.name";

/// Why an archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive is not one, or a part of it is not what it should be.
    #[error("could not read the archive: {0}")]
    Format(String),
    /// Something that it names is not in it.
    #[error("could not read the archive: {0} is missing")]
    Missing(String),
    /// A manifest or index that is none.
    #[error("could not read the archive: {digest}: {source}")]
    Document {
        /// Which.
        digest: Digest,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// Its bytes could not be read, or are not those of its digest.
    #[error("could not read {name} in the archive: {source}")]
    Read {
        /// Which file.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It could not be opened.
    #[error("could not open {}: {source}", path.display())]
    Open {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be written.
    #[error("could not write the archive: {0}")]
    Write(#[source] io::Error),
    /// A layer could not be compressed for it.
    #[error(transparent)]
    Compress(#[from] CompressError),
    /// The root.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<PackError> for ArchiveError {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Compress(error) => error.into(),
            PackError::Store(error) => error.into(),
        }
    }
}

/// An image that came out of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its manifest or index, now in the root.
    pub descriptor: Descriptor,
    /// What the archive calls it. Not set as tags: that is the caller's to do.
    pub names: Vec<Reference>,
}

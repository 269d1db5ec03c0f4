//! [`StoreError`]: what can go wrong with something kept in the root.

use std::io;
use std::path::{Path, PathBuf};

use image::Digest;

use crate::db::DbError;

/// Why something could not be read from the root or written to it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("could not {verb} {}: {source}", path.display())]
    Io {
        /// What was being done.
        verb: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database said no.
    #[error(transparent)]
    Db(#[from] DbError),
    /// It is not here, or what was here turned out to be damaged and was dropped.
    #[error("could not find {what} {name}")]
    Missing {
        /// `layer`, `blob`, `image`.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// A stream that should become a blob or a layer is not what it was said to be.
    #[error("could not store {what} {digest}: {source}")]
    Rejected {
        /// `layer`, `blob`.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A document that does not parse.
    #[error("could not read {what} {name}: {source}")]
    Document {
        /// `manifest`, `config`.
        what: &'static str,
        /// Which.
        name: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A short ID that more than one image starts with.
    #[error("could not find image {0}: more than one image ID starts like that")]
    Ambiguous(String),
}

impl StoreError {
    /// Makes the `map_err` of a file operation.
    pub(crate) fn io(verb: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { verb, path: path.as_ref().to_owned(), source }
    }

    /// Whether the disk (or the quota, or the inode table) is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Rejected { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Db(error) => error.is_disk_full(),
            Self::Missing { .. } | Self::Document { .. } | Self::Ambiguous(_) => false,
        }
    }

    /// Whether the thing asked for is simply not here.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

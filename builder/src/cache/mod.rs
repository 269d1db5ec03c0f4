//! Caches that travel: `--cache-from` and `--cache-to`.
//!
//! An exported cache is a small index ([`format`]: records of steps, what selectors picked, where layers are) and the
//! layers as blobs. [`import`] reads the index when the first step misses here, and brings a layer only when something
//! reads it. Directories of cache mounts go in [`mounts`] if that is asked for. [`export`] decides what goes; the
//! [`backends`] move it. [`session`] is what the solver sees: the cache of this host, then the imported ones.
//!
//! A cache saves work. One that cannot be read is told of and else ignored; one that cannot be written fails the build
//! only with `ignore-error=false`.

pub(crate) mod backends;
pub(crate) mod export;
pub(crate) mod format;
pub(crate) mod import;
pub(crate) mod mounts;
pub(crate) mod options;
pub(crate) mod session;

use store::archive::ArchiveError;
use store::error::StoreError;
use store::push::PushError;
use store::registry::RegistryError;
use worker::source::image::PullError;

/// Why a cache could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The registry did not take it.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The directory is no layout, or cannot be read or written.
    #[error(transparent)]
    Layout(#[from] ArchiveError),
    /// There is nothing of this name.
    #[error("there is no cache {0}")]
    Missing(String),
    /// What is there is no cache of ours.
    #[error("it is no cache of rbuild: {0}")]
    Format(#[from] format::FormatError),
    /// A layer could not be fetched from where it was said to be.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The store of this host.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A cache mount could not be read or written.
    #[error(transparent)]
    Mount(#[from] worker::error::WorkerError),
    /// The object store did not give or take it.
    #[cfg(feature = "object")]
    #[error(transparent)]
    Objects(#[from] opendal::Error),
    /// GitHub's cache service did not.
    #[error(transparent)]
    Actions(#[from] backends::actions::ActionsError),
    /// Support for it is left out.
    #[error("this rbuild was built without {0} caches: build it with `--features {0}`")]
    NotBuilt(&'static str),
    /// A job died.
    #[error(transparent)]
    Panicked(#[from] store::pool::Panicked),
}

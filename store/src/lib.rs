//! Where images are kept: on this disk, in an archive, in a registry.
//!
//! [`Root`] is the state directory and the way to everything in it: layers (one tar file and its index each), blobs
//! (configs, manifests, compressed layers), images and their tags, what the cache remembers of steps, the stat cache.
//! Many processes share one root: every change is one rename or one transaction, [`lock`]s save doing work twice,
//! [`lease`]s keep [`gc`] from what is in use. All of that blocks: only the registry client is async.
//!
//! Cache records are bytes here: their meaning is the solver's.

pub mod archive;
pub mod blob;
mod blocks;
pub mod compress;
pub mod copy;
pub mod db;
pub mod directory;
pub mod error;
pub mod gc;
pub mod layer;
pub mod lease;
pub mod lock;
pub mod pool;
pub mod push;
pub mod record;
pub mod registry;
pub mod root;
pub mod speed;
pub mod stargz;
pub mod stat;
mod sync;
pub mod tag;
pub mod temp;
pub mod timing;
pub mod usage;

pub use error::StoreError;
pub use root::{Root, RootError};

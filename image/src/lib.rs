//! What an image is: bytes in, values out.
//!
//! Digests, references, platforms, configs and manifests; layer tars and their indexes; the merged view over a chain
//! of layers and what COPY, ADD and friends do to it; the EROFS index. Nothing here opens a file, a socket or a
//! database, asks the clock or starts a thread: readers and writers are parameters. `store` keeps images, `worker`
//! runs steps.

pub mod config;
pub mod digest;
pub mod erofs;
pub mod layer;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod tree;

pub use config::ImageConfig;
pub use digest::{ChainId, ContentDigest, DiffId, Digest};
pub use manifest::{Descriptor, Index, Manifest};
pub use platform::Platform;
pub use reference::Reference;

//! Where caches are kept: [`registry`], a [`local`] layout, an [`object`] store, and [`inline`] in the image itself.

pub(crate) mod actions;
mod bucket;
pub(crate) mod inline;
pub(crate) mod local;
pub(crate) mod object;
#[cfg(feature = "object")]
mod opendal;
pub(crate) mod registry;

use image::Descriptor;

/// What a transfer came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Layers in the cache, and blobs of cache mounts.
    pub(crate) layers: usize,
    /// Of these, such as were not there before.
    pub(crate) new: usize,
    /// Bytes of the new ones.
    pub(crate) bytes: u64,
    /// The document that names all of it, where there is one.
    pub(crate) manifest: Option<Descriptor>,
}

impl Sent {
    /// Counts a blob of the cache.
    fn count(&mut self, blob: &Descriptor, is_new: bool) {
        self.layers += 1;
        if is_new {
            self.new += 1;
            self.bytes += blob.size;
        }
    }
}

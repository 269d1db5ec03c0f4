//! Where caches are kept: [`registry`], a [`local`] layout, and [`inline`] in the image itself.

pub(crate) mod inline;
pub(crate) mod local;
pub(crate) mod registry;

/// What a transfer came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Layers in the cache.
    pub(crate) layers: usize,
    /// Of these, such as were not there before.
    pub(crate) new: usize,
    /// Bytes of the new ones.
    pub(crate) bytes: u64,
}

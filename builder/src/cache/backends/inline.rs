//! A cache inside of the image that was built: the records in a field of its config, the layers its own.

use image::{ImageConfig, Manifest};
use serde_json::Value;
use store::tag::layers_of;

use crate::cache::CacheError;
use crate::cache::format::{CacheIndex, FormatError, INLINE_FIELD};

/// BuildKit's field; a base image's says nothing of what is built on it.
const BUILDKIT_FIELD: &str = "moby.buildkit.cache.v0";

/// Removes what a base image says of its own steps.
pub(crate) fn clear(config: &mut ImageConfig) {
    config.extra.remove(INLINE_FIELD);
    config.extra.remove(BUILDKIT_FIELD);
}

/// Puts the records of `index` into a config.
pub(crate) fn embed(config: &mut ImageConfig, index: &CacheIndex) {
    config.extra.insert(INLINE_FIELD.to_owned(), Value::String(index.to_text()));
}

/// Reads the cache in an image.
pub(crate) fn extract(manifest: &Manifest, config: &[u8]) -> Result<CacheIndex, CacheError> {
    let config: ImageConfig = serde_json::from_slice(config).map_err(FormatError::from)?;
    let Some(Value::String(text)) = config.extra.get(INLINE_FIELD) else {
        return Err(FormatError::Foreign.into());
    };
    let mut index = CacheIndex::from_text(text)?;
    index.layers = layers_of(manifest, &config)?;
    Ok(index)
}

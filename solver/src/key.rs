//! Keys: the canonical encodings that decide what is the same.
//!
//! `key(v) = H(op(v), for each input: the content digest of what its selector picks, else the input's result digest)`
//! and `result = H(parent's result, content digest of the own layer)`. An input's *key* is never part of a key: that
//! is what stops a rebuild where a step's output did not change.
//!
//! Bump [`VERSION`] when an encoding changes: every older record then misses.

use std::fmt;

use image::{ChainId, ContentDigest};
use serde::{Deserialize, Serialize};

/// Version of all encodings in this module and of what they hash.
pub const VERSION: u32 = 2;

/// Names a step by what it does and what it reads; the cache is a map from these to records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CacheKey(pub ContentDigest);

/// Names a file tree by how it is built up: equal digests mean equal content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResultDigest(pub ContentDigest);

/// What of an input a key takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputDigest {
    /// All of it.
    Result(ResultDigest),
    /// What a selector picks.
    Selected(ContentDigest),
}

impl CacheKey {
    /// The key of an op that reads `inputs`.
    pub fn of(op: ContentDigest, inputs: &[InputDigest]) -> Self {
        let mut hasher = tagged("key");
        hasher.update(&op.0);
        for input in inputs {
            match input {
                InputDigest::Result(result) => hasher.update(&[1]).update(&result.0.0),
                InputDigest::Selected(selected) => hasher.update(&[2]).update(&selected.0),
            };
        }
        Self(finish(&hasher))
    }
}

impl ResultDigest {
    /// The empty tree, `scratch`.
    pub fn scratch() -> Self {
        Self(finish(&tagged("scratch")))
    }

    /// A pulled image. `None` is an image without layers.
    pub fn image(chain: Option<ChainId>) -> Self {
        let Some(chain) = chain else { return Self::scratch() };
        let mut hasher = tagged("image");
        hasher.update(chain.to_string().as_bytes());
        Self(finish(&hasher))
    }

    /// A layer with this content on top of `self`.
    pub fn with_layer(self, layer: ContentDigest) -> Self {
        let mut hasher = tagged("layer");
        hasher.update(&self.0.0).update(&layer.0);
        Self(finish(&hasher))
    }

    /// All of `inputs` over each other.
    pub fn merge(inputs: &[Self]) -> Self {
        let mut hasher = tagged("merge");
        for input in inputs {
            hasher.update(&input.0.0);
        }
        Self(finish(&hasher))
    }

    /// What `upper` has on top of `lower`.
    pub fn diff(lower: Self, upper: Self) -> Self {
        let mut hasher = tagged("diff");
        hasher.update(&lower.0.0).update(&upper.0.0);
        Self(finish(&hasher))
    }
}

fn tagged(tag: &str) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"rbuild ").update(tag.as_bytes()).update(&VERSION.to_le_bytes());
    hasher
}

fn finish(hasher: &blake3::Hasher) -> ContentDigest {
    ContentDigest(*hasher.finalize().as_bytes())
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for ResultDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

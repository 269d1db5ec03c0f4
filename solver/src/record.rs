//! What the cache remembers of a step.

use image::{ContentDigest, DiffId};
use serde::{Deserialize, Serialize};

use crate::key::{CacheKey, ResultDigest};

/// A finished step: its own layer only; the chain below it is its inputs'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The layer it made.
    pub layer: DiffId,
    /// Names the tree that its layer and what is below it make up.
    pub result: ResultDigest,
    /// The digest of the op, to tell "another command" from "other inputs".
    pub op: ContentDigest,
    /// What it read, by name: why a later build misses is found by comparing these.
    pub inputs: Vec<RecordedInput>,
    /// How long it took, seconds.
    pub seconds: f64,
    /// Size of its layer's tar, bytes.
    pub bytes: u64,
    /// When it was made, seconds since the epoch. History entries show it.
    pub created: i64,
}

/// One thing a step read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedInput {
    /// `base`, `context`, `file src/main.rs`, `ARG VERSION`, `ENV PATH`, `mount /src`.
    pub name: String,
    /// Digest of what was read.
    pub digest: ContentDigest,
}

/// The files a vertex gives: layers, bottom first. No more than that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The layers, bottom first, and when each was made by a step of a build (`None` for a base image's).
    pub layers: Vec<SnapshotLayer>,
}

/// One layer of a [`Snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotLayer {
    /// Which layer.
    pub diff_id: DiffId,
    /// When a step made it, seconds since the epoch.
    pub created: Option<i64>,
}

/// A cache hit or a fresh result, as the solver passes it on.
#[derive(Clone, Debug, PartialEq)]
pub struct Keyed {
    /// Under which key.
    pub key: CacheKey,
    /// What.
    pub record: Record,
}

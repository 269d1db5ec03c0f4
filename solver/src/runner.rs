//! The two seams of the solver: [`Runner`] does the work, [`Cache`] remembers it.
//!
//! Everything runs on the one thread that polls [`crate::driver::solve`]; nothing needs to be `Send`.
//!
//! **Cancellation.** Each call gets its own [`Cancel`]. When it fires, the call stops what it does, cleans up (kills
//! the step, unmounts) and returns any error; the driver waits for that and ignores the error. Futures are not dropped
//! half-way unless the future of `solve` itself is.

use std::any::Any;

use futures::future::{self, LocalBoxFuture};
use image::{ContentDigest, DiffId};

use crate::cancel::Cancel;
use crate::definition::{Selector, Vertex, VertexId};
use crate::key::{CacheKey, ResultDigest};
use crate::record::{Record, RecordedInput, Snapshot};

/// Does what ops say: pulls, copies, runs processes.
pub trait Runner {
    /// Why something could not be done.
    type Error: std::fmt::Display;

    /// Finds out what a source is right now, without fetching more than that takes.
    fn pin<'a>(&'a self, job: Job<'a>) -> LocalBoxFuture<'a, Result<Pin, Self::Error>>;

    /// The content digest of what `selector` picks of a vertex. Asked once per vertex and selector, and not at all if
    /// the cache has a memo of it. `job` is the vertex that is read. If the answer needs files that are not here, say
    /// [`Selection::NeedFiles`]: the vertex is then loaded (or run) and the question is asked again.
    fn select<'a>(
        &'a self,
        job: Job<'a>,
        input: InputRef<'a>,
        selector: &'a Selector,
    ) -> LocalBoxFuture<'a, Result<Selection, Self::Error>>;

    /// What a selector picked, file by file (`file src/main.rs`) or coarser, so that a later miss can name what changed.
    /// Called only after a miss; at most a few hundred names, or none if they are not at hand.
    fn selected_files(&self, _input: InputRef<'_>, _selector: &Selector) -> Vec<RecordedInput> {
        Vec::new()
    }

    /// Makes layers present on this host, pulling what is missing. For a source `layers` is its [`Pin`]'s snapshot
    /// (`None` if only fetching tells) and all of it is meant; else it is the vertex's own layer, one, and its inputs
    /// are loaded on their own, possibly at the same time.
    fn load<'a>(
        &'a self,
        job: Job<'a>,
        layers: Option<Snapshot>,
    ) -> LocalBoxFuture<'a, Result<Loaded, Self::Error>>;

    /// Runs a file op or a process. All inputs are loaded.
    fn run<'a>(&'a self, job: Job<'a>, task: Task<'a>) -> LocalBoxFuture<'a, Result<Outcome, Self::Error>>;
}

/// For whom a [`Runner`] works.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The vertex's name in events.
    pub id: VertexId,
    /// The vertex.
    pub vertex: &'a Vertex,
    /// Fires when the work is not needed any more.
    pub cancel: Cancel,
}

/// What a source is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pin {
    /// Names the content: the same digest means the same files. Exactly local sources have none.
    pub result: Option<ResultDigest>,
    /// Its layers, if they are known before it is fetched: an image's are, from its config.
    pub snapshot: Option<Snapshot>,
}

/// An input as far as it is known; nothing of it need be on this host.
#[derive(Clone, Debug)]
pub struct InputRef<'a> {
    /// Which vertex.
    pub id: VertexId,
    /// The vertex: the source itself if it is a local one.
    pub vertex: &'a Vertex,
    /// Names its content; `None` for a local source.
    pub result: Option<ResultDigest>,
    /// Its layers; `None` for a local source and for a source that was not fetched yet.
    pub snapshot: Option<Snapshot>,
}

/// The answer to a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The content digest of what is picked.
    Digest(ContentDigest),
    /// It cannot be told without the files.
    NeedFiles,
}

/// The answer to [`Runner::load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The layers are here.
    Here(Snapshot),
    /// The layer is nowhere any more: its vertex must run again.
    Lost,
}

/// One run of a file op or a process.
#[derive(Clone, Debug)]
pub struct Task<'a> {
    /// Its key.
    pub key: CacheKey,
    /// Its inputs, in the op's order; `snapshot` is there for all but local sources.
    pub inputs: Vec<InputRef<'a>>,
    /// The layer that the step in this place made before, which may not be here any more: what is the same in it may be
    /// taken from it.
    pub earlier: Option<DiffId>,
}

/// What a run made. The driver makes the [`Record`] of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The new layer, stored and leased.
    pub layer: DiffId,
    /// The content digest of the layer: no times in it, so that equal output is equal.
    pub content: ContentDigest,
    /// How long it took.
    pub seconds: f64,
    /// Size of the layer's tar, bytes.
    pub bytes: u64,
    /// When it was made, seconds since the epoch.
    pub created: i64,
}

/// What earlier builds did. It saves work and never decides what is right: a cache that cannot read or write answers as
/// if it were empty. Calls are short, on the build's thread, except where a future is returned.
pub trait Cache {
    /// The record of a key whose layer can be had. A hit is leased until the build ends.
    fn lookup(&self, key: CacheKey) -> Option<Record>;

    /// Many at once, answers in the order of `keys`.
    fn lookup_many(&self, keys: &[CacheKey]) -> Vec<Option<Record>> {
        keys.iter().map(|&key| self.lookup(key)).collect()
    }

    /// Asks a cache that is further away, after [`Cache::lookup`] found nothing. `None`: there is no such cache.
    fn lookup_remote(&self, _key: CacheKey) -> Option<LocalBoxFuture<'_, Option<Record>>> {
        None
    }

    /// Remembers a record, replacing an older one; for `step` it is from now on the latest.
    fn insert(&self, key: CacheKey, step: StepId, vertex: &Vertex, record: &Record);

    /// Drops the record of `key` if its layer still is `layer`, which is lost.
    fn forget(&self, key: CacheKey, layer: DiffId);

    /// The record of a step, whatever its key, that is nearest to what it reads now ([`crate::explain::nearest`]): with it a
    /// miss is explained.
    fn previous(&self, step: StepId, reads: &[RecordedInput]) -> Option<Record>;

    /// What a selector (by its digest) picked of a result.
    fn memo(&self, result: ResultDigest, selector: ContentDigest) -> Option<ContentDigest>;

    /// Asks a cache that is further away, after [`Cache::memo`] knew nothing. `None`: there is no such cache.
    fn memo_remote(
        &self,
        _result: ResultDigest,
        _selector: ContentDigest,
    ) -> Option<LocalBoxFuture<'_, Option<ContentDigest>>> {
        None
    }

    /// Remembers what a selector picked.
    fn set_memo(&self, result: ResultDigest, selector: ContentDigest, selected: ContentDigest);

    /// Waits until nobody else on this host works on `key`; holds it until the guard is dropped. The future can be
    /// dropped while it waits.
    fn lock(&self, _key: CacheKey) -> LocalBoxFuture<'_, Box<dyn Any>> {
        Box::pin(future::ready(Box::new(()) as Box<dyn Any>))
    }
}

/// A step's place: the same in the build before and after its command or files changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub ContentDigest);

impl StepId {
    /// The `position`th layer of `stage`. `scope` tells builds apart: Dockerfile, context, platform.
    pub fn new(scope: &str, stage: &str, position: usize) -> Self {
        let text = format!("{}:{scope}{}:{stage}{position}", scope.len(), stage.len());
        Self(ContentDigest::of(text.as_bytes()))
    }
}

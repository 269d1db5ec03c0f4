//! The driver: runs the machine's actions on a [`Runner`] and feeds what comes back to the machine.

use crate::cancel::Cancel;
use crate::definition::{Definition, VertexId};
use crate::event::Event;
use crate::key::ResultDigest;
use crate::record::Snapshot;
use crate::runner::{Cache, Runner};

/// A vertex whose result is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Which.
    pub vertex: VertexId,
    /// Its layers must be on this host when `solve` returns. Otherwise it is enough to know them.
    pub want_files: bool,
}

/// How to solve.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many processes run at a time, at least 1. File ops, pulls and lookups do not count.
    pub parallelism: usize,
    /// Stops everything.
    pub cancel: Cancel,
    /// What tells this build's steps from those of other Dockerfiles, for `explain`: Dockerfile, context, platform.
    pub scope: String,
}

/// A root's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Solved {
    /// Names its content; `None` for a local source.
    pub result: Option<ResultDigest>,
    /// Its layers; `None` for a local source.
    pub snapshot: Option<Snapshot>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum SolveError<E> {
    /// A vertex failed. What else ran was cancelled and has ended.
    #[error("{name}: {source}")]
    Vertex {
        /// Which.
        vertex: VertexId,
        /// Its name in progress.
        name: String,
        /// Why.
        source: E,
    },
    /// [`Options::cancel`] fired; what ran has ended.
    #[error("cancelled")]
    Cancelled,
    /// A local source is used as a base: it has no layers.
    #[error("could not use a local directory as the base of {name}")]
    LocalBase {
        /// Of which vertex.
        vertex: VertexId,
        /// Its name in progress.
        name: String,
    },
    /// A source was pinned but then could not be had.
    #[error("could not load {name}: it is gone since it was resolved")]
    SourceLost {
        /// Which.
        vertex: VertexId,
        /// Its name in progress.
        name: String,
    },
}

/// Solves `definition` for `roots`, which come back in their order. The first failure cancels everything else.
///
/// What is in the cache is not loaded, but for roots that want files and what a step that missed reads.
pub async fn solve<R: Runner, C: Cache>(
    definition: &Definition,
    roots: &[Root],
    runner: &R,
    cache: &C,
    events: &dyn Fn(Event),
    options: &Options,
) -> Result<Vec<Solved>, SolveError<R::Error>> {
    let _ = (definition, roots, runner, cache, events, options);
    unimplemented!("the machine follows")
}

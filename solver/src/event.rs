//! What happens in a build, for whoever shows it. Times are the receiver's business: the solver has no clock.

use crate::definition::VertexId;

/// Something happened to a vertex.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Work on it began.
    Started(VertexId),
    /// Its result was in the cache.
    Cached(VertexId),
    /// It missed the cache, and why, in one line (see `explain`).
    Missed(VertexId, String),
    /// A line, or part of one, of a step's output.
    Log {
        /// Whose.
        vertex: VertexId,
        /// Which stream.
        stream: Stream,
        /// Bytes as they came.
        data: Vec<u8>,
    },
    /// A transfer or other measurable work.
    Progress {
        /// Whose.
        vertex: VertexId,
        /// What: `sha256:...`, `extracting`, `transferring context`.
        id: String,
        /// Done so far, bytes.
        current: u64,
        /// All there is, bytes, if known.
        total: Option<u64>,
        /// It is over.
        done: bool,
    },
    /// It ended well.
    Completed(VertexId),
    /// It ended badly; the message is the error's first line.
    Failed(VertexId, String),
    /// It was stopped because something else failed, or by the user.
    Cancelled(VertexId),
}

/// Where output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

//! The cached DAG solver: a [`Definition`] of ops in, results out.
//!
//! It knows what an op is and when it must run, but not how: containers, disks and registries are behind
//! [`Runner`]. No I/O, no clock; async only in `driver`, with `futures` alone.

pub mod cancel;
pub mod definition;
pub mod driver;
pub mod event;
pub mod explain;
pub mod key;
pub mod machine;
pub mod op;
pub mod record;
pub mod runner;

pub use cancel::Cancel;
pub use definition::{Definition, Input, Vertex, VertexId};
pub use driver::{Options, Root, SolveError, Solved, solve};
pub use key::{CacheKey, ResultDigest};
pub use op::Op;
pub use runner::{Cache, Runner};

//! The merged view over a chain of layers, and what COPY and friends make of it.
//!
//! Everything here is a function of values: entries in, entries out. Who reads the bytes of files, and writes the new
//! layer's tar, is `worker`.

pub mod accounts;
pub mod chmod;
pub mod copy;
pub mod draft;
mod filter;
pub mod path;
pub mod pattern;
pub mod resolve;
pub mod select;
pub mod view;

#[cfg(test)]
pub(crate) mod testing;

pub use chmod::Chmod;
pub use copy::{Copy, CopyError, Match};
pub use draft::{Draft, DraftError, Made, NewEntry};
pub use pattern::{Glob, Patterns};
pub use select::{Pick, Selection, select};
pub use view::{Dir, Inode, InodeId, Location, Node, Tree};

//! The merged view over a chain of layers, and what COPY and friends make of it.
//!
//! Everything here is a function of values: entries in, entries out. Who reads the bytes of files, and writes the new
//! layer's tar, is `worker`.

pub mod accounts;
pub mod chmod;
pub mod path;
pub mod pattern;

pub use chmod::Chmod;
pub use pattern::{Glob, Patterns};

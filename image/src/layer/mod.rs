//! A layer: one immutable tar file and its index.

pub mod entry;

pub use entry::{Entry, Kind};

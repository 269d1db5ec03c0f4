//! Mounts: lower directories of layers, and what a sandbox mounts for itself.

pub mod dirs;
pub mod erofs;

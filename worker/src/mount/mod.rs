//! Mounts: lower directories of layers, and what a sandbox mounts for itself.

pub mod mounter;

pub mod dirs;
pub mod erofs;

pub mod overlay;
pub mod scratch;
pub(crate) mod special;

pub use mounter::{MountError, Mounter, Times};

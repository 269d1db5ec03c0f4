//! Sources: where files come from.

pub mod archive;
pub mod git;
pub mod image;
pub mod local;
pub mod resolve;

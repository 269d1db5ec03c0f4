//! Sources: where files come from.

pub mod archive;
pub mod git;
pub mod http;
pub mod image;
pub mod local;
pub mod remote;
pub mod resolve;

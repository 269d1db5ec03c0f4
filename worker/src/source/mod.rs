//! Sources: where files come from.

pub mod git;
pub mod local;
pub mod resolve;

//! Sources: where files come from.

pub mod git;

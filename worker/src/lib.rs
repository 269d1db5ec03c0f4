//! Runs ops: sources, file ops, processes in sandboxes.

pub mod source;

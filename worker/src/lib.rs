//! Runs ops: sources, file ops, processes in sandboxes.

pub mod cache;
pub mod diff;
pub mod exec;
pub mod file;
pub mod inside;
pub mod isolate;
pub mod mount;
pub mod source;
pub mod sys;

//! Runs ops: sources, file ops, processes in sandboxes. [`Worker`] is the solver's runner over a store.

mod worker;

pub mod error;

pub mod source;

pub mod below;
pub mod diff;
pub mod file;
pub mod inside;

pub mod exec;
pub mod isolate;
pub mod mount;
pub mod probe;
pub mod sys;

pub mod cache;
pub mod cdi;
pub mod kept;
pub mod seen;

pub mod container;
pub mod sandbox;

mod file_op;
mod step;
mod until;

pub use worker::{LayerSource, MountSource, Options, UsedMount, Worker};

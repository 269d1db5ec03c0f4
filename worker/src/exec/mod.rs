//! The executor: a process in a sandbox.
//!
//! [`plan`] turns an op and what the worker found for it into a [`Plan`], which is plain data. [`spawn`] makes all that
//! needs memory, clones, and the clone ([`child`]) builds its own sandbox with nothing but system calls and becomes
//! the command. [`Child`] reads its output and waits for its end. [`interactive`] is
//! `rbuild run`.
//!
//! The command is process 1 of its PID namespace: when it ends or is killed, all that it started is gone, and so are
//! its mounts, which exist in its mount namespace only.

pub(crate) mod agent;
mod child;
mod guardian;
pub mod interactive;
pub mod names;
pub mod plan;
mod program;
mod report;
pub mod secret;
mod skeleton;
mod spawn;
mod stub;
mod target;
mod wait;

pub use interactive::{Container, Io, RunError, run_container};
pub use plan::{
    Access, DeviceNumber, Given, Identity, Limit, Lower, Mount, Network, Plan, PlanError, Resolved, Root,
    Source, plan,
};
pub use secret::Secret;
pub use spawn::{ExecError, SpawnError, Stdio, spawn};
pub use wait::{Child, Exit, OutOfMemory, Output, Status};

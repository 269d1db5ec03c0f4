//! The executor: a process in a sandbox.
//!
//! [`plan`] turns an op and what the worker found for it into a [`Plan`], which is plain data. [`spawn`] makes all that
//! needs memory, clones, and the clone ([`child`]) builds its own sandbox with nothing but system calls and becomes
//! the command. [`Child`] reads its output and waits for its end. `log` bounds the output, [`interactive`] is
//! `rbuild run`.
//!
//! The command is process 1 of its PID namespace: when it ends or is killed, all that it started is gone, and so are
//! its mounts, which exist in its mount namespace only.

pub mod names;
pub mod plan;
pub mod secret;

pub use plan::{
    Access, Given, Identity, Limit, Lower, Mount, Network, Plan, PlanError, Resolved, Root, Source, plan,
};
pub use secret::Secret;

//! What end-to-end tests stand on: a hermetic environment to run the built `rbuild` in, base images made here, and users.

pub mod actions;
pub mod base;
pub mod docker_registry;
pub mod env;
pub mod golden;
pub mod pty;
pub mod registry;
pub mod watch;
pub mod web;

pub use actions::actions_cache;
pub use base::Base;
pub use docker_registry::DockerRegistry;
pub use env::{Outcome, TestEnv};
pub use golden::Golden;
pub use registry::Registry;
pub use web::{Page, Web};

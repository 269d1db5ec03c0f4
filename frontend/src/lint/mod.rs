//! Build checks: what builds, but is probably not meant. Those that text alone can tell are found here; those that need
//! values or images, `convert` finds, with the constructors in [`rules`].

pub mod report;
pub mod rules;

mod check;
mod config;

pub use check::check;
pub use config::{BUILD_ARG, Config, violation};
pub use report::{Report, excerpt};

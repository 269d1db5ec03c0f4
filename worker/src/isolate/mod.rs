//! What keeps a process apart from the host: capabilities, system call filter, masked paths, limits, networks.

pub mod caps;
pub mod cgroup;
pub mod group;
pub mod limits;
pub(crate) mod masks;
pub mod network;
pub mod seccomp;
mod syscalls;
pub mod userns;

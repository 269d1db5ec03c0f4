//! What keeps a process apart from the host: namespaces, capabilities, system call filter, masked paths, limits.

pub mod limits;

//! `clone3`: a process in new namespaces.
//!
//! ```c
//! long syscall(SYS_clone3, struct clone_args *cl_args, size_t size);
//! ```
//! <https://man7.org/linux/man-pages/man2/clone3.2.html>

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::Pid;

use super::check;

/// New mount namespace.
pub const NEWNS: u64 = libc::CLONE_NEWNS as u64;
/// New cgroup namespace.
pub const NEWCGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
/// New UTS namespace.
pub const NEWUTS: u64 = libc::CLONE_NEWUTS as u64;
/// New IPC namespace.
pub const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
/// New user namespace.
pub const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
/// New PID namespace.
pub const NEWPID: u64 = libc::CLONE_NEWPID as u64;
/// New network namespace.
pub const NEWNET: u64 = libc::CLONE_NEWNET as u64;

/// Handled signals get their default action in the child (Linux 5.5): no handler of the parent runs in it.
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// The child begins in the control group of [`CloneArgs::cgroup`] (Linux 5.7).
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`, third version (`CLONE_ARGS_SIZE_VER2`); older kernels take it if the rest is zero.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A process that `clone3` made.
#[derive(Debug)]
pub struct Cloned {
    /// Its number, in the caller's PID namespace.
    pub pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

/// Proof that the code runs in a process made by [`clone3`], alone in its memory and on its way to `execve`: what would
/// pull the rug from under other code (closing its descriptors) is harmless there.
#[derive(Debug)]
pub struct InChild(());

/// Makes a copy of the calling process, as `fork` does, with a single thread, in new namespaces; `child` is all that
/// runs in it.
///
/// With `group`, a directory of version 2's hierarchy, it begins in that control group.
///
/// `child` gets a copy of the caller's memory in which locks of other threads stay locked for ever: it must neither
/// allocate nor lock, only make system calls, and it never returns.
pub fn clone3(
    namespaces: u64,
    group: Option<BorrowedFd<'_>>,
    child: &mut dyn FnMut(InChild) -> std::convert::Infallible,
) -> Result<Cloned, Errno> {
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: namespaces
            | CLEAR_SIGHAND
            | libc::CLONE_PIDFD as u64
            | if group.is_some() { INTO_CGROUP } else { 0 },
        cgroup: group.map_or(0, |group| group.as_raw_fd() as u64),
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a valid `clone_args` of the size given and outlives the call. Without CLONE_VM the child has
    // its own copy of the stack and goes on from here.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        child(InChild(()));
    }
    let pid = Pid::from_raw(pid as i32).expect("clone3 gave the parent a number above zero");
    // SAFETY: the kernel wrote a new descriptor there that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned { pid, pidfd })
}

/// Ends the calling process at once; nothing of it is run or flushed.
pub fn exit(status: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(status) }
}

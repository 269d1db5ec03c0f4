//! Signal actions and mask of a new process.
//!
//! ```c
//! int sigaction(int signum, const struct sigaction *act, struct sigaction *oldact);
//! int sigprocmask(int how, const sigset_t *set, sigset_t *oldset);
//! ```
//! <https://man7.org/linux/man-pages/man2/sigaction.2.html>, <https://man7.org/linux/man-pages/man2/sigprocmask.2.html>

use std::mem::MaybeUninit;
use std::ptr;

/// Gives every standard signal its default action and unblocks all: ignored signals (Rust ignores `SIGPIPE`, `nohup`
/// `SIGHUP`) and the mask would otherwise be inherited through `execve`.
pub fn reset() {
    // SAFETY: all zeroes is a valid `sigaction` (SIG_DFL is 0) and `sigset_t`; both outlive the calls. Signals that
    // cannot be changed (KILL, STOP) give an error that changes nothing.
    unsafe {
        let default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        for signal in 1..32 {
            libc::sigaction(signal, &raw const default, ptr::null_mut());
        }
        let mut none = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

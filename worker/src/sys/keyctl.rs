//! `keyctl`: kernel keyrings.
//!
//! ```c
//! long keyctl(KEYCTL_JOIN_SESSION_KEYRING, const char *name);
//! ```
//! <https://man7.org/linux/man-pages/man3/keyctl_join_session_keyring.3.html>

use rustix::io::Errno;

use super::check;

const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Gives the calling process a new, empty session keyring.
pub fn join_new_session_keyring() -> Result<(), Errno> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for an anonymous keyring; nothing is read through it.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, anonymous) }).map(drop)
}

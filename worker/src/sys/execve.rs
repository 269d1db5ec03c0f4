//! `execve`: becomes another program.
//!
//! ```c
//! int execve(const char *pathname, char *const argv[], char *const envp[]);
//! ```
//! <https://man7.org/linux/man-pages/man2/execve.2.html>

use std::ffi::{CStr, CString};
use std::ptr;

use rustix::io::Errno;

/// Strings as `execve` wants them: made before `clone3`, used after it.
pub struct Strings {
    // Each points into `_strings`, which is never changed; the last is null.
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<CString>,
}

impl Strings {
    /// Takes the strings.
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }
}

impl std::fmt::Debug for Strings {
    /// Says how many: an environment can hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} strings", self.pointers.len() - 1)
    }
}

/// Returns only if it could not.
pub fn execve(path: &CStr, args: &Strings, env: &Strings) -> Errno {
    // SAFETY: all pointers are to strings that end in NUL, the arrays end in null, and `Strings` keeps both alive.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    super::errno()
}

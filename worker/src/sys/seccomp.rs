//! `seccomp`: a filter of system calls.
//!
//! ```c
//! int syscall(SYS_seccomp, unsigned int operation, unsigned int flags, void *args);
//! ```
//! <https://man7.org/linux/man-pages/man2/seccomp.2.html>

use rustix::io::Errno;

use super::check;

/// One instruction of classic BPF: `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if true.
    pub jt: u8,
    /// Instructions to skip if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());

/// Puts the calling thread under `program`. Needs `CAP_SYS_ADMIN` in its user namespace, or no-new-privileges.
pub fn set_filter(program: &[Instruction]) -> Result<(), Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `program` describes `len` instructions with `sock_filter`'s layout; the kernel only reads them, and
    // checks them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
        .map(drop)
}

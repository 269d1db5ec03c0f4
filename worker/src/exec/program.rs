//! The command: looked up in `PATH` inside the root, and executed.
//!
//! A program (or a script's interpreter) behind one of `/proc`'s magic links is refused: until `execve`,
//! `/proc/self/exe` is rbuild itself, which must not run, and be reachable, as the step's own program.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, read};

use crate::sys::execve::{Strings, execve};

/// A program, its arguments and environment, ready to be executed without allocating.
#[derive(Debug)]
pub(super) struct Program {
    // In the order in which they are tried.
    candidates: Vec<CString>,
    args: Strings,
    env: Strings,
}

/// `PATH` if the environment has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Set in the index of a failure if the program is there, so that it is its interpreter that is missing.
pub(super) const NO_INTERPRETER: u32 = 1;

impl Program {
    /// `None` if a string contains NUL or there is no program.
    pub(super) fn new(args: &[String], env: Vec<CString>, path: Option<&str>) -> Option<Self> {
        let name = args.first()?;
        let candidates = if name.contains('/') {
            vec![CString::new(name.as_str()).ok()?]
        } else {
            // An empty directory means the current one to a shell; programs are not looked up there.
            path.unwrap_or(DEFAULT_PATH)
                .split(':')
                .filter(|directory| directory.starts_with('/') && !name.is_empty())
                .map(|directory| CString::new(format!("{directory}/{name}")).ok())
                .collect::<Option<_>>()?
        };
        let args = args.iter().map(|arg| CString::new(arg.as_str()).ok()).collect::<Option<_>>()?;
        Some(Self { candidates, args: Strings::new(args), env: Strings::new(env) })
    }

    /// Returns only if no candidate could be executed: a detail ([`NO_INTERPRETER`] or 0) and the error.
    pub(super) fn execute(&self) -> (u32, Errno) {
        let mut error = Errno::NOENT;
        for candidate in &self.candidates {
            let errno = match refuse_magic(candidate) {
                Ok(()) => execve(candidate, &self.args, &self.env),
                Err(errno) => errno,
            };
            match errno {
                Errno::NOENT if open(candidate, OFlags::PATH).is_ok() => return (NO_INTERPRETER, errno),
                Errno::NOENT | Errno::NOTDIR => {}
                // Another directory may have one that can be executed.
                Errno::ACCESS => error = errno,
                _ => return (0, errno),
            }
        }
        (0, error)
    }
}

fn refuse_magic(program: &CStr) -> Result<(), Errno> {
    // What the kernel reads to find out what a file is, and how many scripts it goes through.
    const HEADER: usize = 256;
    const DEPTH: usize = 5;
    let mut header = [0; HEADER + 1];
    let mut interpreter = [0; HEADER + 1];
    open(program, OFlags::PATH)?;
    let mut file = open(program, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY);
    for _ in 0..DEPTH {
        // A file that cannot be read can be executed, but then it is no script.
        let Ok(script) = file else { return Ok(()) };
        let length = read(&script, &mut header[..HEADER]).unwrap_or(0);
        let Some(name) = shebang(&header[..length]) else { return Ok(()) };
        interpreter[..name.len()].copy_from_slice(name);
        interpreter[name.len()] = 0;
        let Ok(name) = CStr::from_bytes_until_nul(&interpreter) else { return Ok(()) };
        match open(name, OFlags::PATH) {
            Ok(_) => {}
            Err(Errno::LOOP) => return Err(Errno::LOOP),
            // `execve` finds the same and says so.
            Err(_) => return Ok(()),
        }
        file = open(name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY);
    }
    Ok(())
}

fn open(path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat2(CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

/// The interpreter in a script's first line.
fn shebang(header: &[u8]) -> Option<&[u8]> {
    let line = header.strip_prefix(b"#!")?;
    let start = line.iter().position(|byte| !matches!(byte, b' ' | b'\t'))?;
    let line = &line[start..];
    let end = line.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\n' | 0)).unwrap_or(line.len());
    Some(&line[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(name: &str, path: Option<&str>) -> Vec<String> {
        let program = Program::new(&[name.to_owned()], vec![], path).unwrap();
        program.candidates.iter().map(|c| c.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_bare_name_is_looked_up_and_a_path_is_not() {
        assert_eq!(candidates("sh", Some("/a:/b")), ["/a/sh", "/b/sh"]);
        assert_eq!(candidates("sh", Some("/a::.:b:/c")), ["/a/sh", "/c/sh"]);
        assert_eq!(candidates("sh", None).len(), 6);
        assert_eq!(candidates("./sh", Some("/a")), ["./sh"]);
        assert_eq!(candidates("/bin/sh", Some("/a")), ["/bin/sh"]);
        assert_eq!(candidates("", Some("/a")), Vec::<String>::new());
    }

    #[test]
    fn the_interpreter_is_the_first_word_of_a_script() {
        for (header, want) in [
            (&b"#!/bin/sh\n"[..], Some(&b"/bin/sh"[..])),
            (b"#! /bin/sh -e\n", Some(b"/bin/sh")),
            (b"#!\t/x", Some(b"/x")),
            (b"\x7fELF", None),
            (b"#", None),
            (b"#!", None),
        ] {
            assert_eq!(shebang(header), want);
        }
    }

    #[test]
    fn magic_links_are_refused_as_program_and_as_interpreter() {
        use std::io::Write;
        assert_eq!(refuse_magic(c"/proc/self/exe"), Err(Errno::LOOP));
        let mut script = tempfile::NamedTempFile::new().unwrap();
        script.write_all(b"#!/proc/self/exe\n").unwrap();
        let path = CString::new(script.path().to_str().unwrap()).unwrap();
        assert_eq!(refuse_magic(&path), Err(Errno::LOOP));
        assert_eq!(refuse_magic(c"/bin/sh"), Ok(()));
    }
}

//! What this host can do: facts for `rbuild doctor`, each with the kernel's answer where it is no.
//!
//! Nothing is assumed from version numbers: a thing is tried, in a process that is thrown away where it would leave a
//! trace.

use std::convert::Infallible;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, read, write};
use rustix::mount::{FsOpenFlags, MountPropagationFlags, fsconfig_set_string, fsopen, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::isolate::{cgroup, seccomp, userns};
use crate::mount::special;
use crate::sys::clone3::{self, NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUTS, clone3};
use crate::sys::waitid::{Block, waitid};

/// One thing that a host can or cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether, or why not.
    pub found: Found,
}

/// The answer to a [`Fact`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It can; some detail.
    Yes(String),
    /// It cannot; why. Steps cannot run.
    Missing(String),
    /// It cannot; why. Something is slower or less precise.
    Lacking(String),
}

/// Looks at this host, as the process is now (in its user namespace, if it has entered one).
pub fn probe() -> Vec<Fact> {
    let ids = userns::Ids::current();
    let root = rustix::process::geteuid().is_root();
    vec![
        fact("kernel", "everything", Ok::<_, Errno>(kernel()), Need::Steps),
        Fact { name: "privileges", purpose: "making namespaces for steps", found: privileges(root, &ids) },
        fact("openat2", "paths that stay in their root", can_openat2(), Need::Steps),
        fact(
            "namespaces",
            "steps apart from the host",
            namespaces(NEWNS | NEWPID | NEWIPC | NEWUTS),
            Need::Steps,
        ),
        fact("network namespace", "RUN --network=none", namespaces(NEWNS | NEWNET), Need::Comfort),
        fact(
            "cgroup namespace",
            "steps that see their own limits",
            namespaces(NEWNS | NEWCGROUP),
            Need::Comfort,
        ),
        fact("overlay", "layers over each other", file_system(c"overlay"), Need::Steps),
        fact(
            "overlay, layer by layer",
            "more than a page of layers (Linux 6.5)",
            overlay_adds_layers(),
            Need::Comfort,
        ),
        fact("erofs", "layers mounted in place, not extracted", file_system(c"erofs"), Need::Comfort),
        Fact { name: "proc", purpose: "steps that see only their own processes", found: proc() },
        fact("system call filter", "Docker's seccomp profile", filter(), Need::Steps),
        Fact { name: "cgroups", purpose: "telling that memory ran out", found: cgroups() },
        Fact {
            name: "subordinate ids",
            purpose: "users other than root, without root",
            found: subordinate(root, &ids),
        },
    ]
}

/// What a missing thing means.
#[derive(Clone, Copy)]
enum Need {
    Steps,
    Comfort,
}

fn fact<E: ToString>(
    name: &'static str,
    purpose: &'static str,
    result: Result<String, E>,
    need: Need,
) -> Fact {
    let found = match (result, need) {
        (Ok(detail), _) => Found::Yes(detail),
        (Err(error), Need::Steps) => Found::Missing(error.to_string()),
        (Err(error), Need::Comfort) => Found::Lacking(error.to_string()),
    };
    Fact { name, purpose, found }
}

fn kernel() -> String {
    let name = rustix::system::uname();
    format!("{} {}", name.release().to_string_lossy(), name.machine().to_string_lossy())
}

fn privileges(root: bool, ids: &userns::Ids) -> Found {
    match (root, userns::may_administer(), ids.is_namespace()) {
        (true, true, false) => Found::Yes("root".to_owned()),
        (true, true, true) => Found::Yes("root of a user namespace".to_owned()),
        (true, false, _) => {
            Found::Missing("root without CAP_SYS_ADMIN: a container that is not privileged".to_owned())
        }
        (false, ..) => Found::Missing("an ordinary user that has not entered a user namespace".to_owned()),
    }
}

fn can_openat2() -> Result<String, Errno> {
    openat2(CWD, c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
        .map(|_| String::new())
}

fn namespaces(flags: u64) -> Result<String, Errno> {
    trial(flags, &mut || mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC))
}

fn proc() -> Found {
    // A mount of /proc needs one to be visible in whole: not so in a container that masks parts of it.
    match trial(NEWNS | NEWPID, &mut || special::new(c"proc", &[], 0).map(drop)) {
        Ok(detail) => Found::Yes(detail),
        Err(Errno::PERM) if trial(NEWNS | NEWPID, &mut || special::host_proc().map(drop)).is_ok() => {
            Found::Lacking("the container's own, as parts of that are masked".to_owned())
        }
        Err(errno) => Found::Missing(errno.to_string()),
    }
}

fn filter() -> Result<String, Errno> {
    let filter = seccomp::default_filter();
    trial(0, &mut || crate::sys::seccomp::set_filter(filter))
}

/// Tries something in a process of its own, in new namespaces.
fn trial(namespaces: u64, attempt: &mut dyn FnMut() -> Result<(), Errno>) -> Result<String, Errno> {
    let (result, report) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut child = |_| -> Infallible {
        if let Err(errno) = attempt() {
            let _parent_gone = write(&report, &errno.raw_os_error().to_le_bytes());
        }
        clone3::exit(0)
    };
    let cloned = clone3(namespaces, None, &mut child)?;
    drop(report);
    let mut errno = [0; 4];
    let length = read(&result, &mut errno[..])?;
    let _ended = waitid(cloned.pidfd.as_fd(), Block::Yes);
    if length == 0 { Ok(String::new()) } else { Err(Errno::from_raw_os_error(i32::from_le_bytes(errno))) }
}

fn file_system(name: &CStr) -> Result<String, Errno> {
    context(name).map(|_| String::new())
}

fn context(name: &CStr) -> Result<OwnedFd, Errno> {
    fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)
}

fn overlay_adds_layers() -> Result<String, Errno> {
    fsconfig_set_string(context(c"overlay")?, c"lowerdir+", c"/").map(|()| String::new())
}

fn cgroups() -> Found {
    let version = if cgroup::is_unified() { "version 2" } else { "version 1, or none" };
    if cgroup::has_own_count() {
        Found::Yes(format!("{version}, own count of memory kills"))
    } else {
        Found::Lacking(format!("{version}; the host's count of memory kills has to do"))
    }
}

fn subordinate(root: bool, ids: &userns::Ids) -> Found {
    if root && !ids.is_namespace() {
        return Found::Yes("not needed: root".to_owned());
    }
    match (ids.has_user(1), ids.has_user(65534)) {
        (true, true) => Found::Yes("a full range".to_owned()),
        (true, false) => Found::Lacking("a short range: images with high user ids will not do".to_owned()),
        (false, _) => Found::Lacking(no_range().unwrap_or_else(|error| error.to_string())),
    }
}

fn no_range() -> io::Result<String> {
    let helpers = ["/usr/bin/newuidmap", "/bin/newuidmap", "/run/wrappers/bin/newuidmap"];
    if !helpers.iter().any(|path| Path::new(path).exists()) {
        return Ok("newuidmap is not installed (package uidmap or shadow-utils)".to_owned());
    }
    fs::metadata("/etc/subuid")?;
    Ok("this user has no range in /etc/subuid and /etc/subgid".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_has_an_answer_and_nothing_is_left_behind() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let facts = probe();
        assert!(facts.iter().any(|fact| matches!(fact.found, Found::Yes(_))));
        let names: std::collections::BTreeSet<_> = facts.iter().map(|fact| fact.name).collect();
        assert_eq!(names.len(), facts.len());
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
        assert!(!fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp:\t2"));
    }
}

//! Control groups: to tell that memory ran out. Never required.
//!
//! All steps of a process share one group below the process's own, made at the first step where the host allows it (v2,
//! or v1's memory controller). Elsewhere the host's count of kills has to do, which can blame a step for a neighbour.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, open, statfs};

/// A group that steps join.
#[derive(Clone, Debug)]
pub struct Cgroup {
    directory: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Cgroup {
    /// The group of this process's steps, or `None` if the host does not let us make one.
    pub fn for_steps() -> Option<Self> {
        static GROUP: OnceLock<Option<Cgroup>> = OnceLock::new();
        GROUP.get_or_init(Self::make).clone()
    }

    fn make() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let (version, parent) = parent(&own, is_unified())?;
        sweep(&parent);
        let directory = parent.join(format!("{PREFIX}{}", std::process::id()));
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => None,
            _ => Some(Self { directory, version }),
        }
    }

    /// Files that a process writes "0" to in order to join.
    pub(crate) fn open_for_joining(&self) -> Vec<OwnedFd> {
        let procs = self.directory.join("cgroup.procs");
        open(&procs, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).into_iter().collect()
    }

    /// How often something in the group was killed because memory ran out.
    pub(crate) fn oom_kills(&self) -> u64 {
        let name = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        counter(&self.directory.join(name)).unwrap_or(0)
    }

    /// Removes the group; it must be empty. Called when the last step has ended; a process that is killed leaves it to
    /// the next one's sweep.
    pub fn remove(&self) {
        let _not_empty = fs::remove_dir(&self.directory);
    }
}

/// How often the kernel killed any process of the host because memory ran out.
pub(crate) fn host_oom_kills() -> u64 {
    counter(Path::new("/proc/vmstat")).unwrap_or(0)
}

/// Whether the host has version 2 only.
pub(crate) fn is_unified() -> bool {
    static UNIFIED: OnceLock<bool> = OnceLock::new();
    // CGROUP2_SUPER_MAGIC
    *UNIFIED.get_or_init(|| statfs("/sys/fs/cgroup").is_ok_and(|found| found.f_type as u64 == 0x6367_7270))
}

const PREFIX: &str = "rbuild-";

/// Where our group goes, from `/proc/self/cgroup`.
fn parent(own: &str, unified: bool) -> Option<(Version, PathBuf)> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        if unified && controllers.is_empty() {
            Some((Version::V2, Path::new("/sys/fs/cgroup").join(path)))
        } else if !unified && controllers.split(',').any(|name| name == "memory") {
            Some((Version::V1, Path::new("/sys/fs/cgroup/memory").join(path)))
        } else {
            None
        }
    })
}

/// Removes groups of processes that are gone.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _in_use = fs::remove_dir(entry.path());
        }
    }
}

fn counter(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_goes_below_our_own() {
        let hybrid = "5:cpu,cpuacct:/a\n4:memory:/user/x\n0::/y\n";
        assert_eq!(parent(hybrid, false), Some((Version::V1, "/sys/fs/cgroup/memory/user/x".into())));
        assert_eq!(
            parent("0::/user.slice/s\n", true),
            Some((Version::V2, "/sys/fs/cgroup/user.slice/s".into()))
        );
        assert_eq!(parent("0::/\n", true), Some((Version::V2, "/sys/fs/cgroup/".into())));
        assert_eq!(parent("1:cpu:/\n", false), None);
    }
}

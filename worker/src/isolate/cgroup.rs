//! Control groups: what they tell about memory that ran out. Never required.
//!
//! Steps stay in this process's group unless they are to have limits of their own ([`super::group`]). A group per step
//! would tell them apart, but moving a process into one waits for all CPUs (10 ms and more, many times what a step costs),
//! and most hosts do not let us make one. So a step that was killed while the count of the group went up was killed by that; where steps run side by side, another one may be
//! the cause.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::statfs;

/// How often the kernel killed something because memory ran out, as far as this process can see: in its control group,
/// else on the host.
pub(crate) fn oom_kills() -> u64 {
    counter(own_file().unwrap_or(Path::new("/proc/vmstat"))).unwrap_or(0)
}

/// How much memory our own group may use, bytes, if that is limited.
pub(crate) fn memory_limit() -> Option<u64> {
    let file = own_file()?.with_file_name(if is_unified() { "memory.max" } else { "memory.limit_in_bytes" });
    let limit: u64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    // Without a limit version 1 says what fits into a long, in pages.
    (limit < 1 << 60).then_some(limit)
}

/// Whether [`oom_kills`] is the count of our own group.
pub(crate) fn has_own_count() -> bool {
    own_file().is_some()
}

fn own_file() -> Option<&'static Path> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        counter_file(&own, is_unified()).filter(|file| counter(file).is_some())
    });
    file.as_deref()
}

/// Whether the host has version 2 only.
pub(crate) fn is_unified() -> bool {
    static UNIFIED: OnceLock<bool> = OnceLock::new();
    #[expect(clippy::unnecessary_cast, reason = "the types differ between architectures")]
    *UNIFIED.get_or_init(|| {
        statfs("/sys/fs/cgroup").is_ok_and(|found| found.f_type as i64 == libc::CGROUP2_SUPER_MAGIC as i64)
    })
}

/// The file with the group's count, from `/proc/self/cgroup`.
fn counter_file(own: &str, unified: bool) -> Option<PathBuf> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        if unified && controllers.is_empty() {
            Some(Path::new("/sys/fs/cgroup").join(path).join("memory.events"))
        } else if !unified && controllers.split(',').any(|name| name == "memory") {
            Some(Path::new("/sys/fs/cgroup/memory").join(path).join("memory.oom_control"))
        } else {
            None
        }
    })
}

fn counter(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_that_of_our_own_group() {
        let v1 = "/sys/fs/cgroup/memory/user/x/memory.oom_control";
        assert_eq!(counter_file("5:cpu,cpuacct:/a\n4:memory:/user/x\n0::/y\n", false), Some(v1.into()));
        let v2 = "/sys/fs/cgroup/user.slice/s/memory.events";
        assert_eq!(counter_file("0::/user.slice/s\n", true), Some(v2.into()));
        assert_eq!(counter_file("1:cpu:/\n", false), None);
    }

    #[test]
    fn the_hosts_count_can_be_read() {
        assert!(counter(Path::new("/proc/vmstat")).is_some());
    }
}

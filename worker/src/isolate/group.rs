//! A control group of a step's own: limits on memory, CPUs and processes, and what became of them. Only where somebody
//! asks for one: see [`super::cgroup`] for what it costs.
//!
//! With version 2 the step begins in its group; with version 1 it moves itself into one of each controller that is
//! needed. Groups are called `rbuild-PID-N`, lie in the parent that was named, else in rbuild's own group or beside it,
//! and go with the step. What a killed rbuild left is removed by the next one that makes a group there.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::cgroup::is_unified;

/// Limits of a group. Nothing is limited by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// Memory and swap together, bytes; -1 for no limit.
    pub memory_swap: Option<i64>,
    /// Weight among other groups; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// Over what time the quota counts, microseconds.
    pub cpu_period: Option<u64>,
    /// CPU time in a period, microseconds; -1 for no limit.
    pub cpu_quota: Option<i64>,
    /// CPUs that may be used: `0-3,5`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used.
    pub cpuset_mems: Option<String>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// A group to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// In which group it lies: a path below the root of the hierarchy, or the name of a systemd slice.
    pub parent: Option<String>,
    /// Its limits.
    pub resources: Resources,
}

/// A group. Dropped after its processes have ended, it goes.
#[derive(Debug)]
pub(crate) struct Group {
    // Of version 1 one a controller.
    directories: Vec<PathBuf>,
    version: Version,
    limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// How a process gets into a group.
#[derive(Debug)]
pub(crate) enum Entrance {
    /// It begins in it.
    Directory(OwnedFd),
    /// It writes to these.
    Files(Vec<OwnedFd>),
}

/// What a group says of its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// How often the kernel killed something in it because it ran out.
    pub kills: u64,
    /// The most that was used, bytes.
    pub peak: Option<u64>,
    /// Its limit, bytes.
    pub limit: Option<u64>,
}

/// Why there is no group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The kernel, or who set up this host, refuses.
    #[error("could not {action} the control group {path:?}: {source}", path = path.display())]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit that this host does not have.
    #[error("could not limit {0}: this host has no such control group")]
    NoController(&'static str),
    /// A limit that makes no sense, or that the kernel does not take.
    #[error("could not set {file} to {value:?}: {source}")]
    Limit {
        /// Which.
        file: &'static str,
        /// To what.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A parent that leads out of the hierarchy.
    #[error("could not use {0:?} as a control group: it is not a path without `..`")]
    Parent(String),
}

/// Where the kernel shows them.
const MOUNT: &str = "/sys/fs/cgroup";
/// Those of version 1 that a parent may have limits in.
const CONTROLLERS: [&str; 8] = ["memory", "cpu", "cpuacct", "cpuset", "pids", "blkio", "devices", "freezer"];
/// What a killed rbuild left is removed when it is older than this.
const STALE: Duration = Duration::from_secs(60);

impl Resources {
    /// Whether there is no limit.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Controllers that the limits need.
    fn controllers(&self) -> Vec<&'static str> {
        let cpu = self.cpu_shares.is_some() || self.cpu_period.is_some() || self.cpu_quota.is_some();
        [
            ("memory", self.memory.is_some() || self.memory_swap.is_some()),
            ("cpu", cpu),
            ("cpuset", self.cpuset_cpus.is_some() || self.cpuset_mems.is_some()),
            ("pids", self.pids.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, needed)| needed.then_some(name))
        .collect()
    }

    /// Files of a controller of version 1 and what is written to them, in order.
    fn version_1(&self, controller: &str) -> Vec<(&'static str, String)> {
        let text = |value: Option<&dyn ToString>| value.map(ToString::to_string);
        let all: Vec<(&'static str, Option<String>)> = match controller {
            "memory" => vec![
                ("memory.limit_in_bytes", text(self.memory.as_ref().map(|value| value as _))),
                ("memory.memsw.limit_in_bytes", text(self.memory_swap.as_ref().map(|value| value as _))),
            ],
            "cpu" => vec![
                ("cpu.shares", text(self.cpu_shares.as_ref().map(|value| value as _))),
                ("cpu.cfs_period_us", text(self.cpu_period.as_ref().map(|value| value as _))),
                ("cpu.cfs_quota_us", text(self.cpu_quota.as_ref().map(|value| value as _))),
            ],
            "cpuset" => {
                vec![("cpuset.cpus", self.cpuset_cpus.clone()), ("cpuset.mems", self.cpuset_mems.clone())]
            }
            "pids" => vec![("pids.max", text(self.pids.as_ref().map(|value| value as _)))],
            _ => Vec::new(),
        };
        all.into_iter().filter_map(|(file, value)| Some((file, value?))).collect()
    }

    /// Files of a group of version 2 and what is written to them.
    fn version_2(&self) -> Vec<(&'static str, String)> {
        let no_limit = || "max".to_owned();
        let mut all = Vec::new();
        if let Some(memory) = self.memory {
            all.push(("memory.max", memory.to_string()));
        }
        match (self.memory_swap, self.memory) {
            (Some(total), Some(memory)) if total >= 0 => {
                let swap = u64::try_from(total).unwrap_or(0).saturating_sub(memory);
                all.push(("memory.swap.max", swap.to_string()));
            }
            (Some(_), _) => all.push(("memory.swap.max", no_limit())),
            (None, _) => {}
        }
        if let Some(shares) = self.cpu_shares.filter(|shares| *shares > 0) {
            // From 2..262144 to 1..10000, as runc has it.
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            all.push(("cpu.weight", weight.to_string()));
        }
        if self.cpu_quota.is_some() || self.cpu_period.is_some() {
            let quota =
                self.cpu_quota.filter(|quota| *quota > 0).map_or_else(no_limit, |quota| quota.to_string());
            all.push(("cpu.max", format!("{quota} {}", self.cpu_period.unwrap_or(100_000))));
        }
        if let Some(cpus) = &self.cpuset_cpus {
            all.push(("cpuset.cpus", cpus.clone()));
        }
        if let Some(mems) = &self.cpuset_mems {
            all.push(("cpuset.mems", mems.clone()));
        }
        if let Some(pids) = self.pids {
            all.push(("pids.max", pids.to_string()));
        }
        all
    }
}

impl Wanted {
    /// Whether a step needs no group of its own.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Whether this host can make such a group: makes one and removes it.
    pub fn try_out(&self) -> Result<(), GroupError> {
        Group::new(self).map(drop)
    }
}

impl Group {
    /// Makes one.
    pub(crate) fn new(wanted: &Wanted) -> Result<Self, GroupError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rbuild-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let parent = wanted.parent.as_deref().map(parent_path).transpose()?;
        let version = if is_unified() { Version::Two } else { Version::One };
        let mut group = Self { directories: Vec::new(), version, limit: wanted.resources.memory };
        match version {
            Version::One => group.version_1(&own, parent.as_deref(), &name, &wanted.resources)?,
            Version::Two => group.version_2(&own, parent.as_deref(), &name, &wanted.resources)?,
        }
        Ok(group)
    }

    fn version_1(
        &mut self,
        own: &str,
        parent: Option<&Path>,
        name: &str,
        resources: &Resources,
    ) -> Result<(), GroupError> {
        let needed = resources.controllers();
        for controller in CONTROLLERS {
            let is_needed = needed.contains(&controller);
            let Some((mount, own)) = hierarchy(controller, own) else {
                if is_needed {
                    return Err(GroupError::NoController(controller));
                }
                continue;
            };
            let base = match parent {
                // Also where nothing is to be limited: the parent may have limits of its own.
                Some(parent) if is_needed || controller == "memory" || mount.join(parent).is_dir() => {
                    make_all(&mount, parent)?
                }
                // Its count tells of memory that ran out.
                None if is_needed || (controller == "memory" && !needed.is_empty()) => own,
                _ => continue,
            };
            // Two controllers may have one hierarchy.
            if self.directories.iter().any(|directory| directory.parent() == Some(&base)) {
                set(&base.join(name), &resources.version_1(controller))?;
                continue;
            }
            let directory = self.add(&base, name)?;
            set(&directory, &resources.version_1(controller))?;
        }
        Ok(())
    }

    fn version_2(
        &mut self,
        own: &str,
        parent: Option<&Path>,
        name: &str,
        resources: &Resources,
    ) -> Result<(), GroupError> {
        let needed = resources.controllers();
        let base = match parent {
            Some(parent) => {
                let base = make_all(Path::new(MOUNT), parent)?;
                hand_down(Path::new(MOUNT), &base, &needed);
                base
            }
            None => place_2(Path::new(MOUNT), own, &needed)?,
        };
        let directory = self.add(&base, name)?;
        let has = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        if let Some(lacking) =
            needed.iter().find(|controller| !has.split_whitespace().any(|has| has == **controller))
        {
            return Err(GroupError::NoController(lacking));
        }
        set(&directory, &resources.version_2())
    }

    fn add(&mut self, base: &Path, name: &str) -> Result<PathBuf, GroupError> {
        remove_stale(base);
        let directory = base.join(name);
        fs::create_dir(&directory).map_err(refused("make", &directory))?;
        self.directories.push(directory.clone());
        if self.version == Version::One {
            inherit_cpus(base, &directory);
        }
        Ok(directory)
    }

    /// How the step gets in.
    pub(crate) fn entrance(&self) -> Result<Entrance, GroupError> {
        match (self.version, self.directories.first()) {
            (Version::Two, Some(directory)) => {
                let opened = File::open(directory).map_err(refused("open", directory))?;
                Ok(Entrance::Directory(opened.into()))
            }
            _ => {
                let open = |directory: &PathBuf| {
                    let file = directory.join("cgroup.procs");
                    let opened = File::options().write(true).open(&file).map_err(refused("open", &file))?;
                    Ok(opened.into())
                };
                Ok(Entrance::Files(self.directories.iter().map(open).collect::<Result<_, _>>()?))
            }
        }
    }

    /// What it says of its memory.
    pub(crate) fn memory(&self) -> Memory {
        let (events, peak) = match self.version {
            Version::One => ("memory.oom_control", "memory.max_usage_in_bytes"),
            Version::Two => ("memory.events", "memory.peak"),
        };
        let read =
            |file: &str| self.directories.iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok());
        let kills = read(events).and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        });
        let peak = read(peak).and_then(|text| text.trim().parse().ok());
        Memory { kills: kills.unwrap_or(0), peak, limit: self.limit }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for directory in &self.directories {
            // The kernel may need a moment after the last process.
            for _ in 0..20 {
                match fs::remove_dir(directory) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    // Whatever is left, the next group made there removes.
                    _ => break,
                }
            }
        }
    }
}

fn refused(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GroupError {
    let path = path.to_owned();
    move |source| GroupError::Refused { action, path, source }
}

/// The path of a parent, below the root of the hierarchy. Slices of systemd lie in those that their names begin with.
fn parent_path(name: &str) -> Result<PathBuf, GroupError> {
    let path = Path::new(name.trim_start_matches('/'));
    let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    if path.as_os_str().is_empty() || !path.components().all(plain) {
        return Err(GroupError::Parent(name.to_owned()));
    }
    let Some(slice) = name.strip_suffix(".slice").filter(|slice| !slice.contains('/')) else {
        return Ok(path.to_owned());
    };
    let ends = slice.match_indices('-').map(|(at, _)| at).chain([slice.len()]);
    Ok(ends.map(|end| format!("{}.slice", &slice[..end])).collect())
}

/// Where a controller of version 1 is mounted, and this process's group there; in a container that sees its own part
/// only, the root of that.
fn hierarchy(controller: &str, own: &str) -> Option<(PathBuf, PathBuf)> {
    // Two controllers that share one hierarchy are links to it.
    let mount = fs::canonicalize(Path::new(MOUNT).join(controller)).ok()?;
    if !mount.join("cgroup.procs").exists() {
        return None;
    }
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then(|| path.trim_start_matches('/'))
    });
    let own = mount.join(path.unwrap_or_default());
    let own = if own.is_dir() { own } else { mount.clone() };
    Some((mount, own))
}

/// In which group of version 2 a step's may lie: only one without processes of its own hands controllers down.
fn place_2(mount: &Path, own: &str, needed: &[&'static str]) -> Result<PathBuf, GroupError> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let own = mount.join(path.trim_start_matches('/'));
    let own = if own.is_dir() { own } else { mount.to_owned() };
    if hands_down(&own, needed) || enable(&own, needed) {
        return Ok(own);
    }
    // Alone in it, we can go one down.
    let below = own.join(format!("rbuild-{}-self", std::process::id()));
    let ours = processes(&own).is_some_and(|all| all.iter().all(|pid| is_ours(*pid)));
    if ours && fs::create_dir(&below).is_ok() {
        let moved = processes(&own)
            .unwrap_or_default()
            .iter()
            .all(|pid| fs::write(below.join("cgroup.procs"), pid.to_string()).is_ok());
        if moved && enable(&own, needed) {
            return Ok(own);
        }
    }
    match own.parent().filter(|parent| parent.starts_with(mount) && hands_down(parent, needed)) {
        Some(beside) => Ok(beside.to_owned()),
        None => Err(GroupError::NoController(needed.first().copied().unwrap_or("anything"))),
    }
}

fn hands_down(group: &Path, needed: &[&'static str]) -> bool {
    let enabled = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
    needed.iter().all(|controller| enabled.split_whitespace().any(|name| name == *controller))
}

fn enable(group: &Path, needed: &[&'static str]) -> bool {
    let all: Vec<String> = needed.iter().map(|controller| format!("+{controller}")).collect();
    fs::write(group.join("cgroup.subtree_control"), all.join(" ")).is_ok()
}

/// Lets each group from the root to `base` hand controllers down, as far as that is allowed.
fn hand_down(mount: &Path, base: &Path, needed: &[&'static str]) {
    let mut groups: Vec<&Path> = base.ancestors().take_while(|group| group.starts_with(mount)).collect();
    groups.reverse();
    for group in groups.into_iter().filter(|group| !hands_down(group, needed)) {
        // What is lacking is noticed below.
        let _refused = enable(group, needed);
    }
}

fn processes(group: &Path) -> Option<Vec<u32>> {
    let text = fs::read_to_string(group.join("cgroup.procs")).ok()?;
    text.lines().map(|line| line.parse().ok()).collect()
}

/// Whether a process is this one or its child.
fn is_ours(pid: u32) -> bool {
    let own = std::process::id();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold anything: state and parent.
    let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
    pid == own || parent == Some(own)
}

/// Makes the groups on the way to `path` and returns the last one.
fn make_all(mount: &Path, path: &Path) -> Result<PathBuf, GroupError> {
    let mut at = mount.to_owned();
    for part in path.components() {
        let next = at.join(part);
        match fs::create_dir(&next) {
            Ok(()) => inherit_cpus(&at, &next),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(refused("make", &next)(error)),
        }
        at = next;
    }
    Ok(at)
}

/// A new cpuset of version 1 has no CPU and no memory: nothing could run in it.
fn inherit_cpus(from: &Path, to: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read_to_string(from.join(file)) {
            // No such file: no cpuset.
            let _elsewhere = fs::write(to.join(file), value.trim());
        }
    }
}

fn set(directory: &Path, settings: &[(&'static str, String)]) -> Result<(), GroupError> {
    for (file, value) in settings {
        match fs::write(directory.join(file), value) {
            // Without accounting of swap there is none to limit.
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.contains("sw") => {}
            Err(source) => return Err(GroupError::Limit { file, value: value.clone(), source }),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Removes groups of processes that are no more.
fn remove_stale(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("rbuild-")?.split('-').next());
        let Some(owner) = owner.and_then(|owner| owner.parse::<u32>().ok()) else { continue };
        let age = entry.metadata().ok().and_then(|meta| meta.modified().ok()?.elapsed().ok());
        if !Path::new(&format!("/proc/{owner}")).exists() && age.is_some_and(|age| age > STALE) {
            // One with processes in it stays.
            let _in_use = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources() -> Resources {
        Resources {
            memory: Some(64 << 20),
            memory_swap: Some(96 << 20),
            cpu_shares: Some(1024),
            cpu_period: None,
            cpu_quota: Some(50_000),
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: None,
            pids: Some(100),
        }
    }

    #[test]
    fn limits_are_written_as_each_version_has_them() {
        let given = resources();
        assert_eq!(given.controllers(), ["memory", "cpu", "cpuset", "pids"]);
        let pairs = |list: Vec<(&'static str, String)>| {
            list.into_iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(
            pairs(given.version_1("memory")),
            ["memory.limit_in_bytes=67108864", "memory.memsw.limit_in_bytes=100663296"]
        );
        assert_eq!(pairs(given.version_1("cpu")), ["cpu.shares=1024", "cpu.cfs_quota_us=50000"]);
        assert!(given.version_1("freezer").is_empty());
        assert_eq!(
            pairs(given.version_2()),
            [
                "memory.max=67108864",
                "memory.swap.max=33554432",
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "pids.max=100"
            ]
        );
        let unlimited = Resources { memory_swap: Some(-1), cpu_quota: Some(-1), ..Resources::default() };
        assert_eq!(pairs(unlimited.version_2()), ["memory.swap.max=max", "cpu.max=max 100000"]);
    }

    #[test]
    fn parents_are_paths_or_slices() {
        let path = |name: &str| parent_path(name).ok();
        assert_eq!(path("/ci/build"), Some("ci/build".into()));
        assert_eq!(path("ci"), Some("ci".into()));
        assert_eq!(path("ci-build.slice"), Some("ci.slice/ci-build.slice".into()));
        for bad in ["", "/", "../x", "a/../b"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_group_is_there_as_long_as_it_is_held() {
        let wanted =
            Wanted { resources: Resources { memory: Some(64 << 20), ..Resources::default() }, parent: None };
        // Not everywhere may one be made.
        let Ok(group) = Group::new(&wanted) else { return };
        let directories = group.directories.clone();
        assert!(!directories.is_empty() && directories.iter().all(|directory| directory.is_dir()));
        assert_eq!(group.memory().limit, Some(64 << 20));
        assert_eq!(group.memory().kills, 0);
        drop(group);
        assert!(directories.iter().all(|directory| !directory.exists()));
    }
}

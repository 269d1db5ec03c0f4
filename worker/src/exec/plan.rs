//! Op to plan: what a process and its sandbox are to be, as plain data.
//!
//! [`plan`] is a pure function. It does not look anything up: layers, cache directories, secrets, user ids and name
//! servers come in as [`Resolved`]. Paths of images stay strings here; they are resolved inside their root, by
//! descriptor, in the child.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use solver::op::{self, MountKind, Security};

use super::names;
use super::secret::Secret;
use crate::isolate::group::{Resources, Wanted};
use crate::isolate::limits::{self, LimitError};
use crate::isolate::masks;
use crate::mount::scratch::Scratch;

pub use crate::isolate::limits::Limit;

/// Files that a sandbox sees: its root, or what a bind mount shows a part of.
#[derive(Clone, Debug)]
pub enum Root {
    /// Layers over each other.
    Overlay {
        /// The layers, first at the bottom. May be empty (`scratch`).
        lowers: Vec<Lower>,
        /// What happens to writes.
        access: Access,
    },
    /// One directory as it is.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Nothing in it can be changed.
        readonly: bool,
    },
}

/// One layer.
#[derive(Clone, Debug)]
pub enum Lower {
    /// Its files in a directory.
    Directory(PathBuf),
    /// A mount that is attached nowhere.
    Mount(Arc<OwnedFd>),
}

/// What happens to writes to an overlay.
#[derive(Clone, Debug)]
pub enum Access {
    /// They are refused.
    ReadOnly,
    /// They go to an upper directory.
    Writable {
        /// Where changes are kept. May hold some already.
        upper: PathBuf,
        /// A new directory on the same file system, for the kernel; worthless afterwards (it cannot be used again).
        work: PathBuf,
    },
    /// They go to an upper directory in memory.
    InMemory(Scratch),
}

impl Access {
    /// The upper directory, as this process reaches it.
    pub fn upper(&self) -> Option<PathBuf> {
        match self {
            Self::ReadOnly => None,
            Self::Writable { upper, .. } => Some(upper.clone()),
            Self::InMemory(scratch) => Some(scratch.upper()),
        }
    }
}

/// A mount besides the root.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Where in the sandbox; absolute. Made if it is missing, and removed again afterwards.
    pub target: String,
    /// What.
    pub source: Source,
    /// Nothing in it can be changed.
    pub readonly: bool,
}

/// What is mounted.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file or directory of a root; `path` is resolved inside it.
    Files {
        /// The root.
        root: Root,
        /// Path in it.
        path: String,
    },
    /// A file, directory or socket of the host, that the user or rbuild itself named.
    Host(PathBuf),
    /// An empty directory in memory.
    Tmpfs {
        /// Largest size in bytes.
        size: Option<u64>,
    },
    /// A device of the host, as a node of the sandbox's own. Without the right to make one, it is the host's node.
    Device {
        /// The host's node.
        host: PathBuf,
        /// Which device, if the host's node need not say it.
        number: Option<DeviceNumber>,
        /// Permission bits.
        mode: u16,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A file that exists in the sandbox's mount namespace only.
    File {
        /// What is in it.
        content: Secret,
        /// Permission bits; without an execute bit, the file is mounted `noexec`.
        mode: u16,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// A device, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber {
    /// A block device; else a character device.
    pub block: bool,
    /// Of its driver.
    pub major: u32,
    /// Among its driver's.
    pub minor: u32,
}

/// Whose process it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, for `HOME` if the environment has none.
    pub home: Option<String>,
}

/// Network of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// Its own, with nothing but loopback.
    None,
}

/// A process and its sandbox.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its root.
    pub root: Root,
    /// Nothing in the root can be changed by the process; mount points are still made in it before.
    pub read_only: bool,
    /// A directory (same file system as upper directories, for the owner only) in which mount points that images lack
    /// are kept as a lowest layer, so that they need not be made in every upper directory. See [`super::skeleton`].
    pub skeletons: Option<PathBuf>,
    /// Other mounts; parents come before what is below them.
    pub mounts: Vec<Mount>,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Variables whose value is secret.
    pub secret_env: Vec<(String, Secret)>,
    /// Working directory; made if it is missing, for the identity.
    pub cwd: String,
    /// User, group, groups.
    pub identity: Identity,
    /// Host name.
    pub hostname: String,
    /// Network.
    pub network: Network,
    /// Docker's defaults, or everything allowed.
    pub security: Security,
    /// Set-user-ID programs gain nothing.
    pub no_new_privileges: bool,
    /// Resource limits; clamped to what this process may set.
    pub limits: Vec<Limit>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// A control group of its own; by default it stays in this process's.
    pub group: Wanted,
}

/// What the worker found for an op.
#[derive(Debug)]
pub struct Resolved {
    /// Input 0.
    pub root: Root,
    /// See [`Plan::skeletons`].
    pub skeletons: Option<PathBuf>,
    /// What each of [`op::Exec::mounts`] needs, in their order.
    pub mounts: Vec<Given>,
    /// Who [`op::Exec::user`] is.
    pub identity: Identity,
    /// What [`op::Network::Default`] is.
    pub default_network: Network,
    /// Text of `/etc/resolv.conf`: see [`names::resolv_conf`].
    pub resolv_conf: String,
    /// Limits of its control group; `None` where no group can be made.
    pub resources: Option<Resources>,
}

/// What a mount of an op needs.
#[derive(Clone, Debug)]
pub enum Given {
    /// The input of a bind mount; writable if the mount is.
    Files(Root),
    /// The directory of a cache mount.
    Cache(PathBuf),
    /// The value of a secret.
    Secret(Secret),
    /// The socket of an SSH agent.
    Socket(PathBuf),
    /// Nothing: a tmpfs, a bind mount without input, an optional secret or agent that is not there.
    Nothing,
}

/// Why an op is no plan.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// No program.
    #[error("could not run the step: it has no command")]
    NoCommand,
    /// The kernel's strings end at NUL.
    #[error("could not run the step: {what} contains a NUL byte")]
    Nul {
        /// Which string.
        what: &'static str,
    },
    /// Not an absolute path.
    #[error("could not use {path:?} as {what}: it is not an absolute path without `..`")]
    Path {
        /// The path.
        path: String,
        /// Its role.
        what: &'static str,
    },
    /// The sandbox has its own there.
    #[error("could not mount on {0:?}: the sandbox's own file systems cannot be covered")]
    Reserved(String),
    /// A mount and what was found for it are of different kinds.
    #[error("could not mount on {0:?}: what was found for it does not fit")]
    Mismatch(String),
    /// It was required.
    #[error("could not find {kind} {id:?}, which the step requires")]
    Missing {
        /// `secret` or `SSH agent`.
        kind: &'static str,
        /// Its name.
        id: String,
    },
    /// Larger than [`Secret::MAX`].
    #[error("could not use secret {0:?}: it is larger than {max} bytes", max = Secret::MAX)]
    SecretSize(String),
    /// A limit that cannot be read.
    #[error(transparent)]
    Limit(#[from] LimitError),
}

/// Host name of a step that sets none.
pub const HOSTNAME: &str = "buildkitsandbox";

/// Size of `/dev/shm` if none is asked for.
pub const SHM_SIZE: u64 = 64 << 20;

/// What the process and its sandbox are to be.
pub fn plan(exec: &op::Exec, resolved: Resolved) -> Result<Plan, PlanError> {
    let hostname = exec.hostname.clone().unwrap_or_else(|| HOSTNAME.to_owned());
    let network = match exec.network {
        op::Network::Default => resolved.default_network,
        op::Network::None => Network::None,
        op::Network::Host => Network::Host,
    };
    let mut mounts = vec![
        read_only_file("/etc/resolv.conf", resolved.resolv_conf, 0o644),
        read_only_file("/etc/hosts", names::hosts(&hostname, &exec.unkeyed.hosts), 0o644),
    ];
    mounts.extend(exec.scripts.iter().map(|(path, text)| read_only_file(path, text.clone(), 0o755)));

    let mut env = exec.env.clone();
    env.extend(exec.unkeyed.proxy_env.iter().cloned());
    let mut secret_env = Vec::new();
    if exec.mounts.len() != resolved.mounts.len() {
        return Err(PlanError::Mismatch(format!("{} mounts", exec.mounts.len())));
    }
    for (mount, given) in exec.mounts.iter().zip(resolved.mounts) {
        add_mount(mount, given, &mut mounts, &mut env, &mut secret_env)?;
    }
    let mut plan = Plan {
        root: resolved.root,
        read_only: false,
        skeletons: resolved.skeletons,
        mounts,
        args: exec.args.clone(),
        env,
        secret_env,
        cwd: if exec.cwd.is_empty() { "/".to_owned() } else { exec.cwd.clone() },
        identity: resolved.identity,
        hostname,
        network,
        security: exec.security,
        no_new_privileges: false,
        limits: exec.ulimits.iter().map(|text| limits::parse(text)).collect::<Result<_, _>>()?,
        shm_size: exec.shm_size.filter(|size| *size > 0).unwrap_or(SHM_SIZE),
        group: match resolved.resources {
            Some(resources) => Wanted { parent: exec.cgroup_parent.clone(), resources },
            None => Wanted::default(),
        },
    };
    plan.sort_mounts();
    plan.check()?;
    Ok(plan)
}

impl Plan {
    /// Whether the strings in it can be used: [`plan`] and `spawn` both ask, since a plan can also be made by hand.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.args.is_empty() {
            return Err(PlanError::NoCommand);
        }
        let strings = [("an argument", &self.args), ("a variable", &self.env)];
        for (what, list) in strings {
            if list.iter().any(|string| string.contains('\0')) {
                return Err(PlanError::Nul { what });
            }
        }
        if self.secret_env.iter().any(|(name, value)| name.contains('\0') || value.expose().contains(&0)) {
            return Err(PlanError::Nul { what: "a secret variable" });
        }
        absolute(&self.cwd, "working directory")?;
        for mount in &self.mounts {
            absolute(&mount.target, "mount target")?;
            if is_reserved(&mount.target, matches!(mount.source, Source::Device { .. })) {
                return Err(PlanError::Reserved(mount.target.clone()));
            }
            if let Source::Files { path, .. } = &mount.source {
                absolute(path, "mount source")?;
            }
        }
        Ok(())
    }

    /// Puts parents before what is below them. Of two on the same path the later one stays on top.
    pub(crate) fn sort_mounts(&mut self) {
        self.mounts.sort_by_key(|mount| components(&mount.target).count());
    }

    /// The value of a variable, the last one of that name.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The parts of a path.
pub(crate) fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

fn read_only_file(target: &str, text: String, mode: u16) -> Mount {
    let content = Secret::new(text.into_bytes());
    Mount {
        target: target.to_owned(),
        source: Source::File { content, mode, uid: 0, gid: 0 },
        readonly: true,
    }
}

fn add_mount(
    mount: &op::Mount,
    given: Given,
    mounts: &mut Vec<Mount>,
    env: &mut Vec<String>,
    secret_env: &mut Vec<(String, Secret)>,
) -> Result<(), PlanError> {
    let target = mount.target.clone();
    let (source, readonly) = match (&mount.kind, given) {
        (MountKind::Bind { source, writable, .. }, Given::Files(root)) => {
            (Source::Files { root, path: or_root(source) }, !writable)
        }
        (MountKind::Bind { input: None, writable, .. }, Given::Nothing) => {
            (Source::Tmpfs { size: None }, !writable)
        }
        (MountKind::Cache { source, input, readonly, .. }, Given::Cache(path)) => {
            let root = Root::Directory { path, readonly: false };
            // One that was filled holds what `source` was, and no more.
            let source = if input.is_some() { "/" } else { source };
            (Source::Files { root, path: or_root(source) }, *readonly)
        }
        (MountKind::Tmpfs { size, readonly }, Given::Nothing) => (Source::Tmpfs { size: *size }, *readonly),
        (MountKind::Secret { id, env, mode, uid, gid, .. }, Given::Secret(content)) => {
            if content.expose().len() > Secret::MAX {
                return Err(PlanError::SecretSize(id.clone()));
            }
            if let Some(name) = env {
                secret_env.push((name.clone(), content.clone()));
            }
            if target.is_empty() {
                return Ok(());
            }
            (Source::File { content, mode: *mode, uid: *uid, gid: *gid }, true)
        }
        (MountKind::Secret { id, required, .. }, Given::Nothing) => return missing("secret", id, *required),
        (MountKind::Ssh { .. }, Given::Socket(path)) => {
            if !env.iter().any(|pair| pair.starts_with("SSH_AUTH_SOCK=")) {
                env.push(format!("SSH_AUTH_SOCK={target}"));
            }
            (Source::Host(path), false)
        }
        (MountKind::Ssh { id, required, .. }, Given::Nothing) => return missing("SSH agent", id, *required),
        _ => return Err(PlanError::Mismatch(target)),
    };
    mounts.push(Mount { target, source, readonly });
    Ok(())
}

fn missing(kind: &'static str, id: &str, required: bool) -> Result<(), PlanError> {
    if required { Err(PlanError::Missing { kind, id: id.to_owned() }) } else { Ok(()) }
}

fn or_root(path: &str) -> String {
    if path.is_empty() { "/".to_owned() } else { path.to_owned() }
}

fn absolute(path: &str, what: &'static str) -> Result<(), PlanError> {
    if path.contains('\0') {
        return Err(PlanError::Nul { what });
    }
    // 4095 bytes is what the kernel takes.
    if !path.starts_with('/') || path.len() > 4095 || components(path).any(|part| part == "..") {
        return Err(PlanError::Path { path: path.to_owned(), what });
    }
    Ok(())
}

/// The root, `/proc`, `/sys` and all below them, `/dev` itself and what the sandbox makes in it. Other names in `/dev` are
/// for devices.
fn is_reserved(target: &str, is_device: bool) -> bool {
    let parts: Vec<&str> = components(target).collect();
    match parts.as_slice() {
        [] | ["proc" | "sys", ..] | ["dev"] => true,
        ["dev", name] if is_device => {
            let made = masks::DEVICES.iter().chain(masks::LINKS).map(|(made, _)| made.to_bytes());
            let others = [&b"shm"[..], b"mqueue", b"pts", b"console"];
            made.chain(others).any(|made| made == name.as_bytes())
        }
        ["dev", name] => !matches!(*name, "shm" | "mqueue"),
        ["dev", "pts", ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {

    use image::Platform;

    use super::*;

    fn exec() -> op::Exec {
        let platform = "linux/amd64".parse::<Platform>().unwrap();
        op::Exec { env: vec!["PATH=/bin".into()], ..op::Exec::new(vec!["true".into()], platform) }
    }

    fn resolved(mounts: Vec<Given>) -> Resolved {
        Resolved {
            root: Root::Directory { path: "/r".into(), readonly: false },
            skeletons: None,
            mounts,
            identity: Identity::default(),
            default_network: Network::Host,
            resources: None,
            resolv_conf: String::new(),
        }
    }

    fn secret(target: &str, required: bool) -> op::Mount {
        let kind = MountKind::Secret {
            id: "key".into(),
            env: Some("KEY".into()),
            required,
            mode: 0o400,
            uid: 0,
            gid: 0,
        };
        op::Mount { target: target.into(), kind }
    }

    #[test]
    fn a_plain_step_gets_dockers_defaults() {
        let plan = plan(&exec(), resolved(vec![])).unwrap();
        assert_eq!(plan.hostname, "buildkitsandbox");
        assert_eq!(plan.cwd, "/");
        assert_eq!(plan.network, Network::Host);
        assert_eq!(plan.shm_size, 64 << 20);
        let targets: Vec<_> = plan.mounts.iter().map(|m| m.target.as_str()).collect();
        assert_eq!(targets, ["/etc/resolv.conf", "/etc/hosts"]);
    }

    #[test]
    fn the_sandboxs_own_file_systems_cannot_be_covered() {
        for target in
            ["/", "//", "/proc", "/proc/self", "/sys/fs", "/dev", "/dev/pts/0", "/dev/null", "/./proc/"]
        {
            let mut exec = exec();
            exec.mounts = vec![op::Mount {
                target: target.into(),
                kind: MountKind::Tmpfs { size: None, readonly: false },
            }];
            let error = plan(&exec, resolved(vec![Given::Nothing])).unwrap_err();
            assert_eq!(error, PlanError::Reserved(target.into()));
        }
        for target in ["/dev/shm", "/dev/pipes/EOF", "/process", "/a/proc"] {
            let mut exec = exec();
            exec.mounts = vec![op::Mount {
                target: target.into(),
                kind: MountKind::Tmpfs { size: None, readonly: false },
            }];
            assert!(plan(&exec, resolved(vec![Given::Nothing])).is_ok(), "{target}");
        }
    }

    #[test]
    fn paths_that_are_not_absolute_and_clean_are_refused() {
        for target in ["", "a", "/a/../b", "/a\0b"] {
            let mut exec = exec();
            exec.mounts = vec![op::Mount {
                target: target.into(),
                kind: MountKind::Tmpfs { size: None, readonly: false },
            }];
            assert!(plan(&exec, resolved(vec![Given::Nothing])).is_err(), "{target:?}");
        }
    }

    #[test]
    fn parents_are_mounted_before_what_is_below_them() {
        let mut exec = exec();
        let tmpfs = |target: &str| op::Mount {
            target: target.into(),
            kind: MountKind::Tmpfs { size: None, readonly: false },
        };
        exec.mounts = vec![tmpfs("/c/d/e"), tmpfs("/c"), tmpfs("/c/d")];
        let plan = plan(&exec, resolved(vec![Given::Nothing; 3])).unwrap();
        let targets: Vec<_> = plan.mounts.iter().map(|m| m.target.as_str()).collect();
        assert_eq!(targets, ["/c", "/etc/resolv.conf", "/etc/hosts", "/c/d", "/c/d/e"]);
    }

    #[test]
    fn a_secret_is_a_file_or_a_variable_and_never_shown() {
        let mut exec = exec();
        exec.mounts = vec![secret("", true)];
        let given = Given::Secret(Secret::new(b"hunter2".to_vec()));
        let only_env = plan(&exec, resolved(vec![given.clone()])).unwrap();
        assert_eq!(only_env.mounts.len(), 2);
        assert_eq!(only_env.secret_env.len(), 1);
        exec.mounts = vec![secret("/run/secrets/key", true)];
        let both = plan(&exec, resolved(vec![given])).unwrap();
        assert_eq!(both.mounts.len(), 3);
        assert!(!format!("{both:?}").contains("hunter2"));
    }

    #[test]
    fn a_missing_secret_is_an_error_only_if_required() {
        let mut exec = exec();
        exec.mounts = vec![secret("/s", false)];
        assert_eq!(plan(&exec, resolved(vec![Given::Nothing])).unwrap().mounts.len(), 2);
        exec.mounts = vec![secret("/s", true)];
        assert!(matches!(plan(&exec, resolved(vec![Given::Nothing])), Err(PlanError::Missing { .. })));
    }

    #[test]
    fn strings_with_nul_are_refused() {
        let mut exec = exec();
        exec.env = vec!["A=b\0c".into()];
        assert_eq!(plan(&exec, resolved(vec![])).unwrap_err(), PlanError::Nul { what: "a variable" });
    }
}

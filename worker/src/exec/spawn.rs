//! Plan to process: prepares, clones, and listens until the command runs.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fcntl_getfl, fcntl_setfl, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::Resource;
use rustix::termios::Winsize;
use solver::op::Security;
use tokio::io::unix::AsyncFd;

use super::child::{self, Files, Setup, Standard};
use super::guardian;
use super::plan::{Access, DeviceNumber, Identity, Limit, Lower, Network, Plan, PlanError, Root, Source};
use super::program::{NO_INTERPRETER, Program};
use super::report::{self, Failure, Message, Phase, above_standard};
use super::skeleton;
use super::stub::Place;
use super::wait::{Child, Output, OwnMemory};
use crate::isolate::group::{Entrance, Group, GroupError};
use crate::isolate::limits::{self, clamp};
use crate::isolate::userns::Ids;
use crate::isolate::{caps, cgroup, masks, seccomp};
use crate::mount::overlay::{Overlay, OverlayError};
use crate::mount::special::{self, Submounts};
use crate::sys::async_fd;
use crate::sys::clone3::{self, clone3};

/// Standard input, output and error of a process.
#[derive(Debug)]
pub enum Stdio {
    /// Output and error are read by the [`Child`]; input is this, or empty.
    Piped {
        /// Standard input.
        stdin: Option<OwnedFd>,
    },
    /// These.
    Given([OwnedFd; 3]),
    /// A terminal of this size, made in the sandbox.
    Terminal(Winsize),
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The plan cannot be carried out anywhere.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A layer could not be opened.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// Something of the host could not be opened.
    #[error("could not open {path:?}: {source}", path = path.display())]
    Open {
        /// What.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The mount points could not be kept.
    #[error("could not make mount points in {path:?}: {source}", path = path.display())]
    Skeleton {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An overlay needs a layer below.
    #[error("could not mount an empty root: no directory for mount points was given")]
    EmptyRoot,
    /// An id that the user namespace does not have.
    #[error("could not become user {uid}:{gid}: the user namespace has no such id")]
    NoSuchId {
        /// User ID.
        uid: u32,
        /// Group ID.
        gid: u32,
    },
    /// It was to have a control group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Pipes, sockets.
    #[error("could not prepare the process: {0}")]
    Prepare(#[source] Errno),
    /// The kernel does not make the process.
    #[error("could not make a process in new namespaces: {0}")]
    Clone(#[source] Errno),
    /// The kernel refuses a part of the sandbox.
    #[error("could not {what}: {source}")]
    Sandbox {
        /// What was tried.
        what: String,
        /// Why.
        source: Errno,
    },
    /// The command could not be executed.
    #[error("exec: {program:?}: {kind}")]
    Exec {
        /// The program, as in the arguments.
        program: String,
        /// Why.
        kind: ExecError,
    },
    /// The child ended without a word: it was killed.
    #[error("could not start the process: it was killed while its sandbox was built")]
    Died,
}

/// Why a command could not be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// In none of `PATH`'s directories.
    #[error("executable file not found in $PATH")]
    NotInPath,
    /// No such file.
    #[error("no such file or directory")]
    NotFound,
    /// The file is there; what should interpret it is not.
    #[error("the interpreter in its first line, or its dynamic loader, does not exist in the image")]
    NoInterpreter,
    /// No execute permission, or a directory.
    #[error("permission denied")]
    NotExecutable,
    /// Another platform's, or no program.
    #[error("exec format error")]
    Format,
    /// Anything else.
    #[error("{0}")]
    Other(Errno),
}

impl SpawnError {
    /// The exit code that a shell, and Docker, would give: 127 if there is no such program, 126 if it cannot be run;
    /// `None` if this is no fault of the command.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exec {
                kind: ExecError::NotInPath | ExecError::NotFound | ExecError::NoInterpreter,
                ..
            } => Some(127),
            Self::Exec { .. } => Some(126),
            _ => None,
        }
    }
}

/// Starts the process and returns when the command runs in it. Must be called on the main thread: the kernel kills the
/// process when the *thread* that made it ends.
pub async fn spawn(plan: &Plan, stdio: Stdio) -> Result<Child, SpawnError> {
    // A process enters a user namespace at its start or never.
    static IDS: OnceLock<Ids> = OnceLock::new();
    let ids = IDS.get_or_init(Ids::current);
    let (parent, child) = report::channel().map_err(SpawnError::Prepare)?;
    let (standard, output) = standard(stdio)?;
    let mut setup = prepare(plan, ids, standard)?;
    setup.parent = Some(parent);
    setup.report = Some(child);

    let mut namespaces = clone3::NEWNS | clone3::NEWPID | clone3::NEWIPC | clone3::NEWUTS;
    if plan.network == Network::None {
        namespaces |= clone3::NEWNET;
    }
    if setup.cgroup2 {
        namespaces |= clone3::NEWCGROUP;
    }
    let place = place(plan);
    let group = match plan.group.is_nothing() {
        true => None,
        false => Some(Group::new(&plan.group)?),
    };
    let mut entrance = None;
    match group.as_ref().map(Group::entrance).transpose()? {
        Some(Entrance::Directory(directory)) => entrance = Some(directory),
        Some(Entrance::Files(files)) => setup.groups_to_enter = files,
        None => {}
    }
    let memory = match group {
        Some(group) => OwnMemory::Group(group),
        None => OwnMemory::Shared { kills_before: cgroup::oom_kills() },
    };
    let started = Instant::now();
    let into = entrance.as_ref().map(AsFd::as_fd);
    let cloned =
        clone3(namespaces, into, &mut |child| child::run(&child, &mut setup)).map_err(SpawnError::Clone)?;
    guardian::watch(cloned.pidfd.as_fd());
    // From here on the process is killed if this future is dropped.
    let mut process = Child::new(cloned, output, place, started, memory).map_err(SpawnError::Prepare)?;
    let parent = setup.parent.take();
    // Closes our copy of the child's end, and all that only the child needs.
    drop(setup);

    let parent = parent.ok_or(SpawnError::Died)?;
    let parent = async_fd::readable(parent).map_err(|(_, errno)| SpawnError::Prepare(errno))?;
    match listen(&parent, &mut process).await {
        None => Ok(process),
        Some(failure) => {
            process.reap();
            Err(explain(plan, failure))
        }
    }
}

/// Takes messages until the command runs; returns what went wrong, if anything.
async fn listen(parent: &AsyncFd<OwnedFd>, process: &mut Child) -> Option<Failure> {
    loop {
        let Ok(mut ready) = parent.readable().await else { return Some(LOST) };
        loop {
            match report::receive(parent.as_fd()) {
                Ok(None) => return None,
                Ok(Some(Message::Failed(failure))) => return Some(failure),
                Ok(Some(Message::Made(stub))) => process.stubs.push(stub),
                Ok(Some(Message::Terminal(terminal))) => process.terminal = Some(terminal),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(errno) => return Some(Failure { errno, ..LOST }),
            }
        }
        ready.clear_ready();
    }
}

const LOST: Failure = Failure { phase: Phase::Parent, index: 0, errno: Errno::IO };

/// Makes all that needs memory.
fn prepare(plan: &Plan, ids: &Ids, standard: Standard) -> Result<Setup, SpawnError> {
    plan.check()?;
    let Identity { uid, gid, groups, .. } = &plan.identity;
    if !ids.has_user(*uid) || !ids.has_group(*gid) {
        return Err(SpawnError::NoSuchId { uid: *uid, gid: *gid });
    }
    let insecure = plan.security == Security::Insecure;
    let (root, read_only_root) = root(plan, ids)?;
    let mounts = plan
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| prepare_mount(plan, ids, index, mount))
        .collect::<Result<_, _>>()?;
    let have = rustix::thread::capabilities(None).map_err(SpawnError::Prepare)?.permitted;
    // The own group is a supplementary one, too: else a set-group-ID program could leave it, and what is closed to the
    // group would be open.
    let others = groups.iter().copied().filter(|other| other != gid && ids.has_group(*other));
    let groups = std::iter::once(*gid).chain(others).map(Gid::from_raw).collect();
    Ok(Setup {
        parent: None,
        report: None,
        own_network: plan.network == Network::None,
        hostname: plan.hostname.clone().into_bytes(),
        root,
        read_only_root: read_only_root || plan.read_only,
        mounts,
        groups_to_enter: Vec::new(),
        cgroup2: cgroup::is_unified(),
        shm_size: number(plan.shm_size),
        tty_group: ids.has_group(5),
        cwd: c_string(&plan.cwd)?,
        standard,
        insecure,
        no_new_privileges: plan.no_new_privileges,
        filter: (!insecure).then(seccomp::default_filter),
        capabilities: if insecure { have } else { have & caps::DEFAULT },
        limits: all_limits(&plan.limits),
        uid: Uid::from_raw(*uid),
        gid: Gid::from_raw(*gid),
        groups: ids.set_groups.then_some(groups),
        program: Program::new(&plan.args, environment(plan)?, plan.variable("PATH"))
            .ok_or(PlanError::NoCommand)?,
    })
}

/// No core dumps, which could carry secrets to the host, unless asked for.
fn all_limits(wanted: &[Limit]) -> Vec<(Resource, rustix::process::Rlimit)> {
    let no_core = Limit { resource: Resource::Core, soft: Some(0), hard: None };
    let usual = [no_core].into_iter().chain(limits::files());
    usual.chain(wanted.iter().copied()).map(|limit| (limit.resource, clamp(limit))).collect()
}

fn environment(plan: &Plan) -> Result<Vec<CString>, PlanError> {
    let nul = |_| PlanError::Nul { what: "a variable" };
    let mut env: Vec<CString> =
        plan.env.iter().map(|pair| CString::new(pair.as_str())).collect::<Result<_, _>>().map_err(nul)?;
    if plan.variable("HOME").is_none()
        && let Some(home) = &plan.identity.home
    {
        env.push(CString::new(format!("HOME={home}")).map_err(nul)?);
    }
    for (name, value) in &plan.secret_env {
        let pair = [name.as_bytes(), b"=", value.expose()].concat();
        env.push(CString::new(pair).map_err(nul)?);
    }
    Ok(env)
}

fn root(plan: &Plan, ids: &Ids) -> Result<(Files, bool), SpawnError> {
    match &plan.root {
        Root::Directory { path, readonly } => Ok((Files::Directory(host_path(path)?), *readonly)),
        Root::Overlay { lowers, access } => {
            let mut with_skeleton = Vec::with_capacity(lowers.len() + 1);
            if let Some(skeletons) = &plan.skeletons {
                let skeleton = skeleton::ensure(skeletons, &plan.mounts)
                    .map_err(|source| SpawnError::Skeleton { path: skeletons.clone(), source })?;
                with_skeleton.push(Lower::Directory(skeleton));
            }
            with_skeleton.extend(lowers.iter().cloned());
            let files = files(&Root::Overlay { lowers: with_skeleton, access: access.clone() }, None, ids)?;
            Ok((files, matches!(access, Access::ReadOnly)))
        }
    }
}

/// `empty` is a directory that holds nothing, for an overlay without layers.
fn files(root: &Root, empty: Option<&Path>, ids: &Ids) -> Result<Files, SpawnError> {
    match root {
        Root::Directory { path, .. } => Ok(Files::Directory(host_path(path)?)),
        Root::Overlay { lowers, access } => {
            let nothing: Vec<Lower> =
                empty.map(|path| Lower::Directory(path.to_owned())).into_iter().collect();
            match (lowers.as_slice(), access) {
                ([], _) if nothing.is_empty() => Err(SpawnError::EmptyRoot),
                // The kernel wants at least two layers, or one and an upper directory.
                ([Lower::Directory(path)], Access::ReadOnly) => Ok(Files::Directory(host_path(path)?)),
                ([Lower::Mount(mount)], Access::ReadOnly) => {
                    // Here: the child's mount namespace may attach it, but not clone it.
                    special::clone(mount.as_fd(), Submounts::Excluded)
                        .map(Files::Mount)
                        .map_err(SpawnError::Prepare)
                }
                ([], Access::ReadOnly) => {
                    files(&Root::Overlay { lowers: nothing, access: Access::ReadOnly }, None, ids)
                }
                ([], access) => Ok(Files::Overlay(Overlay::prepare(&nothing, access, ids.is_namespace())?)),
                (lowers, access) => Ok(Files::Overlay(Overlay::prepare(lowers, access, ids.is_namespace())?)),
            }
        }
    }
}

fn prepare_mount(
    plan: &Plan,
    ids: &Ids,
    index: usize,
    mount: &super::Mount,
) -> Result<child::Mount, SpawnError> {
    let source = match &mount.source {
        Source::Files { root, path } => {
            let empty = match (root, &plan.skeletons) {
                (Root::Overlay { lowers, .. }, Some(skeletons)) if lowers.is_empty() => {
                    let empty = skeletons.join("empty");
                    match std::fs::create_dir(&empty) {
                        Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => {
                            return Err(SpawnError::Skeleton { path: empty, source });
                        }
                        _ => Some(empty),
                    }
                }
                _ => None,
            };
            child::Source::Files { root: files(root, empty.as_deref(), ids)?, path: c_string(path)? }
        }
        Source::Host(path) => child::Source::Host(host_path(path)?),
        Source::Tmpfs { size } => child::Source::Tmpfs(size.map(number)),
        Source::Device { host, number, mode, uid, gid } => {
            let path = host_path(host)?;
            let open = |source| SpawnError::Open { path: host.clone(), source };
            let stat = rustix::fs::stat(host).map_err(open)?;
            let (kind, number) = match number {
                Some(DeviceNumber { block, major, minor }) => {
                    let kind = if *block { FileType::BlockDevice } else { FileType::CharacterDevice };
                    (kind, rustix::fs::makedev(*major, *minor))
                }
                None => (FileType::from_raw_mode(stat.st_mode), stat.st_rdev),
            };
            if !matches!(kind, FileType::BlockDevice | FileType::CharacterDevice) {
                return Err(open(Errno::NODEV));
            }
            child::Source::Device {
                host: path,
                name: self::number(index as u64),
                kind,
                number,
                mode: *mode,
                // Without such an id, it is root's.
                uid: Uid::from_raw(if ids.has_user(*uid) { *uid } else { 0 }),
                gid: Gid::from_raw(if ids.has_group(*gid) { *gid } else { 0 }),
            }
        }
        Source::File { content, mode, uid, gid } => {
            if !ids.has_user(*uid) || !ids.has_group(*gid) {
                return Err(SpawnError::NoSuchId { uid: *uid, gid: *gid });
            }
            child::Source::File {
                name: number(index as u64),
                content: content.clone(),
                mode: *mode,
                uid: Uid::from_raw(*uid),
                gid: Gid::from_raw(*gid),
            }
        }
    };
    Ok(child::Mount { target: c_string(&mount.target)?, source, readonly: mount.readonly, mounted: None })
}

fn standard(stdio: Stdio) -> Result<(Standard, Option<Output>), SpawnError> {
    let prepare = SpawnError::Prepare;
    let above = |fd| above_standard(fd).map_err(prepare);
    Ok(match stdio {
        Stdio::Terminal(size) => (Standard::Terminal(size), None),
        Stdio::Given([stdin, stdout, stderr]) => {
            (Standard::Files([above(stdin)?, above(stdout)?, above(stderr)?]), None)
        }
        Stdio::Piped { stdin } => {
            let stdin = match stdin {
                Some(stdin) => stdin,
                None => {
                    open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(prepare)?
                }
            };
            let (out, stdout) = output_pipe().map_err(prepare)?;
            let (err, stderr) = output_pipe().map_err(prepare)?;
            let output = Output::new(out, err).map_err(prepare)?;
            (Standard::Files([above(stdin)?, above(stdout)?, above(stderr)?]), Some(output))
        }
    })
}

/// Reading end (which never blocks) and writing end.
fn output_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&read, fcntl_getfl(&read)? | OFlags::NONBLOCK)?;
    // Fewer wake-ups for chatty steps; the kernel may refuse more than its limit per user.
    let _as_it_is = fcntl_setpipe_size(&write, 256 << 10);
    Ok((read, write))
}

/// Where stubs that the child makes end up.
fn place(plan: &Plan) -> Option<(PathBuf, Place)> {
    match &plan.root {
        Root::Directory { path, .. } => Some((path.clone(), Place::Other)),
        Root::Overlay { access, .. } => {
            let upper = access.upper()?;
            let fresh = std::fs::read_dir(&upper).is_ok_and(|mut entries| entries.next().is_none());
            Some((upper, if fresh { Place::FreshUpper } else { Place::Other }))
        }
    }
}

/// A path of the host: checked here, for a message that names it, and opened in the child.
fn host_path(path: &Path) -> Result<CString, SpawnError> {
    let open = |source| SpawnError::Open { path: path.to_owned(), source };
    rustix::fs::stat(path).map_err(open)?;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| open(Errno::INVAL))
}

fn c_string(path: &str) -> Result<CString, PlanError> {
    CString::new(std::ffi::OsStr::new(path).as_bytes()).map_err(|_| PlanError::Nul { what: "a path" })
}

fn number(number: u64) -> CString {
    CString::new(number.to_string()).expect("digits have no NUL")
}

/// What the child was doing, in words.
fn explain(plan: &Plan, Failure { phase, index, errno }: Failure) -> SpawnError {
    let index = index as usize;
    let target = || plan.mounts.get(index).map_or("", |mount| mount.target.as_str());
    let what = match phase {
        Phase::Parent => return SpawnError::Died,
        Phase::Private => "detach the mounts of the step from the host's".to_owned(),
        Phase::Loopback => "bring up the loopback interface".to_owned(),
        Phase::Group => "enter its control group".to_owned(),
        Phase::Hostname => format!("set the host name {:?}", plan.hostname),
        Phase::Source => format!("open the source of the mount on {:?}", target()),
        Phase::Root => "mount the root".to_owned(),
        Phase::Proc => "mount /proc".to_owned(),
        Phase::Dev => "mount /dev".to_owned(),
        Phase::Device => {
            let host = masks::DEVICES.get(index).map_or(c"", |(_, host)| host);
            format!("make the device {}", host.to_string_lossy())
        }
        Phase::Pts => "mount /dev/pts".to_owned(),
        Phase::Shm => "mount /dev/shm".to_owned(),
        Phase::Mqueue => "mount /dev/mqueue".to_owned(),
        Phase::Sys => "mount /sys".to_owned(),
        Phase::Mount => format!("mount on {:?}", target()),
        Phase::Mask => format!("mask {}", masks::MASKED.get(index).copied().unwrap_or(c"").to_string_lossy()),
        Phase::ReadOnly => {
            format!(
                "make {} read-only",
                masks::READ_ONLY.get(index).copied().unwrap_or(c"").to_string_lossy()
            )
        }
        Phase::Directory => format!("enter the working directory {:?}", plan.cwd),
        Phase::Terminal => "make a terminal".to_owned(),
        Phase::Pivot => "change to the step's root".to_owned(),
        Phase::Limit => "set a resource limit".to_owned(),
        Phase::Filter => "install the system call filter".to_owned(),
        Phase::Capabilities => "drop capabilities".to_owned(),
        Phase::User => format!("become user {}:{}", plan.identity.uid, plan.identity.gid),
        Phase::Standard => "set up standard input and output".to_owned(),
        Phase::Exec => {
            let program = plan.args.first().cloned().unwrap_or_default();
            let kind = match errno {
                Errno::NOENT | Errno::NOTDIR if index as u32 == NO_INTERPRETER => ExecError::NoInterpreter,
                Errno::NOENT | Errno::NOTDIR if program.contains('/') => ExecError::NotFound,
                Errno::NOENT => ExecError::NotInPath,
                Errno::ACCESS | Errno::PERM | Errno::LOOP => ExecError::NotExecutable,
                Errno::NOEXEC => ExecError::Format,
                errno => ExecError::Other(errno),
            };
            return SpawnError::Exec { program, kind };
        }
    };
    SpawnError::Sandbox { what, source: errno }
}

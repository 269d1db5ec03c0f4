//! Between `clone3` and `execve`: the child builds its sandbox around itself.
//!
//! The child has a copy of the parent's memory, in which other threads' locks may be held for ever. So it allocates
//! nothing and locks nothing; all strings and lists are made before, in [`Setup`]. It makes system calls, mostly on
//! descriptors, and on the first error tells the parent and ends. Order matters and is commented where it does.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, fstat, mkdirat, mknodat, openat,
    symlinkat,
};
use rustix::io::{Errno, write};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{
    Resource, Rlimit, Signal, fchdir, ioctl_tiocsctty, pivot_root, set_parent_process_death_signal,
    setrlimit, setsid, umask,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::program::Program;
use super::report::{self, Failure, Phase};
use super::target::{Kind, Links, Made, find, place};
use crate::isolate::{caps, masks};
use crate::mount::overlay::Overlay;
use crate::mount::special::{self, Submounts, attach, park};
use crate::sys::clone3::InChild;
use crate::sys::mount_setattr::{NODEV, NOEXEC, NOSUID, RDONLY, Reach, mount_setattr};
use crate::sys::seccomp::Instruction;
use crate::sys::{close_range, fd, interface, keyctl, seccomp, signal};

/// All that the child needs, made before it exists.
#[derive(Debug)]
pub(super) struct Setup {
    /// The parent's end of the channel; the child closes its copy.
    pub(super) parent: Option<OwnedFd>,
    /// The child's end.
    pub(super) report: Option<OwnedFd>,
    pub(super) own_network: bool,
    pub(super) hostname: Vec<u8>,
    pub(super) root: Files,
    pub(super) read_only_root: bool,
    pub(super) mounts: Vec<Mount>,
    /// Files of control groups of version 1: what writes to them is in the group.
    pub(super) groups_to_enter: Vec<OwnedFd>,
    pub(super) cgroup2: bool,
    pub(super) shm_size: CString,
    /// Whether group 5 exists in the user namespace.
    pub(super) tty_group: bool,
    pub(super) cwd: CString,
    pub(super) standard: Standard,
    pub(super) insecure: bool,
    pub(super) no_new_privileges: bool,
    pub(super) filter: Option<&'static [Instruction]>,
    /// What this process may hand on.
    pub(super) capabilities: CapabilitySet,
    pub(super) limits: Vec<(Resource, Rlimit)>,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// `None` if the user namespace does not allow to set them.
    pub(super) groups: Option<Vec<Gid>>,
    pub(super) program: Program,
}

/// A root or a part of one.
#[derive(Debug)]
pub(super) enum Files {
    Overlay(Overlay),
    /// A directory of the host. By path: a descriptor that the parent opened would lead to a mount of the parent's
    /// namespace, which cannot be cloned here.
    Directory(CString),
    /// A mount that is attached nowhere and is this step's alone.
    Mount(OwnedFd),
}

/// A mount besides the root.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) target: CString,
    pub(super) source: Source,
    pub(super) readonly: bool,
    /// The mount, once it exists.
    pub(super) mounted: Option<(OwnedFd, Kind)>,
}

/// What is mounted.
#[derive(Debug)]
pub(super) enum Source {
    Files {
        root: Files,
        path: CString,
    },
    Host(CString),
    Device {
        host: CString,
        name: CString,
        kind: FileType,
        number: rustix::fs::Dev,
        mode: u16,
        uid: Uid,
        gid: Gid,
    },
    /// With its size, if limited.
    Tmpfs(Option<CString>),
    File {
        name: CString,
        content: super::Secret,
        mode: u16,
        uid: Uid,
        gid: Gid,
    },
}

/// Standard input, output and error.
#[derive(Debug)]
pub(super) enum Standard {
    /// These.
    Files([OwnedFd; 3]),
    /// A terminal, made in the sandbox.
    Terminal(Winsize),
}

/// Ends with the command running in this process, or with the process.
pub(super) fn run(child: &InChild, setup: &mut Setup) -> Infallible {
    let Err(failure) = build(child, setup);
    if let Some(report) = &setup.report {
        report::send_failure(report.as_fd(), failure);
    }
    crate::sys::clone3::exit(127)
}

/// Names what was being done when a call failed.
trait At<T> {
    fn at(self, phase: Phase) -> Result<T, Failure>;
    fn at_index(self, phase: Phase, index: usize) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, phase: Phase) -> Result<T, Failure> {
        self.at_index(phase, 0)
    }

    fn at_index(self, phase: Phase, index: usize) -> Result<T, Failure> {
        self.map_err(|errno| Failure { phase, index: index as u32, errno })
    }
}

fn build(child: &InChild, setup: &mut Setup) -> Result<Infallible, Failure> {
    die_with_parent(setup).at(Phase::Parent)?;
    // Before anything is made that counts. 0 is whoever writes.
    for group in &setup.groups_to_enter {
        write(group, b"0").at(Phase::Group)?;
    }
    // No terminal of the parent's: Ctrl-C is for rbuild, which then decides.
    let _already_leader = setsid();
    signal::reset();
    // Modes are given in full below.
    umask(Mode::empty());
    // Nothing mounted here is seen outside, and nothing from outside comes in.
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).at(Phase::Private)?;
    if setup.own_network {
        loopback_up().at(Phase::Loopback)?;
    }
    rustix::system::sethostname(&setup.hostname).at(Phase::Hostname)?;

    let terminal = sandbox(setup)?;

    // Keys of whoever called rbuild stay with them. Not all kernels have keyrings.
    let _without_keyrings = keyctl::join_new_session_keyring();
    for (index, (resource, limit)) in setup.limits.iter().enumerate() {
        setrlimit(*resource, *limit).at_index(Phase::Limit, index)?;
    }
    umask(Mode::from_raw_mode(0o022));
    standard(child, setup, terminal.as_ref()).at(Phase::Standard)?;
    drop(terminal);
    if setup.no_new_privileges {
        set_no_new_privs(true).at(Phase::Filter)?;
    }
    // Without no-new-privileges a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go. What follows is
    // allowed by it.
    if let Some(filter) = setup.filter {
        seccomp::set_filter(filter).at(Phase::Filter)?;
    }
    become_user(setup)?;

    // All descriptors but the standard ones and the report, whoever left them open.
    let report = setup.report.take().ok_or(Errno::BADF).at(Phase::Exec)?;
    setup.report = Some(fd::move_to(child, report, 3).at(Phase::Exec)?);
    close_range::close_from(child, 4).at(Phase::Exec)?;
    let (index, errno) = setup.program.execute();
    Err(Failure { phase: Phase::Exec, index, errno })
}

/// All that is about files: mounts, the new root, the working directory. Returns the terminal, if there is one.
fn sandbox(setup: &mut Setup) -> Result<Option<OwnedFd>, Failure> {
    // Sources before the root: they may lie anywhere on the host, and the root must be on top of what is parked.
    mount_sources(setup)?;
    let root = mount_root(setup).at(Phase::Root)?;
    let null = mount_system(setup, root.as_fd())?;
    // The user's mounts before the masks, so that none can cover a mask.
    for index in 0..setup.mounts.len() {
        mount_user(setup, root.as_fd(), index).at_index(Phase::Mount, index)?;
    }
    if !setup.insecure {
        mask(root.as_fd(), null.as_fd())?;
    }
    let cwd = enter_directory(setup, root.as_fd()).at(Phase::Directory)?;
    let terminal = terminal(setup, root.as_fd()).at(Phase::Terminal)?;
    if setup.read_only_root {
        mount_setattr(root.as_fd(), RDONLY, Reach::Mount).at(Phase::Root)?;
    }
    pivot(root.as_fd(), cwd.as_fd()).at(Phase::Pivot)?;
    Ok(terminal)
}

/// The parent's death kills this process, and as it is the first of its PID namespace, all others in it.
fn die_with_parent(setup: &mut Setup) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Without our copy of its end, the parent's is the only one; if it died before the line above, the channel is
    // closed.
    drop(setup.parent.take());
    let report = setup.report.as_ref().ok_or(Errno::BADF)?;
    let mut polled = [PollFd::new(report, PollFlags::empty())];
    let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&at_once))?;
    if polled[0].revents().contains(PollFlags::HUP) { Err(Errno::SRCH) } else { Ok(()) }
}

fn loopback_up() -> Result<(), Errno> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    interface::loopback_up(socket.as_fd())
}

/// Devices of the step's own making cannot be opened: this is what the device cgroup is for elsewhere.
fn no_devices(insecure: bool) -> u64 {
    if insecure { 0 } else { NODEV }
}

fn mount_sources(setup: &mut Setup) -> Result<(), Failure> {
    let mut places = Places::default();
    let no_devices = no_devices(setup.insecure);
    for (index, mount) in setup.mounts.iter_mut().enumerate() {
        let mounted = mount_source(mount, no_devices, &mut places).at_index(Phase::Source, index)?;
        mount.mounted = Some(mounted);
    }
    Ok(())
}

fn mount_source(mount: &Mount, no_devices: u64, places: &mut Places) -> Result<(OwnedFd, Kind), Errno> {
    let readonly = if mount.readonly { RDONLY } else { 0 };
    match &mount.source {
        Source::Files { root, path } => {
            let (base, submounts) = match root {
                Files::Overlay(overlay) => (overlay.mount(MountAttrFlags::empty())?, Submounts::Excluded),
                Files::Directory(path) => (open_host(path)?, Submounts::Included),
                Files::Mount(mount) => {
                    park(mount)?;
                    (mount.try_clone().map_err(|_| Errno::MFILE)?, Submounts::Excluded)
                }
            };
            let source = find(base.as_fd(), path, Links::Follow)?;
            let kind = kind(&source)?;
            let clone = special::clone(source.as_fd(), submounts)?;
            mount_setattr(clone.as_fd(), no_devices | readonly, Reach::Tree)?;
            Ok((clone, kind))
        }
        Source::Host(path) => {
            let source = open_host(path)?;
            let kind = kind(&source)?;
            let clone = special::clone(source.as_fd(), Submounts::Included)?;
            mount_setattr(clone.as_fd(), no_devices | readonly, Reach::Tree)?;
            Ok((clone, kind))
        }
        Source::Device { host, name, kind, number, mode, uid, gid } => {
            let directory = Places::get(&mut places.devices, NOSUID | NOEXEC)?;
            let mode = Mode::from_raw_mode(u32::from(*mode));
            match mknodat(directory, name, *kind, mode, *number) {
                Ok(()) => {
                    chownat(directory, name, Some(*uid), Some(*gid), AtFlags::SYMLINK_NOFOLLOW)?;
                    let node = openat(directory, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                    Ok((special::clone(node.as_fd(), Submounts::Excluded)?, Kind::File))
                }
                // In a user namespace.
                Err(Errno::PERM) => Ok((host_device(host, *kind, *number)?, Kind::File)),
                Err(errno) => Err(errno),
            }
        }
        Source::Tmpfs(size) => {
            let options = [(c"mode", c"1777"), (c"size", size.as_deref().unwrap_or(c"0"))];
            let options = if size.is_some() { &options[..] } else { &options[..1] };
            Ok((special::new(c"tmpfs", options, NOSUID | NODEV | readonly)?, Kind::Directory))
        }
        Source::File { name, content, mode, uid, gid } => {
            let directory = Places::get(&mut places.files, NOSUID | NODEV)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(directory, name.as_c_str(), flags, Mode::from_raw_mode(0o600))?;
            let mut rest = content.expose();
            while !rest.is_empty() {
                let written = write(&file, rest)?;
                rest = &rest[written..];
            }
            fchown(&file, Some(*uid), Some(*gid))?;
            fchmod(&file, Mode::from_raw_mode(u32::from(*mode)))?;
            let clone = special::clone(file.as_fd(), Submounts::Excluded)?;
            let no_exec = if mode & 0o111 == 0 { NOEXEC } else { 0 };
            mount_setattr(clone.as_fd(), NOSUID | NODEV | no_exec | readonly, Reach::Mount)?;
            Ok((clone, Kind::File))
        }
    }
}

/// File systems that hold what is mounted file by file, made when first needed.
#[derive(Debug, Default)]
struct Places {
    files: Option<OwnedFd>,
    devices: Option<OwnedFd>,
}

impl Places {
    fn get(place: &mut Option<OwnedFd>, attributes: u64) -> Result<&OwnedFd, Errno> {
        match place {
            Some(place) => Ok(place),
            none => {
                let tmpfs = special::new(c"tmpfs", &[(c"mode", c"0700")], attributes)?;
                park(&tmpfs)?;
                Ok(none.insert(tmpfs))
            }
        }
    }
}

/// The host's own node of a device.
fn host_device(path: &CStr, kind: FileType, number: rustix::fs::Dev) -> Result<OwnedFd, Errno> {
    let node = open_host(path)?;
    let stat = fstat(&node)?;
    if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
        return Err(Errno::PERM);
    }
    special::clone(node.as_fd(), Submounts::Excluded)
}

/// Something of the host, that rbuild or its user named.
fn open_host(path: &CStr) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn kind(file: &OwnedFd) -> Result<Kind, Errno> {
    let directory = FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory;
    Ok(if directory { Kind::Directory } else { Kind::File })
}

fn mount_root(setup: &Setup) -> Result<OwnedFd, Errno> {
    let no_devices = no_devices(setup.insecure);
    match &setup.root {
        Files::Overlay(overlay) => {
            let attributes =
                if setup.insecure { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NODEV };
            overlay.mount(attributes)
        }
        Files::Directory(path) => {
            let clone = special::clone(open_host(path)?.as_fd(), Submounts::Included)?;
            mount_setattr(clone.as_fd(), no_devices, Reach::Mount)?;
            park(&clone)?;
            Ok(clone)
        }
        Files::Mount(mount) => {
            mount_setattr(mount.as_fd(), no_devices, Reach::Mount)?;
            park(mount)?;
            mount.try_clone().map_err(|_| Errno::MFILE)
        }
    }
}

/// Finds or makes a mount point in the root; the parent hears of what was made, and removes it afterwards.
fn stub(
    setup: &Setup,
    root: BorrowedFd<'_>,
    path: &CStr,
    kind: Kind,
    links: Links,
) -> Result<OwnedFd, Errno> {
    place(root, path, kind, links, &mut |made| {
        let report = setup.report.as_ref().ok_or(Errno::BADF)?;
        report::send_made(report.as_fd(), made.path, made.kind, made.parent, &fstat(made.directory)?)
    })
}

/// `/proc`, `/dev` and `/sys`. Returns the null device, which was made here and not found in an image.
fn mount_system(setup: &Setup, root: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let system = |name: &CStr| stub(setup, root, name, Kind::Directory, Links::Refuse);
    let proc = || {
        let procfs = match special::new(c"proc", &[], NOSUID | NOEXEC | NODEV) {
            // A container masks parts of its own.
            Err(Errno::PERM) => special::host_proc()?,
            mount => mount?,
        };
        attach(&procfs, system(c"proc")?.as_fd())
    };
    proc().at(Phase::Proc)?;
    let dev = || {
        let attributes = NOSUID | no_devices(setup.insecure);
        let dev = special::new(c"tmpfs", &[(c"mode", c"0755"), (c"size", c"65536k")], attributes)?;
        attach(&dev, system(c"dev")?.as_fd())?;
        for (name, to) in masks::LINKS {
            symlinkat(*to, &dev, *name)?;
        }
        for name in [c"pts", c"shm", c"mqueue"] {
            mkdirat(&dev, name, Mode::from_raw_mode(0o755))?;
        }
        Ok(dev)
    };
    let dev: OwnedFd = dev().at(Phase::Dev)?;
    let mut null = None;
    for (index, (name, host)) in masks::DEVICES.iter().enumerate() {
        let device = device(&dev, name, host).at_index(Phase::Device, index)?;
        if index == 0 {
            null = Some(device);
        }
    }
    if setup.insecure {
        for (name, host) in masks::INSECURE_DEVICES {
            let _host_lacks_it = device(&dev, name, host);
        }
    }
    let sub = |name: &CStr| find(dev.as_fd(), name, Links::Refuse);
    let pts = || {
        let options = [(c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5")];
        let options = if setup.tty_group { &options[..] } else { &options[..2] };
        attach(&special::new(c"devpts", options, NOSUID | NOEXEC)?, sub(c"pts")?.as_fd())
    };
    pts().at(Phase::Pts)?;
    let shm = || {
        let options = [(c"mode", c"1777"), (c"size", setup.shm_size.as_c_str())];
        attach(&special::new(c"tmpfs", &options, NOSUID | NOEXEC | NODEV)?, sub(c"shm")?.as_fd())
    };
    shm().at(Phase::Shm)?;
    let mqueue = || attach(&special::new(c"mqueue", &[], NOSUID | NOEXEC | NODEV)?, sub(c"mqueue")?.as_fd());
    mqueue().at(Phase::Mqueue)?;
    let sys = || {
        let readonly = if setup.insecure { 0 } else { RDONLY };
        let sysfs = match special::new(c"sysfs", &[], NOSUID | NOEXEC | NODEV | readonly) {
            // The network namespace belongs to another user namespace.
            Err(Errno::PERM) => special::host_sys()?,
            mount => mount?,
        };
        let target = system(c"sys")?;
        attach(&sysfs, target.as_fd())?;
        if setup.cgroup2 {
            let cgroup = || {
                let mount = special::new(c"cgroup2", &[], NOSUID | NOEXEC | NODEV | readonly)?;
                attach(&mount, find(root, c"sys/fs/cgroup", Links::Refuse)?.as_fd())
            };
            // Good to have: programs read their limits there.
            let _not_allowed = cgroup();
        }
        Ok(())
    };
    sys().at(Phase::Sys)?;
    null.ok_or(Errno::NODEV).at(Phase::Device)
}

/// A device of the host under `/dev`: a mount, since a node could not be opened on a `nodev` file system, nor be made
/// in a user namespace.
fn device(dev: &OwnedFd, name: &CStr, host: &CStr) -> Result<OwnedFd, Errno> {
    let device = open_tree(CWD, host, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    if FileType::from_raw_mode(fstat(&device)?.st_mode) != FileType::CharacterDevice {
        return Err(Errno::NODEV);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let target = openat(dev, name, flags, Mode::from_raw_mode(0o666))?;
    attach(&device, target.as_fd())?;
    Ok(device)
}

fn mount_user(setup: &mut Setup, root: BorrowedFd<'_>, index: usize) -> Result<(), Errno> {
    let Some((mounted, kind)) = setup.mounts[index].mounted.take() else { return Err(Errno::BADF) };
    let target = stub(setup, root, &setup.mounts[index].target, kind, Links::Follow)?;
    // A link in the image must not lead a mount over what the sandbox itself needs.
    let system = [libc::PROC_SUPER_MAGIC as u64, libc::SYSFS_MAGIC as u64, libc::DEVPTS_SUPER_MAGIC as u64];
    if system.contains(&(rustix::fs::fstatfs(&target)?.f_type as u64)) {
        return Err(Errno::ACCESS);
    }
    attach(&mounted, target.as_fd())
}

/// Covers what must not be read, and makes unwritable what must not be written. By descriptor: the null device is the
/// one that was checked, and `/proc` and `/sys` are the ones that were mounted.
fn mask(root: BorrowedFd<'_>, null: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut empty: Option<OwnedFd> = None;
    for (index, path) in masks::MASKED.iter().enumerate() {
        let mut cover = || {
            let target = match find(root, path, Links::Refuse) {
                Err(Errno::NOENT) => return Ok(()),
                target => target?,
            };
            let mask = match kind(&target)? {
                Kind::File => special::clone(null, Submounts::Excluded)?,
                Kind::Directory => {
                    let empty = match &mut empty {
                        Some(empty) => empty,
                        none => {
                            let new = special::new(
                                c"tmpfs",
                                &[(c"mode", c"0555")],
                                NOSUID | NODEV | NOEXEC | RDONLY,
                            )?;
                            park(&new)?;
                            none.insert(new)
                        }
                    };
                    special::clone(empty.as_fd(), Submounts::Excluded)?
                }
            };
            attach(&mask, target.as_fd())
        };
        cover().at_index(Phase::Mask, index)?;
    }
    for (index, path) in masks::READ_ONLY.iter().enumerate() {
        let cover = || {
            let target = match find(root, path, Links::Refuse) {
                Err(Errno::NOENT) => return Ok(()),
                target => target?,
            };
            let clone = special::clone(target.as_fd(), Submounts::Included)?;
            mount_setattr(clone.as_fd(), RDONLY | NOSUID | NOEXEC | NODEV, Reach::Tree)?;
            attach(&clone, target.as_fd())
        };
        cover().at_index(Phase::ReadOnly, index)?;
    }
    Ok(())
}

/// The working directory; if it is missing, it is made for the user, and stays.
fn enter_directory(setup: &Setup, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let owner = |made: Made<'_>| {
        chownat(made.directory, made.name, Some(setup.uid), Some(setup.gid), AtFlags::SYMLINK_NOFOLLOW)
    };
    let directory = place(root, &setup.cwd, Kind::Directory, Links::Follow, &mut { owner })?;
    if kind(&directory)? == Kind::File { Err(Errno::NOTDIR) } else { Ok(directory) }
}

/// Makes the terminal in the sandbox's own `/dev/pts`, so that programs can find its name.
fn terminal(setup: &Setup, root: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    let Standard::Terminal(size) = &setup.standard else { return Ok(None) };
    let directory = find(root, c"dev/pts", Links::Refuse)?;
    let controller =
        openat(&directory, c"ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    unlockpt(&controller)?;
    tcsetwinsize(&controller, *size)?;
    let terminal =
        ioctl_tiocgptpeer(&controller, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fchown(&terminal, Some(setup.uid), None)?;
    let report = setup.report.as_ref().ok_or(Errno::BADF)?;
    report::send_terminal(report.as_fd(), controller.as_fd())?;
    // `/dev/console` is the same terminal.
    let dev = find(root, c"dev", Links::Refuse)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let console = openat(&dev, c"console", flags, Mode::from_raw_mode(0o600))?;
    attach(&special::clone(terminal.as_fd(), Submounts::Excluded)?, console.as_fd())?;
    Ok(Some(terminal))
}

/// Makes `root` the root, and lets go of the old one with all that is parked on it.
fn pivot(root: BorrowedFd<'_>, cwd: BorrowedFd<'_>) -> Result<(), Errno> {
    fchdir(root)?;
    // The old root lands on top of the new one.
    pivot_root(c".", c".")?;
    special::unmount_old_root()?;
    fchdir(cwd)
}

fn standard(child: &InChild, setup: &Setup, terminal: Option<&OwnedFd>) -> Result<(), Errno> {
    match (&setup.standard, terminal) {
        (Standard::Files(files), _) => {
            for (number, file) in files.iter().enumerate() {
                fd::make_standard(child, file.as_fd(), number as i32)?;
                // `> /dev/stderr` opens a pipe anew, which only its owner may. A file stays its owner's.
                if FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Fifo {
                    let _stays_as_it_is = fchown(file, Some(setup.uid), None);
                }
            }
        }
        (Standard::Terminal(_), Some(terminal)) => {
            ioctl_tiocsctty(terminal)?;
            for number in 0..3 {
                fd::make_standard(child, terminal.as_fd(), number)?;
            }
            let _stays_as_it_is = fchown(terminal, Some(setup.uid), None);
        }
        (Standard::Terminal(_), None) => return Err(Errno::NOTTY),
    }
    Ok(())
}

/// From all-powerful in this namespace to what the step may be.
fn become_user(setup: &Setup) -> Result<(), Failure> {
    let allowed = setup.capabilities;
    for number in caps::NUMBERS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if allowed.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // Beyond what the kernel knows.
            Err(Errno::INVAL) => break,
            result => result.at(Phase::Capabilities)?,
        }
    }
    clear_ambient_capability_set().at(Phase::Capabilities)?;
    let inheritable = if setup.insecure { allowed } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: allowed, permitted: allowed, inheritable };
    set_capabilities(None, sets).at(Phase::Capabilities)?;
    if setup.insecure {
        // All five sets, so that any user has them.
        rustix::thread::set_keep_capabilities(true).at(Phase::Capabilities)?;
    }

    if let Some(groups) = &setup.groups {
        set_thread_groups(groups).at(Phase::User)?;
    }
    set_thread_res_gid(setup.gid, setup.gid, setup.gid).at(Phase::User)?;
    // For another user than root, this clears permitted and effective capabilities.
    set_thread_res_uid(setup.uid, setup.uid, setup.uid).at(Phase::User)?;
    if setup.insecure {
        set_capabilities(None, sets).at(Phase::Capabilities)?;
        for capability in allowed.iter() {
            configure_capability_in_ambient_set(capability, true).at(Phase::Capabilities)?;
        }
    }
    // A change of user forgets it.
    set_parent_process_death_signal(Some(Signal::KILL)).at(Phase::User)
}

//! User namespaces: becoming root in one, without being root.
//!
//! [`enter`] puts the whole process into a user and a mount namespace, once, at its start. With a range of subordinate
//! ids (`/etc/subuid`, through the set-user-ID helpers newuidmap and newgidmap) all of an image's owners exist in it;
//! without one, only root does, and steps can be nobody else. The root of a container that is not privileged enters one
//! too, with all ids that it has. [`Ids`] says which ids exist.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, read, write};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, getegid, geteuid, getpid, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, capabilities};

use crate::sys::clone3::{Cloned, InChild, NEWNS, NEWUSER, clone3, exit};
use crate::sys::execve::{Strings, execve};
use crate::sys::setns::unshare;
use crate::sys::waitid::{Block, Ended, waitid};

/// What the process is after [`enter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It was root already: nothing was done.
    Root,
    /// Root of a namespace with this many more ids.
    Range(u32),
    /// Root of a namespace in which no other id exists.
    Single,
}

/// Why there is no user namespace for this process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// `user.max_user_namespaces` is 0.
    #[error("the host allows no user namespaces (sysctl user.max_user_namespaces is 0)")]
    Limit,
    /// Debian's sysctl.
    #[error("the host allows user namespaces for root only (sysctl kernel.unprivileged_userns_clone is 0)")]
    RootOnly,
    /// Ubuntu's sysctl.
    #[error(
        "AppArmor takes the privileges of user namespaces away (sysctl kernel.apparmor_restrict_unprivileged_userns \
         is 1)"
    )]
    AppArmor,
    /// A container's system call filter, or something else.
    #[error("the host (or the container that rbuild is in) refuses to {action}: {source}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
}

/// Makes this process root of its own user namespace if it is not root, or a root that may not mount. Must be called before it has a second thread.
/// If there is an obstacle, the process is as it was.
pub fn enter() -> Result<Entered, Obstacle> {
    if geteuid().is_root() && may_administer() {
        return Ok(Entered::Root);
    }
    let refused = |action| move |source| Obstacle::Refused { action, source };
    let own = Own::current();
    try_in_child(&own)?;
    let helpers = Helpers::start().ok().flatten();
    unshare(NEWUSER | NEWNS).map_err(refused("make a user namespace"))?;
    if let Some(helpers) = helpers
        && let Some(count) = helpers.map()
    {
        return Ok(Entered::Range(count));
    }
    own.map_single().map_err(refused("map a user"))?;
    Ok(Entered::Single)
}

/// Whether this process may mount and make namespaces: it has CAP_SYS_ADMIN.
pub(crate) fn may_administer() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Files and text that map this process's own ids, made beforehand.
struct Own {
    maps: [(CString, Vec<u8>); 3],
}

impl Own {
    fn current() -> Self {
        let file = |name: &str| CString::new(format!("/proc/self/{name}")).expect("no NUL in it");
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        Self {
            maps: [
                // The kernel wants it before a group may be mapped without privilege.
                (file("setgroups"), b"deny".to_vec()),
                (file("uid_map"), format!("0 {uid} 1\n").into_bytes()),
                (file("gid_map"), format!("0 {gid} 1\n").into_bytes()),
            ],
        }
    }

    fn map_single(&self) -> Result<(), Errno> {
        for (index, (path, text)) in self.maps.iter().enumerate() {
            // A helper may have done its half. Groups: the first file goes with the last.
            let map = &self.maps[if index == 1 { 1 } else { 2 }].0;
            let map = openat(CWD, map.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            if read(&map, &mut [0; 1][..])? == 0 {
                let file = openat(CWD, path.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
                write(&file, text)?;
            }
        }
        Ok(())
    }
}

/// Tries in a process that can be thrown away: there is no way back from a namespace.
fn try_in_child(own: &Own) -> Result<(), Obstacle> {
    let (result, report) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|source| Obstacle::Refused { action: "make a pipe", source })?;
    let attempt = || -> Result<Infallible, (u8, Errno)> {
        unshare(NEWUSER).map_err(|errno| (0, errno))?;
        own.map_single().map_err(|errno| (1, errno))?;
        unshare(NEWNS).map_err(|errno| (2, errno))?;
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(|errno| (3, errno))?;
        exit(0)
    };
    let mut child = |_: InChild| {
        let Err((step, errno)) = attempt();
        let mut message = [step, 0, 0, 0, 0];
        message[1..].copy_from_slice(&errno.raw_os_error().to_le_bytes());
        let _parent_gone = write(&report, &message);
        exit(1)
    };
    let cloned = clone3(0, None, &mut child)
        .map_err(|source| Obstacle::Refused { action: "make a process", source })?;
    drop(report);
    let mut message = [0; 5];
    let length = read(&result, &mut message[..]).unwrap_or(0);
    let _ended = waitid(cloned.pidfd.as_fd(), Block::Yes);
    if length < message.len() {
        return Ok(());
    }
    let [step, errno @ ..] = message;
    Err(obstacle(step, Errno::from_raw_os_error(i32::from_le_bytes(errno)), &|name| {
        fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|text| text.trim().to_owned())
    }))
}

/// The host's reason, as far as its sysctls say it.
fn obstacle(step: u8, source: Errno, sysctl: &dyn Fn(&str) -> Option<String>) -> Obstacle {
    let is = |name, value| sysctl(name).is_some_and(|text| text == value);
    if is("user/max_user_namespaces", "0") {
        Obstacle::Limit
    } else if step == 0 && is("kernel/unprivileged_userns_clone", "0") {
        Obstacle::RootOnly
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        Obstacle::AppArmor
    } else {
        let action = ["make a user namespace", "map a user", "make a mount namespace", "change a mount"];
        Obstacle::Refused { action: action[usize::from(step.min(3))], source }
    }
}

/// Who maps ids: newuidmap and newgidmap, or a copy of a process that is root. Started in the parent namespace, waiting for
/// this process to be in the new one.
struct Helpers {
    running: Vec<Cloned>,
    go: OwnedFd,
    count: u32,
}

impl Helpers {
    /// `None` if the host has no range for this user, or no helpers.
    fn start() -> Result<Option<Self>, Errno> {
        if geteuid().is_root() {
            return Self::of_root().map(Some);
        }
        let uid = geteuid().as_raw();
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let user = user_name(&text("/etc/passwd"), uid);
        let range = |path| subordinate(&text(path), uid, user.as_deref());
        let (Some(uids), Some(gids)) = (range("/etc/subuid"), range("/etc/subgid")) else { return Ok(None) };
        let (Some(newuidmap), Some(newgidmap)) = (find_helper("newuidmap"), find_helper("newgidmap")) else {
            return Ok(None);
        };
        let (ready, go) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut running = Vec::new();
        let group = getegid().as_raw();
        for (program, own, (first, count)) in [(newuidmap, uid, uids), (newgidmap, group, gids)] {
            let pid = getpid().as_raw_nonzero().to_string();
            let args = ["map", &pid, "0", &own.to_string(), "1", "1", &first.to_string(), &count.to_string()]
                .map(|arg| CString::new(arg).expect("no NUL in it"));
            let (args, env) = (Strings::new(args.to_vec()), Strings::new(Vec::new()));
            running.push(clone3(0, None, &mut |_| {
                // It ends by itself if this process does.
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                if matches!(read(&ready, &mut [0; 1][..]), Ok(1)) {
                    execve(&program, &args, &env);
                }
                exit(127)
            })?);
        }
        Ok(Some(Self { running, go, count: uids.1.min(gids.1) }))
    }

    /// Root may map each of its ids to itself.
    fn of_root() -> Result<Self, Errno> {
        let ids = Ids::current();
        let pid = getpid().as_raw_nonzero();
        let map = |name: &str, ranges| {
            let path = CString::new(format!("/proc/{pid}/{name}")).expect("no NUL in it");
            (path, identity(ranges).into_bytes())
        };
        let maps = [map("uid_map", &ids.users), map("gid_map", &ids.groups)];
        let (ready, go) = pipe_with(PipeFlags::CLOEXEC)?;
        let child = clone3(0, None, &mut |_| {
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            let mapped = || -> Result<(), Errno> {
                if read(&ready, &mut [0; 1][..])? == 0 {
                    return Err(Errno::CANCELED);
                }
                for (path, text) in &maps {
                    let file = openat(CWD, path.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
                    write(&file, text)?;
                }
                Ok(())
            };
            exit(i32::from(mapped().is_err()))
        })?;
        let count =
            ids.users.iter().map(|(_, count)| count).fold(0, |sum: u32, count| sum.saturating_add(*count));
        Ok(Self { running: vec![child], go, count: count - 1 })
    }

    /// Lets them work; the number of ids, or `None` if one of them could not.
    fn map(self) -> Option<u32> {
        let started = write(&self.go, b"go").is_ok();
        drop(self.go);
        let mut all = started;
        for helper in self.running {
            all &= matches!(waitid(helper.pidfd.as_fd(), Block::Yes), Ok(Some((Ended::Exited(0), _))));
        }
        all.then_some(self.count)
    }
}

/// A map of each id to itself. The host's whole range is cut by one: by its map a namespace is told from the host's.
fn identity(ranges: &[(u32, u32)]) -> String {
    ranges
        .iter()
        .map(|&(first, count)| {
            format!("{first} {first} {}\n", if count == u32::MAX { count - 1 } else { count })
        })
        .collect()
}

/// Only where the system keeps set-user-ID programs: `PATH` may lead into a checkout.
fn find_helper(name: &str) -> Option<CString> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/run/wrappers/bin"].into_iter().find_map(
        |directory| {
            let path = format!("{directory}/{name}");
            match fs::metadata(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                _ => CString::new(path).ok(),
            }
        },
    )
}

/// The name of a user in `/etc/passwd`.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The largest range of a user in `/etc/subuid`, by name or number: first and count.
fn subordinate(file: &str, uid: u32, name: Option<&str>) -> Option<(u32, u32)> {
    file.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let owner = fields.next()?;
            let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
            (Some(owner) == name || owner.parse() == Ok(uid)).then_some((first, count))
        })
        .filter(|(_, count)| *count > 0)
        .max_by_key(|(_, count)| *count)
}

/// The ids of this process's user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    users: Vec<(u32, u32)>,
    groups: Vec<(u32, u32)>,
    /// Whether supplementary groups can be set.
    pub set_groups: bool,
}

impl Ids {
    /// Reads `/proc/self`.
    pub fn current() -> Self {
        // Without /proc, or without user namespaces, all ids exist.
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).ok();
        let ranges = |name: &str| read(name).map_or_else(|| vec![(0, u32::MAX)], |text| parse(&text));
        Self {
            users: ranges("uid_map"),
            groups: ranges("gid_map"),
            set_groups: read("setgroups").is_none_or(|text| text.trim() != "deny"),
        }
    }

    /// Whether this is a user namespace other than the host's.
    pub fn is_namespace(&self) -> bool {
        self.users != [(0, u32::MAX)]
    }

    /// Whether the user exists.
    pub fn has_user(&self, uid: u32) -> bool {
        contains(&self.users, uid)
    }

    /// Whether the group exists.
    pub fn has_group(&self, gid: u32) -> bool {
        contains(&self.groups, gid)
    }
}

/// Lines of `inside outside count`; the result is first and count.
fn parse(map: &str) -> Vec<(u32, u32)> {
    map.lines()
        .filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            let first = numbers.next()?.ok()?;
            Some((first, numbers.nth(1)?.ok()?))
        })
        .collect()
}

fn contains(ranges: &[(u32, u32)], id: u32) -> bool {
    ranges.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|offset| offset < *count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_exist_if_a_line_of_the_map_has_them() {
        let map = parse("         0       1000          1\n         1     100000      65536\n");
        assert_eq!(map, [(0, 1), (1, 65536)]);
        for (id, exists) in [(0, true), (1, true), (65536, true), (65537, false), (u32::MAX, false)] {
            assert_eq!(contains(&map, id), exists, "{id}");
        }
    }

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let file = "alice:100000:65536\n1000:300000:10\nbob:x:1\nbob:5:0\n1000:400000:20\n";
        assert_eq!(subordinate(file, 7, Some("alice")), Some((100_000, 65536)));
        assert_eq!(subordinate(file, 1000, None), Some((400_000, 20)));
        assert_eq!(subordinate(file, 8, Some("bob")), None);
        assert_eq!(user_name("root:x:0:0::/:/bin/sh\nbob:x:8:8::/:/bin/sh\n", 8).as_deref(), Some("bob"));
    }

    #[test]
    fn root_maps_its_ids_to_themselves_and_is_told_from_the_host_s() {
        assert_eq!(identity(&[(0, 1), (1, 65536)]), "0 0 1\n1 1 65536\n");
        let all = identity(&[(0, u32::MAX)]);
        assert_eq!(parse(&all), [(0, u32::MAX - 1)]);
        assert!(Ids { users: parse(&all), groups: parse(&all), set_groups: true }.is_namespace());
    }

    #[test]
    fn the_obstacle_names_the_sysctl_that_is_in_the_way() {
        let with = |step, name: &'static str, value: &'static str| {
            obstacle(step, Errno::PERM, &move |asked| (asked == name).then(|| value.to_owned()))
        };
        assert_eq!(with(0, "user/max_user_namespaces", "0"), Obstacle::Limit);
        assert_eq!(with(0, "kernel/unprivileged_userns_clone", "0"), Obstacle::RootOnly);
        assert_eq!(with(1, "kernel/apparmor_restrict_unprivileged_userns", "1"), Obstacle::AppArmor);
        let refused = with(0, "user/max_user_namespaces", "1000");
        assert_eq!(refused, Obstacle::Refused { action: "make a user namespace", source: Errno::PERM });
    }
}

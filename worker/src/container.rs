//! `rbuild run`: an image and what the user says become a [`Plan`].

use std::fs;
use std::path::PathBuf;

use image::DiffId;
use image::config::ContainerConfig;
use solver::op;

use crate::error::WorkerError;
use crate::exec::{Limit, Mount, Network, Plan, Source};
use crate::isolate::group::Wanted;
use crate::mount::Times;
use crate::step::Held;
use crate::worker::Worker;

/// A container to be.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The image's layers, bottom first; all are here.
    pub layers: Vec<DiffId>,
    /// The volumes that the image declares.
    pub volumes: Vec<String>,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`, complete.
    pub env: Vec<String>,
    /// `user[:group]`; empty for root.
    pub user: String,
    /// Working directory.
    pub cwd: String,
    /// Host name.
    pub hostname: String,
    /// Network.
    pub network: Network,
    /// Docker's defaults, or everything allowed.
    pub security: op::Security,
    /// Files of the host in it.
    pub binds: Vec<Bind>,
    /// Empty directories in memory in it.
    pub tmpfs: Vec<String>,
    /// Nothing in its root can be changed; volumes still can.
    pub read_only: bool,
    /// Resource limits of its processes.
    pub limits: Vec<Limit>,
    /// Size of `/dev/shm`, bytes.
    pub shm_size: Option<u64>,
    /// A control group of its own.
    pub group: Wanted,
    /// Entries for `/etc/hosts`.
    pub hosts: Vec<(String, String)>,
}

/// `-v host:container[:ro]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub host: PathBuf,
    /// In the container.
    pub target: String,
    /// Nothing in it can be changed.
    pub readonly: bool,
}

/// A plan and the directories that it needs, removed when this is dropped.
#[derive(Debug)]
pub struct Prepared {
    /// The plan.
    pub plan: Plan,
    _held: Held,
}

impl Prepared {
    pub(crate) fn new(plan: Plan, held: Held) -> Self {
        Self { plan, _held: held }
    }
}

impl Spec {
    /// The command of an image: `entrypoint` (`Some` and empty: none) and `command` of the user take the place of the
    /// image's; another entrypoint drops the image's command too.
    pub fn command(config: &ContainerConfig, entrypoint: Option<&str>, command: &[String]) -> Vec<String> {
        let (mut args, default) = match entrypoint {
            None => (config.entrypoint.clone().unwrap_or_default(), config.cmd.clone().unwrap_or_default()),
            Some("") => (Vec::new(), Vec::new()),
            Some(program) => (vec![program.to_owned()], Vec::new()),
        };
        args.extend(if command.is_empty() { default } else { command.to_vec() });
        args
    }
}

impl Worker {
    /// Makes everything ready that the container's process needs.
    pub async fn prepare(&self, spec: Spec) -> Result<Prepared, WorkerError> {
        self.can_run_steps()?;
        let tree = self.tree(&spec.layers)?;
        let identity = self.identity(&tree, &spec.user)?;
        let lowers = self.lowers(spec.layers, Times::new()).await?;
        let mut held = Held::default();
        let root = self.writable(lowers.clone(), &mut held)?.0;
        let exec = op::Exec {
            env: spec.env,
            cwd: spec.cwd,
            user: spec.user,
            network: match spec.network {
                Network::Host => op::Network::Host,
                Network::None => op::Network::None,
            },
            security: spec.security,
            hostname: Some(spec.hostname),
            shm_size: spec.shm_size,
            unkeyed: op::Unkeyed { proxy_env: Vec::new(), hosts: spec.hosts },
            ..op::Exec::new(spec.args, image::Platform::host())
        };
        let mut plan = self.plan_of(&exec, root, Vec::new(), identity)?;
        plan.read_only = spec.read_only;
        plan.limits = spec.limits;
        plan.group = spec.group;
        if spec.read_only {
            // Volumes hold data: they can be written to, and begin with what the image has there.
            for target in spec.volumes {
                let root = self.writable(lowers.clone(), &mut held)?.0;
                let source = Source::Files { root, path: target.clone() };
                plan.mounts.push(Mount { target, source, readonly: false });
            }
        }
        for target in spec.tmpfs {
            plan.mounts.push(Mount { target, source: Source::Tmpfs { size: None }, readonly: false });
        }
        for Bind { host, target, readonly } in spec.binds {
            if !host.exists() {
                fs::create_dir_all(&host).map_err(|source| WorkerError::Io { path: host.clone(), source })?;
            }
            plan.mounts.push(Mount { target, source: Source::Host(host), readonly });
        }
        plan.sort_mounts();
        plan.check()?;
        Ok(Prepared::new(plan, held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_put_together_as_docker_does() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let config = ContainerConfig {
            entrypoint: Some(words("entry point")),
            cmd: Some(words("default args")),
            ..ContainerConfig::default()
        };
        let command = |entrypoint, args: &str| Spec::command(&config, entrypoint, &words(args)).join(" ");
        assert_eq!(command(None, ""), "entry point default args");
        assert_eq!(command(None, "x y"), "entry point x y");
        assert_eq!(command(Some("other"), ""), "other");
        assert_eq!(command(Some("other"), "x"), "other x");
        assert_eq!(command(Some(""), "x"), "x");
        assert_eq!(command(Some(""), ""), "");
    }
}

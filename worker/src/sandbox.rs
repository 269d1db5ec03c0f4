//! Sandboxes to look around in: of a step that failed, kept in the store, or of any step as it was before or after it ran.
//!
//! ```text
//! directories/sandbox/<hash>/sandbox.json   what the sandbox was made of
//!                           /root/          what the step had changed
//!                           /mounts/<n>/    what it had changed in its nth mount
//! ```
//!
//! Secrets and sockets are not kept: whoever opens a sandbox brings them along. What was in memory (tmpfs) is gone with
//! the process.

use std::fs;
use std::path::{Path, PathBuf};

use image::DiffId;
use serde::{Deserialize, Serialize};
use solver::op::{self, MountKind};
use solver::record::Snapshot;
use solver::runner::{InputRef, Job};
use store::directory::{Directory, DirectoryId, DirectoryKind};
use store::lock::KeyLock;
use store::registry::Progress;

use crate::container::Prepared;
use crate::error::WorkerError;
use crate::exec::{self, Access, Given};
use crate::mount::Times;
use crate::source::image::pull;
use crate::step::{Held, Ready};
use crate::worker::{Worker, diff_ids};

/// A sandbox that is kept, as data.
#[derive(Debug, Serialize, Deserialize)]
struct Sandbox {
    exec: op::Exec,
    hosts: Vec<(String, String)>,
    /// What the root was made of.
    layers: Vec<DiffId>,
    /// What each mount was made of.
    mounts: Vec<MountFiles>,
}

/// The files of a mount.
#[derive(Debug, Serialize, Deserialize)]
enum MountFiles {
    /// None, or what is not kept.
    None,
    Layers(Vec<DiffId>),
    /// A directory of the store.
    Cache(String),
}

/// Why a kept sandbox cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Another shell is in it.
    #[error("could not open the sandbox: another shell is in it")]
    Taken,
    /// It is half there, or of another rbuild.
    #[error("could not read the sandbox {path}: {why}", path = path.display())]
    Unreadable {
        /// Its directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// What it stands on is gone.
    #[error("could not open the sandbox: layer {0} of it was pruned")]
    Pruned(DiffId),
    /// As in any step.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

impl From<store::error::StoreError> for SandboxError {
    fn from(error: store::error::StoreError) -> Self {
        Self::Worker(error.into())
    }
}

/// The sandbox of a step that failed, or why it is not kept.
pub type Kept = Result<Directory, WorkerError>;

/// Which root a sandbox shows.
#[derive(Clone, Debug)]
pub enum Moment {
    /// What the step begins with.
    Before,
    /// This, which it came to.
    After(Snapshot),
}

impl Worker {
    /// Keeps the sandbox of a step that failed, if that is wanted and none is kept yet.
    pub(crate) async fn keep(&self, job: &Job<'_>, inputs: &[InputRef<'_>], exec: &op::Exec, ready: &Ready) {
        let Some(build) = &self.options().keep_failed else { return };
        if self.kept() {
            return;
        }
        let kept = match self.keeps_changes() {
            true => self.keep_as(&format!("{build} {}", job.id.index()), job, inputs, exec, ready).await,
            false => Err(WorkerError::Host("steps write to memory here".to_owned())),
        };
        self.set_kept(kept);
    }

    async fn keep_as(
        &self,
        name: &str,
        job: &Job<'_>,
        inputs: &[InputRef<'_>],
        exec: &op::Exec,
        ready: &Ready,
    ) -> Result<Directory, WorkerError> {
        let mut mounts = Vec::new();
        for (mount, given) in exec.mounts.iter().zip(&ready.mounts) {
            mounts.push(match (&mount.kind, given) {
                (MountKind::Bind { input: Some(input), .. }, _) => {
                    MountFiles::Layers(self.input_layers(job, inputs, *input).await?)
                }
                (MountKind::Cache { .. }, Given::Cache(path)) => {
                    let id = ready.held.directories.iter().find(|held| path.starts_with(held.path()));
                    id.map_or(MountFiles::None, |held| MountFiles::Cache(held.id().to_string()))
                }
                _ => MountFiles::None,
            });
        }
        let sandbox = Sandbox {
            exec: exec.clone(),
            hosts: exec.unkeyed.hosts.clone(),
            layers: inputs[0].snapshot.as_ref().map(diff_ids).unwrap_or_default(),
            mounts,
        };
        let description = exec.args.join(" ");
        let directory =
            self.root().directories().open(DirectoryKind::Sandbox, name.as_bytes(), &description)?;
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| WorkerError::Io { path, source }
        };
        let below = directory.path().join("mounts");
        fs::create_dir_all(&below).map_err(at(&below))?;
        for (position, given) in ready.mounts.iter().enumerate() {
            if let Given::Files(exec::Root::Overlay { access: Access::Writable { upper, .. }, .. }) = given {
                fs::rename(upper, below.join(position.to_string())).map_err(at(upper))?;
            }
        }
        fs::rename(&ready.upper, directory.path().join("root")).map_err(at(&ready.upper))?;
        // Last: without it the directory is no sandbox.
        let file = directory.path().join("sandbox.json");
        let json = serde_json::to_vec(&sandbox).expect("plain data");
        fs::write(&file, json).map_err(at(&file))?;
        Ok(directory)
    }

    /// The sandbox that is kept in `directory`, with `args` to run in it; of no arguments, the shell of the step. Changes
    /// stay in the directory.
    pub async fn open_sandbox(
        &self,
        directory: Directory,
        args: &[String],
    ) -> Result<Prepared, SandboxError> {
        self.can_run_steps()?;
        let lock: Option<KeyLock> =
            self.root().locks().try_lock(format!("sandbox {}", directory.id()).as_bytes())?;
        let mut held = Held { locks: vec![lock.ok_or(SandboxError::Taken)?], ..Held::default() };
        let unreadable = |why: String| SandboxError::Unreadable { path: directory.path().to_owned(), why };
        let json =
            fs::read(directory.path().join("sandbox.json")).map_err(|error| unreadable(error.to_string()))?;
        let mut sandbox: Sandbox =
            serde_json::from_slice(&json).map_err(|error| unreadable(error.to_string()))?;
        sandbox.exec.unkeyed.hosts = sandbox.hosts;
        self.bring(&sandbox.layers).await?;
        let tree = self.tree(&sandbox.layers)?;
        let identity = self.identity(&tree, &sandbox.exec.user)?;
        let mut mounts = Vec::new();
        for (position, (mount, files)) in sandbox.exec.mounts.iter_mut().zip(&sandbox.mounts).enumerate() {
            mounts.push(match (&mut mount.kind, files) {
                (MountKind::Bind { writable, .. }, MountFiles::Layers(layers)) => {
                    self.bring(layers).await?;
                    let lowers = self.lowers(layers.clone(), Times::new()).await?;
                    let upper = directory.path().join("mounts").join(position.to_string());
                    let access = match writable {
                        true => self.again(upper, &mut held)?,
                        false => Access::ReadOnly,
                    };
                    Given::Files(exec::Root::Overlay { lowers, access })
                }
                (MountKind::Cache { .. }, MountFiles::Cache(id)) => match self.cache_again(id, &mut held)? {
                    Some(path) => Given::Cache(path),
                    None => {
                        mount.kind = MountKind::Tmpfs { size: None, readonly: false };
                        Given::Nothing
                    }
                },
                (MountKind::Secret { id, required, .. }, _) => {
                    *required = false;
                    self.options().secrets.get(id).map_or(Given::Nothing, |one| Given::Secret(one.clone()))
                }
                (MountKind::Ssh { id, required, mode, uid, gid }, _) => {
                    *required = false;
                    self.agent(id, *mode, (*uid, *gid), &mut held)?
                }
                _ => Given::Nothing,
            });
        }
        let lowers = self.lowers(sandbox.layers, Times::new()).await?;
        let access = self.again(directory.path().join("root"), &mut held)?;
        held.directories.push(directory);
        sandbox.exec.args = shell(&sandbox.exec.args, args);
        let plan = self.plan_of(&sandbox.exec, exec::Root::Overlay { lowers, access }, mounts, identity)?;
        Ok(Prepared::new(plan, held))
    }

    /// The sandbox of `job`'s step, whose inputs are here, with `args` to run in it; changes are thrown away. `exec` is its
    /// op, or what is to stand for it where the step runs nothing.
    pub async fn sandbox_at(
        &self,
        moment: Moment,
        job: &Job<'_>,
        inputs: &[InputRef<'_>],
        exec: &op::Exec,
        args: &[String],
    ) -> Result<Prepared, WorkerError> {
        self.can_run_steps()?;
        let mut inputs = inputs.to_vec();
        if let Moment::After(snapshot) = moment {
            let root = InputRef { id: job.id, vertex: job.vertex, result: None, snapshot: Some(snapshot) };
            // A step without inputs is a source.
            match inputs.first_mut() {
                Some(first) => *first = root,
                None => inputs.push(root),
            }
        }
        let exec = op::Exec { args: shell(&exec.args, args), ..exec.clone() };
        let Ready { plan, held, .. } = self.ready(job, &inputs, &exec).await?;
        Ok(Prepared::new(plan, held))
    }

    /// Makes layers present that a registry may still have.
    async fn bring(&self, layers: &[DiffId]) -> Result<(), SandboxError> {
        pull(self.root(), self.images().client(), layers, |_| Progress::none()).await.map_err(|error| {
            let here = |layer: &&DiffId| !self.root().layers().contains(layer).unwrap_or(false);
            match layers.iter().find(here) {
                Some(layer) => SandboxError::Pruned(*layer),
                None => WorkerError::from(error).into(),
            }
        })
    }

    /// Changes that are there already go on in `upper`.
    fn again(&self, upper: PathBuf, held: &mut Held) -> Result<Access, WorkerError> {
        let dir = self.root().work_dir()?;
        let work = dir.path().join("work");
        fs::create_dir(&work).map_err(|source| WorkerError::Io { path: work.clone(), source })?;
        held.work.push(dir);
        Ok(Access::Writable { upper, work })
    }

    fn cache_again(&self, id: &str, held: &mut Held) -> Result<Option<PathBuf>, WorkerError> {
        let Ok(id) = id.parse::<DirectoryId>() else { return Ok(None) };
        let Some(directory) = self.root().directories().reopen(id)? else { return Ok(None) };
        let files = directory.path().join("files");
        held.directories.push(directory);
        Ok(files.is_dir().then_some(files))
    }
}

/// What to run: what is asked for, else the shell that the step itself is run by, else `sh`.
fn shell(step: &[String], asked: &[String]) -> Vec<String> {
    if !asked.is_empty() {
        return asked.to_vec();
    }
    let own = step.first().filter(|program| {
        let name = program.rsplit('/').next().unwrap_or(program);
        step.len() > 2 && name.ends_with("sh")
    });
    vec![own.map_or("/bin/sh", String::as_str).to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_is_the_one_of_the_step() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (step, asked, expected) in [
            ("/bin/sh -c make", "", "/bin/sh"),
            ("/bin/bash -o pipefail -c make", "", "/bin/bash"),
            ("/usr/bin/make all", "", "/bin/sh"),
            ("/bin/sh -c make", "id -u", "id -u"),
        ] {
            let asked = if asked.is_empty() { Vec::new() } else { words(asked) };
            assert_eq!(shell(&words(step), &asked).join(" "), expected, "{step}");
        }
    }
}

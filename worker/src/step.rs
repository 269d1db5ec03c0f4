//! One RUN: what the op needs is looked up, the process runs in its sandbox, and what it wrote becomes a layer.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use image::tree::resolve::{Last, resolve};
use image::tree::{CopyError, Tree, accounts};
use image::{ContentDigest, DiffId};
use rustix::fs::{Mode, OFlags};
use solver::Cancel;
use solver::event::Event;
use solver::key::ResultDigest;
use solver::op::{self, FileAction, MountKind, Sharing};
use solver::runner::{InputRef, Job, Outcome, Task};
use store::directory::{Directory, DirectoryKind};
use store::layer::Stored;
use store::lock::KeyLock;
use store::pool;
use store::root::{Root, now};
use store::temp::WorkDir;
use store::timing::{self, Of};

use crate::below::Mounted;
use crate::diff::{self, Marks};
use crate::error::WorkerError;
use crate::exec::agent::Agent;
use crate::exec::{self, Access, Given, Identity, Lower, Network, Stdio};
use crate::file::{self, FileError};
use crate::inside;
use crate::kept::{self, MountDirectory};
use crate::mount::scratch::Scratch;
use crate::mount::{MountError, Times, dirs};
use crate::seen;
use crate::until::Until;
use crate::worker::{UsedMount, Worker, diff_ids};

/// How often a cache mount that another step has locked is tried again.
const LOCK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(20);

/// What a step holds while it runs.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) directories: Vec<Directory>,
    pub(crate) locks: Vec<KeyLock>,
    // Before the directories that their sockets are in.
    pub(crate) agents: Vec<Agent>,
    pub(crate) work: Vec<WorkDir>,
    pub(crate) mounts: Vec<MountDirectory>,
}

/// A step that can start.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) plan: exec::Plan,
    /// Where its changes are kept.
    pub(crate) upper: PathBuf,
    /// What it begins with.
    layers: Vec<DiffId>,
    tree: Tree,
    /// The times that it is shown.
    times: Times,
    /// What its mounts were given, in the op's order.
    pub(crate) mounts: Vec<Given>,
    pub(crate) held: Held,
}

/// The layers of bound inputs, by input.
type Bound = BTreeMap<usize, Vec<DiffId>>;

impl Worker {
    /// Runs `exec` and stores the layer it makes.
    pub(crate) async fn run_exec(
        &self,
        job: &Job<'_>,
        task: &Task<'_>,
        exec: &op::Exec,
    ) -> Result<Outcome, WorkerError> {
        self.can_run_steps()?;
        let of = Of::Step(job.id.index());
        let ready = self.ready(job, &task.inputs, exec).await?;
        let exec_phase = timing::phase("exec", of);
        let command = exec.args.join(" ");
        let started = Instant::now();
        let mut child = exec::spawn(&ready.plan, Stdio::Piped { stdin: None }).await.map_err(|source| {
            let source = Box::new(source);
            WorkerError::Start { command: command.clone(), source }
        })?;
        let exit = {
            let log =
                |stream, data: &[u8]| self.emit(Event::Log { vertex: job.id, stream, data: data.to_vec() });
            tokio::select! {
                biased;
                () = job.cancel.cancelled() => None,
                exit = child.run(log) => Some(exit.map_err(|errno| WorkerError::Wait(errno.into()))?),
            }
        };
        let Some(exit) = exit else {
            child.kill();
            let _ended = child.wait().await;
            return Err(WorkerError::Cancelled);
        };
        drop(child);
        exec_phase.end();
        let seconds = started.elapsed().as_secs_f64();
        for mount in &ready.held.mounts {
            let at = mount.files();
            mount.set_written(now()).map_err(|source| WorkerError::Io { path: at, source })?;
        }
        if !exit.success() {
            // Now: what the step wrote takes no more space in a moment.
            let disk_full = store::gc::is_full(&ready.upper).then(|| io::ErrorKind::StorageFull.into());
            if disk_full.is_none() {
                self.keep(job, &task.inputs, exec, &ready).await;
            }
            return Err(WorkerError::Step { command, exit: Box::new(exit), disk_full });
        }
        self.restore_times(&ready.upper, &ready.layers, &ready.times)?;
        let lowers = match ready.plan.root {
            exec::Root::Overlay { lowers, .. } => lowers,
            _ => Vec::new(),
        };
        let lower = Mounted { tree: ready.tree, lowers };
        let stored = self
            .store_upper(&ready.upper, lower, of, &job.cancel)
            .await
            .map_err(|error| if job.cancel.is_cancelled() { WorkerError::Cancelled } else { error })?;
        if self.keeps_changes() {
            let _phase = timing::phase("adopt", of);
            self.mounter().adopt(&stored.diff_id, &ready.upper)?;
        }
        Ok(Outcome {
            layer: stored.diff_id,
            content: stored.index.content(),
            seconds,
            bytes: stored.size,
            created: now(),
        })
    }

    /// Looks up and mounts all that `exec` needs.
    pub(crate) async fn ready(
        &self,
        job: &Job<'_>,
        inputs: &[InputRef<'_>],
        exec: &op::Exec,
    ) -> Result<Ready, WorkerError> {
        let of = Of::Step(job.id.index());
        let prepare = timing::phase("prepare", of);
        let layers = layers_of(&inputs[0]);
        let tree = self.tree(&layers)?;
        let identity = self.identity(&tree, &exec.user)?;
        let mut held = Held::default();
        let mut caches = self.caches(job, inputs, exec, &mut held).await?;
        let bound = self.bound(job, inputs, exec).await?;
        let times = self.times(exec, &layers, &bound, &held).await?;
        let mut mounts = Vec::with_capacity(exec.mounts.len());
        for (position, mount) in exec.mounts.iter().enumerate() {
            let cache = caches.remove(&position);
            mounts.push(self.given(&mount.kind, cache, &bound, &times, &mut held).await?);
        }
        prepare.end();
        let mount = timing::phase("mount", of);
        let lowers = self.lowers(layers.clone(), times.clone()).await?;
        let (root, upper) = self.writable(lowers, &mut held)?;
        mount.end();
        let plan = self.plan_of(exec, root, mounts.clone(), identity)?;
        Ok(Ready { plan, upper, layers, tree, times, mounts, held })
    }

    /// The process of `exec` in a sandbox of these parts.
    pub(crate) fn plan_of(
        &self,
        exec: &op::Exec,
        root: exec::Root,
        mounts: Vec<Given>,
        identity: Identity,
    ) -> Result<exec::Plan, WorkerError> {
        let network = match exec.network {
            op::Network::Default => self.options().default_network,
            op::Network::None => Network::None,
            op::Network::Host => Network::Host,
        };
        let resolved = exec::Resolved {
            root,
            skeletons: Some(self.root().path().join("skeletons")),
            mounts,
            identity,
            default_network: self.options().default_network,
            resolv_conf: exec::names::resolv_conf(&self.options().resolv_conf, network == Network::Host),
            resources: self.options().resources.clone(),
        };
        let mut plan = exec::plan(exec, resolved)?;
        if !exec.devices.is_empty() {
            self.options().devices.apply(&exec.devices, &mut plan)?;
        }
        Ok(plan)
    }

    /// An overlay over `lowers` whose changes are kept as long as `held` and the overlay are there, and where they are
    /// kept.
    pub(crate) fn writable(
        &self,
        lowers: Vec<Lower>,
        held: &mut Held,
    ) -> Result<(exec::Root, PathBuf), WorkerError> {
        let dir = self.root().work_dir()?;
        if !self.keeps_changes() {
            let scratch = Scratch::new(dir.path()).map_err(|errno| {
                WorkerError::Host(format!("no file system in memory can be made: {errno}"))
            })?;
            let upper = scratch.upper();
            held.work.push(dir);
            return Ok((exec::Root::Overlay { lowers, access: Access::InMemory(scratch) }, upper));
        }
        let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
        for path in [&upper, &work] {
            fs::create_dir(path).map_err(|source| WorkerError::Io { path: path.clone(), source })?;
        }
        // The root directory of the step is the upper directory: everybody may look into it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&upper, open)
            .map_err(|source| WorkerError::Io { path: upper.clone(), source })?;
        let root = exec::Root::Overlay { lowers, access: Access::Writable { upper: upper.clone(), work } };
        held.work.push(dir);
        Ok((root, upper))
    }

    /// What a mount needs.
    async fn given(
        &self,
        mount: &MountKind,
        cache: Option<PathBuf>,
        bound: &Bound,
        times: &Times,
        held: &mut Held,
    ) -> Result<Given, WorkerError> {
        match mount {
            MountKind::Bind { input: None, .. } | MountKind::Tmpfs { .. } => Ok(Given::Nothing),
            MountKind::Bind { input: Some(input), writable, .. } => {
                let lowers = self.lowers(bound[input].clone(), times.clone()).await?;
                if *writable {
                    return Ok(Given::Files(self.writable(lowers, held)?.0));
                }
                Ok(Given::Files(exec::Root::Overlay { lowers, access: Access::ReadOnly }))
            }
            MountKind::Cache { .. } => Ok(cache.map_or(Given::Nothing, Given::Cache)),
            MountKind::Secret { id, .. } => Ok(self
                .options()
                .secrets
                .get(id)
                .map_or(Given::Nothing, |secret| Given::Secret(secret.clone()))),
            MountKind::Ssh { id, mode, uid, gid, .. } => self.agent(id, *mode, (*uid, *gid), held),
        }
    }

    /// The socket of an SSH agent, for one step.
    pub(crate) fn agent(
        &self,
        id: &str,
        mode: u16,
        owner: (u32, u32),
        held: &mut Held,
    ) -> Result<Given, WorkerError> {
        let Some(agent) = self.options().agents.get(id) else { return Ok(Given::Nothing) };
        let dir = self.root().work_dir()?;
        let agent = Agent::start(dir.path(), agent, mode, owner)
            .map_err(|source| WorkerError::Io { path: dir.path().to_owned(), source })?;
        let socket = agent.socket().to_owned();
        held.agents.push(agent);
        held.work.push(dir);
        Ok(Given::Socket(socket))
    }

    /// The layers of an input of a mount; a local directory becomes a layer first, so that a step sees what COPY would
    /// give it: without what is ignored, owned by root.
    pub(crate) async fn input_layers(
        &self,
        job: &Job<'_>,
        inputs: &[InputRef<'_>],
        input: usize,
    ) -> Result<Vec<DiffId>, WorkerError> {
        Ok(match &inputs[input].snapshot {
            Some(snapshot) => diff_ids(snapshot),
            None => {
                let selector =
                    job.vertex.inputs[input].selector.as_ref().expect("local sources are read by selectors");
                let context = self.context(&inputs[input], selector, &job.cancel).await?;
                vec![self.layer_of(context, &job.cancel).await?]
            }
        })
    }

    /// The layers of the inputs that are bound.
    async fn bound(
        &self,
        job: &Job<'_>,
        inputs: &[InputRef<'_>],
        exec: &op::Exec,
    ) -> Result<Bound, WorkerError> {
        let mut bound = Bound::new();
        for mount in &exec.mounts {
            let MountKind::Bind { input: Some(input), .. } = mount.kind else { continue };
            if let Entry::Vacant(vacant) = bound.entry(input) {
                vacant.insert(self.input_layers(job, inputs, input).await?);
            }
        }
        Ok(bound)
    }

    /// The times of files that a step with cache mounts is to see; notes in the mounts that it saw them.
    async fn times(
        &self,
        exec: &op::Exec,
        layers: &[DiffId],
        bound: &Bound,
        held: &Held,
    ) -> Result<Times, WorkerError> {
        if held.mounts.is_empty() {
            return Ok(Times::new());
        }
        let mut view = seen::View::new();
        let store = self.root().layers();
        for layer in layers.iter().filter(|layer| self.is_of_file_op(layer)) {
            view.push((None, store.index(layer)?));
        }
        for mount in &exec.mounts {
            let MountKind::Bind { input: Some(input), .. } = mount.kind else { continue };
            for layer in bound[&input].iter().filter(|layer| self.is_of_file_op(layer)) {
                view.push((Some(mount.target.clone()), store.index(layer)?));
            }
        }
        let directories = held.mounts.clone();
        pool::spawn(move || {
            let mut mounts: Vec<_> = directories.iter().map(MountDirectory::state).collect();
            let times = seen::times(&view, &mut mounts, now());
            for (directory, (seen, _)) in directories.iter().zip(&mounts) {
                let path = directory.files();
                directory.set_seen(seen).map_err(|source| WorkerError::Io { path, source })?;
            }
            Ok(times)
        })
        .await?
    }

    /// Gives files that a step was shown with another time, and that it changed in other ways, the time of their layer: no
    /// layer depends on what a cache mount has seen.
    fn restore_times(&self, upper: &Path, layers: &[DiffId], times: &Times) -> Result<(), WorkerError> {
        let failed = |source| WorkerError::Io { path: upper.to_owned(), source };
        if times.is_empty() {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper = rustix::fs::open(upper, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        for layer in layers {
            let Some(shown) = times.get(layer) else { continue };
            let index = self.root().layers().index(layer)?;
            for entry in index.entries() {
                if let Some(shown) = shown.get(&entry.path) {
                    inside::replace_mtime(upper.as_fd(), &entry.path, *shown, entry.mtime)
                        .map_err(|errno| failed(errno.into()))?;
                }
            }
        }
        Ok(())
    }

    /// Names what is read of an input.
    async fn input_digest(
        &self,
        job: &Job<'_>,
        inputs: &[InputRef<'_>],
        index: usize,
    ) -> Result<ContentDigest, WorkerError> {
        let input = &inputs[index];
        if let Some(ResultDigest(digest)) = input.result {
            return Ok(digest);
        }
        let selector =
            job.vertex.inputs[index].selector.as_ref().expect("local sources are read by selectors");
        Ok(self.context(input, selector, &job.cancel).await?.selection.digest)
    }

    /// The directories of a step's cache mounts, by the mounts' positions, locked as they are to be shared and filled where
    /// they are new.
    async fn caches(
        &self,
        job: &Job<'_>,
        inputs: &[InputRef<'_>],
        exec: &op::Exec,
        held: &mut Held,
    ) -> Result<BTreeMap<usize, PathBuf>, WorkerError> {
        // Sorted: steps that lock the same directories all begin with the same one, and so never wait for each other.
        // A directory that is mounted twice is locked once, as its first mount says.
        let mut wanted: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (position, mount) in exec.mounts.iter().enumerate() {
            let MountKind::Cache { id, input, source, .. } = &mount.kind else { continue };
            let name = match input {
                None => id.clone(),
                // What a cache was filled with is part of its name: another seed is another cache.
                Some(index) => {
                    let seed = self.input_digest(job, inputs, *index).await?;
                    format!("{id}\0{}\0{source}", seed.hex())
                }
            };
            wanted.entry(name).or_default().push(position);
        }
        let mut caches = BTreeMap::new();
        for (name, positions) in wanted {
            let MountKind::Cache { id, sharing, input, source, mode, uid, gid, .. } =
                &exec.mounts[positions[0]].kind
            else {
                continue;
            };
            let (directory, lock, name) = self.cache_directory(job, &name, id, *sharing).await?;
            let kept = MountDirectory::new(directory.path());
            let path = kept.files();
            let used = UsedMount::new(&name, id, *sharing);
            let exclusive = used.exclusive;
            if lock.is_some() && !path.exists() && !self.import_cache(job, &name, directory.path()).await? {
                self.fill_cache(job, inputs, *input, source, &path, (*mode, *uid, *gid)).await?;
            }
            if let Some(mounts) = &self.options().mounts {
                mounts.used(used);
            }
            held.mounts.push(kept);
            held.directories.push(directory);
            // What is shared is locked only while it is filled.
            held.locks.extend(lock.filter(|_| exclusive));
            caches.extend(positions.into_iter().map(|position| (position, path.clone())));
        }
        Ok(caches)
    }

    /// Takes a cache mount from another host. `false`: there is none.
    async fn import_cache(&self, job: &Job<'_>, name: &str, directory: &Path) -> Result<bool, WorkerError> {
        let Some(mounts) = &self.options().mounts else { return Ok(false) };
        tokio::select! {
            biased;
            () = job.cancel.cancelled() => Err(WorkerError::Cancelled),
            filled = mounts.fill(name.as_bytes(), directory) => Ok(filled),
        }
    }

    /// The directory of a cache mount, the lock on it (none if it is shared and there already), and its name.
    async fn cache_directory(
        &self,
        job: &Job<'_>,
        name: &str,
        description: &str,
        sharing: Sharing,
    ) -> Result<(Directory, Option<KeyLock>, String), WorkerError> {
        // A private cache is the first one that nobody has.
        let numbered = |number: u32| if number == 0 { name.to_owned() } else { format!("{name}\0{number}") };
        let mut number = 0;
        loop {
            let name = numbered(number);
            let directories = self.root().directories();
            let directory = directories.open(DirectoryKind::CacheMount, name.as_bytes(), description)?;
            if sharing == Sharing::Shared && directory.path().join("files").exists() {
                return Ok((directory, None, name));
            }
            match self.root().locks().try_lock(&kept::lock_name(name.as_bytes()))? {
                Some(lock) => return Ok((directory, Some(lock), name)),
                None if sharing == Sharing::Private => number += 1,
                None => tokio::select! {
                    biased;
                    () = job.cancel.cancelled() => return Err(WorkerError::Cancelled),
                    () = tokio::time::sleep(LOCK_INTERVAL) => {}
                },
            }
        }
    }

    /// Makes the directory of a new cache mount, with what `source` of an input holds, complete or not at all.
    async fn fill_cache(
        &self,
        job: &Job<'_>,
        inputs: &[InputRef<'_>],
        input: Option<usize>,
        source: &str,
        path: &Path,
        (mode, uid, gid): (u16, u32, u32),
    ) -> Result<(), WorkerError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| WorkerError::Io { path, source }
        };
        let temp = self.root().temp_path("cache")?;
        fs::create_dir(&temp).map_err(at(&temp))?;
        // What is copied keeps its owner and mode, its root directory as well.
        let (mode, uid, gid) = match input {
            None => (mode, uid, gid),
            Some(input) => {
                let input = self.file_input(job, input, &inputs[input]).await?;
                let (root, into) = (self.root().clone(), temp.clone());
                let (source, cancel) = (source.to_owned(), job.cancel.clone());
                let marks = self.marks();
                pool::spawn(move || copy_into(&root, input, &source, &into, marks, &cancel)).await??
            }
        };
        kept::publish(&temp, (mode, uid, gid), path).map_err(at(path))
    }

    /// Who `user` is in the image.
    pub(crate) fn identity(&self, tree: &Tree, user: &str) -> Result<Identity, WorkerError> {
        let open_tar = |layer: &DiffId| self.root().layers().open_tar(layer);
        let (passwd, group) = file::account_files(tree, &open_tar)?;
        let ids = accounts::lookup(&passwd, &group, user)?;
        Ok(Identity { uid: ids.uid, gid: ids.gid, groups: ids.groups, home: Some(ids.home) })
    }

    /// Stores what a step wrote as a layer. `lower` is what the step began with.
    async fn store_upper(
        &self,
        upper: &Path,
        lower: Mounted,
        of: Of,
        cancel: &Cancel,
    ) -> Result<Stored, WorkerError> {
        let open =
            || rustix::fs::open(upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let fd = open().map_err(|errno| WorkerError::Io { path: upper.to_owned(), source: errno.into() })?;
        let new = Until::new(self.root().layers().create()?, cancel);
        let marks = self.marks();
        let small = diff::is_small(fd.as_fd());
        let write = move || -> Result<Stored, WorkerError> {
            let options = diff::Options { marks, lower: Some(&lower) };
            let diff = timing::phase("diff", of);
            let entries = diff::scan(fd.as_fd(), &options)?;
            diff.end();
            let hash = timing::phase("hash", of);
            let (new, index) = diff::write_entries(fd.as_fd(), entries, new)?;
            hash.end();
            let _phase = timing::phase("store", of);
            Ok(new.into_inner().commit(index)?)
        };
        if small { write() } else { pool::spawn(write).await? }
    }
}

/// Writes what the directory `source` of `input` has in it into the empty directory `into`, and returns the mode and the
/// owner of `source`.
fn copy_into(
    root: &Root,
    input: file::Input,
    source: &str,
    into: &Path,
    marks: Marks,
    cancel: &Cancel,
) -> Result<(u16, u32, u32), WorkerError> {
    let failed = |source| WorkerError::Io { path: into.to_owned(), source };
    let at = resolve(&input.tree, source.as_bytes(), Last::Follow)
        .map_err(|error| FileError::from(CopyError::Source(error)))?;
    let attributes = match input.tree.get(&at) {
        Some(node) if node.is_dir() => (node.entry.mode, node.entry.uid, node.entry.gid),
        // An empty tree has a root all the same.
        None if at.is_empty() => (0o755, 0, 0),
        _ => {
            let source = io::Error::new(io::ErrorKind::NotADirectory, format!("{source} is no directory"));
            return Err(failed(source));
        }
    };
    let op = op::File { base: None, actions: vec![FileAction::Copy(op::Copy::all(0, source))] };
    let options = file::Options { created: 0, earlier: None, temporary: root.temp_dir()?.to_owned() };
    let open_tar = |layer: &DiffId| root.layers().open_tar(layer);
    let tar = tempfile::tempfile_in(root.temp_dir()?).map_err(failed)?;
    let (tar, index) = file::run(&op, &[input], &open_tar, &options, cancel, tar)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(into, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    dirs::extract(&index, &tar, dir.as_fd(), marks).map_err(MountError::from)?;
    Ok(attributes)
}

fn layers_of(input: &InputRef<'_>) -> Vec<DiffId> {
    input.snapshot.as_ref().map(diff_ids).unwrap_or_default()
}

//! [`Worker`]: the solver's [`Runner`] over a store. It says what sources are, reads what selectors pick, makes layers
//! present, and runs file ops and processes.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bstr::ByteSlice as _;
use futures::FutureExt as _;
use futures::future::{LocalBoxFuture, try_join_all};
use image::layer::LayerIndex;
use image::layer::settle::settle;
use image::tree::Tree;
use image::tree::select::{self, select};
use image::{ChainId, ContentDigest, DiffId};
use solver::cancel::Cancel;
use solver::definition::{Selector, VertexId};
use solver::event::Event;
use solver::key::ResultDigest;
use solver::op::{Op, Sharing, Source};
use solver::record::{RecordedInput, Snapshot, SnapshotLayer};
use solver::runner::{InputRef, Job, Loaded, Outcome, Pin, Runner, Selection, Task};
use store::pool;
use store::registry::Progress;
use store::root::Root;
use store::timing::{self, Of};

use crate::cdi::Registry;
use crate::diff::Marks;
use crate::error::WorkerError;
use crate::exec::{Lower, Network, Secret};
use crate::file::{self, picks};
use crate::isolate::group::Resources;
use crate::isolate::limits::raise_files;
use crate::mount::mounter::{Choice, choose};
use crate::mount::scratch;
use crate::mount::{Mounter, Times};
use crate::sandbox::Kept;
use crate::seen;
use crate::source::image::{PullError, pull_layer};
use crate::source::local::{Directory, Walked};
use crate::source::remote::Remotes;
use crate::source::resolve::Images;

/// How often a transfer's progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Overlayfs takes 500 layers, that with the mount points among them. Of more than this many the lowest become one: always
/// equally many, so that the next step, with a layer more, has the same one.
const MOST_LAYERS: usize = 490;
const FLATTENED: usize = 400;

/// What a build gives its worker.
#[derive(Debug)]
pub struct Options {
    /// Directories of local sources, by name: `context` and named contexts.
    pub contexts: BTreeMap<String, PathBuf>,
    /// Secrets, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// Sockets of SSH agents, by id.
    pub agents: BTreeMap<String, PathBuf>,
    /// Devices of the host for steps that ask for them.
    pub devices: Rc<Registry>,
    /// What a RUN without `--network` gets.
    pub default_network: Network,
    /// Finds git repositories and files from the web; the same for all platforms of a build.
    pub remotes: Rc<Remotes>,
    /// The host's `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Limits of steps; `None` where they can have no control group of their own.
    pub resources: Option<Resources>,
    /// Why this host cannot run steps, if it cannot.
    pub no_steps: Option<String>,
    /// The build's name, if the sandbox of a step that fails is to be kept.
    pub keep_failed: Option<String>,
    /// Where layers of steps may be that are neither here nor at a registry: imported caches.
    pub elsewhere: Option<Rc<dyn LayerSource>>,
    /// Where cache mounts come from that are not here, and who wants to know which are used.
    pub mounts: Option<Rc<dyn MountSource>>,
}

/// Layers that are neither here nor at a registry.
pub trait LayerSource: fmt::Debug {
    /// Brings a layer, or a compressed form of it, into the root. `false`: it does not have it, or cannot give it.
    fn bring(&self, diff_id: DiffId) -> LocalBoxFuture<'_, bool>;
}

/// Cache mounts of other hosts.
pub trait MountSource: fmt::Debug {
    /// Makes what belongs into `directory`, the kept directory of a new cache mount (see
    /// [`MountDirectory`](crate::kept::MountDirectory)), complete or not at all. `false`: it has none of this name.
    fn fill<'a>(&'a self, name: &'a [u8], directory: &'a Path) -> LocalBoxFuture<'a, bool>;

    /// A step that runs has the cache mount.
    fn used(&self, mount: UsedMount);
}

/// A cache mount that a step has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsedMount {
    /// Its name in the store.
    pub name: Vec<u8>,
    /// Its `id`.
    pub id: String,
    /// Nobody else has it meanwhile.
    pub exclusive: bool,
}

impl UsedMount {
    /// The mount that is called `name` in the store, for a step that gives it this `id` and shares it so.
    pub fn new(name: &str, id: &str, sharing: Sharing) -> Self {
        Self {
            name: name.as_bytes().to_vec(),
            id: id.replacen("//", "/", 1),
            exclusive: sharing != Sharing::Shared,
        }
    }
}

/// Runs the ops of one build.
pub struct Worker {
    root: Root,
    options: Options,
    images: Rc<Images>,
    mounter: OnceCell<Choice>,
    keeps_changes: OnceCell<bool>,
    events: Rc<dyn Fn(Event)>,
    walks: RefCell<HashMap<(VertexId, ContentDigest), Arc<Context>>>,
    /// Layers that stand for many.
    flattened: RefCell<HashMap<Vec<DiffId>, DiffId>>,
    kept: RefCell<Option<Kept>>,
    /// Layers that file ops made.
    file_layers: RefCell<HashSet<DiffId>>,
}

/// A local source, and what a selector picked of it.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) directory: Arc<Directory>,
    pub(crate) walked: Walked,
    pub(crate) selection: select::Selection,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("root", &self.root.path()).finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker for one build. Images are found through `images`; what steps print goes to `events`.
    pub fn new(root: Root, options: Options, images: Rc<Images>, events: Rc<dyn Fn(Event)>) -> Self {
        let (walks, flattened, kept, file_layers) = Default::default();
        Self {
            root,
            options,
            images,
            mounter: OnceCell::new(),
            keeps_changes: OnceCell::new(),
            events,
            walks,
            flattened,
            kept,
            file_layers,
        }
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// The sandbox of a step that failed, if it was to be kept.
    pub fn take_kept(&self) -> Option<Kept> {
        self.kept.take()
    }

    pub(crate) fn kept(&self) -> bool {
        self.kept.borrow().is_some()
    }

    pub(crate) fn set_kept(&self, kept: Kept) {
        *self.kept.borrow_mut() = Some(kept);
    }

    pub(crate) fn images(&self) -> &Images {
        &self.images
    }

    /// An error that says why this host cannot run steps, if it cannot.
    pub(crate) fn can_run_steps(&self) -> Result<(), WorkerError> {
        self.options.no_steps.as_ref().map_or(Ok(()), |reason| Err(WorkerError::Host(reason.clone())))
    }

    /// Where overlayfs keeps its marks on this host.
    pub(crate) fn marks(&self) -> Marks {
        Marks::of_this_process()
    }

    /// Makes layers ready for mounting. Found out when the first step runs.
    pub(crate) fn mounter(&self) -> Arc<dyn Mounter> {
        let choose = || {
            raise_files();
            choose(&self.root, self.marks())
        };
        self.mounter.get_or_init(choose).mounter.clone()
    }

    /// Whether the state directory is where overlayfs can keep what a step changes. Found out when the first step runs.
    pub(crate) fn keeps_changes(&self) -> bool {
        *self.keeps_changes.get_or_init(|| {
            scratch::keeps_changes(&self.root, self.marks())
                .inspect_err(|errno| {
                    tracing::warn!("steps write to memory: no overlay in {:?}: {errno}", self.root.path());
                })
                .is_ok()
        })
    }

    /// The lower layers of a snapshot whose layers are here, with other times where `times` says so.
    pub(crate) async fn lowers(
        &self,
        mut layers: Vec<DiffId>,
        mut times: Times,
    ) -> Result<Vec<Lower>, WorkerError> {
        while layers.len() > MOST_LAYERS {
            self.merge_lowest(&mut layers, &mut times, FLATTENED).await?;
        }
        if !self.keeps_changes() {
            for last in (0..layers.len()).rev() {
                if self.root.layers().index(&layers[last])?.deletes() {
                    self.merge_lowest(&mut layers, &mut times, last + 1).await?;
                    break;
                }
            }
        }
        let mounter = self.mounter();
        if times.is_empty() && mounter.is_quick(&layers) {
            return Ok(mounter.lowers(&layers, &times)?);
        }
        Ok(pool::beside(move || mounter.lowers(&layers, &times)).await??)
    }

    /// Whether a file op made the layer, as far as this build has come across it.
    pub(crate) fn is_of_file_op(&self, layer: &DiffId) -> bool {
        self.file_layers.borrow().contains(layer)
    }

    pub(crate) fn note_file_layer(&self, layer: DiffId) {
        self.file_layers.borrow_mut().insert(layer);
    }

    /// Puts one layer in the place of the lowest `count`.
    async fn merge_lowest(
        &self,
        layers: &mut Vec<DiffId>,
        times: &mut Times,
        count: usize,
    ) -> Result<(), WorkerError> {
        let lowest = layers[..count].to_vec();
        let known = self.flattened.borrow().get(&lowest).copied();
        let flat = match known {
            Some(flat) => flat,
            None => self.flatten(&lowest).await?,
        };
        if lowest.iter().any(|layer| times.contains_key(layer)) {
            let indexes = lowest.iter().map(|layer| Ok((self.root.layers().index(layer)?, times.get(layer))));
            let indexes = indexes.collect::<Result<Vec<_>, WorkerError>>()?;
            let merged = seen::merged(indexes.iter().map(|(index, own)| (&**index, *own)));
            times.insert(flat, merged);
        }
        self.flattened.borrow_mut().insert(lowest, flat);
        layers.splice(..count, [flat]);
        Ok(())
    }

    pub(crate) fn emit(&self, event: Event) {
        (self.events)(event);
    }

    /// The merged view over layers that are here.
    pub(crate) fn tree(&self, layers: &[DiffId]) -> Result<Tree, WorkerError> {
        let store = self.root.layers();
        let mut indexes: Vec<Arc<LayerIndex>> = Vec::with_capacity(layers.len());
        for layer in layers {
            let index = store.index(layer)?;
            // As it is mounted: a tar that names only `lib/x` means what `lib` is below, be it a link.
            let settled = settle(&index, &indexes).map(Arc::new);
            indexes.push(settled.unwrap_or(index));
        }
        Ok(Tree::of_layers(indexes))
    }

    /// Whether all layers are here.
    fn are_here(&self, layers: &[DiffId]) -> Result<bool, WorkerError> {
        for layer in layers {
            if !self.can_be_read(layer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a layer is here, and its index can be read.
    fn can_be_read(&self, layer: &DiffId) -> Result<bool, WorkerError> {
        match self.root.layers().index(layer) {
            Ok(_) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What `selector` picks of a local source, walked once a build.
    pub(crate) async fn context(
        &self,
        input: &InputRef<'_>,
        selector: &Selector,
        cancel: &Cancel,
    ) -> Result<Arc<Context>, WorkerError> {
        let key = (input.id, selector.digest());
        if let Some(context) = self.walks.borrow().get(&key) {
            return Ok(context.clone());
        }
        let Some(Source::Local { name, ignore }) = input.vertex.source() else {
            unreachable!("only local sources are walked")
        };
        let path =
            self.options.contexts.get(name).ok_or_else(|| WorkerError::NoContext(name.clone()))?.clone();
        let (ignore, selector, stats) = (ignore.clone(), selector.clone(), self.root.stats());
        let cancel = cancel.clone();
        let of = Of::Step(input.id.index());
        let context = pool::beside(move || -> Result<Context, WorkerError> {
            let directory = Arc::new(Directory::open(&path, &ignore)?.timed_as(of));
            let scope = path.as_os_str().as_encoded_bytes();
            let walk = timing::phase("read context", of);
            let known = stats.read(scope).unwrap_or_default();
            let walked = directory.walk(&picks(&selector), &known, &cancel)?;
            if let Some(cache) = &walked.cache
                && let Err(error) = stats.write(scope, cache)
            {
                tracing::warn!("could not keep the stat cache: {error}");
            }
            walk.end();
            let _phase = timing::phase("select", of);
            file::check_there(&walked.tree, &selector, Some(&directory))?;
            let selection = select(&walked.tree, &picks(&selector))?;
            Ok(Context { directory, walked, selection })
        })
        .await??;
        let context = Arc::new(context);
        self.walks.borrow_mut().insert(key, context.clone());
        Ok(context)
    }

    async fn select_of(
        &self,
        job: &Job<'_>,
        input: &InputRef<'_>,
        selector: &Selector,
    ) -> Result<Selection, WorkerError> {
        if matches!(input.vertex.source(), Some(Source::Local { .. })) {
            let context = self.context(input, selector, &job.cancel).await?;
            return Ok(Selection::Digest(context.selection.digest));
        }
        let Some(snapshot) = &input.snapshot else { return Ok(Selection::NeedFiles) };
        let layers = diff_ids(snapshot);
        if !self.are_here(&layers)? {
            return Ok(Selection::NeedFiles);
        }
        let _phase = timing::phase("select", Of::Step(input.id.index()));
        let tree = self.tree(&layers)?;
        file::check_there(&tree, selector, None)?;
        Ok(Selection::Digest(select(&tree, &picks(selector))?.digest))
    }

    async fn pin_of(&self, job: &Job<'_>, source: &Source) -> Result<Pin, WorkerError> {
        match source {
            Source::Local { .. } => Ok(Pin::default()),
            Source::Image { .. } | Source::OciLayout { .. } => {
                let found = self.images.find_source(source).await?;
                let diff_ids = &found.config.rootfs.diff_ids;
                Ok(Pin {
                    result: Some(ResultDigest::image(ChainId::of(diff_ids))),
                    snapshot: Some(snapshot(diff_ids)),
                })
            }
            Source::Git { .. } | Source::Http { .. } => {
                let name = source_name(source);
                self.told(job, name, |progress| self.options.remotes.pin(source, progress)).await
            }
        }
    }

    /// Fetches what a git repository or a URL has.
    async fn load_remote(&self, job: &Job<'_>, source: &Source) -> Result<Loaded, WorkerError> {
        let name = source_name(source);
        let load = |progress| self.options.remotes.load(source, progress, &job.cancel);
        Ok(Loaded::Here(self.told(job, name, load).await?))
    }

    async fn load_layers(&self, job: &Job<'_>, layers: Snapshot) -> Result<Loaded, WorkerError> {
        let mut pulls = Vec::new();
        for layer in &layers.layers {
            // Whoever wants files reads the index: one that cannot be read is noticed while the step can run again.
            if !self.can_be_read(&layer.diff_id)? {
                pulls.push(self.pull_or_bring(job, layer.diff_id));
            }
        }
        // What a step made can be made again; an image cannot.
        let can_run = job.vertex.source().is_none();
        match try_join_all(pulls).await {
            Ok(_) => Ok(Loaded::Here(layers)),
            Err(WorkerError::Pull(PullError::Unknown(_))) => Ok(Loaded::Lost),
            Err(WorkerError::Pull(error)) if can_run && error.is_elsewhere() => {
                tracing::warn!("{error}; the step runs again");
                Ok(Loaded::Lost)
            }
            Err(error) => Err(error),
        }
    }

    /// From a registry that is known to have it, else from an imported cache.
    async fn pull_or_bring(&self, job: &Job<'_>, layer: DiffId) -> Result<(), WorkerError> {
        let pulled = self.pull(job, layer).await;
        match (&pulled, &self.options.elsewhere) {
            (Err(WorkerError::Pull(error)), Some(elsewhere)) if error.is_elsewhere() => {
                let brought = tokio::select! {
                    biased;
                    () = job.cancel.cancelled() => return Err(WorkerError::Cancelled),
                    brought = elsewhere.bring(layer) => brought,
                };
                if brought { self.pull(job, layer).await } else { pulled }
            }
            _ => pulled,
        }
    }

    /// Fetches a layer, and says how far that is.
    async fn pull(&self, job: &Job<'_>, layer: DiffId) -> Result<(), WorkerError> {
        let _phase = timing::phase("pull", Of::Layer(layer));
        let pull = |progress| pull_layer(&self.root, self.images.client(), layer, progress);
        self.told(job, layer.to_string(), pull).await
    }

    /// Does `work`, and says how far it is, under the name `id`.
    async fn told<T, E: Into<WorkerError>, F: Future<Output = Result<T, E>>>(
        &self,
        job: &Job<'_>,
        id: String,
        work: impl FnOnce(Progress) -> F,
    ) -> Result<T, WorkerError> {
        let (done, total) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let progress = {
            let (done, total) = (done.clone(), total.clone());
            Progress::new(move |bytes, all| {
                done.store(bytes, Ordering::Relaxed);
                total.store(all.unwrap_or(0), Ordering::Relaxed);
            })
        };
        let report = |over: bool| {
            // Who fetches nothing has nothing to tell.
            if done.load(Ordering::Relaxed) == 0 {
                return;
            }
            let all = total.load(Ordering::Relaxed);
            self.emit(Event::Progress {
                vertex: job.id,
                id: id.clone(),
                current: done.load(Ordering::Relaxed),
                total: (all > 0).then_some(all),
                done: over,
            });
        };
        let mut work = pin!(work(progress));
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                biased;
                () = job.cancel.cancelled() => return Err(WorkerError::Cancelled),
                result = &mut work => {
                    let done = result.map_err(Into::into)?;
                    report(true);
                    return Ok(done);
                }
                _ = tick.tick() => report(false),
            }
        }
    }
}

impl Runner for Worker {
    type Error = WorkerError;

    fn pin<'a>(&'a self, job: Job<'a>) -> LocalBoxFuture<'a, Result<Pin, WorkerError>> {
        let source = job.vertex.source().expect("only sources are pinned");
        async move { self.pin_of(&job, source).await }.boxed_local()
    }

    fn select<'a>(
        &'a self,
        job: Job<'a>,
        input: InputRef<'a>,
        selector: &'a Selector,
    ) -> LocalBoxFuture<'a, Result<Selection, WorkerError>> {
        async move { self.select_of(&job, &input, selector).await }.boxed_local()
    }

    fn selected_files(&self, input: InputRef<'_>, selector: &Selector) -> Vec<RecordedInput> {
        let walks = self.walks.borrow();
        let Some(context) = walks.get(&(input.id, selector.digest())) else { return Vec::new() };
        let files = context.selection.files.iter();
        files
            .map(|(path, digest)| RecordedInput {
                name: format!("file {}", path.to_str_lossy()),
                digest: *digest,
            })
            .collect()
    }

    fn load<'a>(
        &'a self,
        job: Job<'a>,
        layers: Option<Snapshot>,
    ) -> LocalBoxFuture<'a, Result<Loaded, WorkerError>> {
        async move {
            match (job.vertex.source(), layers) {
                (Some(source @ (Source::Git { .. } | Source::Http { .. })), _) => {
                    self.load_remote(&job, source).await
                }
                (_, Some(layers)) => {
                    if matches!(job.vertex.op, Op::File(_)) {
                        self.file_layers.borrow_mut().extend(layers.layers.iter().map(|layer| layer.diff_id));
                    }
                    self.load_layers(&job, layers).await
                }
                (_, None) => unreachable!("images and steps say which layers they have"),
            }
        }
        .boxed_local()
    }

    fn run<'a>(&'a self, job: Job<'a>, task: Task<'a>) -> LocalBoxFuture<'a, Result<Outcome, WorkerError>> {
        async move {
            match &job.vertex.op {
                Op::File(file) => {
                    let outcome = self.run_file(&job, &task, file).await?;
                    self.note_file_layer(outcome.layer);
                    Ok(outcome)
                }
                Op::Exec(exec) => self.run_exec(&job, &task, exec).await,
                Op::Source(_) | Op::Merge | Op::Diff => unreachable!("only file ops and processes are run"),
            }
        }
        .boxed_local()
    }
}

/// The layers of a snapshot.
pub(crate) fn diff_ids(snapshot: &Snapshot) -> Vec<DiffId> {
    snapshot.layers.iter().map(|layer| layer.diff_id).collect()
}

/// What a remote source is called while it is fetched.
fn source_name(source: &Source) -> String {
    match source {
        Source::Http { filename, .. } => filename.clone(),
        Source::Git { remote, .. } => remote.clone(),
        _ => String::new(),
    }
}

pub(crate) fn snapshot(diff_ids: &[DiffId]) -> Snapshot {
    Snapshot { layers: diff_ids.iter().map(|&diff_id| SnapshotLayer { diff_id, created: None }).collect() }
}

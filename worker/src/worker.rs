//! [`Worker`]: the solver's [`Runner`] over a store. It says what a source is, reads what selectors pick, makes layers
//! present, and runs file ops and processes.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use image::layer::LayerIndex;
use image::tree::Tree;
use image::{ChainId, ContentDigest, DiffId, Platform, Reference};
use solver::definition::{Selector, VertexId};
use solver::event::Event;
use solver::key::ResultDigest;
use solver::op::{self, Op, Source};
use solver::record::{RecordedInput, Snapshot, SnapshotLayer};
use solver::runner::{InputRef, Job, Loaded, Outcome, Pin, Runner, Selection, Task};
use store::lease::Item;
use store::root::Root;

use crate::error::WorkerError;
use crate::exec::{self, Secret};
use crate::mount::Mounter;
use crate::source::git::{Commit, Git, GitAuth};
use crate::source::image::Images;
use crate::source::local::LocalContext;

/// What a build gives its worker.
#[derive(Debug)]
pub struct Options {
    /// Directories of local sources, by name: `context` and named contexts.
    pub contexts: BTreeMap<String, PathBuf>,
    /// Secrets, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// Sockets of SSH agents, by id.
    pub agents: BTreeMap<String, PathBuf>,
    /// What a RUN without `--network` gets.
    pub default_network: exec::Network,
    /// `SOURCE_DATE_EPOCH`: the latest time in layers that are made.
    pub epoch: Option<i64>,
    /// Credentials for git remotes.
    pub git: GitAuth,
    /// The host's `/etc/resolv.conf`.
    pub resolv_conf: String,
}

/// Runs ops of one build.
pub struct Worker {
    root: Root,
    options: Options,
    images: Rc<Images>,
    mounter: Box<dyn Mounter>,
    contexts: RefCell<HashMap<VertexId, Rc<LocalContext>>>,
    commits: RefCell<HashMap<VertexId, Commit>>,
    events: Box<dyn Fn(Event)>,
}

impl Worker {
    /// A worker for one build. Sources of images are found through `images`; what steps print goes to `events`.
    pub fn new(root: Root, options: Options, images: Rc<Images>, mounter: Box<dyn Mounter>, events: Box<dyn Fn(Event)>) -> Self {
        Self { root, options, images, mounter, contexts: RefCell::default(), commits: RefCell::default(), events }
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn mounter(&self) -> &dyn Mounter {
        &*self.mounter
    }

    pub(crate) fn emit(&self, event: Event) {
        (self.events)(event);
    }

    /// Now, or the latest time that layers may show.
    pub(crate) fn now(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
        self.options.epoch.map_or(now, |epoch| now.min(epoch))
    }

    /// The layers of an input, which is loaded.
    pub(crate) fn layers_of(&self, input: &InputRef<'_>) -> Vec<DiffId> {
        let snapshot = input.snapshot.as_ref();
        snapshot.map_or_else(Vec::new, |snapshot| snapshot.layers.iter().map(|layer| layer.diff_id).collect())
    }

    /// The merged view over layers that are here.
    pub(crate) fn tree(&self, layers: &[DiffId]) -> Result<Tree, WorkerError> {
        let store = self.root.layers();
        let indexes: Vec<Arc<LayerIndex>> = layers.iter().map(|layer| store.index(layer)).collect::<Result<_, _>>()?;
        Ok(Tree::of_layers(indexes))
    }

    /// The directory of a local source.
    pub(crate) fn context(&self, input: &InputRef<'_>) -> Result<Rc<LocalContext>, WorkerError> {
        if let Some(context) = self.contexts.borrow().get(&input.id) {
            return Ok(context.clone());
        }
        let Some(Source::Local { name, ignore }) = input.vertex.source() else {
            unreachable!("only local sources have no snapshot, says the solver")
        };
        let directory = self.options.contexts.get(name).ok_or_else(|| WorkerError::NoContext(name.clone()))?;
        let context = Rc::new(LocalContext::open(directory, ignore, &self.root)?);
        self.contexts.borrow_mut().insert(input.id, context.clone());
        Ok(context)
    }

    async fn pin_source(&self, job: &Job<'_>, source: &Source) -> Result<Pin, WorkerError> {
        match source {
            Source::Local { .. } => Ok(Pin::default()),
            Source::Image { .. } | Source::OciLayout { .. } => {
                let found = self.images.find(source).await?;
                let diff_ids = &found.config.rootfs.diff_ids;
                Ok(Pin {
                    result: Some(ResultDigest::image(ChainId::of(diff_ids))),
                    snapshot: Some(snapshot(diff_ids)),
                })
            }
            Source::Git { .. } => {
                let git = git(source);
                let commit = git.resolve(&self.options.git)?;
                let result = result_of(source, commit.as_str());
                self.commits.borrow_mut().insert(job.id, commit);
                Ok(Pin { result: Some(result), snapshot: None })
            }
            Source::Http { .. } => self.pin_http(source).await,
        }
    }
}

fn snapshot(diff_ids: &[DiffId]) -> Snapshot {
    Snapshot { layers: diff_ids.iter().map(|&diff_id| SnapshotLayer { diff_id, created: None }).collect() }
}

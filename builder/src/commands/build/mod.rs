//! `rbuild build`: one build from the request to what it leaves.

mod attest;
mod deliver;
mod look;
mod report;
mod solve;
mod stopped;
mod unpacked;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use frontend::lint;
use frontend::request::Converted;
use image::{Descriptor, Platform, Reference};
use serde_json::Value;
use solver::cancel::Cancel;
use solver::op::redacted;
use solver::record::SnapshotLayer;
use store::directory::Directory;
use store::registry::Client;
use store::root::{Root, now};
use store::timing::{self, Of};
use worker::UsedMount;
use worker::cdi::Registry;
use worker::exec::Secret;
use worker::isolate::group::Wanted;
use worker::source::remote::{Access, Remotes};
use worker::source::resolve::{Images, Policy};

use super::Session;
use crate::agent::Agents;
use crate::build::{self, NamedContexts, Parsed};
use crate::cache::import::Imports;
use crate::cache::options::Origin;
use crate::cache::session::Used;
use crate::cli::BuildArgs;
use crate::context::Context;
use crate::docker::Endpoint;
use crate::export::{AssembledImage, Exported, metadata};
use crate::failure::{Class, Failure, OrFail as _};
use crate::journal::{self, Journal};
use crate::named::named_contexts;
use crate::progress::{Handle, Mode, Progress, Terminal};
use crate::remote::Fetcher;
use crate::request::{self, BuildRequest, Call, ContextSource, OnError, Output, OutputKind};
use crate::timings::Timings;
use crate::trace::{self, Tracer};

use stopped::Stopped;
use unpacked::Unpacked;

/// `rbuild build`
pub(crate) fn build(session: &Session, args: BuildArgs) -> Result<(), Failure> {
    let request = request(session, args)?;
    let began = now();
    perform(session, &request)?;
    if let Some(limit) = request.store_max.or(session.config.limit) {
        let policy = store::gc::Policy {
            max_used_space: Some(limit),
            spare_since: Some(began),
            ..store::gc::Policy::default()
        };
        let root = session.open()?;
        // The build is done: what only it needed is as old as it was, or as new as it is now.
        root.flush()?;
        root.let_go();
        root.prune(&policy)?;
    }
    Ok(())
}

/// What the command line, the environment and the configuration ask for.
pub(crate) fn request(session: &Session, args: BuildArgs) -> Result<BuildRequest, Failure> {
    let mut request = BuildRequest::new(args, &|name| std::env::var(name).ok())?;
    if request.on_error == OnError::Shell && !super::shell::at_terminal() {
        return Err(Failure::usage("--on-error=shell needs a terminal: there is none")
            .hint("--on-error=keep keeps the sandbox of a step that fails for `rbuild shell`"));
    }
    if request.outputs.iter().any(Output::deletes) {
        let here = std::env::current_dir().or_fail(Class::Host)?;
        request::check_deletes(&request.outputs, &here, &request.allow)?;
    }
    find_docker(session, &mut request)?;
    for warning in &request.warnings {
        super::eprint(&format!("WARNING: {warning}\n"));
    }
    request.proxy_env = crate::registry::proxies(&session.places);
    let group = Wanted {
        parent: request.cgroup_parent.clone(),
        resources: request.resources.clone().unwrap_or_default(),
    };
    // Only what asks for a group pays for one.
    if !group.is_nothing()
        && let Err(error) = group.try_out()
    {
        super::eprint(&format!("WARNING: --resource and --cgroup-parent have no effect: {error}\n"));
        request.resources = None;
    }
    Ok(request)
}

/// Looks for the Docker that images are to be loaded into. Where there is none, they are kept as all images are.
fn find_docker(session: &Session, request: &mut BuildRequest) -> Result<(), Failure> {
    let Some(at) = request.outputs.iter().position(|output| output.kind == OutputKind::Load) else {
        return Ok(());
    };
    let context = request.outputs[at].options.get("context").map(String::as_str);
    let config = &session.places.docker_config;
    request.docker = Endpoint::find(context, |name| std::env::var(name).ok(), config)?;
    if request.docker.is_none() {
        if request.outputs.iter().any(|output| output.kind == OutputKind::Image) {
            request.outputs.remove(at);
        } else {
            request.outputs[at].kind = OutputKind::Image;
            request.outputs[at].options.remove("context");
        }
        request.warnings.push("there is no Docker here: the image is in rbuild's own store".to_owned());
    }
    Ok(())
}

/// Does what a request asks for. Gives the images, one a platform.
pub(crate) fn perform(session: &Session, request: &BuildRequest) -> Result<Vec<AssembledImage>, Failure> {
    let root = session.open()?;
    let unpacked = Unpacked::new(root.clone());
    let runtime = session.runtime()?;
    let insecure = request.cache_from.iter().filter_map(|from| match &from.origin {
        Origin::Registry { reference, insecure: true } => Some(reference.registry.as_str()),
        _ => None,
    });
    let client = crate::registry::insecure(crate::registry::client(&session.places)?, insecure);
    let client = Rc::new(client);
    let secrets = request::secrets(&request.secrets)?;
    let agents = Agents::new(&root, &request.ssh)?;
    let access = Access {
        secrets: secrets.clone(),
        ssh_agent: agents.sockets.get("default").cloned(),
        proxies: crate::environment::proxies(|name| std::env::var(name).ok()),
    };
    let remotes = Rc::new(Remotes::new(root.clone(), client.clone(), access));
    // What is elsewhere may take its time.
    let progress = request.is_elsewhere().then(|| progress(request));
    let handle = progress.as_ref().map(Progress::handle);
    let fetcher = Fetcher { root: &root, remotes: &remotes, runtime: &runtime, progress: handle };
    let keep_git_dir = request.flag_arg("BUILDKIT_CONTEXT_KEEP_GIT_DIR")?;
    let context = Context::load(&request.context, &request.dockerfile, keep_git_dir, &unpacked, &fetcher)?;
    super::call::report_syntax(&context, request.call)?;
    let parsed = Parsed::new(&context, request)?;
    runtime.block_on(async {
        let id = journal::new_id();
        let mut build = Build {
            session,
            request,
            root: &root,
            context: &context,
            parsed: &parsed,
            journal: (request.call == Call::Build && request.look.is_none())
                .then(|| Journal::begin(root.path(), entry(request, &id))),
            id,
            client,
            remotes: remotes.clone(),
            secrets,
            agents,
            devices: Rc::new(Registry::load(&session.config.device_specs())),
            began: now(),
            tracer: None,
            digest: RefCell::default(),
            images: RefCell::default(),
            kept: RefCell::default(),
            progress: RefCell::new(progress),
        };
        if request.call == Call::Build {
            build.tracer = tracer(request, &build.id);
        }
        let result = super::until_interrupted(|cancel| build.run(cancel)).await;
        if let Some(tracer) = build.tracer.take() {
            tracer.finish(&build.client, result.as_ref().err()).await;
        }
        if let Some(journal) = build.journal.take() {
            let how = result.as_ref().err().map_or("done", |failure| failure.message.as_str());
            journal.finish(how, build.digest.take());
        }
        match result {
            Err(failure) if request.on_error == OnError::Shell && build.kept.borrow().is_some() => {
                // All of it is said before the shell begins.
                super::eprint(&format!(
                    "{failure}\n\nThis is a shell in the sandbox of the step; exit leaves it.\n"
                ));
                build.shell_in_failed().await?;
                Err(Failure::new(failure.class, ""))
            }
            result => result.map(|()| build.images.take()),
        }
    })
}

/// Begins to show a build.
fn progress(request: &BuildRequest) -> Progress {
    let mode = if request.quiet { Mode::Quiet } else { request.progress };
    let terminal = Terminal::stderr(|name| std::env::var(name).ok());
    Progress::new(mode, terminal, Box::new(std::io::stderr()))
}

/// One build and all it was asked with.
struct Build<'a> {
    session: &'a Session,
    request: &'a BuildRequest,
    root: &'a Root,
    context: &'a Context,
    parsed: &'a Parsed,
    client: Rc<Client>,
    remotes: Rc<Remotes>,
    secrets: BTreeMap<String, Secret>,
    agents: Agents,
    devices: Rc<Registry>,
    /// Its name, in metadata and for `rbuild logs`.
    id: String,
    /// When it began, seconds since the epoch.
    began: i64,
    /// What is written down of it.
    journal: Option<Journal>,
    /// Tells a collector of traces.
    tracer: Option<Tracer>,
    /// What it came to.
    digest: RefCell<Option<String>>,
    images: RefCell<Vec<AssembledImage>>,
    /// The sandbox of the step that failed.
    kept: RefCell<Option<Directory>>,
    /// If it has begun to show before its steps are known.
    progress: RefCell<Option<Progress>>,
}

/// What one platform came to.
struct Made {
    image: AssembledImage,
    /// With the times that layers were made with, for outputs that want those.
    as_made: Option<AssembledImage>,
    layers: Vec<SnapshotLayer>,
    /// `SOURCE_DATE_EPOCH` in force.
    epoch: Option<i64>,
    /// What its steps took from the cache and left there.
    used: Used,
    /// Cache mounts that its steps name.
    mounts: BTreeSet<UsedMount>,
    /// For `--metadata-file`, if that is to have it.
    provenance: Option<Value>,
}

/// What a build leaves, for whoever called.
#[derive(Debug, Default)]
struct Left {
    exported: Option<Exported>,
    /// Where the cache is now.
    cache: Option<Descriptor>,
    /// For `--metadata-file`, a platform each.
    provenance: Vec<(Platform, Value)>,
    /// What caches of other builders saved.
    summary: Option<String>,
}

impl Build<'_> {
    async fn run(&self, cancel: Cancel) -> Result<(), Failure> {
        let contexts = named_contexts(&self.request.build_contexts)?;
        let policy = if self.request.pull { Policy::Newest } else { Policy::Missing };
        let client = self.client.clone();
        let images = Rc::new(Images::new(self.root.clone(), client.clone(), policy));
        let mut platforms: Vec<Option<Platform>> = self.request.platforms.iter().cloned().map(Some).collect();
        if platforms.is_empty() {
            platforms.push(None);
        }
        let requests: Vec<_> = platforms
            .into_iter()
            .map(|platform| {
                build::frontend_request(self.request, self.context, &contexts, &self.devices, platform)
            })
            .collect();
        if self.request.call != Call::Build {
            return super::call::call(self.request.call, self.parsed, &requests, &images, &self.remotes)
                .await;
        }
        let timings = self.request.timings.as_deref().map(Timings::begin);
        let convert = timing::phase("convert", Of::Build);
        let mut converted = Vec::new();
        for request in &requests {
            let done = build::convert(self.parsed, request, &images, &self.remotes).await;
            converted.push(done.map_err(|error| error.into_failure(self.parsed))?);
        }
        convert.end();
        let asked = |output: &Output| output.flag("rewrite-timestamp").is_ok_and(|flag| flag == Some(true));
        if converted.iter().all(|converted| converted.source_date_epoch.is_none())
            && self.request.outputs.iter().any(asked)
        {
            super::eprint("WARNING: rewrite-timestamp has no effect without SOURCE_DATE_EPOCH\n");
        }
        let (findings, fatal) = self.parsed.findings(&converted);
        if fatal {
            let failure = Failure::new(Class::Dockerfile, lint::violation(&findings));
            let summary = self.parsed.report(&findings, None).summary(true);
            return Err(failure.report(summary.unwrap_or_default()));
        }
        if let Some(path) = &self.request.iidfile {
            metadata::remove_iidfile(path)?;
        }

        let progress = self.progress.take().unwrap_or_else(|| progress(self.request));
        if let Some(look) = &self.request.look {
            let [converted] = &converted[..] else {
                return Err(Failure::usage("a shell is for one platform: give one --platform"));
            };
            let ended = self.look(look, converted, &contexts, &images, &cancel, progress).await;
            return ended
                .map_err(|stopped| match stopped {
                    Stopped::Failure(failure) => failure,
                    Stopped::Step { failure, excerpt } => failure.report(excerpt),
                })
                .and_then(super::shell::ended);
        }
        let timings = timings.map(|timings| (timings, step_names(&converted)));
        let result = self.make(converted, &contexts, &images, &client, &cancel, &progress).await;
        let report = progress.finish();
        if let Some((timings, steps)) = timings {
            timings.show(&steps)?;
        }
        match result {
            Ok(left) => {
                if let (Some(cache), false) = (&left.summary, self.request.quiet) {
                    super::eprint(&format!("{cache}\n"));
                }
                self.tell(left, &findings)
            }
            Err(Stopped::Failure(failure)) => Err(failure),
            Err(Stopped::Step { failure, excerpt }) => {
                self.warn(&findings);
                let log = report.failure().map(|log| format!("{}\n", log.trim_end())).unwrap_or_default();
                Err(failure.report(log + &excerpt))
            }
        }
    }

    /// `--cache-from`
    fn imports(&self, progress: Handle) -> Imports {
        let from = self.request.cache_from.clone();
        Imports::new(self.root.clone(), (*self.client).clone(), from, progress)
    }

    /// Solves for each platform and exports.
    async fn make(
        &self,
        converted: Vec<Converted>,
        contexts: &NamedContexts,
        images: &Rc<Images>,
        client: &Client,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<Left, Stopped> {
        let imports = Rc::new(self.imports(progress.handle()));
        let mut made = Vec::new();
        for converted in converted {
            let _phase = timing::phase("solve", Of::Build);
            made.push(self.solve(converted, contexts, images, &imports, cancel, progress).await?);
        }
        let mut left = Left::default();
        for output in &self.request.outputs {
            let _phase = timing::phase("export", Of::Build);
            let _span = self.tracer.as_ref().map(|tracer| tracer.span("export"));
            let exported = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Failure::new(Class::Cancelled, "cancelled").into()),
                exported = self.export(output, &made, client, progress) => exported?,
            };
            // Of several the last counts, as in BuildKit: they may differ in media types.
            left.exported = exported.or(left.exported);
        }
        let exports = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Failure::new(Class::Cancelled, "cancelled").into()),
            exports = self.export_caches(&made, client, &imports, progress) => exports?,
        };
        left.summary = self.cache_summary(&made, &imports, &exports);
        if let Err(error) = self.root.speeds().keep() {
            tracing::warn!("could not keep how fast layers came: {error}");
        }
        left.cache = exports.sent.manifest;
        left.provenance =
            made.into_iter().filter_map(|made| Some((made.image.platform, made.provenance?))).collect();
        Ok(left)
    }
}

/// What the journal says of a build that begins.
fn entry(request: &BuildRequest, id: &str) -> journal::Entry {
    journal::Entry {
        id: id.to_owned(),
        began: now(),
        result: "running".to_owned(),
        names: request.tags.iter().map(Reference::familiar).collect(),
        context: match &request.context {
            ContextSource::Directory(path) => path.display().to_string(),
            ContextSource::Stdin => "-".to_owned(),
            ContextSource::Remote(url) => redacted(url),
        },
        ..journal::Entry::default()
    }
}

/// Spans of a build, if the environment asks for them.
fn tracer(request: &BuildRequest, id: &str) -> Option<Tracer> {
    let config = match trace::Config::new(&|name| std::env::var(name).ok()) {
        Ok(config) => config?,
        Err(why) => {
            super::eprint(&format!("WARNING: no traces are sent: {why}\n"));
            return None;
        }
    };
    let names: Vec<String> = request.tags.iter().map(Reference::familiar).collect();
    let mut attributes = vec![("rbuild.build.id", trace::Value::Text(id.to_owned()))];
    if !names.is_empty() {
        attributes.push(("rbuild.image.names", trace::Value::Text(names.join(", "))));
    }
    if let Some(target) = &request.target {
        attributes.push(("rbuild.target", trace::Value::Text(target.clone())));
    }
    Some(Tracer::begin(config, "build", attributes))
}

/// The names of steps by the index of their vertex; of several platforms, the first one's.
fn step_names(converted: &[Converted]) -> Vec<String> {
    let definition = converted.first().map(|converted| &converted.definition);
    let names = definition
        .into_iter()
        .flat_map(|definition| definition.ids().map(|id| definition.vertex(id).metadata.name.clone()));
    names.collect()
}

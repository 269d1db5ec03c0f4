//! `rbuild build`

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use frontend::request::Converted;
use frontend::{Diagnostic, lint};
use image::tree::Tree;
use image::{Platform, Reference};
use solver::cancel::Cancel;
use solver::driver::{self, Root as Wanted, SolveError};
use solver::event::Event;
use solver::record::SnapshotLayer;
use solver::{Definition, VertexId};
use store::registry::Client;
use store::root::Root;
use store::timing::{self, Of};
use worker::error::WorkerError;
use worker::exec::{Network, Secret};
use worker::file::FileError;
use worker::source::remote::{Access, Remotes};
use worker::source::resolve::{Images, Policy};
use worker::{LayerSource, Options, Worker};

use super::explain::Decisions;
use super::{Session, print};
use crate::agent::Agents;
use crate::attest::{Attestation, provenance};
use crate::build::{self, NamedContexts, Parsed};
use crate::cache::backends::inline;
use crate::cache::export::{self as cache_export, Exports};
use crate::cache::import::Imports;
use crate::cache::options::{CacheFrom, Target};
use crate::cache::session::{BuildCache, Used};
use crate::cli::BuildArgs;
use crate::context::{Context, Unpack};
use crate::export::file::Sink;
use crate::export::{self, AssembledImage, Exported, assemble, flat, metadata};
use crate::failure::{Class, Failure, OrFail as _};
use crate::journal::{self, Journal, Listener};
use crate::named::named_contexts;
use crate::progress::{Mode, Progress, Terminal};
use crate::remote::Fetcher;
use crate::request::{BuildRequest, Call, ContextSource, Output, OutputKind, SecretSource};
use crate::sbom;
use crate::timings::Timings;

/// `rbuild build`
pub(crate) fn build(session: &Session, args: BuildArgs) -> Result<(), Failure> {
    perform(session, &request(session, args)?)?;
    if let Some(limit) = session.config.limit {
        let policy = store::gc::Policy { max_used_space: Some(limit), ..store::gc::Policy::default() };
        session.open()?.prune(&policy)?;
    }
    Ok(())
}

/// What the command line, the environment and the configuration ask for.
pub(crate) fn request(session: &Session, args: BuildArgs) -> Result<BuildRequest, Failure> {
    let mut request = BuildRequest::new(args, &|name| std::env::var(name).ok())?;
    request.proxy_env = crate::registry::proxies(&session.places);
    if !request.resources.is_empty() {
        super::eprint("WARNING: --resource has no effect: steps share the resources of rbuild itself\n");
    }
    Ok(request)
}

/// Does what a request asks for. Gives the images, one a platform.
pub(crate) fn perform(session: &Session, request: &BuildRequest) -> Result<Vec<AssembledImage>, Failure> {
    let root = session.open()?;
    let unpacked = Unpacked { root: root.clone(), held: RefCell::default() };
    let runtime = session.runtime()?;
    let insecure = request.cache_from.iter().filter_map(|from| match from {
        CacheFrom::Registry { reference, insecure: true } => Some(reference.registry.as_str()),
        _ => None,
    });
    let client = crate::registry::insecure(crate::registry::client(&session.places)?, insecure);
    let client = Rc::new(client);
    let secrets = secrets(request)?;
    let agents = Agents::new(&root, &request.ssh)?;
    let access = Access {
        secrets: secrets.clone(),
        ssh_agent: agents.sockets.get("default").cloned(),
        proxies: crate::environment::proxies(|name| std::env::var(name).ok()),
    };
    let remotes = Rc::new(Remotes::new(root.clone(), client.clone(), access));
    let fetcher = Fetcher { root: &root, remotes: &remotes, runtime: &runtime };
    let keep_git_dir = request.flag_arg("BUILDKIT_CONTEXT_KEEP_GIT_DIR")?;
    let context = Context::load(&request.context, &request.dockerfile, keep_git_dir, &unpacked, &fetcher)?;
    super::call::report_syntax(&context, request.call)?;
    let parsed = Parsed::new(&context, request)?;
    runtime.block_on(async {
        let id = journal::new_id();
        let build = Build {
            session,
            request,
            root: &root,
            context: &context,
            parsed: &parsed,
            journal: (request.call == Call::Build).then(|| Journal::begin(root.path(), entry(request, &id))),
            id,
            client,
            remotes: remotes.clone(),
            secrets,
            agents,
            began: seconds_now(),
            digest: RefCell::default(),
            images: RefCell::default(),
        };
        let result = super::until_interrupted(|cancel| build.run(cancel)).await;
        if let Some(journal) = build.journal {
            let how = result.as_ref().err().map_or("done", |failure| failure.message.as_str());
            journal.finish(how, build.digest.take());
        }
        result.map(|()| build.images.take())
    })
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
    /// Its name, in metadata and for `rbuild logs`.
    id: String,
    /// When it began, seconds since the epoch.
    began: i64,
    /// What is written down of it.
    journal: Option<Journal>,
    /// What it came to.
    digest: RefCell<Option<String>>,
    images: RefCell<Vec<AssembledImage>>,
}

/// What one platform came to.
struct Made {
    image: AssembledImage,
    layers: Vec<SnapshotLayer>,
    /// What its steps took from the cache and left there.
    used: Used,
}

/// Why a build failed, before it is known what the display has shown of it.
enum Stopped {
    /// Say this.
    Failure(Failure),
    /// A step failed: this, and what stands in the Dockerfile.
    Step { failure: Failure, excerpt: String },
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
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
            .map(|platform| build::frontend_request(self.request, self.context, &contexts, platform))
            .collect();
        if self.request.call != Call::Build {
            return super::call::call(self.request.call, self.parsed, &requests, &images).await;
        }
        let mut converted = Vec::new();
        for request in &requests {
            let done = build::convert(self.parsed, request, &images).await;
            converted.push(done.map_err(|error| error.into_failure(self.parsed))?);
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

        let mode = if self.request.quiet { Mode::Quiet } else { self.request.progress };
        let terminal = Terminal::stderr(|name| std::env::var(name).ok());
        let progress = Progress::new(mode, terminal, Box::new(std::io::stderr()));
        let timings =
            self.request.timings.as_deref().map(|flag| (Timings::begin(flag), step_names(&converted)));
        let result = self.make(converted, &contexts, &images, &client, &cancel, &progress).await;
        let report = progress.finish();
        if let Some((timings, steps)) = timings {
            timings.show(&steps)?;
        }
        match result {
            Ok((exported, cache)) => {
                if let (Some(cache), false) = (cache, self.request.quiet) {
                    super::eprint(&format!("{cache}\n"));
                }
                self.tell(exported, &findings)
            }
            Err(Stopped::Failure(failure)) => Err(failure),
            Err(Stopped::Step { failure, excerpt }) => {
                self.warn(&findings);
                let log = report.failure().map(|log| format!("{}\n", log.trim_end())).unwrap_or_default();
                Err(failure.report(log + &excerpt))
            }
        }
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
    ) -> Result<(Option<Exported>, Option<String>), Stopped> {
        let from = self.request.cache_from.clone();
        let imports = Imports::new(self.root.clone(), client.clone(), from, progress.handle());
        let imports = Rc::new(imports);
        let mut made = Vec::new();
        for converted in converted {
            let _phase = timing::phase("solve", Of::Build);
            made.push(self.solve(converted, contexts, images, &imports, cancel, progress).await?);
        }
        let mut first = None;
        for output in &self.request.outputs {
            let _phase = timing::phase("export", Of::Build);
            let exported = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Failure::new(Class::Cancelled, "cancelled").into()),
                exported = self.export(output, &made, client, progress) => exported?,
            };
            first = first.or(exported);
        }
        let exports = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Failure::new(Class::Cancelled, "cancelled").into()),
            exports = self.export_caches(&made, client, &imports, progress) => exports?,
        };
        let summary = self.cache_summary(&made, &imports, exports);
        Ok((first, summary))
    }

    /// `--cache-to`
    async fn export_caches(
        &self,
        made: &[Made],
        client: &Client,
        imports: &Imports,
        progress: &Progress,
    ) -> Result<Exports, Failure> {
        let caches = &self.request.cache_to;
        if caches.is_empty() {
            return Ok(Exports::default());
        }
        let mut used = Used::default();
        let mut results = Vec::new();
        for made in made {
            used.records.extend(made.used.records.clone());
            used.memo.extend(made.used.memo.clone());
            results.extend(made.layers.iter().copied());
        }
        cache_export::export(self.root, client, imports, caches, &used, &results, &progress.handle()).await
    }

    /// What caches of other builders saved and what they cost, if any were asked for.
    fn cache_summary(&self, made: &[Made], imports: &Imports, exports: Exports) -> Option<String> {
        if self.request.cache_from.is_empty() && self.request.cache_to.is_empty() {
            return None;
        }
        let hits = || made.iter().flat_map(|made| made.used.hits.iter().map(|key| &made.used.records[key]));
        let steps: usize = made.iter().map(|made| made.used.records.len()).sum();
        let mut text = format!(
            "cache: {} of {steps} steps reused, {:.1}s of work saved",
            hits().count(),
            hits().fold(0.0, |sum, record| sum + record.seconds),
        );
        if !self.request.cache_from.is_empty() {
            text.push_str(&format!("; read in {:.2}s", imports.seconds()));
        }
        if !self.request.cache_to.is_empty() {
            let Exports { sent, seconds } = exports;
            let megabytes = sent.bytes as f64 / 1e6;
            text.push_str(&format!(
                "; written in {seconds:.2}s, {} of {} layers new, {megabytes:.1} MB",
                sent.new, sent.layers
            ));
        }
        Some(text)
    }

    async fn solve(
        &self,
        converted: Converted,
        contexts: &NamedContexts,
        images: &Rc<Images>,
        imports: &Rc<Imports>,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<Made, Stopped> {
        let epoch = converted.source_date_epoch;
        let (layers, used) = match converted.result {
            None => (Vec::new(), Used::default()),
            Some(vertex) => {
                let wanted = [Wanted {
                    vertex,
                    want_files: self.wants_files() || (epoch.is_some() && !imports.is_empty()),
                }];
                let show = progress.handle().definition(&converted.definition, &wanted);
                let decisions = Decisions::new(&converted.definition);
                let listener = self.journal.as_ref().map(|journal| journal.listen(&converted.definition));
                let events: Rc<dyn Fn(Event)> = {
                    let (decisions, listener) = (decisions.clone(), listener.clone());
                    Rc::new(move |event| {
                        decisions.note(&event);
                        if let Some(listener) = &listener {
                            listener.note(&event);
                        }
                        show(event);
                    })
                };
                let options = Options {
                    elsewhere: (!imports.is_empty()).then(|| imports.clone() as Rc<dyn LayerSource>),
                    ..self.options(contexts)?
                };
                let worker = Worker::new(self.root.clone(), options, images.clone(), events.clone());
                let cache = BuildCache::new(self.root, imports.clone(), self.request.cache_ttl);
                let options = driver::Options {
                    parallelism: self.request.jobs,
                    cancel: cancel.clone(),
                    scope: self.scope(&converted.platform),
                };
                let solved =
                    driver::solve(&converted.definition, &wanted, &worker, &cache, &*events, &options).await;
                decisions.keep(self.root);
                let layers_of = |solved: Vec<driver::Solved>| {
                    let snapshot = solved.into_iter().next().and_then(|solved| solved.snapshot);
                    snapshot.expect("a result is no local directory").layers
                };
                let mut layers =
                    layers_of(solved.map_err(|error| self.stopped(&converted, error, listener.as_ref()))?);
                if self.request.outputs.iter().any(|output| output.kind != OutputKind::CacheOnly)
                    && !self.can_all_be_had(&layers, imports).await?
                {
                    // A cache knew a step of the result and lacks its layer: now the files are wanted, so it runs.
                    let wanted = [Wanted { vertex, want_files: true }];
                    let again = |event| {
                        if !matches!(event, Event::Cached(_)) {
                            events(event);
                        }
                    };
                    let solved =
                        driver::solve(&converted.definition, &wanted, &worker, &cache, &again, &options)
                            .await;
                    decisions.keep(self.root);
                    layers = layers_of(
                        solved.map_err(|error| self.stopped(&converted, error, listener.as_ref()))?,
                    );
                }
                (layers, cache.into_used())
            }
        };
        let now = seconds_now();
        let mut config =
            assemble::finish_config(converted.config, converted.base_history, &layers, epoch, now);
        inline::clear(&mut config);
        if self.request.cache_to.iter().any(|to| to.target == Target::Inline) {
            inline::embed(&mut config, &cache_export::index(self.root, &used));
        }
        if let Some(epoch) = epoch {
            for (diff_id, layer) in config.rootfs.diff_ids.iter_mut().zip(&layers) {
                // The base's layers stay as they are.
                if layer.created.is_some() {
                    *diff_id = export::retime::retime(self.root, diff_id, epoch)?;
                }
            }
        }
        let mut image =
            AssembledImage { config, platform: converted.platform.clone(), attestations: Vec::new() };
        // The same inputs are to give the same bytes where a time is given.
        let times = epoch.is_none().then_some((self.began, now));
        image.attestations = self.attest(&converted.definition, &image, times)?;
        self.images.borrow_mut().push(image.clone());
        Ok(Made { image, layers, used })
    }

    /// Whether all layers are here or at registries; those that only an imported cache has are brought here.
    async fn can_all_be_had(&self, layers: &[SnapshotLayer], imports: &Imports) -> Result<bool, Failure> {
        let store = self.root.layers();
        for SnapshotLayer { diff_id, .. } in layers {
            if store.contains(diff_id)? {
                continue;
            }
            let mut had = false;
            for blob in store.blobs_of(diff_id)? {
                had |=
                    self.root.blobs().contains(&blob.digest)? || !store.locations(&blob.digest)?.is_empty();
            }
            if !had && (imports.is_empty() || !imports.bring_layer(*diff_id).await) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is said about an image beside it.
    fn attest(
        &self,
        definition: &Definition,
        image: &AssembledImage,
        times: Option<(i64, i64)>,
    ) -> Result<Vec<Attestation>, Failure> {
        let wanted = &self.request.attestations;
        let mut made = Vec::new();
        if wanted.sbom {
            let layers = self.root.layers();
            let indexes = image.diff_ids().iter().map(|diff_id| layers.index(diff_id));
            let tree = Tree::of_layers(indexes.collect::<Result<Vec<_>, _>>()?);
            let packages = sbom::scan(&tree, &layers).or_fail(Class::Host)?;
            let name = self.request.tags.first().map_or_else(|| "image".to_owned(), |tag| tag.familiar());
            let time = image.config.created.as_deref().and_then(crate::show::parse_rfc3339).unwrap_or(0);
            let predicate = sbom::document(&packages, &name, &image.config.id(), time);
            made.push(Attestation {
                predicate_type: "https://spdx.dev/Document",
                predicate,
                file: "sbom.spdx.json",
            });
        }
        if let Some(asked) = &wanted.provenance {
            let request = self.request;
            let facts = provenance::Facts {
                definition,
                platform: &image.platform,
                dockerfile: (&self.parsed.name, &self.parsed.text),
                target: request.target.as_deref(),
                build_args: &request.build_args,
                labels: &request.labels,
                secrets: &request.secrets.keys().cloned().collect::<Vec<_>>(),
                ssh: &request.ssh.keys().cloned().collect::<Vec<_>>(),
                no_cache: request.no_cache,
                remote: match &request.context {
                    ContextSource::Remote(url) => Some(url),
                    _ => None,
                },
                invocation: &self.id,
                times,
            };
            made.push(provenance::provenance(asked, &facts));
        }
        Ok(made)
    }

    /// Whether an output needs the files themselves, not only to know which layers they are.
    fn wants_files(&self) -> bool {
        let plain = |output: &Output| matches!(output.kind, OutputKind::Image | OutputKind::CacheOnly);
        self.request.attestations.sbom || !self.request.outputs.iter().all(plain)
    }

    fn options(&self, contexts: &NamedContexts) -> Result<Options, Failure> {
        let mut directories = contexts.directories.clone();
        if let Some(directory) = &self.context.directory {
            directories.insert("context".to_owned(), directory.clone());
        }
        Ok(Options {
            contexts: directories,
            secrets: self.secrets.clone(),
            agents: self.agents.sockets.clone(),
            default_network: Network::Host,
            // Layers in the cache have the times they were made with: `export::retime` cuts them.
            epoch: None,
            remotes: self.remotes.clone(),
            resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            no_steps: self.session.no_steps.clone(),
            elsewhere: None,
        })
    }

    /// What tells this build's steps from those of other Dockerfiles.
    fn scope(&self, platform: &Platform) -> String {
        format!("{} {} {platform}", self.context.origin, self.parsed.name)
    }

    fn stopped(
        &self,
        converted: &Converted,
        error: SolveError<WorkerError>,
        listener: Option<&Listener>,
    ) -> Stopped {
        match error {
            SolveError::Vertex { vertex, source, .. } => {
                let metadata = &converted.definition.vertex(vertex).metadata;
                let span = metadata.span.or_else(|| asked_for(&converted.definition, vertex, &source));
                let excerpt = span.map(|span| self.parsed.excerpt(span)).unwrap_or_default();
                let mut failure = Failure::from_worker(&source).at(span.map(|span| self.parsed.place(span)));
                if let (Class::Step, Some(listener)) = (failure.class, listener) {
                    let number = listener.number(vertex);
                    failure =
                        failure.hint(format!("`rbuild logs {} {number}` shows all that it said", self.id));
                }
                if let Some(pattern) = ignored_by(&source)
                    && let Some((line, _)) = self.context.ignore.iter().rev().find(|(_, own)| own == pattern)
                {
                    let file = &self.context.ignore_file;
                    failure = failure.hint(format!("excluded by {file} line {line}: {pattern}"));
                }
                if let (WorkerError::Image(_), solver::Op::Source(image)) =
                    (&source, &converted.definition.vertex(vertex).op)
                    && let Some(hint) = self.parsed.near_stage(image)
                {
                    failure = failure.hint(hint);
                }
                Stopped::Step { failure, excerpt }
            }
            SolveError::Cancelled => Failure::new(Class::Cancelled, "cancelled").into(),
            other => Failure::of(Class::Dockerfile, &other).into(),
        }
    }

    async fn export(
        &self,
        output: &Output,
        made: &[Made],
        client: &Client,
        progress: &Progress,
    ) -> Result<Option<Exported>, Failure> {
        let images: Vec<AssembledImage> = made.iter().map(|made| made.image.clone()).collect();
        let task = match output.kind {
            OutputKind::CacheOnly => return Ok(None),
            OutputKind::Image => progress.handle().task("exporting to image"),
            OutputKind::Tar | OutputKind::Local => progress.handle().task("exporting files"),
            OutputKind::Oci => progress.handle().task("exporting to oci image format"),
            OutputKind::Docker => progress.handle().task("exporting to docker image format"),
        };
        let exported = match output.kind {
            OutputKind::CacheOnly => None,
            OutputKind::Image => {
                let options = export::options::Options::new(output, &self.request.tags)?;
                let mut exported = export::image::export_image(self.root, &images, &options)?;
                if options.push {
                    task.done();
                    let task = progress.handle().task("pushing layers");
                    exported = export::push::push(self.root, client, exported, &options, &task).await?;
                    task.done();
                    return Ok(Some(exported));
                }
                Some(exported)
            }
            OutputKind::Tar | OutputKind::Local => {
                self.export_files(output, made)?;
                None
            }
            OutputKind::Oci | OutputKind::Docker => {
                Some(export::archive::export_archive(self.root, &images, output, &self.request.tags)?)
            }
        };
        task.done();
        Ok(exported)
    }

    fn export_files(&self, output: &Output, made: &[Made]) -> Result<(), Failure> {
        for one in made {
            let layers = self.root.layers();
            let indexes = one.layers.iter().map(|layer| layers.index(&layer.diff_id));
            let tree = Tree::of_layers(indexes.collect::<Result<Vec<_>, _>>()?);
            let epoch = self.request.source_date_epoch;
            match (output.kind, &output.dest) {
                (OutputKind::Local, Some(dest)) => {
                    // Several platforms get a directory each, as in BuildKit.
                    let split = output.flag("platform-split")?.unwrap_or(made.len() > 1);
                    let name = one.image.platform.to_string().replace('/', "_");
                    let dest = if split { dest.join(name) } else { dest.clone() };
                    flat::write_directory(&tree, &layers, epoch, &dest).or_fail(Class::Host)?;
                }
                _ if made.len() > 1 => {
                    return Err(Failure::usage(
                        "--output type=tar cannot hold several platforms: use type=local",
                    ));
                }
                (_, dest) => {
                    let mut sink = Sink::open(dest.as_deref(), "dest")?;
                    flat::write_tar(&tree, &layers, epoch, &mut sink).or_fail(Class::Host)?;
                    sink.finish()?;
                }
            }
        }
        Ok(())
    }

    /// What a build that went well says at its end.
    fn tell(&self, exported: Option<Exported>, findings: &[Diagnostic]) -> Result<(), Failure> {
        *self.digest.borrow_mut() = exported.as_ref().map(|exported| exported.descriptor.digest.to_string());
        if let Some(path) = &self.request.metadata_file {
            let build = format!("default/default/{}", self.id);
            metadata::write_metadata(
                path,
                &metadata::metadata(exported.as_ref(), &build, serde_json::Map::new()),
            )?;
        }
        if let (Some(path), Some(exported)) = (&self.request.iidfile, &exported) {
            metadata::write_iidfile(path, exported)?;
        }
        if let (true, Some(exported)) = (self.request.quiet, &exported) {
            let id = exported.config.unwrap_or(exported.descriptor.digest);
            print(|out| writeln!(out, "{id}"))?;
        }
        if self.request.explain {
            super::explain::print_last(self.root, None)?;
        }
        self.warn(findings);
        Ok(())
    }

    /// What was found in the Dockerfile, at the end, where it is seen.
    fn warn(&self, findings: &[Diagnostic]) {
        if self.request.quiet {
            return;
        }
        if self.request.progress == Mode::RawJson {
            let lines = findings.iter().map(|finding| {
                crate::progress::rawjson::warning(finding, &self.parsed.name, &self.parsed.text)
            });
            super::eprint(&lines.collect::<String>());
            return;
        }
        if let Some(summary) = self.parsed.report(findings, None).summary(self.request.debug) {
            super::eprint(&summary);
        }
        for finding in findings {
            let place = finding.spans.first().map(|span| self.parsed.place((span.start, span.end)));
            let note = place.and_then(|place| {
                self.session.ci.annotation("warning", &place, finding.code, &finding.message)
            });
            super::eprint(&note.unwrap_or_default());
        }
    }
}

/// The ignore pattern that hides what a step wants to copy.
fn ignored_by(error: &WorkerError) -> Option<&str> {
    match error {
        WorkerError::File(FileError::Missing { missing, .. }) => missing.ignored_by.as_deref(),
        _ => None,
    }
}

fn seconds_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

/// What the journal says of a build that begins.
fn entry(request: &BuildRequest, id: &str) -> journal::Entry {
    journal::Entry {
        id: id.to_owned(),
        began: seconds_now(),
        result: "running".to_owned(),
        names: request.tags.iter().map(Reference::familiar).collect(),
        context: match &request.context {
            ContextSource::Directory(path) => path.display().to_string(),
            ContextSource::Stdin => "-".to_owned(),
            ContextSource::Remote(url) => url.clone(),
        },
        ..journal::Entry::default()
    }
}

/// The names of steps by the index of their vertex; of several platforms, the first one's.
fn step_names(converted: &[Converted]) -> Vec<String> {
    let definition = converted.first().map(|converted| &converted.definition);
    let names = definition
        .into_iter()
        .flat_map(|definition| definition.ids().map(|id| definition.vertex(id).metadata.name.clone()));
    names.collect()
}

/// Where the Dockerfile asks for the file that `error` misses in `context`, which itself stands nowhere in it.
fn asked_for(definition: &Definition, context: VertexId, error: &WorkerError) -> Option<(usize, usize)> {
    let WorkerError::File(FileError::Missing { path, .. }) = error else { return None };
    let names = |user: &VertexId| {
        let inputs = definition.vertex(*user).inputs.iter().filter(|input| input.vertex == context);
        let mut picks =
            inputs.filter_map(|input| input.selector.as_ref()).flat_map(|selector| &selector.picks);
        picks.any(|pick| pick.path == *path)
    };
    definition.users(context).filter(names).find_map(|user| definition.vertex(user).metadata.span)
}

/// The values of `--secret`.
fn secrets(request: &BuildRequest) -> Result<BTreeMap<String, Secret>, Failure> {
    let mut secrets = BTreeMap::new();
    for (id, source) in &request.secrets {
        let value = match source {
            SecretSource::File(path) => std::fs::read(path).map_err(|error| {
                Failure::usage(format!("could not read secret {id} from {}: {error}", path.display()))
            })?,
            SecretSource::Env(name) => std::env::var_os(name).unwrap_or_default().into_encoded_bytes(),
        };
        secrets.insert(id.clone(), Secret::new(value));
    }
    Ok(secrets)
}

/// Where archives of this build are unpacked: work directories of the root, which go when the build ends.
struct Unpacked {
    root: Root,
    held: RefCell<Vec<store::temp::WorkDir>>,
}

impl Unpack for Unpacked {
    fn unpack(&self, reader: &mut dyn Read) -> Result<PathBuf, Failure> {
        let dir = self.root.work_dir().or_fail(Class::Internal)?;
        let path = dir.path().to_owned();
        worker::source::archive::unpack(reader, &path).or_fail(Class::Dockerfile)?;
        self.held.borrow_mut().push(dir);
        Ok(path)
    }
}

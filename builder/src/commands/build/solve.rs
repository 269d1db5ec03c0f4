//! One platform of a build: the definition is solved, the config finished.

use std::rc::Rc;

use frontend::request::Converted;
use image::Platform;
use solver::cancel::Cancel;
use solver::driver::{self, Root as Wanted};
use solver::event::Event;
use solver::record::SnapshotLayer;
use store::root::now;
use worker::exec::Network;
use worker::source::resolve::Images;
use worker::{LayerSource, MountSource, Options, Worker};

use super::stopped::Stopped;
use super::{Build, Made};
use crate::build::NamedContexts;
use crate::cache::backends::inline;
use crate::cache::export as cache_export;
use crate::cache::import::Imports;
use crate::cache::mounts::save;
use crate::cache::options::Target;
use crate::cache::session::{BuildCache, Used};
use crate::commands::explain::Decisions;
use crate::export::{self, AssembledImage, assemble};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::request::{OnError, Output, OutputKind};

impl Build<'_> {
    pub(super) async fn solve(
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
                    let spans = self.tracer.as_ref().map(|tracer| tracer.listen(&converted.definition));
                    Rc::new(move |event| {
                        decisions.note(&event);
                        if let Some(listener) = &listener {
                            listener.note(&event);
                        }
                        if let Some(spans) = &spans {
                            spans.note(&event);
                        }
                        show(event);
                    })
                };
                let options = self.options(contexts, Some(imports))?;
                let worker = Worker::new(self.root.clone(), options, images.clone(), events.clone());
                // For what is exported, and for the summary.
                let notes = self.request.shares_caches();
                let cache = BuildCache::new(self.root, imports.clone(), self.request.cache_ttl, notes);
                let options = self.driver_options(&converted, cancel);
                let solved =
                    driver::solve(&converted.definition, &wanted, &worker, &cache, &*events, &options).await;
                decisions.keep(self.root);
                let layers_of = |solved: Vec<driver::Solved>| {
                    let snapshot = solved.into_iter().next().and_then(|solved| solved.snapshot);
                    snapshot.expect("a result is no local directory").layers
                };
                let mut layers = layers_of(
                    solved.map_err(|error| self.stopped(&converted, error, &worker, listener.as_ref()))?,
                );
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
                        solved
                            .map_err(|error| self.stopped(&converted, error, &worker, listener.as_ref()))?,
                    );
                }
                (layers, cache.into_used())
            }
        };
        let now = now();
        let mut config =
            assemble::finish_config(converted.config, converted.base_history, &layers, epoch, now);
        inline::clear(&mut config);
        if self.request.cache_to.iter().any(|to| to.target == Target::Inline) {
            inline::embed(&mut config, &cache_export::index(self.root, &used));
        }
        let mut image =
            AssembledImage { config, platform: converted.platform.clone(), attestations: Vec::new() };
        // The same inputs are to give the same bytes where a time is given.
        let times = epoch.is_none().then_some((self.began, now));
        let mut as_made = None;
        if let Some(epoch) = epoch {
            if self.request.outputs.iter().any(|output| !output.rewrites_times()) {
                let mut image = image.clone();
                image.attestations = self.attest(&converted.definition, &image, times, images)?;
                as_made = Some(image);
            }
            for (diff_id, layer) in image.config.rootfs.diff_ids.iter_mut().zip(&layers) {
                // The base's layers stay as they are.
                if layer.created.is_some() {
                    *diff_id = export::retime::retime(self.root, diff_id, epoch)?;
                }
            }
        }
        image.attestations = self.attest(&converted.definition, &image, times, images)?;
        self.images.borrow_mut().push(image.clone());
        let mounts = save::named(&converted.definition);
        let provenance =
            self.provenance_for_metadata(&converted.definition, &image.platform, (self.began, now), images);
        Ok(Made { image, as_made, layers, epoch, used, mounts, provenance })
    }

    /// Whether all layers are here or at registries; those that only an imported cache has are brought here.
    pub(super) async fn can_all_be_had(
        &self,
        layers: &[SnapshotLayer],
        imports: &Imports,
    ) -> Result<bool, Failure> {
        let store = self.root.layers();
        for SnapshotLayer { diff_id, .. } in layers {
            let had = store.contains(diff_id)? || store.can_be_fetched(diff_id)?;
            if !had && (imports.is_empty() || !imports.bring_layer(*diff_id).await) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether an output needs the files themselves, not only to know which layers they are.
    pub(super) fn wants_files(&self) -> bool {
        let plain = |output: &Output| matches!(output.kind, OutputKind::Image | OutputKind::CacheOnly);
        self.request.attestations.sbom || !self.request.outputs.iter().all(plain)
    }

    pub(super) fn options(
        &self,
        contexts: &NamedContexts,
        imports: Option<&Rc<Imports>>,
    ) -> Result<Options, Failure> {
        let mut directories = contexts.directories.clone();
        if let Some(directory) = &self.context.directory {
            directories.insert("context".to_owned(), directory.clone());
        }
        Ok(Options {
            contexts: directories,
            secrets: self.secrets.clone(),
            agents: self.agents.sockets.clone(),
            devices: self.devices.clone(),
            default_network: Network::Host,
            remotes: self.remotes.clone(),
            resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            resources: self.request.resources.clone(),
            no_steps: self.session.no_steps.clone(),
            keep_failed: (self.request.on_error != OnError::Stop).then(|| self.id.clone()),
            elsewhere: imports
                .filter(|imports| !imports.is_empty())
                .map(|imports| imports.clone() as Rc<dyn LayerSource>),
            mounts: imports.map(|imports| imports.clone() as Rc<dyn MountSource>),
        })
    }

    pub(super) fn driver_options(&self, converted: &Converted, cancel: &Cancel) -> driver::Options {
        driver::Options {
            parallelism: self.request.jobs,
            cancel: cancel.clone(),
            scope: self.scope(&converted.platform),
        }
    }

    /// What tells this build's steps from those of other Dockerfiles.
    pub(super) fn scope(&self, platform: &Platform) -> String {
        format!("{} {} {platform}", self.context.origin, self.parsed.name)
    }
}

//! What a stage starts with: the files and config of its base.

use image::ImageConfig;
use image::config::ContainerConfig;
use solver::definition::{Metadata, Pick};
use solver::op::{Copy, File, FileAction, Source};
use solver::{Op, VertexId};

use crate::diagnostic::Diagnostic;

use super::env::Variables;
use super::inputs::Inputs;
use super::lints;
use super::path;
use super::plan::{Node, Origin};
use super::stage::{StageBuilder, StageState};

/// `PATH` of images that set none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl StageBuilder<'_, '_> {
    /// Sets the state that the stage's FROM gives it.
    pub(super) fn base(&mut self, node: &Node<'_>, inherited: Option<StageState>) -> Result<(), Diagnostic> {
        match (&node.base, inherited) {
            (Origin::Stage(_), Some(inherited)) => {
                self.state = inherited;
                // Triggers are for the next build only, and they have been put in front of this stage.
                self.state.config.config.on_build.clear();
                return Ok(());
            }
            (Origin::Scratch | Origin::Stage(_), _) => {
                self.state.platform = self.shared.platform.clone();
                self.start(empty_config(&self.state.platform));
            }
            (Origin::Source(source), _) => self.outside(node, source),
        }
        Ok(())
    }

    fn outside(&mut self, node: &Node<'_>, source: &Source) {
        let span = node.stage.instruction.span;
        let Some(image) = self.shared.images.get(source) else {
            // A directory, a repository, a download.
            self.start(empty_config(&self.state.platform));
            let (source, name) = self.shared.pinned(source);
            let name = self.progress_name(&name);
            let local = matches!(source, Source::Local { .. });
            let vertex = self.shared.source(source, name, Some((span.start, span.end)));
            self.state.vertex = Some(if local { self.copied(vertex, node) } else { vertex });
            return;
        };
        let config = image.config.clone();
        let digest = image.digest;
        if node.platform.is_none() && self.shared.request.platform.is_none() {
            self.state.platform = self.detected_platform(&config);
        }
        lints::base_image_platform(
            &node.base_name,
            &self.state.platform,
            &config.platform(),
            span,
            &mut self.shared.warnings,
        );
        // Triggers of the image are in front of this stage by now.
        let no_files =
            config.rootfs.diff_ids.is_empty() && config.history.iter().all(|entry| entry.empty_layer);
        if let Source::Image { reference, .. } = source {
            self.state.base_image = Some((reference.clone(), digest));
        }
        self.start(config);
        if !no_files {
            let (source, text) = self.shared.pinned(source);
            let name = self.progress_name(&text);
            let metadata = Metadata { ignore_cache: false, ..self.metadata(name, span, Vec::new()) };
            self.state.vertex = Some(self.add_vertex(Op::Source(source), Vec::new(), metadata));
        }
    }

    /// Starts with an image's config, which becomes the stage's.
    fn start(&mut self, mut config: ImageConfig) {
        config.created = None;
        config.config.on_build.clear();
        let mut env = Variables::of(&std::mem::take(&mut config.config.env));
        if env.get("PATH").is_none() && self.state.platform.os != "windows" {
            env.set("PATH", DEFAULT_PATH);
        }
        let workdir = &mut config.config.working_dir;
        self.state.workdir = path::rooted(workdir);
        if !workdir.is_empty() && !workdir.starts_with('/') {
            self.state.workdir.clone_into(workdir);
        }
        self.state.base_history = config.history.len();
        self.state.variables = env.clone();
        self.state.image_env = env;
        self.state.config = config;
    }

    /// A local directory has no result of its own: as a base it is a layer with its files.
    fn copied(&mut self, vertex: VertexId, node: &Node<'_>) -> VertexId {
        let span = node.stage.instruction.span;
        let pick = Pick {
            path: "/".to_owned(),
            wildcard: false,
            follow_symlinks: false,
            exclude: Vec::new(),
            parents: false,
        };
        let mut inputs = Inputs::default();
        let input = inputs.read(&self.shared.definition, vertex, pick, self.shared.origin_name(&node.base));
        let copy = Copy::all(input, "/");
        let file = File { base: None, actions: vec![FileAction::Copy(copy)] };
        let (inputs, names) = inputs.finish();
        let name = self.progress_name_again(&format!("FROM {}", node.base_name));
        let metadata = self.metadata(name, span, names);
        self.add_vertex(Op::File(file), inputs, metadata)
    }

    /// Nobody asked for a platform: an image for one of those we know decides.
    fn detected_platform(&self, config: &ImageConfig) -> image::Platform {
        let same = |platform: &image::Platform| {
            platform.os == config.os && platform.architecture == config.architecture
        };
        [&self.shared.platform, &self.shared.build_platform]
            .into_iter()
            .find(|platform| same(platform))
            .unwrap_or(&self.shared.platform)
            .clone()
    }
}

/// The config of `FROM scratch`.
fn empty_config(platform: &image::Platform) -> ImageConfig {
    let config = ContainerConfig { working_dir: "/".to_owned(), ..ContainerConfig::default() };
    ImageConfig { config, ..ImageConfig::scratch(platform) }
}

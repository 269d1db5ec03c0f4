//! One stage while it is converted: its state, and the instructions one after the other.

use std::collections::{BTreeSet, HashMap};

use image::tree::Patterns;
use image::{Digest, ImageConfig, Platform, Reference};
use solver::definition::{Definition, Metadata};
use solver::op::{Source, redacted};
use solver::{Input, Op, VertexId};

use crate::ast::{InstructionKind, Span};
use crate::diagnostic::Diagnostic;
use crate::expand;
use crate::request::{MainContext, Request, ResolvedImage};

use super::args::Args;
use super::asked::Asked;
use super::env::Variables;
use super::lints;
use super::plan::{Node, Origin, Step};

/// What all stages share.
pub(super) struct Shared<'a> {
    pub(super) request: &'a Request,
    pub(super) images: &'a HashMap<Source, ResolvedImage>,
    pub(super) escape: char,
    pub(super) args: Args,
    pub(super) definition: Definition,
    pub(super) warnings: Vec<Diagnostic>,
    /// What the stages ask for.
    pub(super) asked: Asked,
    /// Build args that some ARG declares.
    pub(super) used_args: BTreeSet<String>,
    pub(super) platform: Platform,
    pub(super) build_platform: Platform,
    pub(super) proxy_env: Vec<String>,
    /// The stages done so far: their files (`None`: not done, `Some(None)`: no files).
    pub(super) outputs: Vec<Option<Option<VertexId>>>,
    /// The main context's vertex, once something reads it.
    pub(super) context: Option<VertexId>,
    /// The stages' names, for `explain`.
    pub(super) displays: Vec<String>,
    /// Patterns of the main context's ignore file.
    pub(super) ignore: Vec<String>,
    /// The same to match with; empty if a pattern takes back what another ignores, which no text can judge.
    pub(super) ignored: Patterns,
}

/// What an instruction changes.
#[derive(Clone, Debug)]
pub(super) struct StageState {
    /// All but `env`, which is in `image_env` until the end.
    pub(super) config: ImageConfig,
    /// ENV of the image.
    pub(super) image_env: Variables,
    /// ENV and ARGs: what RUN and expansion see.
    pub(super) variables: Variables,
    /// Declared ARGs and their last values.
    pub(super) args: Variables,
    /// The files; `None` for none.
    pub(super) vertex: Option<VertexId>,
    pub(super) platform: Platform,
    pub(super) workdir: String,
    pub(super) base_history: usize,
    pub(super) base_image: Option<(Reference, Digest)>,
}

impl StageState {
    /// Sets a variable of the image.
    pub(super) fn set_config_env(&mut self, name: &str, value: &str) {
        self.image_env.set(name, value);
    }
}

/// Converts one stage.
pub(super) struct StageBuilder<'s, 'a> {
    pub(super) shared: &'s mut Shared<'a>,
    pub(super) state: StageState,
    /// As progress shows it; empty if the file has only one.
    pub(super) display: String,
    /// For [`Metadata::stage`].
    pub(super) stage: String,
    pub(super) ignore_cache: bool,
    /// The stage has a CMD of its own.
    pub(super) cmd_set: bool,
    total: usize,
    done: usize,
    onbuild: bool,
    /// The instruction.
    pub(super) at: Span,
}

impl<'a> Shared<'a> {
    /// The vertex of a tree with nothing in it.
    pub(super) fn empty(&mut self) -> VertexId {
        let metadata = Metadata { name: "[internal] empty".to_owned(), ..Metadata::default() };
        self.definition.add(Op::Merge, Vec::new(), metadata)
    }

    /// The main context.
    pub(super) fn context(&mut self) -> VertexId {
        if let Some(vertex) = self.context {
            return vertex;
        }
        let vertex = self.new_context();
        self.context = Some(vertex);
        vertex
    }

    fn new_context(&mut self) -> VertexId {
        let source = match &self.request.main_context {
            MainContext::Local => Source::Local { name: "context".to_owned(), ignore: self.ignore.clone() },
            MainContext::Source(source) => source.clone(),
            MainContext::Empty => return self.empty(),
        };
        self.source(source, "[internal] load build context".to_owned(), None)
    }

    pub(super) fn source(&mut self, source: Source, name: String, span: Option<(usize, usize)>) -> VertexId {
        let metadata = Metadata { name, span, ..Metadata::default() };
        self.definition.add(Op::Source(source), Vec::new(), metadata)
    }

    /// The files an origin means; `None` if it has none.
    pub(super) fn origin_vertex(&mut self, origin: &Origin, at: Span) -> Option<VertexId> {
        match origin {
            Origin::Scratch => None,
            &Origin::Stage(index) => self.outputs[index].flatten(),
            Origin::Source(source) => {
                let (source, name) = self.pinned(source);
                Some(self.source(source, name, Some((at.start, at.end))))
            }
        }
    }

    /// The source with its digest, if it was resolved, and what progress says of it.
    pub(super) fn pinned(&self, source: &Source) -> (Source, String) {
        let digest = self.images.get(source).map(|image| image.digest);
        match source {
            Source::Image { reference, platform } => {
                let digest = digest.or(reference.digest);
                let reference = Reference { digest, ..reference.clone() };
                let name = format!("FROM {reference}");
                (Source::Image { reference, platform: platform.clone() }, name)
            }
            Source::OciLayout { path, tag, digest: pinned, platform } => {
                let digest = digest.or(*pinned);
                let suffix = match (digest, tag) {
                    (Some(digest), _) => format!("@{digest}"),
                    (None, Some(tag)) => format!(":{tag}"),
                    (None, None) => String::new(),
                };
                let source = Source::OciLayout {
                    path: path.clone(),
                    tag: tag.clone(),
                    digest,
                    platform: platform.clone(),
                };
                (source, format!("FROM oci-layout://{path}{suffix}"))
            }
            Source::Local { name, .. } => (source.clone(), format!("[context {name}] load from client")),
            Source::Git { remote, .. } => {
                (source.clone(), format!("[context] load from git {}", redacted(remote)))
            }
            Source::Http { url, .. } => (source.clone(), format!("[context] load from {}", redacted(url))),
        }
    }

    /// What `explain` calls it.
    pub(super) fn origin_name(&self, origin: &Origin) -> String {
        match origin {
            Origin::Scratch => "scratch".to_owned(),
            &Origin::Stage(index) => format!("stage {}", self.displays[index]),
            Origin::Source(Source::Image { reference, .. }) => format!("image {}", reference.familiar()),
            Origin::Source(Source::OciLayout { path, .. }) => format!("image {path}"),
            Origin::Source(Source::Local { name, .. }) => format!("context {name}"),
            Origin::Source(Source::Git { remote, .. }) => format!("git {}", redacted(remote)),
            Origin::Source(Source::Http { url, .. }) => format!("url {}", redacted(url)),
        }
    }
}

impl<'s, 'a> StageBuilder<'s, 'a> {
    /// Converts a stage whose base and `--from`s are converted already.
    pub(super) fn convert(
        shared: &'s mut Shared<'a>,
        node: &Node<'_>,
        inherited: Option<StageState>,
        lone: bool,
    ) -> Result<StageState, Diagnostic> {
        let display = if lone { String::new() } else { node.stage.display() };
        let counts = |step: &&Step<'_>| {
            matches!(
                step.instruction.kind,
                InstructionKind::Add(_)
                    | InstructionKind::Copy(_)
                    | InstructionKind::Run(_)
                    | InstructionKind::Workdir(_)
            ) || step.onbuild
        };
        let outside = matches!(node.base, Origin::Source(_)) && !node.replaced;
        let total = usize::from(outside) + node.steps.iter().filter(counts).count();
        let ignore_cache = shared.request.no_cache
            || node.stage.name.as_ref().is_some_and(|name| {
                shared.request.no_cache_filter.iter().any(|filter| filter.eq_ignore_ascii_case(name))
            });
        let platform = node.platform.clone().unwrap_or_else(|| shared.platform.clone());
        let state = StageState {
            config: ImageConfig::scratch(&shared.platform),
            image_env: Variables::default(),
            variables: Variables::default(),
            args: Variables::default(),
            vertex: None,
            platform,
            workdir: "/".to_owned(),
            base_history: 0,
            base_image: None,
        };
        let mut builder = StageBuilder {
            shared,
            state,
            display,
            stage: node.stage.display(),
            ignore_cache,
            cmd_set: false,
            total,
            done: 0,
            onbuild: false,
            at: node.stage.instruction.span,
        };
        for name in &node.used {
            let shared = &mut *builder.shared;
            shared.asked.global(name, &shared.args);
        }
        builder.base(node, inherited)?;
        for step in &node.steps {
            builder.onbuild = step.onbuild;
            builder.at = step.span;
            // Words of a trigger have their places in its text, which is not this file.
            builder.step(step).map_err(|mut error| {
                if step.onbuild {
                    error.spans = vec![step.span];
                }
                error
            })?;
        }
        Ok(builder.state)
    }

    fn step(&mut self, step: &Step<'_>) -> Result<(), Diagnostic> {
        let span = step.span;
        let instruction = &*step.instruction;
        match &instruction.kind {
            // A trigger cannot be FROM, and FROM ends a stage.
            InstructionKind::From(_) => Ok(()),
            InstructionKind::Run(run) => self.run(run, instruction, &step.origins, span),
            InstructionKind::Copy(copy) => {
                self.copy(copy, instruction, step.origins.first().and_then(Option::as_ref), span)
            }
            InstructionKind::Add(copy) => self.add(copy, instruction, span),
            InstructionKind::Arg(definitions) => self.arg(definitions, span),
            InstructionKind::Env(pairs) => self.env(pairs, span),
            InstructionKind::Label(pairs) => self.label(pairs, span),
            InstructionKind::Expose(ports) => self.expose(ports, span),
            InstructionKind::Volume(paths) => self.volume(paths, span),
            InstructionKind::User(user) => self.user(user, span),
            InstructionKind::Workdir(path) => self.workdir(path, instruction, span),
            InstructionKind::StopSignal(signal) => self.stop_signal(signal, span),
            InstructionKind::Cmd(command) => self.cmd(command),
            InstructionKind::Entrypoint(command) => self.entrypoint(command),
            InstructionKind::Healthcheck(check) => self.healthcheck(check),
            InstructionKind::Shell(shell) => self.shell(shell),
            InstructionKind::Onbuild(onbuild) => self.onbuild(onbuild),
            InstructionKind::Maintainer(name) => self.maintainer(name),
        }
    }

    /// Expands a word with the stage's variables; those that are not set are warned about.
    pub(super) fn expand(&mut self, word: &str, span: Span) -> Result<String, Diagnostic> {
        if !word.contains(['$', '\'', '"', self.shared.escape]) {
            return Ok(word.to_owned());
        }
        let expanded = expand::expand_word(word, self.shared.escape, &self.state.variables)
            .map_err(|error| error.diagnostic(span))?;
        self.warn_undefined(&expanded.unmatched);
        Ok(expanded.text)
    }

    pub(super) fn warn_undefined(&mut self, unmatched: &BTreeSet<String>) {
        let state = &self.state;
        let undefined = unmatched.iter().filter(|name| state.args.get(name).is_none());
        lints::undefined_variables(undefined, &state.variables, self.at, &mut self.shared.warnings);
    }

    /// `[build 2/4] RUN make`.
    pub(super) fn progress_name(&mut self, text: &str) -> String {
        self.done += 1;
        self.progress_name_again(text)
    }

    /// The same for a vertex that belongs to the same instruction.
    pub(super) fn progress_name_again(&self, text: &str) -> String {
        if self.total == 0 {
            return text.to_owned();
        }
        let mut name = "[".to_owned();
        if self.shared.request.multi_platform {
            name.push_str(&self.state.platform.to_string());
            name.push_str(&self.cross_platform());
            name.push(' ');
        }
        if !self.display.is_empty() {
            name.push_str(&self.display);
            name.push(' ');
        }
        let width = self.total.ilog10() as usize + 1;
        name.push_str(&format!("{:width$}/{}] ", self.done, self.total));
        if self.onbuild {
            name.push_str("ONBUILD ");
        }
        name.push_str(text);
        name
    }

    /// `->arm64` for a stage on one platform that knows it builds for another.
    fn cross_platform(&self) -> String {
        let variables = &self.state.variables;
        let target = match variables.get("TARGETPLATFORM").and_then(|text| text.parse::<Platform>().ok()) {
            Some(platform) => platform,
            None => {
                let of = |name| variables.get(name).filter(|value| !value.is_empty());
                if of("TARGETOS").is_none() && of("TARGETARCH").is_none() {
                    return String::new();
                }
                Platform::new(
                    of("TARGETOS").unwrap_or(&self.state.platform.os),
                    of("TARGETARCH").unwrap_or(&self.state.platform.architecture),
                    of("TARGETVARIANT"),
                )
            }
        };
        if target.os != self.state.platform.os {
            return format!("->{target}");
        }
        if target.architecture == self.state.platform.architecture {
            return String::new();
        }
        match &target.variant {
            Some(variant) => format!("->{}/{variant}", target.architecture),
            None => format!("->{}", target.architecture),
        }
    }

    /// The line as progress shows it: the instruction in upper case, variables replaced.
    pub(super) fn shown(&self, original: &str, keep_quotes: bool) -> String {
        let original = original.trim();
        let expanded = if keep_quotes {
            expand::expand_shown(original, self.shared.escape, &self.state.variables)
        } else {
            expand::expand_word(original, self.shared.escape, &self.state.variables)
        };
        let text = expanded.map_or_else(|_| original.to_owned(), |expanded| expanded.text);
        match text.split_once(' ') {
            Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
            None => text.to_uppercase(),
        }
    }

    pub(super) fn metadata(&self, name: String, span: Span, input_names: Vec<String>) -> Metadata {
        Metadata {
            name,
            stage: self.stage.clone(),
            span: Some((span.start, span.end)),
            ignore_cache: self.ignore_cache,
            input_names,
            ..Metadata::default()
        }
    }

    /// Adds a vertex.
    pub(super) fn add_vertex(&mut self, op: Op, inputs: Vec<Input>, metadata: Metadata) -> VertexId {
        self.shared.definition.add(op, inputs, metadata)
    }
}

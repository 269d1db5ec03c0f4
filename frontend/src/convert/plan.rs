//! Which stages are built, from what, and in which order: names become stages, images and contexts; ONBUILD triggers
//! are put in front of the stages they fire in.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use image::{Platform, Reference};
use solver::op::Source;

use crate::ast::{Instruction, InstructionKind, Span, Word};
use crate::diagnostic::Diagnostic;
use crate::expand;
use crate::parser;
use crate::request::{ImageRequest, NamedContext, Request, ResolvedImage};
use crate::stages::{Stage, Stages};
use crate::suggest;

use super::args::Args;
use super::{lints, mounts};

/// Where files come from: the base of a stage, `--from`, `from=`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one a stage and `--from`, a few hundred bytes each")]
pub(super) enum Origin {
    /// Nothing.
    Scratch,
    /// A stage of this file, by index.
    Stage(usize),
    /// Outside.
    Source(Source),
}

/// A stage, its names resolved.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) stage: &'a Stage<'a>,
    pub(super) base: Origin,
    /// `FROM --platform`.
    pub(super) platform: Option<Platform>,
    /// Its instructions, triggers first.
    pub(super) steps: Vec<Step<'a>>,
    /// A named context stands in for the stage: its instructions do not count.
    pub(super) replaced: bool,
    /// Variables of the global scope that FROM uses.
    pub(super) used: BTreeSet<String>,
    /// The image name as FROM has it after expansion, for messages.
    pub(super) base_name: String,
    triggered: bool,
}

/// An instruction with its `--from`s resolved.
#[derive(Clone, Debug)]
pub(super) struct Step<'a> {
    pub(super) instruction: Cow<'a, Instruction>,
    /// Where it is shown: a trigger of an image stands at the FROM.
    pub(super) span: Span,
    /// It is a trigger.
    pub(super) onbuild: bool,
    /// COPY: one, if there is a `--from`. RUN: one a mount.
    pub(super) origins: Vec<Option<Origin>>,
}

/// The whole.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    /// The stages to convert, each after all it needs.
    pub(super) order: Vec<usize>,
    pub(super) target: usize,
    /// The file has one stage and names no other image: progress shows no stage names.
    pub(super) lone: bool,
}

/// What making a plan needs to know.
pub(super) struct Planner<'a, 'r> {
    pub(super) stages: &'a Stages<'a>,
    pub(super) request: &'r Request,
    pub(super) images: &'r HashMap<Source, ResolvedImage>,
    pub(super) args: &'r Args,
    pub(super) platform: &'r Platform,
    pub(super) escape: char,
    contexts: BTreeMap<String, &'r NamedContext>,
}

/// A plan, or what is needed to make one.
pub(super) enum Planned<'a> {
    Plan(Plan<'a>),
    NeedsImages(Vec<ImageRequest>),
}

impl<'a, 'r> Planner<'a, 'r> {
    pub(super) fn new(
        stages: &'a Stages<'a>,
        request: &'r Request,
        images: &'r HashMap<Source, ResolvedImage>,
        args: &'r Args,
        platform: &'r Platform,
        escape: char,
    ) -> Self {
        let contexts = request.contexts.iter().map(|(name, context)| (context_key(name), context)).collect();
        Self { stages, request, images, args, platform, escape, contexts }
    }

    pub(super) fn plan(
        &self,
        target: usize,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<Planned<'a>, Vec<Diagnostic>> {
        let mut nodes = Vec::with_capacity(self.stages.stages.len());
        let mut errors = Vec::new();
        // Names of the stages so far: FROM takes the most recent one before it.
        let mut earlier: HashMap<&str, usize> = HashMap::new();
        for stage in &self.stages.stages {
            match self.node(stage, &earlier, warnings) {
                Ok(node) => nodes.push(node),
                Err(error) => errors.push(error),
            }
            if let Some(name) = &stage.name {
                earlier.insert(name, stage.index);
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let lone = nodes.len() == 1
            && nodes.iter().flat_map(|node| &node.steps).flat_map(|step| &step.origins).all(Option::is_none);
        check_circles(&nodes).map_err(|error| vec![error])?;
        loop {
            let order = reachable(&nodes, target);
            let needed = self.missing_images(&nodes, &order);
            if !needed.is_empty() {
                return Ok(Planned::NeedsImages(needed));
            }
            let mut changed = false;
            for &index in &order {
                changed |= self.fire_triggers(&mut nodes, index).map_err(|error| vec![error])?;
            }
            if !changed {
                self.check_order(&nodes, &order)?;
                return Ok(Planned::Plan(Plan { nodes, order, target, lone }));
            }
            check_circles(&nodes).map_err(|error| vec![error])?;
        }
    }

    fn node(
        &self,
        stage: &'a Stage<'a>,
        earlier: &HashMap<&str, usize>,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<Node<'a>, Diagnostic> {
        let span = stage.instruction.span;
        let expanded = expand::expand_word(&stage.from.image.value, self.escape, &self.args.globals)
            .map_err(|error| error.diagnostic(span))?;
        lints::undefined_arg_in_from(&expanded.unmatched, self.args, span, warnings);
        lints::default_arg_in_from(stage, self.args, self.escape, warnings);
        if expanded.text.is_empty() {
            let written = &stage.from.image.value;
            let error =
                Diagnostic::error("blank-base", span, format!("base name ({written}) should not be blank"));
            let unset = expanded.unmatched.iter().next().map_or("", String::as_str);
            let error = suggest::help(error, unset, self.args.globals.names());
            return Err(match error.help {
                Some(_) => error,
                None => error
                    .with_help("give the ARG a default before the first FROM, or a value with --build-arg"),
            });
        }
        let base_name = expanded.text;
        let mut used = expanded.used;
        let platform = match &stage.from.platform {
            Some(word) => Some(self.stage_platform(stage, word, &mut used, warnings)?),
            None => None,
        };
        let wanted = platform.as_ref().unwrap_or(self.platform);

        let stand_in = stage.name.as_deref().and_then(|name| self.context(name, wanted));
        let (base, replaced) = match stand_in {
            Some((name, context)) => (self.context_origin(name, context, wanted, span)?, true),
            None => {
                // Unlike in `--from`, case counts: BuildKit takes `FROM Build` for an image, whose name it cannot be.
                let base = match earlier.get(base_name.as_str()) {
                    Some(&index) => Origin::Stage(index),
                    None => self.outside(&base_name, wanted, span)?,
                };
                (base, false)
            }
        };
        let mut steps = Vec::new();
        for instruction in if replaced { &[] } else { stage.body } {
            steps.push(self.step(Cow::Borrowed(instruction), instruction.span, false)?);
        }
        Ok(Node { stage, base, platform, steps, replaced, used, base_name, triggered: replaced })
    }

    fn stage_platform(
        &self,
        stage: &Stage<'_>,
        word: &Word,
        used: &mut BTreeSet<String>,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<Platform, Diagnostic> {
        let span = stage.instruction.span;
        let expanded = expand::expand_word(&word.value, self.escape, &self.args.globals)
            .map_err(|error| error.diagnostic(span))?;
        lints::undefined_arg_in_from(&expanded.unmatched, self.args, span, warnings);
        lints::target_platform(stage, &word.value, &expanded, self.args, warnings);
        let unset = expanded.unmatched.iter().next().map_or("", String::as_str);
        let names = || self.args.globals.names();
        if expanded.text.is_empty() {
            let message = format!("empty platform value from expression {}", word.value);
            return Err(suggest::help(Diagnostic::error("platform", word.span, message), unset, names()));
        }
        used.extend(expanded.used);
        expanded.text.parse().map_err(|error| {
            let message = format!("failed to parse platform {}: {error}", word.value);
            suggest::help(Diagnostic::error("platform", word.span, message), unset, names())
        })
    }

    /// Resolves the names in an instruction.
    fn step(
        &self,
        instruction: Cow<'a, Instruction>,
        span: Span,
        onbuild: bool,
    ) -> Result<Step<'a>, Diagnostic> {
        let at = |word: &Word| if onbuild { span } else { word.span };
        let origins = match &instruction.kind {
            InstructionKind::Copy(copy) => match &copy.from {
                Some(from) => vec![Some(self.copy_from(&from.value, at(from))?)],
                None => Vec::new(),
            },
            InstructionKind::Run(run) => {
                let mut origins = Vec::with_capacity(run.mounts.len());
                for mount in &run.mounts {
                    let from = mounts::from_of(&mount.value)
                        .map_err(|message| Diagnostic::error("mount", at(mount), message))?;
                    origins.push(match from {
                        Some(name) => Some(self.named(&name, at(mount))?),
                        None => None,
                    });
                }
                origins
            }
            _ => Vec::new(),
        };
        Ok(Step { instruction, span, onbuild, origins })
    }

    /// `COPY --from`: the number or name of a stage, an image, or a named context.
    fn copy_from(&self, name: &str, span: Span) -> Result<Origin, Diagnostic> {
        let expanded = expand::expand_word(name, self.escape, &expand::EmptyEnv)
            .map_err(|error| error.diagnostic(span))?;
        if expanded.text != name {
            let message = "variable expansion is not supported for --from, define a new stage with FROM using \
                           ARG from global scope as a workaround";
            return Err(Diagnostic::error("copy-from", span, message));
        }
        if let Ok(index) = name.parse::<i64>() {
            return match usize::try_from(index) {
                Ok(index) if index < self.stages.stages.len() => Ok(Origin::Stage(index)),
                _ => {
                    let last = self.stages.stages.len() - 1;
                    Err(Diagnostic::error("copy-from", span, format!("invalid stage index {index}"))
                        .with_help(format!("stages are counted from 0, and the last one is {last}")))
                }
            };
        }
        self.named(name, span)
    }

    /// A stage, else a named context, else an image.
    fn named(&self, name: &str, span: Span) -> Result<Origin, Diagnostic> {
        let Some(stage) = self.stages.named(name) else { return self.outside(name, self.platform, span) };
        match self.context(name, self.platform) {
            // A directory in place of a stage is read where it is, not made a layer first.
            Some((key, context @ NamedContext::Local { .. })) => {
                self.context_origin(key, context, self.platform, span)
            }
            _ => Ok(Origin::Stage(stage.index)),
        }
    }

    /// A named context, else an image.
    fn outside(&self, name: &str, platform: &Platform, span: Span) -> Result<Origin, Diagnostic> {
        if name == "scratch" {
            return Ok(Origin::Scratch);
        }
        if let Some((key, context)) = self.context(name, platform) {
            return self.context_origin(key, context, platform, span);
        }
        let reference: Reference = name.parse().map_err(|error| {
            let message = format!("failed to parse stage name {name:?}: {error}");
            suggest::help(Diagnostic::error("reference", span, message), name, self.stages.names())
        })?;
        Ok(Origin::Source(Source::Image {
            reference: reference.with_default_tag(),
            platform: platform.clone(),
        }))
    }

    fn context(&self, name: &str, platform: &Platform) -> Option<(&str, &'r NamedContext)> {
        if self.contexts.is_empty()
            || name.eq_ignore_ascii_case("scratch")
            || name.eq_ignore_ascii_case("context")
        {
            return None;
        }
        let key = context_key(name);
        [format!("{key}::{platform}"), key]
            .iter()
            .find_map(|key| self.contexts.get_key_value(key))
            .map(|(key, &context)| (key.as_str(), context))
    }

    fn context_origin(
        &self,
        name: &str,
        context: &NamedContext,
        wanted: &Platform,
        span: Span,
    ) -> Result<Origin, Diagnostic> {
        Ok(match context {
            NamedContext::Local { ignore } => {
                // The name is the request's: the builder knows directories by it.
                let written = self.request.contexts.keys().find(|key| context_key(key) == name);
                let name = written.map_or(name, String::as_str).to_owned();
                Origin::Source(Source::Local { name, ignore: ignore.clone() })
            }
            NamedContext::Image(reference) => Origin::Source(Source::Image {
                reference: reference.clone().with_default_tag(),
                platform: wanted.clone(),
            }),
            NamedContext::Source(source) => {
                let mut source = source.clone();
                if let Source::OciLayout { platform, .. } | Source::Image { platform, .. } = &mut source {
                    wanted.clone_into(platform);
                }
                Origin::Source(source)
            }
            NamedContext::Stage(stage) => match self.stages.named(stage) {
                Some(stage) => Origin::Stage(stage.index),
                None => {
                    let message = format!("named context {name:?} means stage {stage:?}, which is not there");
                    let error = Diagnostic::error("named-context", span, message);
                    return Err(suggest::help(error, stage, self.stages.names()));
                }
            },
        })
    }

    /// Images whose configs decide how it goes on.
    fn missing_images(&self, nodes: &[Node<'_>], order: &[usize]) -> Vec<ImageRequest> {
        let mut seen = std::collections::HashSet::new();
        let mut indices = order.to_vec();
        indices.sort_unstable();
        let mut needed = Vec::new();
        for index in indices {
            let node = &nodes[index];
            if let Origin::Source(source @ (Source::Image { .. } | Source::OciLayout { .. })) = &node.base
                && !self.images.contains_key(source)
                && seen.insert(source.clone())
            {
                needed.push(ImageRequest { source: source.clone(), span: node.stage.from.image.span });
            }
        }
        needed
    }

    /// Puts the triggers of a stage's base in front of it, once. Whether it had any.
    fn fire_triggers(&self, nodes: &mut [Node<'a>], index: usize) -> Result<bool, Diagnostic> {
        if nodes[index].triggered {
            return Ok(false);
        }
        nodes[index].triggered = true;
        let mut steps = Vec::new();
        let span = nodes[index].stage.instruction.span;
        match &nodes[index].base {
            Origin::Scratch => {}
            &Origin::Stage(base) => {
                for step in &nodes[base].steps {
                    // A stage's own instructions are borrowed from the file, so its triggers are too.
                    if let (Cow::Borrowed(instruction), false) = (&step.instruction, step.onbuild)
                        && let InstructionKind::Onbuild(onbuild) = &instruction.kind
                    {
                        let trigger = onbuild.instruction.as_ref().map_err(|error| (**error).clone())?;
                        steps.push(self.step(Cow::Borrowed(&**trigger), step.span, true)?);
                    }
                }
            }
            Origin::Source(source) => {
                let triggers = self.images.get(source).map_or(&[][..], |image| &image.config.config.on_build);
                for trigger in triggers {
                    let instruction = parser::parse_instruction(trigger, self.escape)
                        .map_err(|errors| trigger_error(errors, trigger, span))?;
                    steps.push(self.step(Cow::Owned(instruction), span, true)?);
                }
            }
        }
        let any = !steps.is_empty();
        if any {
            steps.append(&mut nodes[index].steps);
            nodes[index].steps = steps;
        }
        Ok(any)
    }

    /// Stages are built in the file's order: `--from` of a later one is an error.
    fn check_order(&self, nodes: &[Node<'_>], order: &[usize]) -> Result<(), Vec<Diagnostic>> {
        let mut errors = Vec::new();
        for &index in order {
            for step in &nodes[index].steps {
                for origin in step.origins.iter().flatten() {
                    let &Origin::Stage(other) = origin else { continue };
                    if other < index || nodes[other].replaced {
                        continue;
                    }
                    let verb = if matches!(step.instruction.kind, InstructionKind::Run(_)) {
                        "mount"
                    } else {
                        "copy"
                    };
                    let message = format!(
                        "cannot {verb} from stage {:?}, it needs to be defined before current stage {:?}",
                        nodes[other].stage.display(),
                        nodes[index].stage.display()
                    );
                    errors.push(Diagnostic::error("stage-order", step.span, message));
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// What is wrong with a trigger that is not in this file, at the FROM that fires it.
fn trigger_error(errors: Vec<Diagnostic>, trigger: &str, span: Span) -> Diagnostic {
    let cause = errors.into_iter().next().map_or_else(String::new, |error| error.message);
    Diagnostic::error("onbuild", span, format!("could not parse ONBUILD trigger {trigger:?}: {cause}"))
}

/// The name under which a context is found: images' familiar names, without `:latest`.
fn context_key(name: &str) -> String {
    let (name, platform) = match name.split_once("::") {
        Some((name, platform)) => (name, Some(platform)),
        None => (name, None),
    };
    let mut key = match name.to_lowercase().parse::<Reference>() {
        Ok(reference) => reference.familiar(),
        Err(_) => name.to_lowercase(),
    };
    if let Some(short) = key.strip_suffix(":latest") {
        key.truncate(short.len());
    }
    match platform {
        Some(platform) => format!("{key}::{platform}"),
        None => key,
    }
}

impl Node<'_> {
    /// The stages it needs, its base first, and where that is said.
    fn needs(&self) -> impl Iterator<Item = (usize, Span)> + '_ {
        let base = match self.base {
            Origin::Stage(index) => Some((index, self.stage.instruction.span)),
            _ => None,
        };
        let steps = self.steps.iter().flat_map(|step| {
            step.origins.iter().flatten().filter_map(|origin| match origin {
                &Origin::Stage(index) => Some((index, step.span)),
                _ => None,
            })
        });
        base.into_iter().chain(steps)
    }
}

/// All stages that `target` needs, each after those it needs itself. The graph has no circles.
fn reachable(nodes: &[Node<'_>], target: usize) -> Vec<usize> {
    let mut order = Vec::new();
    let mut seen = vec![false; nodes.len()];
    seen[target] = true;
    // Depth first with a stack of its own: chains of thousands of stages are no reason to recurse.
    let mut stack = vec![(target, nodes[target].needs())];
    while let Some((index, needs)) = stack.last_mut() {
        match needs.next() {
            Some((next, _)) => {
                if !std::mem::replace(&mut seen[next], true) {
                    stack.push((next, nodes[next].needs()));
                }
            }
            None => {
                order.push(*index);
                stack.pop();
            }
        }
    }
    order
}

/// No stage may need itself.
fn check_circles(nodes: &[Node<'_>]) -> Result<(), Diagnostic> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; nodes.len()];
    for start in 0..nodes.len() {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::Open;
        let mut stack = vec![(start, nodes[start].needs())];
        while let Some((index, needs)) = stack.last_mut() {
            let index = *index;
            let Some((next, span)) = needs.next() else {
                marks[index] = Mark::Done;
                stack.pop();
                continue;
            };
            match marks[next] {
                Mark::Done => {}
                Mark::New => {
                    marks[next] = Mark::Open;
                    stack.push((next, nodes[next].needs()));
                }
                Mark::Open => {
                    let name = nodes[next].stage.display();
                    let message = format!("circular dependency detected on stage: {name}");
                    return Err(Diagnostic::error("circular-dependency", span, message)
                        .with_help("a stage can only read stages before it"));
                }
            }
        }
    }
    Ok(())
}

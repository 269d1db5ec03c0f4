//! Stages to a build graph and an image config, with BuildKit's meaning of every instruction.
//!
//! [`convert`] is pure: images that it needs configs of are asked for by returning them, and it is called again.
//! `plan` decides which stages are built from what; `stage` goes through the instructions of one; the other files are
//! one family of instructions each.

mod args;
mod asked;
mod config;
mod copy;
mod devices;
mod env;
mod epoch;
mod from;
mod history;
mod inputs;
mod lints;
mod mounts;
mod path;
mod plan;
mod ports;
mod run;
mod stage;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use image::Platform;
use image::tree::Patterns;
use solver::Definition;
use solver::op::Source;

use crate::ast::{Dockerfile, Span};
use crate::diagnostic::Diagnostic;
use crate::request::{Conversion, Converted, Request, ResolvedImage};
use crate::stages::Stages;

use args::Args;
pub(crate) use asked::{Asked, AskedMount};
use epoch::Epoch;
use plan::{Node, Origin, Planned, Planner};
use stage::{Shared, StageBuilder, StageState};

/// Converts what the target needs. Lint findings of conversion are in [`Converted::warnings`]; `lint::check` has those
/// that text alone can tell.
pub fn convert(
    dockerfile: &Dockerfile,
    request: &Request,
    images: &HashMap<Source, ResolvedImage>,
) -> Result<Conversion, Vec<Diagnostic>> {
    convert_and_ask(dockerfile, request, images).map(|(conversion, _)| conversion)
}

/// The same, and what the stages ask for.
pub(crate) fn convert_and_ask(
    dockerfile: &Dockerfile,
    request: &Request,
    images: &HashMap<Source, ResolvedImage>,
) -> Result<(Conversion, Asked), Vec<Diagnostic>> {
    let one = |error| vec![error];
    let stages = Stages::of(dockerfile);
    let target = stages.target(request.target.as_deref()).map_err(one)?;
    let target_name = request.target.as_deref().filter(|name| !name.is_empty()).or(target.name.as_deref());
    let escape = dockerfile.directives.escape_char();
    let build_platform = request.build_platform.clone().unwrap_or_else(Platform::host);
    let platform = request.platform.clone().unwrap_or_else(|| build_platform.clone());
    let mut args =
        Args::new(request, &build_platform, &platform, target_name, stages.globals, escape).map_err(one)?;
    let epoch = match epoch::epoch(request, &args, &stages, escape).map_err(one)? {
        Epoch::Known(epoch) => epoch,
        Epoch::Of(source) => return Ok((Conversion::NeedsTime(source), Asked::default())),
    };
    args.settle_epoch(epoch);

    let mut warnings = Vec::new();
    let planner = Planner::new(&stages, request, images, &args, &platform, escape);
    let plan = match planner.plan(target.index, &mut warnings)? {
        Planned::NeedsImages(needed) => return Ok((Conversion::NeedsImages(needed), Asked::default())),
        Planned::Plan(plan) => plan,
    };

    let ignore: Vec<String> = request.ignore.iter().map(|(_, pattern)| pattern.clone()).collect();
    let exceptions = ignore.iter().any(|pattern| pattern.trim_start().starts_with('!'));
    let judged = if exceptions { &[] } else { ignore.as_slice() };
    let ignored = Patterns::new(judged)
        .map_err(|error| vec![Diagnostic::error("ignore-file", Span::default(), error.to_string())])?;
    let used_args: BTreeSet<String> = args.declared.keys().cloned().collect();
    let mut shared = Shared {
        request,
        images,
        escape,
        proxy_env: env::proxy_env(&request.proxy_env, &request.build_args),
        args,
        definition: Definition::default(),
        warnings,
        asked: Asked::default(),
        used_args,
        platform,
        build_platform,
        outputs: vec![None; plan.nodes.len()],
        context: None,
        displays: plan.nodes.iter().map(|node| node.stage.display()).collect(),
        ignore,
        ignored,
    };
    let state = convert_stages(&mut shared, &plan.nodes, &plan.order, plan.target, plan.lone)?;
    let asked = std::mem::take(&mut shared.asked);
    Ok((Conversion::Complete(Box::new(finish(shared, state, epoch))), asked))
}

/// All stages in order; the target's state. An error of one stage does not hide those of others.
fn convert_stages(
    shared: &mut Shared<'_>,
    nodes: &[Node<'_>],
    order: &[usize],
    target: usize,
    lone: bool,
) -> Result<StageState, Vec<Diagnostic>> {
    // The last stage that starts from another takes its state rather than a copy: chains of stages stay linear.
    let mut users = vec![0_usize; nodes.len()];
    users[target] = 1;
    for &index in order {
        if let Origin::Stage(base) = nodes[index].base {
            users[base] += 1;
        }
    }
    let mut states: Vec<Option<StageState>> = Vec::new();
    states.resize_with(nodes.len(), || None);
    let mut errors = Vec::new();
    for &index in order {
        let inherited = match nodes[index].base {
            Origin::Stage(base) => {
                users[base] -= 1;
                let state = if users[base] == 0 { states[base].take() } else { states[base].clone() };
                // Its error has been said.
                let Some(state) = state else { continue };
                Some(state)
            }
            _ => None,
        };
        match StageBuilder::convert(shared, &nodes[index], inherited, lone) {
            Ok(state) => {
                shared.outputs[index] = Some(state.vertex);
                if users[index] > 0 {
                    states[index] = Some(state);
                }
            }
            Err(error) => errors.push(error),
        }
    }
    match states[target].take() {
        Some(state) if errors.is_empty() => Ok(state),
        _ => Err(errors),
    }
}

fn finish(mut shared: Shared<'_>, state: StageState, epoch: Option<i64>) -> Converted {
    let request = shared.request;
    let mut config = state.config;
    config.config.env = state.image_env.to_env();
    config.config.labels.extend(request.labels.iter().cloned());
    if request.platform.is_some() {
        // The platform that was asked for is written down, whatever the base image says of itself.
        let asked = &shared.platform;
        let same = config.os == asked.os && config.architecture == asked.architecture;
        config.os.clone_from(&asked.os);
        config.architecture.clone_from(&asked.architecture);
        if asked.variant.is_some() || !same {
            config.variant.clone_from(&asked.variant);
        }
        if asked.os_version.is_some() || !same {
            config.os_version.clone_from(&asked.os_version);
        }
        if !asked.os_features.is_empty() {
            config.os_features.clone_from(&asked.os_features);
        }
    }
    let platform = config.platform();
    config.os.clone_from(&platform.os);
    config.architecture.clone_from(&platform.architecture);
    config.variant.clone_from(&platform.variant);

    let mut unused_build_args: Vec<String> = shared
        .args
        .given_names()
        .filter(|name| !env::is_predefined(name) && !shared.used_args.contains(*name))
        .map(str::to_owned)
        .collect();
    unused_build_args.sort_unstable();
    // An instruction that is a trigger in many stages is warned about once.
    let mut seen = std::collections::HashSet::new();
    shared
        .warnings
        .retain(|warning| seen.insert((warning.code, warning.spans.clone(), warning.message.clone())));
    shared.warnings.sort_by_key(|warning| warning.spans.first().copied());
    Converted {
        definition: shared.definition,
        result: state.vertex,
        config,
        base_history: state.base_history,
        base_image: state.base_image,
        platform,
        warnings: shared.warnings,
        unused_build_args,
        source_date_epoch: epoch,
    }
}

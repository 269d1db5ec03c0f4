//! `SOURCE_DATE_EPOCH`: seconds, or the name of what has the time: `context`, a named context, or a stage that is one
//! remote ADD on `scratch`.

use solver::op::Source;

use crate::ast::{CopySource, InstructionKind, Span};
use crate::diagnostic::Diagnostic;
use crate::expand;
use crate::request::{NamedContext, Request};
use crate::stages::{Stage, Stages};
use crate::suggest;

use super::args::Args;
use super::copy;
use super::env::Variables;

/// The variable.
pub(super) const NAME: &str = "SOURCE_DATE_EPOCH";

/// What a build's time is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Epoch {
    /// This; `None` if there is none.
    Known(Option<i64>),
    /// When this was made. Nobody has looked yet.
    Of(Box<Source>),
}

/// The build arg, else the default of an ARG before the first FROM, else the request's.
pub(super) fn epoch(
    request: &Request,
    args: &Args,
    stages: &Stages<'_>,
    escape: char,
) -> Result<Epoch, Diagnostic> {
    let text = args.given(NAME).or_else(|| args.global(NAME)).filter(|text| !text.is_empty());
    let Some(text) = text else { return Ok(Epoch::Known(request.source_date_epoch)) };
    if let Ok(seconds) = text.trim().parse() {
        return Ok(Epoch::Known(Some(seconds)));
    }
    let source = match (text, request.contexts.get(text)) {
        ("context", _) => request.context_source.clone(),
        (_, Some(NamedContext::Source(source @ (Source::Git { .. } | Source::Http { .. })))) => {
            Some(source.clone())
        }
        (_, Some(NamedContext::Stage(name))) => Some(of_stage(name, args, stages, escape)?),
        (_, Some(_)) => None,
        (name, None) => Some(of_stage(name, args, stages, escape)?),
    };
    Ok(match source {
        None => Epoch::Known(None),
        Some(source) => match request.times.get(&source) {
            Some(time) => Epoch::Known(*time),
            None => Epoch::Of(Box::new(source)),
        },
    })
}

fn of_stage(name: &str, args: &Args, stages: &Stages<'_>, escape: char) -> Result<Source, Diagnostic> {
    let Some(stage) = stages.named(name) else {
        let span = args.declared.get(NAME).map_or(Span::default(), |arg| arg.span);
        let error = Diagnostic::error("source-date-epoch", span, format!("invalid {NAME}: {name}"));
        let error = suggest::help(error, name, stages.names().chain(["context"]));
        return Err(match error.help {
            Some(_) => error,
            None => error.with_help("write seconds since 1970-01-01, context, or the name of a stage"),
        });
    };
    only_source(stage, args, escape)
}

/// The source of the one ADD of a stage that has nothing else.
fn only_source(stage: &Stage<'_>, args: &Args, escape: char) -> Result<Source, Diagnostic> {
    let error = |span, message: &str| {
        let message = format!("{NAME} stage {message}");
        Diagnostic::error("source-date-epoch", span, message)
            .with_help("write FROM scratch and one ADD of a URL, with ARGs at most")
    };
    // Its own value is the name of this stage.
    let mut variables = args.globals.clone();
    variables.set(NAME, "");
    let expanded = |text: &str, variables: &Variables, span| {
        expand::expand_word(text, escape, variables)
            .map(|expanded| expanded.text)
            .map_err(|error| error.diagnostic(span))
    };
    let from = stage.instruction.span;
    if expanded(&stage.from.image.value, &variables, from)? != "scratch" {
        return Err(error(from, "must use FROM scratch"));
    }
    let mut source = None;
    for instruction in stage.body {
        let span = instruction.span;
        match &instruction.kind {
            InstructionKind::Arg(definitions) => {
                for definition in definitions {
                    let name = &definition.name.value;
                    let value = match (args.given(name), &definition.value) {
                        (Some(given), _) => given.to_owned(),
                        (None, Some(default)) => expanded(&default.value, &variables, span)?,
                        (None, None) => continue,
                    };
                    variables.set(name, &value);
                }
            }
            InstructionKind::Add(add) => {
                if source.is_some() {
                    return Err(error(span, "must contain exactly one remote ADD"));
                }
                let [CopySource::Path(path)] = &add.sources[..] else {
                    return Err(error(span, "must contain exactly one remote ADD source"));
                };
                let url = expanded(&path.value, &variables, span)?;
                let checksum = add
                    .checksum
                    .as_ref()
                    .map(|word| expanded(&word.value, &variables, word.span))
                    .transpose()?;
                let checksum = checksum.as_deref().filter(|checksum| !checksum.is_empty());
                source = copy::remote(copy::Kind::Add, add, &url, checksum, path.span)?;
                if source.is_none() {
                    return Err(error(path.span, "source must be a single HTTP(S) or Git ADD"));
                }
            }
            _ => {
                let keyword = instruction.keyword.value.to_lowercase();
                let message =
                    format!("does not meet source-only requirements: unsupported {keyword} instruction");
                return Err(error(span, &message));
            }
        }
    }
    source.ok_or_else(|| error(from, "must contain exactly one remote ADD"))
}

//! One build, from flags to image, top to bottom.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;

use frontend::ast::Span;
use frontend::diagnostic::{RenderStyle, Severity};
use frontend::request::{Conversion, Converted, Devices, HostDevice, ImageRequest};
use frontend::{Diagnostic, Dockerfile, lint};
use image::Platform;
use solver::Cancel;
use worker::cdi::Registry;
use worker::source::remote::Remotes;
use worker::source::resolve::{ImageError, Images};

use crate::ci::Place;
use crate::context::Context;
use crate::failure::{Class, Failure};
use crate::request::{BuildRequest, ContextSource, DockerfileSource};
use crate::resolver;

/// A Dockerfile that was read and parsed without errors.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) dockerfile: Dockerfile,
    /// Its text, as spans count it.
    pub(crate) text: String,
    /// Its name in messages.
    pub(crate) name: String,
    /// Its path as the caller sees it.
    pub(crate) path: String,
    pub(crate) lint: lint::Config,
}

impl Parsed {
    /// Parses the Dockerfile of `context`. All errors are shown at once.
    pub(crate) fn new(context: &Context, request: &BuildRequest) -> Result<Self, Failure> {
        let text = frontend::text::decode(&context.text).into_owned();
        let (dockerfile, errors) = frontend::parse(&context.text);
        let name = context.name.clone();
        let path = match (&request.dockerfile, &request.context) {
            (DockerfileSource::Path(path), _) => path.display().to_string(),
            (DockerfileSource::Default, ContextSource::Directory(directory)) => {
                directory.join(&name).components().as_path().display().to_string()
            }
            _ => name.clone(),
        };
        let path = path.trim_start_matches("./").to_owned();
        if !errors.is_empty() {
            return Err(rejected(&errors, &name, &text).at(place(&errors, &path, &text)));
        }
        let check = request.build_args.iter().rev().find(|(name, _)| name == lint::BUILD_ARG);
        let lint = lint::Config::new(&dockerfile, check.map(|(_, value)| value.as_str()))
            .map_err(|error| rejected(&[error], &name, &text))?;
        Ok(Self { dockerfile, text, name, path, lint })
    }

    /// A failure that shows `errors` with their lines.
    pub(crate) fn rejected(&self, errors: &[Diagnostic]) -> Failure {
        rejected(errors, &self.name, &self.text).at(place(errors, &self.path, &self.text))
    }

    /// The lines of `span`, for messages beside the code.
    pub(crate) fn place(&self, span: (usize, usize)) -> Place {
        let span = Span { start: span.0, end: span.1 };
        let (first, last) = frontend::text::LineIndex::new(&self.text).lines(span);
        Place { file: self.path.clone(), first, last }
    }

    /// Findings of the linter that are not switched off, and whether they are to fail the build.
    pub(crate) fn findings(&self, converted: &[Converted]) -> (Vec<Diagnostic>, bool) {
        let mut findings = lint::check(&self.dockerfile);
        // Several platforms find the same.
        let mut known: HashSet<Diagnostic> = findings.iter().cloned().collect();
        let warnings = converted.iter().flat_map(|converted| &converted.warnings);
        findings.extend(warnings.filter(|warning| known.insert((*warning).clone())).cloned());
        findings.sort_by_key(|finding| finding.spans.first().copied());
        self.lint.filter(findings)
    }

    /// The findings as they are reported.
    pub(crate) fn report(&self, findings: &[Diagnostic], error: Option<&Diagnostic>) -> lint::Report {
        lint::Report::new(&self.dockerfile, &self.name, &self.text, findings, error)
    }

    /// A hint for a name that was taken for an image: there is a stage that is called nearly so.
    pub(crate) fn near_stage(&self, source: &solver::op::Source) -> Option<String> {
        let solver::op::Source::Image { reference, .. } = source else { return None };
        let name = reference.familiar();
        let name = name.strip_suffix(":latest").unwrap_or(&name);
        let stages = frontend::stages::Stages::of(&self.dockerfile);
        let near = frontend::diagnostic::nearest(name, stages.names())?;
        Some(format!("there is no stage {name:?}: did you mean {near}?"))
    }

    /// The lines of a step that failed, as BuildKit shows them.
    pub(crate) fn excerpt(&self, span: (usize, usize)) -> String {
        excerpt(&self.name, &self.text, Span { start: span.0, end: span.1 })
    }
}

fn place(errors: &[Diagnostic], path: &str, text: &str) -> Option<Place> {
    let span = errors.iter().find_map(|error| error.spans.first())?;
    let (first, last) = frontend::text::LineIndex::new(text).lines(*span);
    Some(Place { file: path.to_owned(), first, last })
}

fn rejected(errors: &[Diagnostic], name: &str, text: &str) -> Failure {
    let shown: Vec<String> =
        errors.iter().map(|error| error.render(name, text, RenderStyle::Plain)).collect();
    let first = errors.iter().find(|error| error.severity == Severity::Error).or(errors.first());
    let line = first.and_then(|error| error.spans.first()).map(|span| {
        let (line, _) = frontend::text::LineIndex::new(text).lines(*span);
        format!(" on line {line}")
    });
    let message = first.map_or_else(String::new, |error| {
        format!("could not read {name}{}: {}", line.unwrap_or_default(), error.message)
    });
    Failure::new(Class::Dockerfile, message).report(shown.join("\n\n"))
}

/// The lines of `span`, marked.
fn excerpt(name: &str, text: &str, span: Span) -> String {
    let (first, last) = frontend::text::LineIndex::new(text).lines(span);
    lint::excerpt(name, &text.lines().collect::<Vec<_>>(), first, last)
}

/// What the frontend is asked, for one platform.
pub(crate) fn frontend_request(
    request: &BuildRequest,
    context: &Context,
    contexts: &NamedContexts,
    devices: &Registry,
    platform: Option<Platform>,
) -> frontend::request::Request {
    frontend::request::Request {
        target: request.target.clone(),
        build_args: request.build_args.clone(),
        labels: request.labels.clone(),
        platform,
        build_platform: None,
        contexts: contexts.described.clone(),
        main_context: context.main.clone(),
        ignore: context.ignore.clone(),
        no_cache: request.no_cache,
        no_cache_filter: request.no_cache_filter.clone(),
        network: request.network,
        extra_hosts: request.extra_hosts.clone(),
        shm_size: request.shm_size,
        ulimits: request.ulimits.clone(),
        cgroup_parent: request.cgroup_parent.clone(),
        allow: request.allow.clone(),
        devices: Some(described(devices)),
        proxy_env: request.proxy_env.clone(),
        source_date_epoch: request.source_date_epoch,
        context_source: context.source.clone(),
        times: HashMap::new(),
        multi_platform: request.platforms.len() > 1,
    }
}

/// The host's devices, as the frontend is told of them.
fn described(devices: &Registry) -> Devices {
    let list = devices.devices().map(|device| HostDevice {
        name: device.name.to_owned(),
        class: device.class.map(str::to_owned),
        auto_allow: device.auto_allow,
    });
    Devices {
        list: list.collect(),
        directories: devices.directories().iter().map(|path| path.display().to_string()).collect(),
        problems: devices.problems().to_vec(),
    }
}

/// `--build-context`: what the frontend is told, and where local ones are.
#[derive(Debug, Default)]
pub(crate) struct NamedContexts {
    pub(crate) described: std::collections::BTreeMap<String, frontend::request::NamedContext>,
    pub(crate) directories: std::collections::BTreeMap<String, PathBuf>,
}

/// Why there is nothing to build.
pub(crate) enum Unconverted {
    /// The Dockerfile means nothing.
    Rejected(Vec<Diagnostic>),
    /// Something else went wrong.
    Failed(Failure),
}

impl Unconverted {
    /// The failure, with the lines of `parsed` that are meant.
    pub(crate) fn into_failure(self, parsed: &Parsed) -> Failure {
        match self {
            Self::Rejected(errors) => parsed.rejected(&errors),
            Self::Failed(failure) => failure,
        }
    }
}

/// Converts for one platform, getting the image configs that conversion asks for.
pub(crate) async fn convert(
    parsed: &Parsed,
    request: &frontend::request::Request,
    images: &Rc<Images>,
    remotes: &Remotes,
) -> Result<Converted, Unconverted> {
    let mut known = HashMap::new();
    let mut request = request.clone();
    loop {
        let conversion = frontend::convert(&parsed.dockerfile, &request, &known);
        match conversion.map_err(Unconverted::Rejected)? {
            Conversion::Complete(converted) => return Ok(*converted),
            Conversion::NeedsTime(source) => {
                let time = remotes.time(&source, &Cancel::default()).await;
                let time = time.map_err(|error| Unconverted::Failed(Failure::from_worker(&error)))?;
                request.times.insert(*source, time);
            }
            Conversion::NeedsImages(needed) => {
                let new = resolver::resolve(images, &needed).await;
                let new = new.map_err(|failed| Unconverted::Failed(unresolved(parsed, &failed)))?;
                known.extend(new);
            }
        }
    }
}

fn unresolved(parsed: &Parsed, failed: &[(ImageRequest, ImageError)]) -> Failure {
    let mut failures = failed.iter().map(|(request, error)| {
        let failure = Failure::from_image(error);
        let failure = match parsed.near_stage(&request.source) {
            Some(hint) => failure.hint(hint),
            None => failure,
        };
        failure.report(excerpt(&parsed.name, &parsed.text, request.span))
    });
    let mut first = failures.next().expect("something failed");
    for other in failures {
        first.report = format!("{}\n{}\n{}", first.report, other.report, other.message);
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_mark_what_failed() {
        let text = "FROM a\n\nRUN x \\\n  y\nRUN z\n";
        let at = |part: &str| {
            let start = text.find(part).unwrap();
            Span { start, end: start + part.len() }
        };
        let rule = "--------------------";
        assert_eq!(
            excerpt("Dockerfile", text, at("RUN z")),
            format!("Dockerfile:5\n{rule}\n   3 |     RUN x \\\n   4 |       y\n   5 | >>> RUN z\n{rule}")
        );
        assert_eq!(
            excerpt("f", text, at("RUN x \\\n  y")),
            format!("f:3\n{rule}\n   2 |\n   3 | >>> RUN x \\\n   4 | >>>   y\n   5 |     RUN z\n{rule}")
        );
    }
}

//! `--call` and `--check`: what can be said of a Dockerfile without building it.

use std::collections::BTreeSet;
use std::rc::Rc;

use frontend::ast::InstructionKind;
use frontend::request::Request;
use frontend::stages::Stages;
use frontend::{Diagnostic, lint, outline};
use serde::Serialize;
use worker::source::resolve::Images;

use super::print;
use crate::build::{self, Parsed, Unconverted};
use crate::context::Context;
use crate::failure::{Class, Failure};
use crate::request::Call;
use crate::show;

/// Answers `call`; `requests` has one for each platform.
pub(crate) async fn call(
    call: Call,
    parsed: &Parsed,
    requests: &[Request],
    images: &Rc<Images>,
) -> Result<(), Failure> {
    match call {
        Call::Build => Ok(()),
        Call::Check { json, ignore_status } => check(parsed, requests, images, json, ignore_status).await,
        Call::Outline { json } => {
            let outline = outline::outline(&parsed.dockerfile, &parsed.text, &requests[0])
                .map_err(|errors| parsed.rejected(&errors))?;
            answer(if json { outline.to_json() + "\n" } else { outline.to_text() })
        }
        Call::Targets { json } => {
            let targets = outline::targets(&parsed.dockerfile, &parsed.text);
            answer(if json { targets.to_json() + "\n" } else { targets.to_text() })
        }
        Call::Describe { json } => describe(json),
    }
}

/// `--check` of a Dockerfile that cannot even be parsed: in JSON that is an answer, too.
pub(crate) fn report_syntax(context: &Context, call: Call) -> Result<(), Failure> {
    let Call::Check { json: true, .. } = call else { return Ok(()) };
    let (dockerfile, errors) = frontend::parse(&context.text);
    let Some(error) = errors.first() else { return Ok(()) };
    let text = frontend::text::decode(&context.text);
    let report = lint::Report::new(&dockerfile, &context.name, &text, &[], Some(error));
    answer(report.to_json() + "\n")?;
    Err(Failure::new(Class::Dockerfile, format!("could not read {}: {}", context.name, error.message)))
}

async fn check(
    parsed: &Parsed,
    requests: &[Request],
    images: &Rc<Images>,
    json: bool,
    ignore_status: bool,
) -> Result<(), Failure> {
    let mut converted = Vec::new();
    let mut errors: Vec<Diagnostic> = Vec::new();
    for request in all_stages(parsed, requests) {
        match build::convert(parsed, &request.without_running(), images).await {
            Ok(done) => converted.push(done),
            Err(Unconverted::Rejected(rejected)) => {
                errors = rejected;
                break;
            }
            Err(Unconverted::Failed(failure)) => return Err(failure),
        }
    }
    let (findings, fatal) = parsed.findings(&converted);
    let report = parsed.report(&findings, errors.first());
    answer(if json { report.to_json() + "\n" } else { report.to_text() })?;
    if !errors.is_empty() {
        return Err(parsed.rejected(&errors));
    }
    match (findings.is_empty(), fatal) {
        (true, _) => Ok(()),
        _ if ignore_status => Ok(()),
        (false, true) => Err(Failure::new(Class::Internal, lint::violation(&findings))),
        // They have been shown: there is nothing to add.
        (false, false) => Err(Failure::new(Class::Internal, "")),
    }
}

/// The requests, and if none names a target, one more for each stage that nothing is made from: they are checked, too.
fn all_stages(parsed: &Parsed, requests: &[Request]) -> Vec<Request> {
    let mut all = requests.to_vec();
    let Some(first) = requests.first().filter(|request| request.target.is_none()) else { return all };
    let mut used = BTreeSet::new();
    for instruction in &parsed.dockerfile.instructions {
        match &instruction.kind {
            InstructionKind::From(from) => used.insert(from.image.value.to_lowercase()),
            InstructionKind::Copy(copy) => match &copy.from {
                Some(from) => used.insert(from.value.to_lowercase()),
                None => continue,
            },
            _ => continue,
        };
    }
    let stages = Stages::of(&parsed.dockerfile).stages;
    let last = stages.len();
    let loose =
        stages.iter().filter(|stage| stage.index + 1 < last && !used.contains(&stage.index.to_string()));
    let names: BTreeSet<&str> = loose.filter_map(|stage| stage.name.as_deref()).collect();
    all.extend(
        names
            .into_iter()
            .filter(|name| !used.contains(*name))
            .map(|name| Request { target: Some(name.to_owned()), ..first.clone() }),
    );
    all
}

/// A call, as `subrequests.describe` lists it.
#[derive(Serialize)]
struct Described {
    #[serde(rename = "Name")]
    name: &'static str,
    #[serde(rename = "Version")]
    version: &'static str,
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Description")]
    description: &'static str,
    #[serde(rename = "Opts")]
    options: Option<()>,
    #[serde(rename = "Metadata")]
    metadata: Vec<Named>,
}

#[derive(Serialize)]
struct Named {
    #[serde(rename = "Name")]
    name: &'static str,
    #[serde(rename = "Description")]
    description: &'static str,
}

const PREFIX: &str = "frontend.";

const CALLS: [(&str, &str); 4] = [
    ("frontend.outline", "List all parameters current build target supports"),
    ("frontend.targets", "List all targets current build supports"),
    ("frontend.lint", "Lint a Dockerfile"),
    ("frontend.subrequests.describe", "List available subrequest types"),
];

fn describe(json: bool) -> Result<(), Failure> {
    if json {
        let metadata = || ["result.json", "result.txt"].map(|name| Named { name, description: "" }).into();
        let calls: Vec<Described> = CALLS
            .iter()
            .map(|&(name, description)| Described {
                name,
                version: "1.0.0",
                kind: "rpc",
                description,
                options: None,
                metadata: metadata(),
            })
            .collect();
        return answer(serde_json::to_string_pretty(&calls).expect("plain data with string keys") + "\n");
    }
    let mut rows = vec![["NAME", "VERSION", "DESCRIPTION"].map(str::to_owned).to_vec()];
    rows.extend(CALLS.iter().map(|&(name, description)| {
        [name.strip_prefix(PREFIX).unwrap_or(name), "1.0.0", description].map(str::to_owned).to_vec()
    }));
    print(|out| show::table(out, &rows))
}

fn answer(text: String) -> Result<(), Failure> {
    print(|out| out.write_all(text.as_bytes()))
}

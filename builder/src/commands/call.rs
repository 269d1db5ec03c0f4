//! `--call` and `--check`: what can be said of a Dockerfile without building it.

use std::collections::BTreeSet;
use std::rc::Rc;

use frontend::ast::InstructionKind;
use frontend::request::Request;
use frontend::stages::Stages;
use frontend::{Diagnostic, lint, outline};
use serde::Serialize;
use worker::source::remote::Remotes;
use worker::source::resolve::Images;

use super::print;
use crate::build::{self, Parsed, Unconverted};
use crate::context::Context;
use crate::failure::{Class, Failure};
use crate::request::Call;

/// Answers `call`; `requests` has one for each platform.
pub(crate) async fn call(
    call: Call,
    parsed: &Parsed,
    requests: &[Request],
    images: &Rc<Images>,
    remotes: &Remotes,
) -> Result<(), Failure> {
    match call {
        Call::Build => Ok(()),
        Call::Check { json, ignore_status } => {
            check(parsed, requests, images, remotes, json, ignore_status).await
        }
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
    remotes: &Remotes,
    json: bool,
    ignore_status: bool,
) -> Result<(), Failure> {
    let mut converted = Vec::new();
    let mut errors: Vec<Diagnostic> = Vec::new();
    for request in all_stages(parsed, requests) {
        match build::convert(parsed, &request.without_running(), images, remotes).await {
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
    name: String,
    version: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    description: &'static str,
    opts: Option<Vec<Named>>,
    inputs: Option<Vec<Named>>,
    metadata: Vec<Named>,
    refs: Option<Vec<Named>>,
}

#[derive(Serialize)]
struct Named {
    name: &'static str,
    description: &'static str,
}

const VERSION: &str = "1.0.0";

const CALLS: [(&str, &str); 3] = [
    ("outline", "List all parameters current build target supports"),
    ("targets", "List all targets current build supports"),
    ("subrequests.describe", "List available subrequest types"),
];

fn describe(json: bool) -> Result<(), Failure> {
    answer(if json { describe_json() } else { describe_text() })
}

fn describe_json() -> String {
    let calls: Vec<Described> = CALLS
        .iter()
        .map(|&(name, description)| Described {
            name: format!("frontend.{name}"),
            version: VERSION,
            kind: "rpc",
            description,
            opts: match name {
                "outline" => Some(vec![Named { name: "target", description: "Target build stage" }]),
                "targets" => Some(Vec::new()),
                _ => None,
            },
            inputs: None,
            metadata: ["result.json", "result.txt"].map(|name| Named { name, description: "" }).into(),
            refs: None,
        })
        .collect();
    serde_json::to_string_pretty(&calls).expect("plain data with string keys") + "\n"
}

fn describe_text() -> String {
    let rows = [("NAME", "VERSION", "DESCRIPTION")].into_iter();
    let rows = rows.chain(CALLS.iter().map(|&(name, description)| (name, VERSION, description)));
    // As wide as the longest name.
    rows.map(|(name, version, description)| format!("{name:20} {version:7} {description}\n")).collect()
}

fn answer(text: String) -> Result<(), Failure> {
    print(|out| out.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_described_as_the_frontend_does() {
        assert_eq!(
            describe_text(),
            "NAME                 VERSION DESCRIPTION\n\
             outline              1.0.0   List all parameters current build target supports\n\
             targets              1.0.0   List all targets current build supports\n\
             subrequests.describe 1.0.0   List available subrequest types\n"
        );
        let json: serde_json::Value = serde_json::from_str(&describe_json()).unwrap();
        let metadata = serde_json::json!([
            { "name": "result.json", "description": "" },
            { "name": "result.txt", "description": "" },
        ]);
        let outline = serde_json::json!({
            "name": "frontend.outline",
            "version": "1.0.0",
            "type": "rpc",
            "description": "List all parameters current build target supports",
            "opts": [{ "name": "target", "description": "Target build stage" }],
            "inputs": null,
            "metadata": metadata,
            "refs": null,
        });
        assert_eq!(json[0], outline);
        assert_eq!((&json[1]["opts"], &json[2]["opts"]), (&serde_json::json!([]), &serde_json::Value::Null));
        assert_eq!(json.as_array().map(Vec::len), Some(3));
    }
}

//! `--progress=rawjson`: one JSON object a line, with the fields of BuildKit's `SolveStatus` (`client/graph.go`).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use frontend::Diagnostic;
use frontend::text::LineIndex;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

use super::model::{Model, State, StepId, What};

#[derive(Serialize)]
struct Status<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    vertexes: Option<[Vertex<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statuses: Option<[VertexStatus<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<[VertexLog<'a>; 1]>,
}

#[derive(Serialize)]
struct Vertex<'a> {
    digest: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    inputs: &'a [String],
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct VertexStatus<'a> {
    id: &'a str,
    vertex: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    current: u64,
    timestamp: String,
    started: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
}

#[derive(Serialize)]
struct VertexLog<'a> {
    vertex: &'a str,
    stream: u8,
    data: String,
    timestamp: String,
}

/// Writes what happened as one line; `began` is when the build did.
pub(crate) fn line(
    model: &Model,
    began: Timestamp,
    id: StepId,
    now: Duration,
    what: &What,
    out: &mut String,
) {
    let step = &model.steps[id];
    let digest = step.info.digest.as_str();
    let time = |at: Duration| {
        let at = SignedDuration::try_from(at).ok().and_then(|at| began.checked_add(at).ok());
        format!("{:.9}", at.unwrap_or(began))
    };
    let mut status = Status { vertexes: None, statuses: None, logs: None };
    match what {
        What::Log { stream, data } => {
            let stream = *stream as u8 + 1;
            let data = STANDARD.encode(data);
            status.logs = Some([VertexLog { vertex: digest, stream, data, timestamp: time(now) }]);
        }
        What::Missed(_) => return,
        What::Dropped(bytes) => {
            let data = STANDARD.encode(format!("[{} of output left out]\n", crate::show::size(*bytes)));
            status.logs = Some([VertexLog { vertex: digest, stream: 2, data, timestamp: time(now) }]);
        }
        What::Progress { id, .. } => {
            let Some(transfer) = step.transfers.iter().find(|transfer| transfer.id == *id) else { return };
            status.statuses = Some([VertexStatus {
                id: &transfer.id,
                vertex: digest,
                total: transfer.total,
                current: transfer.current,
                timestamp: time(now),
                started: time(transfer.started),
                completed: transfer.ended.map(time),
            }]);
        }
        _ => {
            status.vertexes = Some([Vertex {
                digest,
                inputs: &step.info.inputs,
                name: &step.info.name,
                started: step.first.map(time),
                completed: step.is_ended().then(|| time(now)),
                cached: step.state == State::Cached,
                error: match &step.state {
                    State::Failed(message) => Some(message),
                    State::Cancelled => Some("context canceled"),
                    _ => None,
                },
            }]);
        }
    }
    out.push_str(&serde_json::to_string(&status).expect("plain data with string keys"));
    out.push('\n');
}

/// A finding of the linter as a line. `text` is the Dockerfile, called `name`.
pub(crate) fn warning_line(finding: &Diagnostic, name: &str, text: &str) -> String {
    format!("{}\n", json!({ "warnings": [warning(finding, name, text)] }))
}

/// A finding of the linter, in the form of BuildKit's `VertexWarning`.
pub(crate) fn warning(finding: &Diagnostic, name: &str, text: &str) -> Value {
    let encode = |text: &str| STANDARD.encode(text);
    let index = LineIndex::new(text);
    let ranges: Vec<Value> = finding
        .spans
        .iter()
        .map(|span| {
            let (first, last) = index.lines(*span);
            json!({ "start": { "line": first }, "end": { "line": last } })
        })
        .collect();
    let mut warning = json!({
        "level": 1,
        "short": encode(&format!("{}: {}", finding.code, finding.message)),
        "sourceInfo": { "filename": name, "data": encode(text), "language": "Dockerfile" },
        "range": ranges,
    });
    if let Some(help) = &finding.help {
        warning["detail"] = json!([encode(help)]);
    }
    if let Some(url) = &finding.url {
        warning["url"] = json!(url);
    }
    warning
}

#[cfg(test)]
mod tests {
    use solver::event::Stream;

    use super::super::model::Info;
    use super::*;

    #[test]
    fn lines_have_buildkits_fields() {
        let mut model = Model::default();
        let began = Timestamp::from_second(1_700_000_000).unwrap();
        let info = Info {
            name: "[1/1] RUN x".to_owned(),
            digest: "sha256:aa".to_owned(),
            inputs: vec!["sha256:bb".to_owned()],
        };
        let mut out = String::new();
        let progress = What::Progress { id: "sha256:cc".to_owned(), current: 1, total: Some(2), done: false };
        for (time, what) in [
            (0, What::Added(info)),
            (1500, What::Started),
            (1750, What::Log { stream: Stream::Stderr, data: b"hi\x1b\n".to_vec() }),
            (1800, progress),
            (2000, What::Failed("exit code: 1".to_owned())),
        ] {
            let now = Duration::from_millis(time);
            model.apply(0, now, &what);
            line(&model, began, 0, now, &what, &mut out);
        }
        let vertex = r#""digest":"sha256:aa","inputs":["sha256:bb"],"name":"[1/1] RUN x""#;
        let expected = [
            format!(r#"{{"vertexes":[{{{vertex}}}]}}"#),
            format!(r#"{{"vertexes":[{{{vertex},"started":"2023-11-14T22:13:21.500000000Z"}}]}}"#),
            r#"{"logs":[{"vertex":"sha256:aa","stream":2,"data":"aGkbCg==","timestamp":"2023-11-14T22:13:21.750000000Z"}]}"#.to_owned(),
            r#"{"statuses":[{"id":"sha256:cc","vertex":"sha256:aa","total":2,"current":1,"timestamp":"2023-11-14T22:13:21.800000000Z","started":"2023-11-14T22:13:21.800000000Z"}]}"#.to_owned(),
            format!(r#"{{"vertexes":[{{{vertex},"started":"2023-11-14T22:13:21.500000000Z","completed":"2023-11-14T22:13:22.000000000Z","error":"exit code: 1"}}]}}"#),
        ];
        assert_eq!(out.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn warnings_have_buildkits_fields() {
        let text = "FROM a\nRUN x\n";
        let finding = Diagnostic {
            severity: frontend::diagnostic::Severity::Warning,
            code: "Rule",
            message: "what".to_owned(),
            spans: vec![frontend::ast::Span { start: 7, end: 12 }],
            help: None,
            url: Some("https://u".to_owned()),
        };
        let value: Value = serde_json::from_str(&warning_line(&finding, "Dockerfile", text)).unwrap();
        let warning = &value["warnings"][0];
        assert_eq!(warning["short"], STANDARD.encode("Rule: what"));
        assert_eq!(warning["range"][0]["start"]["line"], 2);
        assert_eq!(warning["url"], "https://u");
    }
}

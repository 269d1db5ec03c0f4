//! Traces of builds for OpenTelemetry: a span for the build and one for each step, sent to the collector that
//! `OTEL_EXPORTER_OTLP_ENDPOINT` names.
//!
//! Spans wait in memory and leave in one request when the build is over. They are worth little: the collector has a
//! moment to take them, and whatever goes wrong with it is not the build's business. OTLP is written by hand, as JSON:
//! five small objects, against some thirty crates of the OpenTelemetry SDK.

mod config;
mod otlp;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write as _;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use solver::Definition;
use solver::definition::VertexId;
use solver::event::Event;
use store::registry::Client;

pub(crate) use config::Config;
pub(crate) use otlp::Value;
use otlp::{Span, Status};

use crate::failure::{Class, Failure};

/// The most that a finished build waits for its collector, and an interrupted one.
const PATIENCE: Duration = Duration::from_secs(1);
const IMPATIENCE: Duration = Duration::from_millis(200);

/// The spans of a build that runs.
#[derive(Debug)]
pub(crate) struct Tracer {
    config: Config,
    trace: [u8; 16],
    root: Span,
    spans: Rc<RefCell<Vec<Span>>>,
}

/// A part of the build's own work; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    span: Option<Span>,
    spans: Rc<RefCell<Vec<Span>>>,
}

/// Makes spans of what happens to the steps of one definition.
#[derive(Debug)]
pub(crate) struct Steps {
    names: Vec<String>,
    parent: [u8; 8],
    running: RefCell<HashMap<VertexId, Span>>,
    spans: Rc<RefCell<Vec<Span>>>,
}

impl Tracer {
    /// Begins the trace, or a part of the caller's.
    pub(crate) fn begin(config: Config, name: &str, attributes: Vec<(&'static str, Value)>) -> Self {
        let trace = config.parent.map_or_else(|| fastrand::u128(1..).to_be_bytes(), |parent| parent.trace);
        let mut root = span(name, config.parent.map(|parent| parent.span));
        root.attributes = attributes;
        Self { config, trace, root, spans: Rc::default() }
    }

    /// Begins a part of the work that is no step.
    pub(crate) fn span(&self, name: &str) -> Part {
        Part { span: Some(span(name, Some(self.root.id))), spans: self.spans.clone() }
    }

    /// Takes in the steps of a definition, and then what happens to them.
    pub(crate) fn listen(&self, definition: &Definition) -> Steps {
        Steps {
            names: definition.ids().map(|id| definition.vertex(id).metadata.name.clone()).collect(),
            parent: self.root.id,
            running: RefCell::default(),
            spans: self.spans.clone(),
        }
    }

    /// Sends everything.
    pub(crate) async fn finish(mut self, client: &Client, failure: Option<&Failure>) {
        self.root.end = now();
        self.root.status = match failure {
            None => Status::Ok,
            Some(failure) => {
                let code = i64::from(failure.class.exit_code());
                self.root.attributes.push(("rbuild.exit_code", Value::Number(code)));
                Status::Error(failure.message.clone())
            }
        };
        let mut spans = vec![self.root];
        spans.append(&mut self.spans.borrow_mut());
        let mut body = otlp::request(&self.config, &self.trace, &spans);
        let mut headers = self.config.headers;
        headers.push(("content-type".to_owned(), "application/json".to_owned()));
        if self.config.gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            body = match encoder.write_all(&body).and_then(|()| encoder.finish()) {
                Ok(compressed) => compressed,
                Err(_) => return,
            };
            headers.push(("content-encoding".to_owned(), "gzip".to_owned()));
        }
        let cancelled = failure.is_some_and(|failure| failure.class == Class::Cancelled);
        let patience = self.config.timeout.min(if cancelled { IMPATIENCE } else { PATIENCE });
        match tokio::time::timeout(patience, client.post(&self.config.url, &headers, body)).await {
            Err(_) => tracing::warn!("the collector of traces did not answer in {patience:?}"),
            Ok(Err(error)) => tracing::warn!("could not send traces: {error}"),
            Ok(Ok(status)) if status >= 300 => tracing::warn!("the collector of traces said {status}"),
            Ok(Ok(_)) => {}
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(mut span) = self.span.take() {
            span.end = now();
            self.spans.borrow_mut().push(span);
        }
    }
}

impl Steps {
    /// Something happened.
    pub(crate) fn note(&self, event: &Event) {
        match event {
            Event::Started(id) => {
                self.running.borrow_mut().entry(*id).or_insert_with(|| self.begun(*id));
            }
            Event::Cached(id) => self.end(*id, Status::Ok, Some(("rbuild.cached", Value::Flag(true)))),
            Event::Completed(id) => self.end(*id, Status::Ok, None),
            Event::Failed(id, why) => self.end(*id, Status::Error(why.clone()), None),
            Event::Cancelled(id) => {
                self.end(*id, Status::Unset, Some(("rbuild.cancelled", Value::Flag(true))));
            }
            Event::Missed(id, why) => {
                let mut running = self.running.borrow_mut();
                let span = running.entry(*id).or_insert_with(|| self.begun(*id));
                span.attributes.push(("rbuild.cache.miss", Value::Text(why.clone())));
            }
            Event::Log { .. } | Event::Progress { .. } => {}
        }
    }

    fn begun(&self, id: VertexId) -> Span {
        let name = self.names.get(id.index()).filter(|name| !name.is_empty()).map_or("step", String::as_str);
        let mut span = span(name, Some(self.parent));
        span.attributes.push(("rbuild.step", Value::Number(id.index() as i64 + 1)));
        span
    }

    fn end(&self, id: VertexId, status: Status, attribute: Option<(&'static str, Value)>) {
        let span = self.running.borrow_mut().remove(&id);
        let mut span = span.unwrap_or_else(|| self.begun(id));
        span.attributes.extend(attribute);
        (span.status, span.end) = (status, now());
        self.spans.borrow_mut().push(span);
    }
}

fn span(name: &str, parent: Option<[u8; 8]>) -> Span {
    Span {
        // Zero is no ID.
        id: fastrand::u64(1..).to_be_bytes(),
        parent,
        name: name.to_owned(),
        start: now(),
        end: 0,
        attributes: Vec::new(),
        status: Status::Unset,
    }
}

/// Nanoseconds since the epoch.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use solver::definition::Metadata;
    use solver::op::{Op, Source};

    use super::*;

    #[test]
    fn each_step_is_one_span_that_says_how_it_ended() {
        let mut definition = Definition::default();
        let mut add = |name: &str| {
            let source = Source::Local { name: name.to_owned(), ignore: Vec::new() };
            let metadata = Metadata { name: name.to_owned(), ..Metadata::default() };
            definition.add(Op::Source(source), Vec::new(), metadata)
        };
        let (from, run) = (add("FROM x"), add("RUN y"));
        let steps = Steps {
            names: definition.ids().map(|id| definition.vertex(id).metadata.name.clone()).collect(),
            parent: [7; 8],
            running: RefCell::default(),
            spans: Rc::default(),
        };
        steps.note(&Event::Cached(from));
        steps.note(&Event::Started(run));
        steps.note(&Event::Missed(run, "new".to_owned()));
        steps.note(&Event::Failed(run, "exit code: 1".to_owned()));
        let spans = steps.spans.borrow();
        assert_eq!(spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["FROM x", "RUN y"]);
        assert!(spans[0].attributes.contains(&("rbuild.cached", Value::Flag(true))));
        assert!(spans[1].attributes.contains(&("rbuild.cache.miss", Value::Text("new".to_owned()))));
        assert_eq!(spans[1].status, Status::Error("exit code: 1".to_owned()));
        assert!(spans.iter().all(|span| span.end >= span.start && span.parent == Some([7; 8])));
        assert_ne!(spans[0].id, spans[1].id);
    }
}

//! OTLP as JSON (`opentelemetry-proto`, `trace/v1`): IDs are hex, 64-bit numbers are text.

use serde_json::{Value as Json, json};

use super::Config;

/// A span that is over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Span {
    pub(crate) id: [u8; 8],
    pub(crate) parent: Option<[u8; 8]>,
    pub(crate) name: String,
    /// Nanoseconds since the epoch.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) attributes: Vec<(&'static str, Value)>,
    pub(crate) status: Status,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
}

/// How a span ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Unset,
    Ok,
    Error(String),
}

/// The body of a request that hands `spans` over.
pub(crate) fn request(config: &Config, trace: &[u8; 16], spans: &[Span]) -> Vec<u8> {
    let text = |name: &str, text: &str| json!({ "key": name, "value": { "stringValue": text } });
    let mut resource =
        vec![text("service.name", &config.service), text("service.version", env!("CARGO_PKG_VERSION"))];
    resource.extend(config.attributes.iter().map(|(name, value)| text(name, value)));
    let spans: Vec<Json> = spans.iter().map(|span| span.json(trace, &config.state)).collect();
    let body = json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{ "scope": { "name": "rbuild", "version": env!("CARGO_PKG_VERSION") }, "spans": spans }],
    }] });
    serde_json::to_vec(&body).expect("plain data")
}

impl Span {
    fn json(&self, trace: &[u8; 16], state: &str) -> Json {
        let attributes = self.attributes.iter().map(|(name, value)| {
            let value = match value {
                Value::Text(text) => json!({ "stringValue": text }),
                Value::Number(number) => json!({ "intValue": number.to_string() }),
                Value::Flag(flag) => json!({ "boolValue": flag }),
            };
            json!({ "key": name, "value": value })
        });
        let mut span = json!({
            "traceId": hex::encode(trace),
            "spanId": hex::encode(self.id),
            "name": self.name,
            "kind": 1,
            "startTimeUnixNano": self.start.to_string(),
            "endTimeUnixNano": self.end.to_string(),
            "attributes": attributes.collect::<Vec<_>>(),
        });
        if let Some(parent) = &self.parent {
            span["parentSpanId"] = hex::encode(parent).into();
        }
        if !state.is_empty() {
            span["traceState"] = state.into();
        }
        match &self.status {
            Status::Unset => {}
            Status::Ok => span["status"] = json!({ "code": 1 }),
            Status::Error(message) => span["status"] = json!({ "code": 2, "message": message }),
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_the_protocol_says() {
        let config = Config::new(&|name| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://c".to_owned()),
            "OTEL_RESOURCE_ATTRIBUTES" => Some("team=a%20b".to_owned()),
            _ => None,
        });
        let span = Span {
            id: [1; 8],
            parent: Some([2; 8]),
            name: "RUN x".to_owned(),
            start: 5,
            end: u64::MAX,
            attributes: vec![("n", Value::Number(3)), ("f", Value::Flag(true))],
            status: Status::Error("no".to_owned()),
        };
        let body: Json =
            serde_json::from_slice(&request(&config.unwrap().unwrap(), &[3; 16], &[span])).unwrap();
        let resource = &body["resourceSpans"][0];
        assert_eq!(
            resource["resource"]["attributes"][2],
            json!({ "key": "team", "value": { "stringValue": "a b" } })
        );
        let expected = json!({
            "traceId": "03".repeat(16), "spanId": "01".repeat(8), "parentSpanId": "02".repeat(8),
            "name": "RUN x", "kind": 1, "startTimeUnixNano": "5", "endTimeUnixNano": "18446744073709551615",
            "attributes": [
                { "key": "n", "value": { "intValue": "3" } }, { "key": "f", "value": { "boolValue": true } },
            ],
            "status": { "code": 2, "message": "no" },
        });
        assert_eq!(resource["scopeSpans"][0]["spans"][0], expected);
    }
}

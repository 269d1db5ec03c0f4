//! Traces of builds, for a collector that takes them, refuses them, or never answers.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Base, Page, TestEnv, Web};

fn environment(endpoint: &str) -> (TestEnv, String) {
    let mut env = TestEnv::new();
    Base::Busybox.build_in(&env);
    env.set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    let dockerfile = "FROM busybox:1\nRUN echo 1 > /a\nRUN --mount=type=secret,id=s false\n";
    let context = env.context("traced", &[("Dockerfile", dockerfile), ("s", "hunter2")]);
    (env, context.display().to_string())
}

#[test]
fn a_build_is_a_span_and_so_is_each_step() {
    let collector = Web::start();
    collector.put("v1/traces", Page::new("{}"));
    let (mut env, context) = environment(&format!("http://{}", collector.address()));
    env.set("OTEL_EXPORTER_OTLP_HEADERS", "x-token=let%20me%20in");
    env.set("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let secret = format!("--secret=id=s,src={context}/s");
    let _ = env.rbuild(["build", "-t", "x:1", &secret, &context]).fails_with(4);
    let requests = collector.requests("/v1/traces");
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("x-token"), Some("let me in"));
    assert_eq!(requests[0].header("content-type"), Some("application/json"));
    assert!(!String::from_utf8_lossy(&requests[0].body).contains("hunter2"));
    let body: Value = serde_json::from_slice(&requests[0].body).expect("it is JSON");
    let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("there are spans");
    let named = |part: &str| {
        let found = spans.iter().find(|span| span["name"].as_str().unwrap_or_default().contains(part));
        found.unwrap_or_else(|| panic!("no span {part:?} in {body:#}"))
    };
    let root = named("build");
    assert_eq!(root["parentSpanId"], "b7ad6b7169203331");
    assert_eq!(root["status"]["code"], 2);
    for span in spans {
        assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
    }
    for (step, code) in [("RUN echo 1", 1), ("false", 2)] {
        assert_eq!(named(step)["parentSpanId"], root["spanId"]);
        assert_eq!(named(step)["status"]["code"], code, "{step}");
    }
}

#[test]
fn whatever_the_collector_does_is_not_the_builds_business() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let silent = format!("http://{}", silent.local_addr().expect("it has an address"));
    let refusing = Web::start();
    for endpoint in [&silent, &format!("http://{}", refusing.address()), "http://127.0.0.1:1", "nonsense"] {
        let mut env = TestEnv::new();
        env.set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        env.set("OTEL_EXPORTER_OTLP_TIMEOUT", "100");
        let context = env.context("plain", &[("Dockerfile", "FROM scratch\nCOPY f /f\n"), ("f", "1")]);
        let began = Instant::now();
        let _ = env.rbuild(["build".as_ref(), context.as_os_str()]).ok();
        assert!(began.elapsed() < Duration::from_secs(10), "{endpoint}");
    }
    let mut env = TestEnv::new();
    env.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    env.set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let context = env.context("plain", &[("Dockerfile", "FROM scratch\nCOPY f /f\n"), ("f", "1")]);
    let _ = env.rbuild(["build".as_ref(), context.as_os_str()]).ok().says("no traces are sent");
}

//! What the command line shows, compared with the files of `fixtures/cli`. `RBUILD_BLESS=1` writes them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;
use tests::registry::Login;
use tests::{Base, Golden, Registry, TestEnv};

const STAGES: &str = "FROM busybox:1 AS tool\n# What it says.\nARG WORD=hello\nRUN echo $WORD > /word\n\
                      FROM busybox:1\nCOPY f /f\nCOPY --from=tool /word /word\nRUN cat /word /f; echo aside >&2\n";

#[test]
fn every_command_has_its_help() {
    let env = TestEnv::new();
    let mut golden = Golden::new("cli", &env);
    let top = env.rbuild(["--help"]).ok();
    golden.text("help", &top.stdout);
    let commands = top.stdout.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next());
    let mut some = 0;
    for line in commands.expect("there are commands").lines() {
        // Deeper lines go on with what was said.
        let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else { continue };
        let name = name.split(' ').next().expect("a line has a word");
        if name == "help" {
            continue;
        }
        some += 1;
        golden.text(&format!("help-{name}"), &env.rbuild([name, "--help"]).ok().stdout);
    }
    assert!(some > 20, "{top}");
    golden.done();
}

#[test]
fn mistakes_and_failures_are_told_well() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let mut golden = Golden::new("cli", &env);
    let context = |name: &str, dockerfile: &str| {
        env.context(name, &[("Dockerfile", dockerfile), ("readme.txt", "x")]).display().to_string()
    };
    let fine = context("fine", "FROM scratch\nCOPY readme.txt /\n");
    let syntax = context("syntax", "FROM busybox:1\nRUN echo 1\nCOPPY readme.txt /\nEXPOSE 99999\n");
    let missing = context("missing", "FROM scratch\nCOPY readmee.txt /\n");
    let step =
        context("step", "FROM busybox:1\nRUN echo one\nRUN for i in 1 2 3; do echo line $i; done; exit 9\n");
    let stages = context("stages", STAGES);
    let nothing = env.work().join("empty").display().to_string();
    std::fs::create_dir(&nothing).expect("a directory can be made");

    let login = Registry::start();
    login.set_login(Login::Basic { user: "me".into(), password: "secret".into() });
    let private = context("private", &format!("FROM {}/private:1\n", login.address()));
    let gone = Registry::start().address().to_owned();
    let refused = context("refused", &format!("FROM {gone}/base:1\n"));

    for (name, args) in [
        ("error-no-context", vec!["build"]),
        ("error-unknown-command", vec!["biuld", &fine]),
        ("error-unknown-flag", vec!["build", "--bild-arg=A=1", &fine]),
        ("error-bad-value", vec!["build", "--pull=perhaps", &fine]),
        ("error-bad-platform", vec!["build", "--platform=linux/amd65/x/y", &fine]),
        ("error-bad-output", vec!["build", "--output=type=ocy", &fine]),
        ("error-push-without-tag", vec!["build", "--push", &fine]),
        ("error-no-such-directory", vec!["build", "nowhere"]),
        ("error-no-dockerfile", vec!["build", &nothing]),
        ("error-syntax", vec!["build", &syntax]),
        ("error-missing-file", vec!["build", "--progress=quiet", &missing]),
        ("error-failing-step", vec!["build", "--progress=quiet", &step]),
        ("error-unknown-stage", vec!["build", "--target=tol", &stages]),
        ("error-unauthorized", vec!["build", &private]),
        ("error-connection-refused", vec!["build", &refused]),
        ("error-no-such-image", vec!["inspect", "nosuch"]),
    ] {
        let outcome = env.rbuild(args);
        assert!(!outcome.status.success() && !outcome.stderr.contains("panicked"), "{outcome}");
        golden.outcome(name, &outcome);
    }
    golden.done();
}

#[test]
fn calls_answer_in_text_and_json() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let mut golden = Golden::new("cli", &env);
    let dockerfile = "from busybox:1 as Tool\nARG WORD=hello\nRUN --mount=type=secret,id=key echo $WORD\n\
                      # The whole thing.\nFROM tool AS all\nMAINTAINER me\n";
    let context = env.context("calls", &[("Dockerfile", dockerfile)]).display().to_string();
    for call in ["check", "outline", "targets"] {
        for format in ["text", "json"] {
            let flag = format!("--call={call},format={format}");
            golden.outcome(&format!("call-{call}-{format}"), &env.rbuild(["build", &flag, &context]));
        }
    }
    golden.done();
}

#[test]
fn builds_are_shown_in_plain_and_in_json() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let mut golden = Golden::new("cli", &env);
    let context = env.context("stages", &[("Dockerfile", STAGES), ("f", "file\n")]).display().to_string();
    let build = |progress: &str, more: &[&str]| {
        let args = ["build", "-t", "x", "--jobs=1", progress];
        env.rbuild(args.iter().chain(more).copied().chain([context.as_str()])).ok().stderr
    };
    golden.text("plain-cold", &by_step(&build("--progress=plain", &[])));
    golden.text("plain-cached", &by_step(&build("--progress=plain", &[])));
    golden.text("json-cold", &by_vertex(&build("--progress=rawjson", &["--no-cache"])));
    golden.text("json-cached", &by_vertex(&build("--progress=rawjson", &[])));
    assert_eq!(build("--progress=quiet", &[]), "");
    golden.done();
}

/// Steps that run at the same time come in any order, in pieces: the lines of each together, sorted, without numbers.
fn by_step(plain: &str) -> String {
    let mut steps: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut others = Vec::new();
    for line in plain.lines().filter(|line| !line.is_empty()) {
        let numbered = line.strip_prefix('#').and_then(|rest| rest.split_once(' '));
        match numbered {
            Some((number, line)) => {
                let lines = steps.entry(number).or_default();
                // Said again when it goes on after another, and when it is done again.
                let is_end = |line: &str| line.starts_with("DONE");
                let again = lines.contains(&line) || is_end(line) && lines.iter().any(|line| is_end(line));
                if !again {
                    lines.push(line);
                }
            }
            None => others.push(line),
        }
    }
    let mut blocks: Vec<String> = steps
        .into_values()
        .map(|lines| {
            lines.iter().fold(String::new(), |mut block, line| {
                // Of output the second is not told.
                let line = match line.split_once(' ') {
                    Some((time, rest)) if time.parse::<f64>().is_ok() => rest,
                    _ => line,
                };
                writeln!(block, "{line}").expect("a string can be written");
                block
            })
        })
        .collect();
    blocks.sort();
    format!("{}\n{}", blocks.join("\n"), others.join("\n"))
}

/// What the lines of JSON say in the end of each vertex.
fn by_vertex(lines: &str) -> String {
    #[derive(Default)]
    struct Vertex {
        name: String,
        inputs: Vec<String>,
        fields: std::collections::BTreeSet<String>,
        // By stream: how it comes in pieces is up to the moment.
        logs: BTreeMap<u64, Vec<u8>>,
    }
    let mut vertices: BTreeMap<String, Vertex> = BTreeMap::new();
    let text = |value: &Value| value.as_str().expect("it is a text").to_owned();
    for line in lines.lines() {
        let status: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        for vertex in status["vertexes"].as_array().into_iter().flatten() {
            let known = vertices.entry(text(&vertex["digest"])).or_default();
            known.name = text(&vertex["name"]);
            let inputs = vertex["inputs"].as_array().into_iter().flatten();
            known.inputs = inputs.map(text).collect();
            known.fields.extend(vertex.as_object().expect("it is an object").keys().cloned());
        }
        for log in status["logs"].as_array().into_iter().flatten() {
            let known = vertices.entry(text(&log["vertex"])).or_default();
            let stream = log["stream"].as_u64().expect("it is a number");
            known.logs.entry(stream).or_default().extend(from_base64(&text(&log["data"])));
        }
    }
    let mut blocks: Vec<String> = vertices
        .values()
        .map(|Vertex { name, inputs, fields, logs }| {
            let inputs: Vec<&str> = inputs.iter().map(|input| vertices[input].name.as_str()).collect();
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            let logs = logs.iter().fold(String::new(), |text, (stream, bytes)| {
                format!("{text}  log {stream} {:?}\n", String::from_utf8_lossy(bytes))
            });
            format!("{name}\n  inputs {inputs:?}\n  fields {}\n{logs}", fields.join(" "))
        })
        .collect();
    blocks.sort();
    blocks.join("\n")
}

fn from_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for digit in text.chars().map_while(|c| ALPHABET.find(c)) {
        bits = bits << 6 | digit as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}

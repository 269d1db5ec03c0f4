//! SLSA provenance, version 1, with BuildKit's parameters: what was built from what, by whom, and when.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::Platform;
use serde_json::{Map, Value, json};
use solver::Definition;
use solver::op::{Op, Source, redacted};

use super::{Attestation, Mode, Provenance, Version, package_url};
use crate::show::rfc3339;

/// What is told of a build.
#[derive(Clone)]
pub(crate) struct Facts<'a> {
    pub(crate) definition: &'a Definition,
    pub(crate) platform: &'a Platform,
    /// The Dockerfile's name and text.
    pub(crate) dockerfile: (&'a str, &'a str),
    pub(crate) target: Option<&'a str>,
    pub(crate) build_args: &'a [(String, String)],
    pub(crate) labels: &'a [(String, String)],
    /// Ids of secrets and agents, never values.
    pub(crate) secrets: Vec<&'a String>,
    pub(crate) ssh: Vec<&'a String>,
    pub(crate) no_cache: bool,
    /// Where a context that is not on this host comes from.
    pub(crate) remote: Option<&'a str>,
    /// The same, as what was fetched.
    pub(crate) context: Option<&'a Source>,
    /// What a source was, as SLSA's map of digests.
    pub(crate) resolved: &'a dyn Fn(&Source) -> Option<Value>,
    pub(crate) invocation: &'a str,
    /// When it began and ended; left out of a build that is to come out the same again.
    pub(crate) times: Option<(i64, i64)>,
}

/// Says what `asked` asks for.
pub(crate) fn provenance(asked: &Provenance, facts: &Facts<'_>) -> Attestation {
    let predicate = predicate(asked, facts);
    let file = asked.filename.clone().unwrap_or_else(|| "provenance.json".to_owned());
    match asked.version {
        Version::V1 => Attestation { predicate_type: "https://slsa.dev/provenance/v1", predicate, file },
        Version::V0_2 => Attestation {
            predicate_type: "https://slsa.dev/provenance/v0.2",
            predicate: version_0_2(&predicate),
            file,
        },
    }
}

/// The same in version 0.2, as BuildKit converts it.
pub(crate) fn version_0_2(predicate: &Value) -> Value {
    let (definition, run) = (&predicate["buildDefinition"], &predicate["runDetails"]);
    let (external, internal) = (&definition["externalParameters"], &definition["internalParameters"]);
    let without_nulls = |pairs: Vec<(&str, &Value)>| -> Value {
        let given = pairs.into_iter().filter(|(_, value)| !value.is_null());
        Value::Object(given.map(|(name, value)| (name.to_owned(), value.clone())).collect())
    };
    let (source, metadata) = (&external["configSource"], &run["metadata"]);
    let completeness = json!({
        "parameters": metadata["buildkit_completeness"]["request"],
        "environment": true,
        "materials": metadata["buildkit_completeness"]["resolvedDependencies"],
    });
    let invocation = json!({
        "configSource": without_nulls(vec![
            ("uri", &source["uri"]),
            ("digest", &source["digest"]),
            ("entryPoint", &source["path"]),
        ]),
        "parameters": external["request"],
        "environment": { "platform": internal["builderPlatform"] },
    });
    let build_type = json!("https://mobyproject.org/buildkit@v1");
    let metadata = without_nulls(vec![
        ("buildInvocationID", &metadata["invocationId"]),
        ("buildStartedOn", &metadata["startedOn"]),
        ("buildFinishedOn", &metadata["finishedOn"]),
        ("completeness", &completeness),
        ("reproducible", &metadata["buildkit_reproducible"]),
        ("https://mobyproject.org/buildkit@v1#hermetic", &metadata["buildkit_hermetic"]),
        ("https://mobyproject.org/buildkit@v1#metadata", &metadata["buildkit_metadata"]),
    ]);
    without_nulls(vec![
        ("builder", &run["builder"]),
        ("buildType", &build_type),
        ("materials", &definition["resolvedDependencies"]),
        ("invocation", &invocation),
        ("buildConfig", &internal["buildConfig"]),
        ("metadata", &metadata),
    ])
}

/// The predicate, in version 1.
pub(crate) fn predicate(asked: &Provenance, facts: &Facts<'_>) -> Value {
    let max = asked.mode == Mode::Max;
    let sources: Vec<&Source> = facts
        .definition
        .ids()
        .filter_map(|id| match &facts.definition.vertex(id).op {
            Op::Source(source) => Some(source),
            _ => None,
        })
        .collect();
    let mut materials: Vec<Value> = Vec::new();
    for source in &sources {
        if let Some(material) = material(source, facts)
            && !materials.contains(&material)
        {
            materials.push(material);
        }
    }
    let local = sources.iter().any(|source| matches!(source, Source::Local { .. }));
    let networked = facts.definition.ids().any(|id| match &facts.definition.vertex(id).op {
        Op::Exec(exec) => exec.network != solver::op::Network::None,
        _ => false,
    });
    let pinned = sources
        .iter()
        .all(|source| matches!(source, Source::Local { .. }) || digest(source, facts).is_some());

    let mut metadata = Map::new();
    if let Some((began, ended)) = facts.times {
        metadata.insert("invocationId".to_owned(), json!(facts.invocation));
        metadata.insert("startedOn".to_owned(), json!(rfc3339(began)));
        metadata.insert("finishedOn".to_owned(), json!(rfc3339(ended)));
    }
    if max {
        let (name, text) = facts.dockerfile;
        metadata.insert(
            "buildkit_metadata".to_owned(),
            json!({ "source": {
                "locations": locations(facts.definition, text),
                "infos": [{
                    "filename": name,
                    "language": "Dockerfile",
                    "data": STANDARD.encode(text),
                    "llbDefinition": steps(facts.definition),
                    "digestMapping": mapping(facts.definition),
                }],
            } }),
        );
    }
    metadata.insert("buildkit_hermetic".to_owned(), json!(!networked && !local && pinned));
    metadata.insert(
        "buildkit_completeness".to_owned(),
        json!({ "request": max, "resolvedDependencies": !local && pinned }),
    );
    metadata.insert("buildkit_reproducible".to_owned(), json!(asked.reproducible));

    let mut config_source = Map::new();
    if let Some(remote) = facts.remote {
        config_source.insert("uri".to_owned(), json!(redacted(remote)));
    }
    if let Some(digest) = facts.context.and_then(|source| digest(source, facts)) {
        config_source.insert("digest".to_owned(), digest);
    }
    config_source.insert("path".to_owned(), json!(facts.dockerfile.0));
    let mut internal = json!({ "builderPlatform": Platform::host().to_string() });
    if max {
        internal["buildConfig"] = json!({
            "llbDefinition": steps(facts.definition),
            "digestMapping": mapping(facts.definition),
        });
    }
    json!({
        "buildDefinition": {
            "buildType": "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md",
            "externalParameters": { "configSource": config_source, "request": request(facts, max) },
            "internalParameters": internal,
            "resolvedDependencies": materials,
        },
        "runDetails": { "builder": { "id": asked.builder }, "metadata": metadata },
    })
}

/// What was asked; of `mode=min` nothing that a caller may hold to be private.
fn request(facts: &Facts<'_>, max: bool) -> Value {
    let mut args = Map::new();
    if let Some(target) = facts.target {
        args.insert("target".to_owned(), json!(target));
    }
    if facts.no_cache {
        args.insert("no-cache".to_owned(), json!(""));
    }
    args.insert("platform".to_owned(), json!(facts.platform.to_string()));
    if max {
        for (kind, pairs) in [("build-arg", facts.build_args), ("label", facts.labels)] {
            args.extend(pairs.iter().map(|(name, value)| (format!("{kind}:{name}"), json!(value))));
        }
    }
    let mut request = json!({ "frontend": "dockerfile.v0", "args": args });
    if facts.remote.is_none() {
        request["locals"] = json!([{ "name": "context" }, { "name": "dockerfile" }]);
    }
    if max {
        let ids = |list: &[&String]| -> Vec<Value> {
            list.iter().map(|id| json!({ "id": id, "optional": true })).collect()
        };
        if !facts.secrets.is_empty() {
            request["secrets"] = json!(ids(&facts.secrets));
        }
        if !facts.ssh.is_empty() {
            request["ssh"] = json!(ids(&facts.ssh));
        }
    }
    request
}

fn material(source: &Source, facts: &Facts<'_>) -> Option<Value> {
    let uri = match source {
        Source::Image { reference, platform } => package_url(reference, None, platform),
        Source::OciLayout { path, .. } => format!("pkg:oci/{}", path.trim_start_matches('/')),
        Source::Git { remote, reference, .. } => match reference {
            Some(reference) => format!("{}#{reference}", redacted(remote)),
            None => redacted(remote),
        },
        Source::Http { url, .. } => redacted(url),
        Source::Local { .. } => return None,
    };
    Some(match digest(source, facts) {
        Some(digest) => json!({ "uri": uri, "digest": digest }),
        None => json!({ "uri": uri }),
    })
}

/// What a source was, or has to be.
fn digest(source: &Source, facts: &Facts<'_>) -> Option<Value> {
    let asked = match source {
        Source::Image { reference, .. } => reference.digest,
        Source::OciLayout { digest, .. } => *digest,
        Source::Http { checksum, .. } => *checksum,
        Source::Git { .. } | Source::Local { .. } => None,
    };
    (facts.resolved)(source).or_else(|| asked.map(|digest| json!({ digest.algorithm(): digest.hex() })))
}

/// Which step has which digest.
fn mapping(definition: &Definition) -> Map<String, Value> {
    let named = |id: solver::VertexId| {
        let digest = definition.vertex(id).digest.hex();
        (format!("sha256:{digest}"), json!(format!("step{}", id.index())))
    };
    definition.ids().map(named).collect()
}

/// Where in the Dockerfile each step stands.
fn locations(definition: &Definition, text: &str) -> Map<String, Value> {
    let index = frontend::text::LineIndex::new(text);
    let located = definition.ids().filter_map(|id| {
        let (start, end) = definition.vertex(id).metadata.span?;
        let (first, last) = index.lines(frontend::ast::Span { start, end });
        let range = json!({ "start": { "line": first }, "end": { "line": last } });
        Some((format!("step{}", id.index()), json!({ "locations": [{ "ranges": [range] }] })))
    });
    located.collect()
}

/// The graph: each step with its op and what it works on.
fn steps(definition: &Definition) -> Vec<Value> {
    definition
        .ids()
        .map(|id| {
            let vertex = definition.vertex(id);
            let inputs: Vec<String> =
                vertex.inputs.iter().map(|input| format!("step{}:0", input.vertex.index())).collect();
            json!({
                "id": format!("step{}", id.index()),
                "name": vertex.metadata.name,
                "op": serde_json::to_value(&vertex.op).expect("ops are plain data"),
                "inputs": inputs,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use image::Platform;

    use super::*;

    #[test]
    fn what_was_fetched_is_told_by_its_digest_in_both_versions() {
        let mut definition = Definition::default();
        let git = Source::Git {
            remote: "https://h/r.git".to_owned(),
            reference: Some("main".to_owned()),
            subdir: None,
            keep_git_dir: false,
            checksum: None,
            submodules: true,
        };
        definition.add(Op::Source(git.clone()), Vec::new(), solver::definition::Metadata::default());
        let facts = Facts {
            definition: &definition,
            platform: &Platform::new("linux", "amd64", None),
            dockerfile: ("Dockerfile", "FROM scratch\n"),
            target: None,
            build_args: &[],
            labels: &[],
            secrets: Vec::new(),
            ssh: Vec::new(),
            no_cache: false,
            remote: Some("https://h/r.git#main"),
            context: Some(&git),
            resolved: &|_| Some(json!({ "sha1": "c0ffee" })),
            invocation: "x",
            times: Some((0, 1)),
        };
        let one = predicate(&Provenance::default(), &facts);
        let build = &one["buildDefinition"];
        assert_eq!(build["resolvedDependencies"][0]["uri"], "https://h/r.git#main");
        assert_eq!(build["resolvedDependencies"][0]["digest"]["sha1"], "c0ffee");
        assert_eq!(build["externalParameters"]["configSource"]["digest"]["sha1"], "c0ffee");
        assert_eq!(one["runDetails"]["metadata"]["buildkit_completeness"]["resolvedDependencies"], true);
        let two = version_0_2(&one);
        assert_eq!(two["materials"][0]["digest"]["sha1"], "c0ffee");
        assert_eq!(two["invocation"]["configSource"]["entryPoint"], "Dockerfile");
        assert_eq!(two["metadata"]["completeness"]["parameters"], true);
    }
}

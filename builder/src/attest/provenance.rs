//! SLSA provenance, version 1, with BuildKit's parameters: what was built from what, by whom, and when.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::Platform;
use serde_json::{Map, Value, json};
use solver::Definition;
use solver::op::{Op, Source};

use super::{Attestation, Mode, Provenance, Version, package_url};
use crate::show::rfc3339;

/// What is told of a build.
#[derive(Clone, Debug)]
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
        if let Some(material) = material(source)
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
    let pinned = sources.iter().all(|source| match source {
        Source::Image { reference, .. } => reference.digest.is_some(),
        Source::Http { checksum, .. } => checksum.is_some(),
        Source::OciLayout { digest, .. } => digest.is_some(),
        Source::Git { .. } => false,
        Source::Local { .. } => true,
    });

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
            json!({ "source": { "infos": [{
                "filename": name,
                "language": "Dockerfile",
                "data": STANDARD.encode(text),
            }] } }),
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
        config_source.insert("uri".to_owned(), json!(remote));
    }
    config_source.insert("path".to_owned(), json!(facts.dockerfile.0));
    let mut internal = json!({ "builderPlatform": Platform::host().to_string() });
    if max {
        internal["buildConfig"] = json!({ "llbDefinition": steps(facts.definition) });
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

fn material(source: &Source) -> Option<Value> {
    let with = |uri: String, digest: Option<Value>| match digest {
        Some(digest) => json!({ "uri": uri, "digest": digest }),
        None => json!({ "uri": uri }),
    };
    match source {
        Source::Image { reference, platform } => {
            let digest = reference.digest.as_ref();
            let uri = package_url(reference, None, platform);
            Some(with(uri, digest.map(|digest| json!({ "sha256": digest.hex() }))))
        }
        Source::OciLayout { path, digest, .. } => {
            let digest = digest.as_ref().map(|digest| json!({ "sha256": digest.hex() }));
            Some(with(format!("pkg:oci/{}", path.trim_start_matches('/')), digest))
        }
        Source::Git { remote, reference, checksum, .. } => {
            let uri = match reference {
                Some(reference) => format!("{remote}#{reference}"),
                None => remote.clone(),
            };
            Some(with(uri, checksum.as_ref().map(|commit| json!({ "sha1": commit }))))
        }
        Source::Http { url, checksum, .. } => {
            let digest = checksum.as_ref().map(|digest| json!({ "sha256": digest.hex() }));
            Some(with(url.clone(), digest))
        }
        Source::Local { .. } => None,
    }
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

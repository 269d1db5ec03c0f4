//! Provenance and bills of materials, as tools that know BuildKit's find them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::{Base, TestEnv};

fn blob(layout: &Path, digest: &Value) -> Value {
    let digest = digest.as_str().expect("a digest").replace(':', "/");
    let bytes = std::fs::read(layout.join("blobs").join(digest)).expect("the blob is in the layout");
    serde_json::from_slice(&bytes).expect("it is JSON")
}

/// The index of a layout that holds one, and its statements by predicate type.
fn statements(layout: &Path) -> (Value, Vec<(String, Value)>) {
    let entry: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).expect("a layout")).expect("JSON");
    let index = blob(layout, &entry["manifests"][0]["digest"]);
    let manifests = index["manifests"].as_array().expect("attestations make an index").clone();
    let mut found = Vec::new();
    for descriptor in manifests {
        if descriptor["annotations"]["vnd.docker.reference.type"] == "attestation-manifest" {
            let manifest = blob(layout, &descriptor["digest"]);
            for layer in manifest["layers"].as_array().expect("statements are layers") {
                let kind = layer["annotations"]["in-toto.io/predicate-type"].as_str().expect("a type");
                found.push((kind.to_owned(), blob(layout, &layer["digest"])));
            }
        }
    }
    (index, found)
}

fn build(env: &TestEnv, flags: &[&str], context: &Path) -> PathBuf {
    let layout = env.work().join(format!("layout{}", flags.len()));
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    let context = context.display().to_string();
    let mut args = vec!["-t", "x:1", "-o", &output];
    args.extend(flags);
    args.push(&context);
    let _ = env.rbuild(args).ok();
    layout
}

#[test]
fn what_is_said_names_the_image_and_tells_no_secret() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let lock = "version = 4\n[[package]]\nname = \"serde\"\nversion = \"1.0.1\"\n";
    let dockerfile = "FROM busybox:1\nARG TOKEN\nCOPY Cargo.lock /src/\nCOPY dpkg /var/lib/dpkg/status\n";
    let dpkg = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\n";
    let context = env.context("said", &[("Dockerfile", dockerfile), ("Cargo.lock", lock), ("dpkg", dpkg)]);

    let plain = build(&env, &[], &context);
    let entry: Value =
        serde_json::from_slice(&std::fs::read(plain.join("index.json")).unwrap()).expect("JSON");
    assert_eq!(entry["manifests"][0]["mediaType"], "application/vnd.oci.image.manifest.v1+json");

    let layout = build(
        &env,
        &[
            "--sbom=true",
            "--provenance=mode=min",
            "--build-arg=TOKEN=hunter2",
            "--secret=id=s,src=/etc/hostname",
        ],
        &context,
    );
    let (index, said) = statements(&layout);
    let about = &index["manifests"][0]["digest"];
    assert_eq!(index["manifests"][1]["annotations"]["vnd.docker.reference.digest"], *about);
    assert_eq!(index["manifests"][1]["platform"]["os"], "unknown");
    let kinds: Vec<&str> = said.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["https://spdx.dev/Document", "https://slsa.dev/provenance/v1"]);
    for (_, statement) in &said {
        let hex = &statement["subject"][0]["digest"]["sha256"];
        assert_eq!(format!("sha256:{}", hex.as_str().unwrap()), *about.as_str().unwrap());
        assert!(!statement.to_string().contains("hunter2"));
    }
    let urls: Vec<&str> = said[0].1["predicate"]["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .filter_map(|package| package["externalRefs"][0]["referenceLocator"].as_str())
        .collect();
    assert_eq!(urls, ["pkg:deb/busybox/bash@5.2-1?arch=amd64", "pkg:cargo/serde@1.0.1"]);
    let predicate = &said[1].1["predicate"];
    let uri = predicate["buildDefinition"]["resolvedDependencies"][0]["uri"].as_str();
    assert!(uri.is_some_and(|uri| uri.starts_with("pkg:docker/busybox@1")), "{predicate}");
    assert!(predicate["runDetails"]["metadata"]["startedOn"].is_string());

    let layout = build(&env, &["--provenance=true", "--build-arg=TOKEN=hunter2"], &context);
    let (_, said) = statements(&layout);
    let request = &said[0].1["predicate"]["buildDefinition"]["externalParameters"]["request"];
    assert_eq!(request["args"]["build-arg:TOKEN"], "hunter2");
}

#[test]
fn plain_files_have_them_beside_them() {
    let env = TestEnv::new();
    let context = env.context("files", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /f\n")]);
    let context = context.display().to_string();
    let flags = ["--platform=linux/amd64,linux/arm64", "--provenance=mode=min,version=v0.2,filename=p.json"];
    let build = |output: &str| env.rbuild(flags.iter().copied().chain(["-o", output, &context])).ok();
    let _ = build("type=local,dest=out,attestation-prefix=about-");
    let read = |path: &str| std::fs::read(env.work().join(path)).expect("the file is there");
    let said: Value = serde_json::from_slice(&read("out/linux_arm64/about-p.json")).expect("JSON");
    assert_eq!(said["predicateType"], "https://slsa.dev/provenance/v0.2");
    assert_eq!(said["subject"][0]["name"], "f");
    let _ = build("type=local,dest=one,platform-split=false");
    assert!(!read("one/p.linux_amd64.json").is_empty() && !read("one/f").is_empty());
    let _ = build("type=tar,dest=out.tar");
    let list = std::process::Command::new("tar").arg("-tf").arg(env.work().join("out.tar")).output();
    let list = String::from_utf8(list.expect("tar runs").stdout).expect("names");
    for name in ["linux_amd64/f\n", "linux_amd64/p.json\n", "linux_arm64/f\n"] {
        assert!(list.contains(name), "{list}");
    }
}

#[test]
fn what_cannot_hold_attestations_says_so() {
    let env = TestEnv::new();
    let context = env.context("docker", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    let context = context.display().to_string();
    let args = ["--sbom=true", "-o", "type=docker,dest=a.tar", &context];
    let _ = env.rbuild(args).fails_with(2).says("cannot hold attestations");
    let _ = env.rbuild(["--provenance=mode=mid", &context]).fails_with(2).says("mode is min or max");
}

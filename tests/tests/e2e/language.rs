//! The Dockerfile language: each folder of `fixtures/language` is a Dockerfile with its context, and what its image must
//! be: config, history, and every entry of every layer; or what must be said when it is refused.
//!
//! `expected.json` has `args` (for the build), `setup` (a script that makes what git cannot keep, run in a copy of the
//! folder), and either `refused` (what standard error says) or `config`, `history` and `layers`. Entries read
//! `MODE UID:GID PATH`, with `/` behind directories, `-> TARGET` behind symbolic links, `== NAME` behind hard links, and
//! `= "TEXT"` behind short files.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use image::layer::{TarEntry, TarKind, TarReader};
use serde_json::{Map, Value, json};
use tests::{Base, Outcome, TestEnv};

/// Files up to this long are compared by content.
const SHORT: u64 = 200;

#[test]
fn every_case_builds_as_expected() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/language");
    let mut names: Vec<_> = fs::read_dir(&cases)
        .expect("the directory is there")
        .map(|entry| {
            entry.expect("a directory can be listed").file_name().into_string().expect("it is UTF-8")
        })
        .collect();
    names.sort();
    let failed: Vec<String> = names.iter().filter_map(|name| try_case(&env, &cases, name).err()).collect();
    assert!(failed.is_empty(), "{} of {} cases\n\n{}", failed.len(), names.len(), failed.join("\n\n"));
}

fn try_case(env: &TestEnv, cases: &Path, name: &str) -> Result<(), String> {
    let dir = env.work().join(name);
    let copied = Outcome::of(Command::new("cp").arg("-r").arg(cases.join(name)).arg(&dir));
    let _ = copied.ok();
    let text = fs::read(dir.join("expected.json")).unwrap_or_else(|_| panic!("{name} has an expected.json"));
    let mut expected: Map<String, Value> =
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    if let Some(Value::String(script)) = expected.remove("setup") {
        let mut shell = env.command(Path::new("/bin/sh"));
        let _ = Outcome::of(shell.args(["-euc", &script]).current_dir(&dir)).ok();
    }
    let mut command = env.command(tests::env::rbuild());
    command.current_dir(&dir).args(["build", "--progress=plain", "-f", "Dockerfile", "--output"]);
    command.arg("type=oci,tar=false,compression=uncompressed,dest=image");
    for arg in expected.remove("args").as_ref().and_then(Value::as_array).into_iter().flatten() {
        command.arg(arg.as_str().expect("arguments are strings"));
    }
    let outcome = Outcome::of(command.arg("context"));
    if let Some(refused) = expected.remove("refused") {
        let texts = refused.as_array().expect("a list of texts");
        let missing: Vec<&Value> =
            texts.iter().filter(|text| !outcome.stderr.contains(text.as_str().expect("texts"))).collect();
        return match outcome.status.code() {
            // The Dockerfile, a step, or an image that is nowhere.
            Some(1..=6) if missing.is_empty() && !outcome.stderr.contains("panicked") => Ok(()),
            _ => Err(format!("{name}: not refused, or without {missing:?}\n{outcome}")),
        };
    }
    if !outcome.status.success() {
        return Err(format!("{name}: {outcome}"));
    }
    let built = summary(&dir.join("image"));
    if built == Value::Object(expected) {
        return Ok(());
    }
    let pretty = serde_json::to_string_pretty(&built).expect("it is JSON");
    // For a new case, to be read and then kept.
    if std::env::var_os("RBUILD_BLESS").is_some() {
        fs::write(cases.join(name).join("expected.json.new"), &pretty).expect("a file can be written");
    }
    Err(format!("{name}: another image:\n{pretty}"))
}

/// What is compared of the image in an OCI layout; what it has from its base is left out.
fn summary(layout: &Path) -> Value {
    let read = |path: &str| fs::read(layout.join(path)).expect("the layout is complete");
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("it is JSON");
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().expect("descriptors have digests");
        read(&format!("blobs/{}", digest.replace(':', "/")))
    };
    let manifest = json(&blob(&json(&read("index.json"))["manifests"][0]));
    let mut config = json(&blob(&manifest["config"]));
    let history = config["history"].as_array().expect("images have a history");
    let own = |entry: &&Value| {
        let text = entry["created_by"].as_str().unwrap_or_default();
        !text.starts_with("ADD root.tar")
            && text != "CMD [\"sh\"]"
            && !text.starts_with("ENV PATH=/usr/local")
    };
    let own: Vec<&Value> = history.iter().filter(own).collect();
    let bases = history.iter().filter(|entry| entry["empty_layer"] != true).count()
        - own.iter().filter(|entry| entry["empty_layer"] != true).count();
    let layers = manifest["layers"].as_array().expect("images have layers");
    json!({
        "history": own.iter().map(|entry| entry["created_by"].clone()).collect::<Value>(),
        "layers": layers[bases..].iter().map(|layer| entries(&blob(layer))).collect::<Value>(),
        "config": config["config"].take(),
    })
}

fn entries(tar: &[u8]) -> Value {
    let mut reader = TarReader::new(tar);
    let mut lines = Vec::new();
    while let Some(entry) = reader.next_entry().expect("the layer can be read") {
        let TarEntry { path, kind, mode, uid, gid, .. } = entry;
        let line = format!("{mode:04o} {uid}:{gid} {path}");
        lines.push(match kind {
            TarKind::Directory => format!("{line}/"),
            TarKind::Symlink(target) => format!("{line} -> {target}"),
            TarKind::Hardlink(target) => format!("{line} == {target}"),
            TarKind::File { size, .. } if size <= SHORT => {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).expect("the layer can be read");
                match String::from_utf8(bytes) {
                    Ok(text) => format!("{line} = {text:?}"),
                    Err(_) => line,
                }
            }
            TarKind::File { .. } => line,
            other => format!("{line} {other:?}"),
        });
    }
    lines.into_iter().collect()
}

//! Attestations: what is said about an image beside it. `--provenance`, `--sbom` and `--attest` ask for them,
//! `provenance` and `crate::sbom` make them, `export` stores them.

pub(crate) mod provenance;

use std::collections::BTreeMap;

use image::{Digest, Platform, Reference};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::request::{csv, parse_bool};

/// The media type of a statement.
pub(crate) const STATEMENT: &str = "application/vnd.in-toto+json";

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) provenance: Option<Provenance>,
    pub(crate) sbom: bool,
}

/// `--provenance`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Provenance {
    pub(crate) mode: Mode,
    /// `builder-id`.
    pub(crate) builder: String,
    /// The caller says that the build is reproducible.
    pub(crate) reproducible: bool,
    pub(crate) version: Version,
    /// Its file beside plain files, if it is to have another name.
    pub(crate) filename: Option<String>,
}

/// How much is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// No arguments, no Dockerfile.
    Min,
    #[default]
    Max,
}

/// Which SLSA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Version {
    #[default]
    V1,
    V0_2,
}

/// One attestation about one image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attestation {
    pub(crate) predicate_type: &'static str,
    pub(crate) predicate: Value,
    /// Its file beside plain files.
    pub(crate) file: String,
}

impl Wanted {
    /// Reads `--provenance`, `--sbom` and `--attest`; the more special flags go before the general one.
    pub(crate) fn new(
        provenance: Option<&str>,
        sbom: Option<&str>,
        attest: &[String],
    ) -> Result<Self, Failure> {
        let mut wanted = Self::default();
        for text in attest.iter().filter(|text| !text.is_empty()) {
            let invalid = |why: &str| Failure::usage(format!("invalid --attest {text:?}: {why}"));
            let mut fields = fields(text).map_err(|why| invalid(&why))?;
            match fields.remove("type").as_deref() {
                Some("provenance") => {
                    wanted.provenance = provenance_of(fields).map_err(|why| invalid(&why))?;
                }
                Some("sbom") => wanted.sbom = sbom_of(fields).map_err(|why| invalid(&why))?,
                Some(_) => return Err(invalid("type is provenance or sbom")),
                None => return Err(invalid("type is missing")),
            }
        }
        if let Some(text) = provenance.filter(|text| !text.is_empty()) {
            let invalid = |why: String| Failure::usage(format!("invalid --provenance {text:?}: {why}"));
            wanted.provenance = fields(text).and_then(provenance_of).map_err(invalid)?;
        }
        if let Some(text) = sbom.filter(|text| !text.is_empty()) {
            let invalid = |why: String| Failure::usage(format!("invalid --sbom {text:?}: {why}"));
            wanted.sbom = fields(text).and_then(sbom_of).map_err(invalid)?;
        }
        Ok(wanted)
    }
}

/// `key=value,..`; a lone `true` or `false` is `disabled`.
fn fields(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut fields = BTreeMap::new();
    for field in csv(text)? {
        match field.split_once('=') {
            Some((key, value)) => fields.insert(key.trim().to_ascii_lowercase(), value.to_owned()),
            None if field.is_empty() => None,
            None => fields.insert("disabled".to_owned(), (!boolean(&field)?).to_string()),
        };
    }
    Ok(fields)
}

fn boolean(text: &str) -> Result<bool, String> {
    parse_bool("", text).map_err(|_| format!("expected true, false or key=value, got {text:?}"))
}

fn provenance_of(fields: BTreeMap<String, String>) -> Result<Option<Provenance>, String> {
    let mut provenance = Provenance::default();
    let mut disabled = false;
    for (key, value) in fields {
        match (key.as_str(), value.as_str()) {
            ("disabled", value) => disabled = boolean(value)?,
            ("mode", "min") => provenance.mode = Mode::Min,
            ("mode", "max") => provenance.mode = Mode::Max,
            ("mode", _) => return Err("mode is min or max".to_owned()),
            ("builder-id", id) => id.clone_into(&mut provenance.builder),
            ("reproducible", value) => provenance.reproducible = boolean(value)?,
            ("version", "v1") => provenance.version = Version::V1,
            ("version", "v0.2") => provenance.version = Version::V0_2,
            ("version", _) => return Err("version is v1 or v0.2".to_owned()),
            ("filename", name) if name.is_empty() || name.contains('/') => {
                return Err("filename is the name of a file, without a directory".to_owned());
            }
            ("filename", name) => provenance.filename = Some(name.to_owned()),
            // Where it goes is the output's business here.
            ("inline-only", _) => {}
            (key, _) => return Err(format!("unknown key {key:?}")),
        }
    }
    Ok((!disabled).then_some(provenance))
}

fn sbom_of(fields: BTreeMap<String, String>) -> Result<bool, String> {
    let mut disabled = false;
    for (key, value) in fields {
        match key.as_str() {
            "disabled" => disabled = boolean(&value)?,
            // BuildKit's own default: what rbuild finds by itself stands in for it.
            "generator" if value.starts_with("docker/buildkit-syft-scanner") => {}
            "generator" => {
                return Err(
                    "rbuild has a scanner of its own and runs no other: leave generator out".to_owned()
                );
            }
            key => return Err(format!("unknown key {key:?}")),
        }
    }
    Ok(!disabled)
}

/// An in-toto statement about `subjects`.
pub(crate) fn statement(attestation: &Attestation, subjects: Vec<Value>) -> Vec<u8> {
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": attestation.predicate_type,
        "subject": subjects,
        "predicate": attestation.predicate,
    });
    serde_json::to_vec_pretty(&statement).expect("JSON values can be written")
}

/// What a statement is about: the image that has this manifest, under all its names.
pub(crate) fn subjects(manifest: &Digest, names: &[Reference], platform: &Platform) -> Vec<Value> {
    let digest = json!({ "sha256": manifest.hex() });
    if names.is_empty() {
        return vec![json!({ "name": "_", "digest": digest })];
    }
    let subject = |name| json!({ "name": package_url(name, None, platform), "digest": digest });
    names.iter().map(subject).collect()
}

/// An image as a package URL: `pkg:docker/alpine@3?platform=linux%2Famd64`.
pub(crate) fn package_url(reference: &Reference, digest: Option<&Digest>, platform: &Platform) -> String {
    let mut name = reference.familiar();
    if let Some((before, _)) = name.split_once('@') {
        name = before.to_owned();
    }
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (name.as_str(), "latest"),
    };
    let platform = platform.to_string().replace('/', "%2F");
    let digest = digest.map(|digest| format!("digest={digest}&")).unwrap_or_default();
    format!("pkg:docker/{}@{tag}?{digest}platform={platform}", name.replace(':', "%3A"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(provenance: Option<&str>, sbom: Option<&str>, attest: &[&str]) -> Result<Wanted, Failure> {
        let attest: Vec<String> = attest.iter().map(|text| (*text).to_owned()).collect();
        Wanted::new(provenance, sbom, &attest)
    }

    #[test]
    fn flags_are_those_of_buildx() {
        let mode = |text: &str| wanted(Some(text), None, &[]).unwrap().provenance.map(|found| found.mode);
        assert_eq!(mode("true"), Some(Mode::Max));
        assert_eq!(mode("mode=min"), Some(Mode::Min));
        assert_eq!(mode("false"), None);
        assert_eq!(mode("mode=min,disabled=true"), None);
        assert!(wanted(None, Some("true"), &[]).unwrap().sbom);
        assert!(wanted(None, None, &["type=sbom"]).unwrap().sbom);
        assert!(!wanted(None, Some("false"), &["type=sbom"]).unwrap().sbom);
        let both =
            wanted(None, None, &["type=provenance,mode=min,builder-id=https://b", "type=sbom"]).unwrap();
        assert_eq!(both.provenance.unwrap().builder, "https://b");
        for bad in ["type=x", "mode=max", "type=provenance,mode=mid", "type=sbom,generator=other"] {
            assert!(wanted(None, None, &[bad]).is_err(), "{bad}");
        }
        assert_eq!(wanted(None, None, &[]).unwrap(), Wanted::default());
    }

    #[test]
    fn images_have_package_urls() {
        let url = |name: &str| {
            package_url(&name.parse().unwrap(), None, &Platform::new("linux", "arm", Some("v7")))
        };
        assert_eq!(url("alpine:3"), "pkg:docker/alpine@3?platform=linux%2Farm%2Fv7");
        assert_eq!(url("r:5000/a/b"), "pkg:docker/r%3A5000/a/b@latest?platform=linux%2Farm%2Fv7");
    }
}

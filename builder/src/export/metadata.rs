//! `--metadata-file` and `--iidfile`: what was built, for whoever called.

use std::path::Path;

use image::{Descriptor, Platform};
use serde_json::{Map, Value, json};

use super::{Exported, file};
use crate::failure::Failure;

/// What `--metadata-file` tells of a build.
#[derive(Clone, Debug)]
pub(crate) struct Built<'a> {
    /// The build's name.
    pub(crate) build_ref: &'a str,
    /// The image, if the build made one.
    pub(crate) exported: Option<&'a Exported>,
    /// How it was made, for each platform.
    pub(crate) provenance: &'a [(Platform, Value)],
    /// Findings of the linter.
    pub(crate) warnings: Vec<Value>,
    /// The last cache that was written.
    pub(crate) cache: Option<&'a Descriptor>,
}

/// The keys that buildx writes.
pub(crate) fn metadata(built: &Built<'_>) -> Value {
    let mut all = Map::new();
    all.insert("buildx.build.ref".to_owned(), json!(built.build_ref));
    match built.provenance {
        [(_, one)] => {
            all.insert("buildx.build.provenance".to_owned(), one.clone());
        }
        several => {
            let key = |platform: &Platform| format!("buildx.build.provenance/{platform}");
            all.extend(several.iter().map(|(platform, one)| (key(platform), one.clone())));
        }
    }
    if !built.warnings.is_empty() {
        all.insert("buildx.build.warnings".to_owned(), json!(built.warnings));
    }
    if let Some(cache) = built.cache {
        // A text that holds JSON: that is how BuildKit's exporters of caches say it.
        let descriptor = serde_json::to_string(&brief(cache)).expect("a descriptor has string keys only");
        all.insert("cache.manifest".to_owned(), json!(descriptor));
    }
    if let Some(Exported { descriptor, config, names }) = built.exported {
        if let Some(config) = config {
            all.insert("containerimage.config.digest".to_owned(), json!(config));
        }
        all.insert("containerimage.descriptor".to_owned(), json!(brief(descriptor)));
        all.insert("containerimage.digest".to_owned(), json!(descriptor.digest));
        if !names.is_empty() {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            all.insert("image.name".to_owned(), json!(names.join(",")));
        }
    }
    all.sort_keys();
    Value::Object(all)
}

/// A descriptor without what only an index needs.
fn brief(descriptor: &Descriptor) -> Descriptor {
    Descriptor { platform: None, urls: Vec::new(), ..descriptor.clone() }
}

/// Writes `--metadata-file`.
pub(crate) fn write_metadata(path: &Path, metadata: &Value) -> Result<(), Failure> {
    let bytes = serde_json::to_vec_pretty(metadata).expect("JSON values can be written");
    file::write(path, &bytes)
}

/// Writes `--iidfile`: the image ID, or the digest of what has none.
pub(crate) fn write_iidfile(path: &Path, exported: &Exported) -> Result<(), Failure> {
    let id = exported.config.unwrap_or(exported.descriptor.digest);
    file::write(path, id.to_string().as_bytes())
}

/// Removes the iidfile of an earlier build, so that a build that fails leaves none.
pub(crate) fn remove_iidfile(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::usage(format!("could not remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use image::Digest;
    use image::manifest::media_type;

    use super::*;

    #[test]
    fn metadata_has_buildx_s_keys() {
        let dir = tempfile::tempdir().unwrap();
        let exported = Exported {
            descriptor: Descriptor::of(media_type::OCI_MANIFEST, b"{}"),
            config: Some(Digest::of(b"config")),
            names: vec!["x:1".parse().unwrap(), "localhost:5000/y:2".parse().unwrap()],
        };
        let nothing =
            Built { build_ref: "r", exported: None, provenance: &[], warnings: Vec::new(), cache: None };
        assert_eq!(metadata(&nothing), json!({ "buildx.build.ref": "r" }));
        let cache = Descriptor::of(media_type::OCI_MANIFEST, b"cache");
        let one = |architecture| (Platform::new("linux", architecture, None), json!({ "of": architecture }));
        let value = metadata(&Built {
            exported: Some(&exported),
            provenance: &[one("amd64")],
            warnings: vec![json!({ "level": 1 })],
            cache: Some(&cache),
            ..nothing.clone()
        });
        let path = dir.path().join("metadata.json");
        write_metadata(&path, &value).unwrap();
        let read: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(read["image.name"], "docker.io/library/x:1,localhost:5000/y:2");
        assert_eq!(read["containerimage.digest"], Digest::of(b"{}").to_string());
        assert_eq!(read["containerimage.config.digest"], Digest::of(b"config").to_string());
        assert_eq!(
            read["containerimage.descriptor"],
            json!({ "mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(b"{}"), "size": 2 })
        );
        assert_eq!(read["buildx.build.provenance"], json!({ "of": "amd64" }));
        assert_eq!(read["buildx.build.warnings"][0]["level"], 1);
        let cache_manifest: Value = serde_json::from_str(read["cache.manifest"].as_str().unwrap()).unwrap();
        assert_eq!(cache_manifest["digest"], cache.digest.to_string());

        let several = metadata(&Built { provenance: &[one("amd64"), one("arm64")], ..nothing });
        assert_eq!(several["buildx.build.provenance/linux/arm64"], json!({ "of": "arm64" }));
        assert_eq!(several["buildx.build.provenance"], Value::Null);
    }

    #[test]
    fn the_iidfile_has_the_id_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("iid");
        let descriptor = Descriptor::of(media_type::OCI_INDEX, b"{}");
        let mut exported = Exported { descriptor, config: Some(Digest::of(b"c")), names: Vec::new() };
        write_iidfile(&path, &exported).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), Digest::of(b"c").to_string());
        exported.config = None;
        write_iidfile(&path, &exported).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), Digest::of(b"{}").to_string());
        remove_iidfile(&path).unwrap();
        remove_iidfile(&path).unwrap();
        assert!(!path.exists());
    }
}

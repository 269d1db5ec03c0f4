//! What `--output` says beyond its type, with BuildKit's keys and meaning.

use std::collections::BTreeMap;

use image::{Platform, Reference};
use store::compress::{Algorithm, Compression};

use crate::failure::Failure;
use crate::request::{Output, OutputKind};

/// Keys that are taken and have no effect here: there is nothing to unpack into.
const IGNORED: [&str; 7] = [
    "unpack",
    "dangling-name-prefix",
    "danging-name-empty-only",
    "prefer-nondist-layers",
    "buildinfo",
    "buildinfo-attrs",
    "oci-artifact",
];

/// The options of an image exporter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    /// `-t` and `name=`.
    pub(crate) names: Vec<Reference>,
    /// OCI media types, not Docker's.
    pub(crate) oci: bool,
    pub(crate) compression: Compression,
    /// Also what already has a compressed form.
    pub(crate) force_compression: bool,
    /// Layers become eStargz, which are other layers: see [`super::estargz`].
    pub(crate) estargz: bool,
    pub(crate) annotations: Annotations,
    /// One file, not a directory.
    pub(crate) tar: bool,
    pub(crate) push: bool,
    pub(crate) push_by_digest: bool,
    /// Also under `name@digest`.
    pub(crate) name_canonical: bool,
    /// The registry's certificate need not be valid.
    pub(crate) insecure: bool,
    /// Keep it in the store.
    pub(crate) store: bool,
}

/// Notes on manifests, indexes, and the descriptors that point at them; those of one platform only carry it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Annotations {
    pub(crate) manifest: Vec<Annotation>,
    pub(crate) manifest_descriptor: Vec<Annotation>,
    pub(crate) index: Vec<Annotation>,
    pub(crate) index_descriptor: Vec<Annotation>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Annotation {
    pub(crate) platform: Option<Platform>,
    pub(crate) name: String,
    pub(crate) value: String,
}

impl Options {
    /// Reads the options of `output` for an image that is also called `tags`.
    pub(crate) fn new(output: &Output, tags: &[Reference]) -> Result<Self, Failure> {
        let mut names = tags.to_vec();
        let (mut algorithm, mut level) = (Algorithm::Gzip, None);
        let mut estargz = false;
        let mut annotations = Annotations::default();
        for (key, value) in &output.options {
            match key.as_str() {
                // Which Docker: read where that is looked for.
                "context" if output.kind == OutputKind::Load => {}
                "name" => names.extend(parse_names(value)?),
                "compression" if value == "estargz" => estargz = true,
                "compression" => algorithm = parse_algorithm(value)?,
                "compression-level" => {
                    level = Some(value.parse().map_err(|_| {
                        Failure::usage(format!("compression-level is a number, not {value:?}"))
                    })?);
                }
                // What layers an image has is decided before: see `Output::rewrites_times`.
                "rewrite-timestamp" | "force-compression" | "oci-mediatypes" | "tar" | "push"
                | "push-by-digest" | "name-canonical" | "registry.insecure" | "store" => {}
                key if IGNORED.contains(&key) => {}
                key if key.starts_with("annotation") => annotations.add(key, value)?,
                key => return Err(Failure::usage(format!("unknown option {key:?} in --output"))),
            }
        }
        names.dedup();
        let flag = |key: &str, default| Ok::<_, Failure>(output.flag(key)?.unwrap_or(default));
        if flag("rewrite-timestamp", false)? && flag("unpack", false)? {
            return Err(Failure::usage("rewrite-timestamp and unpack cannot be used together"));
        }
        let force_compression = flag("force-compression", false)?;
        let push_by_digest = flag("push-by-digest", false)?;
        if push_by_digest && names.iter().any(|name| name.tag.is_some() && !tags.contains(name)) {
            return Err(Failure::usage("push-by-digest cannot be used with names that have a tag"));
        }
        if estargz && output.flag("oci-mediatypes")? == Some(false) {
            return Err(Failure::usage("compression=estargz needs oci-mediatypes=true"));
        }
        Ok(Self {
            // Docker's manifests have no annotations.
            oci: flag("oci-mediatypes", !matches!(output.kind, OutputKind::Docker | OutputKind::Load))?
                || estargz
                || annotations != Annotations::default(),
            estargz,
            compression: Compression::new(algorithm, level)
                .map_err(|error| Failure::usage(error.to_string()))?,
            force_compression,
            annotations,
            tar: flag("tar", true)?,
            push: flag("push", false)?,
            push_by_digest,
            name_canonical: flag("name-canonical", false)?,
            insecure: flag("registry.insecure", false)?,
            store: flag("store", true)?,
            names,
        })
    }
}

fn parse_names(text: &str) -> Result<Vec<Reference>, Failure> {
    text.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let reference: Reference = name
                .parse()
                .map_err(|error| Failure::usage(format!("invalid name {name:?} in --output: {error}")))?;
            Ok(reference)
        })
        .collect()
}

fn parse_algorithm(text: &str) -> Result<Algorithm, Failure> {
    match text {
        "gzip" => Ok(Algorithm::Gzip),
        "zstd" => Ok(Algorithm::Zstd),
        "uncompressed" => Ok(Algorithm::None),
        other => Err(Failure::usage(format!(
            "unknown compression {other:?}: expected gzip, zstd, estargz or uncompressed"
        ))),
    }
}

impl Annotations {
    /// Adds `annotation[-LEVEL][[PLATFORM]].NAME` = `value`.
    fn add(&mut self, key: &str, value: &str) -> Result<(), Failure> {
        let invalid = |why: &str| Failure::usage(format!("invalid option {key:?} in --output: {why}"));
        let rest = key.strip_prefix("annotation").unwrap_or(key);
        // Platforms have no dot in front of their bracket, names may have both.
        let (place, name) = match rest.split_once("].") {
            Some((place, name))
                if place.contains('[') && !place[..place.find('[').unwrap_or(0)].contains('.') =>
            {
                (format!("{place}]"), name)
            }
            _ => {
                let (place, name) = rest.split_once('.').ok_or_else(|| invalid("the name is missing"))?;
                (place.to_owned(), name)
            }
        };
        let (level, platform) = match place.split_once('[') {
            Some((level, platform)) => {
                let platform = platform.trim_end_matches(']');
                (level, Some(platform.parse::<Platform>().map_err(|error| invalid(&error.to_string()))?))
            }
            None => (place.as_str(), None),
        };
        if name.is_empty() {
            return Err(invalid("the name is missing"));
        }
        let list = match level {
            "" | "-manifest" => &mut self.manifest,
            "-manifest-descriptor" => &mut self.manifest_descriptor,
            "-index" => &mut self.index,
            "-index-descriptor" => &mut self.index_descriptor,
            _ => {
                return Err(invalid(
                    "expected annotation, annotation-manifest, annotation-manifest-descriptor, \
                     annotation-index or annotation-index-descriptor",
                ));
            }
        };
        list.push(Annotation { platform, name: name.to_owned(), value: value.to_owned() });
        Ok(())
    }

    /// The notes for a document of `platform`.
    pub(crate) fn of(list: &[Annotation], platform: Option<&Platform>) -> BTreeMap<String, String> {
        let applies = |annotation: &&Annotation| match &annotation.platform {
            None => true,
            Some(wanted) => platform.is_some_and(|platform| platform == wanted),
        };
        list.iter()
            .filter(applies)
            .map(|annotation| (annotation.name.clone(), annotation.value.clone()))
            .collect()
    }
}

/// What `--annotation "[LEVEL[PLATFORM],..:]NAME=VALUE"` means as options of an output.
pub(crate) fn annotation_flag(text: &str) -> Result<Vec<(String, String)>, Failure> {
    let invalid = |why: &str| Failure::usage(format!("invalid --annotation {text:?}: {why}"));
    let (key, value) = text.split_once('=').ok_or_else(|| invalid("expected name=value"))?;
    let is_level = |text: &str| {
        let level = text.split('[').next().unwrap_or(text);
        matches!(level, "manifest" | "manifest-descriptor" | "index" | "index-descriptor")
    };
    // Names may have colons as well.
    let (levels, name) = match key.split_once(':') {
        Some((levels, name)) if levels.split(',').all(is_level) => (levels, name),
        _ => ("manifest", key),
    };
    if name.is_empty() {
        return Err(invalid("the name is empty"));
    }
    Ok(levels.split(',').map(|level| (format!("annotation-{level}.{name}"), value.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: OutputKind, pairs: &[(&str, &str)]) -> Result<Options, Failure> {
        let options = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Options::new(&Output { kind, dest: None, options }, &["a:1".parse().unwrap()])
    }

    #[test]
    fn names_come_from_tags_and_from_the_output() {
        let options = options(OutputKind::Oci, &[("name", "b:2, c")]).unwrap();
        let names: Vec<String> = options.names.iter().map(Reference::familiar).collect();
        assert_eq!(names, ["a:1", "b:2", "c"]);
    }

    #[test]
    fn media_types_are_docker_s_for_docker_unless_there_are_annotations() {
        assert!(options(OutputKind::Oci, &[]).unwrap().oci);
        assert!(!options(OutputKind::Docker, &[]).unwrap().oci);
        assert!(options(OutputKind::Docker, &[("annotation.a", "b")]).unwrap().oci);
        assert!(!options(OutputKind::Image, &[("oci-mediatypes", "false")]).unwrap().oci);
    }

    #[test]
    fn what_is_not_an_option_is_refused() {
        for (key, value) in [
            ("compresion", "zstd"),
            ("compression", "xz"),
            ("compression-level", "high"),
            ("compression-level", "10"),
            ("annotation", "x"),
            ("annotation.", "x"),
            ("annotation-layer.a", "x"),
            ("push", "perhaps"),
            ("rewrite-timestamp", "perhaps"),
        ] {
            assert!(options(OutputKind::Image, &[(key, value)]).is_err(), "{key}={value}");
        }
        let zstd =
            options(OutputKind::Image, &[("compression", "zstd"), ("compression-level", "19")]).unwrap();
        assert_eq!(zstd.compression, Compression { algorithm: Algorithm::Zstd, level: 19 });
    }

    #[test]
    fn annotations_have_a_level_and_a_platform() {
        let options = options(
            OutputKind::Image,
            &[
                ("annotation.org.a", "1"),
                ("annotation-manifest[linux/arm64].org.b", "2"),
                ("annotation-index.x[1].y", "3"),
            ],
        )
        .unwrap();
        let arm = Platform::new("linux", "arm64", None);
        let amd = Platform::new("linux", "amd64", None);
        let of = |platform| Annotations::of(&options.annotations.manifest, Some(platform));
        assert_eq!(of(&arm).len(), 2);
        assert_eq!(of(&amd).into_keys().collect::<Vec<_>>(), ["org.a"]);
        assert_eq!(options.annotations.index[0].name, "x[1].y");
    }

    #[test]
    fn the_annotation_flag_names_levels_in_front_of_a_colon() {
        let keys = |text: &str| -> Vec<String> {
            annotation_flag(text).unwrap().into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys("a=b=c"), ["annotation-manifest.a"]);
        assert_eq!(
            keys("index,manifest[linux/amd64]:a=b"),
            ["annotation-index.a", "annotation-manifest[linux/amd64].a"]
        );
        assert_eq!(keys("urn:x=b"), ["annotation-manifest.urn:x"]);
        assert!(annotation_flag("a").is_err());
    }
}

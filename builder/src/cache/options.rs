//! What `--cache-from` and `--cache-to` say, with BuildKit's keys and meaning.

use std::collections::BTreeMap;
use std::path::PathBuf;

use image::{Digest, Reference};
use store::compress::{Algorithm, Compression};

use crate::failure::Failure;
use crate::request::{csv, parse_bool, parse_size};

/// The tag of a local cache that is given none.
const DEFAULT_TAG: &str = "latest";

/// Cache mounts take up to so much in a cache, bytes before compression, if nothing else is said.
const MOUNTS_MAX: u64 = 4 << 30;

/// One `--cache-from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CacheFrom {
    pub(crate) origin: Origin,
    /// Take its cache mounts as well.
    pub(crate) mounts: bool,
}

/// Where a cache comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A cache, or an image with one inside, at a registry.
    Registry { reference: Reference, insecure: bool },
    /// One in an OCI layout.
    Local { src: PathBuf, tag: String, digest: Option<Digest> },
}

/// One `--cache-to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CacheTo {
    pub(crate) target: Target,
    pub(crate) mode: Mode,
    /// `false`: a cache that cannot be written fails the build.
    pub(crate) ignore_error: bool,
    pub(crate) compression: Compression,
    /// Also what has another form already.
    pub(crate) force_compression: bool,
    /// OCI media types, not Docker's.
    pub(crate) oci: bool,
    /// A manifest whose layers are the blobs; else an index that lists them.
    pub(crate) image_manifest: bool,
    /// Leave out layers that take longer to fetch than to make.
    pub(crate) weigh: bool,
    /// Cache mounts go as well, up to so many bytes before compression.
    pub(crate) mounts: Option<u64>,
}

/// Where a cache goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Registry {
        reference: Reference,
        insecure: bool,
    },
    /// An OCI layout.
    Local {
        dest: PathBuf,
        tag: String,
        /// What else is in the layout goes.
        reset: bool,
    },
    /// Into the config of the image that is built.
    Inline,
}

/// Of which steps the layers go. Records of all steps go always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Those in the result.
    Min,
    /// All.
    Max,
}

impl CacheFrom {
    /// Reads one flag.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let mut fields = Fields::parse("--cache-from", text)?;
        let origin = match fields.kind.as_str() {
            "registry" => Origin::Registry {
                reference: fields.reference()?,
                insecure: fields.flag("registry.insecure", false)?,
            },
            "local" => {
                let digest = fields.take("digest").map(|digest| digest.parse()).transpose();
                Origin::Local {
                    src: fields.need("src")?.into(),
                    tag: fields.take("tag").unwrap_or_else(|| DEFAULT_TAG.to_owned()),
                    digest: digest.map_err(|error| fields.invalid(&format!("{error}")))?,
                }
            }
            "inline" => {
                return Err(fields.invalid("an inline cache is read with type=registry,ref=IMAGE"));
            }
            _ => return Err(fields.unknown_type(&["registry", "local"])),
        };
        let mounts = fields.flag("mounts", false)?;
        fields.end()?;
        Ok(Self { origin, mounts })
    }

    /// Its name in messages.
    pub(crate) fn name(&self) -> String {
        match &self.origin {
            Origin::Registry { reference, .. } => reference.familiar(),
            Origin::Local { src, .. } => src.display().to_string(),
        }
    }
}

impl CacheTo {
    /// Reads one flag.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let mut fields = Fields::parse("--cache-to", text)?;
        let target = match fields.kind.as_str() {
            "registry" => Target::Registry {
                reference: fields.reference()?,
                insecure: fields.flag("registry.insecure", false)?,
            },
            "local" => Target::Local {
                dest: fields.need("dest")?.into(),
                tag: fields.take("tag").unwrap_or_else(|| DEFAULT_TAG.to_owned()),
                reset: fields.flag("reset", false)?,
            },
            "inline" => Target::Inline,
            _ => return Err(fields.unknown_type(&["registry", "local", "inline"])),
        };
        let mode = match fields.take("mode").as_deref() {
            None | Some("min") => Mode::Min,
            // As BuildKit: there is nowhere to put other layers.
            Some("max") if target == Target::Inline => Mode::Min,
            Some("max") => Mode::Max,
            Some(_) => return Err(fields.invalid("mode is min or max")),
        };
        let algorithm = match fields.take("compression").as_deref() {
            None | Some("gzip") => Algorithm::Gzip,
            Some("zstd") => Algorithm::Zstd,
            Some("uncompressed") => Algorithm::None,
            Some(_) => return Err(fields.invalid("compression is gzip, zstd or uncompressed")),
        };
        let level = fields.take("compression-level").map(|text| text.parse()).transpose();
        let level = level.map_err(|_| fields.invalid("compression-level is a number"))?;
        let oci = fields.flag("oci-mediatypes", true)?;
        let image_manifest = fields.flag("image-manifest", oci)?;
        if image_manifest && !oci {
            return Err(fields.invalid("image-manifest=true needs oci-mediatypes=true"));
        }
        let weigh = match fields.take("cost").as_deref() {
            None | Some("on") => true,
            Some("off") => false,
            Some(_) => return Err(fields.invalid("cost is on or off")),
        };
        let max = fields.take("mounts-max").map(|text| parse_size("mounts-max", &text)).transpose()?;
        let mounts = fields.flag("mounts", false)?.then_some(max.unwrap_or(MOUNTS_MAX));
        if mounts.is_some() && target == Target::Inline {
            return Err(fields.invalid("an image has no room for cache mounts: use another type"));
        }
        let to = Self {
            target,
            mode,
            ignore_error: fields.flag("ignore-error", true)?,
            compression: Compression::new(algorithm, level)
                .map_err(|error| fields.invalid(&error.to_string()))?,
            force_compression: fields.flag("force-compression", false)?,
            oci,
            image_manifest,
            weigh,
            mounts,
        };
        fields.end()?;
        Ok(to)
    }

    /// Its name in messages.
    pub(crate) fn name(&self) -> String {
        match &self.target {
            Target::Registry { reference, .. } => reference.familiar(),
            Target::Local { dest, .. } => dest.display().to_string(),
            Target::Inline => "the image".to_owned(),
        }
    }
}

/// `type=..,key=value,..`, each key taken once.
struct Fields {
    flag: &'static str,
    text: String,
    kind: String,
    rest: BTreeMap<String, String>,
}

impl Fields {
    fn parse(flag: &'static str, text: &str) -> Result<Self, Failure> {
        let invalid = |why: &str| Failure::usage(format!("invalid {flag} {text:?}: {why}"));
        let fields = csv(text).map_err(|error| invalid(&error))?;
        let mut rest = BTreeMap::new();
        match &fields[..] {
            [] => return Err(invalid("it is empty")),
            // A lone value without `=` is a name at a registry.
            [only] if !only.contains('=') => {
                let rest = BTreeMap::from([("ref".to_owned(), only.clone())]);
                return Ok(Self { flag, text: text.to_owned(), kind: "registry".to_owned(), rest });
            }
            fields => {
                for field in fields {
                    let (key, value) = field
                        .split_once('=')
                        .ok_or_else(|| invalid(&format!("expected key=value, got {field:?}")))?;
                    rest.insert(key.trim().to_ascii_lowercase(), value.to_owned());
                }
            }
        }
        let kind = rest.remove("type").ok_or_else(|| invalid("type is missing"))?;
        Ok(Self { flag, text: text.to_owned(), kind, rest })
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.rest.remove(key)
    }

    fn need(&mut self, key: &str) -> Result<String, Failure> {
        match self.take(key) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(self.invalid(&format!("{key} is missing"))),
        }
    }

    fn flag(&mut self, key: &str, default: bool) -> Result<bool, Failure> {
        self.take(key).map_or(Ok(default), |text| parse_bool(key, &text))
    }

    fn reference(&mut self) -> Result<Reference, Failure> {
        let reference: Reference =
            self.need("ref")?.parse().map_err(|error| self.invalid(&format!("{error}")))?;
        Ok(reference.with_default_tag())
    }

    fn end(&self) -> Result<(), Failure> {
        match self.rest.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.invalid(&format!("unknown option {key:?}"))),
        }
    }

    fn unknown_type(&self, known: &[&str]) -> Failure {
        let known = known.join(", ");
        self.invalid(&format!("unknown type {:?}: expected one of {known}", self.kind))
    }

    fn invalid(&self, why: &str) -> Failure {
        Failure::usage(format!("invalid {} {:?}: {why}", self.flag, self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_to_read_are_named_or_described() {
        let from = |origin| CacheFrom { origin, mounts: false };
        let registry = |text: &str| {
            let reference = text.parse::<Reference>().unwrap().with_default_tag();
            from(Origin::Registry { reference, insecure: false })
        };
        assert_eq!(CacheFrom::parse("example.com/a:b").unwrap(), registry("example.com/a:b"));
        assert_eq!(CacheFrom::parse("type=registry,ref=a").unwrap(), registry("a:latest"));
        let local = CacheFrom::parse("type=local,src=/c,tag=x").unwrap();
        assert_eq!(local, from(Origin::Local { src: "/c".into(), tag: "x".to_owned(), digest: None }));
        assert!(CacheFrom::parse("type=registry,ref=a,mounts=true").unwrap().mounts);
        for bad in [
            "",
            "ref=a",
            "type=registry",
            "type=registry,ref=A B",
            "type=local",
            "type=local,src=/c,digest=md5:0",
            "type=local,src=/c,nonsense=1",
            "type=inline",
            "type=floppy",
            "type=registry,ref=a,b",
        ] {
            assert!(CacheFrom::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn caches_to_write_have_buildkits_options() {
        let to = |text: &str| CacheTo::parse(text).unwrap();
        let plain = to("type=registry,ref=a");
        assert_eq!((plain.mode, plain.ignore_error, plain.image_manifest), (Mode::Min, true, true));
        let full = to("type=local,dest=/c,mode=max,tag=t,reset=true,compression=zstd,compression-level=9,\
             force-compression=true,image-manifest=false,ignore-error=false,cost=off");
        assert_eq!(full.target, Target::Local { dest: "/c".into(), tag: "t".to_owned(), reset: true });
        assert_eq!(full.compression, Compression::new(Algorithm::Zstd, Some(9)).unwrap());
        assert!(full.force_compression && !full.image_manifest && !full.ignore_error && !full.weigh);
        assert_eq!(full.mode, Mode::Max);
        assert!(!to("type=registry,ref=a,oci-mediatypes=false").image_manifest);
        assert_eq!(to("type=inline,mode=max").mode, Mode::Min);
        assert_eq!(plain.mounts, None);
        assert_eq!(to("type=registry,ref=a,mounts=true").mounts, Some(MOUNTS_MAX));
        assert_eq!(to("type=registry,ref=a,mounts=true,mounts-max=1g").mounts, Some(1 << 30));
        for bad in [
            "type=registry,ref=a,mode=all",
            "type=registry,ref=a,compression=lzma",
            "type=registry,ref=a,compression-level=x",
            "type=registry,ref=a,compression-level=99",
            "type=registry,ref=a,oci-mediatypes=false,image-manifest=true",
            "type=registry,ref=a,ignore-error=perhaps",
            "type=local",
            "type=inline,dest=x",
            "type=inline,mounts=true",
            "type=registry,ref=a,mounts-max=much",
        ] {
            assert!(CacheTo::parse(bad).is_err(), "{bad:?}");
        }
    }
}

//! What `--cache-from` and `--cache-to` say, with BuildKit's keys and meaning.

use std::collections::BTreeMap;
use std::path::PathBuf;

use image::{Digest, Reference};
use store::compress::{Algorithm, Compression};
use worker::source::image::OCI_LAYOUT;

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
    /// One in an object store.
    Objects(Objects),
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
    /// An object store.
    Objects(Objects),
    /// Into the config of the image that is built.
    Inline,
}

/// A place in an object store.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) service: Service,
    /// What the service is to be told, by BuildKit's names.
    pub(crate) settings: BTreeMap<&'static str, String>,
    /// The cache's names: it is read under the first one and written under all.
    pub(crate) names: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) blobs_prefix: String,
    pub(crate) manifests_prefix: String,
}

/// A kind of object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    S3,
    Gcs,
    Azblob,
    Redis,
    Fs,
    /// The cache service of GitHub Actions.
    Gha,
}

impl Service {
    const ALL: [Self; 6] = [Self::S3, Self::Gcs, Self::Azblob, Self::Redis, Self::Fs, Self::Gha];

    /// Its `type`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gcs",
            Self::Azblob => "azblob",
            Self::Redis => "redis",
            Self::Fs => "fs",
            Self::Gha => "gha",
        }
    }

    /// Its settings: name, and the variable that is asked where it is not given (BuildKit's); `!` after those that must be
    /// there.
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::S3 => &[
                ("bucket", "AWS_BUCKET!"),
                ("region", "AWS_REGION!"),
                ("endpoint_url", ""),
                ("use_path_style", ""),
                ("access_key_id", ""),
                ("secret_access_key", ""),
                ("session_token", ""),
            ],
            Self::Gcs => &[("bucket", "!"), ("credential_path", ""), ("endpoint_url", "")],
            Self::Azblob => &[
                ("account_url", "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL!"),
                ("account_name", ""),
                ("secret_access_key", "BUILDKIT_AZURE_STORAGE_ACCOUNT_KEY"),
                ("container", "BUILDKIT_AZURE_STORAGE_CONTAINER"),
            ],
            Self::Redis => &[("url", "!"), ("username", ""), ("password", "")],
            Self::Fs => &[("root", "!")],
            // Not needed: outside of a job of GitHub Actions there is no cache, which fails no build.
            Self::Gha => {
                &[("url_v2", "ACTIONS_RESULTS_URL"), ("token", "ACTIONS_RUNTIME_TOKEN"), ("version", "")]
            }
        }
    }
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Settings hold keys.
        f.debug_struct("Objects")
            .field("service", &self.service)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Objects {
    fn parse(service: Service, fields: &mut Fields) -> Result<Self, Failure> {
        let mut settings = BTreeMap::new();
        for (name, variable) in service.settings() {
            let (variable, needed) = variable.strip_suffix('!').map_or((*variable, false), |v| (v, true));
            let other = || (!variable.is_empty()).then(|| std::env::var(variable).ok()).flatten();
            match fields.take(name).or_else(other) {
                Some(value) => drop(settings.insert(*name, value)),
                None if needed => return Err(fields.invalid(&format!("{name} is missing"))),
                None => {}
            }
        }
        if service == Service::Azblob {
            azure(&mut settings);
        }
        // BuildKit's, which mean nothing here: nothing is touched, and OpenDAL decides on retries.
        for ignored in ["touch_refresh", "upload_parallelism", "retry_mode", "retry_max_attempts"] {
            let _ignored = fields.take(ignored);
        }
        if service == Service::Gha {
            // `url` is that of the first service; the others are for BuildKit to see in GitHub's API what is there.
            for ignored in ["url", "timeout", "repository", "ghtoken"] {
                let _ignored = fields.take(ignored);
            }
            return Ok(Self {
                service,
                settings,
                names: vec![fields.take("scope").unwrap_or_else(|| "buildkit".to_owned())],
                prefix: String::new(),
                blobs_prefix: "rbuild-blob-1-".to_owned(),
                manifests_prefix: "rbuild-index-1-".to_owned(),
            });
        }
        let names = fields.take("name").unwrap_or_else(|| "buildkit".to_owned());
        Ok(Self {
            service,
            settings,
            names: names.split(';').map(str::to_owned).collect(),
            prefix: fields.take("prefix").unwrap_or_default(),
            blobs_prefix: fields.take("blobs_prefix").unwrap_or_else(|| "blobs/".to_owned()),
            manifests_prefix: fields.take("manifests_prefix").unwrap_or_else(|| "manifests/".to_owned()),
        })
    }

    /// Whether blobs of caches there and here are the same objects.
    pub(crate) fn has_same_blobs(&self, other: &Self) -> bool {
        let blobs = |objects: &Self| format!("{}{}", objects.prefix, objects.blobs_prefix);
        self.service == other.service && self.settings == other.settings && blobs(self) == blobs(other)
    }

    /// Its name in messages: no keys.
    pub(crate) fn name(&self) -> String {
        let place = ["bucket", "container", "root"].iter().find_map(|name| self.settings.get(name));
        let place = if self.service == Service::Gha { self.names.first() } else { place };
        match place {
            Some(place) => format!("{} {place}", self.service.name()),
            None => self.service.name().to_owned(),
        }
    }
}

/// BuildKit's defaults: the account is the first part of the URL's host.
fn azure(settings: &mut BTreeMap<&'static str, String>) {
    settings.entry("container").or_insert_with(|| "buildkit-cache".to_owned());
    let host = settings["account_url"].split("://").last().unwrap_or_default();
    let account = host.split('.').next().unwrap_or_default().to_owned();
    settings.entry("account_name").or_insert(account);
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
        let origin = match fields.kind.clone().as_str() {
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
            kind => match Service::ALL.into_iter().find(|service| service.name() == kind) {
                Some(service) => Origin::Objects(Objects::parse(service, &mut fields)?),
                None => {
                    return Err(fields.unknown_type(&["registry", "local"]));
                }
            },
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
            Origin::Objects(objects) => objects.name(),
        }
    }
}

impl CacheTo {
    /// Reads one flag.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let mut fields = Fields::parse("--cache-to", text)?;
        let target = match fields.kind.clone().as_str() {
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
            kind => match Service::ALL.into_iter().find(|service| service.name() == kind) {
                Some(service) => Target::Objects(Objects::parse(service, &mut fields)?),
                None => return Err(fields.unknown_type(&["registry", "local", "inline"])),
            },
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

    /// Its name for [`store::speed::Speeds`], by which the speed of what comes from there is known.
    pub(crate) fn place(&self) -> String {
        match &self.target {
            Target::Registry { reference, .. } => reference.registry.clone(),
            Target::Local { .. } => OCI_LAYOUT.to_owned(),
            Target::Objects(objects) => objects.name(),
            Target::Inline => String::new(),
        }
    }

    /// Its name in messages.
    pub(crate) fn name(&self) -> String {
        match &self.target {
            Target::Registry { reference, .. } => reference.familiar(),
            Target::Local { dest, .. } => dest.display().to_string(),
            Target::Objects(objects) => objects.name(),
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

    /// `known`: besides object stores.
    fn unknown_type(&self, known: &[&str]) -> Failure {
        let known: Vec<&str> = known.iter().copied().chain(Service::ALL.map(Service::name)).collect();
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
    fn object_stores_have_buildkits_options_and_their_names_no_keys() {
        let s3 = "type=s3,region=r,bucket=b,name=a;b,prefix=p/,access_key_id=k,secret_access_key=top";
        let from = CacheFrom::parse(s3).unwrap();
        let Origin::Objects(objects) = &from.origin else { panic!("it is a place in S3") };
        assert_eq!((objects.names.len(), &*objects.prefix, &*objects.blobs_prefix), (2, "p/", "blobs/"));
        assert_eq!(from.name(), "s3 b");
        assert!(!format!("{from:?}").contains("top"));
        let azure = "type=azblob,account_url=https://acc.blob.core.windows.net";
        let Origin::Objects(azure) = CacheFrom::parse(azure).unwrap().origin else { panic!("it is a place") };
        assert_eq!(
            (&*azure.settings["account_name"], &*azure.settings["container"]),
            ("acc", "buildkit-cache")
        );
        let gha = CacheFrom::parse("type=gha,scope=x,url_v2=http://h/,token=top,timeout=1m").unwrap();
        let Origin::Objects(gha) = gha.origin else { panic!("it is a place") };
        assert_eq!(
            (&*gha.names[0], &*gha.settings["url_v2"], gha.name()),
            ("x", "http://h/", "gha x".to_owned())
        );
        for bad in ["type=gcs", "type=redis", "type=fs", "type=fs,root=/c,bucket=b", "type=azblob"] {
            assert!(CacheTo::parse(bad).is_err(), "{bad}");
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

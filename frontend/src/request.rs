//! What a build asks of the frontend, and what comes back: plain data.

use std::collections::{BTreeMap, HashMap};

use image::{Digest, ImageConfig, Platform, Reference};
use solver::op::{Network, Source};
use solver::{Definition, VertexId};

use crate::ast::Span;
use crate::diagnostic::Diagnostic;

/// Everything besides the Dockerfile's text that decides the graph.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `--target`; the last stage if none.
    pub target: Option<String>,
    /// `--build-arg`, in order; a later one of the same name wins.
    pub build_args: Vec<(String, String)>,
    /// `--label`.
    pub labels: Vec<(String, String)>,
    /// The platform of the result; `None` for the host's.
    pub platform: Option<Platform>,
    /// The platform that builds; `None` for the host's.
    pub build_platform: Option<Platform>,
    /// `--build-context name=...`.
    pub contexts: BTreeMap<String, NamedContext>,
    /// Where COPY without `--from` reads.
    pub main_context: MainContext,
    /// Patterns of the main context's ignore file, one a line, comments and blanks taken out, not yet cleaned;
    /// with the line each stands on (1-based).
    pub ignore: Vec<(usize, String)>,
    /// `--no-cache`.
    pub no_cache: bool,
    /// `--no-cache-filter`: stage names.
    pub no_cache_filter: Vec<String>,
    /// `--network`: what RUN without `--network` does.
    pub network: Network,
    /// `--add-host`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// `--shm-size`, bytes.
    pub shm_size: Option<u64>,
    /// `--ulimit name=soft:hard`.
    pub ulimits: Vec<String>,
    /// `--cgroup-parent`.
    pub cgroup_parent: Option<String>,
    /// `--allow`: `network.host`, `security.insecure`, `device`, `device=NAME[,alias=NAME]`.
    pub allow: Vec<String>,
    /// The host's devices; `None` if nothing will run, so that nobody looks for them.
    pub devices: Option<Devices>,
    /// Proxy variables of the host's configuration: given to RUN, not in keys or history.
    pub proxy_env: Vec<(String, String)>,
    /// `SOURCE_DATE_EPOCH`, seconds.
    pub source_date_epoch: Option<i64>,
    /// Where the main context is from, if it is from elsewhere; it may have been unpacked on this host.
    pub context_source: Option<Source>,
    /// When sources were made, seconds, as far as that was asked; `None` if they do not say.
    pub times: HashMap<Source, Option<i64>>,
    /// There is more than one `--platform`: names of steps start with theirs.
    pub multi_platform: bool,
}

impl Request {
    /// The same where nothing will run, so that nothing needs permission or has to be there.
    pub fn without_running(&self) -> Self {
        let allow = ["network.host", "security.insecure"].map(str::to_owned).to_vec();
        Self { allow, devices: None, ..self.clone() }
    }
}

/// The main context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one a build")]
pub enum MainContext {
    /// A directory or an unpacked archive on this host: `Source::Local { name: "context" }`.
    #[default]
    Local,
    /// Read from elsewhere: git, http.
    Source(Source),
    /// There is none (`-` with a bare Dockerfile): every path is missing.
    Empty,
}

/// Devices of the host that a RUN can have: what its CDI specs describe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// Sorted by name.
    pub list: Vec<HostDevice>,
    /// Where specs were looked for.
    pub directories: Vec<String>,
    /// What is wrong with specs, for the error if a device is missing.
    pub problems: Vec<String>,
}

/// A device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// `vendor/class=name`.
    pub name: String,
    /// Its `org.mobyproject.buildkit.device.class`: another name, which it may share.
    pub class: Option<String>,
    /// Its spec says that every build may have it.
    pub auto_allow: bool,
}

/// A named context: stands in for an image or stage of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    /// A directory: `Source::Local { name, ignore }`; its own ignore patterns.
    Local {
        /// Patterns of its `.dockerignore`.
        ignore: Vec<String>,
    },
    /// `docker-image://`.
    Image(Reference),
    /// `oci-layout://`, git, http.
    Source(Source),
    /// `target:name`: a stage of this Dockerfile.
    Stage(String),
}

/// An image whose config conversion needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRequest {
    /// Which image.
    pub source: Source,
    /// Where it is named, for the error if it cannot be had.
    pub span: Span,
}

/// What a [`Source::Image`] or [`Source::OciLayout`] turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedImage {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its config.
    pub config: ImageConfig,
}

/// What conversion came to.
#[derive(Debug)]
pub enum Conversion {
    /// It needs the configs of these images first; call again with them.
    NeedsImages(Vec<ImageRequest>),
    /// It needs to know when this was made first: call again with it in [`Request::times`].
    NeedsTime(Box<Source>),
    /// Done.
    Complete(Box<Converted>),
}

/// A Dockerfile as a graph.
#[derive(Debug)]
pub struct Converted {
    /// The graph.
    pub definition: Definition,
    /// The vertex whose files are the image's; `None` for an empty image.
    pub result: Option<VertexId>,
    /// The image's config. `rootfs` is the base's; `created` and each new history entry's `created` are left for the
    /// exporter to fill in from the layers.
    pub config: ImageConfig,
    /// How many leading history entries are the base image's.
    pub base_history: usize,
    /// The base image that the result's stage started from, for annotations and provenance.
    pub base_image: Option<(Reference, Digest)>,
    /// The platform it is for.
    pub platform: Platform,
    /// Lint findings.
    pub warnings: Vec<Diagnostic>,
    /// Variables that were given with `--build-arg` and never used.
    pub unused_build_args: Vec<String>,
    /// `SOURCE_DATE_EPOCH` in force: of a build arg, of an ARG's default, or the request's.
    pub source_date_epoch: Option<i64>,
}

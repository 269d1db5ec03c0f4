//! `rbuild build`: the flags of `docker buildx build`, spelled the same.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};

/// Flags of `build`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Options")]
pub(crate) struct BuildArgs {
    /// Name of the image, `name[:tag]`; may be given more than once
    #[arg(short, long = "tag", value_name = "NAME")]
    pub(crate) tags: Vec<String>,

    /// Dockerfile: a path, `-` for standard input, or a URL [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<String>,

    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,

    /// Set a build-time variable; without a value it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(crate) build_args: Vec<String>,

    /// Another context: `name=directory`, `name=docker-image://ref`, `name=oci-layout://dir`, `name=URL`
    #[arg(long = "build-context", value_name = "NAME=VALUE")]
    pub(crate) build_contexts: Vec<String>,

    /// Platform of the result, `os/arch[/variant]`; several separated by commas
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    pub(crate) platform: Vec<String>,

    /// Where the result goes: `type=image|registry|oci|docker|local|tar[,dest=..][,push=true]..`, or a directory
    #[arg(short, long = "output", value_name = "OUTPUT")]
    pub(crate) outputs: Vec<String>,

    /// Push the image to its registry (`--output type=registry`)
    #[arg(long)]
    pub(crate) push: bool,

    /// Load the image into Docker, if there is one (`--output type=docker`)
    #[arg(long)]
    pub(crate) load: bool,

    /// Print nothing but the image ID
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// How progress is shown
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub(crate) progress: String,

    /// Run every step again
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// Stages whose steps run again
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) no_cache_filter: Vec<String>,

    /// Ask the registry for newer base images
    #[arg(long)]
    pub(crate) pull: bool,

    /// Set metadata of the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub(crate) labels: Vec<String>,

    /// Annotation of the manifest, `[level:]name=value`
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    pub(crate) annotations: Vec<String>,

    /// Secret for steps: `id=name[,src=file|,env=VAR]`
    #[arg(long = "secret", value_name = "SECRET")]
    pub(crate) secrets: Vec<String>,

    /// SSH agent socket or keys for steps: `default|id[=socket|key[,key]]`
    #[arg(long = "ssh", value_name = "SSH")]
    pub(crate) ssh: Vec<String>,

    /// Caches to read: `type=registry,ref=..`, `type=local,src=..`
    #[arg(long = "cache-from", value_name = "CACHE")]
    pub(crate) cache_from: Vec<String>,

    /// Run steps again that were built longer ago than this, for example 24h or 14d
    #[arg(long, value_name = "TIME", env = "RBUILD_CACHE_TTL")]
    pub(crate) cache_ttl: Option<String>,

    /// Prune after the build until the state directory takes no more than this, for example 50g
    #[arg(long, value_name = "SIZE")]
    pub(crate) store_max: Option<String>,

    /// Caches to write: `type=registry,ref=..[,mode=max]`, `type=local,dest=..`, `type=inline`
    #[arg(long = "cache-to", value_name = "CACHE")]
    pub(crate) cache_to: Vec<String>,

    /// Network of RUN
    #[arg(long, value_name = "MODE", default_value = "default", value_parser = networks())]
    pub(crate) network: String,

    /// Entry for `/etc/hosts` of steps: `name:address` or `name=address`; `host-gateway` is this host
    #[arg(long = "add-host", value_name = "HOST:IP")]
    pub(crate) add_hosts: Vec<String>,

    /// Allow what is off by default: `network.host`, `security.insecure`, `device[=NAME[,alias=NAME]]`, `buildx.local.delete`
    #[arg(long, value_name = "ENTITLEMENT")]
    pub(crate) allow: Vec<String>,

    /// Size of `/dev/shm` in steps, for example 128m
    #[arg(long, value_name = "SIZE")]
    pub(crate) shm_size: Option<String>,

    /// Resource limit of steps: `name=soft[:hard]`
    #[arg(long = "ulimit", value_name = "LIMIT")]
    pub(crate) ulimits: Vec<String>,

    /// Resources of steps: `memory=,memory-swap=,cpu-shares=,cpu-period=,cpu-quota=,cpuset-cpus=,cpuset-mems=`
    #[arg(long = "resource", value_name = "KEY=VALUE")]
    pub(crate) resources: Vec<String>,

    /// Parent cgroup of steps
    #[arg(long, value_name = "CGROUP")]
    pub(crate) cgroup_parent: Option<String>,

    /// Write the image ID to a file
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub(crate) iidfile: Option<PathBuf>,

    /// Write what was built to a file, as JSON
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub(crate) metadata_file: Option<PathBuf>,

    /// What to do: build, check, outline, targets, subrequests.describe [with `,format=json`]
    #[arg(long, alias = "print", value_name = "METHOD", default_value = "build")]
    pub(crate) call: String,

    /// Check the Dockerfile and build nothing (`--call=check`)
    #[arg(long)]
    pub(crate) check: bool,

    /// Show warnings with their lines
    #[arg(short = 'D', long)]
    pub(crate) debug: bool,

    /// Say what the build spent its time on: a table, or a trace file for Perfetto
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(crate) timings: Option<String>,

    /// What to do when a step fails: `stop`, `shell` (open a shell in its sandbox), or `keep` (keep that for `rbuild shell`)
    #[arg(long, value_name = "ACTION", default_value = "stop", value_parser = ["stop", "shell", "keep"])]
    pub(crate) on_error: String,

    /// Say for each step why it was cached or not
    #[arg(long)]
    pub(crate) explain: bool,

    /// Provenance attestation: `true`, `false`, `mode=min|max`
    #[arg(long, value_name = "ATTEST")]
    pub(crate) provenance: Option<String>,

    /// Bill of materials: `true`, `false`
    #[arg(long, value_name = "ATTEST")]
    pub(crate) sbom: Option<String>,

    /// Attestation: `type=sbom|provenance[,..]`
    #[arg(long, value_name = "ATTEST")]
    pub(crate) attest: Vec<String>,

    /// Steps that run at the same time [default: number of CPUs]
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<usize>,

    /// Context: a directory, `-` for standard input, or a URL
    #[arg(value_name = "CONTEXT")]
    pub(crate) context: String,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    #[command(flatten)]
    pub(crate) ignored: IgnoredArgs,
}

/// The older spellings of `--resource`.
#[derive(Debug, Default, Args)]
pub(crate) struct LimitArgs {
    #[arg(short, long, hide = true, value_name = "SIZE")]
    memory: Option<String>,
    #[arg(long, hide = true, value_name = "SIZE")]
    memory_swap: Option<String>,
    #[arg(short, long, hide = true, value_name = "N")]
    cpu_shares: Option<String>,
    #[arg(long, hide = true, value_name = "N")]
    cpu_period: Option<String>,
    #[arg(long, hide = true, value_name = "N")]
    cpu_quota: Option<String>,
    #[arg(long, hide = true, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    #[arg(long, hide = true, value_name = "LIST")]
    cpuset_mems: Option<String>,
}

impl LimitArgs {
    /// As `--resource` says it.
    pub(crate) fn resources(&self) -> Vec<String> {
        [
            ("memory", &self.memory),
            ("memory-swap", &self.memory_swap),
            ("cpu-shares", &self.cpu_shares),
            ("cpu-period", &self.cpu_period),
            ("cpu-quota", &self.cpu_quota),
            ("cpuset-cpus", &self.cpuset_cpus),
            ("cpuset-mems", &self.cpuset_mems),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)))
        .collect()
    }
}

/// Flags of older builders: accepted and without effect, so that scripts go on working.
#[derive(Debug, Default, Args)]
pub(crate) struct IgnoredArgs {
    #[arg(long, hide = true)]
    rm: bool,
    #[arg(long, hide = true)]
    force_rm: bool,
    #[arg(long, hide = true)]
    compress: bool,
    #[arg(long, hide = true)]
    squash: bool,
    #[arg(long, hide = true, value_name = "X")]
    isolation: Option<String>,
    #[arg(long, hide = true, value_name = "X")]
    security_opt: Vec<String>,
}

impl IgnoredArgs {
    /// What whoever counts on one of them has to know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let isolation = self.isolation.as_deref().is_some_and(|kind| !matches!(kind, "" | "default"));
        [
            (isolation, "--isolation has no effect: steps run in sandboxes of one kind"),
            (!self.security_opt.is_empty(), "--security-opt has no effect: use RUN --security=insecure"),
            (self.squash, "--squash has no effect: copy from a stage into FROM scratch for one layer"),
        ]
        .into_iter()
        .filter(|(given, _)| *given)
        .map(|(_, warning)| warning.to_owned())
        .collect()
    }
}

/// The values of `--network`; an empty one is what a script leaves of a variable that is not set.
fn networks() -> PossibleValuesParser {
    let shown = ["default", "host", "none"].map(PossibleValue::new);
    shown.into_iter().chain([PossibleValue::new("").hide(true)]).collect::<Vec<_>>().into()
}

/// A path that may be empty, which is as good as none.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

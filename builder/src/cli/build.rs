//! `rbuild build`: the flags of `docker buildx build`, spelled the same.

use std::path::PathBuf;

use clap::{ArgAction, Args};

/// Flags of `build`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Options")]
pub(crate) struct BuildArgs {
    /// Name of the image, `name[:tag]`; may be given more than once
    #[arg(short, long = "tag", value_name = "NAME")]
    pub(crate) tags: Vec<String>,

    /// Dockerfile: a path, `-` for standard input, or a URL [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE", env = "RBUILD_FILE")]
    pub(crate) file: Option<String>,

    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE", env = "RBUILD_TARGET")]
    pub(crate) target: Option<String>,

    /// Set a build-time variable; without a value it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(crate) build_args: Vec<String>,

    /// Another context: `name=directory`, `name=docker-image://ref`, `name=oci-layout://dir`, `name=URL`
    #[arg(long = "build-context", value_name = "NAME=VALUE")]
    pub(crate) build_contexts: Vec<String>,

    /// Platform of the result, `os/arch[/variant]`; several separated by commas
    #[arg(long, value_name = "PLATFORM", env = "DOCKER_DEFAULT_PLATFORM", value_delimiter = ',')]
    pub(crate) platform: Vec<String>,

    /// Where the result goes: `type=image|registry|oci|docker|local|tar[,dest=..][,push=true]..`, or a directory
    #[arg(short, long = "output", value_name = "OUTPUT")]
    pub(crate) outputs: Vec<String>,

    /// Push the image to its registry (`--output type=registry`)
    #[arg(long, env = "RBUILD_PUSH")]
    pub(crate) push: bool,

    /// Load the image into Docker as well (`--output type=docker`)
    #[arg(long, env = "RBUILD_LOAD")]
    pub(crate) load: bool,

    /// Print nothing but the image ID
    #[arg(short, long, env = "RBUILD_QUIET")]
    pub(crate) quiet: bool,

    /// How progress is shown
    #[arg(long, value_name = "MODE", env = "BUILDKIT_PROGRESS", default_value = "auto")]
    pub(crate) progress: String,

    /// Run every step again
    #[arg(long, env = "RBUILD_NO_CACHE")]
    pub(crate) no_cache: bool,

    /// Stages whose steps run again
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) no_cache_filter: Vec<String>,

    /// Ask the registry for newer base images
    #[arg(long, env = "RBUILD_PULL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = ArgAction::Set)]
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

    /// Caches to write: `type=registry,ref=..[,mode=max]`, `type=local,dest=..`, `type=inline`
    #[arg(long = "cache-to", value_name = "CACHE")]
    pub(crate) cache_to: Vec<String>,

    /// Network of RUN
    #[arg(long, value_name = "MODE", default_value = "default", value_parser = ["default", "host", "none"])]
    pub(crate) network: String,

    /// Entry for `/etc/hosts` of steps: `name:address` or `name=address`; `host-gateway` is this host
    #[arg(long = "add-host", value_name = "HOST:IP")]
    pub(crate) add_hosts: Vec<String>,

    /// Allow what is off by default: `network.host`, `security.insecure`, `device`
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub(crate) allow: Vec<String>,

    /// Size of `/dev/shm` in steps, for example 128m
    #[arg(long, value_name = "SIZE")]
    pub(crate) shm_size: Option<String>,

    /// Resource limit of steps: `name=soft[:hard]`
    #[arg(long = "ulimit", value_name = "LIMIT")]
    pub(crate) ulimits: Vec<String>,

    /// Parent cgroup of steps
    #[arg(long, value_name = "CGROUP")]
    pub(crate) cgroup_parent: Option<String>,

    /// Write the image ID to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,

    /// Write what was built to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,

    /// What to do: build, check, outline, targets [with `,format=json`]
    #[arg(long, value_name = "METHOD", default_value = "build")]
    pub(crate) call: String,

    /// Check the Dockerfile and build nothing (`--call=check`)
    #[arg(long)]
    pub(crate) check: bool,

    /// Say for each step why it was cached or not
    #[arg(long, env = "RBUILD_EXPLAIN")]
    pub(crate) explain: bool,

    /// Provenance attestation: `true`, `false`, `mode=min|max`
    #[arg(long, value_name = "ATTEST", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) provenance: Option<String>,

    /// Bill of materials: `true`, `false`
    #[arg(long, value_name = "ATTEST", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) sbom: Option<String>,

    /// Attestation: `type=sbom|provenance[,..]`
    #[arg(long, value_name = "ATTEST")]
    pub(crate) attest: Vec<String>,

    /// Steps that run at the same time [default: number of CPUs]
    #[arg(long, value_name = "N", env = "RBUILD_JOBS")]
    pub(crate) jobs: Option<usize>,

    /// Context: a directory, `-` for standard input, or a URL
    #[arg(value_name = "CONTEXT")]
    pub(crate) context: String,

    #[command(flatten)]
    pub(crate) ignored: IgnoredArgs,
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
    #[arg(short = 'D', long, hide = true)]
    debug: bool,
}

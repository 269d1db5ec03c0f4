//! `rbuild run`: the flags of `docker run` that trying an image needs, spelled the same.

use clap::Args;

/// Flags of `run`. They end at the image's name: what follows is the command.
#[derive(Debug, Default, Args)]
pub(crate) struct RunArgs {
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// Remove the container when it ends (it always is)
    #[arg(long)]
    pub(crate) rm: bool,

    /// Set a variable; without a value it is taken from the environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,

    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<std::path::PathBuf>,

    /// Mount a directory or file of the host: `host:container[:ro]`; `container` alone is an empty directory
    #[arg(short, long = "volume", value_name = "VOLUME")]
    pub(crate) volumes: Vec<String>,

    /// Mount an empty directory in memory
    #[arg(long, value_name = "PATH")]
    pub(crate) tmpfs: Vec<String>,

    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,

    /// User and group: `user[:group]`
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,

    /// Program to run instead of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,

    /// Network
    #[arg(long, visible_alias = "net", value_name = "MODE", value_parser = ["default", "bridge", "host", "none"])]
    pub(crate) network: Option<String>,

    /// Memory that it may use, for example 512m
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,

    /// Memory and swap together; -1 for no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,

    /// CPUs that it may use, for example 1.5
    #[arg(long, value_name = "N", conflicts_with_all = ["cpu_period", "cpu_quota"])]
    pub(crate) cpus: Option<f64>,

    /// Weight among other containers, 1024 as a rule
    #[arg(short, long, value_name = "N")]
    pub(crate) cpu_shares: Option<String>,

    /// Over what time the quota counts, microseconds
    #[arg(long, value_name = "N")]
    pub(crate) cpu_period: Option<String>,

    /// CPU time in a period, microseconds
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<String>,

    /// CPUs that may be used, for example 0-3 or 0,2
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,

    /// Memory nodes that may be used
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,

    /// Processes and threads that it may have; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,

    /// Parent cgroup
    #[arg(long, value_name = "CGROUP")]
    pub(crate) cgroup_parent: Option<String>,

    /// Resource limit: `name=soft[:hard]`
    #[arg(long = "ulimit", value_name = "LIMIT")]
    pub(crate) ulimits: Vec<String>,

    /// Size of `/dev/shm`, for example 128m
    #[arg(long, value_name = "SIZE")]
    pub(crate) shm_size: Option<String>,

    /// Host name
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,

    /// Entry for `/etc/hosts`
    #[arg(long = "add-host", value_name = "HOST:IP")]
    pub(crate) add_hosts: Vec<String>,

    /// Mount the root read-only
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Publish a port: `[address:][host:]container[/tcp]`
    #[arg(short, long = "publish", value_name = "PORT")]
    pub(crate) publish: Vec<String>,

    /// Everything allowed
    #[arg(long)]
    pub(crate) privileged: bool,

    /// Signal that stops the container
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,

    /// Platform of the image
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,

    /// When to pull the image
    #[arg(long, value_name = "WHEN", default_value = "missing", value_parser = ["always", "missing", "never"])]
    pub(crate) pull: String,

    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,

    /// Command and arguments instead of the image's
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

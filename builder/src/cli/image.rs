//! The commands that look at and move images.

use std::path::PathBuf;

use clap::Args;

/// `rbuild push`
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Print nothing but the digest
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Compression of layers that have none yet: gzip, zstd, uncompressed
    #[arg(long, value_name = "TYPE", default_value = "gzip", value_parser = ["gzip", "zstd", "uncompressed"])]
    pub(crate) compression: String,
    /// Push all tags of the name
    #[arg(short, long, conflicts_with = "destination")]
    pub(crate) all_tags: bool,
    /// Level of the compression
    #[arg(long, value_name = "N")]
    pub(crate) compression_level: Option<i32>,
    /// Image
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) image: String,
    /// Where to, if under another name
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: Option<String>,
}

/// `rbuild pull`
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Print nothing but the name
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Platform of the image
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Pull all tags that the registry has of the name
    #[arg(short, long)]
    pub(crate) all_tags: bool,
    /// Image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    pub(crate) image: String,
}

/// `rbuild images`
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Print IDs only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show digests of manifests
    #[arg(long)]
    pub(crate) digests: bool,
    /// Print whole IDs
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Output: table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    pub(crate) format: String,
    /// Only images of this name
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) name: Option<String>,
}

/// `rbuild rmi`
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Remove an ID with several tags
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or IDs
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}

/// `rbuild tag`
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// Name or ID
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// New name
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
}

/// `rbuild history`
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Do not shorten
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Output: table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    pub(crate) format: String,
    /// Name or ID
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

/// `rbuild inspect`
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Print the stored manifest or index as it is
    #[arg(long)]
    pub(crate) raw: bool,
    /// Names or IDs
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}

/// `rbuild save`
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Format of the archive
    #[arg(long, value_name = "FORMAT", default_value = "docker", value_parser = ["docker", "oci"])]
    pub(crate) format: String,
    /// Names or IDs
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}

/// `rbuild load`
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Archive to read [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Print nothing but names
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `rbuild cp`
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Follow a link that the path names
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// Platform of the image
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// A file or directory of an image; `PATH/.` is what is in a directory
    #[arg(value_name = "IMAGE:PATH")]
    pub(crate) source: String,
    /// Where to; `-` for a tar on standard output
    #[arg(value_name = "DEST")]
    pub(crate) dest: String,
}

/// `rbuild login`
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// User name
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Password; `--password-stdin` does not leave it in the process list
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    pub(crate) password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// Registry [default: Docker Hub]
    #[arg(value_name = "REGISTRY")]
    pub(crate) registry: Option<String>,
}

/// `rbuild logout`
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// Registry [default: Docker Hub]
    #[arg(value_name = "REGISTRY")]
    pub(crate) registry: Option<String>,
}

/// `rbuild explain`
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Only steps whose name contains this
    #[arg(value_name = "STEP")]
    pub(crate) step: Option<String>,
}

/// `rbuild du`
#[derive(Debug, Args)]
pub(crate) struct DuArgs {
    /// A line for each thing
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Output: table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    pub(crate) format: String,
}

/// `rbuild prune`
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Also what a later build would use
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only what was not used for this long: `until=24h`
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Keep this much, the most useful first, for example 10gb
    #[arg(long, visible_alias = "reserved-space", value_name = "SIZE")]
    pub(crate) keep_storage: Option<String>,
    /// Remove the least useful until no more than this is used
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_used_space: Option<String>,
}

/// `rbuild doctor`
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Output: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub(crate) format: String,
}

/// `rbuild completion`
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// Shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

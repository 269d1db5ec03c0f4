//! `rbuild index`: images of several platforms under one name, in registries.

use clap::{Args, Subcommand};

/// `rbuild index`
#[derive(Debug, Args)]
pub(crate) struct IndexArgs {
    #[command(subcommand)]
    pub(crate) command: IndexCommand,
}

/// What to do with indexes.
#[derive(Debug, Subcommand)]
pub(crate) enum IndexCommand {
    /// Join images that were pushed, each built on its own platform, under one name
    Create(IndexCreateArgs),
    /// Show what a registry has under a name
    Inspect(IndexInspectArgs),
}

/// `rbuild index create`
#[derive(Debug, Args)]
pub(crate) struct IndexCreateArgs {
    /// Name of the index; may be given more than once
    #[arg(short, long = "tag", value_name = "NAME", required_unless_present = "dry_run")]
    pub(crate) tags: Vec<String>,
    /// Keep what the first name has already
    #[arg(long)]
    pub(crate) append: bool,
    /// Annotation of the index: `[index:]name=value`
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    pub(crate) annotations: Vec<String>,
    /// Only these platforms of the sources
    #[arg(short, long, value_name = "PLATFORM", value_delimiter = ',')]
    pub(crate) platform: Vec<String>,
    /// Print the index and push nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Images or indexes in registries
    #[arg(value_name = "SOURCE", required = true)]
    pub(crate) sources: Vec<String>,
}

/// `rbuild index inspect`
#[derive(Debug, Args)]
pub(crate) struct IndexInspectArgs {
    /// Print the manifest as the registry has it
    #[arg(long)]
    pub(crate) raw: bool,
    /// Name
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    pub(crate) image: String,
}

//! `rbuild builds` and `rbuild logs`: what was built here.

use clap::Args;

/// `rbuild builds`
#[derive(Debug, Args)]
pub(crate) struct BuildsArgs {
    /// Output: table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    pub(crate) format: String,
}

/// `rbuild logs`
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Build: its ID or the beginning of it [default: the last one]
    #[arg(value_name = "BUILD")]
    pub(crate) build: Option<String>,
    /// Step: its number, or a part of its name [default: all]
    #[arg(value_name = "STEP")]
    pub(crate) step: Option<String>,
}

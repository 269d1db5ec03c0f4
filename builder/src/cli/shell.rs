//! `rbuild shell`: a shell in the sandbox of a step.

use clap::Args;

use super::BuildArgs;

/// `rbuild shell`
#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// Open the sandbox of this step as it was before it ran: its number in `rbuild logs`, or a part of its name
    #[arg(long, value_name = "STEP", conflicts_with = "after", help_heading = "Sandbox")]
    pub(crate) before: Option<String>,

    /// Open the sandbox of this step as it was after it ran
    #[arg(long, value_name = "STEP", help_heading = "Sandbox")]
    pub(crate) after: Option<String>,

    /// What to build for `--before` and `--after`; else `CONTEXT` is the ID of a kept sandbox
    #[command(flatten)]
    pub(crate) build: BuildArgs,

    /// What to run in place of a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Without a context the kept sandboxes are listed.
pub(super) fn without_context(arg: clap::Arg) -> clap::Arg {
    match arg.get_id().as_str() {
        "context" => arg.required(false).default_value("").hide_default_value(true).value_name("ID|CONTEXT"),
        _ => arg,
    }
}

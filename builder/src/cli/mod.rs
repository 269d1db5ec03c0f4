//! The command line as it is typed. What it means is in `request`; what it does in `commands`.

mod build;
mod builds;
pub(crate) mod defaults;
pub(crate) mod docs;
mod image;
mod index;
mod run;
mod shell;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub(crate) use build::BuildArgs;
pub(crate) use builds::{BuildsArgs, LogsArgs};
pub(crate) use image::{
    CompletionArgs, CpArgs, DoctorArgs, DuArgs, ExplainArgs, HistoryArgs, ImagesArgs, InspectArgs, LoadArgs,
    LoginArgs, LogoutArgs, PruneArgs, PullArgs, PushArgs, RmiArgs, SaveArgs, TagArgs,
};
pub(crate) use index::{IndexArgs, IndexCommand, IndexCreateArgs, IndexInspectArgs};
pub(crate) use run::RunArgs;
pub(crate) use shell::ShellArgs;

use crate::failure::Failure;
use defaults::Defaults;

/// Build OCI images from Dockerfiles: no daemon, no root.
///
/// `rbuild -t name:tag .` is short for `rbuild build -t name:tag .`
#[derive(Debug, Parser)]
#[command(name = "rbuild", version, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// State directory [default: /var/lib/rbuild for root, else $XDG_DATA_HOME/rbuild]
    #[arg(long, global = true, env = "RBUILD_ROOT", value_name = "DIR", hide_env_values = true)]
    pub(crate) root: Option<PathBuf>,

    /// Configuration file, in place of those of the user and the system
    #[arg(long, global = true, env = "RBUILD_CONFIG", value_name = "FILE", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a Dockerfile
    #[command(visible_alias = "b")]
    Build(Box<BuildArgs>),
    /// Build twice, the second time without the cache, and show the first difference
    ///
    /// Takes the flags of `build`. Nothing is exported. Without SOURCE_DATE_EPOCH the time of the first build is the
    /// latest time in both.
    Verify(Box<BuildArgs>),
    /// Run a command in a new container made from an image
    Run(Box<RunArgs>),
    /// Push an image to a registry
    Push(PushArgs),
    /// Pull an image from a registry
    Pull(PullArgs),
    /// List images
    Images(ImagesArgs),
    /// Remove tags, and images that have no tag left
    Rmi(RmiArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Show how an image was made
    History(HistoryArgs),
    /// Show an image's config, manifest and layers as JSON
    Inspect(InspectArgs),
    /// Write images to a tar archive
    Save(SaveArgs),
    /// Read images from a tar archive
    Load(LoadArgs),
    /// Copy files out of an image
    Cp(CpArgs),
    /// Log in to a registry
    Login(LoginArgs),
    /// Log out of a registry
    Logout(LogoutArgs),
    /// Say why each step of the last build was cached or not
    Explain(ExplainArgs),
    /// List the last builds
    Builds(BuildsArgs),
    /// Show what the steps of a build said
    Logs(LogsArgs),
    /// Open a shell in the sandbox of a step that failed, or of any step before or after it ran
    ///
    /// `rbuild shell` lists the sandboxes that `rbuild build --on-error=keep` kept and `rbuild shell ID` opens one.
    /// `rbuild shell --before STEP CONTEXT` and `--after` take the flags of `build`.
    Shell(Box<ShellArgs>),
    /// Join images of several platforms in a registry, or look at such an index
    Index(IndexArgs),
    /// Show how much disk space the state directory takes
    Du(DuArgs),
    /// Remove what is not needed
    Prune(PruneArgs),
    /// Say what this host can do, and what is missing
    Doctor(DoctorArgs),
    /// Write man pages
    #[command(hide = true)]
    Man(docs::ManArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
    /// Wait until what was written is on disk
    #[command(hide = true)]
    InternalSync(InternalSyncArgs),
}

/// The whole command line, as clap knows it.
pub(crate) fn command() -> clap::Command {
    // Of a flag that is given again the last counts, as in Docker: scripts append flags.
    let like_docker = |command: clap::Command| command.args_override_self(true);
    Cli::command().mut_subcommands(|command| match command.get_name() {
        "build" | "verify" => like_docker(command).mut_args(defaults::with_values),
        "shell" => like_docker(command).mut_args(defaults::with_values).mut_args(shell::without_context),
        "run" => like_docker(command),
        _ => command,
    })
}

/// What a command that has written something leaves behind.
#[derive(Debug, clap::Args)]
pub(crate) struct InternalSyncArgs {
    /// When that was
    #[arg(long)]
    pub(crate) epoch: String,
}

/// Reads the command line `args` (program name first). A first argument that is no command starts a build. `defaults`
/// says what stands in for flags of a build; it is asked with the value of `--config`.
pub(crate) fn parse<D: Defaults>(
    args: impl IntoIterator<Item = OsString>,
    defaults: impl FnOnce(Option<&Path>) -> Result<D, Failure>,
) -> Result<Cli, ParseError> {
    let command = command();
    let (mut args, at) = with_default_command(&command, args.into_iter().collect());
    let matches = command.clone().try_get_matches_from(&args)?;
    let Some((name @ ("build" | "verify" | "shell"), build)) = matches.subcommand() else {
        return Ok(Cli::from_arg_matches(&matches)?);
    };
    let defaults = defaults(matches.get_one::<PathBuf>("config").map(PathBuf::as_path))?;
    let description = command.find_subcommand(name).expect("it was matched");
    let more = defaults::arguments(description, build, &defaults);
    args.splice(at + 1..=at, more);
    Ok(Cli::from_arg_matches(&command.try_get_matches_from(&args)?)?)
}

/// What to do about a flag of Docker's that has no meaning here.
pub(crate) fn hint(error: &clap::Error) -> Option<&'static str> {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
    match flag.as_str() {
        "--builder" => Some("rbuild is its own builder: leave --builder out"),
        "--policy" => Some("rbuild has no policies: leave --policy out"),
        _ => None,
    }
}

/// Why there is nothing to do.
#[derive(Debug)]
pub(crate) enum ParseError {
    /// Help, a version, or a mistake.
    Clap(clap::Error),
    /// The configuration could not be read.
    Failure(Failure),
}

impl From<clap::Error> for ParseError {
    fn from(error: clap::Error) -> Self {
        Self::Clap(error)
    }
}

impl From<Failure> for ParseError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// Puts `build` before the first argument if what follows the global options is no command's name. Also says where the
/// command is.
fn with_default_command(command: &clap::Command, mut args: Vec<OsString>) -> (Vec<OsString>, usize) {
    let mut at = 1;
    while let Some(arg) = args.get(at).and_then(|arg| arg.to_str()) {
        match arg {
            "--root" | "--config" => at += 2,
            _ if arg.starts_with("--root=") || arg.starts_with("--config=") => at += 1,
            _ => break,
        }
    }
    let Some(first) = args.get(at).map(|arg| arg.to_string_lossy().into_owned()) else { return (args, at) };
    let is_command = command.find_subcommand(&first).is_some() || first == "help";
    let is_global = matches!(first.as_str(), "-h" | "--help" | "-V" | "--version");
    // A misspelt command would become a context directory: only what looks like build arguments starts a build.
    let looks_like_build = first.starts_with('-') || first.contains(['/', '.', ':']);
    if !is_command && !is_global && (looks_like_build || Path::new(&first).is_dir()) {
        args.insert(at, "build".into());
    }
    (args, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_default(words: &[&str]) -> Vec<String> {
        with_default_command(&command(), words.iter().map(OsString::from).collect())
            .0
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect()
    }

    #[test]
    fn build_is_the_default_command() {
        assert_eq!(with_default(&["rbuild", "-t", "x", "."]), ["rbuild", "build", "-t", "x", "."]);
        assert_eq!(with_default(&["rbuild", "."]), ["rbuild", "build", "."]);
        assert_eq!(
            with_default(&["rbuild", "--root", "/r", "-q", "."]),
            ["rbuild", "--root", "/r", "build", "-q", "."]
        );
        assert_eq!(with_default(&["rbuild", "images"]), ["rbuild", "images"]);
        assert_eq!(with_default(&["rbuild", "imagse"]), ["rbuild", "imagse"]);
        assert_eq!(with_default(&["rbuild", "--version"]), ["rbuild", "--version"]);
        assert_eq!(with_default(&["rbuild"]), ["rbuild"]);
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}

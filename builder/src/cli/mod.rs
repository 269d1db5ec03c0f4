//! The command line as it is typed. What it means is in `request`; what it does in `commands`.

mod build;
mod image;
mod run;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

pub(crate) use build::BuildArgs;
pub(crate) use image::{
    CompletionArgs, DoctorArgs, DuArgs, ExplainArgs, HistoryArgs, ImagesArgs, InspectArgs, LoadArgs,
    LoginArgs, LogoutArgs, PruneArgs, PullArgs, PushArgs, RmiArgs, SaveArgs, TagArgs,
};
pub(crate) use run::RunArgs;

/// Build OCI images from Dockerfiles: no daemon, no root.
///
/// `rbuild -t name:tag .` is short for `rbuild build -t name:tag .`
#[derive(Debug, Parser)]
#[command(name = "rbuild", version, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// State directory [default: /var/lib/rbuild for root, else $XDG_DATA_HOME/rbuild]
    #[arg(long, global = true, env = "RBUILD_ROOT", value_name = "DIR", hide_env_values = true)]
    pub(crate) root: Option<std::path::PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a Dockerfile
    #[command(visible_alias = "b")]
    Build(Box<BuildArgs>),
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
    /// Log in to a registry
    Login(LoginArgs),
    /// Log out of a registry
    Logout(LogoutArgs),
    /// Say why each step of the last build was cached or not
    Explain(ExplainArgs),
    /// Show how much disk space the state directory takes
    Du(DuArgs),
    /// Remove what is not needed
    Prune(PruneArgs),
    /// Say what this host can do, and what is missing
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
}

/// Reads the command line `args` (program name first). A first argument that is no command starts a build.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(with_default_command(args.into_iter().collect()))
}

/// Puts `build` before the first argument if what follows the global options is no command's name.
fn with_default_command(mut args: Vec<OsString>) -> Vec<OsString> {
    use clap::CommandFactory as _;
    let command = Cli::command();
    let mut at = 1;
    while let Some(arg) = args.get(at).and_then(|arg| arg.to_str()) {
        match arg {
            "--root" => at += 2,
            _ if arg.starts_with("--root=") => at += 1,
            _ => break,
        }
    }
    let Some(first) = args.get(at).map(|arg| arg.to_string_lossy().into_owned()) else { return args };
    let is_command = command.find_subcommand(&first).is_some() || first == "help";
    let is_global = matches!(first.as_str(), "-h" | "--help" | "-V" | "--version");
    // A misspelt command would become a context directory: only what looks like build arguments starts a build.
    let looks_like_build = first.starts_with('-') || first.contains(['/', '.', ':']);
    if !is_command && !is_global && (looks_like_build || std::path::Path::new(&first).is_dir()) {
        args.insert(at, "build".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_default(words: &[&str]) -> Vec<String> {
        with_default_command(words.iter().map(OsString::from).collect())
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
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}

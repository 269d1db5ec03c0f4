//! `docs/cli.md` and the man pages, from the same description as `--help`.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, Args, Command};

use super::defaults::variable_name;

/// `rbuild man`
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory to write the pages to
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// Writes a man page a command below `dir`.
pub(crate) fn man_pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(super::command().disable_help_subcommand(true), dir)
}

/// All commands and their flags as Markdown.
#[cfg_attr(not(test), expect(dead_code, reason = "the test that keeps the file up to date writes it"))]
pub(crate) fn markdown() -> String {
    let mut command = super::command();
    command.build();
    let mut out = "# The command line\n\nWritten from what `--help` shows; do not edit. How flags, variables and files go \
                   together: [configuration.md](configuration.md). Exit codes: [exit-codes.md](exit-codes.md).\n\n\
                   `rbuild -t name .` is `rbuild build -t name .`\n"
        .to_owned();
    let globals: Vec<&Arg> = command.get_arguments().filter(|arg| arg.is_global_set()).collect();
    out.push_str("\n## Everywhere\n\n| flag | |\n|---|---|\n");
    out.extend(globals.iter().map(|arg| row(arg, None)));
    for sub in command.get_subcommands() {
        section(sub, "rbuild", 2, &mut out);
    }
    out
}

fn section(command: &Command, parent: &str, depth: usize, out: &mut String) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    let positionals: Vec<&Arg> = command.get_positionals().collect();
    let values: String = positionals.iter().map(|arg| format!(" {arg}")).collect();
    out.push_str(&format!("\n{} {name}\n\n", "#".repeat(depth)));
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        out.push_str(&format!("{about}\n\n"));
    }
    let flags: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !arg.is_global_set() && !arg.is_positional())
        .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
        .collect();
    let is_group = command.get_subcommands().any(|sub| sub.get_name() != "help");
    if !is_group {
        let options = if flags.is_empty() { "" } else { " [OPTIONS]" };
        out.push_str(&format!("`{name}{options}{values}`\n"));
    }
    let has_variables = matches!(command.get_name(), "build" | "verify");
    if !flags.is_empty() {
        out.push_str("\n| flag | |\n|---|---|\n");
        let variable = |arg: &Arg| has_variables.then(|| arg.get_long().map(variable_name)).flatten();
        out.extend(flags.iter().map(|arg| row(arg, variable(arg))));
    }
    for sub in command.get_subcommands() {
        section(sub, &name, depth + 1, out);
    }
}

/// A line of a table of flags.
fn row(arg: &Arg, variable: Option<String>) -> String {
    let short = arg.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
    let long = arg.get_long().unwrap_or_default();
    let names: Vec<String> = arg.get_value_names().into_iter().flatten().map(ToString::to_string).collect();
    let value = match names.join(" ") {
        names if names.is_empty() || !arg.get_action().takes_values() || names == "BOOL" => String::new(),
        names => format!(" {names}"),
    };
    let help = arg.get_help().map(|help| help.to_string().replace('|', "\\|")).unwrap_or_default();
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let default = match defaults.join(" ") {
        text if text.is_empty() || arg.is_hide_default_value_set() || text == "false" => String::new(),
        text => format!(" [default: {text}]"),
    };
    let variable = variable.map(|name| format!(" (`{name}`)")).unwrap_or_default();
    format!("| {short}`--{long}{value}` | {help}{default}{variable} |\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        let now = markdown();
        if std::env::var_os("RBUILD_UPDATE_DOCS").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(kept == now, "docs/cli.md is old: run this test with RBUILD_UPDATE_DOCS=1");
    }

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        man_pages(dir.path()).unwrap();
        for name in ["rbuild.1", "rbuild-build.1", "rbuild-index-create.1"] {
            let page = std::fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(page.contains(".TH"), "{name}");
        }
    }
}

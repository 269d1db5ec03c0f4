//! What stands in for flags of `build` that are not given: variables, then configuration files.
//!
//! They become arguments, so a value means the same wherever it comes from and is checked in one place.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Variables of Docker's that are looked at when `RBUILD_*` is not set.
const ALSO: [(&str, &str); 2] = [("platform", "DOCKER_DEFAULT_PLATFORM"), ("progress", "BUILDKIT_PROGRESS")];

/// Where values of flags come from, the first that has any counts.
pub(crate) trait Defaults {
    /// The variable `name`, if it is set to something.
    fn variable(&self, name: &str) -> Option<String>;
    /// What the configuration files say of the flag `--name`.
    fn configured(&self, name: &str) -> Vec<String>;
}

/// Arguments for those options of `command` that `matches` lacks and `defaults` know.
pub(crate) fn arguments(command: &Command, matches: &ArgMatches, defaults: &dyn Defaults) -> Vec<OsString> {
    command
        .get_arguments()
        .filter(|arg| !arg.is_global_set())
        .filter_map(|arg| Some((arg, arg.get_long()?)))
        .filter(|(arg, _)| given(matches, arg) != Some(ValueSource::CommandLine))
        .flat_map(|(arg, name)| {
            values(arg, name, defaults).into_iter().map(move |value| format!("--{name}={value}").into())
        })
        .collect()
}

/// The variable that stands for the flag `--name`.
pub(crate) fn variable_name(name: &str) -> String {
    format!("RBUILD_{}", name.replace('-', "_").to_ascii_uppercase())
}

fn given(matches: &ArgMatches, arg: &Arg) -> Option<ValueSource> {
    // Help and version are no values.
    matches.try_contains_id(arg.get_id().as_str()).ok()?;
    matches.value_source(arg.get_id().as_str())
}

fn values(arg: &Arg, name: &str, defaults: &dyn Defaults) -> Vec<String> {
    let also = ALSO.iter().find(|(flag, _)| *flag == name).map(|(_, variable)| *variable);
    let variable = defaults
        .variable(&variable_name(name))
        .or_else(|| also.and_then(|variable| defaults.variable(variable)));
    match variable {
        // A flag that may be repeated has a line each.
        Some(text) if matches!(arg.get_action(), ArgAction::Append) => {
            text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
        Some(text) => vec![text],
        None => defaults.configured(name),
    }
}

/// Lets switches take a value as Docker's do: `--push=false`.
pub(crate) fn with_values(arg: Arg) -> Arg {
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    if !is_switch {
        return arg;
    }
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .default_value("false")
        .hide_default_value(true)
        .value_parser(clap::builder::BoolishValueParser::new())
        .value_name("BOOL")
        .hide_possible_values(true)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[derive(Default)]
    struct Given {
        variables: HashMap<&'static str, &'static str>,
        configured: HashMap<&'static str, Vec<&'static str>>,
    }

    impl Defaults for Given {
        fn variable(&self, name: &str) -> Option<String> {
            self.variables.get(name).map(|value| (*value).to_owned())
        }

        fn configured(&self, name: &str) -> Vec<String> {
            let values = self.configured.get(name);
            values.into_iter().flatten().map(|value| (*value).to_owned()).collect()
        }
    }

    fn filled(words: &[&str], given: &Given) -> Vec<String> {
        let command = super::super::command();
        let build = command.find_subcommand("build").unwrap().clone();
        let words = ["rbuild", "build"].iter().chain(words);
        let matches = command.try_get_matches_from(words).unwrap();
        let matches = matches.subcommand_matches("build").unwrap();
        arguments(&build, matches, given).into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    #[test]
    fn a_flag_goes_before_a_variable_and_that_before_a_file() {
        let mut given = Given::default();
        given.configured.insert("progress", vec!["tty"]);
        given.configured.insert("tag", vec!["a", "b"]);
        assert_eq!(filled(&["."], &given), ["--tag=a", "--tag=b", "--progress=tty"]);
        given.variables.insert("BUILDKIT_PROGRESS", "plain");
        assert_eq!(filled(&["."], &given)[2], "--progress=plain");
        given.variables.insert("RBUILD_PROGRESS", "none");
        assert_eq!(filled(&["."], &given)[2], "--progress=none");
        given.variables.insert("RBUILD_TAG", "x\ny\n");
        assert_eq!(filled(&["--progress=auto", "."], &given), ["--tag=x", "--tag=y"]);
        assert!(filled(&["--progress=auto", "-t", "z", "."], &given).is_empty());
    }

    #[test]
    fn switches_take_a_value() {
        let push = |words: &[&str]| {
            let words = ["rbuild", "build"].iter().chain(words);
            let matches = super::super::command().try_get_matches_from(words).unwrap();
            *matches.subcommand_matches("build").unwrap().get_one::<bool>("push").unwrap()
        };
        assert!(push(&["--push", "."]));
        assert!(push(&["--push=true", "."]));
        assert!(!push(&["--push=false", "."]));
        assert!(!push(&["-qt", "x", "."]));
    }

    #[test]
    fn every_flag_has_a_variable() {
        assert_eq!(variable_name("no-cache-filter"), "RBUILD_NO_CACHE_FILTER");
    }
}

//! `rbuild.toml`: registries, the store, and what flags of `build` are when they are not given.
//!
//! The user's file goes before the system's, key by key. A file of the project is not read: a checkout must not decide
//! which certificates count. See `docs/configuration.md`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use worker::cdi;

use crate::cli::defaults::Defaults;
use crate::environment::Places;
use crate::failure::{Class, Failure};
use crate::request::parse_size;

/// What the files say, the first that says something counting.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    /// `[store] root`.
    pub(crate) root: Option<PathBuf>,
    /// `[store] limit`, bytes: more is pruned after a build.
    pub(crate) limit: Option<u64>,
    /// `[cdi] spec-dirs`.
    spec_dirs: Option<Vec<PathBuf>>,
    /// `[build]`: values by flag.
    build: BTreeMap<String, Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    store: Store,
    build: BTreeMap<String, OneOrMore>,
    cdi: Cdi,
    /// Read by `registry`.
    #[serde(rename = "registry")]
    _registry: toml::Table,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Store {
    root: Option<PathBuf>,
    limit: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Cdi {
    spec_dirs: Option<Vec<PathBuf>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(Scalar),
    More(Vec<Scalar>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Bool(bool),
    Number(i64),
}

impl Config {
    /// Reads the files of `places`. One that was asked for by name has to be there.
    pub(crate) fn read(places: &Places) -> Result<Self, Failure> {
        let mut config = Self::default();
        for path in &places.config_files {
            let text = match std::fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !places.config_is_given => continue,
                Err(error) => {
                    return Err(Failure::usage(format!("could not read {}: {error}", path.display())));
                }
            };
            config.add(path, &text)?;
        }
        Ok(config)
    }

    /// Where specs of devices are.
    pub(crate) fn device_specs(&self) -> Vec<PathBuf> {
        self.spec_dirs.clone().unwrap_or_else(|| cdi::DIRECTORIES.map(PathBuf::from).to_vec())
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), Failure> {
        let invalid =
            |reason: &str| Failure::new(Class::Usage, format!("could not read {}: {reason}", path.display()));
        let file: File = toml::from_str(text).map_err(|error| invalid(error.to_string().trim_end()))?;
        let limit = file.store.limit.map(|text| parse_size("limit", &text)).transpose();
        self.limit = self.limit.or(limit.map_err(|failure| invalid(&failure.message))?);
        self.root = self.root.take().or(file.store.root);
        self.spec_dirs = self.spec_dirs.take().or(file.cdi.spec_dirs);
        let command = crate::cli::command();
        let build = command.find_subcommand("build").expect("there is one");
        for (name, values) in file.build {
            if !build.get_arguments().any(|arg| arg.get_long() == Some(&name)) {
                return Err(invalid(&format!("[build] {name}: there is no flag --{name}")));
            }
            let values = match values {
                OneOrMore::One(value) => vec![value],
                OneOrMore::More(values) => values,
            };
            self.build.entry(name).or_insert_with(|| values.into_iter().map(Scalar::text).collect());
        }
        Ok(())
    }
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
        }
    }
}

impl Defaults for Config {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }

    fn configured(&self, name: &str) -> Vec<String> {
        self.build.get(name).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_says_something_counts() {
        let mut config = Config::default();
        config.add("user".as_ref(), "[build]\nprogress = 'plain'\npush = true\njobs = 3").unwrap();
        let system = "[store]\nlimit = '10GB'\nroot = '/r'\n[build]\nprogress = 'tty'\ntag = ['a', 'b']\n\
                      [registry.'docker.io']\nmirrors = ['m']\n";
        config.add("system".as_ref(), system).unwrap();
        assert_eq!(config.configured("progress"), ["plain"]);
        assert_eq!(config.configured("push"), ["true"]);
        assert_eq!(config.configured("jobs"), ["3"]);
        assert_eq!(config.configured("tag"), ["a", "b"]);
        assert_eq!(config.limit, Some(10 << 30));
        assert_eq!(config.root.as_deref(), Some(Path::new("/r")));
    }

    #[test]
    fn what_no_flag_is_called_is_refused() {
        let refused = |text: &str| Config::default().add("f".as_ref(), text).unwrap_err().message;
        assert!(refused("[build]\nprogres = 'plain'").contains("--progres"));
        assert!(refused("[biuld]").contains("biuld"));
        assert!(refused("[store]\nlimit = 'much'").contains("much"));
    }
}

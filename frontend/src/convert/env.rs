//! The variables of a stage, and the instructions that set them: ENV and ARG.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::ast::{ArgDefinition, Pairs, Span};
use crate::diagnostic::Diagnostic;
use crate::expand;

use super::asked::AskedArg;
use super::history;
use super::stage::StageBuilder;

/// Variables in the order in which they were first set; a later value takes the place of the earlier.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables {
    pairs: Vec<(String, String)>,
    at: HashMap<String, usize>,
}

impl Variables {
    /// Of `NAME=value`s.
    pub(super) fn of(env: &[String]) -> Self {
        let mut variables = Self::default();
        for pair in env {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            variables.set(name, value);
        }
        variables
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        match self.at.get(name) {
            Some(&at) => value.clone_into(&mut self.pairs[at].1),
            None => {
                self.at.insert(name.to_owned(), self.pairs.len());
                self.pairs.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.at.get(name).map(|&at| self.pairs[at].1.as_str())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| name.as_str())
    }

    /// `NAME=value`s, in order.
    pub(super) fn to_env(&self) -> Vec<String> {
        self.pairs.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

impl expand::Env for Variables {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        Self::get(self, name).map(Cow::Borrowed)
    }
}

/// ARGs that only steer the builder: they never become variables of a RUN.
pub(super) const NOT_IN_ENV: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// The proxy variables: set by `--build-arg` without an ARG.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];

/// Whether `name` is a build arg that needs no ARG to have an effect.
pub(super) fn is_predefined(name: &str) -> bool {
    is_proxy(name)
        || name.starts_with("BUILDKIT_")
        || name == "SOURCE_DATE_EPOCH"
        || super::args::PLATFORM_ARGS.contains(&name)
}

fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy))
}

/// What RUN is given of the proxies, in both cases: the host's, and over them `--build-arg`'s.
pub(super) fn proxy_env(host: &[(String, String)], build_args: &[(String, String)]) -> Vec<String> {
    let mut values = Variables::default();
    for (name, value) in host.iter().chain(build_args).filter(|(name, _)| is_proxy(name)) {
        values.set(&name.to_ascii_lowercase(), value);
    }
    let set = PROXIES.iter().filter_map(|&name| Some((name, values.get(name)?)));
    set.filter(|(_, value)| !value.is_empty())
        .flat_map(|(name, value)| {
            [format!("{}={value}", name.to_ascii_uppercase()), format!("{name}={value}")]
        })
        .collect()
}

impl StageBuilder<'_, '_> {
    /// `ENV`.
    pub(super) fn env(&mut self, pairs: &Pairs, span: Span) -> Result<(), Diagnostic> {
        let mut text = "ENV".to_owned();
        for (name, value) in self.expand_pairs(pairs, span)? {
            text.push_str(&format!(" {name}={value}"));
            self.state.variables.set(&name, &value);
            self.state.set_config_env(&name, &value);
        }
        self.state.config.history.push(history::config_entry(text));
        Ok(())
    }

    /// Names and values, expanded with the environment before the instruction.
    pub(super) fn expand_pairs(
        &mut self,
        pairs: &Pairs,
        span: Span,
    ) -> Result<Vec<(String, String)>, Diagnostic> {
        let mut expanded = Vec::with_capacity(pairs.pairs.len());
        for (name, value) in &pairs.pairs {
            let name_text = self.expand(&name.value, span)?;
            if name_text.is_empty() {
                return Err(Diagnostic::error("blank-name", name.span, "names can not be blank"));
            }
            expanded.push((name_text, self.expand(&value.value, span)?));
        }
        Ok(expanded)
    }

    /// `ARG`: each pair sees those before it on the same line.
    pub(super) fn arg(&mut self, definitions: &[ArgDefinition], span: Span) -> Result<(), Diagnostic> {
        let mut text = "ARG".to_owned();
        for definition in definitions {
            let name = definition.name.value.as_str();
            self.shared.used_args.insert(name.to_owned());
            let given = self.shared.args.given(name).map(str::to_owned);
            let value = match (&given, &definition.value) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => Some(self.expand(&default.value, span)?),
                (None, None) => self.shared.args.global(name).map(str::to_owned),
            };
            if given.is_none() && definition.value.is_none() && self.shared.args.declared.contains_key(name) {
                let shared = &mut *self.shared;
                shared.asked.global(name, &shared.args);
            } else {
                let value = value.clone().unwrap_or_default();
                let asked = AskedArg { value, description: definition.comment.clone(), span };
                self.shared.asked.args.insert(name.to_owned(), asked);
            }
            text.push(' ');
            text.push_str(name);
            if let Some(value) = &value {
                text.push('=');
                text.push_str(value);
                if !NOT_IN_ENV.contains(&name) {
                    self.state.variables.set(name, value);
                }
            }
            self.state.args.set(name, value.as_deref().unwrap_or(""));
        }
        self.state.config.history.push(history::config_entry(text));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_keeps_its_first_place() {
        let mut variables = Variables::of(&["A=1".to_owned(), "B=".to_owned(), "C".to_owned()]);
        variables.set("A", "x=y");
        assert_eq!(variables.to_env(), ["A=x=y", "B=", "C="]);
        assert_eq!((variables.get("B"), variables.get("D")), (Some(""), None));
    }

    #[test]
    fn build_args_beat_the_hosts_proxies() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let host = [pair("HTTP_PROXY", "http://host"), pair("no_proxy", "a")];
        let given = [pair("http_proxy", "http://arg"), pair("OTHER", "x")];
        assert_eq!(
            proxy_env(&host, &given),
            ["HTTP_PROXY=http://arg", "http_proxy=http://arg", "NO_PROXY=a", "no_proxy=a"]
        );
    }
}

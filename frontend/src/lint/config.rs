//! Which rules are on: `# check=skip=A,B;error=true;experimental=C`, the build argument that stands in for it, and
//! `# check=skip=A` right above an instruction.

use std::collections::BTreeSet;

use super::rules;
use crate::ast::{Dockerfile, Span, Word};
use crate::diagnostic::{Diagnostic, Severity};
use crate::value::boolean;

/// The build argument that takes the place of the directive.
pub const BUILD_ARG: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// Which rules are on, and whether a finding is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    skip: Names,
    experimental: Names,
    error: bool,
    // Instructions with a comment of their own.
    instructions: Vec<(Span, Names)>,
}

/// Names of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    All,
    Some(BTreeSet<String>),
}

impl Default for Names {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

impl Names {
    fn parse(list: &str) -> Self {
        match list.trim() {
            "all" => Self::All,
            list => Self::Some(list.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some(names) => names.contains(name),
        }
    }
}

impl Config {
    /// The configuration that a file asks for; `build_arg` is the value of `BUILDKIT_DOCKERFILE_CHECK`, if given.
    pub fn new(dockerfile: &Dockerfile, build_arg: Option<&str>) -> Result<Self, Diagnostic> {
        let directive = dockerfile.directives.check.as_ref();
        let (options, span) = match (build_arg, directive) {
            (Some(options), _) if !options.trim().is_empty() => (options, Span::default()),
            (_, Some(word)) => (first_word(&word.value), word.span),
            _ => ("", Span::default()),
        };
        let mut config = Self::parse(options).map_err(|message| invalid(message, span))?;
        for instruction in &dockerfile.instructions {
            for comment in &instruction.comments {
                if let Some(options) = check_comment(comment) {
                    let own = Self::parse(options).map_err(|message| invalid(message, comment.span))?;
                    config.instructions.push((instruction.span, own.skip));
                }
            }
        }
        Ok(config)
    }

    fn parse(options: &str) -> Result<Self, String> {
        let mut config = Self::default();
        for option in options.split(';').filter(|_| !options.trim().is_empty()) {
            let Some((key, value)) = option.split_once('=') else {
                return Err(format!("invalid check option {option:?}"));
            };
            match key.trim() {
                "skip" => config.skip = Names::parse(value),
                "experimental" => config.experimental = Names::parse(value),
                "error" => {
                    config.error = boolean(value.trim()).ok_or_else(|| {
                        format!("failed to parse check option {option:?}: it is not a boolean")
                    })?;
                }
                other => return Err(format!("invalid check option {other:?}")),
            }
        }
        Ok(config)
    }

    /// The findings that count, and whether they fail the build. What is no lint finding is kept.
    pub fn filter(&self, diagnostics: Vec<Diagnostic>) -> (Vec<Diagnostic>, bool) {
        let kept: Vec<_> = diagnostics.into_iter().filter(|diagnostic| self.counts(diagnostic)).collect();
        let is_error = self.error && kept.iter().any(|diagnostic| rules::find(diagnostic.code).is_some());
        (kept, is_error)
    }

    fn counts(&self, diagnostic: &Diagnostic) -> bool {
        if diagnostic.severity == Severity::Error {
            return true;
        }
        let Some(rule) = rules::find(diagnostic.code) else { return true };
        if self.skip.contains(rule.name) || (rule.experimental && !self.experimental.contains(rule.name)) {
            return false;
        }
        let Some(at) = diagnostic.spans.first() else { return true };
        !self
            .instructions
            .iter()
            .any(|(span, skip)| (span.start..=span.end).contains(&at.start) && skip.contains(rule.name))
    }
}

/// What a build says that fails because of its findings.
pub fn violation(findings: &[Diagnostic]) -> String {
    let names: BTreeSet<_> =
        findings.iter().filter_map(|finding| rules::find(finding.code)).map(|rule| rule.name).collect();
    let names: Vec<_> = names.into_iter().collect();
    format!("lint violation found for rules: {}", names.join(", "))
}

/// The options of a comment `check=...`.
pub(super) fn check_comment(comment: &Word) -> Option<&str> {
    let (key, options) = comment.value.split_once('=')?;
    key.trim_end().eq_ignore_ascii_case("check").then(|| first_word(options))
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

fn invalid(message: String, span: Span) -> Diagnostic {
    Diagnostic::error("invalid-check-option", span, message)
        .with_help("write skip=RULE,.., experimental=RULE,.. or error=true, with ; between them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lint::check;

    /// Names of the findings that count in a file, and whether they are errors.
    fn findings(text: &str, build_arg: Option<&str>) -> (Vec<&'static str>, bool) {
        let (dockerfile, errors) = crate::parse(text.as_bytes());
        assert_eq!(errors, []);
        let config = Config::new(&dockerfile, build_arg).unwrap();
        let (kept, is_error) = config.filter(check(&dockerfile));
        (kept.iter().map(|finding| finding.code).collect(), is_error)
    }

    #[test]
    fn rules_are_skipped_and_made_errors() {
        let file = "FROM a as B\nWORKDIR x\n";
        let all = ["FromAsCasing", "StageNameCasing", "WorkdirRelativePath"];
        for (directive, build_arg, names, is_error) in [
            ("", None, &all[..], false),
            ("# check=skip=all\n", None, &[], false),
            ("# check=skip=StageNameCasing,FromAsCasing;error=true\n", None, &all[2..], true),
            ("# check=error=true\n", Some("skip=all"), &[], false),
            ("# check=error=1\n", Some(""), &all[..], true),
            ("# check=skip=all;error=true\n", None, &[], false),
        ] {
            let found = findings(&format!("{directive}{file}"), build_arg);
            assert_eq!(found, (names.to_vec(), is_error), "{directive:?} {build_arg:?}");
        }
    }

    #[test]
    fn a_comment_silences_the_instruction_below_it() {
        let text = "FROM a\n# why\n# check=skip=WorkdirRelativePath because\nWORKDIR x\nEXPOSE 1/TCP\n";
        assert_eq!(findings(text, None).0, ["ExposeProtoCasing"]);
        let text = "# c\n# check=skip=FromAsCasing\nFROM a as b\nFROM a as c\n";
        assert_eq!(findings(text, None).0, ["FromAsCasing"]);
    }

    #[test]
    fn experimental_rules_wait_to_be_asked_for() {
        let text = "# other text\nARG A=1\nFROM x\n";
        assert_eq!(findings(text, None).0, Vec::<&str>::new());
        for name in ["all", "InvalidDefinitionDescription"] {
            let text = format!("# check=experimental={name}\n{text}");
            assert_eq!(findings(&text, None).0, ["InvalidDefinitionDescription"]);
        }
    }

    #[test]
    fn wrong_options_are_errors() {
        for (options, message) in [
            ("skip", "invalid check option \"skip\""),
            ("skpi=all", "invalid check option \"skpi\""),
            ("error=maybe", "failed to parse check option \"error=maybe\": it is not a boolean"),
        ] {
            let (dockerfile, _) = crate::parse(format!("# check={options}\nFROM x").as_bytes());
            let error = Config::new(&dockerfile, None).unwrap_err();
            assert_eq!(error.message, message);
            assert!(error.help.unwrap().contains("skip=RULE"));
        }
    }
}

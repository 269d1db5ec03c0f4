//! What is wrong with a Dockerfile, and where: errors and lint warnings.

use crate::ast::Span;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad.
    pub severity: Severity,
    /// Stable name: of a lint rule (`StageNameCasing`), or of the error's kind (`unknown-instruction`).
    pub code: &'static str,
    /// One sentence without a full stop, naming the thing.
    pub message: String,
    /// Where; the first one is the primary.
    pub spans: Vec<Span>,
    /// What to do: `did you mean RUN?`.
    pub help: Option<String>,
    /// Where it is explained.
    pub url: Option<String>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It builds, but.
    Warning,
    /// It cannot build.
    Error,
}

impl Diagnostic {
    /// An error at `span`.
    pub fn error(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            spans: vec![span],
            help: None,
            url: None,
        }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// The option that `name` was probably meant to be: at most two edits away, upper and lower case alike.
pub fn nearest<'o>(name: &str, options: impl IntoIterator<Item = &'o str>) -> Option<&'o str> {
    let length = name.chars().count();
    if length > 64 {
        return None;
    }
    let name = name.to_lowercase();
    options
        .into_iter()
        .map(|option| (strsim::levenshtein(&name, &option.to_lowercase()), option))
        .filter(|(distance, _)| (1..3.min(length)).contains(distance))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, option)| option)
}

//! Variables, quotes and escapes in a word: `$v`, `${v:-w}`, `${v##p}`, `${v/p/r}`. Which words are expanded, and with
//! which environment, is `convert`'s decision.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use thiserror::Error;

use crate::ast::Span;
use crate::diagnostic::Diagnostic;

mod lexer;
mod pattern;

use lexer::{Mode, Output, Quotes, run};

/// What variables are worth.
pub trait Env {
    /// The value of `name`; `None` if it is unset.
    fn get(&self, name: &str) -> Option<Cow<'_, str>>;
}

impl<F: Fn(&str) -> Option<String>> Env for F {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self(name).map(Cow::Owned)
    }
}

impl Env for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        Self::get(self, name).map(|value| Cow::Borrowed(value.as_str()))
    }
}

impl<S: std::hash::BuildHasher> Env for HashMap<String, String, S> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        Self::get(self, name).map(|value| Cow::Borrowed(value.as_str()))
    }
}

/// A later pair of the same name wins.
impl Env for [(String, String)] {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self.iter().rev().find(|(key, _)| key == name).map(|(_, value)| Cow::Borrowed(value.as_str()))
    }
}

impl Env for Vec<(String, String)> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        Env::get(self.as_slice(), name)
    }
}

/// No variable is set.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyEnv;

impl Env for EmptyEnv {
    fn get(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }
}

/// An expanded word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The result.
    pub text: String,
    /// Names that were looked up and set.
    pub used: BTreeSet<String>,
    /// Names that were looked up and not set.
    pub unmatched: BTreeSet<String>,
}

/// A word that was split after its expansion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpandedWords {
    /// The words; none is empty.
    pub words: Vec<String>,
    /// Names that were looked up and set.
    pub used: BTreeSet<String>,
    /// Names that were looked up and not set.
    pub unmatched: BTreeSet<String>,
}

/// A word that cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("failed to process {word:?}: {cause}")]
pub struct ExpandError {
    /// The word, cut if it is long.
    pub word: String,
    /// What is wrong with it.
    pub cause: ExpandErrorKind,
}

impl ExpandError {
    /// The error for the instruction at `span`, and what to do.
    pub(crate) fn diagnostic(&self, span: Span) -> Diagnostic {
        let error = Diagnostic::error("expansion", span, self.to_string());
        match &self.cause {
            ExpandErrorKind::UnexpectedEnd(_) => {
                error.with_help("close the quote, or put a backslash before one that is meant as it is")
            }
            ExpandErrorKind::MissingBrace => {
                error.with_help("close it with }, or put a backslash before a $ that is meant as it is")
            }
            ExpandErrorKind::MissingSlash => error.with_help("write ${NAME/PATTERN/REPLACEMENT}"),
            ExpandErrorKind::BadSubstitution => error.with_help("write ${NAME}"),
            ExpandErrorKind::UnsupportedModifier(_) => error.with_help(
                "there are ${NAME:-word}, :+ and :?, the same without a colon, #, ##, %, %%, / and //",
            ),
            ExpandErrorKind::Required { name, .. } => {
                error.with_help(format!("give {name} a value with ARG or ENV, or --build-arg {name}=VALUE"))
            }
            ExpandErrorKind::InvalidPattern { .. } | ExpandErrorKind::TooLarge | ExpandErrorKind::TooDeep => {
                error
            }
        }
    }
}

/// What can be wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExpandErrorKind {
    /// A quote or the end of `${v/p/r}`'s parts is missing.
    #[error("unexpected end of statement while looking for matching {0}")]
    UnexpectedEnd(&'static str),
    /// `${` without `}`.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${v/p` without the second slash.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// `${}`, `${:`, `${{`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// `${v=x}` and the like.
    #[error("unsupported modifier ({0}) in substitution")]
    UnsupportedModifier(String),
    /// `${v:?message}` of a variable that is unset or empty.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The word after `?`, or what is said without one.
        message: String,
    },
    /// A pattern after `#`, `%` or `/`.
    #[error("invalid pattern ({pattern}) in substitution: {cause}")]
    InvalidPattern {
        /// The pattern.
        pattern: String,
        /// Why.
        cause: String,
    },
    /// The result would pass [`MAX_VALUE`].
    #[error("the expanded value is larger than {MAX_VALUE} bytes")]
    TooLarge,
    /// Substitutions stand deeper in each other than [`MAX_DEPTH`].
    #[error("substitutions are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// The longest value that expansion makes: doubling a variable line by line must end somewhere.
pub const MAX_VALUE: usize = 1 << 20;

/// How deep `${a:-${b:-...}}` may nest.
pub const MAX_DEPTH: usize = 100;

/// Expand a word: variables are replaced, quotes and escapes taken off, blanks kept.
pub fn expand_word(word: &str, escape: char, env: &dyn Env) -> Result<Expanded, ExpandError> {
    run(word, Mode { escape, ..Mode::WORD }, env).map(Output::into_expanded)
}

/// Expand a word, then split it at blanks: those of `$v`'s value count, those in quotes do not.
pub fn expand_words(word: &str, escape: char, env: &dyn Env) -> Result<ExpandedWords, ExpandError> {
    run(word, Mode { escape, ..Mode::WORD }, env).map(Output::into_words)
}

/// Expand a heredoc's body: quotes are text, and the escape character is always `\`.
pub fn expand_heredoc(body: &str, env: &dyn Env) -> Result<Expanded, ExpandError> {
    run(body, Mode { quotes: Quotes::Text, ..Mode::WORD }, env).map(Output::into_expanded)
}

/// Take quotes and escapes off a word, and leave variables as they are written.
pub fn unquote(word: &str, escape: char) -> Result<String, ExpandError> {
    run(word, Mode { escape, keep_unset: true, ..Mode::WORD }, &EmptyEnv).map(|output| output.text)
}

/// Expand a line for people to read: quotes and unset variables stay as they are written.
pub(crate) fn expand_shown(line: &str, escape: char, env: &dyn Env) -> Result<Expanded, ExpandError> {
    let mode = Mode { escape, quotes: Quotes::Keep, keep_unset: true, ..Mode::WORD };
    run(line, mode, env).map(Output::into_expanded)
}

/// Split a line at blanks outside quotes. Words stay as they are written.
pub(crate) fn split_raw(line: &str) -> Result<Vec<String>, ExpandError> {
    let mode = Mode { quotes: Quotes::Keep, raw_escapes: true, keep_unset: true, ..Mode::WORD };
    run(line, mode, &EmptyEnv).map(|output| output.into_words().words)
}

#[cfg(test)]
mod tests;

//! Patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*`, `?`, and `\` before one of them; no brackets.

use regex::{Regex, RegexBuilder};

use super::lexer::append;
use super::{ExpandErrorKind, MAX_VALUE};

/// The longest pattern: matching takes time in pattern times value.
const MAX_PATTERN: usize = 4096;

/// A parsed pattern.
#[derive(Debug)]
pub(super) struct Pattern<'a> {
    source: &'a str,
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Star,
    Any,
    Literal(char),
}

impl<'a> Pattern<'a> {
    pub(super) fn parse(source: &'a str) -> Result<Self, ExpandErrorKind> {
        if source.len() > MAX_PATTERN {
            let cut = crate::text::floor_boundary(source, 200);
            return Err(invalid(&source[..cut], format!("longer than {MAX_PATTERN} bytes")));
        }
        let mut parts = Vec::new();
        let mut characters = source.chars().peekable();
        while let Some(character) = characters.next() {
            parts.push(match character {
                '*' => Part::Star,
                '?' => Part::Any,
                '\\' => match characters.next() {
                    // The word's own end had to be escaped: the escape is no part of the pattern.
                    Some(end @ ('}' | '/' | '*' | '?' | '\\')) => Part::Literal(end),
                    Some(other) => return Err(invalid(source, format!("invalid escape '\\{other}'"))),
                    None => return Err(invalid(source, "invalid escape '\\'".to_owned())),
                },
                literal => Part::Literal(literal),
            });
        }
        Ok(Self { source, parts })
    }

    /// `value` without the prefix that matches.
    pub(super) fn trim_prefix(&self, value: &str, longest: bool) -> Result<String, ExpandErrorKind> {
        let regex = self.regex(self.parts.iter(), longest, true)?;
        let end = regex.find(value).map_or(0, |found| found.end());
        Ok(value[end..].to_owned())
    }

    /// `value` without the suffix that matches.
    pub(super) fn trim_suffix(&self, value: &str, longest: bool) -> Result<String, ExpandErrorKind> {
        // The shortest match at an end is the leftmost one of the reversed text.
        let regex = self.regex(self.parts.iter().rev(), longest, true)?;
        let reversed: String = value.chars().rev().collect();
        let end = regex.find(&reversed).map_or(0, |found| found.end());
        Ok(value[..value.len() - end].to_owned())
    }

    /// `value` with its first match replaced.
    pub(super) fn replace_first(&self, value: &str, replacement: &str) -> Result<String, ExpandErrorKind> {
        let regex = self.regex(self.parts.iter(), true, false)?;
        let Some(found) = regex.find(value) else { return Ok(value.to_owned()) };
        let mut result = String::new();
        append(&mut result, &value[..found.start()])?;
        append(&mut result, replacement)?;
        append(&mut result, &value[found.end()..])?;
        Ok(result)
    }

    /// `value` with every match replaced. `$0` in the replacement is the match, any other `$1` nothing: BuildKit passes
    /// it to a regular expression, and Dockerfiles may rest on that.
    pub(super) fn replace_all(&self, value: &str, replacement: &str) -> Result<String, ExpandErrorKind> {
        let regex = self.regex(self.parts.iter(), true, false)?;
        let mut result = String::new();
        let mut done = 0;
        for captures in regex.captures_iter(value) {
            let Some(found) = captures.get(0) else { continue };
            append(&mut result, &value[done..found.start()])?;
            captures.expand(replacement, &mut result);
            if result.len() > MAX_VALUE {
                return Err(ExpandErrorKind::TooLarge);
            }
            done = found.end();
        }
        append(&mut result, &value[done..])?;
        Ok(result)
    }

    fn regex<'p>(
        &self,
        parts: impl Iterator<Item = &'p Part>,
        longest: bool,
        anchored: bool,
    ) -> Result<Regex, ExpandErrorKind> {
        let mut source = String::with_capacity(self.source.len() * 2 + 4);
        if anchored {
            source.push('^');
        }
        for part in parts {
            match part {
                Part::Star => source.push_str(if longest { ".*" } else { ".*?" }),
                Part::Any => source.push('.'),
                Part::Literal(character) => {
                    let mut buffer = [0; 4];
                    source.push_str(&regex::escape(character.encode_utf8(&mut buffer)));
                }
            }
        }
        RegexBuilder::new(&source).build().map_err(|error| invalid(self.source, error.to_string()))
    }
}

fn invalid(pattern: &str, cause: String) -> ExpandErrorKind {
    ExpandErrorKind::InvalidPattern { pattern: pattern.to_owned(), cause }
}

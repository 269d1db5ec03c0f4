//! Parser directives: `# syntax=`, `# escape=`, `# check=` at the very top of the file.

use nom::bytes::complete::{tag, take_while};
use nom::character::complete::{char, satisfy};
use nom::combinator::recognize;
use nom::sequence::{delimited, pair};
use nom::{IResult, Offset, Parser};
use serde_json::Value;

use super::line::{Line, Lines};
use crate::ast::{Directives, Span, Spanned, Word};
use crate::diagnostic::Diagnostic;

/// Read the directives of `text` from `start` on, and say where the first line is that is none.
pub(super) fn read(text: &str, start: usize, diagnostics: &mut Vec<Diagnostic>) -> (Directives, usize) {
    let mut directives = Directives::default();
    let mut lines = Lines::new(text, start).peekable();
    // After `#!`, BuildKit still looks for `syntax` and `check`, but `escape` no more.
    let shebang = lines.next_if(|line| line.text.starts_with("#!")).is_some();
    let mut end = start;
    for line in lines {
        let Some((key, value)) = directive(&line, "#") else { break };
        let Some(known) = Key::parse(&key.value) else { break };
        let seen = match known {
            Key::Syntax => directives.syntax.is_some(),
            Key::Check => directives.check.is_some(),
            Key::Escape => directives.escape.is_some(),
        };
        if seen {
            let message = format!("only one {} parser directive can be used", key.value.to_lowercase());
            diagnostics.push(Diagnostic::error("duplicate-directive", line.span(), message));
            end = line.start + line.full.len();
            continue;
        }
        match known {
            Key::Syntax => directives.syntax = Some(value),
            Key::Check => directives.check = Some(value),
            Key::Escape if shebang => break,
            Key::Escape => match value.value.as_str() {
                "\\" => directives.escape = Some(Spanned { value: '\\', span: value.span }),
                "`" => directives.escape = Some(Spanned { value: '`', span: value.span }),
                other => {
                    let message = format!("invalid escape token '{other}' does not match ` or \\");
                    let error = Diagnostic::error("invalid-escape", value.span, message);
                    diagnostics.push(error.with_help("write # escape=` or leave the line out"));
                }
            },
        }
        end = line.start + line.full.len();
    }
    (directives, end)
}

/// The frontend that a file asks for. It need not be a Dockerfile: `# syntax=`, `// syntax=` and a JSON object with the
/// key `syntax` will do.
pub fn detect_syntax(text: &str) -> Option<Word> {
    let start = super::skip_bom(text);
    for prefix in ["#", "//"] {
        let mut lines = Lines::new(text, start).peekable();
        lines.next_if(|line| line.text.starts_with("#!"));
        for line in lines {
            let Some((key, value)) = directive(&line, prefix) else { break };
            match Key::parse(&key.value) {
                Some(Key::Syntax) => return Some(value),
                Some(_) => {}
                None => break,
            }
        }
    }
    let object = text[start..].trim_start();
    if !object.starts_with('{') {
        return None;
    }
    match serde_json::from_str::<Value>(object).ok()?.get("syntax")? {
        Value::String(value) => {
            Some(Word { value: value.clone(), span: Span { start, end: text.trim_end().len() } })
        }
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Syntax,
    Escape,
    Check,
}

impl Key {
    fn parse(name: &str) -> Option<Self> {
        [("syntax", Self::Syntax), ("escape", Self::Escape), ("check", Self::Check)]
            .into_iter()
            .find(|(key, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, key)| key)
    }
}

/// `# key = value`.
fn directive(line: &Line<'_>, prefix: &str) -> Option<(Word, Word)> {
    let text = line.text.trim_start();
    let parsed: IResult<&str, (&str, &str)> =
        pair(delimited((tag(prefix), blanks), name, (blanks, char('='), blanks)), nom::combinator::rest)
            .parse(text);
    let (_, (key, value)) = parsed.ok()?;
    let value = value.trim_end();
    if value.is_empty() {
        return None;
    }
    let word = |part: &str| {
        let start = line.start + line.text.offset(part);
        Word { value: part.to_owned(), span: Span { start, end: start + part.len() } }
    };
    Some((word(key), word(value)))
}

fn blanks(input: &str) -> IResult<&str, &str> {
    take_while(char::is_whitespace).parse(input)
}

fn name(input: &str) -> IResult<&str, &str> {
    recognize(pair(
        satisfy(|character| character.is_ascii_alphabetic()),
        take_while(|character: char| character.is_ascii_alphanumeric()),
    ))
    .parse(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> (Directives, Vec<String>) {
        let mut diagnostics = Vec::new();
        let (directives, _) = read(text, 0, &mut diagnostics);
        (directives, diagnostics.into_iter().map(|diagnostic| diagnostic.message).collect())
    }

    #[test]
    fn directives_stand_at_the_very_top() {
        let (directives, errors) =
            read_all("# syntax=docker/dockerfile:1\n#Escape = `  \n# check=skip=all\nFROM a");
        assert_eq!(directives.syntax.unwrap().value, "docker/dockerfile:1");
        assert_eq!(directives.escape.unwrap().value, '`');
        assert_eq!(directives.check.unwrap().value, "skip=all");
        assert!(errors.is_empty());
        for above in ["\n", "# comment\n", "# unknown=x\n", "FROM a\n", "# escape=\n"] {
            let (directives, errors) = read_all(&format!("{above}# escape=`\n"));
            assert_eq!((directives.escape, errors.len()), (None, 0), "{above:?}");
        }
    }

    #[test]
    fn a_directive_comes_once_and_escape_is_one_of_two() {
        let (_, errors) = read_all("# escape=`\n# ESCAPE=\\\n");
        assert_eq!(errors, ["only one escape parser directive can be used"]);
        let (_, errors) = read_all("# escape=x\n");
        assert_eq!(errors, ["invalid escape token 'x' does not match ` or \\"]);
    }

    #[test]
    fn the_frontend_is_found_in_other_languages_too() {
        for (text, syntax) in [
            ("# syntax=a/b\nFROM x", Some("a/b")),
            ("\u{feff}# syntax=a/b\n", Some("a/b")),
            ("#!/usr/bin/env x\n# syntax=a/b\n", Some("a/b")),
            ("// syntax=a/b\n", Some("a/b")),
            ("{\"syntax\": \"a/b\", \"x\": 1}", Some("a/b")),
            ("{\"syntax\": 1}", None),
            ("FROM x\n# syntax=a/b\n", None),
        ] {
            assert_eq!(detect_syntax(text).map(|word| word.value).as_deref(), syntax, "{text:?}");
        }
    }
}

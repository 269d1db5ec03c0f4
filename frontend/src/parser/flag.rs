//! Flags between an instruction's keyword and its arguments: `--name[=value]`.

use crate::ast::{Flag, Word};
use crate::diagnostic::{Diagnostic, nearest};

use super::line::Logical;

/// A flag that an instruction has.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlagSpec {
    pub(super) name: &'static str,
    pub(super) kind: FlagKind,
}

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlagKind {
    /// `--x`, `--x=true`, `--x=false`.
    Bool,
    /// One value.
    Text,
    /// A value, and it may come again.
    List,
}

/// Split the flags off a line's arguments. The escape character in them is `\` whatever the directive says.
pub(super) fn split<'a>(line: &Logical<'_>, arguments: &'a str) -> (Vec<Flag>, &'a str) {
    let mut flags = Vec::new();
    let mut rest = arguments.trim_start();
    while rest.starts_with("--") {
        let (raw, after) = raw_word(rest);
        rest = after.trim_start();
        if raw == "--" {
            break;
        }
        let (name, value) = match raw.split_once('=') {
            Some((name, value)) => {
                (name, Some(Word { value: take_quotes_off(value), span: line.span(value) }))
            }
            None => (raw, None),
        };
        let name = take_quotes_off(name);
        let name = name.strip_prefix("--").unwrap_or(&name).to_owned();
        flags.push(Flag { span: line.span(raw), name, value });
    }
    (flags, rest)
}

/// The first word, quotes and escapes in it, and what follows.
fn raw_word(text: &str) -> (&str, &str) {
    let mut quote = None;
    let mut escaped = false;
    let end = text.find(|character: char| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match (character, quote) {
            ('\\', _) => escaped = true,
            (_, Some(open)) if character == open => quote = None,
            (_, Some(_)) => {}
            ('\'' | '"', None) => quote = Some(character),
            _ => return character.is_whitespace(),
        }
        false
    });
    text.split_at(end.unwrap_or(text.len()))
}

fn take_quotes_off(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', _) => result.extend(characters.next()),
            (_, Some(open)) if character == open => quote = None,
            ('\'' | '"', None) => quote = Some(character),
            _ => result.push(character),
        }
    }
    result
}

/// Report flags that the instruction does not have, that come twice, or that lack a value.
pub(super) fn check(flags: &[Flag], specs: &[FlagSpec], errors: &mut Vec<Diagnostic>) {
    for (index, flag) in flags.iter().enumerate() {
        let name = &flag.name;
        let Some(spec) = specs.iter().find(|spec| spec.name == *name) else {
            let error = Diagnostic::error("unknown-flag", flag.span, format!("unknown flag: --{name}"));
            errors.push(match nearest(name, specs.iter().map(|spec| spec.name)) {
                Some(near) => error.with_help(format!("did you mean --{near}?")),
                None => error,
            });
            continue;
        };
        if spec.kind != FlagKind::List && flags[..index].iter().any(|earlier| earlier.name == *name) {
            let message = format!("duplicate flag specified: --{name}");
            errors.push(Diagnostic::error("duplicate-flag", flag.span, message));
            continue;
        }
        match (&flag.value, spec.kind) {
            (None, FlagKind::Bool) => {}
            (None, _) => errors.push(missing(flag).with_help(format!("write --{name}=VALUE"))),
            (Some(value), FlagKind::Bool) if value.value.is_empty() => errors.push(missing(flag)),
            (Some(value), FlagKind::Bool) if parse_bool(&value.value).is_none() => {
                let message = format!("expecting boolean value for flag --{name}, not: {}", value.value);
                errors.push(Diagnostic::error("invalid-flag-value", value.span, message));
            }
            (Some(_), _) => {}
        }
    }
}

fn missing(flag: &Flag) -> Diagnostic {
    let message = format!("missing a value on flag: --{}", flag.name);
    Diagnostic::error("missing-flag-value", flag.span, message)
}

fn parse_bool(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// The value of a flag. An empty one is none, as BuildKit has it.
pub(super) fn text(flags: &[Flag], name: &str) -> Option<Word> {
    let flag = flags.iter().find(|flag| flag.name == name)?;
    flag.value.clone().filter(|value| !value.value.is_empty())
}

/// All values of a flag that may come again.
pub(super) fn list(flags: &[Flag], name: &str) -> Vec<Word> {
    flags.iter().filter(|flag| flag.name == name).filter_map(|flag| flag.value.clone()).collect()
}

/// A switch: `None` if it is not there.
pub(super) fn switch(flags: &[Flag], name: &str) -> Option<bool> {
    let flag = flags.iter().find(|flag| flag.name == name)?;
    flag.value.as_ref().map_or(Some(true), |value| parse_bool(&value.value))
}

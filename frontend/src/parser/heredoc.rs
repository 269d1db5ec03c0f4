//! Heredocs: the words that open them and the bodies after the line.

use std::collections::{HashMap, VecDeque};

use nom::bytes::complete::{tag, take_while};
use nom::character::complete::{char, digit0};
use nom::combinator::{opt, rest};
use nom::{IResult, Parser};

use super::line::{Line, Lines, Logical};
use crate::ast::{Heredoc, Span, Word};
use crate::diagnostic::Diagnostic;
use crate::expand;

/// The word that opens a heredoc: `<<EOF`, `3<<-"EOF"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    /// Without quotes.
    pub(super) name: String,
    fd: Option<u32>,
    expand: bool,
    chomp: bool,
    /// Blanks stand in front of the name: it may as well be a shift, `$((1 << 2))`.
    spaced: bool,
}

impl Opening {
    /// Read a whole word; `None` if it opens no heredoc.
    pub(super) fn parse(word: &str) -> Option<Self> {
        let parsed: IResult<&str, (&str, &str, Option<char>, &str, &str)> =
            (digit0, tag("<<"), opt(char('-')), take_while(char::is_whitespace), rest).parse(word);
        let (_, (fd, _, dash, blanks, delimiter)) = parsed.ok()?;
        if delimiter.is_empty() || delimiter.contains('<') {
            return None;
        }
        let name = expand::unquote(delimiter, '\\').ok()?;
        // A body whose delimiter is quoted anywhere is taken as it is.
        let raw = expand::split_raw(delimiter).ok()?;
        let [raw] = raw.as_slice() else { return None };
        if name.is_empty() {
            return None;
        }
        let spaced = !blanks.is_empty();
        Some(Self { expand: *raw == name, name, fd: fd.parse().ok(), chomp: dash.is_some(), spaced })
    }
}

/// The heredocs that a line opens, each with its word.
pub(super) fn openings(line: &Logical<'_>) -> Vec<(Opening, Word)> {
    if !line.text.contains("<<") {
        return Vec::new();
    }
    // A line whose quotes do not match is the shell's to complain about.
    let Ok(words) = expand::split_raw(&line.text) else { return Vec::new() };
    let mut from = 0;
    let mut openings = Vec::new();
    for word in words {
        let Some(opening) = Opening::parse(&word) else { continue };
        let span = match line.text[from..].find(&word) {
            Some(at) => {
                let start = from + at;
                from = start + word.len();
                line.span(&line.text[start..from])
            }
            // It is not written as it was read (`"a\\b"`): the line will do, for those after it, too.
            None => {
                from = line.text.len();
                line.span(&line.text)
            }
        };
        openings.push((opening, Word { value: word, span }));
    }
    openings
}

/// Bodies of a line's heredocs, read from the lines that follow.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    pub(super) heredocs: Vec<Heredoc>,
    /// What an ONBUILD trigger adds to its line: bodies and terminators as they stand.
    pub(super) raw: String,
    /// End of the last terminator, line break left out.
    pub(super) end: Option<usize>,
    pub(super) errors: Vec<Diagnostic>,
}

/// Read the bodies of `openings`, one after the other.
pub(super) fn read_bodies(openings: Vec<(Opening, Word)>, lines: &mut Lines<'_>) -> Bodies {
    let mut bodies = Bodies::default();
    for (opening, word) in openings {
        // What nothing ends is no heredoc: BuildKit refuses every shift with a blank for its sake.
        if opening.spaced && !lines.will_have(&opening.name) {
            continue;
        }
        let mut content = String::new();
        let mut start = None;
        let mut end = 0;
        let mut near_miss: Option<Span> = None;
        let mut terminator = None;
        for line in lines.by_ref() {
            if line.is_too_long() {
                bodies.errors.push(super::line_too_long(line.span()));
            }
            start.get_or_insert(line.start);
            if terminates(&line, &opening) {
                terminator = Some(line);
                end = line.start;
                break;
            }
            if near_miss.is_none() && line.text.trim() == opening.name {
                near_miss = Some(line.span());
            }
            content.push_str(line.full);
            end = line.start + line.full.len();
        }
        let Some(terminator) = terminator else {
            let help = match near_miss {
                Some(_) => format!(
                    "the line with {} must hold nothing else; with <<- it may be indented by tabs",
                    opening.name
                ),
                None => format!("end it with a line that holds only {}", opening.name),
            };
            let mut error =
                Diagnostic::error("unterminated-heredoc", word.span, "unterminated heredoc").with_help(help);
            error.spans.extend(near_miss);
            bodies.errors.push(error);
            bodies.end = Some(end).filter(|end| *end > 0);
            break;
        };
        bodies.end = Some(terminator.start + terminator.text.len());
        bodies.raw.push('\n');
        bodies.raw.push_str(&content);
        bodies.raw.push_str(&opening.name);
        bodies.heredocs.push(Heredoc {
            name: opening.name,
            word,
            fd: opening.fd,
            expand: opening.expand,
            chomp: opening.chomp,
            content,
            content_span: Span { start: start.unwrap_or(end), end },
        });
    }
    bodies
}

fn terminates(line: &Line<'_>, opening: &Opening) -> bool {
    let text = if opening.chomp { line.text.trim_start_matches('\t') } else { line.text };
    text == opening.name
}

/// Heredocs by name, each name's in order.
#[derive(Debug)]
pub(super) struct ByName(HashMap<String, VecDeque<Heredoc>>);

impl ByName {
    pub(super) fn new(heredocs: Vec<Heredoc>) -> Self {
        let mut by_name: HashMap<String, VecDeque<Heredoc>> = HashMap::new();
        for heredoc in heredocs {
            by_name.entry(heredoc.name.clone()).or_default().push_back(heredoc);
        }
        Self(by_name)
    }

    /// Take the first one of a name.
    pub(super) fn take(&mut self, name: &str) -> Option<Heredoc> {
        self.0.get_mut(name)?.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_told_from_shifts() {
        let opening = |name: &str, fd, expand, chomp| {
            Some(Opening { name: name.to_owned(), fd, expand, chomp, spaced: false })
        };
        for (word, expected) in [
            ("<<EOF", opening("EOF", None, true, false)),
            ("<<-EOF", opening("EOF", None, true, true)),
            ("3<<EOF", opening("EOF", Some(3), true, false)),
            ("<<'EOF'", opening("EOF", None, false, false)),
            ("<<E\"O\"F", opening("EOF", None, false, false)),
            ("<<\\EOF", opening("EOF", None, false, false)),
            ("<<$X", opening("$X", None, true, false)),
            ("<<'a b'", opening("a b", None, false, false)),
            ("<<", None),
            ("<<-", None),
            ("<<<EOF", None),
            ("<<a<b", None),
            ("x<<EOF", None),
            ("<EOF", None),
            ("<<''", None),
        ] {
            assert_eq!(Opening::parse(word), expected, "{word}");
        }
    }
}

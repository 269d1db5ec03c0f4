//! Physical lines, and logical lines: continuation lines joined, with a map back to the text.

use std::borrow::Cow;
use std::collections::HashMap;

use nom::Offset;

use crate::ast::{Span, Word};

/// Longer lines are refused, as by BuildKit's scanner.
pub(super) const MAX_LINE: usize = 65_535;

/// A line of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    /// Without its line break; every `\r` at its end is taken off.
    pub(super) text: &'a str,
    /// With its line break.
    pub(super) full: &'a str,
    /// Offset of its first byte.
    pub(super) start: usize,
}

impl Line<'_> {
    pub(super) fn span(&self) -> Span {
        Span { start: self.start, end: self.start + self.text.len() }
    }

    pub(super) fn is_comment(&self) -> bool {
        self.text.trim_start().starts_with('#')
    }

    pub(super) fn is_blank(&self) -> bool {
        self.text.trim_start().is_empty()
    }

    pub(super) fn is_too_long(&self) -> bool {
        self.text.len() > MAX_LINE
    }
}

/// The lines of a text, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Lines<'a> {
    text: &'a str,
    position: usize,
    /// Where each line stands last, without tabs in front. Made when it is first asked for.
    last: Option<HashMap<&'a str, usize>>,
}

impl<'a> Lines<'a> {
    /// Lines from `position` on.
    pub(super) fn new(text: &'a str, position: usize) -> Self {
        Self { text, position, last: None }
    }

    /// Whether a line that holds only `text`, tabs in front aside, is still to come.
    pub(super) fn will_have(&mut self, text: &str) -> bool {
        let whole = self.text;
        let last = self.last.get_or_insert_with(|| {
            let lines = Lines::new(whole, 0);
            lines.map(|line| (line.text.trim_start_matches('\t'), line.start)).collect()
        });
        last.get(text).is_some_and(|at| *at >= self.position)
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let rest = &self.text[self.position..];
        if rest.is_empty() {
            return None;
        }
        let length = rest.find('\n').map_or(rest.len(), |at| at + 1);
        let full = &rest[..length];
        let line = Line { text: full.trim_end_matches(['\r', '\n']), full, start: self.position };
        self.position += length;
        Some(line)
    }
}

/// An instruction's line with its continuation lines joined. Leading blanks of the first line are gone, those of the
/// others stay.
#[derive(Clone, Debug)]
pub(super) struct Logical<'a> {
    pub(super) text: Cow<'a, str>,
    // Where each joined piece starts, here and in the file; never empty, ascending in both.
    pieces: Vec<Piece>,
    /// End of its last line in the file, line break left out.
    pub(super) end: usize,
    /// The first blank line after a continuation.
    pub(super) empty_continuation: Option<Span>,
    /// The first of its lines that is too long to be read.
    pub(super) too_long: Option<Span>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    here: usize,
    file: usize,
}

impl<'a> Logical<'a> {
    /// The logical line that starts with `first`; its continuation lines are taken from `lines`.
    pub(super) fn read(first: Line<'a>, lines: &mut Lines<'a>, escape: char) -> Self {
        let text = first.text.trim_start();
        let start = first.start + first.text.offset(text);
        let (text, mut continues) = split_continuation(text, escape);
        let mut logical = Self {
            text: Cow::Borrowed(text),
            pieces: vec![Piece { here: 0, file: start }],
            end: first.start + first.text.len(),
            empty_continuation: None,
            too_long: first.is_too_long().then(|| first.span()),
        };
        while continues && let Some(line) = lines.next() {
            if line.is_too_long() && logical.too_long.is_none() {
                logical.too_long = Some(line.span());
            }
            if line.is_comment() {
                continue;
            }
            if line.is_blank() {
                logical.empty_continuation.get_or_insert(line.span());
                continue;
            }
            let (text, more) = split_continuation(line.text, escape);
            logical.pieces.push(Piece { here: logical.text.len(), file: line.start });
            logical.text.to_mut().push_str(text);
            logical.end = line.start + line.text.len();
            continues = more;
        }
        logical
    }

    /// Where a part of `self.text` stands in the file.
    pub(super) fn span(&self, part: &str) -> Span {
        let start = self.text.offset(part);
        let first = self.locate(start);
        let end = if part.is_empty() { first } else { self.locate(start + part.len() - 1) + 1 };
        Span { start: first, end }
    }

    /// A part of `self.text` with its place.
    pub(super) fn word(&self, part: &str) -> Word {
        Word { value: part.to_owned(), span: self.span(part) }
    }

    fn locate(&self, here: usize) -> usize {
        let index = self.pieces.partition_point(|piece| piece.here <= here) - 1;
        let piece = self.pieces[index];
        piece.file + (here - piece.here)
    }
}

/// A line without the escape character that continues it, and whether it had one. Blanks may follow it; a doubled one
/// continues nothing.
fn split_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Logical<'_> {
        let mut lines = Lines::new(text, 0);
        let first = lines.next().unwrap();
        Logical::read(first, &mut lines, '\\')
    }

    #[test]
    fn lines_are_joined_as_the_escape_character_says() {
        for (text, joined) in [
            ("RUN a\nRUN b", "RUN a"),
            ("RUN a \\\n  b\n", "RUN a   b"),
            ("RUN a \\  \t\nb", "RUN a b"),
            ("RUN a \\\\\nb", "RUN a \\\\"),
            ("RUN a \\\n# no\n  # neither\nb\nc", "RUN a b"),
            ("RUN a \\\n\n  \nb\nc", "RUN a b"),
            ("  RUN a \\\r\n b\r\n", "RUN a  b"),
            ("RUN a \\", "RUN a "),
            ("\\\nRUN a", "RUN a"),
        ] {
            assert_eq!(read(text).text, joined, "{text:?}");
        }
    }

    #[test]
    fn parts_know_their_place_in_the_file() {
        let text = "  COPY ab \\\n# x\n  cd \\\n  ef";
        let logical = read(text);
        for part in ["COPY", "ab", "cd", "ef"] {
            let at = logical.text.find(part).unwrap();
            let span = logical.span(&logical.text[at..at + 2]);
            assert_eq!(&text[span.start..span.end], &part[..2]);
        }
        assert_eq!(logical.end, text.len());
    }

    #[test]
    fn the_first_empty_continuation_line_is_noted() {
        let logical = read("RUN a \\\n\n  \nb");
        assert_eq!(logical.empty_continuation, Some(Span { start: 8, end: 8 }));
    }
}

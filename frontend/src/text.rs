//! A Dockerfile's bytes as text, and byte offsets as lines and columns. What the text says is `parser`'s business.

use std::borrow::Cow;

use crate::ast::Span;

/// A place for people: both numbers count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Character in the line.
    pub column: usize,
}

/// Bytes as text of the same length: a byte that is not UTF-8 becomes `?`, so every offset stands.
pub fn decode(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n('?', chunk.invalid().len()));
    }
    Cow::Owned(text)
}

/// Where the lines of a text start.
#[derive(Clone, Debug)]
pub struct LineIndex<'a> {
    text: &'a str,
    // Offsets of first bytes, ascending; the first is 0.
    starts: Vec<usize>,
}

impl<'a> LineIndex<'a> {
    /// Index `text`.
    pub fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(breaks).collect() }
    }

    /// The line and column of a byte; past the end, the end's.
    pub fn position(&self, offset: usize) -> Position {
        let offset = floor_boundary(self.text, offset);
        let line = self.line_of(offset);
        let column = self.text[self.starts[line]..offset].chars().count();
        Position { line: line + 1, column: column + 1 }
    }

    /// First and last line (1-based) that a span touches.
    pub fn lines(&self, span: Span) -> (usize, usize) {
        let start = span.start.min(self.text.len());
        let last = span.end.clamp(start, self.text.len()).max(start + 1) - 1;
        (self.line_of(start) + 1, self.line_of(last.max(start)) + 1)
    }

    /// Byte range of lines `first..=last` (1-based), their last line break left out; cut to the text.
    pub fn range(&self, first: usize, last: usize) -> Span {
        let count = self.starts.len();
        let first = first.clamp(1, count);
        let last = last.clamp(first, count);
        let start = self.starts[first - 1];
        let end = self.starts.get(last).map_or(self.text.len(), |next| next - 1);
        Span { start, end: end.max(start) }
    }

    fn line_of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset) - 1
    }
}

/// The nearest character boundary at or before `offset`.
pub(crate) fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_become_lines_and_columns() {
        let index = LineIndex::new("FROM a\n\nRUN ö x\n");
        for (offset, line, column) in
            [(0, 1, 1), (5, 1, 6), (6, 1, 7), (7, 2, 1), (8, 3, 1), (12, 3, 5), (15, 3, 7), (900, 4, 1)]
        {
            assert_eq!(index.position(offset), Position { line, column }, "offset {offset}");
        }
    }

    #[test]
    fn a_span_knows_its_lines() {
        let text = "a\nbc\nd";
        let index = LineIndex::new(text);
        assert_eq!(index.lines(Span { start: 0, end: 1 }), (1, 1));
        assert_eq!(index.lines(Span { start: 0, end: 4 }), (1, 2));
        assert_eq!(index.lines(Span { start: 5, end: 6 }), (3, 3));
        assert_eq!(index.lines(Span { start: 6, end: 6 }), (3, 3));
        assert_eq!(index.range(2, 9), Span { start: 2, end: 6 });
        assert_eq!(index.range(1, 1), Span { start: 0, end: 1 });
    }

    #[test]
    fn invalid_bytes_keep_their_offsets() {
        let bytes = b"a\xff\xfe\xc3b\xe2\x82c";
        let text = decode(bytes);
        assert_eq!(text, "a???b??c");
        assert_eq!(text.len(), bytes.len());
    }
}

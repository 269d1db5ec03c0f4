//! What a step writes, made fit for a terminal or a log: lines without control characters.
//!
//! Steps are strangers: their output must not move the cursor, change the title or colour what comes after it.

use std::collections::VecDeque;

/// Longest line that is kept together, bytes. Longer ones are broken.
const MAX_LINE: usize = 16 * 1024;

/// Collects a stream's bytes into lines. What a carriage return overwrites is dropped, as a terminal would.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    /// A carriage return came: the next byte overwrites the line, unless it ends it.
    returned: bool,
}

impl Lines {
    /// Takes bytes and gives each line that ends in them, clean.
    pub(crate) fn push(&mut self, data: &[u8], mut line: impl FnMut(String)) {
        for &byte in data {
            match byte {
                b'\n' => {
                    self.returned = false;
                    line(clean(&std::mem::take(&mut self.partial)));
                }
                b'\r' => self.returned = true,
                _ => {
                    if std::mem::take(&mut self.returned) {
                        self.partial.clear();
                    }
                    self.partial.push(byte);
                    if self.partial.len() >= MAX_LINE {
                        line(clean(&std::mem::take(&mut self.partial)));
                    }
                }
            }
        }
    }

    /// What has come of the line that has not ended.
    pub(crate) fn partial(&self) -> Option<String> {
        Some(clean(&self.partial)).filter(|line| !line.is_empty())
    }

    /// The same, for the end of the stream.
    pub(crate) fn finish(&mut self) -> Option<String> {
        let rest = self.partial();
        self.partial = Vec::new();
        rest
    }
}

/// Text without escape sequences and other characters that do more than stand in their place. Tabs become spaces.
pub(crate) fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\x1b' => match chars.next() {
                // CSI: parameters and intermediates up to a final byte.
                Some('[') => while chars.next().is_some_and(|char| !('\x40'..='\x7e').contains(&char)) {},
                // OSC, DCS, SOS, PM, APC: up to BEL or ST.
                Some(']' | 'P' | 'X' | '^' | '_') => {
                    while let Some(char) = chars.next() {
                        if char == '\x07' || (char == '\x1b' && chars.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                // Intermediates, then a final byte; without any it is that one character.
                Some('\x20'..='\x2f') => {
                    while chars.next().is_some_and(|char| ('\x20'..='\x2f').contains(&char)) {}
                }
                _ => {}
            },
            '\t' => {
                let to_stop = 8 - out.chars().count() % 8;
                out.extend(std::iter::repeat_n(' ', to_stop));
            }
            // Text direction and invisible marks can make a line read as something else.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {}
            '\u{2028}' | '\u{2029}' => out.push(' '),
            _ if char.is_control() => {}
            _ => out.push(char),
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// Columns a terminal needs for `text`, near enough.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// `text` cut to `columns`, with an ellipsis if something is missing.
pub(crate) fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut left = columns.saturating_sub(1);
    for char in text.chars() {
        let Some(rest) = left.checked_sub(char_width(char)) else { break };
        left = rest;
        out.push(char);
    }
    if columns > 0 {
        out.push('…');
    }
    out
}

fn char_width(char: char) -> usize {
    match u32::from(char) {
        0x0300..=0x036f | 0x200b..=0x200d | 0xfe00..=0xfe0f => 0,
        // East Asian wide and emoji blocks.
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// The last lines of something.
#[derive(Debug)]
pub(crate) struct Tail {
    lines: VecDeque<String>,
    most: usize,
}

/// Bytes kept of a line in a [`Tail`].
const MAX_TAIL_LINE: usize = 2 * 1024;

impl Tail {
    pub(crate) fn new(most: usize) -> Self {
        Self { lines: VecDeque::new(), most }
    }

    pub(crate) fn push(&mut self, mut line: String) {
        let mut end = line.len().min(MAX_TAIL_LINE);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        if self.lines.len() == self.most {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &str> + ExactSizeIterator {
        self.lines.iter().map(String::as_str)
    }

    pub(crate) fn clear(&mut self) {
        self.lines = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_step_writes_reaches_the_terminal_as_a_command() {
        let cases: &[(&[u8], &str)] = &[
            (b"plain", "plain"),
            (b"\x1b[31mred\x1b[0m", "red"),
            (b"a\x1b[2J\x1b[1;1Hb", "ab"),
            (b"\x1b]0;title\x07x", "x"),
            (b"\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
            (b"\x1b]52;c;never ends", ""),
            (b"\x1bP1$r\x1b\\x", "x"),
            (b"\x1b(Bx\x1b7y\x1bc", "xy"),
            (b"\x1b", ""),
            (b"\x1b[31", ""),
            (b"bell\x07 nul\0 back\x08", "bell nul back"),
            (b"a\tb", "a       b"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            ("c1 \u{9b}31m".as_bytes(), "c1 31m"),
            ("\u{202e}rtl".as_bytes(), "rtl"),
            (b"trailing   ", "trailing"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(clean(bytes), *expected, "{bytes:?}");
        }
    }

    fn lines(chunks: &[&[u8]]) -> (Vec<String>, Option<String>) {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |line| out.push(line));
        }
        (out, lines.finish())
    }

    #[test]
    fn lines_come_together_from_any_chunks() {
        assert_eq!(
            lines(&[b"a\nb", b"c\r", b"\nd"]),
            (vec!["a".to_owned(), "bc".to_owned()], Some("d".to_owned()))
        );
        assert_eq!(lines(&[b"10%\r20%\r", b"done\n"]), (vec!["done".to_owned()], None));
        assert_eq!(lines(&[b"10%\r"]), (vec![], Some("10%".to_owned())));
        assert_eq!(lines(&[b"\n\n"]).0, ["", ""]);
    }

    #[test]
    fn a_line_without_end_does_not_grow_without_end() {
        let mut lines = Lines::default();
        let mut longest = 0;
        for _ in 0..100 {
            lines.push(&[b'x'; 10_000], |line| longest = longest.max(line.len()));
            assert!(lines.partial.capacity() <= 2 * MAX_LINE);
        }
        assert_eq!(longest, MAX_LINE);
    }

    #[test]
    fn text_is_cut_to_columns() {
        assert_eq!(fit("hello", 5), "hello");
        assert_eq!(fit("hello", 4), "hel…");
        assert_eq!(fit("日本語", 5), "日本…");
        assert_eq!(fit("日本語", 4), "日…");
        assert_eq!(fit("hello", 0), "");
    }

    proptest::proptest! {
        #[test]
        fn clean_text_has_no_control_characters(bytes: Vec<u8>, columns in 0..20_usize) {
            let text = clean(&bytes);
            proptest::prop_assert!(!text.chars().any(char::is_control));
            proptest::prop_assert!(width(&fit(&text, columns)) <= columns);
        }
    }
}

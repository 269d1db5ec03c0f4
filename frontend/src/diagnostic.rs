//! What is wrong with a Dockerfile, and where: errors and lint warnings, and how they are shown.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::ast::Span;
use crate::text::{LineIndex, floor_boundary};

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

    /// Show it with its lines, a caret under what is meant, and the hint. `text` is the decoded file
    /// ([`text::decode`](crate::text::decode)); spans outside it are cut to it. No line break at the end.
    pub fn render(&self, file_name: &str, text: &str, style: RenderStyle) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let message = printable(&self.message);
        let mut title = level.primary_title(message);
        if self.severity == Severity::Warning {
            title = title.id(self.code);
        }
        let window = Window::around(&self.spans, text);
        let source = printable(&text[window.bytes.clone()]);
        let mut snippet = Snippet::source(source).path(file_name).line_start(window.first_line);
        for (index, span) in self.spans.iter().enumerate() {
            let kind = if index == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
            if let Some(range) = window.range(*span, text) {
                snippet = snippet.annotation(kind.span(range));
            }
        }
        let mut group = title.element(snippet);
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(printable(help)));
        }
        if let Some(url) = &self.url {
            group = group.element(Level::NOTE.message(format!("see {url}")));
        }
        let renderer = match style {
            RenderStyle::Plain => Renderer::plain(),
            RenderStyle::Coloured => Renderer::styled(),
        };
        let shown = renderer.term_width(TERM_WIDTH).render(&[group]);
        shown.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }
}

/// Longer lines are cut around what is meant.
const TERM_WIDTH: usize = 140;

/// How many lines of one diagnostic are shown, and how many bytes of them.
const MAX_LINES: usize = 12;
const MAX_BYTES: usize = 16 * 1024;

/// What a diagnostic looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenderStyle {
    /// Text alone.
    Plain,
    /// With terminal colours.
    Coloured,
}

/// The part of a text that is shown: rendering takes time in its size, and the file may be large.
#[derive(Debug)]
struct Window {
    bytes: Range<usize>,
    first_line: usize,
}

impl Window {
    fn around(spans: &[Span], text: &str) -> Self {
        let index = LineIndex::new(text);
        let primary = spans.first().copied().unwrap_or_default();
        let (first, mut last) = index.lines(primary);
        for span in spans {
            last = last.max(index.lines(*span).1);
        }
        let lines = index.range(first, last.min(first + MAX_LINES - 1));
        // A line may be very long, too: then only what stands around the place.
        let mut start = lines.start;
        if lines.end - lines.start > MAX_BYTES {
            start = start.max(floor_boundary(text, primary.start.saturating_sub(MAX_BYTES / 2)));
        }
        let end = floor_boundary(text, lines.end.min(start + MAX_BYTES)).max(start);
        Self { bytes: start..end, first_line: first }
    }

    /// A span in the shown text; `None` if it lies outside.
    fn range(&self, span: Span, text: &str) -> Option<Range<usize>> {
        if span.start > self.bytes.end || span.end < self.bytes.start {
            return None;
        }
        let start = floor_boundary(text, span.start.max(self.bytes.start)) - self.bytes.start;
        let end = floor_boundary(text, span.end.min(self.bytes.end)).max(self.bytes.start) - self.bytes.start;
        Some(start..end.max(start))
    }
}

/// Text that cannot steer a terminal: control characters become `?`, which keeps offsets as they are.
fn printable(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '\n' | '\t' => character,
            // They take two bytes.
            '\u{80}'..='\u{9f}' => '\u{a0}',
            _ if character.is_control() => {
                if character == '\r' {
                    ' '
                } else {
                    '?'
                }
            }
            _ => character,
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_shows_its_line_and_a_caret() {
        let text = "FROM x\r\nRUNN a\r\n";
        let (_, errors) = crate::parse(text.as_bytes());
        let shown = errors[0].render("Dockerfile", text, RenderStyle::Plain);
        assert_eq!(
            shown,
            "\
error: unknown instruction: RUNN
 --> Dockerfile:2:1
  |
2 | RUNN a
  | ^^^^
  |
  = help: did you mean RUN?"
        );
        assert!(errors[0].render("Dockerfile", text, RenderStyle::Coloured).contains("\u{1b}["));
    }

    #[test]
    fn a_finding_shows_its_rule_and_page() {
        let text = "FROM x AS Ab\n";
        let (dockerfile, _) = crate::parse(text.as_bytes());
        let shown = crate::lint::check(&dockerfile)[0].render("a/Dockerfile", text, RenderStyle::Plain);
        assert_eq!(
            shown,
            "\
warning[StageNameCasing]: Stage name 'Ab' should be lowercase
 --> a/Dockerfile:1:11
  |
1 | FROM x AS Ab
  |           ^^
  |
  = note: see https://docs.docker.com/go/dockerfile/rule/stage-name-casing/"
        );
    }

    #[test]
    fn spans_anywhere_can_be_shown() {
        let long = "ö".repeat(100_000);
        for text in ["", "a", "ö\n", "\u{1b}[2J\nx", &long, &format!("a\n{long}\nb")] {
            for (start, end) in
                [(0, 0), (0, 1), (1, 2), (1, 0), (3, 90_001), (70_000, 70_001), (usize::MAX, usize::MAX)]
            {
                let spans = vec![Span { start, end }, Span { start: end, end: start }];
                let diagnostic = Diagnostic { spans, ..Diagnostic::error("x", Span::default(), "m\u{7}") };
                let shown = diagnostic.render("Dockerfile", text, RenderStyle::Plain);
                assert!(!shown.contains(['\u{7}', '\u{1b}']), "{shown}");
                assert!(shown.len() < 20_000, "{}", shown.len());
            }
        }
        let diagnostic = Diagnostic { spans: Vec::new(), ..Diagnostic::error("x", Span::default(), "m") };
        assert!(diagnostic.render("Dockerfile", "FROM x", RenderStyle::Plain).starts_with("error: m"));
    }

    #[test]
    fn near_misses_are_found_and_far_ones_not() {
        let options = ["RUN", "COPY", "ENV"];
        for (name, near) in [
            ("RUNN", Some("RUN")),
            ("copyy", Some("COPY")),
            ("RUN", None),
            ("X", None),
            ("VOLUME", None),
            ("CPOY", Some("COPY")),
        ] {
            assert_eq!(nearest(name, options), near, "{name}");
        }
    }
}

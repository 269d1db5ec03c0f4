//! Dockerfile text to syntax tree. All errors are found at once: after one, parsing goes on with the next instruction.
//! Nothing is expanded and no name is looked up here.

mod device;
mod directive;
mod duration;
mod flag;
mod healthcheck;
mod heredoc;
mod instruction;
mod json;
mod keyword;
mod line;
mod word;

pub use directive::detect_syntax;

use crate::ast::{Dockerfile, Instruction, InstructionKind, Span, Word};
use crate::diagnostic::Diagnostic;
use crate::text;

use instruction::Parsed;
use line::{Line, Lines, Logical, MAX_LINE};

/// After this many errors the text is no Dockerfile.
const MAX_ERRORS: usize = 100;

/// Parse a Dockerfile. With an error among the diagnostics, the tree lacks the instructions that have one. Spans are
/// offsets into `bytes`.
pub fn parse(bytes: &[u8]) -> (Dockerfile, Vec<Diagnostic>) {
    let mut errors = Vec::new();
    let text = text::decode(bytes);
    let start = skip_bom(&text);
    let (directives, first) = directive::read(&text, start, &mut errors);
    let mut dockerfile = Dockerfile { directives, instructions: Vec::new() };
    if bytes.is_empty() {
        errors.push(Diagnostic::error("empty-file", Span::default(), "the Dockerfile cannot be empty"));
        return (dockerfile, errors);
    }
    if let Some(at) = text.find('\0') {
        let span = Span { start: at, end: at + 1 };
        errors.push(Diagnostic::error(
            "nul-byte",
            span,
            "the Dockerfile contains a NUL byte, so it is no text",
        ));
        return (dockerfile, errors);
    }
    if let Err(error) = std::str::from_utf8(bytes) {
        let at = error.valid_up_to();
        let span = Span { start: at, end: at + error.error_len().unwrap_or(bytes.len() - at) };
        errors.push(Diagnostic::error("invalid-utf8", span, "the Dockerfile is not valid UTF-8"));
    }

    let mut stages = Stages::default();
    let mut statements = Statements {
        lines: Lines::new(&text, first),
        escape: dockerfile.directives.escape_char(),
        comments: Vec::new(),
    };
    while errors.len() < MAX_ERRORS
        && let Some(parsed) = statements.next(&mut errors)
    {
        stages.check(&parsed, &mut errors);
        dockerfile.instructions.extend(parsed.instruction);
    }
    let end = Span { start: text.trim_end().len(), end: text.trim_end().len() };
    if !stages.any_instruction {
        if errors.is_empty() {
            let error = Diagnostic::error("no-instructions", end, "file with no instructions");
            errors.push(error.with_help("begin with FROM and an image"));
        }
    } else if !stages.any_from && errors.is_empty() {
        let error = Diagnostic::error("no-stages", end, "dockerfile contains no stages to build");
        errors.push(error.with_help("a stage starts with FROM"));
    }
    errors.sort_by_key(|error| error.spans.first().copied());
    errors.truncate(MAX_ERRORS);
    (dockerfile, errors)
}

/// Parse one instruction that does not stand in a Dockerfile: an ONBUILD trigger of an image's config, or one typed at
/// a prompt. Spans are offsets into `text`.
pub fn parse_instruction(text: &str, escape: char) -> Result<Instruction, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut statements = Statements { lines: Lines::new(text, 0), escape, comments: Vec::new() };
    let first = statements.next(&mut errors);
    if let Some(second) = statements.next(&mut errors) {
        errors.push(Diagnostic::error(
            "many-instructions",
            second.span,
            "there is more than one instruction",
        ));
    }
    match first.and_then(|parsed| parsed.instruction) {
        Some(instruction) if errors.is_empty() => Ok(instruction),
        _ => {
            if errors.is_empty() {
                let span = Span { start: 0, end: text.len() };
                errors.push(Diagnostic::error("no-instructions", span, "there is no instruction"));
            }
            Err(errors)
        }
    }
}

/// The instructions of a text, one after the other.
struct Statements<'a> {
    lines: Lines<'a>,
    escape: char,
    // Comment lines since the last instruction, blank line or empty comment.
    comments: Vec<Word>,
}

impl Statements<'_> {
    fn next(&mut self, errors: &mut Vec<Diagnostic>) -> Option<Parsed> {
        while let Some(line) = self.lines.next() {
            if line.is_blank() {
                self.comments.clear();
                continue;
            }
            if line.is_comment() {
                self.comment(&line);
                continue;
            }
            let comments = std::mem::take(&mut self.comments);
            let logical = Logical::read(line, &mut self.lines, self.escape);
            if let Some(span) = logical.too_long {
                errors.push(line_too_long(span));
                continue;
            }
            // Nothing but continuation characters.
            if logical.text.trim().is_empty() {
                continue;
            }
            return Some(instruction::parse(&logical, &mut self.lines, self.escape, comments, errors));
        }
        None
    }

    fn comment(&mut self, line: &Line<'_>) {
        let after = line.text.trim_start().strip_prefix('#').unwrap_or_default();
        let text = after.trim();
        if text.is_empty() {
            self.comments.clear();
            return;
        }
        let start = line.start + (line.text.len() - after.trim_start().len());
        let span = Span { start, end: start + text.len() };
        self.comments.push(Word { value: text.to_owned(), span });
    }
}

/// What comes before the first FROM can only be ARG.
#[derive(Default)]
struct Stages {
    any_instruction: bool,
    any_from: bool,
    reported: bool,
}

impl Stages {
    fn check(&mut self, parsed: &Parsed, errors: &mut Vec<Diagnostic>) {
        self.any_instruction = true;
        self.any_from |= parsed.is_from;
        let Some(instruction) = &parsed.instruction else { return };
        if self.any_from || self.reported || matches!(instruction.kind, InstructionKind::Arg(_)) {
            return;
        }
        self.reported = true;
        let error = Diagnostic::error("no-stage", instruction.span, "no build stage in current context");
        errors.push(error.with_help("only ARG may come before the first FROM"));
    }
}

fn line_too_long(span: Span) -> Diagnostic {
    let message = format!("dockerfile line greater than max allowed size of {MAX_LINE}");
    Diagnostic::error("line-too-long", span, message)
}

/// Where the text starts after a byte order mark.
fn skip_bom(text: &str) -> usize {
    if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 }
}

#[cfg(test)]
mod tests;

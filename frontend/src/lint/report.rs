//! Findings as `docker build --check` reports them: text for people, JSON for programs.

use std::fmt::Write as _;

use base64::Engine as _;
use serde::{Serialize, Serializer};

use super::rules;
use crate::ast::{Dockerfile, Span};
use crate::diagnostic::Diagnostic;
use crate::text::LineIndex;

/// Findings in a file, and why it cannot be built, if it cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order of the file.
    pub warnings: Vec<Warning>,
    /// The Dockerfile; locations count in it.
    pub sources: Vec<SourceFile>,
    /// What a build would fail with.
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    pub error: Option<BuildError>,
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Warning {
    /// Name of the rule.
    pub rule_name: String,
    /// What the rule is about.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Where it is explained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What is wrong here.
    pub detail: String,
    /// Where: all lines of the instruction.
    pub location: Location,
}

/// What a build would fail with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BuildError {
    /// Its message.
    pub message: String,
    /// Where.
    pub location: Location,
}

/// A file that locations count in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceFile {
    /// Its name.
    pub filename: String,
    /// Its bytes.
    #[serde(serialize_with = "base64")]
    pub data: Vec<u8>,
    /// `Dockerfile`.
    pub language: &'static str,
}

/// Lines of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Location {
    /// A range for each line.
    pub ranges: Vec<Range>,
}

/// A range of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// First line.
    pub start: Line,
    /// Last line.
    pub end: Line,
}

/// A line, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its number.
    pub line: usize,
}

impl Report {
    /// The report of `findings` in `text`, called `name`.
    pub fn new(
        dockerfile: &Dockerfile,
        name: &str,
        text: &str,
        findings: &[Diagnostic],
        error: Option<&Diagnostic>,
    ) -> Self {
        let index = LineIndex::new(text);
        let warning = |finding: &Diagnostic| Warning {
            rule_name: finding.code.to_owned(),
            description: rules::find(finding.code).map_or("", |rule| rule.description).to_owned(),
            url: finding.url.clone(),
            detail: finding.message.clone(),
            location: Location::of(dockerfile, &index, finding),
        };
        Self {
            warnings: findings.iter().map(warning).collect(),
            sources: vec![SourceFile {
                filename: name.to_owned(),
                data: text.as_bytes().to_vec(),
                language: "Dockerfile",
            }],
            error: error.map(|error| BuildError {
                message: error.message.clone(),
                location: Location::of(dockerfile, &index, error),
            }),
        }
    }

    /// `--check` in text.
    pub fn to_text(&self) -> String {
        let mut text = match self.warnings.len() {
            0 if self.error.is_some() => String::new(),
            0 => "Check complete, no warnings found.\n".to_owned(),
            1 => "Check complete, 1 warning has been found!\n".to_owned(),
            count => format!("Check complete, {count} warnings have been found!\n"),
        };
        let source = String::from_utf8_lossy(&self.sources[0].data);
        let lines: Vec<&str> = source.lines().collect();
        for warning in &self.warnings {
            let _ = write!(text, "\nWARNING: {}", warning.rule_name);
            if let Some(url) = &warning.url {
                let _ = write!(text, " - {url}");
            }
            let _ = writeln!(text, "\n{}\n{}", warning.detail, self.excerpt(&lines, &warning.location));
        }
        text
    }

    /// `--check` in JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data with string keys")
    }

    /// What a build says of its findings when it ends; `expanded` shows where they are, too. `None` if there are none.
    pub fn summary(&self, expanded: bool) -> Option<String> {
        let count = self.warnings.len();
        let plural = if count == 1 { "" } else { "s" };
        let more = if expanded { "" } else { " (use --debug to expand)" };
        let mut text = format!("\n {count} warning{plural} found{more}:\n");
        let source = String::from_utf8_lossy(&self.sources[0].data);
        let lines: Vec<&str> = source.lines().collect();
        for warning in &self.warnings {
            let _ = write!(text, " - {}: {}", warning.rule_name, warning.detail);
            if let Some(first) = warning.location.ranges.first() {
                let _ = write!(text, " (line {})", first.start.line);
            }
            text.push('\n');
            if expanded {
                let _ = writeln!(text, "{}", warning.description);
                if let Some(url) = &warning.url {
                    let _ = writeln!(text, "More info: {url}");
                }
                let _ = writeln!(text, "{}\n", self.excerpt(&lines, &warning.location));
            }
        }
        (count > 0).then_some(text)
    }

    fn excerpt(&self, lines: &[&str], location: &Location) -> String {
        let (Some(first), Some(last)) = (location.ranges.first(), location.ranges.last()) else {
            return String::new();
        };
        excerpt(&self.sources[0].filename, lines, first.start.line, last.end.line)
    }
}

impl Location {
    /// Of the instruction that a finding is in, as BuildKit has no smaller places; else of its own lines.
    fn of(dockerfile: &Dockerfile, index: &LineIndex<'_>, finding: &Diagnostic) -> Self {
        let Some(&span) = finding.spans.first() else { return Self::default() };
        let at = dockerfile.instructions.partition_point(|instruction| instruction.span.end < span.start);
        let span = match dockerfile.instructions.get(at) {
            Some(instruction) if instruction.span.start <= span.start => instruction.span,
            _ => span,
        };
        Self::lines(index, span)
    }

    /// The lines of a span.
    pub(crate) fn lines(index: &LineIndex<'_>, span: Span) -> Self {
        let (first, last) = index.lines(span);
        let range = |line| Range { start: Line { line }, end: Line { line } };
        Self { ranges: (first..=last).map(range).collect() }
    }
}

/// Lines `first..=last` of `lines`, counted from 1, marked, with two of their neighbours on each side (one for a range of
/// lines), between rulers.
pub fn excerpt(name: &str, lines: &[&str], first: usize, last: usize) -> String {
    let padding = if first == last { 2 } else { 1 };
    let mut shown = format!("{name}:{first}\n--------------------\n");
    let from = first.saturating_sub(padding + 1);
    for (number, line) in (1..).zip(lines).take(last + padding).skip(from) {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        shown.push_str(format!(" {number:3} | {mark} {line}").trim_end());
        shown.push('\n');
    }
    shown.push_str("--------------------");
    shown
}

fn base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let (dockerfile, errors) = crate::parse(text.as_bytes());
        assert_eq!(errors, []);
        Report::new(&dockerfile, "Dockerfile", text, &crate::lint::check(&dockerfile), None)
    }

    #[test]
    fn text_shows_each_finding_with_its_lines() {
        let text = "FROM scratch AS Base\nRUN a\nENV a \\\n  b\nLABEL x=y\n";
        assert_eq!(
            report(text).to_text(),
            "\
Check complete, 2 warnings have been found!

WARNING: StageNameCasing - https://docs.docker.com/go/dockerfile/rule/stage-name-casing/
Stage name 'Base' should be lowercase
Dockerfile:1
--------------------
   1 | >>> FROM scratch AS Base
   2 |     RUN a
   3 |     ENV a \\
--------------------

WARNING: LegacyKeyValueFormat - https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/
\"ENV key=value\" should be used instead of legacy \"ENV key value\" format
Dockerfile:3
--------------------
   2 |     RUN a
   3 | >>> ENV a \\
   4 | >>>   b
   5 |     LABEL x=y
--------------------
"
        );
        assert_eq!(report("FROM a\n").to_text(), "Check complete, no warnings found.\n");
    }

    #[test]
    fn json_has_rules_places_and_sources() {
        let json: serde_json::Value =
            serde_json::from_str(&report("FROM a\nMAINTAINER \\\n b\n").to_json()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "warnings": [{
                    "ruleName": "MaintainerDeprecated",
                    "description": "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
                    "url": "https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/",
                    "detail": "Maintainer instruction is deprecated in favor of using label",
                    "location": {"ranges": [
                        {"start": {"line": 2}, "end": {"line": 2}},
                        {"start": {"line": 3}, "end": {"line": 3}},
                    ]},
                }],
                "sources": [{
                    "filename": "Dockerfile",
                    "data": "RlJPTSBhCk1BSU5UQUlORVIgXAogYgo=",
                    "language": "Dockerfile",
                }],
            })
        );
    }

    #[test]
    fn a_build_ends_with_a_line_for_each_finding() {
        assert_eq!(report("FROM a\n").summary(false), None);
        let report = report("FROM a\nMAINTAINER b\nENV c d\n");
        assert_eq!(
            report.summary(false).as_deref(),
            Some(
                "\n 2 warnings found (use --debug to expand):
 - MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)
 - LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format (line 3)\n"
            )
        );
        let expanded = report.summary(true).unwrap();
        assert!(expanded.starts_with("\n 2 warnings found:\n"), "{expanded}");
        assert!(expanded.contains("   2 | >>> MAINTAINER b\n"), "{expanded}");
    }
}

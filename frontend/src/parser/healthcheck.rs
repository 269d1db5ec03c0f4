//! HEALTHCHECK: what it runs, and how often.

use super::instruction::{Context, Parse, Statement, shorten};
use super::keyword::Keyword;
use super::{duration, flag};
use crate::ast::{Command, Flag, Healthcheck};
use crate::diagnostic::Diagnostic;

impl Context<'_, '_> {
    pub(super) fn healthcheck(&self, statement: &Statement<'_>) -> Parse<Healthcheck> {
        if statement.arguments.is_empty() {
            return Err(self.missing_argument(Keyword::Healthcheck, statement));
        }
        let (kind, arguments) = split_at_white_space(statement.arguments);
        if kind.eq_ignore_ascii_case("NONE") {
            if !arguments.is_empty() {
                let message = "HEALTHCHECK NONE takes no arguments";
                return Err(Diagnostic::error("too-many-arguments", self.line.span(arguments), message));
            }
            return Ok(Healthcheck::None);
        }
        if !kind.eq_ignore_ascii_case("CMD") {
            let message =
                format!("Unknown type {:?} in HEALTHCHECK (try CMD)", shorten(&kind.to_uppercase()));
            return Err(Diagnostic::error("unknown-healthcheck", self.line.span(kind), message)
                .with_help(format!("write {}", Keyword::Healthcheck.form())));
        }
        let command = self.command(arguments)?;
        let empty = match &command {
            Command::Shell(line) => line.value.is_empty(),
            Command::Exec(arguments) => arguments.is_empty(),
        };
        if empty {
            return Err(self.error(statement, "Missing command after HEALTHCHECK CMD"));
        }
        let flags = &statement.flags;
        Ok(Healthcheck::Check {
            command,
            interval: interval(flags, "interval")?,
            timeout: interval(flags, "timeout")?,
            start_period: interval(flags, "start-period")?,
            start_interval: interval(flags, "start-interval")?,
            retries: retries(flags)?,
        })
    }
}

fn split_at_white_space(text: &str) -> (&str, &str) {
    let (first, rest) = text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()));
    (first, rest.trim_start())
}

/// The shortest interval that a health check may have, in nanoseconds.
const MIN_INTERVAL: i64 = 1_000_000;

fn interval(flags: &[Flag], name: &str) -> Parse<i64> {
    let Some(value) = flag::text(flags, name) else { return Ok(0) };
    let error = |message| {
        Diagnostic::error("invalid-duration", value.span, message)
            .with_help("write numbers with units: 30s, 1m30s, 500ms")
    };
    match duration::parse(&value.value).map_err(error)? {
        0 => Ok(0),
        short if short < MIN_INTERVAL => Err(error(format!("Interval {name:?} cannot be less than 1ms"))),
        interval => Ok(interval),
    }
}

fn retries(flags: &[Flag]) -> Parse<i64> {
    let Some(value) = flag::text(flags, "retries") else { return Ok(0) };
    let error = |message| Diagnostic::error("invalid-flag-value", value.span, message);
    match value.value.parse::<i32>() {
        Ok(retries) if retries < 0 => Err(error(format!("--retries cannot be negative ({retries})"))),
        Ok(retries) => Ok(retries.into()),
        Err(_) => Err(error(format!("--retries is not a number: {:?}", shorten(&value.value)))),
    }
}

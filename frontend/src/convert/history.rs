//! The texts of history entries: BuildKit prints Go values into them, so Go's formats are spelled out here.

use std::fmt::Write as _;

use image::config::{Healthcheck, History};

/// What BuildKit signs its history entries with; tools look for it.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// An entry of an instruction that changed the config only.
pub(super) fn config_entry(created_by: String) -> History {
    History {
        created_by: Some(created_by),
        comment: Some(COMMENT.to_owned()),
        empty_layer: true,
        ..History::default()
    }
}

/// An entry of an instruction that made a layer.
pub(super) fn layer_entry(created_by: String) -> History {
    History { empty_layer: false, ..config_entry(created_by) }
}

/// An entry of RUN, COPY or ADD.
pub(super) fn step_entry(mut created_by: String) -> History {
    created_by.push_str(" # buildkit");
    layer_entry(created_by)
}

/// Go's `%q` of a `[]string`: `["a" "b"]`.
pub(super) fn quoted_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", quoted.join(" "))
}

/// Go's `%v` of a `[]string`: `[a b]`.
pub(super) fn list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// Go's `%+v` of Docker's health check.
pub(super) fn healthcheck(check: &Healthcheck) -> String {
    format!(
        "{{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        list(&check.test),
        duration(check.interval),
        duration(check.timeout),
        duration(check.start_period),
        duration(check.start_interval),
        check.retries
    )
}

/// Go's `%q` of a string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if c < ' ' || c == '\x7f' => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c if c.is_ascii() || !c.escape_debug().to_string().starts_with("\\u") => out.push(c),
            c if u32::from(c) < 0x10000 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => {
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}

/// Go's `time.Duration.String`: `1h0m0s`, `1.5s`, `30ms`.
fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let decimal = |unit: u64, name: &str| {
        let fraction = format!("{:0width$}", total % unit, width = unit.ilog10() as usize);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{sign}{}{dot}{fraction}{name}", total / unit)
    };
    match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{total}ns"),
        1_000..1_000_000 => decimal(1_000, "µs"),
        1_000_000..1_000_000_000 => decimal(1_000_000, "ms"),
        1_000_000_000..60_000_000_000 => decimal(1_000_000_000, "s"),
        _ => {
            let seconds = total / 1_000_000_000;
            let rest = duration((total % 60_000_000_000) as i64);
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let hours = if hours == 0 { String::new() } else { format!("{hours}h") };
            // A rest below a second is still shown in seconds.
            let rest = match total % 60_000_000_000 {
                0 => "0s".to_owned(),
                below @ 1..1_000_000_000 => {
                    format!("0.{}s", format!("{below:09}").trim_end_matches('0'))
                }
                _ => rest,
            };
            format!("{sign}{hours}{minutes}m{rest}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_gos() {
        for (nanoseconds, expected) in [
            (0, "0s"),
            (7, "7ns"),
            (1_500, "1.5µs"),
            (30_000_000, "30ms"),
            (5_000_000_000, "5s"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (60_500_000_000, "1m0.5s"),
        ] {
            assert_eq!(duration(nanoseconds), expected);
        }
    }

    #[test]
    fn commands_are_quoted_as_go_does() {
        let command = ["/bin/sh", "-c", "echo \"a\\b\"\n\té\u{1}\u{200b}"].map(str::to_owned);
        assert_eq!(quoted_list(&command), r#"["/bin/sh" "-c" "echo \"a\\b\"\n\té\x01\u200b"]"#);
    }

    #[test]
    fn a_health_check_shows_its_fields() {
        let check = Healthcheck {
            test: vec!["CMD-SHELL".to_owned(), "true".to_owned()],
            interval: 5_000_000_000,
            ..Healthcheck::default()
        };
        assert_eq!(
            healthcheck(&check),
            "{Test:[CMD-SHELL true] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}"
        );
    }
}

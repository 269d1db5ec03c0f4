//! Values of flags that are small languages: sizes, times, fields separated by commas.

use std::time::Duration;

use super::Environment;
use crate::failure::Failure;

/// Splits comma-separated fields; a field in double quotes may hold commas, and `""` is a quote in it (RFC 4180).
pub(crate) fn csv(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let mut field = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next() {
                    Some((_, '"')) if chars.peek().is_some_and(|(_, c)| *c == '"') => {
                        chars.next();
                        field.push('"');
                    }
                    Some((at, '"')) => break at + 1,
                    Some((_, c)) => field.push(c),
                    None => return Err("a quote is not closed".to_owned()),
                }
            };
            rest = &quoted[end..];
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err("text after a closing quote".to_owned());
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            field.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}

pub(crate) fn parse_bool(key: &str, text: &str) -> Result<bool, Failure> {
    match text {
        "true" | "1" | "t" | "T" | "TRUE" | "True" | "" => Ok(true),
        "false" | "0" | "f" | "F" | "FALSE" | "False" => Ok(false),
        _ => Err(Failure::usage(format!("{key} is true or false, not {text:?}"))),
    }
}

/// A size with a unit, in bytes: `64m`, `1.5gb`, `1GiB`, `512`. Units are powers of 1024, as in Docker's flags.
pub(crate) fn parse_size(what: &str, text: &str) -> Result<u64, Failure> {
    let bad =
        || Failure::usage(format!("{what}: {text:?} is no size: expected a number and b, k, m, g or t"));
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let number: f64 = lower[..digits].parse().map_err(|_| bad())?;
    let shift = match lower[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    Ok((number * (1u64 << shift) as f64) as u64)
}

/// A time span: `90s`, `30m`, `24h`, `14d`, `2w`, or several of these one after the other; a lone number is seconds.
pub(crate) fn parse_duration(what: &str, text: &str) -> Result<Duration, Failure> {
    let bad =
        || Failure::usage(format!("invalid {what} {text:?}: expected a time such as 90s, 30m, 24h or 14d"));
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let mut chars = tail.chars();
        let unit = match chars.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            Some('w') => 604_800,
            _ => return Err(bad()),
        };
        total = number.checked_mul(unit).and_then(|span| total.checked_add(span)).ok_or_else(bad)?;
        rest = chars.as_str();
    }
    if text.is_empty() { Err(bad()) } else { Ok(Duration::from_secs(total)) }
}

/// `NAME=value`, or `NAME` alone for the environment's value; one that is not set is left out.
pub(super) fn pairs_from_environment(
    texts: &[String],
    environment: Environment<'_>,
) -> Vec<(String, String)> {
    texts
        .iter()
        .filter_map(|text| match text.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => Some((text.clone(), environment(text)?)),
        })
        .collect()
}

pub(super) fn split_pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let seconds = |text: &str| parse_duration("x", text).ok().map(|span| span.as_secs());
        for (text, expected) in
            [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("14d", 1_209_600), ("2w", 1_209_600)]
        {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for bad in ["", "h", "1", "1x", "-1h", "1h2", "99999999999999999999h", "99999999999999999w"] {
            assert!(bad == "1" || seconds(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("64m", 64 << 20), ("1.5gb", 3 << 29), ("512", 512), ("1 KiB", 1024)] {
            assert_eq!(parse_size("x", text).unwrap(), bytes);
        }
        assert!(parse_size("x", "much").is_err());
    }

    #[test]
    fn quoted_fields_hold_commas() {
        assert_eq!(csv(r#"a,"b,c",d"#).unwrap(), ["a", "b,c", "d"]);
        assert_eq!(csv(r#""a""b""#).unwrap(), [r#"a"b"#]);
        assert_eq!(csv("").unwrap(), [""]);
        assert!(csv(r#""a"#).is_err());
        assert!(csv(r#""a"b"#).is_err());
    }
}

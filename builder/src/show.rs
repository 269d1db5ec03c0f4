//! How numbers, times and tables are shown.

use std::io::{self, Write};

/// Bytes with a decimal unit, three digits: `1.04MB`, as Docker shows sizes.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        // 999.9 would round up to 1000.
        if value < 999.5 || unit == "TB" {
            return match value {
                _ if unit == "B" => format!("{bytes}B"),
                v if v < 9.995 => format!("{v:.2}{unit}"),
                v if v < 99.95 => format!("{v:.1}{unit}"),
                v => format!("{v:.0}{unit}"),
            };
        }
        value /= 1000.0;
    }
    unreachable!("the last unit takes all")
}

/// How long ago, as Docker says it: `3 hours ago`.
pub(crate) fn ago(seconds: i64) -> String {
    let n = |n: i64, unit: &str| format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" });
    match seconds {
        ..1 => "Less than a second ago".to_owned(),
        1..60 => n(seconds, "second"),
        60..3600 => n(seconds / 60, "minute"),
        3600..172_800 => n(seconds / 3600, "hour"),
        172_800..1_209_600 => n(seconds / 86_400, "day"),
        1_209_600..5_184_000 => n(seconds / 604_800, "week"),
        5_184_000..63_072_000 => n(seconds / 2_592_000, "month"),
        _ => n(seconds / 31_536_000, "year"),
    }
}

/// RFC 3339 in UTC, whole seconds, as image configs have it.
pub(crate) fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "1970-01-01T00:00:00Z".to_owned(), |time| time.to_string())
}

/// Reads what [`rfc3339`] writes, and any other RFC 3339 time.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

/// Writes rows in columns, three spaces apart, as wide as their widest cell.
pub(crate) fn table(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The first `width` characters, the last of them `…` if there were more.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (1_036_784, "1.04MB"),
            (48_953_536, "49.0MB"),
            (999_999, "1.00MB"),
            (123_456_789_012, "123GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(1_600_000_000), "2020-09-13T12:26:40Z");
        assert_eq!(parse_rfc3339("2020-09-13T12:26:40.5Z"), Some(1_600_000_000));
        assert_eq!(parse_rfc3339("yesterday"), None);
        assert_eq!(ago(7200), "2 hours ago");
        assert_eq!(ago(61), "1 minute ago");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["A".to_owned(), "B".to_owned()], vec!["long".to_owned(), "x".to_owned()]];
        let mut out = Vec::new();
        table(&mut out, &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "A      B\nlong   x\n");
        assert_eq!(shorten("abcdef", 4), "abc…");
    }
}

//! Durations as Go writes them: `1h30m`, `1.5s`, `300ms`.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_while};
use nom::character::complete::{char, digit0};
use nom::combinator::{opt, value};
use nom::{IResult, Parser};

/// Nanoseconds of a duration, or what is wrong with it.
pub(super) fn parse(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let sign: IResult<&str, Option<char>> = opt(alt((char('-'), char('+')))).parse(text);
    let (mut rest, sign) = sign.map_err(|_| invalid())?;
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let number: IResult<&str, (&str, Option<&str>)> = (digit0, opt(fraction)).parse(rest);
        let (after, (whole, fraction)) = number.map_err(|_| invalid())?;
        if whole.is_empty() && fraction.unwrap_or_default().is_empty() {
            return Err(invalid());
        }
        let amount: f64 =
            format!("0{whole}.{}0", fraction.unwrap_or_default()).parse().map_err(|_| invalid())?;
        let Ok((after, scale)) = unit(after) else {
            let end = after.find(|character: char| character == '.' || character.is_ascii_digit());
            let name = &after[..end.unwrap_or(after.len())];
            return Err(if name.is_empty() {
                format!("time: missing unit in duration {text:?}")
            } else {
                format!("time: unknown unit {name:?} in duration {text:?}")
            });
        };
        total += amount * scale;
        rest = after;
    }
    // 2^63 nanoseconds are 292 years.
    if total >= 9.2e18 {
        return Err(invalid());
    }
    let nanoseconds = total.round() as i64;
    Ok(if sign == Some('-') { -nanoseconds } else { nanoseconds })
}

fn fraction(input: &str) -> IResult<&str, &str> {
    let (input, _) = char('.').parse(input)?;
    digit0.parse(input)
}

fn unit(input: &str) -> IResult<&str, f64> {
    let (rest, name) =
        take_while(|character: char| character != '.' && !character.is_ascii_digit()).parse(input)?;
    let (after, scale) = alt((
        value(1.0, tag("ns")),
        value(1e3, alt((tag("us"), tag("µs"), tag("μs")))),
        value(1e6, tag("ms")),
        value(1e9, tag("s")),
        value(60e9, tag("m")),
        value(3600e9, tag("h")),
    ))
    .parse(name)?;
    if after.is_empty() { Ok((rest, scale)) } else { nom::combinator::fail().parse(input) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("30s", 30_000_000_000),
            ("1h1m1s", 3_661_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("300ms", 300_000_000),
            ("2us", 2_000),
            ("2µs", 2_000),
            ("7ns", 7),
            ("-1s", -1_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(nanoseconds), "{text}");
        }
        for (text, message) in [
            ("10", "time: missing unit in duration \"10\""),
            ("10x", "time: unknown unit \"x\" in duration \"10x\""),
            ("10msx", "time: unknown unit \"msx\" in duration \"10msx\""),
            ("s", "time: invalid duration \"s\""),
            ("", "time: invalid duration \"\""),
            ("999999999h", "time: invalid duration \"999999999h\""),
        ] {
            assert_eq!(parse(text), Err(message.to_owned()));
        }
    }
}

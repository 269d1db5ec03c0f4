//! Words of an instruction's arguments: split, but left as written.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_while, take_while1};
use nom::character::complete::{anychar, char, none_of};
use nom::combinator::{eof, opt, recognize};
use nom::multi::{many0_count, many1_count};
use nom::sequence::{delimited, pair, preceded};
use nom::{IResult, Parser};

/// The blanks that part a keyword from its arguments and plain words from each other.
fn is_blank(character: char) -> bool {
    matches!(character, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

/// A line's first word and what follows the blanks after it.
pub(super) fn split_first(line: &str) -> (&str, &str) {
    let split: IResult<&str, (&str, &str)> =
        pair(take_till(is_blank), take_while(is_blank)).parse_complete(line);
    match split {
        Ok((rest, (first, _))) => (first, rest),
        Err(_) => (line, &line[line.len()..]),
    }
}

/// Words parted by blanks; quotes mean nothing.
pub(super) fn plain_words(text: &str) -> Vec<&str> {
    text.split(is_blank).filter(|word| !word.is_empty()).collect()
}

/// Words parted by white space outside quotes; quotes and escapes stay in them. An escape character at the very end is
/// dropped, and an open quote reaches to the end.
pub(super) fn quoted_words(text: &str, escape: char) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let Ok((after, word)) = quoted_word(rest, escape) else { break };
        // A lone escape character at the end of the text escapes nothing: it is no part of the word.
        let word = if after.is_empty() { strip_dangling_escape(word, escape) } else { word };
        if !word.is_empty() {
            words.push(word);
        }
        rest = after.trim_start();
    }
    words
}

fn quoted_word(input: &str, escape: char) -> IResult<&str, &str> {
    let plain = |input| {
        take_while1(|character: char| {
            !character.is_whitespace() && character != escape && character != '\'' && character != '"'
        })
        .parse_complete(input)
    };
    let escaped = |input| recognize(pair(char(escape), opt(anychar))).parse_complete(input);
    recognize(many1_count(alt((plain, single_quoted, |input| double_quoted(input, escape), escaped))))
        .parse_complete(input)
}

fn single_quoted(input: &str) -> IResult<&str, &str> {
    recognize(delimited(char('\''), take_till(|character| character == '\''), alt((tag("'"), eof))))
        .parse_complete(input)
}

fn double_quoted(input: &str, escape: char) -> IResult<&str, &str> {
    let end = [escape, '"'];
    let plain = |input| recognize(none_of(&end[..])).parse_complete(input);
    let escaped = |input| recognize(preceded(char(escape), opt(anychar))).parse_complete(input);
    recognize(delimited(char('"'), many0_count(alt((plain, escaped))), alt((tag("\""), eof))))
        .parse_complete(input)
}

/// `word`, which ends the text, without an escape character that has nothing to escape. Single quotes hide it.
fn strip_dangling_escape(word: &str, escape: char) -> &str {
    let Some(stripped) = word.strip_suffix(escape) else { return word };
    let mut quote = None;
    let mut characters = word.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (_, Some('\'')) if character != '\'' => {}
            (_, _) if character == escape => match characters.next() {
                Some(_) => {}
                None => return stripped,
            },
            (_, Some(open)) if character == open => quote = None,
            ('\'' | '"', None) => quote = Some(character),
            _ => {}
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_are_parted_by_blanks() {
        assert_eq!(plain_words("a  'b c'\td"), ["a", "'b", "c'", "d"]);
        assert_eq!(split_first("RUN \t echo  x"), ("RUN", "echo  x"));
        assert_eq!(split_first("RUN"), ("RUN", ""));
    }

    #[test]
    fn quotes_and_escapes_keep_a_word_together() {
        let table: &[(&str, &[&str])] = &[
            ("a=b c", &["a=b", "c"]),
            ("a='b c' d", &["a='b c'", "d"]),
            (r#"a="b \" c" d"#, &[r#"a="b \" c""#, "d"]),
            (r"a=b\ c d", &[r"a=b\ c", "d"]),
            (r"a='b\' c", &[r"a='b\'", "c"]),
            (r"a=b\", &["a=b"]),
            (r#"a="b\"#, &[r#"a="b"#]),
            (r"a='b\", &[r"a='b\"]),
            (r"a=b\\", &[r"a=b\\"]),
            (r"\", &[]),
            ("a='b c", &["a='b c"]),
            ("a=\"\" b", &["a=\"\"", "b"]),
            ("a=b'c d'\"e f\" g", &["a=b'c d'\"e f\"", "g"]),
            ("", &[]),
        ];
        for (text, words) in table {
            assert_eq!(quoted_words(text, '\\'), *words, "{text}");
        }
        assert_eq!(quoted_words(r"p=c:\x\ q=`  r", '`'), [r"p=c:\x\", "q=` ", "r"]);
    }
}

//! The exec form: a JSON array of strings.

use serde_json::Value;

/// What arguments that may be a JSON array turned out to be.
#[derive(Debug, PartialEq)]
pub(super) enum Json<'a> {
    /// Not a JSON array: the shell form.
    No,
    /// Strings, each with where its literal stands in the text.
    Strings(Vec<(String, &'a str)>),
    /// A JSON array that holds something else.
    NotStrings,
}

/// Read `text` as an array of strings. What is not valid JSON is the shell form and no error.
pub(super) fn parse(text: &str) -> Json<'_> {
    let text = text.trim();
    if !text.starts_with('[') {
        return Json::No;
    }
    let Ok(values) = serde_json::from_str::<Vec<Value>>(text) else { return Json::No };
    let mut strings = Vec::with_capacity(values.len());
    for value in values {
        let Value::String(string) = value else { return Json::NotStrings };
        strings.push(string);
    }
    Json::Strings(strings.into_iter().zip(literals(text)).collect())
}

/// The string literals of a valid JSON array of strings, quotes included.
fn literals(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.find('"')?;
        let literal = &rest[start..];
        let mut escaped = false;
        let end = literal
            .char_indices()
            .skip(1)
            .find(|(_, character)| {
                let closes = *character == '"' && !escaped;
                escaped = *character == '\\' && !escaped;
                closes
            })
            .map_or(literal.len(), |(at, _)| at + 1);
        rest = &literal[end..];
        Some(&literal[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_arrays_of_strings_are_the_exec_form() {
        let strings = |text| match parse(text) {
            Json::Strings(strings) => Some(strings.into_iter().map(|(value, _)| value).collect::<Vec<_>>()),
            _ => None,
        };
        assert_eq!(strings(r#" ["a", "b\"c\u0041"] "#).unwrap(), ["a", "b\"cA"]);
        assert_eq!(strings("[]").unwrap(), Vec::<String>::new());
        for shell in ["['a']", "[\"a\"", "[\"a\"] x", "[ -f x ]", "echo", "", "[\"\\x\"]"] {
            assert_eq!(parse(shell), Json::No, "{shell}");
        }
        for mixed in ["[1]", "[\"a\", null]", "[[\"a\"]]"] {
            assert_eq!(parse(mixed), Json::NotStrings, "{mixed}");
        }
        assert_eq!(parse(&"[".repeat(100_000)), Json::No);
    }

    #[test]
    fn literals_know_their_place() {
        let Json::Strings(strings) = parse(r#"["a\\", "b\"", "]"]"#) else { panic!("not JSON") };
        let literals: Vec<_> = strings.iter().map(|(_, literal)| *literal).collect();
        assert_eq!(literals, [r#""a\\""#, r#""b\"""#, r#""]""#]);
    }
}

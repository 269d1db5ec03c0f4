//! The text of a `.dockerignore` to patterns. What they match is `image::tree::pattern`'s business.

/// The patterns of a file in order, each with the line (1-based) it stands on. Comments and blank lines are left out;
/// white space around a pattern, a leading `/` and what [`clean`] takes out of a path are gone; `!` stays in front.
pub fn parse(text: &[u8]) -> Vec<(usize, String)> {
    let text = String::from_utf8_lossy(text);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    text.split('\n')
        .enumerate()
        // Only a `#` in the first column makes a comment.
        .filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty())
        .map(|(index, line)| (index + 1, pattern(line.trim())))
        .collect()
}

fn pattern(text: &str) -> String {
    let (sign, path) = match text.strip_prefix('!') {
        Some(path) => ("!", path.trim()),
        None => ("", text),
    };
    if path.is_empty() {
        return sign.to_owned();
    }
    let path = clean(path);
    let path = match path.strip_prefix('/') {
        Some(relative) if !relative.is_empty() => relative,
        _ => &path,
    };
    format!("{sign}{path}")
}

/// A path without empty and `.` parts, and without `a/..`; `..` at the root is gone, too. Wildcards are names like any
/// other.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            name => parts.push(name),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_become_patterns() {
        let text =
            "\u{feff}# comment\n\n  a/b \r\n #x\n/c/\n!/d/../e\n! f\n!\n./g//h/.\n**/*.o\n../i\n/\n.\n/../j";
        let patterns = parse(text.as_bytes());
        let expected = [
            (3, "a/b"),
            (4, "#x"),
            (5, "c"),
            (6, "!e"),
            (7, "!f"),
            (8, "!"),
            (9, "g/h"),
            (10, "**/*.o"),
            (11, "../i"),
            (12, "/"),
            (13, "."),
            (14, "j"),
        ];
        assert_eq!(patterns, expected.map(|(line, pattern)| (line, pattern.to_owned())));
        assert_eq!(parse(b""), []);
    }

    proptest! {
        #[test]
        fn any_bytes_give_clean_patterns(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (line, pattern) in parse(&text) {
                prop_assert!(line >= 1);
                prop_assert!(!pattern.is_empty() && !pattern.contains('\n') && !pattern.contains("//"));
            }
        }

        #[test]
        fn cleaning_twice_changes_nothing(path in "[a./*]{0,20}") {
            let once = clean(&path);
            prop_assert_eq!(clean(&once), once);
        }
    }
}

//! Paths of images and contexts, as text: Go's `path.Clean` and `path.Join`. Nothing here touches a disk.

/// `path` as an absolute, clean path; `..` ends at the root.
pub(super) fn rooted(path: &str) -> String {
    absolute("/", path)
}

/// `path` seen from the directory `dir`: absolute and clean.
pub(super) fn absolute(dir: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { dir };
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut clean = String::with_capacity(dir.len() + path.len() + 1);
    for part in parts {
        clean.push('/');
        clean.push_str(part);
    }
    if clean.is_empty() {
        clean.push('/');
    }
    clean
}

/// A destination of COPY: like [`absolute`], but what says "a directory" (`x/`, `.`, nothing) still does.
pub(super) fn destination(dir: &str, path: &str) -> String {
    let mut clean = absolute(dir, path);
    let directory = path.is_empty() || path == "." || path.ends_with('/') || path.ends_with("/.");
    if directory && !clean.ends_with('/') {
        clean.push('/');
    }
    clean
}

/// Go's `path.Clean`: relative paths stay relative.
pub(super) fn clean(path: &str) -> String {
    if path.starts_with('/') {
        return rooted(path);
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

/// The last component, as Go's `path.Base`.
pub(super) fn base(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match (path, trimmed) {
        ("", _) => ".",
        (_, "") => "/",
        (_, trimmed) => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

/// Whether Go's `filepath.Match` sees a pattern in it.
pub(super) fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => {
                chars.next();
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (dir, path, expected) in [
            ("/", "a/b", "/a/b"),
            ("/w", "a", "/w/a"),
            ("/w", "/a/../b", "/b"),
            ("/w/x", "../../../..", "/"),
            ("/w", "", "/w"),
            ("", ".", "/"),
        ] {
            assert_eq!(absolute(dir, path), expected, "{dir} {path}");
        }
        for (path, expected) in [("", "."), ("a/../..", ".."), ("./a//b/", "a/b"), ("/a/..", "/")] {
            assert_eq!(clean(path), expected, "{path}");
        }
        for (path, expected) in [("", "."), ("/", "/"), ("a/b/", "b"), ("a", "a")] {
            assert_eq!(base(path), expected, "{path}");
        }
    }

    #[test]
    fn a_destination_keeps_what_says_directory() {
        for (path, expected) in
            [("a", "/w/a"), ("a/", "/w/a/"), (".", "/w/"), ("", "/w/"), ("/", "/"), ("/x/.", "/x/")]
        {
            assert_eq!(destination("/w", path), expected, "{path}");
        }
    }

    #[test]
    fn an_escaped_wildcard_is_none() {
        assert!(has_wildcards("a*") && has_wildcards("[a]") && has_wildcards("a?"));
        assert!(!has_wildcards(r"a\*b") && !has_wildcards("plain"));
    }
}

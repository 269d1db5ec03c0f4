//! URLs of files on the web, as ADD and contexts take them.

use crate::git::percent_decoded;

/// Whether `text` is a URL that is fetched by HTTP.
pub fn is_http(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// The last part of a URL's path, decoded; `None` if it has none. It may be no name that a file can have.
pub fn file_name(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let (_, path) = rest.split_once('/')?;
    // Decoded first: `%2F` parts a path as a slash does.
    let path = percent_decoded(path);
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    (!matches!(name, "" | "." | "..")).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_are_named_after_their_path() {
        for (url, name) in [
            ("http://h/a/b.tar?x=/y", Some("b.tar")),
            ("http://h/a%20b+c", Some("a b+c")),
            ("http://h/a%2F..%2Fb#c", Some("b")),
            ("http://h/a/", Some("a")),
            ("http://h/", None),
            ("http://h", None),
            ("http://h/..", None),
            ("http://h/%2e%2E", None),
        ] {
            assert_eq!(file_name(url).as_deref(), name, "{url}");
        }
    }
}

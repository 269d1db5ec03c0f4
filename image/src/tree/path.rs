//! Paths inside a tree: bytes, relative to the root, in the form of [`Entry::path`](crate::layer::Entry::path).
//!
//! They are never joined onto a path of the host.

use bstr::{BStr, BString, ByteSlice};

use crate::layer::index;

pub use crate::layer::index::{is_below, path_cmp as compare};

/// `dir` and `name` joined.
pub fn join(dir: &[u8], name: &[u8]) -> BString {
    if dir.is_empty() {
        return name.into();
    }
    if name.is_empty() {
        return dir.into();
    }
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    path.push(b'/');
    path.extend_from_slice(name);
    path.into()
}

/// The directory that `path` is in; `None` for the root.
pub fn parent(path: &[u8]) -> Option<&BStr> {
    index::parent(path).map(ByteSlice::as_bstr)
}

/// The last component; empty for the root.
pub fn name(path: &[u8]) -> &BStr {
    path.rfind_byte(b'/').map_or(path, |at| &path[at + 1..]).as_bstr()
}

/// The components; none for the root.
pub fn components(path: &[u8]) -> impl Iterator<Item = &BStr> + Clone {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(ByteSlice::as_bstr)
}

/// `path` as written (absolute or not, `.`, `..`, doubled slashes) as a path of a tree. `..` ends at the root.
pub fn clean(path: &[u8]) -> BString {
    let mut parts: Vec<&BStr> = Vec::new();
    for part in components(path) {
        match part.as_bytes() {
            b"." => {}
            b".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    bstr::join("/", parts).into()
}

/// `path` for people: absolute.
pub fn show(path: &[u8]) -> String {
    format!("/{}", path.trim_start_with(|char| char == '/').as_bstr())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cleaning_never_leaves_the_root() {
        for (written, is) in [
            ("", ""),
            ("/", ""),
            (".", ""),
            ("..", ""),
            ("../..", ""),
            ("a/../..", ""),
            ("/a//b/", "a/b"),
            ("./a/./b/../c", "a/c"),
            ("/../etc/passwd", "etc/passwd"),
        ] {
            assert_eq!(clean(written.as_bytes()), is, "{written}");
        }
    }

    #[test]
    fn parents_and_names() {
        assert_eq!(parent(b""), None);
        assert_eq!(parent(b"a"), Some("".into()));
        assert_eq!(parent(b"a/b/c"), Some("a/b".into()));
        assert_eq!(name(b"a/b/c"), "c");
        assert_eq!(join(b"", b"a"), "a");
        assert_eq!(join(b"a", b"b"), "a/b");
        assert!(
            is_below(b"a/b", b"a") && is_below(b"a", b"") && !is_below(b"ab", b"a") && !is_below(b"a", b"a")
        );
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_components(a in "[a./!-]{1,3}(/[a.!-]{1,3}){0,3}", b in "[a.!-]{1,3}(/[a.!-]{1,3}){0,3}") {
            let (a, b) = (clean(a.as_bytes()), clean(b.as_bytes()));
            prop_assert_eq!(compare(&a, &b), components(&a).cmp(components(&b)));
        }
    }
}

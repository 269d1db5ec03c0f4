//! Symbolic links, resolved inside the root: absolute targets start at the tree's root and `..` ends there.

use bstr::{BStr, BString, ByteSlice};

use super::path;
use super::view::Tree;
use crate::layer::{Entry, Kind};

/// What can be looked up path by path.
pub trait View {
    /// What is at `path`, none of whose parents is a link; links are not followed.
    fn look(&self, path: &BStr) -> Option<Look>;
}

/// What matters of a path to what is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Link(BString),
    /// Anything else.
    Other,
}

/// What to do with a link that the whole path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// Resolve it.
    Follow,
    /// Leave it.
    Keep,
}

/// A path that does not lead anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// More links than [`MAX_LINKS`].
    #[error("could not resolve {}: too many levels of symbolic links", path::show(.0))]
    Loop(BString),
    /// A file where a directory is needed.
    #[error("could not resolve {}: {} is not a directory", path::show(.path), path::show(.file))]
    NotDirectory {
        /// What was to be resolved.
        path: BString,
        /// What is in the way.
        file: BString,
    },
}

/// Links followed in one path, at most: Linux' limit is 40, BuildKit's 255.
pub const MAX_LINKS: usize = 255;

/// `path` without links. What does not exist is taken as written: `..` after it only drops it.
pub fn resolve(view: &impl View, path: &[u8], last: Last) -> Result<BString, ResolveError> {
    let mut left: Vec<BString> = path::components(path).map(BString::from).collect();
    left.reverse();
    let mut at = BString::default();
    let mut links = 0;
    while let Some(part) = left.pop() {
        match part.as_bytes() {
            b"." => continue,
            b".." => {
                at = path::parent(&at).unwrap_or_default().to_owned();
                continue;
            }
            _ => {}
        }
        let here = path::join(&at, &part);
        match view.look(here.as_bstr()) {
            Some(Look::Link(target)) if !left.is_empty() || last == Last::Follow => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(ResolveError::Loop(path.into()));
                }
                if target.first() == Some(&b'/') {
                    at = BString::default();
                }
                let target: Vec<&BStr> = path::components(&target).collect();
                left.extend(target.into_iter().rev().map(BString::from));
            }
            Some(Look::Other) if !left.is_empty() => {
                return Err(ResolveError::NotDirectory { path: path.into(), file: here });
            }
            _ => at = here,
        }
    }
    Ok(at)
}

impl View for Tree {
    fn look(&self, path: &BStr) -> Option<Look> {
        self.get(path).map(|node| Look::of(node.entry))
    }
}

impl Look {
    /// What `entry` is.
    pub fn of(entry: &Entry) -> Self {
        match &entry.kind {
            Kind::Directory { .. } => Self::Directory,
            Kind::Symlink { target } => Self::Link(target.clone()),
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dir, file, link, tree};
    use super::*;

    #[test]
    fn every_path_stays_inside_the_root() {
        let tree = tree(&[
            dir("etc"),
            file("etc/passwd", "root"),
            link("abs", "/etc"),
            link("up", "../../../../etc"),
            link("chain", "up"),
            dir("a"),
            dir("a/b"),
            link("a/b/rel", "../../etc"),
            link("a/dangling", "/nowhere/x"),
            link("loop1", "loop2"),
            link("loop2", "loop1"),
            link("self", "self/x"),
            link("root", "/"),
            link("dots", "..//./.."),
        ]);
        for (path, want) in [
            ("etc/passwd", Ok("etc/passwd")),
            ("/abs/passwd", Ok("etc/passwd")),
            ("up/passwd", Ok("etc/passwd")),
            ("chain/passwd", Ok("etc/passwd")),
            ("a/b/rel/passwd", Ok("etc/passwd")),
            ("a/b/rel/../a", Ok("a")),
            ("../../etc/passwd", Ok("etc/passwd")),
            ("abs", Ok("etc")),
            ("abs/", Ok("etc")),
            ("a/dangling/y", Ok("nowhere/x/y")),
            ("new/../../x", Ok("x")),
            ("root/etc", Ok("etc")),
            ("root", Ok("")),
            ("dots", Ok("")),
            ("", Ok("")),
            ("loop1", Err(())),
            ("self", Err(())),
            ("etc/passwd/x", Err(())),
        ] {
            let got = resolve(&tree, path.as_bytes(), Last::Follow).map_err(drop);
            assert_eq!(got, want.map(BString::from), "{path}");
        }
        assert_eq!(resolve(&tree, b"abs", Last::Keep).unwrap(), "abs");
        assert_eq!(resolve(&tree, b"a/../abs", Last::Keep).unwrap(), "abs");
        assert_eq!(resolve(&tree, b"up/../loop1", Last::Keep).unwrap(), "loop1");
    }
}

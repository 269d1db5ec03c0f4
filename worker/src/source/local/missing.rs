//! Why a path is not in the context: hidden by a pattern, or called a little differently.

use std::fmt;
use std::os::fd::AsFd;

use bstr::ByteSlice;
use image::tree::{Tree, path};

use super::Directory;
use crate::inside;

/// What can be said of a path that is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// It is on the host, but this ignore pattern hides it.
    pub ignored_by: Option<String>,
    /// Names beside it that are nearly the same, absolute.
    pub similar: Vec<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pattern) = &self.ignored_by {
            return write!(f, "excluded by the ignore pattern {pattern:?}");
        }
        match &self.similar[..] {
            [] => f.write_str("not found"),
            similar => write!(f, "not found; did you mean {}?", similar.join(" or ")),
        }
    }
}

impl Missing {
    /// Looks at `tree` for what `source` may have meant.
    pub fn in_tree(tree: &Tree, source: &str) -> Self {
        let at = path::clean(source.as_bytes());
        let (Some(dir), name) = (path::parent(&at), path::name(&at)) else { return Self::default() };
        let Some(children) = tree.dir(dir).map(|dir| dir.children()) else { return Self::default() };
        let names = children.iter().map(|(node, _)| node.name().to_str_lossy().into_owned());
        Self { ignored_by: None, similar: similar(&name.to_str_lossy(), names, dir) }
    }
}

/// Looks at the host for what `source` may have meant. What cannot be read is no help, but no error either.
pub(super) fn explain(directory: &Directory, source: &str) -> Missing {
    let at = path::clean(source.as_bytes());
    let (Some(dir), name) = (path::parent(&at), path::name(&at)) else { return Missing::default() };
    let names = inside::open_dir(directory.root(), dir).and_then(|fd| inside::list(fd.as_fd()));
    let names = names.unwrap_or_default();
    if let Some(pattern) = directory.ignore.matching(&at)
        && names.contains(&name.to_owned())
    {
        return Missing { ignored_by: Some(pattern.to_owned()), similar: Vec::new() };
    }
    let visible = names.iter().filter(|name| directory.ignore.matching(&path::join(dir, name)).is_none());
    Missing {
        ignored_by: None,
        similar: similar(&name.to_str_lossy(), visible.map(|name| name.to_str_lossy().into_owned()), dir),
    }
}

/// Of `names` in `dir` the few that are most like `name`, as absolute paths.
fn similar(name: &str, names: impl Iterator<Item = String>, dir: &[u8]) -> Vec<String> {
    let mut near: Vec<(usize, String)> = names
        .filter_map(|other| {
            let distance = strsim::damerau_levenshtein(&name.to_lowercase(), &other.to_lowercase());
            (other != name && distance <= 1 + name.chars().count() / 4).then_some((distance, other))
        })
        .collect();
    near.sort();
    near.into_iter().take(3).map(|(_, other)| path::show(&path::join(dir, other.as_bytes()))).collect()
}

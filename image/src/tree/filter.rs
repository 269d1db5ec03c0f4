//! Which files below a directory are meant, by patterns of what to include and what to leave out.

use bstr::BString;

use super::draft::MAX_DEPTH;
use super::path;
use super::pattern::{Matched, Patterns};
use super::view::{Dir, Node};

/// Something below a directory that is copied.
pub(crate) struct Chosen<'s> {
    pub(crate) node: Node<'s>,
    /// Chosen itself, and not only because something below it is.
    pub(crate) itself: bool,
}

/// Decides what of a directory is copied.
pub(crate) struct Filter<'p> {
    /// Only what matches, with the directories that lead to it.
    pub(crate) include: Option<&'p Patterns>,
    /// What matches is not.
    pub(crate) exclude: &'p Patterns,
}

/// A directory in which choosing has come so far.
struct Level<'s> {
    left: std::vec::IntoIter<(Node<'s>, Option<Dir<'s>>)>,
    path: BString,
    include: Matched,
    exclude: Matched,
    /// The directory, if it is copied only because something below it is, until it is.
    pending: Option<Node<'s>>,
}

impl Filter<'_> {
    /// Chooses what below `dir` is copied, directories before what is in them. Fails with the path of a directory
    /// that is too deep.
    pub(crate) fn choose<'s>(&self, dir: Dir<'s>) -> Result<Vec<Chosen<'s>>, BString> {
        let all = self.include.is_none() && self.exclude.is_empty();
        let mut chosen = Vec::new();
        let mut levels =
            vec![Level::new(&dir, BString::default(), Matched::default(), Matched::default(), None)];
        while let Some(level) = levels.last_mut() {
            let Some((node, below)) = level.left.next() else {
                levels.pop();
                continue;
            };
            let path = if all { BString::default() } else { path::join(&level.path, node.name()) };
            let (included, include) = match self.include {
                Some(patterns) => patterns.matches(&path, &level.include),
                None => (true, Matched::default()),
            };
            let (excluded, exclude) = if self.exclude.is_empty() {
                (false, Matched::default())
            } else {
                self.exclude.matches(&path, &level.exclude)
            };
            let itself = included && !excluded;
            if itself {
                if !all {
                    let pending = levels.iter_mut().filter_map(|level| level.pending.take());
                    chosen.extend(pending.map(|node| Chosen { node, itself: false }));
                }
                chosen.push(Chosen { node, itself });
            }
            let Some(below) = below else { continue };
            let hopeless = (excluded && !self.exclude.may_except_below(&path, &exclude))
                || (!included && self.include.is_some_and(|patterns| !patterns.may_match_below(&path)));
            if hopeless {
                continue;
            }
            if levels.len() > MAX_DEPTH {
                return Err(below.path().to_owned());
            }
            levels.push(Level::new(&below, path, include, exclude, (!itself).then_some(node)));
        }
        Ok(chosen)
    }
}

impl<'s> Level<'s> {
    fn new(
        dir: &Dir<'s>,
        path: BString,
        include: Matched,
        exclude: Matched,
        pending: Option<Node<'s>>,
    ) -> Self {
        Self { left: dir.children().into_iter(), path, include, exclude, pending }
    }
}

//! COPY and ADD: which files of a source tree go where in a [`Draft`]. The rules are the Dockerfile reference's and,
//! where that is silent, BuildKit's.
//!
//! Owners are numbers here (see [`accounts`](super::accounts)), and archives are already read: who opens files is the
//! caller.

use std::collections::HashMap;

use bstr::{BStr, BString, ByteSlice};

use super::chmod::Chmod;
use super::draft::{Draft, DraftError, Made, NewEntry, directory};
use super::filter::{Chosen, Filter};
use super::path;
use super::pattern::{Glob, Part, PatternError, Patterns, has_wildcard};
use super::resolve::{Last, Look, ResolveError, View, resolve};
use super::view::{Dir, InodeId, Location, Node, Tree};
use crate::layer::{Entry, Kind};

/// One source of a COPY or ADD and where it goes.
#[derive(Clone, Debug)]
pub struct Copy<'a> {
    /// Source path, absolute in the source tree.
    pub source: &'a str,
    /// Absolute destination; a trailing `/` means a directory.
    pub destination: &'a str,
    /// `source` is a pattern of Go's `filepath.Match`.
    pub wildcard: bool,
    /// A pattern that matches nothing is fine.
    pub allow_empty: bool,
    /// Follow a symbolic link that `source` itself is.
    pub follow_symlinks: bool,
    /// Copy what is in a directory rather than the directory.
    pub contents_only: bool,
    /// `--parents`: `source` is the directory that the paths start from, this the pattern of what is copied of it, with
    /// the directories that lead to it.
    pub parents: Option<&'a str>,
    /// What is not copied, relative to the directory that is.
    pub exclude: &'a Patterns,
    /// `--chown`; `None` keeps the source's owners.
    pub owner: Option<(u32, u32)>,
    /// `--chmod`.
    pub chmod: Option<&'a Chmod>,
    /// Destination symlinks are followed.
    pub follow_destination: bool,
    /// Time of directories that are made without a model.
    pub created: i64,
}

/// A path that a source names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// As it was found; its last component is the name of a file that is copied into a directory.
    pub path: BString,
    /// With links resolved as asked.
    pub resolved: BString,
}

/// Files that cannot be copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// The source is not there.
    #[error("could not copy {0}: not found")]
    NotFound(String),
    /// The source is not a pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The source leads nowhere.
    #[error(transparent)]
    Source(#[from] ResolveError),
    /// The destination cannot be written.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// A hard link in an archive to something that is not there.
    #[error("could not unpack {}: it is a hard link to {}, which is not there", path::show(.path), path::show(.target))]
    Link {
        /// The link, in the archive.
        path: BString,
        /// Its target, in the archive.
        target: BString,
    },
}

/// The paths of `tree` that `source` means, in order. A source without wildcards must be there.
pub fn sources(tree: &Tree, copy: &Copy<'_>) -> Result<Vec<Match>, CopyError> {
    let not_found = || CopyError::NotFound(copy.source.to_owned());
    let found = matches(tree, copy.source, copy.wildcard, copy.follow_symlinks)?;
    let Some(below) = copy.parents else {
        if !found.is_empty() {
            return Ok(found);
        }
        if !(copy.wildcard && has_wildcard(copy.source) && copy.allow_empty) {
            return Err(not_found());
        }
        // Nothing need match, but the directory to look in must be there.
        let (prefix, _) = fixed(&Glob::new(copy.source)?);
        return match named(tree, &prefix, copy.follow_symlinks)? {
            Some(_) => Ok(found),
            None => Err(CopyError::NotFound(path::show(&prefix))),
        };
    };
    let below_clean = path::clean(below.as_bytes());
    let there = |found: &Match| {
        below_clean.is_empty() || tree.get(&path::join(&found.resolved, &below_clean)).is_some()
    };
    if !copy.wildcard && !has_wildcard(below) && !found.iter().any(there) {
        let missing = path::join(&path::clean(copy.source.as_bytes()), &below_clean);
        return Err(CopyError::NotFound(path::show(&missing)));
    }
    Ok(found)
}

/// The paths of `tree` that `source` means, in order; none if it is not there.
pub fn matches(tree: &Tree, source: &str, wildcard: bool, follow: bool) -> Result<Vec<Match>, CopyError> {
    if !wildcard {
        return Ok(named(tree, &path::clean(source.as_bytes()), follow)?.into_iter().collect());
    }
    let glob = Glob::new(source)?;
    let (prefix, wild) = fixed(&glob);
    if wild.is_empty() {
        return Ok(named(tree, &prefix, follow)?.into_iter().collect());
    }
    let mut found: Vec<BString> = Vec::new();
    if let Some(start) = named(tree, &prefix, follow)?
        && let Some(dir) = tree.dir(&start.resolved)
    {
        search(&dir, wild, &mut found);
    }
    // A link that leads nowhere matches, too, and then there is nothing to copy.
    let there =
        |path: BString| named(tree, &path, follow)?.ok_or_else(|| CopyError::NotFound(path::show(&path)));
    found.into_iter().map(there).collect()
}

/// The path in front of a pattern's first wildcard, and the components from there on.
fn fixed(glob: &Glob) -> (BString, &[Part]) {
    let parts = glob.parts();
    let fixed = parts.iter().position(|part| matches!(part, Part::Wild(_))).unwrap_or(parts.len());
    let (fixed, wild) = parts.split_at(fixed);
    let prefix = fixed.iter().fold(BString::default(), |path, part| match part {
        Part::Name(name) => path::join(&path, name.as_bytes()),
        Part::Wild(_) => path,
    });
    (path::clean(&prefix), wild)
}

/// The one path `at`, if it is there.
fn named(tree: &Tree, at: &[u8], follow: bool) -> Result<Option<Match>, ResolveError> {
    let resolved = match resolve(tree, at, if follow { Last::Follow } else { Last::Keep }) {
        Err(ResolveError::NotDirectory { .. }) => return Ok(None),
        resolved => resolved?,
    };
    let there = resolved.is_empty() || tree.get(&resolved).is_some();
    Ok(there.then(|| Match { path: path::clean(at), resolved }))
}

/// Adds the paths below `dir` that match; links are not followed on the way.
fn search(dir: &Dir<'_>, parts: &[Part], found: &mut Vec<BString>) {
    let Some((part, rest)) = parts.split_first() else { return };
    let children = match part {
        Part::Name(name) => dir.child(name.as_bytes()).into_iter().collect(),
        Part::Wild(_) => dir.children(),
    };
    for (node, below) in children {
        if !part.matches(node.name()) {
            continue;
        }
        match below {
            _ if rest.is_empty() => found.push(node.entry.path.clone()),
            Some(below) => search(&below, rest, found),
            None => {}
        }
    }
}

impl Draft<'_> {
    /// Copies what `found`, one of the [`sources`] of `copy`, is in `from`.
    pub fn copy(&mut self, from: &Tree, found: &Match, copy: &Copy<'_>) -> Result<(), CopyError> {
        let (uid, gid) = copy.owner.unwrap_or((0, 0));
        let made = Made { uid, gid, mtime: copy.created };
        let mode = Chmod::of_parents(copy.chmod);
        let node = from.get(&found.resolved);
        let source = from.dir(&found.resolved);
        let mut to = self.destination(copy, made)?;

        let exists = self.is_dir(&to) || self.entry(to.as_bstr()).is_some();
        let contents = copy.contents_only || copy.parents.is_some();
        let inside = if source.is_some() { !contents && exists } else { self.is_dir(&to) };
        if inside {
            to = path::join(&to, path::name(&found.path));
        }
        let Some(source) = source else {
            let Some(node) = node else { return Err(CopyError::NotFound(copy.source.to_owned())) };
            if copy.wildcard && has_wildcard(copy.source) && copy.exclude.matching(node.name()).is_some() {
                return Ok(());
            }
            self.make_dirs(path::parent(&to).unwrap_or_default(), mode, made)?;
            let (entry, location, _) = attributes(&node, copy);
            return Ok(self.cursor_at(&to)?.set(entry, location, None, &to)?);
        };

        let include = match copy.parents.map(|pattern| pattern.trim_matches('/')) {
            Some(pattern) if !pattern.is_empty() => Some(Patterns::new([pattern])?),
            _ => None,
        };
        let filter = Filter { include: include.as_ref(), exclude: copy.exclude };
        let chosen = filter.choose(source).map_err(DraftError::TooDeep)?;

        let known = self.is_dir(&to);
        if !known && self.entry(to.as_bstr()).is_some() {
            return Err(DraftError::NotDirectory { path: to.clone(), file: to }.into());
        }
        if contents {
            self.make_dirs(&to, mode, made)?;
        } else {
            self.make_dirs(path::parent(&to).unwrap_or_default(), mode, made)?;
        }
        let mut cursor = self.cursor_at(&to)?;
        match node {
            Some(node) if !known && contents => cursor.touch(node.entry.mtime),
            Some(node) if !known => cursor.set_dir(attributes(&node, copy).0, &to)?,
            None if !known && !contents => cursor.set_dir(directory(0o755), &to)?,
            _ => {}
        }
        Ok(self.apply(&chosen, found.resolved.as_bstr(), to.as_bstr(), copy)?)
    }

    /// Puts what was chosen below `from` in the source below `to`.
    fn apply(
        &mut self,
        chosen: &[Chosen<'_>],
        from: &BStr,
        to: &BStr,
        copy: &Copy<'_>,
    ) -> Result<(), DraftError> {
        let mut groups = HashMap::new();
        let linked = chosen.iter().any(|chosen| matches!(chosen.node.entry.kind, Kind::Hardlink { .. }));
        let mut left = self.link_groups(if linked { chosen.len() as u32 } else { 0 });
        let mut chosen = chosen.iter().peekable();
        // One descent a run of siblings.
        while let Some(first) = chosen.peek() {
            let source = parent(&first.node);
            let dir = path::join(to, source[from.len()..].trim_start_with(|char| char == '/'));
            let mut cursor = self.cursor_at(&dir)?;
            let here = |next: &&Chosen<'_>| parent(&next.node) == source;
            while let Some(Chosen { node, itself }) = chosen.next_if(here) {
                let at = path::join(&dir, node.name());
                let mut child = cursor.enter(node.name());
                let (entry, location, inode) = attributes(node, copy);
                if !node.is_dir() {
                    let group = inode.and_then(|id| match groups.get(&id) {
                        Some(group) => Some(*group),
                        None => left.next().inspect(|group| {
                            groups.insert(id, *group);
                        }),
                    });
                    child.set(entry, location, group, &at)?;
                    continue;
                }
                match child.entry() {
                    Some(old) if !old.kind.is_dir() => {
                        return Err(DraftError::NotDirectory { path: at.clone(), file: at });
                    }
                    // On the way to what was chosen: as in BuildKit, it keeps all but its mode.
                    Some(old) if !itself => {
                        let entry = Entry { mode: node.entry.mode, ..old.clone() };
                        child.set_dir(entry, &at)?;
                    }
                    _ => child.set_dir(entry, &at)?,
                }
            }
        }
        Ok(())
    }

    /// ADD of an archive: its entries, in its order, into the directory `destination`. They are resolved as if that
    /// directory was the root.
    pub fn unpack(
        &mut self,
        entries: impl IntoIterator<Item = NewEntry>,
        copy: &Copy<'_>,
    ) -> Result<(), CopyError> {
        let (uid, gid) = copy.owner.unwrap_or((0, 0));
        let made = Made { uid, gid, mtime: copy.created };
        let root = self.resolve_destination(copy.destination, copy)?;
        self.make_dirs(&root, 0o755, made)?;
        for NewEntry { mut entry, location } in entries {
            let at = std::mem::take(&mut entry.path);
            // The archive's root is the directory that is there.
            let Some(parent) = path::parent(&at) else { continue };
            let parent = path::join(
                &root,
                &resolve(&Under { draft: self, root: root.as_bstr() }, parent, Last::Follow)?,
            );
            self.make_dirs(&parent, 0o755, Made { uid: 0, gid: 0, mtime: copy.created })?;
            if let Some((uid, gid)) = copy.owner {
                (entry.uid, entry.gid) = (uid, gid);
            }
            let to = path::join(&parent, path::name(&at));
            let (mut location, mut link) = (location, None);
            if let Kind::Hardlink { target } = &entry.kind {
                let target = target.clone();
                let group = self.link_groups(1).next().expect("one was asked for");
                let inside = resolve(&Under { draft: self, root: root.as_bstr() }, &target, Last::Keep)?;
                let found = self.cursor_at(&path::join(&root, &inside))?.link(group);
                (entry, location, link) = found.ok_or(CopyError::Link { path: at, target })?;
            }
            let is_dir = entry.kind.is_dir();
            let mut cursor = self.cursor_at(&to)?;
            match cursor.entry().map(|old| old.kind.is_dir()) {
                Some(true) if is_dir => {}
                Some(_) => cursor.remove(),
                None => {}
            }
            if is_dir {
                cursor.set_dir(entry, &to)?;
            } else {
                cursor.set(entry, location, link, &to)?;
            }
        }
        Ok(())
    }

    /// The destination without links; the directory that it is in or, with a trailing `/`, is, is made.
    fn destination(&mut self, copy: &Copy<'_>, made: Made) -> Result<BString, CopyError> {
        let written = copy.destination;
        let dir = match written.rsplit_once('/') {
            Some((_, "" | ".")) => written,
            Some((dir, _)) => dir,
            None => "",
        };
        let dir = self.resolve_destination(dir, copy)?;
        self.make_dirs(&dir, Chmod::of_parents(copy.chmod), made)?;
        self.resolve_destination(written, copy)
    }

    fn resolve_destination(&self, written: &str, copy: &Copy<'_>) -> Result<BString, CopyError> {
        if copy.follow_destination {
            Ok(resolve(self, written.as_bytes(), Last::Follow)?)
        } else {
            Ok(path::clean(written.as_bytes()))
        }
    }
}

/// A draft as seen by something whose root is a directory of it.
struct Under<'a, 'b> {
    draft: &'a Draft<'b>,
    root: &'a BStr,
}

impl View for Under<'_, '_> {
    fn look(&self, path: &BStr) -> Option<Look> {
        self.draft.look(path::join(self.root, path).as_bstr())
    }
}

fn parent<'s>(node: &Node<'s>) -> &'s BStr {
    path::parent(&node.entry.path).unwrap_or_default()
}

/// The entry that a copy of `node` is, its bytes and, for a regular file, which file it is.
fn attributes(node: &Node<'_>, copy: &Copy<'_>) -> (Entry, Location, Option<InodeId>) {
    let (mut entry, location, id) = match node.inode() {
        Some(inode) => {
            let kind = Kind::File { size: inode.size, offset: 0, content: inode.content };
            let model = inode.entry;
            let entry = Entry { path: BString::default(), kind, xattrs: model.xattrs.clone(), ..*model };
            (entry, inode.location, Some(inode.id))
        }
        None => {
            let model = node.entry;
            let (kind, xattrs) = (model.kind.clone(), model.xattrs.clone());
            (Entry { path: BString::default(), kind, xattrs, ..*model }, Location::None, None)
        }
    };
    if let Some((uid, gid)) = copy.owner {
        (entry.uid, entry.gid) = (uid, gid);
    }
    if let Some(chmod) = copy.chmod.filter(|_| !matches!(entry.kind, Kind::Symlink { .. })) {
        entry.mode = chmod.apply(entry.mode, entry.kind.is_dir());
    }
    (entry, location, id)
}

#[cfg(test)]
mod tests {
    use super::super::draft::MAX_DEPTH;
    use super::super::testing::{Item, dir, entry, file, gone, hard, line, link, list, tree, with};
    use super::*;

    fn plain<'a>(source: &'a str, destination: &'a str, exclude: &'a Patterns) -> Copy<'a> {
        Copy {
            source,
            destination,
            wildcard: true,
            allow_empty: true,
            follow_symlinks: true,
            contents_only: true,
            parents: None,
            exclude,
            owner: None,
            chmod: None,
            follow_destination: true,
            created: 7,
        }
    }

    fn run(base: &Tree, from: &Tree, copies: &[Copy<'_>]) -> Result<Vec<NewEntry>, CopyError> {
        let mut draft = Draft::new(base);
        for copy in copies {
            for found in sources(from, copy)? {
                draft.copy(from, &found, copy)?;
            }
        }
        Ok(draft.finish())
    }

    fn lines(entries: Result<Vec<NewEntry>, CopyError>) -> Vec<String> {
        match entries {
            Ok(entries) => entries.iter().map(|new| short(&line(&new.entry, None))).collect(),
            Err(error) => vec![error.to_string()],
        }
    }

    /// Without what is usual.
    fn short(line: &str) -> String {
        line.replace(" 755 0:0", "").replace(" 644 0:0", "").replace(" 0:0", "").trim_end().to_owned()
    }

    fn base() -> Tree {
        tree(&[
            with(dir("tmp"), |e| e.mode = 0o1777),
            dir("usr"),
            with(dir("usr/lib"), |e| e.uid = 5),
            dir("usr/lib/full"),
            file("usr/lib/full/x", "x"),
            link("lib", "usr/lib"),
            link("dangling", "/usr/new"),
            file("file", "old"),
            link("tofile", "file"),
            link("loop", "loop"),
        ])
    }

    fn context() -> Tree {
        tree(&[
            file("a.txt", "a"),
            file("b.txt", "b"),
            with(dir("d"), |e| e.mode = 0o700),
            file("d/one", "1"),
            with(dir("d/sub"), |e| e.mode = 0o711),
            file("d/sub/two.md", "2"),
            link("d/sub/up", "../one"),
            link("ld", "d"),
            link("lf", "d/one"),
            link("nowhere", "not/there"),
            file("w[1]", "w"),
            dir("full"),
            with(file("full/x", "x"), |e| e.mtime = 1000),
        ])
    }

    #[test]
    fn files_go_where_buildkit_puts_them() {
        let none = Patterns::default();
        let (base, context) = (base(), context());
        for (source, destination, want) in [
            ("/a.txt", "/new", &["new"][..]),
            ("/a.txt", "/tmp", &["tmp/ 1777", "tmp/a.txt"]),
            ("/a.txt", "/tmp/", &["tmp/ 1777", "tmp/a.txt"]),
            ("/a.txt", "/n/e/w/", &["n/", "n/e/", "n/e/w/", "n/e/w/a.txt"]),
            ("/a.txt", "/n/e/w", &["n/", "n/e/", "n/e/w"]),
            ("/a.txt", "/", &["a.txt"]),
            ("/a.txt", "/lib/y", &["usr/", "usr/lib/ 755 5:0", "usr/lib/y"]),
            ("/a.txt", "/lib", &["usr/", "usr/lib/ 755 5:0", "usr/lib/a.txt"]),
            ("/a.txt", "/dangling/", &["usr/", "usr/new/", "usr/new/a.txt"]),
            ("/a.txt", "/dangling", &["usr/", "usr/new"]),
            ("/a.txt", "/file", &["file"]),
            ("/a.txt", "/tofile", &["file"]),
            ("/a.txt", "/loop", &["could not resolve /loop: too many levels of symbolic links"]),
            ("/a.txt", "/file/x", &["could not make directory /file: /file is not a directory"]),
            ("/a.txt", "/../../x", &["x"]),
            ("/nope", "/x", &["could not copy /nope: not found"]),
            ("/a.txt/x", "/x", &["could not copy /a.txt/x: not found"]),
            ("/*.none", "/x", &[]),
            ("/d/*.none", "/x", &[]),
            ("/nope/*", "/x", &["could not copy /nope: not found"]),
            ("/a.txt/*", "/x", &[]),
            ("/now*", "/x/", &["could not copy /nowhere: not found"]),
            ("/*.txt", "/both/", &["both/", "both/a.txt", "both/b.txt"]),
            ("/*.txt", "/both", &["both"]),
            ("/w\\[1]", "/w", &["w"]),
            ("/d", "/new", &["new/", "new/one", "new/sub/ 711", "new/sub/two.md", "new/sub/up -> ../one"]),
            ("/ld", "/new", &["new/", "new/one", "new/sub/ 711", "new/sub/two.md", "new/sub/up -> ../one"]),
            ("/ld/sub", "/new", &["new/", "new/two.md", "new/up -> ../one"]),
            ("/lf", "/new", &["new"]),
            ("/lf", "/tmp", &["tmp/ 1777", "tmp/lf"]),
            ("/d", "/file", &["could not make directory /file: /file is not a directory"]),
            ("/d/*", "/n/", &["n/", "n/one", "n/two.md", "n/up -> ../one"]),
            ("/full", "/usr/lib/full", &[]),
            ("/full/x", "/usr/lib/full/x", &[]),
            ("/full/x", "/usr/lib/full/y", &["usr/", "usr/lib/ 755 5:0", "usr/lib/full/", "usr/lib/full/y"]),
        ] {
            let got = run(&base, &context, &[plain(source, destination, &none)]);
            assert_eq!(lines(got), want, "COPY {source} {destination}");
        }
    }

    #[test]
    fn types_are_not_mixed_up() {
        let none = Patterns::default();
        let base = tree(&[dir("x"), dir("x/d"), file("x/d/a", "a"), file("x/f", "f"), link("x/l", "d")]);
        for (from, want) in [
            (
                &[dir("s"), file("s/d", "1")][..],
                &["could not write /x/d: cannot replace a directory with a file"][..],
            ),
            (
                &[dir("s"), dir("s/f"), file("s/f/q", "1")],
                &["could not make directory /x/f: /x/f is not a directory"],
            ),
            (
                &[dir("s"), dir("s/l"), file("s/l/q", "1")],
                &["could not make directory /x/l: /x/l is not a directory"],
            ),
            (&[dir("s"), file("s/l", "1")], &["x/", "x/l"]),
            (&[dir("s"), link("s/f", "d")], &["x/", "x/f -> d"]),
            (&[dir("s"), with(dir("s/d"), |e| e.mode = 0o700)], &["x/", "x/d/ 700"]),
            (
                &[dir("s"), file("s/.wh.x", "")],
                &["could not write /x/.wh.x: names that begin with .wh. mean deletions in image layers"],
            ),
        ] {
            let got = run(&base, &tree(from), &[plain("/s", "/x", &none)]);
            assert_eq!(lines(got), want);
        }
    }

    #[test]
    fn owners_and_modes_are_set() {
        let none = Patterns::default();
        let chmod: Chmod = "u=rwX,go=rX".parse().unwrap();
        let copy = Copy { owner: Some((3, 4)), chmod: Some(&chmod), ..plain("/d", "/n/m/", &none) };
        let got = run(&base(), &context(), &[copy]);
        assert_eq!(
            lines(got),
            [
                "n/ 755 3:4",
                "n/m/ 755 3:4",
                "n/m/one 644 3:4",
                "n/m/sub/ 755 3:4",
                "n/m/sub/two.md 644 3:4",
                "n/m/sub/up -> ../one 3:4"
            ]
        );
        let chmod: Chmod = "1640".parse().unwrap();
        for (source, destination, want) in [
            ("/a.txt", "/n/m/", &["n/ 640", "n/m/ 640", "n/m/a.txt 1640"][..]),
            ("/full", "/n/m", &["n/ 640", "n/m/ 640", "n/m/x 1640"]),
        ] {
            let copy = Copy { chmod: Some(&chmod), ..plain(source, destination, &none) };
            assert_eq!(lines(run(&base(), &context(), &[copy])), want, "directories that are made");
        }
        let copy = Copy { owner: Some((3, 4)), ..plain("/a.txt", "/usr/lib/q/", &none) };
        let got = run(&base(), &context(), &[copy]);
        assert_eq!(lines(got), ["usr/", "usr/lib/ 755 5:0", "usr/lib/q/ 755 3:4", "usr/lib/q/a.txt 644 3:4"]);
    }

    #[test]
    fn excluded_files_stay_behind() {
        let (base, context) = (Tree::empty(), context());
        for (source, exclude, want) in [
            ("/d", &["*.md"][..], &["n/", "n/one", "n/sub/ 711", "n/sub/up -> ../one"][..]),
            ("/d", &["**/*.md"], &["n/", "n/one", "n/sub/ 711", "n/sub/up -> ../one"]),
            ("/d", &["sub"], &["n/", "n/one"]),
            ("/d", &["sub", "!sub/two.md"], &["n/", "n/one", "n/sub/ 711", "n/sub/two.md"]),
            ("/*.txt", &["b.*"], &["n/", "n/a.txt"]),
        ] {
            let exclude = Patterns::new(exclude).unwrap();
            let mut want: Vec<&str> = want.to_vec();
            if source == "/d"
                && exclude.matching(b"sub/two.md").is_none()
                && exclude.matching(b"sub").is_none()
            {
                want.insert(3, "n/sub/two.md");
            }
            let got = run(&base, &context, &[plain(source, "/n/", &exclude)]);
            assert_eq!(lines(got), want, "{source} {exclude:?}");
        }
    }

    #[test]
    fn parents_are_kept() {
        let none = Patterns::default();
        let (base, context) = (Tree::empty(), context());
        for (source, pattern, want) in [
            ("/", "d/sub/two.md", &["n/", "n/d/ 700", "n/d/sub/ 711", "n/d/sub/two.md"][..]),
            ("/", "d/sub", &["n/", "n/d/ 700", "n/d/sub/ 711", "n/d/sub/two.md", "n/d/sub/up -> ../one"]),
            ("/d", "sub/two.md", &["n/", "n/sub/ 711", "n/sub/two.md"]),
            ("/", "**/*.md", &["n/", "n/d/ 700", "n/d/sub/ 711", "n/d/sub/two.md"]),
            ("/", "*/one", &["n/", "n/d/ 700", "n/d/one"]),
            ("/d", "", &["n/", "n/one", "n/sub/ 711", "n/sub/two.md", "n/sub/up -> ../one"]),
            ("/", "no/such", &["could not copy /no/such: not found"]),
            ("/", "no/*", &["n/"]),
        ] {
            let copy = Copy { parents: Some(pattern), wildcard: false, ..plain(source, "/n/", &none) };
            assert_eq!(lines(run(&base, &context, &[copy])), want, "{source} {pattern}");
        }
        // One that is there keeps its owner and gets the mode.
        let base = tree(&[dir("n"), with(dir("n/d"), |e| e.uid = 9)]);
        let copy = Copy { parents: Some("d/one"), wildcard: false, ..plain("/", "/n/", &none) };
        assert_eq!(lines(run(&base, &context, &[copy])), ["n/", "n/d/ 700 9:0", "n/d/one"]);
    }

    #[test]
    fn hard_links_are_kept_and_start_at_the_first_name() {
        let none = Patterns::default();
        let from =
            tree(&[dir("s"), file("s/b", "1"), hard("s/a", "s/b"), file("s/c", "1"), hard("s/z", "s/b")]);
        let got = lines(run(&Tree::empty(), &from, &[plain("/s", "/", &none)]));
        assert_eq!(got, ["a", "b == a", "c", "z == a"]);
        let got = lines(run(&Tree::empty(), &from, &[plain("/s/z", "/", &none)]));
        assert_eq!(got, ["z"]);
    }

    #[test]
    fn actions_see_what_was_done_before() {
        let base = base();
        let mut draft = Draft::new(&base);
        let made = Made { uid: 1, gid: 2, mtime: 7 };
        draft.mkdir("/w/x", 0o750, made).unwrap();
        draft.mkdir("/w/x/../x", 0o700, made).unwrap();
        draft.mkfile("/w", b"hello", (0o600, 0o755), Some("hi"), made).unwrap();
        draft.mkfile("/w/there", b"", (0o644, 0o755), Some("hi"), made).unwrap();
        draft.rm("/usr/lib/full", false).unwrap();
        draft.rm("/w/x", false).unwrap();
        assert_eq!(draft.rm("/w/x", false), Err(DraftError::Missing("w/x".into())));
        draft.rm("/w/x/y", true).unwrap();
        draft.rm("/file/y", true).unwrap();
        draft.mkdir("/usr/lib/full/again", 0o755, made).unwrap();
        draft.rm("/tofile", false).unwrap();
        assert_eq!(draft.rm("/..", false), Err(DraftError::Root));
        assert_eq!(
            lines(Ok(draft.finish())),
            [
                "tofile gone",
                "usr/",
                "usr/lib/ 755 5:0",
                "usr/lib/full/ 755 1:2 opaque",
                "usr/lib/full/again/ 755 1:2",
                "w/ 750 1:2",
                "w/hi 600 1:2",
                "w/there 644 1:2"
            ]
        );
    }

    #[test]
    fn workdirs_that_exist_make_no_entry() {
        let base = base();
        let made = Made { uid: 9, gid: 9, mtime: 7 };
        let mut draft = Draft::new(&base);
        draft.mkdir("/lib/full", 0o755, made).unwrap();
        draft.mkdir("/", 0o755, made).unwrap();
        assert_eq!(draft.clone().finish(), []);
        draft.mkdir("/dangling/deep", 0o755, made).unwrap();
        assert_eq!(lines(Ok(draft.finish())), ["usr/", "usr/new/ 755 9:9", "usr/new/deep/ 755 9:9"]);
    }

    #[test]
    fn archives_unpack_inside_their_directory() {
        let none = Patterns::default();
        let base = tree(&[
            dir("srv"),
            dir("srv/full"),
            file("srv/full/x", "x"),
            dir("srv/kept"),
            file("srv/kept/x", "x"),
            file("srv/f", "f"),
            dir("etc"),
            file("etc/passwd", "root"),
        ]);
        let items: Vec<Item> = vec![
            with(dir(""), |e| e.mode = 0o700),
            link("up", "../.."),
            file("up/etc/passwd", "mine"),
            link("abs", "/etc"),
            file("abs/shadow", "s"),
            with(file("full", "now a file"), |e| e.uid = 7),
            with(dir("kept"), |e| e.mode = 0o770),
            dir("f"),
            file("f/q", "q"),
            hard("twin", "f/q"),
            hard("copy", "kept/x"),
            (entry("pipe", Kind::Fifo, 0o600), Location::None),
            hard("pipe2", "pipe"),
            hard("up2", "up"),
            file("twice", "1"),
            file("twice", "2"),
        ];
        let new = |(entry, location)| NewEntry { entry, location };
        let mut draft = Draft::new(&base);
        draft.unpack(items.into_iter().map(new), &plain("/x.tar", "/srv", &none)).unwrap();
        let upper: Vec<Item> = draft.finish().into_iter().map(|new| (new.entry, new.location)).collect();
        let got: Vec<_> = upper.iter().map(|(entry, _)| short(&line(entry, None))).collect();
        assert_eq!(
            got,
            [
                "srv/",
                "srv/abs -> /etc",
                "srv/copy",
                "srv/etc/",
                "srv/etc/passwd",
                "srv/etc/shadow",
                "srv/f/",
                "srv/f/q",
                "srv/full 644 7:0",
                "srv/kept/ 770",
                "srv/pipe 600 0:0 Fifo".trim_end(),
                "srv/pipe2 600 0:0 Fifo".trim_end(),
                "srv/twice",
                "srv/twin == srv/f/q",
                "srv/up -> ../..",
                "srv/up2 -> ../..",
            ]
            .map(short)
        );
        let all = list(&base.with(&tree(&upper)));
        assert!(all.iter().any(|line| line.starts_with("etc/passwd 644")));

        let mut draft = Draft::new(&base);
        let error = draft.unpack([new(hard("l", "nowhere"))], &plain("/x.tar", "/srv", &none)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "could not unpack /l: it is a hard link to /nowhere, which is not there"
        );
    }

    #[test]
    fn a_copy_over_deletions_starts_afresh() {
        let none = Patterns::default();
        let base = tree(&[dir("d"), file("d/old", "1")]).with(&tree(&[gone("d")]));
        let got = run(&base, &context(), &[plain("/full", "/d", &none)]);
        assert_eq!(lines(got), ["d/", "d/x"]);
    }

    #[test]
    fn the_deepest_paths_fit_the_stack_and_deeper_ones_are_refused() {
        let none = Patterns::default();
        let deep = |depth: usize| {
            let path = vec!["d"; depth].join("/");
            tree(&[file(&format!("{path}/f"), "x")])
        };
        let copy = run;
        let run = move || {
            let fits = copy(&Tree::empty(), &deep(MAX_DEPTH - 2), &[plain("/", "/", &none)]);
            let deeper = copy(&Tree::empty(), &deep(MAX_DEPTH + 2), &[plain("/", "/", &none)]);
            (fits.unwrap().len(), deeper.is_err())
        };
        // What threads of a pool have.
        let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap();
        assert_eq!(thread.join().unwrap(), (MAX_DEPTH - 1, true));
    }
}

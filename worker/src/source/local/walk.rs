//! Walking directories, many at a time. A directory is opened when its turn comes and closed at its end: there are never
//! more open than threads.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bstr::{BStr, BString, ByteSlice};
use image::tree::draft::MAX_DEPTH;
use image::tree::pattern::Matched;
use image::tree::{Patterns, path};
use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType};
use solver::Cancel;

use super::find::{Root, look};
use super::{Directory, LocalError, Seen, read_error, xattrs};
use crate::inside;

/// What is below `roots`, these included, in the order of [`path::compare`], and the sockets that were left out.
pub(super) fn walk(
    directory: &Directory,
    roots: Vec<Root>,
    cancel: &Cancel,
) -> Result<(Vec<Seen>, Vec<BString>), LocalError> {
    let walk = Walk {
        directory,
        cancel,
        parts: Mutex::default(),
        sockets: Mutex::default(),
        stopped: AtomicBool::new(false),
        failed: Mutex::default(),
    };
    let mut waiting: Vec<Here<'_>> = roots.iter().map(Here::of_root).collect();
    // Small contexts are walked here: it would take longer to make the pool.
    let mut names = 0;
    while names < FEW {
        let Some(here) = waiting.pop() else { break };
        let (listed, below) = walk.read(here)?;
        names += listed;
        waiting.extend(below);
    }
    if !waiting.is_empty() {
        store::pool::pool().scope(|scope| {
            for here in waiting {
                scope.spawn(|scope| walk.directory(scope, here));
            }
        });
    }
    if let Some(failed) = walk.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(failed);
    }
    let mut sockets = walk.sockets.into_inner().unwrap_or_else(PoisonError::into_inner);
    sockets.sort_unstable();
    Ok((ordered(walk.parts.into_inner().unwrap_or_else(PoisonError::into_inner)), sockets))
}

/// What was found in one directory, in order, the directory itself first.
struct Part {
    path: BString,
    seen: Vec<Seen>,
}

/// All of the parts, in order.
fn ordered(mut parts: Vec<Part>) -> Vec<Seen> {
    parts.sort_unstable_by(|a, b| path::compare(&a.path, &b.path));
    let mut all = Vec::with_capacity(parts.iter().map(|part| part.seen.len()).sum());
    // The directories that the last one is in, each with what is left of it.
    let mut open: Vec<(BString, std::vec::IntoIter<Seen>)> = Vec::new();
    for part in parts {
        while let Some((path, rest)) = open.last_mut() {
            if path::is_below(&part.path, path) {
                let behind = |seen: &Seen| path::compare(&seen.entry.path, &part.path).is_gt();
                let before = rest.as_slice().iter().position(behind).unwrap_or(rest.len());
                all.extend(rest.take(before));
                break;
            }
            all.extend(rest);
            open.pop();
        }
        open.push((part.path, part.seen.into_iter()));
    }
    open.into_iter().rev().for_each(|(_, rest)| all.extend(rest));
    all
}

struct Walk<'a> {
    directory: &'a Directory,
    cancel: &'a Cancel,
    parts: Mutex<Vec<Part>>,
    sockets: Mutex<Vec<BString>>,
    stopped: AtomicBool,
    failed: Mutex<Option<LocalError>>,
}

/// A directory to look into, and what the patterns made of it.
struct Here<'a> {
    root: &'a Root,
    /// `None` for the context itself.
    seen: Option<Seen>,
    ignored: Matched,
    included: Matched,
    excluded: Matched,
}

impl<'a> Here<'a> {
    fn of_root(root: &'a Root) -> Self {
        let (seen, ignored) = (root.seen.clone(), root.matched.clone());
        Self { root, seen, ignored, included: Matched::default(), excluded: Matched::default() }
    }
}

impl<'a> Walk<'a> {
    fn directory<'s>(&'s self, scope: &rayon::Scope<'s>, here: Here<'a>)
    where
        'a: 's,
    {
        if self.stopped.load(Ordering::Relaxed) {
            return;
        }
        match self.read(here) {
            Ok((_, below)) => {
                for here in below {
                    scope.spawn(|scope| self.directory(scope, here));
                }
            }
            Err(error) => {
                self.stopped.store(true, Ordering::Relaxed);
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }

    /// Notes what is in a directory; gives the number of names in it and the directories to look into.
    fn read(&self, mut here: Here<'a>) -> Result<(usize, Vec<Here<'a>>), LocalError> {
        if self.cancel.is_cancelled() {
            return Err(LocalError::Cancelled);
        }
        let at = here.seen.as_ref().map_or_else(BString::default, |seen| seen.entry.path.clone());
        if path::components(&at).count() > MAX_DEPTH {
            return Err(LocalError::TooDeep(at));
        }
        let fd = inside::open_dir(self.directory.root(), &at).map_err(read_error(&at))?;
        if let Some(seen) = &mut here.seen {
            seen.entry.xattrs = xattrs(fd.as_fd()).map_err(read_error(&at))?;
        }
        let names = inside::list(fd.as_fd()).map_err(read_error(&at))?;
        let own = here.seen.take();
        let some = |names: &[BString], own: Option<Seen>| -> Result<(Vec<Seen>, Vec<Here<'a>>), LocalError> {
            let (mut seen, mut below) = (Vec::with_capacity(names.len() + 1), Vec::new());
            seen.extend(own);
            for name in names {
                match self.name(fd.as_fd(), at.as_bstr(), name.as_bstr(), &here)? {
                    Some(Found::Directory(next)) => below.push(next),
                    Some(Found::Other(found)) => seen.push(found),
                    None => {}
                }
            }
            Ok((seen, below))
        };
        let (seen, next) = if names.len() > AT_ONCE {
            let parts = names.par_chunks(AT_ONCE).map(|names| some(names, None));
            let parts: Vec<_> = store::pool::pool().install(|| parts.collect::<Result<_, _>>())?;
            let (mut seen, mut next) = (Vec::from_iter(own), Vec::new());
            for (part, below) in parts {
                seen.extend(part);
                next.extend(below);
            }
            (seen, next)
        } else {
            some(&names, own)?
        };
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(Part { path: at, seen });
        Ok((names.len(), next))
    }

    /// What is called `name`, if it or something in it may be wanted, and how to go on below.
    fn name(
        &self,
        fd: std::os::fd::BorrowedFd<'_>,
        at: &BStr,
        name: &BStr,
        here: &Here<'a>,
    ) -> Result<Option<Found<'a>>, LocalError> {
        let path = path::join(at, name);
        let ignore = &self.directory.ignore;
        let (ignored, ignored_by) = matches(Some(ignore), &path, &here.ignored);
        if ignored && !ignore.may_except_below(&path, &ignored_by) {
            return Ok(None);
        }
        let root = here.root;
        let include = root.include.as_deref();
        let (included, included_by) = matches(include, &path, &here.included);
        let skip = if root.path().is_empty() { 0 } else { root.path().len() + 1 };
        let (excluded, excluded_by) = matches(root.exclude.as_deref(), &path[skip..], &here.excluded);
        let included = included || include.is_none();
        let hopeless = (!included && include.is_some_and(|include| !include.may_match_below(&path)))
            || (excluded
                && root
                    .exclude
                    .as_deref()
                    .is_some_and(|out| !out.may_except_below(&path[skip..], &excluded_by)));
        if hopeless {
            return Ok(None);
        }
        let wanted = included && !ignored && !excluded;
        let Some(seen) = look(fd, at, name).map_err(read_error(&path))? else {
            // Gone meanwhile, or a socket.
            let stat = rustix::fs::statat(fd, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW);
            if wanted && stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket) {
                self.sockets.lock().unwrap_or_else(PoisonError::into_inner).push(path);
            }
            return Ok(None);
        };
        let seen = Seen { wanted, ..seen };
        if !seen.entry.kind.is_dir() {
            return Ok(wanted.then_some(Found::Other(seen)));
        }
        Ok(Some(Found::Directory(Here {
            root,
            seen: Some(seen),
            ignored: ignored_by,
            included: included_by,
            excluded: excluded_by,
        })))
    }
}

/// What has a name in a directory.
enum Found<'a> {
    Directory(Here<'a>),
    Other(Seen),
}

/// No patterns match nothing, and pass nothing on.
fn matches(patterns: Option<&Patterns>, path: &[u8], above: &Matched) -> (bool, Matched) {
    match patterns {
        Some(patterns) if !patterns.is_empty() => patterns.matches(path, above),
        _ => (false, Matched::default()),
    }
}

/// With so many names the pool helps.
const FEW: usize = 1024;

/// Names of one directory that one thread looks at.
const AT_ONCE: usize = 1024;

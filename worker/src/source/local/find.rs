//! Which paths of the directory the picks name: links on the way are followed here, inside the directory, and what
//! leads to the paths is noted.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use bstr::{BStr, BString, ByteSlice};
use image::layer::{Entry, Kind};
use image::tree::pattern::{Matched, Part};
use image::tree::resolve::{Last, Look, ResolveError, View, resolve};
use image::tree::{Glob, Patterns, Pick, path};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{Directory, LocalError, Seen, Stamp, read_error};
use crate::inside;

/// What is named.
pub(super) struct Found {
    /// What was looked at on the way.
    pub(super) seen: Vec<Seen>,
    /// What is below is wanted.
    pub(super) roots: Vec<Root>,
}

/// A directory to walk.
pub(super) struct Root {
    /// `None` is the whole context.
    pub(super) seen: Option<Seen>,
    /// What the ignore patterns made of it.
    pub(super) matched: Matched,
    /// What is wanted of it, by path in the context.
    pub(super) include: Option<Arc<Patterns>>,
    /// What is not, by path below it.
    pub(super) exclude: Option<Arc<Patterns>>,
}

impl Root {
    pub(super) fn path(&self) -> &BStr {
        self.seen.as_ref().map_or(BStr::new(b""), |seen| seen.entry.path.as_bstr())
    }

    pub(super) fn is_whole(&self) -> bool {
        self.include.is_none() && self.exclude.is_none()
    }
}

/// Finds what `picks` name in `directory`.
pub(super) fn find(directory: &Directory, picks: &[Pick<'_>]) -> Result<Found, LocalError> {
    let host = Host { directory, known: RefCell::default(), failed: RefCell::default() };
    let mut roots: Vec<Root> = Vec::new();
    for pick in picks {
        let exclude = Patterns::new(pick.exclude)?;
        let exclude = (!exclude.is_empty()).then(|| Arc::new(exclude));
        let include = (pick.parents && pick.wildcard).then(|| Patterns::new([pick.path.trim_matches('/')]));
        let include = include.transpose()?.map(Arc::new);
        for path in host.named(pick)? {
            let seen = host.seen(path.as_bstr())?;
            let is_dir = seen.as_ref().is_none_or(|seen| seen.entry.kind.is_dir());
            if is_dir && (seen.is_some() || path.is_empty()) {
                // Excluded paths are relative to the context there, and to the directory here.
                let exclude = if pick.parents && !path.is_empty() { None } else { exclude.clone() };
                let matched = host.matched(path.as_bstr());
                roots.push(Root { seen, matched, include: include.clone(), exclude });
            } else if let Some(known) = host.known.borrow_mut().get_mut(&path) {
                known.named = true;
            }
        }
    }
    let roots = apart(roots);
    let known = host.known.into_inner();
    // Directories and links lead to what is named. A file that was only looked at is not to be read.
    let leads = |seen: &Seen| matches!(seen.entry.kind, Kind::Directory { .. } | Kind::Symlink { .. });
    let seen = known.into_values().filter_map(|known| known.seen.filter(|seen| known.named || leads(seen)));
    let seen = seen.collect();
    Ok(Found { seen, roots })
}

/// Leaves out roots that are in others. Of one that is named twice, all is walked that either wants: all.
fn apart(mut roots: Vec<Root>) -> Vec<Root> {
    roots.sort_by(|a, b| path::compare(a.path(), b.path()));
    let mut apart: Vec<Root> = Vec::new();
    for root in roots {
        match apart.last_mut() {
            Some(last) if last.path() == root.path() || path::is_below(root.path(), last.path()) => {
                (last.include, last.exclude) = (None, None);
            }
            _ => apart.push(root),
        }
    }
    apart
}

/// The directory as it is looked up path by path, each once.
struct Host<'d> {
    directory: &'d Directory,
    known: RefCell<HashMap<BString, Known>>,
    /// What a lookup failed with: [`View`] cannot say.
    failed: RefCell<Option<LocalError>>,
}

#[derive(Default)]
struct Known {
    seen: Option<Seen>,
    matched: Matched,
    /// A pick is this path.
    named: bool,
}

impl Host<'_> {
    /// The paths that `pick` names, without links; nothing if it is not there.
    fn named(&self, pick: &Pick<'_>) -> Result<Vec<BString>, LocalError> {
        let parts: Vec<Part> = match pick.wildcard {
            true if pick.parents => {
                // Only the fixed part: what is below is for the walk.
                let fixed = pick.path.split('/').take_while(|part| !part.contains(['*', '?', '[', '\\']));
                fixed.filter(|part| !part.is_empty()).map(|part| Part::Name(part.to_owned())).collect()
            }
            true => Glob::new(pick.path)?.parts().to_vec(),
            false => path::components(&path::clean(pick.path.as_bytes()))
                .map(|part| Part::Name(part.to_string()))
                .collect(),
        };
        let fixed = parts.iter().position(|part| matches!(part, Part::Wild(_))).unwrap_or(parts.len());
        let (fixed, wild) = parts.split_at(fixed);
        let prefix = fixed.iter().fold(BString::default(), |path, part| match part {
            Part::Name(name) => path::join(&path, name.as_bytes()),
            Part::Wild(_) => path,
        });
        let last = if pick.follow_symlinks || !wild.is_empty() { Last::Follow } else { Last::Keep };
        let Some(start) = self.resolve(&prefix, last)? else { return Ok(Vec::new()) };
        if wild.is_empty() {
            return Ok(vec![start]);
        }
        let mut named = Vec::new();
        self.search(start.as_bstr(), wild, &mut named)?;
        let last = if pick.follow_symlinks { Last::Follow } else { Last::Keep };
        let mut resolved = Vec::with_capacity(named.len());
        for path in named {
            resolved.extend(self.resolve(&path, last)?);
        }
        Ok(resolved)
    }

    /// `at` without links, if it is there.
    fn resolve(&self, at: &[u8], last: Last) -> Result<Option<BString>, LocalError> {
        let resolved = resolve(self, at, last);
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        match resolved {
            Err(ResolveError::NotDirectory { .. }) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(at) if at.is_empty() || self.seen(at.as_bstr())?.is_some() => Ok(Some(at)),
            Ok(_) => Ok(None),
        }
    }

    fn search(&self, dir: &BStr, parts: &[Part], named: &mut Vec<BString>) -> Result<(), LocalError> {
        let Some((part, rest)) = parts.split_first() else { return Ok(()) };
        let names = match part {
            Part::Name(name) => vec![BString::from(name.as_str())],
            Part::Wild(_) => {
                let opened = inside::open_dir(self.directory.root(), dir);
                let names = opened.and_then(|fd| inside::list(fd.as_fd())).map_err(read_error(dir))?;
                names.into_iter().filter(|name| part.matches(name)).collect()
            }
        };
        for name in names {
            let path = path::join(dir, &name);
            let Some(seen) = self.seen(path.as_bstr())? else { continue };
            if rest.is_empty() {
                if seen.wanted {
                    named.push(path);
                }
            } else if seen.entry.kind.is_dir() {
                self.search(path.as_bstr(), rest, named)?;
            }
        }
        Ok(())
    }

    /// What is at `path`, whose parents are directories that were seen. The root is nothing to see.
    fn seen(&self, path: &BStr) -> Result<Option<Seen>, LocalError> {
        let Some(dir) = path::parent(path) else { return Ok(None) };
        if let Some(known) = self.known.borrow().get(path) {
            return Ok(known.seen.clone());
        }
        let ignore = &self.directory.ignore;
        let (ignored, matched) = ignore.matches(path, &self.matched(dir));
        let hidden = ignored && !ignore.may_except_below(path, &matched);
        let seen = if hidden {
            None
        } else {
            let fd =
                inside::open(self.directory.root(), dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
            match fd.and_then(|fd| look(fd.as_fd(), dir, path::name(path))) {
                // Only what is in a directory can be taken back.
                Ok(Some(seen)) if ignored && !seen.entry.kind.is_dir() => None,
                Ok(seen) => seen.map(|seen| Seen { wanted: !ignored, ..seen }),
                // A name that is too long for this file system is not there.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => None,
                Err(source) => return Err(read_error(path)(source)),
            }
        };
        self.known.borrow_mut().insert(path.to_owned(), Known { seen: seen.clone(), matched, named: false });
        Ok(seen)
    }

    fn matched(&self, path: &BStr) -> Matched {
        self.known.borrow().get(path).map(|known| known.matched.clone()).unwrap_or_default()
    }
}

impl View for Host<'_> {
    fn look(&self, path: &BStr) -> Option<Look> {
        match self.seen(path) {
            Ok(seen) => seen.map(|seen| Look::of(&seen.entry)),
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                None
            }
        }
    }
}

/// What is called `name` in the directory `dir`, whose path is `at`; sockets are nothing. The content and attributes of
/// files and the attributes of directories are left open.
pub(super) fn look(dir: BorrowedFd<'_>, at: &[u8], name: &[u8]) -> Result<Option<Seen>, Errno> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(None),
        stat => stat?,
    };
    let stamp = Stamp::of(&stat);
    let device = || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            Kind::File { size: stamp.size, offset: 0, content: image::ContentDigest([0; 32]) }
        }
        FileType::Directory => Kind::Directory { opaque: false, implied: false },
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
            Kind::Symlink { target: target.into_bytes().into() }
        }
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => {
            let (major, minor) = device();
            Kind::CharDevice { major, minor }
        }
        FileType::BlockDevice => {
            let (major, minor) = device();
            Kind::BlockDevice { major, minor }
        }
        _ => return Ok(None),
    };
    let mut entry = Entry {
        path: path::join(at, name),
        kind,
        mode: 0o777,
        uid: 0,
        gid: 0,
        mtime: stat.st_mtime,
        xattrs: std::collections::BTreeMap::new(),
    };
    if !matches!(entry.kind, Kind::Symlink { .. }) {
        entry.mode = (stat.st_mode & 0o7777) as u16;
    }
    Ok(Some(Seen { entry, stamp, wanted: true }))
}

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        let ns = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            links: stat.st_nlink,
            size: stat.st_size as u64,
            mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }
}

//! Local sources: a directory of this host, read in place.
//!
//! Only what steps name is looked at, minus what the ignore patterns hide. Names are listed and looked up by directory
//! descriptors and no link is followed by the kernel, so nothing outside the directory is ever read; pipes, sockets
//! and devices are never opened. A file's bytes are read again only if its inode says that they may have changed: what
//! counts in the end is always their hash.

mod find;
mod hash;
mod missing;
mod walk;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bstr::{BString, ByteSlice};
use image::layer::{Entry, Kind};
use image::tree::pattern::PatternError;
use image::tree::resolve::ResolveError;
use image::tree::{Patterns, Pick, Tree, path};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use solver::Cancel;
use store::stat::StatCache;
use store::timing::{self, Of};

pub use missing::Missing;

/// A directory whose files are a source.
#[derive(Debug)]
pub struct Directory {
    /// No other directory of this process has it.
    id: u64,
    root: OwnedFd,
    ignore: Patterns,
    /// Whose time it takes.
    of: Of,
}

/// What was found in it.
#[derive(Debug)]
pub struct Walked {
    /// The files that the picks name, with what leads to them. All belong to root.
    pub tree: Tree,
    /// What to know next time; `None` if that is what was known before.
    pub cache: Option<StatCache>,
    /// Sockets, which are left out.
    pub skipped: Vec<BString>,
    /// How many files were read, as they were not known.
    pub read_files: usize,
    /// Their size in bytes.
    pub read_bytes: u64,
}

/// A directory that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The directory itself.
    #[error("could not open directory {path}: {source}")]
    Open {
        /// As given.
        path: String,
        /// Why.
        source: Errno,
    },
    /// Something in it.
    #[error("could not read {} of the context: {source}", path::show(.path))]
    Read {
        /// Below the directory.
        path: BString,
        /// Why.
        source: Errno,
    },
    /// It did not hold still.
    #[error("could not read {} of the context: it changes all the time", path::show(.0))]
    Changing(BString),
    /// Deeper than any path that can be opened.
    #[error("could not read {}... of the context: too many directories in each other", path::show(&.0[..40.min(.0.len())]))]
    TooDeep(BString),
    /// A pattern that is none.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A link that leads nowhere.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Nobody wants it any more.
    #[error("cancelled")]
    Cancelled,
}

/// Something in the directory.
#[derive(Clone, Debug)]
struct Seen {
    /// Of a regular file size and mtime are known, its content is not.
    entry: Entry,
    stamp: Stamp,
    /// It is meant itself, and not only because something below it may be.
    wanted: bool,
}

/// Which inode it is and when it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    dev: u64,
    ino: u64,
    links: u64,
    size: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

impl Directory {
    /// Opens `path`, of which the patterns `ignore` hide files.
    pub fn open<S: AsRef<str>>(path: &Path, ignore: &[S]) -> Result<Self, LocalError> {
        let ignore = Patterns::new(ignore)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|source| LocalError::Open { path: path.display().to_string(), source })?;
        static OPENED: AtomicU64 = AtomicU64::new(0);
        Ok(Self { id: OPENED.fetch_add(1, Ordering::Relaxed), root, ignore, of: Of::Build })
    }

    /// Says which step walks it, for the build's timings.
    pub fn timed_as(self, of: Of) -> Self {
        Self { of, ..self }
    }

    /// Finds what `picks` name. Of the files that `known` has with the same inode, size and times, no byte is read.
    pub fn walk(&self, picks: &[Pick<'_>], known: &StatCache, cancel: &Cancel) -> Result<Walked, LocalError> {
        let phase = timing::phase("walk", self.of);
        let found = find::find(self, picks)?;
        let whole = found.roots.iter().any(|root| root.seen.is_none() && root.is_whole());
        let (mut seen, skipped) = walk::walk(self, found.roots, cancel)?;
        add(&mut seen, found.seen);
        let mut seen = without_empty(seen);
        phase.end();
        let _phase = timing::phase("hash", self.of);
        let read = hash::hash(self.root.as_fd(), &mut seen, known, cancel)?;
        let (read_files, read_bytes) = (read.files, read.bytes);
        let cache = read.cache(known, whole);
        let entries = linked(seen);
        Ok(Walked { tree: Tree::of_host(self.id, entries), cache, skipped, read_files, read_bytes })
    }

    /// What [`image::tree::Location::Host`] calls it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Opens the regular file `path` for reading, whatever links are made on the way meanwhile.
    pub fn open_file(&self, path: &[u8]) -> Result<File, Errno> {
        // A pipe that took its place must not block.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        crate::inside::open(self.root.as_fd(), path, flags, Mode::empty()).map(File::from)
    }

    /// Says why `source` of a COPY is not there.
    pub fn missing(&self, source: &str) -> Missing {
        missing::explain(self, source)
    }

    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// Adds to what was walked, in order, what was seen on the way. What is both on the way and wanted, is wanted.
fn add(walked: &mut Vec<Seen>, on_the_way: Vec<Seen>) {
    let mut others = on_the_way;
    others.retain(|other| {
        let found = walked.binary_search_by(|seen| path::compare(&seen.entry.path, &other.entry.path));
        if let Ok(at) = found {
            walked[at].wanted |= other.wanted;
        }
        found.is_err()
    });
    if !others.is_empty() {
        walked.append(&mut others);
        walked.sort_by(|a, b| path::compare(&a.entry.path, &b.entry.path));
    }
}

/// Leaves out the directories that were only looked through and have nothing in them.
fn without_empty(mut seen: Vec<Seen>) -> Vec<Seen> {
    let mut kept = vec![true; seen.len()];
    let mut next: Option<&Seen> = None;
    for (seen, kept) in seen.iter().zip(&mut kept).rev() {
        let used = next.is_some_and(|next| path::is_below(&next.entry.path, &seen.entry.path));
        *kept = seen.wanted || used;
        next = if *kept { Some(seen) } else { next };
    }
    let mut kept = kept.into_iter();
    seen.retain(|_| kept.next().unwrap_or(true));
    seen
}

/// The entries, with further names of one file as hard links to the first.
fn linked(seen: Vec<Seen>) -> Vec<Entry> {
    let mut first: HashMap<(u64, u64), BString> = HashMap::new();
    seen.into_iter()
        .map(|Seen { mut entry, stamp, .. }| {
            if stamp.links > 1 && matches!(entry.kind, Kind::File { .. }) {
                match first.get(&(stamp.dev, stamp.ino)) {
                    Some(target) => entry.kind = Kind::Hardlink { target: target.clone() },
                    None => drop(first.insert((stamp.dev, stamp.ino), entry.path.clone())),
                }
            }
            entry
        })
        .collect()
}

/// Of an open file. What has no place in an image is left out.
fn xattrs(fd: BorrowedFd<'_>) -> Result<std::collections::BTreeMap<BString, BString>, Errno> {
    let all = crate::inside::xattrs_of_open(fd)?;
    Ok(all.into_iter().filter(|(name, _)| !image::layer::whiteout::is_unwanted_xattr(name)).collect())
}

fn read_error(path: &[u8]) -> impl FnOnce(Errno) -> LocalError + '_ {
    move |source| LocalError::Read { path: path.as_bstr().to_owned(), source }
}

#[cfg(test)]
mod tests;

//! What a step began with, as far as it takes to tell what it changed.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use bstr::{BStr, BString};
use image::layer::{Entry, Kind};
use image::tree::{Tree, path};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::exec::plan::Lower;
use crate::inside;

/// The layers below an upper directory.
pub trait Below: fmt::Debug {
    /// What is at `path`. A file has its bytes and attributes under each of its names.
    fn entry(&self, path: &BStr) -> Option<Entry>;

    /// The names in the directory `path`.
    fn names(&self, path: &BStr) -> Vec<BString>;

    /// The nanoseconds of the time at which what is at `path` was modified, which layers do not have.
    fn nanoseconds(&self, path: &BStr) -> Option<u32>;
}

/// Layers, and how they were mounted.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// All of them.
    pub(crate) tree: Tree,
    /// Bottom first.
    pub(crate) lowers: Vec<Lower>,
}

impl Below for Mounted {
    fn entry(&self, path: &BStr) -> Option<Entry> {
        let node = self.tree.get(path)?;
        Some(match node.inode() {
            Some(inode) => {
                let kind = Kind::File { size: inode.size, offset: 0, content: inode.content };
                Entry { path: path.into(), kind, xattrs: inode.entry.xattrs.clone(), ..*inode.entry }
            }
            None => node.entry.clone(),
        })
    }

    fn names(&self, path: &BStr) -> Vec<BString> {
        let children = self.tree.dir(path).map(|dir| dir.children()).unwrap_or_default();
        children.into_iter().map(|(node, _)| node.name().to_owned()).collect()
    }

    fn nanoseconds(&self, path: &BStr) -> Option<u32> {
        self.lowers.iter().rev().find_map(|lower| match lower {
            Lower::Directory(dir) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let dir = rustix::fs::open(dir, flags, Mode::empty()).ok()?;
                nanoseconds(dir.as_fd(), path)
            }
            Lower::Mount(mount) => nanoseconds(mount.as_fd(), path),
        })
    }
}

/// `None` if nothing is there.
fn nanoseconds(root: BorrowedFd<'_>, at: &BStr) -> Option<u32> {
    let parent = inside::open_dir(root, path::parent(at).unwrap_or_default()).ok()?;
    let name: &[u8] = path::name(at);
    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let deleted = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0;
    (!deleted).then(|| u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

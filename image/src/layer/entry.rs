//! What stands in a layer: one [`Entry`] a path.

use std::collections::BTreeMap;

use bstr::BString;
use serde::{Deserialize, Serialize};

use crate::digest::ContentDigest;

/// One path of a layer and what it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to the root, components joined by `/`: no leading or trailing slash, no empty, `.` or `..` component,
    /// no NUL. The root itself is the empty path.
    pub path: BString,
    /// What kind of file it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: at most `0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since the epoch.
    pub mtime: i64,
    /// Extended attributes by full name (`security.capability`, `user.x`), never overlayfs' own.
    pub xattrs: BTreeMap<BString, BString>,
}

/// The mode of every symbolic link: Linux has no other.
pub const SYMLINK_MODE: u16 = 0o777;

impl Entry {
    /// A directory that nobody described: only paths below it are named.
    pub(crate) fn implied(path: &[u8]) -> Self {
        Self {
            path: path.into(),
            kind: Kind::Directory { opaque: false, implied: true },
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: BTreeMap::new(),
        }
    }
}

/// The kinds of file in a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Where its bytes start in the layer's tar.
        offset: u64,
        /// Hash of its bytes.
        content: ContentDigest,
    },
    /// A directory.
    Directory {
        /// What lower layers have in it is hidden.
        opaque: bool,
        /// The tar names only paths below it; the attributes are made up and yield to those of a lower layer.
        implied: bool,
    },
    /// A symbolic link.
    Symlink {
        /// As written, not resolved.
        target: BString,
    },
    /// Another name of a file in the same layer or a lower one.
    Hardlink {
        /// Path in the form of [`Entry::path`].
        target: BString,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// What lower layers have at this path is gone.
    Whiteout,
}

impl Kind {
    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self, Self::Directory { .. })
    }
}

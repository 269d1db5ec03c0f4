//! Directories kept between builds: cache mounts of RUN, clones of git sources, sandboxes of steps that failed.
//!
//! Their content is whatever their users put there; nothing here reads it. A directory is named by the hash of a name
//! that may be hostile.

use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::StoreError;
use crate::lease::{Item, Lease};
use crate::root::{Root, now};

/// What a directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DirectoryKind {
    /// `RUN --mount=type=cache`.
    CacheMount,
    /// A clone of a git repository.
    Git,
    /// What is left of a step that failed.
    Sandbox,
}

impl DirectoryKind {
    const ALL: [Self; 3] = [Self::CacheMount, Self::Git, Self::Sandbox];

    fn name(self) -> &'static str {
        match self {
            Self::CacheMount => "cache-mount",
            Self::Git => "git",
            Self::Sandbox => "sandbox",
        }
    }

    fn code(self) -> i64 {
        match self {
            Self::CacheMount => 0,
            Self::Git => 1,
            Self::Sandbox => 2,
        }
    }
}

/// Names a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirectoryId {
    /// What it is for.
    pub kind: DirectoryKind,
    /// Hash of its name.
    pub name: [u8; 32],
}

impl DirectoryId {
    /// The ID of the directory that is called `name`.
    pub fn new(kind: DirectoryKind, name: &[u8]) -> Self {
        Self { kind, name: *blake3::hash(name).as_bytes() }
    }

    /// The hash, in hex.
    pub fn hex(&self) -> String {
        hex::encode(self.name)
    }
}

impl fmt::Display for DirectoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.name(), self.hex())
    }
}

/// Text that is not a [`DirectoryId`].
#[derive(Debug, thiserror::Error)]
#[error("invalid directory ID")]
pub struct DirectoryIdError;

impl FromStr for DirectoryId {
    type Err = DirectoryIdError;

    fn from_str(text: &str) -> Result<Self, DirectoryIdError> {
        let (kind, hash) = text.split_once('/').ok_or(DirectoryIdError)?;
        let kind = DirectoryKind::ALL.into_iter().find(|k| k.name() == kind).ok_or(DirectoryIdError)?;
        let mut name = [0; 32];
        hex::decode_to_slice(hash, &mut name).map_err(|_| DirectoryIdError)?;
        Ok(Self { kind, name })
    }
}

/// The kept directories of a root.
#[derive(Clone, Debug)]
pub struct Directories {
    root: Root,
}

/// A kept directory, held until it is dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    id: DirectoryId,
    _lease: Lease,
}

impl Directories {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// The directory called `name`, made if it is not there. `description` is for `du`.
    pub fn open(&self, kind: DirectoryKind, name: &[u8], description: &str) -> Result<Directory, StoreError> {
        let directory = self.held(DirectoryId::new(kind, name))?;
        let path = &directory.path;
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::io("make", path))?;
        let now = now();
        self.root.inner.db.write(|tx| {
            tx.prepare_cached(
                "INSERT INTO directories VALUES (?1, ?2, ?3, ?4, ?4)
                ON CONFLICT DO UPDATE SET last_used = excluded.last_used, description = excluded.description",
            )?
            .execute((kind.code(), &directory.id.name[..], description, now))
        })?;
        Ok(directory)
    }

    /// Where a directory is or would be: held first, so that from here on it is not pruned.
    fn held(&self, id: DirectoryId) -> Result<Directory, StoreError> {
        let lease = self.root.lease([Item::Directory(id)])?;
        Ok(Directory { path: path(self.root.path(), &id), id, _lease: lease })
    }

    /// The directory with this ID, if it is there.
    pub fn reopen(&self, id: DirectoryId) -> Result<Option<Directory>, StoreError> {
        let directory = self.held(id)?;
        let is_listed = self.root.inner.db.write(|tx| {
            let mut query =
                tx.prepare_cached("UPDATE directories SET last_used = ?3 WHERE kind = ?1 AND name = ?2")?;
            query.execute((id.kind.code(), &id.name[..], now()))
        })? > 0;
        Ok((is_listed && directory.path.is_dir()).then_some(directory))
    }

    /// All of one kind, the last made first.
    pub fn of_kind(&self, kind: DirectoryKind) -> Result<Vec<DirectoryRow>, StoreError> {
        let mut rows = self.list()?;
        rows.retain(|row| row.id.kind == kind);
        rows.sort_by_key(|row| (std::cmp::Reverse(row.created), row.id));
        Ok(rows)
    }

    /// Removes a directory, which its owner has done with.
    pub fn remove(&self, directory: Directory) -> Result<(), StoreError> {
        self.root.inner.db.write(|tx| Self::forget(tx, &directory.id))?;
        self.root.remove(&directory.path)
    }

    /// The directory called `name`, if it is there.
    pub fn find(&self, kind: DirectoryKind, name: &[u8]) -> Result<Option<Directory>, StoreError> {
        let directory = self.held(DirectoryId::new(kind, name))?;
        Ok(directory.path.is_dir().then_some(directory))
    }

    pub(crate) fn list(&self) -> Result<Vec<DirectoryRow>, StoreError> {
        Ok(self.root.inner.db.read(|db| {
            let mut query =
                db.prepare_cached("SELECT kind, name, description, created, last_used FROM directories")?;
            let rows = query.query_map([], |row| {
                let code: i64 = row.get(0)?;
                let Some(kind) = DirectoryKind::ALL.into_iter().find(|kind| kind.code() == code) else {
                    return Ok(None);
                };
                Ok(Some(DirectoryRow {
                    id: DirectoryId { kind, name: row.get(1)? },
                    description: row.get(2)?,
                    created: row.get(3)?,
                    last_used: row.get(4)?,
                }))
            })?;
            rows.filter_map(Result::transpose).collect()
        })?)
    }

    pub(crate) fn forget(tx: &rusqlite::Transaction<'_>, id: &DirectoryId) -> rusqlite::Result<()> {
        tx.prepare_cached("DELETE FROM directories WHERE kind = ?1 AND name = ?2")?
            .execute((id.kind.code(), &id.name[..]))?;
        Ok(())
    }
}

/// What is known of a kept directory.
#[derive(Debug)]
pub struct DirectoryRow {
    /// Which it is.
    pub id: DirectoryId,
    /// What it is for, for people.
    pub description: String,
    /// When it was made, seconds since the epoch.
    pub created: i64,
    /// When it was last used.
    pub last_used: i64,
}

impl Directory {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which it is.
    pub fn id(&self) -> DirectoryId {
        self.id
    }
}

pub(crate) fn path(root: &Path, id: &DirectoryId) -> PathBuf {
    root.join("directories").join(id.kind.name()).join(hex::encode(id.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::root;

    #[test]
    fn hostile_names_stay_inside_and_equal_names_are_one_directory() {
        let (_dir, root) = root();
        let inside = root.path().join("directories/cache-mount");
        for name in [&b"../../etc"[..], b"a/b", b"", b"nul\0", b"new\nline"] {
            let directory = root.directories().open(DirectoryKind::CacheMount, name, "x").unwrap();
            assert_eq!(directory.path().parent().unwrap(), inside);
            assert!(directory.path().is_dir());
        }
        std::fs::write(root.directories().open(DirectoryKind::Git, b"a", "x").unwrap().path().join("f"), "")
            .unwrap();
        assert!(root.directories().open(DirectoryKind::Git, b"a", "x").unwrap().path().join("f").exists());
        assert_eq!(root.directories().list().unwrap().len(), 6);
    }

    #[test]
    fn a_directory_is_found_again_until_it_is_removed() {
        let (_dir, root) = root();
        let directories = root.directories();
        let made = directories.open(DirectoryKind::Sandbox, b"a", "one").unwrap();
        std::fs::write(made.path().join("f"), "1").unwrap();
        let (id, path) = (made.id(), made.path().to_owned());
        drop(made);
        assert_eq!(directories.of_kind(DirectoryKind::Sandbox).unwrap()[0].description, "one");
        assert!(directories.of_kind(DirectoryKind::Git).unwrap().is_empty());
        let again = directories.reopen(id).unwrap().unwrap();
        assert_eq!(again.path(), path);
        directories.remove(again).unwrap();
        assert!(!path.exists());
        assert!(directories.reopen(id).unwrap().is_none());
    }

    #[test]
    fn an_id_reads_as_it_is_written() {
        let id = DirectoryId::new(DirectoryKind::Git, b"x");
        assert_eq!(id.to_string().parse::<DirectoryId>().unwrap(), id);
        assert!("git/zz".parse::<DirectoryId>().is_err());
    }
}

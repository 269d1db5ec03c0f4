//! The packages in an image, read from its tree: no mount, no process, no network. `spdx` writes them down.
//!
//! Found are the databases of Debian's, Alpine's and RPM's package managers, installed npm and Python packages, Cargo's
//! lock files, and what Go and `cargo auditable` put into their binaries. What was seen and could not be read is told.

mod binary;
mod database;
mod language;
mod rpm;
mod spdx;
mod sqlite;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bstr::ByteSlice as _;
use image::DiffId;
use image::tree::{Inode, InodeId, Location, Tree};
use store::error::StoreError;
use store::layer::Layers;

pub(crate) use spdx::document;

/// Longer lists of packages are not read.
const MAX_DATABASE: u64 = 256 << 20;
/// Nor longer descriptions of one package.
const MAX_METADATA: u64 = 4 << 20;

/// A package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Package URL.
    pub(crate) url: String,
    /// As the package says it, not checked.
    pub(crate) license: Option<String>,
    /// The file that told of it.
    pub(crate) found_in: String,
}

/// What is known of the system, for package URLs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) id: String,
    pub(crate) version: String,
}

/// Files that could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    /// A layer is not here.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of it could not be read.
    #[error("could not read {path} of the image: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// What was found in an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Sorted.
    pub(crate) packages: Vec<Package>,
    /// Lists of packages that could not be read, and why: the image has packages that are not listed.
    pub(crate) unread: Vec<String>,
}

/// All packages in `tree`.
pub(crate) fn scan(tree: &Tree, layers: &Layers) -> Result<Found, ScanError> {
    let mut files = Files { layers, open: BTreeMap::new() };
    let system = ["etc/os-release", "usr/lib/os-release"]
        .iter()
        .find_map(|path| tree.get(path.as_bytes()).and_then(|node| node.inode()))
        .map(|inode| files.read("os-release", &inode, MAX_METADATA))
        .transpose()?;
    let system = system.map(|text| database::system(&text)).unwrap_or_default();
    let mut packages = Vec::new();
    let mut unread = Vec::new();
    let mut seen: BTreeMap<InodeId, ()> = BTreeMap::new();
    for node in tree.walk(tree.root()) {
        let Some(inode) = node.inode() else { continue };
        if seen.insert(inode.id, ()).is_some() {
            continue;
        }
        let path = node.entry.path.to_str_lossy();
        let mut found = match kind(&path, inode.entry.mode) {
            None => continue,
            Some(Kind::Dpkg) => database::dpkg(&files.read(&path, &inode, MAX_DATABASE)?, &system),
            Some(Kind::Apk) => database::apk(&files.read(&path, &inode, MAX_DATABASE)?, &system),
            Some(Kind::RpmSqlite) => {
                let read = rpm::sqlite(&files.read(&path, &inode, MAX_DATABASE)?, &system);
                read.unwrap_or_else(|| {
                    unread.push(format!("/{path} is damaged or too long"));
                    Vec::new()
                })
            }
            Some(Kind::RpmNdb) => {
                let read = rpm::ndb(&files.read(&path, &inode, MAX_DATABASE)?, &system);
                read.unwrap_or_else(|| {
                    unread.push(format!("/{path} is damaged or too long"));
                    Vec::new()
                })
            }
            Some(Kind::RpmUnread) if inode.size == 0 => continue,
            Some(Kind::RpmUnread) => {
                let why = match path.ends_with("-wal") {
                    true => "holds changes that RPM has not merged into its database",
                    false => "is an RPM database in Berkeley DB's format, which is not read",
                };
                unread.push(format!("/{path} {why}"));
                continue;
            }
            Some(Kind::Npm) => language::npm(&files.read(&path, &inode, MAX_METADATA)?),
            Some(Kind::Python) => language::python(&files.read(&path, &inode, MAX_METADATA)?),
            Some(Kind::CargoLock) => language::cargo_lock(&files.read(&path, &inode, MAX_METADATA)?),
            Some(Kind::Program) => {
                let Some((file, start)) = files.at(&inode.location)? else { continue };
                let read = |buffer: &mut [u8], at: u64| {
                    let left = inode.size.saturating_sub(at);
                    if left < buffer.len() as u64 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    file.read_exact_at(buffer, start + at)
                };
                binary::packages(&read)
            }
        };
        for package in &mut found {
            package.found_in = format!("/{path}");
        }
        packages.append(&mut found);
    }
    packages.sort();
    packages.dedup();
    Ok(Found { packages, unread })
}

enum Kind {
    Dpkg,
    Apk,
    RpmSqlite,
    RpmNdb,
    /// Of RPM's, and it cannot be read.
    RpmUnread,
    Npm,
    Python,
    CargoLock,
    Program,
}

/// What a file is, going by its path and mode.
fn kind(path: &str, mode: u16) -> Option<Kind> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "status" if dir == "var/lib/dpkg" => Some(Kind::Dpkg),
        _ if dir == "var/lib/dpkg/status.d" && !name.ends_with(".md5sums") => Some(Kind::Dpkg),
        "installed" if dir == "lib/apk/db" || dir == "usr/lib/apk/db" => Some(Kind::Apk),
        "rpmdb.sqlite" if is_rpm(dir) => Some(Kind::RpmSqlite),
        "Packages.db" if is_rpm(dir) => Some(Kind::RpmNdb),
        "Packages" | "rpmdb.sqlite-wal" if is_rpm(dir) => Some(Kind::RpmUnread),
        "package.json" if is_npm(dir) => Some(Kind::Npm),
        "METADATA" if dir.ends_with(".dist-info") => Some(Kind::Python),
        "PKG-INFO" if dir.ends_with(".egg-info") => Some(Kind::Python),
        "Cargo.lock" => Some(Kind::CargoLock),
        _ if mode & 0o111 != 0 => Some(Kind::Program),
        _ => None,
    }
}

/// Whether a directory is RPM's own.
fn is_rpm(dir: &str) -> bool {
    matches!(dir, "var/lib/rpm" | "usr/lib/sysimage/rpm" | "usr/share/rpm")
}

/// Whether a directory is an installed package's: `node_modules/NAME` or `node_modules/@SCOPE/NAME`.
fn is_npm(dir: &str) -> bool {
    let mut parts = dir.rsplit('/').skip(1);
    match parts.next() {
        Some("node_modules") => true,
        Some(scope) if scope.starts_with('@') => parts.next() == Some("node_modules"),
        _ => false,
    }
}

/// Reads files where layers have them.
struct Files<'a> {
    layers: &'a Layers,
    open: BTreeMap<DiffId, File>,
}

impl Files<'_> {
    fn at(&mut self, location: &Location) -> Result<Option<(&File, u64)>, ScanError> {
        let Location::Layer { layer, offset, .. } = location else { return Ok(None) };
        if !self.open.contains_key(layer) {
            self.open.insert(*layer, self.layers.open_tar(layer)?);
        }
        Ok(Some((&self.open[layer], *offset)))
    }

    /// The bytes of a file; none of one that is longer than it can sensibly be.
    fn read(&mut self, path: &str, inode: &Inode<'_>, most: u64) -> Result<Vec<u8>, ScanError> {
        if inode.size > most {
            return Ok(Vec::new());
        }
        let Some((file, start)) = self.at(&inode.location)? else { return Ok(Vec::new()) };
        let mut bytes = vec![0; usize::try_from(inode.size).unwrap_or(0)];
        file.read_exact_at(&mut bytes, start)
            .map_err(|source| ScanError::Read { path: path.to_owned(), source })?;
        Ok(bytes)
    }
}

/// A part of a package URL with what has a meaning in it escaped.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_place() {
        assert!(matches!(kind("var/lib/dpkg/status", 0o644), Some(Kind::Dpkg)));
        assert!(matches!(kind("var/lib/dpkg/status.d/base", 0o644), Some(Kind::Dpkg)));
        assert!(kind("var/lib/dpkg/status.d/base.md5sums", 0o644).is_none());
        assert!(matches!(kind("a/node_modules/x/package.json", 0o644), Some(Kind::Npm)));
        assert!(matches!(kind("a/node_modules/@s/x/package.json", 0o644), Some(Kind::Npm)));
        assert!(kind("a/node_modules/x/test/package.json", 0o644).is_none());
        assert!(matches!(kind("usr/bin/x", 0o755), Some(Kind::Program)));
        assert!(kind("etc/passwd", 0o644).is_none());
        assert!(matches!(kind("var/lib/rpm/rpmdb.sqlite", 0o644), Some(Kind::RpmSqlite)));
        assert!(matches!(kind("usr/lib/sysimage/rpm/Packages.db", 0o644), Some(Kind::RpmNdb)));
        assert!(matches!(kind("var/lib/rpm/Packages", 0o644), Some(Kind::RpmUnread)));
        assert!(kind("srv/Packages", 0o644).is_none());
    }

    #[test]
    fn package_urls_are_escaped() {
        assert_eq!(escaped("1:2.3+dfsg~1"), "1%3A2.3%2Bdfsg~1");
    }
}

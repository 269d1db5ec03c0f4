//! Stat caches: content digests of a context's files, so that a file that did not change is not read again.
//!
//! One file a scope (a context directory), rewritten whole by rename: reading 50,000 rows is one read and one hash of
//! 4 MB, which no database does. Rows are sorted by `(dev, ino)`. A file that is torn, of another version or not there
//! is an empty cache.
//!
//! ```text
//! magic "rbstat01" · count u64 · BLAKE3 of the rows · rows of 80 bytes:
//! dev u64 · ino u64 · size u64 · mtime_ns i64 · ctime_ns i64 · hashed_ns i64 · content 32 bytes      (little endian)
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use image::ContentDigest;

use crate::error::StoreError;
use crate::root::Root;

const MAGIC: &[u8; 8] = b"rbstat01";
const HEADER: usize = 8 + 8 + 32;
const ROW: usize = 80;

/// The stat caches of a root.
#[derive(Clone, Debug)]
pub struct Stats {
    root: Root,
}

/// What was known of a file when it was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatRow {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Change time, nanoseconds since the epoch.
    pub ctime_ns: i64,
    /// When its bytes were read, nanoseconds since the epoch. A row whose `ctime_ns` is not clearly before that says
    /// nothing: the file may have been written again within the clock's grain.
    pub hashed_ns: i64,
    /// Hash of its bytes.
    pub content: ContentDigest,
}

/// The rows of one scope.
#[derive(Clone, Debug, Default)]
pub struct StatCache {
    // Sorted by (dev, ino), one row each.
    rows: Vec<StatRow>,
}

impl StatCache {
    /// A cache of `rows`; of several rows of one file the last counts.
    pub fn new(mut rows: Vec<StatRow>) -> Self {
        rows.reverse();
        rows.sort_by_key(|row| (row.dev, row.ino));
        rows.dedup_by_key(|row| (row.dev, row.ino));
        Self { rows }
    }

    /// The row of a file.
    pub fn get(&self, dev: u64, ino: u64) -> Option<&StatRow> {
        let at = self.rows.binary_search_by_key(&(dev, ino), |row| (row.dev, row.ino)).ok()?;
        self.rows.get(at)
    }

    /// All rows, sorted by device and inode.
    pub fn rows(&self) -> &[StatRow] {
        &self.rows
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes.reserve(self.rows.len() * ROW);
        for row in &self.rows {
            for number in [row.dev, row.ino, row.size] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            for number in [row.mtime_ns, row.ctime_ns, row.hashed_ns] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(&row.content.0);
        }
        let hash = blake3::hash(&bytes[HEADER..]);
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&(self.rows.len() as u64).to_le_bytes());
        bytes[16..HEADER].copy_from_slice(hash.as_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(HEADER)?;
        let count = u64::from_le_bytes(header[8..16].try_into().ok()?);
        if &header[..8] != MAGIC
            || count.checked_mul(ROW as u64)? != body.len() as u64
            || header[16..] != blake3::hash(body).as_bytes()[..]
        {
            return None;
        }
        let rows: Vec<StatRow> = body.chunks_exact(ROW).map(row).collect();
        let sorted = rows.is_sorted_by(|a, b| (a.dev, a.ino) < (b.dev, b.ino));
        sorted.then_some(Self { rows })
    }
}

impl Stats {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// The cache of `scope`, any bytes that name the directory whose files it is about; empty if there is none.
    pub fn read(&self, scope: &[u8]) -> Result<StatCache, StoreError> {
        let path = self.path(scope);
        match fs::read(&path) {
            Ok(bytes) => Ok(StatCache::from_bytes(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(StatCache::default()),
            Err(source) => Err(StoreError::io("read", path)(source)),
        }
    }

    /// Replaces the cache of `scope`. Of two processes that do, one wins; the other hashes again.
    pub fn write(&self, scope: &[u8], cache: &StatCache) -> Result<(), StoreError> {
        let path = self.path(scope);
        let mut file = self.root.temp_file()?;
        file.write_all(&cache.to_bytes()).map_err(StoreError::io("write", file.path()))?;
        // ext4 writes a file to disk that replaces another, and the build would wait for it. Without one all are hashed.
        let _not_there = fs::remove_file(&path);
        file.rename(&path).map_err(StoreError::io("create", &path))?;
        Ok(())
    }

    fn path(&self, scope: &[u8]) -> PathBuf {
        self.root.path().join("stat").join(blake3::hash(scope).to_hex().as_str())
    }
}

fn row(bytes: &[u8]) -> StatRow {
    let field =
        |at: usize| -> [u8; 8] { bytes[at..at + 8].try_into().expect("eight bytes of a row of eighty") };
    StatRow {
        dev: u64::from_le_bytes(field(0)),
        ino: u64::from_le_bytes(field(8)),
        size: u64::from_le_bytes(field(16)),
        mtime_ns: i64::from_le_bytes(field(24)),
        ctime_ns: i64::from_le_bytes(field(32)),
        hashed_ns: i64::from_le_bytes(field(40)),
        content: ContentDigest(bytes[48..ROW].try_into().expect("the last 32 of eighty bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::root;

    fn file(ino: u64, text: &str) -> StatRow {
        StatRow {
            dev: 1,
            ino,
            size: 2,
            mtime_ns: -3,
            ctime_ns: 4,
            hashed_ns: i64::MAX,
            content: ContentDigest::of(text.as_bytes()),
        }
    }

    #[test]
    fn rows_come_back_and_the_last_of_a_file_counts() {
        let (_dir, root) = root();
        let cache = StatCache::new(vec![file(9, "nine"), file(2, "old"), file(2, "new")]);
        assert_eq!(root.stats().read(b"/context").unwrap().rows().len(), 0);
        root.stats().write(b"/context", &cache).unwrap();
        let read = root.stats().read(b"/context").unwrap();
        assert_eq!(read.rows(), cache.rows());
        assert_eq!(read.get(1, 2), Some(&file(2, "new")));
        assert_eq!(read.get(2, 2), None);
        assert_eq!(root.stats().read(b"/other").unwrap().rows().len(), 0);
    }

    #[test]
    fn a_torn_cache_is_an_empty_one() {
        let bytes = StatCache::new(vec![file(1, "a"), file(2, "b")]).to_bytes();
        assert_eq!(StatCache::from_bytes(&bytes).unwrap().rows().len(), 2);
        for len in 0..bytes.len() {
            assert!(StatCache::from_bytes(&bytes[..len]).is_none(), "{len}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(StatCache::from_bytes(&flipped).is_none(), "{at}");
        }
    }
}

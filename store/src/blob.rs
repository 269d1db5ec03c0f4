//! Blobs: configs, manifests, compressed layers, each under its digest.
//!
//! What is put is verified while it is written. A document that is read is verified again; a big blob is believed when
//! its size is right and it was written in this [`Epoch`](crate::root::Epoch) or is known to be on disk. One that is
//! not as it should be is dropped: to its reader it is not there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use image::Digest;
use image::digest::Verified;
use rusqlite::OptionalExtension;

use crate::error::StoreError;
use crate::lease::Item;
use crate::root::{Root, USED_GRAIN, now};
use crate::temp::TempFile;

/// Documents longer than this are not read into memory.
pub const MAX_DOCUMENT: u64 = 8 << 20;

/// The blobs of a root.
#[derive(Clone, Debug)]
pub struct Blobs {
    root: Root,
}

impl Blobs {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// Stores `bytes` under their SHA-256 and holds them. Idempotent.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.has(&digest, Some(bytes.len() as u64))? {
            return Ok(digest);
        }
        let mut file = self.root.temp_file()?;
        file.write_all(bytes).map_err(StoreError::io("write", file.path()))?;
        self.publish(file, digest, bytes.len() as u64)?;
        Ok(digest)
    }

    /// Stores what `reader` gives, which must be the `size` bytes that hash to `digest`, and holds it. Idempotent; what
    /// is there already is not read.
    pub fn put(&self, digest: &Digest, size: u64, reader: impl Read) -> Result<(), StoreError> {
        if self.has(digest, Some(size))? {
            return Ok(());
        }
        let mut file = self.root.temp_file()?;
        let mut verified = Verified::new(reader, *digest, size);
        match io::copy(&mut verified, &mut file) {
            Ok(_) => self.publish(file, *digest, size),
            Err(source) => Err(StoreError::Rejected { what: "blob", digest: *digest, source }),
        }
    }

    /// Whether it is here, whole.
    pub fn contains(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.size(digest)?.is_some())
    }

    /// Its length in bytes if it is here, whole.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let epoch = self.root.epoch();
        let row: Option<(u64, i64, Option<Vec<u8>>)> = self.root.inner.db.read(|db| {
            db.prepare_cached("SELECT size, last_used, epoch FROM blobs WHERE digest = ?1")?
                .query_row([digest.bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()
        })?;
        let Some((size, last_used, written)) = row else { return Ok(None) };
        let believed = written.as_deref().is_none_or(|written| written == epoch.bytes());
        if !believed || fs::metadata(self.path(digest)).map(|meta| meta.len()).ok() != Some(size) {
            self.forget(digest, written.as_deref())?;
            return Ok(None);
        }
        if last_used < now() - USED_GRAIN {
            self.root.used(|used| used.blobs.push(digest.bytes().to_vec()));
        }
        Ok(Some(size))
    }

    /// Opens it for reading.
    pub fn open(&self, digest: &Digest) -> Result<File, StoreError> {
        match self.size(digest)? {
            Some(_) => {
                let path = self.path(digest);
                File::open(&path).map_err(StoreError::io("open", path))
            }
            None => Err(missing(digest)),
        }
    }

    /// Reads a document and verifies it.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let Some(size) = self.size(digest)? else { return Err(missing(digest)) };
        let path = self.path(digest);
        if size > MAX_DOCUMENT {
            let source = io::Error::new(io::ErrorKind::InvalidData, "it is too long for a document");
            return Err(StoreError::io("read", path)(source));
        }
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
        match Verified::new(file, *digest, size).read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.forget(digest, None)?;
                self.forget(digest, Some(self.root.epoch().bytes()))?;
                Err(missing(digest))
            }
            Err(source) => Err(StoreError::io("read", path)(source)),
        }
    }

    /// Where it is or would be. That there is a file does not say that the blob is here.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        path(self.root.path(), digest)
    }

    /// Removes it, whoever uses it. `false`: it was not here.
    pub fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let known = self.root.inner.db.write(|tx| {
            Ok(tx.prepare_cached("DELETE FROM blobs WHERE digest = ?1")?.execute([digest.bytes()])? > 0)
        })?;
        self.root.remove(&self.path(digest))?;
        Ok(known)
    }

    fn has(&self, digest: &Digest, size: Option<u64>) -> Result<bool, StoreError> {
        self.root.hold([Item::Blob(*digest)])?;
        let here = self.size(digest)?;
        Ok(here.is_some() && (size.is_none() || here == size))
    }

    /// Gives a file its name, whose `size` bytes hash to `digest`, and holds it.
    pub(crate) fn publish(&self, file: TempFile, digest: Digest, size: u64) -> Result<(), StoreError> {
        let to = self.path(&digest);
        self.root.publish(&[Item::Blob(digest)], || {
            file.rename(&to).map_err(StoreError::io("create", &to))?;
            let (epoch, now) = (self.root.stamp(), now());
            self.root.inner.db.write(|tx| {
                tx.prepare_cached("INSERT OR REPLACE INTO blobs VALUES (?1, ?2, ?3, ?3, ?4)")?.execute((
                    digest.bytes(),
                    size,
                    now,
                    epoch,
                ))
            })?;
            Ok(())
        })
    }

    /// Drops a blob that is not what its row says, unless somebody put it again meanwhile.
    fn forget(&self, digest: &Digest, written: Option<&[u8]>) -> Result<(), StoreError> {
        self.root.inner.db.write(|tx| {
            tx.prepare_cached("DELETE FROM blobs WHERE digest = ?1 AND epoch IS ?2")?
                .execute((digest.bytes(), written))
        })?;
        Ok(())
    }
}

pub(crate) fn path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs").join(digest.algorithm()).join(digest.hex())
}

fn missing(digest: &Digest) -> StoreError {
    StoreError::Missing { what: "blob", name: digest.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::root;

    #[test]
    fn only_the_promised_bytes_become_a_blob() {
        let (_dir, root) = root();
        let blobs = root.blobs();
        let digest = Digest::of(b"hello");
        for (bytes, size) in [(&b"hellO"[..], 5), (b"hell", 5), (b"hello!", 5), (b"hello", 4)] {
            assert!(matches!(blobs.put(&digest, size, bytes), Err(StoreError::Rejected { .. })));
            assert!(!blobs.contains(&digest).unwrap());
        }
        blobs.put(&digest, 5, &b"hello"[..]).unwrap();
        assert_eq!(blobs.read(&digest).unwrap(), b"hello");
        // It is there: the reader is not asked.
        blobs.put(&digest, 5, &b""[..]).unwrap();
        assert!(blobs.remove(&digest).unwrap() && !blobs.remove(&digest).unwrap());
        assert!(blobs.open(&digest).unwrap_err().is_missing());
    }

    #[test]
    fn a_torn_blob_is_not_there_and_can_be_put_again() {
        let (_dir, root) = root();
        let blobs = root.blobs();
        let digest = blobs.put_bytes(b"hello").unwrap();
        fs::write(blobs.path(&digest), b"").unwrap();
        assert!(!blobs.contains(&digest).unwrap());
        blobs.put_bytes(b"hello").unwrap();
        // The right length and other bytes: found when read.
        fs::write(blobs.path(&digest), b"hellO").unwrap();
        assert!(blobs.read(&digest).unwrap_err().is_missing());
        blobs.put_bytes(b"hello").unwrap();
        assert_eq!(blobs.read(&digest).unwrap(), b"hello");
    }

    #[test]
    fn a_file_without_a_row_is_not_a_blob() {
        let (_dir, root) = root();
        let digest = Digest::of(b"hello");
        fs::write(root.blobs().path(&digest), b"hello").unwrap();
        assert!(!root.blobs().contains(&digest).unwrap());
    }
}

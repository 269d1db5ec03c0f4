//! Deflated blocks that are kept: those of the layers that were compressed here, in their blobs.
//!
//! A changed layer is mostly the one that it was before. Where its tar is, so are the blocks that it is cut into
//! ([`compress`](crate::compress)); they are taken from the blob of the earlier layer instead of being deflated again.
//! Each is verified, so that a damaged blob does not live on in the next one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use image::digest::{Verified, VerifyError};
use image::{DiffId, Digest};
use rusqlite::OptionalExtension;

use crate::compress::gzip::{Key, Known};
use crate::compress::{Algorithm, CompressError, Compressed, Compression, compress_with};
use crate::error::StoreError;
use crate::layer::digest_of;
use crate::registry::Stretch;
use crate::root::Root;
use crate::temp::TempFile;

/// Shorter tars are compressed faster than their blocks would be looked up.
const LONG: u64 = 4 << 20;

/// A layer that could not be compressed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error(transparent)]
    Compress(#[from] CompressError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What [`pack`] has made, in order.
pub(crate) enum Packed<'a> {
    /// In memory.
    Bytes(&'a [u8]),
    /// In a file, which keeps what it has.
    Stored(Stretch),
}

/// Compresses the tar of a layer and hands what it makes to `take`. With `keep` the blob stays here as well; that of a long
/// layer does if it can, for its blocks.
///
/// A tar that is not what its diff ID says is dropped, and missing.
pub(crate) fn pack(
    root: &Root,
    diff_id: &DiffId,
    compression: Compression,
    keep: bool,
    take: impl FnMut(Packed<'_>) -> io::Result<()> + Send,
) -> Result<Compressed, PackError> {
    let layers = root.layers();
    let tar = layers.open_tar(diff_id)?;
    let size = tar.metadata().map_err(StoreError::io("read", layers.tar_path(diff_id)))?.len();
    let tar: Box<dyn Read + Send> = match layers.is_in_memory(diff_id) {
        true => Box::new(tar),
        false => Box::new(Verified::new(tar, diff_id.0, size)),
    };
    let blocks = (size >= LONG && compression.algorithm == Algorithm::Gzip).then(|| Blocks::new(root));
    let copy = match keep {
        true => Some(KeptBlob::new(root)?),
        false => blocks.as_ref().and_then(|_| KeptBlob::new(root).ok()),
    };
    let mut sink = Copied { take, copy, keep };
    let compressed = match &blocks {
        Some(blocks) => compress_with(tar, compression, &mut sink, blocks),
        None => compress_with(tar, compression, &mut sink, &()),
    };
    let compressed = match compressed {
        Err(CompressError::Io(error)) if error.get_ref().is_some_and(|inner| inner.is::<VerifyError>()) => {
            // The file has other bytes than it had: a disk that lies, or somebody was in there.
            layers.remove(diff_id)?;
            return Err(StoreError::Missing { what: "layer", name: diff_id.to_string() }.into());
        }
        other => other?,
    };
    let Some(copy) = sink.copy else { return Ok(compressed) };
    let kept = root.blobs().publish(copy.file, compressed.digest, compressed.size);
    let kept = kept.and_then(|()| blocks.map_or(Ok(()), |blocks| blocks.keep(&compressed.digest)));
    if keep {
        kept?;
    }
    Ok(compressed)
}

/// A blob that stays here.
struct KeptBlob {
    file: TempFile,
    // The same, for whoever reads what was written.
    shared: Arc<File>,
    len: u64,
}

impl KeptBlob {
    fn new(root: &Root) -> Result<Self, StoreError> {
        let file = root.temp_file()?;
        let shared = file.file().try_clone().map_err(StoreError::io("open", file.path()))?;
        Ok(Self { file, shared: Arc::new(shared), len: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<Stretch> {
        self.file.write_all(bytes)?;
        let stretch = Stretch { file: Arc::clone(&self.shared), at: self.len, len: bytes.len() as u64 };
        self.len += stretch.len;
        Ok(stretch)
    }
}

/// Hands over what is written, by way of the blob that stays here if there is one. Without `keep` a file that cannot be
/// written is given up.
struct Copied<T> {
    take: T,
    copy: Option<KeptBlob>,
    keep: bool,
}

impl<T: FnMut(Packed<'_>) -> io::Result<()>> Write for Copied<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let packed = match self.copy.as_mut().map(|copy| copy.write(bytes)) {
            Some(Ok(stretch)) => Packed::Stored(stretch),
            Some(Err(error)) if self.keep => return Err(error),
            Some(Err(_)) => {
                self.copy = None;
                Packed::Bytes(bytes)
            }
            None => Packed::Bytes(bytes),
        };
        (self.take)(packed)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The blocks of a root, and those of a blob that is being made.
struct Blocks<'a> {
    root: &'a Root,
    // The blobs that have had a block; `None`: it is not here any more.
    files: Mutex<HashMap<Digest, Option<Arc<File>>>>,
    written: Mutex<Vec<Written>>,
}

struct Written {
    key: Key,
    at: u64,
    size: usize,
    hash: blake3::Hash,
}

impl<'a> Blocks<'a> {
    fn new(root: &'a Root) -> Self {
        Self { root, files: Mutex::default(), written: Mutex::default() }
    }

    /// Remembers the blocks that were written: they are in this blob.
    fn keep(self, blob: &Digest) -> Result<(), StoreError> {
        let written = self.written.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.root.inner.db.write(|tx| {
            let mut insert =
                tx.prepare_cached("INSERT OR REPLACE INTO blocks VALUES (?1, ?2, ?3, ?4, ?5)")?;
            for Written { key, at, size, hash } in &written {
                insert.execute((key, blob.bytes(), at, size, hash.as_bytes()))?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn read(&self, key: &Key, out: &mut Vec<u8>) -> Option<blake3::Hash> {
        let row = self.root.inner.db.read(|db| {
            db.prepare_cached("SELECT blob, at, size, hash FROM blocks WHERE key = ?1")?
                .query_row([key], |row| {
                    let blob = digest_of(row.get_ref(0)?.as_blob()?);
                    Ok((blob, row.get(1)?, row.get(2)?, row.get::<_, [u8; 32]>(3)?))
                })
                .optional()
        });
        let (blob, at, size, hash): (_, u64, usize, _) = row.ok()??;
        let file = self.file(blob?)?;
        let start = out.len();
        out.resize(start + size, 0);
        let read = file.read_exact_at(&mut out[start..], at);
        let sound = read.is_ok() && blake3::hash(&out[start..]) == hash;
        if !sound {
            out.truncate(start);
        }
        sound.then(|| hash.into())
    }

    fn file(&self, blob: Digest) -> Option<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.entry(blob).or_insert_with(|| self.root.blobs().open(&blob).ok().map(Arc::new)).clone()
    }
}

impl Known for Blocks<'_> {
    type Check = blake3::Hash;

    fn find(&self, key: &Key, out: &mut Vec<u8>) -> Option<blake3::Hash> {
        self.read(key, out)
    }

    fn check(&self, deflated: &[u8]) -> blake3::Hash {
        blake3::hash(deflated)
    }

    fn wrote(&self, key: &Key, at: u64, size: usize, check: blake3::Hash) {
        let written = Written { key: *key, at, size, hash: check };
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::compress_layer;
    use crate::root::tests::root;
    use std::fs;
    use std::path::Path;

    const GZIP: Compression = Compression { algorithm: Algorithm::Gzip, level: 1 };

    /// A layer of one file of noise and letters, of which a byte differs.
    fn store(root: &Root, byte: u8) -> DiffId {
        let mut data = vec![0; 12 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut data);
        data.iter_mut().step_by(2).for_each(|byte| *byte = b'a');
        data[6 << 20] = byte;
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, "file", &data[..]).unwrap();
        let tar = tar.into_inner().unwrap();
        root.layers().ingest(&tar[..], &DiffId(Digest::of(&tar))).unwrap().diff_id
    }

    /// What [`pack`] gives, which is what it should be.
    fn packed(root: &Root, diff_id: &DiffId) -> Compressed {
        let mut bytes = Vec::new();
        let take = |packed: Packed<'_>| {
            match packed {
                Packed::Bytes(made) => bytes.extend(made),
                Packed::Stored(mut stretch) => {
                    while stretch.len > 0 {
                        bytes.extend(stretch.read(usize::MAX)?);
                    }
                }
            }
            Ok(())
        };
        let compressed = pack(root, diff_id, GZIP, false, take).unwrap();
        let tar = fs::read(root.layers().tar_path(diff_id)).unwrap();
        let mut plain = Vec::new();
        assert_eq!(compress_layer(&tar[..], GZIP, &mut plain).unwrap(), compressed);
        assert!(bytes == plain);
        compressed
    }

    /// The key of every block and the blob that it is in.
    fn blocks(root: &Root) -> HashMap<Key, Vec<u8>> {
        let rows = root.inner.db.read(|db| {
            db.prepare("SELECT key, blob FROM blocks")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        });
        rows.unwrap()
    }

    fn flip(path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        bytes.iter_mut().skip(100).step_by(100_000).for_each(|byte| *byte ^= 1);
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_changed_layer_takes_the_blocks_of_the_one_before() {
        let (_dir, root) = root();
        let first = packed(&root, &store(&root, 1));
        let before = blocks(&root);
        assert!(before.len() > 6 && root.blobs().contains(&first.digest).unwrap());
        let known = Blocks::new(&root);
        let mut found = Vec::new();
        assert!(before.keys().all(|key| known.find(key, &mut found).is_some()));
        assert!(first.size - found.len() as u64 <= 23, "all of the blob but what is around its blocks");
        let second = packed(&root, &store(&root, 2));
        let after = blocks(&root);
        assert_eq!(after.len(), before.len() + 1, "one block is another one");
        let moved = after.values().filter(|blob| **blob == second.digest.bytes()).count();
        assert_eq!(moved, before.len());
    }

    #[test]
    fn a_block_that_is_damaged_or_gone_is_made_again() {
        let (_dir, root) = root();
        let first = packed(&root, &store(&root, 1));
        flip(&root.blobs().path(&first.digest));
        let second = packed(&root, &store(&root, 2));
        assert!(root.blobs().remove(&second.digest).unwrap());
        packed(&root, &store(&root, 3));
    }

    #[test]
    fn a_tar_that_is_damaged_is_no_layer_any_more() {
        let (_dir, root) = root();
        let diff_id = store(&root, 1);
        flip(&root.layers().tar_path(&diff_id));
        let root = Root::open(root.path()).unwrap();
        let error = pack(&root, &diff_id, GZIP, false, |_| Ok(())).unwrap_err();
        assert!(matches!(error, PackError::Store(error) if error.is_missing()));
        assert!(!root.layers().contains(&diff_id).unwrap() && blocks(&root).is_empty());
    }
}

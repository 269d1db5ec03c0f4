//! A cache mount out of a cache: its packs are fetched, the tar is put together of their chunks and unpacked.

use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use image::{ContentDigest, Descriptor, Digest};
use store::pool;
use store::root::Root;
use worker::error::WorkerError;
use worker::kept::{self, Attributes, MountDirectory};
use worker::seen::Seen;

use super::index::{CachedMount, MAX_PACK, MountIndex, Place, decompress};
use crate::cache::CacheError;
use crate::cache::format::FormatError;

/// Packs that are fetched at the same time.
const AT_ONCE: usize = 6;

/// Makes what belongs into `directory`, complete or not at all. `fetch` gives blobs.
pub(crate) async fn load<F: Future<Output = Result<Bytes, CacheError>>>(
    root: &Root,
    mount: &CachedMount,
    directory: &Path,
    fetch: impl Fn(Descriptor) -> F,
) -> Result<(), CacheError> {
    let index = MountIndex::from_bytes(&verified(fetch(mount.index.clone()).await?, &mount.index)?)?;
    let work = root.work_dir()?;
    let fetches = index.packs.iter().map(|pack| {
        let (descriptor, to) = (pack.descriptor(), work.path().join(Digest::Sha256(pack.digest).hex()));
        let fetched = fetch(descriptor.clone());
        async move {
            let bytes = fetched.await?;
            pool::spawn(move || write_pack(bytes, &descriptor, &to)).await?
        }
    });
    stream::iter(fetches).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    let (root, directory) = (root.clone(), directory.to_owned());
    pool::spawn(move || restore(&root, &index, work.path(), &directory)).await?
}

fn verified(bytes: Bytes, descriptor: &Descriptor) -> Result<Bytes, FormatError> {
    if Digest::of(&bytes) == descriptor.digest {
        return Ok(bytes);
    }
    Err(FormatError::Damaged(format!("blob {} has other bytes", descriptor.digest)))
}

fn write_pack(bytes: Bytes, descriptor: &Descriptor, to: &Path) -> Result<(), CacheError> {
    let plain = decompress(&verified(bytes, descriptor)?, MAX_PACK)?;
    fs::write(to, plain).map_err(|source| WorkerError::Io { path: to.to_owned(), source }.into())
}

/// `packs` has the packs, decompressed, by the digest of their blobs.
fn restore(root: &Root, index: &MountIndex, packs: &Path, directory: &Path) -> Result<(), CacheError> {
    let failed = |source| WorkerError::Io { path: packs.to_owned(), source };
    let places = index.places();
    let open = |pack: &super::index::Pack| File::open(packs.join(Digest::Sha256(pack.digest).hex()));
    let files: Vec<File> = index.packs.iter().map(open).collect::<io::Result<_>>().map_err(failed)?;
    let order = index.chunks.iter().map(|at| places[*at as usize]).collect::<Vec<_>>();
    let tar = Chunks { files, order: order.into_iter(), chunk: Vec::new(), at: 0 };
    let attributes = Attributes { root: index.root, nanoseconds: index.nanoseconds.clone() };
    let directory = MountDirectory::new(directory);
    // What it saw first: files without it would be believed to be as old as they look.
    if let Some(seen) = index.seen.as_deref().and_then(Seen::from_bytes) {
        directory.set_seen(&seen).map_err(failed)?;
        if let Some(written) = index.written {
            directory.set_written(written).map_err(failed)?;
        }
    }
    kept::restore(root, tar, &attributes, &directory)?;
    Ok(())
}

/// The tar: chunk after chunk, each checked.
struct Chunks {
    files: Vec<File>,
    order: std::vec::IntoIter<Place>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            let Some(Place { pack, offset, len, hash }) = self.order.next() else { return Ok(0) };
            self.chunk.resize(len as usize, 0);
            self.files[pack].read_exact_at(&mut self.chunk, offset)?;
            self.at = 0;
            if ContentDigest::of(&self.chunk) != hash {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk has other bytes"));
            }
        }
        let n = buffer.len().min(self.chunk.len() - self.at);
        buffer[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Restores from `blobs`, a directory of compressed packs by digest.
    pub(crate) fn restore_from(
        root: &Root,
        index: &MountIndex,
        blobs: &Path,
        to: &Path,
    ) -> Result<(), CacheError> {
        let work = root.work_dir()?;
        for pack in &index.packs {
            let descriptor = pack.descriptor();
            let bytes = fs::read(blobs.join(descriptor.digest.hex())).expect("the pack was written");
            write_pack(bytes.into(), &descriptor, &work.path().join(descriptor.digest.hex()))?;
        }
        restore(root, index, work.path(), to)
    }

    #[test]
    fn blobs_of_other_bytes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let descriptor = Descriptor::of("", b"right");
        let error = write_pack(Bytes::from_static(b"wrong"), &descriptor, &dir.path().join("x")).unwrap_err();
        assert!(error.to_string().contains("other bytes"), "{error}");
    }
}

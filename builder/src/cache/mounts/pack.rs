//! Chunks into packs: those that a cache has already are only named, the others go into new blobs.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use image::{ContentDigest, Descriptor, Digest};

use super::index::{MAX_PACK, MountIndex, PACK_TYPE, Pack, compress};

/// Of packs shorter than this (bytes before compression) no more than [`SMALL_PACKS`] are kept: each is a request.
const SMALL: u64 = 4 << 20;
const SMALL_PACKS: usize = 16;

/// Gathers the chunks of one mount.
pub(crate) struct Packer<'a> {
    /// What the cache has: packs, and the chunks in them by hash.
    known: Vec<Pack>,
    places: HashMap<ContentDigest, Chunk>,
    order: Vec<Chunk>,
    new: Vec<Pack>,
    open: Vec<u8>,
    open_chunks: Vec<([u8; 32], u32)>,
    dir: &'a Path,
    files: Vec<(Descriptor, PathBuf)>,
}

/// A chunk of a pack that is known or new.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    is_new: bool,
    pack: usize,
    at: usize,
}

impl<'a> Packer<'a> {
    /// `known`: packs of the cache that may be used. New ones are written to `dir`.
    pub(crate) fn new(known: Vec<Pack>, dir: &'a Path) -> Self {
        let mut places = HashMap::new();
        for (pack, Pack { chunks, .. }) in known.iter().enumerate() {
            for (at, (hash, _)) in chunks.iter().enumerate() {
                places.insert(ContentDigest(*hash), Chunk { is_new: false, pack, at });
            }
        }
        let (order, new, open, open_chunks, files) = Default::default();
        Self { known, places, order, new, open, open_chunks, dir, files }
    }

    /// The next chunk.
    pub(crate) fn add(&mut self, chunk: &[u8]) -> io::Result<()> {
        let hash = ContentDigest::of(chunk);
        if let Some(known) = self.places.get(&hash) {
            self.order.push(*known);
            return Ok(());
        }
        if (self.open.len() + chunk.len()) as u64 > MAX_PACK {
            self.close()?;
        }
        let place = Chunk { is_new: true, pack: self.new.len(), at: self.open_chunks.len() };
        self.open.extend_from_slice(chunk);
        self.open_chunks.push((hash.0, chunk.len() as u32));
        self.places.insert(hash, place);
        self.order.push(place);
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        if self.open_chunks.is_empty() {
            return Ok(());
        }
        let bytes = compress(&self.open);
        let digest = Digest::of(&bytes);
        let Digest::Sha256(raw) = digest else { unreachable!("digests of bytes are SHA-256") };
        let path = self.dir.join(digest.hex());
        fs::write(&path, &bytes)?;
        self.files.push((Descriptor::new(PACK_TYPE, digest, bytes.len() as u64), path));
        let chunks = std::mem::take(&mut self.open_chunks);
        self.new.push(Pack { digest: raw, size: bytes.len() as u64, chunks });
        self.open.clear();
        Ok(())
    }

    /// The packs and the order of chunks, and the new blobs.
    pub(crate) fn finish(mut self) -> io::Result<(MountIndex, Vec<(Descriptor, PathBuf)>)> {
        self.close()?;
        let mut used: Vec<bool> = vec![false; self.known.len()];
        for chunk in self.order.iter().filter(|chunk| !chunk.is_new) {
            used[chunk.pack] = true;
        }
        // Where the chunks of each pack begin; packs that nothing is of any more are not listed.
        let mut begin = 0;
        let mut starts = |pack: &Pack, listed: bool| {
            let start = begin;
            begin += if listed { pack.chunks.len() } else { 0 };
            start
        };
        let known: Vec<usize> =
            self.known.iter().zip(&used).map(|(pack, used)| starts(pack, *used)).collect();
        let new: Vec<usize> = self.new.iter().map(|pack| starts(pack, true)).collect();
        let position = |chunk: &Chunk| {
            let starts = if chunk.is_new { &new } else { &known };
            u32::try_from(starts[chunk.pack] + chunk.at).expect("a mount has fewer chunks")
        };
        let chunks = self.order.iter().map(position).collect();
        let kept = self.known.into_iter().zip(used).filter(|(_, used)| *used).map(|(pack, _)| pack);
        let packs = kept.chain(self.new).collect();
        Ok((MountIndex { packs, chunks, ..MountIndex::default() }, self.files))
    }
}

/// The packs among `known` that are worth keeping for what `index` still has of them; `None`: all.
pub(crate) fn worth_keeping(index: &MountIndex, known: &[Pack]) -> Option<Vec<Pack>> {
    let places = index.places();
    let mut live: HashMap<[u8; 32], HashMap<u32, u64>> = HashMap::new();
    for at in &index.chunks {
        let place = &places[*at as usize];
        live.entry(index.packs[place.pack].digest).or_default().insert(*at, u64::from(place.len));
    }
    let is_used = |pack: &&Pack| live.contains_key(&pack.digest);
    let dense = |pack: &&Pack| live[&pack.digest].values().sum::<u64>() * 2 >= pack.raw();
    let used: Vec<&Pack> = known.iter().filter(is_used).collect();
    let mut kept: Vec<&Pack> = used.iter().copied().filter(dense).collect();
    if kept.iter().filter(|pack| pack.raw() < SMALL).count() > SMALL_PACKS {
        kept.retain(|pack| pack.raw() >= SMALL);
    }
    (kept.len() < used.len()).then(|| kept.into_iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(dir: &Path, known: Vec<Pack>, chunks: &[&[u8]]) -> (MountIndex, usize) {
        let mut packer = Packer::new(known, dir);
        for chunk in chunks {
            packer.add(chunk).unwrap();
        }
        let (index, files) = packer.finish().unwrap();
        (index, files.len())
    }

    fn hashes(index: &MountIndex) -> Vec<ContentDigest> {
        let places = index.places();
        index.chunks.iter().map(|at| places[*at as usize].hash).collect()
    }

    #[test]
    fn only_what_the_cache_lacks_is_packed() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = (&b"aaa"[..], &b"bbb"[..], &b"ccc"[..]);
        let order = |chunks: &[&[u8]]| chunks.iter().map(|c| ContentDigest::of(c)).collect::<Vec<_>>();
        let (first, new) = pack(dir.path(), Vec::new(), &[a, b, a]);
        assert_eq!((first.packs.len(), new, hashes(&first)), (1, 1, order(&[a, b, a])));
        let (second, new) = pack(dir.path(), first.packs.clone(), &[a, c, b]);
        assert_eq!((second.packs.len(), new, hashes(&second)), (2, 1, order(&[a, c, b])));
        let (third, new) = pack(dir.path(), second.packs.clone(), &[c, c]);
        assert_eq!(
            (third.packs.len(), new, hashes(&third)),
            (1, 0, order(&[c, c])),
            "the first is of no use"
        );
        let (same, new) = pack(dir.path(), second.packs.clone(), &[a, c, b]);
        assert_eq!((same.packs, new), (second.packs, 0));
    }

    #[test]
    fn packs_of_little_use_and_many_small_ones_are_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = pack(dir.path(), Vec::new(), &[b"aaa", b"bbb", b"ccc"]);
        let (one, _) = pack(dir.path(), first.packs.clone(), &[b"aaa"]);
        assert_eq!(worth_keeping(&one, &first.packs), Some(Vec::new()));
        let (two, _) = pack(dir.path(), first.packs.clone(), &[b"aaa", b"bbb"]);
        assert_eq!(worth_keeping(&two, &first.packs), None);
        let mut index = first;
        let texts: Vec<String> = (0..20).map(|n| format!("text {n}")).collect();
        let mut chunks: Vec<&[u8]> = vec![b"aaa", b"bbb", b"ccc"];
        for text in &texts {
            chunks.push(text.as_bytes());
            (index, _) = pack(dir.path(), index.packs, &chunks);
        }
        assert_eq!(index.packs.len(), 21);
        assert_eq!(worth_keeping(&index, &index.packs), Some(Vec::new()));
    }
}

//! Which chunks make up a mount, and where they are. Pure; what is read comes from strangers and is checked whole.

use std::io::Read as _;

use image::{ContentDigest, Descriptor, Digest};
use serde::{Deserialize, Serialize};
use store::compress::{Algorithm, Compression, Decoder, compress_layer};

use super::chunk::MAX_CHUNK;
use crate::cache::format::FormatError;

/// The media type of a mount's index.
pub(crate) const INDEX_TYPE: &str = "application/vnd.rbuild.mount.v1.index+zstd";
/// The media type of a pack.
pub(crate) const PACK_TYPE: &str = "application/vnd.rbuild.mount.v1.pack+zstd";
/// The longest pack, bytes before it is compressed.
pub(crate) const MAX_PACK: u64 = 16 << 20;
/// The longest index or pack that is fetched, bytes.
pub(crate) const MAX_BLOB: u64 = 64 << 20;
/// The longest index, bytes before it is compressed.
const MAX_INDEX: u64 = 256 << 20;
/// The most packs of a mount.
const MAX_PACKS: usize = 100_000;

/// A mount in a cache, as the cache's own index lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CachedMount {
    /// Its name in the store, hashed, in hex.
    pub(crate) name: String,
    /// Its `id`, for people.
    pub(crate) id: String,
    /// When it was last exported, seconds since the epoch.
    pub(crate) used: i64,
    /// Length of its tar, bytes.
    pub(crate) size: u64,
    /// Its [`MountIndex`].
    pub(crate) index: Descriptor,
    /// Its packs.
    pub(crate) packs: Vec<Descriptor>,
}

/// Which chunks make up a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountIndex {
    /// Mode, user and group of the directory itself.
    pub(crate) root: (u16, u32, u32),
    /// Nanoseconds of the modification times of the tar's entries, in order.
    pub(crate) nanoseconds: Vec<u32>,
    /// Where chunks are.
    pub(crate) packs: Vec<Pack>,
    /// The chunks of the tar in their order: their position in all packs.
    pub(crate) chunks: Vec<u32>,
    /// What the mount has seen: `worker::seen::Seen`.
    pub(crate) seen: Option<Vec<u8>>,
    /// When it was last written, seconds since the epoch.
    pub(crate) written: Option<i64>,
}

/// A blob of chunks, one behind the other, compressed together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pack {
    /// Digest of the blob.
    pub(crate) digest: [u8; 32],
    /// Its length.
    pub(crate) size: u64,
    /// BLAKE3 hash and length of each chunk.
    pub(crate) chunks: Vec<([u8; 32], u32)>,
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pack: usize,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) hash: ContentDigest,
}

impl Pack {
    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor::new(PACK_TYPE, Digest::Sha256(self.digest), self.size)
    }

    /// Length of all its chunks, bytes.
    pub(crate) fn raw(&self) -> u64 {
        self.chunks.iter().map(|(_, len)| u64::from(*len)).sum()
    }
}

impl MountIndex {
    /// The blob.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let plain = postcard::to_stdvec(self).expect("plain data");
        compress(&plain)
    }

    /// Reads a blob.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let plain = decompress(bytes, MAX_INDEX)?;
        let index: Self =
            postcard::from_bytes(&plain).map_err(|error| FormatError::Damaged(error.to_string()))?;
        let longest = |pack: &Pack| pack.chunks.iter().all(|(_, len)| *len as usize <= MAX_CHUNK);
        let sound = index.packs.len() <= MAX_PACKS
            && index
                .packs
                .iter()
                .all(|pack| pack.size <= MAX_BLOB && pack.raw() <= MAX_PACK && longest(pack));
        let count = index.packs.iter().map(|pack| pack.chunks.len()).sum::<usize>();
        if !sound || index.chunks.iter().any(|at| *at as usize >= count) {
            return Err(FormatError::Damaged("a mount's chunks are not in its packs".to_owned()));
        }
        Ok(index)
    }

    /// Where the chunks of all packs are, by position.
    pub(crate) fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        for (pack, Pack { chunks, .. }) in self.packs.iter().enumerate() {
            let mut offset = 0;
            for (hash, len) in chunks {
                places.push(Place { pack, offset, len: *len, hash: ContentDigest(*hash) });
                offset += u64::from(*len);
            }
        }
        places
    }

    /// Length of the tar, bytes.
    pub(crate) fn size(&self) -> u64 {
        let places = self.places();
        self.chunks.iter().map(|at| u64::from(places[*at as usize].len)).sum()
    }
}

/// Compressed for a cache.
pub(crate) fn compress(bytes: &[u8]) -> Vec<u8> {
    let level = Compression::new(Algorithm::Zstd, Some(3)).expect("zstd has a level 3");
    let mut compressed = Vec::with_capacity(bytes.len() / 3);
    compress_layer(bytes, level, &mut compressed).expect("memory takes all that is written");
    compressed
}

/// What was compressed, if it is no longer than `limit`.
pub(crate) fn decompress(bytes: &[u8], limit: u64) -> Result<Vec<u8>, FormatError> {
    let damaged = |error: &dyn std::fmt::Display| FormatError::Damaged(error.to_string());
    let decoder = Decoder::detect(bytes).map_err(|error| damaged(&error))?;
    if decoder.algorithm() != Algorithm::Zstd {
        return Err(damaged(&"it is not compressed with zstd"));
    }
    let mut plain = Vec::new();
    decoder.take(limit + 1).read_to_end(&mut plain).map_err(|error| damaged(&error))?;
    if plain.len() as u64 > limit { Err(FormatError::TooBig) } else { Ok(plain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> MountIndex {
        let chunk = |n: u8| ([n; 32], 10 + u32::from(n));
        MountIndex {
            root: (0o755, 1, 2),
            nanoseconds: vec![5, 6],
            packs: vec![
                Pack { digest: [1; 32], size: 9, chunks: vec![chunk(1), chunk(2)] },
                Pack { digest: [2; 32], size: 9, chunks: vec![chunk(3)] },
            ],
            chunks: vec![2, 0, 2],
            seen: Some(vec![1]),
            written: Some(7),
        }
    }

    #[test]
    fn an_index_comes_back_and_says_where_chunks_are() {
        let index = sample();
        assert_eq!(MountIndex::from_bytes(&index.to_bytes()).unwrap(), index);
        let places = index.places();
        assert_eq!((places[1].pack, places[1].offset, places[2].pack), (0, 11, 1));
        assert_eq!(index.size(), 13 + 11 + 13);
        assert_eq!(places[2].hash, ContentDigest([3; 32]));
    }

    #[test]
    fn hostile_indexes_are_errors() {
        let spoil = |change: fn(&mut MountIndex)| {
            let mut index = sample();
            change(&mut index);
            MountIndex::from_bytes(&index.to_bytes()).unwrap_err();
        };
        spoil(|index| index.chunks.push(3));
        spoil(|index| index.packs[0].size = MAX_BLOB + 1);
        spoil(|index| index.packs[0].chunks[0].1 = u32::MAX);
        spoil(|index| index.packs[0].chunks = vec![([0; 32], MAX_CHUNK as u32); 100]);
        for bytes in [&b""[..], b"plain", &compress(b"\xff\xff\xff")] {
            MountIndex::from_bytes(bytes).unwrap_err();
        }
    }
}

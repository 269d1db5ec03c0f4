//! Compression of layers on their way out, decompression of whatever comes in.
//!
//! [`compress_layer`] is one streaming pass: the tar goes in, compressed bytes come out of all cores in order, hashed
//! on the way. What it writes depends on the tar, the algorithm and the level: never on the number of threads, the CPU
//! or the day. Memory is bounded by a few blocks a core.

mod chain;
mod cut;
pub mod detect;
pub mod estargz;
pub(crate) mod gzip;
pub mod zstd;

use std::io::{self, Read, Write};

use image::Digest;
use image::digest::Hasher;
use image::manifest::media_type;

pub use detect::Decoder;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Read only.
    Bzip2,
    /// Read only.
    Xz,
}

impl Algorithm {
    /// For the database.
    pub(crate) fn code(self) -> i64 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Zstd => 2,
            Self::Bzip2 => 3,
            Self::Xz => 4,
        }
    }

    pub(crate) fn from_code(code: i64) -> Option<Self> {
        [Self::None, Self::Gzip, Self::Zstd, Self::Bzip2, Self::Xz].into_iter().find(|a| a.code() == code)
    }

    /// The OCI media type of a layer in this form; `None`: there is none.
    pub fn oci_media_type(self) -> Option<&'static str> {
        match self {
            Self::None => Some(media_type::OCI_LAYER),
            Self::Gzip => Some(media_type::OCI_LAYER_GZIP),
            Self::Zstd => Some(media_type::OCI_LAYER_ZSTD),
            Self::Bzip2 | Self::Xz => None,
        }
    }

    /// Docker's media type of a layer in this form.
    pub fn docker_media_type(self) -> Option<&'static str> {
        match self {
            Self::None => Some(media_type::DOCKER_LAYER),
            Self::Gzip => Some(media_type::DOCKER_LAYER_GZIP),
            Self::Zstd => Some(media_type::DOCKER_LAYER_ZSTD),
            Self::Bzip2 | Self::Xz => None,
        }
    }

    /// What a layer's media type says it is; `None`: it does not say. The bytes decide, see [`Decoder`].
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            media_type::OCI_LAYER | media_type::DOCKER_LAYER => Some(Self::None),
            _ if media_type.ends_with("+gzip") || media_type.ends_with(".gzip") => Some(Self::Gzip),
            _ if media_type.ends_with("+zstd") || media_type.ends_with(".zstd") => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// How to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compression {
    /// Into what.
    pub algorithm: Algorithm,
    /// How hard: 0 to 9 for gzip, 1 to 22 for zstd, 0 for none.
    pub level: i32,
}

impl Compression {
    /// `algorithm` at `level`, or at the level that is worth its time.
    pub fn new(algorithm: Algorithm, level: Option<i32>) -> Result<Self, CompressError> {
        let (range, default) = match algorithm {
            Algorithm::None => (0..=0, 0),
            Algorithm::Gzip => (0..=9, 1),
            Algorithm::Zstd => (1..=22, 3),
            Algorithm::Bzip2 | Algorithm::Xz => return Err(CompressError::ReadOnly(algorithm)),
        };
        let level = level.unwrap_or(default);
        match algorithm {
            Algorithm::None => Ok(Self { algorithm, level: 0 }),
            _ if range.contains(&level) => Ok(Self { algorithm, level }),
            _ => Err(CompressError::Level { algorithm, level, low: *range.start(), high: *range.end() }),
        }
    }
}

/// What cannot be compressed as asked.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// We only read this.
    #[error("could not compress with {0:?}: it is only read; use gzip, zstd or uncompressed")]
    ReadOnly(Algorithm),
    /// There is no such level.
    #[error("could not compress with {algorithm:?} at level {level}: levels go from {low} to {high}")]
    Level {
        /// Which algorithm.
        algorithm: Algorithm,
        /// The level asked for.
        level: i32,
        /// The lowest.
        low: i32,
        /// The highest.
        high: i32,
    },
    /// The tar could not be read or its compressed bytes not be taken.
    #[error("could not compress layer: {0}")]
    Io(#[from] io::Error),
}

/// What came out of [`compress_layer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// Compresses all of `reader` into `sink`, on the pool.
pub fn compress_layer(
    reader: impl Read + Send,
    compression: Compression,
    sink: impl Write + Send,
) -> Result<Compressed, CompressError> {
    compress_with(reader, compression, sink, &())
}

/// [`compress_layer`], but for the blocks that are known.
pub(crate) fn compress_with(
    mut reader: impl Read + Send,
    compression: Compression,
    sink: impl Write + Send,
    known: &impl gzip::Known,
) -> Result<Compressed, CompressError> {
    let mut sink = Hashed { inner: sink, hasher: Hasher::sha256(), bytes: 0 };
    match compression.algorithm {
        Algorithm::None => {
            io::copy(&mut reader, &mut sink)?;
        }
        Algorithm::Gzip => gzip::compress(&mut reader, compression.level, &mut sink, known)?,
        Algorithm::Zstd => zstd::compress(&mut reader, compression.level, &mut sink)?,
        other => return Err(CompressError::ReadOnly(other)),
    }
    sink.inner.flush()?;
    Ok(Compressed { digest: sink.hasher.finish(), size: sink.bytes })
}

/// Hashes and counts what passes.
#[derive(Debug)]
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads until `buf` is full or there is no more; how much there was.
fn read_full(reader: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match reader.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that compress somewhat, and not the same everywhere.
    pub(super) fn sample(len: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            match state % 3 {
                0 => bytes.extend_from_slice(&state.to_le_bytes()),
                1 => bytes.extend_from_slice(b"the quick brown fox "),
                _ => bytes.resize(bytes.len() + (state % 60) as usize, 0),
            }
        }
        bytes.truncate(len);
        bytes
    }

    fn on_threads<T: Send>(threads: usize, job: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(job)
    }

    #[test]
    fn what_is_compressed_comes_back_whatever_its_length() {
        for algorithm in [Algorithm::None, Algorithm::Gzip, Algorithm::Zstd] {
            for len in [0, 1, 1000, cut::MAX - 1, cut::MAX, cut::MAX + 1, 3 * cut::MAX, 5_000_000] {
                let bytes = sample(len);
                let mut out = Vec::new();
                let compression = Compression::new(algorithm, None).unwrap();
                let compressed = compress_layer(&bytes[..], compression, &mut out).unwrap();
                assert_eq!((compressed.digest, compressed.size), (Digest::of(&out), out.len() as u64));
                let mut decoder = Decoder::detect(&out[..]).unwrap();
                let mut back = Vec::new();
                decoder.read_to_end(&mut back).unwrap();
                assert!(back == bytes, "{algorithm:?} {len}");
                assert_eq!(
                    decoder.algorithm(),
                    if len == 0 && algorithm == Algorithm::None { Algorithm::None } else { algorithm }
                );
            }
        }
    }

    #[test]
    fn bytes_do_not_depend_on_threads_or_on_how_they_arrive() {
        /// Gives its bytes in small pieces.
        struct Dribble<'a>(&'a [u8], usize);
        impl Read for Dribble<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.1 = self.1 % 70_001 + 997;
                let n = self.1.min(buf.len());
                self.0.read(&mut buf[..n])
            }
        }
        let bytes = sample(9_000_000);
        for (algorithm, levels) in [(Algorithm::Gzip, &[1, 2, 6][..]), (Algorithm::Zstd, &[1, 3])] {
            for level in levels {
                let compression = Compression::new(algorithm, Some(*level)).unwrap();
                let digests: Vec<Digest> = [1, 2, 3, 8]
                    .map(|threads| {
                        on_threads(threads, || {
                            compress_layer(Dribble(&bytes, threads), compression, io::sink()).unwrap().digest
                        })
                    })
                    .into();
                assert!(
                    digests.iter().all(|digest| *digest == digests[0]),
                    "{algorithm:?} {level}: {digests:?}"
                );
            }
        }
    }

    #[test]
    fn a_sink_that_fails_ends_it() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let bytes = sample(8_000_000);
        for algorithm in [Algorithm::Gzip, Algorithm::Zstd] {
            let compression = Compression::new(algorithm, None).unwrap();
            let error = compress_layer(&bytes[..], compression, Full(500_000)).unwrap_err();
            assert!(matches!(error, CompressError::Io(e) if e.kind() == io::ErrorKind::StorageFull));
        }
    }

    #[test]
    fn levels_that_do_not_exist_are_errors() {
        assert!(Compression::new(Algorithm::Gzip, Some(10)).is_err());
        assert!(Compression::new(Algorithm::Zstd, Some(0)).is_err());
        assert!(Compression::new(Algorithm::Xz, None).is_err());
        assert_eq!(Compression::new(Algorithm::None, Some(7)).unwrap().level, 0);
    }

    #[test]
    fn media_types_say_how_a_layer_is_compressed() {
        for (text, algorithm) in [
            (media_type::OCI_LAYER, Some(Algorithm::None)),
            (media_type::OCI_LAYER_GZIP, Some(Algorithm::Gzip)),
            (media_type::DOCKER_LAYER_ZSTD, Some(Algorithm::Zstd)),
            (media_type::DOCKER_FOREIGN_LAYER_GZIP, Some(Algorithm::Gzip)),
            ("application/octet-stream", None),
        ] {
            assert_eq!(Algorithm::of_media_type(text), algorithm, "{text}");
        }
    }
}

//! [`Decoder`]: finds out how a stream is compressed and gives what is in it.
//!
//! The first bytes decide, not a media type or a file name. All of the compressed stream is read: after the end of the
//! last gzip member or zstd frame there may be another or nothing, not garbage.

use std::fmt;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read, Take};

use super::{Algorithm, read_full};

/// Base-2 logarithm of the longest zstd window: 128 MiB. Level 22 asks for as much; more is an attack on our memory.
const ZSTD_WINDOW_LOG: u32 = 27;

/// As much memory as an xz stream may ask for, KiB: level 9 asks for 65 MiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// As many bytes as tell.
const MAGIC_LEN: usize = 6;

/// Bytes that are asked of the input at once.
const BUFFER: usize = 256 << 10;

/// A reader of the decompressed stream.
pub struct Decoder<R: Read> {
    format: Format<Input<R>>,
}

/// The first bytes again, then the rest.
type Input<R> = BufReader<Chain<Take<Cursor<[u8; MAGIC_LEN]>>, R>>;

enum Format<R: BufRead> {
    Plain(R),
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Zstd(Box<zstd::Decoder<'static, R>>),
    Bzip2(Box<bzip2::bufread::MultiBzDecoder<R>>),
    Xz(Box<lzma_rust2::XzReader<R>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `reader`.
    pub fn detect(mut reader: R) -> io::Result<Self> {
        let mut start = [0; MAGIC_LEN];
        let len = read_full(&mut reader, &mut start)?;
        let algorithm = of_magic(&start[..len]);
        let whole = Cursor::new(start).take(len as u64).chain(reader);
        Self::new(BufReader::with_capacity(BUFFER, whole), algorithm)
    }

    fn new(reader: Input<R>, algorithm: Algorithm) -> io::Result<Self> {
        let format = match algorithm {
            Algorithm::None => Format::Plain(reader),
            Algorithm::Gzip => Format::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(reader))),
            Algorithm::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(reader)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Format::Zstd(Box::new(decoder))
            }
            Algorithm::Bzip2 => Format::Bzip2(Box::new(bzip2::bufread::MultiBzDecoder::new(reader))),
            Algorithm::Xz => {
                Format::Xz(Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, XZ_MEMORY_KIB)))
            }
        };
        Ok(Self { format })
    }

    /// How the stream is compressed.
    pub fn algorithm(&self) -> Algorithm {
        match &self.format {
            Format::Plain(_) => Algorithm::None,
            Format::Gzip(_) => Algorithm::Gzip,
            Format::Zstd(_) => Algorithm::Zstd,
            Format::Bzip2(_) => Algorithm::Bzip2,
            Format::Xz(_) => Algorithm::Xz,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.format {
            Format::Plain(reader) => reader.read(buf),
            Format::Gzip(reader) => reader.read(buf),
            Format::Zstd(reader) => reader.read(buf),
            Format::Bzip2(reader) => reader.read(buf),
            Format::Xz(reader) => reader.read(buf),
        }
    }
}

impl<R: Read> fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Decoder").field(&self.algorithm()).finish()
    }
}

/// What a stream with these first bytes is. Fewer than six bytes may be too few.
pub fn of_magic(bytes: &[u8]) -> Algorithm {
    match bytes {
        [0x1f, 0x8b, 8, ..] => Algorithm::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Algorithm::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Algorithm::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Algorithm::Xz,
        _ => Algorithm::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn decode(bytes: &[u8]) -> (Algorithm, io::Result<Vec<u8>>) {
        /// One byte at a time.
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let n = buf.len().min(1);
                self.0.read(&mut buf[..n])
            }
        }
        match Decoder::detect(Slow(bytes)) {
            Ok(mut decoder) => {
                let mut out = Vec::new();
                let result = decoder.read_to_end(&mut out);
                (decoder.algorithm(), result.map(|_| out))
            }
            Err(error) => (Algorithm::None, Err(error)),
        }
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_format_is_known_by_its_first_bytes_and_may_have_several_members() {
        let bzip2 = |text: &str| {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
        // `printf hello | xz`
        let xz = hex::decode(concat!(
            "fd377a585a000004e6d6b4460200210116000000742fe5a301000468656c6c6f00000000",
            "b137b9dbe5da1e9b00011d05b82d80af1fb6f37d010000000004595a"
        ))
        .unwrap();
        let two = |a: Vec<u8>, b: Vec<u8>| [a, b].concat();
        for (bytes, algorithm, text) in [
            (two(gzip("hel"), gzip("lo")), Algorithm::Gzip, "hello"),
            (two(zstd("hel"), zstd("lo")), Algorithm::Zstd, "hello"),
            (two(bzip2("hel"), bzip2("lo")), Algorithm::Bzip2, "hello"),
            (xz.clone(), Algorithm::Xz, "hello"),
            (b"hello".to_vec(), Algorithm::None, "hello"),
            (b"h".to_vec(), Algorithm::None, "h"),
            (Vec::new(), Algorithm::None, ""),
        ] {
            let (found, out) = decode(&bytes);
            assert_eq!((found, out.unwrap()), (algorithm, text.as_bytes().to_vec()));
        }
    }

    #[test]
    fn a_stream_that_ends_early_or_goes_on_is_an_error() {
        let whole = gzip("hello hello hello");
        assert!(decode(&whole[..whole.len() - 1]).1.is_err());
        assert!(decode(&[&whole[..], b"garbage"].concat()).1.is_err());
        let whole = zstd::encode_all(&b"hello hello hello"[..], 1).unwrap();
        assert!(decode(&whole[..whole.len() - 1]).1.is_err());
        assert!(decode(&[&whole[..], b"garbage"].concat()).1.is_err());
    }

    #[test]
    fn a_zstd_window_that_eats_the_memory_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(28)).unwrap();
        encoder.write_all(b"hello").unwrap();
        assert!(decode(&encoder.finish().unwrap()).1.is_err());
    }
}

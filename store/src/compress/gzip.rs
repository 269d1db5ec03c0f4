//! gzip on all cores: one member (RFC 1952), made of blocks.
//!
//! The input is cut where its own bytes say ([`cut`](super::cut)). Each block is deflated on its own, by libdeflate, and
//! linked to the next ([`chain`](super::chain)). What becomes of a block depends on nothing but the block and the level:
//! not on who makes it, not on what is around it. So one that was deflated before ([`Known`]) is not deflated again.

use std::io::{self, Read, Write};
use std::ops::Range;

use libdeflater::{CompressionLvl, Compressor};
use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};

use super::{chain, cut, read_full};
use crate::pool;

/// The most bytes in a batch: bounds the memory on machines with many cores.
const MAX_BATCH: usize = 32 << 20;

/// Deflate, no name, no time, no flags, unknown system: the header says nothing of where it was made.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Names what is made of a block. Another compressor, or another version of it that gives other bytes, has another one.
const MAKER: &[u8] = b"libdeflate 1.26";

/// Names a block and what is made of it at a level.
pub(crate) type Key = [u8; 32];

/// Blocks that need not be deflated.
pub(crate) trait Known: Sync {
    /// What a deflated block is known by when it is read again.
    type Check: Send;

    /// Appends what is made of a block to `out`, if it is known.
    fn find(&self, key: &Key, out: &mut Vec<u8>) -> Option<Self::Check>;

    /// The check of a block that was not known.
    fn check(&self, deflated: &[u8]) -> Self::Check;

    /// A block of `size` bytes was written at `at`. Called in order.
    fn wrote(&self, key: &Key, at: u64, size: usize, check: Self::Check);
}

/// Nothing is known.
impl Known for () {
    type Check = ();

    fn find(&self, _: &Key, _: &mut Vec<u8>) -> Option<()> {
        None
    }

    fn check(&self, _: &[u8]) {}

    fn wrote(&self, _: &Key, _: u64, _: usize, (): ()) {}
}

/// Compresses all of `reader` into `sink`. Runs on the pool, of which it uses all threads.
pub(super) fn compress(
    reader: &mut (impl Read + Send),
    level: i32,
    sink: &mut (impl Write + Send),
    known: &impl Known,
) -> io::Result<()> {
    let job = Job { level, known };
    if rayon::current_thread_index().is_some() {
        job.run(reader, sink)
    } else {
        pool::pool().install(|| job.run(reader, sink))
    }
}

/// A stretch of the input and its blocks.
struct Batch<C> {
    input: Vec<u8>,
    blocks: Vec<Block<C>>,
}

impl<C> Default for Batch<C> {
    fn default() -> Self {
        Self { input: Vec::new(), blocks: Vec::new() }
    }
}

/// Where a piece of input is, and what became of it.
struct Block<C> {
    input: Range<usize>,
    key: Key,
    output: Vec<u8>,
    check: Option<C>,
    crc: crc32fast::Hasher,
}

struct Job<'a, K> {
    level: i32,
    known: &'a K,
}

impl<K: Known> Job<'_, K> {
    /// Three batches go around: one is being read, one deflated, one written, at the same time.
    fn run(&self, reader: &mut (impl Read + Send), sink: &mut (impl Write + Send)) -> io::Result<()> {
        let len = (rayon::current_num_threads() * 2 * cut::USUAL).clamp(2 * cut::MAX, MAX_BATCH);
        let mut source = Source { reader, len, ahead: Vec::new(), done: false };
        let mut out = Out::begin(sink, self.known)?;
        let mut deflating = source.read_batch(Batch::default())?;
        let mut writing = Batch::default();
        while !deflating.blocks.is_empty() {
            let (deflated, moved) = rayon::join(
                || self.deflate_all(&mut deflating),
                || {
                    out.write(&mut writing)?;
                    source.read_batch(std::mem::take(&mut writing))
                },
            );
            deflated?;
            writing = std::mem::replace(&mut deflating, moved?);
        }
        out.write(&mut writing)?;
        out.finish()
    }

    fn deflate_all(&self, batch: &mut Batch<K::Check>) -> io::Result<()> {
        let level =
            CompressionLvl::new(self.level).map_err(|_| io::Error::other("there is no such level"))?;
        let input = &batch.input;
        let blocks = batch.blocks.par_iter_mut().with_max_len(1);
        blocks.try_for_each_init(
            || Compressor::new(level),
            |compressor, block| self.deflate(compressor, &input[block.input.clone()], block),
        )
    }

    fn deflate(
        &self,
        compressor: &mut Compressor,
        input: &[u8],
        block: &mut Block<K::Check>,
    ) -> io::Result<()> {
        block.crc.update(input);
        let mut hasher = blake3::Hasher::new();
        hasher.update(MAKER).update(&self.level.to_le_bytes()).update(input);
        block.key = hasher.finalize().into();
        block.check = self.known.find(&block.key, &mut block.output);
        if block.check.is_some() {
            return Ok(());
        }
        block.output.resize(compressor.deflate_compress_bound(input.len()), 0);
        let len = compressor.deflate_compress(input, &mut block.output).map_err(io::Error::other)?;
        block.output.truncate(len);
        chain::link(&mut block.output)?;
        block.check = Some(self.known.check(&block.output));
        Ok(())
    }
}

/// Cuts the input into blocks.
struct Source<'a, R> {
    reader: &'a mut R,
    // Bytes in a batch, at most.
    len: usize,
    // What was read and belongs to the next batch: less than the longest block.
    ahead: Vec<u8>,
    done: bool,
}

impl<R: Read> Source<'_, R> {
    /// The next blocks; none: all were given. An `old` batch lends its memory.
    fn read_batch<C>(&mut self, mut old: Batch<C>) -> io::Result<Batch<C>> {
        let mut input = std::mem::take(&mut old.input);
        input.clear();
        input.append(&mut self.ahead);
        if !self.done {
            let had = input.len();
            input.resize(self.len, 0);
            let read = read_full(self.reader, &mut input[had..])?;
            input.truncate(had + read);
            self.done = input.len() < self.len;
        }
        let mut blocks = Vec::new();
        let mut outputs = old.blocks.into_iter().map(|block| block.output);
        let mut at = 0;
        // Where a block ends, only as much as a block may have tells.
        while at < input.len() && (self.done || input.len() - at >= cut::MAX) {
            let end = at + cut::cut(&input[at..]);
            let mut output = outputs.next().unwrap_or_default();
            output.clear();
            let (key, crc) = (Key::default(), crc32fast::Hasher::new());
            blocks.push(Block { input: at..end, key, output, check: None, crc });
            at = end;
        }
        self.ahead.extend_from_slice(&input[at..]);
        Ok(Batch { input, blocks })
    }
}

/// Where the member goes.
struct Out<'a, W, K> {
    sink: &'a mut W,
    known: &'a K,
    at: u64,
    crc: crc32fast::Hasher,
    // The size in the trailer is modulo 2^32.
    total: u32,
}

impl<'a, W: Write, K: Known> Out<'a, W, K> {
    fn begin(sink: &'a mut W, known: &'a K) -> io::Result<Self> {
        sink.write_all(&HEADER)?;
        Ok(Self { sink, known, at: HEADER.len() as u64, crc: crc32fast::Hasher::new(), total: 0 })
    }

    fn write(&mut self, batch: &mut Batch<K::Check>) -> io::Result<()> {
        for block in &mut batch.blocks {
            self.sink.write_all(&block.output)?;
            if let Some(check) = block.check.take() {
                self.known.wrote(&block.key, self.at, block.output.len(), check);
            }
            self.at += block.output.len() as u64;
            self.crc.combine(&block.crc);
            self.total = self.total.wrapping_add(block.input.len() as u32);
        }
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        self.sink.write_all(&chain::END)?;
        self.sink.write_all(&self.crc.finalize().to_le_bytes())?;
        self.sink.write_all(&self.total.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::tests::sample;
    use image::Digest;
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LEN: usize = 5 * cut::MAX + 12345;

    fn gzip_with(bytes: &[u8], level: i32, known: &impl Known) -> Vec<u8> {
        let mut out = Vec::new();
        compress(&mut &bytes[..], level, &mut out, known).unwrap();
        out
    }

    fn gzip(bytes: &[u8], level: i32) -> Vec<u8> {
        gzip_with(bytes, level, &())
    }

    #[test]
    fn it_is_one_member_with_a_right_trailer() {
        let bytes = sample(LEN);
        let out = gzip(&bytes, 1);
        // Reads one member and no more.
        let mut decoder = flate2::bufread::GzDecoder::new(&out[..]);
        let mut back = Vec::new();
        decoder.read_to_end(&mut back).unwrap();
        assert!(back == bytes);
        assert!(decoder.into_inner().is_empty());
        assert!(out.len() < bytes.len());
    }

    #[test]
    fn every_level_comes_back() {
        let bytes = sample(cut::MAX + cut::MAX / 2);
        for level in 0..=9 {
            let mut back = Vec::new();
            flate2::bufread::GzDecoder::new(&gzip(&bytes, level)[..]).read_to_end(&mut back).unwrap();
            assert!(back == bytes, "{level}");
        }
    }

    #[test]
    fn what_does_not_compress_hardly_grows() {
        let mut bytes = vec![0; 4 * cut::MAX];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        assert!(gzip(&bytes, 1).len() < bytes.len() + bytes.len() / 500);
    }

    /// Blobs that were pushed are named by these bytes. A new compressor may change them: then [`MAKER`] must change as
    /// well, and say so in the changelog, since every layer is compressed and pushed once more.
    #[test]
    fn the_bytes_are_pinned() {
        let out = gzip(&sample(LEN), 1);
        assert_eq!(Digest::of(&out).short(), "ce89b1be30c3");
    }

    /// Remembers all blocks.
    #[derive(Default)]
    struct Memory {
        blocks: Mutex<HashMap<Key, Vec<u8>>>,
        found: AtomicUsize,
    }

    impl Known for Memory {
        type Check = Vec<u8>;

        fn find(&self, key: &Key, out: &mut Vec<u8>) -> Option<Vec<u8>> {
            let blocks = self.blocks.lock().unwrap();
            let block = blocks.get(key)?;
            out.extend(block);
            self.found.fetch_add(1, Ordering::Relaxed);
            Some(block.clone())
        }

        fn check(&self, deflated: &[u8]) -> Vec<u8> {
            deflated.to_owned()
        }

        fn wrote(&self, key: &Key, _: u64, _: usize, check: Vec<u8>) {
            self.blocks.lock().unwrap().insert(*key, check);
        }
    }

    #[test]
    fn a_block_that_was_deflated_before_is_not_again_and_the_bytes_are_the_same() {
        let memory = Memory::default();
        let first = sample(LEN);
        gzip_with(&first, 1, &memory);
        let mut second = first.clone();
        let at = first.len() / 2 / 512 * 512;
        second.splice(at..at, [7; 512]);
        assert!(gzip_with(&second, 1, &memory) == gzip(&second, 1));
        let (found, all) = (memory.found.load(Ordering::Relaxed), memory.blocks.lock().unwrap().len());
        assert!(found > 0 && all <= found + 6, "{found} of {all}");
        // Another level makes other bytes of the same blocks.
        assert!(gzip_with(&first, 2, &memory) == gzip(&first, 2));
    }
}

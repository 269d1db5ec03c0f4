//! gzip on all cores: one member (RFC 1952), made of blocks.
//!
//! The input is cut where its own bytes say ([`cut`](super::cut)). Each block is deflated on its own, by libdeflate, and
//! linked to the next ([`chain`](super::chain)). What becomes of a block depends on nothing but the block and the level:
//! not on who makes it, not on what is around it. So one that was deflated before ([`Known`]) is not deflated again.

use std::io::{self, Read, Write};

use libdeflater::{CompressionLvl, Compressor};
use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};

use super::{chain, cut, read_full};
use crate::pool;

/// The most blocks in a batch: bounds the memory on machines with many cores.
const MAX_BATCH: usize = 32;

/// Deflate, no name, no time, no flags, unknown system: the header says nothing of where it was made.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Names what is made of a block. Another compressor, or another version of it that gives other bytes, has another one.
const MAKER: &[u8] = b"libdeflate 1.26";

/// Names a block and what is made of it at a level.
pub(crate) type Key = [u8; 32];

/// Blocks that need not be deflated.
pub(crate) trait Known: Sync {
    /// Appends what is made of a block to `out`, if it is known.
    fn find(&self, key: &Key, out: &mut Vec<u8>) -> bool;

    /// A block was written at `at`. Called in order.
    fn wrote(&self, key: &Key, at: u64, deflated: &[u8]);
}

/// Nothing is known.
impl Known for () {
    fn find(&self, _: &Key, _: &mut Vec<u8>) -> bool {
        false
    }

    fn wrote(&self, _: &Key, _: u64, _: &[u8]) {}
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

/// A piece of input and what became of it.
#[derive(Default)]
struct Block {
    input: Vec<u8>,
    key: Key,
    output: Vec<u8>,
    crc: crc32fast::Hasher,
}

struct Job<'a, K> {
    level: i32,
    known: &'a K,
}

impl<K: Known> Job<'_, K> {
    /// Three batches go around: one is being read, one deflated, one written, at the same time.
    fn run(&self, reader: &mut (impl Read + Send), sink: &mut (impl Write + Send)) -> io::Result<()> {
        let batch_len = (rayon::current_num_threads() * 2).min(MAX_BATCH);
        let mut source = Source { reader, ahead: Vec::new(), done: false };
        let mut out = Out::begin(sink, self.known)?;
        let mut deflating = source.read_batch(Vec::new(), batch_len)?;
        let mut writing: Vec<Block> = Vec::new();
        while !deflating.is_empty() {
            let (deflated, moved) = rayon::join(
                || self.deflate_all(&mut deflating),
                || {
                    out.write(&writing)?;
                    source.read_batch(std::mem::take(&mut writing), batch_len)
                },
            );
            deflated?;
            writing = std::mem::replace(&mut deflating, moved?);
        }
        out.write(&writing)?;
        out.finish()
    }

    fn deflate_all(&self, blocks: &mut [Block]) -> io::Result<()> {
        let level =
            CompressionLvl::new(self.level).map_err(|_| io::Error::other("there is no such level"))?;
        let blocks = blocks.par_iter_mut().with_max_len(1);
        blocks
            .try_for_each_init(|| Compressor::new(level), |compressor, block| self.deflate(compressor, block))
    }

    fn deflate(&self, compressor: &mut Compressor, block: &mut Block) -> io::Result<()> {
        block.crc = crc32fast::Hasher::new();
        block.crc.update(&block.input);
        let mut hasher = blake3::Hasher::new();
        hasher.update(MAKER).update(&self.level.to_le_bytes()).update(&block.input);
        block.key = hasher.finalize().into();
        block.output.clear();
        if self.known.find(&block.key, &mut block.output) {
            return Ok(());
        }
        block.output.resize(compressor.deflate_compress_bound(block.input.len()), 0);
        let len = compressor.deflate_compress(&block.input, &mut block.output).map_err(io::Error::other)?;
        block.output.truncate(len);
        chain::link(&mut block.output)
    }
}

/// Cuts the input into blocks.
struct Source<'a, R> {
    reader: &'a mut R,
    // What was read and belongs to the next block: as long as a block may be, or all that is left.
    ahead: Vec<u8>,
    done: bool,
}

impl<R: Read> Source<'_, R> {
    /// The next blocks, at most `len`; none: all were given. `old` blocks lend their memory.
    fn read_batch(&mut self, mut old: Vec<Block>, len: usize) -> io::Result<Vec<Block>> {
        let mut batch = Vec::with_capacity(len);
        while batch.len() < len {
            let had = self.ahead.len();
            if !self.done && had < cut::MAX {
                self.ahead.resize(cut::MAX, 0);
                let read = read_full(self.reader, &mut self.ahead[had..])?;
                self.ahead.truncate(had + read);
                self.done = self.ahead.len() < cut::MAX;
            }
            if self.ahead.is_empty() {
                break;
            }
            let mut block = old.pop().unwrap_or_default();
            block.input.clear();
            block.input.extend(self.ahead.drain(..cut::cut(&self.ahead)));
            batch.push(block);
        }
        Ok(batch)
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

    fn write(&mut self, blocks: &[Block]) -> io::Result<()> {
        for block in blocks {
            self.sink.write_all(&block.output)?;
            self.known.wrote(&block.key, self.at, &block.output);
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
        fn find(&self, key: &Key, out: &mut Vec<u8>) -> bool {
            let blocks = self.blocks.lock().unwrap();
            let Some(block) = blocks.get(key) else { return false };
            out.extend(block);
            self.found.fetch_add(1, Ordering::Relaxed);
            true
        }

        fn wrote(&self, key: &Key, _: u64, deflated: &[u8]) {
            self.blocks.lock().unwrap().insert(*key, deflated.to_owned());
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

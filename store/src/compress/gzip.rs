//! gzip on all cores: one member, made of blocks.
//!
//! The input is cut into blocks of [`BLOCK`] bytes. Each is deflated on its own, primed with the last 32 KiB before it,
//! and ends on a byte boundary (a sync flush), so that the results are simply strung together. Every block gets a *new*
//! compressor: one that is reset and primed again lets bytes of the block before leak into its choices, and the blob's
//! digest would depend on which thread did what.

use std::io::{self, Read, Write};

use flate2::{Compress, FlushCompress, Status};
use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};

use super::read_full;
use crate::pool;

/// Bytes of input that are deflated at once. Part of what decides a blob's digest.
pub const BLOCK: usize = 1 << 20;

/// The most blocks in a batch: bounds the memory on machines with many cores.
const MAX_BATCH: usize = 32;

/// How far deflate looks back.
const WINDOW: usize = 32 << 10;

/// Deflate, no name, no time, no flags, unknown system: the header says nothing of where it was made.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Compresses all of `reader` into `sink`. Runs on the pool, of which it uses all threads.
pub fn compress(
    reader: &mut (impl Read + Send),
    level: i32,
    sink: &mut (impl Write + Send),
) -> io::Result<()> {
    if rayon::current_thread_index().is_some() {
        run(reader, level, sink)
    } else {
        pool::pool().install(|| run(reader, level, sink))
    }
}

/// A piece of input and what became of it.
#[derive(Default)]
struct Block {
    // The window before the block, then the block.
    input: Vec<u8>,
    window: usize,
    last: bool,
    output: Vec<u8>,
    crc: crc32fast::Hasher,
}

impl Block {
    fn data(&self) -> &[u8] {
        &self.input[self.window..]
    }
}

/// Three batches go around: one is being read, one deflated, one written, at the same time.
fn run(reader: &mut (impl Read + Send), level: i32, sink: &mut (impl Write + Send)) -> io::Result<()> {
    let batch_len = (rayon::current_num_threads() * 2).min(MAX_BATCH);
    let mut crc = crc32fast::Hasher::new();
    let mut total: u32 = 0;
    let mut source = Source { reader, next: Vec::new(), window: Vec::new(), done: false };
    source.next = source.read_block()?;

    sink.write_all(&HEADER)?;
    let mut deflating = source.read_batch(Vec::new(), batch_len)?;
    let mut writing: Vec<Block> = Vec::new();
    while !deflating.is_empty() {
        let (deflated, moved) = rayon::join(
            || deflate_all(&mut deflating, level),
            || {
                for block in &writing {
                    sink.write_all(&block.output)?;
                    crc.combine(&block.crc);
                    // The size in the trailer is modulo 2^32.
                    total = total.wrapping_add(block.data().len() as u32);
                }
                source.read_batch(std::mem::take(&mut writing), batch_len)
            },
        );
        deflated?;
        writing = std::mem::replace(&mut deflating, moved?);
    }
    for block in &writing {
        sink.write_all(&block.output)?;
        crc.combine(&block.crc);
        total = total.wrapping_add(block.data().len() as u32);
    }
    sink.write_all(&crc.finalize().to_le_bytes())?;
    sink.write_all(&total.to_le_bytes())
}

/// Cuts the input into blocks. One block is read ahead, to know which is the last.
struct Source<'a, R> {
    reader: &'a mut R,
    next: Vec<u8>,
    window: Vec<u8>,
    done: bool,
}

impl<R: Read> Source<'_, R> {
    fn read_block(&mut self) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK];
        let len = read_full(self.reader, &mut block)?;
        block.truncate(len);
        Ok(block)
    }

    /// The next blocks, at most `len`; none: all were given. `old` blocks lend their memory.
    fn read_batch(&mut self, mut old: Vec<Block>, len: usize) -> io::Result<Vec<Block>> {
        let mut batch = Vec::with_capacity(len);
        while batch.len() < len && !self.done {
            let mut block = old.pop().unwrap_or_default();
            block.input.clear();
            block.input.extend_from_slice(&self.window);
            block.window = self.window.len();
            block.input.extend_from_slice(&self.next);
            // An empty block is only the last one of an empty input.
            self.next.resize(BLOCK, 0);
            let read = read_full(self.reader, &mut self.next)?;
            self.next.truncate(read);
            self.done = self.next.is_empty();
            block.last = self.done;
            self.window.clear();
            self.window.extend_from_slice(&block.input[block.input.len().saturating_sub(WINDOW)..]);
            batch.push(block);
        }
        Ok(batch)
    }
}

fn deflate_all(blocks: &mut [Block], level: i32) -> io::Result<()> {
    blocks.par_iter_mut().with_max_len(1).try_for_each(|block| deflate(block, level))
}

fn deflate(block: &mut Block, level: i32) -> io::Result<()> {
    let error = |error: flate2::CompressError| io::Error::other(error);
    let mut compress = Compress::new(flate2::Compression::new(level.unsigned_abs()), false);
    let window = &block.input[..block.window];
    if !window.is_empty() {
        compress.set_dictionary(window).map_err(error)?;
    }
    let data = &block.input[block.window..];
    block.crc = crc32fast::Hasher::new();
    block.crc.update(data);
    block.output.clear();
    block.output.reserve(data.len() / 2 + 1024);
    let flush = if block.last { FlushCompress::Finish } else { FlushCompress::Sync };
    loop {
        let consumed = usize::try_from(compress.total_in()).expect("no more than a block");
        let status = compress.compress_vec(&data[consumed..], &mut block.output, flush).map_err(error)?;
        let taken = compress.total_in() == data.len() as u64;
        let done = match flush {
            FlushCompress::Finish => status == Status::StreamEnd,
            // Room left over says that all was flushed.
            _ => taken && block.output.len() < block.output.capacity(),
        };
        if done {
            return Ok(());
        }
        block.output.reserve(block.output.capacity().max(64 << 10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::tests::sample;
    use image::Digest;

    fn gzip(bytes: &[u8], level: i32) -> Vec<u8> {
        let mut out = Vec::new();
        compress(&mut &bytes[..], level, &mut out).unwrap();
        out
    }

    #[test]
    fn it_is_one_member_with_a_right_trailer() {
        let bytes = sample(3 * BLOCK + 12345);
        let out = gzip(&bytes, 2);
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
        let bytes = sample(BLOCK + BLOCK / 2);
        for level in 0..=9 {
            let mut back = Vec::new();
            flate2::bufread::GzDecoder::new(&gzip(&bytes, level)[..]).read_to_end(&mut back).unwrap();
            assert!(back == bytes, "{level}");
        }
    }

    #[test]
    fn what_does_not_compress_hardly_grows() {
        let mut bytes = vec![0; 4 * BLOCK];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        assert!(gzip(&bytes, 2).len() < bytes.len() + bytes.len() / 500);
    }

    /// Blobs that were pushed are named by these bytes. A new compressor may change them: then say so in the changelog,
    /// since every layer is compressed and pushed once more.
    #[test]
    fn the_bytes_are_pinned() {
        let out = gzip(&sample(2 * BLOCK + 1), 2);
        assert_eq!(Digest::of(&out).short(), "e1c8b17de2d1");
    }
}

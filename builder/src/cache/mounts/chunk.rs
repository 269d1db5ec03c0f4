//! Bytes into chunks, at places that depend on the bytes around them alone: bytes that are put in or taken out change
//! the chunks there and no others. Pure.

use std::io::{self, Write};

use fastcdc::v2020::FastCDC;

/// The shortest chunk (but for the last one), the usual one, and the longest. Changing one of them makes all chunks new.
const LENGTHS: (usize, usize, usize) = (32 << 10, 128 << 10, MAX_CHUNK);
/// The longest chunk, bytes.
pub(crate) const MAX_CHUNK: usize = 512 << 10;
/// How much is looked at at once.
const WINDOW: usize = 8 << 20;

/// Cuts what is written to it and gives each chunk to `take`.
pub(crate) struct Chunker<F> {
    buffer: Vec<u8>,
    take: F,
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Chunker<F> {
    pub(crate) fn new(take: F) -> Self {
        Self { buffer: Vec::with_capacity(WINDOW), take }
    }

    /// Cuts what is left.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.cut(0)
    }

    /// Cuts until fewer than `keep` bytes are left: what follows may belong to a chunk that begins there.
    fn cut(&mut self, keep: usize) -> io::Result<()> {
        let (least, usual, most) = LENGTHS;
        let mut done = 0;
        for chunk in FastCDC::new(&self.buffer, least, usual, most) {
            if self.buffer.len() - chunk.offset < keep {
                break;
            }
            done = chunk.offset + chunk.length;
            (self.take)(&self.buffer[chunk.offset..done])?;
        }
        self.buffer.drain(..done);
        Ok(())
    }
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Write for Chunker<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(WINDOW - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == WINDOW {
            self.cut(MAX_CHUNK)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use image::ContentDigest;

    use super::*;

    fn chunks(bytes: &[u8], step: usize) -> Vec<(ContentDigest, usize)> {
        let mut all = Vec::new();
        let mut chunker = Chunker::new(|chunk: &[u8]| {
            all.push((ContentDigest::of(chunk), chunk.len()));
            Ok(())
        });
        for part in bytes.chunks(step) {
            chunker.write_all(part).unwrap();
        }
        chunker.finish().unwrap();
        all
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    #[test]
    fn cuts_depend_on_the_bytes_alone() {
        let bytes = noise(20 << 20);
        let all = chunks(&bytes, 1 << 20);
        assert_eq!(all.iter().map(|(_, len)| len).sum::<usize>(), bytes.len());
        assert!(all.iter().all(|(_, len)| *len <= MAX_CHUNK));
        assert_eq!(chunks(&bytes, 7777), all, "not on how they are written");
        // A few bytes more in the middle are one or two chunks.
        let mut more = bytes.clone();
        more.splice(9_000_000..9_000_000, *b"some more bytes");
        let known: HashSet<_> = all.into_iter().collect();
        let new = chunks(&more, 1 << 20).into_iter().filter(|chunk| !known.contains(chunk)).count();
        assert!((1..=2).contains(&new), "{new}");
    }

    #[test]
    fn the_cuts_are_pinned() {
        // When this fails, every exported mount is sent again as a whole once.
        let all = chunks(&noise(2 << 20), 1 << 20);
        let lengths: Vec<u8> = all.iter().flat_map(|(_, len)| (*len as u32).to_le_bytes()).collect();
        assert_eq!(ContentDigest::of(&lengths).hex()[..16], *"dc5b3dea58259b2a");
    }
}

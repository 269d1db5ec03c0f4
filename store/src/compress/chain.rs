//! Deflate streams strung together (RFC 1951).
//!
//! A stream is a row of blocks of which the last says that it is the last. For another stream to follow, that must be
//! unsaid; where the last block begins, only reading all of them tells. Nothing is decoded for that: the codes are
//! passed over, at 400 to 700 MB/s of what they stand for.

use std::io;

/// Codes of at most so many bits are looked up at once; the longer ones are rare.
const QUICK: u32 = 11;

/// No code has more bits.
const LONGEST: usize = 15;

/// What no block but the last may be: this one holds nothing and ends on a byte boundary. The first three bits, all 0,
/// stand before it.
const EMPTY: [u8; 4] = [0, 0, 0xff, 0xff];

/// The end of a chain: the last block, with nothing in it.
pub(super) const END: [u8; 5] = [1, 0, 0, 0xff, 0xff];

/// Bytes behind a stream, so that words can be read up to its end.
const PADDING: usize = 16;

/// Makes of `stream`, one whole deflate stream, a link of a chain: another link or [`END`] may follow.
pub(super) fn link(stream: &mut Vec<u8>) -> io::Result<()> {
    let len = stream.len();
    stream.resize(len + PADDING, 0);
    let mut cursor = Cursor { bytes: stream, at: 0, end: len * 8 };
    let found = cursor.last_block();
    let end = cursor.at;
    stream.truncate(len);
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "could not read what was just deflated");
    let last = found.ok_or_else(damaged)?;
    stream[last / 8] &= !(1 << (last % 8));
    // The bits behind the end are 0.
    if end.next_multiple_of(8) - end < 3 {
        stream.push(0);
    }
    stream.extend_from_slice(&EMPTY);
    Ok(())
}

/// Reads bits, the lowest of a byte first.
struct Cursor<'a> {
    bytes: &'a [u8],
    // In bits.
    at: usize,
    end: usize,
}

impl Cursor<'_> {
    /// The word at a byte; 0 behind the padding.
    fn word(&self, at: usize) -> u64 {
        let word = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        word.map_or(0, |word| u64::from_le_bytes(*word))
    }

    /// The next bits, 57 of them for sure.
    fn peek(&self) -> u64 {
        self.word(self.at / 8) >> (self.at % 8)
    }

    fn take(&mut self, bits: u32) -> Option<usize> {
        let value = self.peek() & ((1 << bits) - 1);
        self.at += bits as usize;
        (self.at <= self.end).then_some(value as usize)
    }

    /// Passes over all blocks; where the last one begins. `None`: this is no stream, or not all of it.
    fn last_block(&mut self) -> Option<usize> {
        loop {
            let start = self.at;
            let last = self.take(1)? == 1;
            match self.take(2)? {
                0 => {
                    self.at = self.at.next_multiple_of(8);
                    let len = self.take(16)?;
                    self.at += 16 + len * 8;
                }
                1 => self.codes(&Codes::of_block(&fixed_lengths(), &[5; 30])?)?,
                2 => {
                    let (symbols, distances) = self.lengths()?;
                    self.codes(&Codes::of_block(&symbols, &distances)?)?;
                }
                _ => return None,
            }
            if self.at > self.end {
                return None;
            }
            if last {
                return (self.end - self.at < 8).then_some(start);
            }
        }
    }

    /// The code lengths at the start of a block that brings its own: of symbols and of distances.
    fn lengths(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let (symbols, distances) = (self.take(5)? + 257, self.take(5)? + 1);
        let mut of_lengths = [0; 19];
        for at in &ORDER[..self.take(4)? + 4] {
            of_lengths[*at] = self.take(3)? as u8;
        }
        let code = Code::new(&of_lengths, |symbol| Entry { bits: 0, next: symbol as u8 })?;
        let mut lengths: Vec<u8> = Vec::with_capacity(symbols + distances);
        while lengths.len() < symbols + distances {
            let entry = code.find(self.peek())?;
            self.at += usize::from(entry.bits);
            let (length, times) = match entry.next {
                16 => (*lengths.last()?, self.take(2)? + 3),
                17 => (0, self.take(3)? + 3),
                18 => (0, self.take(7)? + 11),
                length => (length, 1),
            };
            lengths.resize(lengths.len() + times, length);
        }
        let of_distances = lengths.split_off(symbols);
        (of_distances.len() == distances).then_some((lengths, of_distances))
    }

    /// Passes over the codes of a block, to behind its end.
    ///
    /// What matters is the time from one code to the next: there is no branch that is taken now and then but for long
    /// codes, and bits are fetched before they are needed.
    fn codes(&mut self, codes: &Codes) -> Option<()> {
        let mut next = SYMBOL;
        while self.at <= self.end {
            let mut byte = self.at / 8;
            let mut bits = self.word(byte) >> (self.at % 8);
            let mut left = 64 - self.at % 8;
            byte += 8;
            let stop = loop {
                let entry = codes.quick[(usize::from(next) << QUICK) + bits as usize % (1 << QUICK)];
                if entry.next >= STOP {
                    break entry;
                }
                bits >>= entry.bits;
                left -= usize::from(entry.bits);
                next = entry.next;
                if left < MOST {
                    if byte > self.bytes.len() {
                        return None;
                    }
                    bits |= self.word(byte) << left;
                    byte += (63 - left) / 8;
                    left |= 56;
                }
            };
            self.at = byte * 8 - left;
            let entry = match stop.next {
                LONG => codes.slow[usize::from(next)].find(self.peek())?,
                _ => stop,
            };
            self.at += usize::from(entry.bits);
            next = entry.next;
            match next {
                SYMBOL | DISTANCE => {}
                END_OF_BLOCK => return Some(()),
                _ => return None,
            }
        }
        None
    }
}

/// As many bits as a short code takes with those that belong to it: a distance's 13.
const MOST: usize = QUICK as usize + 13;

/// What comes after a code: a literal, a length or the end.
const SYMBOL: u8 = 0;
/// A distance, after a length.
const DISTANCE: u8 = 1;
/// From here on: nothing that is looked up at once.
const STOP: u8 = 2;
const END_OF_BLOCK: u8 = 2;
const INVALID: u8 = 3;
/// This is a longer code.
const LONG: u8 = 4;

/// A code: how many bits it takes with those that belong to it, and what comes next.
#[derive(Clone, Copy)]
struct Entry {
    bits: u8,
    next: u8,
}

/// The two codes of a block.
struct Codes {
    // By what is expected and the next bits.
    quick: Box<[Entry; 2 << QUICK]>,
    slow: [Code; 2],
}

impl Codes {
    fn of_block(symbols: &[u8], distances: &[u8]) -> Option<Self> {
        let symbols = Code::new(symbols, |symbol| match symbol {
            0..=255 => Entry { bits: 0, next: SYMBOL },
            256 => Entry { bits: 0, next: END_OF_BLOCK },
            257..=264 | 285 => Entry { bits: 0, next: DISTANCE },
            265..=284 => Entry { bits: ((symbol - 261) / 4) as u8, next: DISTANCE },
            _ => Entry { bits: 0, next: INVALID },
        })?;
        let distances = Code::new(distances, |symbol| match symbol {
            0..=3 => Entry { bits: 0, next: SYMBOL },
            4..=29 => Entry { bits: symbol as u8 / 2 - 1, next: SYMBOL },
            _ => Entry { bits: 0, next: INVALID },
        })?;
        let mut quick = Box::new([Entry { bits: 0, next: LONG }; 2 << QUICK]);
        let (first, second) = quick.split_at_mut(1 << QUICK);
        symbols.fill(first);
        distances.fill(second);
        Some(Self { quick, slow: [symbols, distances] })
    }
}

/// A prefix code.
struct Code {
    // By code, and how many there are of each length.
    entries: Vec<Entry>,
    counts: [u16; LONGEST + 1],
}

impl Code {
    /// The code whose symbols have codes of these lengths. `meaning` gives the bits behind a symbol's code, and what is next.
    fn new(lengths: &[u8], meaning: impl Fn(usize) -> Entry) -> Option<Self> {
        let mut counts = [0; LONGEST + 1];
        // Codes are given in order of length, then of symbol.
        let mut entries = Vec::with_capacity(lengths.len());
        let mut free: usize = 1;
        for (length, count) in (0_u8..).zip(&mut counts).skip(1) {
            for symbol in (0..lengths.len()).filter(|symbol| lengths[*symbol] == length) {
                let Entry { bits, next } = meaning(symbol);
                entries.push(Entry { bits: length + bits, next });
                *count += 1;
            }
            free = (free * 2).checked_sub(usize::from(*count))?;
        }
        Some(Self { entries, counts })
    }

    /// Puts each short code wherever the next bits begin with it.
    fn fill(&self, quick: &mut [Entry]) {
        let (mut code, mut before) = (0_u32, 0);
        for length in 1..=QUICK {
            code <<= 1;
            let count = usize::from(self.counts[length as usize]);
            for entry in &self.entries[before..before + count] {
                // As it stands in the stream: its first bit is the lowest.
                let first = (code.reverse_bits() >> (32 - length)) as usize;
                quick[first..].iter_mut().step_by(1 << length).for_each(|slot| *slot = *entry);
                code += 1;
            }
            before += count;
        }
    }

    /// The code at the start of `bits`, bit by bit.
    fn find(&self, bits: u64) -> Option<Entry> {
        let (mut code, mut first, mut before) = (0, 0, 0);
        for length in 1..=LONGEST {
            code |= (bits >> (length - 1)) as usize & 1;
            let count = usize::from(self.counts[length]);
            if code < first + count {
                return Some(self.entries[before + code - first]);
            }
            before += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

fn fixed_lengths() -> [u8; 288] {
    std::array::from_fn(|symbol| match symbol {
        0..=143 => 8,
        144..=255 => 9,
        256..=279 => 7,
        _ => 8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::tests::sample;
    use proptest::prelude::*;
    use std::io::Read;

    fn deflate(bytes: &[u8], level: i32) -> Vec<u8> {
        let level = libdeflater::CompressionLvl::new(level).unwrap();
        let mut compressor = libdeflater::Compressor::new(level);
        let mut out = vec![0; compressor.deflate_compress_bound(bytes.len())];
        let len = compressor.deflate_compress(bytes, &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn inflate(stream: &[u8]) -> Vec<u8> {
        let mut decoder = flate2::bufread::DeflateDecoder::new(stream);
        let mut out = Vec::new();
        decoder.read_to_end(&mut out).unwrap();
        assert!(decoder.into_inner().is_empty());
        out
    }

    fn chain<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, level: i32) -> Vec<u8> {
        let mut whole = Vec::new();
        for piece in pieces {
            let mut stream = deflate(piece, level);
            link(&mut stream).unwrap();
            whole.extend(stream);
        }
        whole.extend(END);
        whole
    }

    #[test]
    fn links_of_every_kind_of_block_are_one_stream() {
        let mut noise = vec![0; 300_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        // Every literal about once in its own power of two: codes of all lengths.
        let skewed: Vec<u8> = (0..400_000_u32).map(|n| n.trailing_zeros() as u8 * 7).collect();
        let pieces = [&b""[..], b"a", b"aaaaaaaaaaaa", &noise, &skewed, &[0; 100_000], &sample(2_000_000)];
        for level in 0..=9 {
            assert!(inflate(&chain(pieces, level)) == pieces.concat(), "{level}");
        }
        assert!(inflate(&END).is_empty());
    }

    #[test]
    fn streams_of_another_compressor_are_linked_as_well() {
        // zlib's level 1 uses fixed codes.
        for level in [1, 6] {
            let bytes = sample(200_000);
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(level));
            io::Write::write_all(&mut encoder, &bytes).unwrap();
            let mut stream = encoder.finish().unwrap();
            link(&mut stream).unwrap();
            stream.extend(END);
            assert!(inflate(&stream) == bytes, "{level}");
        }
    }

    #[test]
    fn what_is_no_whole_stream_is_an_error() {
        let stream = deflate(&sample(100_000), 1);
        for len in 0..stream.len().min(2000) {
            assert!(link(&mut stream[..len].to_vec()).is_err(), "{len}");
        }
        assert!(link(&mut [&stream[..], b"more"].concat()).is_err());
        assert!(link(&mut vec![0xff; 100]).is_err());
    }

    proptest! {
        #[test]
        fn chains_come_back(pieces in prop::collection::vec(prop::collection::vec(0..9_u8, 0..3000), 0..6), level in 1..10) {
            let whole = chain(pieces.iter().map(Vec::as_slice), level);
            prop_assert_eq!(inflate(&whole), pieces.concat());
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = link(&mut bytes);
        }
    }
}

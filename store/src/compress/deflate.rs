//! Deflate for speed: what layers leave with unless a higher level is asked for.
//!
//! Matches are found greedily through one hash table with one place a hash, the faster the longer nothing is found, and
//! written with Huffman codes made for every [`SPAN`] bytes or so; what does not get shorter is stored. Several times as
//! fast as zlib at its lowest levels, and no bigger. The output is a function of the input alone.
//!
//! Nothing is kept between calls: see [`super::gzip`] for how blocks become a stream.

/// Bytes of input that share a pair of codes, more or less.
const SPAN: usize = 64 << 10;

/// How far back a match may be.
const WINDOW: usize = 32 << 10;

/// Shortest and longest match. Deflate knows 3, which seldom pays.
const MIN_MATCH: usize = 4;
const MAX_MATCH: usize = 258;

/// Of the table, whose places are the lowest 16 bits of a position: a window has fewer, and a stale one is found out when
/// the bytes are compared.
const HASH_BITS: u32 = 15;

/// Without a match for 2^this bytes, one more byte is skipped at each look-up.
const SKIP_SHIFT: u32 = 6;

const END_OF_BLOCK: usize = 256;
const LITERALS: usize = 286;
const DISTANCES: usize = 30;

/// Longest codes: four literals, or a match, fit in the 56 bits that are free after a flush.
const LITERAL_BITS: usize = 14;
const DISTANCE_BITS: usize = 15;
const CODE_BITS: usize = 7;

/// Deflates `input[start..]`, which may refer to the window before it, to the end of `out`. Ends on a byte boundary; `last`
/// ends the stream too.
pub(super) fn deflate(input: &[u8], start: usize, last: bool, out: &mut Vec<u8>) {
    let mut bits = Bits::new(out, input.len() - start);
    let mut block = Block { sequences: Vec::with_capacity(SPAN / 8), start };
    let mut table = vec![0_u16; 1 << HASH_BITS];
    // Where eight bytes can be loaded.
    let limit = input.len().saturating_sub(8);
    for at in (start.saturating_sub(WINDOW)..start.min(limit)).step_by(2) {
        table[hash(load(input, at))] = at as u16;
    }

    let mut at = start;
    let mut anchor = start;
    while at < limit {
        let here = load(input, at);
        let place = &mut table[hash(here)];
        let distance = usize::from((at as u16).wrapping_sub(*place));
        *place = at as u16;
        let mut from = at.saturating_sub(distance);
        if !(1..=WINDOW).contains(&distance) || distance > at || load4(input, from) != here as u32 {
            at += 1 + ((at - anchor) >> SKIP_SHIFT);
            if at - block.start >= SPAN {
                at = at.min(input.len());
                block.literals(at - anchor);
                block.write(input, at, false, &mut bits);
                anchor = at;
            }
            continue;
        }
        let mut len = MIN_MATCH + common(input, from + MIN_MATCH, at + MIN_MATCH);
        while at > anchor && from > 0 && input[at - 1] == input[from - 1] {
            (at, from, len) = (at - 1, from - 1, len + 1);
        }
        block.matched(at - anchor, len, distance);
        at += len;
        anchor = at;
        if at < limit {
            table[hash(load(input, at - 2))] = (at - 2) as u16;
        }
        if at - block.start >= SPAN {
            block.write(input, at, false, &mut bits);
        }
    }
    block.literals(input.len() - anchor);
    if last {
        block.write(input, input.len(), true, &mut bits);
    } else {
        if block.start < input.len() {
            block.write(input, input.len(), false, &mut bits);
        }
        // An empty stored block: zlib's sync flush.
        bits.put(0, 3);
        bits.align();
        bits.bytes(&[0, 0, 0xff, 0xff]);
    }
    bits.finish();
}

#[inline]
fn load(input: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(input[at..at + 8].try_into().expect("eight bytes"))
}

#[inline]
fn load4(input: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(input[at..at + 4].try_into().expect("four bytes"))
}

/// Of the first five bytes.
#[inline]
fn hash(bytes: u64) -> usize {
    ((bytes << 24).wrapping_mul(0x9e37_79b1_85eb_ca87) >> (64 - HASH_BITS)) as usize
}

/// How many bytes are the same from `a` and from `b` on, of which `b` is the later.
fn common(input: &[u8], a: usize, b: usize) -> usize {
    let mut len = 0;
    let (left, right) = (&input[a..], &input[b..]);
    for (x, y) in left.chunks_exact(8).zip(right.chunks_exact(8)) {
        let x = u64::from_le_bytes(x.try_into().expect("eight bytes"));
        let y = u64::from_le_bytes(y.try_into().expect("eight bytes"));
        if x != y {
            return len + ((x ^ y).trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    len + left[len..].iter().zip(&right[len..]).take_while(|(x, y)| x == y).count()
}

/// Literals, then a match.
#[derive(Clone, Copy)]
struct Sequence {
    literals: u32,
    /// 0: none, at the end.
    len: u16,
    distance: u16,
}

/// A block of the stream in the making.
struct Block {
    sequences: Vec<Sequence>,
    // Where it begins in the input.
    start: usize,
}

impl Block {
    fn literals(&mut self, literals: usize) {
        if literals > 0 {
            self.sequences.push(Sequence { literals: literals as u32, len: 0, distance: 0 });
        }
    }

    #[inline]
    fn matched(&mut self, mut literals: usize, mut len: usize, distance: usize) {
        while len > 0 {
            // What is left must be a match too.
            let part = match len {
                0..=MAX_MATCH => len,
                _ if len - MAX_MATCH < 3 => MAX_MATCH - 3,
                _ => MAX_MATCH,
            };
            // 32768 does not fit: one less.
            self.sequences.push(Sequence {
                literals: literals as u32,
                len: part as u16,
                distance: (distance - 1) as u16,
            });
            literals = 0;
            len -= part;
        }
    }

    /// Writes it as it gets shortest, and begins the next one at `end`.
    fn write(&mut self, input: &[u8], end: usize, last: bool, bits: &mut Bits<'_>) {
        let data = &input[self.start..end];
        let codes = Codes::new(&self.sequences, data);
        let stored = data.len().div_ceil(STORED_MAX).max(1) * 40 + data.len() * 8;
        if codes.bits >= stored {
            bits.stored(data, last);
        } else {
            bits.put(u64::from(last) | 2 << 1, 3);
            codes.write_header(bits);
            codes.write_sequences(&self.sequences, data, bits);
        }
        self.sequences.clear();
        self.start = end;
    }
}

/// Most bytes of a stored block.
const STORED_MAX: usize = 0xffff;

/// A symbol's code, the first bit lowest, and its length.
#[derive(Clone, Copy, Default)]
struct Code {
    code: u32,
    bits: u32,
}

/// The codes of a block and how they are said.
struct Codes {
    literals: [Code; LITERALS],
    distances: [Code; DISTANCES],
    // The code lengths in run-length form: symbol, value of the extra bits.
    lengths: Vec<(u8, u8)>,
    of_lengths: [Code; 19],
    literal_count: usize,
    distance_count: usize,
    length_count: usize,
    // How long the block becomes.
    bits: usize,
}

/// In which order the header gives the codes of the code lengths.
const LENGTH_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

impl Codes {
    fn new(sequences: &[Sequence], data: &[u8]) -> Self {
        // Four counters a byte: equal bytes in a row do not wait for each other.
        let mut bytes = [[0_u32; 256]; 4];
        let mut literal_freq = [0_u32; LITERALS];
        let mut distance_freq = [0_u32; DISTANCES];
        let mut extra = 0;
        let mut at = 0;
        for sequence in sequences {
            let literals = &data[at..at + sequence.literals as usize];
            let mut fours = literals.chunks_exact(4);
            for four in &mut fours {
                for (table, byte) in bytes.iter_mut().zip(four) {
                    table[usize::from(*byte)] += 1;
                }
            }
            for (table, byte) in bytes.iter_mut().zip(fours.remainder()) {
                table[usize::from(*byte)] += 1;
            }
            if sequence.len > 0 {
                let (len, distance) = (length_symbol(sequence.len), distance_symbol(sequence.distance));
                literal_freq[len.symbol] += 1;
                distance_freq[distance.symbol] += 1;
                extra += len.extra + distance.extra;
            }
            at += literals.len() + usize::from(sequence.len);
        }
        for (byte, freq) in literal_freq[..256].iter_mut().enumerate() {
            *freq = bytes.iter().map(|table| table[byte]).sum();
        }
        literal_freq[END_OF_BLOCK] = 1;

        let literals: [Code; LITERALS] = codes(&literal_freq, LITERAL_BITS);
        let distances: [Code; DISTANCES] = codes(&distance_freq, DISTANCE_BITS);
        let literal_count =
            1 + literals.iter().rposition(|code| code.bits > 0).expect("the end of the block");
        let distance_count = 1 + distances.iter().rposition(|code| code.bits > 0).unwrap_or(0);
        let all = literals[..literal_count].iter().chain(&distances[..distance_count]);
        let lengths = run_lengths(&all.map(|code| code.bits as u8).collect::<Vec<u8>>());
        let mut length_freq = [0_u32; 19];
        for (symbol, _) in &lengths {
            length_freq[usize::from(*symbol)] += 1;
        }
        let of_lengths: [Code; 19] = codes(&length_freq, CODE_BITS);
        let length_count =
            1 + LENGTH_ORDER.iter().rposition(|symbol| of_lengths[*symbol].bits > 0).unwrap_or(3).max(3);

        let sum = |codes: &[Code], freq: &[u32]| -> usize {
            codes.iter().zip(freq).map(|(code, freq)| code.bits as usize * *freq as usize).sum()
        };
        let header = 3
            + 14
            + 3 * length_count
            + sum(&of_lengths, &length_freq)
            + lengths.iter().map(|(symbol, _)| length_extra(*symbol) as usize).sum::<usize>();
        let bits = header + sum(&literals, &literal_freq) + sum(&distances, &distance_freq) + extra as usize;
        Self { literals, distances, lengths, of_lengths, literal_count, distance_count, length_count, bits }
    }

    fn write_header(&self, bits: &mut Bits<'_>) {
        bits.put((self.literal_count - 257) as u64, 5);
        bits.put((self.distance_count - 1) as u64, 5);
        bits.put((self.length_count - 4) as u64, 4);
        for symbol in &LENGTH_ORDER[..self.length_count] {
            bits.put(u64::from(self.of_lengths[*symbol].bits), 3);
        }
        for (symbol, value) in &self.lengths {
            let code = self.of_lengths[usize::from(*symbol)];
            bits.put(u64::from(code.code), code.bits);
            bits.put(u64::from(*value), length_extra(*symbol));
        }
    }

    fn write_sequences(&self, sequences: &[Sequence], data: &[u8], bits: &mut Bits<'_>) {
        let mut at = 0;
        for sequence in sequences {
            let literals = &data[at..at + sequence.literals as usize];
            let mut fours = literals.chunks_exact(4);
            for four in &mut fours {
                for byte in four {
                    bits.add(self.literals[usize::from(*byte)]);
                }
                bits.flush();
            }
            for byte in fours.remainder() {
                bits.add(self.literals[usize::from(*byte)]);
            }
            bits.flush();
            if sequence.len > 0 {
                let (len, distance) = (length_symbol(sequence.len), distance_symbol(sequence.distance));
                bits.add(self.literals[len.symbol]);
                bits.add(Code { code: len.value, bits: len.extra });
                bits.add(self.distances[distance.symbol]);
                bits.add(Code { code: distance.value, bits: distance.extra });
                bits.flush();
            }
            at += literals.len() + usize::from(sequence.len);
        }
        bits.add(self.literals[END_OF_BLOCK]);
        bits.flush();
    }
}

/// A symbol and the extra bits behind its code.
struct Symbol {
    symbol: usize,
    value: u32,
    extra: u32,
}

#[inline]
fn length_symbol(len: u16) -> Symbol {
    let len = u32::from(len);
    if len == 258 {
        return Symbol { symbol: 285, value: 0, extra: 0 };
    }
    let rest = len - 3;
    if rest < 8 {
        return Symbol { symbol: 257 + rest as usize, value: 0, extra: 0 };
    }
    // Four symbols for each power of two.
    let extra = 29 - rest.leading_zeros();
    let symbol = 257 + 4 * extra + (rest >> extra);
    Symbol { symbol: symbol as usize, value: rest & ((1 << extra) - 1), extra }
}

/// Of a distance less one.
#[inline]
fn distance_symbol(rest: u16) -> Symbol {
    let rest = u32::from(rest);
    if rest < 4 {
        return Symbol { symbol: rest as usize, value: 0, extra: 0 };
    }
    // Two symbols for each power of two.
    let extra = 30 - rest.leading_zeros();
    Symbol { symbol: (2 * extra + (rest >> extra)) as usize, value: rest & ((1 << extra) - 1), extra }
}

fn length_extra(symbol: u8) -> u32 {
    match symbol {
        16 => 2,
        17 => 3,
        18 => 7,
        _ => 0,
    }
}

/// Code lengths as the header gives them: 16 repeats the one before, 17 and 18 are zeros.
fn run_lengths(lengths: &[u8]) -> Vec<(u8, u8)> {
    let mut out = Vec::with_capacity(lengths.len());
    let mut rest = lengths;
    while let Some(&first) = rest.first() {
        let mut run = rest.iter().take_while(|len| **len == first).count();
        rest = &rest[run..];
        if first > 0 {
            out.push((first, 0));
            run -= 1;
        }
        while run > 0 {
            let (symbol, low, high) = match first {
                0 if run > 10 => (18, 11, 138),
                0 => (17, 3, 10),
                _ => (16, 3, 6),
            };
            if run < low {
                out.extend(std::iter::repeat_n((first, 0), run));
                break;
            }
            let part = run.min(high);
            out.push((symbol, (part - low) as u8));
            run -= part;
        }
    }
    out
}

/// Huffman codes for symbols that are used so often, none longer than `max`.
fn codes<const N: usize>(freq: &[u32; N], max: usize) -> [Code; N] {
    let mut used: Vec<(u32, u16)> =
        (0..N).filter(|symbol| freq[*symbol] > 0).map(|symbol| (freq[symbol], symbol as u16)).collect();
    used.sort_unstable();
    let mut codes = [Code::default(); N];
    // How many codes there are of each length.
    let mut counts = [0_u32; 33];
    match used.len() {
        0 => return codes,
        1 => counts[1] = 1,
        _ => {
            for depth in depths(&used) {
                counts[(depth as usize).min(32)] += 1;
            }
            limit(&mut counts, max);
        }
    }
    // The rarest get the longest.
    let mut next = 0;
    let mut lens = [0_u32; N];
    for bits in (1..=max).rev() {
        for _ in 0..counts[bits] {
            lens[usize::from(used[next].1)] = bits as u32;
            next += 1;
        }
    }
    let mut first = [0_u32; 17];
    for bits in 1..=max {
        first[bits + 1] = (first[bits] + counts[bits]) << 1;
    }
    for (code, bits) in codes.iter_mut().zip(lens) {
        if bits > 0 {
            let value = &mut first[bits as usize];
            *code = Code { code: value.reverse_bits() >> (32 - bits), bits };
            *value += 1;
        }
    }
    codes
}

/// How deep in the Huffman tree each symbol is; the symbols come rarest first, and there are at least two.
fn depths(used: &[(u32, u16)]) -> Vec<u32> {
    let leaves = used.len();
    let mut weights: Vec<u64> = used.iter().map(|(freq, _)| u64::from(*freq)).collect();
    let mut parent = vec![0; 2 * leaves - 1];
    let (mut leaf, mut inner) = (0, leaves);
    for node in leaves..2 * leaves - 1 {
        let mut weight = 0;
        for _ in 0..2 {
            let take_leaf = leaf < leaves && (inner >= node || weights[leaf] <= weights[inner]);
            let child = if take_leaf { &mut leaf } else { &mut inner };
            weight += weights[*child];
            parent[*child] = node;
            *child += 1;
        }
        weights.push(weight);
    }
    let mut depth = vec![0; 2 * leaves - 1];
    for node in (0..2 * leaves - 2).rev() {
        depth[node] = depth[parent[node]] + 1;
    }
    depth.truncate(leaves);
    depth
}

/// Makes no code longer than `max`: too long ones become `max`, and shorter ones longer until all fit again.
fn limit(counts: &mut [u32; 33], max: usize) {
    for bits in max + 1..counts.len() {
        counts[max] += std::mem::take(&mut counts[bits]);
    }
    let mut total: u64 = (1..=max).map(|bits| u64::from(counts[bits]) << (max - bits)).sum();
    while total > 1 << max {
        counts[max] -= 1;
        let bits =
            (1..max).rev().find(|bits| counts[*bits] > 0).expect("not all codes have the longest length");
        counts[bits] -= 1;
        counts[bits + 1] += 2;
        total -= 1;
    }
}

/// Bits to the end of a vector, lowest first.
struct Bits<'a> {
    out: &'a mut Vec<u8>,
    at: usize,
    buffer: u64,
    filled: u32,
}

impl<'a> Bits<'a> {
    /// For about `expected` bytes.
    fn new(out: &'a mut Vec<u8>, expected: usize) -> Self {
        let at = out.len();
        out.resize(at + expected + expected / 64 + 1024, 0);
        Self { out, at, buffer: 0, filled: 0 }
    }

    /// Adds a code. At most 56 bits between two flushes.
    #[inline]
    fn add(&mut self, code: Code) {
        self.buffer |= u64::from(code.code) << self.filled;
        self.filled += code.bits;
    }

    /// Moves whole bytes out.
    #[inline]
    fn flush(&mut self) {
        if self.at + 8 > self.out.len() {
            self.grow();
        }
        self.out[self.at..self.at + 8].copy_from_slice(&self.buffer.to_le_bytes());
        let bytes = self.filled / 8;
        self.at += bytes as usize;
        self.buffer >>= 8 * bytes;
        self.filled %= 8;
    }

    #[cold]
    fn grow(&mut self) {
        let len = self.out.len();
        self.out.resize(len + len / 2 + 1024, 0);
    }

    fn put(&mut self, value: u64, bits: u32) {
        self.add(Code { code: value as u32, bits });
        self.flush();
    }

    fn align(&mut self) {
        self.filled = self.filled.next_multiple_of(8);
        self.flush();
    }

    fn bytes(&mut self, bytes: &[u8]) {
        while self.at + bytes.len() > self.out.len() {
            self.grow();
        }
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn stored(&mut self, data: &[u8], last: bool) {
        let mut parts = data.chunks(STORED_MAX).peekable();
        let empty: &[u8] = &[];
        let mut part = parts.next().unwrap_or(empty);
        loop {
            let next = parts.next();
            self.put(u64::from(last && next.is_none()), 3);
            self.align();
            let len = part.len() as u16;
            self.bytes(&len.to_le_bytes());
            self.bytes(&(!len).to_le_bytes());
            self.bytes(part);
            match next {
                Some(next) => part = next,
                None => return,
            }
        }
    }

    fn finish(mut self) {
        self.align();
        self.out.truncate(self.at);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;
    use crate::compress::tests::sample;

    fn deflated(input: &[u8], start: usize, last: bool) -> Vec<u8> {
        let mut out = Vec::new();
        deflate(input, start, last, &mut out);
        out
    }

    fn inflated(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::bufread::DeflateDecoder::new(bytes).read_to_end(&mut out).unwrap();
        out
    }

    /// Both halves as blocks of one stream, the second primed with the first.
    fn check(bytes: &[u8], cut: usize) {
        let mut stream = deflated(&bytes[..cut], 0, false);
        stream.extend(deflated(bytes, cut, true));
        assert!(inflated(&stream) == bytes, "{} bytes cut at {cut}", bytes.len());
    }

    #[test]
    fn what_is_deflated_comes_back() {
        let random = |len| {
            let mut bytes = vec![0; len];
            blake3::Hasher::new().finalize_xof().fill(&mut bytes);
            bytes
        };
        for bytes in [
            Vec::new(),
            vec![7],
            b"abcabcabcabcabcabcabcabcabc".to_vec(),
            vec![0; 3 * SPAN],
            random(3 * SPAN),
            [random(WINDOW), random(WINDOW)].concat(),
            [random(WINDOW + 1), random(WINDOW + 1)].concat(),
            sample(1 << 20),
            // One literal, so one code of one bit.
            vec![b'x'; 12],
        ] {
            for cut in [0, bytes.len() / 3, bytes.len()] {
                check(&bytes, cut);
            }
        }
    }

    #[test]
    fn codes_stay_short_however_rare_a_byte_is() {
        // Fibonacci frequencies make the deepest tree.
        let mut bytes = Vec::new();
        let (mut a, mut b) = (1, 1);
        for byte in 0..24_u8 {
            bytes.extend((0..a).flat_map(|n: u32| [byte, n.wrapping_mul(0x9e37_79b1) as u8 | 0x80]));
            (a, b) = (b, a + b);
        }
        check(&bytes, 0);
        let mut freq = [0; 40];
        let (mut a, mut b) = (1, 1);
        for freq in &mut freq {
            *freq = a;
            (a, b) = (b, a + b);
        }
        for max in [7, 14, 15] {
            let codes = codes(&freq, max);
            let space: usize = codes.iter().map(|code| 1 << (max - code.bits as usize)).sum();
            assert!(codes.iter().all(|code| (1..=max as u32).contains(&code.bits)) && space <= 1 << max);
        }
    }

    #[test]
    fn what_repeats_gets_short_and_what_does_not_hardly_grows() {
        assert!(deflated(&vec![1; 1 << 20], 0, true).len() < 6000);
        let mut bytes = vec![0; 1 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        assert!(deflated(&bytes, 0, true).len() < bytes.len() + bytes.len() / 1000);
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(
            parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), 1..400_usize), 0..60),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes: Vec<u8> = parts.iter().flat_map(|(part, times)| part.repeat(*times)).collect();
            check(&bytes, cut.index(bytes.len() + 1));
        }
    }
}

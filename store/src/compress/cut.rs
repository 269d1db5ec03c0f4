//! Where a tar is cut into blocks: where its own bytes say.
//!
//! A tar is made of records of [`RECORD`] bytes, and what is put into it or taken out of it moves the rest by whole
//! records. So a few bytes of each record decide whether a block may begin there, and after a change the cuts fall on the
//! same records as before: the blocks behind the change are the blocks that they were.

/// A block is a number of these, but for the last one.
const RECORD: usize = 512;

/// No block but the last is shorter.
const MIN: usize = 512 << 10;

/// No block is longer.
pub(super) const MAX: usize = 2 << 20;

/// One record in so many begins a block, for blocks of [`USUAL`] bytes on average.
const RARE: u32 = 1024;

/// What a block has on average.
pub(super) const USUAL: usize = 1 << 20;

/// The length of the block at the start of `data`, which is [`MAX`] bytes or all that is left.
pub(super) fn cut(data: &[u8]) -> usize {
    let (whole, _) = data.as_chunks::<RECORD>();
    let end = data.len().min(MAX);
    (MIN / RECORD..end.div_ceil(RECORD))
        .find(|at| whole.get(*at).is_some_and(begins))
        .map_or(end, |at| at * RECORD)
}

/// Whether a block may begin with `record`. In a header of an entry the bytes are of its path, its mode and its checksum.
fn begins(record: &[u8; RECORD]) -> bool {
    let word = |at: usize| u64::from_le_bytes(*record[at..].first_chunk().expect("a record is longer"));
    let mixed = word(0) ^ word(96).rotate_left(23) ^ word(148).rotate_left(41);
    // Not 0: zeros, of which there are many, begin nothing.
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - RARE.trailing_zeros()) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(mut data: &[u8]) -> Vec<&[u8]> {
        let mut blocks = Vec::new();
        while !data.is_empty() {
            let (block, rest) = data.split_at(cut(&data[..data.len().min(MAX)]));
            blocks.push(block);
            data = rest;
        }
        blocks
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn blocks_are_all_of_the_data_and_about_as_long_as_they_should() {
        for len in [0, 1, RECORD, MIN - 1, MIN, MIN + 1, MAX, MAX + 1, 40 << 20] {
            let data = noise(len);
            let blocks = cuts(&data);
            assert_eq!(blocks.concat(), data);
            for block in blocks.iter().rev().skip(1) {
                assert!((MIN..=MAX).contains(&block.len()) && block.len() % RECORD == 0, "{len}");
            }
            assert!(len < 40 << 20 || (28..=56).contains(&blocks.len()), "{}", blocks.len());
        }
        assert!(cuts(&vec![0; 9 << 20]).iter().all(|block| block.len() <= MAX));
    }

    #[test]
    fn what_is_behind_a_change_is_cut_as_before() {
        let data = noise(30 << 20);
        let at = (5 << 20) + 3 * RECORD;
        let before: std::collections::HashSet<&[u8]> = cuts(&data).into_iter().collect();
        for inserted in [0, RECORD, 700 * RECORD] {
            let changed = [&data[..at], &noise(inserted + 64)[64..], &data[at + RECORD..]].concat();
            let new = cuts(&changed).iter().filter(|block| !before.contains(*block)).count();
            assert!(new <= 4, "{inserted}: {new} new blocks");
        }
    }
}

//! Bytes on their way to a registry: in memory, or in a file and read when their turn comes.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::buffer::spare_capacity;

/// Bytes in a file. They must stay as they are as long as this is held.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// The file.
    pub file: Arc<File>,
    /// Where they begin.
    pub at: u64,
    /// How many there are.
    pub len: u64,
}

impl Stretch {
    /// Reads its first bytes, at most so many and at least one, and begins behind them.
    pub fn read(&mut self, most: usize) -> io::Result<Bytes> {
        let most = usize::try_from(self.len).unwrap_or(usize::MAX).min(most);
        let mut bytes = Vec::with_capacity(most);
        rustix::io::pread(&*self.file, spare_capacity(&mut bytes), self.at)?;
        // There may be room for more than was asked for.
        bytes.truncate(most);
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.skip(bytes.len() as u64);
        Ok(bytes.into())
    }

    fn skip(&mut self, len: u64) {
        self.at += len;
        self.len -= len;
    }
}

/// Some bytes of one kind.
#[derive(Clone, Debug)]
pub(super) enum Part {
    Memory(Bytes),
    Stored(Stretch),
}

impl Default for Part {
    fn default() -> Self {
        Self::Memory(Bytes::new())
    }
}

impl Part {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Stored(stretch) => stretch.len,
        }
    }

    /// Takes off the first bytes, of which there must be as many.
    pub(super) fn split_to(&mut self, len: u64) -> Self {
        match self {
            Self::Memory(bytes) => Self::Memory(bytes.split_to(len as usize)),
            Self::Stored(stretch) => {
                let first = Stretch { len, ..stretch.clone() };
                stretch.skip(len);
                Self::Stored(first)
            }
        }
    }

    /// The next bytes, at most so many.
    pub(super) fn next(&mut self, most: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes.split_to(bytes.len().min(most))),
            Self::Stored(stretch) => stretch.read(most),
        }
    }
}

/// Bytes in the parts that they came in.
#[derive(Clone, Debug, Default)]
pub(super) struct Chunk {
    // None of them is empty.
    parts: VecDeque<Part>,
    len: u64,
}

impl Chunk {
    pub(super) fn push(&mut self, part: Part) {
        if part.len() > 0 {
            self.len += part.len();
            self.parts.push_back(part);
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn into_parts(self) -> VecDeque<Part> {
        self.parts
    }

    /// All but the first `done` bytes.
    pub(super) fn behind(&self, mut done: u64) -> Self {
        let mut rest = self.clone();
        rest.len -= done;
        while let Some(front) = rest.parts.front_mut() {
            if done < front.len() {
                front.split_to(done);
                break;
            }
            done -= front.len();
            rest.parts.pop_front();
        }
        rest
    }

    /// All of it in one piece.
    pub(super) fn read(self) -> io::Result<Bytes> {
        let mut whole = BytesMut::with_capacity(self.len as usize);
        for mut part in self.parts {
            while part.len() > 0 {
                whole.extend_from_slice(&part.next(usize::MAX)?);
            }
        }
        Ok(whole.freeze())
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        let mut chunk = Self::default();
        chunk.push(Part::Memory(bytes));
        chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// `abcdefghijklmnop`, of which `efghijkl` is in a file.
    fn chunk() -> Chunk {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"....efghijkl....").unwrap();
        let mut chunk = Chunk::from(Bytes::from_static(b"abcd"));
        chunk.push(Part::Stored(Stretch { file: Arc::new(file), at: 4, len: 8 }));
        chunk.push(Part::Memory(Bytes::new()));
        chunk.push(Part::Memory(Bytes::from_static(b"mnop")));
        chunk
    }

    #[test]
    fn a_chunk_is_its_parts_from_wherever_it_goes_on() {
        let all = b"abcdefghijklmnop";
        for done in 0..=16 {
            let rest = chunk().behind(done);
            assert_eq!(rest.len(), 16 - done);
            assert_eq!(rest.read().unwrap(), all[done as usize..]);
        }
    }

    #[test]
    fn parts_are_split_and_read_in_frames() {
        let mut frames = Vec::new();
        for mut part in chunk().into_parts() {
            let first = part.split_to(1);
            assert_eq!(first.len(), 1);
            for mut part in [first, part] {
                while part.len() > 0 {
                    frames.push(part.next(3).unwrap());
                }
            }
        }
        assert_eq!(frames, ["a", "bcd", "e", "fgh", "ijk", "l", "m", "nop"]);
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut stretch = Stretch { file, at: 0, len: 1 };
        assert_eq!(stretch.read(10).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

//! [`Earlier`]: the layer that a step made before. When one file of a context changed, the others' bytes are in it, one
//! behind the other: they are copied from there and their files are not opened.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use image::layer::{Entry, Kind};
use image::{ContentDigest, DiffId};
use store::layer::Layers;

/// How much of the tar is read at once. Files come in much the same order as they are in it.
const WINDOW: usize = 1 << 20;

/// A layer whose bytes may be used again.
#[derive(Debug)]
pub struct Earlier {
    offsets: HashMap<ContentDigest, (u64, u64)>,
    tar: Mutex<Tar>,
}

/// The tar, and the part of it that was read last.
#[derive(Debug)]
struct Tar {
    file: File,
    buffer: Vec<u8>,
    start: u64,
    end: u64,
}

impl Earlier {
    /// Opens a layer; `None` if it is not here any more.
    pub fn open(layers: &Layers, layer: &DiffId) -> Option<Self> {
        let index = layers.index(layer).ok()?;
        let file = layers.open_tar(layer).ok()?;
        Some(Self::new(index.entries(), file))
    }

    pub(super) fn new(entries: &[Entry], tar: File) -> Self {
        let offsets = entries.iter().filter_map(|entry| match entry.kind {
            Kind::File { size: size @ 1.., offset, content } => Some((content, (offset, size))),
            _ => None,
        });
        let tar = Tar { file: tar, buffer: Vec::new(), start: 0, end: 0 };
        Self { offsets: offsets.collect(), tar: Mutex::new(tar) }
    }

    /// Whether the bytes of the file `entry` are in the layer.
    pub(super) fn has(&self, entry: &Entry) -> bool {
        self.bytes(entry).is_some()
    }

    /// The bytes of the file `entry`, if they are in the layer.
    pub(super) fn bytes(&self, entry: &Entry) -> Option<Bytes<'_>> {
        let Kind::File { size, content, .. } = &entry.kind else { return None };
        let &(at, length) = self.offsets.get(content)?;
        (length == *size).then_some(Bytes { tar: &self.tar, at, left: length })
    }
}

/// A reader of a range of the tar.
#[derive(Debug)]
pub(super) struct Bytes<'a> {
    tar: &'a Mutex<Tar>,
    at: u64,
    left: u64,
}

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read =
            self.tar.lock().unwrap_or_else(PoisonError::into_inner).read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Tar {
    fn read_at(&mut self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if !(self.start..self.end).contains(&at) {
            // What is large goes where it is wanted.
            if buffer.len() >= WINDOW {
                return self.file.read_at(buffer, at);
            }
            self.buffer.resize(WINDOW, 0);
            let read = self.file.read_at(&mut self.buffer, at)?;
            (self.start, self.end) = (at, at + read as u64);
        }
        let known = &self.buffer[(at - self.start) as usize..(self.end - self.start) as usize];
        let length = known.len().min(buffer.len());
        buffer[..length].copy_from_slice(&known[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn entry(content: &[u8], offset: u64) -> Entry {
        let kind = Kind::File { size: content.len() as u64, offset, content: ContentDigest::of(content) };
        Entry {
            path: "f".into(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn bytes_come_from_where_they_are_in_any_order() {
        let contents = [vec![1; 10], vec![2; WINDOW - 5], vec![3; 2 * WINDOW], vec![4; 7]];
        let mut file = tempfile::tempfile().unwrap();
        let mut entries = Vec::new();
        for content in &contents {
            let offset = file.metadata().unwrap().len();
            file.write_all(content).unwrap();
            entries.push(entry(content, offset));
        }
        let earlier = Earlier::new(&entries, file);
        for number in [0, 1, 2, 3, 3, 1, 0, 2] {
            let mut bytes = Vec::new();
            earlier.bytes(&entries[number]).unwrap().read_to_end(&mut bytes).unwrap();
            assert!(bytes == contents[number], "{number}");
        }
        assert!(earlier.bytes(&entry(b"other", 0)).is_none());
    }
}
